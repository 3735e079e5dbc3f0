"""Released folders as backbones: read shard by shard; missing tensors raise `InputError`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import Qwen2_5_VLProcessor as Processor

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.qwen25_vl import Qwen25VLBackbone
from zoo.checkpoints.config import ReleasedConfig
from zoo.checkpoints.names import OFFICIAL_CONNECTOR, OFFICIAL_VGGT
from zoo.checkpoints.parts import empty_qwen, fill_parts
from zoo.errors import InputError
from zoo.fusions import AddFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.model import layer_index
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.hub import CONFIG, find_folder, read_config
from zoo.weights import PrefixView, files_of, load_into, open_weights

GENERATION_CONFIG = "generation_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class PretrainedQwen(BackboneLoader):
    """The Qwen2.5-VL in a released folder.

    Args:
        path: a hub id or a local folder with config, safetensors and processor.
        attn_implementation, dtype: see `BackboneLoader`.

    Attributes:
        released: a hub id that would do, for errors.
        beside: prefixes of the folder's tensors that are of other parts.
    """

    is_pretrained = True
    released: str
    beside: tuple[str, ...] = ()

    def __init__(self, path: str, attn_implementation: AttentionImplementation, dtype: DType):
        super().__init__(attn_implementation, dtype)
        self.path = path

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.path, self.released)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return read_config(self.folder)

    @cached_property
    def config(self) -> ReleasedConfig:
        with described_by(self.folder):
            return ReleasedConfig(self.settings)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        return open_weights(self.folder)

    @property
    def released_path(self) -> str:
        return self.path

    @property
    def files(self) -> tuple[Path, ...]:
        return files_of(self.tensors)

    @property
    def stop_tokens(self) -> list[int]:
        """Stop tokens of generation_config.json, which the folder may leave out."""
        try:
            stops = json.loads((self.folder / GENERATION_CONFIG).read_text()).get("eos_token_id", [])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{self.folder / GENERATION_CONFIG} can't be read ({error}): download it again") from error
        return [stops] if isinstance(stops, int) else list(stops or ())

    def load(self) -> Qwen25VLBackbone:
        """See `BackboneLoader`.

        Raises:
            InputError: no such folder; a config that makes no sense; tensors that are missing, unexpected or misshapen;
                no processor.
        """
        config = self.config.qwen
        config._attn_implementation = self.model_attention
        with described_by(self.folder):
            model = empty_qwen(config, self.dtype)
        model.config.name_or_path = str(self.folder)
        if model.device.type != "meta":
            fill_parts(self.tensors, qwen=model, skip=self.beside)
        return Qwen25VLBackbone(model, read_processor(self.folder), self.attn_implementation, self.stop_tokens)


class PretrainedQwen25VL(PretrainedQwen):
    """Released weights.

    Args:
        path: a hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or a local folder with config, safetensors and processor.
        attn_implementation, dtype: see `BackboneLoader`.
    """

    released = "Qwen/Qwen2.5-VL-3B-Instruct"

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "qwen2_5_vl"

    def load(self) -> Qwen25VLBackbone:
        fuses = any(name.startswith((OFFICIAL_VGGT, OFFICIAL_CONNECTOR)) for name in self.tensors)
        if fuses or "spatial" in str(self.settings.get("model_type")):
            raise InputError(f"{self.path} is a Spatial-MLLM: take --model.backbone PretrainedSpatialMLLM for it")
        return super().load()


class PretrainedSpatialMLLM(PretrainedQwen):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, and with it VGGT and the connector for a model that fuses them.

    Args:
        path: a hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: the attention backend of transformers.
        dtype: the type in which the weights are kept.
    """

    released = "Diankun/Spatial-MLLM-v1.1-Instruct-135K"
    beside = (OFFICIAL_VGGT, OFFICIAL_CONNECTOR)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return "spatial" in str(config.get("model_type"))

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        return {"backbone": cls(path), "fusion": AddFusion}

    def load_geometry(self) -> GeometryEncoder:
        """The VGGT that the connector was trained on, with the layer that it reads."""
        weights = PrefixView(self.tensors, OFFICIAL_VGGT)
        with described_by(self.folder):
            vggt = VGGT.from_official({"aggregator": self.config.aggregator}, weights, dtype=self.dtype)
            layer_index(self.config.layer, vggt.aggregator.depth)  # the encoder's own error blames an option
        return VGGTEncoder(vggt, self.config.layer, weights)

    def load_fusion(self, fusion: nn.Module) -> bool:
        """The connector's weights into an `AddFusion`; another fusion keeps its own."""
        if not isinstance(fusion, AddFusion):
            return False
        load_into(fusion.connector.state_dict(), PrefixView(self.tensors, OFFICIAL_CONNECTOR), what="connector")
        return True


@contextmanager
def described_by(folder: Path) -> Iterator[None]:
    """What a config that makes no sense raises, in transformers or in VGGT, as an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, StrictDataclassError) as error:
        raise InputError(f"{folder / CONFIG} makes no sense ({_first_line(error)}): download it again") from error


def read_processor(folder: Path) -> Processor:
    """The tokenizer and what else makes a model's input.

    Raises:
        InputError: some of its files aren't there or can't be read. transformers makes up a tokenizer without words.
    """
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt: download it again")
    try:
        return Processor.from_pretrained(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} has no whole processor ({_first_line(error)}): download it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".:")
