"""What a run saves of its weights, with which frozen weights it loads, and from which weights it starts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from tests.zoo.geometry.official import save_vggt
from tests.zoo.made_models import SIZES, randomized
from tests.zoo.released import load_case, official_weights, read_release, write_release
from zoo import (
    GRPO,
    AddFusion,
    CameraPrediction,
    ConcatSplitFusion,
    ConcatSplitMLLM,
    DatasetGeometry,
    DepthPrediction,
    InputError,
    LearningRates,
    MaskedViews,
    PretrainedQwen25VL,
    Qwen25VL,
    SpatialMLLM,
    SpatialVLM,
    Teacher,
    TeacherPose,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyVGGT,
    VideoQATask,
    ViewAttention,
)
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


@pytest.mark.parametrize(
    ("replaced", "way"),
    [("geometry", "from_pretrained"), ("backbone", "load_from_checkpoint"), ("geometry", "trainer")],
)
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


def test_trained_weights_are_saved_though_they_are_frozen_by_then(qwen: Path, tmp_path: Path) -> None:
    def stock() -> PretrainedQwen25VL:
        return PretrainedQwen25VL(str(qwen), dtype="float32")

    task = VideoQATask(backbone=stock(), learning_rates=LearningRates(decoder=1e-3, connector=None, vision=None))
    task._trainer = SimpleNamespace(datamodule=None, ckpt_path=None)  # type: ignore[assignment]
    task.on_train_start()
    randomized(task.model).requires_grad_(False).save_pretrained(tmp_path / "saved")
    loaded, released = SpatialVLM.from_pretrained(tmp_path / "saved"), SpatialVLM(stock()).backbone
    assert torch.equal(loaded.backbone.decoder.norm.weight, task.model.backbone.decoder.norm.weight)
    # the control: what was not trained is read from the released files
    assert loaded.backbone.vlm.model.visual.state_dict().keys() and all(
        torch.equal(each, released.vlm.model.visual.state_dict()[name])
        for name, each in loaded.backbone.vlm.model.visual.state_dict().items()
    )


# ---- the weights that a training starts from -------------------------------------------------------------------


def built(kind: type[VideoQATask], seed: int, **options: Any) -> VideoQATask:
    torch.manual_seed(seed)
    return kind(backbone=TinyQwen25VL(**{**SIZES, "seed": seed}), **options)


def saved_by(task: VideoQATask) -> dict[str, Any]:
    checkpoint = {"state_dict": dict(task.state_dict()), "global_step": 1}
    task._trainer = None
    task.on_save_checkpoint(checkpoint)
    return checkpoint


def start(task: VideoQATask, former: VideoQATask | None, path: Path, resumed: dict[str, Any] | None = None) -> None:
    """Begin a fit, as Lightning does: what it starts from comes before the checkpoint that it resumes."""
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    strategy._lightning_module = task
    if former is not None:  # else the file is there
        torch.save(saved_by(former), path)
    task.initial_weights = str(path)
    trainer: Any = SimpleNamespace(
        strategy=strategy, state=SimpleNamespace(fn="fit"), ckpt_path=None, accumulate_grad_batches=1
    )
    task._trainer = trainer
    task.configure_model()
    if resumed is not None:
        trainer.ckpt_path = "last.ckpt"
        task.on_load_checkpoint(resumed)
        task.load_state_dict(resumed["state_dict"])
    task.on_fit_start()


@pytest.mark.parametrize("beta", [None, 0.1])
def test_a_resumed_run_reads_the_start_for_a_reference_alone(beta: float | None, tmp_path: Path) -> None:
    """By a Trainer, which learns late what it resumes; no step is taken."""
    first, last = tmp_path / "first.ckpt", tmp_path / "last.ckpt"
    torch.save(saved_by(former := built(Qwen25VL, 1)), first)
    options: dict[str, Any] = {"initial_weights": str(first)} | ({} if beta is None else {"algorithm": GRPO(beta=beta)})
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def fit(seed: int, ckpt_path: Path | None = None) -> tuple[Trainer, VideoQATask]:
        trainer, task = (
            Trainer(accelerator="cpu", max_steps=1, limit_train_batches=0, **quiet),
            built(Qwen25VL, seed, **options),
        )
        trainer.fit(task, DataLoader([0], None), ckpt_path=ckpt_path)
        return trainer, task

    trainer, task = fit(2)
    assert all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in task.state_dict().items())
    with torch.no_grad():
        task.model.backbone.lm_head.weight += 1.0
    trainer.save_checkpoint(last)
    _, resumed = fit(3, last)
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    first.unlink()
    if beta:
        with pytest.raises(InputError, match="first.ckpt"):
            fit(4, last)
    else:
        fit(4, last)
    with pytest.raises(InputError, match="first.ckpt"):  # the control: a new run
        fit(4)


def wider(**options: Any) -> VideoQATask:
    """A model with the vision encoder of `built`, but a wider decoder."""
    backbone = TinyQwen25VL(**SIZES | {"hidden_size": 2 * SIZES["hidden_size"], "seed": 2})
    return Qwen25VL(backbone=backbone, initial_weights="a.ckpt", **options)


def test_a_part_alone_is_read_from_a_model_of_another_width(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(Qwen25VL, 1), wider(initial_parts=["vision"])
    own = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    given = former.state_dict()
    parts = {name: task.part_of(name) for name in own}
    assert {"decoder", "connector", "vision"} == set(parts.values())
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, given[name] if parts[name] == "vision" else own[name])
        assert parts[name] != "vision" or not torch.equal(tensor, own[name]) or "norm" in name or "bias" in name
    assert "a.ckpt gives only its vision" in caplog.text
    with pytest.raises(InputError, match="a.ckpt: the checkpoint is of another model"):  # the control
        start(wider(), None, tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (
            ["vision", "geometry"],
            r"--model.initial_parts \['geometry'\]: .*a.ckpt has no weights of these parts, but of",
        ),
        (["connector"], "a.ckpt: the checkpoint is of another model: .*merger.mlp.2.weight"),
    ],
)
def test_parts_that_cannot_be_read_are_named(parts: list[Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=error):
        start(wider(initial_parts=parts), built(Qwen25VL, 1), tmp_path / "a.ckpt")


def test_parts_need_a_checkpoint() -> None:
    with pytest.raises(InputError, match=r"--model.initial_parts \['vision'\]"):
        built(Qwen25VL, 1, initial_parts=["vision"])
    assert "model.initial_parts" in VideoQATask.option_effects.harmless("answers")


def test_parts_that_the_start_lacks_keep_their_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(Qwen25VL, 1), built(SpatialMLLM, 2)
    own = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    given, now = former.state_dict(), task.state_dict()
    assert given.keys() < now.keys() and all(name.startswith("model.fusion.") for name in now.keys() - given.keys())
    for name, tensor in now.items():
        assert torch.equal(tensor, given.get(name, own[name]))
    assert any(not torch.equal(own[name], tensor) for name, tensor in given.items())  # the control
    assert "a.ckpt lacks fusion, which start from their own weights" in caplog.text


def test_of_the_same_model_all_weights_are_taken(tmp_path: Path) -> None:
    former, task = built(SpatialMLLM, 1), built(SpatialMLLM, 2)
    start(task, former, tmp_path / "a.ckpt")
    assert all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in task.state_dict().items())
    for kind in (Qwen25VL, ConcatSplitMLLM):  # without the fusion, or with another one
        with pytest.raises(InputError, match=r"a.ckpt: .* of another model"):
            start(built(kind, 2), built(SpatialMLLM, 1), tmp_path / "a.ckpt")


def test_heads_and_tokens_of_a_training_alone_are_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former = built(Qwen25VL, 1, objectives=[MaskedViews(), DepthPrediction()])
    task = built(Qwen25VL, 2, objectives=[CameraPrediction(token=False)], algorithm=GRPO())
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    assert "MaskedViews" in caplog.text and "DepthPrediction" in caplog.text and "CameraPrediction" in caplog.text
    given, now = former.state_dict(), task.state_dict()
    assert all(torch.equal(now[name], given[name]) for name in now if not name.startswith("model.objectives."))


@pytest.mark.parametrize("use", ["training", "always"])
def test_a_token_in_the_prompts_of_a_test_is_not_left_behind(use: Any, tmp_path: Path) -> None:
    """GRPO follows GeoVR's training, whose tokens no test has; without one that tests have, prompts would be others."""
    former, task = (
        VideoQATask(backbone=TinyQwen3VL(**SIZES), teacher=Teacher(DatasetGeometry), **options)
        for options in ({"objectives": [TeacherPose(use)]}, {"objectives": [TeacherPose("none")], "algorithm": GRPO()})
    )
    if use == "always":
        with pytest.raises(InputError, match="TeacherPose.token"):
            start(task, former, tmp_path / "a.ckpt")
        return
    start(task, former, tmp_path / "a.ckpt")
    head = {name: tensor for name, tensor in task.state_dict().items() if "TeacherPose.head" in name}
    assert head and all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in head.items())


