"""Loaders of released folders: Qwen-VL models, and models released with a geometry encoder and a fusion."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.official_names import (
    EMBEDDINGS,
    GEOVR_TRAINING,
    LM_HEAD,
    NOT_LOADED,
    QWEN3,
    QWEN25,
    QWEN35,
    STACK_QWEN25_SECOND_NAMES,
    STACK_SECOND_NAMES,
    Layout,
    backbone_names,
)
from zoo.backbones.qwen3_5 import Qwen35Backbone
from zoo.backbones.qwen3_vl import Qwen3VLBackbone
from zoo.backbones.qwen25_vl import Qwen25VLBackbone
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.released_configs import (
    ReleasedConfig,
    ReleasedGeometry,
    find_fused,
    geothinker_geometry,
    known_config,
    loader_of,
    qwen3_5_config,
    qwen3_config,
    spatial_mllm_geometry,
    spatial_stack_geometry,
    vg_llm_geometry,
)
from zoo.encodings.base import DecoderLayout
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.layers import layer_index
from zoo.weights.load import (
    CONFIG,
    FirstNames,
    ReleasedWeights,
    Tensors,
    builds_shapes_only,
    files_of,
    find_folder,
    find_tensors,
    load_weights,
    read_config,
)

MOE = {"qwen3_vl_moe": "Qwen3-VL-MoE", "qwen3_5_moe": "Qwen3.5-MoE"}
GENERATION_CONFIG = "generation_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
V1_CONNECTOR = "vggt_embedding_merger."  # prefix of Spatial-MLLM v1.0's connector
VGGT_DEPTH = 24  # layers of the released aggregator


# ---- Models of transformers without weights --------------------------------------------------------------------------


class Family(NamedTuple):
    """A family of released models: its title, transformers' classes, and its backbone class."""

    title: str
    stock: Any
    processor: Any
    backbone: type[QwenVLBackbone]


FAMILIES = {
    QWEN25: Family("Qwen2.5-VL", Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen25VLBackbone),
    QWEN3: Family("Qwen3-VL", Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLBackbone),
    QWEN35: Family("Qwen3.5", Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen35Backbone),
}


class EmptyQwenVL(BackboneLoader):
    """A Qwen-VL without weights and processor. The weights are filled in afterwards.

    Args:
        config: Transformers' config of the model.
        dtype: Dtype of the weights.
        layout: See `BackboneLoader`.
    """

    is_pretrained = True

    def __init__(self, config: Any, dtype: torch.dtype, layout: Layout | None = None) -> None:
        super().__init__()
        self.config, self.dtype, self.layout = config, dtype, layout or {}

    def load(self) -> QwenVLBackbone:
        return FAMILIES[self.config.model_type].backbone(empty_qwen(self.config, self.dtype), None)


def empty_qwen(config: Any, dtype: torch.dtype) -> Any:
    """Return transformers' model for a config, in training mode, with parameters on the meta device."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype  # transformers prefers the dtype in a released config to the default
    # .to(dtype) afterwards would also round RoPE's frequencies
    with local_torch_dtype(dtype), torch.device("meta"):
        model = FAMILIES[config.model_type].stock(config)
    model.tie_weights()
    if not builds_shapes_only():
        compute_buffers(model, torch.get_default_device())
    return model.train()


def compute_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that are not in the files: RoPE's frequencies."""
    for part in model.modules():
        for name in part._non_persistent_buffers_set:
            part._buffers[name] = torch.empty_like(part._buffers[name], device=device)
        if part._non_persistent_buffers_set:
            model._init_weights(part)  # as transformers' `from_pretrained` does


def qwen_weights(config: Any, tensors: Tensors, skip: tuple[str, ...] = ()) -> ReleasedWeights:
    """Return the weights for a Qwen-VL of transformers. Tensors of Spatial-MLLM v1.0 are rejected.

    Args:
        config: Config of the model. If it ties the lm_head, the lm_head's tensor is not read, as in the official code.
            A warning is given if it differs from the embeddings.
        tensors: Tensors by official names.
        skip: Prefixes of names to ignore.
    """
    family, is_tied = config.model_type, config.tie_word_embeddings

    def check() -> None:
        refuse_v1(tensors)
        if is_tied and LM_HEAD in tensors:
            _check_tied(tensors, family)

    unread = (*skip, *NOT_LOADED, *((LM_HEAD,) if is_tied else ()))
    title, names = FAMILIES[family].title, backbone_names(family)
    return ReleasedWeights(tensors, title, names, lambda name: name.startswith(unread), check)


