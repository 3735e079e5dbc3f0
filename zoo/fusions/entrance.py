"""Fusions at the decoder's input: visual tokens are made from 2D and 3D tokens before the first layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError, check_choice
from zoo.fusions.base import HIDDEN, Connector, Fusion, PatchMerger, PatchNorm, RMSNorm, TemporalMerge
from zoo.geometry.base import SceneGeometry
from zoo.sequences.layout import PATCHES_PER_TOKEN, TEMPORAL_PATCH_SIZE, ExtraTokens, GridTHW

# ---- 2D + MLP(3D): Spatial-MLLM, and VG-LLM --------------------------------------------------------------------------


class AddFusion(Fusion):
    """Add to each 2D token the connector's output for the 3D tokens under it (arXiv 2505.23747, equation 3).

    Before training the connector adds zero, so the model starts as plain Qwen2.5-VL.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        options: `active_branches` and `temporal_merge`, see `Fusion`.
    """

    parts_3d = ("connector",)

    def __init__(self, width: int, geometry_width: int, **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        merged = PATCHES_PER_TOKEN * geometry_width
        self.connector = Connector(merged, merged, width, zero=True)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n D"]:
        return self.connector(merged)


class PatchMergerFusion(Fusion):
    """Add to each 2D token the merger's output for the 3D tokens under it (VG-LLM, arXiv 2505.24625).

    As published, the merger starts with random weights, so the untrained model differs from the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        hidden: Channels of the merger's hidden layer.
        norm: Norm of each patch: `rms` in VG-LLM, `layer` in SpatialStack's variant of it.
        temporal_merge: How the two frames of a video's 2D token are merged: their `mean` or the `first`. The published
            models show each frame as an image.
        options: `active_branches` and `deepstack`, see `Fusion`.
    """

    frames_per_token = 1
    parts_3d = ("merger",)

    def __init__(
        self,
        width: int,
        geometry_width: int,
        *,
        hidden: int = HIDDEN,
        norm: PatchNorm = "rms",
        temporal_merge: TemporalMerge = "mean",
        **options: Any,
    ) -> None:
        super().__init__(width, geometry_width, temporal_merge=temporal_merge, **options)
        self.hidden, self.norm = hidden, norm
        self.merger = PatchMerger(geometry_width, hidden, width, norm)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n D"]:
        return self.merger(merged)


# ---- 2D tokens query 3D tokens: VLM-3R -------------------------------------------------------------------------------


class AttentionFusion(Fusion):
    """Let each 2D token attend to its view's 3D tokens, and add the result (VLM-3R, arXiv 2505.20279, section 3.2).

    2D tokens are queries. Keys and values are the patch tokens and camera tokens of the two frames of the temporal
    patch, without positions, so the order of the 3D tokens has no effect and their grid may have any size. VLM-3R's
    queries are the patches of single frames before the projector. Here they are the merged tokens in the decoder's
    width. Each term has one projection without bias. Instead of a norm, the last projection is zero before training, so
    the model starts as the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        head_dim: Channels per head, a divisor of the width.
        options: `active_branches`, `temporal_merge` and `deepstack`, see `Fusion`. Without the 2D branch, queries are
            zero and each token is the mean of the values.

    Raises:
        InputError: The head_dim does not divide the width.
    """

    parts_2d, parts_3d = ("norm_2d", "q"), ("norm_2d", "norm_3d", "q", "k", "v", "o")

    def __init__(self, width: int, geometry_width: int, head_dim: int = 64, **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        if head_dim < 1 or width % head_dim:
            raise InputError(f"--model.fusion.head_dim {head_dim}: choose a divisor of the decoder's {width} channels")
        self.head_dim = head_dim
        self.norm_2d, self.norm_3d = RMSNorm(width), RMSNorm(geometry_width)
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(geometry_width, width, bias=False) for _ in range(2))
        nn.init.zeros_(self.o.weight)  # only this projection is zero, or nothing would get a gradient

    def merged_3d(self, geometry: SceneGeometry, grid_thw: GridTHW, dtype: torch.dtype) -> Float[Tensor, "t m C"]:
        """Return the 3D tokens of each temporal patch: patch tokens of both frames, then camera tokens."""
        patches = self.paired(geometry.patches, "3D tokens", grid_thw)
        cameras = self.paired(geometry.camera_tokens, "camera tokens", grid_thw)
        return torch.cat((patches.flatten(1, 3), cameras), 1).to(dtype)

    def embed_3d(self, merged: Float[Tensor, "t m C"]) -> Float[Tensor, "t m C"]:
        return self.norm_3d(merged)

    def join(self, flat: Float[Tensor, "t n D"], spatial: Float[Tensor, "#t m #C"]) -> Float[Tensor, "t n D"]:
        if not self.uses_geometry:
            return flat
        rows = (self.q(self.norm_2d(flat)), self.k(spatial), self.v(spatial))
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in rows)
        return flat + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# ---- Camera tokens alone, without patch tokens -----------------------------------------------------------------------

Mode = Literal["append", "add"]


class CameraTokenFusion(Fusion):
    """Map the camera tokens of a view's two frames to one token by the connector. Patch tokens are not used.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the camera tokens.
        mode: `append` adds it to the sequence after the 2D tokens of its view, at the position of the first of them.
            `add` adds it to each 2D token of its view, with a value of zero before training.
        options: `active_branches` and `temporal_merge`, see `Fusion`.
    """

    parts_3d = ("connector",)

    def __init__(self, width: int, geometry_width: int, mode: Mode = "append", **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        check_choice("mode", mode, Mode)
        self.mode = mode
        self.appended = ExtraTokens.ONE if mode == "append" else ExtraTokens.NONE
        self.connector = Connector(TEMPORAL_PATCH_SIZE * geometry_width, width, width, zero=mode == "add")

    def merged_3d(self, geometry: SceneGeometry, grid_thw: GridTHW, dtype: torch.dtype) -> Float[Tensor, "t 1 merged"]:
        return self.paired(geometry.camera_tokens, "camera tokens", grid_thw).to(dtype).flatten(1)[:, None]

    def embed_3d(self, merged: Float[Tensor, "t 1 merged"]) -> Float[Tensor, "t 1 D"]:
        return self.connector(merged)

    def join(self, flat: Float[Tensor, "t n D"], spatial: Float[Tensor, "#t 1 #D"]) -> Float[Tensor, "t tokens D"]:
        if self.mode == "add":
            return super().join(flat, spatial)
        return torch.cat((flat, spatial.expand(len(flat), 1, self.width)), dim=1)


# ---- 2D and 3D tokens side by side, on the channels or on the sequence -----------------------------------------------

Axis = Literal["channel", "token"]


class ConcatSplitFusion(Fusion):
    """Concatenate both branches, on the channels or on the sequence.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        axis: With `channel`, two MLPs map the 2D and the 3D tokens to half of the decoder's width each. With `token`,
            an MLP maps the 3D tokens to the whole width, and they follow the 2D tokens of their view, at the same
            positions and without a camera, because VGGT's features already contain it.
        options: `active_branches` and `temporal_merge`, see `Fusion`.

    Raises:
        ValueError: The width is odd and the axis is `channel`.
    """

    parts_2d, parts_3d = ("flat",), ("spatial",)

    def __init__(self, width: int, geometry_width: int, axis: Axis = "channel", **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        check_choice("axis", axis, Axis)
        self.axis = axis
        self.appended = ExtraTokens.ALL if axis == "token" else ExtraTokens.NONE
        share = self.flat_width  # the same for both branches
        self.flat = Connector(width, width, share) if axis == "channel" else None
        self.spatial = Connector(PATCHES_PER_TOKEN * geometry_width, width, share)

    @property
    def flat_width(self) -> int:
        return self.width // 2 if self.axis == "channel" else self.width

    def embed_2d(self, visual: Float[Tensor, "N D"], grid_thw: GridTHW) -> Float[Tensor, "t n a"]:
        flat = super().embed_2d(visual, grid_thw)
        return flat if self.flat is None else self.flat(flat)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n b"]:
        return self.spatial(merged)

    def join(self, flat: Float[Tensor, "t n a"], spatial: Float[Tensor, "#t #n b"]) -> Float[Tensor, "t tokens D"]:
        # both have the same width on either axis
        return torch.cat((flat, spatial.expand_as(flat)), dim=2 if self.axis == "channel" else 1)


def nearest_basis(basis: Float[Tensor, "D d"], wanted: Float[Tensor, "D d"]) -> Float[Tensor, "D d"]:
    """Rotate an orthonormal basis within its subspace until it is nearest to another (orthogonal Procrustes)."""
    left, _, right = torch.linalg.svd(basis.T @ wanted)
    return basis @ left @ right


class SubspaceFusion(Fusion):
    """Keep the 2D tokens in their principal subspace, and put the 3D tokens into its orthogonal complement.

    Each branch gets half of the decoder's dimensions, as in `ConcatSplitFusion`. There, new random projections replace
    the 2D tokens that a pretrained decoder knows. Here the 2D tokens are only projected onto the subspace of half the
    dimensions in which most of their energy lies, and the 3D tokens start at zero. So an untrained model is nearly the
    plain one.

    When a training begins, the subspace is computed from the 2D tokens of the first training questions. It stays fixed,
    and checkpoints hold it. Before, it is the first half of the channels.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        options: `active_branches` and `temporal_merge`, see `Fusion`.

    Raises:
        InputError: The width is odd.
    """

    parts_3d = ("connector",)

    def __init__(self, width: int, geometry_width: int, **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        if width % 2:
            raise InputError(f"SubspaceFusion splits the decoder's channels into halves, and {width} is odd")
        self.connector = Connector(PATCHES_PER_TOKEN * geometry_width, width, width // 2, zero=True)
        # columns: an orthonormal basis of the 2D subspace, then of its complement
        self.basis = nn.Buffer(torch.eye(width))
        self.is_fitted = nn.Buffer(torch.zeros(1, dtype=torch.bool))

    @property
    def flat_width(self) -> int:
        return self.width // 2

    @property
    def requires_tokens(self) -> bool:
        return not bool(self.is_fitted)

    def fit_to_tokens(self, second_moment: Float[Tensor, "D D"]) -> None:
        """Set the basis from the eigenvectors of the second moment, the largest eigenvalues first. See `Fusion`.

        Where eigenvalues are nearly equal, rounding decides on their eigenvectors. So each half of the basis is the one
        of its subspace that lies nearest to the basis before. Only at the boundary of the halves rounding could still
        decide.
        """
        eigenvectors = torch.linalg.eigh(second_moment.double()).eigenvectors.flip(-1)
        halves = eigenvectors.tensor_split([self.flat_width], dim=1), self.basis.tensor_split([self.flat_width], dim=1)
        self.basis.copy_(torch.cat([nearest_basis(new, old.to(new)) for new, old in zip(*halves, strict=True)], dim=1))
        self.is_fitted.fill_(True)

    def embed_2d(self, visual: Float[Tensor, "N D"], grid_thw: GridTHW) -> Float[Tensor, "t n a"]:
        return super().embed_2d(visual, grid_thw) @ self.basis[:, : self.flat_width].to(visual.dtype)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n b"]:
        return self.connector(merged)

    def join(self, flat: Float[Tensor, "t n a"], spatial: Float[Tensor, "#t #n b"]) -> Float[Tensor, "t n D"]:
        both = torch.cat((flat, spatial.expand_as(flat)), dim=2)
        return both @ self.basis.T.to(both.dtype)
