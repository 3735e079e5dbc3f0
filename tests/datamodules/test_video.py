"""Frames are exact: each test frame carries its own number, and is compared with decoding everything."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video import Video, VideoError, natural_key
from tests.datamodules.clips import (
    B_FRAMES,
    FRAMES,
    HEIGHT,
    KINDS,
    WIDTH,
    decode_everything,
    number_of,
    numbered_frame,
    write_folder,
    write_video,
)

REALDATA = os.environ.get("ZOO_REALDATA")
needs_realdata = pytest.mark.skipif(not REALDATA, reason="ZOO_REALDATA is unset: no real videos")


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact(tmp_path, name):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    video = Video(path)
    everything = decode_everything(path)
    assert video.num_frames == len(everything) == len(FRAMES)
    assert (video.height, video.width, video.is_folder) == (HEIGHT, WIDTH, False)
    for indices in ([0], [49], [3, 17, 18, 44], [48, 5, 5, 0, 48], list(range(50))):
        frames = video.read(indices)
        assert frames.dtype == torch.uint8 and frames.is_contiguous()
        assert [number_of(frame) for frame in frames] == indices
        assert torch.equal(frames, everything[indices])
    # negative control: the comparison notices a frame that is off by one
    assert not torch.equal(video.read([17]), everything[[18]])


def test_large_frames_on_several_threads(tmp_path):
    frames = [numbered_frame(i, 288, 320) for i in range(20)]
    path = write_video(tmp_path / "large.mp4", frames, options=B_FRAMES)
    assert torch.equal(Video(path).read([0, 7, 19]), decode_everything(path)[[0, 7, 19]])


def test_no_indices_and_indices_outside(tmp_path):
    video = Video(write_video(tmp_path / "a.mp4", FRAMES[:4]))
    assert video.read([]).shape == (0, 3, HEIGHT, WIDTH)
    for outside in (-1, 4):
        with pytest.raises(IndexError, match=rf"a\.mp4: no frame {outside}, the video has 4"):
            video.read([0, outside])


@pytest.mark.parametrize("stated", [10, 60])
def test_a_header_that_lies_does_not_change_the_count(tmp_path, recwarn, stated):
    path = write_video(tmp_path / "lie.avi", FRAMES, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    frames_field = content.find(b"strh") + 40
    assert struct.unpack_from("<I", content, frames_field) == (50,)
    struct.pack_into("<I", content, frames_field, stated)
    path.write_bytes(content)
    assert Video(path).num_frames == 50
    warned = [str(warning.message) for warning in recwarn]
    assert warned == ([] if stated < 50 else [f"{path}: its header counts 60 frames, it holds 50, which are read"])
    if stated > 50:
        path.write_bytes(content[:-100])  # negative control: the file itself is shorter than it should be
        with pytest.raises(VideoError, match=r"lie\.avi: truncated after 50 of 60 frames"):
            Video(path)


def test_an_edit_list_trims_the_count_and_is_no_truncation(tmp_path):
    path = write_video(tmp_path / "trimmed.mp4", FRAMES, options=B_FRAMES)
    content = bytearray(path.read_bytes())
    duration_field = content.find(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, duration_field)
    struct.pack_into(">I", content, duration_field, duration // 2)
    path.write_bytes(content)
    assert Video(path).num_frames == len(decode_everything(path)) == 25
    assert number_of(Video(path).read([24])[0]) == 24


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata(tmp_path, degrees):
    """A stated rotation of n degrees counter-clockwise is carried out."""
    plain = Video(write_video(tmp_path / "plain.mp4", FRAMES[:9])).read([3])
    video = Video(write_video(tmp_path / "turned.mp4", FRAMES[:9], rotation=degrees))
    upright = torch.rot90(plain, degrees // 90, (2, 3))
    assert (video.height, video.width) == tuple(upright.shape[2:])
    assert torch.equal(video.read([3]), upright)
    assert not torch.equal(video.read([3]).flip(2, 3), upright)  # negative control: not the other way round


def test_a_telephone_held_upright(tmp_path):
    """The matrix of ISO 14496-12 that sends (x, y) to (height - y, x): shown turned clockwise."""
    path = write_video(tmp_path / "telephone.mp4", FRAMES[:9])
    plain = Video(path).read([5])
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content)
    video = Video(path)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    assert torch.equal(video.read([5]), torch.rot90(plain, -1, (2, 3)))


# ---- folders of frames


def test_folder_in_natural_order(tmp_path):
    names = ["frame_2.png", "frame_999.jpg", "frame_9999.png", "frame_10000.jpeg", "frame_10001.PNG"]
    folder = write_folder(tmp_path / "scene", names)
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame_3.png").write_text("what macOS leaves")
    video = Video(folder)
    assert (video.num_frames, video.height, video.width) == (5, HEIGHT, WIDTH)
    assert video.is_folder
    assert [number_of(frame) for frame in video.read([4, 0, 3, 3])] == [4, 0, 3, 3]
    assert sorted(names) != sorted(names, key=natural_key)  # negative control: the plain order is another


def test_folder_modes_and_exif_orientation(tmp_path):
    folder = tmp_path / "scene"
    folder.mkdir()
    pixels = numbered_frame(5)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(pixels).save(folder / "0.jpg", exif=exif)
    upright = np.ascontiguousarray(np.rot90(pixels, -1))
    Image.fromarray(upright[..., 0]).save(folder / "1.png")
    Image.fromarray(np.dstack([upright, upright[..., 0]])).save(folder / "2.png")
    video = Video(folder)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    frames = video.read([0, 1, 2])
    assert torch.equal(frames[1], frames[2])
    assert (frames[0].int() - frames[1].int()).abs().float().mean() < 4  # JPEG's loss


# ---- real videos


@needs_realdata
@pytest.mark.parametrize(
    "name", [pytest.param("video_640x480_30fps.mp4", marks=pytest.mark.slow), "video_320x240_30fps.mp4"]
)
def test_seven_scenes_video_shows_its_own_frames(name):
    """The video holds 1,000 frames, the folder every tenth of them."""
    root = Path(str(REALDATA)) / "scenes/7scenes_redkitchen"
    video, folder = Video(root / name), Video(root / "rgb")
    assert (video.num_frames, folder.num_frames) == (1000, 100)
    picks = [5, 33, 70, 90]
    size = video.height, video.width
    shown = torch.nn.functional.interpolate(folder.read(picks).float(), size, mode="area")

    def distance(offset: int) -> torch.Tensor:
        return (video.read([10 * pick + offset for pick in picks]).float() - shown).abs().mean((1, 2, 3))

    assert (distance(0) < 6).all()
    for offset in (-1, 1):  # negative control: the frames before and after are visibly others
        assert (distance(offset) > 1.3 * distance(0)).all()


@needs_realdata
def test_arkitscenes_video_and_its_frames():
    root = Path(str(REALDATA)) / "scenes/arkitscenes_47334096"
    video, folder = Video(root / "47334096_28frames_1fps.mp4"), Video(root / "frames")
    assert video.num_frames == folder.num_frames == 28
    assert (video.height, video.width) == (folder.height, folder.width) == (640, 480)
    difference = (video.read(range(28)).float() - folder.read(range(28)).float()).abs().mean((1, 2, 3))
    assert (difference < 4).all()
