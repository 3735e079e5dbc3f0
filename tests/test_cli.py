"""Runs, tests and answers from the command line, and what they write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli import Run, Trained, the_run, weights
from zoo.versions import versions

QWEN3, QWEN35 = "scale_tiny_qwen3.yaml", "scale_tiny_qwen3_5.yaml"
MODELS = [  # configs, and an objective
    ("prope.yaml",),
    *(
        pytest.param(configs, marks=pytest.mark.slow)
        for configs in (
            ("qwen25_vl.yaml",),
            ("qwen3_vl.yaml", QWEN3),
            ("spatial_mllm.yaml", QWEN3, "MaskedViews"),
            ("concat_split.yaml", QWEN35),
        )
    ),
]


@pytest.mark.parametrize("configs", MODELS, ids=" ".join)
def test_fit_test_predict(configs: tuple[str, ...], run: Run, tmp_path: Path, rooms_root: Path) -> None:
    words = [word for name in configs if name.endswith(".yaml") for word in ("--config", name)]
    has_objectives = not configs[-1].endswith(".yaml")
    if has_objectives:
        words += [
            f"--model.objectives=[CameraPrediction, DepthPrediction, {configs[-1]}]",
            *("--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"),
        ]
    words += ["--gallery.scenes", "1"] if has_objectives else []
    trained = run("fit", *words, "--trainer.log_every_n_steps=1")
    assert "train 2/2 (100%)  loss " in trained  # also without a logger's line
    folder = the_run(tmp_path)
    assert {"config.yaml", "checkpoints"} <= {path.name for path in folder.iterdir()}
    written = EventAccumulator(str(folder)).Reload()  # of a run shorter than the interval of validations
    assert len(written.Scalars("train/loss")) == 2
    assert has_objectives == any(tag.startswith("frames/") for tag in written.Tags()["images"])
    header = [line for line in (folder / "config.yaml").read_text().splitlines() if line.startswith("#")]
    assert header == [f"# {name}=={version}" for name, version in versions().items()]

    printed = run("test")
    assert "room_size_estimation" in printed and the_run(tmp_path) == folder
    metrics = json.loads((folder / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert metrics["counts"]["questions"] == len(lines) > 10
    assert len({line["id"] for line in lines}) == len(lines)
    assert all(len(line["frames"]) == 4 and line["scorer"] == metrics["scorer"] and line["prompt"] for line in lines)
    assert metrics["config"]["data"]["init_args"]["num_frames"] == 4
    assert (metrics["step"], metrics["run_step"], metrics["max_steps"], metrics["is_clean"] is None) == (2, 2, 2, False)
    assert metrics["question_ids"] == [line["id"] for line in lines] and not metrics["differs_from_training"]
    assert metrics["training_overlap"] == {"training_scenes": 6, "test_scenes": 3, "shared": []}
    if has_objectives:
        errors = metrics["objectives"]
        assert errors.keys() == lines[0]["objectives"].keys() and "DepthPrediction/unlearned/depth_relative" in errors
        events = EventAccumulator(str(folder)).Reload().Tags()
        assert {"train/CameraPrediction", "val/CameraPrediction/center"} <= set(events["scalars"])
        assert any(tag.startswith("cameras/") for tag in events["images"])
        run("test", "--data.perturbation", "OtherCameras")  # predictions are compared with the true ones all the same
        (perturbed,) = folder.glob("tests/*")
        assert perturbed.name == "OtherCameras"
        blind = json.loads((perturbed / "metrics.json").read_text())["baselines"]  # nobody sees what is perturbed
        assert blind == metrics["baselines"] and blind.keys() == {"constant", "text"}
        answers = (perturbed / "predictions.jsonl").read_text().splitlines()
        for found in map(json.loads, [(perturbed / "metrics.json").read_text(), *answers]):
            assert found["objectives"].keys() == errors.keys()
    assert has_objectives == ("objectives" in metrics)
    mean = sum(line["score"] for line in lines) / len(lines)
    assert metrics["all"]["micro"] == pytest.approx(mean, abs=1e-6)

    video = next(rooms_root.glob("*/rooms/test_*.mp4"))
    question, events = "What is the size of this room?", list(tmp_path.rglob("events.out.tfevents.*"))
    printed = run("predict", "--data.video", str(video), "--data.question", question)
    assert question in printed and list(tmp_path.rglob("events.out.tfevents.*")) == events


def test_an_absent_video_is_named_before_a_run_is_looked_for(run: Run) -> None:
    with pytest.raises(SystemExit, match="^error: gone.mp4: no such video file or folder of frames$"):
        run("predict", "--data.video", "gone.mp4", "--data.question", "How large is this room?")


@pytest.mark.slow
def test_a_trained_model_is_tested_with_other_options(run: Run, tmp_path: Path) -> None:
    words = ["--config", "concat_split.yaml", "--model.time_index", "TimestampIndex"]
    run("fit", *words, "--model.time_index.seconds_per_grid", "0.5", "--trainer.limit_val_batches", "0")
    changed = ["--model.fusion.active_branches", "2d", "--model.time_index.seconds_per_grid", "1.0"]
    changed += ["--model.text_after_vision", "max_hw", "--model.fusion.temporal_merge", "mean"]
    folder = the_run(tmp_path)
    said = run("test", *changed, logged=True)
    (tested,) = folder.glob("tests/*/metrics.json")
    differing = json.loads(tested.read_text())["differs_from_training"]
    assert differing["model.fusion.active_branches"] == {"training": "both", "test": "2d"} and len(differing) == 4
    assert "model.fusion.temporal_merge" in said
    with pytest.raises(SystemExit, match="no run of this ConcatSplitMLLM"):  # control: another part
        run("test", "--config", "concat_split.yaml", "--ckpt_path", "last", "--model.camera_encoding", "PRoPE")
    with pytest.raises(SystemExit, match="another model.fusion.active_branches"):  # a training goes on as it was
        run("fit", *words, *changed[:2], "--ckpt_path", str(folder / "checkpoints/last.ckpt"))


def test_questions_that_options_leave_out_are_counted(run: Run, tmp_path: Path) -> None:
    words = ["test", "--config", "qwen25_vl.yaml", "--model.allow_untrained", "true"]
    words += ["--data.question_types", "[room_size_estimation]", "--trainer.default_root_dir"]
    for more, questions, filtered, option in (
        ((), 3, 12, "--data.question_types"),
        (("--data.subset", "2"), 2, 1, "--data.subset 2"),  # of three rooms' sizes
    ):
        folder = f"here{len(more)}"
        printed = run(*words, folder, *more)
        counts = json.loads((tmp_path / folder / "metrics.json").read_text())["counts"]
        assert counts["questions"] == questions and counts["filtered"] >= filtered
        assert f"left out by {option}" in printed


@pytest.mark.slow
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
    (other,) = folder.glob("tests/*")
    assert "test: it is in runs/one/tests/subset-2" in said and "test: differs from the training in data.subset" in said
    assert other.name == "subset-2" and before == {name: (folder / name).read_bytes() for name in before}
    differing = json.loads((other / "metrics.json").read_text())["differs_from_training"]
    assert differing == {"data.subset": {"training": None, "test": 2}}
    assert len((other / "predictions.jsonl").read_text().splitlines()) == 2
    assert yaml.safe_load((other / "config.yaml").read_text())["data"]["init_args"]["subset"] == 2
    run("test", *in_the_run, "--seed_everything", "7")  # the weights are the checkpoint's: the same answers
    again = folder / "tests/seed_everything-7/predictions.jsonl"
    assert before["predictions.jsonl"] == (folder / "predictions.jsonl").read_bytes() == again.read_bytes()


def test_damaged_scenes_are_reported_and_the_others_scored(
    run: Run, trained: Trained, tmp_path: Path, rooms_root: Path
) -> None:
    trained()
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
