"""python main.py score: score a file of answers without a model.

    python main.py score runs/PRoPEMLLM-20261125-012048/predictions.jsonl --scorer thinking_in_space

prints the table of a test, with the best constant per question type, and the other blind baselines where a metrics.json
of the same test lies beside the file. `--scorer all` prints the scores of all scorers of the benchmark side by side,
each beside its own baselines, and counts the answers on which they differ. The file holds one JSON object per line with
at least `id`, `question_type`, `prediction` and `ground_truth`: the predictions.jsonl of a run, also of an interrupted
test, or the answers of any other model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.parser import OneLineParser
from zoo.errors import InputError

if TYPE_CHECKING:
    from callbacks.scoring import Tally


def score(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `score`.

    Raises:
        InputError: The file or a line of it is invalid, or an option is unknown.
    """
    parser = OneLineParser(prog="main.py score", description=__doc__)
    parser.add_argument("predictions", type=str, help="the file of answers, or the folder of its predictions.jsonl")
    parser.add_argument(
        "--benchmark",
        type=str,
        default="VSIBench",
        help="the answers' benchmark: a class name, a class path of your own, or OwnQuestions(door_width=number)",
    )
    parser.add_argument(
        "--scorer", type=str | None, default=None, help="the benchmark's scorer; null is its first, all compares them"
    )
    parser.add_argument("--output", type=str | None, default=None, help="also write the scores to this metrics.json")
    settings = parser.parse_args(arguments)

    # after the options are read: these import PyTorch, which the help does without
    from callbacks.baselines.blind import constant_baseline
    from callbacks.results_folder import METRICS, PREDICTIONS, rank_files
    from callbacks.scoring import tally
    from callbacks.table import render, side_by_side
    from commands.reports.predictions import read_predictions
    from zoo.benchmarks import find_benchmark
    from zoo.files.atomic_io import write_json

    benchmark = find_benchmark(settings.benchmark)
    compares = settings.scorer == "all"
    if compares and settings.output:
        raise InputError("--output holds the scores of one scorer: name it in place of --scorer all")
    scorers = benchmark.scorers if compares else (benchmark.find_scorer(settings.scorer),)
    path = Path(settings.predictions).expanduser()
    if path.is_dir():
        path /= PREDICTIONS
    parts = rank_files(path.parent) if path.name == PREDICTIONS else []
    if parts and not (path.exists() and path.stat().st_size):
        raise InputError(f"{path} has no answers: its test was interrupted; run the test again, or score {parts[0]}")
    answers, remarks = read_predictions(path, benchmark)
    tallies = [tally(map(vars, answers), benchmark, scorer) for scorer in scorers]
    scored = tallies[0]
    if not scored.scores:
        raise InputError(f"{path}: no answer has a ground_truth, so there is nothing to score")
    blind = [constant_baseline(each.scored, benchmark, each.scorer) for each in tallies]
    for own, each in zip(blind, tallies, strict=True):
        own.scores.update(_recorded_baselines(path.with_name(METRICS), each))
    title = str(path)
    table = side_by_side(tallies, blind, title=title) if compares else render(scored, title=title, blind=blind[0])
    for text in (table, *remarks):
        print(text.encode(errors="backslashreplace").decode())  # names of files may hold bytes that are no UTF-8
    if parts:
        print(f"its test was interrupted: the answers in {', '.join(part.name for part in parts)} are not scored")
    if unscored := len(answers) - len(scored.scores):
        print(f"not scored, without a ground truth: {unscored}")
    if compares:
        return
    recorded = [(answer.recorded, scored.scores.get(answer.id)) for answer in answers]
    if others := sum(old is not None and new is not None and abs(old - new) > 1e-6 for old, new in recorded):
        print(f"scores that differ from the file's, which another scorer or version made: {others}")
    if settings.output:
        metrics = scored.as_metrics(baselines=blind[0].scores, predictions=str(path))
        write_json(Path(settings.output).expanduser(), metrics)


def _recorded_baselines(metrics: Path, scored: Tally) -> dict[str, Any]:
    """Return the baselines of text and cameras in the metrics.json of the same test and scorer; {} without one."""
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        found = {name: content["baselines"][name] for name in ("text", "cameras") if name in content["baselines"]}
        counts, own = (
            {kind: each["count"] for kind, each in result["per_question_type"].items()}
            for result in (content, scored.result)
        )
        return found if content["scorer"] == scored.scorer and counts == own else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
