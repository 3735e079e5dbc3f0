"""Completes a command line: the configs in an order of their own, and the run to evaluate."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection
from pathlib import Path

from callbacks.configs import PROTOCOL, layer, load_configs, model_of
from commands.parser import registered_classes
from commands.runs import CONFIG, check_classes, find_run, refuse_unreadable, run_of
from zoo.errors import InputError
from zoo.tasks import Task
from zoo.weights.saved_models import CHECKPOINTS, LAST_CHECKPOINT

EVALUATION = ("validate", "test", "predict", "export")
MODEL_HELP = "--model.help"
TRUST, TRUSTED = "--trust_modules", "ZOO_TRUST_MODULES"


def preprocess_argv(arguments: list[str]) -> list[str]:
    """Put the configs before the options, so that options win, and name the run to evaluate where no config does.

    Args:
        arguments: The command and its options.

    Raises:
        InputError: A config is absent or two disagree, or there is no run to evaluate.
        SystemExit: After the help for `--model.help` without a model.
    """
    command, *words = arguments
    trusted, words = split_trusted(words)
    names, options = split_configs(words)
    configs = load_configs(names)
    options = complete_model_help(options, [model for model in map(model_of, configs.values()) if model])
    for path in configs:
        if path.name == CONFIG and (path.parent / CHECKPOINTS).is_dir():
            check_classes(path.parent, trusted)
    checkpoint = value_of("--ckpt_path", options)
    if checkpoint and checkpoint != "last":
        refuse_unreadable(Path(checkpoint))  # before Lightning opens it for its settings
    video = value_of("--data.video", options) if command == "predict" else None
    if video and not Path(video).expanduser().exists():  # before a model is looked for
        raise InputError(f"{video}: no such video file or folder of frames")
    asks_help = any(word == "-h" or word.partition("=")[0].endswith("help") for word in options)
    protocols = [path for path in configs if layer(path) == PROTOCOL]
    others = [path for path in configs if path not in protocols]
    run: list[str] = []
    if command in EVALUATION and not others and not asks_help:
        run = _run_options(options, trusted)  # its config below a protocol
    named = (word for paths in (others, protocols) for path in paths for word in ("--config", str(path)))
    return [command, *run, *named, *options]


def split_trusted(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate the value of `--trust_modules`, names between commas, from the other words.

    It is kept for the other processes of DDP, which Lightning starts with the completed command line.
    """
    if (given := value_of(TRUST, words)) is not None:
        os.environ[TRUSTED] = given
        at = next(i for i, word in enumerate(words) if word.partition("=")[0] == TRUST)
        words = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    return re.findall(r"[\w.]+", os.environ.get(TRUSTED, "")), words


def split_configs(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate the values of `--config` from the other words."""
    names, options = [], []
    remaining = iter(words)
    for word in remaining:
        option, _, value = word.partition("=")
        if option in ("--config", "-c") and (name := value or next(remaining, "")):
            names.append(name)
        else:
            options.append(word)
    return names, options


def complete_model_help(options: list[str], models: list[str]) -> list[str]:
    """Add the model to a bare `--model.help`.

    Args:
        options: Words of the command line; `--model` is read from them as well.
        models: The classes that configs name.

    Raises:
        SystemExit: After a list of the models, where none is named.
    """
    asked = value_of(MODEL_HELP, options)
    if asked is None or (asked and not asked.startswith("-")):
        return options
    if model := value_of("--model", options):
        models = [*models, model]
    if not models:
        print("The options of a model, also of the one that a --config names:")
        for kind in registered_classes(Task):
            print(f"    {MODEL_HELP} {kind.__name__:15}  {(inspect.getdoc(kind) or '').partition(chr(10))[0]}")
        raise SystemExit(0)
    others = [word for word in options if word != MODEL_HELP]
    return [*others, f"{MODEL_HELP}={models[-1]}"]  # last: jsonargparse reads nothing after it


def _run_options(options: list[str], trusted: Collection[str]) -> list[str]:
    """Return config, folder and checkpoint of a run: that of the given checkpoint or folder, or the newest."""
    checkpoint, folder = value_of("--ckpt_path", options), value_of("--trainer.default_root_dir", options)
    run = run_of(Path(checkpoint)) if checkpoint and checkpoint != "last" else find_run(folder)
    if run is None:
        raise InputError(f"{checkpoint} lies in no run with a {CONFIG}: name its model with --config")
    check_classes(run, trusted)
    found = ["--config", str(run / CONFIG), "--trainer.default_root_dir", str(run)]
    return found if checkpoint else [*found, "--ckpt_path", str(run / LAST_CHECKPOINT)]


def value_of(option: str, words: list[str]) -> str | None:
    """Return the value of an option, given as `--option value` or `--option=value`."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
