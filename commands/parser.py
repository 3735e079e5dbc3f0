"""A parser that says what is wrong in one line: the usage of this command line is pages long."""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from commands.null_values import reject_nulls
from commands.registry import registered_classes
from zoo.errors import InputError, input_error

ALIKE, FEW = 0.65, 16  # how alike names are if one may be meant by the other; how many are worth a list
Guess = tuple[float, str]  # how alike a name is, and the name

# what argparse and jsonargparse say
NO_OPTION = re.compile(
    r"unrecognized arguments: (?P<word>[^\s=]+)"
    r"|(?:(?:Group|(?P<command>Subcommand)) '(?P<group>[^']+)' does not accept o|O)ption '(?P<option>[^']+)'"
)
NO_CLASS = re.compile(r"import path string: (\S+)")
NO_VALUE = re.compile(r"Expected an? (.+?)\. Got value: (.*)|Subtypes: \[(.*)\](?s:.*)Given value: (.*)")
NO_PART = re.compile(r"NestedArg\(key='([^']+)'")
NO_GROUP = re.compile(r"Unable to load config '([^']*)'")
NO_SETTINGS, NO_YAML = "Unexpected config:", "Problems parsing config:"


class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of a description as they are."""


class OptionError(InputError):
    """What is wrong with an option, which has its name from the parser on that found out, and what to do about it."""

    def __init__(self, option: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{option}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.option, self.problem, self.remedy = option, problem, remedy

    def within(self, part: str, options: Iterable[str]) -> OptionError:
        """The same of the whole, in which the option is one of a part's; the whole has options of its own."""
        return OptionError(f"{part}.{self.option}", self.problem, self.remedy)


class UnknownOption(OptionError):
    """There is no such option: `guess` may have been meant."""

    def __init__(self, option: str, guess: Guess, otherwise: str) -> None:
        super().__init__(option, "there is no such option", _advice(guess, otherwise))
        self.guess, self.otherwise = guess, otherwise

    def within(self, part: str, options: Iterable[str]) -> UnknownOption:
        alike, meant = self.guess
        guess = max((alike, f"{part}.{meant}"), closest(self.option, options))
        return UnknownOption(f"{part}.{self.option}", guess, self.otherwise)


class OneLineParser(LightningArgumentParser):
    """As Lightning's, but an error is an InputError: one line with what is wrong, and what may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **kwargs})

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        if isinstance(args, list):  # jsonargparse 4.53 gives a part's parser the text None for what was null
            args = [f"{word.removesuffix('=None')}=null" if word.endswith("=None") else word for word in args]
        return super().parse_args(args, *others, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_path(path, *args, **kwargs)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        reject_nulls(cfg[cfg.subcommand] if "subcommand" in cfg else cfg)
        return super().instantiate_classes(cfg, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        within = re.match(r'Parser key "([\w.]+)"', message)
        part = within[1] if within else ""
        inner = input_error(ex)
        if isinstance(inner, OptionError) and part:  # the parser of a part knows best
            inner = inner.within(part, options_of(self))
        raise inner or self._explained(message, part) from ex

    def _explained(self, message: str, part: str) -> InputError:
        """One line for a report of many."""
        help = f"see {self.prog.replace(' [options]', '')} --help"
        if found := NO_OPTION.search(message):
            return self._unknown(found, help)
        if found := NO_CLASS.search(message):
            names = classes(message)
            advice = _advice(closest(found[1], names), _listed(names, "give its name or its import path"))
            return OptionError(part or message.partition(":")[0].lstrip("-"), f"there is no class {found[1]}", advice)
        if found := NO_PART.search(message):
            return OptionError(
                part, f"no class is named yet that could have the option {found[1]}", _listed(classes(message))
            )
        if part and (found := NO_GROUP.search(message)):
            own = (option.removeprefix(f"{part}.") for option in options_of(self) if option.startswith(f"{part}."))
            return OptionError(part, f"expected options of its own, not {found[1]}", _listed(own))
        if part and (found := NO_VALUE.search(message)):
            types, value = found.group(1, 2) if found[1] else found.group(3, 4)
            return OptionError(part, f"expected {spell(types)}, not {value or 'nothing'}", _listed(classes(message)))
        if message.startswith(NO_SETTINGS):
            return InputError("holds no settings")
        if message.startswith(NO_YAML):
            return InputError(f"is no YAML: {' '.join(message.removeprefix(NO_YAML).split())}")
        return InputError(f"{' '.join(message.split())}; {help}")

    def _unknown(self, found: re.Match[str], help: str) -> OptionError:
        word, group, options = found["word"], found["group"], options_of(self)
        if word and not word.startswith("--"):
            return OptionError(word, "not expected here; options start with --, configs are named by --config", help)
        if found["command"]:
            (commands,) = (action.choices for action in self._actions if isinstance(action.choices, dict))
            group, options = None, options_of(commands[group])
        option = f"{group}.{found['option']}" if group else found["option"] or word.lstrip("-")
        return UnknownOption(option, closest(option, options), _listed(options, help))


def options_of(parser: OneLineParser) -> set[str]:
    """The names of all options of a parser, without those for help."""
    names = (option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--"))
    return {name for name in names if not name.endswith(("help", "+"))}


def closest(word: str, names: Iterable[str]) -> Guess:
    """The most alike of some dotted names: as a whole, or a little less in its last part."""

    def alike(a: str, b: str) -> float:
        return SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()

    def last(name: str) -> str:
        return name.rpartition(".")[2]

    return max(((max(alike(word, n), 0.9 * alike(last(word), last(n))), n) for n in names), default=(0.0, ""))


def classes(message: str) -> set[str]:
    """The classes on the menus that an argument takes, by the types that a report names; all where it names none."""
    parts = registered_classes()

    def fits(part: type) -> bool:
        return any(re.search(rf"\b{base.__module__}\.{base.__qualname__}\b", message) for base in part.__mro__[:-1])

    return {part.__name__ for part in parts if fits(part)} or {part.__name__ for part in parts}


def spell(types: str) -> str:
    """Python's types in words: `int`, `'a', 'b' or null`."""
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types)
    values = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", names)
    return values.replace(", NoneType", " or null")


def _listed(names: Iterable[str], otherwise: str = "") -> str:
    known = sorted(names, key=str.lower)
    return f"known: {', '.join(known)}" if 0 < len(known) <= FEW else otherwise


def _advice(guess: Guess, otherwise: str) -> str:
    return f"did you mean {guess[1]}?" if guess[0] >= ALIKE else otherwise
