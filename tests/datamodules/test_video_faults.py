"""Videos and folders that won't do are named in one line."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datamodules.video import Video, VideoError
from tests.datamodules.clips import B_FRAMES, FRAMES, HEIGHT, KINDS, WIDTH, number_of, write_folder, write_video


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
    "zero.avi": (write_no_frames, "no frame of 0 can be decoded"),
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


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty: no frames in this folder"):
        Video(tmp_path / "empty")

    mixed = write_folder(tmp_path / "mixed", ["0.png", "1.png", "2.png"], **{"2.png": (HEIGHT, HEIGHT)})
    message = r"mixed/2\.png: frames of mixed sizes: frame 2 is 32 x 32, not 64 x 32: resize or crop them to one size"
    for frames in (mixed, [mixed / f"{i}.png" for i in range(3)]):
        with pytest.raises(VideoError, match=message):
            Video(frames).read([0, 2])

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
        Video(damaged).read([2])
