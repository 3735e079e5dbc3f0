"""Base class of fusions, which join 2D and 3D tokens into one visual sequence of the decoder's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.visual_grid import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE

ActiveBranches = Literal["both", "2d", "3d"]
TemporalMerge = Literal["concat", "mean", "first"]


def merge_spatial(
    tokens: Float[Tensor, "S patches C"],
    grid_thw: Int[Tensor, "1 3"],
    temporal_merge: int = TEMPORAL_PATCH_SIZE,
    spatial_merge: int = SPATIAL_MERGE_SIZE,
) -> Float[Tensor, "N merged"]:
    """Concatenates the patch tokens under each 2D token: N = t h/2 w/2 rows of C * temporal * spatial^2 channels.

    Within a row the order is (row, column, channel, frame), the frame fastest, as in Spatial-MLLM's connector.

    Args:
        tokens: patch tokens of S = temporal_merge * t frames, row by row, without special tokens.
        grid_thw: temporal patches, and rows and columns of patches.
        temporal_merge: frames per 2D token.
        spatial_merge: patches per side of a 2D token.

    Raises:
        ValueError: the tokens do not match the grid.
    """
    steps, height, width = grid_thw[0].tolist()
    wanted = (steps * temporal_merge, height * width)
    if tuple(tokens.shape[:2]) != wanted or height % spatial_merge or width % spatial_merge:
        raise ValueError(
            f"a grid of {steps} x {height} x {width} needs {wanted[0]} frames of {wanted[1]} patches, sides in "
            f"multiples of {spatial_merge}; got {tuple(tokens.shape[:2])}"
        )
    blocks = (steps, temporal_merge, height // spatial_merge, spatial_merge, width // spatial_merge, spatial_merge, -1)
    return tokens.reshape(blocks).permute(0, 2, 4, 3, 5, 6, 1).flatten(3).flatten(0, 2)


class ExtraTokens(Enum):
    """The tokens appended to the 2D tokens of each view; each shares the position of a 2D token."""

    NOTHING = "nothing"
    ONE = "one per view"
    ALL = "one per 2D token"

    def positions(self, tokens: int) -> range:
        """Returns the 2D token (of `tokens` in the view) whose position each appended token shares."""
        return {ExtraTokens.NOTHING: range(0), ExtraTokens.ONE: range(1), ExtraTokens.ALL: range(tokens)}[self]


class RMSNorm(nn.Module):
    """RMSNorm in the published connector's order of operations, bit for bit; `nn.RMSNorm` rounds differently.

    Args:
        channels: width of the input.
        eps: added to the mean square.
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
        inputs: channels of the input.
        hidden: channels of the hidden layer.
        outputs: channels of the output.
        zero: initialize the output to zero; only the last layer is zero, or no parameter would get a gradient.
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