def _check_tied(tensors: Tensors, family: str) -> None:
    """Raise InputError for an lm_head that can't be tied, and warn if it differs from the embeddings."""
    names = backbone_names(family)
    own = (name for name in tensors if names.current(name) == (EMBEDDINGS,))
    if (embeddings := next(own, None)) is None:
        return  # the error about missing tensors will name it
    head, embedding = tensors[LM_HEAD], tensors[embeddings]
    if head.shape != embedding.shape:
        raise InputError(
            f"{LM_HEAD} {list(head.shape)} is tied to embeddings of {list(embedding.shape)}: set tie_word_embeddings "
            "to false in the config, or mend the file"
        )
    if not head.is_meta and not torch.equal(head, embedding):
        warnings.warn(
            f"{LM_HEAD} is tied to the embeddings by the config, and differs from them: it is not read", stacklevel=2
        )


def refuse_v1(tensors: Tensors) -> None:
    """Raise InputError for Spatial-MLLM v1.0.

    By its published code, v1.0 has VGGT under `vggt.`. Its connector is like v1.1's (with the patches of the second
    frame after the first frame's) and is followed by another RMSNorm and MLP. No outputs are available to check a port
    against.
    """
    if any(name.startswith(V1_CONNECTOR) for name in tensors):
        raise InputError(
            f"these are weights of Spatial-MLLM v1.0 ({V1_CONNECTOR}*): its connector is another one, of two MLPs, for "
            "which there are no published numbers to check a port against; take Diankun/Spatial-MLLM-v1.1-Instruct-135K"
        )


# ---- Qwen-VL ---------------------------------------------------------------------------------------------------------


