"""Encodings by angles and by distances against their definitions: ValueRoPE, PointRoPE, PoseAxis, PoseALiBi."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.decoder import MOVES, Example, logits, tiny_qwen
from zoo import Cameras, PathLengthIndex, PointRoPE, PoseALiBi, PoseAxis, PoseDistanceIndex, PoseIndex, ValueRoPE
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras.cameras import camera_runs
from zoo.cameras.poses import PoseMeasure, pose_distances
from zoo.encodings import EncodedCameras
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.testing import (
    HEAD,
    HEAD_DIM,
    HEADS,
    LAYOUTS,
    MROPE_SECTION,
    Decoder,
    apply_rope,
    qkv_and_index,
    random_cameras,
    random_sequence,
)
from zoo.sequences.time_index import PoseTimeIndex

DECODER = {"head": HEAD, "dtype": torch.float64}


def rotated(x: Tensor, angles: list[float]) -> Tensor:
    """Rotate the pairs (c, c + D/2) of one head, number by number."""
    out, half = x.clone(), len(x) // 2
    for c, angle in enumerate(angles):
        a, b = float(x[c]), float(x[c + half])
        out[c] = a * math.cos(angle) - b * math.sin(angle)
        out[c + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


# ---- values and outputs ----------------------------------------------------------------------------------------------


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


# ---- points ----------------------------------------------------------------------------------------------------------


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


# ---- a fourth axis, and time by poses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "frequencies", "count", "index"),
    [
        ("axes in a row", "lowest", None, PoseDistanceIndex("center", span=5)),
        ("axes in a row", "highest", 2, PathLengthIndex("rotation", span=9)),
        ("axes in turns", "alternate", 2, PoseDistanceIndex("center", span=5)),
        ("part of the channels", "lowest", 2, PathLengthIndex("rotation", span=9)),
    ],
)
def test_a_pose_axis_is_a_fourth_axis_of_rope(
    layout: str, frequencies: str, count: int | None, index: PoseTimeIndex
) -> None:
    """The slow reference is RoPE with four axes."""
    head, sequence, (poses, K) = LAYOUTS[layout], random_sequence(text=3), random_cameras(2)
    base = 1e4 ** -(torch.arange(len(head.axes), dtype=torch.float64) / len(head.axes))
    encoding = PoseAxis(index, count, frequencies, offset=0.5)
    encoding.bind_to_decoder(DecoderLayout(64, 2, 4, 2, head, (base,)), range(2))

    def rope(pose: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of mRoPE with axes t, h, w and p; the chosen frequencies belong to p."""
        positions = [pose if i in chosen else sequence.ids[axis] for i, axis in enumerate(head.axes)]
        angle = torch.stack(positions, -1) * base
        return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    q, k, _ = sequence.qkv
    pose = sequence.ids[0].double()
    stock = rope(pose, [])
    encoded = encoding.encode(sequence.cameras(poses, K), head, dtype=torch.float64)
    found = encoded.after_rope(apply_rope(q, stock), apply_rope(k, stock))
    visual = sequence.index >= 0
    for sample, world_to_camera in enumerate(poses):
        values = index.pose_values(world_to_camera[None], torch.ones(1, len(world_to_camera), dtype=torch.bool))[0]
        values = index.span * (values - values.min()) / (values.max() - values.min())
        own = visual[sample]
        pose[sample, own] = pose[sample, own].min() + 0.5 + values[sequence.index[sample, own]]
    expected, rounded = (rope(each, encoding.chosen(head)) for each in (pose, pose.round()))
    for one, given in zip(found, (q, k), strict=True):
        assert torch.allclose(one, apply_rope(given, expected), atol=1e-12)
        assert torch.equal(one[~visual], apply_rope(given, stock)[~visual])
        assert (one - apply_rope(given, rounded)).abs().max() > 1e-4  # control: positions are not rounded


@pytest.mark.parametrize(
    "index", [PoseDistanceIndex(span=9), PathLengthIndex("rotation", span=20), PoseDistanceIndex(reference="medoid")]
)
@torch.no_grad()
def test_a_pose_index_changes_only_the_time_of_visual_tokens(index: PoseDistanceIndex | PathLengthIndex) -> None:
    """The attention is stock, and the logits still depend on the poses."""
    model, example = tiny_qwen(), Example(PoseIndex(index))
    posed, stock = (example.positions(stock)[0] for stock in (False, True))
    before, visual = (example.index >= 0).cumsum(1) == 0, example.index[0] >= 0
    assert torch.equal(posed[:, before], stock[:, before])
    assert torch.equal(posed[1:, 0, visual], stock[1:, 0, visual])
    t = posed[0, 0, visual]
    assert not torch.equal(t, stock[0, 0, visual]) and int(t.max() - t.min()) == index.span
    found = logits(model, example)
    assert torch.equal(model(**example.inputs(model)).logits[example.attention_mask.bool()], found)
    example.poses = example.poses.flip(1)
    assert (found - logits(model, example)).abs().max() > MOVES


# ---- a bias by distances ---------------------------------------------------------------------------------------------


