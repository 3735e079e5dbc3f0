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


def trim_video(source: Path, path: Path, first: int) -> Path:
    """An MP4 without the frames before `first` and not encoded again, as telephones trim: an edit list hides them."""
    with av.open(str(source)) as whole:
        start = sorted(packet.pts for packet in whole.demux(video=0) if packet.size)[first]
    with av.open(str(source)) as whole, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as trimmed:
        stream = whole.streams.video[0]
        copied = trimmed.add_stream_from_template(stream)
        whole.seek(start, stream=stream)  # to the key frame before
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copied
                trimmed.mux(packet)
    return path


def write_folder(folder: Path, names: list[str], **sizes) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(numbered_frame(i, *sizes.get(name, (HEIGHT, WIDTH)))).save(folder / name)
    return folder


def decode_everything(path: Path) -> torch.Tensor:
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def shown_times_s(path: Path) -> list[float]:
    """The slow, obvious reference: when each frame is shown, from decoding everything."""
    with av.open(str(path)) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    return [time_s - times_s[0] for time_s in times_s]


FRAMES = [numbered_frame(i) for i in range(50)]
B_FRAMES = {"bf": "3", "g": "12", "crf": "20"}
KINDS = {
    "h264_b_frames.mp4": {"options": B_FRAMES},
    "faststart.mp4": {"options": B_FRAMES, "container": {"movflags": "faststart"}},
    "h264_open_gop.mov": {"options": B_FRAMES | {"x264-params": "open-gop=1"}},
    "h264_fragments.mp4": {"options": B_FRAMES, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"options": B_FRAMES},
    "h264.avi": {"options": {"bf": "0"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "10"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "10"}},
    "variable_rate.mkv": {"options": B_FRAMES, "pts": [i * i for i in range(len(FRAMES))]},
    "variable_rate.mp4": {"options": B_FRAMES, "pts": [i * i for i in range(len(FRAMES))]},
}
