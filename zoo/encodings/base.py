"""The seam of every camera encoding: built once a forward pass, then shared by all layers of the decoder.

An encoding turns `Cameras` into an `EncodedCameras`, which acts on queries, keys, values and outputs, and on
nothing else of the attention: it works with every backend, and what enters the KV cache is encoded already. (What
`PoseIndex` changes are position ids, and tied frequencies those of RoPE.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras, Scale
from zoo.encodings.reference import ReferenceView, to_reference_frame
from zoo.encodings.symmetries import Symmetries
from zoo.errors import check_choice
from zoo.time_index import TimeIndex

QK = tuple[Float[Tensor, "B L H E"], Float[Tensor, "B L G E"]]
Rope = tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]  # cosine and sine


class EncodedCameras:
    """What an encoding does to one forward pass; this one does nothing, subclasses override what they need.

    q, k, v and o are (B, L, heads, D), token after token; with GQA, k and v have fewer heads than q and o.
    `after_rope` may append channels to q and k, `values` to v, and `outputs` then takes those of v off again. The
    first D channels stay the model's own, so encodings can be stacked; the softmax scale stays that of D channels.
    CPU attention leaves its fast path where v is not as wide as q and k: append to all three, zeros if need be.

    Attributes:
        num_tokens: L, the tokens that were encoded; None goes with any number.
    """

    def __init__(self, num_tokens: int | None = None) -> None:
        self.num_tokens = num_tokens

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        """What acts in one layer; None is the stock attention.

        Args:
            layer: its number, from 0.
            hidden_states: what goes into the layer's projections.
            rope: cosine and sine of the tokens' positions, as RoPE is to use them.
        """
        return self

    def for_decode_step(self) -> EncodedCameras | None:
        """What later decode steps need, which hold text only; None where the cache holds all that is needed."""
        return None

    def repeat_interleave(self, copies: int) -> EncodedCameras:
        """The same for a batch in which each sample stands `copies` times in a row, as beam search has it.

        Raises:
            NotImplementedError: a subclass that holds samples and does not say how.
        """
        if type(self) is EncodedCameras:
            return self
        raise NotImplementedError(f"{type(self).__name__} does not say how it is repeated for beam search")

    def before_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        """Queries and keys as RoPE is to get them."""
        return q, k

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        """Queries and keys as the attention, and the KV cache, are to get them."""
        return q, k

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        """Values as the attention, and the KV cache, are to get them."""
        return v

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        """The attention's outputs as the output projection is to get them."""
        return o


class ZeroChannels(EncodedCameras):
    """Appends zeros to q, k and v, and takes them off the output: text beside tokens with more channels.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def repeat_interleave(self, copies: int) -> ZeroChannels:
        return self

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        return F.pad(q, (0, self.channels)), F.pad(k, (0, self.channels))

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        return F.pad(v, (0, self.channels))

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        return o[..., : -self.channels]


class CameraEncoding(nn.Module, ABC):
    """A way to tell attention about cameras. A module, since some encodings learn a number or two.

    Args:
        reference: the view whose frame is the world of a clip: the `first` or `middle` one with a camera; the `medoid`,
            nearest to the others in angle and distance; `saddle_balanced`, the most balanced by what its tokens hold.
            null keeps the data's own world, which text, that has no camera, then can tell.
        scale: the length that translations are divided by: the `mean`, `rms` or `max` distance of the camera centers
            from their mean, or the `median_depth` of what the views see (of data with depth). `none` keeps meters; any
            other loses the size of the scene, which room sizes and distances need. VGGT's poses have lost it: their
            unit is another in each scene.
    """

    uses_points: bool = False  # needs the 3D point that each token shows
    uses_cameras: bool = True  # and not by positions alone

    def __init__(self, reference: ReferenceView | None = "first", scale: Scale = "none") -> None:
        super().__init__()
        if reference is not None:
            check_choice("reference", reference, ReferenceView)
        check_choice("scale", scale, Scale)
        self.reference, self.scale = reference, scale

    @property
    def requires_constant_time(self) -> bool:
        """Whether all views of a clip must have the same time position (`ConstantIndex`)."""
        return False

    @property
    def time_index(self) -> TimeIndex | None:
        """What the positions of time are to be instead of the model's own; None leaves them to the model."""
        return None

    @property
    @abstractmethod
    def symmetries(self) -> Symmetries:
        """What holds exactly; the property tests take it at its word."""

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """The channels of a head that it turns or multiplies, each with its term (q, k, v or o); appended ones apart.

        Raises:
            InputError: heads that don't fit.
        """
        return set()

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        """Makes what depends on the decoder's shape, such as learned numbers a head; called once, before training.

        Args:
            language_model: the decoder.
            layers: the numbers of those in which the encoding acts. What is made for another would never be trained.

        Raises:
            InputError: a decoder that the encoding doesn't fit.
        """

    @abstractmethod
    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """What all layers share in one forward pass.

        Args:
            cameras: with an `index` (B, L): the camera of each token of the sequence, -1 for none.
            head_dim: channels of an attention head.
            mrope_section: frequencies of the three sections of mRoPE (t, h, w).
            dtype: precision of the matrices, float32 or better whatever the hidden states are in.

        Raises:
            ValueError: cameras without an index, or heads that the placement doesn't fit.
        """

    def canonical(self, cameras: Cameras) -> Cameras:
        """The cameras as this encoding sees them, in float64: from the reference view, in the unit of `scale`.

        Raises:
            ValueError: cameras without an index.
        """
        if cameras.index is None:
            raise ValueError("these cameras say nothing of the tokens: give Cameras an index (B, L)")
        return to_reference_frame(cameras.to(dtype=torch.float64), self.reference).scaled(self.scale)
