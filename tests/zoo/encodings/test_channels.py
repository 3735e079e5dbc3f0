"""Products of matrices and rotations with channels, and their gradients, against the definition per token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras import cameras as token_runs
from zoo.cameras.cameras import CameraRuns, camera_runs
from zoo.encodings.placements import CameraMatrices, ChannelBlock, block_diagonal
from zoo.encodings.rotary import Rotation
from zoo.precision import highest_matmul_precision

ROOT = Path(__file__).parents[3]
HEAD_DIM, HEADS = 80, 3
TURNS = [*range(1, 37, 3), 37, 38, 39, 40, 3, 9, 11, 12]  # every third channel, a row of four, uneven steps
BLOCKS = [
    ChannelBlock(range(40)),
    ChannelBlock([*range(4, 40), *range(44, 80)]),
    ChannelBlock(range(76, 80)),
    ChannelBlock([*TURNS, *(c + 40 for c in TURNS if c < 40)][:24]),
]
VIDEO = [-1, -1, *[0] * 4, *[1] * 4, *[2] * 4, -1]
MIXED = [0, 0, 0, -1, 2, 1, 1, 1, 1, -1, -1, 0, 2, 2, -1]
INDICES = {"video": [VIDEO, VIDEO], "mixed": [MIXED, VIDEO], "none": [[-1] * 15, VIDEO], "full": [[0] * 15, [1] * 15]}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def encoded(index: Tensor, block: ChannelBlock, runs: CameraRuns | None = None, **matrices: Tensor) -> CameraMatrices:
    """The products for tokens with these cameras, whose matrices take the place of those of poses."""
    poses = torch.eye(4).expand_as(next(iter(matrices.values())))
    return CameraMatrices(Cameras.trusted(poses, poses[..., :3, :3], index, runs), block, True, **matrices)


def by_definition(x: Tensor, matrices: Tensor, index: Tensor, block: ChannelBlock) -> Tensor:
    """Multiplies each group of four channels, a row vector, by its camera's matrix."""
    out = x.clone()
    for sample, token in (index >= 0).nonzero().tolist():
        for group in torch.tensor(block.channels).view(-1, 4):
            out[sample, token, :, group] = x[sample, token, :, group] @ matrices[sample, index[sample, token]]
    return out


