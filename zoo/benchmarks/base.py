"""The interface of benchmarks: question types, prompts, scorers, aggregation and the results table."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pkgutil import resolve_name
from string import ascii_uppercase
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

from zoo.benchmarks.scorers import SCORERS, Scorer, clean_answer, to_float
from zoo.configuration import Configurable, unusable_class
from zoo.errors import InputError, check_choice, did_you_mean

HIT_DEG = 3.0  # largest error of a direction that counts as right


class Benchmark(Configurable, ABC):
    """A benchmark of questions with short answers. Stateless: it reads no files and holds no tensors.

    A subclass sets the class attributes and implements `user_text`, `score` and `is_parsable`.

    Attributes:
        numeric_types: Question types answered by a number, scored by mean relative accuracy (MRA).
        multiple_choice_types: Question types answered by an option letter, scored by accuracy.
        text_types: Free-text question types, scored by exact match. A ground truth has one accepted answer per line.
        metric_types: Question types whose answers are lengths or areas in metric units.
        angle_types: Numeric question types whose answers are directions in degrees. Their mean error is also measured.
        averaged_types: Groups of question types, by name, that macro means count as one type.
        scorers: Names of the official scorers. The first is the default.
        pooling_scorers: Scorers whose macro means pool the questions of a group in `averaged_types` instead of
            averaging the means of its types.
        ungrouped_scorers: Scorers whose macro means ignore `averaged_types`.
        camera_types: Question types that cameras alone answer, see `answers_from_cameras`.
        exponents: The exponent of a numeric answer in the unit of lengths: 1 for a length, 2 for an area, 0 for a
            count. If all lengths that a model is told are multiplied by a factor, the answer is multiplied by the
            factor to this power. A type without one has no declared response to lengths.
        answer_grids: For a numeric question type, the answers whose probabilities are measured, see `candidates`.
        columns: The results table: the title of each column and the question types that it averages, numeric ones
            first. The question types of a group in `averaged_types` share a column.
        prefix: First line of the user text, set by a test (`--data.prompt_prefix`). Empty for none.
        system_prompt: Text of a system turn before the user's, set by the data (`--data.system_prompt`). None uses the
            chat template's, if it has one.
        prompt_wording: Name of the instruction after the question, set by a test (`--data.prompt_wording`). None uses
            the benchmark's own.
        prompt_wordings: Names of the supported wordings.
    """

    numeric_types: ClassVar[tuple[str, ...]] = ()
    multiple_choice_types: ClassVar[tuple[str, ...]] = ()
    text_types: ClassVar[tuple[str, ...]] = ()
    metric_types: ClassVar[tuple[str, ...]] = ()
    angle_types: ClassVar[tuple[str, ...]] = ()
    averaged_types: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    scorers: ClassVar[tuple[str, ...]]
    pooling_scorers: ClassVar[tuple[str, ...]] = ()
    ungrouped_scorers: ClassVar[tuple[str, ...]] = ()
    camera_types: ClassVar[tuple[str, ...]] = ()
    exponents: ClassVar[Mapping[str, float]] = {}
    answer_grids: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    columns: ClassVar[Mapping[str, tuple[str, ...]]]
    prefix: str = ""
    system_prompt: str | None = None
    prompt_wording: str | None = None
    prompt_wordings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        """Return the user text after the video: prefix, question, options and instruction.

        Args:
            question: The question without its options. It may also be a user's own question.
            options: Options of a multiple-choice question, such as `["A. left", "B. right"]`.
            prefix: A line before the question.
        """

    @abstractmethod
    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Return the score of one answer in 0..1. 0.0 if it can't be parsed or the official scorer raises.

        Raises:
            ValueError: The question type or the scorer is unknown.
        """

    @abstractmethod
    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether the scorer can parse the answer as a finite number or a single letter.

        Raises:
            ValueError: The question type or the scorer is unknown.
        """

    @property
    def name(self) -> str:
        """Class name, or the class path for a user's own class. Recorded in results, and accepted by `--benchmark`."""
        kind = type(self)
        return kind.__name__ if kind.__module__.startswith("zoo.") else f"{kind.__module__}.{kind.__qualname__}"

    @property
    def question_types(self) -> tuple[str, ...]:
        """All question types, in the order of the results."""
        return self.numeric_types + self.multiple_choice_types + self.text_types

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Question types of each group of means in metrics.json."""
        matched = self.multiple_choice_types + self.text_types
        return {"acc": matched, "mra": self.numeric_types, "all": self.question_types}

    def check_question_type(self, question_type: str) -> None:
        """Raise InputError for an unknown question type, with its benchmark or the nearest type."""
        if question_type not in self.question_types:
            others = [name for name, kind in registered_benchmarks().items() if question_type in kind().question_types]
            advice = did_you_mean(question_type, self.question_types)
            if others:
                advice = f"; it is one of {' and '.join(others)} (score --benchmark {others[0]})"
            known = ", ".join(self.question_types)
            raise InputError(f"unknown question_type {question_type!r}; {self.name} has {known}{advice}")

    def candidates(self, question_type: str, options: Sequence[str] = ()) -> tuple[str, ...]:
        """Return answers to a question whose probabilities are measured: letters of options, or a grid of numbers.

        Empty for a type without declared ones, such as free text.
        """
        if question_type in self.multiple_choice_types:
            return tuple(ascii_uppercase[: len(options)])
        return self.answer_grids.get(question_type, ())

    def read_number(self, answer: str) -> float | None:
        """Return the number that an answer gives, or None."""
        return to_float(answer)

    def check_ground_truth(self, ground_truth: str, question_type: str) -> None:
        """Raise InputError for a right answer that no answer can match, such as a number with its unit."""
        number = to_float(ground_truth) if question_type in self.numeric_types else 0.0
        if number is None or not math.isfinite(number):
            raise InputError(f"ground_truth {ground_truth!r} is not a number, which {question_type} requires")

    def find_scorer(self, scorer: str | None) -> str:
        """Return the scorer's name. None selects the default.

        Raises:
            InputError: The benchmark has no scorer of this name.
        """
        if scorer is not None and scorer not in self.scorers:
            raise InputError(f"unknown scorer {scorer!r}; {self.name} has {', '.join(self.scorers)}")
        return scorer or self.scorers[0]

    def with_prompt(
        self, prefix: str | None = None, prompt_wording: str | None = None, system_prompt: str | None = None
    ) -> Benchmark:
        """Return this benchmark with another prefix, wording or system turn. None keeps the current one.

        Raises:
            InputError: The benchmark has no such wording.
        """
        if prompt_wording is not None and prompt_wording not in self.prompt_wordings:
            known = ", ".join(self.prompt_wordings) or "its own alone"
            raise InputError(f"--data.prompt_wording {prompt_wording}: {self.name} has {known}")
        changed = copy(self)
        changed.prefix = self.prefix if prefix is None else prefix
        changed.prompt_wording = self.prompt_wording if prompt_wording is None else prompt_wording
        changed.system_prompt = self.system_prompt if system_prompt is None else system_prompt
        return changed

    def grouped_types(self, scorer: str | None) -> Mapping[str, tuple[str, ...]]:
        """Return the groups of question types that the macro means of a scorer count as one type."""
        return {} if scorer in self.ungrouped_scorers else self.averaged_types

    def answers_from_cameras(
        self, question_type: str, question: str, options: Sequence[str], world_to_camera: Float64[np.ndarray, "T 4 4"]
    ) -> Mapping[str, str]:
        """Return the answers that need cameras alone, by the name of the method. Empty if there are none.

        Args:
            question_type: One of `camera_types`.
            question: The question without its options.
            options: Options of a multiple-choice question.
            world_to_camera: Poses of all frames of the video, NaN for a frame without a camera.
        """
        return {}

    def degrees_off(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float | None:
        """Return the error of a direction, 0 to 180 degrees, the largest without a number. None for other types."""
        return None

    def is_hit(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> bool:
        """Return whether an answer is right: a direction within `HIT_DEG`, and any other by a full score."""
        error = self.degrees_off(prediction, ground_truth, question_type, scorer)
        if error is not None:
            return error <= HIT_DEG
        return self.score(prediction, ground_truth, question_type, scorer) == 1

    def corpus_scores(self, predictions: Sequence[str], ground_truths: Sequence[str]) -> dict[str, Any]:
        """Return measures of a whole test that are not means over its answers. Empty if there are none."""
        return {}

    def aggregate(
        self,
        scores: Mapping[str, Sequence[float]],
        scorer: str | None = None,
        degrees: Mapping[str, Sequence[float]] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Aggregate the scores of a test.

        Args:
            scores: The scores of all questions of each type.
            scorer: The scorer that computed them. None is the default.
            degrees: The errors of all questions of each of the `angle_types`. Their mean is added as `degrees`.

        Returns:
            `{"per_question_type": {type: {"score", "count"}}, "acc": {"micro", "macro"}, "mra": ..., "all": ...}`.
            Micro is the mean over questions, macro the mean over question types, where each group of `grouped_types`
            counts as one type. None for a group without questions.
        """
        scorer = self.find_scorer(scorer)
        scores = {kind: scores[kind] for kind in self.question_types if scores.get(kind)}
        types = {kind: {"score": _mean(values), "count": len(values)} for kind, values in scores.items()}
        for kind in types.keys() & (degrees or {}).keys():
            types[kind]["degrees"] = _mean((degrees or {})[kind])
        groups = {
            group: self._means({kind: scores[kind] for kind in kinds if kind in scores}, scorer)
            for group, kinds in self.groups.items()
        }
        return {"per_question_type": types, **groups}

    def _means(self, scores: Mapping[str, Sequence[float]], scorer: str | None) -> dict[str, float | None]:
        if not scores:
            return {"micro": None, "macro": None}
        means = {kind: _mean(values) for kind, values in scores.items()}
        for name, kinds in self.grouped_types(scorer).items():
            if merged := {kind: means.pop(kind) for kind in sorted(kinds) if kind in means}:
                pooled = [score for kind in merged for score in scores[kind]]
                means[name] = _mean(pooled) if scorer in self.pooling_scorers else float(np.mean([*merged.values()]))
        # numpy's mean in alphabetical order equals Spatial-MLLM's printed macro mean to the last bit
        macro = float(np.mean([means[kind] for kind in sorted(means)]))
        return {"micro": _mean([score for values in scores.values() for score in values]), "macro": macro}


