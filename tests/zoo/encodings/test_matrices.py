"""Encodings by a matrix per camera or ray against their definitions per token, and PRoPE's published numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras import cameras as token_runs
from zoo.cameras.cameras import CameraRuns, camera_runs
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import ray_directions
from zoo.encodings import ChannelRange, PointRoPE, PoseAxis, PRoPE, RayEncoding, prope_attention
from zoo.encodings.placements import CameraMatrices, ChannelBlock
from zoo.encodings.prope import ray_cameras
from zoo.encodings.rotary import Rotation
from zoo.encodings.testing import HEAD, qkv_and_index, random_cameras
from zoo.precision import highest_matmul_precision

# ---- the published layout --------------------------------------------------------------------------------------------


# all golden cases if ZOO_GOLDEN is set, else the small ones of this repository
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[2] / "golden")) / "prope"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


def load(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta = json.loads((GOLDEN / f"{case}.json").read_text())
    names = ("patches_x", "patches_y", "image_width", "image_height")
    return load_file(GOLDEN / f"{case}.safetensors"), {name: meta[name] for name in names}


@pytest.mark.parametrize("kind", ["K", "gta"])
@pytest.mark.parametrize("case", CASES)
def test_matches_official_attention(case: str, kind: str) -> None:
    tensors, layout = load(case)
    K = tensors["Ks"] if kind == "K" else None
    q, k, v = (tensors[name].requires_grad_() for name in "qkv")
    out = prope_attention(q, k, v, tensors["viewmats"], K, **layout)
    torch.testing.assert_close(out, tensors[f"out_{kind}_f64"], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(out.square().sum() / 2, (q, k, v))
    for gradient, name in zip(gradients, "qkv", strict=True):
        torch.testing.assert_close(gradient, tensors[f"grad_{name}_{kind}_f64"], rtol=0, atol=1e-11)
    causal = prope_attention(q, k, v, tensors["viewmats"], K, is_causal=True, **layout)
    torch.testing.assert_close(causal, tensors[f"out_causal_{kind}_f64"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["K", "gta"])
@pytest.mark.parametrize("case", CASES)
def test_float32_matches_official_attention(case: str, kind: str) -> None:
    tensors, layout = load(case)
    q, k, v, V, K = (tensors[name].float() for name in ("q", "k", "v", "viewmats", "Ks"))
    out = prope_attention(q, k, v, V, K if kind == "K" else None, **layout)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), tensors[f"out_{kind}_f64"], rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which does not round the poses
        half = prope_attention(*(x.bfloat16() for x in (q, k, v)), V, K if kind == "K" else None, **layout)
    assert half.dtype == torch.bfloat16 and (half - out).abs().max() < 0.03 * out.abs().max()


def test_symmetries_of_the_published_layout() -> None:
    """The world cancels, permuted views permute the result, and skew is ignored; each with its control."""
    tensors, layout = load("wide_b2")
    q, k, v, V, K = (tensors[name] for name in ("q", "k", "v", "viewmats", "Ks"))
    out = prope_attention(q, k, v, V, K, **layout)
    torch.testing.assert_close(prope_attention(q, k, v, V @ V[:, :1], K, **layout), out, rtol=0, atol=1e-10)
    assert (prope_attention(q, k, v, V.flip(1), K, **layout) - out).abs().max() > 1e-3

    order = torch.arange(V.shape[1]).roll(1)
    canonical = V @ V[:, :1].inverse()

    def permuted(x: Tensor) -> Tensor:
        return x.unflatten(2, (len(order), -1))[:, :, order].flatten(2, 3)

    for causal in (False, True):  # a causal mask is the control
        out = prope_attention(q, k, v, canonical, K, is_causal=causal, **layout)
        given = *map(permuted, (q, k, v)), canonical[:, order], K[:, order]
        assert (
            torch.allclose(prope_attention(*given, is_causal=causal, **layout), permuted(out), rtol=0, atol=1e-10)
            != causal
        )
    skewed = K.clone()
    skewed[..., 0, 1] = 5.0
    assert torch.equal(prope_attention(q, k, v, V, K, **layout), prope_attention(q, k, v, V, skewed, **layout))


def test_wrong_shapes_raise() -> None:
    tensors, layout = load("onecam")
    q, V = tensors["q"], tensors["viewmats"]
    with pytest.raises(ValueError, match="1 cameras of 3 x 4 patches are 12 tokens, got 11"):
        prope_attention(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], V, None, **layout)
    with pytest.raises(ValueError, match="multiple of 8 channels, got 12"):
        prope_attention(q[..., :12], q[..., :12], q[..., :12], V, None, **layout)


# ---- matrices per camera, against their definition per token ---------------------------------------------------------


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
    """Return the products with given matrices in place of those of the poses."""
    poses = torch.eye(4).expand_as(next(iter(matrices.values())))
    return CameraMatrices(Cameras.trusted(poses, poses[..., :3, :3], index, runs), block, True, **matrices)


def by_definition(x: Tensor, matrices: Tensor, index: Tensor, block: ChannelBlock) -> Tensor:
    """Multiply each group of four channels, a row vector, by its camera's matrix."""
    out = x.clone()
    for sample, token in (index >= 0).nonzero().tolist():
        for group in torch.tensor(block.channels).view(-1, 4):
            out[sample, token, :, group] = x[sample, token, :, group] @ matrices[sample, index[sample, token]]
    return out