@pytest.mark.parametrize("short", [0, token_runs.SHORT])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", INDICES)
def test_matches_definition(name: str, block: ChannelBlock, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by run, and with short runs gathered."""
    monkeypatch.setattr(token_runs, "SHORT", short)
    index, matrices = torch.tensor(INDICES[name]), random(2, 3, 4, 4)
    found = encoded(index, block, v=matrices)
    for appended in (0, 8):
        x = random(2, 15, HEADS, HEAD_DIM + appended, seed=1)
        other_order = x.transpose(1, 2).contiguous().transpose(1, 2)  # as after RoPE
        expected = by_definition(x, matrices, index, block)
        assert (expected - x).abs().max() > 0.1
        for given in (x, other_order):
            kept = given.clone()
            torch.testing.assert_close(found.transform_values(given), expected, rtol=0, atol=1e-13)
            assert torch.equal(given, kept)


@pytest.mark.parametrize("tokens", [1, token_runs.SHORT + 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_and_many_tokens_per_matrix(tokens: int, dtype: torch.dtype) -> None:
    x, matrices = random(1, 3 * tokens, 1, HEAD_DIM, dtype=dtype), random(1, 3, 4, 4, dtype=torch.float32)
    index = torch.arange(3).repeat_interleave(tokens)[None]
    out = encoded(index, BLOCKS[0], v=matrices).transform_values(x)
    expected = by_definition(x.double(), matrices.double(), index, BLOCKS[0])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_autocast_does_not_round_the_matrices() -> None:
    matrices = random(3, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        diagonal = block_diagonal(matrices, BLOCKS[0].parts(matrices.device))
        assert (matrices @ torch.eye(4)).dtype == torch.bfloat16  # the control
    assert diagonal.dtype == torch.float32
    assert torch.equal(diagonal[:, 4:8, 4:8], matrices) and not diagonal[:, :4, 4:].any()


def test_highest_matmul_precision_overrides_and_restores() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with highest_matmul_precision(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
                assert (torch.eye(4) @ torch.eye(4)).dtype == torch.float32
            assert (torch.eye(4) @ torch.eye(4)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("short", [0, token_runs.SHORT])
def test_a_camera_that_is_found_to_be_invalid_leaves_its_tokens_as_they_are(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are found by workers, who don't know of it; the index of the step does."""
    monkeypatch.setattr(token_runs, "SHORT", short)
    index, matrices = torch.tensor(INDICES["mixed"]), random(2, 3, 4, 4)
    runs, valid = camera_runs(index), index.where(index != 2, -1)
    x = random(2, 15, HEADS, HEAD_DIM, seed=1)
    found = encoded(valid, BLOCKS[0], runs, v=matrices).transform_values(x)
    torch.testing.assert_close(found, by_definition(x, matrices, valid, BLOCKS[0]), rtol=0, atol=1e-13)
    assert torch.equal(found[index == 2], x[index == 2])
    control = encoded(index, BLOCKS[0], runs, v=matrices).transform_values(x)
    assert not torch.equal(control[index == 2], x[index == 2])


@pytest.mark.slow
def test_any_number_of_runs_costs_a_gpu_few_launches() -> None:
    """A layer with text between its views launches at most 20 more in each direction, however many views there are."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.zoo.encodings.launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, counts in json.loads(done.stdout.splitlines()[-1]).items():
        assert counts["a run per view"] == counts["three runs"], name
        more = [many - one for many, one in zip(counts["a run per view"], counts["one run"], strict=True)]
        assert max(more) <= 20, (name, counts)


def test_video_is_one_run_with_one_step_per_camera() -> None:
    def found(*rows: list[int]) -> tuple[list[slice | Tensor], int, list[int]]:
        runs = camera_runs(torch.tensor(rows))
        return runs.places, runs.step, runs.firsts.tolist()

    assert found(VIDEO) == ([slice(2, 14)], 4, [2, 6, 10])
    assert found(VIDEO[2:-1], VIDEO[2:-1]) == ([slice(0, 24)], 4, [0, 4, 8, 12, 16, 20])  # each with its own cameras
    assert found([-1] * 3, [-1] * 3) == ([], 0, [])


@pytest.mark.parametrize("short", [0, token_runs.SHORT])
@pytest.mark.parametrize("name", INDICES)
def test_each_step_of_a_run_has_one_camera(name: str, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_runs, "SHORT", short)
    index = torch.tensor(INDICES[name])
    camera = torch.where(index >= 0, index + 3 * torch.arange(2)[:, None], -1).flatten()
    covered = torch.zeros_like(camera, dtype=torch.bool)
    runs = camera_runs(index)
    for whole in (runs, runs.with_one_camera_per_token()):
        firsts = iter(whole.firsts.tolist())
        for run, count in zip(whole.places, whole.parts_per_run, strict=True):
            inside, numbers = (each[run].unflatten(0, (count, whole.step)) for each in (camera, torch.arange(30)))
            assert (inside == inside[:, :1]).all() and (inside >= 0).all()
            assert numbers[:, 0].tolist() == [next(firsts) for _ in range(count)]
            covered[run] = True
        assert torch.equal(covered, camera >= 0) and next(firsts, None) is None
    assert isinstance(runs.places[0], Tensor) == (short > 0 and len(runs.runs) > 1)


def multiply_outputs(x: Tensor, matrices: Tensor) -> Tensor:
    index = torch.tensor([[0, 0, -1, 1, 1], [-1, 1, 0, 0, -1]])
    return encoded(index, ChannelBlock([0, 3, 6, 9, 1, 2, 4, 7]), o=matrices).transform_outputs(x)


def rotate_outputs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return Rotation(cos, sin, "qkvo").transform_outputs(x)


@pytest.mark.parametrize("short", [0, token_runs.SHORT])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [(multiply_outputs, [(2, 5, 1, 10), (2, 2, 4, 4)]), (rotate_outputs, [(2, 5, 1, 10), (2, 5, 4), (2, 5, 4)])],
)
def test_gradients(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_runs, "SHORT", short)
    inputs = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)
