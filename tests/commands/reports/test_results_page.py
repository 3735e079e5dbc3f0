"""python main.py report --results: the rows of a page of results, filled from runs that belong to them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

import main
from commands.report import report
from commands.reports.results_page import KEY
from run_folder.configs import merge_configs
from tests.commands.made_runs import CONFIG, answers, make_run
from zoo.configuration import flatten
from zoo.errors import InputError

PAGE = Path(main.__file__).parent / "docs/results.md"
WEIGHTS = "Spatial-MLLM-v1.1-Instruct-135K"
HEAD = "| model | weights | benchmark | questions | protocol | published | zoo |\n|---|---|---|---|---|---|---|\n"
ROW = "| `SpatialMLLM` | `{}` | VSIBench | 190 | `{}` | 50.5 (a) | {} |\n"
OTHERS = ROW.format("another", "spatial_mllm", "1.0 / 2.0") + ROW.format(WEIGHTS, "vg_llm", "")
OTHER = {"class_path": "datamodules.OtherCameras"}
UNRELATED = f"\n| weights | zoo |\n|---|---|\n| `{WEIGHTS}` | |\n"


def made(
    folder: Path,
    count: int = 190,
    right: float = 0.3,
    data: Mapping[str, Any] = MappingProxyType({}),
    **metrics: Any,
) -> Path:
    """A test of released weights by a protocol, with changed options of the data and entries of metrics.json."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["data"]["init_args"].update(data)
    config["model"]["class_path"] = "zoo.SpatialMLLM"
    config["model"]["init_args"]["backbone"]["init_args"] = {"path": f"Diankun/{WEIGHTS}"}
    make_run(folder, answers(count, right=right), config)
    file = folder / "metrics.json"
    of_test = {part: config[part] for part in ("model", "data")}
    entries = {"protocol": {"name": "spatial_mllm", "departures": {}}, "config": of_test, **metrics}
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


def test_a_run_fills_its_own_row_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{HEAD}{ROW.format(WEIGHTS, 'spatial_mllm', '')}{OTHERS}{UNRELATED}")
    runs = [made(tmp_path / "run"), made(tmp_path / "again", right=0.6)]
    left_out = {
        "asked fewer questions": made(tmp_path / "fewer", 180),
        "departs": made(
            tmp_path / "departs", protocol={"name": "spatial_mllm", "departures": {"data.num_frames": {"run": 8}}}
        ),
        "was trained": made(tmp_path / "trained", checkpoint="runs/trained/checkpoints/last.ckpt"),
        "no protocol": made(tmp_path / "none", protocol={"name": None}),
        "perturbs": made(tmp_path / "perturbs", data={"perturbation": OTHER}),
        "perturbs in its test": made(tmp_path / "tested", config={"data": {"perturbation": OTHER}}),
        "asked a subset": made(tmp_path / "subset", data={"subset": 190}),
    }
    report([*map(str, runs), *map(str, left_out.values()), "--results", str(page)])
    all_means = [json.loads((run / "metrics.json").read_text())["all"] for run in runs]
    score = " / ".join(f"{50 * sum(each[mean] for each in all_means):.1f}" for mean in ("macro", "micro"))
    filled = ROW.format(WEIGHTS, "spatial_mllm", score)
    assert page.read_text() == f"# Results\n\n{HEAD}{filled}{OTHERS}{UNRELATED}"
    said = capsys.readouterr().err
    assert f"no row: SpatialMLLM {WEIGHTS} VSIBench 180 spatial_mllm" in said
    assert "departs: it departs from its protocol in data.num_frames" in said
    assert "trained: its weights were trained after their release" in said
    assert "none: it has no protocol" in said
    assert "perturbs: it perturbs what the model sees" in said
    assert "tested: it perturbs what the model sees" in said
    assert "subset: it asks a subset of the questions" in said
    report([str(runs[0]), "--results", str(page)])
    assert page.read_text() != f"# Results\n\n{HEAD}{filled}{OTHERS}{UNRELATED}"  # of this run alone
    before = page.read_text()
    other = made(tmp_path / "other", data={"system_prompt": "Be brief."})
    with pytest.raises(InputError, match="run, .*other: they differ in more than the seed"):
        report([str(runs[0]), str(other), "--results", str(page)])
    with pytest.raises(InputError, match="no run belongs to a row of the page; .*no protocol"):
        report([str(left_out["no protocol"]), "--results", str(page)])
    with pytest.raises(InputError, match="absent.md: it can't be read"):
        report([str(runs[0]), "--results", str(tmp_path / "absent.md")])
    (tmp_path / "other.md").write_text(UNRELATED)
    with pytest.raises(InputError, match="no table with the columns model, weights"):
        report([str(runs[0]), "--results", str(tmp_path / "other.md")])
    with pytest.raises(InputError, match="leave out --verify and --output"):
        report([str(runs[0]), "--results", str(page), "--output", str(tmp_path / "table.md")])
    assert page.read_text() == before


def rows() -> list[dict[str, str]]:
    """The rows of docs/results.md that a run may fill."""
    cells = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    head = next(number for number, names in enumerate(cells) if {*KEY} <= {*names})
    return [dict(zip(cells[head], row, strict=True)) for row in takewhile(bool, cells[head + 2 :])]


def key_of(command: str) -> tuple[str, ...]:
    """What a command tests, by its configs and options."""
    program, *words = shlex.split(command.removeprefix("python main.py "))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    found = flatten(merge_configs([value for option, value in pairs if option == "--config"], evaluates=True).settings)
    found |= {option.removeprefix("--"): value for option, value in pairs}
    assert program == "test"
    questions = "150" if found.get("data.question_types") == "[room_size_estimation]" else "5130"
    weights = found["model.backbone.path"].rpartition("/")[2]
    return found["model.class_path"], weights, found["data.source.class_path"], questions, found["metrics.protocol"]


def test_the_command_of_each_row_tests_what_the_row_names() -> None:
    named = [tuple(row[name] for name in KEY) for row in rows()]
    assert [key_of(row["command"]) for row in rows()] == named
    assert len(named) == len({*named}) > 15  # no two rows claim one run
    other = rows()[0]["command"].replace("protocol_spatial_mllm", "protocol_vg_llm")
    assert key_of(other) != named[0]  # the control


def test_each_number_of_the_page_has_a_source() -> None:
    text = PAGE.read_text()
    named = {letter for row in rows() for letter in re.findall(r"\((\w)\)", row["published"] + row["by others"])}
    assert named == set(re.findall(r"^- \((\w)\) ", text, re.MULTILINE))
    numbers = [row[column] for row in rows() for column in ("published", "by others") if row[column]]
    assert all(re.fullmatch(r"[\d.]+( / [\d.]+)? \(\w\)", number) for number in numbers)


@pytest.mark.skipif("ZOO_GOLDEN" not in os.environ, reason="ZOO_GOLDEN is unset: no published numbers")
def test_spatial_mllms_numbers_are_the_published_ones() -> None:
    published = json.loads((Path(os.environ["ZOO_GOLDEN"]) / "published.json").read_text())
    table, checked = published["vsibench_16_frames"]["rows"], 0
    for row in rows():
        if "(a)" in row["published"]:
            own = table[row["weights"]]
            numbers = [float(each) for each in row["published"].removesuffix(" (a)").split(" / ")]
            expected = [own["macro_new"]["all"], own["micro"]["all"]]
            assert numbers == pytest.approx(expected, abs=0.0501)
            assert numbers != pytest.approx(expected[::-1], abs=0.0501)  # the control: macro comes first
            checked += 1
    assert checked == 3
