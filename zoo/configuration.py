"""Converts objects to configurations and back, and checks which classes a configuration may name.

`Configurable` remembers an object's constructor arguments. `to_config` and `from_config` convert to plain values and
back. Importing a module runs its code. A configuration from someone else may therefore only name classes of the zoo,
modules that are already imported, and modules that the caller trusts.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path, PurePath
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple, TypeVar

import jsonargparse
import yaml

from zoo.errors import InputError, describe, did_you_mean, raised_at, unwrapped

DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
WORD = re.compile(r"\w+")
MENUS = ("zoo", "datamodules")  # packages whose public names a config may use alone
RESOLVER = resolve_name.__name__
RUNS = Path("runs")
KNOWN = ("zoo", "datamodules", "callbacks", "torch.nn", "torch.optim", "lightning")


class PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases: runs save none, and those of a stranger's file can multiply without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node.

        Raises:
            InputError: It is an alias.
        """
        if self.check_event(yaml.AliasEvent) and self.peek_event().anchor in self.anchors:  # type: ignore[no-untyped-call]
            raise InputError("it has aliases of YAML (*name), as no config of a run has: write the values out")
        return super().compose_node(parent, index)  # type: ignore[no-untyped-call]


def check_class_paths(config: Any, trust_modules: Collection[str] = ()) -> None:
    """Check the classes of a configuration before any of its modules is imported.

    Args:
        config: JSON-like content.
        trust_modules: Modules or packages that the configuration may import.

    Raises:
        InputError: A class belongs to a module that is not trusted, can't be imported, or is abstract; or a text is
            YAML with aliases.
    """
    if isinstance(trust_modules, str):
        raise InputError(f"trust_modules is a list, such as [{trust_modules!r}]")
    paths = list(_dotted_texts(config))
    for path, _ in paths:
        module = path.partition(".")[0]
        is_named = any(f"{path}.".startswith(f"{name}.") for name in (*KNOWN, *trust_modules))
        if not is_named and not _is_loaded_class(path) and (module in sys.modules or find_spec(module) is not None):
            raise InputError(
                f"{path} is of a module that is not the zoo's, and loading it runs its code: if you trust it, name it, "
                f"trust_modules=[{module!r}] or --trust_modules {module}"
            )
    for path, is_class in paths:
        if is_class and (reason := unusable_class(path)):
            raise InputError(reason)


def is_own(run: Path) -> bool:
    """Return whether a run lies in `runs/` of the current folder. Other runs may be of someone else."""
    folder = Path(os.path.normpath(run.absolute()))
    return RUNS.absolute() in (folder, *folder.parents)


def with_default_caches(config: Any, of_cache: bool = False) -> Any:
    """Return someone else's configuration with the default folders of caches, and the default limits on their sizes.

    A cache writes files and removes its former ones, and a folder of the user is not for someone else to choose.

    Args:
        config: JSON-like content.
        of_cache: Whether these are the options of a cache.
    """
    if isinstance(config, list):
        return [with_default_caches(each) for each in config]
    if not isinstance(config, Mapping):
        return config
    found = {}
    for name, value in config.items():
        is_cache = name == "cache" or str(name).endswith("_cache") or (of_cache and name == "init_args")
        is_place = (of_cache and name in ("folder", "max_size_gb")) or (is_cache and isinstance(value, str))
        if not is_place:
            found[name] = with_default_caches(value, is_cache)
    return found


def named_modules(config: Any) -> list[str]:
    """Return all modules and packages that a configuration names, to trust the user's own configuration."""
    return sorted({path.partition(".")[0] for path, _ in _dotted_texts(config)})


def unusable_class(path: str) -> str | None:
    """Return why the class of an import path can't be built (import error or abstract class), or None."""
    if not DOTTED.fullmatch(path):
        return None
    try:
        kind = resolve_name(path)
    except Exception as error:  # a module may raise anything
        return f"{path} can't be imported: {_import_problem(path, error)}"
    if inspect.isabstract(kind):
        return f"{path} is abstract: it lacks {', '.join(sorted(kind.__abstractmethods__))}"
    return None


def _import_problem(path: str, error: Exception) -> str:
    """Return why an import failed. For a misspelled name, list what exists instead of showing a place in the zoo."""
    module = path.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"there is no {module}.py in the current folder, and no package {module} is installed"
    if isinstance(error, AttributeError) and traceback.extract_tb(error.__traceback__)[-1].name == RESOLVER:
        classes = [name for name, kind in getattr(error.obj, "__dict__", {}).items() if inspect.isclass(kind)]
        return f"{error}{did_you_mean(str(error.name), classes)}"
    return describe(error)