@pytest.mark.parametrize("short", [0, token_runs.SHORT])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", INDICES)
def test_matches_definition(name: str, block: ChannelBlock, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both code paths: one product per run of tokens, and short runs gathered."""
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
    """Data workers find the runs before the step finds a camera invalid; the step's index decides."""
    monkeypatch.setattr(token_runs, "SHORT", short)
    index, matrices = torch.tensor(INDICES["mixed"]), random(2, 3, 4, 4)
    runs, valid = camera_runs(index), index.where(index != 2, -1)
    x = random(2, 15, HEADS, HEAD_DIM, seed=1)
    found = encoded(valid, BLOCKS[0], runs, v=matrices).transform_values(x)
    torch.testing.assert_close(found, by_definition(x, matrices, valid, BLOCKS[0]), rtol=0, atol=1e-13)
    assert torch.equal(found[index == 2], x[index == 2])
    control = encoded(index, BLOCKS[0], runs, v=matrices).transform_values(x)
    assert not torch.equal(control[index == 2], x[index == 2])


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


def test_what_an_encoding_needs_of_the_cameras_is_named() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    for encoding, cameras, said in (
        (PRoPE(), Cameras(poses, K), "no index"),
        (RayEncoding(), Cameras(poses, K, index), "patch_centers"),
        (PointRoPE(), Cameras(poses, K, index), "points"),
        (PoseAxis(), Cameras(poses, K, index), "time"),
    ):
        with pytest.raises(ValueError, match=said):
            encoding.encode(cameras, HEAD)


# ---- rays ------------------------------------------------------------------------------------------------------------


def patch_centers(index: Tensor) -> Tensor:
    """Return the centers of 2 x 2 tokens per view; text comes first and last."""
    text = int((index[0] < 0).sum()) // 2
    patch = (torch.arange(index.shape[1]) - text) % 4
    return (torch.stack((patch % 2, patch // 2), -1).double() - 0.5) / 2 * torch.ones(len(index), 1, 1)


def test_ray_frame_looks_along_its_ray() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    centers = patch_centers(index)
    rays = ray_cameras(Cameras(poses, K, index).with_tokens(centers))
    own = rays.index
    assert own is not None and torch.equal(own >= 0, index >= 0)
    for sample, token in ((0, 1), (0, 6), (1, 12)):
        V = poses[sample, index[sample, token]]
        M = rays.world_to_camera[sample, own[sample, token]]
        torch.testing.assert_close(M[:3, :3] @ M[:3, :3].mT, torch.eye(3, dtype=M.dtype), rtol=0, atol=1e-14)
        assert torch.linalg.det(M[:3, :3]) > 0
        torch.testing.assert_close(
            invert_se3(M)[:3, 3], invert_se3(V)[:3, 3], rtol=0, atol=1e-13
        )  # the same camera center
        direction = ray_directions(K[sample, 0], centers[sample, token])
        world = invert_se3(V)[:3, :3] @ direction + invert_se3(V)[:3, 3]
        on_ray = M @ torch.cat((world, torch.ones(1, dtype=M.dtype)))
        torch.testing.assert_close(on_ray[:2], torch.zeros(2, dtype=M.dtype), rtol=0, atol=1e-13)
        assert abs(float(on_ray[2]) - float(direction.norm())) < 1e-13
        down = V[1, :3]  # the camera's y axis in the world: x of the ray frame is orthogonal to it
        assert abs(float(M[0, :3] @ down)) < 1e-13 and float(M[1, :3] @ down) > 0


def test_relative_rays_match_definition() -> None:
    """The logit is q^T P_i P_j^-1 k with the world-to-ray transform P."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(0)
    cameras = Cameras(poses, K, index).with_tokens(patch_centers(index))
    encoded = RayEncoding(ChannelRange(0, 1)).encode(cameras, HEAD, dtype=torch.float64)
    q, k = encoded.after_rope(qkv[0], qkv[0])
    M = ray_cameras(cameras).world_to_camera
    for i, j in ((0, 1), (2, 9), (11, 4)):
        relative = M[1, i] @ torch.linalg.inv(M[1, j])
        expected = sum(
            a @ relative @ b for a, b in zip(qkv[0][1, i, 2].view(-1, 4), qkv[0][1, j, 2].view(-1, 4), strict=True)
        )
        torch.testing.assert_close(q[1, i, 2] @ k[1, j, 2], expected, rtol=0, atol=1e-11)