class PretrainedQwenVL(BackboneLoader):
    """Released weights of a model family.

    Attributes:
        family: The model_type of its config.json.
        released: An example of a hub id, for errors.
        skip: Prefixes of tensors in the folder that belong to other parts.
    """

    is_pretrained = True
    family: ClassVar[str]
    released: ClassVar[str]
    skip: tuple[str, ...] = ()

    def __init__(self, path: str, attn_implementation: AttentionImplementation, dtype: DType):
        super().__init__(attn_implementation, dtype)
        self.path = self.released_path = path

    @property
    def lacks_folder(self) -> bool:
        """Whether only shapes are built, without a folder of weights and processor."""
        return builds_shapes_only() and not Path(self.path).expanduser().is_dir()

    @cached_property
    def known(self) -> dict[str, Any] | None:
        """The config of a released model that is built by shapes only. None if its folder exists."""
        return known_config(self.path) if self.lacks_folder else None

    @cached_property
    def folder(self) -> Path:
        if self.known:
            return Path(self.path)
        return find_folder(self.path, self.released, with_weights=not self.lacks_folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.known or read_config(self.folder)

    @property
    @abstractmethod
    def vlm_config(self) -> Any:
        """Transformers' config of the model, from `settings`."""

    @cached_property
    def tensors(self) -> Tensors:
        return find_tensors(self.path, self.released)

    @property
    def files(self) -> tuple[Path, ...]:
        return files_of(self.tensors)

    @property
    def stop_tokens(self) -> list[int]:
        """Stop tokens of generation_config.json, which is optional."""
        if not (self.folder / GENERATION_CONFIG).exists():
            return []
        stops = read_config(self.folder, GENERATION_CONFIG).get("eos_token_id")
        return [stops] if isinstance(stops, int) else list(stops or ())

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return loader_of(config) == cls.__name__

    def load(self) -> QwenVLBackbone:
        """See `BackboneLoader`.

        Raises:
            InputError: The folder or its processor is absent or of another family, the config is invalid, or tensors
                are missing, unexpected, misshapen or quantized.
        """
        self._refuse_others()
        with config_errors(self.folder):
            config = self.vlm_config
            config._attn_implementation = self.model_attention
            model = empty_qwen(config, self.dtype)
        model.config.name_or_path = str(self.folder)
        own, processor = FAMILIES[self.family], None
        if not self.lacks_folder:
            processor = read_processor(self.folder, own.processor)
        backbone = own.backbone(model, processor, self.attn_implementation, self.stop_tokens)
        load_weights(model, qwen_weights(model.config, self.tensors, self.skip))
        return backbone

    def _refuse_others(self) -> None:
        """Raise InputError for weights of another kind, and name the class that loads them."""
        kind, own = self.settings.get("model_type"), FAMILIES[self.family].title
        if kind in MOE:
            raise InputError(
                f"{self.path} is a {MOE[kind]}, which is not supported: take a dense one, such as {self.released}"
            )
        if kind != self.family and kind in FAMILIES:
            loaders: tuple[type[PretrainedQwenVL], ...] = (PretrainedQwen25VL, PretrainedQwen3VL, PretrainedQwen35)
            loader = next(each.__name__ for each in loaders if each.family == kind)
            raise InputError(f"{self.path} is a {FAMILIES[kind].title}: take --model.backbone {loader} for it")
        if "quantization_config" in self.settings:
            raise InputError(f"{self.path} is quantized: take the {own} in bfloat16 of which it was made")
        names = () if builds_shapes_only() else self.tensors
        fused = None if self.skip else find_fused(self.settings, names, self.family)
        if fused is not None:
            raise InputError(f"{self.path} is a {fused.title}: take --model.backbone {fused.loader} for it")


class PretrainedQwen25VL(PretrainedQwenVL):
    """Released weights of Qwen2.5-VL.

    Args:
        path: A hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    family, released = QWEN25, "Qwen/Qwen2.5-VL-3B-Instruct"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def config(self) -> ReleasedConfig:
        with config_errors(self.folder):
            return ReleasedConfig(self.settings)

    @property
    def vlm_config(self) -> Any:
        return self.config.qwen


class PretrainedQwen3VL(PretrainedQwenVL):
    """Released weights of a dense Qwen3-VL.

    Args:
        path: A hub id (`Qwen/Qwen3-VL-4B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    family, released = QWEN3, "Qwen/Qwen3-VL-4B-Instruct"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        """See `BackboneLoader`. A GeoVR has Qwen3-VL's config and is recognized by its tensor names."""
        loader = cls(path)
        names = () if loader.lacks_folder else loader.tensors
        is_geovr = any(name.startswith(GEOVR_TRAINING) for name in names)
        return {"backbone": PretrainedGeoVR(path) if is_geovr else loader}

    @property
    def vlm_config(self) -> Any:
        return qwen3_config(self.settings, str(self.folder / CONFIG))


class PretrainedGeoVR(PretrainedQwen3VL):
    """Released weights of GeoVR (arXiv 2606.05833): a Qwen3-VL that was trained with heads not used for answers.

    The files may contain the heads, their tokens and the frozen teachers. They are not read.

    Args:
        path: A folder of the hub repository (`WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`, `-4B`; `GeoVR-Omega-...`) or a
            local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B"
    skip = GEOVR_TRAINING

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)


class PretrainedQwen35(PretrainedQwenVL):
    """Released weights of a dense Qwen3.5 or Qwen3.6.

    Args:
        path: A hub id (`Qwen/Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, for the layers with full attention.
        dtype: Dtype of the weights.
    """

    family, released = QWEN35, "Qwen/Qwen3.5-4B"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @property
    def vlm_config(self) -> Any:
        return qwen3_5_config(self.settings, str(self.folder / CONFIG))


@contextmanager
def config_errors(folder: Path) -> Iterator[None]:
    """Convert errors of transformers and VGGT about an invalid config into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, StrictDataclassError) as error:
        raise InputError(f"{folder / CONFIG} makes no sense ({_first_line(error)}): download it again") from error


def read_processor(folder: Path, kind: Any) -> Any:
    """Return the tokenizer and the image and video processors of a folder.

    Raises:
        InputError: Files are absent or can't be read.
    """
    # without these files transformers returns a tokenizer with an empty vocabulary
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt: download it again")
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} has no whole processor ({_first_line(error)}): download it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".:")


def released_layouts() -> dict[str, DecoderLayout]:
    """Return the decoder layout of one released model per family, by the family's title, with tensors on the CPU."""
    with torch.device("meta"):
        loaders = PretrainedQwen25VL(), PretrainedQwen3VL(), PretrainedQwen35()
        found = {FAMILIES[loader.family].title: loader.load().decoder_layout for loader in loaders}
    layouts = {}
    for title, layout in found.items():
        linear = layout.linear and replace(layout.linear, device="cpu")
        layouts[title] = replace(layout, device="cpu", linear=linear)
    return layouts


# ---- Models with a geometry encoder ----------------------------------------------------------------------------------


