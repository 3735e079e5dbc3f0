"""The settings of a run: saved as config.yaml, and compared when an interrupted test resumes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.loggers import log_settings
from datamodules.resumable_test import is_limited, tested_by
from zoo.files.atomic_io import write_whole
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.geometry import CachedGeometry
from zoo.seed import resolve_seed

FILES = "files of "  # prefix of a scene's entry
DRAWN = ("data.sampler.seed", "data.frame_pairing.seed")  # options whose null is the run's seed
# Names of options, wherever they are in a config, by what they change; each is in one set alone.
_NOTHING = {
    *("gradient_checkpointing", "compile_decoder", "attn_implementation", "allow_untrained", "defer_weights"),
    *("num_workers", "keep_in_memory", "on_error", "frame_cache", "workers", "questions_per_batch"),
    *("video", "question", "max_size_gb"),
    # of the Trainer and its callbacks
    *("default_root_dir", "dirpath", "save_dir", "logger", "log_every_n_steps", "profiler", "detect_anomaly"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "num_sanity_val_steps", "barebones"),
    *("every_n_train_steps", "inference_mode", "limit_predict_batches"),
}
_TRAINING = {
    *("learning_rates", "optimizer", "scheduler", "average", "dropout", "algorithm"),
    *("initial_weights", "teacher"),
    *("batch_size", "questions_per_scene", "tokens_per_sequence", "pack_scenes", "train_sampler"),
    *("train_frame_pairing", "augmentation"),
}
_ANSWERS = {"max_new_tokens", "repetition_penalty", "sampling", "limit_test_batches"}
_BOTH = {"dtype", "geometry_cache", "camera_source", "scale_from"}
# both as well; a token that a model has no weight for is refused where the weights are loaded
_FORWARD_PASS = {"active_branches", "temporal_merge", "time_index", "text_after_vision", "token"}
# those that change no answer of given weights: a test with others goes on where an interrupted one ended
CHANGES_NO_ANSWER = _NOTHING | _TRAINING
# those that change no result of a training: a run may be resumed with others
CHANGES_NO_RESULT = _NOTHING | _ANSWERS
# those in which a model may differ from that of the run whose weights it loads
NOT_ARCHITECTURE = _NOTHING | _TRAINING | _ANSWERS | _BOTH
# and those in which the tests of a trained model may differ from its training
CHANGES_NO_WEIGHT = NOT_ARCHITECTURE | _FORWARD_PASS


class SaveRunConfig(SaveConfigCallback):
    """Write config.yaml when a run is trained; an evaluation keeps that of the evaluated run.

    A fit replaces that of the former weights only when its first step begins, after `PredictionsCallback` has put aside
    their test with it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config of a folder that has none, on rank zero; a training logs it."""
        path = Path(trainer.default_root_dir) / self.config_filename
        if trainer.is_global_zero and not path.exists():
            self.save(path)
            self.already_saved = True
        if stage == "fit":
            log_settings(trainer, flatten(self.config.as_dict()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config of the weights from here on, on rank zero."""
        if trainer.is_global_zero and not self.already_saved:
            self.save(Path(trainer.default_root_dir) / self.config_filename)

    def save(self, path: Path) -> None:
        """Write the config."""
        write_whole(path, self.parser.dump(self.config, skip_none=False))


def save_config(trainer: Trainer, folder: Path) -> None:
    """Write the config of this command into a folder, if the run has a command line."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, SaveRunConfig):
            callback.save(folder / callback.config_filename)


def settings_of(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the settings of a test as JSON values.

    They are the options of model and data, fingerprints of weights, questions and prompts, and fingerprints of each
    scene's files: video, cameras, depth, selected frames. Without a command line, the options are the model's class
    and the DataModule's `describe()`.
    """
    data: Any = getattr(trainer, "datamodule", None)
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    configs = [callback.config for callback in callbacks if isinstance(callback, SaveConfigCallback)]
    if configs:
        chosen = {part: configs[0].as_dict()[part] for part in ("model", "data")}
    else:
        described = data.describe() if hasattr(data, "describe") else None
        chosen = {"model": type(pl_module).__qualname__, "data": described}
    flat = {key: value for key, value in flatten(chosen).items() if not is_one_of(key, CHANGES_NO_ANSWER)}
    flat.pop("data.seed", None)  # of training
    flat |= {key: resolve_seed(flat[key]) for key in DRAWN if key in flat}
    if getattr(pl_module, "sampling", None) is not None:
        flat["draws"] = resolve_seed(None)
    geometry = getattr(getattr(pl_module, "model", None), "geometry", None)
    if isinstance(geometry, CachedGeometry):  # the model itself lacks these weights
        flat["geometry_weights"] = geometry.weights
    if (scale := getattr(geometry, "scale_from", None)) is not None:
        flat["scale_weights"] = [file_fingerprint(file) for file in scale.files]
    tested, limit = tested_by(trainer), trainer.limit_test_batches
    found = {
        **flat,
        "precision": trainer.precision,
        **({"limit_test_batches": limit, "processes": trainer.world_size} if is_limited(limit) else {}),
        "weights": fingerprint(pl_module),
        "questions": fingerprint(json.dumps([q["id"], q["question_type"], q["ground_truth"]]) for q in tested.records),
        "prompts": fingerprint(q["prompt"] for q in tested.records),
        **{f"{FILES}{scene}": fingerprint(iter(files)) for scene, files in tested.files.items()},
    }
    return dict(json.loads(json.dumps(found, default=str)))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ, apart from files of scenes."""
    return [n for n in _differing(before, now) if not n.startswith(FILES)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], answered: Collection[str]) -> list[str]:
    """Return the settings that differ, as text with both values.

    Args:
        before: Settings of the interrupted test.
        now: Settings of this test.
        answered: Scenes with answered questions; the files of other scenes may differ.
    """
    return [
        f"{name} was {before.get(name)}, now it is {now.get(name)}"
        for name in _differing(before, now)
        if not name.startswith(FILES) or name.removeprefix(FILES) in answered
    ]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ and may change answers."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [name for name in names if not is_one_of(name, CHANGES_NO_ANSWER)]


def is_one_of(name: str, options: Collection[str]) -> bool:
    """Return whether a dotted name has one of these options, or is inside of one."""
    return not set(name.split(".")).isdisjoint(options)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config by dotted name; `init_args` are merged into their class."""
    if not isinstance(config, dict):
        # a file holds functions as import paths, and tuples as lists
        name = f"{config.__module__}.{config.__qualname__}" if callable(config) else config
        return {prefix: list(name) if isinstance(name, tuple) else name}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    return flat


def index_lists(config: Any) -> Any:
    """Return a config whose lists of classes are mappings by index, so that `flatten` reaches their options."""
    if isinstance(config, list) and any(isinstance(each, Mapping) for each in config):
        config = {str(index): each for index, each in enumerate(config)}
    return {key: index_lists(value) for key, value in config.items()} if isinstance(config, Mapping) else config


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of flattened settings: the inverse of `flatten`, with `init_args` where there is a class."""
    config: dict[str, Any] = {}
    for name, value in flat.items():
        *path, option = name.split(".")
        part = config
        for key in path:
            part = part.setdefault(key, {})
        part[option] = value
    return {name: _with_init_args(part) for name, part in config.items()}


def _with_init_args(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    options = {name: _with_init_args(value) for name, value in part.items()}
    if "class_path" not in options:
        return options
    return {"class_path": options.pop("class_path"), "init_args": options}
