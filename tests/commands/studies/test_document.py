"""The document of a study has the scores, their differences and intervals, and embeds sections once they are whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.studies.embedding import SCORES
from commands.studies.plot import ROW, draw
from commands.studies.results import Questions
from commands.studies.scores import best_constant
from commands.study import study
from tests.commands.made_runs import Record, answers
from tests.commands.studies.faked import STUDY, FakeMain, write_study
from zoo.errors import InputError
from zoo.versions import versions

pytestmark = pytest.mark.usefixtures("read_once")


def row(text: str, first: str, heading: str) -> list[str]:
    """The cells of the row that begins with a cell, in the first table below a heading."""
    lines = text[text.index(heading) :].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {first} |")).split("|")[2:-1]]


def test_differences_are_those_of_the_results_with_intervals_around_them(main_py: FakeMain, study_file: Path) -> None:
    write_study(study_file, seeds=[0, 1, 2])
    study([str(study_file), "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    lines = [json.loads(line) for line in (study_file.parent / "results/toys.jsonl").read_text().splitlines()]
    scores = {
        name: [line["scores"]["object_counting"] for line in lines if (line.get("setting"), line.get("column")) == name]
        for name in (("none", "loop"), ("PRoPE", "loop"))
    }
    none, prope = scores["none", "loop"], scores["PRoPE", "loop"][::2]  # the others are of wrong cameras
    *cells, change, by_scene, by_question = row(text, "PRoPE", "## Do cameras help?")
    assert cells == [f"{np.mean(prope):.3f} ({min(prope):.3f} to {max(prope):.3f})", ""]
    assert float(change) == pytest.approx(np.mean(prope) - np.mean(none), abs=1e-3)
    for interval in (by_scene, by_question):
        low, high = map(float, interval.split(" to "))
        assert 0 < low < float(change) < high  # cameras do help
    assert row(text, "none", "## Do cameras help?")[2:] == ["", "", ""]  # the baseline
    tested = row(text, "PRoPE", "## Do wrong cameras hurt?")
    assert float(tested[2]) < 0 and tested[2] == row(text, "PRoPE", "## Further tests")[2]


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the lines of a file of results."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(each | change(each)) + "\n" for each in lines))


@pytest.mark.parametrize("learned", [True, False])
def test_one_training_of_each_has_no_interval_and_a_null_result_says_what_it_could_show(
    learned: bool, main_py: FakeMain, study_file: Path
) -> None:
    write_study(study_file, seeds=[0, 1, 2])
    study([str(study_file), "--seeds", "0", "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    assert row(text, "PRoPE", "## Do cameras help?")[3:] == ["none: one seed of each"]
    assert " to " in row(text, "PRoPE", "## Do wrong cameras hurt?")[3]  # two tests of one model
    study([str(study_file), "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    assert not re.search("overlap|could show", "".join(row(text, "PRoPE", "## Do cameras help?")))  # the control

    def alike(line: dict[str, Any]) -> dict[str, Any]:
        """Settings of equal scores, and scenes with one question each; models of one answer score alike in each."""
        if "ids" in line:
            return {"scenes": line["ids"]}
        own = 5 * learned * (line["setting"] == "PRoPE")
        found = [(place * 7 + 3 * line["seed"] + own) % 11 / 10 for place in range(len(line["question_scores"]))]
        return {"question_scores": found, "scores": {"object_counting": 0.5 + 0.01 * line["seed"]}}

    rewrite(study_file.parent / "results/toys.jsonl", alike)
    study([str(study_file), "--write"])
    text = study_file.with_suffix(".md").read_text()
    *_, difference, interval = row(text, "PRoPE", "## Do cameras help?")
    assert difference == "+0.000, the seeds overlap" and "by question" not in text and "seed and question" not in text
    if not learned:
        assert interval == "none: equal in each question"
        return
    low, high, shown = re.fullmatch(r"(-\S+) to (\+\S+) \(could show (\S+)\)", interval).groups()  # type: ignore[union-attr]
    assert float(shown) == pytest.approx(2.8 / 3.92 * (float(high) - float(low)), abs=2e-3)
    assert row(text, "PRoPE", "## Do wrong cameras hurt?")[2] == "+0.000"  # the same models: no two samples of seeds


def test_a_row_of_another_measure_is_labeled_in_every_table(main_py: FakeMain, study_file: Path) -> None:
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "score": "route_planning"}}
    write_study(study_file, settings=settings, seeds=[0])
    study([str(study_file), "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    assert "| PRoPE |" not in text and "| none |" in text
    lines = [json.loads(line) for line in (study_file.parent / "results/toys.jsonl").read_text().splitlines()]
    none, prope = (
        next(line["scores"]["route_planning"] for line in lines if line.get("setting") == name)
        for name in ("none", "PRoPE")
    )
    for heading in ("# Toys", "## Further tests", "## Do cameras help?", "## Do wrong cameras hurt?"):
        assert row(text, "PRoPE (route_planning)", heading)
    shown, _, change, *_ = row(text, "PRoPE (route_planning)", "## Do cameras help?")
    assert shown == f"{prope:.3f}" and float(change) == pytest.approx(prope - none, abs=1e-3)


def test_a_cell_shows_how_many_seeds_it_has(main_py: FakeMain, study_file: Path) -> None:
    study([str(study_file), "--seeds", "0", "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    assert "1 of 2 seeds" in row(text, "PRoPE", "# Toys")[0] and row(text, "PRoPE", "# Toys")[1] == ""
    assert f"The code that trained: {versions()['zoo']} (3 trainings)." in text
    study([str(study_file), "--jobs", "1"])
    assert "of 2 seeds" not in study_file.with_suffix(".md").read_text()


def test_a_section_is_embedded_once_it_is_measured(main_py: FakeMain, study_file: Path, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    before = (
        "One.\n<!-- study: toys / Do cameras help? -->\nold\n<!-- end -->\nTwo.\n<!-- study: x / y -->\n<!-- end -->\n"
    )
    guide.write_text(before)
    write_study(study_file, documents=["guide.md"])
    study([str(study_file), "--seeds", "0", "--jobs", "1"])
    assert guide.read_text() == before
    study([str(study_file), "--jobs", "1"])
    text = guide.read_text()
    assert "old" not in text and text.startswith("One.\n<!-- study") and "<!-- end -->\nTwo.\n<!-- study: x" in text
    assert row(text, "PRoPE", "toys") == row(study_file.with_suffix(".md").read_text(), "PRoPE", "## Do cameras help?")
    study([str(study_file), "--write"])
    assert guide.read_text() == text
    guide.write_text(before.replace("cameras help", "cameras hurt"))
    with pytest.raises(InputError, match="documents: guide.md: there is no section Do cameras hurt.*did you mean Do"):
        study([str(study_file), "--write"])


def test_single_scores_are_embedded_in_the_form_that_they_have(
    main_py: FakeMain, study_file: Path, tmp_path: Path
) -> None:
    guide = tmp_path / "guide.md"
    cells = {
        "PRoPE / loop": ("0.1 (0.0 to 0.2)", r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)"),
        "none / loop": ("0.12", r"0\.\d\d"),
        "PRoPE / loop / wrong cameras": ("", r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)"),
        "PRoPE / loop minus none": ("+0.1000", r"\+0\.\d{4}"),
        "PRoPE / loop / wrong cameras minus PRoPE": ("0.10", r"-0\.\d\d"),
        "best constant answer / loop": ("0.1", r"0\.\d"),
    }
    guide.write_text("".join(f"<!-- score: toys / {cell} -->{text}<!-- end -->, " for cell, (text, _) in cells.items()))
    before = guide.read_text()
    write_study(study_file, documents=["guide.md"])
    study([str(study_file), "--settings", "none", "--columns", "local", "--jobs", "1"])
    assert guide.read_text() == before  # nothing of it is measured
    study([str(study_file), "--jobs", "1"])
    shown = [found["text"] for found in SCORES.finditer(guide.read_text())]
    assert len(shown) == len(cells)
    for text, (former, form) in zip(shown, cells.values(), strict=True):
        assert text != former and re.fullmatch(form, text), text
    loop = [row(study_file.with_suffix(".md").read_text(), name, "# Toys")[0] for name in ("PRoPE", "none")]
    assert shown[0] == loop[0].removesuffix(" <")
    assert float(shown[3]) == pytest.approx(float(loop[0][:5]) - float(loop[1][:5]), abs=2e-3)
    for wrong, message in (
        ("PRoPe / loop", "setting PRoPe; did you mean PRoPE"),
        ("none / lop", "column lop; did you"),
    ):
        guide.write_text(f"<!-- score: toys / {wrong} -->0.1<!-- end -->")
        with pytest.raises(InputError, match=f"documents: guide.md: there is no {message}"):
            study([str(study_file), "--write"])


def test_errors_of_objectives_stand_beside_those_of_a_null_model(
    main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_errors(*args: Any, seed: int, **options: Any) -> list[Record]:
        errors = {"Depth/off": 0.25 + 0.1 * (seed % 2), "Depth/unlearned/off": 0.5}
        return [{**record, "objectives": errors} for record in answers(*args, seed=seed, **options)]

    study([str(study_file), "--settings", "none", "--jobs", "1"])
    assert "Errors of what" not in study_file.with_suffix(".md").read_text()
    monkeypatch.setattr("tests.commands.studies.faked.answers", with_errors)
    study([str(study_file), "--settings", "PRoPE", "--seeds", "0", "--jobs", "1"])
    first = row(study_file.with_suffix(".md").read_text(), "PRoPE", "## Errors of what the objectives predict")[1]
    assert re.fullmatch(r"0.\d+ \(1 of 2 seeds\)", first)
    study([str(study_file), "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    assert row(text, "PRoPE", "## Errors of what the objectives predict") == [
        *("Depth/off", "0.3 (0.25 to 0.35)", "0.5 (0.5 to 0.5)", "", "")
    ]
    assert "| none |" not in text[text.index("## Errors of what") :]
    monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: "other code")
    study([str(study_file), "--write"])
    text = study_file.with_suffix(".md").read_text()
    assert row(text, "PRoPE", "## Errors of what the objectives predict")[1] == "0.3 (0.25 to 0.35)"
    assert "All of this was made by other code" in text


def test_blind_baselines_stand_below_the_settings_and_mark_what_is_below_them(
    main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["object_counting"] * 3 + ["route_planning"] * 3
    asked = Questions("k", "VSIBench", "spatial_mllm", list("abcdef"), kinds, ["s"] * 6, ["2", "2", "9", "A", "B", "A"])
    # "2" is right twice and off by 78 % once, below all thresholds; "A" is right twice
    assert best_constant(asked) == pytest.approx({kind: 2 / 3 for kind in (*kinds, "macro")}, abs=1e-5)
    former = replace(asked, question_types=["panel_turns", *kinds[1:]])
    with pytest.raises(InputError, match="that VSIBench no longer has, panel_turns"):
        best_constant(former)
    study([str(study_file), "--seeds", "0", "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    loop, local = row(text, "best constant answer", "# Toys")
    assert re.fullmatch(r"0\.\d{3}", loop) and "text alone" not in text and "cameras alone" not in text
    none, prope = (row(text, name, "# Toys")[0] for name in ("none", "PRoPE"))
    assert float(loop) < float(none.split()[0]) < float(prope.split()[0]) and "<" not in f"{none}{prope}"
    # the baselines that the tests recorded: cameras alone are between the two settings
    file = study_file.parent / "results/toys.jsonl"
    between = (float(none.split()[0]) + float(prope.split()[0])) / 2
    recorded = {"baselines": {"text": {"object_counting": 0.1}, "cameras": {"object_counting": between}}}
    rewrite(file, lambda line: recorded if "fit" in line else {})
    study([str(study_file), "--write"])
    text = study_file.with_suffix(".md").read_text()
    shown = [row(text, name, "# Toys")[0] for name in ("text alone", "cameras alone")]
    assert shown == ["0.100", f"{between:.3f}"]
    for heading in ("# Toys", "## Do cameras help?"):
        assert [row(text, name, heading)[0] for name in ("none", "PRoPE")] == [f"{none} <", prope]
    assert text.count("< below the best blind baseline") == 1


def test_the_plot_has_a_row_for_each_measured_setting(tmp_path: Path) -> None:
    from PIL import Image

    heights = []
    for count in (1, 5):
        rows = {f"setting {n}": {"loop": [0.1, 0.3]} for n in range(count)} | {"nothing yet": {"loop": []}}
        draw(
            {"Do cameras help?": rows, "Unmeasured": {"a": {"loop": []}}},
            {"constant": {"loop": 0.2}, "cameras": {"loop": 0.5}},
            "MRA",
            tmp_path / "dots.png",
        )
        heights.append(Image.open(tmp_path / "dots.png").height)
    assert heights[1] - heights[0] == pytest.approx(4 * 100 * ROW, abs=1)  # at 100 pixels per inch
    assert (tmp_path / "dots.png").stat().st_size < 50_000


def test_another_folder_holds_all_that_is_written(main_py: FakeMain, study_file: Path, tmp_path: Path, capsys) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("<!-- study: toys / Do cameras help? -->\nold\n<!-- end -->\n")
    write_study(study_file, documents=["guide.md"])
    before = sorted(study_file.parent.rglob("*"))
    study([str(study_file), "--jobs", "1", "--output", str(tmp_path / "apart")])
    assert sorted(path for path in study_file.parent.rglob("*") if tmp_path / "apart" not in path.parents) == sorted(
        {*before, tmp_path / "apart"} if study_file.parent == tmp_path else before
    )
    assert "old" in guide.read_text()
    text = (tmp_path / "apart/toys.md").read_text()
    assert (tmp_path / "apart/toys.png").exists() and (tmp_path / "apart/results/toys.jsonl").exists()
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if line.startswith("| PRoPE |")]
    assert len(shown) == 2 and set(shown) <= set(text.splitlines())  # the scores, and the tests on wrong cameras
    study([str(study_file), "--dry_run"])
    assert "6 of 6 trainings to run" in capsys.readouterr().out  # the other folder's results are not the study's


def test_a_comparison_that_names_a_column_shows_that_one_alone_and_needs_no_other(
    main_py: FakeMain, study_file: Path, tmp_path: Path
) -> None:
    document = tmp_path / "questions.md"
    document.write_text("".join(f"<!-- study: toys / {title} -->\n<!-- end -->\n" for title in ("both", "one")))
    titles = [{"title": "both"}, {"title": "one", "column": "loop"}]
    compare = [{**each, "baseline": "none", "settings": ["PRoPE"]} for each in titles]
    write_study(study_file, compare=compare, documents=[str(document)])
    study([str(study_file), "--columns", "loop", "--jobs", "1"])
    both, one = document.read_text().split("<!-- study: toys / one -->")
    assert "| setting |" not in both and "| setting | `loop` | `loop`, minus *none* |" in one
    study([str(study_file), "--jobs", "1"])
    assert "| setting | `loop` | `local` |" in document.read_text().split("<!-- study: toys / one -->")[0]


def test_settings_are_compared_with_a_baseline_under_a_test(main_py: FakeMain, study_file: Path) -> None:
    settings = {name: {**each, "tests": ["wrong cameras"]} for name, each in STUDY["settings"].items()}
    compared = {"baseline": "none", "settings": ["PRoPE"], "tests": ["wrong cameras"]}
    write_study(study_file, settings=settings, compare=[{"title": "Which relies on cameras?", **compared}])
    study([str(study_file), "--jobs", "1"])
    text = study_file.with_suffix(".md").read_text()
    tested = {name: row(text, name, "## Further tests")[1] for name in settings}
    found = {name: row(text, name, "## Which relies on cameras?") for name in settings}
    assert "| setting | tested with | `loop` | `local` | `loop`, minus *none* |" in text
    assert {name: cells[:2] for name, cells in found.items()} == {
        name: ["wrong cameras", tested[name]] for name in settings
    }
    none, prope = (float(tested[name].split()[0]) for name in ("none", "PRoPE"))
    low, high = map(float, found["PRoPE"][-1].split(" (")[0].split(" to "))
    assert float(found["PRoPE"][3].split(",")[0]) == pytest.approx(prope - none, abs=2e-3) and low < prope - none < high
    assert found["none"][3:] == ["", "", ""]  # the baseline
