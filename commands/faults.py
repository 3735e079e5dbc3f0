"""Errors as one line: wrong options and values, errors in users' own classes, and errors of other libraries."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from run_folder.configs import MergedConfig, find_class, find_error, option_names, parser_of
from zoo.configuration import public_names, unusable_class
from zoo.errors import InputError, causes, describe, did_you_mean, input_error, raised_at, unwrapped

Fault = tuple[str, str]  # an option's full name, and what is wrong with it
KEYS_OF_PART = CLASS_PATH, INIT_ARGS, _ = "class_path", "init_args", "dict_kwargs"
DISTRIBUTED = ("DistBackendError", "DistNetworkError")  # torch's; errors over gloo have no class of their own
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run it again"),  # full disk, or full quota
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run it again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "check its permissions, or choose another folder"),
}


def error_line(error: BaseException) -> str | None:
    """Return the line that the command line prints. None is a bug of the zoo, which needs its traceback."""
    own = [each for each in causes(error) if not isinstance(each, InputError) and raised_at(each)]
    meant = input_error(error) or known_fault(error) or (describe(own[0]) if own else None)
    return f"{meant}; --traceback shows the calls" if own else meant and str(meant)


def raise_failed_construction(error: Exception) -> NoReturn:
    """Raise a constructor's error as an InputError."""
    cause = unwrapped(error)
    if isinstance(cause, InputError):
        raise cause
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_name == "__init__"]
    # a wrapper of a constructor may have no self
    built = next((frame.f_locals["self"] for frame in frames if "self" in frame.f_locals), None)
    subject = "the model or the data" if built is None else type(built).__name__
    raise InputError(f"{subject} can't be built: {describe(cause)}") from error


def known_fault(error: BaseException) -> InputError | None:
    """Return an error that a user can fix: full disk, permissions, an unlogged score, a failed other process."""
    for each in causes(error):
        if isinstance(each, OSError) and each.errno in UNWRITABLE:
            place = os.fsdecode(each.filename2 or each.filename or "a file")
            return InputError(f"{place}: {each.strerror}; {UNWRITABLE[each.errno]}")
        text = " ".join(str(each).split())
        if type(each).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on"):
            return InputError(f"trainer: {text}")
        if type(each).__name__ in DISTRIBUTED or "gloo/transport" in text:
            reason = text.partition(" This is typically")[0]
            return InputError(f"another process of this run has ended, see its own error here or in its log ({reason})")
    return None


# ---- Errors of jsonargparse: the option, and the most similar name ---------------------------------------------------


def explained(error: Exception, parser: ArgumentParser, config: MergedConfig, given: Collection[str]) -> InputError:
    """Return an error of jsonargparse as one line.

    jsonargparse's own message about a part is nested once for every part around it. Here, each option is tried
    separately. The message names the first option that is refused, and the config that sets it.

    Args:
        error: The error.
        parser: The parser of the command.
        config: The config that is refused.
        given: Names of the options of the command line.
    """
    fault = find_fault(parser, config.settings)
    if fault is None:
        return InputError(" ".join(str(error).split()))
    option, problem = fault
    is_typed = any(f"{option}.".startswith(f"{name.removesuffix('+')}.") for name in given)
    names = [option, *(name for name in config.origins if name.startswith(f"{option}."))]
    files = [config.origins[name] for name in names if name in config.origins and not is_typed]
    return InputError(": ".join([*files[:1], option, problem]))


def find_fault(parser: ArgumentParser, options: Mapping[str, Any], within: str = "") -> Fault | None:
    """Return the first option that a parser refuses, and why. None if it accepts all.

    Args:
        parser: The parser of a command, or of a class.
        options: Values by option. A part is a mapping with `class_path`.
        within: Name of the part to which the options belong.
    """
    groups = vars(parser.get_defaults())
    for option, value in options.items():
        name = f"{within}.{option}".lstrip(".")
        if option not in groups:
            return name, _unknown(name, [f"{within}.{each}" for each in groups] if within else _names(parser, options))
        if isinstance(groups[option], Namespace) and isinstance(value, Mapping) and not has_class(value):
            known = [f"{name}.{inner}" for inner in vars(groups[option])]
            for inner, each in value.items():
                if f"{name}.{inner}" not in known:
                    return f"{name}.{inner}", _unknown(f"{name}.{inner}", known)
                if reason := refusal(parser, (option, inner), each):
                    return f"{name}.{inner}", reason
        elif fault := _fault_of_value(parser, option, value, name):
            return fault
    return None


