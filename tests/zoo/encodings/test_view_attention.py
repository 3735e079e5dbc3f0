"""ViewAttention against its definition per token, and its exact symmetries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings import GTA, CaPE, MatrixEncoding, PRoPE, RayEncoding, ViewAttention
from zoo.encodings.placements import Matrices
from zoo.encodings.testing import random_cameras
from zoo.errors import InputError

VIEWS, ROWS, COLUMNS, WIDTH, HEAD_DIM = 4, 2, 3, 32, 16
GRID = (VIEWS, ROWS, COLUMNS)
EXACT, MOVES = 1e-10, 1e-3
RULES: dict[str, dict[str, Any]] = {  # a class and its arguments
    "PRoPE": {"kind": PRoPE},
    "PRoPE, qk": {"kind": PRoPE, "apply_to": "qk"},
    "PRoPE, vo": {"kind": PRoPE, "apply_to": "vo"},
    "GTA": {"kind": GTA, "translation_scale": 0.5},
    "GTA, rotation": {"kind": GTA, "pose_component": "rotation"},
    "CaPE": {"kind": CaPE},
}


class WithoutOutputs(PRoPE):
    """A control: values are transformed, outputs are not."""

    def matrices(self, cameras: Cameras) -> Matrices:
        return {term: m for term, m in super().matrices(cameras).items() if term != "o"}


def rule(name: str, **world: Any) -> MatrixEncoding:
    arguments = dict(RULES[name])
    return arguments.pop("kind")(**arguments, **world)


def attention(encoding: MatrixEncoding | None = None, fresh: bool = False) -> ViewAttention:
    torch.manual_seed(0)
    module = ViewAttention(WIDTH, HEAD_DIM, encoding).double()
    if not fresh:
        torch.nn.init.normal_(module.o.weight, std=0.3)
        torch.nn.init.normal_(module.norm.weight, mean=1.0, std=0.2)
    return module


def random_tokens(seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VIEWS * ROWS * COLUMNS, WIDTH, generator=generator, dtype=torch.float64)


def scene() -> Cameras:
    poses, K = random_cameras(1, VIEWS)
    K = K * torch.linspace(0.8, 1.2, VIEWS, dtype=K.dtype)[:, None, None]  # a zooming camera
    K[..., 2, 2] = 1
    return Cameras(poses, K)


@torch.no_grad()
def run(module: ViewAttention, cameras: Cameras, tokens: Tensor | None = None, *present: Tensor) -> Tensor:
    return module(random_tokens() if tokens is None else tokens, cameras, GRID, *(each[None] for each in present))


# ---- definition -------------------------------------------------------------------------------------------


def token_matrices(name: str, cameras: Cameras) -> dict[str, Tensor]:
    """Computes the matrix of each token for column vectors of q, k, v and o, with general inverses: (N, 4, 4) each."""
    P = cameras.world_to_camera[0] @ torch.linalg.inv(cameras.world_to_camera[0, 0])
    if name == "GTA":
        P[:, :3, 3] *= 0.5
    if name == "GTA, rotation":
        P[:, :3, 3] = 0
    if name.startswith("PRoPE"):
        lift = torch.eye(4, dtype=P.dtype).repeat(VIEWS, 1, 1)
        lift[:, :3, :3] = cameras.K_normalized[0]
        P = lift @ P
    inverse, eye = torch.linalg.inv(P), torch.eye(4, dtype=P.dtype).expand_as(P)
    apply_to = {"q": P.mT, "k": inverse, "v": inverse, "o": P}
    if name == "CaPE":
        apply_to = {"q": inverse, "k": P.mT, "v": eye, "o": eye}
    if name in ("PRoPE, qk", "PRoPE, vo"):
        apply_to = {term: matrix if term in name[-2:] else eye for term, matrix in apply_to.items()}
    return {term: matrix.repeat_interleave(ROWS * COLUMNS, 0) for term, matrix in apply_to.items()}


def transformed(x: Tensor, matrices: Tensor, sign: int) -> Tensor:
    """Transforms one head (N, D): half by matrices, a quarter by RoPE over columns, a quarter over rows."""
    half, pairs = HEAD_DIM // 2, HEAD_DIM // 8
    out = x.clone()
    out[:, :half] = torch.einsum("nij,ngj->ngi", matrices, x[:, :half].view(len(x), -1, 4)).flatten(1)
    for n in range(len(x)):
        for axis, position in enumerate((n % COLUMNS, n // COLUMNS % ROWS)):
            for pair in range(pairs):
                angle = torch.tensor(sign * position * 100.0 ** (-pair / pairs), dtype=x.dtype)
                a, b = half + axis * half // 2 + pair, half + axis * half // 2 + pairs + pair
                out[n, a] = x[n, a] * angle.cos() + x[n, b] * angle.sin()
                out[n, b] = x[n, b] * angle.cos() - x[n, a] * angle.sin()
    return out


@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_matches_definition(name: str) -> None:
    module, cameras, x = attention(rule(name)), scene(), random_tokens()
    matrices = token_matrices(name, cameras)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
    q, k, v = (normed @ weight.T for weight in module.qkv.weight.chunk(3))
    heads = []
    for channels in torch.arange(WIDTH).split(HEAD_DIM):
        of_head = {"q": q[:, channels], "k": k[:, channels], "v": v[:, channels]}
        a, b, c = (transformed(part, matrices[term], 1) for term, part in of_head.items())
        weights = (torch.einsum("nd,md->nm", a, b) / HEAD_DIM**0.5).softmax(-1)
        heads.append(transformed(torch.einsum("nm,md->nd", weights, c), matrices["o"], -1))
    expected = x + torch.cat(heads, -1) @ module.o.weight.T
    torch.testing.assert_close(run(module, cameras), expected, rtol=0, atol=1e-10)


# ---- initialization ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_at_zero_and_trains(dtype: torch.dtype) -> None:
    module = attention(GTA(learn_scale=True), fresh=True).to(dtype)
    tokens = random_tokens().to(dtype)
    assert torch.equal(run(module, scene(), tokens), tokens)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(2):  # in the first step only the output projection gets a gradient
        optimizer.zero_grad()
        module(tokens, scene(), GRID).float().square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert (run(module, scene(), tokens) - tokens).abs().max() > MOVES


# ---- exact symmetries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "first", "medoid"])
@pytest.mark.parametrize("name", RULES)
def test_change_of_world_cancels(name: str, reference: Any) -> None:
    module, cameras = attention(rule(name, reference=reference)), scene()
    world = random_cameras(1, 1, seed=5)[0]
    moved = cameras.with_poses(cameras.world_to_camera @ world)
    torch.testing.assert_close(run(module, moved), run(module, cameras), rtol=0, atol=EXACT)
    other = cameras.with_poses(random_cameras(1, VIEWS, seed=9)[0])
    assert (run(module, other) - run(module, cameras)).abs().max() > MOVES


def test_values_without_outputs_depend_on_the_world() -> None:
    """A control."""
    module, cameras = attention(WithoutOutputs(reference=None)), scene()
    moved = cameras.with_poses(cameras.world_to_camera @ random_cameras(1, 1, seed=5)[0])
    assert (run(module, moved) - run(module, cameras)).abs().max() > MOVES


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x.unflatten(0, (VIEWS, -1))[order].flatten(0, 1)


@pytest.mark.parametrize("name", [*RULES, "translation"])
def test_permuted_views_permute_the_result(name: str) -> None:
    """With a fixed reference view, on which only translations alone depend."""
    order, view = torch.tensor([2, 0, 3, 1]), 3
    wanted: dict[str, Any] = {"reference": "saddle_balanced"}
    encoding = PRoPE(pose_component="translation", **wanted) if name == "translation" else rule(name, **wanted)
    module, cameras = attention(encoding), scene().with_reference(torch.tensor([view]))
    mixed = select_views(cameras, order).with_reference((order == view).nonzero()[0])
    expected, found = permuted(run(module, cameras), order), run(module, mixed, permuted(random_tokens(), order))
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert (found - run(module, cameras)).abs().max() > MOVES
    elsewhere = mixed.with_reference(torch.tensor([0]))
    difference = (run(module, elsewhere, permuted(random_tokens(), order)) - expected).abs().max()
    assert difference > MOVES if name == "translation" else difference < EXACT


@pytest.mark.parametrize("scale", ["none", "mean", "max", "rms", "median_depth"])
def test_every_scale_makes_the_unit_cancel(scale: Any) -> None:
    depth = torch.tensor([2.0], dtype=torch.float64)
    module, meters = attention(PRoPE(scale=scale)), scene().with_median_depth(depth)
    poses = meters.world_to_camera.clone()
    poses[..., :3, 3] *= 3.28
    feet = meters.with_poses(poses).with_median_depth(3.28 * depth)
    moved = (run(module, feet) - run(module, meters)).abs().max()
    assert moved > MOVES if scale == "none" else moved < EXACT


# ---- views without a camera -------------------------------------------------------------------------------


def test_views_without_camera_change_no_bit_and_are_not_attended_to() -> None:
    module, cameras, tokens = attention(), scene(), random_tokens()
    present = torch.tensor([False, True, False, True])
    out = run(module, cameras, tokens, present).unflatten(0, (VIEWS, -1))
    before = tokens.unflatten(0, (VIEWS, -1))
    assert torch.equal(out[~present], before[~present])
    assert ((out - before)[present].abs().amax(-1) > MOVES).all()
    alone = module(
        tokens.unflatten(0, (VIEWS, -1))[present].flatten(0, 1), select_views(cameras, present), (2, *GRID[1:])
    )
    torch.testing.assert_close(out[present].flatten(0, 1), alone, rtol=0, atol=EXACT)
    assert torch.equal(run(module, cameras, tokens, torch.zeros(VIEWS, dtype=torch.bool)), tokens)
    assert torch.equal(run(module, cameras, tokens, torch.ones(VIEWS, dtype=torch.bool)), run(module, cameras, tokens))


def select_views(cameras: Cameras, chosen: Tensor) -> Cameras:
    return Cameras(cameras.world_to_camera[:, chosen], cameras.K_normalized[:, chosen])


def test_static_and_single_views_are_finite() -> None:
    module, cameras = attention(PRoPE(scale="rms")), scene()
    static = cameras.with_poses(cameras.world_to_camera[:, :1].expand(-1, VIEWS, -1, -1))
    assert run(module, static).isfinite().all()
    single = module(random_tokens()[: ROWS * COLUMNS], select_views(cameras, torch.arange(VIEWS) == 2), (1, *GRID[1:]))
    assert single.isfinite().all()


# ---- precision --------------------------------------------------------------------------------------------


def test_bfloat16_tokens_get_float32_cameras() -> None:
    """Poses 100 m from the origin, with bfloat16 tokens under autocast."""
    module, cameras = attention().float(), scene()
    far = torch.eye(4, dtype=torch.float64)
    far[:3, 3] = torch.tensor([100.0, -70.0, 40.0])
    tokens = random_tokens().bfloat16()
    exact = run(module, cameras, tokens.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(module, cameras.with_poses(cameras.world_to_camera @ far), tokens)
    assert half.dtype == torch.bfloat16
    size = (exact - tokens.float()).abs().max()
    assert (half.float() - exact).abs().max() < 0.03 * size
    rounded = cameras.with_poses((cameras.world_to_camera @ far).bfloat16().double())  # control
    assert (run(module, rounded, tokens.float()) - exact).abs().max() > 0.1 * size


# ---- errors -----------------------------------------------------------------------------------------------


def test_wrong_arguments_raise() -> None:
    for width, head_dim in ((32, 12), (32, 24), (36, 16)):
        with pytest.raises(InputError, match=f"head_dim={head_dim} does not fit ViewAttention with {width} channels"):
            ViewAttention(width, head_dim)
    with pytest.raises(InputError, match="RayEncoding has one per token"):
        ViewAttention(WIDTH, HEAD_DIM, RayEncoding())
    with pytest.raises(ValueError, match="saddle_balanced is computed from 2D tokens"):
        run(attention(PRoPE(reference="saddle_balanced")), scene())
