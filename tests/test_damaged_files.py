"""Damaged files of users: each reader reads a file, or raises an error of one line that names it.

Named damages first: each was once a traceback. Then random ones of a fixed seed; ZOO_FUZZ multiplies their number.
"""

from __future__ import annotations

import io
import json
import os
import random
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
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
from datamodules.samplers.selection_files import write_selection
from datamodules.sources import Conversations, PosedScenes, ScanQA, SceneFolder, VSIBench
from datamodules.trajectories import Nerfstudio
from datamodules.video import Video
from tests.callbacks.toy import record
from tests.datamodules.clips import numbered_frame, write_folder, write_video
from zoo import InputError, Qwen25VL, SpatialVLM, Task, TinyQwen25VL
from zoo.configuration import to_config
from zoo.errors import input_error
from zoo.weights import open_weights

# ---- Random damages: of bytes, or of values under a syntax and its checksums

Mutation = Callable[[bytes, random.Random], bytes]
VALUES = (
    *("null", "true", "false", "0", "-1", "1.5", "1e999", "-0.0", "NaN", "-Infinity", str(2**63), "9" * 5000),
    *("-" + "9" * 400, '"' + "9" * 400 + '"', "[" + "9" * 400 + "]", '"nan"', '"%s"' % ("x" * 70_000)),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"../.."', '"/"', '"%s"' % ("yyyyyyyyy/" * 600)),
    *("[]", "{}", "[null]", '{"a": 1}', '[{"a": {"b": []}}]', "[" * 100_000 + "]" * 100_000),
)
YAML_VALUES = (".nan", ".inf", "2026-01-01", "&a [*a]", "*b", "!!python/name:os.system", "0x_", "? [1]", "!!binary a")


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits or bytes, cut the end off, or remove, repeat or replace a piece."""
    start = rng.randrange(len(content))
    end = start + rng.randrange(1, 257)
    kind = rng.choice(("flip", "flip", "cut", "remove", "repeat", "replace"))
    if kind == "flip":
        changed = bytearray(content)
        last = min(len(changed), rng.choice((1024, len(changed))))  # headers break more than payloads
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            place = rng.randrange(last)
            changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
        return bytes(changed)
    if kind == "cut":
        return content[:start]
    piece = {"remove": b"", "repeat": content[start:end] * 2, "replace": rng.randbytes(end - start)}[kind]
    return content[:start] + piece + content[end:]


def in_json(content: bytes, rng: random.Random, values: tuple[str, ...] = VALUES) -> bytes:
    """One value of JSON or YAML replaced, one key or item removed or repeated."""
    document = {"": yaml.safe_load(content) if values is not VALUES else json.loads(content)}
    holder, key = rng.choice(list(places_in(document)))
    action = rng.random()
    if action < 0.1 and holder is not document:
        del holder[key]
    elif action < 0.15 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[key] = "@@"
    return json.dumps(document[""]).replace('"@@"', rng.choice(values)).encode()


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places_in(value[key])


def in_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = in_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def in_png(content: bytes, rng: random.Random) -> bytes:
    """A chunk changed, with a checksum that fits."""
    start, chunks = 8, []
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunks.append((start, end))
        start = end
    start, end = rng.choice(chunks)
    kind, body = content[start + 4 : start + 8], in_bytes(content[start + 8 : end - 4] or b"\0", rng)
    return content[:start] + png_chunk(kind, body) + content[end:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def in_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header changed, with a length that fits."""
    size = int.from_bytes(content[:8], "little")
    header = in_json(content[8 : 8 + size], rng)
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


# ---- Sound files, and their readers

