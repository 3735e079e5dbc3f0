"""Selected and resized frames on disk, so that a video is decoded once for all epochs and runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from jaxtyping import UInt8
from torch import Tensor

from datamodules.resize import PixelBounds
from datamodules.video import Video
from zoo.files.cache import Cache
from zoo.files.fingerprint import file_fingerprint

VERSION = 1  # raise it when decoding or resizing gives other pixels, so that no entry is stale


@dataclass
class FrameCache(Cache):
    """A folder with the resized frames of each scene as bytes, one file per scene and selection.

    The key of an entry is the content of the video (of a folder, of the frames that are shown), the frames' numbers,
    and how they are resized. Data workers map its file into memory. It is written when its frames are first decoded;
    `cache-frames` fills the folder ahead of a run. A scene of 16 frames of 476 x 644 pixels takes 15 MB.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again: train with `--data.train_sampler null`.

    Args:
        folder: Where the entries are kept; other processes and runs may use it at the same time.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes: the least recently used entry makes room.

    Raises:
        InputError: A limit that is not positive, or below the size of one scene.
    """

    folder: str = "cache/frames"
    max_size_gb: float = 200.0
    option: ClassVar[str] = "--data.frame_cache"
    has_checksums: ClassVar[bool] = False  # a loader would read all pixels twice

    def frames(
        self,
        video: Video,
        indices: Sequence[int],
        bounds: PixelBounds,
        decode: Callable[[], UInt8[Tensor, "T 3 h w"]],
        **resizing: int | bool,
    ) -> UInt8[Tensor, "T 3 h w"]:
        """Read the resized frames of a video or of still images, or decode and keep them.

        Args:
            video: The video.
            indices: The frames.
            bounds: Of the resized frames.
            decode: Reads and resizes the frames.
            **resizing: Further arguments of `resize_frames`.

        Raises:
            InputError: One scene exceeds the limit.
        """
        files = video.files(indices)
        content = {file: file_fingerprint(file) for file in files}  # of images, a file may be shown several times
        key = {
            "files": [content[file] for file in files],
            "size_hw": [video.height, video.width],
            "indices": list(indices),
            "bounds": asdict(bounds),
            **resizing,
            "version": VERSION,
        }
        return self.get(key, lambda: {"frames": decode()})["frames"]