class Fusion(Configurable, nn.Module, ABC):
    """Joins the 2D and the 3D branch of a scene. To add one, implement `embed_3d` and `join` in a file of this folder.

    Temporal patches are fused independently, so scenes with the same grid are fused as one long scene. Only `views`
    mixes the views of a scene.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        active_branches: the branch that reaches the decoder, or both; the tokens of the other are zero. An ablation of
            trained models, without retraining.
        temporal_merge: the 3D tokens of the two frames that are merged into one 2D token are concatenated (as
            published), or both replaced by their `mean` or by the `first`. The weights have the same shapes.
        deepstack: keep the vision tower's features for the first decoder layers (DeepStack, in Qwen3-VL), which are
            those of the 2D branch; without, the fused tokens are all that the decoder sees.

    Attributes:
        appended: the tokens appended to the 2D tokens.
        parts_2d: names of the submodules of the 2D branch.
        parts_3d: names of the submodules of the 3D branch.
    """

    appended: ExtraTokens = ExtraTokens.NOTHING
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
        self.width, self.geometry_width = width, geometry_width
        self.active_branches, self.temporal_merge, self.deepstack = active_branches, temporal_merge, deepstack

    @property
    def uses_geometry(self) -> bool:
        """Whether `forward` reads the geometry."""
        return self.active_branches != "2d"

    @property
    def keeps_deepstack(self) -> bool:
        """Whether the 2D branch's features reach the first decoder layers."""
        return self.deepstack and self.active_branches != "3d"

    def fit_deepstack(self, features: Float[Tensor, "layers t n D"], tokens: int) -> Float[Tensor, "kept t {tokens} D"]:
        """Returns features for `tokens` per view: zeros for the appended ones; of no layer unless they are kept."""
        return F.pad(features if self.keeps_deepstack else features[:0], (0, 0, 0, tokens - features.shape[2]))

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """Names of the submodules of the inactive branch, which get no gradient."""
        return {"both": (), "2d": self.parts_3d, "3d": self.parts_2d}[self.active_branches]

    @property
    def flat_width(self) -> int:
        """Channels of the 2D branch before both are joined."""
        return self.width

    def forward(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: Int[Tensor, " 3"],
        geometry: SceneGeometry | None,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """Returns the visual tokens of a scene per temporal patch: those on the 2D grid, then the appended ones.

        Args:
            visual: 2D tokens, N = t h/2 w/2.
            grid_thw: temporal patches, and rows and columns of patches; each still of a scene is a temporal patch.
            geometry: geometry of its 2t frames; may be None if `uses_geometry` is false.
            views: the view mixer, a map of (N, flat_width) to itself, applied to the 2D branch before the join.

        Raises:
            ValueError: the geometry has other frames, or lacks tokens that this fusion reads.
        """
        flat = self.embed_2d(visual, grid_thw)
        if self.active_branches == "3d":
            flat = torch.zeros_like(flat)
        elif views is not None:
            flat = views(flat.flatten(0, 1)).view_as(flat)
        spatial = flat.new_zeros(1, 1, 1)
        if self.uses_geometry:
            if geometry is None:
                raise ValueError(f"{type(self).__name__} needs the geometry of the scene")
            spatial = self.embed_3d(self.merged_3d(geometry, grid_thw, visual.dtype))
        return self.join(flat, spatial)

    def embed_2d(self, visual: Float[Tensor, "N D"], grid_thw: Int[Tensor, " 3"]) -> Float[Tensor, "t n a"]:
        """Computes the 2D branch."""
        return visual.unflatten(0, (int(grid_thw[0]), -1))

    @abstractmethod
    def embed_3d(self, merged: Float[Tensor, "t m merged"]) -> Float[Tensor, "t m b"]:
        """Computes the 3D branch from the tokens of `merged_3d`."""

    @abstractmethod
    def join(self, flat: Float[Tensor, "t n a"], spatial: Float[Tensor, "#t m b"]) -> Float[Tensor, "t tokens D"]:
        """Joins both branches into one sequence; an inactive 3D branch is a single zero, to be expanded."""

    def merged_3d(
        self, geometry: SceneGeometry, grid_thw: Int[Tensor, " 3"], dtype: torch.dtype
    ) -> Float[Tensor, "t n merged"]:
        """Concatenates the 3D tokens under each 2D token, see `merge_spatial`.

        Raises:
            InputError: the geometry has frames of another size.
        """
        if geometry.patches is None:
            raise ValueError(f"{type(self).__name__} needs 3D tokens, and this geometry has none")
        grid, wanted = geometry.patches.shape[1:3], grid_thw[1:].tolist()
        if list(grid) != wanted:
            raise InputError(
                f"3D tokens of {grid[0]} x {grid[1]} patches a frame under 2D tokens of {wanted[0]} x {wanted[1]}: "
                "give the geometry encoder the frames in the size in which the vision tower sees them"
            )
        patches = self.paired(geometry.patches.to(dtype).flatten(1, 2))
        return merge_spatial(patches, grid_thw[None]).unflatten(0, (int(grid_thw[0]), -1))

    def paired(self, tokens: Float[Tensor, "S ..."]) -> Float[Tensor, "S ..."]:
        """Applies `temporal_merge` to the tokens of each pair of frames."""
        if self.temporal_merge == "concat":
            return tokens
        pairs = tokens.unflatten(0, (-1, TEMPORAL_PATCH_SIZE))
        one = pairs.mean(1, keepdim=True) if self.temporal_merge == "mean" else pairs[:, :1]
        return one.expand_as(pairs).flatten(0, 1)
