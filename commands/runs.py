"""Where runs lie, and which run and checkpoint a command means when it does not say."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from zoo.errors import InputError

RUNS = Path("runs")
CONFIG, LAST = "config.yaml", Path("checkpoints", "last.ckpt")
# what may differ between a run and the model that is asked for without making its weights those of another
NOT_ARCHITECTURE = {
    *("learning_rates", "optimizer", "scheduler", "gradient_checkpointing"),
    *("max_new_tokens", "allow_untrained", "attn_implementation", "dtype"),
}


def finished_runs(root: Path = RUNS) -> list[Path]:
    """Runs that have a checkpoint, the newest first."""
    runs = [config.parent for config in root.glob(f"*/{CONFIG}") if (config.parent / LAST).exists()]
    return sorted(runs, key=lambda run: (run / LAST).stat().st_mtime, reverse=True)


def newest_run() -> Path:
    """Raises InputError, saying what to do, where there is none."""
    for run in finished_runs():
        return run
    raise InputError(f"no finished run under {RUNS}/: train one first, python main.py fit --config prope.yaml")


def settle(command: str, settings: Any) -> None:
    """Decides the run's folder and the checkpoint, in the parsed settings of a subcommand, in place.

    `fit` gets a new folder, or goes on in that of the checkpoint. Anything else takes, unless it is told, the
    newest run of the same model; released weights are taken as they are. `last` is always that run's.

    Raises:
        InputError: a checkpoint that is not there. Nothing is ever tested with weights that were not meant.
    """
    asked, folder = settings.ckpt_path, settings.trainer.default_root_dir
    checkpoint: Path | None = None
    if asked == "last" or (asked is None and command != "fit" and not settings.model.init_args.allow_untrained):
        checkpoint = _last(settings, Path(folder) if folder else None)
        if checkpoint is None and (asked == "last" or not _is_pretrained(settings)):
            raise InputError(
                f"no run of this {_name(settings)} under {folder or RUNS}/ has a checkpoint: train it first (python "
                "main.py fit with the same configs), give --ckpt_path, or --model.allow_untrained true"
            )
    elif asked is not None:
        checkpoint = Path(asked)
        if not checkpoint.exists():
            raise InputError(f"{checkpoint}: no such checkpoint; give the path of a .ckpt file, or `last`")
    if folder is None:
        is_run = checkpoint is not None and (checkpoint.parent.parent / CONFIG).exists()
        folder = checkpoint.parent.parent if checkpoint is not None and is_run else _new(_name(settings), command)
    settings.ckpt_path = None if checkpoint is None else str(checkpoint)
    settings.trainer.default_root_dir = str(folder)
    if settings.trainer.logger in (None, True):
        settings.trainer.logger = Namespace(
            class_path="lightning.pytorch.loggers.TensorBoardLogger",
            init_args=Namespace(save_dir=str(folder), name="", version=""),
        )
    rank_zero_info(f"{command}: run {folder}, checkpoint {checkpoint or 'none: ' + _weights(settings)}")


def _last(settings: Any, folder: Path | None) -> Path | None:
    runs = finished_runs() if folder is None else [folder]
    wanted = _architecture(settings.model.as_dict())
    for run in runs:
        if (run / LAST).exists() and (run / CONFIG).exists():
            config = yaml.safe_load((run / CONFIG).read_text())
            if _architecture(config["model"]) == wanted:
                return run / LAST
    return None


def _architecture(model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    return {key: _architecture(value) for key, value in model.items() if key not in NOT_ARCHITECTURE}


def _is_pretrained(settings: Any) -> bool:
    backbone = settings.model.init_args.backbone
    return backbone is not None and backbone.class_path.endswith("PretrainedQwen25VL")


def _weights(settings: Any) -> str:
    return "the released weights" if _is_pretrained(settings) else "random weights"


def _name(settings: Any) -> str:
    return str(settings.model.class_path.rpartition(".")[2])


def _new(model: str, command: str) -> Path:
    """A folder of its own; processes that Lightning or a launcher starts for the same run share it."""
    if "ZOO_RUN" not in os.environ:
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
        stamp = job or datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{model}-{stamp}" if command == "fit" else f"{model}-{command}-{stamp}"
        folder, again = RUNS / name, 1
        while folder.exists() and not job:
            folder, again = RUNS / f"{name}-{again}", again + 1
        os.environ["ZOO_RUN"] = str(folder)
    return Path(os.environ["ZOO_RUN"])
