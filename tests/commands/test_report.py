"""python main.py report: one table of settings, in every format, from the files of runs."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

from commands.report import report
from commands.reports.scores import load
from commands.reports.statistics import difference
from run_folder.record import RunRecord
from tests.commands.made_runs import BENCHMARK, CONFIG, Record, answers, make_run
from zoo.errors import InputError, printable

HOSTILE = "</td></table><script>alert('taken')</script> \\ 50% & $x^2$ #1 ~{a}_b | [c]* `d` \u2028 \ud83c\udf89 <b>\x00"
COLUMNS = [*BENCHMARK.columns]


def seeded(seed: int, name: str | None = None, fusion: str | None = None) -> Any:
    """The config of a training with a seed."""
    config: Any = copy.deepcopy(CONFIG)
    config |= {"seed_everything": seed, "name": name}
    config["trainer"] = {"default_root_dir": f"runs/{seed}", "max_steps": 10}
    config["model"]["init_args"]["fusion"] = fusion and {"class_path": fusion}
    config["model"]["init_args"]["backbone"]["init_args"]["seed"] = None
    config["data"]["init_args"]["source"] = {"class_path": "datamodules.Rooms", "init_args": {"seed": 0}}
    return config


def rewrite_metrics(run: Path, **entries: Any) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, **entries}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three seeds of two settings; the first also has a further test, of fewer questions. One answer is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for number, (name, right, fusion) in enumerate((("plain", 0.3, None), ("fused", 0.5, "my.Fusion"))):
        for seed in range(3):
            records = answers(210, seed=3 * number + seed, right=right, scenes=21)
            if (name, seed) == ("fused", 1):
                records[0] |= {"prediction": HOSTILE}
                records[1] |= {"prediction": "", "error": HOSTILE}
            made[f"{name}{seed}"] = make_run(folder / f"{name}{seed}", records, seeded(seed, name, fusion))
    make_run(made["plain0"] / "tests/subset-90", answers(90, scenes=9), seeded(0, "plain"))
    return made


def run_report(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    report([*map(str, arguments)])
    return capsys.readouterr().out


# ---- The numbers ----------------------------------------------------------------------------------------------------


def by_hand(records: list[Record]) -> dict[str, float]:
    """The score of each column and mean, from the scores of the single questions alone."""
    by_type: dict[str, list[float]] = {}
    for each in records:
        by_type.setdefault(each["question_type"], []).append(each["score"])
    found = {column: fmean(fmean(by_type[kind]) for kind in kinds) for column, kinds in BENCHMARK.columns.items()}
    return {**found, "macro": fmean(found[column] for column in COLUMNS), "micro": fmean(e["score"] for e in records)}


def constant_by_hand(records: list[Record]) -> dict[str, float]:
    """The same of answering each question type by one answer: that of a fine grid, or of the letters, with the most."""
    found, score_of = [], cache(BENCHMARK.score)
    for kind in {each["question_type"] for each in records}:
        own = [each for each in records if each["question_type"] == kind]
        tried = [f"{n / 40}" for n in range(60, 360)] if kind in BENCHMARK.numeric_types else list("ABCD")
        scored = [[score_of(answer, e["ground_truth"], kind, "spatial_mllm") for e in own] for answer in tried]
        found += [{**each, "score": score} for each, score in zip(own, max(scored, key=sum), strict=True)]
    return by_hand(found)


def lines(run: Path) -> list[Record]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().split("\n") if line]


def test_the_table_has_the_numbers_of_the_answers(runs, capsys) -> None:
    said = run_report(*runs.values(), "--format", "csv", capsys=capsys)
    table, further = (pd.read_csv(io.StringIO(part), index_col="setting") for part in said.split("\n\n"))
    assert [*table.index] == ["plain", "fused", "best constant answer"] and [*further.index][0] == "plain, subset-90"
    constant = constant_by_hand(lines(runs["plain0"]))
    means = {}
    for name in ("plain", "fused"):
        seeds = [by_hand(lines(runs[f"{name}{seed}"])) for seed in range(3)]
        for measure in (*COLUMNS, "macro", "micro"):
            scores = [own[measure] for own in seeds]
            expected = [fmean(scores), min(scores), max(scores)]
            cells = table.loc[name, [measure, f"{measure} low", f"{measure} high"]].tolist()
            assert cells == pytest.approx(expected, abs=1e-7), (name, measure)
            assert table.loc["best constant answer", measure] == pytest.approx(constant[measure], abs=1e-6)
            means[name, measure] = expected[0]
        assert table.loc[name, "seeds"] == 3
    change = "macro - plain"
    assert table.loc["fused", change] == pytest.approx(means["fused", "macro"] - means["plain", "macro"], abs=1e-9)
    tested, _ = load(runs.values())
    sides = [[each for each in tested if each.label == name and not each.test] for name in ("fused", "plain")]
    found = difference(*sides, "macro")
    assert table.loc["fused", [f"{change} low", f"{change} high"]].tolist() == pytest.approx([found.low, found.high])
    assert found.low < found.value < found.high and found.seeds == 3
    # what is below the best blind baseline is marked
    row = next(line for line in run_report(*runs.values(), capsys=capsys).splitlines() if line.startswith("plain "))
    marks = [cell.endswith("<") for cell in re.split(" {2,}", row)[1:11]]
    assert marks == [means["plain", measure] < constant[measure] for measure in (*COLUMNS, "macro", "micro")]
    assert {*marks} == {True, False}


# ---- Formats --------------------------------------------------------------------------------------------------------


def rows_of(text: str, format: str) -> list[list[str]]:
    """The cells of all lines of a text."""
    split = {
        "text": lambda line: re.split(r" {2,}", line.strip()),
        "markdown": lambda line: re.split(r" +\| +", line.strip("| ")),
        "latex": lambda line: re.split(r" +& +", line.strip(" \\")),
    }
    return [[re.sub(r"\\<|\\ensuremath\{<\}", "<", c) for c in split[format](line)] for line in text.splitlines()]


@pytest.mark.parametrize("format", ["text", "markdown", "latex"])
def test_all_formats_have_the_same_cells(runs, format: str, capsys) -> None:
    rows = rows_of(run_report(*runs.values(), "--format", format, capsys=capsys), format)
    for name in ("plain", "fused"):
        seeds = [by_hand(lines(runs[f"{name}{seed}"]))["macro"] for seed in range(3)]
        mean, low, high = (f"{100 * score:.1f}" for score in (fmean(seeds), min(seeds), max(seeds)))
        row = next(row for row in rows if row[0] == name and len(row) > 10)
        assert row[9].removesuffix(" <") == f"{mean} ({low} to {high})"
    options = [row for row in rows if row[0].replace("\\", "") == "model.fusion"]
    assert options == [[options[0][0], "null", "Fusion"]]  # what differs, and nothing else
    assert sum(len(row) == 3 and row[0].replace("\\", "").startswith("model") for row in rows) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_suffix_chooses_the_format(runs, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    starts = {"a.md": "**VSIBench", "deep/a.tex": "% needs", "a.csv": "setting,", "a.txt": "VSIBench, scorer"}
    made_by = {
        ".md": "<!-- python main.py report -->\n\n",
        ".tex": "% python main.py report\n",
        ".csv": "",
        ".txt": "# python main.py report\n\n",
    }
    for name, start in starts.items():
        run_report(runs["plain0"], "--output", name, capsys=capsys)
        assert Path(name).read_text().removeprefix(made_by[Path(name).suffix]).startswith(start)
    assert "2 tests in report.html" in run_report(runs["plain0"], "--format", "html", capsys=capsys)
    assert Path("report.html").read_text().startswith("<!doctype html>")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles_with_special_characters(tmp_path: Path) -> None:
    names = ("plain", "under_score 50% & $x^2$ #1 ~{a}\\b", "[ab]*<c>|d")
    runs = [make_run(tmp_path / f"r{i}", answers(45, seed=i), seeded(i, name)) for i, name in enumerate(names)]
    report([*map(str, runs), "--output", str(tmp_path / "tables.tex")])
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]


@pytest.mark.slow
def test_names_are_no_formulas_and_control_no_terminal(tmp_path: Path, capsys) -> None:
    """Also names and answers that are not UTF-8, and in every format."""
    names = ("=HYPERLINK(1)", "+1+2", "-x", "@x", "-3", "a\x1b[31m\u202e=", os.fsdecode(b"b\xff"))
    runs = []
    for number, name in enumerate(names):
        records = answers(45, seed=number)
        records[0] |= {"prediction": "\ud83d", "scene": "toy/\udcff"}
        runs.append(make_run(tmp_path / name, records))
    said = run_report(*runs, "--format", "csv", capsys=capsys)
    table = pd.read_csv(io.StringIO(said), index_col="setting")
    shown = ["'=HYPERLINK(1)", "'+1+2", "'-x", "'@x", "-3", r"a\x1b[31m\u202e=", r"b\udcff"]
    assert [*table.index[:-1]] == shown and not [name for name in table.columns if name.startswith(("=", "+", "@"))]
    for format in ("text", "markdown", "latex", "html"):
        report([*map(str, runs), "--format", format, "--output", str(tmp_path / f"report.{format}")])
        text = (tmp_path / f"report.{format}").read_bytes().decode()
        assert "HYPERLINK" in text and not re.search("[\x1b\u202e]", text)
    report([str(runs[-2]), str(runs[-1]), str(tmp_path / "\x1b[0m")])
    assert capsys.readouterr().err.endswith("\\x1b[0m is not the folder of a run: it has no config.yaml\n")


class Page(HTMLParser):
    """The texts of a page's cells, its tags, and the addresses that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.cells += [""] if tag in ("td", "th") else []
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.tags[-1:] in (["td"], ["th"]):
            self.cells[-1] += data


