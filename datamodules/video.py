"""Frames of a video file or of a folder of images, exact to the frame.

    video = Video("kitchen.mp4")
    frames = video.read([0, 40, 80])  # uint8 (3, 3, H, W)

`num_frames` counts the packets in the file, not what the header claims. Rotation metadata is honoured: height, width
and frames are upright.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import torch
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
CUT_SHORT_S = 0.25  # a stream that ends this much before its stated duration is truncated


class VideoError(ValueError):
    """A video that can't be read as it claims to be; one line that names the file."""


class Video:
    """A video file, or a folder of .jpg/.png frames in natural order (frame 10000 after 9999).

    num_frames: exact; height, width: in pixels, upright; fps: frames a second, None for a folder;
    is_folder: whether the frames are images in a folder.

    Raises VideoError, here or in `read`, for a missing, truncated, zero-frame or audio-only file, for what is not a
    video, for an unreadable frame, for frames of mixed sizes and for a folder without frames.
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
        """The frames at `indices`, in that order; indices may repeat. Only the wanted frames are held in memory.

        Raises IndexError for an index outside 0..num_frames-1, VideoError for a frame that can't be decoded.
        """
        outside = [i for i in indices if not 0 <= i < self.num_frames]
        if outside:
            raise IndexError(f"{self.path}: no frame {outside[0]}, the video has {self.num_frames}")
        wanted = sorted(set(indices))
        frames = {i: self._read_image(i) for i in wanted} if self.is_folder else self._decode(wanted)
        if not indices:
            return torch.empty((0, 3, self.height, self.width), dtype=torch.uint8)
        stacked = torch.from_numpy(np.stack([frames[i] for i in indices]))
        return stacked.permute(0, 3, 1, 2).contiguous()

    # ---- a video file

    def _probe_file(self) -> tuple[int, int, int, float | None]:
        """(num_frames, height, width, fps), from the packets and the first frame."""
        try:
            with av.open(self.path) as container:
                stream = self._video_stream(container)
                num_frames = self._count_packets(container, stream)
                fps = stream.average_rate or stream.guessed_rate
            if num_frames == 0:
                raise VideoError(f"{self.path}: the video has no frames: record or export it again")
            first = next(self._decoded(), None)
            if first is None:
                raise VideoError(f"{self.path}: none of its {num_frames} frames decodes: is the file damaged?")
            if self._codec in HIDDEN_FRAME_CODECS:
                num_frames = sum(1 for _ in self._decoded())
        except (av.FFmpegError, OSError) as error:
            raise self._unreadable(error) from error
        height, width = first.height, first.width
        if _quarter_turns(first) % 2:
            height, width = width, height
        return num_frames, height, width, float(fps) if fps else None

    def _unreadable(self, error: Exception) -> VideoError:
        if not self.path.exists():
            return VideoError(f"{self.path}: no such video file or folder of frames")
        return VideoError(f"{self.path}: not a readable video, or cut short ({error.__class__.__name__})")

    def _video_stream(self, container: av.container.InputContainer) -> VideoStream:
        # album art in a music file is a video stream too, and a text file opens as a terminal recording
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams or container.format.name == "tty":
            what = "only sound in it" if container.streams.audio else "no video in it"
            raise VideoError(f"{self.path}: {what}: give a video file or a folder of frames")
        stream = streams[0]
        self._codec = stream.codec_context.name
        threaded = stream.codec_context.width * stream.codec_context.height >= THREADED_PIXELS
        stream.thread_type = "AUTO" if threaded else "NONE"
        return stream

    def _count_packets(self, container: av.container.InputContainer, stream: VideoStream) -> int:
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
            raise VideoError(f"{self.path}: truncated: {packets} of {claimed or 'an unknown number of'} frames are there")
        duration_s = _stated_duration_s(stream)
        if duration_s is not None and end_s + CUT_SHORT_S < duration_s:
            raise VideoError(f"{self.path}: truncated: {end_s:.2f} of {duration_s:.2f} seconds are there")
        return packets - discarded

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every frame in the order in which it is shown."""
        with av.open(self.path) as container:
            yield from container.decode(self._video_stream(container))

    def _decode(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """index -> (H, W, 3) uint8, decoding from the start up to the last wanted frame."""
        frames: dict[int, np.ndarray] = {}
        reformatter, pending = VideoReformatter(), set(wanted)
        try:
            for i, frame in enumerate(self._decoded()):
                if i in pending:
                    # one thread: starting several for each frame costs more than they save
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    frames[i] = np.rot90(rgb, _quarter_turns(frame))
                    pending.remove(i)
                if not pending:
                    break
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: damaged before frame {max(wanted)}, decoding stops") from error
        if pending:
            raise VideoError(f"{self.path}: frame {min(pending)} of {self.num_frames} can't be decoded: cut short?")
        return self._same_size(frames)

    def _same_size(self, frames: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        for i, frame in frames.items():
            if frame.shape[:2] != (self.height, self.width):
                size = f"{frame.shape[1]} x {frame.shape[0]}, not {self.width} x {self.height}"
                raise VideoError(f"{self.path}: frames of mixed sizes: frame {i} is {size}")
        return frames

    # ---- a folder of frames

    @cached_property
    def _images(self) -> list[Path]:
        images = [p for p in self.path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
        if not images:
            raise VideoError(f"{self.path}: no frames in this folder ({', '.join(IMAGE_SUFFIXES)})")
        return sorted(images, key=lambda image: natural_key(image.name))

    def _check_image_sizes(self) -> tuple[int, int]:
        """(height, width) of all frames, from their headers."""
        sizes = [self._image_size(image) for image in self._images]
        for image, (height, width) in zip(self._images, sizes, strict=True):
            if (height, width) != sizes[0]:
                size = f"{width} x {height}, not {sizes[0][1]} x {sizes[0][0]} as the first frame"
                raise VideoError(f"{image}: frames of mixed sizes: this one is {size}")
        return sizes[0]

    def _image_size(self, path: Path) -> tuple[int, int]:
        try:
            with Image.open(path) as image:
                width, height = image.size
                sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
        except OSError as error:
            raise VideoError(f"{path}: unreadable frame: remove it or extract it again") from error
        return (width, height) if sideways else (height, width)

    def _read_image(self, index: int) -> np.ndarray:
        path = self._images[index]
        try:
            with Image.open(path) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on damaged files
            raise VideoError(f"{path}: unreadable frame: remove it or extract it again") from error


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key by which "frame_10000" comes after "frame_9999", not before "frame_2"."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that make the frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def _stated_duration_s(stream: VideoStream) -> float | None:
    """What Matroska and WebM state of a track, in seconds: they count no frames."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
