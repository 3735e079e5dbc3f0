"""Read 16 and 128 frames of a clip by `Video`, and by decord and torchcodec if they are installed.

The time is from the path to the frames: open, index, decode, convert to RGB. Two clips show the same images in H.264
with B-frames: one with x264's default of a key frame every 250 frames, and one with a key frame per second, as phones
write them. Times are medians of interleaved repeats, each with a new Video. The table also lists the share of the clip
that our reader decodes, and the largest mean difference between a frame and ours. A difference of some tenths of a
level is another conversion to RGB, several levels are a wrong frame.

python -m timings.video [--seconds 30] [--size 640 480] [--frames 16 128] [--repeats 5] [--clip file.mp4]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from datamodules.video import Video
from timings.measure import interleaved
from timings.tables import markdown

FPS = 30
KEY_FRAMES = {"a key frame every 250 frames": 250, "a key frame a second": FPS}
Read = Callable[[Path, list[int]], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clip", type=Path, help="your own video, in place of generated clips")
    arguments = parser.parse_args()
    readers = available()
    with tempfile.TemporaryDirectory() as folder:
        clips = {arguments.clip.name: arguments.clip} if arguments.clip else make_clips(Path(folder), arguments)
        rows = [
            {"clip": name, "frames": count, **row(path, count, readers, arguments.repeats)}
            for name, path in clips.items()
            for count in arguments.frames
        ]
    print(markdown(rows))


def available() -> dict[str, Read]:
    """Return our reader and the others that can be imported. Print which can't."""
    readers: dict[str, Read] = {"ours": read_ours}
    for name, module, read in (
        ("decord", "decord", read_decord),
        ("torchcodec", "torchcodec.decoders", read_torchcodec),
    ):
        try:
            importlib.import_module(module)
            readers[name] = read
        except (ImportError, OSError, RuntimeError) as error:  # the last two: FFmpeg is missing or has another version
            print(f"{name} is left out: {str(error).splitlines()[0]} (pip install {name})")
    return readers


def row(path: Path, count: int, readers: dict[str, Read], repeats: int) -> dict[str, str]:
    total = Video(path).num_frames
    chosen = np.linspace(0, total - 1, count).round().astype(int).tolist()
    frames: dict[str, torch.Tensor] = {}

    def decode(reader: str) -> None:
        frames[reader] = readers[reader](path, chosen)

    times = interleaved({reader: partial(decode, reader) for reader in readers}, repeats, warm_up=False)
    medians = {reader: 1000 * statistics.median(seconds) for reader, seconds in times.items()}
    others = [medians[reader] for reader in readers if reader != "ours"]
    ours = frames.pop("ours").float()
    apart = [float((ours - other.float()).abs().mean((1, 2, 3)).max()) for other in frames.values()]
    return {f"{reader} ms": f"{median:.0f}" for reader, median in medians.items()} | {
        "ours / best": f"{medians['ours'] / min(others):.2f}" if others else "-",
        "decoded": f"{share_fed(path, chosen):.0%}",
        "difference": f"{max(apart):.2f}" if apart else "-",
    }


def share_fed(path: Path, chosen: list[int]) -> float:
    """Return the share of the clip's frames from the key frames that are sought to the requested frames."""
    file = Video(path)._file
    assert file is not None
    if not file._keys:
        return 1.0
    return sum(max(wanted) + 1 - (key or 0) for key, wanted in file.plan(chosen)) / file.num_frames


def read_ours(path: Path, chosen: list[int]) -> torch.Tensor:
    return Video(path).read(chosen)


def read_decord(path: Path, chosen: list[int]) -> torch.Tensor:
    import decord

    return torch.from_numpy(decord.VideoReader(str(path)).get_batch(chosen).asnumpy()).permute(0, 3, 1, 2)


def read_torchcodec(path: Path, chosen: list[int]) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path), num_ffmpeg_threads=0).get_frames_at(chosen).data  # 0: one thread per core


def make_clips(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    clips = {}
    for name, keys in KEY_FRAMES.items():
        clips[name] = folder / f"every_{keys}.mp4"
        write_clip(clips[name], keys, arguments.seconds, *arguments.size)
    return clips


def write_clip(path: Path, keys: int, seconds: float, width: int, height: int, seed: int = 0) -> None:
    """Write a clip of a camera that pans over a textured wall, with noise: about the bit rate of a real scan."""
    rng = np.random.default_rng(seed)
    wall = np.kron(rng.integers(0, 255, (height // 8 + 1, width // 4 + 1, 3)), np.ones((16, 16, 1))).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(keys), "preset": "fast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(round(seconds * FPS)):
            x = round((wall.shape[1] - width) * (0.5 + 0.5 * np.sin(i / 60)))
            y = round((wall.shape[0] - height) * (0.5 + 0.5 * np.cos(i / 45)))
            picture = wall[y : y + height, x : x + width] + rng.integers(-6, 7, (height, width, 1), np.int16)
            picture = np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
