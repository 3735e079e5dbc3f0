"""`--model.help` without a class: of the model that the configs name, or the models there are."""

from __future__ import annotations

import inspect
from pathlib import Path

import yaml

from commands.registry import registered_classes
from commands.runs import BASES
from zoo.tasks import Task

OPTION = "--model.help"


def with_model(words: list[str]) -> list[str]:
    """The words with the configs' model for a bare `--model.help`.

    Raises:
        SystemExit: no config names one; the models are printed.
    """
    pairs = list(zip(words, [*words[1:], "-"], strict=True))
    others = [word for word, following in pairs if word != OPTION or not following.startswith("-")]
    if len(others) == len(words):
        return words
    models = [found for word, path in pairs if word in ("--config", "-c") and (found := _model_of(Path(path)))]
    models += [model for word, model in pairs if word == "--model"]
    if not models:
        print(_menu())
        raise SystemExit(0)
    return [*others, f"{OPTION}={models[-1]}"]  # what follows it is not read


def _model_of(config: Path) -> str | None:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong with it
        return None
    model = content.get("model") if isinstance(content, dict) else None
    return model.get("class_path") if isinstance(model, dict) else model


def _menu() -> str:
    models = [model for model in registered_classes(Task) if model.__name__ not in BASES]
    docs = {model.__name__: inspect.getdoc(model) or "" for model in models}
    width = max(map(len, docs))
    lines = [f"    {OPTION} {name:{width}}  {''.join(doc.splitlines()[:1])}" for name, doc in docs.items()]
    return "\n".join(["The options of a model, or of that which a --config names:", *lines])
