"""Videos and folders whose frames carry their own number."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH, BITS = 32, 64, 8


def numbered_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3): the bits of the number as black and white columns."""
    levels = (number >> (np.arange(width) * BITS // width) & 1) * 255
    return np.broadcast_to(levels[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(frame: torch.Tensor) -> int:
    """Which numbered frame this is, from the middle of its columns."""
    columns = frame.float().mean((0, 1)).reshape(BITS, -1)
    margin = columns.shape[1] // 4
    levels = columns[:, margin:-margin].mean(1)
    return sum(int(level > 127) << bit for bit, level in enumerate(levels))


def write_video(path: Path, frames: list[np.ndarray], codec: str = "libx264", **settings) -> Path:
    """settings: options of the codec, of the container; pts in 1/30 s a frame; rotation; pix_fmt."""
    with av.open(str(path), "w", options=settings.get("container", {})) as container:
        stream = container.add_stream(codec, rate=30, options=settings.get("options", {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = settings.get("pix_fmt", "yuv420p")
        if "rotation" in settings:
            stream.set_display_rotation(settings["rotation"])
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = settings["pts"][i] if "pts" in settings else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_folder(folder: Path, names: list[str], **sizes) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(numbered_frame(i, *sizes.get(name, (HEIGHT, WIDTH)))).save(folder / name)
    return folder
