"""The interface of camera encodings and view mixers.

A decoder states its sizes (`DecoderLayout`). A `CameraEncoding` turns the cameras of a batch into hooks of the
decoder's attention (`EncodedCameras`), once per forward pass. A `ViewMixer` acts on the 2D tokens before the decoder.
Both declare which symmetries they keep exactly (`Symmetries`). Tests and `check-encoding` measure them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, ReferenceView, Scale
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.time_index import TimeIndex

# ---- The sizes of a decoder's attention ------------------------------------------------------------------------------


LayerKind = Literal["full_attention", "linear_attention"]  # linear_attention is Gated DeltaNet


class HeadLayout(NamedTuple):
    """The channels of an attention head. RoPE rotates the first 2F in pairs (c, c + F), each by one axis of mRoPE.

    Attributes:
        dim: D, channels per head.
        axes: The axis of each of the F frequencies, from high to low: 0 is t, 1 is h, 2 is w. Qwen2.5-VL has the axes
            in blocks, Qwen3-VL interleaves them. Both have D/2 frequencies. Qwen3.5 has D/8, so its other channels
            carry no position. Heads of Gated DeltaNet have no RoPE and an empty tuple.
    """

    dim: int
    axes: tuple[int, ...]

    @classmethod
    def in_row(cls, dim: int, sections: Sequence[int]) -> HeadLayout:
        """Return a layout with all frequencies of t, then all of h, then all of w."""
        return cls(dim, tuple(axis for axis, count in enumerate(sections) for _ in range(count)))

    def frequencies(self, axis: int) -> list[int]:
        """Return the numbers of the frequencies of an axis, from high to low."""
        return [number for number, each in enumerate(self.axes) if each == axis]

    def section(self, axis: int, part: object) -> list[int]:
        """Return the `frequencies` of an axis for a part that acts on a section of mRoPE.

        Raises:
            InputError: Positions have one axis, so RoPE has no sections.
        """
        if self.has_one_axis:
            raise InputError(no_sections(part))
        return self.frequencies(axis)

    def pairs(self, frequencies: Sequence[int]) -> list[int]:
        """Return the channels that RoPE rotates by these frequencies: the first of each pair, then the second."""
        return [*frequencies, *(number + len(self.axes) for number in frequencies)]

    @property
    def num_rotated(self) -> int:
        """The number of channels that RoPE rotates. They are the first channels of a head."""
        return 2 * len(self.axes)

    @property
    def has_one_axis(self) -> bool:
        """Whether RoPE rotates by one number per token, so that there are no sections."""
        return bool(self.axes) and not any(self.axes)

    def with_axes(self) -> HeadLayout:
        """Return a layout for rotations by three numbers per token: this one, or its pairs with interleaved axes.

        Without RoPE it has all pairs of the head. With one axis it has the pairs that RoPE rotates.
        """
        if self.axes and not self.has_one_axis:
            return self
        count = len(self.axes) or self.dim // 2
        return HeadLayout(self.dim, tuple(number % 3 for number in range(count)))


def no_sections(part: object) -> str:
    """Return the error for a part that acts on a section of mRoPE, in a decoder whose positions have one axis."""
    return (
        f"{type(part).__name__} acts on a section of mRoPE, and this backbone's positions have one axis: take PRoPE on "
        "ChannelRange or FrequencyRange"
    )


@dataclass(frozen=True, eq=False)
class DecoderLayout:
    """Sizes and RoPE frequencies of a decoder, as its backbone states them for `CameraEncoding.bind_to_decoder`.

    Attributes:
        hidden_size: Width of the hidden states.
        num_layers: Number of decoder layers.
        num_heads: Attention heads of q and o.
        num_key_value_heads: Attention heads of k and v (grouped-query attention); divides `num_heads`.
        head: The channels of a head, and the axis of each of its RoPE frequencies.
        rope_frequencies: RoPE's inverse frequencies (radians per position, shape (F,)), which are buffers of the
            decoder. An encoding with shared frequencies overwrites them in place.
        device: Device of the decoder's weights.
        kinds: The kind of each layer; empty if all are full attention.
        kind: The kind of layer that these heads belong to.
        linear: The layout of the Gated DeltaNet layers of a hybrid decoder. There q and k have `num_key_value_heads`
            heads, v and o have `num_heads`.
        norm_eps: Added to the mean square in the norms of the layers.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head: HeadLayout
    rope_frequencies: tuple[Tensor, ...] = ()
    device: torch.device | str = "cpu"
    kinds: tuple[LayerKind, ...] = ()
    kind: LayerKind = "full_attention"
    linear: DecoderLayout | None = None
    norm_eps: float = 1e-6

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers with these heads."""
        kinds = self.kinds or (self.kind,) * self.num_layers
        return [layer for layer, kind in enumerate(kinds) if kind == self.kind]


# ---- Symmetries of encodings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symmetries:
    """Exact symmetries of the decoder's attention under an encoding. False means measurably broken.

    Attributes:
        world_views: Attention between visual tokens is invariant to a change of world frame V -> V G, without a
            reference view.
        world_text: The same holds with text tokens in the sequence.
        canonical: The same holds with text tokens when the encoding uses its own reference view, if it has one.
        scale: A common factor on all translations changes nothing.
        shift: A common shift of all position ids changes nothing, as in the original decoder.
        intrinsics: The intrinsics have no effect.
        per_token: One camera per token gives the same result as the same cameras given per image.
        identity_stock: Identity cameras give the original decoder, bit for bit.
        text_stock: A batch without cameras gives the original decoder, bit for bit.
    """

    world_views: bool = True
    world_text: bool = True
    canonical: bool = True
    scale: bool = True
    shift: bool = True
    intrinsics: bool = True
    per_token: bool = True
    identity_stock: bool = True
    text_stock: bool = True

    def __and__(self, other: Symmetries) -> Symmetries:
        """Return the symmetries that both have."""
        return Symmetries(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class ViewSymmetries:
    """Exact symmetries of a view mixer, which acts before the decoder, without text or a causal mask.

    Attributes:
        world_views: A change of world frame V -> V G changes nothing, without a reference view.
        canonical: The same holds with the mixer's own reference view, if it has one.
        scale: A common factor on all translations changes nothing.
        intrinsics: The intrinsics have no effect.
        order: A permutation of the views permutes the result, with the reference view fixed.
    """

    world_views: bool
    canonical: bool
    scale: bool
    intrinsics: bool
    order: bool = True


# ---- Camera encodings, and view mixers -------------------------------------------------------------------------------

TokenGrid = tuple[int, int, int] | Int[Tensor, " 3"]  # (t, h, w) of one scene in tokens
HasCamera = Bool[Tensor, "B t"] | None  # temporal patches with a valid camera


class CameraModule(Configurable, nn.Module, ABC):
    """A module that reads cameras. It declares which tensors of `Cameras` it needs.

    Attributes:
        reference: The view whose frame is used as the world frame of a clip. None keeps the dataset's world frame.
        scale: Unit of translations, see `Cameras.scaled`.
        parts: The encodings that this module applies. Their needs are its needs.
    """

    reference: ReferenceView | None = None
    scale: Scale = "none"
    parts: tuple[CameraEncoding, ...] = ()

    @property
    def uses_cameras(self) -> bool:
        """Whether the module reads poses or intrinsics, and not only which tokens have a camera."""
        return any(part.uses_cameras for part in self.parts) if self.parts else True

    @property
    def uses_points(self) -> bool:
        """Whether the module reads the 3D points of the tokens."""
        return any(part.uses_points for part in self.parts)

    @property
    def uses_median_depth(self) -> bool:
        """Whether translations are divided by the median depth."""
        return self.scale == "median_depth" or any(part.uses_median_depth for part in self.parts)

    @property
    def uses_balanced_reference(self) -> bool:
        """Whether the reference view is computed from the 2D tokens by `balanced_views`."""
        return self.reference == "saddle_balanced" or any(part.uses_balanced_reference for part in self.parts)


class CameraEncoding(CameraModule):
    """An encoding of cameras in the decoder's attention.

    `encode` is called once per forward pass, and its result is shared by all layers. Encodings transform only q, k, v
    and o, so they work with every attention backend, and the KV cache holds transformed keys and values. Encodings with
    `attends_per_view` transform keys and values after they are read from the cache.

    Args:
        reference: The view whose frame is the world frame of a clip: the `first` or `middle` view with a camera; the
            `medoid`, closest to the others in angle and distance; or `saddle_balanced`, the most average view by its 2D
            tokens. null keeps the dataset's world frame, and text tokens can then tell world frames apart, because text
            has no camera.
        scale: The length that translations are divided by: the `mean`, `rms` or `max` distance of the camera centers
            from their mean, or the `median_depth` of the views (needs depth). `none` keeps meters. The other choices
            lose the size of the scene, which questions about sizes and distances need. The unit of VGGT's poses differs
            from scene to scene.
    """

    wrapped_option: ClassVar[str | None] = None  # option of a class around encodings, see `run_folder.configs.merge`

    def __init__(self, reference: ReferenceView | None = "first", scale: Scale = "none") -> None:
        super().__init__()
        self.reference, self.scale = reference, scale

    @property
    def requires_constant_time(self) -> bool:
        """Whether all views of a clip must share one time position (`ConstantIndex`)."""
        return any(part.requires_constant_time for part in self.parts)

    @property
    def owns_channels(self) -> bool:
        """Whether no other encoding of a `Compose` may transform the same channels."""
        return any(part.owns_channels for part in self.parts)

    @property
    def attends_per_view(self) -> bool:
        """Whether keys are encoded anew for each view that attends. The attention backend must support masks."""
        return any(part.attends_per_view for part in self.parts)

    @property
    def chooses_linear_layers(self) -> bool:
        """Whether the encoding or one of its parts acts in Gated DeltaNet layers instead of full attention."""
        return any(part.chooses_linear_layers for part in self.parts)

    @property
    def is_orthogonal(self) -> bool:
        """Whether queries and keys are only multiplied by orthogonal matrices, if at all."""
        return bool(self.parts) and all(part.is_orthogonal for part in self.parts)

    @property
    def time_index(self) -> TimeIndex | None:
        """A time index that replaces the model's. None keeps the model's."""
        return None

    @property
    @abstractmethod
    def symmetries(self) -> Symmetries:
        """The exact symmetries. The property tests measure them in both directions."""

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        """Return the transformed head channels, each with its term (q, k, v or o). Appended channels are not included.

        Raises:
            InputError: The encoding does not fit heads of this size.
        """
        return {channel for part in self.parts for channel in part.touched_channels(head)}

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        """Create the tensors that depend on the decoder's sizes. Called once, before training.

        Args:
            decoder: Sizes and RoPE frequencies of the decoder.
            layers: Numbers of the layers in which the encoding acts, among the layers with the decoder's heads.
                Parameters of other layers would get no gradient.

        Raises:
            InputError: The encoding does not fit the decoder.
        """
        for part in self.parts:
            part.bind_to_decoder(decoder, layers)

    def encode(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype = torch.float32) -> EncodedCameras:
        """Compute the hooks of one forward pass, shared by all layers.

        Args:
            cameras: Cameras with an `index` (B, L), the camera of each token of the sequence.
            head: The channels of an attention head.
            dtype: Dtype of the matrices. At least float32 is used, for any dtype of the hidden states.

        Raises:
            ValueError: The cameras lack an index or tensors that the encoding reads.
            InputError: The encoding does not fit heads of this size.
        """
        return self.encode_canonical(self.canonical(cameras), head, torch.promote_types(dtype, torch.float32))

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        """Compute the hooks from canonical cameras, see `encode`. The default is the original attention."""
        return EncodedCameras()

    def canonical(self, cameras: Cameras) -> Cameras:
        """Express cameras in the frame of the reference view and the unit of `scale`, in float64.

        Raises:
            ValueError: The cameras lack an index.
        """
        cameras.required("index")
        return cameras.to(dtype=torch.float64).canonical(self.reference).scaled(self.scale)


class ViewMixer(CameraModule):
    """A residual branch on the 2D tokens of a scene that reads its cameras. It has no effect before training."""

    @property
    @abstractmethod
    def symmetries(self) -> ViewSymmetries:
        """The exact symmetries. The property tests measure them in both directions."""

    @abstractmethod
    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: TokenGrid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Return the tokens plus the branch, for B independent scenes with the same grid.

        Args:
            tokens: 2D tokens, ordered by scene, temporal patch, row and column.
            cameras: Cameras of each scene, one per temporal patch.
            grid: (t, h, w) of one scene in tokens.
            has_camera: Temporal patches with a valid camera. Tokens of the others are unchanged, bit for bit.
        """

    def raw_depth(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N ends"] | None:
        """Return the mixer's prediction of its tokens' depth, see `EncodedCameras.raw_depths`. Most return None."""
        return None


# ---- Encoded cameras: the hooks of one forward pass ------------------------------------------------------------------

Attention = Callable[..., tuple[Tensor, Tensor | None]]  # (q, k, v, mask) -> outputs (B, T, H, D), and weights if any
QK = tuple[Float[Tensor, "B L H E"], Float[Tensor, "B L G E"]]
Rope = tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]  # cosine and sine


