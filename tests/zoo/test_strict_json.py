"""JSON that Python reads and can't write or compute with is refused."""

from __future__ import annotations

import json

import pytest

from zoo.files.atomic_io import parse_json


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1" * 301, "an integer of 301 digits"),
        ("[" * 100_000, "nested too deeply"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_refused(text: str | bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_json(text)


@pytest.mark.parametrize("content", ["\U0001f600", r"\ud83d, a backslash and five letters", 10**299, [{"a": None}]])
def test_read(content: object) -> None:
    assert parse_json(json.dumps(content)) == parse_json(json.dumps(content).encode()) == content