def _fault_of_value(parser: ArgumentParser, option: str, value: Any, name: str) -> Fault | None:
    """Return the first fault of a value: in the classes of its parts, in their options, or in itself."""
    value = opened(value)
    for part in value if isinstance(value, list) else [value]:
        if not has_class(part):
            continue
        if others := sorted(part.keys() - {*KEYS_OF_PART}):
            return f"{name}.{others[0]}", f"not expected here: put options of a class below {INIT_ARGS}"
        alone = {CLASS_PATH: part[CLASS_PATH]}
        if reason := refusal(parser, (option,), [alone] if isinstance(value, list) else alone):
            return name, reason
        kind = find_class(str(part[CLASS_PATH]))
        if kind is not None and (fault := find_fault(parser_of(kind), part.get(INIT_ARGS) or {}, name)):
            return fault
    reason = refusal(parser, (option,), value, complete=True)
    return None if reason is None else (name, reason)


def _unknown(option: str, known: Collection[str]) -> str:
    """Return what is wrong with an unknown option."""
    if option in known:  # a config has the dotted name as one key
        return "a config has nested keys: write each word between the dots as its own key"
    return f"there is no such option{did_you_mean(option, known)}"


def _names(parser: ArgumentParser, options: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of a command's options, with the options of its model and data."""
    kinds = {part: find_class(value[CLASS_PATH]) for part, value in options.items() if has_class(value)}
    inner = [f"{part}.{name}" for part, kind in kinds.items() if kind is not None for name in option_names(kind)]
    return [*parser.get_defaults().keys(), *inner]


def opened(value: Any) -> Any:
    """Parse a text such as `[a, b]` to a list or a mapping. Other values are returned unchanged."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(yaml.YAMLError):
            return yaml.safe_load(value)
    return value


def has_class(value: Any) -> bool:
    """Return whether a value is a part with its class."""
    return isinstance(value, Mapping) and CLASS_PATH in value


def refusal(parser: ArgumentParser, option: Sequence[str], value: Any, complete: bool = False) -> str | None:
    """Return why a parser refuses the value of an option, in jsonargparse's words. None if it accepts it.

    Args:
        parser: The parser.
        option: The name of the option, one word per group.
        value: The value.
        complete: Whether parts have all options without a default, so that a missing one is an error.
    """
    settings = value
    for word in reversed(option):
        settings = {word: settings}
    reason = find_error(parser, settings)
    if reason is None or (isinstance(reason, TypeError) and not complete):  # an option may be missing
        return None
    part = value[0] if isinstance(value, list) and value else value
    if isinstance(part, str) and part.startswith("["):
        part = (opened(part) or [""])[-1]
    text, name = " ".join(str(reason).split()), str(part[CLASS_PATH] if has_class(part) else part)
    if isinstance(part, Mapping) and not has_class(part):
        return f"{text}; name its class first" if isinstance(reason, ValueError) else text
    return unusable_class(name) or text + _similar_class(parser, option[-1], name)


def _takes(parser: ArgumentParser, option: str, value: Any) -> bool:
    """Return whether an option accepts a class, or a list of one, but no text."""
    takes_text = any(find_error(parser, {option: text}) is None for text in ("no class", ["no class"]))
    error = find_error(parser, {option: value})
    return not takes_text and (error is None or isinstance(error, TypeError))


def _similar_class(parser: ArgumentParser, option: str, name: str) -> str:
    """Return the end of a message about an unknown class: the most similar class that the option accepts, or ""."""
    by_lower_case = {each.lower(): each for each in public_names()}
    alike = [by_lower_case[each] for each in get_close_matches(name.lower(), by_lower_case, 20, 0.4)]
    fitting = (each for each in alike if any(_takes(parser, option, value) for value in (each, [each])))
    guess = None if find_class(name) else next(fitting, None)
    return f"; did you mean {guess}?" if guess else ""
