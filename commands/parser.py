"""Command-line parsers: options override configs, and an error is one line that names the option and the file."""

from __future__ import annotations

import json
import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from commands.faults import CLASS_PATH, INIT_ARGS, KEYS_OF_PART, explained, opened, raise_failed_construction
from run_folder.configs import MergedConfig, find_class, merge, merge_configs, model_of
from zoo.configuration import flatten, import_named, is_same_class, public_names
from zoo.errors import InputError

EVALUATION = ("validate", "test", "predict", "export")  # commands that evaluate a run
TRUST = "trust_modules"
TRUST_HELP = "modules, between commas, that the config of someone else's run may import"


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help, which keeps the line breaks of a description."""


PARSER_OPTIONS: dict[str, Any] = {"formatter_class": HelpFormatter, "exit_on_error": False, "allow_abbrev": False}


def command_parser(command: str, description: str | None) -> ArgumentParser:
    """Return a parser for a command without Lightning."""
    prog = f"main.py {command}"
    return ArgumentParser(prog=prog, usage=f"{prog} [options]", description=description, **PARSER_OPTIONS)


def run_parser(command: str, description: str | None, *, replaces_data: bool = True) -> ArgumentParser:
    """Return a parser for a command on a run, with the options of `commands.runs.load_run` but the split and scenes.

    Args:
        command: The command.
        description: Its help.
        replaces_data: Whether a config may replace the run's data.
    """
    parser = command_parser(command, description)
    run_help = "the folder of a run; null uses the newest run"
    parser.add_argument("run", type=str | None, nargs="?", default=None, help=run_help)
    if replaces_data:
        data_help = "a config whose data replace the run's, such as data_vsibench.yaml or a file of your own"
        parser.add_argument("--data", type=str | None, default=None, help=data_help)
    parser.add_argument("--device", type=str | None, default=None, help="null uses a GPU if there is one, else the CPU")
    trust_help = "modules that someone else's run may import"
    parser.add_argument("--trust_modules", type=str, nargs="+", default=[], help=trust_help)
    return parser


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse the words after a command.

    Raises:
        InputError: An option, a value or a config is wrong.
    """
    if any(isinstance(action, ActionConfigFile) for action in parser._actions):
        return parse_merged(parser, words)
    try:
        return parser.parse_args([*words])
    except ArgumentError as error:
        refused = error
    given = split_options(words)[0]
    raise explained(refused, parser, MergedConfig(with_options({}, given)), dict(given)) from refused


def parse_merged(parser: ArgumentParser, words: Sequence[str], main: ArgumentParser | None = None) -> Namespace:
    """Merge the configs and the options of a command, later ones over earlier ones, and parse them as one config.

    Args:
        parser: The parser of the command.
        words: The words after the command.
        main: The parser of which the command is a subcommand.

    Raises:
        InputError: An option, a value or a config is wrong.
    """
    from lightning.pytorch.utilities import rank_zero_info  # imports PyTorch

    names, options = split_configs(words)
    given, others = split_options(options)
    command = [] if main is None else [parser.prog.split()[-1]]
    evaluates = any(name in EVALUATION for name in command)
    config = merge_configs(names, trusted_modules(options), evaluates=evaluates)
    for line in config.overridden:
        rank_zero_info(line)
    named, asked = model_of(config.settings), model_of(with_options({}, given))
    if config.names_model and asked and find_class(asked) and not is_same_class(named, asked):
        raise InputError(f"the configs name the model {named}, and --model {asked}: leave one of them out")
    settings = with_options(config.settings, given)
    for part in ("model", "data", "trainer"):
        if settings.get(part, part) is None:
            raise InputError(f"--{part} null: leave the option out")
    _check_encodable(settings)
    try:
        return _parse_args(main or parser, [*command, "--config", as_json(settings), *others])
    except ArgumentError as error:
        refused = error
    config = replace(config, settings=settings)
    raise explained(refused, parser, config, dict(given)) from refused


def _parse_args(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse words after importing the classes that they name. Help, an error or a file in the words may name others."""
    import_named(words)
    with suppress(ArgumentError):
        if not any(word.partition("=")[0].endswith(("help", "-h")) for word in words):
            return parser.parse_args([*words])
    import_named(public_names())
    return parser.parse_args([*words])


def _check_encodable(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a path with bytes that are not UTF-8, which no config can hold."""
    for name, value in flatten(settings).items():
        try:
            as_json(value).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--{name} {value}: it is not UTF-8, as configs are: rename it, or link to it") from error


def as_json(settings: Any) -> str:
    """Return settings as a text for jsonargparse, with infinity as in YAML and dates as texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if isinstance(value, float) and not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        return value

    return json.dumps(plain(settings), ensure_ascii=False, default=str)


def build(parser: ArgumentParser, parsed: Namespace) -> Namespace:
    """Build the parts that the settings name.

    Raises:
        InputError: A part can't be built.
    """
    try:
        return parser.instantiate_classes(parsed)
    except Exception as error:
        raise_failed_construction(error)


def split_configs(words: Sequence[str]) -> tuple[list[str], list[str]]:
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


def split_options(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Separate options with values, `--option value` or `--option=value`, from the other words."""
    options, others = [], []
    remaining = [*words]
    while remaining:
        word = remaining.pop(0)
        name, has_value, value = word.partition("=")
        if not name.startswith("--") or name.endswith("help") or name == "--print_config":
            others.append(word)
        elif has_value:
            options.append((name.removeprefix("--"), value))
        elif remaining and not remaining[0].startswith("--"):
            options.append((name.removeprefix("--"), remaining.pop(0)))
        else:
            others.append(word)
    return options, others


def trusted_modules(words: Sequence[str]) -> list[str]:
    """Return the modules that the config of someone else's run may import."""
    return [name.strip() for name in dict(split_options(words)[0]).get(TRUST, "").split(",") if name.strip()]


def with_options(settings: Any, options: Sequence[tuple[str, str]]) -> Any:
    """Override settings by the options of a command line. jsonargparse parses their texts later."""
    for name, text in options:
        settings = with_option(settings, name, None if text == "null" else text)
    return settings


def with_option(settings: Any, name: str, value: Any) -> Any:
    """Override one option of settings. Its dotted name ends in `+` to append to a list."""
    settings = opened(settings)
    key, _, rest = name.partition(".")
    if isinstance(settings, list) and settings:  # in a list of parts, options refer to the last one
        return [*settings[:-1], with_option(settings[-1], name, value)]
    if isinstance(settings, str):
        settings = {CLASS_PATH: settings}
    settings = {**settings} if isinstance(settings, Mapping) else {}
    if CLASS_PATH in settings and key not in KEYS_OF_PART:
        return {**settings, INIT_ARGS: with_option(settings.get(INIT_ARGS), name, value)}
    before = settings.get(key.removesuffix("+"))
    if rest:
        return {**settings, key: with_option(before, rest, value)}
    if key.endswith("+"):
        value = [*_as_list(before), *_as_list(value)]
    elif isinstance(before, Mapping | list):
        value = opened(value)
    return merge(settings, {key.removesuffix("+"): value})


def _as_list(value: Any) -> list[Any]:
    """Return a list, also for a single value or for a text such as `[a, b]`. None is empty."""
    value = opened(value)
    return value if isinstance(value, list) else [] if value is None else [value]
