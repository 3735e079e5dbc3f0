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

VERSION = 2  # increase it when decoding or resizing changes pixels, so that no entry is stale


@dataclass
class FrameCache(Cache):
    """Folder with the resized frames of each scene, one file per scene and selection.

    An entry's key is the content of the video (for a folder, of the selected frames), the frame indices and the options
    of resizing. Frames are written when they are first decoded. `cache-frames` fills the folder ahead of a run.
    Processes that load data map the files into memory. A scene of 16 frames of 476 x 644 pixels takes 15 MB.

    Frames that are drawn anew in each epoch (`RandomSampler`) are never found again: train with `--data.train_sampler
    null`.

    Args:
        folder: Folder of the entries. Other processes and runs may use it at the same time.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes. Above it, the least recently used entries are
            removed.

    Raises:
        InputError: The limit is not positive, or below the size of one scene.
    """

    folder: str = "cache/frames"
    max_size_gb: float = 200.0
    option: ClassVar[str] = "--data.frame_cache"
    has_checksums: ClassVar[bool] = False  # checksums would make the loader read all pixels twice

    def frames(
        self,
        video: Video,
        indices: Sequence[int],
        bounds: PixelBounds,
        decode: Callable[[], UInt8[Tensor, "T 3 h w"]],
        **resizing: int | bool,
    ) -> UInt8[Tensor, "T 3 h w"]:
        """Return the resized frames of a video or of still images, from the cache or by decoding.

        Args:
            video: The video.
            indices: Indices of the frames.
            bounds: Pixel bounds of the resized frames.
            decode: Reads and resizes the frames.
            **resizing: Further arguments of `resize_frames`.

        Raises:
            InputError: One scene exceeds the limit.
        """
        files = video.files(indices)
        content = {file: file_fingerprint(file) for file in files}  # an image may be shown several times
        key = {
            "files": [content[file] for file in files],
            "size_hw": [video.height, video.width],
            "indices": list(indices),
            "bounds": asdict(bounds),
            "shows_damage": video.shows_damage,
            **resizing,
            "version": VERSION,
        }
        return self.get(key, lambda: {"frames": decode()})["frames"]