@pytest.mark.slow
def test_the_page_has_every_answer_and_only_its_own_script(runs, tmp_path: Path, capsys) -> None:
    report([*map(str, runs.values()), "--output", str(tmp_path / "page.html")])
    said = capsys.readouterr().err
    assert "fused1: questions that failed and score 0: 1" in said
    assert re.search("pictures of 21 of 21 scenes are left out: [^\n]+", said)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert (
        page.tags.count("script") == 1 and page.tags.count("b") == 2 * 4 + 3
    )  # headings, and none of the hostile answer
    assert len(page.loaded) == 4 and all(each.startswith("data:image/png;base64,") for each in page.loaded)
    assert base64.b64decode(page.loaded[0].partition(",")[2]).startswith(b"\x89PNG")
    assert page.tags.count("details") == 210 + 90 + 2  # the questions of two sets, and their options
    texts = {text.strip() for text in page.texts}
    for run in runs.values():
        for each in lines(run):
            said = f"failed: {each['error']}" if each["error"] else each["prediction"]
            assert printable(said) in texts or not said
            assert {each["id"], each["scene"], each["question"], each["ground_truth"], each["prompt"].strip()} <= texts
    cells = {" ".join(cell.split()) for cell in page.cells}
    assert "zoo.TinyQwen25VL" not in cells and "TinyQwen25VL" in cells  # an option of all


