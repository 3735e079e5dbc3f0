"""Config files: find them by name, compose them of others, and merge them in the given order.

One rule holds for configs and for the command line: a later value wins. If a later value changes the class of a part,
the options that the new class also has are kept. If the new class is one around encodings (`HeadSubset`, `LayerSubset`,
`LearnedStrength`, `Compose`), the encodings inside keep them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import is_zipfile

import yaml
from jsonargparse import ArgumentParser

from zoo.configuration import (
    DOTTED,
    PlainLoader,
    check_class_paths,
    flatten,
    is_own,
    is_same_class,
    public_class,
    public_names,
    with_default_caches,
)
from zoo.errors import InputError, add_file_to_errors, did_you_mean

CHECKPOINT = ".ckpt"  # suffix of files that hold the weights of a training, and its config
CONFIGS = Path(__file__).parent.parent / "configs"  # in a wheel, beside the packages like recipes/
BASES = "configs"  # key: list of configs of which this one is composed
NAMED = RECIPE, SCALE, DATA = "recipe", "scale", "default_data"  # keys: names of configs that all given ones override
RECIPES = "recipes"  # folder of recipes
PROTOCOLS = "protocol_"  # prefix of evaluation protocols
DEFAULT_MODEL, DEFAULT_DATA, DEFAULT_SCALE = "model_default.yaml", "data_rooms.yaml", "scale_tiny.yaml"
PREDICTED_CAMERAS = "cameras_auto.yaml"  # for data without cameras
BASE_MODELS = ("Task", "VideoQATask")  # the default config names one, but a run needs a subclass
Settings = dict[str, Any]


# ---- Files -----------------------------------------------------------------------------------------------------------


def find_config(name: str, beside: Path | None = None) -> Path:
    """Return the config at a path, in the current folder or the package, or by name in `configs/` or `recipes/`.

    With `beside`, a config in the folder of that config comes first.

    Raises:
        InputError: There is no such config.
    """
    folders = (Path(), CONFIGS, CONFIGS.parent, CONFIGS.parent / RECIPES)
    for folder in folders if beside is None else (beside.parent, *folders):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path
    known = [path.stem for folder in (CONFIGS, CONFIGS.parent / RECIPES) for path in folder.glob("*.yaml")]
    meant = did_you_mean(Path(name).stem, known)
    raise InputError(f"no config {name}, neither here nor in configs/ or recipes/{meant}")


def read_config(
    path: Path, trust_modules: Collection[str] = (), within: Sequence[Path] = (), *, evaluates: bool = False
) -> Settings:
    """Read a config. It overrides the configs in its list `configs`.

    For the config of a run, the run's folder becomes the Trainer's, even if the folder was moved.

    Args:
        path: The config, or a checkpoint, which holds the config of its training.
        trust_modules: Modules that the config of someone else's run may import.
        within: The configs that are composed of this one.
        evaluates: Whether the command is an evaluation, see `for_evaluation`.

    Returns:
        The settings. The keys in `NAMED` hold the paths of the configs that this config or its bases name.

    Raises:
        InputError: The config is missing, damaged or composed of itself, or names a class that is not trusted.
    """
    if path in within:
        raise InputError(f"{path}: it is composed of itself, by {within[-1]}")
    of_run = is_of_run(path)
    if of_run:
        check_run(path, trust_modules)
    content = read_content(path)
    names = content.pop(BASES, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {BASES}: expected a list of configs, not {names}")
    settings: Settings = {}
    try:
        for key in content.keys() & set(NAMED):
            if not isinstance(content[key], str) or not content[key]:
                raise InputError(f"{key}: expected the name of a config, not {content[key]}")
            content[key] = str(find_config(content[key], path))
        for name in names:
            settings = merge(
                settings, read_config(find_config(name, path), trust_modules, [*within, path], evaluates=evaluates)
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if evaluates and of_run:
        content = for_evaluation(content if is_own(path.parent) else with_default_caches(content))
    if of_run and not is_checkpoint(path):
        content = merge(content, {"trainer": {"default_root_dir": str(path.parent)}})
    return merge(settings, content)


def read_content(path: Path) -> Settings:
    """Return the settings in a file: a config, or a checkpoint of a training.

    Raises:
        InputError: The file can't be read, or holds no settings.
    """
    if is_checkpoint(path):
        from run_folder.record import config_of_training  # imports PyTorch

        content: Any = config_of_training(path)
        advice = ": name the model with --config"
    else:
        try:
            loader = PlainLoader if is_of_run(path) else yaml.SafeLoader
            content = yaml.load(path.read_text(encoding="utf-8"), loader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
        advice = ""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings{advice}")
    return content


def is_of_run(path: Path) -> bool:
    """Return whether a file has the config of a run: its config.yaml, or a checkpoint."""
    from run_folder.record import TEST_FILE  # imports PyTorch
    from zoo.weights.saved_models import CHECKPOINTS, RUN_CONFIG

    has_run = (path.parent / CHECKPOINTS).is_dir() or (path.parent / TEST_FILE).exists()
    return is_checkpoint(path) or (path.name == RUN_CONFIG and has_run)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint, whatever its name is. PyTorch writes zip files."""
    return path.suffix == CHECKPOINT or is_zipfile(path)


