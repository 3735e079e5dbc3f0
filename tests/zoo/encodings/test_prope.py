"""PRoPE in float64 attention: exact symmetries, and controls that break them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings import ChannelPlacement, ChannelRange, EncodedCameras, PRoPE, TemporalSection, projection_matrices
from zoo.encodings.base import HeadLayout
from zoo.encodings.testing import (
    BROKEN,
    EXACT,
    HEAD,
    HEAD_DIM,
    VIEWS,
    Decoder,
    Sequence,
    attend,
    qkv_and_index,
    random_cameras,
    random_sequence,
)


class AllChannelsBeforeRoPE(ChannelPlacement):
    """A control: all channels before RoPE, whose time positions differ between views."""

    before_rope = True
    block = ChannelRange(0.0, 1.0).block


def encode(encoding: PRoPE, poses: Tensor, K: Tensor, index: Tensor) -> EncodedCameras:
    return encoding.encode(Cameras(poses, K, index), HEAD, dtype=torch.float64)


def attention(encoded: EncodedCameras, sequence: Sequence) -> Tensor:
    return attend(encoded, 0, sequence, Decoder(None).rope(sequence.ids))


def change_of_world(
    placement: ChannelPlacement, reference: str | None, *, text: int, static: bool, drop: str = ""
) -> float:
    """Measures the change of the outputs under V -> V G."""
    poses, K = random_cameras(2)
    world = random_cameras(2, 1, seed=5)[0]
    sequence = random_sequence(text).constant_time() if static else random_sequence(text)
    outputs = []
    for V in (poses, poses @ world):
        encoded = encode(PRoPE(placement, reference=reference), V, K, sequence.index)
        if drop:
            del encoded.run_matrices[drop]
        outputs.append(attention(encoded, sequence))
    return float((outputs[0] - outputs[1]).abs().max())


def shift_of_positions(placement: ChannelPlacement, *, static: bool) -> float:
    """Measures the change of the outputs when all positions are shifted by 7."""
    poses, K = random_cameras(2)
    sequence = random_sequence(0).constant_time() if static else random_sequence(0)
    encoded = encode(PRoPE(placement), poses, K, sequence.index)
    return float((attention(encoded, sequence) - attention(encoded, sequence.shifted(7))).abs().max())


# ---- exact symmetries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "first"])
@pytest.mark.parametrize(
    ("placement", "static"), [(ChannelRange(), False), (ChannelRange(0, 1), False), (TemporalSection(), True)]
)
def test_change_of_world_cancels_between_views(
    placement: ChannelPlacement, static: bool, reference: str | None
) -> None:
    assert change_of_world(placement, reference, text=0, static=static) < EXACT


@pytest.mark.parametrize(("placement", "static"), [(ChannelRange(), False), (TemporalSection(), True)])
def test_text_requires_canonical_cameras(placement: ChannelPlacement, static: bool) -> None:
    assert change_of_world(placement, "first", text=3, static=static) < EXACT
    assert change_of_world(placement, None, text=3, static=static) > BROKEN


def test_temporal_section_keeps_the_shift_of_positions() -> None:
    assert shift_of_positions(TemporalSection(), static=True) < EXACT


# ---- controls ---------------------------------------------------------------------------------------------


def test_all_four_terms_are_needed() -> None:
    assert change_of_world(ChannelRange(), None, text=0, static=False, drop="o") > BROKEN
    assert change_of_world(ChannelRange(), None, text=0, static=False, drop="k") > BROKEN


def test_matrices_before_rope_break_world_but_not_shift() -> None:
    assert change_of_world(AllChannelsBeforeRoPE(), None, text=0, static=False) > BROKEN
    assert shift_of_positions(AllChannelsBeforeRoPE(), static=False) < EXACT


def test_matrices_after_rope_break_shift() -> None:
    assert shift_of_positions(ChannelRange(), static=False) > BROKEN
    assert shift_of_positions(ChannelRange(0, 1), static=False) > BROKEN


def test_temporal_section_requires_constant_time() -> None:
    assert change_of_world(TemporalSection(), None, text=0, static=False) > BROKEN
    assert PRoPE(TemporalSection()).requires_constant_time and not PRoPE(ChannelRange()).requires_constant_time


# ---- identities, precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", [ChannelRange(), TemporalSection()])
def test_identity_cameras_change_no_bit(placement: ChannelPlacement, dtype: torch.dtype) -> None:
    qkv, index = qkv_and_index(2)
    q, k, v = (x.to(dtype) for x in qkv)
    eye = torch.eye(4).expand(2, VIEWS, 4, 4)
    encoded = PRoPE(placement).encode(Cameras(eye, eye[..., :3, :3], index), HEAD)
    results = (
        *encoded.before_rope(q, k),
        *encoded.after_rope(q, k),
        encoded.transform_values(v),
        encoded.transform_outputs(q),
    )
    for result, x in zip(results, (q, k, q, k, v, q), strict=True):
        assert result.dtype == dtype and torch.equal(result, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_without_camera_change_no_bit(dtype: torch.dtype) -> None:
    qkv, index = qkv_and_index(2)
    q = qkv[0].to(dtype)
    poses, K = random_cameras(2)
    encoded = PRoPE().encode(Cameras(poses, K, index), HEAD)
    transformed = encoded.after_rope(q, q)[0]
    assert torch.equal(transformed[index < 0], q[index < 0])
    assert not torch.isclose(transformed[index >= 0], q[index >= 0]).all()
    assert torch.equal(transformed[..., HEAD_DIM // 2 :], q[..., HEAD_DIM // 2 :])


def test_half_precision_rounds_only_the_result() -> None:
    """The matrices remain float32 under autocast."""
    qkv, index = qkv_and_index(0)
    poses, K = random_cameras(2)
    poses[..., :3, 3] *= 100  # rounding such a pose to bfloat16 gives errors up to 0.4
    q = qkv[0].bfloat16()
    exact = encode(PRoPE(), poses, K, index).after_rope(q.double(), q.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = PRoPE().encode(Cameras(poses, K, index), HEAD)
        rounded = encoded.after_rope(q, q)[0]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=2**-8, atol=1e-4)


def test_matches_definition() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
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


@pytest.mark.parametrize("placement", [ChannelRange(), pytest.param(TemporalSection(), marks=pytest.mark.slow)])
def test_gradients_of_tokens_and_poses(placement: ChannelPlacement) -> None:
    poses, K = random_cameras(1)
    index = torch.tensor([[-1, 0, 1, 2, -1]])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 1, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    change = torch.zeros(1, VIEWS, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, change: Tensor) -> tuple[Tensor, ...]:
        moved = torch.cat((poses[..., :3, :] + change, poses[..., 3:, :]), -2)
        encoded = PRoPE(placement, reference=None).encode(
            Cameras(moved, K, index), HeadLayout.in_row(16, [4, 2, 2]), dtype=torch.float64
        )
        q, k = encoded.after_rope(*encoded.before_rope(x, x))
        return q, k, encoded.transform_values(x), encoded.transform_outputs(x)

    assert torch.autograd.gradcheck(run, (x, change))


def test_projection_matrices_are_inverse() -> None:
    poses, K = random_cameras(4)
    P, P_inverse = projection_matrices(poses, K)
    eye = torch.eye(4, dtype=torch.float64).expand_as(P)
    torch.testing.assert_close(P @ P_inverse, eye, rtol=0, atol=1e-14)
    V, V_inverse = projection_matrices(poses)
    assert torch.equal(V, poses) and torch.equal(V_inverse, invert_se3(poses))


def test_cameras_without_index_raise() -> None:
    poses, K = random_cameras(1)
    with pytest.raises(ValueError, match="these cameras have no index: pass an index"):
        PRoPE().encode(Cameras(poses, K), HEAD)
