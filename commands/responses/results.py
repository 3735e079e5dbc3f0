"""Responses of models to interventions: slopes with their intervals, as tables and as a figure.

A response is the slope of a model's answer on the true answer, or of the logarithm of its answer on the logarithm of a
factor, over variants of a scene that differ in one thing (`datamodules.interventions`). Only differences within a scene
count, so the slope is pooled: the sum over scenes of the products of deviations, over the sum of squared deviations. A
constant error has a slope of 1 too, therefore the mean error stands beside it.

The interval is for other scenes: with e(s) the part of scene s in the sum of products that the slope does not explain,
the variance is the sum of e(s)² over the squared denominator (clustered by scene, as in
`commands.reports.statistics`). For several trainings, e(s) is their mean, and the variance between their slopes is
added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import stdtrit

from commands.reports.plot import COLORS
from datamodules.interventions import Measure
from zoo.errors import InputError
from zoo.files.atomic_io import read_json, replace_file

RESPONSES = "responses.json"  # in a run's folder
LEVEL = 0.95
SMALL = 1e-12  # squared change of the answer per squared change of the truth that is rounding
UNITS: Mapping[Measure, str] = {"answer": "slope", "exponent": "exponent", "change": ""}


class Sums(NamedTuple):
    """Sums over the variants of a scene's questions, from which responses are pooled.

    Attributes:
        variants: Number of variants.
        freedom: Number of variants beyond the first of each question.
        xx: Squared deviations from the question's mean: of the true answer, or of the logarithm of the factor.
        xy: Products of these deviations with those of the expected answer.
        yy: Squared deviations of the expected answer. For options: squared distances in total variation.
        greedy_xx: As `xx`, over the variants with a greedy answer that is a number.
        greedy_xy: As `xy`, with these greedy answers.
        known: Number of variants whose true answer is known.
        error: Sum of the absolute errors of their expected answers.
        covered: Sum of the probabilities that the candidates cover.
    """

    variants: float
    freedom: float
    xx: float
    xy: float
    yy: float
    greedy_xx: float
    greedy_xy: float
    known: float
    error: float
    covered: float


@dataclass(frozen=True)
class Response:
    """The response of one model to one intervention, in the questions of one type.

    Attributes:
        intervention: Name of the intervention.
        question_type: Type of the questions.
        measure: What the response is.
        is_choice: Whether the questions are multiple-choice. They have no slope, only a change of probabilities.
        expected: The response of a model that uses the thing fully. None if unknown.
        unresponsive: Why the model can't respond, whatever it has learned. Empty if it can.
        planned: Number of variants of all scenes, if all had counted.
        sums: The sums of each scene, by its name.
    """

    intervention: str
    question_type: str
    measure: Measure
    is_choice: bool
    expected: float | None
    unresponsive: str
    planned: int
    sums: Mapping[str, Sums]

    @property
    def has_slope(self) -> bool:
        """Whether the response is a slope."""
        return self.measure != "change" and not self.is_choice


class Interval(NamedTuple):
    """A value with its 95 % interval. None for what the data do not determine."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A response over one or several trainings of a setting.

    Attributes:
        slope: The response. None for a nuisance and for multiple choice.
        greedy: The same of the greedy answers that are numbers.
        change: Root mean square deviation of the expected answer (its logarithm for exponents, the probabilities of
            options by total variation) from its mean over the variants of a question.
        explained: Share of the squared deviations that the slope explains (R²), the mean of the trainings. A rule that
            knows a place coarsely has a slope near 1 as well, and a lower share.
        error: Mean absolute error of the expected answer, or of its logarithm. None if no true answer is known.
        covered: Mean probability that the candidates cover.
        counted: Share of the variants that count.
        scenes: Number of scenes.
        trainings: Number of trainings.
    """

    slope: Interval
    greedy: Interval
    change: Interval
    explained: float | None
    error: float | None
    covered: float
    counted: float
    scenes: int
    trainings: int


def deviations(values: Sequence[float]) -> np.ndarray:
    """Return the distances of values from their mean."""
    return np.array(values) - np.mean(values)


def sums_of(measure: Measure, variants: Sequence[Mapping[str, Any]]) -> Sums:
    """Return the sums of one question.

    Args:
        measure: What the response is.
        variants: For each variant `value`, `truth` or None, the expected `answer` (a number, or the probabilities of
            options), the `greedy` number or None, and the probability `covered`.
    """
    answers = np.array([each["answer"] for each in variants], float)
    covered = float(sum(each["covered"] for each in variants))
    count = float(len(variants))
    if answers.ndim > 1:
        distances = 0.5 * np.abs(answers - answers.mean(0)).sum(1)
        return Sums(count, count - 1, 0.0, 0.0, float((distances**2).sum()), 0.0, 0.0, 0.0, 0.0, covered)
    x, y = deviations([each["value"] for each in variants]), deviations(answers.tolist())
    told = [each for each in variants if each["greedy"] is not None]
    gx, gy = np.zeros(0), np.zeros(0)
    if told:
        gx, gy = deviations([each["value"] for each in told]), deviations([each["greedy"] for each in told])
    known = [each for each in variants if each["truth"] is not None]
    error = sum(abs(each["answer"] - each["truth"]) for each in known)
    xx, xy, yy, gxx, gxy = (float(a @ b) for a, b in ((x, x), (x, y), (y, y), (gx, gx), (gx, gy)))
    return Sums(count, count - 1, xx, xy, yy, gxx, gxy, float(len(known)), float(error), covered)


def ratio(runs: Sequence[Mapping[str, tuple[float, float]]]) -> Interval:
    """Return the ratio of sums over scenes, averaged over trainings, with its interval.

    Args:
        runs: For each training, numerator and denominator of each scene.
    """
    scenes = sorted(set.intersection(*(set(run) for run in runs)))
    over, under = (np.array([[run[scene][part] for scene in scenes] for run in runs]) for part in (0, 1))
    if not scenes or (totals := under.sum(1)).min() <= 0:
        return Interval(None)
    values = over.sum(1) / totals
    rest = ((over - values[:, None] * under) / totals[:, None]).mean(0)  # each scene's part in the error
    terms = []
    if len(scenes) > 1:
        terms.append((float((rest**2).sum()) * len(scenes) / (len(scenes) - 1), len(scenes) - 1))
    if len(runs) > 1:
        terms.append((float(values.var(ddof=1)) / len(runs), len(runs) - 1))
    value, variance = float(values.mean()), sum(own for own, _ in terms)
    if len(scenes) < 2:
        return Interval(value)
    if variance < 1e-24:
        return Interval(value, value, value)
    freedom = variance**2 / sum(own**2 / degrees for own, degrees in terms)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def estimate(responses: Sequence[Response]) -> Estimate:
    """Pool the responses of one or several trainings of a setting to one intervention."""

    def pooled(numerator: str, denominator: str) -> Interval:
        return ratio(
            [
                {scene: (getattr(own, numerator), getattr(own, denominator)) for scene, own in each.sums.items()}
                for each in responses
            ]
        )

    every = [own for each in responses for own in each.sums.values()]
    total = Sums(*np.sum(every, 0).tolist())
    has_slope = all(each.has_slope for each in responses)
    square = pooled("yy", "freedom")
    return Estimate(
        slope=pooled("xy", "xx") if has_slope else Interval(None),
        greedy=pooled("greedy_xy", "greedy_xx") if has_slope else Interval(None),
        change=Interval(*(None if each is None else math.sqrt(max(0.0, each)) for each in square)),
        explained=_explained(responses) if has_slope else None,
        error=total.error / total.known if total.known else None,
        covered=total.covered / total.variants,
        counted=total.variants / sum(each.planned for each in responses),
        scenes=len(set.intersection(*(set(each.sums) for each in responses))),
        trainings=len(responses),
    )


def _explained(responses: Sequence[Response]) -> float | None:
    sums = [Sums(*np.sum([*each.sums.values()], 0).tolist()) for each in responses]
    known = [own.xy**2 / (own.xx * own.yy) if own.yy > SMALL * own.xx else 0.0 for own in sums if own.xx]
    return sum(known) / len(known) if known else None


# ---- Files and tables ------------------------------------------------------------------------------------------------


def read_responses(folder: Path) -> list[Response]:
    """Return the responses in a run's folder. Empty if they were not measured.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / RESPONSES
    if not path.exists():
        return []
    try:
        return [from_json(each) for each in read_json(path)["responses"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} can't be read ({error}): measure the responses again") from error


def from_json(content: Mapping[str, Any]) -> Response:
    """Return the response that `as_json` has written."""
    kept = {name: content[name] for name in Response.__dataclass_fields__}
    return Response(**{**kept, "sums": {scene: Sums(*own) for scene, own in content["sums"].items()}})


def as_json(response: Response) -> dict[str, Any]:
    """Return a response as JSON content, with its estimate."""
    sums = {scene: [float(f"{number:.7g}") for number in own] for scene, own in response.sums.items()}
    found = vars(estimate([response])).items()
    pooled = {name: each._asdict() if isinstance(each, Interval) else each for name, each in found}
    return {**vars(response), "estimate": pooled, "sums": sums}


def response_table(responses: Iterable[tuple[str, Response]]) -> pd.DataFrame:
    """Return a table of texts: a row for each setting, intervention and question type, pooled over trainings.

    Args:
        responses: The label of the setting, and a response of one of its trainings.
    """
    groups: dict[tuple[str, str, str], list[Response]] = {}
    for label, each in responses:
        groups.setdefault((each.intervention, each.question_type, label), []).append(each)
    rows, labels = [], []
    for (intervention, kind, label), own in groups.items():
        found, first = estimate(own), own[0]
        labels.append(label)
        expected = "" if first.expected is None else f"{first.expected:g}"
        rows.append(
            {
                "intervention": intervention,
                "questions": kind,
                "response": _text(found.slope),
                "of": UNITS[first.measure] if first.has_slope else "options" if first.is_choice else "",
                "if used": expected if first.has_slope else "",
                "R²": f"{found.explained:.2f}" if found.explained is not None and first.expected else "",
                "greedy": "" if found.greedy.value is None else f"{found.greedy.value:.2f}",
                "RMS change": "" if found.change.value is None else f"{found.change.value:.3g}",
                "mean error": "" if found.error is None else f"{found.error:.3g}",
                "covered": f"{found.covered:.2f}",
                "counted": f"{found.counted:.0%}",
                "scenes": f"{found.scenes}" + (f" x {found.trainings}" if found.trainings > 1 else ""),
                "can't respond": first.unresponsive,
            }
        )
    table = pd.DataFrame(rows, index=pd.Index(labels, name="setting"))
    return table.drop(columns="can't respond") if len(table) and not any(table["can't respond"]) else table


def _text(interval: Interval) -> str:
    if interval.value is None:
        return ""
    known = "" if interval.low is None else f" ({interval.low:.2f} to {interval.high:.2f})"
    return f"{interval.value:.2f}{known}"


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], output: Path) -> None:
    """Draw the expected answer over the true answer of each variant: a panel per intervention, a line per question.

    Args:
        curves: Records of scenes by the intervention's name, see `commands.responses.measuring`.
        output: The PNG file.
    """
    figure = Figure(figsize=(0.6 + 3.4 * len(curves), 3.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (name, records) in zip(axes, curves.items(), strict=True):
        own = [each["variants"] for record in records for each in record["questions"]]
        for variants, color in zip(own, cycle(COLORS)):
            line = [(each["value"], each["answer"]) for each in variants]
            axis.plot(*zip(*line, strict=True), color=color, marker="o", markersize=2, linewidth=0.8, alpha=0.7)
        axis.axline((0, 0), slope=1, color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{name}, {len(own)} questions", loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("true answer")
        axis.grid(color="#e1e1e1")
    axes[0].set_ylabel("expected answer")
    replace_file(output, lambda file: figure.savefig(file, format="png"))
