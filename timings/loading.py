"""Loading a scene on one core: decoding, `--data.frame_cache`, and decord with transformers' processor.

    python -m timings.loading                       # clips of 640 x 480 pixels, 16 frames of each
    python -m timings.loading --frames 32 --scenes 8
    python -m timings.loading --videos data/arkitscenes/*.mp4

The time is from the path of a video to the vision encoder's patches, which is a data worker's work for a scene without
cameras. "cold" decodes and resizes, "first epoch" also writes the cache, "cached" maps it into memory. Each way reads
all scenes in turn. Seconds are per scene. The patches of the zoo's ways must be equal bit for bit. Files are in the
page cache.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules import FrameCache
from datamodules.dataset import SceneDataset
from datamodules.resize import PixelBounds, resize_frames
from datamodules.samplers import UniformSampler
from datamodules.scenes import Scene
from datamodules.video import Video
from timings.measure import interleaved, spread, timed
from timings.tables import markdown
from timings.video import write_clip
from zoo.backbones.qwen25_vl import tiny_preprocessor

Load = Callable[[], list[Tensor]]  # the patches of each scene
SECOND = 30  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", help="your own videos")
    parser.add_argument("--scenes", type=int, default=4, help="number of generated clips, without --videos")
    parser.add_argument("--seconds", type=float, default=30, help="length of each clip")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or list(made_clips(Path(folder), options))
        scenes = [Scene(f"clips/{video.stem}", video, ()) for video in videos]
        cache = FrameCache(f"{folder}/cache")
        ways: dict[str, Load] = {
            "cold": partial(load, scenes, options.frames, None),
            "first epoch": partial(first_epoch, scenes, options.frames, FrameCache(f"{folder}/first")),
            "cached": partial(load, scenes, options.frames, cache),
        }
        expected, found = load(scenes, options.frames, cache), ways["cached"]()
        if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            sys.exit("cached patches differ")
        try:
            importlib.import_module("decord")
            ways["decord, transformers' processor"] = partial(by_decord, scenes, options.frames)
        except ImportError:
            print("decord and transformers' processor are left out: pip install decord")
        seconds = interleaved(ways, options.repeats)
        print(f"\n{len(scenes)} scenes, {options.frames} frames each, one thread\n")
        print(markdown(list(rows(seconds, len(scenes)))))
        print(f"\nof a cold scene: {parts(scenes[0], options.frames)}")


def rows(seconds: dict[str, list[float]], count: int) -> Iterator[dict[str, object]]:
    """Yield the row of each way."""
    cold = statistics.median(seconds["cold"])
    for way, taken in seconds.items():
        middle = statistics.median(taken)
        yield {
            "way": way,
            "s a scene: median (least to most)": spread([each / count for each in taken]),
            "scenes a second and core": f"{count / middle:.1f}",
            "of cold": f"{middle / cold:.2f}",
        }


def load(scenes: Sequence[Scene], frames: int, cache: FrameCache | None) -> list[Tensor]:
    """Load scenes as a data worker does."""
    data = SceneDataset(scenes, UniformSampler(), frames, PixelBounds(), frame_cache=cache)
    preprocessor, patches = tiny_preprocessor(), []
    for number in range(len(scenes)):
        loaded = data[number]
        assert loaded.frames is not None, loaded.error
        patches.append(preprocessor.cut_patches(loaded.frames)[0])
    return patches


def first_epoch(scenes: Sequence[Scene], frames: int, cache: FrameCache) -> list[Tensor]:
    """Load scenes with an empty cache."""
    shutil.rmtree(cache.folder, ignore_errors=True)
    return load(scenes, frames, cache)


def by_decord(scenes: Sequence[Scene], frames: int) -> list[Tensor]:
    """Read videos as published code does: decord, then the original processor resizes, normalizes and cuts patches."""
    import decord

    processor, patches = tiny_preprocessor().processor.video_processor, []
    bounds = PixelBounds()
    size = {"shortest_edge": bounds.min_pixels * frames, "longest_edge": bounds.max_pixels * frames}
    for scene in scenes:
        reader = decord.VideoReader(str(scene.video), num_threads=1)
        chosen = np.linspace(0, len(reader) - 1, frames).round().astype(int).tolist()
        read = torch.from_numpy(reader.get_batch(chosen).asnumpy()).permute(0, 3, 1, 2)
        options = {"do_sample_frames": False, "cap_pixels_per_frame": False, "size": size, "return_tensors": "pt"}
        patches.append(processor(videos=[read], **options)["pixel_values_videos"])
    return patches


def parts(scene: Scene, count: int) -> str:
    """Return the seconds of each step of a cold scene, measured once."""
    made: dict[str, object] = {}

    def keep(name: str, make: Callable[[], object]) -> None:
        made[name] = make()

    def step(name: str, make: Callable[[], object]) -> str:
        return f"{name} {timed(lambda: keep(name, make)):.3f}"

    def video() -> Video:
        return made["open"]  # type: ignore[return-value]

    def indices() -> list[int]:
        return np.linspace(0, video().num_frames - 1, count).round().astype(int).tolist()

    preprocessor = tiny_preprocessor()
    steps = (
        step("open", lambda: Video(scene.video)),
        step("decode", lambda: video().read(indices())),
        step("resize", lambda: resize_frames(made["decode"])),  # type: ignore[arg-type]
        step("cut patches", lambda: preprocessor.cut_patches(made["resize"])),  # type: ignore[arg-type]
    )
    return ", ".join(steps)


def made_clips(folder: Path, options: argparse.Namespace) -> Iterator[Path]:
    """Yield clips with a key frame every second."""
    for number in range(options.scenes):
        path = folder / f"clip{number}.mp4"
        write_clip(path, SECOND, options.seconds, *options.size, seed=number)
        yield path


if __name__ == "__main__":
    main()
