"""Every number of the page is that of the runs' files, computed by hand: tables, bars, differences, questions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

import commands.reports.page
from commands.report import report
from tests.commands.made_runs import BENCHMARK, CONFIG, Record, answers, make_run

Table = list[list[str]]
ACC = ("Rel. Dist.", "Rel. Dir.", "Route Plan", "Appr. Order")
MRA = ("Obj. Count", "Abs. Dist.", "Obj. Size", "Room Size")
GROUPS = {"Acc.": ACC, "MRA": MRA, "All": (*MRA, *ACC)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Record]], str, str]:
    """The predictions of three runs of which two differ in the seed alone, their page, and their report as text."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b", "c")):
        records = answers(160, seed=seed, right=0.2 + 0.2 * seed, scenes=7)
        plans = [each for each in records if each["question_type"] == "route_planning"]
        assert len(plans) == 16
        for place, each in enumerate(plans):  # 1/16 is 6.25 %, which is rounded up or to the even digit
            each["prediction"] = each["ground_truth"] if place <= 2 * seed else "none"
        records[5] |= {"error": "toy/5.mp4: truncated", "prediction": ""}
        config = yaml.safe_load(yaml.safe_dump(CONFIG))
        config["seed_everything"], config["trainer"]["max_steps"] = seed, 10 if name != "c" else 20
        make_run(folder / name, records, config)
    runs = [str(folder / name) for name in ("a", "b", "c")]
    report([*runs, "--output", str(folder / "page.html")])
    report([*runs, "--output", str(folder / "report.txt")])
    lines = {
        Path(run).name: [json.loads(line) for line in (Path(run) / "predictions.jsonl").read_text().split("\n") if line]
        for run in runs
    }
    return lines, (folder / "page.html").read_text(), (folder / "report.txt").read_text()


