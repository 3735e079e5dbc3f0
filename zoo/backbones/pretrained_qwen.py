"""Released folders of Qwen-VL as backbones: read shard by shard; missing tensors raise `InputError`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.fused_models import find_fused, is_spatial_stack, is_spatial_stack_qwen25, is_vg_llm
from zoo.backbones.official_names import GEOVR_TRAINING, QWEN3, QWEN25, QWEN35
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.qwen_weights import FAMILIES, empty_qwen, qwen_filler
from zoo.backbones.released_configs import ReleasedConfig, known_config, qwen3_5_config, qwen3_config
from zoo.errors import InputError
from zoo.weights.deferred import builds_shapes_only, defer, load_deferred
from zoo.weights.hub import CONFIG, find_folder, find_tensors, read_config
from zoo.weights.lazy_tensors import Tensors, files_of

MOE = {"qwen3_vl_moe": "Qwen3-VL-MoE", "qwen3_5_moe": "Qwen3.5-MoE"}
GENERATION_CONFIG = "generation_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class PretrainedQwenVL(BackboneLoader):
    """Released weights of a family.

    Attributes:
        family: The model_type of its config.json.
        released: An example of a hub id, for errors.
        skip: Prefixes of the folder's tensors that belong to other parts.
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
        """Whether the model is built by its shapes, without a folder of weights and processor."""
        return builds_shapes_only() and not Path(self.path).expanduser().is_dir()

    @cached_property
    def known(self) -> dict[str, Any] | None:
        """The config of a released model that is built by its shapes, unless its folder is there."""
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
        return config.get("model_type") == cls.family

    def load(self) -> QwenVLBackbone:
        """See `BackboneLoader`.

        Raises:
            InputError: The folder or its processor is absent or of another family, the config is invalid, or tensors
                are missing, unexpected, misshapen or quantized.
        """
        backbone = self.load_unread()
        return backbone if builds_shapes_only() else load_deferred(backbone)

    def load_unread(self) -> QwenVLBackbone:
        self._refuse_others()
        with config_errors(self.folder):
            config = self.vlm_config
            config._attn_implementation = self.model_attention
            model = empty_qwen(config, self.dtype)
        model.config.name_or_path = str(self.folder)
        defer(model, qwen_filler(model, self.tensors, self.skip))
        own = FAMILIES[self.family]
        if self.lacks_folder:
            return own.backbone(model, None, self.attn_implementation)
        processor = read_processor(self.folder, own.processor)
        return own.backbone(model, processor, self.attn_implementation, self.stop_tokens)

    def _refuse_others(self) -> None:
        """Raise InputError for weights of another kind, with the class that loads them."""
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
        dtype: The type in which the weights are kept.
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

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return super().reads(config) and not (is_vg_llm(config) or is_spatial_stack_qwen25(config))

    @property
    def vlm_config(self) -> Any:
        return self.config.qwen


class PretrainedQwen3VL(PretrainedQwenVL):
    """Released weights of a dense Qwen3-VL.

    Args:
        path: A hub id (`Qwen/Qwen3-VL-4B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    family, released = QWEN3, "Qwen/Qwen3-VL-4B-Instruct"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in (QWEN3, f"{QWEN3}_moe")  # `load` refuses the latter by its name

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        """See `BackboneLoader`; the names of the tensors tell a GeoVR, whose config is Qwen3-VL's."""
        loader = cls(path)
        names = () if loader.lacks_folder else loader.tensors
        is_geovr = any(name.startswith(GEOVR_TRAINING) for name in names)
        return {"backbone": PretrainedGeoVR(path) if is_geovr else loader}

    @property
    def vlm_config(self) -> Any:
        return qwen3_config(self.settings, str(self.folder / CONFIG))


class PretrainedGeoVR(PretrainedQwen3VL):
    """Released weights of GeoVR (arXiv 2606.05833): Qwen3-VL, trained with heads that no answer needs.

    The files may hold the heads, their tokens and the frozen teachers; they are not read.

    Args:
        path: A folder of the hub repository (`WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`, `-4B`; `GeoVR-Omega-...`) or a
            local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    released = "WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B"
    skip = GEOVR_TRAINING

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return False  # its config is Qwen3-VL's: the names of its tensors tell


class PretrainedQwen35(PretrainedQwenVL):
    """Released weights of a dense Qwen3.5 or Qwen3.6.

    Args:
        path: A hub id (`Qwen/Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, of the layers of full attention.
        dtype: The type in which the weights are kept.
    """

    family, released = QWEN35, "Qwen/Qwen3.5-4B"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in (QWEN35, f"{QWEN35}_moe") and not is_spatial_stack(config)

    @property
    def vlm_config(self) -> Any:
        return qwen3_5_config(self.settings, str(self.folder / CONFIG))


@contextmanager
def config_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of transformers and VGGT about an invalid config into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, StrictDataclassError) as error:
        raise InputError(f"{folder / CONFIG} makes no sense ({_first_line(error)}): download it again") from error


def read_processor(folder: Path, kind: Any) -> Any:
    """Return the tokenizer and the image and video processors of a folder.

    Args:
        folder: With their files.
        kind: Transformers' class of the processor.

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
