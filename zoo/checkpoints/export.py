"""A model as a released folder: weights by official names with LoRA merged, config, and processor files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo.checkpoints.config import released_config
from zoo.checkpoints.names import CONNECTOR, LM_HEAD, OFFICIAL_VGGT, QWEN, VGGT_MODEL, model_names, official_name
from zoo.errors import InputError
from zoo.fusions import AddFusion
from zoo.geometry import CachedGeometry
from zoo.hub import CONFIG, find_folder, read_config
from zoo.weights import INDEX, WEIGHTS, open_weights

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

OFFICIAL_FUSION = {"active_branches": "both", "temporal_merge": "concat"}
SHARD_BYTES = 5 * 10**9  # as transformers 4.51
EMBEDDINGS = "model.embed_tokens.weight"  # which a tied lm_head equals
TEXT_FILES = ("*.json", "*.txt", "*.jinja")


def export_model(
    model: SpatialVLM, out: Path, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a folder that the official code reads, and `PretrainedQwen25VL` or `PretrainedSpatialMLLM`.

    What the folder that the weights came from holds besides goes along: processor files, VGGT's heads and tracker.

    Args:
        model: a Qwen2.5-VL or a Spatial-MLLM; LoRA is merged in what is written, the model stays as it is. A geometry
            behind a cache is loaded.
        out: a new or empty folder.
        dtype: of the weights; None is that in which they came from their folder, else the model's.
        shard_bytes: the largest file.

    Raises:
        InputError: the folder holds something or can't be written, that of the weights is gone, or the model has
            learned what no official model has. What was written by then is removed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty: export into a new folder")
    if isinstance(model.geometry, CachedGeometry):
        model.geometry = model.geometry.encoder()
    tensors = OfficialTensors(model)
    source = _source(model)
    with whole_or_absent(out):
        written = write_shards(_with_the_rest(tensors, source, dtype), out, shard_bytes)
        config = released_config(model, None if source is None else read_config(source))
        if source is None or dtype is not None:
            config["torch_dtype"] = str(written).removeprefix("torch.")
        _write_json(out / CONFIG, config)
        if source is not None:
            for path in (path for pattern in TEXT_FILES for path in source.glob(pattern)):
                if path.name not in (CONFIG, INDEX):
                    shutil.copyfile(path, out / path.name)
            return
        ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(out / "generation_config.json", ids)
        if hasattr(model.backbone, "preprocessor"):
            model.backbone.preprocessor.save_pretrained(str(out))


def unofficial_parts(model: SpatialVLM) -> list[str]:
    """The parts and settings of a model that no official layout has a place for."""
    found = [type(part).__name__ for part in (model.camera_encoding, model.view_mixer) if part is not None]
    if model.fusion is None:
        return found
    if not isinstance(model.fusion, AddFusion):
        return [*found, type(model.fusion).__name__]
    chosen = {name: getattr(model.fusion, name) for name in OFFICIAL_FUSION}
    return found + [f"{name}: {value}" for name, value in chosen.items() if value != OFFICIAL_FUSION[name]]


@contextmanager
def whole_or_absent(folder: Path) -> Iterator[None]:
    """Makes the folder, and removes it with all that is in it if what writes there is broken off.

    Raises:
        InputError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise InputError(f"{folder} can't be written ({error})") from error
        raise


def _source(model: SpatialVLM) -> Path | None:
    """The folder that the weights came from."""
    config: Any = model.backbone.vlm.config
    name = config.name_or_path
    if not name:
        return None
    try:
        return find_folder(name, name)
    except InputError as error:
        raise InputError(f"{name}, where the weights came from, is gone: its processor files belong to them") from error


class OfficialTensors(Mapping[str, Tensor]):
    """A model's tensors by official names; what is joined or merged is made when it is asked for.

    Args:
        model: a Qwen2.5-VL or a Spatial-MLLM.

    Raises:
        InputError: the model has learned what no official model has.
    """

    def __init__(self, model: SpatialVLM) -> None:
        from peft.tuners.lora import LoraLayer  # slow to import

        layers = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
        self.adapted: dict[str, Any] = dict(layers)
        state = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
        config: Any = model.backbone.vlm.config
        if config.tie_word_embeddings:
            del state[QWEN + LM_HEAD]
        self.state = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}
        parts = (QWEN,) if model.geometry is None else (QWEN, VGGT_MODEL, CONNECTOR)
        beyond = [name for name in self.state if not name.startswith(parts)]
        lacks = [part for part in parts if not any(name.startswith(part) for name in self.state)]
        if beyond or lacks:
            why = f"{len(beyond)} tensors are in neither, such as {beyond[0]}" if beyond else f"there is no {lacks[0]}…"
            raise InputError(
                f"{type(model).__name__} can't be exported, only what is a Qwen2.5-VL or a Spatial-MLLM in all its "
                f"weights: {why}"
            )
        if model.geometry is not None and not isinstance(model.fusion, AddFusion):
            raise InputError(
                f"{type(model).__name__} with {type(model.fusion).__name__} can't be exported: the official model has "
                "the connector of AddFusion"
            )
        self.names = list(dict.fromkeys(official_name(name) for name in self.state))

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._merged(part) for part in model_names(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _merged(self, name: str) -> Tensor:
        """The tensor with the update that its adapters make, in float32 or better."""
        tensor, layer = self.state[name], self.adapted.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            return tensor
        exact = torch.promote_types(tensor.dtype, torch.float32)
        update: Any = sum(layer.get_delta_weight(adapter).to(exact) for adapter in layer.active_adapters)
        return (tensor.to(exact) + update).detach().to(tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _with_the_rest(
    tensors: OfficialTensors, source: Path | None, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors to write, in the order and the dtype of the folder they came from, with VGGT's heads from there."""
    old: Mapping[str, Tensor] = {} if source is None else open_weights(source)
    has_vggt = any(name.startswith(OFFICIAL_VGGT) for name in tensors)
    done = set()
    for name in old:
        ours = official_name(model_names(name)[0])
        if ours in tensors:
            done.add(ours)
            yield ours, tensors[ours].to(dtype or old[name].dtype)
        elif name == LM_HEAD:  # tied: the source holds it twice, so does the copy
            yield name, tensors[EMBEDDINGS].to(dtype or old[name].dtype, copy=True)
        elif has_vggt and name.startswith(OFFICIAL_VGGT):
            yield name, old[name].to(dtype or old[name].dtype)
    for name in tensors:
        if name not in done:
            yield name, tensors[name].to(dtype or tensors[name].dtype)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> torch.dtype:
    """Writes safetensors, and an index if there are several; returns the dtype of the last.

    Not before all are written is there an index, so what was broken off is never read as whole.
    """
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size, total, dtype = 0, 0, torch.float32

    def flush() -> None:
        save_file(shard, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor.detach().cpu().contiguous()
        size, total, dtype = size + tensor.nbytes, total + tensor.nbytes, tensor.dtype
    flush()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / WEIGHTS)
        return dtype
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return dtype


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
