"""A parser whose errors are one line with a suggestion: the usage of this command line is pages long."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

import datamodules
import zoo
from commands.configs import read_settings
from commands.faults import failed_construction, unusable_class
from zoo.errors import InputError, input_error

BASES = ("Task", "VideoQATask")  # default configs set their options, but a run needs one of their models
MIN_SIMILARITY, MAX_LISTED = 0.65, 16  # of a name that is suggested; of names that are listed
Guess = tuple[float, str]  # similarity, name

# argparse and jsonargparse report an error as text alone. Each pattern finds what a suggestion needs:
UNKNOWN_OPTION = re.compile(  # the option; on the command line, in a config, in a group of options
    r"unrecognized arguments: (?P<word>[^\s=]+)"
    r"|(?:(?:Group|(?P<command>Subcommand)) '(?P<group>[^']+)' does not accept o|O)ption '(?P<option>[^']+)'"
)
UNKNOWN_CLASS = re.compile(r"import path string: (\S+)")  # the class, to suggest a similar one
WRONG_VALUE = re.compile(  # the type, which spans many lines for a class; and the value
    r"Expected an? (.+?)\. Got value: (.*)|Subtypes: \[(.*)\](?s:.*)Given value: (.*)"
)
UNNAMED_CLASS = re.compile(r"NestedArg\(key='([^']+)'")  # an option of a part that is null, to list its classes
GIVEN_CLASS = re.compile(  # an import path where a class is expected, and the option of that part if it is for one
    r"(?s:Subtypes: \[[^\n]*\w\.\w[^\n]*\].*Given value: |expects a function or a callable class: .*Got value: )"
    r"(?:NestedArg\(key='(?P<option>[^']+)', val='|{'class_path': ')?(?P<value>\w+(?:\.\w+)+)"
)
WRONG_GROUP = re.compile(r"Unable to load config '([^']*)'")  # one value for a group of options, to list them


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of a description."""


class OptionError(InputError):
    """An error of one option.

    Args:
        option: its name, relative to the part whose parser found the error.
        problem: what is wrong.
        remedy: what to do about it.
        guess: the most similar option where there is no such one; it replaces the remedy if it is similar enough.
    """

    def __init__(self, option: str, problem: str, remedy: str = "", guess: Guess | None = None) -> None:
        advice = remedy
        if guess is not None:
            advice = _advice(guess, remedy or f"see --{option.rpartition('.')[0]}.help")
        super().__init__(f"{option}: {problem}" + (f"; {advice}" if advice else ""))
        self.option, self.problem, self.remedy, self.guess = option, problem, remedy, guess

    def within(self, part: str, options: Iterable[str]) -> OptionError:
        """Returns the error with the option's name in the parser that has the part, and `options` of its own."""
        guess = self.guess
        if guess is not None:
            guess = max((guess[0], f"{part}.{guess[1]}"), closest(self.option, options))
        return OptionError(f"{part}.{self.option}", self.problem, self.remedy, guess)


