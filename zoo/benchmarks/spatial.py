"""Wording and scoring that VSI-Bench and ReVSI share: questions with a number or an option's letter as answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from zoo.benchmarks.base import Benchmark
from zoo.benchmarks.scorers import SCORERS, Scorer

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
SHORT_INSTRUCTION = "Please answer the question using a single word or phrase."
FRAMES_PREFIX = "These are frames of a video."  # the first line of thinking-in-space's and lmms-eval's prompts


class PromptWording(NamedTuple):
    """The lines after a question: a title of the options, and what to answer with."""

    options_title: str | None
    choice: str
    number: str


GEOVR = PromptWording(
    None,
    "Answer with ONLY the option's letter directly.",
    "Please answer the question ONLY using a single Arabic numeral.",
)


class SpatialBenchmark(Benchmark):
    """A benchmark of numeric and multiple-choice questions with the scorers of `zoo.benchmarks.scorers`.

    Attributes:
        rules: The scorers by name.
        number_instruction: The last line of a question without options.
    """

    rules: ClassVar[Mapping[str, Scorer]] = SCORERS
    pooling_scorers = ("geovr",)
    number_instruction: ClassVar[str] = SHORT_INSTRUCTION
    wordings = ("geovr",)

    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        """Return Spatial-MLLM's wording, with `FRAMES_PREFIX` thinking-in-space's; or that of `wording`."""
        own = PromptWording("Options:", CHOICE_INSTRUCTION, self.number_instruction)
        title, choice, number = own if self.wording is None else GEOVR
        ending = [title, *options, choice] if options else [number]
        return "\n".join(line for line in (prefix, question, *ending) if line)

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
            return re.fullmatch("[a-zA-Z]", rules.read_choice(prediction)) is not None
        number = rules.read_number(prediction)
        return number is not None and math.isfinite(number)
