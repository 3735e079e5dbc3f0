"""Individual parts of VG-LLM and SpatialStack, for comparison with the published code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.backbones.qwen3_5 import tiny_preprocessor as tiny_qwen35_preprocessor
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.backbones.released_configs import vg_llm_geometry
from zoo.errors import InputError
from zoo.fusions import Fusion
from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE
from zoo.weights.load import Tensors

FusedStills = tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]


def official_3d_tokens(model: SpatialVLM, frames: Float[Tensor, "S 3 H W"]) -> list[Float[Tensor, "N D"]]:
    """Return the features that a model with an encoder and a fusion adds to the visual tokens of images.

    Frames are RGB in 0..1, each image once.

    Returns:
        The features that are added to the 2D tokens. For a `StackFusion`, the features of each connector, in the order
        of its layers.

    Raises:
        InputError: The model has no geometry encoder or no fusion.
    """
    if model.geometry is None or model.fusion is None:
        raise InputError("a model without geometry encoder and fusion adds no 3D tokens")
    (geometry,) = model.geometry([frames], [None], cameras=False)
    assert geometry.patches is not None
    return list(_added(model.fusion, geometry.patches))


def official_fusion(
    config: dict[str, Any], state_dict: Tensors
) -> Callable[[Float[Tensor, "S h w C"], Float[Tensor, "N D"]], FusedStills]:
    """Return VG-LLM's merger and fusion without the rest of the model.

    Args:
        config: `hidden_size` and `geometry_width`, and VG-LLM's settings of the fusion.
        state_dict: Tensors by official names.

    Returns:
        A function that maps the patches of S images and their 2D tokens to the merged 3D tokens and the fused tokens.

    Raises:
        InputError: The merger or fusion differs from the released models'.
    """
    parts = vg_llm_geometry({**config, "use_geometry_encoder": True}, state_dict)
    assert parts is not None
    fusion = parts.fusion(config["hidden_size"], config["geometry_width"])
    parts.load_fusion(fusion, state_dict)

    def fuse(patches: Float[Tensor, "S h w C"], visual: Float[Tensor, "N D"]) -> FusedStills:
        (geometry,) = _added(fusion, patches)
        return geometry, visual + geometry

    return fuse


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


def _added(fusion: Fusion, patches: Float[Tensor, "S h w C"]) -> Float[Tensor, "features N D"]:
    """Return the fusion's features of the 3D tokens of images, without an odd last row and column of patches."""
    rows, columns = (side // SPATIAL_MERGE_SIZE * SPATIAL_MERGE_SIZE for side in patches.shape[1:3])
    both = SceneGeometry(patches=patches[:, :rows, :columns].repeat_interleave(TEMPORAL_PATCH_SIZE, 0))
    found = fusion.branch_3d(both, (len(patches), rows, columns), patches.dtype)
    assert found is not None
    return found.flatten(-3, -2).reshape(-1, found.shape[-3] * found.shape[-2], found.shape[-1])
