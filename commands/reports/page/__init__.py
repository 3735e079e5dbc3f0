"""The report as one self-contained HTML page, whatever the answers contain."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from callbacks.baselines import NAMES
from commands.reports.bootstrap import RESAMPLES, SEED
from commands.reports.compare import Comparisons
from commands.reports.formats import write
from commands.reports.loaded_runs import AVERAGE, Run, measures
from commands.reports.predictions import Answer
from commands.reports.seed_differences import seed_differences
from commands.reports.table import Interval, percent
from commands.reports.tables import by_test_set, captions, over_seeds, reproduction, settings

HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "sort.js", "bars.js", "compare.js", "questions.js", "detail.js")


def page(runs: Sequence[Run], comparisons: Comparisons, notes: Sequence[str], paths: Mapping[str, Any]) -> str:
    """Return the text of the page.

    Args:
        runs: At least one run.
        comparisons: Of the runs.
        notes: Lines above the tables.
        paths: The scenes' camera paths, see `camera_paths`.
    """
    benchmark = runs[0].benchmark
    over = (*over_seeds(runs), *seed_differences(runs))
    every = (*by_test_set(runs), *over, *captions(runs), settings(runs), reproduction(runs))
    tables = "".join(f'<div class="wide">{text}</div>' for text in (write(table, "html") for table in every))
    data = {
        "runs": [run.name for run in runs],
        "bars": {column: [_percent(run.score(column)) for run in runs] for column in (*benchmark.columns, AVERAGE)},
        "blind": {column: [_best_blind(run, column) for run in runs] for column in (*benchmark.columns, AVERAGE)},
        "comparisons": _comparisons(comparisons, measures(benchmark)),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
        **_question_data(runs),
        **paths,
    }
    parts = {
        "style": (HERE / "report.css").read_text(encoding="utf-8"),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "tables": tables,
        # `<` occurs in the strings of the JSON only
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    text = (HERE / "report.html").read_text(encoding="utf-8")
    pieces = text.split("%%")  # text, part, text, ...: parts are not searched for more
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _percent(score: float | None) -> float | None:
    return None if score is None else percent(score)


def _best_blind(run: Run, measure: str) -> float | None:
    found = [score for name in NAMES if (score := run.blind(name, measure)) is not None]
    return percent(max(found)) if found else None


def _comparisons(comparisons: Comparisons, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the pairs, their measures, and the pairs of two trainings.

    A pair is {"0 1": [[measure, difference, [low, high] or null, the same by scene], ...] or the reason for none}.
    """

    def ends(interval: Interval | None) -> list[float] | None:
        return interval and [percent(end) for end in interval]

    found: dict[str, Any] = {f"{i} {j}": why for (i, j), why in comparisons.refused.items()}
    for (i, j), each in comparisons.pairs.items():
        found[f"{i} {j}"] = [
            [names.index(measure), percent(d.value), ends(d.by_question), ends(d.by_scene)]
            for measure, d in each.items()
        ]
    return {"measures": names, "pairs": found, "trainings": [f"{i} {j}" for i, j in sorted(comparisons.trainings)]}


class Distinct(dict[Hashable, int]):
    """The index of each distinct value, in the order of first use: the page stores each text once."""

    def __missing__(self, value: Hashable) -> int:
        self[value] = len(self)
        return self[value]


def _question_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the data of the view of single questions.

    {"texts": [...], "frames": [[...], ...], "types": [...],
     "questions": one row per question, [id, scene, type, question, ground truth], where all but id are indices,
     "answers": for each run, null or columns {"prediction", "score", "frames", "before", "after", "error"} with one
     value per question, -1 if the run lacks it}

    Scores are in percent. A prompt is the text `before`, the question and the text `after`; if `after` is -1 it is
    `before` alone.
    """
    types = runs[0].benchmark.question_types
    texts, frames, rows = Distinct(), Distinct(), Distinct()

    def index(answer: Answer) -> int:
        kind = types.index(answer.question_type)
        return rows[answer.id, texts[answer.scene], kind, texts[answer.question], texts[answer.ground_truth]]

    asked = [{index(answer): answer for answer in run.answers} for run in runs]
    answers: list[dict[str, list[Any]] | None] = []
    for run, own in zip(runs, asked, strict=True):
        columns: dict[str, list[Any]] = {
            name: [-1] * len(rows) for name in ("prediction", "score", "frames", "before", "after", "error")
        }
        for row, answer in own.items():
            before, question, after = answer.prompt.partition(answer.question or answer.prompt + "?")
            columns["prediction"][row] = texts[answer.prediction]
            columns["score"][row] = percent(run.scores[answer.id])
            columns["frames"][row] = frames[answer.frames]
            columns["before"][row] = texts[before]
            columns["after"][row] = texts[after] if question else -1
            columns["error"][row] = -1 if not answer.error else texts[answer.error]
        answers.append(columns if own else None)
    distinct = {"questions": list(rows), "texts": list(texts), "frames": list(frames)}
    return {"types": types, "answers": answers, **distinct}
