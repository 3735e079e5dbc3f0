"""Individual parts of VG-LLM, SpatialStack and GeoThinker, for comparison with the published code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.backbones.official_names import INTERACTION, UNUSED
from zoo.backbones.qwen3_5 import tiny_preprocessor as tiny_qwen35_preprocessor
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.backbones.released_configs import vg_llm_geometry
from zoo.errors import InputError
from zoo.fusions import Fusion, GeoThinkerFusion
from zoo.fusions.geothinker import Interaction, group_size
from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE
from zoo.weights.load import ReleasedWeights, Tensors, TensorsUnder, first_tensor, load_weights

FusedStills = tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]


def official_3d_tokens(
    model: SpatialVLM, frames: Float[Tensor, "S 3 H W"], image_grid_thw: Int[Tensor, "S 3"] | None = None
) -> list[Float[Tensor, "N D"]]:
    """Return the features that a model with an encoder and a fusion adds to the visual tokens of images.

    Args:
        model: The model.
        frames: RGB in 0..1, each image once.
        image_grid_thw: The vision encoder's grids, for a `GeoThinkerFusion`. None is the encoder's own grid.

    Returns:
        The features that are added to the 2D tokens. For a `StackFusion`, the features of each connector, in the order
        of its layers. For a `GeoThinkerFusion`, the 3D tokens that its interactions read.

    Raises:
        InputError: The model has no geometry encoder or no fusion.
    """
    if model.geometry is None or model.fusion is None:
        raise InputError("a model without geometry encoder and fusion adds no 3D tokens")
    (geometry,) = model.geometry([frames], [None], cameras=False)
    assert geometry.patches is not None
    if not isinstance(model.fusion, GeoThinkerFusion):
        return list(_added(model.fusion, geometry.patches))
    sides = geometry.patches.shape[1:3] if image_grid_thw is None else image_grid_thw[0, 1:].tolist()
    grid = len(frames), *(side // SPATIAL_MERGE_SIZE * SPATIAL_MERGE_SIZE for side in sides)
    doubled = geometry.repeated(TEMPORAL_PATCH_SIZE)
    tokens = model.fusion.layer_tokens(doubled, grid, model.model_spec().token_side(grid), geometry.patches.dtype)
    assert tokens is not None
    return [tokens.flatten(0, 1)]


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


def official_interaction(
    config: dict[str, Any], state_dict: Tensors
) -> Callable[[Float[Tensor, "1 N D"], Float[Tensor, "1 N D"], Int[Tensor, "S 3"] | None], Float[Tensor, "1 N D"]]:
    """Return one of GeoThinker's interactions without the rest of the model.

    Args:
        config: `hidden_size`, `num_attention_heads`, `norm_eps`, `importance_gate` and `stride`, the patches per side
            that determine the size of a group.
        state_dict: Tensors by official names, after `cross_attn.`.

    Returns:
        A function that maps the states of visual tokens, their 3D tokens and the grids of the images to what is added
        to the states. Without grids all tokens are one group.

    Raises:
        NotImplementedError: The config has the distance term, which no released model has.
    """
    if config.get("spatial_bias"):
        raise NotImplementedError("geo_spatial_bias: no released model has the distance term")
    part = Interaction(
        config["hidden_size"], config["num_attention_heads"], config["norm_eps"], config["importance_gate"]
    ).to(first_tensor(state_dict).dtype)
    weights = TensorsUnder(state_dict, INTERACTION.removeprefix("."))
    load_weights(part, ReleasedWeights(weights, "interaction", is_skipped=lambda name: name.startswith(UNUSED)))

    def add(
        hidden: Float[Tensor, "1 N D"], geometry: Float[Tensor, "1 N D"], image_grid_thw: Int[Tensor, "S 3"] | None
    ) -> Float[Tensor, "1 N D"]:
        size = 0
        if image_grid_thw is not None:
            rows, columns = (int(side) // config["stride"] for side in image_grid_thw[0, 1:])
            size = rows * columns
        count = hidden.shape[1]
        size = group_size(size, count)
        return part(hidden[0], geometry[0], [(count // size, size)])[None]

    return add


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
