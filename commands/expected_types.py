"""What an option expects, in words: jsonargparse's errors list Python's names of the types that it has tried."""

from __future__ import annotations

import re

from zoo.errors import closest

SINGLE = re.compile(r"Expected an? (?P<types>.+)\. Got value: (?P<value>.*)")
UNION = re.compile(r"Subtypes: \[(?P<types>.+)\]\n(?P<errors>(?:.*\n)*?)\s*Given value: (?P<value>.*)")
TRIED = re.compile(r"^\s*- (?!Expected an? (?:<class|typing\.|list|tuple|dict))(.+)$", re.MULTILINE)  # tells more


def describe_types(message: str) -> str | None:
    """Return what an option expects in place of its value.

    Args:
        message: An error of jsonargparse.

    Returns:
        A text such as `expected int or null, not four`, or None where the message is of another kind.
    """
    found = SINGLE.search(message) or UNION.search(message)
    if found is None or TRIED.search(found.groupdict().get("errors") or ""):
        return None
    types, value = readable(found["types"]), found["value"].strip()
    if value.startswith(("'", '"')) and value.endswith(value[0]):
        value = value[1:-1]
    remedy = ""
    if guess := closest(value, re.findall(r"'([^']*)'", types)):
        remedy = f"; did you mean {guess}?"
    elif types.startswith("list[") and not value.startswith(("[", "{")):
        remedy = f"; a list is written [{value}]"
    return f"expected {types}, not {value or 'an empty text'}{remedy}"


def readable(types: str) -> str:
    """Return types as `int, 'a' or null` that are `<class 'int'>, typing.Literal['a'], <class 'NoneType'>`."""
    types = re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", re.sub(r"<class '([^']*)'>", r"\1", types))
    types = re.sub(r"\b(?:[a-z_]\w*\.)+([A-Za-z_])", r"\1", types).replace("NoneType", "null").replace("None", "null")
    first, comma, last = types.rpartition(", ")
    return f"{first} or {last}" if comma and last.count("[") == last.count("]") else types
