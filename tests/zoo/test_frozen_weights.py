"""Frozen weights: what no file restores is saved, and what a file restores has to be what a model was trained with."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning import Trainer

from tests.cases import each_once
from tests.zoo.geometry.caching import save_vggt
from tests.zoo.released import load_case, official_weights, read_release, write_release
from zoo import (
    AddFusion,
    ConcatSplitFusion,
    InputError,
    LearningRates,
    PretrainedQwen25VL,
    SpatialVLM,
    TinyVGGT,
    VideoQATask,
    ViewAttention,
)
from zoo.backbones.lora import LoRA
from zoo.configuration import to_config

VGGT: dict[str, Any] = dict(embed_dim=16, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that `qwen` and `vggt` copy."""
    folder, config = tmp_path_factory.mktemp("written"), load_case("qwen_one_video")[0]["config"]
    write_release(folder / "qwen", config["qwen"] | {"model_type": "qwen2_5_vl"}, official_weights(config, False))
    (folder / "vggt").mkdir()
    save_vggt(TinyVGGT(**VGGT), folder / "vggt/model.safetensors")
    return folder


@pytest.fixture
def qwen(tmp_path: Path, written: Path) -> Path:
    return shutil.copytree(written / "qwen", tmp_path / "qwen")


@pytest.fixture
def vggt(tmp_path: Path, written: Path) -> Path:
    return shutil.copytree(written / "vggt", tmp_path / "vggt")


def task(qwen: Path, vggt: Path | None, seed: int = 0, **options: Any) -> VideoQATask:
    torch.manual_seed(seed)
    geometry = partial(TinyVGGT, path=None if vggt is None else str(vggt), **VGGT)
    parts = {"fusion": ConcatSplitFusion, "geometry": geometry} | options
    return VideoQATask(backbone=PretrainedQwen25VL(str(qwen), dtype="bfloat16"), **parts)


def checkpoint_of(model: VideoQATask) -> dict[str, Any]:
    checkpoint = {"state_dict": dict(model.state_dict()), "global_step": 1}
    checkpoint |= {"pytorch-lightning_version": lightning.__version__, "callbacks": {}}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def make_run(model: VideoQATask, folder: Path) -> Path:
    """A run's folder; returns the checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": to_config(model)}))
    torch.save(checkpoint_of(model), folder / "checkpoints/last.ckpt")
    return folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize("part", ["connector", "encoding"])
def test_frozen_random_parts_are_saved(part: str, qwen: Path, vggt: Path) -> None:
    """A frozen fusion or view mixer that no file restores; the released tower is in its file."""
    options = {
        "learning_rates": LearningRates(connector=None),
        "view_mixer": partial(ViewAttention, head_dim=16) if part == "encoding" else None,
    }
    model, other = task(qwen, vggt, **options), task(qwen, vggt, seed=1, **options)
    names = [name for name in model.state_dict() if name.startswith(("model.fusion.", "model.view_mixer."))]
    assert not any(dict(model.named_parameters())[name].requires_grad for name in names)
    checkpoint = checkpoint_of(model)
    assert set(names) <= checkpoint["state_dict"].keys()
    assert not [name for name in checkpoint["state_dict"] if ".visual.blocks." in name or ".geometry." in name]
    assert not all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in names)  # the control
    other.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in names)
    with pytest.raises(InputError, match="missing"):
        other.load_state_dict({k: v for k, v in checkpoint["state_dict"].items() if "fusion" not in k})


def load(way: str, checkpoint: Path, qwen: Path, vggt: Path) -> Any:
    if way == "from_pretrained":
        return SpatialVLM.from_pretrained(checkpoint.parents[1])
    if way == "load_from_checkpoint":
        return VideoQATask.load_from_checkpoint(checkpoint)
    model = task(qwen, vggt)  # as Lightning does for fit, test, validate and predict
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.validate(model, [], ckpt_path=str(checkpoint))
    return model


WAYS = ["from_pretrained", "load_from_checkpoint", "trainer"]


@pytest.mark.parametrize(("replaced", "way"), each_once(["geometry", "backbone"], WAYS))
def test_other_frozen_weights_are_refused_by_name(way: str, replaced: str, qwen: Path, vggt: Path) -> None:
    checkpoint = make_run(task(qwen, vggt), qwen.parent / "run")
    load(way, checkpoint, qwen, vggt)
    if replaced == "geometry":  # as another `fit --config geometry_tiny.yaml` does
        save_vggt(TinyVGGT(**VGGT, seed=1), vggt / "model.safetensors")
    else:
        tensors = {name: tensor + 1 for name, tensor in read_release(qwen).items()}
        write_release(qwen, load_case("qwen_one_video")[0]["config"]["qwen"] | {"model_type": "qwen2_5_vl"}, tensors)
    with pytest.raises(InputError, match=f"trained with the frozen {replaced} .*now holds another") as refused:
        load(way, checkpoint, qwen, vggt)
    both = torch.load(checkpoint)["frozen_weights"], task(qwen, vggt).frozen_weights
    was, now = (each[replaced]["files"] for each in both)
    assert was != now and all(each in str(refused.value) for each in (*was, *now))


def test_a_copy_elsewhere_is_the_same_and_a_trained_geometry_is_saved(qwen: Path, vggt: Path) -> None:
    folder = qwen.parent
    make_run(task(qwen, vggt), folder / "run")
    shutil.copytree(vggt, folder / "moved")
    moved = partial(TinyVGGT, path=str(folder / "moved"), **VGGT)
    SpatialVLM.from_pretrained(folder / "run", geometry=moved)
    trained = task(qwen, vggt, learning_rates=LearningRates(geometry=1e-3), fusion=AddFusion)
    assert set(trained.frozen_weights) == {"backbone", "geometry"}  # its unused camera head is frozen
    checkpoint = make_run(trained, folder / "trained")
    save_vggt(TinyVGGT(**VGGT, seed=1), folder / "moved/model.safetensors")
    with pytest.raises(InputError, match="frozen geometry"):
        SpatialVLM.from_pretrained(folder / "run", geometry=moved)
    assert "model.geometry.vggt.aggregator.camera_token" in torch.load(checkpoint)["state_dict"]


def test_files_that_are_replaced_during_training_are_not_taken_for_those_read(qwen: Path, vggt: Path) -> None:
    model = task(qwen, vggt)
    save_vggt(TinyVGGT(**VGGT, seed=1), vggt / "model.safetensors")
    checkpoint = make_run(model, qwen.parent / "run")
    with pytest.raises(InputError, match="frozen geometry"):
        load("trainer", checkpoint, qwen, vggt)


def test_an_exported_model_keeps_what_trained_in_float32_and_its_geometry(qwen: Path, vggt: Path) -> None:
    model = task(qwen, vggt, lora=LoRA(r=2)).model
    model.eval().save_pretrained(qwen.parent / "lean")
    model.save_pretrained(qwen.parent / "full", full=True)
    loaded = SpatialVLM.from_pretrained(qwen.parent / "lean").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    save_vggt(TinyVGGT(**VGGT, seed=1), vggt / "model.safetensors")
    with pytest.raises(InputError, match="frozen geometry"):
        SpatialVLM.from_pretrained(qwen.parent / "lean")
    again = SpatialVLM.from_pretrained(qwen.parent / "full").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
