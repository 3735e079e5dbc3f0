"""python main.py report: compare runs, or the settings of a study, in one table.

    python main.py report runs/*
    python main.py report runs/* --output report.html
    python main.py report studies/turn.yaml --baseline PRoPE

Rows are settings: runs that differ in the seed alone are one row, with the mean and the range over seeds. Columns are
the benchmark's question types, their means over types (macro) and over questions (micro), and the difference from the
first setting with its 95 % interval over seeds and scenes. Scores below the best blind baseline are marked `<`; the
baselines stand below. Further tables have the differences by question type, where small parameters such as gates began
and ended, and the options in which the settings differ. All tests in a run's folder are shown. Tests of other questions
have tables of their own. The HTML page opens from disk. It also has plots of scores and of numeric errors, and all
questions: a row opens to the frames that the model saw, the cameras from above, the prompt and all answers. The
pictures lie in a folder beside the page, at most 30 MB.

    python main.py report runs/mine-<time> --verify published.json

compares runs with published numbers instead, within their rounding, and exits with 1 if any differs. The file holds
groups of rows, {"vsibench_16_frames": {"rows": {"Spatial-MLLM-v1.1": {"micro": {"all": 51.13}}}}}: means (micro,
macro), question types, in percent. See commands/reports/verify.py.

    python main.py report runs/* --results docs/results.md

writes the scores of runs into the rows of a page that name their model, weights, benchmark and protocol. Runs that were
trained, that depart from their protocol, or that were asked fewer questions are left out. See
commands/reports/results_page.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from commands.parser import command_parser, parse
from zoo.errors import InputError, printable

if TYPE_CHECKING:
    from commands.reports.scores import Tested

Format = Literal["text", "markdown", "latex", "csv", "html"]
# the start of a report's file, by which a former one is known; CSV has no comments, and begins with its first heading
BEGINNINGS: dict[str, str] = {
    "text": "# python main.py report\n\n",
    "markdown": "<!-- python main.py report -->\n\n",
    "latex": "% python main.py report\n",
    "html": "<!doctype html>\n<!-- python main.py report -->\n",
}
SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def report(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `report`.

    Raises:
        InputError: None of the folders is a run with a finished test, or the report can't be written.
    """
    settings = _options(arguments)
    output = None if settings.output is None else Path(settings.output).expanduser()
    format: Format = settings.format or SUFFIXES.get(output.suffix if output else "", "text")
    if output is None and format == "html" and not (settings.verify or settings.results):
        output = Path("report.html")
    _refuse_others(output, format)
    tested, notes = _load([Path(name).expanduser() for name in settings.runs])
    if settings.results:
        if settings.verify or settings.output:
            raise InputError("--results only fills a page: leave out --verify and --output")
        left_out = _fill_results(Path(settings.results).expanduser(), tested)
        _print_notes(notes + left_out)
    elif settings.verify:
        text, agrees = _verified(Path(settings.verify).expanduser(), tested, settings.row, format)
        _print_notes(notes)
        print(text, end="") if output is None else _write(output, text, format)
        if not agrees:
            raise SystemExit(1)
    else:
        text = _tables(tested, notes, settings.baseline, format, output)
        if output is None:
            print(text, end="")
        else:
            _write(output, text, format)
            print(f"report: {len(tested)} tests in {output}")
        _print_notes(notes)


def _options(arguments: list[str]) -> Any:
    """Return the options of the command."""
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs, or one study's YAML file")
    help = "text, markdown, latex, csv or html; null chooses by the output's suffix, else text"
    parser.add_argument("--format", type=Format | None, default=None, help=help)
    help = "the file to write; null prints the report (html: report.html)"
    parser.add_argument("--output", type=str | None, default=None, help=help)
    help = "the setting that differences are from: the name of a row, or of a run; null is the first row"
    parser.add_argument("--baseline", type=str | None, default=None, help=help)
    parser.add_argument("--verify", type=str | None, default=None, help="a JSON file of published numbers")
    help = "the row of --verify to compare with; null is the one with the name of the run's weights"
    parser.add_argument("--row", type=str | None, default=None, help=help)
    help = "a page whose column `zoo` is filled from the runs, such as docs/results.md"
    parser.add_argument("--results", type=str | None, default=None, help=help)
    return parse(parser, arguments)


