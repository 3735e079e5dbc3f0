"""Loaders of released folders: what all families share, and the Qwen-VL families.

Models that were made of them, and other families, are in `zoo.published`.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType, find_loader, loaders, unknown_model
from zoo.backbones.qwen3_5 import Qwen35Backbone
from zoo.backbones.qwen3_vl import Qwen3VLBackbone
from zoo.backbones.qwen25_vl import Qwen25VLBackbone
from zoo.encodings.base import DecoderLayout
from zoo.errors import InputError
from zoo.weights.load import (
    CONFIG,
    SAME_NAMES,
    Layout,
    NameTable,
    ReleasedWeights,
    Tensors,
    builds_shapes_only,
    files_of,
    find_folder,
    find_tensors,
    load_weights,
    read_config,
)

# in a `SpatialVLM`: prefixes of the names of tensors
VLM, GEOMETRY, VGGT_MODEL, FUSION = "backbone.vlm.", "geometry.", "geometry.vggt.", "fusion."
# in transformers' models: a tied lm_head equals the embeddings
LM_HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
QWEN25, QWEN3, QWEN35 = "qwen2_5_vl", "qwen3_vl", "qwen3_5"  # families, by the model_type of their config.json
HEADINGS = {"model_type", "architectures", "auto_map"}  # keys that name the class of a model
NEWER = {"layer_types", "rope_parameters", "text_config"}  # settings of transformers 5
MOE = {"qwen3_vl_moe": "Qwen3-VL-MoE", "qwen3_5_moe": "Qwen3.5-MoE"}
GENERATION_CONFIG = "generation_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
KNOWN = Path(__file__).parent / "released_configs.yaml"


# ---- config.json -----------------------------------------------------------------------------------------------------


def backbone_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without the settings of other parts than the backbone, also in its decoder's part."""
    others = {key for loader in loaders() for key in loader.config_keys}
    own = {name: value for name, value in config.items() if name not in others}
    if "text_config" in own:
        own["text_config"] = {name: value for name, value in own["text_config"].items() if name not in others}
    return own


