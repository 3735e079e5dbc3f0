"""Cached frames are those that a video gives, whatever happened to the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules import FrameCache, PixelBounds, VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.samplers import UniformSampler
from datamodules.scenes import Scene
from datamodules.video import Video
from tests.datamodules.clips import numbered_frame, write_video
from zoo import InputError
from zoo.files import cache as files

SMALL, LARGE = PixelBounds(784, 65536), PixelBounds(784, 6000)


@pytest.fixture
def scenes(tmp_path: Path) -> list[Scene]:
    videos = [write_video(tmp_path / f"{i}.mp4", [numbered_frame(i + j) for j in range(9)]) for i in (0, 50)]
    return [Scene(f"clips/{video.stem}", video, ()) for video in videos]


def read(
    scenes: Sequence[Scene],
    cache: FrameCache | None,
    bounds: PixelBounds = SMALL,
    num_frames: int = 4,
    workers: int = 0,
) -> list[torch.Tensor]:
    data = SceneDataset(scenes, UniformSampler(), num_frames, bounds, frame_cache=cache)
    loaded = list(DataLoader(data, batch_size=None, num_workers=workers))
    assert not any(each.error for each in loaded), [each.error for each in loaded]
    return [each.frames for each in loaded]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_decoded_once_and_are_those_of_the_video(
    workers: int, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, expected = FrameCache(str(tmp_path / "cache")), read(scenes, None)
    assert same(read(scenes, cache, workers=workers), expected)
    with monkeypatch.context() as patch:
        patch.setattr(Video, "read", lambda *_: pytest.fail("decoded again"))
        kept = read(scenes, cache, workers=workers)
        assert same(kept, expected) and same(read(scenes, FrameCache(cache.folder)), expected)
    for frames in kept:
        frames.zero_()  # of this process alone: the file stays
    assert same(read(scenes, cache), expected)


def test_other_settings_and_other_content_are_other_entries(scenes: list[Scene], tmp_path: Path) -> None:
    cache = FrameCache(str(tmp_path / "cache"))
    read(scenes, cache)
    for bounds, count in ((LARGE, 4), (SMALL, 6)):
        assert same(read(scenes, cache, bounds, count), read(scenes, None, bounds, count))
    assert cache.num_computed == 6
    write_video(scenes[0].video, [numbered_frame(100 + j) for j in range(9)])
    assert same(read(scenes, cache), read(scenes, None)) and cache.num_computed == 7
    copied = scenes[0].video.rename(tmp_path / "copy.mp4")  # its content counts, and no name
    read([Scene("clips/copy", copied, ())], cache)
    assert cache.num_computed == 7


def test_an_uncompressed_video_with_other_frames_in_its_middle_is_another_entry(tmp_path: Path) -> None:
    """Its size and its ends are the same."""
    cache, found = FrameCache(str(tmp_path / "cache")), []
    for middle in (50, 90):
        shown = [numbered_frame(middle + i if 2 <= i < 22 else i, 168, 168) for i in range(24)]
        video = write_video(tmp_path / f"{middle}.avi", shown, codec="rawvideo", pix_fmt="bgr24")
        scene = Scene("clips/a", video, ())
        found.append(read([scene], cache, num_frames=6))
        assert same(found[-1], read([scene], None, num_frames=6))
    ends = [file.read_bytes()[-(1 << 16) :] for file in tmp_path.glob("*.avi")]
    assert cache.num_computed == 2 and ends[0] == ends[1] and not same(*found)


def test_of_a_folder_only_the_frames_that_are_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(numbered_frame(i)).save(folder / f"{i}.png")
    scenes, cache = [Scene("clips/a", folder, ())], FrameCache(str(tmp_path / "cache"))
    opened, open_file = [], Path.open
    expected = read(scenes, cache)
    monkeypatch.setattr(Path, "open", lambda file, *a, **k: opened.append(file) or open_file(file, *a, **k))
    assert same(read(scenes, cache), expected) and cache.num_computed == 1 and len(set(opened)) == 4
    Image.fromarray(numbered_frame(99)).save(next(iter(opened)))  # one that is shown
    assert same(read(scenes, cache), read(scenes, None)) and cache.num_computed == 2


def test_videos_that_are_kept_in_memory_need_no_cache() -> None:
    with pytest.raises(InputError, match="keep_in_memory reads no --data.frame_cache: set --data.keep_in_memory false"):
        VideoQADataModule(frame_cache=FrameCache(), keep_in_memory=True, num_workers=0)


def test_damaged_files_and_folders_that_cannot_be_written_cost_time_alone(
    scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, expected = FrameCache(str(tmp_path / "cache")), read(scenes, None)
    read(scenes, cache)
    first, second = sorted((tmp_path / "cache").iterdir())
    first.write_bytes(first.read_bytes()[:-100])  # cut short
    second.rename(first.with_name(f".{second.name}.partial"))  # as a kill leaves it
    assert same(read(scenes, cache), expected) and cache.num_computed == 4
    first.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.warns(UserWarning, match="an entry can't be kept .No space left"):
        assert same(read(scenes, cache), expected)


def test_the_least_recently_used_entry_makes_room(scenes: list[Scene], tmp_path: Path) -> None:
    one = read(scenes[:1], None)[0].numel()
    cache = FrameCache(str(tmp_path / "cache"), max_size_gb=1.9 * one / 1e9)
    for _ in range(2):
        read(scenes, cache)
    assert cache.num_computed == 4 and len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(InputError, match="--data.frame_cache.max_size_gb 0.0: must be positive"):
        FrameCache(max_size_gb=0.0)
    tiny = FrameCache(str(tmp_path / "cache"), max_size_gb=1e-6)
    data = SceneDataset(scenes, UniformSampler(), 4, SMALL, frame_cache=tiny)
    assert "raise --data.frame_cache.max_size_gb" in (data[0].error or "")
