"""VG-LLM (arXiv 2505.24625): Qwen2.5-VL that is shown images, to whose 2D tokens merged 3D tokens of VGGT are added.

Published: `zd11024/vgllm-qa-vggt-4b` and `-8b`, and the first release with other names, such as
`VGLLM_for_Spatial_Reasoning_4B`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import QWEN25, VGGT_MODEL, PretrainedQwen25VL
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.checkpoints.official_parts import FusedStills, added_features
from zoo.fusions.base import HIDDEN, Fusion
from zoo.fusions.entrance import PatchMergerFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.dataset_geometry import DatasetGeometry
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM
from zoo.published.release import (
    Release,
    ReleasedGeometry,
    aggregator_arguments,
    flat_settings,
    refuse_others,
    warn_of_layers,
)
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import Layout, Tensors

__all__ = ["VGLLM", "PretrainedVGLLM", "load_vg_llm", "official_fusion"]

LAYOUT: Layout = {"geometry_encoder.vggt.": VGGT_MODEL, "geometry_merger.": "fusion.merger."}
FIRST_LAYOUT: Layout = {"vggt.": VGGT_MODEL, "merger.": "fusion.merger."}  # names of the first release
# supported values among those of the published code, which SpatialStack and GeoThinker extend
SUPPORTED = {"geometry_encoder_type": ("vggt",), "geometry_merger_type": ("mlp",)}
# keys that the published scripts write into config.json
KEYS = (
    *("use_geometry_encoder", "geometry_encoder_type", "geometry_encoder_path", "reference_frame"),
    *("feature_fusion_method", "fusion_num_layers", "geometry_merger_type", "geometry_merger_hidden_dim"),
    *("fusion_attention_heads", "fusion_dropout", "use_qwenvl_loss"),
    *("use_vggt_feature", "use_dense_supervision", "vggt_merger_hidden_dim"),  # the first release's
)
WITH_VGGT = {
    "use_geometry_encoder": True,
    "geometry_encoder_type": "vggt",
    "reference_frame": "first",
    "fusion_num_layers": 1,
    "geometry_merger_type": "mlp",
}
FIRST = {"use_vggt_feature": True, "reference_frame": "first"}


class VGLLM(VideoQATask):
    """VG-LLM (arXiv 2505.24625): the 3D tokens of each frame are merged and added to the 2D tokens of images.

    vg_llm.yaml shows each frame as an image, as published.

    Args:
        geometry: Encoder of the 3D tokens. The layer before VGGT's last one in the paper. The default uses the
            dataset's rays and points.
        fusion: `PatchMergerFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = PatchMergerFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)
        warn_of_layers(self.model.geometry, (-2,), "VG-LLM reads the layer before the last")


class PretrainedVGLLM(Release, PretrainedQwen25VL):
    """A released VG-LLM: Qwen2.5-VL, with its VGGT and merger for a model that combines them.

    Args:
        path: A hub id (`zd11024/vgllm-qa-vggt-4b`, `zd11024/vgllm-qa-vggt-8b`) or a local folder with config,
            safetensors and processor. Both the current names and the first release's names are supported.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title, released = "VG-LLM", "zd11024/vgllm-qa-vggt-4b"
    licensed = License(
        "`zd11024/vgllm-qa-vggt-4b`, `-8b`, `VGLLM_for_Spatial_Reasoning_4B`",
        "unknown (the code has no license file). Made of Qwen2.5-VL-3B or 7B and VGGT-1B",
    )
    architecture = "Qwen2_5_VLForConditionalGenerationWithVGGT"
    released_fusions: ClassVar[tuple[type[nn.Module], ...]] = (PatchMergerFusion,)
    prefixes = (*LAYOUT, *FIRST_LAYOUT)
    layer: ClassVar[int | None] = -2
    config_keys = (*Release.config_keys, *KEYS)
    known_configs = {
        **{
            f"vgllm-{use}-vggt-{size}b": (backbone, {**WITH_VGGT, "feature_fusion_method": "add"})
            for use in ("qa", "3d")
            for size, backbone in ((4, "Qwen2.5-VL-3B-Instruct"), (8, "Qwen2.5-VL-7B-Instruct"))
        },
        "VGLLM_for_Spatial_Reasoning_4B": ("Qwen2.5-VL-3B-Instruct", FIRST),
        "VGLLM_for_3D_Scene_Understanding_4B": ("Qwen2.5-VL-3B-Instruct", FIRST),
    }
    shown_as = {"frames_as": "image", "still_resize": {"class_path": "datamodules.FixedWidthStills"}}

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        has_encoder = config.get("use_geometry_encoder") or config.get("use_vggt_feature")
        is_vggt = config.get("geometry_encoder_type", "vggt") in SUPPORTED["geometry_encoder_type"]
        return config.get("model_type") == QWEN25 and bool(has_encoder) and is_vggt

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geometry_of(self.settings, self.tensor_names)

    @classmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        return FIRST_LAYOUT if model.loader.layout == FIRST_LAYOUT else LAYOUT

    @classmethod
    def fixed_options(cls, model: SpatialVLM) -> dict[str, Any]:
        return {"norm": "rms"}

    @classmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        fusion, geometry = model.fusion, model.geometry
        assert isinstance(fusion, PatchMergerFusion) and isinstance(geometry, VGGTEncoder)
        if cls.fusion_layout(model) == FIRST_LAYOUT:
            return {**FIRST, "reference_frame": geometry.reference, "vggt_merger_hidden_dim": fusion.hidden}
        own = {"feature_fusion_method": "add", "geometry_merger_hidden_dim": fusion.hidden}
        return {**WITH_VGGT, "reference_frame": geometry.reference, **own}


def geometry_of(config: Mapping[str, Any], names: Collection[str]) -> ReleasedGeometry | None:
    """Return the parts of a VG-LLM beside its backbone. None if it was saved without geometry.

    The published code misreads the first release's config as one without geometry, and silently runs a plain
    Qwen2.5-VL. Here the tensor names distinguish both layouts. Without names the config decides.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        names: Official names of its tensors. Empty for a model that is built by shapes only.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
    """
    has_first, has_current = (any(name.startswith(tuple(each)) for name in names) for each in (FIRST_LAYOUT, LAYOUT))
    is_first = has_first or (bool(config.get("use_vggt_feature")) and not has_current)
    if not config.get("use_vggt_feature" if is_first else "use_geometry_encoder", is_first):
        return None
    refuse_others(config, {"feature_fusion_method": ("add",), **SUPPORTED})
    hidden = config.get("vggt_merger_hidden_dim" if is_first else "geometry_merger_hidden_dim", HIDDEN)
    layout, fusion = FIRST_LAYOUT if is_first else LAYOUT, partial(PatchMergerFusion, hidden=hidden)
    return ReleasedGeometry(layout, aggregator_arguments(config), (-2,), fusion, config.get("reference_frame", "first"))


def load_vg_llm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a VG-LLM with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. Without
            "vggt_aggregator" they are VGGT-1B's.
        state_dict: Tensors as for `load_qwen25_vl`, with VGGT and merger in either released layout, which is recognized
            by the names. VGGT's dense heads, which this model does not use, may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    parts = geometry_of(flat_settings(config), state_dict)
    return model_from_tensors(PretrainedVGLLM, config, parts, state_dict)


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
    parts = geometry_of({**config, "use_geometry_encoder": True}, state_dict)
    assert parts is not None
    fusion = parts.fusion(config["hidden_size"], config["geometry_width"])
    parts.load_fusion(fusion, state_dict)

    def fuse(patches: Float[Tensor, "S h w C"], visual: Float[Tensor, "N D"]) -> FusedStills:
        (geometry,) = added_features(fusion, patches)
        return geometry, visual + geometry

    return fuse
