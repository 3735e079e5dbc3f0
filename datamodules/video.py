"""Exact frames of a video file, decoded from the preceding key frame.

A frame's index is its packet's rank in presentation order. A frame that is decoded after a seek is identified by its
timestamp. If the packets don't tell which frames are shown, or a seek doesn't find a frame, the file is decoded from
the start, which is slower. Times are the timestamps of the shown frames.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

HIDDEN_FRAME_CODECS = ("vp8", "mpeg4")  # packets may hold no visible frame: frames must be decoded to be counted
UNORDERED_FORMATS = ("avi",)  # no presentation times: reordered frames must be decoded to be put in order
SKIPPING_CODECS = ("h264", "hevc")  # headers mark frames that no other frame refers to: decoding can skip them
H264_IDR = 5  # type of a unit in the stream
SEEK_FRAMES = 16  # a seek restarts the decoder and costs about as much as decoding this many frames
TRUNCATION_FRAMES = 2  # a stream may end this many frames before its stated duration, which is rounded

RGB = UInt8[np.ndarray, "H W 3"]


class VideoError(ValueError):
    """A video is missing, damaged or truncated. The message is one line that names the file."""


class VideoFile:
    """A video file. Each `read` opens it again.

    Attributes:
        num_frames: Exact number of frames.
        height: Height of the upright frames in pixels.
        width: Width of the upright frames in pixels.
        times_s: Presentation time of each frame in seconds after the first.

    Raises:
        VideoError: Raised here or in `read`, see `datamodules.video.Video`.
    """

    def __init__(self, path: Path, shows_damage: bool = False) -> None:
        self.path, self.num_frames, self.shows_damage = path, 0, shows_damage
        self._pts: list[int] = []  # timestamps in presentation order; empty if they don't identify the frames
        self._keys: list[int] = []  # key frames, and frame 0, which is reached from the start of the file
        self._is_strict = not shows_damage
        try:
            with self._open() as container:
                stream = self._video_stream(container)
                first = self._probe(container, stream)
                rate, time_base = stream.average_rate or stream.guessed_rate, float(stream.time_base or 0)
                self._skips = stream.codec_context.name in SKIPPING_CODECS
            if first is None or not self.num_frames:
                raise VideoError(f"{path}: no frame of {self.num_frames} can be decoded: record or export it again")
            stamps: list[int | None] = [*self._pts] or [frame.pts for _, frame in self._decode_all()]
            self.num_frames = len(stamps)
        except (av.FFmpegError, OSError) as error:
            if not path.exists():
                raise VideoError(f"{path}: no such video file or folder of frames") from error
            raise VideoError(f"{path}: not a video, or cut short ({error.strerror}): export it again") from error
        self.height, self.width = first.height, first.width
        if _quarter_turns(first) % 2:
            self.height, self.width = self.width, self.height
        # sorted, because packets of reordered codecs in AVI have timestamps in decoding order
        shown = sorted(pts for pts in stamps if pts is not None)
        if len(shown) == self.num_frames:
            self.times_s = [(pts - shown[0]) * time_base for pts in shown]
        else:
            self.times_s = [i / float(rate or 1) for i in range(self.num_frames)]

    def read(self, indices: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        """Decode frames, and yield (index, upright frame) in any order.

        Raises:
            VideoError: A frame can't be decoded.
        """
        pending = set(indices)
        reformatter = VideoReformatter()
        damage: Exception | None = None
        for frames in (self._decode_sought(sorted(pending)), self._decode_all()):
            if not pending:
                return
            try:
                for i, frame in frames:
                    if i in pending:
                        if frame.is_corrupt and not self.shows_damage:
                            raise self._damaged(self.times_s[i])
                        # one thread, because starting several per frame costs more than they save
                        rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                        yield i, np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))
                        pending.remove(i)
                    if not pending:
                        return
            except (av.FFmpegError, OSError, VideoError) as error:
                damage = error
        if isinstance(damage, VideoError):
            raise damage
        which = f"frame {min(pending)} of {self.num_frames}"
        raise VideoError(f"{self.path}: {which} can't be decoded: copy or download it again") from damage

    def plan(self, indices: Sequence[int]) -> list[tuple[int | None, list[int]]]:
        """Group frames into runs, each decoded without a seek inside.

        Returns:
            For each run, the key frame to seek to (None for the start of the file) and the sorted frames.
        """
        runs: list[tuple[int | None, list[int]]] = []
        decoded = 0  # next frame without a seek
        for i in sorted(indices):
            key = self._keys[bisect_right(self._keys, i) - 1]
            if key - decoded > SEEK_FRAMES:
                runs.append((key, [i]))
            elif runs:
                runs[-1][1].append(i)
            else:
                runs.append((None, [i]))
            decoded = i + 1
        return runs

    # ---- content of the file

    def _open(self) -> InputContainer:
        return av.open(self.path, metadata_errors="replace")  # metadata such as titles may have any encoding

    def _video_stream(self, container: InputContainer) -> VideoStream:
        # skip the cover art of a music file, and text files, which FFmpeg opens as terminal recordings ("tty")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or container.format.name == "tty":
            content = "only sound in it" if container.streams.audio else "no video in it"
            raise VideoError(f"{self.path}: {content}: give a video file or a folder of frames")
        codec = streams[0].codec_context
        if codec is None:  # PyAV has no decoder
            raise VideoError(f"{self.path}: its codec is unknown, or damaged: export it again as H.264")
        # One thread: FFmpeg's own threads can wait for each other forever in a data worker, when decoding ends before
        # the end of the file or the cores are busy (PyAV #1861, #1962). Several videos are decoded by several workers
        codec.thread_type, codec.thread_count = "NONE", 1
        return streams[0]

    def _probe(self, container: InputContainer, stream: VideoStream) -> VideoFrame | None:
        """Read all packets to count frames and record timestamps. Return the first decoded frame.

        Raises:
            VideoError: The file is truncated.
        """
        # mp4: the index respects the edit list, the frame count in the header does not
        stated = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        first: VideoFrame | None = None
        num_packets, end_s, is_corrupt = 0, 0.0, False
        frame_s = 1 / float(stream.average_rate or 30)
        stamps: list[tuple[int | None, bool, bool]] = []  # timestamp, is key frame, is shown
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)  # type: ignore[arg-type]  # frames of a video stream
            if packet.size == 0:  # the flush packet at the end
                continue
            num_packets += 1
            self._is_strict &= not packet.is_keyframe or _restarts(packet, stream.codec_context)
            is_corrupt |= packet.is_corrupt
            stamps.append((packet.pts, packet.is_keyframe, not packet.is_discard))
            if packet.pts is not None and packet.time_base is not None:
                packet_s = max(float((packet.duration or 0) * packet.time_base), frame_s)
                end_s = max(end_s, float(packet.pts * packet.time_base) + packet_s)
        if num_packets < stated and not is_corrupt and _is_whole_avi(self.path):  # the header counts dropped frames too
            counts = f"its header counts {stated} frames, it holds {num_packets}"
            warnings.warn(f"{self.path}: {counts}, which are read", stacklevel=1)
        elif is_corrupt or num_packets < stated:
            of_stated = f" of {stated}" if stated else ""
            raise VideoError(f"{self.path}: truncated after {num_packets}{of_stated} frames: copy or download it again")
        stated_s = _stated_duration_s(stream)
        if stated_s is not None and end_s + TRUNCATION_FRAMES * frame_s < stated_s:
            raise VideoError(f"{self.path}: truncated at {end_s:.2f} of {stated_s:.2f} s: download it again")
        self.num_frames = sum(is_shown for *_, is_shown in stamps)
        ordered = sorted((pts, is_key, is_shown) for pts, is_key, is_shown in stamps if pts is not None)
        is_distinct = len({pts for pts, *_ in ordered}) == len(stamps)
        # an edit list may hide the first key frame; without one at the start, the first frames can't be decoded
        if ordered and ordered[0][1] and is_distinct and not _must_be_decoded(container, stream):
            self._pts = [pts for pts, _, is_shown in ordered if is_shown]
            is_key_frame = [is_key for _, is_key, is_shown in ordered if is_shown]
            self._keys = [i for i, is_key in enumerate(is_key_frame) if is_key or i == 0]
        return first

    # ---- decoding

    def _decode_all(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yield all frames with their indices, in presentation order."""
        with self._open() as container:
            stream = self._video_stream(container)
            yield from enumerate(self._decode(stream, container.demux(stream)))

    def _decode(self, stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
        """Yield the frames of packets.

        Raises:
            VideoError: Data is damaged, and `_is_strict`.
        """
        codec, key = stream.codec_context, None
        if self._is_strict:
            codec.options = {"err_detect": "explode"}  # raises errors that are concealed otherwise
        for packet in packets:
            if key is None and packet.is_keyframe:
                key = packet
            try:
                frames = codec.decode(packet)
                is_damaged = self._is_strict and any(frame.is_corrupt for frame in frames)
            except av.FFmpegError:
                if not self._is_strict:
                    raise
                frames, is_damaged = [], True
            # frames that are shown before the first key frame may depend on frames that the file does not have
            if is_damaged and key is not None and (packet.pts is None or key.pts is None or packet.pts >= key.pts):
                start, time_base = stream.start_time or 0, float(stream.time_base or 0)
                raise self._damaged(None if packet.pts is None else (packet.pts - start) * time_base)
            yield from frames

    def _damaged(self, time_s: float | None) -> VideoError:
        at = "" if time_s is None else f" at {time_s:.2f} s"
        remedy = "copy or download it again, or show it as it is: --data.on_damage show"
        return VideoError(f"{self.path}: damaged{at}: {remedy}")

    def _decode_sought(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the frames that are found by decoding from their key frames."""
        if not self._pts:
            return
        with self._open() as container:
            stream = self._video_stream(container)
            for key, run in self.plan(indices):
                if key is not None:
                    container.seek(self._pts[key], stream=stream)
                index_of: dict[int | None, int] = {self._pts[i]: i for i in run}
                for frame in self._decode(stream, self._packets_until(container, stream, set(index_of))):
                    if frame.pts in index_of and not frame.is_corrupt:
                        yield index_of[frame.pts], frame

    def _packets_until(
        self, container: InputContainer, stream: VideoStream, wanted: set[int | None]
    ) -> Iterator[Packet]:
        """Yield packets up to the last one with a wanted timestamp. Unwanted frames may be skipped."""
        codec, remaining = stream.codec_context, set(wanted)
        for packet in container.demux(stream):
            if self._skips:
                codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield packet
            remaining.discard(packet.pts)
            if not remaining:
                if packet.size:  # else the decoder is flushed already
                    yield Packet()  # flush
                return


def _must_be_decoded(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether frames must be decoded to tell which are shown, and in which order."""
    codec = stream.codec_context
    return codec.name in HIDDEN_FRAME_CODECS or (container.format.name in UNORDERED_FORMATS and codec.codec.reorder)


def _restarts(packet: Packet, codec: VideoCodecContext) -> bool:
    """Return whether decoding can start at a key frame without errors in later frames.

    An H.264 key frame of an open group, or of a gradual refresh, is no IDR picture. Later frames then refer to frames
    before it, or release them, which is an error to a decoder that starts at the key frame.
    """
    if codec.name != "h264":
        return True
    data, header = bytes(packet), codec.extradata or b""
    units = data.split(b"\0\0\1")[1:]
    if header[:1] == b"\1":  # MP4 and Matroska write the length of a unit before it
        units, size = [], (header[4] & 3) + 1
        while data:
            end = size + int.from_bytes(data[:size], "big")
            units.append(data[size:end])
            data = data[end:]
    return any(unit and unit[0] & 31 == H264_IDR for unit in units)


def _is_whole_avi(path: Path) -> bool:
    """Return whether a file is an AVI that ends where its last chunk ends."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = 0
        while end + 8 <= size:
            file.seek(end)
            kind, length = struct.unpack("<4sI", file.read(8))
            if kind != b"RIFF":
                break
            end += 8 + length + length % 2
    return 0 < end <= size + 1  # the last padding byte may be absent


def _quarter_turns(frame: VideoFrame) -> int:
    """Return the counter-clockwise quarter turns that make the frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def _stated_duration_s(stream: VideoStream) -> float | None:
    """Return a track's duration in seconds as Matroska and WebM state it. They state no number of frames."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


# ---- Exact frames of a video file, a folder of images, several images, or frames in memory --------------------------
#     video = Video("kitchen.mp4")
#     frames = video.read([0, 40, 80])  # uint8 (3, 3, H, W)
#
# `num_frames` counts the frames in the file, whatever its header states. Rotation metadata is applied: height, width
# and frames are upright. Only the requested frames and the frames on which they depend are decoded

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
EXIF_ORIENTATION = 0x0112
UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow raises these


class Video:
    """A video file, a folder of .jpg/.png frames in natural order (frame 10000 after 9999), images, or a tensor.

    Args:
        path: The file or folder, the image files, or the frames as bytes.
        shows_damage: Whether damaged frames of a file are returned as the decoder guesses them. Otherwise they are an
            error, as far as the decoder notices: most in H.264 and MPEG-4, less in HEVC, little in VP9.

    Attributes:
        num_frames: Exact number of frames.
        height: Height of the upright frames in pixels.
        width: Width of the upright frames in pixels.
        times_s: Presentation time of each frame in seconds after the first. Without a video file, one frame per second.
        is_folder: Whether the frames are images in a folder.

    Raises:
        VideoError: Raised here or in `read`: the file is missing, damaged, truncated, empty, has only sound or is not a
            video, a frame is unreadable, frame sizes differ, or a folder has no frames.
    """

    def __init__(
        self, path: str | Path | Sequence[Path] | UInt8[Tensor, "N 3 H W"], *, shows_damage: bool = False
    ) -> None:
        self._file: VideoFile | None = None
        self.shows_damage = shows_damage
        self._frames = path if isinstance(path, Tensor) else None
        if isinstance(path, Tensor):
            self.path, self.is_folder = Path("frames"), False
            self.num_frames, _, self.height, self.width = path.shape
            self.times_s = [float(i) for i in range(self.num_frames)]
            return
        self.path = Path(path) if isinstance(path, (str, Path)) else path[0]
        self.is_folder = self.path.is_dir()
        if self.is_folder or not isinstance(path, (str, Path)):
            self._images = self._listed_images() if isinstance(path, (str, Path)) else list(path)
            self.num_frames = len(self._images)
            self.height, self.width = image_size(self._images[0])
            self.times_s = [float(i) for i in range(self.num_frames)]
        else:
            self._file = file = VideoFile(self.path, shows_damage)
            self.num_frames, self.height, self.width = file.num_frames, file.height, file.width
            self.times_s = file.times_s

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        """Decode frames.

        Args:
            indices: Frames in the order of the result, which may repeat. Only these are held in memory.

        Raises:
            IndexError: An index is outside 0 to num_frames - 1.
            VideoError: A frame can't be decoded.
        """
        rows_of: dict[int, list[int]] = {}
        for row, i in enumerate(indices):
            if not 0 <= i < self.num_frames:
                raise IndexError(f"{self.path}: no frame {i}, the video has {self.num_frames}")
            rows_of.setdefault(i, []).append(row)
        if self._frames is not None:
            return self._frames[list(indices)]
        frames = torch.empty((len(indices), 3, self.height, self.width), dtype=torch.uint8)
        for i, rgb in self._read_images(rows_of) if self._file is None else self._file.read(rows_of):
            if rgb.shape[:2] != (self.height, self.width):
                size = f"{rgb.shape[1]} x {rgb.shape[0]}, not {self.width} x {self.height}"
                raise VideoError(
                    f"{self.files([i])[0]}: frames of mixed sizes: frame {i} is {size}: resize or crop them to one size"
                )
            for row in rows_of[i]:
                frames[row] = torch.from_numpy(rgb).permute(2, 0, 1)
        return frames

    def in_memory(self) -> Video:
        """Return the same video with all of its frames decoded."""
        kept = copy(self)
        kept._frames = self.read(range(self.num_frames))
        return kept

    def files(self, indices: Sequence[int]) -> list[Path]:
        """Return the files that hold these frames: the video file, or one image per frame."""
        return [self.path] if self._file is not None else [self._images[i] for i in indices]

    def _listed_images(self) -> list[Path]:
        images = [p for p in self.path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
        if not images:
            raise VideoError(f"{self.path}: no frames in this folder ({', '.join(IMAGE_SUFFIXES)})")
        return sorted(images, key=lambda image: natural_key(image.name))

    def _read_images(self, indices: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        for i in indices:
            try:
                with Image.open(self._images[i]) as image:
                    upright = ImageOps.exif_transpose(image) if image.format == "JPEG" else image
                    yield i, np.array(to_rgb(upright))
            except UNREADABLE_IMAGE as error:
                raise _unreadable(self._images[i]) from error


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key for natural order: "frame_2", "frame_9999", "frame_10000"."""
    parts = re.split(r"([0-9]+)", name)
    return [(i % 2 == 1, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in 8-bit RGB. Grayscale of 16 bits is scaled by its range, which Pillow would clip to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))  # 65535 / 255
    return image.convert("RGB")


def media_path(text: str | Path) -> Path:
    """Return the path of a video or folder that has a name: `.` and `..` have none."""
    path = Path(text).expanduser()
    return path if path.name not in ("", "..") else path.resolve()


def companion_name(video: Path) -> str:
    """Return the stem of the files beside a video: its name without suffix, or the whole name of a folder."""
    return video.name if video.is_dir() else video.stem


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of the upright image in pixels, from its header.

    Raises:
        VideoError: The file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # orientations 5 to 8 swap the sides; reading the EXIF of a PNG would decode it
            sideways = image.format == "JPEG" and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except UNREADABLE_IMAGE as error:
        raise _unreadable(path) from error
    return (width, height) if sideways else (height, width)


def _unreadable(path: Path) -> VideoError:
    return VideoError(f"{path}: unreadable frame: remove it or extract it again")


def even_steps(total: int, n: int) -> list[int]:
    """Return at most n integers in even steps from 0 to total - 1, rounded down."""
    return np.unique(np.linspace(0, total - 1, min(total, n), dtype=int)).tolist()