# ---- The steps: they import PyTorch and pandas, which --help does without -------------------------------------------


def _refuse_others(output: Path | None, format: Format) -> None:
    """Raise InputError for an output that is a file of a run, or no former report, before anything is computed."""
    from commands.runs import CONFIG
    from run_folder.record import METRICS, PREDICTIONS, TEST_FILE
    from zoo.files.ownership import refuse_other

    if output is None:
        return
    if output.name in (CONFIG, METRICS, PREDICTIONS, TEST_FILE):
        raise InputError(f"--output {output} is a file of a run, which it would overwrite: name another file")
    if format in BEGINNINGS:
        refuse_other(output, BEGINNINGS[format].encode(), option="--output")


def _load(paths: Sequence[Path]) -> tuple[list[Tested], list[str]]:
    """Return the tests of runs or of one study, and notes about them.

    Raises:
        InputError: There are several studies, or there is no test.
    """
    if paths[0].suffix in (".yaml", ".yml"):
        from commands.studies import results

        if len(paths) > 1:
            raise InputError(f"one study at a time: {paths[0]}")
        tested, notes = results.load(paths[0])
    else:
        from commands.reports.scores import load

        tested, notes = load(paths)
    notes = [printable(note) for note in notes]
    if not tested:
        raise InputError(f"nothing to report: {'; '.join(notes) or 'no result yet'}")
    return tested, notes


def _fill_results(file: Path, tested: Sequence[Tested]) -> list[str]:
    """Fill a page of results, and return notes about tests that it leaves out."""
    from commands.reports.results_page import fill
    from zoo.files.atomic_io import write_whole

    try:
        page = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--results {file}: it can't be read: {error}") from None
    text, left_out = fill(page, tested)
    write_whole(file, text)
    return left_out


def _verified(file: Path, tested: Sequence[Tested], row: str | None, format: Format) -> tuple[str, bool]:
    """Return tables of tests beside published numbers, and whether all agree."""
    from commands.reports.tables import write
    from commands.reports.verify import read_published, verify

    published = read_published(file)
    verified = [verify(each, published, row) for each in tested]
    text = "\n".join(write(table, format, title) for title, table, _ in verified)
    return text, all(agrees for *_, agrees in verified)


def _tables(
    tested: Sequence[Tested], notes: list[str], baseline: str | None, format: Format, output: Path | None
) -> str:
    """Return the tables of a report. Of a page, write the pictures, and note which are left out.

    Raises:
        InputError: There is no such baseline.
    """
    from commands.reports.tables import by_questions, by_setting, names_of, report_tables, write

    sets = by_questions(tested)
    rows = {name: own for tests in sets for name, own in by_setting(tests).items()}
    if baseline is not None and not any(baseline in names_of(*row) for row in rows.items()):
        raise InputError(f"--baseline {baseline}: no such row or run; the rows are {'; '.join(rows)}")
    tables = [report_tables(own, baseline) for own in sets]
    every = [each for own in tables for each in own]
    if format == "html" and output is not None:
        from commands.reports.page import page
        from commands.reports.pictures import make_pictures

        pictures, left_out = make_pictures(tested, output)
        notes += left_out
        return page(sets, every, notes, "Report", pictures)
    if format == "csv":
        return "\n".join(write(own[0][1], format) for own in tables)
    return "\n".join(write(table, format, title) for title, table in every)


def _print_notes(notes: Sequence[str]) -> None:
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)


def _write(output: Path, text: str, format: Format) -> None:
    """Write a report, which may replace a former one of the same format."""
    from zoo.files.atomic_io import write_output

    beginning = BEGINNINGS.get(format, "")
    text = text.removeprefix("<!doctype html>\n")
    write_output(output, beginning + text, beginning or f"{text.partition(',')[0]},")