# ---- Which tests make a row -----------------------------------------------------------------------------------------


def seeds_by_row(runs: list[Path]) -> list[list[int | None]]:
    groups: dict[str, list[int | None]] = {}
    for each in load(runs)[0]:
        groups.setdefault(each.group, []).append(each.seed)
    return [*groups.values()]


@pytest.mark.parametrize(
    ("part", "changes", "is_other"),
    [
        ("trainer", {"enable_progress_bar": False, "log_every_n_steps": 1, "limit_test_batches": 3}, False),
        ("trainer", {"logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "a"}}]}, False),
        ("trainer", {"max_steps": 20}, True),
        ("trainer", {"accumulate_grad_batches": 2}, True),
        ("trainer", {"callbacks": [{"class_path": "my.EMA", "init_args": {"decay": 0.9}}]}, True),
        ("data", {"num_frames": 8}, True),
        ("data", {"source": {"class_path": "datamodules.Rooms", "init_args": {"seed": 1}}}, True),  # other rooms
        ("data", {"sampler": {"class_path": "datamodules.RandomSampler", "init_args": {"seed": 5}}}, False),
    ],
)
def test_runs_that_differ_in_the_seed_alone_are_one_row(part, changes, is_other: bool, tmp_path: Path) -> None:
    configs = [seeded(seed) for seed in range(3)]
    for config in configs if part == "data" and "sampler" in changes else configs[2:]:
        (config[part] if part == "trainer" else config[part]["init_args"]).update(changes)
    if "sampler" in changes:
        configs[2]["data"]["init_args"]["sampler"] = {**changes["sampler"], "init_args": {"seed": 6}}
    runs = [make_run(tmp_path / f"s{i}", answers(45, seed=i), config) for i, config in enumerate(configs)]
    again = make_run(tmp_path / "again", answers(45, seed=9), seeded(0))  # the same training is no further seed
    expected = [[0, 1], [2]] if is_other else [[0, 1, 2]]
    assert seeds_by_row(runs) == expected and ([0] in seeds_by_row([*runs, again]) or "sampler" in changes)


def test_a_half_trained_run_another_code_and_another_test_are_other_rows(tmp_path: Path, capsys) -> None:
    runs = [make_run(tmp_path / f"s{seed}", answers(45, seed=seed), seeded(seed, "mine")) for seed in range(3)]
    for changes in (
        {"run_step": 9, "max_steps": 60},
        {"training_versions": {"zoo": "0.2.0"}},
        {"versions": {"zoo": "0.2.0"}},
        {"config": {"data": {"init_args": {"num_frames": 8}}}},
    ):
        for run in runs:
            rewrite_metrics(run, run_step=60, max_steps=60, training_versions={"zoo": "0.1.0"}, config={}, versions={})
        assert seeds_by_row(runs) == [[0, 1, 2]]  # the control
        rewrite_metrics(runs[2], **changes)
        assert seeds_by_row(runs) == [[0, 1], [2]], changes
        name, value = [(f"test.{k}" if "num" in k else k, v) for k, v in flat(changes)][0]
        assert re.search(rf"^{re.escape(name)} .*{value}$", run_report(*runs, capsys=capsys), re.MULTILINE)
    rewrite_metrics(runs[2], run_step=9)
    report([*map(str, runs)])
    assert f"{runs[2]}: unfinished weights: their training has made 9 of 60 steps" in capsys.readouterr().err


def test_an_option_that_changes_nothing_in_a_users_class_makes_no_other_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", answers(45, seed=seed), seeded(seed, "mine")) for seed in range(2)]
    config = seeded(1, "mine")
    config["model"]["init_args"]["log_images"] = True
    runs[1] = make_run(tmp_path / "logging", answers(45, seed=1), config)
    assert seeds_by_row(runs) == [[0], [1]]  # unknown options count
    effects = RunRecord.of({}).effects
    for run in runs:
        rewrite_metrics(run, option_effects=effects._replace(nothing=(*effects.nothing, "model.log_images"))._asdict())
    assert seeds_by_row(runs) == [[0, 1]]


def test_further_tests_are_told_apart_by_their_training(tmp_path: Path, capsys) -> None:
    """Also those of former versions, which do not record it: by their run, or not at all."""
    changes = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 4}
    tested = []
    for seed, trainer in enumerate(({}, {}, changes, changes)):
        training = seeded(seed, "clipped" if trainer else "plain")
        training["trainer"] |= trainer
        run = make_run(tmp_path / f"s{seed}", None, training)
        evaluation = {**training, "name": None, "trainer": {"max_steps": 360}}  # without the training's options
        tested.append(make_run(run / "tests/OtherCameras", answers(45, seed=seed), evaluation))
        rewrite_metrics(tested[-1], training=training, checkpoint=f"runs/s{seed}/checkpoints/last.ckpt")
    runs = [each.parent.parent for each in tested]
    for is_former in (False, True):
        for each in tested if is_former else ():
            metrics = json.loads((each / "metrics.json").read_text())
            (each / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k != "training"}))
        assert seeds_by_row(runs) == [[0, 1], [2, 3]]
        said = run_report(*runs, capsys=capsys)
        assert re.search(r"^trainer.max_steps|^plain, OtherCameras .* 2$", said, re.MULTILINE) and "360" not in said
        assert "clipped, OtherCameras" in said
    rewrite_metrics(tested[1], checkpoint="runs/other/checkpoints/last.ckpt")
    assert seeds_by_row(runs) == [[0], [1], [2, 3]]
    report([*map(str, runs)])
    assert f"{tested[1]}: no record of its training" in capsys.readouterr().err


