"""The user's text of a question; the processor's chat template adds the rest."""

from __future__ import annotations

from datamodules.scenes import Question, RawQuestion
from zoo.benchmarks import Benchmark, VSIBench


def user_text(question: Question, benchmark: Benchmark | None = None, *, prefix: str = "") -> str:
    """Return the user's text after the video.

    Args:
        question: a `RawQuestion` keeps its text unchanged.
        benchmark: whose wording is used; None is VSI-Bench's.
        prefix: a line in front of the question.
    """
    if isinstance(question, RawQuestion):
        return question.question
    return (benchmark or VSIBench()).user_text(question.question, question.options, prefix=prefix)
