"""The folder of a new run: rank zero makes and locks it, and all processes learn its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import torch.distributed
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from datamodules.datamodule import SKIPPED_SCENES
from run_folder.record import CONFIG_START, TRAIN_SCENES
from zoo.configuration import RUNS
from zoo.errors import InputError
from zoo.files.atomic_io import try_lock, write_whole
from zoo.files.ownership import begins_with, leave_to_others, make_if_absent, refuse_existing, remove_made
from zoo.weights.saved_models import CHECKPOINTS, LAST, LAST_CHECKPOINT, RUN_CONFIG, trained_at

TRAINING_LOCK = ".fit.lock"
ELSEWHERE = "give another --trainer.default_root_dir"
FAILED = RUNS / ".failed"  # why the last training failed
INHERITED = "ZOO_RUN"  # environment variable with the run's folder
SRUN = "SLURM_STEP_ID"  # environment variable that srun sets, but not sbatch
PATIENCE = timedelta(minutes=5)  # time for the other processes to start
# in Lightning's order, because torchrun can be started by srun
LAUNCHERS: tuple[type[ClusterEnvironment], ...] = (
    *(TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment),
)
_stores: list[torch.distributed.Store] = []


def launcher() -> ClusterEnvironment:
    """Return the environment that started this process, in the order of Lightning's Trainer.

    Raises:
        InputError: A SLURM job has several tasks, but this process was not started by srun.
    """
    try:
        found = next((kind for kind in LAUNCHERS if kind.detect()), LightningEnvironment)()
    except RuntimeError as error:  # the number of SLURM tasks is not given per node
        raise InputError(" ".join(str(error).split())) from error
    if isinstance(found, SLURMEnvironment) and found.world_size() > 1 and SRUN not in os.environ:
        raise InputError(
            f"this job has {found.world_size()} tasks, but its script runs the command once: put srun before it, or "
            "ask for one task (sbatch --ntasks=1)"
        )
    return found


def is_rank_zero() -> bool:
    """Return whether this is the main process of a run."""
    process = launcher()
    if isinstance(process, LightningEnvironment):  # it sets global ranks only when training starts
        return process.node_rank() == process.local_rank() == 0
    return process.global_rank() == 0


def shared_folder(choose: Callable[[], Path]) -> Path:
    """Return the folder that `choose` returns on rank zero, on every process of the run.

    Raises:
        InputError: The processes did not meet.
    """
    if INHERITED not in os.environ:  # processes started by Lightning inherit it
        os.environ[INHERITED] = from_rank_zero(lambda: str(choose()))
    return Path(os.environ[INHERITED])


def from_rank_zero(choose: Callable[[], str]) -> str:
    """Return rank zero's choice on every process of torchrun, srun, jsrun or mpirun.

    A run is resolved before its process group exists. The choice is shared through the store that the group will use:
    torchrun's own, or one that rank zero opens at the group's address.
    """
    started_by = launcher()
    rank, processes = started_by.global_rank(), started_by.world_size()
    if processes == 1:
        return choose()
    place = f"{started_by.main_address}:{started_by.main_port}"
    try:
        meeting = torch.distributed.rendezvous(f"tcp://{place}?rank={rank}&world_size={processes}", timeout=PATIENCE)
        store = next(meeting)[0]
        _stores.append(store)  # keep it open, because closing it would close the group's store
        if rank == 0:
            store.set(INHERITED, choose())
        return str(store.get(INHERITED).decode())
    except torch.distributed.DistError as error:
        raise InputError(
            f"the {processes} processes of this job did not meet at {place} within {PATIENCE}: start all of them "
            "(srun or torchrun), with a MASTER_PORT of their own"
        ) from error


def make_folder(name: str) -> Path:
    """Make a folder under runs/ that no other run has. Its name contains the time and, if it exists, a number.

    Raises:
        InputError: The folder of runs can't be written.
    """
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, again = RUNS / stamp, 0
    while not make_if_absent(folder):
        again += 1
        folder = RUNS / f"{stamp}-{again}"
    return folder


def claim_for_training(folder: Path, resumed: Path | None) -> BinaryIO | None:
    """Lock a folder for training on rank zero, and refuse it if training would replace its weights.

    Args:
        folder: The run's folder, which exists.
        resumed: The checkpoint that is resumed, if any.

    Returns:
        The lock, which is released when it is closed. None on the other ranks.

    Raises:
        InputError: Another process trains there, the folder holds a run that is not resumed, or files of others that
            the training would replace, or it can't be written.
    """
    lock = None
    if is_rank_zero():
        lock = try_lock(folder / TRAINING_LOCK)
        if lock is None:
            leave_to_others(folder)
            raise InputError(f"another process is training in {folder}: wait for it, or {ELSEWHERE}")
    saved = {path.resolve() for path in (folder / CHECKPOINTS).glob(f"*{Path(LAST).suffix}")}
    if saved and (resumed is None or resumed.resolve() not in saved):  # check after locking: a run may just have ended
        raise InputError(f"{folder} holds a trained run: add --ckpt_path last to go on with it, or {ELSEWHERE}")
    if not saved and not begins_with(folder / RUN_CONFIG, CONFIG_START):  # it may be a folder of the user's own
        refuse_existing(folder / name for name in (RUN_CONFIG, TRAIN_SCENES, SKIPPED_SCENES))
    return lock


def record_failure(reason: str) -> None:
    """Record that a training failed without a checkpoint, if there are older runs that could be mistaken for it."""
    with suppress(InputError):  # such as a full disk, which may be the reason
        if is_rank_zero() and any(RUNS.glob(f"*/{LAST_CHECKPOINT}")):
            write_whole(FAILED, reason)


def describe_failure(run: Path) -> str:
    """Return what to say of a training that failed after a run was trained, or ""."""
    if not FAILED.exists() or FAILED.stat().st_mtime < trained_at(run):
        return ""
    return f"a newer training than {run} failed: {FAILED.read_text(encoding='utf-8')}"


def remove_unused(folder: Path) -> None:
    """Remove the folder of a failed run if this process made it and it holds no checkpoint and no answer."""
    is_used = any((folder / CHECKPOINTS).glob("*")) or any(answers.stat().st_size for answers in folder.glob("*.jsonl"))
    if not is_used:
        remove_made(folder)