def for_evaluation(config: Settings) -> Settings:
    """Return what an evaluation takes from the config of a run: everything that may change its answers and scores.

    Loggers, profilers, callbacks, plugins and folders of a run, which may be someone else's, have no effect. A run
    outside of `runs/` does not choose the folders of caches either. The device is the machine's, and several devices
    are for the command line.
    """
    machine = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer = {**machine, **_some(config.get("trainer") or {}, "precision", "limit_test_batches")}
    return {**_some(config, "model", "data", "seed_everything", "metrics", "gallery"), "trainer": trainer}


def _some(settings: Settings, *names: str) -> Settings:
    return {name: settings[name] for name in names if name in settings}


def read_settings(path: Path) -> Settings:
    """Read a config without the recipe, the scale and the default data that it names."""
    return {key: value for key, value in read_config(path).items() if key not in NAMED}


def check_run(config: Path, trust_modules: Collection[str]) -> None:
    """Check the classes that the config of someone else's run names, because importing a module runs its code.

    Raises:
        InputError: A class is from a module that is not trusted, or can't be used.
    """
    if is_own(config.parent):
        return
    content = read_content(config)
    with add_file_to_errors(config):
        if content.keys() & {BASES, *NAMED}:
            raise InputError(
                f"the config of a run is complete, but this one names others ({BASES}, {', '.join(NAMED)})"
            )
        check_class_paths(content, trust_modules)


# ---- Merging ---------------------------------------------------------------------------------------------------------


def merge(below: Any, above: Any) -> Any:
    """Merge settings over others. If a part's class changes, see `under_class` for what is kept."""
    # a part may be given by its class path alone
    if isinstance(below, Mapping) and isinstance(above, str) and "class_path" in below:
        above = {"class_path": above}
    if isinstance(below, str) and isinstance(above, Mapping) and above.keys() & {"class_path", "init_args"}:
        below = {"class_path": below}
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    former, kind = below.get("class_path"), above.get("class_path")
    if former is not None and kind is not None and not is_same_class(former, kind):
        below = {**below, "init_args": under_class(below, kind)}
    return {**below, **{key: merge_option(below.get(key), value, key) for key, value in above.items()}}


def merge_option(below: Any, above: Any, name: str) -> Any:
    """Merge an option over another one. The encodings of a new `Compose` keep the options of the one that was there."""
    if name == "encodings" and isinstance(below, list) and len(below) == 1 and isinstance(above, list):
        return [merge(below[0], each) for each in above]
    return merge(below, above)


def under_class(part: Mapping[str, Any], kind: str) -> Settings:
    """Return the options of a part that stay if it gets another class: those that the class accepts.

    A class around encodings gets the encoding that was there as the one inside.

    Args:
        part: `class_path` and `init_args` of the former part, which may itself be around another one.
        kind: The new class.
    """
    options = part.get("init_args") or {}
    around, inside = (getattr(find_class(str(each)), "wrapped_option", None) for each in (kind, part["class_path"]))
    inner = options.get(inside, part)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    if around is not None:
        return {**options_of_class(options, kind), around: [inner] if around == "encodings" else inner}
    return options_of_class(inner.get("init_args") if isinstance(inner, Mapping) else {}, kind)


def options_of_class(options: Any, kind: str) -> Settings:
    """Return the options that a class accepts, or all of them if the class can't be found."""
    if (found := find_class(kind)) is None:
        return dict(options or {})
    parser = parser_of(found)
    return {name: value for name, value in (options or {}).items() if find_error(parser, {name: value}) is None}


@dataclass(frozen=True)
class MergedConfig:
    """Several configs merged into one.

    Attributes:
        settings: The settings for LightningCLI.
        names_model: Whether a given config names a class of models.
        origins: The given config that sets an option, by the option's dotted name without `init_args`.
        overridden: Text about the options that one given config overrides in another, one line per pair.
    """

    settings: Settings
    names_model: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    overridden: Sequence[str] = ()


def merge_configs(
    names: Sequence[str], trust_modules: Collection[str] = (), *, evaluates: bool = False
) -> MergedConfig:
    """Merge configs in the given order. A later one wins, and protocols come last.

    The given configs override these defaults: the default model; the rooms, or if no given config names a source the
    default data of one of them; the scale that one of them names (or the tiny one); the recipe that one of them, the
    data or the scale names; and predicted cameras if their data has no cameras.

    Args:
        names: Paths, or names in `configs/` or `recipes/`.
        trust_modules: Modules that the config of someone else's run may import.
        evaluates: Whether the command is an evaluation, which takes less from the config of a run.

    Raises:
        InputError: A config is missing or damaged, or two name different models.
    """
    given = [(name, read_config(find_config(name), trust_modules, evaluates=evaluates)) for name in names]
    given.sort(key=lambda pair: is_protocol(pair[1]))
    models = {name: model for name, content in given if (model := model_of(content)) is not None}
    for (one, model), (other, another) in zip(models.items(), [*models.items()][1:], strict=False):
        if not is_same_class(model, another):
            raise InputError(f"{one} names the model {model} and {other} {another}: leave one of them out")
    settings: Settings = {}
    for content in defaults_below([content for _, content in given]):
        settings = merge(settings, content)
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    overridden: dict[tuple[str, str], list[str]] = {}
    for name, content in given:
        settings = merge(settings, content)
        for option, value in flatten(content).items():
            if option in origins and values[option] != value and option not in NAMED:
                overridden.setdefault((name, origins[option]), []).append(option)
            origins[option], values[option] = name, value
    lines = [f"{above} overrides {below}: {', '.join(each)}" for (above, below), each in overridden.items()]
    settings = {key: value for key, value in settings.items() if key not in NAMED}
    return MergedConfig(settings, bool(models), origins, lines)


