"""What a model makes of images before its decoder, for comparison with the published code."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.backbones.qwen3_5 import tiny_preprocessor as tiny_qwen35_preprocessor
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.errors import InputError
from zoo.fusions.base import Fusion
from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE

FusedStills = tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]


def official_3d_tokens(
    model: SpatialVLM, frames: Float[Tensor, "S 3 H W"], image_grid_thw: Int[Tensor, "S 3"] | None = None
) -> list[Float[Tensor, "N D"]]:
    """Return the features that a model with an encoder and a fusion adds to the visual tokens of images.

    Args:
        model: The model.
        frames: RGB in 0..1, each image once.
        image_grid_thw: The vision encoder's grids, for a fusion of whole frames. None is the encoder's own grid.

    Returns:
        The features that are added to the 2D tokens. For a `StackFusion`, the features of each connector, in the order
        of its layers. For a fusion of whole frames, the 3D tokens that its interactions read.

    Raises:
        InputError: The model has no geometry encoder or no fusion.
    """
    if model.geometry is None or model.fusion is None:
        raise InputError("a model without geometry encoder and fusion adds no 3D tokens")
    (geometry,) = model.geometry([frames], [None], cameras=False)
    assert geometry.patches is not None
    if not model.fusion.whole_frames:
        return list(added_features(model.fusion, geometry.patches))
    sides = geometry.patches.shape[1:3] if image_grid_thw is None else image_grid_thw[0, 1:].tolist()
    grid = len(frames), *(side // SPATIAL_MERGE_SIZE * SPATIAL_MERGE_SIZE for side in sides)
    doubled = geometry.repeated(TEMPORAL_PATCH_SIZE)
    tokens = model.fusion.layer_tokens(doubled, grid, model.frame_rules.token_side(grid), geometry.patches.dtype)
    assert tokens is not None
    return [tokens.flatten(0, 1)]


def official_pictures(
    model: str, pictures: UInt8[Tensor, "S 3 H W"], training: bool = False
) -> tuple[Float[Tensor, "S 3 h w"], Float[Tensor, "patches channels"], Int[Tensor, "S 3"]]:
    """Return the inputs of VG-LLM or SpatialStack for pictures of one size, without JPEG compression.

    Args:
        model: "vg_llm", or "spatial_stack" on Qwen3.5.
        pictures: Pictures of one scene.
        training: Process as in training, which differs for SpatialStack.

    Returns:
        The geometry encoder's frames in 0..1, and the vision encoder's patches with their grids.
    """
    from datamodules.resize import FixedWidthStills, OriginalStills

    is_stack = model == "spatial_stack"
    resize = OriginalStills() if is_stack and not training else FixedWidthStills()
    preprocessor = tiny_qwen35_preprocessor() if is_stack else tiny_preprocessor()
    frames, geometry_frames, *_ = resize(pictures, 32 if is_stack else 28)
    doubled = [preprocessor.cut_patches(still.expand(TEMPORAL_PATCH_SIZE, -1, -1, -1)) for still in frames]
    patches = torch.cat([preprocessor.normalize(each) for each, _ in doubled])
    return geometry_frames / 255, patches, torch.stack([grid for _, grid in doubled])


def added_features(fusion: Fusion, patches: Float[Tensor, "S h w C"]) -> Float[Tensor, "features N D"]:
    """Return the fusion's features of the 3D tokens of images, without an odd last row and column of patches."""
    rows, columns = (side // SPATIAL_MERGE_SIZE * SPATIAL_MERGE_SIZE for side in patches.shape[1:3])
    both = SceneGeometry(patches=patches[:, :rows, :columns].repeat_interleave(TEMPORAL_PATCH_SIZE, 0))
    found = fusion.branch_3d(both, (len(patches), rows, columns), patches.dtype)
    assert found is not None
    return found.flatten(-3, -2).reshape(-1, found.shape[-3] * found.shape[-2], found.shape[-1])
