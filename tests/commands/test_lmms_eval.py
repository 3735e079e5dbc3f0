"""The zoo as a model of lmms-eval answers as `test` does: in `make lmms-eval`'s environment, else skipped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from lightning import Callback, Trainer
from PIL import Image

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed: make lmms-eval, then .venv-lmms/bin/python -m pytest"
)

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask

from commands.lmms_eval.model import SpatialVLMZoo
from datamodules import Rooms, VideoQADataModule
from datamodules.chat_format import user_text
from datamodules.inference import answer_chats
from datamodules.resize import PixelBounds
from tests import tiny
from tests.conftest import ROOMS
from tests.datamodules.test_chats import chat
from timings.lmms_eval import write_task
from zoo import InputError, SpatialVLM
from zoo.encodings import ViewAttention
from zoo.geometry import DatasetGeometry
from zoo.tasks.video_qa import FirstScenes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BOUNDS = PixelBounds(784, 65536, legacy_folder_resize=False)


class Kept(Callback):
    """The records of a test."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.records += outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> Path:
    """A camera-aware model, the answers of our own test, and tasks with the same questions."""
    folder = tmp_path_factory.mktemp("lmms")
    saved = {"geometry": partial(DatasetGeometry, depth=False), "view_mixer": partial(ViewAttention, head_dim=16)}
    task = tiny.tiny_model("prope.yaml", **saved)
    source = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    data = VideoQADataModule(source, num_frames=4, pixels=BOUNDS, image_pixels=BOUNDS, num_workers=0)
    kept = Kept()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", callbacks=[kept], default_root_dir=folder, **quiet).test(task, data, verbose=False)
    own = {record["id"]: record["prediction"] for record in kept.records}
    (folder / "own.json").write_text(json.dumps(own))
    settings = {"num_frames": 4, "pixels": vars(BOUNDS), "image_pixels": vars(BOUNDS)}
    plain = {name: tiny.tiny_model("plain", family=name).model for name in tiny.BACKBONES}
    for name, model in {"cameras": task.model, **plain}.items():
        model.data_config = {"class_path": "datamodules.VideoQADataModule", "init_args": settings}
        model.save_pretrained(folder / name)
    scenes = source.scenes("test")
    rows = [
        {"id": question.id, "media": [str(scene.video)], "prompt": user_text(question), "ground_truth": "4"}
        for question, scene in sorted(((q, s) for s in scenes for q in s.questions), key=lambda pair: pair[0].id[::-1])
    ]
    write_task(folder / "rooms", "rooms", rows, tiny.NEW)  # in an order that mixes the scenes
    pixels = np.random.default_rng(0).integers(0, 255, (2, 56, 84, 3), dtype=np.uint8)
    pictures = [str(folder / f"{number}.png") for number in range(2)]
    for name, each in zip(pictures, pixels, strict=True):
        Image.fromarray(each).save(name)
    videos = [str(scene.video) for scene in scenes]
    media = [videos[:2], pictures, [pictures[0], videos[0]], pictures[::-1], []]
    rows = [{"media": each, "prompt": text, "ground_truth": ""} for text in tiny.TEXTS[:2] for each in media]
    write_task(folder / "mixed", "mixed", rows, tiny.NEW)
    return folder


