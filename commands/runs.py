"""Where runs lie, and which run and checkpoint a command means when it does not say."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint import FOLDER, LAST
from zoo.errors import InputError

RUNS = Path("runs")
CONFIG = "config.yaml"
# what may differ between a run and the model that is asked for without making its weights those of another
NOT_ARCHITECTURE = {
    *("learning_rates", "optimizer", "scheduler", "gradient_checkpointing"),
    *("max_new_tokens", "allow_untrained", "attn_implementation", "dtype"),
}


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in, if it lies in one."""
    run = checkpoint.absolute().parent.parent
    return checkpoint.parent.parent if (run / CONFIG).exists() else None


def newest_run() -> Path:
    """The run under `runs/` with the newest checkpoint.

    Raises:
        InputError: there is none; it says what to do.
    """
    for run in _finished_runs():
        return run
    raise InputError(f"no finished run under {RUNS}/: train one first, python main.py fit --config prope.yaml")


def settle(command: str, settings: Any) -> None:
    """Decides the run's folder and the checkpoint, in the parsed settings of a subcommand, in place.

    `fit` gets a new folder, or goes on in that of the checkpoint. An evaluation of random weights takes the newest
    run of the same model; released weights are scored as they are unless a checkpoint is named. `last` is the
    newest run of the same model.

    Raises:
        InputError: a checkpoint that is not there or is of another model. Nothing is ever tested with weights
            that were not meant.
    """
    if _name(settings) == "SpatialVLM":
        raise InputError("which model? Name one, such as --config qwen25_vl.yaml or --config prope.yaml")
    asked, folder = settings.ckpt_path, settings.trainer.default_root_dir
    parts = settings.model.init_args
    released = parts.backbone is not None and parts.backbone.class_path.endswith("PretrainedQwen25VL")
    checkpoint: Path | None = None
    if asked == "last" or (asked is None and command != "fit" and not released and not parts.allow_untrained):
        checkpoint = _last(settings, Path(folder) if folder else None)
    elif asked is not None:
        checkpoint = Path(asked)
        _check(checkpoint, settings)
    elif command != "fit" and released and (parts.encoding is not None and not parts.allow_untrained):
        raise InputError(
            f"{parts.encoding.class_path.rpartition('.')[2]} was not trained into the released weights: give "
            "--ckpt_path, or --model.allow_untrained true to score them all the same"
        )
    if folder is None:
        run = None if checkpoint is None else run_of(checkpoint)
        folder = run or _new(_name(settings), command)
    settings.ckpt_path = None if checkpoint is None else str(checkpoint)
    settings.trainer.default_root_dir = str(folder)
    if settings.trainer.logger in (None, True):
        settings.trainer.logger = Namespace(
            class_path="lightning.pytorch.loggers.TensorBoardLogger",
            init_args=Namespace(save_dir=str(folder), name="", version=""),
        )
    weights = checkpoint or ("the released weights" if released else "none: random weights")
    rank_zero_info(f"{command}: run {folder}, checkpoint {weights}")


def _finished_runs() -> list[Path]:
    runs = [config.parent for config in RUNS.glob(f"*/{CONFIG}") if (config.parent / FOLDER / LAST).exists()]
    return sorted(runs, key=lambda run: (run / FOLDER / LAST).stat().st_mtime, reverse=True)


def _last(settings: Any, folder: Path | None) -> Path:
    for run in _finished_runs() if folder is None else [folder]:
        if (run / FOLDER / LAST).exists() and (run / CONFIG).exists() and _same_model(run, settings):
            return run / FOLDER / LAST
    raise InputError(
        f"no run of this {_name(settings)} under {folder or RUNS}/ has a checkpoint: train it first (python main.py "
        "fit with the same configs), give --ckpt_path, or --model.allow_untrained true"
    )


def _check(checkpoint: Path, settings: Any) -> None:
    if not checkpoint.exists():
        raise InputError(f"{checkpoint}: no such checkpoint; give the path of a .ckpt file, or `last`")
    run = run_of(checkpoint)
    if run is not None and not _same_model(run, settings):
        raise InputError(
            f"{checkpoint} is of another model than was asked for: compare {run / CONFIG}, or leave --config out to "
            "take the model from there"
        )


def _same_model(run: Path, settings: Any) -> bool:
    trained = yaml.safe_load((run / CONFIG).read_text())["model"]
    return bool(_architecture(trained) == _architecture(settings.model.as_dict()))


def _architecture(model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    return {key: _architecture(value) for key, value in model.items() if key not in NOT_ARCHITECTURE}


def _name(settings: Any) -> str:
    return str(settings.model.class_path.rpartition(".")[2])


def _new(model: str, command: str) -> Path:
    """A folder of its own. Processes that Lightning starts inherit its name; those of a launcher agree on the job's."""
    if "ZOO_RUN" not in os.environ:
        job = [os.environ.get(key, "") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT")]
        launched = any(key in os.environ for key in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"))
        stamp = "-".join(filter(None, job)) if launched else datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{model}-{stamp}" if command == "fit" else f"{model}-{command}-{stamp}"
        folder, again = RUNS / name, 1
        while folder.exists() and not launched:
            folder, again = RUNS / f"{name}-{again}", again + 1
        os.environ["ZOO_RUN"] = str(folder)
    return Path(os.environ["ZOO_RUN"])
