"""Only the frames needed are decoded, of a longer clip with a key frame a second: there is something to leave out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import pytest
import torch

from datamodules.video import Video, VideoError
from tests.datamodules.clips import (
    decode_everything,
    number_of,
    numbered_frame,
    shown_times_s,
    trim_video,
    write_folder,
    write_video,
)

LONG = [numbered_frame(i) for i in range(240)]
SECOND = {"bf": "3", "g": "30", "b_strategy": "0", "crf": "20"}
VP8 = {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "10"}
SQUARES = [i * i for i in range(240)]
SPARSE = [[0], [239], [17, 100, 101, 200], [5, 50, 95, 140, 185, 230], [31, 29, 30, 31], list(range(0, 240, 15))]
LONG_KINDS = {
    "b_frames.mp4": {"options": SECOND},
    "b_pyramid.mp4": {"options": SECOND | {"x264-params": "b-pyramid=normal:ref=4"}},
    "open_gop.mkv": {"options": SECOND | {"x264-params": "open-gop=1"}},
    "fragments.mp4": {"options": SECOND, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "short_gops.mp4": {"options": {"g": "3", "bf": "1"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=30", "bf": "0"}},
    "variable_rate.mp4": {"options": SECOND, "pts": SQUARES},
    "variable_rate.mkv": {"options": SECOND, "pts": [7 * i + i % 3 for i in range(240)]},
    "rotated.mp4": {"options": SECOND, "rotation": 90},
    "no_seeking.ts": {"options": SECOND},
    "variable_rate_vp8.webm": {"codec": "libvpx", "options": VP8, "pts": SQUARES},
    "variable_rate_mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}, "pts": SQUARES},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "variable_rate.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "pts": [7 * i + i % 3 for i in range(240)]},
}


@cache
def content(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        return write_video(Path(folder) / name, LONG, **LONG_KINDS[name]).read_bytes()


def long_video(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(content(name))
    return folder / name


@pytest.mark.parametrize("name", LONG_KINDS)
def test_sought_frames_are_those_of_decoding_everything(tmp_path, name):
    path = long_video(tmp_path, name)
    video, everything = Video(path), decode_everything(path)
    turns = 1 if name.startswith("rotated") else 0
    everything = torch.rot90(everything, turns, (2, 3))
    assert video.num_frames == len(everything) == 240
    for indices in SPARSE:
        assert torch.equal(video.read(indices), everything[indices])
    assert not torch.equal(video.read([95]), everything[[96]])  # negative control
    assert video.times_s == pytest.approx(shown_times_s(path), abs=1e-6)


@pytest.mark.parametrize(("name", "first"), [("variable_rate.mp4", 45), ("b_frames.mp4", 100), ("open_gop.mp4", 45)])
def test_a_clip_trimmed_without_encoding_shows_its_frames_at_their_times(tmp_path, name, first):
    kind = LONG_KINDS[name.replace("open_gop.mp4", "open_gop.mkv")]
    path = trim_video(write_video(tmp_path / name, LONG, **kind), tmp_path / "trimmed.mp4", first)
    video, everything = Video(path), decode_everything(path)
    count = 240 - first
    assert video.num_frames == len(everything) == count and number_of(everything[0]) == first
    for indices in ([0], [count - 1], [3, 71, 72, 138], list(range(0, count, 15))):
        assert torch.equal(video.read(indices), everything[indices])
    assert video.times_s == pytest.approx(shown_times_s(path), abs=1e-6)
    assert len(video._file.plan([3, count - 1])) == 2  # it is sought, although it doesn't begin with a key frame


def test_a_clip_that_lacks_its_first_key_frame(tmp_path):
    """Nothing is shown up to the next key frame; what is shown then has its own times."""
    source, path = long_video(tmp_path, "variable_rate.mp4"), tmp_path / "cut.ts"
    with av.open(str(source)) as whole, av.open(str(path), "w") as cut:
        stream = whole.streams.video[0]
        copied = cut.add_stream_from_template(stream)
        for packet in [packet for packet in whole.demux(stream) if packet.size][7:]:
            packet.stream = copied
            cut.mux(packet)
    video, everything = Video(path), decode_everything(path)
    assert video.num_frames == len(everything) < 233
    assert torch.equal(video.read([0, 100]), everything[[0, 100]])
    assert video.times_s == pytest.approx(shown_times_s(path), abs=1e-6)


def test_reordered_frames_of_an_avi(tmp_path):
    """AVI has no presentation times: those that are read are of packets in decoding order."""
    path = write_video(tmp_path / "b_frames.avi", LONG, options=SECOND)
    video, everything = Video(path), decode_everything(path)
    for indices in SPARSE:
        assert torch.equal(video.read(indices), everything[indices])
    assert video.times_s == pytest.approx([i / 30 for i in range(240)])


def test_odd_sizes_are_sought(tmp_path):
    frames = [numbered_frame(i, 35, 57) for i in range(120)]
    path = write_video(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p", options=SECOND)
    assert torch.equal(Video(path).read([7, 63, 119]), decode_everything(path)[[7, 63, 119]])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mkv", "variable_rate.mp4"])
def test_nothing_else_is_decoded(tmp_path, name):
    """With all else spoilt, the frames between two key frames still come out right; with those spoilt, they don't."""
    path = long_video(tmp_path, name)
    video, everything = Video(path), decode_everything(path)
    keys = video._file._keys
    start, end = keys[3], keys[5]  # an open group needs the key frame after it as well
    with av.open(str(path)) as container:
        packets = [(packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    number = {pts: i for i, (pts, *_) in enumerate(sorted(packets))}
    wanted = [start + 3, start + 8]

    def spoil(needed: bool) -> None:
        content = bytearray(original)
        for pts, position, size in packets:
            if (start <= number[pts] < end) == needed:
                content[position + 5 : position + size] = bytes(size - 5)  # a length that holds, nothing to decode
        path.write_bytes(content)

    original = path.read_bytes()
    spoil(needed=False)
    assert torch.equal(torch.stack([frame_of(video, i) for i in wanted]), everything[wanted])
    spoil(needed=True)
    with pytest.raises((VideoError, AssertionError)):  # negative control
        assert torch.equal(torch.stack([frame_of(video, i) for i in wanted]), everything[wanted])


def frame_of(video: Video, index: int) -> torch.Tensor:
    return video.read([index])[0]


def test_seeking_where_it_is_cheaper(tmp_path):
    file = Video(long_video(tmp_path, "b_frames.mp4"))._file
    assert file.plan(range(240)) == [(None, list(range(240)))]
    (first, near), *far = file.plan([5, 20, 95, 100, 239])
    assert (first, near) == (None, [5, 20])
    assert [wanted for _, wanted in far] == [[95, 100], [239]]
    assert all(0 <= wanted[0] - key < 30 and key in file._keys for key, wanted in far)


def test_time_stamps_that_lie_about_key_frames_do_not_change_a_frame(tmp_path):
    """What comes out after a seek is trusted only if it says that it is the frame that was sought."""
    path = long_video(tmp_path, "b_frames.mp4")
    video, everything = Video(path), decode_everything(path)
    video._file._keys = list(range(240))  # a seek to each of them lands elsewhere
    assert torch.equal(video.read([100, 187]), everything[[100, 187]])
    video._file._pts = [pts + 1 for pts in video._file._pts]  # and no frame has these
    assert torch.equal(video.read([100, 187]), everything[[100, 187]])


def test_times(tmp_path):
    steady = Video(long_video(tmp_path, "b_frames.mp4"))
    assert steady.times_s == pytest.approx([i / 30 for i in range(240)], abs=1e-6)
    uneven = Video(long_video(tmp_path, "variable_rate.mp4"))
    assert uneven.times_s == pytest.approx([i * i / 30 for i in range(240)], abs=1e-3)
    assert uneven.times_s[1] != pytest.approx(uneven.times_s[-1] / 239, abs=1e-3)  # negative control: the mean rate
    assert Video(write_folder(tmp_path / "folder", ["0.png", "1.png"])).times_s == [0.0, 1.0]
