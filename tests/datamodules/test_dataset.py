"""A scene as it is read: its frames, cameras and times are those of the frames that sampler and pairing chose.

Frames in memory, kept frames and cached frames are the same as those of a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from datamodules import (
    Augmentation,
    Consecutive,
    DatasetDepth,
    Duplicate,
    FrameCache,
    FramePairing,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    PixelBounds,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    Rooms,
    SpaceAwareSampler,
    UniformSampler,
    VideoQADataModule,
)
from datamodules.cameras_file import read_cameras, write_cameras
from datamodules.dataset import SceneDataset
from datamodules.depth import read_depth
from datamodules.inference import load_frames, load_video
from datamodules.scenes import Question, Scene
from datamodules.video import Video
from tests.conftest import ROOMS
from tests.datamodules.batches import question_batch, training_batch
from tests.datamodules.clips import HEIGHT, WIDTH, numbered_frame, write_folder, write_video
from tests.poses import random_poses
from zoo import GeometryPretraining, InputError, Qwen25VL, TinyVGGT
from zoo.backbones import tiny_preprocessor
from zoo.cameras import SceneGeometry, normalize_intrinsics
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

TINY = PixelBounds(784, 65536, legacy_folder_resize=False)
NEEDS = ModelSpec(requires_cameras=True, requires_depth=True)
QUESTION = Question("1", "object_counting", "How many?", "4")
SAMPLERS = {
    "uniform": UniformSampler,
    "random": RandomSampler,
    "space_aware": lambda candidates=None: SpaceAwareSampler(DatasetDepth(28), candidates=candidates, cache=None),
    "pose_farthest": PoseFarthestSampler,
    "pose_plane": PosePlaneSampler,
}
PAIRINGS = (Consecutive(), Neighbor(), Duplicate(), Duplicate("views"), OffsetNeighbor(step=2))


def rooms(rooms_root: Path, split: Any = "test") -> list[Scene]:
    return Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes(split)


def dataset(rooms_root: Path, sampler: FrameSampler, pairing: FramePairing) -> SceneDataset:
    return SceneDataset(rooms(rooms_root), sampler, 8, TINY, spec=NEEDS, frame_pairing=pairing)


@pytest.mark.parametrize(("sampler", "pairing"), [*zip(SAMPLERS, PAIRINGS, strict=True)])
def test_cameras_depth_and_times_follow_the_frames(sampler: str, pairing: FramePairing, rooms_root: Path) -> None:
    scenes = dataset(rooms_root, SAMPLERS[sampler](), pairing)
    loaded = scenes[0]
    chosen, video = list(loaded.frame_indices), Video(scenes.scenes[0].video)
    assert len(chosen) == (16 if vars(pairing).get("keep") == "views" else 8)
    assert torch.equal(loaded.frames, video.read(chosen))  # 56 x 56 stay as they are
    poses, K = read_cameras(scenes.scenes[0].cameras, video.num_frames, video.height, video.width)
    assert torch.equal(loaded.geometry.world_to_camera, poses[chosen])
    assert torch.equal(loaded.geometry.K_normalized, K[chosen])
    everything = SceneDataset(scenes.scenes, UniformSampler(), 48, TINY, spec=NEEDS)[0]
    assert torch.equal(loaded.geometry.depth, everything.geometry.depth[chosen])
    assert not torch.equal(loaded.geometry.depth, everything.geometry.depth[[i - 1 for i in chosen]])  # control
    first = [video.times_s[i] for i in chosen[::2]]
    assert loaded.seconds_per_grid == pytest.approx((first[-1] - first[0]) / (len(first) - 1))


def test_pictures_of_a_folder_have_the_times_of_their_cameras(tmp_path: Path) -> None:
    """Poses that were not known have left gaps: the times say so, a frame a second would not."""
    folder, times_s = tmp_path / "clip", [0.0, 0.1, 0.2, 7.0, 7.1, 7.2, 7.3, 7.4]
    write_folder(folder, [f"{i}.png" for i in range(8)])

    def steps(**times: list[float]) -> Any:
        file, poses = tmp_path / "clip.cameras.json", torch.eye(4).repeat(8, 1, 1)
        write_cameras(file, poses, torch.eye(3)[None], width=WIDTH, height=HEIGHT, **times)
        scene = Scene("mine/clip", folder, (), file)
        loaded = SceneDataset([scene], UniformSampler(), 8, TINY, spec=ModelSpec(requires_cameras=True))[0]
        return loaded.error or loaded.seconds_per_grid

    assert steps(times_s=times_s) == pytest.approx(7.3 / 3)  # the first of four pairs at 0.0, the last at 7.3
    assert steps() == 2.0  # control: a frame a second
    assert "times_s must be 8 increasing numbers" in steps(times_s=times_s[::-1])
    assert "times_s must be 8 increasing numbers" in steps(times_s=times_s[1:])


# ---- scenes that can't be read


class Stalling(SceneDataset):
    """Fails so many times before it reads a scene."""

    def __init__(self, folder: Path, error: Exception, failures: int) -> None:
        super().__init__([Scene("a/b", folder, (QUESTION,))], UniformSampler(), 2, PixelBounds(784, 784))
        self.error, self.failures, self.calls = error, failures, 0

    def open(self, index: int) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return super().open(index)


@pytest.mark.parametrize(("failures", "calls", "is_read"), [(0, 1, True), (1, 2, True), (2, 2, False)])
def test_a_scene_is_tried_twice(failures: int, calls: int, is_read: bool, tmp_path: Path) -> None:
    for frame in range(2):
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / f"{frame}.png")
    for kind in (OSError, ValueError, RuntimeError, IndexError):
        stalling = Stalling(tmp_path, kind("stalled"), failures)
        loaded = stalling[0]
        assert stalling.calls == calls and (loaded.frames is not None) == is_read
        assert str(loaded.error).startswith("None" if is_read else f"a/b: {kind.__name__}: stalled ({__file__}:")
        if not is_read:  # the name stands also in front of a message that contains it, as a part of a path
            told = Stalling(tmp_path, kind("/home/bob: stalled"), failures)[0]
            assert str(told.error).startswith(f"a/b: {kind.__name__}: /home/bob: stalled (")
    with pytest.raises(ZeroDivisionError):  # a bug is no fault of the scene
        Stalling(tmp_path, ZeroDivisionError(), 1)[0]


def test_damaged_depth_that_is_only_predicted_costs_no_answer(rooms_root: Path, tmp_path: Path) -> None:
    scene = replace(rooms(rooms_root)[0], depth=tmp_path)
    learned, read = ModelSpec(targets=("depth",)), ModelSpec(requires_depth=True)
    asked = SceneDataset([scene], UniformSampler(), 4, TINY, spec=learned)[0]
    assert asked.error is None and asked.frames is not None and asked.geometry is not None
    assert asked.geometry.depth is None and "0 depth images for 48 frames" in str(asked.target_error)
    preprocessor = tiny_preprocessor()
    answered, trained = (build(preprocessor, asked) for build in (question_batch, training_batch))
    assert not answered.failed and {each["unmeasured"] for each in answered.records} == {asked.target_error}
    assert {each["error"] for each in trained.failed} == {asked.target_error} and not trained.records
    assert "0 depth images" in str(SceneDataset([scene], UniformSampler(), 4, TINY, spec=read)[0].error)


def test_depth_that_is_only_read_is_loaded_where_a_scene_has_it(rooms_root: Path, tmp_path: Path) -> None:
    scene = rooms(rooms_root)[0]

    def load(scene: Scene, spec: ModelSpec) -> LoadedScene:
        return SceneDataset([scene], UniformSampler(), 4, TINY, spec=spec)[0]

    reads = ModelSpec(reads_depth=True)
    (with_depth, without), unasked = (load(each, reads) for each in (scene, replace(scene, depth=None))), ModelSpec()
    assert with_depth.geometry is not None and torch.equal(with_depth.geometry.depth, load(scene, NEEDS).geometry.depth)
    assert without.error is None and without.geometry is not None and without.geometry.depth is None
    assert load(scene, unasked).geometry.depth is None  # the control
    assert "0 depth images" in str(load(replace(scene, depth=tmp_path), reads).error)


class Blank(Augmentation):
    """A crop that keeps no pixel with known depth."""

    def __call__(self, scene: LoadedScene) -> LoadedScene:
        assert scene.geometry is not None and scene.geometry.depth is not None
        blank = {**scene.geometry.present(), "depth": scene.geometry.depth * 0}
        return replace(scene, geometry=SceneGeometry(**blank))


def test_a_crop_without_known_depth_is_an_error_of_the_scene(rooms_root: Path) -> None:
    """A loss on it would be NaN."""

    def load(augmentation: Augmentation | None, spec: ModelSpec) -> LoadedScene:
        return SceneDataset(rooms(rooms_root), UniformSampler(), 4, TINY, spec=spec, augmentation=augmentation)[0]

    assert "no pixel of frames" in str(load(Blank(), NEEDS).error)
    assert load(None, NEEDS).error is None
    assert load(Blank(), ModelSpec(targets=("depth",))).error is None  # unknown depth has no loss


# ---- a task that asks no questions


class Kept(Callback):
    """The batches of all stages."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, *_: Any) -> None:
        self.batches.append(batch)

    on_validation_batch_start = on_test_batch_start = on_train_batch_start


