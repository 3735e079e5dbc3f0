"""A parser whose errors are one line with a suggestion: the usage of this command line is pages long."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

import datamodules
import zoo
from callbacks.configs import read_settings
from commands.expected_types import describe_types
from commands.faults import raise_failed_construction
from zoo.configuration import unusable_class
from zoo.errors import InputError, closest, did_you_mean, input_error

BASES = ("Task", "VideoQATask")  # default configs set their options, but a run needs one of their models
MAX_LISTED = 16  # names

# argparse and jsonargparse report an error as text alone. These find what a remedy needs:
UNKNOWN_OPTION = re.compile(  # the option; on the command line, in a config, in a group of options
    r"unrecognized arguments: (?P<word>[^\s=]+)"
    r"|(?:(?:Group|(?P<command>Subcommand)) '(?P<group>[^']+)' does not accept o|O)ption '(?P<option>[^']+)'"
)
REQUIRED = re.compile(r"the following arguments are required: ([\w.]+)")
OTHER_CLASS = re.compile(  # a class of another kind, its base class, and the value that names it
    r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)(?s:.*)"
    r"Given value: (?:.*?class_path\W+|\W*)([\w.]+)"
)
UNKNOWN_CLASS = re.compile(r"import path string: (\S+)")  # the class, to suggest a similar one
GIVEN_CLASS = re.compile(  # an import path where a class is expected, to say why it can't be used
    r"(?s:Subtypes: \[[^\n]*\b(?!typing\.)\w+\.\w[^\n]*\].*Given value: |"
    r"expects a function or a callable class: .*Got value: )"
    r"(?:{'class_path': ')?(\w+(?:\.\w+)+)"
)
# beginnings of lines about types that were tried beside the one that was meant
TRIED = ("Expected a path but", "Does not validate", "Errors:", "Given value type:", "Expected a <class 'NoneType'>")


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the line breaks of a description, and name no option twice where there are many."""

    def _format_usage(self, usage: str | None, actions: Iterable[Action], groups: Any, prefix: str | None) -> str:
        prog = self._prog.replace(" [options]", "")
        is_long = sum(bool(action.option_strings) for action in actions) > MAX_LISTED
        return super()._format_usage(f"{prog} [options]" if is_long else usage, actions, groups, prefix)


class OptionError(InputError):
    """An error of one option.

    Args:
        option: Its name, relative to the part whose parser found the error.
        problem: What is wrong, and the remedy.
        guess: The most similar option, in place of a remedy.
    """

    def __init__(self, option: str, problem: str, guess: str = "") -> None:
        super().__init__(f"{option}: {problem}" + (f"; did you mean {guess}?" if guess else ""))
        self.option, self.problem, self.guess = option, problem, guess

    def within(self, part: str) -> OptionError:
        """Return the error with the option's name in the parser that has the part."""
        return OptionError(f"{part}.{self.option}", self.problem, self.guess and f"{part}.{self.guess}")


