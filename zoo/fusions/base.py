"""Base class of fusions, which combine 2D and 3D tokens into one visual sequence of the decoder's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import SceneGeometry
from zoo.configuration import Configurable
from zoo.encodings.base import DecoderLayout
from zoo.errors import InputError, check_choice
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, ExtraTokens, GridTHW

ActiveBranches = Literal["both", "2d", "3d"]
TemporalMerge = Literal["concat", "mean", "first"]


def merge_spatial(
    tokens: Float[Tensor, "S patches C"],
    grid_thw: GridTHW | Int[Tensor, "1 3"],
    temporal_merge: int = TEMPORAL_PATCH_SIZE,
    spatial_merge: int = SPATIAL_MERGE_SIZE,
) -> Float[Tensor, "N merged"]:
    """Concatenate the patch tokens under each 2D token: N = t h/2 w/2 rows of C * temporal * spatial^2 channels.

    Within a row the order is (row, column, channel, frame), with the frame fastest, as in Spatial-MLLM's connector.

    Args:
        tokens: Patch tokens of S = temporal_merge * t frames, row by row, without special tokens.
        grid_thw: Number of temporal patches, and rows and columns of patches.
        temporal_merge: Frames per 2D token.
        spatial_merge: Patches per side of a 2D token.

    Raises:
        ValueError: The tokens do not match the grid.
    """
    sides = grid_thw[0] if isinstance(grid_thw, Tensor) and grid_thw.ndim == 2 else grid_thw
    steps, height, width = (int(side) for side in sides)
    wanted = (steps * temporal_merge, height * width)
    if tuple(tokens.shape[:2]) != wanted or height % spatial_merge or width % spatial_merge:
        raise ValueError(
            f"a grid of {steps} x {height} x {width} needs {wanted[0]} frames of {wanted[1]} patches, sides in "
            f"multiples of {spatial_merge}; got {tuple(tokens.shape[:2])}"
        )
    blocks = (steps, temporal_merge, height // spatial_merge, spatial_merge, width // spatial_merge, spatial_merge, -1)
    return tokens.reshape(blocks).permute(0, 2, 4, 3, 5, 6, 1).flatten(3).flatten(0, 2)


def resize_grid(tokens: Float[Tensor, "t h w C"], size: tuple[int, int]) -> Float[Tensor, "t rows columns C"]:
    """Resize grids of tokens bilinearly to rows and columns, without antialiasing, as GeoThinker does."""
    if tuple(tokens.shape[1:3]) == size:
        return tokens
    return F.interpolate(tokens.movedim(-1, 1), size, mode="bilinear", align_corners=False).movedim(1, -1)


class Fusion(Configurable, nn.Module, ABC):
    """Combines the 2D and the 3D branch of a scene. To add one, implement `embed_3d` in a file of this folder.

    Temporal patches are fused independently, so scenes with the same grid are fused as one long scene. Only `views`
    mixes the views of a scene, except in a fusion with `mixes_views`.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        active_branches: The branch that reaches the decoder, or `both`. The tokens of the other branch are zero. This
            is an ablation of trained models without retraining.
        temporal_merge: How the 3D tokens of the two frames of a 2D token are merged: concatenated (as published), or
            replaced by their `mean` or the `first`. The weights have the same shapes in all cases.
        deepstack: Keep the vision encoder's features for the first decoder layers (DeepStack, in Qwen3-VL), which
            belong to the 2D branch. Otherwise the decoder sees only the fused tokens.

    Attributes:
        appended: The tokens appended to the 2D tokens.
        frames_per_token: Frames whose 3D tokens each 2D token gets: both frames of its temporal patch, or one. An image
            is two equal frames. With one frame per token, the geometry encoder sees it once.
        whole_frames: The 3D tokens are those of the geometry encoder's whole frames, in any grid. Otherwise each one
            lies under a patch of the vision encoder.
        compress_beyond: Number of views (images, or temporal patches of a video) of a scene beyond which the 2D tokens
            of each view are resized to half of their rows and columns. None keeps all tokens.
        reads_latents: It reads 3D tokens of the whole scene, see `GeometryEncoder.gives_latents`, not of frames.
        mixes_views: Each view is fused with the 3D tokens of all views of its scene.
        parts_2d: Names of the submodules of the 2D branch.
        parts_3d: Names of the submodules of the 3D branch.
    """

    appended: ExtraTokens = ExtraTokens.NONE
    frames_per_token: int = TEMPORAL_PATCH_SIZE
    whole_frames: bool = False
    compress_beyond: int | None = None
    reads_latents: bool = False
    mixes_views: bool = False
    parts_2d: tuple[str, ...] = ()
    parts_3d: tuple[str, ...] = ()

    def __init__(
        self,
        width: int,
        geometry_width: int,
        *,
        active_branches: ActiveBranches = "both",
        temporal_merge: TemporalMerge = "concat",
        deepstack: bool = True,
    ) -> None:
        super().__init__()
        check_choice("active_branches", active_branches, ActiveBranches)
        check_choice("temporal_merge", temporal_merge, TemporalMerge)
        if temporal_merge == "concat" and self.frames_per_token == 1:
            raise InputError(
                f"--model.fusion.temporal_merge concat: {type(self).__name__} reads one frame per token, choose mean "
                "or first for the two frames of a video"
            )
        self.width, self.geometry_width = width, geometry_width
        self.active_branches, self.temporal_merge, self.deepstack = active_branches, temporal_merge, deepstack

    def bind(self, num_encoder_layers: int, decoder: DecoderLayout) -> None:
        """Receive the number of layers of the 3D tokens and the sizes of the decoder. Most fusions need neither.

        Raises:
            InputError: The numbers do not fit this fusion.
        """

    def check_heads(self, decoder: DecoderLayout) -> None:
        """Raise InputError if an attention with as many heads as the decoder does not fit its width."""
        if self.width % decoder.num_heads:
            raise InputError(
                f"{type(self).__name__} needs heads that divide the decoder's {self.width} channels, not "
                f"{decoder.num_heads}: choose another backbone"
            )

    @property
    def requires_tokens(self) -> bool:
        """Whether `fit_to_tokens` must be called before training."""
        return False

    def fit_to_tokens(self, second_moment: Float[Tensor, "D D"]) -> None:
        """Set what depends on the model's 2D tokens x, given the sum of x x^T over some training questions."""

    @property
    def uses_geometry(self) -> bool:
        """Whether `forward` reads the geometry."""
        return self.active_branches != "2d"

    @property
    def keeps_deepstack(self) -> bool:
        """Whether the 2D branch's features reach the first decoder layers."""
        return self.deepstack and self.active_branches != "3d"

    def fit_deepstack(
        self,
        features: Float[Tensor, "layers t n D"],
        tokens: int,
        own: Float[Tensor, "deep t {tokens} D"] | None = None,
    ) -> Float[Tensor, "fitted t {tokens} D"]:
        """Return the features to add after the first decoder layers, for `tokens` tokens per view.

        Features of the 2D branch are dropped unless `keeps_deepstack`, and zero for appended tokens. `own`, from
        `deep_features`, is added to them. The one with fewer layers is padded with zeros.
        """
        kept = F.pad(features if self.keeps_deepstack else features[:0], (0, 0, 0, tokens - features.shape[2]))
        if own is None:
            return kept
        missing = len(own) - len(kept)
        return F.pad(kept, (0, 0) * 3 + (0, max(missing, 0))) + F.pad(own, (0, 0) * 3 + (0, max(-missing, 0)))

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """Names of the submodules of the inactive branch, which get no gradient."""
        return {"both": (), "2d": self.parts_3d, "3d": self.parts_2d}[self.active_branches]

    @property
    def flat_width(self) -> int:
        """Channels of the 2D branch before the branches are joined."""
        return self.width

    def forward(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: GridTHW,
        geometry: SceneGeometry | None,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """Return the visual tokens of a scene per temporal patch: the 2D grid first, then appended tokens.

        Args:
            visual: 2D tokens, N = t h/2 w/2.
            grid_thw: Number of temporal patches, and rows and columns of patches. Each image of a scene is a temporal
                patch.
            geometry: Geometry of the 2t frames. May be None if `uses_geometry` is false.
            views: The view mixer, a map of (N, flat_width) to itself, applied to the 2D branch before the branches are
                joined.

        Raises:
            ValueError: The geometry has other frames, or lacks tokens that this fusion reads.
        """
        flat = self.branch_2d(visual, grid_thw, views)
        spatial = self.branch_3d(geometry, grid_thw, visual.dtype)
        return self.join(flat, flat.new_zeros(1, 1, 1) if spatial is None else spatial)

    def deep_features(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, dtype: torch.dtype
    ) -> Float[Tensor, "layers t n D"] | None:
        """Return features of the 3D branch to add after the first decoder layers. None if there are none."""
        return None

    @property
    def interactions(self) -> Mapping[int, nn.Module]:
        """The modules that act between attention and MLP, by decoder layer, see `Interactions`."""
        return {}

    def layer_tokens(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, token_side: int, dtype: torch.dtype
    ) -> Float[Tensor, "t n D"] | None:
        """Return the 3D token of each 2D token for the `interactions`. None if there are none.

        Args:
            geometry: See `forward`.
            grid_thw: See `forward`.
            token_side: Patches per side in a 2D token, twice as many where tokens are compressed.
            dtype: Dtype of the 2D tokens.
        """
        return None

    def group_size(self, grid_thw: GridTHW, token_side: int) -> int:
        """Return how many consecutive 2D tokens of a scene see each other in the `interactions`, a divisor of all."""
        steps, height, width = (int(side) for side in grid_thw)
        return steps * (height // token_side) * (width // token_side)

    def branch_2d(
        self, visual: Float[Tensor, "N D"], grid_thw: GridTHW, views: Callable[[Tensor], Tensor] | None
    ) -> Float[Tensor, "t n a"]:
        """Compute the 2D branch with mixed views. Zeros if it is inactive."""
        flat = self.embed_2d(visual, grid_thw)
        if self.active_branches == "3d":
            return torch.zeros_like(flat)
        return flat if views is None else views(flat.flatten(0, 1)).view_as(flat)

    def branch_3d(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, dtype: torch.dtype
    ) -> Float[Tensor, "*layers t m b"] | None:
        """Compute the 3D branch. None if it is inactive."""
        if not self.uses_geometry:
            return None
        assert geometry is not None, f"{type(self).__name__} reads the geometry of the scene"
        return self.embed_3d(self.merged_3d(geometry, grid_thw, dtype))

    def embed_2d(self, visual: Float[Tensor, "N D"], grid_thw: GridTHW) -> Float[Tensor, "t n a"]:
        """Embed the 2D tokens."""
        return visual.unflatten(0, (int(grid_thw[0]), -1))

    @abstractmethod
    def embed_3d(self, merged: Float[Tensor, "t m merged"]) -> Float[Tensor, "*layers t m b"]:
        """Embed the tokens of `merged_3d`."""

    def join(self, flat: Float[Tensor, "t n a"], spatial: Float[Tensor, "#t m b"]) -> Float[Tensor, "t tokens D"]:
        """Join both branches into one sequence. The default is their sum. An inactive 3D branch is a single zero."""
        return flat + spatial

    def merged_3d(self, geometry: SceneGeometry, grid_thw: GridTHW, dtype: torch.dtype) -> Float[Tensor, "t n merged"]:
        """Concatenate the 3D tokens under each 2D token, see `merge_spatial`.

        Raises:
            InputError: The geometry has frames of another size.
        """
        patches = self.paired(geometry.patches, "3D tokens", grid_thw)
        grid, (height, width) = patches.shape[2:4], (int(side) for side in grid_thw[1:])
        if tuple(grid) != (height, width):
            raise InputError(
                f"3D tokens of {grid[0]} x {grid[1]} patches a frame under 2D tokens of {height} x {width}: "
                "give the geometry encoder the frames in the size in which the vision encoder sees them"
            )
        tokens = patches.to(dtype).flatten(0, 1).flatten(1, 2)
        return merge_spatial(tokens, grid_thw, self.frames_per_token).unflatten(0, (int(grid_thw[0]), -1))

    def paired(
        self, tokens: Float[Tensor, "S ..."] | None, kind: str, grid_thw: GridTHW
    ) -> Float[Tensor, "t frames ..."]:
        """Return the tokens of each temporal patch: `frames_per_token` frames, after `temporal_merge`.

        `kind` names the tokens in errors.

        Raises:
            ValueError: The geometry has no such tokens, or other frames.
        """
        frames = TEMPORAL_PATCH_SIZE * int(grid_thw[0])
        if tokens is None or len(tokens) != frames:
            found = "none" if tokens is None else len(tokens)
            raise ValueError(f"{type(self).__name__} needs {kind} of {frames} frames, this geometry has {found}")
        pairs = tokens.unflatten(0, (-1, TEMPORAL_PATCH_SIZE))
        if self.temporal_merge == "concat":
            return pairs
        one = pairs.mean(1, keepdim=True) if self.temporal_merge == "mean" else pairs[:, :1]
        return one.expand(-1, self.frames_per_token, *one.shape[2:])


# ---- Published connectors, with their official names and order of operations -----------------------------------------


class RMSNorm(nn.Module):
    """RMSNorm with the published connector's order of operations, bit for bit. `nn.RMSNorm` rounds differently.

    Args:
        channels: Width of the input.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


class Connector(nn.Module):
    """RMSNorm, linear, GELU, linear: Spatial-MLLM's connector (arXiv 2505.23747, section 3.2), with its official names.

    Args:
        inputs: Channels of the input.
        hidden: Channels of the hidden layer.
        outputs: Channels of the output.
        zero: Initialize the output to zero. Only the last layer is zero, or no parameter would get a gradient.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.ln_q = RMSNorm(inputs, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        if zero:
            for parameter in self.mlp[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "*rest inputs"]) -> Float[Tensor, "*rest outputs"]:
        return self.mlp(self.ln_q(x))


PatchNorm = Literal["rms", "layer"]
HIDDEN = 4096  # hidden width of the released models, for any decoder width
STD = 0.02  # standard deviation of the published initialization


class PatchMerger(nn.Module):
    """Norm of each patch, then an MLP on the 2 x 2 patches under a token, as Qwen2.5-VL's merger. Official names.

    Args:
        channels: Channels of a patch.
        hidden: Channels of the hidden layer.
        outputs: Channels of the output.
        norm: RMSNorm, or LayerNorm with bias.
        zero: Initialize the output to zero instead of the published random weights.
    """

    def __init__(self, channels: int, hidden: int, outputs: int, norm: PatchNorm = "rms", zero: bool = False) -> None:
        super().__init__()
        check_choice("norm", norm, PatchNorm)
        self.channels = channels
        self.ln_q = RMSNorm(channels) if norm == "rms" else nn.LayerNorm(channels, eps=1e-6)
        inputs = SPATIAL_MERGE_SIZE**2 * channels
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        for name, parameter in self.mlp.named_parameters():
            if name.endswith("bias") or (zero and name.startswith("2.")):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=STD)

    def forward(self, merged: Float[Tensor, "*rest inputs"]) -> Float[Tensor, "*rest outputs"]:
        return self.mlp(self.ln_q(merged.unflatten(-1, (-1, self.channels))).flatten(-2))
