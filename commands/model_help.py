"""`--model.help` without a class: of the model that the configs name, or the models there are."""

from __future__ import annotations

import inspect
from pathlib import Path

import yaml

import zoo
from commands.runs import BASES
from zoo.trainable import Trainable

OPTION = "--model.help"


def with_model(words: list[str]) -> list[str]:
    """The words with the configs' model for a bare `--model.help`.

    Raises:
        SystemExit: no config names one; the models are printed.
    """
    bare = [i for i, word in enumerate(words) if word == OPTION and words[i + 1 : i + 2] in ([], *_options(words))]
    if not bare:
        return words
    pairs = list(zip(words[:-1], words[1:], strict=True))
    models = [found for word, path in pairs if word in ("--config", "-c") and (found := _model_of(Path(path)))]
    models += [model for word, model in pairs if word == "--model"]
    if not models:
        print(_menu())
        raise SystemExit(0)
    return [
        *(word for i, word in enumerate(words) if i not in bare),
        f"{OPTION}={models[-1]}",
    ]  # the last word: it ends


def _options(words: list[str]) -> list[list[str]]:
    return [[word] for word in words if word.startswith("-")]


def _model_of(config: Path) -> str | None:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong with it
        return None
    model = content.get("model") if isinstance(content, dict) else None
    return model.get("class_path") if isinstance(model, dict) else model


def _menu() -> str:
    every = [getattr(zoo, name) for name in zoo.__all__]
    models = [part for part in every if inspect.isclass(part) and issubclass(part, Trainable)]
    what = {model.__name__: (inspect.getdoc(model) or "").partition("\n")[0] for model in models}
    width = max(map(len, what))
    lines = [f"    {OPTION} {name:{width}}  {said}" for name, said in what.items() if name not in BASES]
    return "\n".join(["The options of a model, or of that which a --config names:", *lines])