def find_benchmark(name: str, trusted: bool = True) -> Benchmark:
    """Return the benchmark with this `Benchmark.name`.

    Args:
        name: Name of a benchmark of the zoo, or a class path.
        trusted: Whether the module of a class path may be imported. Otherwise its class must already be imported.

    Raises:
        InputError: There is no such benchmark, or it can't be imported.
    """
    named = registered_benchmarks() | {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _subclasses()}
    if name not in named and (own := OwnQuestions.from_name(name)) is not None:
        return own
    if name not in named and trusted and "." in name:
        if reason := unusable_class(name):
            raise InputError(reason)
        named[name] = resolve_name(name)
    if name not in named or not (isinstance(named[name], type) and issubclass(named[name], Benchmark)):
        raise InputError(f"unknown benchmark {name!r}; choose from {', '.join(registered_benchmarks())}")
    return named[name]()


def registered_benchmarks() -> dict[str, type[Benchmark]]:
    """Return the classes of all imported benchmarks by name, except those that need arguments."""
    return {kind.__name__: kind for kind in _subclasses() if getattr(kind, "columns", None)}


def _subclasses() -> list[type[Benchmark]]:
    kinds: list[type[Benchmark]] = Benchmark.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


def _mean(values: Sequence[float]) -> float:
    """Mean with an exact sum: the order of the values has no effect."""
    return math.fsum(values) / len(values)


