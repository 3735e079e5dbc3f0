"""The name of a new run: `--name`, or its model with the parts that the command line has changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from callbacks.settings import CHANGES_NO_ANSWER, is_one_of
from zoo.errors import InputError

ALLOWED = re.compile(r"[\w.-]+")
SCALE = ("backbone", "geometry", "geometry_cache")  # of which a name has the class alone: sizes and paths are long
LENGTH = 60  # of the changes, in characters
HELP = "name of a new run's folder, in loggers and in reports; null: its model, with the changed parts of --model"


def run_name(given: str | None, model: str, words: Sequence[str]) -> str:
    """Return the first part of the name of a new run's folder.

    Args:
        given: `--name`.
        model: Name of the model's class.
        words: The command line after `fit`, such as `--model.camera_encoding GTA`.

    Raises:
        InputError: The given name can't be one of a folder.
    """
    if given is None:
        text = "-".join(changes(words))
        return f"{model}-{text}" if text and len(text) <= LENGTH else model
    if not ALLOWED.fullmatch(given) or given.strip(".") == "":
        raise InputError(f"--name {given}: letters, digits and . _ - alone, since a folder has this name")
    return given


def changes(words: Sequence[str]) -> Iterator[str]:
    """Yield how the command line departs from the model's config: classes, `no-fusion`, and values of options."""
    options: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, has_value, value = word.partition("=")
        if option.startswith("--model.") and not option.endswith("help"):
            options[option.removeprefix("--model.")] = _parsed(value if has_value else following)
    for name, value in options.items():
        part, *inner = name.removesuffix(".class_path").replace(".init_args", "").split(".")
        if is_one_of(name, CHANGES_NO_ANSWER) or (inner and part in SCALE):
            continue
        key = inner[-1] if inner and name != "lora.r" else part
        names = [_named(each) for each in (value if isinstance(value, list) else [value])]
        if value is None or value == []:
            yield f"no-{key}"
        elif all(text[:1].isupper() for text in names):
            yield "-".join(names)
        else:
            yield "-".join([key, *names])


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _named(value: Any) -> str:
    """Return a class by its name, and another value as text that a folder's name may have."""
    text = str(value.get("class_path", "") if isinstance(value, dict) else value)
    name = text.rpartition(".")[2]
    return name if name[:1].isupper() else re.sub(r"[^\w.]+", "-", text).strip("-")