def qwen25_config(config: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Return transformers' config of a Qwen2.5-VL.

    Args:
        config: A released config.json, or {"qwen": Qwen2.5-VL's config.json, ...}.
    """
    settings = backbone_settings(config.get("qwen", config))
    return Qwen2_5_VLConfig(**{name: value for name, value in settings.items() if name not in HEADINGS})


def qwen3_config(config: Mapping[str, Any], source: str = "the config") -> Qwen3VLConfig:
    """Return transformers' config of a Qwen3-VL.

    Args:
        config: Its config.json.
        source: Where it was read from, for errors.

    Raises:
        InputError: MRoPE's sections do not add up to the frequencies of a head.
    """
    found = Qwen3VLConfig.from_dict(backbone_settings(config))
    _check_sections(found.text_config, source)
    return found


def qwen3_5_config(config: Mapping[str, Any], source: str = "the config") -> Qwen3_5Config:
    """Return transformers' config of a Qwen3.5, see `qwen3_config`."""
    found = Qwen3_5Config.from_dict(backbone_settings(config))
    _check_sections(found.text_config, source)
    return found


def _check_sections(text: Any, source: str) -> None:
    sections, channels = list(text.rope_parameters["mrope_section"]), text.head_dim
    pairs = int(channels * text.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    taken = [len(range(axis, min(3 * count, pairs), 3)) for axis, count in enumerate(sections)]  # h and w alternate
    if len(sections) != 3 or sum(sections) != pairs or taken[1:] != sections[1:]:
        raise InputError(
            f"{source}: mrope_section {sections} does not share out the {pairs} frequencies of a head of "
            f"{channels} channels in turns: download it again"
        )


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without what every model has, and without the settings of transformers 5."""
    generic = NEWER | PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in settings.items() if name not in generic}


def known_config(path: str) -> dict[str, Any] | None:
    """Return the sizes in a released model's config.json, by the last part of its hub id or folder, or None."""
    name = Path(path).name
    known: dict[str, dict[str, Any]] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    if name in known:
        return known[name]
    found = next((loader.known_configs[name] for loader in loaders() if name in loader.known_configs), None)
    return None if found is None else {**(known[found[0]] if found[0] else {}), **found[1]}


# ---- Models of transformers without weights --------------------------------------------------------------------------


def empty_model(stock: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model of transformers, in training mode, with parameters on the meta device.

    Args:
        stock: Transformers' class.
        config: Its config, with a `text_config` and a `vision_config`.
        dtype: Dtype of the weights.
    """
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype  # transformers prefers the dtype in a released config to the default
    # .to(dtype) afterwards would also round RoPE's frequencies
    with local_torch_dtype(dtype), torch.device("meta"):
        model = stock(config)
    model.tie_weights()
    if not builds_shapes_only():
        compute_buffers(model, torch.get_default_device())
    return model.train()


def compute_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that are not in the files, such as RoPE's frequencies."""
    # the innermost model of transformers knows its parts, as in `from_pretrained`
    owners: dict[Any, Any] = {}
    for each in model.modules():
        if isinstance(each, PreTrainedModel):
            owners |= dict.fromkeys(each.modules(), each)
    for part, owner in owners.items():
        for name in part._non_persistent_buffers_set:
            part._buffers[name] = torch.empty_like(part._buffers[name], device=device)
        if part._non_persistent_buffers_set:
            owner._init_weights(part)


def _check_tied(tensors: Tensors, names: NameTable) -> None:
    """Raise InputError for an lm_head that can't be tied, and warn if it differs from the embeddings."""
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


def refuse_unsupported(tensors: Tensors) -> None:
    """Raise InputError for weights that a published model declares as `refused`."""
    for prefix, what in (item for loader in loaders() for item in loader.refused.items()):
        if any(name.startswith(prefix) for name in tensors):
            raise InputError(f"these are weights of {what}")


# ---- A family of released models -------------------------------------------------------------------------------------


class PretrainedBackbone(BackboneLoader):
    """Released weights of a model family: how its folders are read and written.

    Each family has one subclass, and published models of that family derive from it. A subclass for a new family stands
    beside its backbone or in the file of its published model.

    Attributes:
        title: Name of the model, for errors.
        family: The model_type of its config.json.
        backbone_title: Name of the family, for errors.
        stock: Transformers' class of the model.
        processor_class: Transformers' class of its processor.
        backbone_class: The `Backbone` around it.
        architecture: The class that an exported config.json names.
        renamed: Prefixes of released tensor names, and of the same tensors in transformers' model. Files may use
            either.
        not_loaded: Prefixes of tensors in the folder that no part reads. An export copies them.
        skip: Prefixes of tensors in the folder that belong to other parts.
        encoder_prefix: Prefix of the geometry encoder's tensors in a `SpatialVLM`.
        encoder_names: Names of these tensors in a folder and here, both without prefixes.
        second_names: Prefixes of official names that a file may have twice, with the first ones.
        unread: Starts of the names of a fusion's tensors that the published code never reads.
    """

    is_pretrained = True
    title: ClassVar[str]
    family: ClassVar[str]
    backbone_title: ClassVar[str]
    released: ClassVar[str]
    stock: ClassVar[Any]
    processor_class: ClassVar[Any]
    backbone_class: ClassVar[Any]
    architecture: ClassVar[str]
    renamed: ClassVar[Layout] = {}
    not_loaded: ClassVar[tuple[str, ...]] = ()
    skip: tuple[str, ...] = ()
    encoder_prefix: ClassVar[str] = GEOMETRY
    encoder_names: ClassVar[NameTable] = SAME_NAMES
    second_names: ClassVar[Layout] = {}
    unread: ClassVar[tuple[str, ...]] = ()

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

    @classmethod
    @abstractmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        """Return transformers' config of the backbone.

        Args:
            settings: A config.json.
            source: Where it was read from, for errors.
        """

    @classmethod
    @abstractmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        """Return the backbone's config.json, in the format in which the family was released."""

    @classmethod
    def backbone_names(cls) -> NameTable:
        """Return a table between released tensor names and the names of transformers' model."""
        return NameTable.by_prefix(cls.renamed)

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

    @property
    def tensor_names(self) -> Collection[str]:
        return () if builds_shapes_only() else self.tensors

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        # a mixture of experts is rejected when it is loaded
        return str(config.get("model_type")).removesuffix("_moe") == cls.family

    @classmethod
    def layout_of(cls, model: Any) -> Layout | None:
        """Return the names of a model's parts beside the backbone in an export, judged by its fusion.

        Args:
            model: A `SpatialVLM`.

        Returns:
            Empty without other parts, None if this release has no such fusion.
        """
        is_plain = model.fusion is None and isinstance(model.backbone, cls.backbone_class)
        return {} if is_plain else None

    @classmethod
    def reads_encoder(cls, model: Any) -> bool:
        """Return whether the release has this geometry encoder. Without a fusion its tensors are not exported."""
        return True

    @classmethod
    def departures(cls, model: Any) -> list[str]:
        """Return the parts and settings of a model's encoder and fusion that no such release has."""
        encoder = None if model.geometry is None else model.geometry.meta_encoder
        return [] if encoder is None else [type(encoder).__name__]  # used for cameras alone

    @classmethod
    def whole_config(cls, model: Any, stock: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config.json of a model.

        Args:
            model: A `SpatialVLM`.
            stock: The config.json of its backbone.
            source: The config.json of its weights' source folder, or empty.
        """
        return stock

    @classmethod
    def to_official(cls, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in its official shape, by its official name."""
        return tensor

    @classmethod
    def weights(cls, config: Any, tensors: Tensors, skip: tuple[str, ...] = ()) -> ReleasedWeights:
        """Return the weights for transformers' model. Those that no class loads are rejected.

        Args:
            config: Config of the model. If it ties the lm_head, the lm_head's tensor is not read, as in the official
                code. A warning is given if it differs from the embeddings.
            tensors: Tensors by official names.
            skip: Prefixes of names to ignore.
        """
        names = cls.backbone_names()

        def check() -> None:
            refuse_unsupported(tensors)
            if config.tie_word_embeddings and LM_HEAD in tensors:
                _check_tied(tensors, names)

        unread = (*skip, *cls.not_loaded, *((LM_HEAD,) if config.tie_word_embeddings else ()))
        return ReleasedWeights(tensors, cls.backbone_title, names, lambda name: name.startswith(unread), check)

    def load(self) -> Any:
        """See `BackboneLoader`.

        Raises:
            InputError: The folder or its processor is absent or of another family, the config is invalid, or tensors
                are missing, unexpected, misshapen or quantized.
        """
        self._refuse_others()
        with config_errors(self.folder):
            config = self.read_config(self.settings, str(self.folder / CONFIG))
            config._attn_implementation = self.model_attention
            model = empty_model(self.stock, config, self.dtype)
        model.config.name_or_path = str(self.folder)
        processor = None if self.lacks_folder else read_processor(self.folder, self.processor_class)
        backbone = self.backbone_class(model, processor, self.attn_implementation, self.stop_tokens)
        load_weights(model, self.weights(model.config, self.tensors, self.skip))
        return backbone

    def _refuse_others(self) -> None:
        """Raise InputError for weights of another kind, and name the class that loads them."""
        kind = self.settings.get("model_type")
        if kind in MOE:
            raise InputError(
                f"{self.path} is a {MOE[kind]}, which is not supported: take a dense one, such as {self.released}"
            )
        found = find_loader(self.settings, () if builds_shapes_only() else self.tensors)
        if found is None:
            raise unknown_model(self.path, self.settings)
        if not issubclass(type(self), found):
            raise InputError(f"{self.path} is a {found.title}: take --model.backbone {found.__name__} for it")
        if "quantization_config" in self.settings:
            raise InputError(
                f"{self.path} is quantized: take the {self.backbone_title} in bfloat16 of which it was made"
            )


class EmptyBackbone(BackboneLoader):
    """A model without weights and processor. The weights are filled in afterwards.

    Args:
        kind: Class of the released model, which names transformers' class and the backbone.
        config: Transformers' config of the model.
        dtype: Dtype of the weights.
        layout: See `BackboneLoader`.
    """

    is_pretrained = True

    def __init__(
        self, kind: type[PretrainedBackbone], config: Any, dtype: torch.dtype, layout: Layout | None = None
    ) -> None:
        super().__init__()
        self.kind, self.config, self.dtype, self.layout = kind, config, dtype, layout or {}

    def load(self) -> Any:
        return self.kind.backbone_class(empty_model(self.kind.stock, self.config, self.dtype), None)


# ---- Qwen-VL ---------------------------------------------------------------------------------------------------------


class PretrainedQwen25VL(PretrainedBackbone):
    """Released weights of Qwen2.5-VL.

    Args:
        path: A hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title = backbone_title = "Qwen2.5-VL"
    family, released = QWEN25, "Qwen/Qwen2.5-VL-3B-Instruct"
    stock, processor_class, backbone_class = Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen25VLBackbone
    architecture = stock.__name__
    renamed = {
        "visual.": "model.visual.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        return qwen25_config(settings)

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        """Return the decoder's settings at the top level, with the old names of RoPE's settings."""
        nested = config.to_dict()
        rope = nested["text_config"]["rope_parameters"]
        return {
            **_own(nested["text_config"] | nested),
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": list(rope["mrope_section"])},
            "vision_config": _own(nested["vision_config"]),
        }


class PretrainedQwen3VL(PretrainedBackbone):
    """Released weights of a dense Qwen3-VL.

    Args:
        path: A hub id (`Qwen/Qwen3-VL-4B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title = backbone_title = "Qwen3-VL"
    family, released = QWEN3, "Qwen/Qwen3-VL-4B-Instruct"
    stock, processor_class, backbone_class = Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLBackbone
    architecture = stock.__name__

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        return qwen3_config(settings, source)

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        """Return the config of a Qwen3-VL with the old names of RoPE's settings."""
        nested = config.to_dict()
        text, vision = nested["text_config"], nested["vision_config"]
        rope = dict(text["rope_parameters"])
        return {
            **_own(nested),
            "model_type": QWEN3,
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "text_config": {
                **_own(text),
                "model_type": text["model_type"],
                "rope_theta": rope.pop("rope_theta"),
                "rope_scaling": {**rope, "mrope_section": list(rope["mrope_section"])},
            },
            "vision_config": {**_own(vision), "model_type": QWEN3},
        }


class PretrainedQwen35(PretrainedBackbone):
    """Released weights of a dense Qwen3.5 or Qwen3.6.

    Args:
        path: A hub id (`Qwen/Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, for the layers with full attention.
        dtype: Dtype of the weights.
    """

    title = backbone_title = "Qwen3.5"
    family, released = QWEN35, "Qwen/Qwen3.5-4B"
    stock, processor_class, backbone_class = Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen35Backbone
    architecture = stock.__name__
    not_loaded = ("mtp.",)  # multi-token prediction, for which transformers has no module

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        return qwen3_5_config(settings, source)

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        """Return the config of a Qwen3.5, which was released with the names of transformers 5."""
        nested = config.to_dict()
        text, vision = nested["text_config"], nested["vision_config"]
        return {
            **_own(nested),
            "model_type": QWEN35,
            "text_config": {
                **_own(text),
                **{name: text[name] for name in ("model_type", "layer_types", "rope_parameters")},
            },
            "vision_config": {**_own(vision), "model_type": QWEN35},
        }


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
        found = {loader.title: loader.load().decoder_layout for loader in loaders}
    layouts = {}
    for title, layout in found.items():
        linear = layout.linear and replace(layout.linear, device="cpu")
        layouts[title] = replace(layout, device="cpu", linear=linear)
    return layouts
