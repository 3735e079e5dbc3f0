"""SpatialStack (arXiv 2603.27437): 3D tokens of several layers of VGGT are added after the first decoder layers.

Its code began as VG-LLM's. Published: `Journey9ni/SpatialStack-Qwen3.5-4B`, and an earlier
`Journey9ni/SpatialStack-Qwen2.5-4B`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

from torch import nn

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import FUSION, QWEN25, QWEN35, VGGT_MODEL, PretrainedQwen35
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.errors import InputError
from zoo.fusions.base import HIDDEN, Fusion, PatchNorm
from zoo.fusions.deep import StackFusion
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
from zoo.published.vg_llm import KEYS, SUPPORTED, WITH_VGGT, PretrainedVGLLM
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import FirstNames, Layout, Tensors

__all__ = ["SpatialStack", "PretrainedSpatialStack", "PretrainedSpatialStackQwen25", "load_spatial_stack"]

STACK_ADD = "deepstack_language_add"
# prefixes of the connectors' official names. The published class registers some parts twice, so a file may hold either
# name or both
CONNECTORS = {
    QWEN25: "multi_layer_feature_fusion.fusion_layers.",
    QWEN35: "model.language_feature_fusion.fusion_layers.",
}
SECOND_NAMES: dict[str, Layout] = {
    QWEN25: {"language_feature_fusion.": "multi_layer_feature_fusion."},
    QWEN35: {
        "geometry_encoder.": "model.geometry_encoder.",
        "geometry_merger.": "model.geometry_merger.",
        "language_feature_fusion.": "model.language_feature_fusion.",
    },
}
STACK_SUPPORTED = {**SUPPORTED, "include_camera_token": (False,), "vision_language_fusion_layers": (None,)}
LAYER_KEYS = FUSION_LAYERS, ENCODER_LAYERS = "geometry_fusion_layers", "geometry_encoder_layers"
STACK_KEYS = (*LAYER_KEYS, "include_camera_token", "pos_encoding_type", "vision_language_fusion_layers")


class SpatialStack(VideoQATask):
    """SpatialStack (arXiv 2603.27437): 3D tokens of several layers are added after the first decoder layers.

    spatial_stack.yaml shows each frame as an image, as published.

    Args:
        geometry: Encoder of the 3D tokens. Three layers of VGGT in the paper. The default uses the dataset's rays and
            points, the same for all decoder layers.
        fusion: `StackFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = StackFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)
        warn_of_layers(self.model.geometry, (11, 17, 23), "SpatialStack reads three layers")


class _SpatialStackRelease(Release):
    """What both releases share."""

    title = "SpatialStack"
    licensed = License(
        "`Journey9ni/SpatialStack-Qwen3.5-4B`, `-Qwen2.5-4B`",
        "unknown (the code is Apache 2.0). Made of Qwen3.5-4B or Qwen2.5-VL-3B, and VGGT-1B",
    )
    released_fusions: ClassVar[tuple[type[nn.Module], ...]] = (StackFusion, PatchMergerFusion)
    stacked = (StackFusion,)
    layer: ClassVar[int | None] = None
    config_keys = (*Release.config_keys, *KEYS, *STACK_KEYS)

    @cached_property
    def tensors(self) -> Tensors:
        return FirstNames(super().tensors, self.second_names)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geometry_of(self.settings, self.tensor_names, self.family)

    def fit_fusion(self, fusion: nn.Module) -> None:
        """Set the norm of a `StackFusion` to the release's, if it was not set."""
        parts = self.released_geometry
        if parts is None or type(fusion) is not parts.fusion.func or not isinstance(fusion, StackFusion):
            return
        if fusion.decoder_layers != (layers := parts.fusion.keywords["decoder_layers"]):
            raise InputError(
                f"--model.fusion.decoder_layers {fusion.decoder_layers}: the released connectors are of the decoder's "
                f"layers {layers}, name these"
            )
        fusion.norm = fusion.norm or parts.fusion.keywords["norm"]

    @classmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        return stack_layout(cls.family, getattr(model.fusion, "decoder_layers", None))

    @classmethod
    def fixed_options(cls, model: SpatialVLM) -> dict[str, Any]:
        fixed: dict[str, Any] = {"norm": "rms" if cls.family == QWEN25 else "layer"}
        if isinstance(model.fusion, StackFusion):
            fixed["hidden"] = HIDDEN  # config.json has no setting for this
        return fixed

    @classmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        fusion, geometry = model.fusion, model.geometry
        assert isinstance(geometry, VGGTEncoder)
        shared, layers = {**WITH_VGGT, "reference_frame": geometry.reference}, list(geometry.layers)
        if isinstance(fusion, PatchMergerFusion):
            own = {"feature_fusion_method": "add", "geometry_merger_hidden_dim": fusion.hidden}
            return {**shared, **own, FUSION_LAYERS: None, ENCODER_LAYERS: layers}
        assert isinstance(fusion, StackFusion)
        each = layers * (len(fusion.decoder_layers) // geometry.num_layers)  # one for each decoder layer
        return {
            **shared, "feature_fusion_method": STACK_ADD, FUSION_LAYERS: fusion.decoder_layers, ENCODER_LAYERS: each,
        }  # fmt: skip


class PretrainedSpatialStack(_SpatialStackRelease, PretrainedQwen35):
    """A released SpatialStack: Qwen3.5, with its VGGT and connectors for a model that combines them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, for the layers with full attention.
        dtype: Dtype of the weights.
    """

    released = "Journey9ni/SpatialStack-Qwen3.5-4B"
    architecture = "Qwen3_5ForConditionalGenerationWithGeometry"
    prefixes = ("model.geometry_encoder.vggt.", CONNECTORS[QWEN35])
    second_names = SECOND_NAMES[QWEN35]
    known_configs = {
        "SpatialStack-Qwen3.5-4B": (
            "Qwen3.5-4B",
            {
                **WITH_VGGT,
                "geometry_encoder_path": "facebook/VGGT-1B",
                "feature_fusion_method": STACK_ADD,
                FUSION_LAYERS: [0, 1, 2],
                ENCODER_LAYERS: [11, 17, 23],
                "include_camera_token": False,
                "pos_encoding_type": "none",
                "vision_language_fusion_layers": None,
            },
        )
    }
    shown_as = {
        "frames_as": "image",
        "still_resize": {"class_path": "datamodules.OriginalStills"},
        "system_prompt": "You are a helpful assistant.",
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == QWEN35 and bool(config.get("use_geometry_encoder"))


class PretrainedSpatialStackQwen25(_SpatialStackRelease, PretrainedVGLLM):
    """A SpatialStack on Qwen2.5-VL, with its VGGT and connectors for a model that combines them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen2.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "Journey9ni/SpatialStack-Qwen2.5-4B"
    prefixes = (CONNECTORS[QWEN25], *SECOND_NAMES[QWEN25])
    second_names = SECOND_NAMES[QWEN25]
    known_configs = {}

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        is_stack = FUSION_LAYERS in config and bool(config.get("use_geometry_encoder"))
        return config.get("model_type") == QWEN25 and is_stack


def geometry_of(config: Mapping[str, Any], names: Collection[str], family: str) -> ReleasedGeometry | None:
    """Return the parts of a SpatialStack beside its backbone. None if it was saved without geometry.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        names: Official names of its tensors, which determine the norm, because LayerNorm has a bias. Empty for a model
            that is built by shapes only. The norm is then the released model's.
        family: Family of its backbone.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
    """
    if not config.get("use_geometry_encoder"):
        return None
    refuse_others(config, {"feature_fusion_method": (STACK_ADD, "add"), **STACK_SUPPORTED})
    has_bias = any(name.endswith(("geo_ln.bias", "geometry_merger.ln_q.bias")) for name in names)
    norm: PatchNorm = "layer" if has_bias or not (names or family == QWEN25) else "rms"
    reference, aggregator = config.get("reference_frame", "first"), aggregator_arguments(config)
    if config["feature_fusion_method"] == "add":
        fusion: Any = partial(PatchMergerFusion, hidden=config.get("geometry_merger_hidden_dim", HIDDEN), norm=norm)
        layers = config.get(ENCODER_LAYERS) or [-2]  # the published code uses the last one
        return ReleasedGeometry(stack_layout(family), aggregator, (layers[-1],), fusion, reference)
    decoder_layers, encoder_layers = config[FUSION_LAYERS], config[ENCODER_LAYERS]
    fusion = partial(StackFusion, decoder_layers=list(decoder_layers), norm=norm)
    layout = stack_layout(family, decoder_layers)
    return ReleasedGeometry(layout, aggregator, tuple(encoder_layers), fusion, reference)


def stack_layout(family: str, decoder_layers: Sequence[int] | None = None) -> Layout:
    """Return the names of VGGT and connectors.

    Args:
        family: Family of its backbone.
        decoder_layers: Decoder layers of its connectors. The k-th connector of a layer is `{layer}.{k}`. None is a
            model with one merger, as VG-LLM has.
    """
    start = "" if family == QWEN25 else "model."
    layout = {f"{start}geometry_encoder.vggt.": VGGT_MODEL}
    if decoder_layers is None:
        return layout | {f"{start}geometry_merger.": f"{FUSION}merger."}
    seen: Counter[int] = Counter()
    for number, layer in enumerate(decoder_layers):
        for theirs, ours in (("geo_ln", "ln_q"), ("geo_mlp", "mlp")):
            layout[f"{CONNECTORS[family]}{layer}.{seen[layer]}.{theirs}."] = f"{FUSION}connectors.{number}.{ours}."
        seen[layer] += 1
    return layout


def load_spatial_stack(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a SpatialStack with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. Without
            "vggt_aggregator" they are VGGT-1B's.
        state_dict: Tensors by official names. Parts that the published class registers twice may have either name or
            both.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    settings = flat_settings(config)
    kind = PretrainedSpatialStack if "text_config" in settings else PretrainedSpatialStackQwen25
    tensors = FirstNames(state_dict, kind.second_names)
    return model_from_tensors(kind, settings, geometry_of(settings, tensors, kind.family), tensors)
