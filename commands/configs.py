"""The files that `--config` names: a model, a scale and data, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
# Read before the given ones, as if they were named first on the command line. As jsonargparse's default_config_files,
# they would fill in the defaults of model_default.yaml's class, and a given model would keep those in place of its own.
DEFAULTS = ("model_default.yaml", "data_rooms.yaml", "scale_tiny.yaml")
DEFAULT_OPTIONS = [word for name in DEFAULTS for word in ("--config", str(CONFIGS / name))]


def load_configs(names: list[str]) -> dict[Path, dict[str, Any]]:
    """Reads the named configs, in an order that does not depend on theirs.

    jsonargparse drops the options of a part when a later config names another class for it. So the config that names
    the model comes first, then those that name most classes.

    Raises:
        InputError: a config is absent or damaged, or two configs disagree.
    """
    contents = {path: _read(path) for path in map(find_config, names)}
    for (first, mine), (second, other) in combinations(contents.items(), 2):
        if key := find_conflict(mine, other):
            option = key.replace(".init_args", "").removesuffix(".class_path")
            raise InputError(
                f"{first} and {second} disagree about {option}: leave one of them out, and set --{option} instead"
            )

    def rank(path: Path) -> tuple[bool, int, str]:
        return model_of(contents[path]) is None, -str(contents[path]).count("class_path"), str(path)

    return {path: contents[path] for path in sorted(contents, key=rank)}


def find_config(name: str) -> Path:
    """Returns the config of this path, or of this name in `configs/`."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise InputError(f"no config {name}, neither here nor in configs/ ({known})")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings")
    return content


def find_conflict(first: Any, second: Any, key: str = "") -> str | None:
    """Returns the first dotted key that both configs set to different values, or None."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return None if first == second else key
    conflicts = (find_conflict(first[k], second[k], f"{key}.{k}".lstrip(".")) for k in first if k in second)
    return next(filter(None, conflicts), None)


def model_of(config: Mapping[str, Any]) -> str | None:
    """Returns the model's class as a config names it."""
    model = config.get("model")
    return model.get("class_path") if isinstance(model, dict) else model