class EncodedCameras:
    """The hooks of an encoding into the attention for one batch. This base class is the identity.

    q, k, v and o have shape (B, L, heads, D), in token order. With grouped-query attention k and v have G heads, q and
    o have H heads. `after_rope` may append channels to q and k, and `transform_values` may append the same number to v.
    `transform_outputs` removes them again. The first D channels remain the model's own, so encodings can be composed,
    and the softmax scale remains D^-1/2. CPU attention has a fast kernel only if q, k and v have the same width.

    This is deliberately a plain class, see `Cameras`: FSDP would cast the matrices of a dataclass to bfloat16.

    Attributes:
        num_tokens: L. None if the transformation fits any number of tokens.
        attends_per_view: Whether `attend` computes the attention of each view separately instead of the decoder's
            attention.
    """

    attends_per_view: bool = False

    def __init__(self, num_tokens: int | None = None) -> None:
        self.num_tokens = num_tokens

    @property
    def raw_depths(self) -> Mapping[int, Float[Tensor, "B L ends"]]:
        """Depth of the tokens in the unit of the poses, as predicted by the layers that have run, see `depth_ends`.

        Empty without RayRoPE, and if RayRoPE's depths are known or divided by a length of the scene.
        """
        return {}

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        """Return the hooks of one layer. None is the original attention.

        Args:
            layer: Number of the layer, from 0.
            hidden_states: Input of the layer's projections.
            rope: Cosine and sine of the tokens' positions.
        """
        return self

    def at_linear_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"]) -> EncodedCameras | None:
        """Return the hooks of a Gated DeltaNet layer, see `DeltaNetLayers`. None is the original layer."""
        return None

    def for_decode_step(self) -> EncodedCameras | None:
        """Return the hooks of later decode steps, which contain only text. None is the original attention."""
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
        """Compute the attention after the KV cache was updated.

        Args:
            attention: The decoder's attention.
            q: Queries after `after_rope`.
            k: Keys as stored in the cache.
            v: Values as stored in the cache.
            mask: A mask in the format of the attention backend. None is causal attention.

        Returns:
            The output, and the attention weights if the backend returns them.
        """
        return attention(q, k, v, mask)

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        """Transform the attention output before the output projection."""
        return o


class ZeroChannels(EncodedCameras):
    """Append zeros to q, k and v, for decoded text that attends to cached tokens with more channels.

    Args:
        channels: Number of appended channels.
        num_tokens: L. None fits any number of tokens.
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
    """Base class of encoded cameras that delegate to others, the `members`. None is the original attention."""

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
        """The members that are not the original attention."""
        return [member for member in self.members if member is not None]

    def _map(self, change: Callable[[EncodedCameras], EncodedCameras | None]) -> EncodedGroup:
        other = copy(self)  # keeps the attributes of subclasses
        EncodedGroup.__init__(other, [None if member is None else change(member) for member in self.members])
        return other

    def _or_stock(self) -> EncodedGroup | None:
        return self if self.acting else None


class EncodedByLayer(EncodedGroup):
    """Chooses one of several hooks in each layer.

    Args:
        members: The hooks. None is the original attention.
        choose: Returns the number of the member that acts in a layer.
    """

    def __init__(self, members: Sequence[EncodedCameras | None], choose: Callable[[int], int]) -> None:
        super().__init__(members)
        self.choose = choose

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        member = self.members[self.choose(layer)]
        return None if member is None else member.at_layer(layer, hidden_states, rope)