@pytest.mark.filterwarnings("error:You have overridden")  # a hook, in the task and in the DataModule
def test_fit_and_test_of_vggt_tokenize_nothing(rooms_root: Path, tmp_path: Path) -> None:
    source = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    data = VideoQADataModule(source, num_frames=4, pixels=TINY, num_workers=0, batch_size=2)
    task, kept, control = (
        GeometryPretraining(TinyVGGT(embed_dim=32, depth=2, heads=("camera", "depth"))),
        Kept(),
        Kept(),
    )

    def trainer(callback: Kept) -> Trainer:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        limits: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 1, "limit_test_batches": 1}
        quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path, "enable_checkpointing": False}
        return Trainer(callbacks=[callback], **limits, **quiet)

    trainer(kept).fit(task, data)
    trainer(kept).test(task, data, verbose=False)
    trainer(control).test(Qwen25VL(allow_untrained=True, max_new_tokens=1), data, verbose=False)
    assert len(kept.batches) == 3 and control.batches[0].prompts  # a sanity check, a training step and a test
    for batch in kept.batches:
        assert batch.sequences is None and not batch.prompts and not batch.records and not batch.failed
        assert all(len(scene.frames) == len(scene.geometry.depth) == 4 for scene in batch.scenes)
        assert all(scene.geometry.has_cameras for scene in batch.scenes)


