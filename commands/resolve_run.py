"""The run and the checkpoint that a subcommand starts from, by the options that were given and the runs at hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint_io import optimizer_files
from callbacks.results_folder import UNFINISHED
from callbacks.settings import CHANGES_NO_RESULT, CHANGES_NO_WEIGHT, NOT_ARCHITECTURE, flatten, index_lists, is_one_of
from commands.new_run import RUNS, make_folder, shared_folder
from commands.parser import BASES, registered_classes
from commands.run_name import run_name
from commands.runs import CONFIG, refuse_unreadable, run_of, with_checkpoint
from zoo.backbones import BackboneLoader
from zoo.configuration import is_same_class
from zoo.errors import InputError, add_file_to_errors
from zoo.tasks.base import CONFIG_KEY
from zoo.tasks.video_qa import SupervisedFineTuning
from zoo.weights.checkpoint import read_checkpoint, refuse_damaged
from zoo.weights.saved_models import CHECKPOINTS, LAST_CHECKPOINT, config_of, readable_config

RESTARTED = "ZOO_RESTARTED"  # "1": as below, by a study
RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", RESTARTED)


def require_model(model: Any) -> None:
    """Raise InputError for the settings of a command line that names no model."""
    if _class(model) in BASES:
        raise InputError("which model? Name one, such as --config qwen25_vl.yaml or --config prope.yaml")


def resolve_run(command: str, settings: Any) -> None:
    """Set the run's folder and checkpoint in the parsed settings of a subcommand, in place.

    `fit` gets a new folder, or that of the checkpoint. A checkpoint of a run with another algorithm gives the weights
    that a new run starts from. Started again by SLURM, torchrun or a study, it goes on in the folder that it was given.
    An evaluation of random weights uses the newest run of the same model; released weights are scored unchanged unless
    a checkpoint is named. `last` is the newest run of the same model.

    Raises:
        InputError: No model, an absent checkpoint or one of another model, or parts that the weights lack.
    """
    require_model(settings.model)
    asked, folder = settings.ckpt_path, settings.trainer.default_root_dir
    parts = settings.model.init_args
    released, untrained = _released(parts), _untrained(parts)
    may_be_untrained = parts.get("allow_untrained", False)
    checkpoint: Path | None = None
    is_restarted = any(os.environ.get(name, "0") != "0" for name in RESTARTS)
    if command == "fit" and asked not in (None, "last") and _has_another_algorithm(Path(asked), settings):
        _check("start", Path(asked), settings)
        parts.initial_weights, asked = str(asked), None
    if command == "fit" and asked is None and folder and is_restarted and Path(folder, LAST_CHECKPOINT).exists():
        asked = "last"
    if asked == "last" or (asked is None and command != "fit" and not released and not may_be_untrained):
        checkpoint = _last(command, settings, Path(folder) if folder else None)
    elif asked is not None:
        checkpoint = Path(asked)
    elif command in ("validate", "test", "predict") and released and untrained and not may_be_untrained:
        loaders: list[Any] = registered_classes(BackboneLoader)
        loader = next((kind.__name__ for kind in loaders if untrained in kind.released_fusions[:1]), "")
        own = f"; released weights with one are for --model.backbone {loader}" if loader else ""
        raise InputError(
            f"{untrained} was not trained into the released weights: give --ckpt_path, or --model.allow_untrained true "
            f"to score them all the same{own}"
        )
    start = parts.get("initial_weights") if command == "fit" else None
    if checkpoint is None and start:
        with add_file_to_errors("model.initial_weights"):
            refuse_unreadable(Path(start))
    if checkpoint is not None:
        if command == "fit":
            _name_start(checkpoint, parts)
        _check(command, checkpoint, settings)
    if folder is None:
        run = None if checkpoint is None else run_of(checkpoint)
        model = _class(settings.model)
        name = run_name(settings.get("name"), model, sys.argv[2:]) if command == "fit" else f"{model}-{command}"
        folder = run or shared_folder(
            lambda: _find_interrupted_test(command, checkpoint, settings) or make_folder(name)
        )
    settings.ckpt_path = None if checkpoint is None else str(checkpoint)
    settings.trainer.default_root_dir = str(folder)
    weights = checkpoint or ("the released weights" if released else "none: random weights")
    if checkpoint is None and start:
        weights = f"none: it starts from the weights of {start}"
    rank_zero_info(f"{command}: run {folder}, checkpoint {weights}")


def _released(parts: Any) -> bool:
    """Whether the backbone has released weights."""
    backbone = parts.get("backbone")
    return backbone is not None and bool(resolve_name(backbone.class_path).is_pretrained)


def _untrained(parts: Any) -> str | None:
    """Return the class of a part that the released weights were trained without, or None."""
    for part in ("camera_encoding", "view_mixer"):
        if parts.get(part) is not None:
            return _class(parts[part])
    fusion, backbone = parts.get("fusion"), parts.get("backbone")
    released = () if backbone is None else resolve_name(backbone.class_path).released_fusions
    return None if fusion is None or _class(fusion) in released else _class(fusion)


def _class(part: Any) -> str:
    """Return the class name of a part of the settings; a default may be the class itself."""
    return str(getattr(part, "class_path", getattr(part, "__qualname__", ""))).rpartition(".")[2]


def _last(command: str, settings: Any, folder: Path | None) -> Path:
    """Return the checkpoint of the newest run of the same model, under `runs/` or in a folder.

    Without one, a test takes the newest run whose weights fit its options.
    """
    asked = settings.as_dict()
    fitting: tuple[Path, str] | None = None
    for run, trained in with_checkpoint(RUNS.glob(f"*/{CONFIG}") if folder is None else folder.glob(CONFIG)):
        if not (changed := _changed(trained, asked, ("model",), NOT_ARCHITECTURE)):
            return run / LAST_CHECKPOINT
        if command != "fit" and fitting is None and not _other_weights(trained, asked):
            fitting = run, changed[0]
        else:
            model, wanted = (str(each["model"].get("class_path")).rpartition(".")[2] for each in (trained, asked))
            other = f"is a {model}" if model != wanted else f"was trained with another {changed[0]}"
            rank_zero_info(f"{run} is passed over: it {other}")
    if fitting is not None:
        rank_zero_info(f"{fitting[0]} was trained with another {fitting[1]}, which changes no weight")
        return fitting[0] / LAST_CHECKPOINT
    absent = f"no run of this {_class(settings.model)} under {folder or RUNS}/"
    if command == "fit":
        raise InputError(
            f"{absent} can be resumed: that takes a checkpoint and the settings of its run (only trainer's may "
            "change); without --ckpt_path a new run starts"
        )
    raise InputError(
        f"{absent} has a checkpoint: train it first (python main.py fit with the same configs), give --ckpt_path, or "
        "--model.allow_untrained true"
    )


def _check(command: str, checkpoint: Path, settings: Any) -> None:
    """Refuse a checkpoint of another model, and for `fit` one of a run with other settings.

    A `start` may have other objectives, see `read_start`.
    """
    refuse_unreadable(checkpoint)
    for file in optimizer_files(checkpoint) if command == "fit" else ():
        refuse_damaged(file)
    run = run_of(checkpoint)
    if run is None:
        return
    trained, asked = config_of(run), settings.as_dict()
    if _other_weights(trained, asked, ("objectives",) if command == "start" else ()):
        raise InputError(
            f"{checkpoint} is of another model than was asked for: compare {run / CONFIG}, or leave --config out to "
            "take the model from there"
        )
    if command == "fit" and (changed := _changed(trained, asked)):
        raise InputError(
            f"{run} was trained with another {changed[0]}: a run goes on with its own settings (only trainer's may "
            f"change), see {run / CONFIG}; to start from its weights with new ones is another run"
        )


def _name_start(checkpoint: Path, parts: Any) -> None:
    """Name the weights that a resumed run once started from, where the settings name none."""
    if parts.get("initial_weights", "") is None:
        parts.initial_weights = _trained_options(checkpoint).get("initial_weights")


def _has_another_algorithm(checkpoint: Path, settings: Any) -> bool:
    """Whether a checkpoint is of a run that learned by another algorithm than the settings name."""
    trained = _trained_options(checkpoint) if "algorithm" in settings.model.init_args else {}
    if not trained:
        return False
    algorithms = trained.get("algorithm"), settings.as_dict()["model"]["init_args"]["algorithm"]
    return not is_same_class(*((each or {}).get("class_path", SupervisedFineTuning.__name__) for each in algorithms))


def _trained_options(checkpoint: Path) -> dict[str, Any]:
    """Return the options of the model of a checkpoint: its run's, or its own once it was moved out of a run.

    They are empty if it has none.
    """
    if (run := run_of(checkpoint)) is not None:
        trained = config_of(run)["model"]
    else:
        refuse_unreadable(checkpoint)
        trained = read_checkpoint(checkpoint).get(CONFIG_KEY) or {}
    with add_file_to_errors(checkpoint):
        return dict(trained.get("init_args") or {})


def _other_weights(trained: Any, asked: Any, ignored: Collection[str] = ()) -> bool:
    """Whether a model needs other weights than those of a run: a branch that the run left out is not trained."""
    branches = flatten({"model": trained.get("model")}).get("model.fusion.active_branches", "both")
    unchanging = CHANGES_NO_WEIGHT if branches == "both" else CHANGES_NO_WEIGHT - {"active_branches"}
    return bool(_changed(trained, asked, ("model",), unchanging | set(ignored)))


def _changed(
    trained: Any,
    asked: Any,
    parts: Collection[str] = ("model", "data", "seed_everything"),
    ignored: set[str] = CHANGES_NO_RESULT,
) -> list[str]:
    """Return the options in which two configs differ; of a part with another class, or that one lacks, its name."""
    one, other = (flatten(index_lists({part: config.get(part) for part in parts})) for config in (trained, asked))
    names = [name for name in sorted(one | other) if not is_one_of(name, ignored)]
    differing = [name for name in names if one.get(name) != other.get(name)]
    nameable = {name.removesuffix(".class_path") for name in differing} | one.keys() | other.keys()
    prefixes = (accumulate(name.split("."), "{}.{}".format) for name in differing)
    return list(dict.fromkeys(next(each for each in own if each in nameable) for own in prefixes))


def _find_interrupted_test(command: str, checkpoint: Path | None, settings: Any) -> Path | None:
    """Return the newest folder of the same interrupted test, of weights that belong to no run, or None."""
    if command != "test":
        return None
    for unfinished in sorted(RUNS.glob(f"*/{UNFINISHED}"), key=lambda path: -path.stat().st_mtime):
        run = unfinished.parent
        tested = readable_config(run) if (run / CONFIG).exists() else None
        of_these = tested and tested.get("ckpt_path") == (None if checkpoint is None else str(checkpoint))
        if of_these and not (run / CHECKPOINTS).exists() and not _changed(tested, settings.as_dict()):
            return run
    return None
