"""Saving and loading a model in Python; weights of another model are an error."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from lightning import Trainer
from safetensors.torch import load_file

import main
from datamodules import PixelBounds, Rooms, VideoQADataModule
from datamodules.inference import data_of
from tests.commands.test_probe import check_probed
from tests.zoo.made_models import PARTS, QUESTIONS, SIZES, model_of, randomized
from tests.zoo.released import load_case, official_weights, read_release, write_release
from zoo import (
    AddFusion,
    CameraTokenFusion,
    ConcatSplitFusion,
    DatasetGeometry,
    GeometryCache,
    InputError,
    PretrainedQwen25VL,
    PRoPE,
    PRoPEMLLM,
    SpatialVLM,
    Task,
    TinyQwen25VL,
    VideoQATask,
    ViewAttention,
)
from zoo.configuration import from_config, to_config
from zoo.tasks.base import LearningRates


def equal(a: SpatialVLM, b: SpatialVLM) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released Qwen2.5-VL, tiny."""
    folder = tmp_path_factory.mktemp("qwen")
    config = load_case("qwen_one_video")[0]["config"]
    write_release(folder, config["qwen"] | {"model_type": "qwen2_5_vl"}, official_weights(config, False))
    return folder


@pytest.mark.parametrize("name", PARTS)
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path / "saved")
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert equal(model, loaded)
    assert not equal(model, SpatialVLM(TinyQwen25VL(**SIZES), **PARTS[name]))  # the test can fail
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(model.logits(ids, torch.ones_like(ids)), loaded.logits(ids, torch.ones_like(ids)))
    loaded.save_pretrained(tmp_path / "again")  # a loaded model is saved whole
    saved, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("saved", "again"))
    assert saved.keys() == again.keys() and all(torch.equal(again[name], saved[name]) for name in saved)


