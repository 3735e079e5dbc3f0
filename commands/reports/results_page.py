"""The tables of a page of results, whose column `zoo` is filled with the scores of runs.

A row names a model, its released weights, a benchmark with its number of questions, and a protocol:

    | model | weights | benchmark | questions | protocol | zoo |
    |---|---|---|---|---|---|
    | `SpatialMLLM` | `Spatial-MLLM-v1.1-Instruct-135K` | VSIBench | 5130 | `spatial_mllm` | |

Tables with other columns are left alone, and so are rows without a run. See docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from commands.reports.scores import MEANS, Tested, read_metrics
from run_folder.record import METRICS
from zoo.errors import InputError

KEY, SCORE = ("model", "weights", "benchmark", "questions", "protocol"), "zoo"


def fill(text: str, tests: Sequence[Tested]) -> tuple[str, list[str]]:
    """Return the page with the scores, macro / micro in percent, and why tests are left out.

    Several tests of a row are averaged if they differ in the seed alone, as those of sampled answers do.

    Args:
        text: The page.
        tests: Tests of runs.

    Raises:
        InputError: No test belongs to a row, or the page has no such table.
    """
    found: dict[tuple[str, ...], list[Tested]] = {}
    notes: list[str] = []
    filled: set[tuple[str, ...]] = set()
    for tested in tests:
        key, reason = row_of(tested)
        notes += [f"left out: {tested.folder}: {reason}"] if reason else []
        found.setdefault(key, []).extend([] if reason else [tested])
    for of_row in found.values():
        if any(each.options != of_row[0].options for each in of_row):
            folders = ", ".join(str(each.folder) for each in of_row)
            notes.append(f"left out: {folders}: they differ in more than the seed, and belong to one row")
            of_row.clear()
    lines = text.splitlines()
    columns: list[str] = []
    has_table = False
    for number, line in enumerate(lines):
        cells = line.split("|")[1:-1]
        names = [cell.strip() for cell in cells]
        if {*KEY, SCORE} <= {*names}:
            columns, has_table = names, True
        elif not cells:
            columns = []
        elif len(cells) == len(columns):
            key = tuple(names[columns.index(name)].strip("`") for name in KEY)
            if own := found.get(key):
                means = (fmean(each.measures[mean] for each in own) for mean in MEANS)
                cells[columns.index(SCORE)] = f" {' / '.join(f'{100 * mean:.1f}' for mean in means)} "
                lines[number] = f"|{'|'.join(cells)}|"
                filled.add(key)
    if not has_table:
        raise InputError(f"--results: the page has no table with the columns {', '.join((*KEY, SCORE))}")
    notes += [f"no row: {' '.join(key)}" for key, own in found.items() if own and key not in filled]
    if not filled:
        raise InputError(f"--results: no run belongs to a row of the page; {'; '.join(notes)}")
    return "\n".join(lines) + "\n", notes


def row_of(tested: Tested) -> tuple[tuple[str, ...], str]:
    """Return the row of a test, and why it belongs to none, or "".

    Raises:
        InputError: The test is a line of a study.
    """
    if tested.folder is None:
        raise InputError("--results takes folders of runs, not a study")
    protocol = read_metrics(tested.folder / METRICS).get("protocol") or {}
    changed = {name.removeprefix("test."): value for name, value in tested.options.items() if name.startswith("test.")}
    options = {**tested.options, **changed}
    weights = str(options.get("model.backbone.path") or "").rpartition("/")[2]
    model = str(options.get("model.class_path")).rpartition(".")[2]
    key = (model, weights, tested.benchmark, str(len(tested.questions)), str(protocol.get("name")))
    if options.get("checkpoint"):
        return key, "its weights were trained after their release"
    if not protocol.get("name"):
        return key, "it has no protocol: give --config protocol_<name>.yaml"
    if options.get("data.subset"):
        return key, "it asks a subset of the questions"
    if any(name.startswith("data.perturbation") and value for name, value in options.items()):
        return key, "it perturbs what the model sees"
    if departing := protocol.get("departures", {"unknown": None}):
        return key, f"it departs from its protocol in {', '.join(departing)}"
    return key, ""