def public_names() -> list[str]:
    """Return the names of `zoo` and `datamodules` that a config may use without their module."""
    return [name for menu in MENUS for name in import_module(menu).__all__]


def public_class(name: str) -> type | None:
    """Import the class with a public name, and return it. None if there is none."""
    menu = next((each for each in map(import_module, MENUS) if name in each.__all__), None)
    kind = getattr(menu, name, None)
    return kind if inspect.isclass(kind) else None


def import_named(config: Any) -> None:
    """Import the public classes that a configuration names, because jsonargparse finds imported classes only."""
    words = {*WORD.findall(str(config))}
    for name in public_names():
        if name in words:
            public_class(name)


def is_same_class(one: Any, other: Any) -> bool:
    """Return whether two class paths name the same class.

    A bare name matches any package. Two dotted paths also need the same top-level package. In a package of the user's,
    one module must lie inside the other, because two modules may have different classes of one name.
    """
    (*module, name), (*other_module, other_name) = (str(each).split(".") for each in (one, other))
    if not (module and other_module) or name != other_name:
        return name == other_name
    length = 1 if module[0] in KNOWN else min(len(module), len(other_module))
    return module[:length] == other_module[:length]


def _dotted_texts(config: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Yield texts that may be import paths, and whether each is the value of a `class_path`.

    jsonargparse parses a text as YAML and reads the file that a text names, so their contents are searched too.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _dotted_texts(value, str(name))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _dotted_texts(value)
    elif isinstance(config, str):
        text = config.strip()
        if DOTTED.fullmatch(text):
            yield text, key == "class_path"
        for content in (text, _content_of_file(text)):
            with suppress(yaml.YAMLError):
                read = yaml.load(content, PlainLoader)
                if isinstance(read, (Mapping, list)) or content is not text:
                    yield from _dotted_texts(read, key)


def _content_of_file(name: str) -> str:
    """Return the text of a file. Empty if it does not exist or is binary, such as weights."""
    with suppress(OSError, ValueError), open(os.path.expanduser(name), "rb") as file:
        if b"\0" not in file.read(1024):
            return Path(name).expanduser().read_text(encoding="utf-8")
    return ""


def _is_loaded_class(path: str) -> bool:
    """Return whether a class is loaded already, so that nothing is imported for it."""
    module, _, name = path.rpartition(".")
    return isinstance(vars(sys.modules[module]).get(name) if module in sys.modules else None, type)


# ---- Parts to configuration and back, with `class_path` and `init_args` as in the YAML configs ----------------------

T = TypeVar("T")


class Configurable:
    """Remembers its constructor arguments, so that `to_config` can write them.

    Attributes:
        not_configuration: Names of arguments that concern only the current process and are never saved.
    """

    not_configuration: frozenset[str] = frozenset()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls)
        instance.__dict__["_constructor_arguments"] = (args, kwargs)
        return instance


def to_config(value: Any) -> Any:
    """Return the configuration of a part as JSON-like values. A class becomes its path and arguments.

    Args:
        value: A `Configurable`, a dataclass, a class, a `functools.partial` of a class, a module-level function, or a
            plain value.

    Raises:
        InputError: The value has no configuration, for example a lambda.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (PurePath, Enum)):
        return _as_stored(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(to_config, value), key=str)
    if isinstance(value, partial):
        kinds = [each for each in (value.func, *value.args) if isinstance(each, type)]  # the class comes last
        if kinds:
            return _class_config(kinds[-1], value.keywords)
    if isinstance(value, type):
        return _class_config(value, {})
    if isinstance(value, Configurable):
        return _class_config(type(value), _given_arguments(value))
    if inspect.isfunction(value) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if inspect.isfunction(value) and not inspect.signature(value).parameters:
        import torch  # imported late, because the commands' help does not need it

        with torch.device("meta"):  # a factory without arguments stands for its result
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
    """Return a part's constructor arguments as configuration, without values that have none, such as arrays."""
    found: dict[str, Any] = {}
    for name, value in _given_arguments(instance).items():
        with suppress(InputError):
            found[name] = to_config(value)
    return found


def complete_config(value: Any) -> Any:
    """Return a part's configuration including default arguments, to compare two parts."""
    if not isinstance(value, Configurable):
        return to_config(value)
    signature = inspect.signature(type(value).__init__)
    defaults = {name: each.default for name, each in signature.parameters.items() if each.default is not each.empty}
    arguments = {**defaults, **_given_arguments(value)}
    return {"class": type(value), **{name: complete_config(each) for name, each in arguments.items()}}