def tables(page: str) -> dict[str, Table]:
    """The rows of each table of the page by the first words of its title."""
    found = {}
    for title, body in re.findall(r'<p class="hint">([^<]*)</p>\s*<table>(.*?)</table>', page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
        found[title.partition(" (")[0].partition(",")[0]] = [[unescape(cell).strip() for cell in row] for row in cells]
    return found


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    return data


def scores_by_hand(records: list[Record]) -> dict[str, float]:
    """The score of each column and mean, in 0..1, from the scores of the single questions alone."""
    by_type: dict[str, list[float]] = {}
    for each in records:
        by_type.setdefault(each["question_type"], []).append(each["score"])
    own = {column: [by_type[kind] for kind in kinds] for column, kinds in BENCHMARK.columns.items()}
    found = {column: fmean(map(fmean, each)) for column, each in own.items()}  # a column may have several types
    for group, columns in GROUPS.items():
        found[f"{group} micro"] = fmean(score for column in columns for each in own[column] for score in each)
        found[f"{group} macro"] = fmean(found[column] for column in columns)
    return {**found, "Avg.": found["All macro"]}


def constant_by_hand(records: list[Record]) -> dict[str, float]:
    """The same of answering each question type by one answer: that of a fine grid, or of the letters, with the most."""
    found = []
    for kind in {each["question_type"] for each in records}:
        own = [each for each in records if each["question_type"] == kind]
        tried = [f"{n / 40}" for n in range(60, 360)] if kind in BENCHMARK.numeric_types else list("ABCD")
        scored = [[BENCHMARK.score(answer, e["ground_truth"], kind, "spatial_mllm") for e in own] for answer in tried]
        found += [{**each, "score": score} for each, score in zip(own, max(scored, key=sum), strict=True)]
    return scores_by_hand(found)


def shown(score: float, signed: bool = False) -> str:
    return f"{100 * score:{'+' if signed else ''}.1f}"


@pytest.fixture(scope="module")
def constant(made: Any) -> dict[str, float]:
    """The scores of the best constant answer to the questions of all runs, which are the same."""
    return constant_by_hand(made[0]["a"])


def test_tables(made: Any, constant: dict[str, float]) -> None:
    lines, page, _ = made
    found, expected = tables(page), {run: scores_by_hand(records) for run, records in lines.items()}
    expected["best constant answer"] = constant
    for title in ("Scores by question type", "Means over questions"):
        headings, *rows = found[title]
        measures = [heading for heading in headings if heading in expected["a"]]
        assert len(measures) == (9 if title.startswith("Scores") else 6)
        assert [row[0] for row in rows] == [*"abc", "best constant answer"]
        for run, *cells in rows:
            own = [(expected[run][measure], constant[measure]) for measure in measures]
            assert cells[: len(measures)] == [f"{shown(s)}{' <' if s < c - 1e-6 else ''}" for s, c in own], run
    for run, *_, questions, failed, unparsable in found["Means over questions"][1:-1]:
        truncated = [each for each in lines[run] if each["error"]]
        plain = [each for each in lines[run] if each["prediction"] == "none"]
        assert [questions, failed, unparsable] == [str(len(each)) for each in (lines[run], truncated, plain)]
    _, *seeds = found["Scores of runs that differ in the seed alone"]
    assert [row[0] for row in seeds] == ["a, b"] * 14
    for _, measure, *cells in seeds:
        both = [expected[run][measure] for run in "ab"]
        assert cells == [*map(shown, (fmean(both), min(both), max(both))), "2"], measure


def test_bars_and_differences_are_those_of_the_tables(made: Any, constant: dict[str, float]) -> None:
    lines, page, text = made
    data, expected = data_of(page), {run: scores_by_hand(records) for run, records in lines.items()}
    printed = [re.split(" {2,}", line.strip()) for line in text.splitlines()]
    assert data["runs"] == [*expected] == ["a", "b", "c"] and data["bars"].keys() == {*GROUPS["All"], "Avg."}
    for column, bars in data["bars"].items():
        assert [f"{bar:.1f}" for bar in bars] == [shown(own[column]) for own in expected.values()]
    assert data["bars"]["Route Plan"][0] == 6.2  # as the table has it
    for column, best in data["blind"].items():
        assert [f"{each:.1f}" for each in best] == [shown(constant[column])] * 3
    assert data["comparisons"]["pairs"].keys() == {"0 1", "0 2", "1 2"}
    for pair, rows in data["comparisons"]["pairs"].items():
        first, second = ("abc"[int(place)] for place in pair.split())
        measured = {data["comparisons"]["measures"][place]: cells for place, *cells in rows}
        assert measured.keys() == expected["a"].keys() - {"Avg."}
        for measure, (difference, *intervals) in measured.items():
            by_hand = expected[second][measure] - expected[first][measure]
            assert f"{difference:+.1f}" == shown(by_hand, signed=True).replace("-0.0", "+0.0"), (pair, measure)
            for low, high in intervals:
                assert low <= difference <= high
            if first == "a" and measure in ("All micro", "All macro"):  # the report as text has these
                ends = [f"[{low:+.1f}, {high:+.1f}]" for low, high in intervals]
                low, high = intervals[1]
                row = next(row for row in printed if row[:3] == [second, measure, f"{difference:+.1f}"])
                assert row[3:5] == ends and (row[5] == "-") == (not low <= 0 <= high)
                assert row[5] == "-" or float(row[5]) == pytest.approx(2.8 / 3.92 * (high - low), abs=0.15)


def test_single_questions(made: Any) -> None:
    lines, page, _ = made
    data = data_of(page)
    texts, frames = data["texts"], data["frames"]
    asked = [
        (id, texts[scene], data["types"][kind], texts[question], texts[truth])
        for id, scene, kind, question, truth in data["questions"]
    ]
    fields = ("id", "scene", "question_type", "question", "ground_truth")
    for records, columns in zip(lines.values(), data["answers"], strict=True):
        assert asked == [tuple(each[field] for field in fields) for each in records]
        for place, (each, question) in enumerate(zip(records, asked, strict=True)):
            own = {name: values[place] for name, values in columns.items()}
            assert texts[own["prediction"]] == each["prediction"] and frames[own["frames"]] == each["frames"]
            assert f"{own['score']:.1f}" == shown(each["score"])
            assert texts[own["before"]] + question[3] + texts[own["after"]] == each["prompt"]
            assert (None if own["error"] < 0 else texts[own["error"]]) == each["error"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_scripts_show_a_number_as_the_tables_do() -> None:
    script = (Path(commands.reports.page.__file__).parent / "dom.js").read_text()
    numbers = [0.0, 6.2, 6.3, 31.2, 100.0, -0.1, 12.0]
    command = f"globalThis.document = {{getElementById: () => ({{textContent: '{{}}'}})}};\n{script}"
    command += f"\nconsole.log(JSON.stringify({numbers}.map((each) => [percent(each), signed(each), signed(-each)])))"
    said = json.loads(subprocess.run(["node", "-e", command], capture_output=True, text=True, check=True).stdout)
    for number, (plain, plus, minus) in zip(numbers, said, strict=True):
        assert plain == f"{number:.1f}"
        assert (plus, minus) == ((f"{number:+.1f}", f"{-number:+.1f}") if number else ("0.0", "0.0"))
