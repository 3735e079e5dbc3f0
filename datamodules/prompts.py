"""The text of a question as the models are asked it; the processor's chat template adds the rest."""

from __future__ import annotations

from datamodules.raw_question import RawQuestion
from datamodules.scenes import Question

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
SHORT_INSTRUCTION = "Please answer the question using a single word or phrase."
FRAMES_PREFIX = "These are frames of a video."  # thinking-in-space puts this line in front


def user_text(question: Question, *, prefix: str = "") -> str:
    """The user's text after the video, worded as Spatial-MLLM does.

    A question with options asks for a letter, any other (also one of the user's own) for a word or phrase.
    Text of a conversation holds its instruction already.
    With `prefix=FRAMES_PREFIX` it is thinking-in-space's wording.
    """
    if isinstance(question, RawQuestion):
        return question.question
    lines = [prefix] if prefix else []
    lines.append(question.question)
    if question.options:
        lines += ["Options:", *question.options, CHOICE_INSTRUCTION]
    else:
        lines.append(SHORT_INSTRUCTION)
    return "\n".join(lines)
