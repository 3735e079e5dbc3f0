"""Rewards of sampled answers."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.benchmarks import Benchmark, VSIBench
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.objectives.grpo import deviation
from zoo.sequences.batch import Record


class Reward(Configurable, ABC):
    """A reward of answers. To add one, implement `__call__` in your own class and give its class path.

    Args:
        weight: Factor of this reward in the sum of all rewards.

    Attributes:
        benchmark: The data's benchmark.
        requires_type: Whether the reward does not apply to questions without a type.

    Raises:
        InputError: The weight is not finite.
    """

    benchmark: Benchmark = VSIBench()
    requires_type: bool = False

    def __init__(self, weight: float = 1.0) -> None:
        if not math.isfinite(weight):
            raise InputError(f"--model.algorithm.rewards: {type(self).__name__} has weight {weight}: give a number")
        self.weight = weight

    def bind(self, benchmark: Benchmark) -> None:
        """Set the benchmark."""
        self.benchmark = benchmark

    @abstractmethod
    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        """Return the reward of each answer. None where the reward does not apply.

        Args:
            answers: The texts of the answers.
            records: The record of each answer's question, with `question_type`, `ground_truth`, `question`, `prompt`,
                `scene`.
        """


class AnswerScore(Reward):
    """The benchmark's score of an answer: MRA for numbers, accuracy for letters.

    It does not apply to questions without a ground truth or without a question type of the benchmark.

    Args:
        scorer: Name of the benchmark's scorer. null is its first.
        weight: See `Reward`.
    """

    requires_type = True

    def __init__(self, scorer: str | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.scorer = scorer

    def bind(self, benchmark: Benchmark) -> None:
        """See `Reward`. Raises an `InputError` for an unknown scorer."""
        super().bind(benchmark)
        benchmark.find_scorer(self.scorer)

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        """See `Reward`."""
        scorer = self.benchmark.find_scorer(self.scorer)
        return [
            self.benchmark.score(answer, record["ground_truth"], record["question_type"], scorer)
            if record["ground_truth"] and record["question_type"] in self.benchmark.question_types
            else None
            for answer, record in zip(answers, records, strict=True)
        ]


class ShuffledAnswerScore(AnswerScore):
    """The score by the ground truth of another question of the same type in the batch.

    This is a control of `AnswerScore`. A model can only learn the form of answers or better guessing from it.

    Args:
        scorer: See `AnswerScore`.
        weight: See `Reward`.
    """

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        """See `Reward`. None if the batch has no other question of the type."""
        asked = {record["id"]: record for record in records}
        other: dict[str, Record] = {}
        for kind in {record["question_type"] for record in asked.values()}:
            own = [record for record in asked.values() if record["question_type"] == kind]
            other |= {record["id"]: following for record, following in zip(own, own[1:] + own[:1], strict=True)}
        scores = super().__call__(answers, [other[record["id"]] for record in records])
        return [
            None if other[record["id"]]["id"] == record["id"] else score
            for score, record in zip(scores, records, strict=True)
        ]


class AnswerFormat(Reward):
    """1 for an answer in the right format, else 0.

    Args:
        pattern: Regular expression that the whole answer must match. null accepts what the benchmark's scorer can
            parse, and applies only to questions of the benchmark's types.
        weight: See `Reward`.

    Raises:
        InputError: The pattern is not a regular expression.

    Example:
        >>> reward = AnswerFormat(r"<think>.*</think><answer>.*</answer>")
        >>> reward(["<think>two</think><answer>2</answer>", "2"], [{}, {}])
        [1.0, 0.0]
    """

    def __init__(self, pattern: str | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.pattern, self.requires_type = pattern, pattern is None
        try:
            self._form = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise InputError(f"--model.algorithm.rewards: AnswerFormat: pattern {pattern!r}: {error}") from error

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        """See `Reward`."""
        if self._form is not None:
            return [float(self._form.fullmatch(answer.strip()) is not None) for answer in answers]
        scorer = self.benchmark.find_scorer(None)
        return [
            float(self.benchmark.is_parsable(answer, record["question_type"], scorer))
            if record["question_type"] in self.benchmark.question_types
            else None
            for answer, record in zip(answers, records, strict=True)
        ]


class RewardSum:
    """A weighted sum of rewards.

    Args:
        rewards: One or more rewards.

    Attributes:
        names: Name of each reward for the loggers. It is the class name, and `<class>_2` for the second reward of a
            class.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = list(rewards)
        classes = [type(reward).__name__ for reward in self.rewards]
        counts = [classes[: number + 1].count(name) for number, name in enumerate(classes)]
        self.names = [name if count == 1 else f"{name}_{count}" for name, count in zip(classes, counts, strict=True)]

    @property
    def weights(self) -> Float[Tensor, " R"]:
        """The factor of each reward."""
        return torch.tensor([float(reward.weight) for reward in self.rewards])

    def bind(self, benchmark: Benchmark) -> None:
        """Set the benchmark of all rewards."""
        for reward in self.rewards:
            reward.bind(benchmark)

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> Float[Tensor, "N R"]:
        """Return each reward of each answer, NaN where it does not apply.

        Raises:
            InputError: A reward returns the wrong number of values or an infinite value.
        """
        columns = []
        for name, reward in zip(self.names, self.rewards, strict=True):
            values = reward(answers, records)
            if len(values) != len(answers):
                raise InputError(f"{name} gives {len(values)} rewards of {len(answers)} answers: give one of each")
            columns.append([torch.nan if value is None else float(value) for value in values])
            if any(map(math.isinf, columns[-1])):
                raise InputError(f"{name} gives an infinite reward: give a number, or None where it does not apply")
        return torch.tensor(columns).mT

    def total(self, rewards: Float[Tensor, "N R"]) -> Float[Tensor, " N"]:
        """Return the weighted sum of the rewards that apply, NaN where none does."""
        return torch.where(rewards.isnan().all(1), torch.nan, (rewards * self.weights).nansum(1))

    def statistics(self, rewards: Float[Tensor, "N R"], num_generations: int) -> dict[str, float]:
        """Return mean rewards (total and by name), mean deviation in a group, and share of groups without signal.

        Answers without a reward are left out of means. A mean over no answers is left out of the result.
        """
        total = self.total(rewards)
        groups = total.unflatten(0, (-1, num_generations))
        spread = torch.where(groups.isnan().all(1), torch.nan, deviation(groups, 1)[:, 0])
        names = ("reward", *(f"reward/{name}" for name in self.names))
        means = zip(names, (float(total.nanmean()), *rewards.nanmean(0).tolist()), strict=True)
        return {
            "reward_deviation": float(spread.nanmean().nan_to_num(0.0)),
            "groups_without_signal": float((~(spread > 0)).float().mean()),
            **{name: mean for name, mean in means if not math.isnan(mean)},
        }
