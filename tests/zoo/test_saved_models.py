"""Saving and loading a model in Python: the same model, by its configuration, under any seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from lightning import Trainer
from safetensors.torch import load_file

from datamodules import OffsetNeighbor, PixelBounds, PoseFarthestSampler, RandomSampler, Rooms, VideoQADataModule
from datamodules.inference import data_of
from datamodules.samplers import SceneView
from datamodules.video import Video
from tests.cli import Run, the_run, weights
from tests.commands.test_probe import check_probed
from tests.zoo.made_models import PARTS, QUESTIONS, SIZES, model_of
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
    TinyVGGT,
    VideoQATask,
    ViewAttention,
)
from zoo.configuration import from_config, to_config
from zoo.files.fingerprint import fingerprint
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
    whole = to_config(loaded)  # with every default
    assert to_config(from_config(SpatialVLM, whole)) == whole
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

    with pytest.raises(InputError, match="is a class in a function"):
        to_config(Here())
    with pytest.raises(InputError, match=r"functools.partial\(Class"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


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
    with pytest.raises(InputError, match="trained with the frozen backbone .*base"):
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
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"last.ckpt is a file: .* export --ckpt_path"):
        SpatialVLM.from_pretrained(tmp_path / "last.ckpt")


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


@pytest.mark.slow
def test_a_run_is_a_model(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    """By its folder and by its checkpoint, which know its parts, data and precision."""
    run("fit", "--config", "prope.yaml", "--trainer.limit_val_batches", "0")
    folder = the_run(tmp_path)
    task = Task.load_from_checkpoint(folder / "checkpoints/last.ckpt")
    assert type(task) is PRoPEMLLM and task.can_answer and not PRoPEMLLM(None).can_answer
    model = SpatialVLM.from_pretrained(folder)
    assert equal(model, task.model)
    kept = weights(folder)
    assert all(torch.equal(model.state_dict()[name.removeprefix("model.")], tensor) for name, tensor in kept.items())
    model.save_pretrained(tmp_path / "saved")
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert equal(model, loaded)
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    assert loaded.answer(video, QUESTIONS) == model.answer(video, QUESTIONS)
    assert loaded.data_config["init_args"]["num_frames"] == 4
    assert loaded.precision == model.precision == "32-true"  # the recipe's
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["model"]["init_args"]["view_mixer"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="is of another model"):
        SpatialVLM.from_pretrained(folder)
    (folder / "checkpoints/last.ckpt").unlink()
    with pytest.raises(InputError, match="train it first"):
        SpatialVLM.from_pretrained(folder)


@pytest.mark.slow
def test_a_run_is_probed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("fit", "--config", "prope.yaml", "--trainer.limit_val_batches", "0")
    folder = the_run(tmp_path)
    check_probed(folder, SpatialVLM.from_pretrained(folder), monkeypatch, capsys)


class OwnSource(Rooms):
    """A source with an argument that no configuration holds."""

    def __init__(self, poses: Any, root: str) -> None:
        super().__init__(scenes=(6, 2, 3), root=root)


def test_a_model_trained_in_python_reads_videos_as_its_training_did(rooms_root: Path, tmp_path: Path) -> None:
    """Also from a checkpoint, and where the source has an argument that no configuration holds."""
    bounds = PixelBounds(784, 3136, legacy_folder_resize=False)
    source = OwnSource(torch.eye(4).numpy(), str(rooms_root))
    data = VideoQADataModule(source, num_frames=6, batch_size=2, num_workers=0, pixels=bounds)
    task = VideoQATask(backbone=TinyQwen25VL(**SIZES), learning_rates=LearningRates(decoder=1e-3))
    assert data_of(task.model).num_frames == 16  # before it is trained
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = Task.load_from_checkpoint(tmp_path / "some.ckpt")
    for read in (data_of(task.model), data_of(again.model)):
        assert (read.num_frames, read.pixels) == (6, bounds)
    assert "source" not in again.model.data_config["init_args"]


def test_a_wrong_configuration_is_an_error() -> None:
    with pytest.raises(InputError, match="SpatialVLM"):
        from_config(SpatialVLM, {"class_path": "zoo.SpatialVLM", "init_args": {"glasses": True}})


# ---- one seed --------------------------------------------------------------------------------------------------

VGGT = partial(TinyVGGT, embed_dim=16, num_heads=2)


@pytest.fixture
def run_seed(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda seed: monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))


def view() -> SceneView:
    video = Video.__new__(Video)
    video.num_frames, video.path = 100, Path("clip.mp4")
    poses = torch.eye(4).repeat(100, 1, 1)
    poses[:, 0, 3] = torch.arange(100.0)
    return SceneView(video, world_to_camera=poses)


def seeded(**own: Any) -> tuple[str, str]:
    return fingerprint(TinyQwen25VL(**SIZES, **own).load()), fingerprint(VGGT(**own))


def test_random_weights_follow_the_run(run_seed: Any) -> None:
    outside = seeded()
    made = {}
    for seed in (0, 1, 2):
        run_seed(seed)
        made[seed] = seeded()
        assert seeded() == made[seed]  # another rank, or the same run resumed
        assert seeded(seed=5) == seeded(seed=5) != made[seed]
    assert outside == made[0] and all(len(set(part)) == 3 for part in zip(*made.values(), strict=True))
    run_seed(5)
    own = seeded(seed=1)
    assert own == made[1] != seeded()


def test_draws_follow_the_run(run_seed: Any) -> None:
    def drawn(**own: Any) -> list[Any]:
        return [
            RandomSampler(**own).choose(view(), 8),
            PoseFarthestSampler(start="random", **own).choose(view(), 3),
            OffsetNeighbor("random", step=3, **own).pair(range(0, 100, 10), view()),
            VideoQADataModule(Rooms(), **own).seed,  # of the order and the questions
        ]

    made = []
    for seed in (1, 2):
        run_seed(seed)
        made.append(drawn())
        assert drawn() == made[-1] and drawn(seed=1) == made[0]
    assert all(one != other for one, other in zip(*made, strict=True))


def test_questions_of_an_evaluation_do_not_depend_on_the_run(run_seed: Any) -> None:
    filters = set()
    for seed in (1, 2):
        run_seed(seed)
        filters.add(VideoQADataModule(Rooms(), subset=20).filter)
        filters.add(VideoQADataModule(Rooms(), subset=20, seed=7).filter)
        assert PoseFarthestSampler().seed is None  # without a draw, nor does a cached selection
        assert Rooms().folder == Rooms(seed=0).folder  # and the rooms are data
    assert len(filters) == 1


def test_a_saved_model_is_the_same_under_any_seed(run_seed: Any, tmp_path: Path) -> None:
    """Random weights that stay frozen are in no file but the model's own, also behind a cache."""

    def model(cache: GeometryCache | None = None) -> SpatialVLM:
        return SpatialVLM(TinyQwen25VL(**SIZES), geometry=VGGT, fusion=AddFusion, geometry_cache=cache)

    run_seed(1)
    saved = model(GeometryCache(str(tmp_path / "cache"))).requires_grad_(False)
    saved.data_config = {"class_path": "VideoQADataModule", "init_args": {"sampler": {"init_args": {"seed": None}}}}
    saved.save_pretrained(tmp_path / "saved")
    run_seed(2)
    fresh, loaded = model(), SpatialVLM.from_pretrained(tmp_path / "saved")
    assert fingerprint(loaded) == fingerprint(saved) != fingerprint(fresh)  # the last is the negative control
    frames = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = [each.geometry([frames], [None])[0].patches for each in (saved, loaded, fresh)]
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    assert loaded.data_config["init_args"]["sampler"]["init_args"]["seed"] == 1  # of the frames that `answer` draws
