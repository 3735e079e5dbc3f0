"""python main.py report: compare runs in tables or on an HTML page.

    python main.py report runs/*
    python main.py report runs/* --output report.html

    python main.py report runs/mine-<time> --verify published.json

prints the benchmark's results table and means with the blind baselines, settings, the mean and range over runs that
differ in the seed alone, and differences with bootstrap intervals: between settings over their seeds and scenes, and of
each run from the first over scenes. Two trainings with one seed each have no interval. All tests inside a run's folder
are shown; tests of other questions have tables of their own. Runs are labeled by their names, and by what differs where
several have one name. The page is one file that needs no network; it also shows charts, every pair of runs and the
single questions. Folders that are not runs and runs without a test are listed and skipped.

`--verify` compares runs with published numbers instead, within their rounding, and exits with 1 if any differs. Its
file holds groups of rows, {"vsibench_16_frames": {"rows": {"Spatial-MLLM-v1.1": {"micro": {"all": 51.13}}}}}: means
(micro, macro), question types, in percent. See commands/reports/verify.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from commands.parser import command_parser, parse
from zoo.errors import InputError

Format = Literal["text", "markdown", "latex", "html"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".html": "html"}


def report(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `report`.

    Raises:
        InputError: None of the folders is a run, or the report can't be written.
    """
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs")
    help = "text, markdown, latex or html; null chooses by the output's suffix, else text"
    parser.add_argument("--format", type=Format | None, default=None, help=help)
    parser.add_argument(
        "--output", type=str | None, default=None, help="the file to write; null prints the report (html: report.html)"
    )
    parser.add_argument("--verify", type=str | None, default=None, help="a JSON file of published numbers")
    help = "the row of --verify to compare with; null is the one with the name of the run's weights"
    parser.add_argument("--row", type=str | None, default=None, help=help)
    settings = parse(parser, arguments)

    # after the options are read: these import PyTorch, which the help does without
    from commands.reports.compare import ONE_SEED, compare
    from commands.reports.formats import in_lines, write
    from commands.reports.labels import with_labels
    from commands.reports.loaded_runs import load_runs
    from commands.reports.page import page
    from commands.reports.paths import camera_paths
    from commands.reports.seeds import name_ungrouped
    from commands.reports.verify import read_published, verify
    from zoo.files.atomic_io import write_whole

    output = None if settings.output is None else Path(settings.output).expanduser()
    format: Format = settings.format or SUFFIXES.get(output.suffix if output else "", "text")
    loaded, skipped = load_runs([Path(folder).expanduser() for folder in settings.runs])
    runs = with_labels(loaded)
    if not runs:
        raise InputError(f"nothing to report: {'; '.join(skipped)}")
    if settings.verify:
        rows = read_published(Path(settings.verify).expanduser())
        verified = [verify(run, rows, settings.row) for run in runs]
        text = "\n".join(write(table, format) for table, _ in verified)
        print("".join(f"skipped: {reason}\n" for reason in skipped), end="", file=sys.stderr)
        print(text, end="") if output is None else write_whole(output, text)
        if not all(agrees for _, agrees in verified):
            raise SystemExit(1)
        return
    notes = [*(f"skipped: {reason}" for reason in skipped), *(remark for run in runs for remark in run.remarks)]
    notes += name_ungrouped(runs)
    comparisons = compare(runs)
    pairs = [f"{runs[i].name} and {runs[j].name}" for i, j in sorted(comparisons.trainings)]
    notes += [f"{ONE_SEED}: {'; '.join(pairs)}"] if pairs else []
    if format == "html":
        paths, absent = camera_paths(runs)
        notes += absent
        text = page(runs, comparisons, notes, paths)
        output = output or Path("report.html")
    else:
        text = in_lines(runs, comparisons, notes, format)
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text)
        print("".join(f"{note}\n" for note in notes) + f"report: {len(runs)} runs in {output}")
