"""The config of a run, and the one place that decides whether two runs are the same.

The config is written as config.yaml, and into each checkpoint with the user's own code. `RunRecord` says which of its
options change a training, and which change the answers of given weights.
"""

from __future__ import annotations

import json
import os.path
import sys
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.datamodule import VideoQADataModule
from zoo.configuration import (
    DOTTED,
    Configurable,
    OptionEffects,
    changed_flat,
    flatten,
    is_covered,
    known_config,
    public_class,
)
from zoo.files.atomic_io import write_whole
from zoo.files.fingerprint import fingerprint
from zoo.seed import resolve_seed
from zoo.tasks.base import Task
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.checkpoint import RUN, read_checkpoint
from zoo.weights.saved_models import RUN_CONFIG, config_of

# files in a test's folder: its identity, written at the start; its scores, written last; its answers
TEST_FILE, METRICS, PREDICTIONS = "test.json", "metrics.json", "predictions.jsonl"
TRAIN_SCENES = "train_scenes.txt"  # in a run's folder: the names of its training scenes
CONFIG_START = b"# zoo=="  # the start of a run's config.yaml, see `ZooCLI.init_parser`
OWN_CODE = ("zoo", "datamodules")  # packages on which answers depend
# the options of a command beside those of model and data; those that are not named change the training
OF_COMMAND = OptionEffects(
    nothing=(
        *("trainer.default_root_dir", "trainer.logger", "trainer.log_every_n_steps", "trainer.profiler"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing"),
        *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
        *("trainer.detect_anomaly", "trainer.num_sanity_val_steps", "trainer.barebones", "trainer.inference_mode"),
        *("trainer.limit_predict_batches", "checkpoint.every_n_train_steps"),
    ),
    answers=("trainer.limit_test_batches", "metrics.protocol"),
    both=("trainer.precision", "seed_everything"),
)


RESUMED = ("model", "data", *OF_COMMAND.both)  # parts of a config that a resumed training must keep
ANSWERED = ("model", "data", *OF_COMMAND.both, *OF_COMMAND.answers)  # parts on which answers depend
PRECISIONS = {  # other spellings of Lightning's precisions
    **dict.fromkeys(("None", "32"), "32-true"),
    **{"64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"},
}


@dataclass(frozen=True)
class RunRecord:
    """The options of a run, and what each of them changes.

    Two runs are compared by `same_training` (may one go on with the other's checkpoint?) and by `same_answers` (would
    the same weights give the same answers?). Both return the names of the options that differ. Reports and studies ask
    `changes_training`, because repetitions also agree in the options of the Trainer.

    Attributes:
        options: Options by dotted name.
        effects: What they change, as the run's task, its DataModule and `OF_COMMAND` declare it.
    """

    options: Mapping[str, Any]
    effects: OptionEffects

    @classmethod
    def of(cls, config: Mapping[str, Any], *owners: Any) -> RunRecord:
        """Return the record of a config.

        Args:
            config: The config, possibly flattened.
            owners: The task and the DataModule, or their classes. Without them they are looked up by the names in the
                config. Nothing but the zoo's own classes is imported: others count as a `VideoQATask` and a
                `VideoQADataModule`, from which they derive, and `declared_by_users` tells more.
        """
        options = flatten(config)
        declared = [getattr(each, "option_effects", OptionEffects()) for each in owners or _named_classes(options)]
        kinds = zip(OF_COMMAND, *declared, strict=True)
        return cls(options, OptionEffects(*(tuple(chain.from_iterable(own)) for own in kinds)))

    @property
    def declared_by_users(self) -> dict[str, list[str]] | None:
        """The effects, for a file, if a user's own classes declare others than `of` finds without them. Else None."""
        found = self.of(self.options).effects
        return None if found == self.effects else {kind: [*names] for kind, names in self.effects._asdict().items()}

    def declaring(self, effects: Mapping[str, Any] | None) -> RunRecord:
        """Return the record with the `declared_by_users` of a file, if it has any."""
        if not effects:
            return self
        return replace(self, effects=OptionEffects(*(tuple(effects.get(kind, ())) for kind in OptionEffects._fields)))

    def beside(self, config: Mapping[str, Any]) -> RunRecord:
        """Return the record of another config, to be compared with this one by the same effects."""
        return replace(self, options=flatten(config))

    def changes_training(self, name: str) -> bool:
        """Return whether an option changes a training."""
        return not is_covered(name, self.effects.harmless("training"))

    def changes_answers(self, name: str) -> bool:
        """Return whether an option changes the answers of given weights."""
        return is_covered(name, ANSWERED) and not is_covered(name, self.effects.harmless("answers"))

    def same_training(self, other: RunRecord, parts: Collection[str] = RESUMED) -> list[str]:
        """Return the options in which two trainings differ.

        `parts` of the configs are compared. A training may go on with other options of the Trainer, such as more steps,
        but with the same precision.
        """
        harmless = self.effects.harmless("training")
        return changed_flat(_parts(self.options, parts), _parts(other.options, parts), harmless)

    def same_answers(self, other: RunRecord, parts: Collection[str] = ANSWERED) -> list[str]:
        """Return the options in which the answers of two runs with the same weights may differ."""
        harmless = self.effects.harmless("answers")
        return changed_flat(_parts(self.options, parts), _parts(other.options, parts), harmless)


def _parts(options: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Return the options of some parts of a config. A part that the config lacks is None."""
    found = {name: value for name, value in options.items() if is_covered(name, parts)}
    if (precision := "trainer.precision") in found:
        found[precision] = PRECISIONS.get(str(found[precision]), found[precision])
    return found | {part: None for part in parts if not any(is_covered(name, [part]) for name in found)}


def _named_classes(options: Mapping[str, Any]) -> list[Any]:
    """Return the classes of the task and the DataModule, see `RunRecord.of`."""
    found: list[Any] = []
    for part, default in (("model", VideoQATask), ("data", VideoQADataModule)):
        *module, name = str(options.get(f"{part}.class_path")).split(".")
        found.append((public_class(name) if not module or module[0] in OWN_CODE else None) or default)
    return found


class SaveRunConfig(SaveConfigCallback):
    """Write config.yaml when a run is trained. An evaluation keeps the config of the evaluated run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config on rank zero if the folder has none. Training also logs it."""
        path = Path(trainer.default_root_dir) / self.config_filename
        if trainer.is_global_zero and not path.exists():
            self.save(path)
            self.already_saved = True
        if stage == "fit":
            config = json.loads(json.dumps(self.content(), default=str))
            code = {"/".join(file.parts[-2:]): fingerprint(read_code(file)) for file in own_files(config, pl_module)}
            cast(Task, pl_module).run = {"config": config, "code": code}
            for logger in trainer.loggers:
                logger.log_hyperparams(flatten(self.config.as_dict()))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn if the user's own code has changed since the checkpoint from which a training resumes."""
        before, now = ((each or {}).get("code", {}) for each in (checkpoint.get(RUN), cast(Task, pl_module).run))
        if changed := [name for name in before if name in now and before[name] != now[name]]:
            rank_zero_warn(f"{', '.join(changed)} has changed since {trainer.ckpt_path} was saved")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config of the weights that are trained from now on, and their scenes, on rank zero."""
        if not trainer.is_global_zero:
            return
        run, scenes = Path(trainer.default_root_dir), getattr(trainer.datamodule, "trained_scenes", ())  # type: ignore[attr-defined]
        if not self.already_saved:
            self.save(run / self.config_filename)
        write_whole(run / TRAIN_SCENES, "".join(f"{name}\n" for name in sorted({scene.name for scene in scenes})))

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
        if config.get("trainer"):
            config.trainer.default_root_dir = None  # a run is where its files are, and may be copied anywhere
        return str(self.parser.dump(config, skip_none=False, skip_validation=True))


def own_files(config: Mapping[str, Any], *objects: Any) -> set[Path]:
    """Return the files of the user's own classes and functions: those of some objects, and those that a config names.

    The files of their base classes are included, and installed libraries are not.
    """
    flat = flatten(config)
    named = [resolve_name(value) for name, value in flat.items() if name.endswith("class_path") and "." in value]
    leaves = chain.from_iterable(value if isinstance(value, list) else [value] for value in flat.values())
    functions = (str(value).rpartition(".") for value in leaves if DOTTED.fullmatch(str(value)))
    named += [getattr(sys.modules[module], name, None) for module, _, name in functions if module in sys.modules]
    kinds = [kind for each in (*map(type, objects), *named) for kind in getattr(each, "__mro__", (each,))]
    modules = {str(getattr(kind, "__module__", "")) for kind in kinds}
    own = (
        getattr(sys.modules.get(name), "__file__", None) for name in modules if name.partition(".")[0] not in OWN_CODE
    )
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    files = (Path(file) for file in own if file)
    return {file for file in files if not any(file.is_relative_to(library) for library in libraries)}


def read_code(file: Path) -> str:
    """Return the text of a module's file, which may be a compiled one."""
    return file.read_text(encoding="utf-8", errors="replace")


def folder_of_run(checkpoint: str | Path) -> Path:
    """Return the absolute path of the folder above the folder of a checkpoint. Links are not followed."""
    return Path(os.path.abspath(checkpoint)).parent.parent


def config_of_training(checkpoint: str | Path) -> dict[str, Any] | None:
    """Return the config with which a checkpoint was trained: its own, or else that of its run. None without either."""
    recorded = read_checkpoint(checkpoint).get(RUN)
    if isinstance(recorded, dict) and isinstance(recorded.get("config"), dict):
        return dict(recorded["config"])
    run = folder_of_run(checkpoint)
    return config_of(run) if (run / RUN_CONFIG).exists() else None


def find_saved_config(trainer: Trainer) -> SaveRunConfig | None:
    """Return the callback that has the config of this command, or None without a command line."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, SaveRunConfig)), None)


def evaluation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that a test depends on: model, data, seed, precision, limit of batches, protocol."""
    chosen: dict[str, Any] = {}
    for name in ANSWERED:
        part, _, option = name.rpartition(".")
        if part:
            chosen.setdefault(part, {})[option] = (config.get(part) or {}).get(option)
        else:
            chosen[option] = config.get(option)
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


def option_of(config: Mapping[str, Any], name: str) -> Any:
    """Return an option of a flattened config: for a part, its class with its options. None if absent."""
    below = {key.removeprefix(f"{name}."): value for key, value in config.items() if key.startswith(f"{name}.")}
    return below or config.get(name)
