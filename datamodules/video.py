"""Frames of a video file or of a folder of images, exact to the frame.

    video = Video("kitchen.mp4")
    frames = video.read([0, 40, 80])  # uint8 (3, 3, H, W)

`num_frames` counts what is in the file, not what its header claims. Rotation metadata is honoured: height,
width and frames are upright.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
HIDDEN_FRAME_CODECS = ("vp8", "mpeg4")  # a packet may hold no frame that is shown: only decoding counts them
THREADED_PIXELS = 256 * 256  # smaller frames decode faster on one thread
CUT_SHORT = 2  # frames by which a stream may end before its stated duration: that is rounded
EXIF_ORIENTATION = 0x0112

RGB = UInt8[np.ndarray, "H W 3"]


class VideoError(ValueError):
    """A video that can't be read as it claims to be; one line that names the file."""


class Video:
    """A video file, or a folder of .jpg/.png frames in natural order (frame 10000 after 9999).

    Attributes:
        num_frames: how many frames there are, exactly.
        height, width: in pixels, upright.
        fps: frames a second on average; None for a folder.
        is_folder: whether the frames are images in a folder.

    Raises:
        VideoError: here or in `read`: a missing, truncated, zero-frame or audio-only file, something that is
            not a video, an unreadable frame, frames of mixed sizes, a folder without frames.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_folder = self.path.is_dir()
        self.fps: float | None = None
        if self.is_folder:
            self.num_frames = len(self._images)
            self.height, self.width = self._check_image_sizes()
        else:
            self.num_frames, self.height, self.width, self.fps = self._probe_file()

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        """The frames at `indices`, in that order; they may repeat. Only these are held in memory.

        Raises:
            IndexError: an index outside 0 to num_frames - 1.
            VideoError: a frame that can't be decoded.
        """
        rows_of: dict[int, list[int]] = {}
        for row, i in enumerate(indices):
            if not 0 <= i < self.num_frames:
                raise IndexError(f"{self.path}: no frame {i}, the video has {self.num_frames}")
            rows_of.setdefault(i, []).append(row)
        frames = torch.empty((len(indices), 3, self.height, self.width), dtype=torch.uint8)
        for i, rgb in self._read_images(rows_of) if self.is_folder else self._decode(rows_of):
            if rgb.shape[:2] != (self.height, self.width):
                size = f"{rgb.shape[1]} x {rgb.shape[0]}, not {self.width} x {self.height}"
                raise VideoError(f"{self.path}: frames of mixed sizes: frame {i} is {size}")
            for row in rows_of[i]:
                frames[row] = torch.from_numpy(rgb).permute(2, 0, 1)
        return frames

    # ---- a video file

    def _probe_file(self) -> tuple[int, int, int, float | None]:
        """(num_frames, height, width, fps), from the packets and the first frame."""
        try:
            with av.open(self.path) as container:
                stream = self._video_stream(container)
                num_frames = self._count_packets(container, stream)
                rate, codec = stream.average_rate or stream.guessed_rate, stream.codec_context.name
            if num_frames == 0:
                raise VideoError(f"{self.path}: the video has no frames: record or export it again")
            first = next(self._decoded(), None)
            if first is None:
                raise VideoError(f"{self.path}: no frame of {num_frames} decodes: record or export it again")
            if codec in HIDDEN_FRAME_CODECS:
                num_frames = sum(1 for _ in self._decoded())
        except (av.FFmpegError, OSError) as error:
            if not self.path.exists():
                raise VideoError(f"{self.path}: no such video file or folder of frames") from error
            raise VideoError(f"{self.path}: not a video, or cut short ({error.strerror})") from error
        upright = first.height, first.width
        height, width = upright[::-1] if _quarter_turns(first) % 2 else upright
        return num_frames, height, width, float(rate) if rate else None

    def _video_stream(self, container: InputContainer) -> VideoStream:
        # album art in a music file is a video stream too, and a text file opens as a terminal's recording
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or container.format.name == "tty":
            what = "only sound in it" if container.streams.audio else "no video in it"
            raise VideoError(f"{self.path}: {what}: give a video file or a folder of frames")
        codec = streams[0].codec_context
        streams[0].thread_type = "AUTO" if codec.width * codec.height >= THREADED_PIXELS else "NONE"
        return streams[0]

    def _count_packets(self, container: InputContainer, stream: VideoStream) -> int:
        """How many frames the packets hold; VideoError if the file was cut short."""
        # mp4: the samples that its edit list keeps; the header's own count knows nothing of edits
        claimed = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        packets = discarded = 0
        end_s, corrupt = 0.0, False
        frame_s = 1 / float(stream.average_rate or 30)
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet at the end
                continue
            packets += 1
            discarded += packet.is_discard
            corrupt |= packet.is_corrupt
            if packet.pts is not None and packet.time_base is not None:
                packet_s = max(float((packet.duration or 0) * packet.time_base), frame_s)
                end_s = max(end_s, float(packet.pts * packet.time_base) + packet_s)
        if corrupt or packets < claimed:
            of = f" of {claimed}" if claimed else ""
            raise VideoError(f"{self.path}: truncated after {packets}{of} frames: copy or download it again")
        stated_s = _stated_duration_s(stream)
        if stated_s is not None and end_s + CUT_SHORT * frame_s < stated_s:
            raise VideoError(f"{self.path}: truncated at {end_s:.2f} of {stated_s:.2f} s: download it again")
        return packets - discarded

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every frame, in the order in which they are shown."""
        with av.open(self.path) as container:
            yield from container.decode(self._video_stream(container))

    def _decode(self, wanted: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        """The wanted frames, decoding from the start up to the last of them."""
        pending = set(wanted)
        reformatter = VideoReformatter()
        try:
            for i, frame in enumerate(self._decoded() if pending else ()):
                if i in pending:
                    # one thread: starting several for each frame costs more than they save
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    yield i, np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))
                    pending.remove(i)
                    if not pending:
                        return
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: damaged, frame {min(pending)} can't be decoded") from error
        if pending:
            missing = f"frame {min(pending)} of {self.num_frames}"
            raise VideoError(f"{self.path}: decoding ends before {missing}: copy or download it again")

    # ---- a folder of frames

    @cached_property
    def _images(self) -> list[Path]:
        images = [p for p in self.path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
        if not images:
            raise VideoError(f"{self.path}: no frames in this folder ({', '.join(IMAGE_SUFFIXES)})")
        return sorted(images, key=lambda image: natural_key(image.name))

    def _check_image_sizes(self) -> tuple[int, int]:
        """(height, width) of all frames, from their headers."""
        height, width = _image_size(self._images[0])
        for image in self._images[1:]:
            if (size := _image_size(image)) != (height, width):
                other = f"{size[1]} x {size[0]}, the first one {width} x {height}"
                raise VideoError(f"{image}: frames of mixed sizes: this one is {other}")
        return height, width

    def _read_images(self, wanted: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        for i in wanted:
            try:
                with Image.open(self._images[i]) as image:
                    upright = ImageOps.exif_transpose(image) if image.format == "JPEG" else image
                    yield i, np.array(upright.convert("RGB"))
            except (OSError, SyntaxError) as error:  # Pillow raises both on damaged files
                raise _unreadable(self._images[i]) from error


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key by which "frame_10000" comes after "frame_9999", and "frame_2" before both."""
    parts = re.split(r"([0-9]+)", name)
    return [(i % 2 == 1, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # 5 to 8 swap the sides; asking a PNG would decode it
            sideways = image.format == "JPEG" and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError) as error:
        raise _unreadable(path) from error
    return (width, height) if sideways else (height, width)


def _unreadable(path: Path) -> VideoError:
    return VideoError(f"{path}: unreadable frame: remove it or extract it again")


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that make the frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def _stated_duration_s(stream: VideoStream) -> float | None:
    """What Matroska and WebM, which count no frames, state of a track, in seconds."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