def defaults_below(given: Sequence[Settings]) -> list[Settings]:
    """Return the default configs that the given ones override, lowest priority first."""
    scale = next((each[SCALE] for each in reversed(given) if SCALE in each), CONFIGS / DEFAULT_SCALE)
    data = next((each[DATA] for each in reversed(given) if DATA in each), CONFIGS / DEFAULT_DATA)
    if any(names_source(content.get("data")) for content in given):
        data = CONFIGS / DEFAULT_DATA
    named = [read_config(Path(path)) for path in (data, scale)]
    recipe = next(each[RECIPE] for each in (*reversed(given), *named) if RECIPE in each)
    below = [read_config(Path(path)) for path in (CONFIGS / DEFAULT_MODEL, scale, recipe, data)]
    if any(lacks_cameras(content.get("data")) for content in given):
        below.append(read_config(CONFIGS / PREDICTED_CAMERAS))
    return below


def model_of(config: Mapping[str, Any]) -> str | None:
    """Return the class of models that a config names. None if it names none, or the default one."""
    model = config.get("model")
    name = model.get("class_path") if isinstance(model, Mapping) else model
    return name if isinstance(name, str) and name.rpartition(".")[2] not in BASE_MODELS else None


def is_protocol(config: Mapping[str, Any]) -> bool:
    """Return whether a config is an evaluation protocol: it states the protocol's name and no model."""
    metrics = config.get("metrics")
    return isinstance(metrics, Mapping) and metrics.get("protocol") is not None and model_of(config) is None


def names_source(data: Any) -> bool:
    """Return whether data settings name a source."""
    options = data.get("init_args", data) if isinstance(data, Mapping) else {}
    source = options.get("source")
    return isinstance(source, str) or (isinstance(source, Mapping) and "class_path" in source)


def lacks_cameras(data: Any) -> bool:
    """Return whether data settings name a source without cameras, alone or as a part of a mixture."""
    kinds = (find_class(path) for path in class_paths(data))
    return any(not getattr(kind, "has_cameras", True) for kind in kinds)


def class_paths(settings: Any) -> Iterator[str]:
    """Yield the class paths in settings, including a source that is given by its class path alone.

    A mixture's evaluation source is skipped: a training whose scenes have cameras needs cameras in each scene.
    """
    if isinstance(settings, list):
        for part in settings:
            yield from class_paths(part)
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if isinstance(value, str) and key in ("class_path", "source"):
                yield value
            if key != "evaluation":
                yield from class_paths(value)


# ---- Classes ---------------------------------------------------------------------------------------------------------


def buildable_classes(base: type = object) -> list[type]:
    """Return the public classes below a base class that can be built. All public classes are imported."""
    kinds = [kind for name in public_names() if (kind := public_class(name)) is not None]
    found = [kind for kind in kinds if issubclass(kind, base) and not inspect.isabstract(kind)]
    return [kind for kind in found if kind.__name__ not in BASE_MODELS]


def find_class(path: str) -> Any:
    """Return the class or function with this name or import path, or None if there is none."""
    if "." not in path:
        return public_class(path)
    with suppress(Exception):  # whatever the module raises, because the parser reports it
        return resolve_name(path) if DOTTED.fullmatch(path) else None
    return None


@cache
def parser_of(kind: Any) -> ArgumentParser:
    """Return a parser of the options of a class or function."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    add(kind, fail_untyped=False)
    return parser


def find_error(parser: ArgumentParser, options: Mapping[str, Any]) -> Exception | None:
    """Return the innermost error if a parser refuses some of its options, else None. Missing options are no error."""
    try:
        parser.parse_object(dict(options), defaults=False)  # to fill defaults in takes thirty times as long
    except Exception as raised:  # from jsonargparse, or from a module that a class path names
        errors: list[BaseException] = [raised]
        while (cause := errors[-1].__cause__ or errors[-1].__context__) is not None:
            errors.append(cause)
    else:
        return None
    is_inside = any(isinstance(error, ValueError) for error in errors)  # otherwise an option is missing
    return errors[-1] if is_inside or not isinstance(errors[-1], TypeError) else None  # type: ignore[return-value]


def option_names(kind: Any) -> set[str]:
    """Return the names of the options of a class or function."""
    return set(vars(parser_of(kind).get_defaults()))