FRAMES, SIZE_HW, SCENE = 6, (32, 64), "mine/a"
QUESTION = {"id": 1, "dataset": "mine", "scene_name": "a", "question_type": "object_counting", "question": "How many?"}
CHOICE = {"question_type": "object_rel_distance", "options": ["A. chair", "B. sofa"], "ground_truth": "B"}
QUESTIONS = [{**QUESTION, "ground_truth": "4", "options": None}, {**QUESTION, "id": 2, "scene_name": "b", **CHOICE}]
TALK = [{"from": "human", "value": "<video>\nHow many?"}, {"from": "gpt", "value": "4"}]
SCANQA = {"scene_id": "scene0000_00", "question_id": "q", "question": "What?", "answers": ["a chair"]}
PREDICTIONS = [
    record("1", "object_counting", "4", "4", "mine/a"),
    record("2", "object_rel_distance", "B", "B", "mine/b") | {"score": 1.0, "versions": {"zoo": "1"}},
]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: makes a sound file in a folder, and returns its path.
        read: reads the file, as the zoo does.
        inside: the damage below the file's syntax.
        errors: what the zoo turns into one line there.
        count: of random damages.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    inside: Mutation = in_bytes
    errors: tuple[type[Exception], ...] = (OSError, ValueError)
    count: int = 100


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


def questions(folder: Path) -> Path:
    (folder / "mine").mkdir()
    return write_json("train.jsonl", QUESTIONS, folder)


def parquet(folder: Path) -> Path:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(QUESTIONS), folder / "test.parquet")
    return folder / "test.parquet"


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
    frames = [numbered_frame(i, *SIZE_HW) for i in range(FRAMES)]
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    return write_video(folder / name, frames, options={"bf": "2", "g": "4"}, container=options)


def decode(path: Path) -> None:
    video = Video(path)
    video.read([0, video.num_frames - 1])


def depth(folder: Path) -> Path:
    (folder / "a.depth").mkdir()
    Image.fromarray(np.full(SIZE_HW, 1500, np.uint16)).save(folder / "a.depth" / "0.png")
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
    """A run with a small model, and a checkpoint that has what Lightning's have."""
    task = Qwen25VL(backbone=tiny())
    config = {"seed_everything": 0, "trainer": {"max_steps": 3}, "model": to_config(task), "data": {"num_frames": 4}}
    (folder / "run/checkpoints").mkdir(parents=True)
    (folder / "run/config.yaml").write_text(yaml.safe_dump(config))
    content = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.4", "loops": {}, "callbacks": {}}
    content["state_dict"] = task.state_dict()
    task.on_save_checkpoint(content)
    torch.save(content, folder / "run/checkpoints/last.ckpt")
    return folder / "run/config.yaml"


def checkpoint(folder: Path) -> Path:
    return run(folder).parent / "checkpoints/last.ckpt"


def read_run(path: Path) -> None:
    """As a report, which finds no test, and a notebook do."""
    with redirect_stdout(io.StringIO()), suppress(InputError):
        report([str(path.parent)])
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
    "cameras": Kind(cameras, read_both, in_json),
    "questions": Kind(questions, lambda path: SceneFolder(str(path.parent)).scenes("train"), in_line),
    "questions, parquet": Kind(parquet, lambda path: VSIBench(str(path.parent), path.name).scenes("test")),
    "conversations": Kind(
        partial(write_json, "a.jsonl", [{"video": f"{i}.mp4", "conversations": TALK} for i in range(3)]),
        lambda path: Conversations(str(path)).scenes("train"),
        in_line,
    ),
    "ScanQA": Kind(
        partial(write_json, "scanqa.json", [SCANQA, SCANQA]),
        lambda path: ScanQA(str(path), str(path.parent)).scenes("train"),
        in_json,
    ),
    "predictions": Kind(
        partial(write_json, "predictions.jsonl", PREDICTIONS),
        lambda path: score([str(path)]),
        in_line,
        (InputError,),
    ),
    "selection": Kind(selection, select, in_json),
    "video.mp4": Kind(partial(clip, "a.mp4"), decode),
    "video.mkv": Kind(partial(clip, "a.mkv"), decode),
    "depth": Kind(depth, lambda path: read_depth(path.parent, [0], num_frames=1, size_hw=SIZE_HW), in_png),
    "safetensors": Kind(safetensors, read_weights, in_safetensors, (InputError,)),
    "index": Kind(index, read_weights, in_json, (InputError,)),
    "checkpoint": Kind(checkpoint, Task.load_from_checkpoint, in_zip, (InputError,), count=30),
    "config.yaml": Kind(run, read_run, partial(in_json, values=VALUES + YAML_VALUES), (InputError,), count=20),
    "config.json": Kind(saved, lambda path: SpatialVLM.from_pretrained(path.parent), in_json, (InputError,), count=20),
    "transforms.json": Kind(poses, read_poses, in_json),
}