class OneLineParser(ArgumentParser):
    """A jsonargparse parser whose errors are `InputError`s, and whose help names options in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a part, and imports all classes that it may be: jsonargparse finds short names among loaded ones."""
        registered_classes()
        return super().add_subclass_arguments(*args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Parses the command line; jsonargparse 4.53 passes a null of a nested part on as the text None."""
        if isinstance(args, list):
            args = [f"{word.removesuffix('=None')}=null" if word.endswith("=None") else word for word in args]
        return super().parse_args(args, *others, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parses a config, composed of others or not; its errors name the file."""
        try:
            content = read_settings(Path(str(path)))
            return super().parse_string(yaml.safe_dump(content, sort_keys=False), str(path), *args, **kwargs)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Builds the parts, after a check for nulls: parsing takes a null for a value that was not given."""
        set_parsing_settings(unset_sentinel=True)
        try:
            self.validate(cfg)
        except TypeError as error:
            self.error(str(error), error)
        finally:
            set_parsing_settings(unset_sentinel=False)  # with it, dumps have the text None for some nulls
        try:
            return super().instantiate_classes(cfg, **kwargs)
        except Exception as error:
            raise failed_construction(error) from error

    def _check_value_key(self, action: Any, value: Any, key: str, *others: Any, **kwargs: Any) -> Any:
        """Checks a value; jsonargparse lets a null of a group of options pass, which no constructor takes."""
        if value is None and key in (self.groups or ()):
            raise TypeError(f"Parser key \"{key}\": Unable to load config 'null'")  # as of any other single value
        return super()._check_value_key(action, value, key, *others, **kwargs)

    def format_help(self, *args: Any) -> str:
        """Formats the help; jsonargparse names the options of a nested part relative to the class that has the part."""
        text = super().format_help(*args)
        if shown := re.match(r"Help for --([\w.]+)\.help", self.description or ""):
            words = (word.partition("=")[0].removeprefix("--").removesuffix(".help") for word in sys.argv)
            full = next((word for word in words if word.endswith(f".{shown[1]}")), shown[1])
            text = text.replace(f"--{shown[1]}.", f"--{full}.")
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the error as one line."""
        within = re.match(r'Parser key "([\w.]+)"', message)
        part = within[1] if within else ""
        inner = input_error(ex)
        if isinstance(inner, OptionError) and part:  # the parser of the part has explained it
            inner = inner.within(part, options_of(self))
        raise inner or self._explain(message, part) from ex

    def _explain(self, message: str, part: str) -> InputError:
        see_help = f"see {self.prog.replace(' [options]', '')} --help"
        if named := GIVEN_CLASS.search(message):
            option = f"{part}.{named['option']}" if named["option"] else part
            if reason := unusable_class(named["value"]):
                return OptionError(option, reason)
        if found := UNKNOWN_OPTION.search(message):
            return self._unknown_option(found, see_help)
        if found := UNKNOWN_CLASS.search(message):
            names = class_names(message)
            advice = _advice(closest(found[1], names), _listed(names, "give its name or its import path"))
            return OptionError(part or message.partition(":")[0].lstrip("-"), f"there is no class {found[1]}", advice)
        if found := UNNAMED_CLASS.search(message):
            problem = f"name a class first, which could have the option {found[1]}"
            return OptionError(part, problem, _listed(class_names(message)))
        if part and (found := WRONG_GROUP.search(message)):
            own = (option.removeprefix(f"{part}.") for option in options_of(self) if option.startswith(f"{part}."))
            return OptionError(part, f"expected options of its own, not {found[1]}", _listed(own))
        if part and (found := WRONG_VALUE.search(message)):
            types, value = found.group(1, 2) if found[1] else found.group(3, 4)
            value = {"": "nothing", "None": "null"}.get(value, value)
            problem = f"expected {spell(types)}, not {value}"
            remedy = f"write [{value}]" if "list[str]" in types else _listed(class_names(message))
            return OptionError(part, problem, remedy)
        return InputError(f"{' '.join(message.split())}; {see_help}")

    def _unknown_option(self, found: re.Match[str], see_help: str) -> OptionError:
        word, group, options = found["word"], found["group"], options_of(self)
        if word and not word.startswith("--"):
            problem = "not expected here; options start with --, configs are named by --config"
            return OptionError(word, problem, see_help)
        if found["command"]:
            (commands,) = (action.choices for action in self._actions if isinstance(action.choices, dict))
            group, options = None, options_of(commands[group])
        option = f"{group}.{found['option']}" if group else found["option"] or word.lstrip("-")
        is_part = getattr(self, "_inner_parser", False)  # and has no command of its own
        remedy = _listed(options, "" if is_part else see_help)
        return OptionError(option, "there is no such option", remedy, closest(option, options))


def options_of(parser: OneLineParser) -> set[str]:
    """Returns the names of all options of a parser, except those for help."""
    names = (option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--"))
    return {name for name in names if not name.endswith(("help", "+"))}


def closest(word: str, names: Iterable[str]) -> Guess:
    """Returns the most similar of some dotted names, by the whole name or, with less weight, by its last part."""

    def similarity(a: str, b: str) -> float:
        return SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()

    def last(name: str) -> str:
        return name.rpartition(".")[2]

    scores = ((max(similarity(word, n), 0.9 * similarity(last(word), last(n))), n) for n in names)
    return max(scores, default=(0.0, ""))


def registered_classes(base: type = object) -> list[type]:
    """Imports the public classes of `zoo` and `datamodules`, and returns those of `base` that can be built.

    A command line may name them without their module.
    """
    exports = [getattr(package, name) for package in (zoo, datamodules) for name in package.__all__]
    parts = [part for part in exports if inspect.isclass(part) and issubclass(part, base)]
    return [part for part in parts if not inspect.isabstract(part) and part.__name__ not in BASES]


def class_names(message: str) -> set[str]:
    """Returns the names of the classes that fit a type in the message; of all classes where it names no type."""
    parts = registered_classes()

    def fits(part: type) -> bool:
        return any(re.search(rf"\b{base.__module__}\.{base.__qualname__}\b", message) for base in part.__mro__[:-1])

    return {part.__name__ for part in parts if fits(part)} or {part.__name__ for part in parts}


def spell(types: str) -> str:
    """Writes Python types without their syntax: `int`, `'a', 'b' or null`."""
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types)
    values = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", names)
    return values.replace(", NoneType", " or null")


def _listed(names: Iterable[str], otherwise: str = "") -> str:
    known = sorted(names, key=str.lower)
    return f"known: {', '.join(known)}" if 0 < len(known) <= MAX_LISTED else otherwise


def _advice(guess: Guess, otherwise: str) -> str:
    return f"did you mean {guess[1]}?" if guess[0] >= MIN_SIMILARITY else otherwise
