"""Settings below the given ones: configs that are read as if they were named first, and those of the Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from callbacks.configs import CONFIGS, RECIPE, SCALE, read_config
from commands.arguments import split_configs

# As jsonargparse's default_config_files, they would fill in the defaults of model_default.yaml's class, and a given
# model would keep those in place of its own.
DEFAULTS = ("model_default.yaml", "data_rooms.yaml")
DEFAULT_SCALE = "scale_tiny.yaml"
PREDICTED_CAMERAS = "cameras_auto.yaml"  # for data without cameras
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the DataModule distributes the scenes, and repeats none
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,  # Spatial-MLLM's
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # `describe_size` says what trains
}


def with_defaults(words: list[str]) -> list[str]:
    """Put the default configs before the words of a command line, whose configs are named by path."""
    given = [Path(name) for name in split_configs(words)[0]]
    return [*(word for path in default_configs(given) for word in ("--config", str(path))), *words]


def default_configs(given: Iterable[Path]) -> list[Path]:
    """Return the configs to read before the given ones.

    They are the default model and data, the scale that a given config names, or else the tiny one, the recipe that one
    names, or else that scale's, and predicted cameras where the data of a given config has none.
    """
    contents = [read_config(path) for path in given]
    scales = [content[SCALE] for content in contents if SCALE in content]
    defaults = [CONFIGS / name for name in (*DEFAULTS, *(scales or [DEFAULT_SCALE])[:1])]
    recipes = [content[RECIPE] for content in (*contents, *map(read_config, defaults)) if RECIPE in content]
    defaults.append(Path(recipes[0]))
    if any(lacks_cameras(content.get("data")) for content in contents):
        defaults.append(CONFIGS / PREDICTED_CAMERAS)
    return defaults


def lacks_cameras(data: Any) -> bool:
    """Whether the settings of data name a source without cameras, alone or as a part of a mixture."""
    for path in class_paths(data):
        with suppress(Exception):  # of a class that can't be imported, which the parser names
            if not getattr(resolve_name(path if "." in path else f"datamodules.{path}"), "has_cameras", True):
                return True
    return False


def class_paths(settings: Any) -> Iterator[str]:
    """Yield the class paths in settings, also of a source that is given by its class path alone.

    The evaluation of a mixture is left out: a training whose scenes have cameras needs them of each scene.
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
