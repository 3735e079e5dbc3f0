"""python main.py score: scores a file of answers without a model.

    python main.py score runs/PRoPEMLLM-20261125-012048/predictions.jsonl --scorer thinking_in_space

prints the table that a test prints. The file holds a JSON object a line, with at least `id`, `question_type`,
`prediction` and `ground_truth`: the predictions.jsonl of a run, also of one that was broken off, or of any other model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from commands.parser import OneLineParser
from zoo.errors import InputError


def score(arguments: list[str]) -> None:
    """Runs the command.

    Args:
        arguments: what follows `score` on the command line.

    Raises:
        InputError: the file, the line in it, and what is wrong there.
    """
    parser = OneLineParser(prog="main.py score", description=__doc__)
    parser.add_argument("predictions", type=str, help="the file of answers, predictions.jsonl")
    parser.add_argument(
        "--scorer",
        type=Literal["spatial_mllm", "thinking_in_space"],
        default="spatial_mllm",
        help="the official scorer to follow",
    )
    parser.add_argument("--output", type=str | None, default=None, help="also write the scores here, as a metrics.json")
    settings = parser.parse_args(arguments)

    # after the options are read: these import PyTorch, which the help does without
    from callbacks.table import render
    from callbacks.versions import versions
    from commands.reports.predictions import read_predictions
    from commands.reports.scoring import tally
    from zoo.atomic_io import write_whole

    path = Path(settings.predictions).expanduser()
    if path.is_dir():
        path /= "predictions.jsonl"
    parts = sorted(path.parent.glob("predictions.rank*.jsonl")) if path.name == "predictions.jsonl" else []
    if parts and not (path.exists() and path.stat().st_size):
        raise InputError(f"{path} holds no answer: its test was broken off, test again to go on; or score {parts[0]}")
    predictions = read_predictions(path)
    result = tally(predictions.answers, settings.scorer)
    if not result.counts["questions"]:
        raise InputError(f"{path}: no answer has a ground_truth, so there is nothing to score")
    remarks = list(predictions.remarks)
    if parts:
        remarks.append(f"its test was broken off: not scored is what {', '.join(part.name for part in parts)} hold")
    if result.without_truth:
        remarks.append(f"not scored, without a ground truth: {result.without_truth}")
    recorded = [(answer.recorded, result.scores.get(answer.id)) for answer in predictions.answers]
    others = sum(before is not None and now is not None and abs(before - now) > 1e-6 for before, now in recorded)
    if others:
        remarks.append(f"scored otherwise in the file, by another scorer or version: {others}")
    print(render(result.result, result.counts, result.failed_scenes, title=f"{path} ({settings.scorer})"))
    for remark in remarks:
        print(remark)
    if settings.output:
        content: dict[str, Any] = {
            **result.result,
            "counts": result.counts,
            "failed_scenes": result.failed_scenes,
            "scorer": settings.scorer,
            "predictions": str(path),
            "versions": versions(),
        }
        write_whole(Path(settings.output).expanduser(), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
