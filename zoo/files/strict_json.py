"""JSON in files of users: whatever Python can't represent is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any

MAX_DIGITS = 300  # a float holds 308: a longer integer would overflow wherever it is computed with


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; bytes are UTF-8.

    Raises:
        ValueError: Not JSON, not UTF-8, nested too deeply, or an integer of more than 300 digits.
    """
    try:
        return json.loads(text, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
