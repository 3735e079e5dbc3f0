"""How often the intervals of a study hold the truth, in simulated experiments: the table in docs/concepts/rules.md.

    python -m docs.coverage

Each experiment draws trainings and scenes anew. Both settings are tested on the same scenes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from commands.reports.scores import Tested
from commands.reports.statistics import difference

PAGE = Path(__file__).parent / "concepts" / "rules.md"
HEADING = "| trainings | 3 on each side | 6 on each side | 3, over scenes alone |"
ROUNDS = 400
SCENES, OF_SCENES, OF_ANSWERS = 100, 0.05, 0.07  # standard deviations; they vary as much as 500 rooms of the studies
BASE, BETTER = 0.7, 0.1
UNBEGUN = 0.43  # the score of a training that has not begun, about that of a constant


class Trainings(NamedTuple):
    """How the trainings of two settings differ.

    Attributes:
        name: The first cell of the row.
        spread: Standard deviation of the scores over trainings.
        failing: The share of trainings of the better setting that do not begin.
        only_begun: Whether an experiment with such a training has no interval, as in a study with `begins`, and the
            truth is that of trainings that begin.
    """

    name: str
    spread: float
    failing: float = 0.0
    only_begun: bool = False


TRAININGS = [
    Trainings("differ by 0.01", 0.01),
    Trainings("differ by 0.03", 0.03),
    Trainings("differ by 0.1", 0.1),
    Trainings("differ by 0.01, and one in ten does not begin", 0.01, 0.1),
    Trainings("differ by 0.03, and one in ten does not begin", 0.03, 0.1),
    Trainings("the same, for trainings that begin", 0.03, 0.1, True),
]


def coverage(trainings: Trainings, seeds: int, rounds: int) -> tuple[float, float]:
    """Return how often two intervals hold the truth: that of a study, and one over scenes alone.

    Args:
        trainings: How they differ.
        seeds: Trainings on each side.
        rounds: Number of experiments with an interval.
    """
    rng, held, done = np.random.default_rng(0), np.zeros(2), 0
    truth = BETTER - (0 if trainings.only_begun else trainings.failing * (BASE + BETTER - UNBEGUN))
    while done < rounds:
        begins = rng.random(seeds) >= trainings.failing
        if trainings.only_begun and not begins.all():
            continue
        hard, better = rng.normal(0, (0.2, OF_SCENES), (SCENES, 2)).T
        level = rng.normal([[BASE], [BASE + BETTER]], trainings.spread, (2, seeds))
        level[1] = np.where(begins, level[1], UNBEGUN)
        scores = level[..., None] + hard + rng.normal(0, OF_ANSWERS, (2, seeds, SCENES))
        scores[1] += better
        found = difference(*(_tests(side) for side in scores[::-1]), "micro")
        assert found.low is not None and found.high is not None
        by_scene = (scores[1] - scores[0]).mean(0)
        half = 1.96 * by_scene.std(ddof=1) / math.sqrt(SCENES)
        held += (found.low <= truth <= found.high, abs(found.value - truth) < half)
        done += 1
    return float(held[0] / rounds), float(held[1] / rounds)


def _tests(scores: Float64[np.ndarray, "seeds scenes"]) -> list[Tested]:
    names = [f"{number}" for number in range(SCENES)]
    frame = pd.DataFrame({"question_type": "object_counting", "scene": names}, index=names)
    return [Tested("", "", None, "VSIBench", "spatial_mllm", frame.assign(score=own)) for own in scores]


def row(trainings: Trainings, rounds: int = ROUNDS) -> str:
    """Return a row of the table."""
    (three, alone), (six, _) = (coverage(trainings, seeds, rounds) for seeds in (3, 6))
    return f"| {trainings.name} | {three:.2f} | {six:.2f} | {alone:.2f} |"


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEADING)
    rows = [HEADING, "|---|---|---|---|", *map(row, TRAININGS)]
    PAGE.write_text(before + "\n".join(rows) + rest[rest.index("\n\n") :], encoding="utf-8")


if __name__ == "__main__":
    main()
