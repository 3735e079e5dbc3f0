"""Runs of adjacent tokens with a camera: what the host has to know of the cameras of tokens."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.movable import Movable

SHORT = 128  # tokens: a CPU gathers shorter runs, which costs a copy but saves one call per run


class CameraRuns(Movable):
    """Where the tokens with a camera are in a flattened batch, in parts of equal length with one camera each.

    Attributes:
        runs: Runs of adjacent tokens.
        numbers: The numbers of all tokens with a camera; None if they are one run, or there are none.
        step: Length of the parts; it divides each run.
        firsts: The number of the first token of each part, over all runs.
        is_static: Whether the host knows that no sample has tokens of different poses.
        views: Runs of adjacent tokens with one camera.
    """

    def __init__(
        self,
        runs: list[slice],
        numbers: Int[Tensor, " N"] | None,
        step: int,
        firsts: Int[Tensor, " parts"],
        is_static: bool,
        views: list[slice],
    ) -> None:
        self.runs, self.numbers, self.step, self.firsts, self.is_static = runs, numbers, step, firsts, is_static
        self.views = views

    def with_one_camera_per_token(self) -> CameraRuns:
        """Return the same runs, each token of which has a camera of its own."""
        each = [torch.arange(run.start, run.stop, device=self.firsts.device) for run in self.runs]
        return CameraRuns(self.runs, self.numbers, 1, torch.cat([self.firsts[:0], *each]), self.is_static, self.views)

    @property
    def places(self) -> list[slice | Tensor]:
        """The runs as slices; or as one tensor of numbers, where they are short, or several on a GPU.

        A GPU is kept busy by one call for all runs, whatever their number, but not by many calls.
        """
        return list(self.runs) if self._gathered is None else [self._gathered]

    @property
    def parts_per_run(self) -> list[int]:
        """Number of parts of each of the `places`."""
        if self._gathered is not None:
            return [len(self.firsts)]
        return [(run.stop - run.start) // self.step for run in self.runs]

    @property
    def _gathered(self) -> Int[Tensor, " N"] | None:
        if self.numbers is None or self.numbers.device.type != "cpu":
            return self.numbers
        return self.numbers if len(self.numbers) < SHORT * len(self.runs) else None


def camera_runs(index: Int[Tensor, "B L"], world_to_camera: Float[Tensor, "B C 4 4"] | None = None) -> CameraRuns:
    """Find the runs of adjacent tokens with a camera; read numbers, so call it on the host.

    Args:
        index: The camera of each token, -1 for none.
        world_to_camera: The poses; None if the host doesn't know them.
    """
    on_host = index.cpu()
    sample = torch.arange(len(index))[:, None]
    camera = torch.where(on_host >= 0, (sample << 32) + on_host, -1).flatten()  # distinct for each camera of the batch
    # 1. Runs, and parts of them.
    cameras, counts = camera.unique_consecutive(return_counts=True)
    step = math.gcd(*counts[cameras >= 0].tolist())
    tokens = (camera >= 0).nonzero()[:, 0]
    runs = [run for run in tokens.tensor_split((tokens.diff() > 1).nonzero()[:, 0] + 1) if len(run)]
    firsts = torch.cat([tokens[:0], *(run[::step] for run in runs)])
    slices = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
    ends = counts.cumsum(0)
    shown = torch.stack((ends - counts, ends), 1)[cameras >= 0].tolist()
    # 2. Whether a camera has another pose than the one before it in the same sample.
    sample, number = camera[firsts] >> 32, on_host.flatten()[firsts]
    pose = number[:, None] if world_to_camera is None else world_to_camera.cpu()[sample, number].flatten(1)
    differs = (pose[1:] != pose[:-1]).any(1) & (sample[1:] == sample[:-1])
    views = [slice(start, stop) for start, stop in shown]
    made = CameraRuns(slices, tokens if len(runs) > 1 else None, step, firsts, not differs.any(), views)
    return made if index.device == on_host.device else made.to(index.device)
