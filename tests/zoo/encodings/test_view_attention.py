"""The views' own attention beside the 2D tokens: the definition, token by token, and what holds exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.encodings.attention import random_cameras
from zoo.cameras import Cameras
from zoo.encodings import GTA, CaPE, MatrixEncoding, PRoPE, RayEncoding, ViewAttention
from zoo.encodings.matrices import Matrices
from zoo.errors import InputError

VIEWS, ROWS, COLUMNS, WIDTH, HEAD_DIM = 4, 2, 3, 32, 16
GRID = (VIEWS, ROWS, COLUMNS)
EXACT, MOVES = 1e-10, 1e-3
RULES: dict[str, dict[str, Any]] = {  # a class, and what it is built with beside its reference
    "PRoPE": {"kind": PRoPE},
    "PRoPE, qk": {"kind": PRoPE, "apply_to": "qk"},
    "PRoPE, vo": {"kind": PRoPE, "apply_to": "vo"},
    "GTA": {"kind": GTA, "translation_scale": 0.5},
    "GTA, rotation": {"kind": GTA, "pose_component": "rotation"},
    "CaPE": {"kind": CaPE},
}


class WithoutOutputs(PRoPE):
    """A control: values are turned, and outputs are not turned back."""

    def matrices(self, cameras: Cameras) -> Matrices:
        return super().matrices(cameras)._replace(o=None)


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


def scene(**more: Any) -> Cameras:
    poses, K = random_cameras(1, VIEWS)
    K = K * torch.linspace(0.8, 1.2, VIEWS, dtype=K.dtype)[:, None, None]  # a camera that zooms
    K[..., 2, 2] = 1
    return Cameras(poses, K, **more)


@torch.no_grad()
def run(module: ViewAttention, cameras: Cameras, tokens: Tensor | None = None, *present: Tensor) -> Tensor:
    return module(random_tokens() if tokens is None else tokens, cameras, GRID, *(each[None] for each in present))


# ---- the definition ---------------------------------------------------------------------------------------


def of_each_token(name: str, cameras: Cameras) -> dict[str, Tensor]:
    """What the rule does to columns of four channels of q, k, v and o, with general inverses: (N, 4, 4) each."""
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


def turned(x: Tensor, matrices: Tensor, sign: int) -> Tensor:
    """One head (N, D): half of it by matrices, a quarter by RoPE over columns, a quarter over rows."""
    half, pairs = HEAD_DIM // 2, HEAD_DIM // 8
    out = x.clone()
    out[:, :half] = torch.einsum("nij,ngj->ngi", matrices, x[:, :half].view(len(x), -1, 4)).flatten(1)
    for n in range(len(x)):
        for axis, place in enumerate((n % COLUMNS, n // COLUMNS % ROWS)):
            for pair in range(pairs):
                angle = torch.tensor(sign * place * 100.0 ** (-pair / pairs), dtype=x.dtype)
                a, b = half + axis * half // 2 + pair, half + axis * half // 2 + pairs + pair
                out[n, a] = x[n, a] * angle.cos() + x[n, b] * angle.sin()
                out[n, b] = x[n, b] * angle.cos() - x[n, a] * angle.sin()
    return out


@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_equals_the_definition(name: str) -> None:
    module, cameras, x = attention(rule(name)), scene(), random_tokens()
    matrices = of_each_token(name, cameras)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
    q, k, v = (normed @ weight.T for weight in module.qkv.weight.chunk(3))
    heads = []
    for channels in torch.arange(WIDTH).split(HEAD_DIM):
        of_head = {"q": q[:, channels], "k": k[:, channels], "v": v[:, channels]}
        a, b, c = (turned(part, matrices[term], 1) for term, part in of_head.items())
        weights = (torch.einsum("nd,md->nm", a, b) / HEAD_DIM**0.5).softmax(-1)
        heads.append(turned(torch.einsum("nm,md->nd", weights, c), matrices["o"], -1))
    expected = x + torch.cat(heads, -1) @ module.o.weight.T
    # the norm computes in float32, as Qwen2.5-VL's
    torch.testing.assert_close(run(module, cameras), expected, rtol=0, atol=2e-6)


# ---- stock at the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_without_effect_and_can_learn(dtype: torch.dtype) -> None:
    module = attention(GTA(learn_scale=True), fresh=True).to(dtype)
    tokens = random_tokens().to(dtype)
    assert torch.equal(run(module, scene(), tokens), tokens)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(2):  # of the output projection first, since it is zero; then of what is behind it
        optimizer.zero_grad()
        module(tokens, scene(), GRID).float().square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert (run(module, scene(), tokens) - tokens).abs().max() > MOVES


# ---- what holds exactly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "first", "medoid"])
@pytest.mark.parametrize("name", RULES)
def test_views_do_not_know_the_world(name: str, reference: Any) -> None:
    module, cameras = attention(rule(name, reference=reference)), scene()
    world = random_cameras(1, 1, seed=5)[0]
    moved = cameras.with_poses(cameras.world_to_camera @ world)
    torch.testing.assert_close(run(module, moved), run(module, cameras), rtol=0, atol=EXACT)
    other = cameras.with_poses(random_cameras(1, VIEWS, seed=9)[0])
    assert (run(module, other) - run(module, cameras)).abs().max() > MOVES


def test_values_without_outputs_see_the_world() -> None:
    """The control."""
    module, cameras = attention(WithoutOutputs(reference=None)), scene()
    moved = cameras.with_poses(cameras.world_to_camera @ random_cameras(1, 1, seed=5)[0])
    assert (run(module, moved) - run(module, cameras)).abs().max() > MOVES


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x.unflatten(0, (VIEWS, -1))[order].flatten(0, 1)


@pytest.mark.parametrize("name", [*RULES, "translation"])
def test_a_permutation_of_the_views_permutes_the_result(name: str) -> None:
    """With the reference fixed. A translation alone is no group action: there the reference view shows."""
    order, view = torch.tensor([2, 0, 3, 1]), 3
    wanted: dict[str, Any] = {"reference": "saddle_balanced"}
    encoding = PRoPE(pose_component="translation", **wanted) if name == "translation" else rule(name, **wanted)
    module, cameras = attention(encoding), scene(reference=torch.tensor([view]))
    mixed = Cameras(
        cameras.world_to_camera[:, order], cameras.K_normalized[:, order], reference=(order == view).nonzero()[0]
    )
    expected, found = permuted(run(module, cameras), order), run(module, mixed, permuted(random_tokens(), order))
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert (found - run(module, cameras)).abs().max() > MOVES
    elsewhere = Cameras(mixed.world_to_camera, mixed.K_normalized, reference=torch.tensor([0]))
    apart = (run(module, elsewhere, permuted(random_tokens(), order)) - expected).abs().max()
    assert apart > MOVES if name == "translation" else apart < EXACT


@pytest.mark.parametrize("scale", ["none", "mean", "max", "rms", "median_depth"])
def test_a_scale_makes_the_unit_no_matter(scale: Any) -> None:
    depth = torch.tensor([2.0], dtype=torch.float64)
    module, meters = attention(PRoPE(scale=scale)), scene(median_depth=depth)
    poses = meters.world_to_camera.clone()
    poses[..., :3, 3] *= 3.28
    feet = Cameras(poses, meters.K_normalized, median_depth=3.28 * depth)
    moved = (run(module, feet) - run(module, meters)).abs().max()
    assert moved > MOVES if scale == "none" else moved < EXACT


# ---- views without a camera -------------------------------------------------------------------------------


def test_steps_without_a_camera_keep_their_bits_and_are_not_looked_at() -> None:
    module, cameras, tokens = attention(), scene(), random_tokens()
    present = torch.tensor([False, True, False, True])
    out = run(module, cameras, tokens, present).unflatten(0, (VIEWS, -1))
    before = tokens.unflatten(0, (VIEWS, -1))
    assert torch.equal(out[~present], before[~present])
    assert ((out - before)[present].abs().amax(-1) > MOVES).all()
    alone = module(tokens.unflatten(0, (VIEWS, -1))[present].flatten(0, 1), of_steps(cameras, present), (2, *GRID[1:]))
    torch.testing.assert_close(out[present].flatten(0, 1), alone, rtol=0, atol=EXACT)
    assert torch.equal(run(module, cameras, tokens, torch.zeros(VIEWS, dtype=torch.bool)), tokens)
    assert torch.equal(run(module, cameras, tokens, torch.ones(VIEWS, dtype=torch.bool)), run(module, cameras, tokens))


def of_steps(cameras: Cameras, chosen: Tensor) -> Cameras:
    return Cameras(cameras.world_to_camera[:, chosen], cameras.K_normalized[:, chosen])


def test_static_and_single_views_are_finite() -> None:
    module, cameras = attention(PRoPE(scale="rms")), scene()
    static = cameras.with_poses(cameras.world_to_camera[:, :1].expand(-1, VIEWS, -1, -1))
    assert run(module, static).isfinite().all()
    single = module(random_tokens()[: ROWS * COLUMNS], of_steps(cameras, torch.arange(VIEWS) == 2), (1, *GRID[1:]))
    assert single.isfinite().all()


# ---- precision --------------------------------------------------------------------------------------------


def test_half_precision_tokens_get_exact_cameras() -> None:
    """100 m from the origin, in bfloat16 and under autocast: the poses are not rounded."""
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
    rounded = cameras.with_poses((cameras.world_to_camera @ far).bfloat16().double())  # the control
    assert (run(module, rounded, tokens.float()) - exact).abs().max() > 0.1 * size


# ---- what doesn't fit -------------------------------------------------------------------------------------


def test_errors_name_the_trouble() -> None:
    for width, head_dim in ((32, 12), (32, 24), (36, 16)):
        with pytest.raises(InputError, match=f"has {width} channels: heads of {head_dim} don't fit"):
            ViewAttention(width, head_dim)
    with pytest.raises(InputError, match="RayEncoding has a matrix a token"):
        ViewAttention(WIDTH, HEAD_DIM, RayEncoding())
    with pytest.raises(ValueError, match="24 tokens with cameras"):
        attention()(random_tokens(), scene(), (VIEWS, ROWS, COLUMNS + 1))
    with pytest.raises(ValueError, match="saddle_balanced goes by the tokens"):
        run(attention(PRoPE(reference="saddle_balanced")), scene())
