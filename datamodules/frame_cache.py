"""Selected and resized frames on disk, so that a video is decoded once for all epochs and runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.resize import PixelBounds
from datamodules.video import Video
from zoo.files.cache_folder import CacheFolder, Description
from zoo.files.fingerprint import fingerprint, sampled_fingerprint

VERSION = 1  # raise it when decoding or resizing gives other pixels, so that no entry is stale
FRAMES = "frames"


@dataclass
class FrameCache:
    """A folder with the resized frames of each scene as bytes, one file per scene and selection.

    The name of an entry is a digest of the content of the video (of a folder, of the frames that are shown), of the
    frames' numbers and of how they are resized.
    Data workers map its file into memory. It is written when its frames are first decoded; `cache-frames` fills the
    folder ahead of a run. A scene of 16 frames of 476 x 644 pixels takes 15 MB.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again: train with `--data.train_sampler null`.

    Args:
        folder: Where the entries are kept; other processes and runs may use it at the same time.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes: the least recently used entry makes room.

    Raises:
        InputError: A limit that is not positive, or below the size of one scene.
    """

    folder: str = "cache/frames"
    max_size_gb: float = 200.0

    def __post_init__(self) -> None:
        self._entries = CacheFolder(self.folder, self.max_size_gb, "--data.frame_cache")
        self.num_decoded = 0  # entries that were absent

    def entry(self, video: Video, indices: Sequence[int], bounds: PixelBounds, **resizing: int | bool) -> Description:
        """Return everything that the resized frames of a video or of still images depend on.

        Args:
            video: The video.
            indices: The frames.
            bounds: Of the resized frames.
            **resizing: Further arguments of `resize_frames`.
        """
        files = video.files(indices)
        content = {file: sampled_fingerprint(file) for file in files}
        return {
            "files": [content[file] for file in files],
            "size_hw": [video.height, video.width],
            "indices": list(indices),
            "bounds": asdict(bounds),
            **resizing,
            "version": VERSION,
        }

    def get(self, entry: Description, decode: Callable[[], UInt8[Tensor, "T 3 h w"]]) -> UInt8[Tensor, "T 3 h w"]:
        """Read the frames of an entry, or decode and keep them; a file that was cut short counts as absent.

        Raises:
            InputError: One scene exceeds the limit.
        """
        try:
            with safe_open(self._entries.file(entry), framework="pt") as file:
                if file.metadata() == _metadata(entry):
                    frames: Tensor = file.get_tensor(FRAMES)  # mapped, and read when it is used
                    self._entries.mark_used(entry)
                    return frames
        except (OSError, SafetensorError, RuntimeError):  # absent, cut short, or evicted before torch opened it too
            pass
        frames = decode()
        self.num_decoded += 1
        try:
            self._entries.write(entry, save({FRAMES: frames}, _metadata(entry)))
        except OSError as error:
            warnings.warn(
                f"{self.folder}: frames can't be kept ({error.strerror}), so they are decoded again", stacklevel=2
            )
        return frames


def _metadata(entry: Description) -> dict[str, str]:
    return {"entry": fingerprint(json.loads(json.dumps(entry)))}
