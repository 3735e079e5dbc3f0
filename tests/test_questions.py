"""docs/questions.md: its proofs name tests that exist, its commands are understood, its sections are of a study."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import main
from commands.studies.embedding import SECTIONS
from tests.repository_studies import ROOT, study_named

TEXT = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")


def test_a_proof_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10 and not {name for name in named if f"def {name}(" not in source}


@pytest.mark.parametrize("study", ["panels", "encodings", "panel_questions", "grpo", "geovr"])
def test_each_section_of_a_study_is_embedded_once(study: str) -> None:
    plan = study_named(study)
    embedded = [block["title"] for block in SECTIONS.finditer(TEXT) if block["study"] == plan.name]
    assert sorted(embedded) == sorted(each.title for each in plan.compare)
    shown = {name for each in plan.compare for name in (each.baseline, *each.settings)} - {None}
    unasked = {name for name, setting in plan.settings.items() if not setting.tests} - shown
    assert not unasked, "each setting answers a question, by its score or by a further test"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(line, marks=() if number % 16 == 0 else pytest.mark.slow)
        for number, line in enumerate(re.findall(r"^    (\$T.*)", TEXT, re.MULTILINE))
    ],
)
def test_a_command_at_full_size_is_understood(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, meaning in re.findall(r'^    (\w+)="(?:python main.py )?(.*?)"', TEXT, re.MULTILINE):
        words = words.replace(f"${name}", meaning)
    monkeypatch.setattr(sys, "argv", ["main.py", *words.split(), "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0, end.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["backbone"]["class_path"].startswith("zoo.Pretrained")