# ---- Questions answered by a number or an option letter --------------------------------------------------------------

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
SHORT_INSTRUCTION = "Please answer the question using a single word or phrase."
FRAMES_PREFIX = "These are frames of a video."  # first line of thinking-in-space's and lmms-eval's prompts


class PromptWording(NamedTuple):
    """The lines after a question: a title of the options, and the answer instructions."""

    options_title: str | None
    choice: str
    number: str


GEOVR = PromptWording(
    None,
    "Answer with ONLY the option's letter directly.",
    "Please answer the question ONLY using a single Arabic numeral.",
)


def number_grid(least: float | int, most: float | int, decimals: int = 0, step: float = 0.04) -> tuple[str, ...]:
    """Return numbers as a model writes them, at even steps of their logarithm. Small ones are each number there is.

    Example:
        >>> number_grid(0.8, 1.3, decimals=1), number_grid(10, 12)
        (('0.8', '0.9', '1.0', '1.1', '1.2', '1.3'), ('10', '11', '12'))
    """
    count = 1 + math.ceil(math.log(most / least) / step)
    return tuple(dict.fromkeys(f"{number:.{decimals}f}" for number in np.geomspace(least, most, count)))


class SpatialBenchmark(Benchmark):
    """A benchmark of numeric and multiple-choice questions with the scorers of `zoo.benchmarks.scorers`.

    Attributes:
        rules: The scorers by name.
        number_instruction: The last line of a question without options.
    """

    rules: ClassVar[Mapping[str, Scorer]] = SCORERS
    pooling_scorers = ("geovr",)
    number_instruction: ClassVar[str] = SHORT_INSTRUCTION
    prompt_wordings = ("geovr",)

    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        """Return the text in Spatial-MLLM's wording, or in the one of `prompt_wording`.

        With `FRAMES_PREFIX` Spatial-MLLM's wording becomes thinking-in-space's.
        """
        own = PromptWording("Options:", CHOICE_INSTRUCTION, self.number_instruction)
        title, choice, number = own if self.prompt_wording is None else GEOVR
        ending = [title, *options, choice] if options else [number]
        return "\n".join(line for line in (prefix, question, *ending) if line)

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Score one answer by the rules of an official scorer."""
        self.check_question_type(question_type)
        rules = self.rules[self.find_scorer(scorer)]
        is_choice = question_type in self.multiple_choice_types
        return (rules.score_choice if is_choice else rules.score_number)(prediction, ground_truth)

    def degrees_off(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float | None:
        """Return the error of a direction, as the scorer reads the answer."""
        if question_type not in self.angle_types:
            return None
        number = self.rules[self.find_scorer(scorer)].read_number(prediction)
        if number is None or not math.isfinite(number):
            return 180.0
        return abs((number - float(ground_truth) + 180) % 360 - 180)

    def read_number(self, answer: str) -> float | None:
        """Return the number that the default scorer reads. None if it reads none, or one that is not finite."""
        number = self.rules[self.scorers[0]].read_number(answer)
        return number if number is not None and math.isfinite(number) else None

    def check_ground_truth(self, ground_truth: str, question_type: str) -> None:
        """Raise InputError for a right answer that is no number, or no single letter of a choice."""
        super().check_ground_truth(ground_truth, question_type)
        if question_type in self.multiple_choice_types and not re.fullmatch("[a-zA-Z]", ground_truth):
            raise InputError(f"ground_truth {ground_truth!r} is not a letter, which {question_type} requires")

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether a scorer can parse the answer as a finite number or a single letter."""
        self.check_question_type(question_type)
        rules = self.rules[self.find_scorer(scorer)]
        if question_type in self.multiple_choice_types:
            return re.fullmatch("[a-zA-Z]", rules.read_choice(prediction)) is not None
        number = rules.read_number(prediction)
        return number is not None and math.isfinite(number)


