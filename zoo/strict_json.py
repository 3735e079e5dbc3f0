"""JSON in files of users: whatever Python can't represent is a `ValueError`."""

from __future__ import annotations

import json
import re
from typing import Any

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a character
MAX_DIGITS = 300  # a float holds 308: a longer integer would overflow wherever it is computed with


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; bytes are UTF-8.

    Raises:
        ValueError: Not JSON, not UTF-8, nested too deeply, an integer of more than 300 digits, or half of a character.
    """
    try:
        content = json.loads(text, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if SURROGATE.search(text if isinstance(text, str) else text.decode()):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair, which is no character") from error
    return content


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
