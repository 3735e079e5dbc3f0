"""Wording and scoring that VSI-Bench and ReVSI share: questions with a number or an option's letter as answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from zoo.benchmarks.base import Benchmark
from zoo.benchmarks.scorers import SCORERS, Scorer

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
SHORT_INSTRUCTION = "Please answer the question using a single word or phrase."
FRAMES_PREFIX = "These are frames of a video."  # the first line of thinking-in-space's and lmms-eval's prompts


class SpatialBenchmark(Benchmark):
    """A benchmark of numeric and multiple-choice questions with the scorers of `zoo.benchmarks.scorers`.

    Attributes:
        rules: The scorers by name.
        number_instruction: The last line of a question without options.
    """

    rules: ClassVar[Mapping[str, Scorer]] = SCORERS
    number_instruction: ClassVar[str] = SHORT_INSTRUCTION

    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        """Return Spatial-MLLM's wording; with `FRAMES_PREFIX` it is thinking-in-space's."""
        ending = ["Options:", *options, CHOICE_INSTRUCTION] if options else [self.number_instruction]
        return "\n".join([*([prefix] if prefix else []), question, *ending])

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Score one answer by the rules of an official scorer."""
        self.check_question_type(question_type)
        rules = self.rules[self.find_scorer(scorer)]
        is_choice = question_type in self.multiple_choice_types
        return (rules.score_choice if is_choice else rules.score_number)(prediction, ground_truth)

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether a scorer reads the answer as a finite number or a single letter."""
        self.check_question_type(question_type)
        rules = self.rules[self.find_scorer(scorer)]
        if question_type in self.multiple_choice_types:
            return re.fullmatch("[a-z]", rules.read_choice(prediction)) is not None
        number = rules.read_number(prediction)
        return number is not None and math.isfinite(number)
