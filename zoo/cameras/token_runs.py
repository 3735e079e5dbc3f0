"""Runs of adjacent tokens with a camera: what the host has to know of a camera index."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.movable import Movable

SHORT = 128  # tokens: shorter runs are gathered, which costs a copy but saves one call per run


class TokenRun(NamedTuple):
    """A slice of the flattened batch."""

    start: int
    stop: int


class CameraRuns(Movable):
    """Where the tokens with a camera are in a flattened batch, in parts of equal length with one camera each.

    Attributes:
        runs: Runs of adjacent tokens; empty if their tokens are gathered by `numbers`.
        numbers: The numbers of all tokens with a camera, where runs are short; else None.
        step: Length of the parts; it divides each run.
        firsts: The number of the first token of each part, over all runs.
    """

    def __init__(
        self,
        runs: list[TokenRun],
        numbers: Int[Tensor, " N"] | None,
        step: int,
        firsts: Int[Tensor, " parts"],
    ) -> None:
        self.runs, self.numbers, self.step, self.firsts = runs, numbers, step, firsts

    def with_one_camera_per_token(self) -> CameraRuns:
        """Return the same runs, each token of which has a camera of its own."""
        device = self.firsts.device
        each = [torch.arange(*run, device=device) for run in self.runs] or [self.firsts[:0]]
        return CameraRuns(self.runs, self.numbers, 1, torch.cat(each) if self.numbers is None else self.numbers)

    @property
    def places(self) -> list[slice | Tensor]:
        """The runs as slices, or as one tensor of numbers."""
        return [slice(*run) for run in self.runs] if self.numbers is None else [self.numbers]

    @property
    def parts_per_run(self) -> list[int]:
        """Number of parts of each of the `places`."""
        if self.numbers is not None:
            return [len(self.firsts)]
        return [(run.stop - run.start) // self.step for run in self.runs]


def camera_runs(index: Int[Tensor, "B L"]) -> CameraRuns:
    """Find the runs of adjacent tokens with a camera; read numbers, so call it on the host.

    Args:
        index: The camera of each token, -1 for none.
    """
    on_host = index.cpu()
    sample = torch.arange(len(index))[:, None]
    camera = torch.where(on_host >= 0, (sample << 32) + on_host, -1).flatten()  # distinct for each camera of the batch
    cameras, counts = camera.unique_consecutive(return_counts=True)
    step = math.gcd(*counts[cameras >= 0].tolist())
    tokens = (camera >= 0).nonzero()[:, 0]
    runs = [run for run in tokens.tensor_split((tokens.diff() > 1).nonzero()[:, 0] + 1) if len(run)]
    firsts = torch.cat([run[::step] for run in runs]) if runs else tokens
    is_short = len(runs) > 1 and len(tokens) < SHORT * len(runs)
    slices = [] if is_short else [TokenRun(int(run[0]), int(run[-1]) + 1) for run in runs]
    made = CameraRuns(slices, tokens if is_short else None, step, firsts)
    return made if index.device == on_host.device else made.to(index.device)
