"""What this machine has for a training, and what it lacks: GPUs, driver, memory, disk. `doctor` prints it all."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from huggingface_hub.constants import HF_HOME

from zoo.cpu import available_cores
from zoo.files.cache import cache_folder

NVIDIA = Path("/proc/driver/nvidia/version")  # there is an NVIDIA driver
SHARED_MEMORY = Path("/dev/shm")  # where data workers put batches
LEAST_SHARED = 1e9  # bytes; Docker's default of 64 MB ends the workers of full-size trainings
LEAST_FREE = 5e9  # bytes of a disk
COPIES = 2  # of a checkpoint on disk while the next one is written
Grade = Literal["problem", "warning", "ok", "absent"]


class Finding(NamedTuple):
    """One line of the page."""

    grade: Grade
    text: str


def examine_machine(folder: Path = Path(), checkpoint: int = 0, *, is_training: bool = False) -> Iterator[Finding]:
    """Yield what the machine has. Nothing is imported or computed, so that `fit` can call it.

    Args:
        folder: Folder of the runs.
        checkpoint: Bytes of a checkpoint.
        is_training: Whether a training begins. Then GPUs are not asked for their memory, which takes some of each.
    """
    yield from _examine_gpus(is_training)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        "ok", f"CPU: {available_cores()} cores, {memory / 1e9:.0f} GB of memory; Python {sys.version.split()[0]}"
    )
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < LEAST_SHARED:
        yield Finding(
            "warning",
            f"{SHARED_MEMORY}: {free / 1e9:.2f} GB, where data workers put batches: docker run --shm-size 16g, or "
            "--data.num_workers 0",
        )
    places = {
        "runs": folder,
        "HF_HOME": Path(HF_HOME),
        "caches": cache_folder("cache"),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        yield examine_disk(name, place, COPIES * checkpoint if name == "runs" else 0)


def checkpoint_size(task: torch.nn.Module) -> int:
    """Return about how many bytes a checkpoint takes: trained weights and Adam's two moments, in float32."""
    return 12 * sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)


def _examine_gpus(is_training: bool) -> Iterator[Finding]:
    built = torch.version.cuda or torch.version.hip
    torch_build = f"PyTorch {torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU alone'}"
    driver = re.search(r"(?<=Kernel Module  )\S+|\d+\.\d+\.\d+", NVIDIA.read_text()) if NVIDIA.exists() else None
    named = f"driver {driver.group()}" if driver else "no NVIDIA driver"
    if not torch.cuda.is_available():
        if driver:
            remedy = (
                "update the driver, or install the build of PyTorch for it" if built else "install a build with CUDA"
            )
            yield Finding(
                "problem", f"GPU: {named}, and PyTorch sees no GPU ({torch_build}): {remedy}, see pytorch.org"
            )
        yield Finding(
            "warning" if driver is None else "ok", f"GPU: none; {named}; {torch_build}; trainings use the CPU"
        )
        return
    if is_training:
        return
    count = torch.cuda.device_count()
    yield Finding("ok", f"{torch_build}; {named}; cuDNN {torch.backends.cudnn.version()}")
    for i in range(count):
        major, minor = torch.cuda.get_device_capability(i)
        free, total = torch.cuda.mem_get_info(i)
        name = f"GPU {i}: {torch.cuda.get_device_name(i)}, capability {major}.{minor}"
        yield Finding("ok", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        known = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
        if known and not any(arch // 10 == major and arch % 10 <= minor for arch in known):
            yield Finding(
                "problem", f"{name}: {torch_build} has no kernels for it: install a newer one, see pytorch.org"
            )
        if free < 0.9 * total:
            yield Finding(
                "warning", f"{name}: {(total - free) / 1e9:.1f} GB are taken by others: nvidia-smi names them"
            )
    if count > 1:
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            yield Finding("ok", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
        else:
            yield Finding(
                "problem", f"NCCL: absent from {torch_build}, and {count} GPUs need it: install another build"
            )


def examine_disk(name: str, place: Path, needed: int = 0) -> Finding:
    """Return whether a folder can be written, and how much space its disk has.

    Args:
        name: What is written there.
        place: The folder, which need not exist.
        needed: Bytes that are needed.
    """
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return Finding("problem", f"disk: {name} in {place.absolute()} can't be written: take another folder")
    free = shutil.disk_usage(there).free
    text = f"disk: {name} in {place.absolute()}, {free / 1e9:.1f} GB free"
    if free < needed:
        return Finding(
            "problem",
            f"{text}, and checkpoints take {needed / 1e9:.1f} GB: free some, or give another "
            "--trainer.default_root_dir",
        )
    return Finding("warning" if free < LEAST_FREE else "ok", text + (": free some" if free < LEAST_FREE else ""))