# ---- A user's own question types, each scored in one of three ways ---------------------------------------------------

AnswerKind = Literal["number", "choice", "text"]


class OwnQuestions(SpatialBenchmark):
    """A user's own question types, without a class, with the wording and the scorers of VSI-Bench.

    Args:
        types: How answers of each question type are scored: "number" by mean relative accuracy, "choice" by the option
            letter, "text" by exact match after LEO's cleaning, with one accepted answer per line.

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
        """The class name with its types, from which `find_benchmark` can rebuild the benchmark."""
        return f"{type(self).__name__}({', '.join(f'{name}={kind}' for name, kind in self.types.items())})"

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Score one answer. Texts are scored by exact match with every scorer."""
        if question_type not in self.text_types:
            return super().score(prediction, ground_truth, question_type, scorer)
        self.find_scorer(scorer)
        answer = clean_answer(prediction).strip()
        return float(bool(answer) and answer in [clean_answer(truth).strip() for truth in ground_truth.split("\n")])

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether a scorer can parse the answer. A text only has to be non-empty."""
        if question_type in self.text_types:
            return bool(prediction.strip())
        return super().is_parsable(prediction, question_type, scorer)

    @classmethod
    def from_name(cls, name: str) -> OwnQuestions | None:
        """Build the benchmark with this `name`. None if it belongs to another class."""
        inside = re.fullmatch(rf"{cls.__name__}\((.*)\)", name)
        if inside is None:
            return None
        pairs = [pair.partition("=") for pair in re.split(r",\s*", inside[1])]
        return cls({kind: answers for kind, _, answers in pairs})  # type: ignore[misc]
