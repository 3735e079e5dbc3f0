"""Sizes and pixels equal to the official ones, level for level."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as stock_resize

from datamodules.resize import FOLDER_MAX_TOKENS, FOLDER_MIN_TOKENS, TOKEN_PX, PixelBounds, resize_frames, smart_resize

GOLDEN = Path(__file__).parents[1] / "golden"
synth_video = runpy.run_path(str(GOLDEN / "synth.py"))["synth_video"]
SIZES = json.loads((GOLDEN / "preprocess/tables.json").read_text())["smart_resize"]
TINY = PixelBounds(min_pixels=56 * 56, max_pixels=56 * 56)


@pytest.mark.parametrize("num_frames", [2, 16, 32, 128, 768])
def test_sizes_of_the_official_inference(num_frames):
    for row in SIZES:
        size = PixelBounds().frame_size(row["h"], row["w"], num_frames)
        assert list(size) == row[f"infer_n{num_frames}"], row


def test_sizes_of_the_training_script_and_of_folders():
    side = 2 * TOKEN_PX
    folder = {"factor": side, "min_pixels": FOLDER_MIN_TOKENS * side**2, "max_pixels": FOLDER_MAX_TOKENS * side**2}
    for row in SIZES:
        height, width = row["h"], row["w"]
        assert list(smart_resize(height, width, **folder)) == row["folder_first_pass_factor56"]
        if min(height, width) >= 28:  # the training script refuses less
            assert list(smart_resize(height, width, min_pixels=293216, max_pixels=324576)) == row["train"]


def test_size_stays_in_bounds_and_near_the_aspect_ratio():
    for height, width in [(30, 31), (480, 640), (1080, 1920), (333, 250)]:
        new_height, new_width = smart_resize(height, width, min_pixels=100_000, max_pixels=400_000)
        assert new_height % 28 == new_width % 28 == 0
        assert 100_000 <= new_height * new_width <= 400_000
        assert abs(math.log(new_height / new_width * width / height)) < 0.15


def test_sizes_in_tokens_of_32_pixels_are_the_processors() -> None:
    """Qwen3-VL's, by the stock function; a frame of a folder is first rounded to multiples of two tokens."""
    bounds = PixelBounds(min_pixels=131072, max_pixels=786432)
    for height, width in [(480, 640), (1080, 1920), (333, 250), (64, 64)]:
        expected = stock_resize(height, width, factor=32, min_pixels=131072, max_pixels=786432)
        assert bounds.frame_size(height, width, 16, token_px=32) == tuple(expected)
    frames = torch.zeros(2, 3, 480, 640, dtype=torch.uint8)
    first = stock_resize(480, 640, factor=64)
    twice = resize_frames(frames, bounds, is_folder=True, token_px=32).shape[2:]
    assert tuple(twice) == tuple(stock_resize(*first, factor=32, min_pixels=131072, max_pixels=786432)) == (512, 640)
    assert resize_frames(frames, bounds, token_px=32).shape[2:] == (480, 640)


def test_an_extreme_aspect_ratio_is_an_error():
    with pytest.raises(ValueError, match="10 x 2010 pixels can't be resized"):
        smart_resize(2010, 10, min_pixels=3136, max_pixels=602112)


def golden_frames(name: str) -> tuple[torch.Tensor, torch.Tensor, list[int], bool]:
    """(chosen input frames, official output at every 9th row and 7th column, its size, from a folder?)."""
    meta = json.loads((GOLDEN / f"preprocess/{name}.json").read_text())
    tensors = load_file(GOLDEN / f"preprocess/{name}.safetensors")
    clip = meta["videos"][0]
    video = synth_video(clip["synth_seed"], clip["total_frames"], clip["height"], clip["width"])
    chosen = video[meta["frame_indices"][0]]
    is_folder = "folder" in meta["source"]
    return chosen, tensors["video_tchw_0_u8_strided"], tensors["video_tchw_0_shape"].tolist(), is_folder


@pytest.mark.parametrize("name", ["odd_97x131", "portrait_640x360", "folder_odd_333x250"])
def test_pixels_of_the_official_inference(name):
    frames, expected, shape, is_folder = golden_frames(name)
    resized = resize_frames(frames, is_folder=is_folder)
    assert list(resized.shape) == shape and resized.dtype == torch.uint8
    assert torch.equal(resized[..., ::9, ::7], expected)


TRAINING = PixelBounds(min_pixels=293216, max_pixels=324576, resize_backend="pillow")


@pytest.mark.parametrize("name", ["video_small_up", "odd_frames_real_fps", "batch_video_and_text"])
def test_pixels_of_the_official_training(name):
    meta = json.loads((GOLDEN / f"preprocess_train/{name}.json").read_text())
    tensors = load_file(GOLDEN / f"preprocess_train/{name}.safetensors")
    clip = meta["samples"][0]
    expected = tensors["video_tchw_0_u8_strided"]
    # the script's own choice of frames: at least video_min_frames, evenly; an odd number repeats the last
    seconds = clip["T"] / clip["fps"]
    low, high = meta["data_args"]["video_min_frames"], meta["data_args"]["video_max_frames"]
    count = min(max(round(seconds / meta["data_args"]["base_interval"]), low), high)
    chosen = torch.linspace(0, clip["T"] - 1, count).long().tolist()
    chosen += chosen[-1:] * (len(chosen) % 2)
    frames = synth_video(clip["synth_seed"], clip["T"], clip["H"], clip["W"])[chosen]
    resized = resize_frames(frames, TRAINING)
    assert list(resized.shape) == tensors["video_tchw_0_shape"].tolist()
    assert torch.equal(resized[..., ::9, ::7], expected)
    other = resize_frames(frames, PixelBounds(min_pixels=293216, max_pixels=324576))
    assert not torch.equal(other[..., ::9, ::7], expected)  # negative control: the other kernel


def test_the_uint8_kernel_would_differ():
    """Negative control: what resize_frames avoids."""
    frames, expected, shape, _ = golden_frames("portrait_640x360")
    direct = F.resize(frames, shape[2:], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert not torch.equal(direct[..., ::9, ::7], expected)


def test_a_folder_is_resized_twice_unless_switched_off():
    frames = synth_video(1, 2, 480, 640)
    assert resize_frames(frames).shape[2:] == (476, 644)
    assert resize_frames(frames, is_folder=True).shape[2:] == (504, 616)
    once = resize_frames(frames, PixelBounds(legacy_folder_resize=False), is_folder=True)
    assert torch.equal(once, resize_frames(frames))


def test_tiny_bounds_leave_tiny_frames_alone():
    frames = synth_video(2, 3, 56, 56)
    assert torch.equal(resize_frames(frames, TINY), frames)
    assert resize_frames(frames).shape[2:] == (336, 336)  # negative control: the official bounds


def test_long_clips_are_resized_in_pieces_without_a_trace():
    frames = synth_video(3, 19, 40, 60)
    pieces = torch.cat([resize_frames(frame[None]) for frame in frames])
    assert torch.equal(resize_frames(frames), pieces)
