"""Released weights in a model: read when it is built, or left unread until a run starts; nothing is without memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.zoo.released import read_release
from zoo import InputError, LoRA, RayEmbedding, SpatialMLLM, SpatialVLM
from zoo.checkpoints import PretrainedSpatialMLLM
from zoo.weights import open_weights
from zoo.weights.load import read_weights

pytestmark = pytest.mark.usefixtures("tiny_dino")


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(state(a).items(), state(b).items(), strict=True)
    return all(name == other and torch.equal(mine, theirs) for (name, mine), (other, theirs) in pairs)


def task(release: Path, **options: Any) -> SpatialMLLM:
    torch.manual_seed(0)
    backbone = PretrainedSpatialMLLM(str(release))
    return SpatialMLLM(backbone=backbone, view_mixer=RayEmbedding, camera_source="predicted", **options)


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=2)}], ids=["plain", "lora"])
def test_a_run_reads_what_was_left_unread(options: dict[str, Any], release: Path) -> None:
    read, unread = task(release, **options), task(release, **options, defer_weights=True)
    # 1. Nothing that files restore has memory; all else does, buffers that no file restores too.
    meta = {name for name, tensor in state(unread).items() if tensor.is_meta}
    assert meta == {name for name in state(read) if name.startswith(("model.backbone.", "model.geometry."))
                    and not name.endswith("inv_freq") and ".lora_" not in name}  # fmt: skip
    assert unread.frozen_weights == read.frozen_weights and unread.frozen_weights["backbone"]["files"]
    # 2. Once the run starts, it is the same task.
    unread.configure_model()
    assert equal(read, unread)
    unread.configure_model()  # by another run of the same Trainer: nothing is left to read
    assert equal(read, unread)


def test_shapes_need_no_files(release: Path) -> None:
    for shard in release.glob("*.safetensors"):
        shard.unlink()
    with torch.device("meta"):
        shapes = task(release)
    assert all(tensor.is_meta for tensor in state(shapes).values()) and shapes.frozen_weights == {}
    with pytest.raises(InputError, match="lacks model-00001-of-00003.safetensors"):  # the control
        task(release)
    with pytest.raises(InputError, match="lacks model-00001-of-00003.safetensors"):
        task(release, defer_weights=True)


def test_weights_that_do_not_fit_are_refused_when_they_are_read(release: Path) -> None:
    model = SpatialVLM(PretrainedSpatialMLLM(str(release)), defer_weights=True)
    (release / "model-00002-of-00003.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors can't be read"):
        read_weights(model)


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=2)}], ids=["plain", "lora"])
@pytest.mark.parametrize("is_left", [False, True], ids=["at once", "later"])
def test_nothing_is_left_without_memory_and_tied_weights_share_it(
    is_left: bool, options: dict[str, Any], release: Path
) -> None:
    loaded = task(release, **options, defer_weights=is_left)
    loaded.configure_model()
    vlm = loaded.model.backbone.vlm
    assert vlm.config.tie_word_embeddings and vlm.lm_head.weight is vlm.get_input_embeddings().weight
    every = list(state(loaded).values())
    assert not any(tensor.is_meta for tensor in every)
    assert len({tensor.untyped_storage().data_ptr() for tensor in every}) == len(every)  # of unique tensors
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in every)  # and not of a mapped file


def test_what_trains_is_float32_and_what_is_frozen_keeps_the_files_dtype(release: Path) -> None:
    for is_left in (False, True):
        loaded = task(release, defer_weights=is_left)
        loaded.configure_model()
        frozen = [p for p in loaded.model.geometry.vggt.aggregator.parameters() if not p.requires_grad]
        trained = [p for p in loaded.model.backbone.decoder.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32} and {p.dtype for p in frozen} == {torch.bfloat16}


def test_tensors_of_a_large_file_are_those_of_the_whole_file(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened anew again and again, so that what was read of it is no memory of the process."""
    expected, opened = read_release(release), []
    monkeypatch.setattr("zoo.weights.load.MAPPED", 10_000)
    monkeypatch.setattr("zoo.weights.load.safe_open", lambda *a, **b: opened.append(a) or safe_open(*a, **b))
    tensors = open_weights(release)
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors) and tensors.keys() == expected.keys()
    assert len(opened) > 2 * len(tensors.files) == 6


class OwnGeometry(PretrainedSpatialMLLM):
    """Released weights with some that no file holds."""

    def load_geometry(self) -> Any:
        encoder: Any = super().load_geometry()
        encoder.vggt.own = nn.Linear(4, 4, bias=False, device="meta")
        return encoder


def test_weights_that_nothing_reads_are_refused(release: Path) -> None:
    unread = SpatialMLLM(backbone=OwnGeometry(str(release)), defer_weights=True)
    names = r"model\.geometry\.vggt\.own\.weight"
    with pytest.raises(InputError, match=f"1 weights were built without values, and are in no file: {names};"):
        unread.configure_model()