def flat(changes: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in changes.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        found += flat(value, name.removeprefix("config.")) if isinstance(value, dict) else [(name, value)]
    return found


def test_the_baseline_is_named_by_its_row_or_its_run(runs, capsys) -> None:
    for name in ("fused", "fused1", runs["fused2"]):
        said = run_report(*runs.values(), "--baseline", name, capsys=capsys)
        assert "macro - fused" in said and "Differences from fused in points" in said
    with pytest.raises(InputError, match="--baseline other: .*plain; fused; plain, sub"):
        report([*map(str, runs.values()), "--baseline", "other"])


def test_one_seed_has_an_interval_over_scenes_that_says_so(runs, capsys) -> None:
    said = run_report(runs["plain0"], runs["fused0"], capsys=capsys)
    assert re.search(r"^fused .* [+-]\d+\.\d \([+-]\d+\.\d to [+-]\d+\.\d\) \*$", said, re.MULTILINE)
    assert "* one seed: the interval is over scenes alone and says nothing about other trainings" in said
    assert "one seed" not in run_report(*runs.values(), capsys=capsys) and "no interval" not in said


# ---- Folders that are left out --------------------------------------------------------------------------------------


def test_other_folders_and_damaged_tests_are_named_and_the_others_reported(tmp_path: Path, capsys) -> None:
    for name in ("good", "metrics", "lacking", "answers", "cut", "gone", "torn", "modelless"):
        make_run(tmp_path / name, answers(45))
    make_run(tmp_path / "untested", None)
    make_run(tmp_path / "interrupted", answers(45))
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "good.lock"):  # the latter as of a study
        (tmp_path / name).write_text("")
    (tmp_path / "metrics/metrics.json").write_text('{"acc"')
    (tmp_path / "lacking/metrics.json").write_text("{}")
    (tmp_path / "answers/predictions.jsonl").write_text('{"id": 1}\n')
    cut = tmp_path / "cut/predictions.jsonl"
    cut.write_bytes(cut.read_bytes()[:-20])
    (tmp_path / "gone/predictions.jsonl").unlink()
    (tmp_path / "torn/config.yaml").write_text("model: [")
    (tmp_path / "modelless/config.yaml").write_text("{data: {}}")
    (tmp_path / "interrupted/metrics.json").unlink()
    capsys.readouterr()
    report([*map(str, sorted(tmp_path.iterdir())), str(tmp_path / "absent"), str(tmp_path / "good")])
    said = capsys.readouterr()
    reasons = (
        *("metrics/metrics.json can't be read", "lacking/metrics.json lacks entries of a test"),
        *("answers/predictions.jsonl, line 1: question_type must be a string", "cut/predictions.jsonl doesn't match"),
        *("gone has no predictions.jsonl", "torn/config.yaml can't be read", "modelless/config.yaml names no model"),
        *("untested: no test yet", "interrupted: its test was interrupted", "notes.txt is not the folder of a run"),
        *("folder is not the folder of a run", "absent is not the folder of a run"),
    )
    for reason in reasons:
        assert len(re.findall(rf"^skipped: .*/{re.escape(reason)}", said.err, re.MULTILINE)) == 1, reason
    assert len(said.err.splitlines()) == len(reasons)
    assert len(re.findall("^good ", said.out, re.MULTILINE)) == 1  # named twice, reported once
    with pytest.raises(InputError, match="nothing to report: .*folder is not the folder of a run"):
        report([str(tmp_path / "folder")])


