"""Every score that README.md and docs/ quote is that of the results in studies/results/, or is named as a user's."""

from __future__ import annotations

import json
import os
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

from commands.studies.document import footnotes
from commands.studies.embedding import SCORES, SECTIONS, embed
from commands.studies.results import Results
from commands.studies.scores import OUTDATED, Scores
from commands.studies.sections import is_measured
from commands.studies.study_file import OWN
from tests.repository_studies import ROOT, study_named

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# measured by a user with the published code, in full in golden/published.json
USERS = {"0.5320": "Spatial-MLLM-v1.1-Instruct-135K", "0.2907": "Qwen2.5-VL-3B-Instruct"}
# of the best constant answer to these questions, of 21.9 square meters, and a bound on the cameras alone in `loop`
# rooms: tests/callbacks/baselines/
BLIND = {"0.376", "0.375", "0.75"}
THRESHOLDS = {"0.50", "0.55", "0.95"}  # of MRA
KNOWN = {*USERS, *(f"{float(number):.3f}" for number in USERS), *BLIND, *THRESHOLDS}
UNMEASURED = "Not measured yet."  # what a section says until all of its settings are
BLOCK = re.compile(r"<!-- (?!end\b)[^>]*-->.*?<!-- end -->", re.DOTALL)  # written by some command
CODE = re.compile(r"^```.*?^```$|^    .*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
FOOTNOTE = re.compile(rf"\n(?:All of this was made|{OUTDATED} Made) by other code than the present;[^\n]*\n")
NUMBER = re.compile(r"(?<![\w.,])[+-]?0\.\d{2,4}(?!\.?\d)")


@cache
def scores_of(study: str) -> Scores:
    """The results of a study without marks, which depend on the present code."""
    plan = study_named(study)
    others = sorted({*plan.results.parent.glob("*.jsonl")} - {plan.results})
    return Scores(plan, Results(plan.results, others), {})


def expected(text: str) -> str:
    """A document without marks, with the scores and the sections of the results."""
    text = FOOTNOTE.sub("", text).replace(OUTDATED, "")
    for study in {found["study"] for pattern in (SCORES, SECTIONS) for found in pattern.finditer(text)}:
        text = embed(text, scores_of(study), footnotes)
    return text


def unsourced(text: str) -> list[str]:
    """The numbers that look like scores, outside of what commands write."""
    return [number for number in NUMBER.findall(CODE.sub("", BLOCK.sub("", text))) if number not in KNOWN]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scores_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert FOOTNOTE.sub("", text).replace(OUTDATED, "") == expected(text)
    for found in (*SCORES.finditer(text), *SECTIONS.finditer(text)):  # the study writes them when it is run
        assert path.relative_to(ROOT).as_posix() in scores_of(found["study"]).study.documents
    assert unsourced(text) == []


def test_every_quoted_score_and_section_is_measured() -> None:
    quoted = [found for path in DOCUMENTS for found in SCORES.finditer(path.read_text(encoding="utf-8"))]
    assert len(quoted) > 5
    for found in quoted:
        gone = found[0].replace(found["text"], "nothing")
        written = embed(gone, scores_of(found["study"]), footnotes)
        assert written != gone, f"{found[0]} is not in the results"
    for found in (each for path in DOCUMENTS for each in SECTIONS.finditer(path.read_text(encoding="utf-8"))):
        scores = scores_of(found["study"])
        (section,) = (each for each in scores.study.compare if each.title == found["title"])
        said = found["text"].strip() == UNMEASURED
        assert said != is_measured(section, scores), f"{found['title']} is not in the results"


def test_the_task_of_panels_needs_images_and_cameras() -> None:
    """The bounds that studies/panels.yaml set before anything was trained."""
    scores = scores_of("panels")
    constant, *others = (scores.baselines[name][""] for name in ("constant", "text", "cameras"))
    images = statistics.mean(scores.of("images alone", ""))
    tests = (OWN, *scores.study.settings["PRoPE"].tests)
    prope, *perturbed = (statistics.mean(scores.of("PRoPE", "", test)) for test in tests)
    assert all(blind <= constant + 0.1 for blind in (*others, images))
    assert prope >= max(constant, *others, images) + 0.2
    assert len(perturbed) == 2 and all(each <= constant for each in perturbed)
    assert all(scores.is_complete("PRoPE", "", test) for test in tests)


def shares_said(heading: str) -> list[str]:
    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    section = text[text.index(f"## {heading}") :]
    return re.findall(r"(\d+) %", re.sub(r"(?m)^\|.*", "", section[: section.index("\n## ")]))  # without tables


def shares_probed(name: str) -> dict[tuple[str, str, str], list[float]]:
    probes = json.loads((ROOT / f"docs/{name}.json").read_text(encoding="utf-8"))["probes"]
    return {(each["model"], each["tokens"], each["target"]): [100 * r2 for r2 in each["r2"]] for each in probes}


def test_shares_of_variance_are_those_of_the_probe() -> None:
    probed = shares_probed("probe")
    answer, rotation = ("text", "answer: panel_turn"), ("visual", "rotation")
    quoted = [("after", *answer), ("before", *answer), ("before", *rotation), ("after", *rotation)]
    assert shares_said("What do the hidden states hold?") == [f"{probed[each][-1]:.0f}" for each in quoted]


def triangulates(study: str, setting: str) -> bool:
    """Whether a setting exceeds all that does without parallax by 0.15, as the studies set it beforehand."""
    scores, column = scores_of(study), "parallax"
    tests = ("cameras of another room", "frames at other centers")
    assert all(scores.is_complete(setting, column, test) for test in (OWN, *tests))
    others = [scores.baselines[name][column] for name in ("constant", "text", "cameras")]
    others += [statistics.mean(scores.of(setting, column, test)) for test in tests]
    others.append(statistics.mean(scores.of("images alone", column)))
    return statistics.mean(scores.of(setting, column)) >= max(others) + 0.15


def test_a_model_triangulates_after_3200_steps_and_not_after_400() -> None:
    for setting in ("PRoPE", "PRoPE, depth objective"):
        assert triangulates("triangulation_long", setting) and not triangulates("triangulation", setting)


def test_shares_after_triangulation_are_those_of_the_best_layer() -> None:
    long, short = shares_probed("probe_triangulation"), shares_probed("probe_triangulation_400")
    of = [
        (long, ("before", "visual", "position")),
        (long, ("before", "visual", "rotation")),
        (long, ("before", "visual", "depth")),
        (long, ("after", "visual", "depth")),
        (long, ("after", "text", "answer: panel_distance")),
        (short, ("after", "visual", "depth")),
        (short, ("after", "text", "answer: panel_distance")),
        (shares_probed("probe_triangulation_rayrope"), ("after", "text", "position")),
        (short, ("before", "text", "position")),
    ]
    shares = [f"{max(probed[names]):.0f}" for probed, names in of]
    said = shares_said("What makes cameras useful where their path does not depend on the room?")
    assert said == [*shares[:6], "10", *shares[6:]]  # 10 % is the bound that was set beforehand


def test_a_score_that_differs_or_has_no_source_is_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = next(each for each in SCORES.finditer(text) if "(" in each["text"])  # another number keeps its digits
    altered = text.replace(found["text"], found["text"].replace("0.", "0.9"), 1)
    assert expected(altered) == expected(text) != altered
    assert unsourced(f"{text}\nIt scores 0.613 to 0.62, and with `--x 0.5` +0.013 more.") == ["0.613", "0.62", "+0.013"]


def commands_with_a_users_score() -> list[str]:
    """Returns the two commands of the guide, with their variables filled in."""
    text = (ROOT / "docs/guide/full_size.md").read_text(encoding="utf-8").replace("\\\n", "")
    variables = dict(re.findall(r'^    (\w+)="(.*?)"', text, re.MULTILINE))
    commands = re.findall(rf"^    python main.py (.*?) +# (?:{'|'.join(USERS)})$", text, re.MULTILINE)
    return [re.sub(r"\$(\w+)", lambda name: variables[name[1]], words) for words in commands]


def test_a_command_with_a_users_score_sets_what_it_needs() -> None:
    commands = commands_with_a_users_score()
    assert len(commands) == 2 and all("--model.repetition_penalty 1.05" in words for words in commands)


@pytest.mark.skipif("ZOO_GOLDEN" not in os.environ, reason="ZOO_GOLDEN is unset: no published numbers")
def test_a_users_scores_are_as_reported() -> None:
    published = json.loads((Path(os.environ["ZOO_GOLDEN"]) / "published.json").read_text(encoding="utf-8"))
    rows = published["room_size_arkitscenes_150"]["rows"]
    assert {f"{rows[model]['micro']:.4f}": model for model in USERS.values()} == USERS
