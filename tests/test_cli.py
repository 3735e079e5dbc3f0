"""main.py as a user runs it: configs, runs and checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from zoo import VideoQATask

REPOSITORY = Path(main.__file__).parent
QWEN3 = "scale_tiny_qwen3.yaml"
MODELS = [  # configs, and objectives
    *(("qwen25_vl.yaml",), ("spatial_mllm.yaml",), ("concat_split.yaml",), ("prope.yaml",)),
    *(("qwen3_vl.yaml", QWEN3), ("spatial_mllm.yaml", QWEN3, "MaskedViews"), ("prope.yaml", QWEN3)),
]
RAYS = ("--model.geometry", "DatasetGeometry", "--model.geometry.depth", "false")  # prope.yaml's at the tiny scale
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> Run:
    """Runs main.py in an empty folder on the small rooms with a very small model; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    small = [
        *("--trainer.max_steps", "2"),
        *("--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.batch_size", "2"),
        *("--data.question_types", "null"),
        *("--model.backbone.layers", "2", "--model.backbone.hidden_size", "64", "--model.backbone.heads", "2"),
        *("--model.backbone.key_value_heads", "1", "--model.backbone.vision_hidden_size", "32"),
        *("--data.num_frames", "4", "--trainer.accelerator", "cpu"),
        *("--config", str(tmp_path / "small_vggt.yaml")),
    ]
    random = {"class_path": "TinyVGGT", "init_args": {"path": None, "embed_dim": 16, "depth": 4, "num_heads": 2}}
    (tmp_path / "small_vggt.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"geometry": random}}}))

    def call(command: str, *words: str, sized: bool = True, logged: bool = False) -> str:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        caplog.clear()
        bare = command != "fit" and "--config" not in words  # the newest run's config has the sizes
        monkeypatch.setattr(sys, "argv", ["main.py", command, *(small if sized and not bare else []), *words])
        main.main()
        return caplog.text if logged else capsys.readouterr().out

    return call


def the_run(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_overrides_reach_their_part(run: Run, capsys: pytest.CaptureFixture) -> None:
    words = [
        *("--data.source.dynamic_objects", "true", "--data.source.trajectory=local"),
        *("--data.num_frames", "4", "--model.lora.r", "16"),
        *("--model.learning_rates.decoder", "1e-4", "--model.learning_rates.vision", "0"),
        *("--model.camera_encoding.placement", "TemporalSection", "--model.time_index", "ConstantIndex"),
        *("--checkpoint.monitor", "val/all/macro"),
        *("--model.objectives+=CameraPrediction", "--model.objectives.layer=2", "--model.objectives+=DepthPrediction"),
    ]
    with pytest.raises(SystemExit):
        run("fit", "--config=prope", *words, "--print_config", sized=False)
    config = yaml.safe_load(capsys.readouterr().out)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    source = data["source"]["init_args"]
    assert source["dynamic_objects"] is True and source["trajectory"] == "local"
    assert data["num_frames"] == 4 and model["lora"]["r"] == 16 and config["checkpoint"]["monitor"] == "val/all/macro"
    rates = {"decoder": 1e-4, "connector": 8e-4, "vision": 0.0, "geometry": None, "encoding": 8e-4, "objective": 8e-4}
    assert model["learning_rates"] == rates
    assert [each["class_path"] for each in model["objectives"]] == ["zoo.CameraPrediction", "zoo.DepthPrediction"]
    assert model["objectives"][0]["init_args"]["layer"] == 2
    assert model["camera_encoding"]["init_args"]["placement"]["class_path"] == "zoo.TemporalSection"


def test_an_unknown_config_is_an_error_that_lists_the_shipped_ones(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"no config porpe\.yaml.*prope\.yaml"):
        run("fit", "--config", "porpe.yaml")


@pytest.mark.parametrize("configs", MODELS, ids=" ".join)
def test_fit_test_predict(configs: tuple[str, ...], run: Run, tmp_path: Path, rooms_root: Path) -> None:
    words = [word for name in configs if name.endswith(".yaml") for word in ("--config", name)]
    has_objectives = not configs[-1].endswith(".yaml")
    if has_objectives:
        words += [
            f"--model.objectives=[CameraPrediction, DepthPrediction, {configs[-1]}]",
            *("--trainer.val_check_interval=2", "--trainer.limit_val_batches=1", "--gallery.scenes=1"),
            "--trainer.log_every_n_steps=1",
        ]
    run("fit", *words)
    folder = the_run(tmp_path)
    assert {"config.yaml", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.out.tfevents.*"))

    printed = run("test")
    assert "room_size_estimation" in printed and the_run(tmp_path) == folder
    metrics = json.loads((folder / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert metrics["counts"]["questions"] == len(lines) > 10
    assert len({line["id"] for line in lines}) == len(lines)
    assert all(len(line["frames"]) == 4 and line["versions"] and line["prompt"] for line in lines)
    said, settings = metrics["reproduction"], json.loads((folder / "predictions.settings.json").read_text())
    assert (said["prompts"], said["weights"]) == (settings["prompts"], settings["weights"]) and len(said["weights"]) > 8
    assert (said["frames_as"], said["prompt_prefix"], said["repetition_penalty"]) == ("video", "", 1.0)
    assert said["stop_tokens"] and said["pixels"]["min_pixels"] and said["time_index"]["class_path"].startswith("zoo.")
    if has_objectives:
        errors = metrics["objectives"]
        assert errors.keys() == lines[0]["objectives"].keys() and "DepthPrediction/unlearned/depth_relative" in errors
        events = EventAccumulator(str(folder)).Reload().Tags()
        assert {"train/CameraPrediction", "val/CameraPrediction/center"} <= set(events["scalars"])
        assert any(tag.startswith("cameras/") for tag in events["images"])
    assert has_objectives == ("objectives" in metrics)
    mean = sum(line["score"] for line in lines) / len(lines)
    assert metrics["all"]["micro"] == pytest.approx(mean, abs=1e-6)

    video = next(rooms_root.glob("*/rooms/test_*.mp4"))
    question = "What is the size of this room?"
    printed = run("predict", *words, "--data.video", str(video), "--data.question", question)
    assert question in printed


def test_only_predict_uses_predicted_cameras_for_a_video_without_cameras(
    run: Run, tmp_path: Path, rooms_root: Path
) -> None:
    run("fit", "--config", "prope.yaml")
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(next(rooms_root.glob("*/rooms/test_*.mp4")).read_bytes())
    asked = ["--data.video", str(bare), "--data.question", "What is the size of this room?"]
    assert "What is the size" in run("predict", *asked)
    without = ["--data.source", "SceneFolder", "--data.source.root", str(copied_without_cameras(rooms_root, tmp_path))]
    with pytest.raises(SystemExit, match="no scene of the test split has cameras"):
        run("test", *without)

    run("fit", "--config", "prope.yaml", *RAYS)  # without a VGGT there are no cameras
    with pytest.raises(SystemExit, match="cameras"):
        run("predict", *asked)


def test_predicted_cameras_need_none_in_the_dataset(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    without = ["--data.source", "SceneFolder", "--data.source.root", str(copied_without_cameras(rooms_root, tmp_path))]
    run("fit", "--config", "prope.yaml", "--model.camera_source", "predicted", *without)
    assert "room_size_estimation" in run("test")
    with pytest.raises(SystemExit, match="--model.camera_source predicted needs"):
        run("fit", "--config", "qwen25_vl.yaml", "--model.camera_source", "predicted")


def copied_without_cameras(rooms_root: Path, to: Path) -> Path:
    (source,) = {path.parent.parent for path in rooms_root.glob("*/rooms/test_*.mp4")}
    return Path(shutil.copytree(source, to / "copied", ignore=shutil.ignore_patterns("*.cameras.json")))


def test_a_checkpoint_does_not_override_the_command_line(run: Run, tmp_path: Path, monkeypatch) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    seen = []
    monkeypatch.setattr(VideoQATask, "on_test_start", lambda self: seen.append(self.max_new_tokens))
    run("test", "--ckpt_path", str(the_run(tmp_path) / "checkpoints/last.ckpt"), "--model.max_new_tokens", "3")
    assert seen == [3]


def test_a_checkpoint_identifies_its_run(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    older = the_run(tmp_path)
    run("fit", "--config", "prope.yaml")
    (newer,) = set((tmp_path / "runs").iterdir()) - {older}
    checkpoint = str(older / "checkpoints/last.ckpt")
    assert f"test: run runs/{newer.name}, checkpoint runs/{newer.name}/" in run("test", logged=True)
    assert f"test: run {older}, checkpoint {checkpoint}" in run("test", "--ckpt_path", checkpoint, logged=True)
    assert (older / "metrics.json").exists()
    with pytest.raises(SystemExit, match="of another model"):
        run("test", "--config", "prope.yaml", "--ckpt_path", checkpoint)


@pytest.mark.parametrize(
    ("words", "last", "best"),
    [
        (["--trainer.val_check_interval", "2"], 3, None),
        (["--checkpoint.every_n_train_steps", "2"], 3, None),
        (
            ["--trainer.val_check_interval", "1", "--checkpoint.monitor", "val/all/micro", "--checkpoint.mode", "min"],
            3,
            1,
        ),
    ],
)
def test_last_is_the_newest_state_with_every_schedule(
    words: list[str], last: int, best: int | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.1, 0.2, 0.3))
    monkeypatch.setattr("callbacks.metrics._scalars", lambda *_: {"val/all/micro": next(scores)})
    folder = ["--trainer.default_root_dir", "again"]
    for steps in ("2", "3"):  # a second fit into the same folder replaces what the first left
        scores = iter((0.1, 0.2, 0.3))
        run("fit", "--config", "qwen25_vl.yaml", *words, *folder, "--trainer.max_steps", steps)
    saved = tmp_path / "again/checkpoints"
    assert torch.load(saved / "last.ckpt", weights_only=True)["global_step"] == last
    states = ["last"] if best is None else ["best", "last"]
    assert sorted(path.name for path in saved.glob("*.ckpt")) == [f"{state}.ckpt" for state in states]
    assert sorted(path.name.split(".")[0] for path in saved.glob("*.optimizer")) == states
    assert len(list(saved.iterdir())) == 2 * len(states)
    if best is not None:
        assert torch.load(saved / "best.ckpt", weights_only=True)["global_step"] == best


def test_an_untrained_model_is_not_tested(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run under runs/"):
        run("test")
    for words in (["test"], ["test", "--ckpt_path", "last"], ["fit", "--ckpt_path", "last"]):
        with pytest.raises(SystemExit, match="no run of this Qwen25VL"):
            run(*words, "--config", "qwen25_vl.yaml")
    with pytest.raises(SystemExit, match="no such checkpoint"):
        run("test", "--config", "qwen25_vl.yaml", "--ckpt_path", "nowhere.ckpt")
    run("fit", "--config", "qwen25_vl.yaml")
    checkpoint = the_run(tmp_path) / "checkpoints/last.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"global_step": 0}, checkpoint)
    with pytest.raises(SystemExit, match="this model has random weights"):
        run("test")
    with pytest.raises(SystemExit, match="no run of this PRoPEMLLM"):  # a run of another model does not count
        run("test", "--config", "prope.yaml", "--ckpt_path", "last")


def test_a_random_model_answers_only_with_allow_untrained(run: Run, rooms_root: Path) -> None:
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    words = ["--config", "prope.yaml", "--data.video", video, "--data.question", "How big?"]
    with pytest.raises(SystemExit, match="allow_untrained"):
        run("predict", *words)
    assert "How big?" in run("predict", *words, "--model.allow_untrained", "true")


def test_an_encoding_without_cameras_is_an_error(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(next(rooms_root.glob("*/rooms/test_*.mp4")).read_bytes())
    words = ["--data.video", str(video), "--data.question", "How big?", "--model.allow_untrained", "true"]
    with pytest.raises(
        SystemExit,
        match=f"^error: {video}: no cameras, .*put clip.cameras.json beside it, predict them .*, or use",
    ):
        run("predict", "--config", "prope.yaml", *RAYS, *words)
    assert "How big?" in run("predict", "--config", "qwen25_vl.yaml", *words)


def test_resuming_with_other_settings_is_an_error(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "prope.yaml")
    config = the_run(tmp_path) / "config.yaml"
    before = config.read_text()
    for setting, value in (
        ("data.num_frames", "6"),
        ("model.learning_rates.decoder", "1e-5"),
        ("data.source.trajectory", "local"),
    ):
        with pytest.raises(SystemExit, match=f"was trained with another {setting}"):
            run("fit", "--config", "prope.yaml", "--ckpt_path", "last", f"--{setting}", value)
    assert config.read_text() == before


def test_a_run_without_a_checkpoint_is_skipped_and_logged(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "prope.yaml")
    trained = the_run(tmp_path)
    checkpoint = trained / "checkpoints/last.ckpt"
    broken = tmp_path / "runs/broken-off"
    broken.mkdir()
    (broken / "config.yaml").write_text((trained / "config.yaml").read_text())
    said = run("fit", "--config", "prope.yaml", "--ckpt_path", "last", logged=True)
    assert "runs/broken-off is passed over: it has no checkpoint" in said
    assert f"fit: run runs/{trained.name}, checkpoint runs/{trained.name}/checkpoints/last.ckpt" in said
    (broken / "config.yaml").write_text("model: [")
    run("test", "--config", "prope.yaml")
    shutil.rmtree(broken)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="last.ckpt is cut short"):
        run("test", "--ckpt_path", str(checkpoint))
    (trained / "config.yaml").write_text("model: [")
    with pytest.raises(SystemExit, match=f"runs/{trained.name}/config.yaml can't be read: "):
        run("test", "--config", "prope.yaml")


def test_filtered_questions_are_counted(run: Run, tmp_path: Path) -> None:
    printed = run(
        *("test", "--config", "qwen25_vl.yaml", "--model.allow_untrained", "true"),
        *("--trainer.default_root_dir", "here", "--data.question_types", "[room_size_estimation]"),
    )
    counts = json.loads((tmp_path / "here/metrics.json").read_text())["counts"]
    assert counts["questions"] == 3 and counts["filtered"] > 10
    assert f"{counts['filtered']} questions left out by --data.question_types" in printed


def test_only_what_the_option_leaves_out_is_counted(run: Run, tmp_path: Path) -> None:
    words = ["test", "--config", "qwen25_vl.yaml", "--model.allow_untrained", "true"]
    kinds = ["--data.question_types", "[room_size_estimation]"]
    printed = run(*words, *kinds, "--data.subset", "2", "--trainer.default_root_dir", "here")
    counts = json.loads((tmp_path / "here/metrics.json").read_text())["counts"]
    assert (counts["questions"], counts["filtered"]) == (2, 1)  # of three rooms' sizes
    assert "1 question left out by --data.subset 2\n" in printed and "question_types" not in printed


def test_seeds_and_tests_of_a_run(run: Run, tmp_path: Path) -> None:
    words = ["--config", "spatial_mllm.yaml", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        run("fit", *words, "--seed_everything", str(seed), "--trainer.default_root_dir", f"runs/{name}")
    one, again, two = (weights(tmp_path / "runs" / name) for name in ("one", "again", "two"))
    assert one.keys() == two.keys() and all(torch.equal(again[name], one[name]) for name in one)
    drawn = [name for name in one if one[name].dim() > 1 and one[name].any()]
    frozen = [name for name in drawn if name.startswith("model.geometry")]
    assert frozen and not any(torch.equal(one[name], two[name]) for name in drawn)

    folder = tmp_path / "runs/one"
    in_the_run = ["--trainer.default_root_dir", "runs/one", "--ckpt_path", "runs/one/checkpoints/last.ckpt"]
    run("test", *in_the_run)
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "config.yaml")}
    assert json.loads(before["metrics.json"])["geometry"] == "TinyVGGT"
    said = run("test", *in_the_run, "--data.subset", "2", logged=True)
    (other,) = folder.glob("test-*")
    assert f"runs/one holds a finished test with other settings, so this one is in runs/one/{other.name}" in said
    assert other.name.startswith("test-subset-2-") and before == {name: (folder / name).read_bytes() for name in before}
    assert len((other / "predictions.jsonl").read_text().splitlines()) == 2
    assert yaml.safe_load((other / "config.yaml").read_text())["data"]["init_args"]["subset"] == 2
    run("test", *in_the_run, "--seed_everything", "7")  # the weights are the checkpoint's: the same test
    assert before["predictions.jsonl"] == (folder / "predictions.jsonl").read_bytes()
    assert list(folder.glob("test-*")) == [other]
    run("test", "--ckpt_path", "runs/two/checkpoints/last.ckpt")
    sys.argv[1:] = ["report", "runs/one", "runs/two", "--output", "report.md"]
    main.main()
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert (
        f"| one/{other.name} | " in text and "differ in the seed alone" in text and "| one, two | Room Size |" in text
    )


class Interrupted(Exception):
    pass


LORA = ["--model.lora.r", "4"]


@pytest.mark.parametrize(  # an epoch has 3 steps
    ("stop_after", "extra"),
    [
        pytest.param(4, [], id="whole-4"),
        pytest.param(3, LORA, id="lora-3"),
        *(pytest.param(steps, [], id=f"whole-{steps}", marks=pytest.mark.slow) for steps in (2, 3)),
        *(pytest.param(steps, LORA, id=f"lora-{steps}", marks=pytest.mark.slow) for steps in (2, 4)),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stop_after: int, extra: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    training_step = VideoQATask.training_step

    def record(self: VideoQATask, batch: dict, batch_idx: int) -> torch.Tensor:
        if len(losses) == stop and stop:
            raise Interrupted
        loss = training_step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(VideoQATask, "training_step", record)
    words = [
        *("--config", "prope.yaml", *extra, "--trainer.max_steps", "7", "--trainer.limit_val_batches", "0"),
        *("--checkpoint.every_n_train_steps", "1"),
    ]
    stop = 0
    run("fit", *words, "--trainer.default_root_dir", "whole")
    whole, losses[:] = list(losses), []
    assert len(set(whole)) == len(whole) == 7

    stop = stop_after
    with pytest.raises(Interrupted):
        run("fit", *words)
    stop = 0
    run("fit", *words, "--ckpt_path", "last")
    assert losses == whole
    resumed, reference = weights(the_run(tmp_path)), weights(tmp_path / "whole")
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[name], reference[name]) for name in reference)
    decoder = {name for name in reference if ".language_model." in name}
    assert decoder and any("lora" in name for name in decoder) == bool(extra)


def test_damaged_scenes_are_reported_and_the_others_scored(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    victim = sorted(rooms_root.glob("*/rooms/test_*.mp4"))[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    try:
        printed = run("test")
    finally:
        victim.write_bytes(content)
    metrics = json.loads((the_run(tmp_path) / "metrics.json").read_text())
    lines = [json.loads(line) for line in (the_run(tmp_path) / "predictions.jsonl").read_text().splitlines()]
    bad = [line for line in lines if line["error"]]
    assert {line["scene"] for line in bad} == {f"rooms/{victim.stem}"} and str(victim) in bad[0]["error"]
    assert metrics["counts"]["failed"] == len(bad) and 0 < len(bad) < len(lines)
    assert all(line["score"] == 0 for line in bad) and re.search(victim.stem, printed)