def test_weights_that_a_training_starts_from_are_saved_where_they_are_frozen(tmp_path: Path) -> None:
    """Though released files have weights of these names, they are others."""
    config = load_case("qwen_one_video")[0]["config"]
    write_release(tmp_path / "qwen", config["qwen"] | {"model_type": "qwen2_5_vl"}, official_weights(config, False))

    def of_release(**options: Any) -> VideoQATask:
        return Qwen25VL(backbone=PretrainedQwen25VL(str(tmp_path / "qwen")), **options)

    former, frozen = of_release(), {"learning_rates": LearningRates(decoder=None)}
    with torch.no_grad():
        for parameter in former.parameters():
            if parameter.requires_grad:
                parameter += 1.0
    decoder = [name for name in saved_by(former)["state_dict"] if former.part_of(name) == "decoder"]
    task = of_release(**frozen)
    assert decoder and not set(decoder) & set(saved_by(task)["state_dict"])  # the control: files have them
    start(task, former, tmp_path / "a.ckpt")
    first = saved_by(task)
    # a test, and a resumed training that saves again
    tested, resumed = of_release(**frozen), of_release(**frozen)
    given = former.state_dict()
    tested.load_state_dict(first["state_dict"])
    resumed.load_state_dict(first["state_dict"])
    for found in (tested.state_dict(), saved_by(resumed)["state_dict"]):
        assert all(torch.equal(found[name], given[name].to(found[name].dtype)) for name in decoder)


def test_a_reference_is_that_of_the_start_or_an_error(tmp_path: Path) -> None:
    former, other = built(Qwen25VL, 1), built(Qwen25VL, 3)
    task = built(Qwen25VL, 2, algorithm=GRPO(beta=0.1))
    start(task, former, tmp_path / "a.ckpt")
    saved = saved_by(task)
    shutil.copyfile(tmp_path / "a.ckpt", tmp_path / "moved.ckpt")
    start(built(Qwen25VL, 2, algorithm=GRPO(beta=0.1)), None, tmp_path / "moved.ckpt", saved)
    with pytest.raises(InputError, match=r"reference .*a\.ckpt"):  # the supervised run went on
        start(built(Qwen25VL, 2, algorithm=GRPO(beta=0.1)), other, tmp_path / "a.ckpt", saved)
    # without a reference nothing is read of it, and so in a test
    start(built(Qwen25VL, 2, algorithm=GRPO()), other, tmp_path / "a.ckpt", saved)
    built(Qwen25VL, 2, algorithm=GRPO(beta=0.1), initial_weights="absent.ckpt").on_load_checkpoint(saved)
