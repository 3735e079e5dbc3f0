"""The parts of an evaluation in which two configs differ, each of which can be switched alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import datamodules
import zoo
from callbacks.run_config import is_covered
from datamodules import VideoQADataModule
from zoo.configuration import is_same_class
from zoo.errors import InputError
from zoo.tasks import VideoQATask

SECTIONS = ("model", "data", "metrics")
SCORER = "metrics.scorer"
UNSTATED = "metrics.protocol"  # a name, which changes nothing
# which questions are asked: no score is compared across other ones
CHANGES_NO_ANSWER = (*VideoQATask.changes_no_answer, *VideoQADataModule.changes_no_answer)
# options of a model that a protocol states
SWITCHABLE = {
    *("model.max_new_tokens", "model.repetition_penalty", "model.sampling", "model.time_index"),
    *("model.text_after_vision", "model.camera_source", "model.geometry_cache"),
}
QUESTIONS = {f"data.{name}" for name in ("source", "datasets", "question_types", "scene_names", "subset")}
Parts = dict[str, Any]  # `data.pixels` and the like, and their settings


def parts_of(config: Mapping[str, Any]) -> Parts:
    """Return the options of model, data and metrics, one with all of its own options each."""
    found: Parts = {}
    for section in SECTIONS:
        content = config.get(section) or {}
        options = content.get("init_args", content)
        found |= {f"{section}.{name}": value for name, value in options.items() if name != "class_path"}
    return found


def differing_parts(
    first: Mapping[str, Any], second: Mapping[str, Any], run: Mapping[str, Any], fixed: Sequence[str] = ()
) -> dict[str, Parts]:
    """Return the parts in which two configs differ, each with its two settings.

    Args:
        first: A protocol, or the config of a run.
        second: Another one. What one of them leaves out is the run's.
        run: The config of the run that both evaluate.
        fixed: Words of a command line, whose options are those of both.

    Returns:
        {part: {"first": setting, "second": setting}}.

    Raises:
        InputError: They differ in what changes the weights or the questions, or in nothing that changes an answer or
            its score.
    """
    one, other, base = parts_of(first), parts_of(second), parts_of(run)
    found: dict[str, Parts] = {}
    for name in dict.fromkeys((*one, *other)):
        if is_set(name, fixed):
            continue
        settings = {key: filled(own, name, base.get(name)) for key, own in (("first", one), ("second", other))}
        if name == UNSTATED or is_covered(name, CHANGES_NO_ANSWER) or is_same(*settings.values()):
            continue
        if name.startswith("model.") and name not in SWITCHABLE:
            raise InputError(
                f"they differ in {name}, which changes the weights: compare two models by `python main.py report`"
            )
        if name in QUESTIONS:
            raise InputError(f'they differ in {name}, so in their questions: give both one by --options "--{name} ..."')
        found[name] = settings
    if not found:
        raise InputError("they differ in nothing that changes an answer or its score")
    return found


def is_set(name: str, words: Sequence[str]) -> bool:
    """Return whether words of a command line set a part, or an option of it."""
    options = (word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--"))
    return any(f"{option}.".startswith(f"{name}.") for option in options)


def filled(settings: Mapping[str, Any], name: str, base: Any) -> Any:
    """Return a setting with what it leaves out as in the base: itself, or options of a part of the same class."""
    if name not in settings or not (isinstance(settings[name], Mapping) and isinstance(base, Mapping)):
        return settings.get(name, base)
    own = settings[name]
    if "class_path" in own and not is_same_class(own["class_path"], base.get("class_path")):
        return own
    return {option: filled(own, option, base.get(option)) for option in dict.fromkeys((*base, *own))}


def is_same(one: Any, other: Any) -> bool:
    """Return whether two settings agree; class paths may lack their module, and defaults may be left out."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        one, other = with_defaults(one), with_defaults(other)
        return one.keys() == other.keys() and all(
            is_same_class(one[key], other[key]) if key == "class_path" else is_same(one[key], other[key]) for key in one
        )
    return bool(one == other)


def with_defaults(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a part of the zoo with the defaults of the options that it leaves out."""
    name = str(part.get("class_path")).rpartition(".")[2]
    kind = getattr(datamodules, name, None) or getattr(zoo, name, None)
    if kind is None:
        return part
    options = inspect.signature(kind.__init__).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    return {**part, "init_args": {**defaults, **(part.get("init_args") or {})}}


def config_of_parts(parts: Parts) -> dict[str, Any]:
    """Return parts as a config, the inverse of `parts_of`."""
    config: dict[str, Any] = {}
    for name, value in parts.items():
        section, _, option = name.partition(".")
        content = config.setdefault(section, {})
        (content if section == "metrics" else content.setdefault("init_args", {}))[option] = value
    return config
