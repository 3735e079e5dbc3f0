"""Question types of one's own, each with one of three scorers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from zoo.benchmarks.free_answers import clean_answer
from zoo.benchmarks.scorers import SCORERS
from zoo.benchmarks.spatial import SpatialBenchmark
from zoo.errors import InputError, check_choice

AnswerKind = Literal["number", "choice", "text"]


class OwnQuestions(SpatialBenchmark):
    """Question types without a class of their own, with the wording and the scorers of VSI-Bench.

    Args:
        types: How the answers of each question type are scored: "number" by mean relative accuracy, "choice" by the
            option's letter, "text" by exact match after LEO's cleaning, with one accepted answer per line.

    Example:
        >>> benchmark = OwnQuestions({"door_width": "number", "door_color": "text"})
        >>> benchmark.score("It is red.", "red", "door_color", "spatial_mllm"), benchmark.name
        (0.0, 'OwnQuestions(door_width=number, door_color=text)')
        >>> benchmark.score("The red", "red", "door_color", "spatial_mllm")
        1.0
    """

    scorers = tuple(SCORERS)
    columns: Mapping[str, tuple[str, ...]] = {}  # type: ignore[misc]

    def __init__(self, types: dict[str, AnswerKind]) -> None:
        if not types:
            raise InputError("OwnQuestions: no question types: list them, such as {door_width: number}")
        for name, kind in types.items():
            if not re.fullmatch(r"\w+", name):
                raise InputError(f"OwnQuestions: {name!r} is no name of a question type: letters, digits and _")
            check_choice(f"OwnQuestions: the kind of answers to {name}", kind, AnswerKind)
        self.types = dict(types)
        chosen = {kind: tuple(name for name in types if types[name] == kind) for kind in get_args(AnswerKind)}
        self.numeric_types = chosen["number"]  # type: ignore[misc]
        self.multiple_choice_types = chosen["choice"]  # type: ignore[misc]
        self.text_types = chosen["text"]  # type: ignore[misc]
        self.columns = {name: (name,) for name in self.question_types}  # type: ignore[misc]

    @property
    def name(self) -> str:
        """The class with its types, from which `find_benchmark` builds it again."""
        return f"{type(self).__name__}({', '.join(f'{name}={kind}' for name, kind in self.types.items())})"

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Score one answer; a text by exact match, whatever the scorer."""
        if question_type not in self.text_types:
            return super().score(prediction, ground_truth, question_type, scorer)
        self.find_scorer(scorer)
        answer = clean_answer(prediction).strip()
        return float(bool(answer) and answer in [clean_answer(truth).strip() for truth in ground_truth.split("\n")])

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether a scorer reads the answer; of a text, whether there is one."""
        if question_type in self.text_types:
            return bool(prediction.strip())
        return super().is_parsable(prediction, question_type, scorer)

    @classmethod
    def from_name(cls, name: str) -> OwnQuestions | None:
        """Build the benchmark of this `name`; None if it is another one's."""
        inside = re.fullmatch(rf"{cls.__name__}\((.*)\)", name)
        if inside is None:
            return None
        pairs = [pair.partition("=") for pair in re.split(r",\s*", inside[1])]
        return cls({kind: answers for kind, _, answers in pairs})  # type: ignore[misc]