def from_config(base: type[T], config: Mapping[str, Any]) -> T:
    """Build the instance of `base` or a subclass that a configuration describes.

    Args:
        base: The expected class or a base class of it.
        config: {"class_path": ..., "init_args": {...}}. A class path may be a bare name in `zoo` or `datamodules`.

    Raises:
        InputError: The class or an option is unknown.
    """
    import_named(config)
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


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the options of a config by dotted name, without `init_args`. Classes in a list are named by index.

    Example:
        >>> flatten({"model": {"class_path": "zoo.PRoPEMLLM", "init_args": {"objectives": [{"weight": 1}], "r": 2}}})
        {'model.class_path': 'zoo.PRoPEMLLM', 'model.objectives.0.weight': 1, 'model.r': 2}
    """
    if isinstance(config, list) and any(isinstance(each, Mapping) for each in config):
        config = {str(index): each for index, each in enumerate(config)}
    if not isinstance(config, Mapping):
        return {prefix: _as_stored(config)}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    return flat


def _as_stored(value: Any) -> Any:
    """Return a value as config files store it. Sets stay sets, because files don't keep their order."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_as_stored(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return {repr(_as_stored(each)) for each in value}
    if value is None or isinstance(value, (bool, int, float, str, Mapping)):
        return value
    named = value if hasattr(value, "__qualname__") else getattr(value, "func", None)  # of a partial
    return str(value) if named is None else f"{named.__module__}.{named.__qualname__}"  # str for a range


def changed_options(before: Any, now: Any, excepted: Collection[str] = ()) -> list[str]:
    """Return the dotted names of the options in which two configs differ.

    If a part has another class, or is missing in one config, only the part's own name is returned. Class paths may lack
    a module.

    Args:
        before: A config, possibly flattened.
        now: Another config.
        excepted: Names of options that may differ, with all options below them.

    Example:
        >>> one = {"model": {"fusion": None, "r": 1}}
        >>> other = {"model": {"fusion": {"class_path": "AddFusion", "init_args": {"branches": "2d"}}, "r": 2}}
        >>> changed_options(one, other), changed_options(one, other, ("model.fusion",))
        (['model.fusion', 'model.r'], ['model.r'])
    """
    return changed_flat(flatten(before), flatten(now), excepted)


def changed_flat(one: Mapping[str, Any], other: Mapping[str, Any], excepted: Collection[str] = ()) -> list[str]:
    """Return the same as `changed_options` for configs that are flattened, which must not be done twice."""
    differing = [
        name
        for name in sorted({*one, *other})
        if not is_covered(name, excepted) and not is_same_value(name, one.get(name), other.get(name))
    ]
    parts = {name.removesuffix(".class_path") for name in differing if name.endswith(".class_path")}
    nameable = parts | one.keys() | other.keys()
    prefixes = (accumulate(name.split("."), "{}.{}".format) for name in differing)
    return list(dict.fromkeys(next(each for each in own if each in nameable) for own in prefixes))


class OptionEffects(NamedTuple):
    """What the options of a class change. A class lists each of its options once, by its full dotted name.

    A name covers all options below it. One below an entry of `both` may be listed by itself if it changes less. An
    option that no class lists counts as one of `both`.

    Attributes:
        nothing: They change neither a training step nor the answers of given weights.
        training: They change a training, but not the answers of given weights. An interrupted test goes on with other
            values of them.
        answers: They change the answers of given weights, but not a training step. A training resumes with other
            values of them.
        both: They change both.
    """

    nothing: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    both: tuple[str, ...] = ()

    def harmless(self, to: Literal["training", "answers"]) -> tuple[str, ...]:
        """Return the options that do not change a training, or the answers of given weights."""
        return (*self.nothing, *(self.answers if to == "training" else self.training))


def is_covered(name: str, names: Collection[str]) -> bool:
    """Return whether a dotted name is one of these names, or below one."""
    return any(f"{name}.".startswith(f"{each}.") for each in names)


def is_same_value(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of an option are equal. Class paths may lack their module, and files list sets."""
    if isinstance(one, set) or isinstance(other, set):
        one, other = (set(map(repr, each)) if isinstance(each, list) else each for each in (one, other))
    return is_same_class(one, other) if name.endswith("class_path") else bool(one == other)


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a class with some constructor arguments replaced."""
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