# ---- The tests

DIGITS, DEEP, LONG = b"9" * 400, b"[" * 100_000, b'"' + b"x" * 300 + b'"'


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),  # the kind, what is replaced in it, and the error if it is one
    [
        ("cameras", b"[[30.0", b"[[" + DIGITS, "an integer of 400 digits"),
        ("cameras", b"[[[30.0", DEEP, "nested too deeply"),
        ("cameras", b"0.5,", b"NaN,", "increasing numbers"),
        ("questions", b'"How many?"', b'["How many?"]', "missing or no text: question"),
        ("conversations", b'"0.mp4"', LONG, None),
        ("predictions", b'"score": 1.0', b'"score": ' + DIGITS, "line 2: not valid JSON: an integer of 400 digits"),
        ("selection", b'{"candidates": 5}', b"5", "made_by must be an object with the settings"),
        ("selection", b'"views": 4', b'"views": null', None),
        ("video.mp4", b"avc1", b"\0\0\0\0", "its codec is unknown"),
        ("video.mp4", b"Lavf", b"\xff\xfe\xff\xff", None),
        ("index", b'"model-00001-of-00001.safetensors"', LONG, "which its index names"),
        ("config.yaml", b"seed_everything: 0", b"seed_everything: &a [*a]", "can't be read"),
        ("config.yaml", b"hidden_size: 32", b"hidden_size: -32", "config.yaml: "),
    ],
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
    path = depth(tmp_path)
    png = path.read_bytes()
    path.write_bytes(png[:8] + png_chunk(b"IHDR", (100_000).to_bytes(4, "big") * 2 + png[24:29]) + png[33:])
    with pytest.raises(ValueError, match="0.png: unreadable depth image"):
        KINDS["depth"].read(path)


def test_a_checkpoint_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    name = next(iter(content["state_dict"]))
    for state in ({}, {"a": 1}, [1], content["state_dict"] | {name: torch.ones(2)}):
        torch.save({**content, "state_dict": state}, path)
        for read in (Task.load_from_checkpoint, lambda path: SpatialVLM.from_pretrained(path.parents[1])):
            with pytest.raises(InputError, match="last.ckpt") as error:
                read(path)
            assert "\n" not in str(error.value)


def fault(kind: Kind, path: Path, content: bytes) -> str | None:
    """What is wrong with the outcome for a file of this content; None if it is read, or refused in one line."""
    path.write_bytes(content)
    try:
        kind.read(path)
    except Exception as raised:
        # as main.py: the type checks of these tests wrap errors, and so do libraries
        error = raised if isinstance(raised, kind.errors) else input_error(raised)
        places = [f"{Path(p.filename).name}:{p.lineno}" for p in traceback.extract_tb(raised.__traceback__)]
        described = f"{type(raised).__name__} at {' '.join(places[1:])}"
        if not isinstance(error, kind.errors):
            return described
        message = str(InputError(error))  # what the zoo makes of an error about a file
        if message.splitlines() != [message]:
            return f"several lines: {described}"
        return None if str(path.parent) in message else f"names no file: {described}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a reader that hangs fails here
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_files_with_random_damages_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path)
    content = path.read_bytes()
    kind.read(path)  # the control: the sound file
    found: dict[str, list[int]] = {}
    for number in range(kind.count * int(os.environ.get("ZOO_FUZZ", "1"))):
        rng = random.Random(f"{name}/{number}")
        damaged = (kind.inside if number % 2 else in_bytes)(content, rng)
        if what := fault(kind, path, damaged):
            found.setdefault(what, []).append(number)
    assert not found, "\n".join(f"damages {which}: {what}" for what, which in found.items())
