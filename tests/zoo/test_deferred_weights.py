"""Deferred weights: no memory and no file before they are read, and the same model afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.released import SIZES, spatial_mllm
from zoo import GeometryCache, InputError, LoRA, RayEmbedding, SpatialMLLM, SpatialVLM, TinyQwen25VL, TinyVGGT
from zoo.checkpoints import PretrainedSpatialMLLM
from zoo.configuration import from_config, to_config
from zoo.tasks.fake_tensors import make_fake
from zoo.weights.deferred import load_deferred

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
def test_a_run_reads_deferred_weights(options: dict[str, Any], release: Path) -> None:
    read, deferred = task(release, **options), task(release, **options, defer_weights=True)
    # 1. Nothing that files restore has memory; all else does, buffers that no file restores too.
    meta = {name for name, tensor in state(deferred).items() if tensor.is_meta}
    assert meta == {name for name in state(read) if name.startswith(("model.backbone.", "model.geometry."))
                    and not name.endswith("inv_freq") and ".lora_" not in name}  # fmt: skip
    assert deferred.frozen_weights == read.frozen_weights and deferred.frozen_weights["backbone"]["files"]
    # 2. Once the run starts, it is the same task.
    deferred.configure_model()
    assert equal(read, deferred)
    deferred.configure_model()  # by another run of the same Trainer: nothing is left to read
    assert equal(read, deferred)


def test_when_weights_are_read_is_no_configuration(release: Path) -> None:
    """A checkpoint of a sharded run, and its export, are those of any other run."""
    deferred = task(release, defer_weights=True)
    assert "defer_weights" not in str(to_config(deferred)) + str(to_config(deferred.model))
    again = from_config(SpatialVLM, to_config(deferred.model))
    assert not any(tensor.is_meta for tensor in state(again).values())


def test_random_weights_are_not_deferred() -> None:
    read, deferred = (
        spatial_mllm(backbone=TinyQwen25VL(**SIZES, seed=1), geometry=partial(TinyVGGT, seed=1), defer_weights=each)
        for each in (False, True)
    )
    assert state(read).keys() == state(deferred).keys() and not any(t.is_meta for t in state(deferred).values())
    assert equal(read.backbone, deferred.backbone) and read.geometry is not None and deferred.geometry is not None
    assert equal(read.geometry, deferred.geometry)


def test_a_cached_geometry_defers_by_itself(release: Path, tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path / "cache"))
    model = spatial_mllm(backbone=PretrainedSpatialMLLM(str(release)), geometry_cache=cache, defer_weights=True)
    assert load_deferred(model).geometry is not None and len(model.geometry.files) == 3


def test_shapes_need_no_files(release: Path) -> None:
    for shard in release.glob("*.safetensors"):
        shard.unlink()
    with torch.device("meta"):
        shapes = task(release)
    assert all(tensor.is_meta for tensor in state(shapes).values()) and shapes.frozen_weights == {}
    make_fake(shapes)
    with pytest.raises(InputError, match="lacks model-00001-of-00003.safetensors"):  # the control
        task(release)
    with pytest.raises(InputError, match="lacks model-00001-of-00003.safetensors"):
        task(release, defer_weights=True)


def test_weights_that_do_not_fit_are_refused_when_they_are_read(release: Path) -> None:
    model = SpatialVLM(PretrainedSpatialMLLM(str(release)), defer_weights=True)
    (release / "model-00002-of-00003.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors can't be read as safetensors"):
        load_deferred(model)


class OwnGeometry(PretrainedSpatialMLLM):
    """Released weights with some of its own, inside of what is read from files and outside."""

    device: str | None = None

    def load_geometry(self) -> Any:
        encoder: Any = super().load_geometry()
        encoder.own = nn.Linear(4, 4, device=self.device)
        encoder.vggt.own = nn.Linear(4, 4, bias=False, device=self.device)
        return encoder


@pytest.mark.parametrize("device", [None, "cpu"])
def test_weights_that_nothing_reads_are_refused(
    device: str | None, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not trained from the memory as it was; values of their own are kept, the control."""
    monkeypatch.setattr(OwnGeometry, "device", device)
    deferred = SpatialMLLM(backbone=OwnGeometry(str(release)), defer_weights=True)
    if device is None:
        names = r"model\.geometry\.own\.weight, model\.geometry\.own\.bias, VGGT\.own\.weight"
        with pytest.raises(InputError, match=f"3 weights were built without values, and are in no file: {names};"):
            deferred.configure_model()
    else:
        deferred.configure_model()
        assert all(parameter.isfinite().all() for parameter in deferred.parameters())
