"""Damaged files of users: each reader returns, or raises an error of one line that names the file.

Each mutation has a seed of its own, made of its kind and number, so that `mutated` repeats one that failed.
"""

from __future__ import annotations

import io
import json
import random
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from commands.report import report
from commands.score import score
from datamodules.cameras_file import read_cameras, read_times, write_cameras
from datamodules.depth import read_depth
from datamodules.samplers import SelectedFrames
from datamodules.selections import write_selection
from datamodules.sources import Conversations, PosedScenes, ScanQA, SceneFolder, VSIBench
from datamodules.trajectories import Nerfstudio
from datamodules.video import Video
from tests.callbacks.toy import record
from tests.datamodules.clips import numbered_frame, write_folder, write_video
from zoo import InputError, Qwen25VL, SpatialVLM, Task, TinyQwen25VL
from zoo.configuration import to_config
from zoo.errors import input_error
from zoo.pretrained import config_of
from zoo.weights import open_weights

FRAMES, SIZE_HW = 6, (32, 64)
Mutation = Callable[[bytes, random.Random], bytes]


# ---- mutations of bytes ----------------------------------------------------------------------------------------------


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits or bytes, half of the time in the first kilobyte: headers break more than payloads."""
    changed = bytearray(content)
    end = min(len(changed), 1024) if rng.random() < 0.5 else len(changed)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(end)
        changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def double(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return rng.choice((content * 2, content[:end] + content[start:]))


def splice(content: bytes, rng: random.Random) -> bytes:
    """A piece that is removed, moved or replaced."""
    start, end = _span(content, rng)
    place = rng.randrange(len(content))
    piece = rng.choice((b"", content[start:end], bytes(end - start), rng.randbytes(end - start)))
    return content[:place] + piece + content[place + rng.choice((0, len(piece))) :]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, start + rng.randrange(1, 1 + min(256, len(content) - start))


# ---- mutations of values, under the syntax or the checksums of a file ------------------------------------------------

VALUES = (
    *("null", "true", "false", "0", "-1", "1.5", "1e999", "-0.0", "NaN", "Infinity", "-Infinity", str(2**63)),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, '"' + "9" * 400 + '"', "[" + "9" * 400 + "]"),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"../.."', '"/"', '"nan"', '"%s"' % ("x" * 300)),
    *('"%s"' % ("x" * 70_000), '"%s"' % ("yyyyyyyyy/" * 600)),
    *("[]", "{}", "[null]", '{"a": 1}', "[[[[1]]]]", '[{"a": {"b": []}}]', "[" * 100_000 + "]" * 100_000),
)
YAML_VALUES = (".nan", ".inf", "2026-01-01", "&a [*a]", "*b", "!!python/name:os.system", "0x_", "? [1]", "!!binary a")


def swap(content: bytes, rng: random.Random, values: tuple[str, ...] = VALUES) -> bytes:
    """One value of JSON replaced, one key or item removed or repeated."""
    document = {"": yaml.safe_load(content) if values is not VALUES else json.loads(content)}
    holder, key = rng.choice(list(_places(document)))
    action = rng.random()
    if action < 0.1 and holder is not document:
        del holder[key]
    elif action < 0.15 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif action < 0.2 and isinstance(holder, dict) and holder is not document:
        holder["@@"] = holder.pop(key)
    else:
        holder[key] = "@@"
    return json.dumps(document[""]).replace('"@@"', rng.choice(values)).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def swap_in_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = swap(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def in_png(content: bytes, rng: random.Random) -> bytes:
    """A chunk changed, with a checksum that fits."""
    start, chunks = 8, []
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunks.append((start, end))
        start = end
    start, end = rng.choice(chunks)
    body = content[start + 4 : start + 8] + in_bytes(content[start + 8 : end - 4] or b"\0", rng)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[:start] + chunk + content[end:]


def in_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header changed, with a length that fits."""
    size = int.from_bytes(content[:8], "little")
    header = swap(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def in_zip(content: bytes, rng: random.Random) -> bytes:
    """A member of a checkpoint changed, half of the time its pickle, with a checksum that fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] if rng.random() < 0.5 else names)
        for name in names:
            member = source.read(name)
            target.writestr(name, in_bytes(member, rng) if name == chosen and member else member)
    return out.getvalue()


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    mutation = rng.choice((flip, flip, cut, double, splice))
    return mutation(content, rng)


# ---- kinds of files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: makes a sound file in a folder, and returns its path.
        read: reads the file, as the zoo does.
        inside: the mutation below the file's syntax.
        errors: what the zoo turns into one line there.
        count: of mutations.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    inside: Mutation = flip
    errors: tuple[type[Exception], ...] = (OSError, ValueError)
    count: int = 1000


def write_json(name: str, content: Any, folder: Path) -> Path:
    rows = content if name.endswith(".jsonl") else [content]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def cameras(folder: Path) -> Path:
    poses, K_px = torch.eye(4).repeat(FRAMES, 1, 1), torch.tensor([[[30.0, 0, 32], [0, 30, 16], [0, 0, 1]]])
    write_cameras(folder / "a.cameras.json", poses, K_px, width=64, height=32, times_s=[0.5 * i for i in range(FRAMES)])
    return folder / "a.cameras.json"


def read_both(path: Path) -> None:
    read_cameras(path, FRAMES, *SIZE_HW)
    read_times(path, FRAMES)


QUESTIONS = [
    {"id": 1, "dataset": "mine", "scene_name": "a", "question_type": "object_counting", "question": "How many?"}
    | {"ground_truth": "4", "options": None},
    {"id": 2, "dataset": "mine", "scene_name": "b", "question_type": "object_rel_distance", "question": "Which?"}
    | {"ground_truth": "B", "options": ["A. chair", "B. sofa"]},
]


def questions(folder: Path) -> Path:
    (folder / "mine").mkdir()
    return write_json("train.jsonl", QUESTIONS, folder)


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(QUESTIONS), folder / "test.parquet")
    return folder / "test.parquet"


TALK = [{"from": "human", "value": "<video>\nHow many?"}, {"from": "gpt", "value": "4"}]
SCANQA = {"scene_id": "scene0000_00", "question_id": "q", "question": "What?", "answers": ["a chair"]}
PREDICTIONS = [
    record("1", "object_counting", "4", "4", "mine/a"),
    record("2", "object_rel_distance", "B", "B", "mine/b") | {"score": 1.0, "versions": {"zoo": "1"}},
]
SCENE = "mine/a"


def selection(folder: Path) -> Path:
    (folder / "mine").mkdir()
    write_folder(folder / SCENE, [f"{i}.png" for i in range(FRAMES)])
    file = folder / "selections" / SCENE / "selected_frames.json"
    write_selection(file, SCENE, [0, 2, 3, 5], "0", {"views": 4, "stops_early": False, "sampler": {"candidates": 5}})
    return file


def select(path: Path) -> None:
    folder = path.parents[3]
    SelectedFrames(str(folder / "selections"))(Video(folder / SCENE), 4)


def clip(name: str, folder: Path) -> Path:
    options = {"mp4": {"movflags": "faststart"}}.get(name.rpartition(".")[2], {})
    frames = [numbered_frame(i, *SIZE_HW) for i in range(FRAMES)]
    return write_video(folder / name, frames, options={"bf": "2", "g": "4"}, container=options)


def decode(path: Path) -> None:
    video = Video(path)
    video.read([0, video.num_frames - 1])


def depth(folder: Path) -> Path:
    meters = np.full(SIZE_HW, 1500, np.uint16)
    meters[4:8] = 0
    (folder / "a.depth").mkdir()
    Image.fromarray(meters).save(folder / "a.depth" / "0.png")
    return folder / "a.depth" / "0.png"


def safetensors(folder: Path) -> Path:
    tensors = {"a.weight": torch.ones(4, 3), "b.bias": torch.zeros(2, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def index(folder: Path) -> Path:
    shard = safetensors(folder).rename(folder / "model-00001-of-00001.safetensors")
    content = {"metadata": {"total_size": 52}, "weight_map": {"a.weight": shard.name, "b.bias": shard.name}}
    return write_json("model.safetensors.index.json", content, folder)


def read_weights(path: Path) -> None:
    tensors = open_weights(path.parent)
    for name in tensors:
        tensors[name]


def tiny() -> TinyQwen25VL:
    return TinyQwen25VL(layers=1, hidden_size=32, heads=1, key_value_heads=1, vision_hidden_size=16)


def saved(folder: Path) -> Path:
    SpatialVLM(tiny()).save_pretrained(folder / "saved")
    return folder / "saved/config.json"


def run(folder: Path) -> Path:
    """A run with a small model, its checkpoint as Lightning names things."""
    task = Qwen25VL(backbone=tiny())
    config = {"seed_everything": 0, "trainer": {"max_steps": 3}, "model": to_config(task), "data": {"num_frames": 4}}
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text(yaml.safe_dump(config))
    content = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.4", "loops": {}, "callbacks": {}}
    content["state_dict"] = task.state_dict()
    task.on_save_checkpoint(content)
    (folder / "run/checkpoints").mkdir()
    torch.save(content, folder / "run/checkpoints/last.ckpt")
    return folder / "run/config.yaml"


def checkpoint(folder: Path) -> Path:
    return run(folder).parent / "checkpoints/last.ckpt"


def read_run(path: Path) -> None:
    """As a notebook, a command and a report do."""
    config_of(path.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_, **__: None)
        try:
            report([str(path.parent)])
        except InputError as error:
            assert "no test yet" in str(error)  # the run is only trained
    SpatialVLM.from_pretrained(path.parent)


def poses(folder: Path) -> Path:
    write_json("test.jsonl", QUESTIONS[:1], folder)
    write_folder(folder / "a", [f"{i}.png" for i in range(2)])
    frames = [{"file_path": f"{i}.png", "transform_matrix": torch.eye(4).tolist()} for i in range(2)]
    lens = {"fl_x": 30.0, "fl_y": 30.0, "cx": 32.0, "cy": 16.0, "w": 64, "h": 32, "camera_model": "OPENCV"}
    return write_json("transforms.json", {**lens, "frames": frames}, folder / "a")


def read_poses(path: Path) -> None:
    source = PosedScenes(str(path.parents[1]), Nerfstudio(), cache=str(path.parents[1] / "cache"))
    source.prepare()
    source.scenes("test")


KINDS = {
    "cameras": Kind(cameras, read_both, swap),
    "questions": Kind(
        questions,
        lambda path: SceneFolder(str(path.parent)).scenes("train"),
        swap_in_line,
    ),
    "questions, parquet": Kind(parquet, lambda path: VSIBench(str(path.parent), path.name).scenes("test"), count=300),
    "conversations": Kind(
        partial(write_json, "a.jsonl", [{"video": f"{i}.mp4", "conversations": TALK} for i in range(3)]),
        lambda path: Conversations(str(path)).scenes("train"),
        swap_in_line,
    ),
    "ScanQA": Kind(
        partial(write_json, "scanqa.json", [SCANQA, SCANQA]),
        lambda path: ScanQA(str(path), str(path.parent)).scenes("train"),
        swap,
        count=300,
    ),
    "predictions": Kind(
        partial(write_json, "predictions.jsonl", PREDICTIONS),
        lambda path: score([str(path)]),
        swap_in_line,
        (InputError,),
    ),
    "selection": Kind(selection, select, swap),
    "video.mp4": Kind(partial(clip, "a.mp4"), decode),
    "video.mkv": Kind(partial(clip, "a.mkv"), decode),
    "video.avi": Kind(partial(clip, "a.avi"), decode),
    "depth": Kind(depth, lambda path: read_depth(path.parent, [0], num_frames=1, size_hw=SIZE_HW), in_png),
    "safetensors": Kind(safetensors, read_weights, in_safetensors, (InputError,)),
    "index": Kind(index, read_weights, swap, (InputError,)),
    "checkpoint": Kind(checkpoint, Task.load_from_checkpoint, in_zip, (InputError,)),
    "config.yaml": Kind(run, read_run, partial(swap, values=VALUES + YAML_VALUES), (InputError,), count=100),
    "config.json": Kind(saved, lambda path: SpatialVLM.from_pretrained(path.parent), swap, (InputError,), count=100),
    "transforms.json": Kind(poses, read_poses, swap, count=300),
}


# ---- the test --------------------------------------------------------------------------------------------------------


def fault(kind: Kind, path: Path, content: bytes) -> str | None:
    """What is wrong with the outcome for a file of this content; None if it is read, or refused in one line."""
    path.write_bytes(content)
    try:
        kind.read(path)
    except Exception as raised:
        # as main.py: the type checks of these tests wrap errors, and so do libraries
        error = raised if isinstance(raised, kind.errors) else input_error(raised)
        if not isinstance(error, kind.errors):
            return _described(raised)
        message = str(InputError(error))  # what the zoo makes of an error about a file
        if message.splitlines() != [message]:
            return f"several lines: {_described(raised)}"
        return None if str(path.parent) in message else f"names no file: {_described(raised)}"
    return None


def _described(error: Exception) -> str:
    places = [f"{Path(p.filename).name}:{p.lineno}" for p in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' '.join(places[1:])}"


def mutated(kind: Kind, content: bytes, name: str, number: int) -> bytes:
    rng = random.Random(f"{name}/{number}")
    return (kind.inside if number % 2 else in_bytes)(content, rng)


def bomb(png: bytes) -> bytes:
    """A header of 10 gigapixels, with its checksum."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


DIGITS, DEEP, LONG = b"9" * 400, b"[" * 100_000, b'"' + b"x" * 300 + b'"'
CASES: tuple[tuple[str, bytes, bytes, str | None], ...] = (  # kind, text, replacement, the error if it is one
    ("cameras", b"[[30.0", b"[[" + DIGITS, "an integer of 400 digits"),
    ("cameras", b"[[[30.0", DEEP, "nested too deeply"),
    ("cameras", b"0.5,", b"NaN,", "increasing numbers"),
    ("questions", b'"a"', LONG, None),
    ("questions", b'"How many?"', b'["How many?"]', "question must be text"),
    ("questions", b"null", DEEP, "nested too deeply"),
    ("conversations", b'"0.mp4"', LONG, None),
    ("predictions", b'"score": 1.0', b'"score": ' + DIGITS, "line 2: not valid JSON: an integer of 400 digits"),
    ("predictions", b"[0, 7]", DEEP, "nested too deeply"),
    ("selection", b'{"candidates": 5}', b"5", "made_by must be an object with the settings"),
    ("selection", b'"views": 4', b'"views": [4]', "made_by must be an object with the settings"),
    ("video.mp4", b"avc1", b"\0\0\0\0", "its codec is unknown"),
    ("video.mp4", b"Lavf", b"\xff\xfe\xff\xff", None),
    ("index", b'"model-00001-of-00001.safetensors"', LONG, "which its index names"),
    ("index", b"52", DIGITS, "an integer of 400 digits"),
    ("config.yaml", b"seed_everything: 0", b"seed_everything: &a [*a]", "can't be read"),
    ("config.yaml", b"hidden_size: 32", b"hidden_size: -32", "config.yaml: "),
)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_what_was_once_a_traceback(name: str, old: bytes, new: bytes, message: str | None, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    content = path.read_bytes()
    assert old in content
    kind.read(path)
    path.write_bytes(content.replace(old, new))
    if message is None:
        kind.read(path)
    else:
        with pytest.raises(kind.errors, match=message) as error:
            kind.read(path)
        assert str(path.parent) in str(error.value) and "\n" not in str(error.value)


def test_an_image_of_gigapixels_is_no_depth(tmp_path: Path) -> None:
    kind = KINDS["depth"]
    path = kind.write(tmp_path)
    path.write_bytes(bomb(path.read_bytes()))
    with pytest.raises(ValueError, match="0.png: unreadable depth image"):
        kind.read(path)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    for state in ({}, {"a": 1}, [1]):
        torch.save({**content, "state_dict": state}, path)
        with pytest.raises(InputError, match="last.ckpt"):
            Task.load_from_checkpoint(path)
    name = next(iter(content["state_dict"]))
    torch.save({**content, "state_dict": content["state_dict"] | {name: torch.ones(2)}}, path)
    for read in (Task.load_from_checkpoint, lambda path: SpatialVLM.from_pretrained(path.parents[1])):
        with pytest.raises(InputError, match=f"last.ckpt.*{name.removeprefix('model.')}") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a reader that hangs fails here
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    content = path.read_bytes()
    kind.read(path)  # negative control: the sound file
    numbers: dict[str, list[int]] = {}
    for number in range(kind.count):
        if what := fault(kind, path, mutated(kind, content, name, number)):
            numbers.setdefault(what, []).append(number)
    found = [f"{len(which)} of {kind.count}, such as {which[0]}: {what}" for what, which in numbers.items()]
    assert not found, "\n".join(found)
