"""PoseALiBi: the bias of appended channels against a dense one; symmetries; decoding; learned slopes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases import each_once
from tests.zoo.decoder import tiny_model
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.cameras.cameras import camera_runs
from zoo.cameras.poses import PoseMeasure, pose_distances
from zoo.encodings.alibi import DistanceChannels, PoseALiBi
from zoo.encodings.base import DecoderLayout, EncodedCameras, HeadLayout, ZeroChannels
from zoo.encodings.testing import HEAD, HEAD_DIM, HEADS, VIEWS, qkv_and_index, random_cameras

MEASURES: list[PoseMeasure] = ["rotation", "center", "euclidean", "sum", "log"]


def bound(encoding: PoseALiBi) -> PoseALiBi:
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD_DIM, 1, HEADS, HEADS, HEAD), [0])
    return encoding


def encode(encoding: PoseALiBi, poses: Tensor, K: Tensor, index: Tensor, dtype: Any = torch.float64) -> EncodedCameras:
    return bound(encoding).encode(Cameras(poses, K, index), HEAD, dtype=dtype)


def attend(
    encoded: EncodedCameras | None, qkv: list[Tensor], eager: bool = False, scale: Any = HEAD_DIM**-0.5
) -> Tensor:
    """Computes causal attention with the scale of the stock head, whatever the width."""
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
    """Computes the definition: one bias for each head and each pair of tokens."""
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


# ---- the bias ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "dtype", "eager"),
    each_once(MEASURES, {"float64": torch.float64, "float32": torch.float32}, {"sdpa": False, "eager": True}),
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


@pytest.mark.parametrize("groups", [1, 2, 4])
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


def test_softmax_scale_of_the_wider_head_is_wrong() -> None:
    """A control: the softmax scale remains that of the stock head."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    expected = dense(qkv, poses, index, SLOPES)
    assert (attend(encode(PoseALiBi(), poses, K, index), qkv, scale=None) - expected).abs().max() > 1e-3


def test_one_channel_per_camera_padded_to_eight() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    encoded = encode(PoseALiBi(), poses, K, index)
    assert isinstance(encoded, DistanceChannels) and encoded.channels == 8 >= VIEWS
    assert encoded.transform_values(qkv[2]).shape[-1] == HEAD_DIM + 8
    half = encoded.after_rope(qkv[0].bfloat16(), qkv[1].bfloat16())
    assert half[0].dtype == half[1].dtype == torch.bfloat16
    odd = bound(PoseALiBi()).encode(Cameras(poses, K, index), HeadLayout.in_row(20, [2, 4, 4]))
    assert isinstance(odd, DistanceChannels) and odd.channels == 4  # 20 + 4 is a multiple of 8


# ---- exact symmetries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_poses_change_no_bit(measure: PoseMeasure) -> None:
    """No channels are appended, which would change the order of summation."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    qkv = [x.float() for x in qkv]
    stock = attend(None, qkv)
    eye = torch.eye(4, dtype=torch.float64)
    for same in (eye.expand(2, VIEWS, 4, 4), poses[:, :1].expand(2, VIEWS, 4, 4)):
        encoded = encode(PoseALiBi(measure), same, K, index)
        assert torch.equal(attend(encoded, qkv), stock) and encoded.for_decode_step() is None
        unknown = Cameras.trusted(same, K, index, camera_runs(index))  # the host has not seen the poses
        wide = bound(PoseALiBi(measure)).encode(unknown, HEAD)
        assert isinstance(wide, DistanceChannels)
        torch.testing.assert_close(attend(wide, qkv), stock, rtol=0, atol=1e-6)
    text = encode(PoseALiBi(measure), poses, K, torch.full_like(index, -1))
    assert torch.equal(attend(text, qkv), stock)
    none = Cameras(poses[:, :0], K[:, :0], torch.full_like(index, -1))
    assert type(bound(PoseALiBi()).encode(none, HEAD)) is EncodedCameras


def test_unknown_poses_of_unused_cameras_change_nothing() -> None:
    """An encoder that predicts cameras may have none for a view; its numbers may be anything."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    index = torch.where(index == 0, -1, index)
    expected = attend(encode(PoseALiBi(), poses, K, index), qkv)
    poses[:, 0] = torch.nan
    cameras = Cameras.trusted(poses, K, index, camera_runs(index))
    assert torch.equal(attend(bound(PoseALiBi()).encode(cameras, HEAD, dtype=torch.float64), qkv), expected)


# ---- decoding and beams -----------------------------------------------------------------------------------


def test_decoded_text_gets_zero_channels() -> None:
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(2)
    encoded = encode(PoseALiBi(), poses, K, index)
    whole = attend(encoded, qkv)
    q, k, v = qkv
    later = encoded.for_decode_step()
    assert isinstance(later, ZeroChannels)
    cached_k, cached_v = encoded.after_rope(q, k)[1], encoded.transform_values(v)
    last_q, last_k = later.after_rope(q[:, -1:], k[:, -1:])
    keys = torch.cat((cached_k[:, :-1], last_k), 1)
    values = torch.cat((cached_v[:, :-1], later.transform_values(v[:, -1:])), 1)
    heads = [x.transpose(1, 2) for x in (last_q, keys, values)]
    step = F.scaled_dot_product_attention(*heads, enable_gqa=True, scale=HEAD_DIM**-0.5)
    torch.testing.assert_close(later.transform_outputs(step.transpose(1, 2)), whole[:, -1:], rtol=0, atol=1e-12)


def test_slopes_require_bind_to_decoder() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    with pytest.raises(AssertionError, match="bind_to_decoder comes before"):
        PoseALiBi(slopes="learned").encode(Cameras(poses, K, index), HEAD)


def test_learned_slopes_start_at_stock_and_train() -> None:
    model = tiny_model()
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


@pytest.mark.filterwarnings("ignore:Flash attention")
def test_flash_kernel_accepts_the_wider_heads() -> None:
    """The control: it rejects values that are narrower than keys."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(1)
    encoded = encode(PoseALiBi(), poses, K, index)
    expected = attend(encoded, qkv, eager=True)
    q, k = encoded.after_rope(qkv[0], qkv[1])
    q, k, wide, narrow = (x.transpose(1, 2) for x in (q, k, encoded.transform_values(qkv[2]), qkv[2]))
    arguments = {"is_causal": True, "enable_gqa": True, "scale": HEAD_DIM**-0.5}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = encoded.transform_outputs(F.scaled_dot_product_attention(q, k, wide, **arguments).transpose(1, 2))
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        with pytest.raises(RuntimeError, match="No available kernel"):
            F.scaled_dot_product_attention(q, k, narrow, **arguments)
