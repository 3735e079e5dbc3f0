"""Config files: found by name, composed of others, and read in an order that does not depend on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from zoo.configuration import is_same_class
from zoo.errors import InputError, did_you_mean

CONFIGS = Path(__file__).parent.parent / "configs"  # a wheel has them, and recipes/, beside the packages
BASES = "configs"  # key of a config that is composed of others
NAMED = RECIPE, SCALE = "recipe", "scale"  # keys of a config that name what is read below all given configs
RECIPES = "recipe_", "recipes"  # first part of a recipe's name, and a folder of recipes
PROTOCOLS = "protocol_"  # first part of the name of an evaluation protocol, which is read over all other configs
PROTOCOL = 2  # its layer


def load_configs(names: list[str]) -> dict[Path, dict[str, Any]]:
    """Read the named configs, in an order that does not depend on theirs.

    Recipes come first: the others are read over them, and evaluation protocols over those. Where a later config names
    another class for a part, jsonargparse keeps those of its options that this class has too. So the config that names
    the model comes next, then those that name most classes.

    Raises:
        InputError: A config is absent or damaged, or two configs disagree.
    """
    contents = {path: read_config(path) for path in map(find_config, names)}
    refuse_conflicts(contents)

    def rank(path: Path) -> tuple[int, bool, int, str]:
        content = contents[path]
        return layer(path), model_of(content) is None, -str(content).count("class_path"), str(path)

    return {path: contents[path] for path in sorted(contents, key=rank)}


def layer(path: Path) -> int:
    """Return the layer of a config: below all others a recipe, above them a protocol (`protocol_<name>.yaml`).

    A recipe has data, optimizer and steps: `recipe_<name>.yaml`, or one in `recipes/`.
    """
    is_recipe = path.name.startswith(RECIPES[0]) or path.absolute().parent.name == RECIPES[1]
    return 0 if is_recipe else PROTOCOL if path.name.startswith(PROTOCOLS) else 1


def find_config(name: str, beside: Path | None = None) -> Path:
    """Return the config of this path, here or in the package, or of this name in `configs/`.

    A config beside another config comes first.
    """
    folders = (Path(), CONFIGS, CONFIGS.parent) if beside is None else (beside.parent, Path(), CONFIGS, CONFIGS.parent)
    for path in (*(folder / name for folder in folders), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    folder = CONFIGS.parent / RECIPES[1] if Path(name).parent.name == RECIPES[1] else CONFIGS
    names = sorted(path.name for path in folder.glob("*.yaml"))
    meant = did_you_mean(Path(name).stem, (Path(each).stem for each in names), ".yaml")
    known = meant or f"; those there are {', '.join(names)}"
    raise InputError(f"no config {name}, neither here nor in {folder.name}/{known}")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a config as a parser takes it, see `read_config`: without the recipe and the scale that it names."""
    return {key: value for key, value in read_config(path).items() if key not in NAMED}


def read_config(path: Path, within: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a config; with a list `configs`, its settings are put over theirs.

    Args:
        path: The config.
        within: The configs that are composed of this one.

    Returns:
        The settings, and with the keys `recipe` and `scale` the paths of those that the config or one of its configs
        names.

    Raises:
        InputError: It is absent, damaged or composed of itself, or two of its configs disagree.
    """
    if path in within:
        raise InputError(f"{path}: it is composed of itself, by {within[-1]}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings")
    names = content.pop(BASES, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {BASES}: expected a list of configs, not {names}")
    named = {key: content[key] for key in NAMED if key in content}
    for key, name in named.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"{path}: {key}: expected the name of a config, not {name}")
    try:
        bases = {base: read_config(base, [*within, path]) for base in (find_config(name, path) for name in names)}
        refuse_conflicts(bases)
        content |= {key: str(find_config(name, path)) for key, name in named.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    composed: dict[str, Any] = {}
    for base in sorted(bases, key=layer):
        composed = override(composed, bases[base])
    return override(composed, content)


def override(below: Any, above: Any) -> Any:
    """Put settings over others; a part of another class replaces the part below with all of its options."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    if "class_path" in below and not is_same_class(below["class_path"], above.get("class_path", below["class_path"])):
        return above
    return {**below, **{key: override(below.get(key), value) for key, value in above.items()}}


def refuse_conflicts(contents: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise InputError if two configs of a layer set an option to different values."""
    for (first, mine), (second, other) in combinations(contents.items(), 2):
        if layer(first) == layer(second) and (key := find_conflict(mine, other)):
            option = key.replace(".init_args", "").removesuffix(".class_path")
            instead = "" if option in NAMED else f", and set --{option} instead"
            raise InputError(f"{first} and {second} disagree about {option}: leave one of them out{instead}")


def find_conflict(first: Any, second: Any, key: str = "") -> str | None:
    """Return the first dotted key that both configs set to different values, or None."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        is_class = key.rpartition(".")[2] == "class_path"
        return key if (not is_same_class(first, second) if is_class else first != second) else None
    conflicts = (find_conflict(first[k], second[k], f"{key}.{k}".lstrip(".")) for k in first if k in second)
    return next(filter(None, conflicts), None)


def model_of(config: Mapping[str, Any]) -> str | None:
    """Return the model's class as a config names it."""
    model = config.get("model")
    return model.get("class_path") if isinstance(model, dict) else model
