"""Questions of conversation data, which are worded to the end."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.scenes import Question


@dataclass(frozen=True)
class RawQuestion(Question):
    """A question whose text is all that the user says after the video: no options, no instruction are added to it.

    Its type is one of `zoo.metrics.QUESTION_TYPES`, or empty: then its answer is free text, to train on but without
    a score.
    """
