"""Parts as configuration and back: `class_path` and `init_args`, the language of the YAML configs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import torch

from zoo.errors import InputError, describe, raised_at, unwrapped

T = TypeVar("T")


class Configurable:
    """Remember the arguments of its constructor, so that `to_config` can write them down.

    Attributes:
        not_configuration: Names of arguments about one process, which no saved configuration has.
    """

    not_configuration: frozenset[str] = frozenset()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls)
        instance.__dict__["_constructor_arguments"] = (args, kwargs)
        return instance


def to_config(value: Any) -> Any:
    """The configuration of a part, JSON-like: plain values, lists, mappings, and classes with their arguments.

    Args:
        value: A `Configurable`, a dataclass, a class, a `functools.partial` of a class, a function of a
            module, or a plain value.

    Raises:
        InputError: A value without a configuration, such as a lambda.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, partial):
        kinds = [each for each in (value.func, *value.args) if isinstance(each, type)]  # jsonargparse puts it last
        if kinds:
            return _class_config(kinds[-1], value.keywords)
    if isinstance(value, type):
        return _class_config(value, {})
    if isinstance(value, Configurable):
        return _class_config(type(value), _given_arguments(value))
    if inspect.isfunction(value) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if inspect.isfunction(value) and not inspect.signature(value).parameters:
        with torch.device("meta"):  # a factory without arguments stands for what it makes
            return to_config(value())
    if is_dataclass(value):
        return {field.name: to_config(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): to_config(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [to_config(each) for each in value]
    raise InputError(
        f"{value!r} has no configuration: give a class, functools.partial(Class, option=...), or a part of the zoo"
    )


def known_config(instance: Configurable) -> dict[str, Any]:
    """The constructor arguments of a part as configuration, without those that have none, such as arrays."""
    found: dict[str, Any] = {}
    for name, value in _given_arguments(instance).items():
        with suppress(InputError):
            found[name] = to_config(value)
    return found


def complete_config(value: Any) -> Any:
    """The configuration of a part with the defaults of all arguments that it was not given, to compare two parts."""
    if not isinstance(value, Configurable):
        return to_config(value)
    signature = inspect.signature(type(value).__init__)
    defaults = {name: each.default for name, each in signature.parameters.items() if each.default is not each.empty}
    arguments = {**defaults, **_given_arguments(value)}
    return {"class": type(value), **{name: complete_config(each) for name, each in arguments.items()}}


def from_config(base: type[T], config: Mapping[str, Any]) -> T:
    """Build the instance of `base`, or of a subclass, that a configuration describes.

    Args:
        base: The class, or a base class of it.
        config: {"class_path": ..., "init_args": {...}}; a class path may be a bare name in `zoo` or `datamodules`.

    Raises:
        InputError: An unknown class or option.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part", required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"part": dict(config)})).part
    except Exception as error:
        cause = unwrapped(error)
        if isinstance(cause, InputError):
            raise cause from cause.__cause__
        if isinstance(error, (jsonargparse.ArgumentError, TypeError, KeyError)):
            reason = describe(cause) if raised_at(cause) else error
            raise InputError(f"this configuration of a {base.__name__} can't be read: {reason}") from error
        raise


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a class with other constructor arguments in place of some of its own."""
    return {**config, "init_args": {**(config.get("init_args") or {}), **to_config(overrides)}}


def _class_config(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if "<locals>" in kind.__qualname__:
        raise InputError(f"{kind.__qualname__} is a class in a function, which nothing can load: move it out of there")
    module = kind.__module__.partition(".")[0]
    menu = __import__(module) if module in ("zoo", "datamodules", "callbacks") else None
    is_short = menu is not None and kind.__name__ in menu.__all__
    path = f"{module}.{kind.__name__}" if is_short else f"{kind.__module__}.{kind.__qualname__}"
    return {"class_path": path, "init_args": {name: to_config(value) for name, value in arguments.items()}}


def _given_arguments(instance: Configurable) -> dict[str, Any]:
    args, kwargs = instance.__dict__["_constructor_arguments"]
    signature = inspect.signature(instance.__init__)  # type: ignore[misc]
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return {name: value for name, value in given.items() if name not in instance.not_configuration}
