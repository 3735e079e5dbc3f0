"""The config of a run: write it as config.yaml, flatten it to dotted names, compare it with another config."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from zoo.configuration import Configurable, flatten, is_same_class, known_config
from zoo.files.atomic_io import write_whole
from zoo.seed import resolve_seed

# files in a test's folder: its identity, written at the start; its scores, written last; its answers
TEST_FILE, METRICS, PREDICTIONS = "test.json", "metrics.json", "predictions.jsonl"


class SaveRunConfig(SaveConfigCallback):
    """Write config.yaml when a run is trained. An evaluation keeps the config of the evaluated run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config on rank zero if the folder has none. Training also logs it."""
        path = Path(trainer.default_root_dir) / self.config_filename
        if trainer.is_global_zero and not path.exists():
            self.save(path)
            self.already_saved = True
        if stage == "fit":
            for logger in trainer.loggers:
                logger.log_hyperparams(flatten(self.config.as_dict()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config of the weights that are trained from now on, on rank zero."""
        if trainer.is_global_zero and not self.already_saved:
            self.save(Path(trainer.default_root_dir) / self.config_filename)

    def save(self, path: Path) -> None:
        """Write the config."""
        write_whole(path, self._text())

    def content(self) -> dict[str, Any]:
        """Return the config as it is written to the file."""
        return dict(yaml.safe_load(self._text()))

    def _text(self) -> str:
        config = self.config.clone()
        for name, value in self.config.items():
            if isinstance(value, set):  # in one order, so that equal configs are equal files
                config[name] = sorted(value, key=str)
        return str(self.parser.dump(config, skip_none=False, skip_validation=True))


def find_saved_config(trainer: Trainer) -> SaveRunConfig | None:
    """Return the callback that has the config of this command, or None without a command line."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, SaveRunConfig)), None)


def evaluation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that a test depends on: model, data, seed, precision, limit of batches, protocol."""
    chosen: dict[str, Any] = {name: config.get(name) for name in ("model", "data", "seed_everything")}
    for part, names in {"trainer": ("precision", "limit_test_batches"), "metrics": ("protocol",)}.items():
        chosen[part] = {name: (config.get(part) or {}).get(name) for name in names}
    return chosen


def config_of_command(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the `evaluation_config` of this command. Without a command line it is read from the Trainer."""
    if (saved := find_saved_config(trainer)) is not None:
        return evaluation_config(saved.content())
    model, data = type(pl_module), getattr(trainer, "datamodule", None)
    options = known_config(data) if isinstance(data, Configurable) else {}
    return {
        "model": {"class_path": f"{model.__module__}.{model.__qualname__}"},
        "data": None if data is None else {"class_path": type(data).__qualname__, "init_args": options},
        "seed_everything": resolve_seed(None),
        "trainer": {"precision": trainer.precision, "limit_test_batches": trainer.limit_test_batches},
    }


def changed_options(before: Any, now: Any, excepted: Collection[str] = ()) -> list[str]:
    """Return the dotted names of the options in which two configs differ.

    If a part has another class, or is missing in one config, only the part's own name is returned. Class paths may lack
    a module.

    Args:
        before: A config, possibly flattened.
        now: Another config.
        excepted: Names of options that may differ, with all options below them.

    Example:
        >>> one = {"model": {"fusion": None, "r": 1}}
        >>> other = {"model": {"fusion": {"class_path": "AddFusion", "init_args": {"branches": "2d"}}, "r": 2}}
        >>> changed_options(one, other), changed_options(one, other, ("model.fusion",))
        (['model.fusion', 'model.r'], ['model.r'])
    """
    one, other = flatten(before), flatten(now)
    differing = [
        name
        for name in sorted(one | other)
        if not is_covered(name, excepted) and not is_same_value(name, one.get(name), other.get(name))
    ]
    parts = {name.removesuffix(".class_path") for name in differing if name.endswith(".class_path")}
    nameable = parts | one.keys() | other.keys()
    prefixes = (accumulate(name.split("."), "{}.{}".format) for name in differing)
    return list(dict.fromkeys(next(each for each in own if each in nameable) for own in prefixes))


def declared_options(names: str, *owners: Any) -> tuple[str, ...]:
    """Return the options that tasks and DataModules, or their classes, list in an attribute.

    Args:
        names: `changes_no_answer` or `changes_no_training`.
        owners: Tasks and DataModules. One without the attribute lists nothing.
    """
    return tuple(chain.from_iterable(getattr(each, names, ()) for each in owners))


def is_covered(name: str, names: Collection[str]) -> bool:
    """Return whether a dotted name is one of these names, or below one."""
    return any(f"{name}.".startswith(f"{each}.") for each in names)


def option_of(config: Mapping[str, Any], name: str) -> Any:
    """Return an option of a flattened config: for a part, its class with its options. None if absent."""
    below = {key.removeprefix(f"{name}."): value for key, value in config.items() if key.startswith(f"{name}.")}
    return below or config.get(name)


def is_same_value(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of an option are equal. Class paths may lack their module, and files list sets."""
    if isinstance(one, set) or isinstance(other, set):
        one, other = (set(each) if isinstance(each, list) else each for each in (one, other))
    return is_same_class(one, other) if name.endswith("class_path") else bool(one == other)
