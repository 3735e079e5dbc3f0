"""PRoPE at the level of attention, in float64: what is exact, and the controls that must fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from zoo.cameras import Cameras
from zoo.encodings import ChannelPlacement, ChannelRange, EncodedCameras, PRoPE, TemporalSection, projection_matrices
from zoo.poses import invert_se3
from zoo.time_index import ConstantIndex

HEAD_DIM, MROPE_SECTION, HEADS, KV_HEADS = 32, [4, 6, 6], 4, 2
VIEWS, TOKENS = 3, 4  # tokens a view
EXACT, BROKEN = 1e-10, 1e-3


class AllChannelsBeforeRoPE(ChannelPlacement):
    """A control: the camera inside RoPE, where the time differs between views."""

    before_rope = True
    block = ChannelRange(0.0, 1.0).block


def random_cameras(batch: int, views: int = VIEWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(batch, views, 3, 4, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(random[..., :3])
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    poses[..., :3, :3] = Q * torch.linalg.det(Q)[..., None, None]
    poses[..., :3, 3] = random[..., 3]
    K = torch.eye(3, dtype=torch.float64).repeat(batch, views, 1, 1)
    K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2] = 0.8, 1.1, 0.05, -0.02
    return poses, K


def random_sequence(text: int, seed: int = 1) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v (B, L, heads, D); the camera of each token, text first and last; position ids (3, B, L)."""
    generator = torch.Generator().manual_seed(seed)
    length = VIEWS * TOKENS + 2 * text
    qkv = [
        torch.randn(2, length, heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    views = torch.arange(VIEWS).repeat_interleave(TOKENS)
    index = F.pad(views, (text, text), value=-1).expand(2, -1)
    place = torch.arange(TOKENS).repeat(VIEWS)
    grid = torch.stack((2 * views, place // 2, place % 2)) + text
    after = int(grid.max()) + 1 + torch.arange(text)
    ids = torch.cat((torch.arange(text).expand(3, -1), grid, after.expand(3, -1)), 1)
    return qkv, index, ids[:, None].expand(-1, 2, -1)


def mrope(ids: Tensor, section: Sequence[int]) -> tuple[Tensor, Tensor]:
    frequency = 1e4 ** -(torch.arange(HEAD_DIM // 2, dtype=torch.float64) / (HEAD_DIM // 2))
    row = torch.arange(3).repeat_interleave(torch.tensor(section))
    angle = ids[row].permute(1, 2, 0) * frequency
    return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()


def attend(encoded: EncodedCameras, qkv: list[Tensor], ids: Tensor) -> Tensor:
    """What `CameraAttention` does between its projections."""
    q, k, v = qkv
    q, k = encoded.before_rope(q, k)
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *mrope(ids, MROPE_SECTION))
    q, k = encoded.after_rope(q.transpose(1, 2), k.transpose(1, 2))
    heads = [x.transpose(1, 2) for x in (q, k, encoded.transform_values(v))]
    output = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return encoded.transform_outputs(output.transpose(1, 2))


def encode(encoding: PRoPE, poses: Tensor, K: Tensor, index: Tensor) -> EncodedCameras:
    cameras = Cameras(poses, K, index)
    return encoding.encode(cameras, head_dim=HEAD_DIM, mrope_section=MROPE_SECTION, dtype=torch.float64)


def constant_time(ids: Tensor, index: Tensor) -> Tensor:
    ids = ids.clone()
    ids[0, index >= 0] = ids[0, index >= 0].min()
    return ids


def change_of_world(
    placement: ChannelPlacement, reference: str | None, *, text: int, static: bool, drop: str = ""
) -> float:
    """How far V -> V G moves the outputs."""
    poses, K = random_cameras(2)
    world = random_cameras(2, 1, seed=5)[0]
    qkv, index, ids = random_sequence(text)
    ids = constant_time(ids, index) if static else ids
    outputs = []
    for V in (poses, poses @ world):
        encoded = encode(PRoPE(placement, reference=reference), V, K, index)
        if drop:
            del encoded.of_tokens[drop]
        outputs.append(attend(encoded, qkv, ids))
    return float((outputs[0] - outputs[1]).abs().max())


def shift_of_positions(placement: ChannelPlacement, *, static: bool) -> float:
    """How far moving all positions by 7 moves the outputs."""
    poses, K = random_cameras(2)
    qkv, index, ids = random_sequence(0)
    ids = constant_time(ids, index) if static else ids
    encoded = encode(PRoPE(placement), poses, K, index)
    return float((attend(encoded, qkv, ids) - attend(encoded, qkv, ids + 7)).abs().max())


# ---- what holds exactly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "first"])
@pytest.mark.parametrize(
    ("placement", "static"), [(ChannelRange(), False), (ChannelRange(0, 1), False), (TemporalSection(), True)]
)
def test_views_do_not_know_the_world(placement: ChannelPlacement, static: bool, reference: str | None) -> None:
    assert change_of_world(placement, reference, text=0, static=static) < EXACT


@pytest.mark.parametrize(("placement", "static"), [(ChannelRange(), False), (TemporalSection(), True)])
def test_text_needs_canonical_cameras(placement: ChannelPlacement, static: bool) -> None:
    assert change_of_world(placement, "first", text=3, static=static) < EXACT
    assert change_of_world(placement, None, text=3, static=static) > BROKEN


def test_the_t_section_keeps_the_shift_of_positions_too() -> None:
    assert shift_of_positions(TemporalSection(), static=True) < EXACT


# ---- controls ---------------------------------------------------------------------------------------------


def test_values_without_outputs_see_the_world() -> None:
    assert change_of_world(ChannelRange(), None, text=0, static=False, drop="o") > BROKEN
    assert change_of_world(ChannelRange(), None, text=0, static=False, drop="k") > BROKEN


def test_camera_inside_rope_sees_the_world_but_not_the_shift() -> None:
    assert change_of_world(AllChannelsBeforeRoPE(), None, text=0, static=False) > BROKEN
    assert shift_of_positions(AllChannelsBeforeRoPE(), static=False) < EXACT


def test_camera_outside_rope_sees_the_shift() -> None:
    assert shift_of_positions(ChannelRange(), static=False) > BROKEN
    assert shift_of_positions(ChannelRange(0, 1), static=False) > BROKEN


def test_the_t_section_needs_constant_time() -> None:
    assert change_of_world(TemporalSection(), None, text=0, static=False) > BROKEN
    assert PRoPE(TemporalSection()).requires_constant_time and not PRoPE(ChannelRange()).requires_constant_time
    assert ConstantIndex.constant


# ---- identities, precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", [ChannelRange(), TemporalSection()])
def test_identity_cameras_keep_every_bit(placement: ChannelPlacement, dtype: torch.dtype) -> None:
    qkv, index, _ = random_sequence(2)
    q, k, v = (x.to(dtype) for x in qkv)
    eye = torch.eye(4).expand(2, VIEWS, 4, 4)
    encoded = PRoPE(placement).encode(
        Cameras(eye, eye[..., :3, :3], index), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION
    )
    results = (*encoded.before_rope(q, k), *encoded.after_rope(q, k), encoded.transform_values(v), encoded.transform_outputs(q))
    for result, x in zip(results, (q, k, q, k, v, q), strict=True):
        assert result.dtype == dtype and torch.equal(result, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_without_a_camera_keep_every_bit(dtype: torch.dtype) -> None:
    qkv, index, _ = random_sequence(2)
    q = qkv[0].to(dtype)
    poses, K = random_cameras(2)
    encoded = PRoPE().encode(Cameras(poses, K, index), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
    turned = encoded.after_rope(q, q)[0]
    assert torch.equal(turned[index < 0], q[index < 0])
    assert not torch.isclose(turned[index >= 0], q[index >= 0]).all()
    assert torch.equal(turned[..., HEAD_DIM // 2 :], q[..., HEAD_DIM // 2 :])


def test_half_precision_rounds_the_vectors_only() -> None:
    """The matrices stay float32, under autocast too: the error is one rounding of the result."""
    qkv, index, _ = random_sequence(0)
    poses, K = random_cameras(2)
    poses[..., :3, 3] *= 100  # in bfloat16 such a pose would be off by 0.4
    q = qkv[0].bfloat16()
    exact = encode(PRoPE(), poses, K, index).after_rope(q.double(), q.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = PRoPE().encode(Cameras(poses, K, index), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
        rounded = encoded.after_rope(q, q)[0]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=2**-8, atol=1e-4)


def test_one_matrix_a_token_equals_the_definition() -> None:
    poses, K = random_cameras(2)
    qkv, index, _ = random_sequence(1)
    encoded = encode(PRoPE(reference=None), poses, K, index)
    lift = torch.eye(4, dtype=torch.float64).repeat(2, VIEWS, 1, 1)
    lift[..., :3, :3] = K
    P = lift @ poses
    P_inverse = torch.linalg.inv(P)
    apply_to = {"q": P.mT, "k": P_inverse, "v": P_inverse, "o": P}
    q, k = encoded.after_rope(qkv[0], qkv[1])
    results = {"q": q, "k": k, "v": encoded.transform_values(qkv[2]), "o": encoded.transform_outputs(qkv[0])}
    for name, source in zip("qkvo", (*qkv, qkv[0]), strict=True):
        for b, token in ((0, 1), (1, 6), (1, 12)):
            matrix = apply_to[name][b, index[b, token]]
            for head in range(source.shape[2]):
                x = source[b, token, head, : HEAD_DIM // 2].view(-1, 4)
                expected = torch.stack([matrix @ group for group in x]).flatten()
                torch.testing.assert_close(results[name][b, token, head, : HEAD_DIM // 2], expected)


@pytest.mark.parametrize("placement", [ChannelRange(), TemporalSection()])
def test_gradients_reach_tokens_and_poses(placement: ChannelPlacement) -> None:
    poses, K = random_cameras(1)
    index = torch.tensor([[-1, 0, 1, 2, -1]])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 1, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    change = torch.zeros(1, VIEWS, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, change: Tensor) -> tuple[Tensor, ...]:
        moved = torch.cat((poses[..., :3, :] + change, poses[..., 3:, :]), -2)
        encoded = PRoPE(placement, reference=None).encode(
            Cameras(moved, K, index), head_dim=16, mrope_section=[4, 2, 2], dtype=torch.float64
        )
        q, k = encoded.after_rope(*encoded.before_rope(x, x))
        return q, k, encoded.transform_values(x), encoded.transform_outputs(x)

    assert torch.autograd.gradcheck(run, (x, change))


def test_inverses_are_analytic_and_exact() -> None:
    poses, K = random_cameras(4)
    P, P_inverse = projection_matrices(poses, K)
    eye = torch.eye(4, dtype=torch.float64).expand_as(P)
    torch.testing.assert_close(P @ P_inverse, eye, rtol=0, atol=1e-14)
    V, V_inverse = projection_matrices(poses)
    assert torch.equal(V, poses) and torch.equal(V_inverse, invert_se3(poses))


def test_cameras_without_an_index() -> None:
    poses, K = random_cameras(1)
    with pytest.raises(ValueError, match="give Cameras an index"):
        PRoPE().encode(Cameras(poses, K), head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
