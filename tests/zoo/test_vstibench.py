"""VSTI-Bench: both official scorers and their overall scores, the prompts, and what cameras alone answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands.reports.scores import Tested
from commands.score import score
from evaluation.table import summarize
from tests.poses import random_poses
from zoo.benchmarks import VSTIBench
from zoo.cameras import invert_se3
from zoo.metrics import BenchmarkScore

# all golden cases if ZOO_GOLDEN is set, else the small ones of this repository
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[1] / "golden")) / "vstibench"
ROWS = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["rows"]
AGGREGATES = json.loads((GOLDEN / "aggregates.json").read_text(encoding="utf-8"))
DOCS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))["docs"]
BENCHMARK, OFFICIAL = VSTIBench(), ("vlm_3r", "geothinker")


@pytest.mark.parametrize("scorer", OFFICIAL)
def test_every_golden_answer(scorer: str) -> None:
    (other,), different = set(OFFICIAL) - {scorer}, 0
    for row in ROWS:
        asked, expected = (row["prediction"], row["truth"], row["question_type"]), row[scorer]["score"] or 0.0
        assert BENCHMARK.score(*asked, scorer) == pytest.approx(expected, abs=1e-12), row
        different += BENCHMARK.score(*asked, other) != expected
    assert different > 20  # the control


@pytest.mark.parametrize("scorer", OFFICIAL)
@pytest.mark.parametrize("name", AGGREGATES)
def test_overall_scores(name: str, scorer: str) -> None:
    """Rows at which the official scorer raises are left out."""
    expected, ids = AGGREGATES[name][scorer], AGGREGATES[name]["ids"]
    rows = [row for row in ROWS if (ids is None or row["id"] in ids) and row[scorer]["score"] is not None]
    metric = BenchmarkScore(BENCHMARK, scorer)
    metric.update(*([row[key] for row in rows] for key in ("prediction", "truth", "question_type")))
    found = metric.compute()
    assert len(rows) == expected["rows"]
    if "error" in expected:  # GeoThinker's needs all six types of its groups
        return
    assert 100 * found["all"]["macro"] == pytest.approx(expected["returned"], abs=1e-12)
    scores = {kind: entry["score"] for kind, entry in found["per_question_type"].items()}
    for group, kinds in BENCHMARK.grouped_types(scorer).items():
        if own := [scores.pop(kind) for kind in kinds if kind in scores]:
            scores[group] = float(np.mean(own))
    assert sorted(scores.values()) == pytest.approx(sorted(v for k, v in expected["table"].items() if k != "overall"))


def test_the_overall_score_is_named_and_weighted_as_its_scorer_says() -> None:
    kinds = ("camera_displacement", *BENCHMARK.position_types)
    records = [
        {"id": kind, "scene": "a", "question_type": kind, "score": float(kind == kinds[0]), "error": None,
         "prediction": "1", "ground_truth": "1"}
        for kind in kinds
    ]  # fmt: skip
    for scorer, macro in (("vlm_3r", 0.25), ("geothinker", 0.5), ("spatial_mllm", 0.5)):
        metrics = summarize(records, BENCHMARK, scorer)
        assert metrics["all"]["macro"] == macro and metrics["scorer"] == scorer
        assert list(metrics["grouped_types"]) == ([] if scorer == "vlm_3r" else list(BENCHMARK.averaged_types))
        table = pd.DataFrame(records).set_index("id")
        weights = Tested("a", "", 0, BENCHMARK.name, scorer, table).weights("macro")
        assert (weights["weight"] * table["score"]).sum() == pytest.approx(macro)


def test_the_command_score_knows_both_scorers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "a", "scene": "b", "question": "", "question_type": "obj_obj_relative_pos_nf", "ground_truth": "B",
           "prediction": "<answer>B</answer>", "frames": [], "error": None}  # fmt: skip
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps(row))
    for scorer, expected in (("vlm_3r", 0.0), ("geothinker", 1.0)):
        score([str(file), "--benchmark", "VSTIBench", "--scorer", scorer, "--output", str(tmp_path / "metrics.json")])
        assert json.loads((tmp_path / "metrics.json").read_text())["all"]["macro"] == expected
        assert scorer in capsys.readouterr().out


def test_every_golden_prompt() -> None:
    for each in DOCS:
        doc = each["doc"]
        is_choice = doc["question_type"] in BENCHMARK.multiple_choice_types
        options = doc["options"] if is_choice else ()
        assert BENCHMARK.user_text(doc["question"], options, prefix=BENCHMARK.prefix) == each["text"]["default"]
        assert BENCHMARK.user_text(doc["question"], options) != each["text"]["default"]  # the control
        if each["geothinker_is_the_same"]:
            assert each["geothinker_default"] == each["text"]["default"]


# ---- Cameras alone -------------------------------------------------------------------------------------------------

OPTIONS = ("A. Left", "B. Forward", "C. Backward", "D. Right")


def answers(kind: str, poses: np.ndarray, options: tuple[str, ...] = (), frames: str = "frame 1 and frame 3 of 3"):
    return BENCHMARK.answers_from_cameras(kind, f"Between {frames}?", options, poses)


def test_the_displacement_by_positions_and_as_the_first_labels_have_it() -> None:
    camera_to_world = random_poses(5).numpy()
    poses = np.linalg.inv(camera_to_world)
    found = answers("camera_displacement", poses)
    positions = np.linalg.norm(camera_to_world[0, :3, 3] - camera_to_world[4, :3, 3])
    first = [-pose[:3, :3].T @ pose[:3, 3] for pose in camera_to_world]  # the formula of the first release
    assert found["camera positions"] == f"{positions:.1f}"
    assert found["world-to-camera translations"] == f"{np.linalg.norm(first[0] - first[4]):.1f}"
    assert len(set(found.values())) == 2
    assert answers("camera_displacement", poses, frames="frame 1 and frame 2 of 3") != found
    moved = poses @ np.linalg.inv(random_poses(1, seed=7).numpy())  # another world frame
    assert answers("camera_displacement", moved)["camera positions"] == found["camera positions"]
    assert answers("camera_displacement", moved) != found


@pytest.mark.parametrize(("motion", "letter"), [
    ((-2, -9, 1), "A"), ((1, 0, 2), "B"), ((1, 9, -2), "C"), ((2, 0, 1), "D"),
])  # fmt: skip
def test_the_direction_is_of_the_first_camera_and_ignores_height(motion: tuple[int, ...], letter: str) -> None:
    poses = invert_se3(random_poses(3)).numpy()
    step = np.eye(4)
    step[:3, 3] = motion
    poses[2] = np.linalg.inv(np.linalg.inv(poses[0]) @ step)
    assert answers("camera_movement_direction", poses, OPTIONS) == {"camera positions": letter}
    others = tuple(option for option in OPTIONS if option[0] != letter)
    assert answers("camera_movement_direction", poses, others) != {"camera positions": letter}


def test_frames_without_a_camera_and_other_questions() -> None:
    poses = random_poses(5).numpy()
    whole = answers("camera_displacement", poses)
    poses[0] = np.nan  # the nearest frame with a camera answers
    assert answers("camera_displacement", poses).keys() == whole.keys()
    poses[1:] = np.nan
    assert answers("camera_displacement", poses) == {}
    assert answers("camera_displacement", random_poses(5).numpy(), frames="the start and the end") == {}
    assert answers("camera_movement_direction", random_poses(5).numpy(), ("A. up", "B. down")) == {}
