"""View mixers on 2D tokens against their definitions per token; their symmetries are in test_symmetries.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from zoo import GTA, Cameras, CaPE, PoseEmbedding, PRoPE, RayEmbedding, ViewAttention
from zoo.cameras.rays import ray_directions
from zoo.encodings import MatrixEncoding
from zoo.encodings.testing import EXACT, random_cameras

VIEWS, ROWS, COLUMNS, WIDTH, HEAD_DIM = 4, 2, 3, 32, 16
GRID = (VIEWS, ROWS, COLUMNS)
MOVES = 1e-3
RULES: dict[str, Callable[[], MatrixEncoding]] = {
    "PRoPE": PRoPE,
    "PRoPE, qk": lambda: PRoPE(apply_to="qk"),
    "PRoPE, vo": lambda: PRoPE(apply_to="vo"),
    "GTA": lambda: GTA(translation_scale=0.5),
    "GTA, rotation": lambda: GTA(pose_component="rotation"),
    "CaPE": CaPE,
}


def attention(encoding: MatrixEncoding | None = None) -> ViewAttention:
    torch.manual_seed(0)
    module = ViewAttention(WIDTH, HEAD_DIM, encoding).double()
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


def token_matrices(name: str, cameras: Cameras) -> dict[str, Tensor]:
    """Compute each token's matrices (N, 4, 4) for column vectors of q, k, v and o, with general inverses."""
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
    """Transform one head (N, D): half by matrices, a quarter by RoPE over columns, a quarter over rows."""
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
    module, cameras, x = attention(RULES[name]()), scene(), random_tokens()
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


def test_bfloat16_tokens_get_float32_cameras() -> None:
    """The poses are 100 m from the origin, and the tokens bfloat16 under autocast."""
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


# ---- embedded rays ---------------------------------------------------------------------------------------------------


def embedding(rays: str, reference: str | None = "first") -> RayEmbedding:
    torch.manual_seed(0)
    module = RayEmbedding(16, rays, reference).double()  # type: ignore[arg-type]
    last = module.embed[-1]
    torch.nn.init.normal_(last.weight)  # type: ignore[union-attr, arg-type]
    return module


@pytest.mark.parametrize("rays", ["plucker", "directions"])
def test_embedding_matches_definition(rays: str) -> None:
    poses, K = random_cameras(1, views=3)
    module, tokens = embedding(rays, None), torch.zeros(3 * 2 * 4, 16, dtype=torch.float64)
    out = module(tokens, Cameras(poses, K), torch.tensor([3, 2, 4]))
    for step, row, column in ((0, 0, 0), (1, 1, 2), (2, 0, 3)):
        center = torch.tensor([(column + 0.5) / 4, (row + 0.5) / 2], dtype=torch.float64) - 0.5
        direction = ray_directions(K[0, step], center)
        if rays == "plucker":
            to_world = torch.linalg.inv(poses[0, step])
            unit = to_world[:3, :3] @ direction / direction.norm()
            direction = torch.cat((unit, torch.linalg.cross(to_world[:3, 3], unit)))
        expected = module.embed(direction)
        torch.testing.assert_close(out[(step * 2 + row) * 4 + column], expected, rtol=0, atol=1e-12)


# ---- embedded poses --------------------------------------------------------------------------------------------------


def pose_embedding(**options: Any) -> PoseEmbedding:
    torch.manual_seed(0)
    module = PoseEmbedding(16, **options).double()
    torch.nn.init.normal_(module.embed[-1].weight)  # type: ignore[arg-type]
    return module


def pose_tokens(module: PoseEmbedding, cameras: Cameras, *present: Tensor) -> Tensor:
    """The sum of zero tokens and the embedding, (views, tokens of a view, width)."""
    tokens = torch.zeros(VIEWS * ROWS * COLUMNS, 16, dtype=torch.float64)
    return module(tokens, cameras, GRID, *(each[None] for each in present)).unflatten(0, (VIEWS, -1))


@pytest.mark.parametrize("intrinsics", [True, False])
def test_embedded_poses_match_their_definition(intrinsics: bool) -> None:
    module, cameras = pose_embedding(intrinsics=intrinsics), scene()
    out = pose_tokens(module, cameras)
    first = cameras.world_to_camera[0, 0]
    for view in range(VIEWS):
        to_first = first @ torch.linalg.inv(cameras.world_to_camera[0, view])
        twist = torch.from_numpy(np.asarray(Rotation.from_matrix(to_first[:3, :3].numpy()).as_rotvec()))
        K = cameras.K_normalized[0, view]
        numbers = [twist, to_first[:3, 3]]
        if intrinsics:
            numbers += [torch.stack((K[0, 0].log(), K[1, 1].log(), K[0, 2], K[1, 2]))]
        expected = module.embed(torch.cat(numbers))
        torch.testing.assert_close(out[view], expected.expand_as(out[view]), rtol=0, atol=EXACT)
    assert (out[0] - out[1]).abs().max() > MOVES


def test_embedded_poses_are_relative_to_the_first_view_with_a_camera() -> None:
    module, cameras, present = pose_embedding(), scene(), torch.tensor([False, True, False, True])
    out = pose_tokens(module, cameras, present)
    assert not out[~present].any()
    alone = Cameras(cameras.world_to_camera[:, present], cameras.K_normalized[:, present])
    tokens = torch.zeros(2 * ROWS * COLUMNS, 16, dtype=torch.float64)
    expected = module(tokens, alone, (2, *GRID[1:])).unflatten(0, (2, -1))
    torch.testing.assert_close(out[present], expected, rtol=0, atol=EXACT)
    assert (out[3] - pose_tokens(module, cameras)[3]).abs().max() > MOVES  # the control: another reference view