# ---- frames in memory

COUNT = 5  # odd: the last frame is merged with itself
TIMES_S = [0.0, 0.4, 1.7, 2.0, 5.1]
PIXELS = PixelBounds(784, 2352, legacy_folder_resize=False)


def folder_of_frames(folder: Path) -> tuple[torch.Tensor, SceneGeometry]:
    """A folder of frames with cameras, one of them unknown, and depth; and the same in memory."""
    write_folder(folder, [f"{i}.png" for i in range(COUNT)])
    poses, K_px = random_poses(COUNT), torch.tensor([[[60.0, 0, 30], [0, 50, 14], [0, 0, 1]]]).double()
    poses[1] = torch.nan
    write_cameras(folder.with_suffix(".cameras.json"), poses, K_px, width=WIDTH, height=HEIGHT, times_s=TIMES_S)
    depth = folder.with_suffix(".depth")
    depth.mkdir()
    for i, millimeters in enumerate(np.random.default_rng(0).integers(1, 5000, (COUNT, 20, 30)).astype(np.uint16)):
        Image.fromarray(millimeters).save(depth / f"{i}.png")
    frames = [np.array(Image.open(folder / f"{i}.png")) for i in range(COUNT)]
    geometry = SceneGeometry(
        world_to_camera=poses.where(poses.isfinite(), torch.eye(4).double()),
        K_normalized=normalize_intrinsics(K_px, WIDTH, HEIGHT).expand(COUNT, 3, 3),
        has_camera=torch.arange(COUNT) != 1,
        depth=read_depth(depth, range(COUNT), num_frames=COUNT, size_hw=(20, 30)),
    )
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), geometry