def test_a_saved_model_names_its_parts(tmp_path: Path) -> None:
    model_of("PRoPE").save_pretrained(tmp_path / "prope")
    config = json.loads((tmp_path / "prope/config.json").read_text())
    assert config["model"]["init_args"]["camera_encoding"] == {"class_path": "zoo.PRoPE", "init_args": {}}
    card = (tmp_path / "prope/README.md").read_text()
    assert "library_name: spatial-vlm-zoo" in card
    assert "zoo.ViewAttention" in card
    with pytest.raises(InputError, match="not empty"):
        model_of("PRoPE").save_pretrained(tmp_path / "prope")
    kept = (tmp_path / "prope/model.safetensors").read_bytes()
    del config["model"]["init_args"]["view_mixer"]
    (tmp_path / "prope/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"unexpected \['view_mixer"):
        SpatialVLM.from_pretrained(tmp_path / "prope")
    assert (tmp_path / "prope/model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("fault", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_save_that_is_broken_off_leaves_nothing(fault: BaseException, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise fault

    monkeypatch.setattr("zoo.files.atomic_io.replace_file", full)
    is_error = isinstance(fault, OSError)
    with pytest.raises(InputError if is_error else KeyboardInterrupt, match="saved can't be" if is_error else None):
        model_of("plain").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "part, name",
    [
        (lambda: SpatialVLM(TinyQwen25VL(**SIZES), camera_source="predict"), "camera_source"),  # type: ignore
        (lambda: SpatialVLM(TinyQwen25VL(**SIZES), merged_camera="second"), "merged_camera"),  # type: ignore
        (lambda: AddFusion(8, 8, active_branches="2D"), "active_branches"),  # type: ignore
        (lambda: AddFusion(8, 8, temporal_merge="last"), "temporal_merge"),  # type: ignore
        (lambda: ConcatSplitFusion(8, 8, axis="tokens"), "axis"),  # type: ignore
        (lambda: CameraTokenFusion(8, 8, mode="added"), "mode"),  # type: ignore
        (lambda: DatasetGeometry(unit="metres"), "unit"),  # type: ignore
        (lambda: GeometryCache(dtype="float16"), "dtype"),  # type: ignore
    ],
)
def test_a_misspelled_choice_is_refused(part: Callable[[], object], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python; the command line checks types itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=f"{name} is one of"):
        part()


def test_a_part_from_a_function_has_no_configuration(tmp_path: Path) -> None:
    model = SpatialVLM(TinyQwen25VL(**SIZES), view_mixer=lambda width: ViewAttention(width, 16))

    class Here(PRoPE):
        pass

    with pytest.raises(InputError, match="is a class in a function, which nothing can load"):
        to_config(Here())
    with pytest.raises(InputError, match=r"functools.partial\(Class"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_checkpoint_without_configuration_warns_once() -> None:
    mixer = partial(ViewAttention, head_dim=16)
    for view_mixer, warned in ((mixer, 0), (lambda width: mixer(width), 1)):
        task = VideoQATask(backbone=TinyQwen25VL(**SIZES), view_mixer=view_mixer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                task.on_save_checkpoint(checkpoint := {"state_dict": {}})
        assert ["same parts" in str(each.message) for each in caught] == [True] * warned
        assert (checkpoint["task"] is None) == bool(warned)


def test_overrides_replace_stored_arguments(tmp_path: Path) -> None:
    model_of("PRoPE").save_pretrained(tmp_path / "saved")
    assert SpatialVLM.from_pretrained(tmp_path / "saved").merged_camera == "first"
    assert SpatialVLM.from_pretrained(tmp_path / "saved", merged_camera="mean").merged_camera == "mean"


@pytest.mark.parametrize("full", [False, True])
def test_frozen_released_weights_are_named_or_copied(qwen: Path, tmp_path: Path, full: bool) -> None:
    base = tmp_path / "base"
    shutil.copytree(qwen, base)
    model = SpatialVLM(PretrainedQwen25VL(str(base), dtype="float32"), view_mixer=partial(ViewAttention, head_dim=16))
    model.requires_grad_(False)
    assert model.view_mixer is not None
    randomized_mixer = {name: torch.randn_like(p) for name, p in model.view_mixer.named_parameters()}
    model.view_mixer.load_state_dict(randomized_mixer, strict=False)
    model.view_mixer.requires_grad_(True)
    norm = model.backbone.decoder.norm.requires_grad_(True)
    torch.nn.init.normal_(norm.weight)
    model.eval().save_pretrained(tmp_path / "saved", full=full)
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert saved
    names = {name for name in saved if not name.startswith("view_mixer.")}
    assert names == {"backbone.vlm.model.language_model.norm.weight"}
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert equal(model, loaded)
    loaded.save_pretrained(tmp_path / "again")  # what is trained stays in the file, although it is frozen now
    assert equal(model, SpatialVLM.from_pretrained(tmp_path / "again"))

    if full:  # the folder stands alone, wherever it goes
        shutil.rmtree(base)
        (tmp_path / "saved").rename(tmp_path / "moved")
        assert equal(model, SpatialVLM.from_pretrained(tmp_path / "moved"))
        return
    other = read_release(base)
    name = "model.embed_tokens.weight"
    write_release(base, json.loads((base / "config.json").read_text()), other | {name: other[name] + 1})
    with pytest.raises(InputError, match=r"trained with the frozen backbone .*base .*now holds another"):
        SpatialVLM.from_pretrained(tmp_path / "saved")


@pytest.mark.usefixtures("tiny_dino")
def test_a_released_folder_is_a_model(qwen: Path, release: Path) -> None:
    stock = SpatialVLM(PretrainedQwen25VL(str(qwen)))
    loaded = SpatialVLM.from_pretrained(qwen)
    assert loaded.is_pretrained
    assert equal(stock, loaded)
    spatial = SpatialVLM.from_pretrained(release)
    assert spatial.fusion is not None
    assert spatial.is_pretrained


def test_an_unknown_folder_names_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(InputError, match=r"model_type 'llava'.*PretrainedQwen25VL"):
        SpatialVLM.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="hf download"):
        SpatialVLM.from_pretrained("weights/nothing")


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def upload(api: HfApi, repo_id: str, folder_path: Path) -> str:
        calls.append(sorted(file.name for file in folder_path.iterdir()))
        card = (folder_path / "README.md").read_text()
        assert f'from_pretrained("{repo_id}")' in card and f"# {repo_id}" in card
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: calls.append((repo_id, options)))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert model_of("plain").push_to_hub("someone/prope", private=True) == "https://huggingface.co/someone/prope"
    (repo, options), files = calls
    assert (repo, options) == ("someone/prope", {"private": True, "exist_ok": True})
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_a_run_is_a_model(
    rooms_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_RUN", raising=False)
    sizes = [word for name, size in SIZES.items() for word in (f"--model.backbone.{name}", str(size))]
    data = ["--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.batch_size", "2"]
    few = ["--data.num_frames", "4", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    words = ["--config", "prope.yaml", *sizes, *data, *few, "--data.question_types", "null"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words])
    main.main()
    (run,) = Path("runs").iterdir()
    checkpoint = run / "checkpoints/last.ckpt"

    task = Task.load_from_checkpoint(checkpoint)  # no arguments: the checkpoint knows its task
    assert type(task) is PRoPEMLLM and task.can_answer and not PRoPEMLLM(None).can_answer
    model = SpatialVLM.from_pretrained(run)
    assert equal(model, task.model)
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(model.state_dict()[name.removeprefix("model.")], tensor) for name, tensor in kept.items())

    model.save_pretrained(tmp_path / "saved")
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert equal(model, loaded)
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    assert loaded.answer(video, QUESTIONS) == model.answer(video, QUESTIONS)
    assert loaded.data_config["init_args"]["num_frames"] == 4
    assert loaded.precision == model.precision == "32-true"  # the recipe's
    check_probed(run, model, monkeypatch, capsys)

    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["init_args"]["view_mixer"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="is of another model"):
        SpatialVLM.from_pretrained(run)
    checkpoint.unlink()
    with pytest.raises(InputError, match="train it first"):
        SpatialVLM.from_pretrained(run)


def test_a_model_trained_in_python_reads_videos_as_its_training_did(rooms_root: Path) -> None:
    rooms = Rooms(scenes=(6, 2, 3), root=str(rooms_root))
    bounds = PixelBounds(784, 3136, legacy_folder_resize=False)
    data = VideoQADataModule(rooms, num_frames=6, batch_size=2, num_workers=0, pixels=bounds)
    task = VideoQATask(backbone=TinyQwen25VL(**SIZES), learning_rates=LearningRates(decoder=1e-3))
    assert data_of(task.model).num_frames == 16  # before it is trained
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet).fit(task, data)
    read = data_of(task.model)
    assert (read.num_frames, read.pixels) == (6, bounds)


class OwnSource(Rooms):
    """A source with an argument that no configuration holds."""

    def __init__(self, poses: Any, root: str) -> None:
        super().__init__(scenes=(6, 2, 3), root=root)


def test_a_checkpoint_reads_videos_as_its_training_did(rooms_root: Path, tmp_path: Path) -> None:
    data = VideoQADataModule(
        OwnSource(torch.eye(4).numpy(), str(rooms_root)), num_frames=6, batch_size=2, num_workers=0
    )
    task = VideoQATask(backbone=TinyQwen25VL(**SIZES), learning_rates=LearningRates(decoder=1e-3))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = Task.load_from_checkpoint(tmp_path / "some.ckpt")
    assert isinstance(again, VideoQATask) and data_of(again.model).num_frames == 6
    assert "source" not in again.model.data_config["init_args"]


def test_trained_weights_are_saved_though_they_are_frozen_by_then(qwen: Path, tmp_path: Path) -> None:
    def stock() -> PretrainedQwen25VL:
        return PretrainedQwen25VL(str(qwen), dtype="float32")

    task = VideoQATask(backbone=stock(), learning_rates=LearningRates(decoder=1e-3, connector=None, vision=None))
    task._trainer = SimpleNamespace(datamodule=None)  # type: ignore[assignment]
    task.on_train_start()
    randomized(task.model).requires_grad_(False).save_pretrained(tmp_path / "saved")
    loaded, released = SpatialVLM.from_pretrained(tmp_path / "saved"), SpatialVLM(stock()).backbone
    assert torch.equal(loaded.backbone.decoder.norm.weight, task.model.backbone.decoder.norm.weight)
    # the control: what was not trained is read from the released files
    assert loaded.backbone.vlm.model.visual.state_dict().keys() and all(
        torch.equal(each, released.vlm.model.visual.state_dict()[name])
        for name, each in loaded.backbone.vlm.model.visual.state_dict().items()
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_configuration_builds_the_same_model(name: str) -> None:
    model = model_of(name)
    config = to_config(model)
    again = from_config(SpatialVLM, json.loads(json.dumps(config)))
    whole = to_config(again)  # with every default
    assert to_config(from_config(SpatialVLM, whole)) == whole
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_wrong_configuration_is_an_error() -> None:
    with pytest.raises(InputError, match="SpatialVLM"):
        from_config(SpatialVLM, {"class_path": "zoo.SpatialVLM", "init_args": {"glasses": True}})