class PretrainedFused(PretrainedQwenVL):
    """A released backbone with its geometry encoder and its fusion, for a model that combines them."""

    @property
    @abstractmethod
    def released_geometry(self) -> ReleasedGeometry | None:
        """The parts besides the backbone. None for a model that was saved without them."""

    @property
    def tensor_names(self) -> Collection[str]:
        """Official names of the tensors. Empty for a model that is built by shapes only."""
        return () if self.lacks_folder else self.tensors

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return {} if self.released_geometry is None else self.released_geometry.layout

    @property
    def skip(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.layout)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        loader = cls(path)  # type: ignore[call-arg]
        parts = loader.released_geometry
        return {"backbone": loader, **({} if parts is None else {"fusion": parts.fusion})}

    def load_geometry(self) -> GeometryEncoder | None:
        """Return the VGGT that the fusion was trained with, with the layers that the fusion reads."""
        if (parts := self.released_geometry) is None:
            return None
        with config_errors(self.folder):
            for layer in parts.layers:  # the encoder's own error would blame an option
                layer_index(layer, int(parts.aggregator.get("depth", VGGT_DEPTH)))
            return parts.load_encoder(self.tensors, self.dtype)

    def fit_fusion(self, fusion: nn.Module) -> None:
        if (parts := self.released_geometry) is not None:
            parts.fit_fusion(fusion)

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Copy the released weights into a fusion of the released class. Another fusion keeps its own weights."""
        parts = self.released_geometry
        return parts is not None and parts.load_fusion(fusion, self.tensors)


class PretrainedSpatialMLLM(PretrainedFused, PretrainedQwen25VL):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, with its VGGT and connector for a model that combines them.

    Args:
        path: A hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released, released_fusions = "Diankun/Spatial-MLLM-v1.1-Instruct-135K", ("AddFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry:
        return spatial_mllm_geometry(self.config.aggregator, self.config.layer)


class PretrainedVGLLM(PretrainedFused, PretrainedQwen25VL):
    """A released VG-LLM: Qwen2.5-VL, with its VGGT and merger for a model that combines them.

    Args:
        path: A hub id (`zd11024/vgllm-qa-vggt-4b`, `zd11024/vgllm-qa-vggt-8b`) or a local folder with config,
            safetensors and processor. Both the current names and the first release's names are supported.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released, released_fusions = "zd11024/vgllm-qa-vggt-4b", ("PatchMergerFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return vg_llm_geometry(self.settings, self.tensor_names)


class PretrainedGeoThinker(PretrainedFused, PretrainedQwen25VL):
    """A released GeoThinker on Qwen2.5-VL, with its VGGT, merger and interactions for a model that combines them.

    Args:
        path: A folder of the hub repository (`lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen25VL-7B`) or a local folder
            with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen25VL-7B"
    released_fusions = ("GeoThinkerFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geothinker_geometry(self.settings, QWEN25)


class PretrainedGeoThinkerQwen3(PretrainedFused, PretrainedQwen3VL):
    """A released GeoThinker on Qwen3-VL, see `PretrainedGeoThinker`.

    Args:
        path: A folder of the hub repository (`lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen3VL-8B`) or a local folder
            with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen3VL-8B"
    released_fusions = ("GeoThinkerFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geothinker_geometry(self.settings, QWEN3)


class PretrainedSpatialStack(PretrainedFused, PretrainedQwen35):
    """A released SpatialStack: Qwen3.5, with its VGGT and connectors for a model that combines them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, for the layers with full attention.
        dtype: Dtype of the weights.
    """

    released, released_fusions = "Journey9ni/SpatialStack-Qwen3.5-4B", ("StackFusion", "PatchMergerFusion")

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def tensors(self) -> Tensors:
        return FirstNames(super().tensors, STACK_SECOND_NAMES)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return spatial_stack_geometry(self.settings, self.tensor_names, is_qwen25=False)


class PretrainedSpatialStackQwen25(PretrainedFused, PretrainedQwen25VL):
    """A SpatialStack on Qwen2.5-VL, with its VGGT and connectors for a model that combines them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen2.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released, released_fusions = "Journey9ni/SpatialStack-Qwen2.5-4B", ("StackFusion", "PatchMergerFusion")

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @cached_property
    def tensors(self) -> Tensors:
        return FirstNames(super().tensors, STACK_QWEN25_SECOND_NAMES)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return spatial_stack_geometry(self.settings, self.tensor_names, is_qwen25=True)
