"""`study --oracles` adds what oracles score to results on panel rooms, and to no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.studies.oracles import add_oracles
from commands.studies.results import Questions, Result, Results, compress, rounded_scores
from commands.studies.study_file import read_study
from commands.study import study
from datamodules import PanelRooms, PanelRotation
from datamodules.sources.base import ORACLE, POSSIBLE
from evaluation.baselines import constant_baseline

TESTED = 12
STUDY = {
    "title": "Turns",
    "score": "panel_turn",
    "options": {
        "data.source.class_path": "PanelRooms",
        "data.source.task": "PanelRotation",
        "data.source.scenes": [60, 0, TESTED],
    },
    "settings": {
        name: {"configs": ["qwen25_vl.yaml"], "trainer.max_steps": n} for n, name in enumerate(("low", "high"))
    },
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """A study of two settings with one score each, below and above every oracle that lacks something."""
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("studies/turns.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    plan = read_study(Path("studies/turns.yaml"))
    source = PanelRooms(PanelRotation(), scenes=(60, 0, TESTED))
    rows = [source.drawn("test", index)[0] for index in range(TESTED)]
    asked = [scene.questions[0] for scene in rows]
    constant = constant_baseline([vars(each) for each in asked], source.benchmark, "spatial_mllm").scores["constant"]
    ids, names = [each.id for each in asked], [scene.name for scene in rows]
    questions = Questions("key", source.benchmark.name, "spatial_mllm", ids, ["panel_turn"] * TESTED, names)
    made = Results(plan.results)
    for run, score in zip(plan.runs(), (0.5, 1.0), strict=True):
        about: dict[str, Any] = {"test": "", "test_options": {}, "commit": "", "is_clean": True, "fit_s": None}
        scores: dict[str, Any] = {"scores": {"panel_turn": score, "macro": score}, "question_scores": [score] * TESTED}
        baselines = {"constant": rounded_scores(constant)}
        made.add(
            Result(run.setting, run.column, run.seed, options=run.resolved, baselines=baselines, questions="key",
                   trained=str(score), **about, **scores),
            questions,
        )  # fmt: skip
    return made


def test_results_keep_everything_else_and_the_table_says_which_settings_are_above(
    results: Results, capsys: pytest.CaptureFixture
) -> None:
    before = results.path.read_text().splitlines()
    study(["studies/turns.yaml", "--oracles"])
    assert "possible: pose and pixel" in capsys.readouterr().out
    after = Results(results.path)
    assert after.own != results.own and results.path.read_text().splitlines()[0] == before[0]  # the questions
    for old, new in zip(results.own, after.own, strict=True):
        assert replace(new, baselines=old.baselines) == old
        added = new.baselines.keys() - old.baselines.keys()
        assert {name.startswith(ORACLE) for name in added} == {True, False}
    document = Path("studies/turns.md").read_text()
    assert "| low" in document and "0.500 <" in document
    assert "Not judged against all blind baselines and oracles, with fewer than 3 seeds: low; high." in document
    assert f"| {POSSIBLE}pose and pixel" in document and "1.000 <" not in document  # not blind
    written = results.path.read_bytes()
    study(["studies/turns.yaml", "--oracles"])
    assert results.path.read_bytes() == written


def test_a_test_with_camera_errors_gets_oracles_that_answer_from_its_wrong_cameras(results: Results) -> None:
    other, wrong = ({"data.perturbation": name} for name in ("OtherCameras", "NoisyCameras"))
    wrong["data.perturbation.degrees"] = "60"
    results.own += [
        replace(results.own[0], test=name, test_options=each) for name, each in zip("ab", (other, wrong), strict=True)
    ]
    assert all("possible" in remark for remark in add_oracles(results))
    true, _, same, noisy = (each.baselines for each in results.own)
    possible = f"{POSSIBLE}pose and pixel"
    assert same == true and noisy["constant"] == true["constant"]
    assert noisy[possible]["panel_turn"] < true[possible]["panel_turn"] - 0.1


def test_right_answers_are_hits_beyond_what_a_rule_without_the_pixel_permits(results: Results) -> None:
    questions = results.questions["key"]
    source = PanelRooms(PanelRotation(), scenes=(60, 0, TESTED))
    right = [source.drawn("test", index)[0].questions[0].ground_truth for index in range(TESTED)]
    answers = [right, [*right[1:], right[0]]]  # the control: those of other rooms
    results.own = [replace(each, predictions=compress(own)) for each, own in zip(results.own, answers, strict=True)]
    results.questions["key"] = replace(questions, ground_truths=right)
    list(add_oracles(results))
    rule = f"{ORACLE}poses without pixel"
    (mean, error), (low, _) = (each.hits[rule] for each in results.own)
    assert mean - 2 * error > 1.5 and low < 1
    study(["studies/turns.yaml", "--write"])
    assert f"| {mean:.2f} ({mean:.2f} to {mean:.2f})" in Path("studies/turns.md").read_text()


def test_rooms_that_have_changed_since_get_no_oracles(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written = results.path.read_bytes()
    monkeypatch.setattr(PanelRotation, "classes", PanelRotation.classes[::-1] + 7)
    study(["studies/turns.yaml", "--oracles"])
    assert "no panel rooms, or they have changed since" in capsys.readouterr().out
    assert results.path.read_bytes() == written