@pytest.mark.parametrize("entry", ["benchmark", "per_question_type", "all", "training", "checkpoint", "baselines"])
def test_an_entry_of_another_type_is_named(entry: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", answers(45))
    rewrite_metrics(run, **{entry: [1]})
    with pytest.raises(InputError, match=f"metrics.json is damaged, in {entry}"):
        report([str(run)])


def test_runs_of_one_name_are_labeled_by_what_differs(tmp_path: Path, capsys) -> None:
    others = {"num_frames": 8}, {"sampler": {"class_path": "datamodules.PoseFarthestSampler"}}
    folders = [make_run(tmp_path / "PRoPEMLLM-20261127-174300", answers(90))]
    for number, changes in enumerate(others):
        config = copy.deepcopy(CONFIG)
        config["data"]["init_args"] |= changes  # type: ignore[index]
        folders.append(make_run(tmp_path / f"PRoPEMLLM-20261127-17440{number}", answers(90, seed=number), config))
    folders.append(make_run(tmp_path / "PRoPEMLLM-GTA-20261127-174300", answers(45)))
    capsys.readouterr()
    report([*map(str, folders)])
    said = capsys.readouterr().out
    for label in (
        "PRoPEMLLM, num_frames 24, sampler null",
        "PRoPEMLLM, num_frames 8, sampler null",
        "PRoPEMLLM, num_frames 24, sampler PoseFarthestSampler",
        "PRoPEMLLM-GTA",
    ):
        assert f"\n{label}  " in said
    assert said.count("VSIBench, scorer spatial_mllm, ") == 2  # the table of 90 questions, and that of 45
    again = make_run(tmp_path / "PRoPEMLLM-20261127-174309", answers(90))
    report([str(folders[0]), str(again)])
    said = capsys.readouterr().out  # equal settings
    assert f"\n{folders[0]}  " in said and f"\n{again}  " in said


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "predictions.jsonl"])
def test_the_files_of_a_run_are_not_overwritten(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", answers(9))
    before = (run / name).read_text()
    with pytest.raises(InputError, match=f"{name} is a file of a run"):
        report([str(run), "--output", str(run / name)])
    assert (run / name).read_text() == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("suffix", [".txt", ".md", ".tex", ".csv", ".html"])
def test_a_report_replaces_former_reports_alone(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [make_run(tmp_path / name, answers(9)) for name in ("one", "two")]
    output = tmp_path / f"report{suffix}"
    report([str(runs[0]), "--output", str(output)])
    first = output.read_bytes()
    report([*map(str, runs), "--output", str(output)])
    assert output.read_bytes() != first  # the control: a former one is replaced
    for name in ("checkpoints/last.ckpt", "train_scenes.txt", f"notes{suffix}"):
        theirs = runs[0] / name
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_bytes(b"dear diary")
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(output)
        for path in (theirs, tmp_path / "link"):
            with pytest.raises(InputError, match=f"--output {path} is there already"):
                report([str(runs[0]), "--output", str(path), *([] if path.suffix else ["--format", "html"])])
        assert theirs.read_bytes() == b"dear diary"