def evaluate(folder: Path, out: Path, model: str, task: str, *more: str, processes: int = 1) -> list[dict[str, Any]]:
    """The samples that lmms-eval logs, in the order of the questions."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = [*launch, "-m", "lmms_eval", "--model", "spatial_vlm_zoo", "--model_args", f"run={folder / model}"]
    words += ["--tasks", task, "--include_path", str(folder / task), "--output_path", str(out), "--log_samples", *more]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.rglob(f"*samples_{task}.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def answers(samples: list[dict[str, Any]]) -> list[str]:
    return [sample.get("resps", sample["filtered_resps"]) for sample in samples]


def test_all_questions_of_the_rooms_are_answered_as_by_test(folder: Path, tmp_path: Path) -> None:
    own = json.loads((folder / "own.json").read_text())
    rows = [json.loads(line) for line in (folder / "rooms/rows.jsonl").read_text().splitlines()]
    expected = [own[row["id"]] for row in rows]
    cache = ("--use_cache", str(tmp_path / "cache"))
    assert answers(evaluate(folder, tmp_path / "one", "cameras", "rooms", *cache)) == expected
    assert len(set(expected)) > 3  # the control: the answers tell the questions apart
    cached = evaluate(folder, tmp_path / "cached", "cameras", "rooms", *cache)
    assert answers(cached) == expected and not any(sample["token_counts"][0] for sample in cached)
    assert answers(evaluate(folder, tmp_path / "few", "cameras", "rooms", "--limit", "3")) == expected[:3]
    assert answers(evaluate(folder, tmp_path / "two", "cameras", "rooms", processes=2)) == expected


@pytest.mark.parametrize("family", tiny.BACKBONES)
def test_videos_pictures_several_of_each_and_text_alone(family: str, folder: Path, tmp_path: Path) -> None:
    model, expected = SpatialVLM.from_pretrained(folder / family), []
    for row in (json.loads(line) for line in (folder / "mixed/rows.jsonl").read_text().splitlines()):
        media = [Path(file) if file.endswith(".mp4") else Image.open(file) for file in row["media"]]
        asked = chat(*("video" if isinstance(each, Path) else "image" for each in media), row["prompt"])
        (reply,) = answer_chats(model, media, [asked], max_new_tokens=tiny.NEW)
        expected += model.backbone.preprocessor.decode([reply.ids])
    assert answers(evaluate(folder, tmp_path / "mixed", family, "mixed")) == expected
    assert len(set(expected)) > 5  # the control


LETTER = "\nAnswer with the option's letter from the given choices directly. Enclose the option's letter within ``."
# file of the task, text before the pictures, and what the task adds to a question
EASI = {
    "mindcube_tiny": ("mindcube/mindcube_tiny.yaml", ["Look:"], ""),
    "mmsi_bench": ("mmsi_bench/msr_bench.yaml", [], LETTER),
}


@pytest.mark.parametrize("task", EASI)
def test_easis_tasks_about_several_pictures_are_answered_by_lmms_evals_own_code(
    task: str, folder: Path, tmp_path: Path
) -> None:
    """Made rows take the place of the downloaded ones; messages, answers and scores are those of the task."""
    import datasets
    import lmms_eval

    model, first, second = SpatialVLM.from_pretrained(folder / "Qwen2.5-VL"), folder / "0.png", folder / "1.png"
    file, words, added = EASI[task]
    made = folder / f"made_{task}"
    made.mkdir()
    rows, expected = [], []
    for text in tiny.TEXTS[:3]:
        for shown in ([first, second], [second, first], [first]):
            pictures = [Image.open(path).convert("RGB") for path in shown]
            asked = chat(*words, *["image"] * len(pictures), text + added)
            (reply,) = answer_chats(model, pictures, [asked], max_new_tokens=tiny.NEW)
            expected += model.backbone.preprocessor.decode([reply.ids])
            prompt = "".join([*words, *["<image>"] * len(pictures), text])
            row = {"id": f"among_{len(rows)}", "images": pictures, "input_prompt": prompt, "question": text}
            rows.append(row | {"gt_answer": "A", "grounded_output": "A", "answer": "A", "question_type": "MSR"})
    kinds = datasets.Dataset.from_list(rows).features | {"images": datasets.Sequence(datasets.Image())}
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(made / "rows.parquet")
    official = Path(lmms_eval.__file__).parent / "tasks" / file
    (split,) = re.findall(r"test_split: (\w+)", official.read_text())
    local = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {split: str(made / "rows.parquet")}}}
    (made / "made.yaml").write_text(yaml.safe_dump({"include": str(official), "task": made.name, **local}))
    few = ("--gen_kwargs", f"max_new_tokens={tiny.NEW}")
    samples = evaluate(folder, tmp_path / "out", "Qwen2.5-VL", made.name, *few)
    assert answers(samples) == expected and len(set(expected)) > 3  # the control: pictures and their order matter
    (results,) = (tmp_path / "out").rglob("*results.json")
    assert json.loads(results.read_text())["results"][made.name].keys() & {"overall_accuracy,none", "average,none"}


# file of the task, the folder of its videos under HF_HOME, and the score that it reports
GENERAL = {
    "videomme": ("videomme/videomme.yaml", "videomme/data", "videomme_perception_score"),
    "mvbench_action_count": (
        "mvbench/mvbench_action_count.yaml",
        "mvbench_video/perception/videos",
        "mvbench_accuracy",
    ),
}


@pytest.mark.parametrize("task", GENERAL)
def test_general_questions_about_videos_are_answered_by_lmms_evals_own_code(
    task: str, folder: Path, tmp_path: Path, rooms_root: Path
) -> None:
    """Made rows in the published layout take the place of the downloaded ones, to measure what a training forgets."""
    import lmms_eval

    file, place, score = GENERAL[task]
    model, videos, options = SpatialVLM.from_pretrained(folder / "Qwen2.5-VL"), folder / "hf" / place, ["one", "two"]
    videos.mkdir(parents=True)
    rows, expected = [], []
    for number, clip in enumerate(sorted(rooms_root.rglob("*.mp4"))[:2]):
        (videos / f"clip{number}.mp4").symlink_to(clip)
        for text in tiny.TEXTS[:2]:
            if task == "videomme":
                lettered = [f"{letter}. {option}" for letter, option in zip("AB", options, strict=True)]
                kind = {"duration": "short", "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems"}
                row = {"videoID": f"clip{number}", "question_id": f"{len(rows)}", "options": lettered, **kind}
                asked = "\n".join(
                    (
                        "Select the best answer to the following multiple-choice question based on the video and the "
                        "subtitles. Respond with only the letter (A, B, C, or D) of the correct option.",
                        *(text, *lettered),
                        "\nAnswer with the option's letter from the given choices directly.",
                    )
                )
            else:
                row = {"video": f"clip{number}.mp4", "candidates": options}
                asked = f"Question:{text}\nOption:\n(A) one\n(B) two\nOnly give the best option.\n"
            rows.append(row | {"question": text, "answer": "A" if task == "videomme" else "one"})
            (reply,) = answer_chats(model, [clip], [chat("video", asked)], max_new_tokens=tiny.NEW)
            expected += model.backbone.preprocessor.decode([reply.ids])
    made = folder / f"made_{task}"
    made.mkdir()
    (made / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    official = Path(lmms_eval.__file__).parent / "tasks" / file
    (split,) = re.findall(r"test_split: (\w+)", official.read_text())
    local = {"dataset_path": "json", "dataset_name": None}
    local["dataset_kwargs"] = {"data_files": {split: str(made / "rows.jsonl")}}
    (made / "made.yaml").write_text(yaml.safe_dump({"include": str(official), "task": made.name, **local}))
    few = ("--gen_kwargs", f"max_new_tokens={tiny.NEW}")
    assert answers(evaluate(folder, tmp_path / "out", "Qwen2.5-VL", made.name, *few)) == expected
    assert len(set(expected)) > 1  # the control
    (results,) = (tmp_path / "out").rglob("*results.json")
    assert json.loads(results.read_text())["results"][made.name].keys() >= {f"{score},none"}


def ask(model: SpatialVLMZoo, *asked: tuple[list[Any], str], **options: Any) -> list[str]:
    """Answers to requests about media, as lmms-eval makes them."""
    chats = []
    for media, text in asked:
        content = [ConfigurableMessagesTask._visual_to_content(medium) for medium in media]
        chats.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
    model.task_dict = {"task": {"test": chats}}
    about = [
        ("", lambda chat: chat, {"max_new_tokens": tiny.NEW, **options}, n, "task", "test") for n in range(len(chats))
    ]
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return [each.text for each in model.generate_until([Instance("generate_until", a, 0, metadata) for a in about])]


def test_requests_about_equal_media_share_their_encoding(folder: Path, rooms_root: Path) -> None:
    model = SpatialVLMZoo(run=str(folder / "Qwen2.5-VL"))
    videos = [str(video) for video in sorted(rooms_root.rglob("*.mp4"))[:2]]
    pixels = np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8)
    asked: list[Any] = []
    for text in tiny.TEXTS[:3]:  # in turn, and each time another object of equal pixels
        asked += [([videos[0]], text), ([videos[1]], text), ([Image.fromarray(pixels)], text)]
    with patch.object(SpatialVLM, "encode_scenes", autospec=True, side_effect=SpatialVLM.encode_scenes) as encode:
        together = ask(model, *asked)
        assert encode.call_count == 3
    assert together == [ask(model, each)[0] for each in asked]
    assert len(set(together)) > 3  # the control


def test_bad_input(folder: Path, rooms_root: Path, tmp_path: Path) -> None:
    model, video = SpatialVLMZoo(run=str(folder / "Qwen2.5-VL")), str(next(rooms_root.rglob("*.mp4")))
    absent = [str(tmp_path / f"absent{n}.mp4") for n in range(3)]
    with pytest.raises(InputError, match=r"--gen_kwargs temperature=0,do_sample=False"):
        ask(model, ([video], "Which?"), temperature=0.7)
    with pytest.raises(InputError, match="whole videos"):
        ask(model, ([{"type": "video", "path": video, "video_start": 1.0}], "Which?"))
    with pytest.raises(RuntimeError, match="first 3 scenes all failed alike.*absent2.mp4: no such video"):
        ask(model, *(([file], "Which?") for file in absent))
    model.first_scenes = FirstScenes()
    lost, found = ask(model, ([absent[0]], "Which?"), ([video], "Which?"))
    assert lost == "" and found
    with pytest.raises(InputError, match="nowhere"):
        SpatialVLMZoo(run=str(tmp_path / "nowhere"))
