"""Encoded cameras: the transformation of q, k, v and the attention output in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Attention = Callable[..., tuple[Tensor, Tensor | None]]  # (q, k, v, mask) -> outputs (B, T, H, D), and weights if any
QK = tuple[Float[Tensor, "B L H E"], Float[Tensor, "B L G E"]]
Rope = tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]  # cosine and sine


class EncodedCameras:
    """The hooks of an encoding into the attention for one batch; this base class is the identity.

    q, k, v and o have shape (B, L, heads, D), in token order; with grouped-query attention k and v have G heads and
    q and o H heads. `after_rope` may append channels to q and k, and `transform_values` as many to v, which
    `transform_outputs` removes. The first D channels remain the model's own, so encodings can be composed, and the
    softmax scale remains D^-1/2. CPU attention has a fast kernel only if q, k and v are equally wide.

    A plain class on purpose, see `Cameras`: FSDP would cast the matrices of a dataclass to bfloat16.

    Attributes:
        num_tokens: L; None if the transformation fits any number of tokens.
        attends_per_view: Whether `attend` is not the decoder's attention, but that of each view by itself.
    """

    attends_per_view: bool = False

    def __init__(self, num_tokens: int | None = None) -> None:
        self.num_tokens = num_tokens

    @property
    def raw_depths(self) -> Mapping[int, Float[Tensor, "B L ends"]]:
        """What layers that have run predict of their tokens' depth in the unit of the poses, see `depth_ends`.

        Of no layer without RayRoPE, or where its depths are known or divided by a length of the scene.
        """
        return {}

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        """Return the hooks of one layer; None is the stock attention.

        Args:
            layer: Number of the layer, from 0.
            hidden_states: Input of the layer's projections.
            rope: Cosine and sine of the tokens' positions.
        """
        return self

    def at_linear_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"]) -> EncodedCameras | None:
        """Return the hooks of a Gated DeltaNet layer, see `DeltaNetLayers`; None is the stock layer."""
        return None

    def for_decode_step(self) -> EncodedCameras | None:
        """Return the hooks of later decode steps, which contain text only; None is the stock attention."""
        return None

    def before_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        """Transform queries and keys before RoPE."""
        return q, k

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        """Transform queries and keys after RoPE, for the attention and the KV cache."""
        return q, k

    def transform_values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        """Transform values, for the attention and the KV cache."""
        return v

    def attend(
        self,
        attention: Attention,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B G K D"],
        v: Float[Tensor, "B G K D"],
        mask: Any,
    ) -> tuple[Float[Tensor, "B L H D"], Tensor | None]:
        """Attend, behind the update of the KV cache.

        Args:
            attention: The decoder's attention.
            q: Queries, behind `after_rope`.
            k: Keys as they are in the cache.
            v: Values as they are in the cache.
            mask: In the form of the attention backend; None is causal attention.

        Returns:
            The output, and the attention weights where the backend returns them.
        """
        return attention(q, k, v, mask)

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        """Transform the attention output before the output projection."""
        return o


class ZeroChannels(EncodedCameras):
    """Append zeros to q, k and v: decoded text beside cached tokens with more channels.

    Args:
        channels: Number of appended channels.
        num_tokens: L; None fits any number of tokens.
    """

    def __init__(self, channels: int, num_tokens: int | None = None) -> None:
        super().__init__(num_tokens)
        self.channels = channels

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return F.pad(q, (0, self.channels)), F.pad(k, (0, self.channels))

    def transform_values(self, v: Tensor) -> Tensor:
        return F.pad(v, (0, self.channels))

    def transform_outputs(self, o: Tensor) -> Tensor:
        return o[..., : -self.channels]


class EncodedGroup(EncodedCameras):
    """Base class of encoded cameras that delegate to others, its `members`; None is the stock attention."""

    def __init__(self, members: Sequence[EncodedCameras | None]) -> None:
        self.members = members
        super().__init__(next((e.num_tokens for e in self.acting if e.num_tokens is not None), None))

    @property
    def attends_per_view(self) -> bool:  # type: ignore[override]
        return any(member.attends_per_view for member in self.acting)

    @property
    def raw_depths(self) -> Mapping[int, Tensor]:
        return {layer: raw for member in self.acting for layer, raw in member.raw_depths.items()}

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        return self._map(lambda member: member.at_layer(layer, hidden_states, rope))._or_stock()

    def at_linear_layer(self, layer: int, hidden_states: Tensor) -> EncodedCameras | None:
        return self._map(lambda member: member.at_linear_layer(layer, hidden_states))._or_stock()

    def for_decode_step(self) -> EncodedCameras | None:
        return self._map(lambda member: member.for_decode_step())._or_stock()

    @property
    def acting(self) -> list[EncodedCameras]:
        """The members other than the stock attention."""
        return [member for member in self.members if member is not None]

    def _map(self, change: Callable[[EncodedCameras], EncodedCameras | None]) -> EncodedGroup:
        other = copy(self)  # keeps the attributes of subclasses
        EncodedGroup.__init__(other, [None if member is None else change(member) for member in self.members])
        return other

    def _or_stock(self) -> EncodedGroup | None:
        return self if self.acting else None
