"""What docs/concepts/other_code.md claims in numbers, and that the names which are searched for are in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import main
from datamodules.trajectories import Trajectory
from zoo import SpatialVLM, StepIndex, TimeIndex, TimestampIndex, TinyQwen25VL
from zoo.cameras import normalize_intrinsics
from zoo.geometry.vggt import pose_encoding_to_cameras
from zoo.positions import mrope_position_ids

PAGE = (Path(main.__file__).parent / "docs/concepts/other_code.md").read_text(encoding="utf-8")
NAMES = [
    *("get_rope_index_25", "second_per_grid_ts", "tokens_per_second", "pose_encoding_to_extri_intri", "viewmats"),
    *("angle axis", "merging", "cx cy", "VO-RoPE", "subset-sft", "alternating", "camera token", "reference view"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_on_the_page(name: str) -> None:
    assert name.lower() in PAGE.lower()


def times(index: TimeIndex, tokens_per_second: int = 2) -> list[int]:
    ids = torch.tensor([[5, 1, *[2] * 12, 6]])
    grid = torch.tensor([[3, 4, 4]])
    tokens = {"image_token_id": 3, "video_token_id": 2, "vision_start_token_id": 1}
    found, _ = mrope_position_ids(
        ids, video_grid_thw=grid, time_index=index, tokens_per_second=tokens_per_second, **tokens
    )
    return (found[0, 0, 2:14:4] - 2).tolist()


def test_times_of_three_patches() -> None:
    assert times(TimestampIndex(seconds_per_grid=1.0)) == [0, 2, 4]
    assert times(TimestampIndex(seconds_per_grid=0.5)) == times(StepIndex()) == [0, 1, 2]
    assert times(TimestampIndex(seconds_per_grid=2.0), tokens_per_second=25) == [0, 50, 100]


def test_a_token_of_two_frames_is_a_sum() -> None:
    torch.manual_seed(0)
    backbone = TinyQwen25VL(layers=1, hidden_size=32, heads=2, key_value_heads=1, vision_hidden_size=32)
    patch = SpatialVLM(backbone).backbone.vlm.model.visual.patch_embed.proj
    assert patch.bias is None
    a, b = torch.randn(2, 1, 3, 1, 14, 14)
    none = torch.zeros_like(a)

    def token(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return F.conv3d(torch.cat((first, second), 2), patch.weight, stride=patch.stride).flatten()

    torch.testing.assert_close(token(a, b), token(a, none) + token(none, b))
    assert (token(a, b) - token(a, a)).abs().max() > 0.1 and (token(a, b) - token(b, a)).abs().max() > 0.1


def test_what_edits_do_to_intrinsics() -> None:
    K = torch.tensor([[[585.0, 0, 330], [0, 580, 230], [0, 0, 1]]], dtype=torch.float64)
    track = Trajectory(torch.eye(4, dtype=torch.float64)[None], K, 640, 480, quarter_turns=1)
    half = track.resized(320, 240)
    assert half.K_px[0, 0].tolist() == [292.5, 0, 165]
    assert torch.equal(normalize_intrinsics(half.K_px, 320, 240), normalize_intrinsics(K, 640, 480))
    stretched = K * torch.tensor([2.0, 0.5, 1.0])[:, None]  # another aspect ratio
    torch.testing.assert_close(normalize_intrinsics(stretched, 1280, 240), normalize_intrinsics(K, 640, 480))
    turned = track.turned()
    assert turned.K_px[0, :2, 2].tolist() == [230, 640 - 330] and (turned.width, turned.height) == (480, 640)
    picture = Image.new("L", (640, 480))
    picture.putpixel((330, 230), 255)
    assert picture.transpose(Image.Transpose.ROTATE_90).getpixel((230, 640 - 330 - 1)) == 255


def test_vggt_predicts_no_principal_point() -> None:
    _, K = pose_encoding_to_cameras(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1.0, 1.2]), (392, 518))
    assert K[:2, 2].tolist() == [259, 196]
