"""Frames are exact: each test frame carries its own number, and is compared with decoding everything."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from datamodules.video import Video, VideoError, VideoFile
from tests.datamodules.clips import HEIGHT, WIDTH, number_of, numbered_frame, write_folder, write_video

COUNT = 240
FRAMES = [numbered_frame(i) for i in range(COUNT)]
SECOND = {"bf": "3", "g": "30", "b_strategy": "0", "crf": "20"}  # a key frame a second
ALT_REF = {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "10"}
SQUARES = [i * i for i in range(COUNT)]
UNEVEN = [7 * i + i % 3 for i in range(COUNT)]
KINDS = {
    "b_frames.mp4": {"options": SECOND},
    "faststart.mp4": {"options": SECOND, "container": {"movflags": "faststart"}},
    "b_pyramid.mp4": {"options": SECOND | {"x264-params": "b-pyramid=normal:ref=4"}},
    "open_gop.mkv": {"options": SECOND | {"x264-params": "open-gop=1"}},
    "open_gop.mov": {"options": SECOND | {"x264-params": "open-gop=1"}},
    "open_gop_hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=30:open-gop=1"}},
    "fragments.mp4": {"options": SECOND, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "short_gops.mp4": {"options": {"g": "3", "bf": "1"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=30", "bf": "0"}},
    "variable_rate.mp4": {"options": SECOND, "pts": SQUARES},
    "variable_rate.mkv": {"options": SECOND, "pts": UNEVEN},
    "no_seeking.ts": {"options": SECOND},
    "h264.avi": {"options": {"bf": "0"}},
    "reordered.avi": {"options": SECOND},
    "variable_rate_vp8.webm": {"codec": "libvpx", "options": ALT_REF, "pts": SQUARES},
    "vp9.webm": {"codec": "libvpx-vp9", "options": ALT_REF},
    "variable_rate_mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}, "pts": SQUARES},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "variable_rate.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "pts": UNEVEN},
}
CHOICES = [[0], [239], [17, 100, 101, 200], [5, 50, 95, 140, 185, 230], [31, 29, 30, 31], list(range(0, 240, 15))]


@cache
def content(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        return write_video(Path(folder) / name, FRAMES, **KINDS[name]).read_bytes()


def video_file(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(content(name))
    return folder / name


def decode_everything(path: Path) -> torch.Tensor:
    """The slow, obvious reference."""
    with av.open(str(path)) as container:
        to_rgb = partial(VideoReformatter().reformat, format="rgb24")  # one for all frames, which is 4 times as fast
        frames = [torch.from_numpy(to_rgb(frame).to_ndarray()) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def shown_times_s(path: Path) -> list[float]:
    """When each frame is shown, from decoding everything."""
    with av.open(str(path)) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    return [time_s - times_s[0] for time_s in times_s]


@pytest.mark.parametrize("name", KINDS)
def test_frames_and_times_are_those_of_decoding_everything(name: str, tmp_path: Path) -> None:
    path = video_file(tmp_path, name)
    video, everything = Video(path), decode_everything(path)
    assert (video.num_frames, video.height, video.width, video.is_folder) == (COUNT, HEIGHT, WIDTH, False)
    for indices in CHOICES:
        frames = video.read(indices)
        assert frames.dtype == torch.uint8 and frames.is_contiguous() and torch.equal(frames, everything[indices])
        assert [number_of(frame) for frame in frames] == indices
    assert not torch.equal(video.read([95]), everything[[96]])  # negative control: off by one
    if name == "reordered.avi":  # AVI has no presentation times: those of its packets are in decoding order
        assert video.times_s == pytest.approx([i / 30 for i in range(COUNT)])
    else:
        assert video.times_s == pytest.approx(shown_times_s(path), abs=1e-6)


@pytest.mark.parametrize(("height", "width", "pixels"), [(288, 320, "yuv420p"), (35, 57, "yuv444p")])
def test_large_frames_and_odd_sizes(height: int, width: int, pixels: str, tmp_path: Path) -> None:
    frames = [numbered_frame(i, height, width) for i in range(70)]
    path = write_video(tmp_path / "a.mp4", frames, pix_fmt=pixels, options=SECOND)
    assert torch.equal(Video(path).read([0, 7, 45, 69]), decode_everything(path)[[0, 7, 45, 69]])


def test_decoding_starts_no_threads(tmp_path: Path) -> None:
    """Threads of FFmpeg can wait for each other forever in a data worker."""
    path = write_video(tmp_path / "a.mp4", [numbered_frame(i, 288, 320) for i in range(70)], options=SECOND)
    tasks = "/proc/self/task"
    threads = len(os.listdir(tasks))
    for _ in VideoFile(path).read([0, 45]):
        assert len(os.listdir(tasks)) == threads
    with av.open(str(path)) as container:  # negative control
        container.streams.video[0].thread_type = "AUTO"
        next(container.decode(video=0))
        assert len(os.listdir(tasks)) > threads


def test_no_indices_and_indices_outside(tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "a.mp4", FRAMES[:4]))
    assert video.read([]).shape == (0, 3, HEIGHT, WIDTH)
    assert [number_of(frame) for frame in video.read([3, 1, 1, 0, 3])] == [3, 1, 1, 0, 3]
    for outside in (-1, 4):
        with pytest.raises(IndexError, match=rf"a\.mp4: no frame {outside}"):
            video.read([0, outside])


# ---- files whose headers say something else than their packets


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


@pytest.mark.parametrize(
    ("name", "first"),
    [("variable_rate.mp4", 45), ("b_frames.mp4", 100), ("open_gop.mov", 45), ("open_gop_hevc.mp4", 45)],
)
def test_a_clip_trimmed_without_encoding_shows_its_frames_at_their_times(name: str, first: int, tmp_path: Path) -> None:
    path = trim_video(video_file(tmp_path, name), tmp_path / "trimmed.mp4", first)
    video, everything = Video(path), decode_everything(path)
    count = COUNT - first
    assert video.num_frames == len(everything) == count and number_of(everything[0]) == first
    for indices in ([0], [count - 1], [3, 71, 72, 138], list(range(0, count, 15))):
        assert torch.equal(video.read(indices), everything[indices])
    assert video.times_s == pytest.approx(shown_times_s(path), abs=1e-6)


def test_a_trimmed_end_is_no_truncation(tmp_path: Path) -> None:
    path = video_file(tmp_path, "b_frames.mp4")
    changed = bytearray(path.read_bytes())
    place = changed.find(b"elst") + 12
    (duration,) = struct.unpack_from(">I", changed, place)
    struct.pack_into(">I", changed, place, duration // 2)
    path.write_bytes(changed)
    assert Video(path).num_frames == len(decode_everything(path)) == 120
    assert number_of(Video(path).read([119])[0]) == 119


def test_a_clip_that_lacks_its_first_key_frame(tmp_path: Path) -> None:
    """Nothing is shown up to the next key frame; what is shown then has its own times."""
    source, path = video_file(tmp_path, "variable_rate.mp4"), tmp_path / "cut.ts"
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


@pytest.mark.parametrize("stated", [10, 60])
def test_a_header_that_counts_other_frames(stated: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = write_video(tmp_path / "lie.avi", FRAMES[:50], options={"bf": "0"})
    changed = bytearray(path.read_bytes())
    place = changed.find(b"strh") + 40
    assert struct.unpack_from("<I", changed, place) == (50,)
    struct.pack_into("<I", changed, place, stated)
    path.write_bytes(changed)
    assert Video(path).num_frames == 50
    assert [str(path) in str(each.message) for each in recwarn] == ([] if stated < 50 else [True])
    if stated > 50:
        path.write_bytes(changed[:-100])  # negative control: the file itself is shorter than it should be
        with pytest.raises(VideoError, match=r"lie\.avi: truncated after 50 of 60 frames"):
            Video(path)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mkv", "variable_rate.mp4"])
def test_nothing_else_is_decoded(name: str, tmp_path: Path) -> None:
    """With all else spoilt, the frames between two key frames still come out right; with those spoilt, they don't."""
    path = video_file(tmp_path, name)
    video, everything, original = Video(path), decode_everything(path), path.read_bytes()
    with av.open(str(path)) as container:
        packets = sorted((p.pts, p.pos, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size)
    keys = [number for number, (*_, is_key) in enumerate(packets) if is_key]
    start, end = keys[3], keys[5]  # an open group needs the key frame after it as well
    wanted = [start + 3, start + 8]

    def are_right(is_needed_spoilt: bool) -> bool:
        changed = bytearray(original)
        for number, (_, position, size, _) in enumerate(packets):
            if (start <= number < end) == is_needed_spoilt:
                changed[position + 5 : position + size] = bytes(size - 5)  # a length that holds, nothing to decode
        path.write_bytes(changed)
        try:
            return all(torch.equal(video.read([number])[0], everything[number]) for number in wanted)
        except VideoError:
            return False

    assert are_right(is_needed_spoilt=False)
    assert not are_right(is_needed_spoilt=True)  # negative control


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_stated_rotation_is_carried_out_counter_clockwise(degrees: int, tmp_path: Path) -> None:
    plain = Video(write_video(tmp_path / "plain.mp4", FRAMES[:9])).read([3])
    video = Video(write_video(tmp_path / "turned.mp4", FRAMES[:9], rotation=degrees))
    upright = torch.rot90(plain, degrees // 90, (2, 3))
    assert (video.height, video.width) == tuple(upright.shape[2:]) and torch.equal(video.read([3]), upright)
    assert not torch.equal(video.read([3]).flip(2, 3), upright)  # negative control: not the other way round


def test_a_telephone_held_upright(tmp_path: Path) -> None:
    """The matrix of ISO 14496-12 that sends (x, y) to (height - y, x): shown turned clockwise."""
    path = write_video(tmp_path / "telephone.mp4", FRAMES[:9])
    plain, changed = Video(path).read([5]), bytearray(path.read_bytes())
    struct.pack_into(
        ">9i", changed, changed.find(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30
    )
    path.write_bytes(changed)
    video = Video(path)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    assert torch.equal(video.read([5]), torch.rot90(plain, -1, (2, 3)))


# ---- folders of frames


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    names = ["frame_2.png", "frame_999.jpg", "frame_9999.png", "frame_10000.jpeg", "frame_10001.PNG"]
    folder = write_folder(tmp_path / "scene", names)
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame_3.png").write_text("what macOS leaves")
    video = Video(folder)
    assert (video.num_frames, video.height, video.width, video.is_folder) == (5, HEIGHT, WIDTH, True)
    assert [number_of(frame) for frame in video.read([4, 0, 3, 3])] == [4, 0, 3, 3] and sorted(names) != names
    assert video.times_s == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_modes_and_exif_orientation_of_pictures(tmp_path: Path) -> None:
    folder, exif = tmp_path / "scene", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(numbered_frame(5)).save(folder / "0.jpg", exif=exif)
    upright = np.ascontiguousarray(np.rot90(numbered_frame(5), -1))
    Image.fromarray(upright[..., 0]).save(folder / "1.png")
    Image.fromarray(np.dstack([upright, upright[..., 0]])).save(folder / "2.png")
    video = Video(folder)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    frames = video.read([0, 1, 2])
    assert torch.equal(frames[1], frames[2])
    assert (frames[0].int() - frames[1].int()).abs().float().mean() < 4  # JPEG's loss


def test_grayscale_of_16_bits_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    (tmp_path / "scene").mkdir()
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "scene/0.png")
    frame = Video(tmp_path / "scene").read([0])[0].double()
    assert (frame - torch.from_numpy(ramp) / 257).abs().max() <= 0.51  # clipped at 255, nearly all of it is white


# ---- what won't do is named in one line


@pytest.mark.parametrize("name", ["faststart.mp4", "b_frames.mp4", "variable_rate.mkv", "mpeg4.avi", "vp9.webm"])
def test_a_truncated_file_is_an_error(name: str, tmp_path: Path) -> None:
    path = video_file(tmp_path, name)
    for share in (0.1, 0.6):
        path.write_bytes(content(name)[: int(len(content(name)) * share)])
        with pytest.raises(VideoError, match=name) as error:
            Video(path)
        assert "\n" not in str(error.value)


def test_a_file_cut_between_two_frames_is_an_error(tmp_path: Path) -> None:
    path = video_file(tmp_path, "faststart.mp4")
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(VideoError, match=r"faststart\.mp4: truncated after 239 of 240 frames"):
        Video(path)


def test_packets_that_do_not_decode_are_an_error_when_they_are_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES[:50], options={"g": "1", "bf": "0"})
    video, changed = Video(path), bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets[30:]:
        changed[start : start + size] = b"\xff" * size
    path.write_bytes(changed)
    assert number_of(video.read([29])[0]) == 29
    with pytest.raises(VideoError, match=r"a\.mp4: damaged at 1\.00 s: .* --data.on_damage show$"):
        video.read([29, 49])


@pytest.mark.parametrize("name", ["b_frames.mp4", "variable_rate.mkv", "variable_rate_mpeg4.mp4"])
def test_most_damage_is_an_error_and_is_shown_on_request(name: str, tmp_path: Path) -> None:
    path, rng = video_file(tmp_path, name), np.random.default_rng(0)
    shown, whole = list(range(0, COUNT, 10)), Video(path).read(range(0, COUNT, 10))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 40]
    wrong = dict.fromkeys((False, True), 0)
    for place, size in rng.choice(packets, 12):
        changed = bytearray(content(name))
        changed[place + size // 2 : place + size] = rng.bytes(size - size // 2)
        path.write_bytes(changed)
        for shows_damage in wrong:
            try:
                frames = Video(path, shows_damage=shows_damage).read(shown)
            except VideoError as error:
                said = str(error).removeprefix(f"{path}: ")
                assert re.match("damaged at [0-9.]+ s: |not a video, or cut short ", said)
            else:
                wrong[shows_damage] += not torch.equal(frames, whole)
    assert wrong[False] <= 1 < 6 <= wrong[True]


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def write_no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        container.start_encoding()


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "no such video file or folder of frames"),
    "sound.mp4": (write_sound, "only sound in it"),
    "zero.avi": (write_no_frames, "no frame"),
    "zero.mkv": (write_no_frames, "cut short"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "not a video"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 100), "not a video"),
    "notes.txt": (lambda path: path.write_text("opens as a terminal's recording\n" * 100), "no video in it"),
    "noise.mp4": (lambda path: path.write_bytes(bytes(range(256)) * 40), "not a video"),
    "empty": (lambda path: path.mkdir(), "no frames in this folder"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(VideoError) as error:
        Video(tmp_path / name)
    message = str(error.value)
    assert str(tmp_path / name) in message and reason in message and "\n" not in message


def test_bad_pictures_of_a_folder_are_named_when_they_are_read(tmp_path: Path) -> None:
    mixed = write_folder(tmp_path / "mixed", ["0.png", "1.png", "2.png"], **{"2.png": (HEIGHT, HEIGHT)})
    for frames in (mixed, [mixed / f"{i}.png" for i in range(3)]):
        with pytest.raises(VideoError, match=r"mixed/2\.png: frames of mixed sizes: .*32 x 32, not 64 x 32"):
            Video(frames).read([0, 2])
    damaged = write_folder(tmp_path / "damaged", ["0.png", "1.jpg", "2.png"])
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(damaged / "1.jpg")
    (damaged / "1.jpg").write_bytes((damaged / "1.jpg").read_bytes()[:-300])
    (damaged / "2.png").write_bytes(b"no image")
    assert len(Video(damaged).read([0])) == 1
    for number, name in ((1, "1.jpg"), (2, "2.png")):
        with pytest.raises(VideoError, match=f"{name}: unreadable frame"):
            Video(damaged).read([0, number])