MEASURES: list[PoseMeasure] = ["rotation", "center", "euclidean", "sum", "log"]


def bound(encoding: PoseALiBi) -> PoseALiBi:
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD_DIM, 1, HEADS, HEADS, HEAD), [0])
    return encoding


def encode(encoding: PoseALiBi, poses: Tensor, K: Tensor, index: Tensor, dtype: Any = torch.float64) -> EncodedCameras:
    return bound(encoding).encode(Cameras(poses, K, index), HEAD, dtype=dtype)


def attend(
    encoded: EncodedCameras | None, qkv: list[Tensor], eager: bool = False, scale: Any = HEAD_DIM**-0.5
) -> Tensor:
    """Compute causal attention with the stock head's softmax scale."""
    q, k, v = qkv
    if encoded is not None:
        q, k = encoded.after_rope(*encoded.before_rope(q, k))
        v = encoded.transform_values(v)
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if eager:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        logits = q @ k.mT * scale
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        output = logits.masked_fill(~causal, -torch.inf).softmax(-1) @ v
    else:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=scale)
    output = output.transpose(1, 2)
    return output if encoded is None else encoded.transform_outputs(output)


def dense(qkv: list[Tensor], poses: Tensor, index: Tensor, slopes: Tensor, **distance: Any) -> Tensor:
    """Compute the definition: one bias for each head and each pair of tokens."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = q @ k.mT * HEAD_DIM**-0.5
    for b in range(len(index)):
        for i in range(index.shape[1]):
            for j in range(i + 1):
                if index[b, i] >= 0 and index[b, j] >= 0:
                    d = pose_distances(poses[b, index[b, i]], poses[b, index[b, j]], **distance)
                    logits[b, :, i, j] -= (slopes * d).to(logits)
    causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return (logits.masked_fill(~causal, -torch.inf).softmax(-1) @ v).transpose(1, 2)


SLOPES = torch.tensor([2.0 ** (-8 * h / HEADS) for h in range(1, HEADS + 1)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("measure", "dtype", "eager"),
    [
        ("rotation", torch.float64, False),
        ("center", torch.float32, True),
        ("euclidean", torch.float64, True),
        ("sum", torch.float32, False),
        ("log", torch.float64, False),
    ],
)
def test_matches_dense_bias(measure: PoseMeasure, dtype: torch.dtype, eager: bool) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(2)
    index = index.clone()
    index[1, index[1] == 2] = 0  # a sample with fewer cameras
    index[0, 4] = -1  # a visual token without a camera
    qkv = [x.to(dtype) for x in qkv]
    weight = 1.0 if measure == "rotation" else 0.7
    expected = dense(qkv, poses, index, SLOPES, measure=measure, translation_weight=weight)
    found = attend(encode(PoseALiBi(measure, weight), poses, K, index, dtype), qkv, eager)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert (attend(None, qkv, eager) - expected).abs().max() > 0.01


@pytest.mark.parametrize("groups", [2])
def test_one_slope_per_query_head(groups: int) -> None:
    poses, K = random_cameras(2)
    (q, _, _), index = qkv_and_index(1)
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(*q.shape[:2], groups, HEAD_DIM, generator=generator, dtype=q.dtype) for _ in range(2))
    expected = dense([q, k, v], poses, index, SLOPES, measure="sum")
    found = attend(encode(PoseALiBi("sum"), poses, K, index), [q, k, v])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wrong = dense([q, k, v], poses, index, SLOPES.flip(0), measure="sum")
    assert (found - wrong).abs().max() > 1e-3


def test_unknown_poses_of_unused_cameras_change_nothing() -> None:
    """An encoder that predicts cameras may leave any numbers for a view without a camera."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    index = torch.where(index == 0, -1, index)
    expected = attend(encode(PoseALiBi(), poses, K, index), qkv)
    poses[:, 0] = torch.nan
    cameras = Cameras.trusted(poses, K, index, camera_runs(index))
    assert torch.equal(attend(bound(PoseALiBi()).encode(cameras, HEAD, dtype=torch.float64), qkv), expected)


def test_learned_slopes_start_at_stock_and_train() -> None:
    model = tiny_qwen()
    poses, K = random_cameras(2)
    encoding = PoseALiBi(slopes="learned")
    Qwen25VLBackbone(model, None).install_encoding(encoding)
    ids = torch.randint(5, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, -1, -1]]).expand(2, -1)

    def logits() -> Tensor:
        encoded = encoding.encode(Cameras(poses, K, index), HeadLayout.in_row(16, [2, 3, 3]))
        return model(input_ids=ids, camera_encoding=encoded).logits

    stock = model(input_ids=ids).logits
    torch.testing.assert_close(logits(), stock, rtol=0, atol=1e-5)  # wider heads are summed in another order
    (slopes,) = encoding.parameters()
    assert slopes.shape == (4,) and not slopes.any()
    logits().square().mean().backward()
    assert slopes.grad is not None and (slopes.grad.abs() > 1e-6).all()
    with torch.no_grad():
        slopes -= 10 * slopes.grad
        assert (logits() - stock).abs().max() > 1e-3
