"""A study file that is wrong is refused in one line, which names the file and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.studies.reading import read_study
from commands.study import study
from tests.commands.studies.faked import STUDY, write_study
from tests.repository_studies import NAMES, study_named
from zoo.errors import InputError

COMPARED = STUDY["compare"][0]


def setting(**changes: Any) -> dict[str, Any]:
    return {"settings": {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": [0]}, "seed: there is no such option; did you mean seeds"),
        ({"seeds": ["a"]}, "seeds: Expected a <class 'int'>. Got value: a"),
        ({"seeds": [0, 0]}, "seed 0 is given twice"),
        ({"settings": {}}, "settings: there is none"),
        ({"settings": ["none"]}, "settings: Expected a <class 'dict'>"),
        ({"settings": {"none": None}}, "settings: expected options by name"),
        ({"score": "object_count"}, "there is no score object_count; did you mean object_counting"),
        ({"configs": ["prop.yaml"]}, "no config prop.yaml"),
        (setting(configs=["prop.yaml"]), "no config prop.yaml"),
        (setting(columns=["lop"]), "there is no column lop; did you mean loop"),
        (setting(tests=["wrong camera"]), "there is no test wrong camera; did you mean wrong cameras"),
        (setting(score="counting"), "there is no score counting"),
        ({"tests": {"wrong cameras": {"score": "counting"}}}, "there is no score counting"),
        ({"tests": {"wrong cameras": None}}, "tests: expected options by name for each test"),
        ({"test": {"data.perturbation": "OtherCamera"}}, "OtherCamera; did you mean OtherCameras"),
        (setting(requires=["vggt"]), "there is no required file vggt"),
        ({"requires": {"vggt": "fit 'a"}}, "requires: vggt: No closing quotation"),
        ({"requires": {"vggt": "python main.py fit"}}, "requires: vggt: give what follows main.py, such as fit"),
        ({"compare": [{**COMPARED, "settings": ["PRoPe"]}]}, "there is no setting PRoPe; did you mean PRoPE"),
        ({"compare": [{**COMPARED, "baseline": "non"}]}, "there is no setting non; did you mean none"),
        ({"compare": [{**COMPARED, "column": "lopp"}]}, "there is no column lopp; did you mean loop"),
        ({"compare": [{**COMPARED, "baseline": None}]}, "name a baseline or tests"),
        ({"compare": [{**COMPARED, "tests": ["wrong cameras"]}]}, "there is no test of none wrong cameras"),
        ({"compare": [COMPARED, COMPARED]}, "title Do cameras help.* is given twice"),
        (
            {"tests": {"wrong cameras": {"data.perturbation": "OtherCamera"}}},
            "OtherCamera; did you mean OtherCameras",
        ),
        (
            {"settings": {"a": {}, "a-x": {}}, "columns": {"y": {}, "x-y": {}}, "compare": []},
            "share the folder a-x-y-0",
        ),
        ({"documents": ["guide.md"]}, "documents: there is no guide.md"),
        ({"settings": {"a b": {}, "a, b": {}}, "compare": []}, "share the folder a-b-loop-0"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write_study(tmp_path / "toys.yaml", **changes)
    with pytest.raises(InputError, match=f"^{path}: .*{expected}"):
        read_study(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: [", "cannot be read as YAML"),
        ("- a", "holds no study"),
        ("title: a\nsettings:\n  a: {}\n  a: {}", "line 4: a is given twice"),
        ("parts: [&a {x: 1}, &b {y: 1}]\ntitle: a\nsettings: {a: {<<: [*a, *b]}}", "line 3: merge one part"),
    ],
)
def test_yaml_that_would_be_misread_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "toys.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path}: .*{expected}"):
        read_study(path)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    """Of a study without a wrong value, the control of those above."""
    path = str(write_study(tmp_path / "toys.yaml"))
    for words, expected in (
        (["--settings", "PRoPe"], "there is no setting PRoPe; did you mean PRoPE"),
        (["--settings", "GTA"], "there is no setting GTA; known: none PRoPE"),
        (["--columns", "lop"], "there is no column lop; did you mean loop"),
        (["--seeds", "7"], "there is no seed 7"),
        (["--seeds", "0", "0"], "seed 0 is given twice"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--trainer.max_steps=3"], "trainer: there is no such option"),
        (["--slurm.partition", "gpu"], "--slurm: for --executor slurm"),
    ):
        with pytest.raises(InputError, match=expected):
            study([path, *words])
    for name, advice in (("quite.yaml", "known: "), ("toy.yml", "did you mean "), ("toys", "did you mean ")):
        with pytest.raises(InputError, match=f"there is no such study; {advice}.*{path}"):
            study([str(tmp_path / name)])


def test_options_keep_their_order_and_the_column_wins(tmp_path: Path) -> None:
    part = {"model.camera_encoding": None, "model.fusion": None}
    own = {"model.camera_encoding": "PRoPE", "model.camera_encoding.scale": "rms", "trainer.max_steps": 5}
    text = yaml.safe_dump({"title": "t", "options": {"trainer.max_steps": 3}, "parts": part}, sort_keys=False)
    text = text.replace("parts:", "parts: &part")
    settings = yaml.safe_dump(own, sort_keys=False).replace("\n", "\n    ")
    path = tmp_path / "toys.yaml"
    path.write_text(f"{text}settings:\n  a:\n    <<: *part\n    {settings}\ncolumns: {{c: {{data.x: [1, true]}}}}\n")
    plan = read_study(path)
    assert plan.run("a", "c", 7).fit == (
        *("--trainer.max_steps=3", "--model.camera_encoding=PRoPE", "--model.fusion=null"),
        *("--model.camera_encoding.scale=rms", "--trainer.max_steps=5", "--data.x=[1, true]", "--seed_everything=7"),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_studies_of_the_repository_are_whole(name: str) -> None:
    plan = study_named(name)
    runs = plan.runs(plan.settings, plan.columns, plan.seeds)
    assert len({run.fit for run in runs}) == len({run.folder_name for run in runs}) == len(runs) >= 2
    used = {test for setting in plan.settings.values() for test in setting.tests}
    assert used == plan.tests.keys()


def test_grpo_starts_from_a_training_of_another_seed() -> None:
    """Under one of its own it would go on with the questions that the start has learned, in their order."""
    plan = study_named("grpo")
    (command,) = plan.requires.values()
    assert int(command.split("--seed_everything ")[1].split()[0]) not in plan.seeds
