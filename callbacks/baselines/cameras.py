"""Answers by the cameras alone: regressions on the camera path, fitted on the training scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from callbacks.baselines.regression import boosted_classes, boosted_numbers, has_boosting, least_squares
from callbacks.baselines.text import is_answer, options_of
from datamodules.scenes import Question
from zoo.benchmarks import Benchmark

LEAST_ROWS = 20  # training questions of a type whose scenes have cameras
MOST_ROWS = 10_000  # more of them take longer and change little
MOST_CLASSES = 20


class Asked(NamedTuple):
    """A question, and the description of its scene's camera path."""

    question: Question
    path: Float[np.ndarray, " F"]


def camera_answers(
    training: Sequence[Asked], tested: Sequence[Asked], kind: str, benchmark: Benchmark
) -> dict[str, dict[str, str]]:
    """Answer questions of a type by the camera paths of their scenes.

    Numbers are fitted in logarithms where all are positive, and kept in the range of the training answers. Of a
    multiple choice, the probability of each option is fitted, by its text where few options occur, else by its letter.

    Args:
        training: Training questions of the type.
        tested: Test questions of the type.
        kind: The question type.
        benchmark: The benchmark of the questions.

    Returns:
        The answer by the id of each tested question, by the method; empty for free answers, with few training
        questions, or where all training answers are the same.
    """
    rows = [row for row in training if is_answer(row.question, benchmark)]
    rows = rows[:: -(-len(rows) // MOST_ROWS)] if rows else []
    if len(rows) < LEAST_ROWS or not tested or kind in benchmark.text_types:
        return {}
    answer = _numbers if kind in benchmark.numeric_types else _choices
    return answer(rows, tested)


def _numbers(rows: Sequence[Asked], tested: Sequence[Asked]) -> dict[str, dict[str, str]]:
    truths, (paths, shown) = np.array([float(row.question.ground_truth) for row in rows]), map(_paths, (rows, tested))
    if (truths == truths[0]).all():
        return {}
    takes_logarithm = bool((truths > 0).all())
    targets = np.log(truths) if takes_logarithm else truths
    found = {"least squares": least_squares(paths, targets[:, None])(shown)[:, 0]}
    if has_boosting():
        found["gradient boosting"] = boosted_numbers(paths, targets)(shown)
    answers = {}
    for method, predicted in found.items():
        kept = np.clip(predicted, targets.min(), targets.max())
        numbers = np.exp(kept) if takes_logarithm else kept
        answers[method] = {asked.question.id: f"{n:.4g}" for asked, n in zip(tested, numbers.tolist(), strict=True)}
    return answers


def _choices(rows: Sequence[Asked], tested: Sequence[Asked]) -> dict[str, dict[str, str]]:
    label = _option_text if _has_few_options(rows) else _letter
    right = [label(row.question, row.question.ground_truth) for row in rows]
    classes = sorted(set(right))
    if len(classes) < 2:
        return {}
    numbers = np.array([classes.index(own) for own in right])
    paths, shown = map(_paths, (rows, tested))
    found = {"least squares": least_squares(paths, np.eye(len(classes))[numbers])(shown)}
    if has_boosting():
        found["gradient boosting"] = boosted_classes(paths, numbers)(shown)
    return {method: _best_options(tested, classes, label, each) for method, each in found.items()}


def _best_options(
    tested: Sequence[Asked],
    classes: Sequence[str],
    label: Callable[[Question, str], str],
    probabilities: Float[np.ndarray, "M K"],
) -> dict[str, str]:
    """Return the most probable letter of each question's options; of all letters without options."""
    answers = {}
    for (question, _), own in zip(tested, probabilities.tolist(), strict=True):
        probability: Mapping[str, float] = dict(zip(classes, own, strict=True))
        letters = list(options_of(question)) or list(classes)
        shares = [probability.get(label(question, letter), -1.0) for letter in letters]
        answers[question.id] = letters[int(np.argmax(shares))]
    return answers


def _has_few_options(rows: Sequence[Asked]) -> bool:
    """Return whether few texts of options occur in all questions, such as left and right."""
    texts = Counter(text for row in rows for text in options_of(row.question).values())
    return all(row.question.options for row in rows) and len(texts) <= MOST_CLASSES


def _option_text(question: Question, letter: str) -> str:
    return options_of(question).get(letter, letter)


def _letter(question: Question, letter: str) -> str:
    return letter


def _paths(rows: Sequence[Asked]) -> Float[np.ndarray, "N F"]:
    return np.stack([row.path for row in rows])
