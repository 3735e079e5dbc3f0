"""Base classes of camera encodings, in the decoder's attention, and of view mixers, on the 2D tokens before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras, ReferenceView, Scale
from zoo.configuration import Configurable
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras
from zoo.encodings.symmetries import Symmetries, ViewSymmetries
from zoo.sequences.time_index import TimeIndex

Grid = tuple[int, int, int] | Int[Tensor, " 3"]  # (t, h, w) of one scene in tokens
HasCamera = Bool[Tensor, "B t"] | None  # temporal patches with a valid camera


class CameraModule(Configurable, nn.Module, ABC):
    """A module that reads cameras, and the tensors of `Cameras` that it needs.

    Attributes:
        reference: View whose frame is the world of a clip; None keeps the world of the data.
        scale: Unit of translations, see `Cameras.scaled`.
        parts: The encodings that this module applies; their needs are its needs.
    """

    reference: ReferenceView | None = None
    scale: Scale = "none"
    parts: tuple[CameraEncoding, ...] = ()

    @property
    def uses_cameras(self) -> bool:
        """Whether poses or intrinsics are read, and not only which tokens have a camera."""
        return any(part.uses_cameras for part in self.parts) if self.parts else True

    @property
    def uses_points(self) -> bool:
        """Whether the 3D points of the tokens are read."""
        return any(part.uses_points for part in self.parts)

    @property
    def uses_median_depth(self) -> bool:
        """Whether translations are divided by the median depth."""
        return self.scale == "median_depth" or any(part.uses_median_depth for part in self.parts)

    @property
    def uses_balanced_reference(self) -> bool:
        """Whether the reference view is the one that `balanced_views` computes from the 2D tokens."""
        return self.reference == "saddle_balanced" or any(part.uses_balanced_reference for part in self.parts)


class CameraEncoding(CameraModule):
    """An encoding of cameras in the decoder's attention.

    `encode` is called once per forward pass, and its result is shared by all layers. Encodings transform only q, k,
    v and o, so they work with every attention backend, and the KV cache holds transformed keys and values. Those that
    `attends_per_view` transform keys and values behind the cache.

    Args:
        reference: The view whose frame is the world of a clip: the `first` or `middle` one with a camera; the `medoid`,
            closest to the others in angle and distance; `saddle_balanced`, the most average one by its 2D tokens.
            null keeps the world of the data, which text then can distinguish because it has no camera.
        scale: The length that translations are divided by: the `mean`, `rms` or `max` distance of the camera centers
            from their mean, or the `median_depth` of the views (needs depth). `none` keeps meters; the others lose
            the size of the scene, which questions about sizes and distances need. The unit of VGGT's poses differs
            from scene to scene.
    """

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
        """Whether keys are encoded for each view that looks, which the attention backend needs masks for."""
        return any(part.attends_per_view for part in self.parts)

    @property
    def chooses_linear_layers(self) -> bool:
        """Whether the encoding, or a part of it, acts in Gated DeltaNet layers in place of full attention."""
        return any(part.chooses_linear_layers for part in self.parts)

    @property
    def is_orthogonal(self) -> bool:
        """Whether queries and keys are multiplied by orthogonal matrices alone, if at all."""
        return bool(self.parts) and all(part.is_orthogonal for part in self.parts)

    @property
    def time_index(self) -> TimeIndex | None:
        """A time index that replaces the model's; None keeps the model's."""
        return None

    @property
    @abstractmethod
    def symmetries(self) -> Symmetries:
        """The exact symmetries, measured in both directions by the property tests."""

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        """Return the head channels that are transformed, each with its term (q, k, v or o); not appended ones.

        Raises:
            InputError: The encoding does not fit heads of this size.
        """
        return {channel for part in self.parts for channel in part.touched_channels(head)}

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        """Create the tensors that depend on the decoder's sizes; called once, before training.

        Args:
            decoder: Sizes and RoPE frequencies of the decoder.
            layers: Numbers of the layers in which the encoding acts, of those with the decoder's heads. Parameters of
                other layers would get no gradient.

        Raises:
            InputError: The encoding does not fit the decoder.
        """
        for part in self.parts:
            part.bind_to_decoder(decoder, layers)

    def encode(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype = torch.float32) -> EncodedCameras:
        """Compute the hooks of one forward pass, shared by all layers.

        Args:
            cameras: With an `index` (B, L), the camera of each token of the sequence.
            head: The channels of an attention head.
            dtype: Of the matrices; at least float32, whatever the dtype of the hidden states.

        Raises:
            ValueError: Cameras without an index or without tensors that the encoding reads.
            InputError: The encoding does not fit heads of this size.
        """
        return self.encode_canonical(self.canonical(cameras), head, torch.promote_types(dtype, torch.float32))

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        """Compute the hooks from canonical cameras, see `encode`; the default is the stock attention."""
        return EncodedCameras()

    def canonical(self, cameras: Cameras) -> Cameras:
        """Express cameras in the frame of the reference view and the unit of `scale`, in float64.

        Raises:
            ValueError: Cameras without an index.
        """
        cameras.required("index")
        return cameras.to(dtype=torch.float64).canonical(self.reference).scaled(self.scale)


class ViewMixer(CameraModule):
    """A residual branch on the 2D tokens of a scene that reads its cameras; zero before training."""

    @property
    @abstractmethod
    def symmetries(self) -> ViewSymmetries:
        """The exact symmetries, measured in both directions by the property tests."""

    @abstractmethod
    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: Grid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Return the tokens plus the branch, for B independent scenes with the same grid.

        Args:
            tokens: 2D tokens, ordered by scene, temporal patch, row and column.
            cameras: Of each scene, one per temporal patch.
            grid: (t, h, w) of one scene in tokens.
            has_camera: Temporal patches with a valid camera; the tokens of the others are unchanged, bit for bit.
        """

    def raw_depth(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N ends"] | None:
        """Return what the mixer predicts of the depth of its tokens, see `EncodedCameras.raw_depths`; None of most.

        Args:
            tokens: As in `forward`.
        """
        return None
