"""A study of one step per training with the real main.py, on this machine and through submitit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from commands.studies.reading import StudyLoader
from commands.study import study
from tests.commands.studies.faked import write_study
from tests.conftest import ROOMS
from tests.test_two_processes import REPOSITORY

OPTIONS = {
    "trainer.max_steps": 1,
    "trainer.limit_val_batches": 0,
    "data.num_frames": 4,
    "data.batch_size": 2,
    "data.source.scenes": list(ROOMS),
    **{f"model.backbone.{name}": value for name, value in {"layers": 2, "hidden_size": 64, "heads": 2}.items()},
    **{"model.backbone.key_value_heads": 1, "model.backbone.vision_hidden_size": 32},
}
SETTINGS = {"none": {"configs": ["qwen25_vl.yaml"]}, "wrong": {"configs": ["qwen25_vl.yaml"], "data.no_option": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "submitit_local"])
def test_a_study_trains_and_tests_and_names_what_main_py_refuses(
    executor: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_study(
        tmp_path / "studies/tiny.yaml",
        **{"seeds": [0], "columns": {"": {}}, "score": "room_size_estimation", "compare": [], "settings": SETTINGS},
        options={**OPTIONS, "data.source.root": str(rooms_root)},
        tests={},
    )
    with pytest.raises(SystemExit, match="1 of 2 trainings have failed"):
        study([str(path), "--executor", executor, "--jobs", "2"])
    assert "wrong, seed 0: failed: error: data.no_option: there is no such option" in capsys.readouterr().out
    folder = tmp_path / "runs/studies/tiny/none-0"
    questions, result = map(json.loads, (tmp_path / "studies/results/tiny.jsonl").read_text().splitlines())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert result["scores"]["macro"] == pytest.approx(metrics["all"]["macro"], abs=1e-5)
    assert len(questions["ids"]) == len(result["question_scores"]) == metrics["counts"]["questions"] == ROOMS[2]
    assert metrics["baselines"].keys() == {"constant", "text"}  # too few training rooms for a regression on cameras
    assert result["baselines"]["text"]["macro"] == pytest.approx(metrics["baselines"]["text"]["all"]["macro"], abs=1e-5)
    assert "| best constant answer |" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size
    if executor == "submitit_local":
        assert list((tmp_path / "runs/studies/tiny/submitit").glob("*_result.pkl"))


def write_files_of_the_seed_question(folder: Path, rooms_root: Path) -> None:
    """Conversations about two rooms, and three rooms as if they were ARKitScenes' in VSI-Bench; all with cameras."""
    (rooms,) = {path.parent.parent for path in rooms_root.glob("*/rooms/test_*.mp4")}
    for split, videos, cameras in (
        ("train", "data/visuals/scannet/videos", "data/cameras/scannet"),
        ("test", "data/vsibench/arkitscenes", "data/vsibench/arkitscenes"),
    ):
        for place, suffix in ((videos, ".mp4"), (cameras, ".cameras.json")):
            (folder / place).mkdir(parents=True, exist_ok=True)
            for path in (rooms / "rooms").glob(f"{split}_*{suffix}"):
                (folder / place / path.name).write_bytes(path.read_bytes())
    questions = (rooms / "test.jsonl").read_text().replace('"dataset": "rooms"', '"dataset": "arkitscenes"')
    (folder / "data/vsibench/test.jsonl").write_text(questions)
    (folder / "data/annotations").mkdir()
    turns = [{"from": "human", "value": "How many chairs are there?"}, {"from": "gpt", "value": "4"}]
    for number, name in enumerate(("spatial-mllm-mix-133k", "routeplan-2k")):
        row = {"video": f"scannet/videos/train_0000{number}.mp4", "conversations": turns}
        (folder / f"data/annotations/{name}.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_seed_question_at_the_tiny_scale(
    tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every row of the study: its own configs and options, with small models, frames and data."""
    monkeypatch.chdir(tmp_path)
    write_files_of_the_seed_question(tmp_path, rooms_root)
    text = (REPOSITORY / "studies/seed_question.yaml").read_text()
    for full, tiny in (
        ("scale_3b.yaml", "scale_tiny.yaml"),
        ("spatial_mllm_released.yaml", "scale_tiny.yaml"),
        ("100352", "784"),
        ("602112", "3136"),
    ):
        text = text.replace(full, tiny)
    content = yaml.load(text, StudyLoader)
    sizes = {name: value for name, value in OPTIONS.items() if name.startswith("model.backbone")}
    content["options"] |= {
        **sizes,
        **{"model.geometry": "TinyVGGT", "model.geometry.path": None, "model.allow_untrained": True},
        **{"trainer.devices": 1, "trainer.accumulate_grad_batches": 1, "trainer.max_steps": 2},
        **{"trainer.precision": "32-true", "trainer.accelerator": "cpu", "model.gradient_checkpointing": False},
        **{"data.num_frames": 4, "data.num_workers": 0, "data.pixels.min_pixels": 784, "data.pixels.max_pixels": 3136},
    }
    content["options"].pop("model.repetition_penalty")
    path = write_study(tmp_path / "seed_question.yaml", **{**content, "seeds": [0], "columns": {"": {}}})
    study([str(path), "--jobs", "2"])
    lines = [json.loads(line) for line in (tmp_path / "results/seed_question.jsonl").read_text().splitlines()]
    found = {(line["setting"], line["test"]): line for line in lines if "setting" in line}
    tested = {(name, test) for name, each in content["settings"].items() for test in ("", *each["tests"])}
    assert found.keys() == tested and len(tested) == 20
    same = [line["question_scores"] for (name, test), line in found.items() if not test and "as released" in name]
    assert len(same) == 2 and all(len(scores) == ROOMS[2] for scores in same)
    assert all(line["fit_s"] is None for (name, _), line in found.items() if "as released" in name)
    assert "best constant answer" in path.with_suffix(".md").read_text()
