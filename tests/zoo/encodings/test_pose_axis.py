"""PoseAxis: RoPE with a fourth axis, written out as the slow reference, on both layouts of frequencies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.encodings import Compose, LayerSubset, PoseAxis, PRoPE, TemporalSection
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.testing import LAYOUTS, apply_rope, random_cameras, random_sequence
from zoo.errors import InputError
from zoo.sequences.time_index import PathLengthIndex, PoseDistanceIndex, PoseTimeIndex

RELEASED = {
    "Qwen2.5-VL": HeadLayout.in_row(128, (16, 24, 24)),
    "Qwen3-VL": HeadLayout(128, (*[0, 1, 2] * 20, 0, 0, 0, 0)),
}


def frequencies_of(head: HeadLayout) -> Tensor:
    return 1e4 ** -(torch.arange(len(head.axes), dtype=torch.float64) / len(head.axes))


def bound(encoding: PoseAxis | Compose, head: HeadLayout) -> PoseAxis | Compose:
    encoding.bind_to_decoder(DecoderLayout(64, 2, 4, 2, head, (frequencies_of(head),)), range(2))
    return encoding


def rope(ids: Tensor, pose: Tensor, head: HeadLayout, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of mRoPE with the axes t, h, w and p; those of the chosen frequencies are p's."""
    each = enumerate(frequencies_of(head))
    angle = torch.stack([(pose if i in chosen else ids[head.axes[i]]) * frequency for i, frequency in each], -1)
    return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()


@pytest.mark.parametrize("head", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("frequencies", ["lowest", "highest", "alternate"])
@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("index", [PoseDistanceIndex("center", span=5), PathLengthIndex("rotation", span=9)])
def test_it_is_rope_with_a_fourth_axis(
    head: HeadLayout, frequencies: str, count: int | None, index: PoseTimeIndex
) -> None:
    sequence, (poses, K) = random_sequence(text=3), random_cameras(2)
    encoding = bound(PoseAxis(index, count, frequencies, offset=0.5), head)
    q, k, _ = sequence.qkv
    stock = rope(sequence.ids, sequence.ids[0].double(), head, [])
    encoded = encoding.encode(sequence.cameras(poses, K), head, dtype=torch.float64)
    found = encoded.after_rope(apply_rope(q, stock), apply_rope(k, stock))

    pose = sequence.ids[0].double()
    for sample, world_to_camera in enumerate(poses):
        values = index.pose_values(world_to_camera[None], torch.ones(1, len(world_to_camera), dtype=torch.bool))[0]
        values = index.span * (values - values.min()) / (values.max() - values.min())
        visual = sequence.index[sample] >= 0
        pose[sample, visual] = pose[sample, visual].min() + 0.5 + values[sequence.index[sample, visual]]
    expected = rope(sequence.ids, pose, head, encoding.chosen(head))
    for one, other, plain in zip(found, (q, k), (q, k), strict=True):
        assert torch.allclose(one, apply_rope(other, expected), atol=1e-12)
        visual = sequence.index >= 0
        assert torch.equal(one[~visual], apply_rope(plain, stock)[~visual])
        rounded = apply_rope(other, rope(sequence.ids, pose.round(), head, encoding.chosen(head)))
        assert (one - rounded).abs().max() > 1e-4  # control: positions are not rounded


def test_views_without_a_camera_have_the_time_of_the_stock_model() -> None:
    head = LAYOUTS["axes in a row"]
    sequence, (poses, K) = random_sequence(text=3), random_cameras(2)
    q, k, _ = sequence.qkv
    sequence.index = sequence.index.clone()
    lost = sequence.index == 1
    sequence.index[lost] = -1
    encoded = bound(PoseAxis(), head).encode(sequence.cameras(poses, K), head, dtype=torch.float64)
    turned, _ = encoded.after_rope(q, k)
    assert torch.equal(turned[lost], q[lost]) and not torch.equal(turned[sequence.index == 2], q[sequence.index == 2])
    sequence.index[:] = -1
    encoded = bound(PoseAxis(), head).encode(sequence.cameras(poses, K), head, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(encoded.after_rope(q, k), (q, k), strict=True))


@pytest.mark.parametrize(
    ("model", "count", "sections"),
    [
        ("Qwen2.5-VL", 8, [8, 24, 24, 8]),
        ("Qwen2.5-VL", None, [0, 24, 24, 16]),
        ("Qwen3-VL", 12, [12, 20, 20, 12]),
        ("Qwen3-VL", None, [0, 20, 20, 24]),
    ],
)
def test_the_sections_of_released_models(model: str, count: int | None, sections: list[int]) -> None:
    head = RELEASED[model]
    for frequencies in ("lowest", "highest", "alternate"):
        chosen = PoseAxis(count=count, frequencies=frequencies).chosen(head)
        axes = [3 if i in chosen else axis for i, axis in enumerate(head.axes)]
        assert [axes.count(axis) for axis in range(4)] == sections
    lowest, highest = (PoseAxis(count=4, frequencies=each).chosen(head) for each in ("lowest", "highest"))
    assert lowest == head.frequencies(0)[-4:] and highest == head.frequencies(0)[:4]


def test_channels_are_not_shared_with_another_encoding() -> None:
    head = LAYOUTS["axes in a row"]
    with pytest.raises(InputError, match="PRoPE and PoseAxis share 16 channels"):
        bound(Compose([PRoPE(TemporalSection()), PoseAxis()]), head)
    with pytest.raises(InputError, match="share"):
        bound(Compose([LayerSubset(PoseAxis()), PRoPE(TemporalSection())]), head)
    bound(Compose([PRoPE(TemporalSection(), apply_to="vo"), PoseAxis()]), head)  # other terms
    with pytest.raises(InputError, match="has 4 frequencies, fewer than 5"):
        bound(PoseAxis(count=5), head)
    with pytest.raises(InputError, match="at least 1"):
        PoseAxis(count=0)


def test_cameras_without_time_are_refused() -> None:
    head, sequence = LAYOUTS["axes in a row"], random_sequence(text=1)
    cameras = sequence.cameras(*random_cameras(2))
    cameras.time = None
    with pytest.raises(ValueError, match="pass time to"):
        bound(PoseAxis(), head).encode(cameras, head)
