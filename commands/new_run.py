"""The folder of a new run: rank zero makes it, every process learns its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import torch.distributed
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from zoo.errors import InputError

RUNS = Path("runs")
INHERITED = "ZOO_RUN"  # an environment variable
PATIENCE = timedelta(minutes=5)  # for the other processes to start
# in Lightning's order: torchrun can be started by srun
LAUNCHERS: tuple[type[ClusterEnvironment], ...] = (
    *(TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment),
)
_stores: list[torch.distributed.Store] = []


def launcher() -> ClusterEnvironment:
    """Return the environment that started this process, as Lightning's Trainer chooses it."""
    try:
        return next((kind for kind in LAUNCHERS if kind.detect()), LightningEnvironment)()
    except RuntimeError as error:  # tasks of SLURM that are not counted per node
        raise InputError(" ".join(str(error).split())) from error


def shared_folder(choose: Callable[[], Path]) -> Path:
    """Return the folder that `choose` returns on rank zero, on every process of the run.

    Raises:
        InputError: The processes did not meet.
    """
    if INHERITED not in os.environ:  # the processes that Lightning starts inherit it
        os.environ[INHERITED] = from_rank_zero(lambda: str(choose()))
    return Path(os.environ[INHERITED])


def from_rank_zero(choose: Callable[[], str]) -> str:
    """Return rank zero's choice on every process of torchrun, srun, jsrun or mpirun.

    A run is resolved before its process group exists. The choice goes through the store at which that group will meet:
    torchrun's own, or one that rank zero opens at the group's address and shares with it.
    """
    started_by = launcher()
    rank, processes = started_by.global_rank(), started_by.world_size()
    if processes == 1:
        return choose()
    place = f"{started_by.main_address}:{started_by.main_port}"
    try:
        meeting = torch.distributed.rendezvous(f"tcp://{place}?rank={rank}&world_size={processes}", timeout=PATIENCE)
        store = next(meeting)[0]
        _stores.append(store)  # closed, it would take the group's store with it
        if rank == 0:
            store.set(INHERITED, choose())
        return str(store.get(INHERITED).decode())
    except torch.distributed.DistError as error:
        raise InputError(
            f"the {processes} processes of this job did not meet at {place} within {PATIENCE}: start all of them "
            "(srun or torchrun), with a MASTER_PORT of their own"
        ) from error


def make_folder(name: str) -> Path:
    """Make a folder under runs/ that no other run has: its name has the time, and a number if another took that.

    Raises:
        InputError: Runs/ can't be written.
    """
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, again = RUNS / stamp, 0
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            again += 1
            folder = RUNS / f"{stamp}-{again}"
        except OSError as error:
            raise InputError(f"{folder} can't be made: {error.strerror}") from error


def remove_unused(folder: Path) -> None:
    """Remove the folder of a failed run that has trained no step and answered no question."""
    if not any(answers.stat().st_size for answers in folder.glob("*.jsonl")):
        shutil.rmtree(folder, ignore_errors=True)