@pytest.mark.parametrize(
    ("num_frames", "pairing", "frames_as", "seconds"),
    [
        (COUNT + 1, None, "video", "clip"),
        (COUNT + 1, None, "video", "sampled_fps"),
        (2 * COUNT, Duplicate(), "video", "sampled_fps"),
        (2 * COUNT, Neighbor(), "video", "clip"),
        (2 * COUNT, OffsetNeighbor(), "video", "sampled_fps"),
        (COUNT, None, "image", "clip"),
        (COUNT, None, "labeled_image", "clip"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the last one is repeated")
def test_frames_in_memory_are_read_as_those_in_a_folder(
    num_frames: int, pairing: FramePairing | None, frames_as: Any, seconds: Any, tmp_path: Path
) -> None:
    frames, geometry = folder_of_frames(tmp_path / "clip")
    data = VideoQADataModule(num_frames=num_frames, frame_pairing=pairing, frames_as=frames_as, pixels=PIXELS)
    data.image_pixels = PIXELS
    model: Any = SimpleNamespace(model_spec=lambda: replace(NEEDS, seconds=seconds))
    stored = load_video(model, data, tmp_path / "clip")
    found = load_frames(model, data, frames, TIMES_S, as_images=False, geometry=geometry)
    assert stored.error is None and stored.geometry is not None and found.geometry is not None
    assert stored.frames is not None and found.frames is not None and torch.equal(stored.frames, found.frames)
    for name in ("frame_indices", "seconds_per_grid", "frame_times", "num_images", "labels", "true_geometry"):
        assert getattr(stored, name) == getattr(found, name)
    assert stored.geometry.present().keys() == found.geometry.present().keys() >= {"world_to_camera", "depth"}
    for name, value in stored.geometry.present().items():
        torch.testing.assert_close(found.geometry.present()[name], value, rtol=0, atol=1e-12)
    assert geometry.depth is not None and found.geometry.depth is not None  # negative control: another kernel
    depth = geometry.depth[list(found.frame_indices)]
    assert not torch.equal(interpolate(depth[None], found.frames.shape[-2:], mode="nearest")[0], found.geometry.depth)


def test_images_in_memory_have_no_labels_and_other_ranges_are_refused() -> None:
    """Pictures of a chat are images of their own, however the model is shown the frames of a video."""
    data = VideoQADataModule(frames_as="labeled_image", pixels=PIXELS)
    model: Any = SimpleNamespace(model_spec=lambda: ModelSpec())
    loaded = load_frames(model, data, torch.zeros(3, 3, 56, 84, dtype=torch.uint8), None, as_images=True)
    assert (loaded.num_images, loaded.labels, loaded.frame_indices) == (3, None, (0, 0, 1, 1, 2, 2))
    for value, kind, reason in (
        (-1.0, torch.float32, "-1 to"),
        (torch.nan, torch.float32, "nan"),
        (0, torch.int32, "int32"),
    ):
        frames = torch.full((1, 3, 56, 84), value, dtype=kind)
        with pytest.raises(InputError, match=f"{reason}.*: give bytes.*, or floats in 0..1"):
            load_frames(model, data, frames, None, as_images=False)


# ---- kept in memory, or on disk


@pytest.mark.parametrize("keep", [True, False])
def test_kept_scenes_are_read_once(keep: bool, tmp_path: Path) -> None:
    folder_of_frames(tmp_path / "clip")
    scene = Scene("clip", tmp_path / "clip", (QUESTION,), tmp_path / "clip.cameras.json", tmp_path / "clip.depth")
    kept = SceneDataset([scene], UniformSampler(), 4, TINY, spec=NEEDS, keep=keep, frame_pairing=Duplicate())
    first = kept[0]
    for file in scene.depth.iterdir():
        file.write_bytes(b"damaged")
    again = kept[0]
    assert first.error is None and (again.error is None) == keep
    assert not keep or torch.equal(again.geometry.depth, first.geometry.depth)


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
def test_cached_frames_are_decoded_once_and_are_those_of_the_video(
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


def test_all_of_a_video_counts_and_of_a_folder_the_frames_that_are_shown(tmp_path: Path) -> None:
    """The two uncompressed videos are of one size and of equal ends."""
    cache, found = FrameCache(str(tmp_path / "cache")), []
    for middle in (50, 90):
        shown = [numbered_frame(middle + i if 2 <= i < 22 else i, 168, 168) for i in range(24)]
        video = write_video(tmp_path / f"{middle}.avi", shown, codec="rawvideo", pix_fmt="bgr24")
        found.append(read([Scene("clips/a", video, ())], cache, num_frames=6))
    ends = [file.read_bytes()[-(1 << 16) :] for file in tmp_path.glob("*.avi")]
    assert cache.num_computed == 2 and ends[0] == ends[1] and not same(*found)

    folder = write_folder(tmp_path / "frames", [f"{i}.png" for i in range(40)])
    scenes = [Scene("clips/a", folder, ())]
    read(scenes, cache)
    for changed, computed in ((1, 3), (39, 4)):  # one that is not shown, and one that is
        Image.fromarray(numbered_frame(99)).save(folder / f"{changed}.png")
        assert same(read(scenes, cache), read(scenes, None)) and cache.num_computed == computed


def test_damaged_files_and_folders_that_cannot_be_written_cost_time_alone(scenes: list[Scene], tmp_path: Path) -> None:
    cache, expected = FrameCache(str(tmp_path / "cache")), read(scenes, None)
    read(scenes, cache)
    first, second = sorted((tmp_path / "cache").iterdir())
    first.write_bytes(first.read_bytes()[:-100])  # cut short
    second.rename(first.with_name(f".{second.name}.partial"))  # as a kill leaves it
    assert same(read(scenes, cache), expected) and cache.num_computed == 4
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="an entry can't be kept"):
        assert same(read(scenes, FrameCache(str(tmp_path / "file"))), expected)


def test_the_least_recently_used_entry_makes_room(scenes: list[Scene], tmp_path: Path) -> None:
    one = read(scenes[:1], None)[0].numel()
    cache = FrameCache(str(tmp_path / "cache"), max_size_gb=1.9 * one / 1e9)
    for _ in range(2):
        read(scenes, cache)
    assert cache.num_computed == 4 and len(list((tmp_path / "cache").iterdir())) == 1
    tiny = FrameCache(str(tmp_path / "cache"), max_size_gb=1e-6)
    data = SceneDataset(scenes, UniformSampler(), 4, SMALL, frame_cache=tiny)
    assert "raise --data.frame_cache.max_size_gb" in (data[0].error or "")
    with pytest.raises(InputError, match="--data.frame_cache.max_size_gb 0.0"):
        FrameCache(max_size_gb=0.0)
    with pytest.raises(InputError, match="--data.keep_in_memory false"):
        VideoQADataModule(frame_cache=FrameCache(), keep_in_memory=True, num_workers=0)


def feed(path: Path, content: bytes) -> None:
    """Writes the content into a named pipe again and again, until nobody reads it."""
    with suppress(BrokenPipeError), path.open("wb") as pipe:
        for each in repeat(content):
            pipe.write(each)


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "is_silent"), [(0, True), (1, False)])
def test_a_stream_that_never_ends_is_a_named_error(num_workers: int, is_silent: bool, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts", [numbered_frame(i) for i in range(8)])
    stuck = tmp_path / "stuck.ts"
    os.mkfifo(stuck)
    if not is_silent:
        Thread(target=feed, args=(stuck, whole.read_bytes()), daemon=True).start()
    scenes = [Scene(f"mine/{video.stem}", video, (QUESTION,)) for video in (stuck, whole)]
    shown = SceneDataset(scenes, UniformSampler(), 4, TINY, timeout_s=3.0)
    guard = {"timeout": 60} if num_workers else {}  # it fails if a worker hangs
    loaded, other = DataLoader(shown, batch_size=None, num_workers=num_workers, **guard)
    assert loaded.error is not None and loaded.frames is None and loaded.questions == (QUESTION,)
    assert loaded.error.startswith(f"mine/stuck: {stuck}: not read within 3 s: ") and "--data.timeout_s" in loaded.error
    assert "\n" not in loaded.error
    assert other.error is None and other.frames is not None  # the same worker goes on
    os.close(os.open(stuck, os.O_RDWR | os.O_NONBLOCK))  # let go of a waiting thread
    with pytest.raises(InputError, match="--data.timeout_s 0: above 0, or null"):
        VideoQADataModule(timeout_s=0.0)
