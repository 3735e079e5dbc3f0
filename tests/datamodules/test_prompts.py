"""The user's text is the official one, for every kind of question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.prompts import FRAMES_PREFIX, user_text
from datamodules.scenes import Question

ROWS = json.loads((Path(__file__).parents[1] / "golden/preprocess/prompts.json").read_text())


def as_question(row: dict) -> Question:
    return Question("0", row["question_type"], row["question"], options=tuple(row.get("options") or ()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["question_type"])
def test_golden_prompts(row):
    question = as_question(row)
    assert user_text(question) == row["spatial_mllm_user_text"]
    assert user_text(question, prefix=FRAMES_PREFIX) == row["thinking_in_space_user_text"]
    assert user_text(question) != row["thinking_in_space_user_text"]  # negative control
    assert user_text(question) in row["spatial_mllm_chat_text"]


def test_a_question_of_ones_own_asks_for_a_short_answer():
    text = user_text(Question("0", "", "Is the lamp on?"))
    assert text == "Is the lamp on?\nPlease answer the question using a single word or phrase."
