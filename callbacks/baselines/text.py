"""Answers by the text of a question alone, from those of the training questions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache

import numpy as np

from callbacks.baselines.constant import best_constant
from datamodules.scenes import Question
from zoo.benchmarks import Benchmark
from zoo.benchmarks.scorers import to_float

LEAST = 5  # training answers that a question or an object must have to be answered by them
Key = tuple[str, str]  # a question type; and a text or a word, or "" for all questions of the type


class TextAnswers:
    """Answer a question by what training questions of its type were answered.

    A number or a free text: the best constant of the same question's answers; else, of numbers, the geometric mean of
    those of the named objects; else that of the type. A choice: the option that was right most often where it was
    offered, or without options the most frequent letter.

    Args:
        questions: Of the training; those of other types, and without an answer, are ignored.
        benchmark: The benchmark of the questions.
        scorer: Name of its scorer.
    """

    def __init__(self, questions: Iterable[Question], benchmark: Benchmark, scorer: str) -> None:
        self.benchmark = benchmark
        self._answers: dict[Key, list[str]] = defaultdict(list)
        self._right, self._offered = Counter[Key](), Counter[Key]()
        for question in questions:
            kind = question.question_type
            if kind not in benchmark.question_types or not is_answer(question, benchmark):
                continue
            for part in {"", question.question, *(_words(question) if kind in benchmark.numeric_types else ())}:
                self._answers[kind, part].append(question.ground_truth)
            for letter, option in options_of(question).items():
                self._offered[kind, option] += 1
                self._right[kind, option] += letter == question.ground_truth
        self._constant = cache(lambda key: best_constant(self._answers[key], key[0], benchmark, scorer))

    def __call__(self, question: Question) -> str | None:
        """Return the answer; None for a type without training questions."""
        kind = question.question_type
        if (kind, "") not in self._answers:
            return None
        if options := options_of(question):
            letters = Counter(self._answers[kind, ""])
            return max(options, key=lambda letter: (self._rate(kind, options[letter], len(options)), letters[letter]))
        if self._count(kind, question.question) >= LEAST:
            return str(self._constant((kind, question.question)))
        if named := [word for word in _words(question) if self._names_object(kind, word)]:
            numbers = [abs(float(self._constant((kind, word)))) for word in named]
            return f"{np.exp(np.mean(np.log(np.maximum(numbers, 1e-6)))):.4g}"
        return str(self._constant((kind, "")))

    def _rate(self, kind: str, option: str, num_options: int) -> float:
        """Return how often an option was right where it was offered, as if it had been once by chance."""
        return (self._right[kind, option] + 1) / (self._offered[kind, option] + num_options)

    def _names_object(self, kind: str, word: str) -> bool:
        """Return whether some training questions have a word, but not most, as they have the words of the template."""
        return LEAST <= self._count(kind, word) <= self._count(kind, "") / 2

    def _count(self, kind: str, part: str) -> int:
        return len(self._answers.get((kind, part), ()))


def options_of(question: Question) -> dict[str, str]:
    """Return the text of each option by its letter."""
    split = (option.partition(".") for option in question.options)
    return {letter.strip(): text.strip().lower() for letter, _, text in split}


def is_answer(question: Question, benchmark: Benchmark) -> bool:
    """Return whether a question has an answer, which is a number if its type is numeric."""
    truth = question.ground_truth
    return bool(truth) and (question.question_type not in benchmark.numeric_types or to_float(truth) is not None)


def _words(question: Question) -> set[str]:
    return set(re.findall(r"\w+", question.question.lower()))
