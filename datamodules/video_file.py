"""Frames of a video file, decoded from the key frame before them, exact to the frame.

A frame's place is that of its packet in the order of presentation, so that a frame that comes out of the decoder
after a seek is known by its time stamp. Where a file's time stamps say too little, or a frame that was sought does
not come out, everything is decoded from the start: slower, never another frame.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

HIDDEN_FRAME_CODECS = ("vp8", "mpeg4")  # a packet may hold no frame that is shown: only decoding counts them
SKIPPING_CODECS = ("h264", "hevc")  # a frame that no other refers to is known by its header and can be left out
THREADED_PIXELS = 256 * 256  # smaller frames decode faster on one thread
SEEK_FRAMES = 16  # a seek costs about as much as decoding this many frames: the decoder starts anew
CUT_SHORT = 2  # frames by which a stream may end before its stated duration: that is rounded

RGB = UInt8[np.ndarray, "H W 3"]


class VideoError(ValueError):
    """A video that can't be read as it claims to be; one line that names the file."""


class VideoFile:
    """A video file, opened anew for each `read`.

    Attributes:
        num_frames, height, width, fps: see `datamodules.video.Video`.
        times_s: when each frame is shown, in seconds after the first.

    Raises:
        VideoError: here or in `read`, see `datamodules.video.Video`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.num_frames = path, 0
        self._pts: list[int] = []  # of each frame, in the order of presentation; empty if they say too little
        self._keys: list[int] = []  # frames that decoding can start at
        try:
            with av.open(path) as container:
                stream = self._video_stream(container)
                first = self._probe(container, stream)
                rate, codec = stream.average_rate or stream.guessed_rate, stream.codec_context.name
                time_base = float(stream.time_base or 0)
            if self.num_frames == 0:
                raise VideoError(f"{path}: the video has no frames: record or export it again")
            if first is None:
                raise VideoError(f"{path}: no frame of {self.num_frames} decodes: record or export it again")
            if codec in HIDDEN_FRAME_CODECS:
                self.num_frames = sum(1 for _ in self._everything())
                self._pts = self._keys = []
        except (av.FFmpegError, OSError) as error:
            if not path.exists():
                raise VideoError(f"{path}: no such video file or folder of frames") from error
            raise VideoError(
                f"{path}: not a video, or cut short ({error.strerror}): copy or export it again"
            ) from error
        upright = first.height, first.width
        self.height, self.width = upright[::-1] if _quarter_turns(first) % 2 else upright
        self.fps = float(rate) if rate else None
        self._skips = codec in SKIPPING_CODECS
        if self._pts:
            self.times_s = [(pts - self._pts[0]) * time_base for pts in self._pts]
        else:
            self.times_s = [i / (self.fps or 1.0) for i in range(self.num_frames)]

    def read(self, wanted: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        """(index, upright frame) of the wanted frames, in no particular order.

        Raises:
            VideoError: a frame that can't be decoded.
        """
        pending = set(wanted)
        reformatter = VideoReformatter()
        for decode in (self._sought, self._from_start):
            for i, frame in decode(sorted(pending)):
                # one thread: starting several for each frame costs more than they save
                rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                yield i, np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))
                pending.remove(i)
            if not pending:
                return
        missing = f"frame {min(pending)} of {self.num_frames}"
        raise VideoError(f"{self.path}: decoding ends before {missing}: copy or download it again")

    def plan(self, wanted: Sequence[int]) -> list[tuple[int | None, list[int]]]:
        """Stretches that are decoded in one go: (key frame to seek or None for the start, sorted wanted frames)."""
        stretches: list[tuple[int | None, list[int]]] = []
        decoded = 0  # where decoding would go on
        for i in sorted(wanted):
            key = self._keys[bisect_right(self._keys, i) - 1]
            if key - decoded > SEEK_FRAMES:
                stretches.append((key, [i]))
            elif stretches:
                stretches[-1][1].append(i)
            else:
                stretches.append((None, [i]))
            decoded = i + 1
        return stretches

    # ---- what is in the file

    def _video_stream(self, container: InputContainer) -> VideoStream:
        # album art in a music file is a video stream too, and a text file opens as a terminal's recording
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or container.format.name == "tty":
            what = "only sound in it" if container.streams.audio else "no video in it"
            raise VideoError(f"{self.path}: {what}: give a video file or a folder of frames")
        codec = streams[0].codec_context
        streams[0].thread_type = "AUTO" if codec.width * codec.height >= THREADED_PIXELS else "NONE"
        return streams[0]

    def _probe(self, container: InputContainer, stream: VideoStream) -> VideoFrame | None:
        """Counts the frames that the packets hold and notes their times; returns the first frame that decodes.

        Raises:
            VideoError: the file was cut short.
        """
        # mp4: the samples that its edit list keeps; the header's own count knows nothing of edits
        claimed = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        first: VideoFrame | None = None
        packets = discarded = 0
        end_s, corrupt = 0.0, False
        frame_s = 1 / float(stream.average_rate or 30)
        shown: list[tuple[int | None, bool]] = []  # time stamp, whether a key frame
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)  # type: ignore[arg-type]  # of a video stream
            if packet.size == 0:  # the flush packet at the end
                continue
            packets += 1
            discarded += packet.is_discard
            corrupt |= packet.is_corrupt
            if not packet.is_discard:
                shown.append((packet.pts, packet.is_keyframe))
            if packet.pts is not None and packet.time_base is not None:
                packet_s = max(float((packet.duration or 0) * packet.time_base), frame_s)
                end_s = max(end_s, float(packet.pts * packet.time_base) + packet_s)
        if corrupt or packets < claimed:
            of = f" of {claimed}" if claimed else ""
            raise VideoError(f"{self.path}: truncated after {packets}{of} frames: copy or download it again")
        stated_s = _stated_duration_s(stream)
        if stated_s is not None and end_s + CUT_SHORT * frame_s < stated_s:
            raise VideoError(f"{self.path}: truncated at {end_s:.2f} of {stated_s:.2f} s: download it again")
        self.num_frames = packets - discarded
        ordered = sorted((pts, is_key) for pts, is_key in shown if pts is not None)
        distinct = len({pts for pts, _ in ordered})
        if ordered and ordered[0][1] and distinct == self.num_frames:
            self._pts = [pts for pts, _ in ordered]
            self._keys = [i for i, (_, is_key) in enumerate(ordered) if is_key]
        return first

    # ---- decoding

    def _sought(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted frames as far as seeking finds them; those that it doesn't are left to `_from_start`."""
        if not self._pts or not wanted:
            return
        index = {pts: i for i, pts in enumerate(self._pts)}
        try:
            with av.open(self.path) as container:
                stream = self._video_stream(container)
                for key, stretch in self.plan(wanted):
                    if key is not None:
                        container.seek(self._pts[key], stream=stream)
                    pending = set(stretch)
                    for frame in self._fed(container, stream, {self._pts[i] for i in stretch}):
                        i = index.get(frame.pts, -1) if frame.pts is not None else -1
                        if i in pending and not frame.is_corrupt:
                            pending.remove(i)
                            yield i, frame
        except (av.FFmpegError, OSError):
            return  # damaged near here: decoding from the start finds out, and says so, if that is in the way

    def _fed(self, container: InputContainer, stream: VideoStream, wanted: set[int]) -> Iterator[VideoFrame]:
        """Frames from here to the last of those with the wanted time stamps; of the others, some are left out."""
        codec, unfed = stream.codec_context, set(wanted)
        for packet in container.demux(stream):
            if self._skips:
                codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from codec.decode(packet)
            unfed.discard(packet.pts)  # type: ignore[arg-type]  # None is not in there
            if not unfed:
                if packet.size:  # else the decoder is empty already
                    yield from codec.decode(None)  # all that is needed is in: no need to wait for what follows
                return

    def _from_start(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted frames, decoding all up to the last of them."""
        pending = set(wanted)
        try:
            for i, frame in enumerate(self._everything() if pending else ()):
                if i in pending:
                    yield i, frame
                    pending.remove(i)
                    if not pending:
                        return
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: damaged, frame {min(pending)} can't be decoded") from error

    def _everything(self) -> Iterator[VideoFrame]:
        """Every frame, in the order in which they are shown."""
        with av.open(self.path) as container:
            yield from container.decode(self._video_stream(container))


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