class OneLineParser(ArgumentParser):
    """A jsonargparse parser whose errors are `InputError`s, and whose help names options in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add a part, and import all classes that it may be: jsonargparse finds short names among loaded ones."""
        registered_classes()
        return super().add_subclass_arguments(*args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Parse the command line; jsonargparse 4.53 passes a null of a nested part on as the text None."""
        if isinstance(args, list):
            args = [f"{word.removesuffix('=None')}=null" if word.endswith("=None") else word for word in args]
        return super().parse_args(args, *others, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a config, composed of others or not; its errors name the file."""
        try:
            content = read_settings(Path(str(path)))
            return super().parse_string(yaml.safe_dump(content, sort_keys=False), str(path), *args, **kwargs)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Build the parts, after a check for nulls: parsing takes a null for a value that was not given."""
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
            raise_failed_construction(error)

    def _check_value_key(self, action: Any, value: Any, key: str, *others: Any, **kwargs: Any) -> Any:
        """Check a value; jsonargparse lets a null of a group of options pass, which no constructor takes."""
        if value is None and key in (self.groups or ()):
            raise TypeError(f"Parser key \"{key}\": Unable to load config 'null'")  # as of any other single value
        return super()._check_value_key(action, value, key, *others, **kwargs)

    def format_help(self, *args: Any) -> str:
        """Format the help; jsonargparse names the options of a nested part relative to the class that has the part."""
        text = super().format_help(*args)
        if shown := re.match(r"Help for --([\w.]+)\.help", self.description or ""):
            words = (word.partition("=")[0].removeprefix("--").removesuffix(".help") for word in sys.argv)
            full = next((word for word in words if word.endswith(f".{shown[1]}")), shown[1])
            text = text.replace(f"--{shown[1]}.", f"--{full}.")
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error as one line."""
        within = re.match(r'Parser key "([\w.]+)"', message)
        part = within[1] if within else ""
        inner = input_error(ex)
        if isinstance(inner, OptionError) and part:  # the parser of the part has explained it
            raise inner.within(part) from ex
        if inner is not None:
            raise inner
        raise self._explain(message, part) from ex

    def _explain(self, message: str, part: str) -> InputError:
        if (given := GIVEN_CLASS.search(message)) and (reason := unusable_class(given[1])):
            return OptionError(part, reason)
        if found := UNKNOWN_OPTION.search(message):
            return self._unknown_option(found)
        if (found := OTHER_CLASS.search(message)) and part:
            return OptionError(part, f"{found[1] or found[3]} is no {found[2]}{_listed(class_names(message))}")
        if found := UNKNOWN_CLASS.search(message):
            names, option = class_names(message), part or message.partition(":")[0].lstrip("-")
            advice = did_you_mean(found[1], names) or _listed(names) or "; give its name or its import path"
            return OptionError(option, f"there is no class {found[1]}{advice}")
        if (absent := REQUIRED.search(message)) and not self.exit_on_error:  # of a part, which its option names
            return OptionError(absent[1], "no value is given, and it has no default")
        if not part:
            return InputError(f"{' '.join(message.split())}; see {self._help}")
        if types := describe_types(message):
            return OptionError(part, types + _listed(class_names(message)))
        lines = [line.strip(" -") for line in message.removeprefix(f'Parser key "{part}":').splitlines()]
        reasons = [line for line in lines if line and not line.startswith(TRIED)]
        return OptionError(part, "; ".join(reasons) + _listed(class_names(message)))

    @property
    def _help(self) -> str:
        return f"{self.prog.replace(' [options]', '')} --help"

    def _unknown_option(self, found: re.Match[str]) -> OptionError:
        word, group, options = found["word"], found["group"], options_of(self)
        if word and not word.startswith("--"):
            problem = f"not expected here; options start with --, configs are named by --config; see {self._help}"
            return OptionError(word, problem)
        if found["command"]:
            (commands,) = (action.choices for action in self._actions if isinstance(action.choices, dict))
            group, options = None, options_of(commands[group])
        option = f"{group}.{found['option']}" if group else found["option"] or word.lstrip("-")
        guess = closest(option, options)
        if not guess and len(options) == 1:
            (only,) = options
            guess = f"{only}.{option}" if f"--{only}.help" in self._option_string_actions else ""  # of a class
        return OptionError(option, "there is no such option" + ("" if guess else _listed(options)), guess)


def options_of(parser: OneLineParser) -> set[str]:
    """Return the names of all options of a parser, except those for help and for the shell's completion."""
    names = (option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--"))
    return {name for name in names if not name.endswith(("help", "+", "print_shtab"))}


def registered_classes(base: type = object) -> list[type]:
    """Import the public classes of `zoo` and `datamodules`, and return those of `base` that can be built.

    A command line may name them without their module.
    """
    exports = [getattr(package, name) for package in (zoo, datamodules) for name in package.__all__]
    parts = [part for part in exports if inspect.isclass(part) and issubclass(part, base)]
    return [part for part in parts if not inspect.isabstract(part) and part.__name__ not in BASES]


def class_names(message: str) -> set[str]:
    """Return the names of the classes that fit a type in the message; of all classes where it names no type."""
    parts, named = registered_classes(), set(re.findall(r"(?:<class '|\[)([\w.]+)(?:'>|\])", message))
    fitting = [part for part in parts if any(_path(base) in named for base in part.__mro__[:-1])]
    return {part.__name__ for part in fitting or parts}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _listed(names: Collection[str]) -> str:
    return f"; known: {', '.join(sorted(names, key=str.lower))}" if 0 < len(names) <= MAX_LISTED else ""
