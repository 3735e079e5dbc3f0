"""The user's text equals the official wording for every type of question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.chat_format import user_text
from datamodules.scenes import Question, RawQuestion
from zoo.benchmarks import VSIBench
from zoo.benchmarks.base import FRAMES_PREFIX

ROWS = json.loads((Path(__file__).parents[1] / "golden/preprocess/prompts.json").read_text())


def as_question(row: dict) -> Question:
    return Question("0", row["question_type"], row["question"], options=tuple(row.get("options") or ()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["question_type"])
def test_golden_prompts(row):
    question = as_question(row)
    assert user_text(question) == row["spatial_mllm_user_text"]
    prefixed = VSIBench().user_text(question.question, question.options, prefix=FRAMES_PREFIX)
    assert prefixed == row["thinking_in_space_user_text"]
    assert user_text(question) != row["thinking_in_space_user_text"]  # negative control
    assert user_text(question) in row["spatial_mllm_chat_text"]


def test_a_free_question_asks_for_a_short_answer_and_a_raw_one_is_unchanged():
    text = user_text(Question("0", "", "Is the lamp on?"))
    assert text == "Is the lamp on?\nPlease answer the question using a single word or phrase."
    assert user_text(RawQuestion("0", "", "Is the lamp on?")) == "Is the lamp on?"
