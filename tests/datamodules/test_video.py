"""Frames are exact: each test frame carries its own number, and is compared with decoding everything."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video import Video, VideoError, natural_key

HEIGHT, WIDTH, BITS = 32, 64, 8
REALDATA = os.environ.get("ZOO_REALDATA")
needs_realdata = pytest.mark.skipif(not REALDATA, reason="ZOO_REALDATA is unset: no real videos")


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


def decode_everything(path: Path) -> torch.Tensor:
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


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


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact(tmp_path, name):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    video = Video(path)
    everything = decode_everything(path)
    assert video.num_frames == len(everything) == len(FRAMES)
    assert (video.height, video.width, video.is_folder) == (HEIGHT, WIDTH, False)
    assert video.fps is not None and video.fps > 0
    for indices in ([0], [49], [3, 17, 18, 44], [48, 5, 5, 0, 48], list(range(50))):
        frames = video.read(indices)
        assert frames.dtype == torch.uint8 and frames.is_contiguous()
        assert [number_of(frame) for frame in frames] == indices
        assert torch.equal(frames, everything[indices])
    # negative control: the comparison notices a frame that is off by one
    assert not torch.equal(video.read([17]), everything[[18]])


def test_odd_sizes(tmp_path):
    frames = [numbered_frame(i, 35, 57) for i in range(9)]
    video = Video(write_video(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p"))
    assert (video.height, video.width) == (35, 57)
    assert video.read([0, 8]).shape == (2, 3, 35, 57)


def test_large_frames_on_several_threads(tmp_path):
    frames = [numbered_frame(i, 288, 320) for i in range(20)]
    path = write_video(tmp_path / "large.mp4", frames, options=B_FRAMES)
    assert torch.equal(Video(path).read([0, 7, 19]), decode_everything(path)[[0, 7, 19]])


def test_no_indices_and_indices_outside(tmp_path):
    video = Video(write_video(tmp_path / "a.mp4", FRAMES[:4]))
    assert video.read([]).shape == (0, 3, HEIGHT, WIDTH)
    for outside in (-1, 4):
        with pytest.raises(IndexError, match=rf"a\.mp4: no frame {outside}, the video has 4"):
            video.read([0, outside])


def test_a_header_that_lies_does_not_change_the_count(tmp_path):
    path = write_video(tmp_path / "lie.avi", FRAMES, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    frames_field = content.find(b"strh") + 40
    assert struct.unpack_from("<I", content, frames_field) == (50,)
    struct.pack_into("<I", content, frames_field, 10)
    path.write_bytes(content)
    assert Video(path).num_frames == 50


def test_an_edit_list_trims_the_count_and_is_no_truncation(tmp_path):
    path = write_video(tmp_path / "trimmed.mp4", FRAMES, options=B_FRAMES)
    content = bytearray(path.read_bytes())
    duration_field = content.find(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, duration_field)
    struct.pack_into(">I", content, duration_field, duration // 2)
    path.write_bytes(content)
    assert Video(path).num_frames == len(decode_everything(path)) == 25
    assert number_of(Video(path).read([24])[0]) == 24


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata(tmp_path, degrees):
    """A stated rotation of n degrees counter-clockwise is carried out."""
    plain = Video(write_video(tmp_path / "plain.mp4", FRAMES[:9])).read([3])
    video = Video(write_video(tmp_path / "turned.mp4", FRAMES[:9], rotation=degrees))
    upright = torch.rot90(plain, degrees // 90, (2, 3))
    assert (video.height, video.width) == tuple(upright.shape[2:])
    assert torch.equal(video.read([3]), upright)
    assert not torch.equal(video.read([3]).flip(2, 3), upright)  # negative control: not the other way round


def test_a_telephone_held_upright(tmp_path):
    """The matrix of ISO 14496-12 that sends (x, y) to (height - y, x): shown turned clockwise."""
    path = write_video(tmp_path / "telephone.mp4", FRAMES[:9])
    plain = Video(path).read([5])
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content)
    video = Video(path)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    assert torch.equal(video.read([5]), torch.rot90(plain, -1, (2, 3)))


@pytest.mark.parametrize("name", ["faststart.mp4", "plain.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8])
def test_a_truncated_file_is_an_error(tmp_path, name, share):
    path = write_video(tmp_path / name, FRAMES, **KINDS.get(name, {"options": B_FRAMES}))
    content = path.read_bytes()
    assert Video(path).num_frames == 50  # negative control
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VideoError, match=name) as error:
        Video(path)
    assert "\n" not in str(error.value)


def test_a_file_cut_between_two_frames_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mp4", FRAMES, options=B_FRAMES, container={"movflags": "faststart"})
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(VideoError, match=r"a\.mp4: truncated after 49 of 50 frames"):
        Video(path)


def test_packets_that_do_not_decode_are_an_error_when_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", FRAMES, options={"g": "1", "bf": "0"})
    video = Video(path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for start, size in packets[30:]:
        content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    assert number_of(video.read([29])[0]) == 29
    with pytest.raises(VideoError, match=r"a\.mp4: .*decod"):
        video.read([29, 49])


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


BAD_FILES = {
    "missing.mp4": (lambda path: None, "no such video file or folder of frames"),
    "sound.mp4": (write_sound, "only sound in it"),
    "zero.avi": (write_no_frames, "the video has no frames"),
    "zero.mkv": (write_no_frames, "cut short"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "not a video"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 100), "not a video"),
    "notes.txt": (lambda path: path.write_text("opens as a terminal's recording\n" * 100), "no video in it"),
    "noise.mp4": (lambda path: path.write_bytes(bytes(range(256)) * 40), "not a video"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(tmp_path, name):
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(VideoError) as error:
        Video(tmp_path / name)
    message = str(error.value)
    assert str(tmp_path / name) in message and reason in message and "\n" not in message


# ---- only the frames needed: a longer clip with a key frame a second, so that there is something to leave out

LONG = [numbered_frame(i) for i in range(240)]
SECOND = {"bf": "3", "g": "30", "b_strategy": "0", "crf": "20"}
SPARSE = [[0], [239], [17, 100, 101, 200], [5, 50, 95, 140, 185, 230], [31, 29, 30, 31], list(range(0, 240, 15))]
LONG_KINDS = {
    "b_frames.mp4": {"options": SECOND},
    "b_pyramid.mp4": {"options": SECOND | {"x264-params": "b-pyramid=normal:ref=4"}},
    "open_gop.mkv": {"options": SECOND | {"x264-params": "open-gop=1"}},
    "fragments.mp4": {"options": SECOND, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "short_gops.mp4": {"options": {"g": "3", "bf": "1"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=30", "bf": "0"}},
    "variable_rate.mp4": {"options": SECOND, "pts": [i * i for i in range(240)]},
    "variable_rate.mkv": {"options": SECOND, "pts": [7 * i + i % 3 for i in range(240)]},
    "rotated.mp4": {"options": SECOND, "rotation": 90},
    "no_seeking.ts": {"options": SECOND},
}


def long_video(folder: Path, name: str) -> Path:
    return write_video(folder / name, LONG, **LONG_KINDS[name])


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
    assert uneven.times_s[1] != pytest.approx(1 / uneven.fps, abs=1e-3)  # negative control: the mean rate says less
    assert Video(write_folder(tmp_path / "folder", ["0.png", "1.png"])).times_s == [0.0, 1.0]


# ---- folders of frames


def write_folder(folder: Path, names: list[str], **sizes) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(numbered_frame(i, *sizes.get(name, (HEIGHT, WIDTH)))).save(folder / name)
    return folder


def test_folder_in_natural_order(tmp_path):
    names = ["frame_2.png", "frame_999.jpg", "frame_9999.png", "frame_10000.jpeg", "frame_10001.PNG"]
    folder = write_folder(tmp_path / "scene", names)
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame_3.png").write_text("what macOS leaves")
    video = Video(folder)
    assert (video.num_frames, video.height, video.width) == (5, HEIGHT, WIDTH)
    assert video.is_folder and video.fps is None
    assert [number_of(frame) for frame in video.read([4, 0, 3, 3])] == [4, 0, 3, 3]
    assert sorted(names) != sorted(names, key=natural_key)  # negative control: the plain order is another


def test_folder_modes_and_exif_orientation(tmp_path):
    folder = tmp_path / "scene"
    folder.mkdir()
    pixels = numbered_frame(5)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(pixels).save(folder / "0.jpg", exif=exif)
    upright = np.ascontiguousarray(np.rot90(pixels, -1))
    Image.fromarray(upright[..., 0]).save(folder / "1.png")
    Image.fromarray(np.dstack([upright, upright[..., 0]])).save(folder / "2.png")
    video = Video(folder)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    frames = video.read([0, 1, 2])
    assert torch.equal(frames[1], frames[2])
    assert (frames[0].int() - frames[1].int()).abs().float().mean() < 4  # JPEG's loss


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty: no frames in this folder"):
        Video(tmp_path / "empty")

    mixed = write_folder(tmp_path / "mixed", ["0.png", "1.png", "2.png"], **{"2.png": (HEIGHT, HEIGHT)})
    with pytest.raises(VideoError, match=r"2\.png: frames of mixed sizes: this one is 32 x 32, the first"):
        Video(mixed)

    damaged = write_folder(tmp_path / "damaged", ["0.png", "1.jpg", "2.png"])
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(damaged / "1.jpg")
    (damaged / "1.jpg").write_bytes((damaged / "1.jpg").read_bytes()[:-300])
    video = Video(damaged)
    assert len(video.read([0, 2])) == 2
    with pytest.raises(VideoError, match=r"1\.jpg: unreadable frame"):
        video.read([0, 1, 2])

    (damaged / "2.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"2\.png: unreadable frame"):
        Video(damaged)


# ---- real videos


@needs_realdata
@pytest.mark.parametrize("name", ["video_640x480_30fps.mp4", "video_320x240_30fps.mp4"])
def test_seven_scenes_video_shows_its_own_frames(name):
    """The video holds 1,000 frames, the folder every tenth of them."""
    root = Path(str(REALDATA)) / "scenes/7scenes_redkitchen"
    video, folder = Video(root / name), Video(root / "rgb")
    assert (video.num_frames, video.fps, folder.num_frames) == (1000, 30.0, 100)
    picks = [5, 33, 70, 90]
    size = video.height, video.width
    shown = torch.nn.functional.interpolate(folder.read(picks).float(), size, mode="area")

    def distance(offset: int) -> torch.Tensor:
        return (video.read([10 * pick + offset for pick in picks]).float() - shown).abs().mean((1, 2, 3))

    assert (distance(0) < 6).all()
    for offset in (-1, 1):  # negative control: the frames before and after are visibly others
        assert (distance(offset) > 1.3 * distance(0)).all()


@needs_realdata
def test_arkitscenes_video_and_its_frames():
    root = Path(str(REALDATA)) / "scenes/arkitscenes_47334096"
    video, folder = Video(root / "47334096_28frames_1fps.mp4"), Video(root / "frames")
    assert video.num_frames == folder.num_frames == 28
    assert (video.height, video.width) == (folder.height, folder.width) == (640, 480)
    difference = (video.read(range(28)).float() - folder.read(range(28)).float()).abs().mean((1, 2, 3))
    assert (difference < 4).all()
