"""Kinds of files that users bring: how a sound one is written, how it is read, and how it is mutated."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from tests.file_mutations import VALUES, YAML_VALUES, Mutation, flip, in_png, in_safetensors, in_zip, swap, swap_in_line
from zoo import InputError, Qwen25VL, SpatialVLM, Task, TinyQwen25VL
from zoo.configuration import to_config
from zoo.weights import open_weights
from zoo.weights.saved_models import config_of

FRAMES, SIZE_HW = 6, (32, 64)


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
