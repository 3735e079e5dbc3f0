"""Parsers for commands that accept a run's options and configs, but ignore the options that they don't need."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser
from tqdm import tqdm

from commands.parser import TRUST, command_parser
from datamodules import VideoQADataModule
from datamodules.sources.base import Split
from zoo.errors import InputError

OF_RUNS = (
    *("name", TRUST, "trainer", "optimizer", "lr_scheduler", "ckpt_path", "weights_only"),
    *("metrics", "checkpoint", "gallery"),  # callbacks of every run
)
IgnoredOption = dict | list | str | float | None  # not Any, for which jsonargparse would build the classes it names


def run_parser(command: str, description: str | None, ignored: Iterable[str]) -> ArgumentParser:
    """Return a parser that reads configs and ignores some options of a run."""
    parser = command_parser(command, description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config; a later one wins")
    for option in ignored:
        parser.add_argument(f"--{option}", type=IgnoredOption, default=None, help=SUPPRESS)
    return parser


def scene_parser(command: str, description: str | None, ignored: Iterable[str]) -> ArgumentParser:
    """Return a parser for the DataModule, its split and its workers, which ignores some options of a run."""
    parser = run_parser(command, description, ignored)
    parser.add_argument("--seed_everything", type=int, default=0, help="the run's seed")
    parser.add_argument("--split", type=Split, default="test", help=f"which scenes: {', '.join(get_args(Split))}")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 uses the main process")
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    return parser


def prepare_split(command: str, settings: Any) -> None:
    """Prepare the split of a command that uses `scene_parser`.

    Args:
        command: Name of the command.
        settings: The command's settings, with a built DataModule.

    Raises:
        InputError: There is a single video instead of a source, the number of workers is negative, or data is missing.
    """
    if settings.data.asked is not None:
        raise InputError(f"--data.video is for predict: {command} takes a source, such as --data.source SceneFolder")
    if settings.workers < 0:
        raise InputError(f"--workers {settings.workers}: at least 0, which uses the main process")
    settings.data.prepare_splits((settings.split,))


class SceneCounts:
    """Count the scenes that a command has made, kept from an earlier call, and failed on. Faults are printed.

    LOST is an outcome that no command counts: a cache has lost what the command had made, which ends it.
    """

    MADE, KEPT, FAILED, LOST = "made", "kept", "failed", "lost"

    def __init__(self) -> None:
        self.counts = Counter({self.MADE: 0, self.KEPT: 0})

    def add(self, outcome: str) -> None:
        """Count MADE, KEPT or a fault, given as its text."""
        is_fault = outcome not in (self.MADE, self.KEPT)
        self.counts[self.FAILED if is_fault else outcome] += 1
        if is_fault:
            tqdm.write(outcome, file=sys.stderr)

    def __str__(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items())

    def refuse_failed(self, lacks: str) -> None:
        """Raise InputError if scenes have failed."""
        if failed := self.counts[self.FAILED]:
            raise InputError(f"{failed} of {self.counts.total()} scenes have no {lacks}: see above")
