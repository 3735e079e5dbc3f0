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
from zoo.errors import InputError, describe
from zoo.files.cache import cache_folder

VISIBLE = "CUDA_VISIBLE_DEVICES"
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


def attempt(check: Iterator[Finding], what: str, grade: Grade = "problem") -> Iterator[Finding]:
    """Yield the findings of a check. Its error, of whatever broken package or file, is a finding as well."""
    try:
        yield from check
    except Exception as error:
        text = str(error) if isinstance(error, InputError) else describe(error)
        yield Finding(grade, f"{what}: {' '.join(text.split())}")


def examine_machine(folder: Path = Path(), checkpoint: int = 0, *, is_training: bool = False) -> Iterator[Finding]:
    """Yield what the machine has. Nothing is imported or computed, so that `fit` can call it.

    Args:
        folder: Folder of the runs.
        checkpoint: Bytes of a checkpoint.
        is_training: Whether a training begins. Then GPUs are not asked for their memory, which takes some of each.
    """
    yield from attempt(_examine_gpus(is_training), "GPU", "warning")
    yield from attempt(_examine_memory(), "CPU", "warning")
    yield from attempt(_examine_disks(folder, COPIES * checkpoint), "disk", "warning")


def checkpoint_size(task: torch.nn.Module) -> int:
    """Return about how many bytes a checkpoint takes: trained weights and Adam's two moments, in float32."""
    return 12 * sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)


def _examine_memory() -> Iterator[Finding]:
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


def _examine_gpus(is_training: bool) -> Iterator[Finding]:
    built = torch.version.cuda or torch.version.hip
    torch_build = f"PyTorch {torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU alone'}"
    driver = re.search(r"(?<=Kernel Module  )\S+|\d+\.\d+\.\d+", NVIDIA.read_text()) if NVIDIA.exists() else None
    named = f"driver {driver.group()}" if driver else "no NVIDIA driver"
    if not torch.cuda.is_available():
        if driver:
            remedy = "update the driver, or install the build of PyTorch for it" if built else "install one with CUDA"
            if (visible := os.environ.get(VISIBLE)) is not None:
                remedy = f"{VISIBLE} is '{visible}', unset it; or {remedy}"
            named += f", and PyTorch sees no GPU: {remedy}, see pytorch.org"
        if driver or not is_training:
            yield Finding("warning", f"GPU: none, trainings use the CPU; {torch_build}; {named}")
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


def _examine_disks(folder: Path, needed: int) -> Iterator[Finding]:
    yield examine_disk("runs", folder, needed)
    yield examine_disk("HF_HOME", Path(HF_HOME))
    yield examine_disk("caches", cache_folder("cache"))
    yield examine_disk("temporary files", Path(tempfile.gettempdir()))  # raises if none can be written


def examine_disk(name: str, place: Path, needed: int = 0) -> Finding:
    """Return whether a folder can be written, and how much space its disk has.

    Args:
        name: What is written there.
        place: The folder, which need not exist.
        needed: Bytes that a training writes. With 0 it may be a folder that is only read, such as a shared HF_HOME.
    """
    place = place.absolute()
    try:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        reason = "" if os.access(there, os.W_OK) else "no permission"
    except OSError as error:  # of a folder in one that can't be entered, or of storage that is gone
        free, reason = 0, describe(error)
    if reason:
        grade: Grade = "problem" if needed else "warning"
        return Finding(grade, f"disk: {name} in {place} can't be written ({reason}): take another folder")
    text = f"disk: {name} in {place}, {free / 1e9:.1f} GB free"
    if free < needed:
        return Finding(
            "problem",
            f"{text}, and checkpoints take {needed / 1e9:.1f} GB: free some, or give another "
            "--trainer.default_root_dir",
        )
    return Finding("warning" if free < LEAST_FREE else "ok", text + (": free some" if free < LEAST_FREE else ""))
