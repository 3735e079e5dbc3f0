"""A parser that says what is wrong in one line: the usage of this command line is pages long."""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import datamodules
import zoo
from zoo.errors import InputError

UNKNOWN = "there is no option"


class OneLineParser(LightningArgumentParser):
    """As Lightning's, but an error is an InputError with what is wrong, and the option that may have been meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"Option '([\w.]+)' is not accepted|arguments: --([\w.]+)", message)
        if unknown is not None:
            raise InputError(self._unknown(unknown[1] or unknown[2])) from ex
        raise InputError(innermost(message)) from ex

    def _unknown(self, option: str) -> str:
        name = option.rpartition(".")[2]
        meant = get_close_matches(name, sorted(self._options() | part_options()), n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(meant)}?" if meant else "see main.py fit --help, --model.help, --data.help"
        return f"{UNKNOWN} {option}: {hint}"

    def _options(self) -> set[str]:
        return {option.rpartition(".")[2].lstrip("-") for option in self._option_string_actions}


def innermost(message: str) -> str:
    """The reason at the bottom of jsonargparse's nested report, with the option that it is about."""
    if UNKNOWN in message:  # what `error` said of a nested part
        return message[message.index(UNKNOWN) :].splitlines()[0]
    reasons = [
        line.strip(" -") for line in message.splitlines() if re.search("Expected|Problem|not|invalid|there is no", line)
    ]
    reasons = [reason for reason in reasons if not re.search("NoneType|any of the Union|init_args", reason)]
    if "\n" not in message or not reasons:
        return f"{message}; see main.py --help"
    keys = dict.fromkeys(re.findall(r'Parser key "([\w.]+)"|key=\'([\w.]+)\'', message))
    path = max((a or b for a, b in keys), key=len, default="")
    reason = reasons[-1].replace("Expected a dot import path string:", "there is no class")
    return reason if reason.split(":")[0] in path.split(".") else f"{path}: {reason}"


def part_options() -> set[str]:
    """The arguments of every class on the menus."""
    found: set[str] = set()
    for menu in (zoo, datamodules):
        for part in (getattr(menu, name) for name in menu.__all__):
            if inspect.isclass(part):
                found |= {name for each in part.__mro__ if each is not object for name in _arguments(each)}
    return found


def _arguments(part: Any) -> set[str]:
    try:
        return set(inspect.signature(part.__init__).parameters) - {"self", "args", "kwargs", "parts", "options"}
    except (TypeError, ValueError):  # built-in classes have no signature
        return set()
