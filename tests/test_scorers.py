"""docs/scorers.py: its table in docs/concepts/other_code.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from docs.scorers import DOCUMENT, in_words, table
from zoo.benchmarks.scorers import read_any_number


def test_every_number_in_words_is_read_back() -> None:
    assert [read_any_number(in_words(number)) for number in range(1, 1000)] == list(range(1, 1000))


@pytest.mark.slow
@pytest.mark.skipif("ZOO_REALDATA" not in os.environ, reason="ZOO_REALDATA is unset: no VSI-Bench questions")
def test_the_table_of_the_document() -> None:
    file = Path(os.environ["ZOO_REALDATA"]) / "vsibench/test.jsonl"
    made = table([json.loads(line) for line in file.read_text().splitlines()])
    assert len(made.splitlines()) == 9 and made in DOCUMENT.read_text()
