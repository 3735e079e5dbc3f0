"""ValueRoPE and PointRoPE against their definitions per token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings import EncodedCameras, PointRoPE, ValueRoPE
from zoo.encodings.testing import (
    HEAD,
    HEAD_DIM,
    MROPE_SECTION,
    Decoder,
    qkv_and_index,
    random_cameras,
    random_sequence,
)
from zoo.errors import InputError

DECODER = {"head": HEAD, "dtype": torch.float64}


def rotated(x: Tensor, angles: list[float]) -> Tensor:
    """Rotates the pairs (c, c + D/2) of one head, number by number."""
    out, half = x.clone(), len(x) // 2
    for c, angle in enumerate(angles):
        a, b = float(x[c]), float(x[c + half])
        out[c] = a * math.cos(angle) - b * math.sin(angle)
        out[c + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


# ---- values and outputs -----------------------------------------------------------------------------------


def rotary_values(index: Tensor, ids: Tensor) -> EncodedCameras:
    poses, K = random_cameras(2)
    encoded = ValueRoPE().encode(Cameras(poses, K, index), **DECODER)
    at_layer = encoded.at_layer(0, torch.zeros(*index.shape, 1), Decoder(None).rope(ids))
    assert at_layer is not None
    return at_layer


def test_values_rotate_by_position_relative_to_the_first_visual_token() -> None:
    sequence = random_sequence(2)
    qkv, index, ids = sequence.qkv, sequence.index, sequence.ids
    encoded = rotary_values(index, ids)
    v, o = encoded.transform_values(qkv[2]), encoded.transform_outputs(qkv[0])
    section = [axis for axis, count in enumerate(MROPE_SECTION) for _ in range(count)]
    for token in range(index.shape[1]):
        steps = (ids[:, 0, token] - ids[:, 0, 2]).tolist() if index[0, token] >= 0 else [0, 0, 0]
        angles = [steps[axis] * 1e4 ** (-c / (HEAD_DIM // 2)) for c, axis in enumerate(section)]
        torch.testing.assert_close(v[0, token, 1], rotated(qkv[2][0, token, 1], angles), rtol=0, atol=1e-12)
        back = [-angle for angle in angles]
        torch.testing.assert_close(o[0, token, 3], rotated(qkv[0][0, token, 3], back), rtol=0, atol=1e-12)
    q, k = encoded.after_rope(qkv[0], qkv[1])
    assert q is qkv[0] and k is qkv[1]


def test_outputs_invert_the_rotation_of_values() -> None:
    sequence = random_sequence(2)
    qkv, index, ids = sequence.qkv, sequence.index, sequence.ids
    encoded = rotary_values(index, ids)
    torch.testing.assert_close(encoded.transform_outputs(encoded.transform_values(qkv[2])), qkv[2], rtol=0, atol=1e-13)
    assert torch.equal(encoded.transform_values(qkv[2])[index < 0], qkv[2][index < 0])
    assert (encoded.transform_values(qkv[2]) - qkv[2])[index >= 0].abs().max() > 0.1


def test_visual_token_without_camera_changes_no_bit() -> None:
    sequence = random_sequence(1)
    qkv, index, ids = sequence.qkv, sequence.index, sequence.ids
    index = index.clone()
    index[:, 1:4] = -1
    v = rotary_values(index, ids).transform_values(qkv[2])
    assert torch.equal(v[:, 1:4], qkv[2][:, 1:4])


# ---- points -----------------------------------------------------------------------------------------------


def token_points(index: Tensor, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*index.shape, 3, generator=generator, dtype=torch.float64)


def test_queries_and_keys_rotate_by_the_point_in_the_reference_view() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    points = token_points(index)
    cameras = Cameras(poses, K, index).with_tokens(points=points)
    encoded = PointRoPE(shortest=0.5, longest=8.0).encode(cameras, **DECODER)
    q, k = encoded.after_rope(qkv[0], qkv[1])
    for sample in range(2):
        for token in range(index.shape[1]):
            point = poses[sample, 0, :3, :3] @ points[sample, token] + poses[sample, 0, :3, 3]
            if index[sample, token] < 0:
                point = point * 0
            angles = []
            for coordinate, count in zip((2, 1, 0), MROPE_SECTION, strict=True):
                for i in range(count):
                    angles.append(2 * math.pi * float(point[coordinate]) / (0.5 * 16 ** (i / (count - 1))))
            torch.testing.assert_close(
                q[sample, token, 2], rotated(qkv[0][sample, token, 2], angles), rtol=0, atol=1e-12
            )
            torch.testing.assert_close(
                k[sample, token, 1], rotated(qkv[1][sample, token, 1], angles), rtol=0, atol=1e-12
            )
    assert encoded.transform_values(qkv[2]) is qkv[2] and encoded.transform_outputs(qkv[0]) is qkv[0]


def test_logits_depend_on_differences_of_points() -> None:
    """A common translation cancels; the translation of one point does not."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(0)
    points = token_points(index)

    def logits(points: Tensor) -> Tensor:
        encoded = PointRoPE(reference=None).encode(Cameras(poses, K, index).with_tokens(points=points), **DECODER)
        q, k = encoded.after_rope(qkv[0], qkv[0])
        return torch.einsum("blhd,bmhd->bhlm", q, k)

    moved = logits(points + torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(moved, logits(points), rtol=0, atol=1e-10)
    points[:, 0] += 0.1
    assert (logits(points) - moved).abs().max() > 0.1


def test_token_without_point_changes_no_bit() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    points = token_points(index)
    points[0, 3, 1] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        encoded = PointRoPE("qkvo").encode(Cameras(poses, K, index).with_tokens(points=points), HEAD)
        q, k, v = (x.to(dtype) for x in qkv)
        results = (*encoded.after_rope(q, k), encoded.transform_values(v), encoded.transform_outputs(q))
        for result, x in zip(results, (q, k, v, q), strict=True):
            assert result.dtype == dtype and result.isfinite().all()
            assert torch.equal(result[0, 3], x[0, 3]) and torch.equal(result[index < 0], x[index < 0])
            assert not torch.equal(result[0, 4], x[0, 4])


@pytest.mark.parametrize("apply_to", ["qk", "vo", "qkvo"])
def test_apply_to(apply_to: str) -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    cameras = Cameras(poses, K, index).with_tokens(points=token_points(index))
    encoded = PointRoPE(apply_to).encode(cameras, **DECODER)  # type: ignore[arg-type]
    q, k = encoded.after_rope(qkv[0], qkv[1])
    assert torch.equal(q, qkv[0]) == torch.equal(k, qkv[1]) == ("qk" not in apply_to)
    v = encoded.transform_values(qkv[2])
    assert torch.equal(v, qkv[2]) == ("vo" not in apply_to)
    torch.testing.assert_close(encoded.transform_outputs(v), qkv[2], rtol=0, atol=1e-13)


def test_appended_channels_are_unchanged() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    encoded = PointRoPE().encode(Cameras(poses, K, index).with_tokens(points=token_points(index)), **DECODER)
    wide = torch.cat((qkv[0], qkv[0][..., :8]), -1)
    q, _ = encoded.after_rope(wide, wide)
    assert torch.equal(q[..., HEAD_DIM:], wide[..., HEAD_DIM:])
    assert torch.equal(q[..., :HEAD_DIM], encoded.after_rope(qkv[0], qkv[0])[0])


def test_wrong_arguments_raise() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    with pytest.raises(ValueError, match="these cameras have no points: pass points to"):
        PointRoPE().encode(Cameras(poses, K, index), **DECODER)
    with pytest.raises(InputError, match="got wavelengths 4 and 2"):
        PointRoPE(shortest=4, longest=2)


def test_scale_makes_the_unit_of_points_cancel() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    points = token_points(index)
    larger = poses.clone()
    larger[..., :3, 3] *= 3
    for scale, same in (("rms", True), ("none", False)):
        here, there = (
            PointRoPE(scale=scale).encode(Cameras(V, K, index).with_tokens(points=p), **DECODER).sin
            for V, p in ((poses, points), (larger, 3 * points))
        )
        difference = (here - there).abs().max()
        assert difference < 1e-12 if same else difference > 0.1
