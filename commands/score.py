"""python main.py score: score a file of answers without a model.

    python main.py score runs/PRoPEMLLM-20261125-012048/predictions.jsonl --scorer thinking_in_space

The file holds one JSON object per line with at least `id`, `question_type`, `prediction` and `ground_truth`: the
predictions.jsonl of a run or of an interrupted test, or the answers of any other model.

The command prints the table of a test with the best constant per question type. If the metrics.json of the same test
lies beside the file, it also prints the other blind baselines. Scores in the file are kept, unless --scorer names
another scorer. `--scorer all` prints the scores of all scorers of the benchmark side by side with their baselines, and
counts the answers on which they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.parser import command_parser, parse
from zoo.errors import InputError, printable

if TYPE_CHECKING:
    from commands.reports.predictions import Answer
    from zoo.benchmarks import Benchmark


def score(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `score`.

    Raises:
        InputError: The file or a line of it is invalid, or an option is unknown.
    """
    settings = _options(arguments)

    # imported after parsing: these import PyTorch, which --help does not need
    from commands.reports.predictions import read_predictions
    from evaluation.table import render, side_by_side
    from run_folder.record import PREDICTIONS
    from run_folder.results import rank_files
    from zoo.files.atomic_io import json_text, start_of_json, write_output
    from zoo.versions import versions

    path = Path(settings.predictions).expanduser()
    if path.is_dir():
        path /= PREDICTIONS
    benchmark = _benchmark(path, settings.benchmark)
    compares = settings.scorer == "all"
    named = None if compares else settings.scorer and benchmark.find_scorer(settings.scorer)
    if compares and settings.output:
        raise InputError("--output holds the scores of one scorer: name it in place of --scorer all")
    parts = rank_files(path.parent) if path.name == PREDICTIONS else []
    if parts and not (path.exists() and path.stat().st_size):
        raise InputError(f"{path} has no answers: its test was interrupted; run the test again, or score {parts[0]}")
    # 1. The answers, with the scores in the file unless another scorer is requested.
    answers, remarks = read_predictions(path, benchmark)
    recorded = {answer.scorer for answer in answers}
    own = recorded.pop() if len(recorded) == 1 else None  # the scorer of all answers
    scorers = benchmark.scorers if compares else (benchmark.find_scorer(named or own),)
    tests, scores = zip(*(_scored(path, answers, benchmark, scorer) for scorer in scorers), strict=True)
    if settings.output:
        made_by = {"command": "python main.py score"}
        content = {**made_by, **tests[0], "predictions": str(path), "versions": versions()}
        write_output(Path(settings.output).expanduser(), json_text(content), start_of_json(made_by))
    # 2. The table.
    title = printable(str(path))
    print(side_by_side(tests, scores, benchmark, title=title) if compares else render(tests[0], benchmark, title=title))
    # 3. What the table does not show.
    print("".join(f"{remark}\n" for remark in remarks), end="")
    if parts:
        print(f"its test was interrupted: the answers in {', '.join(part.name for part in parts)} are not scored")
    if unscored := len(answers) - len(scores[0]):
        print(f"not scored, without a ground truth: {unscored}")
    if not compares and (others := _differing(answers, scores[0])):
        print(f"scores that differ from the file's, which another scorer or version made: {others}")


def _options(arguments: list[str]) -> Any:
    """Return the options of the command."""
    parser = command_parser("score", __doc__)
    parser.add_argument("predictions", type=str, help="the file of answers, or the folder of its predictions.jsonl")
    parser.add_argument(
        "--benchmark",
        type=str | None,
        default=None,
        help="the answers' benchmark: a class name, a class path of your own, or OwnQuestions(door_width=number); null "
        "is the one that the file records, else VSIBench",
    )
    help = "the benchmark's scorer; null uses the scorer of the file's scores, or the first; all compares all scorers"
    parser.add_argument("--scorer", type=str | None, default=None, help=help)
    parser.add_argument("--output", type=str | None, default=None, help="also write the scores to this metrics.json")
    return parse(parser, arguments)


def _benchmark(path: Path, named: str | None) -> Benchmark:
    """Return the benchmark of a file of answers: the one of the option, or else the one that the file records."""
    from commands.reports.predictions import recorded_benchmark
    from zoo.benchmarks import VSIBench, find_benchmark
    from zoo.configuration import is_own

    name = named or recorded_benchmark(path) or VSIBench().name
    is_trusted = named is not None or is_own(path.parent)  # a file of someone else imports nothing
    try:
        return find_benchmark(name, trusted=is_trusted)
    except InputError as error:
        remedy = "" if is_trusted else f"; if you trust the file, pass --benchmark {name}"
        raise InputError(f"{error}{remedy}") from error


def _scored(
    path: Path, answers: Sequence[Answer], benchmark: Benchmark, scorer: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the summary of a test with its baselines by one scorer, and the score of each answer by its id.

    Raises:
        InputError: No answer has a ground truth.
    """
    from evaluation.baselines import constant_baseline
    from evaluation.table import summarize
    from run_folder.record import METRICS
    from zoo.metrics import with_scores

    records = with_scores(map(vars, answers), benchmark, scorer)
    scored = [record for record in records if record["score"] is not None]
    if not scored:
        raise InputError(f"{path}: no answer has a ground_truth, so there is nothing to score")
    test = summarize(records, benchmark, scorer)
    baselines = constant_baseline(scored, benchmark, scorer).scores
    test["baselines"] = {**baselines, **_recorded_baselines(path.with_name(METRICS), test)}
    return test, {record["id"]: record["score"] for record in scored}


def _differing(answers: Sequence[Answer], scores: Mapping[str, float]) -> int:
    """Return the number of answers whose score in the file differs."""
    from evaluation.baselines import SAME

    pairs = [(answer.score, scores.get(answer.id)) for answer in answers]
    return sum(old is not None and new is not None and abs(old - new) > SAME for old, new in pairs)


def _recorded_baselines(metrics: Path, test: Mapping[str, Any]) -> dict[str, Any]:
    """Return the baselines and oracles, but for the constant, from the metrics.json of the same test and scorer."""
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        found = {name: each for name, each in content["baselines"].items() if name != "constant"}
        counts, own = (
            {kind: each["count"] for kind, each in result["per_question_type"].items()} for result in (content, test)
        )
        return found if content["scorer"] == test["scorer"] and counts == own else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
