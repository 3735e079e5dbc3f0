"""ReVSI, and SQA3D and ScanQA as tests, in the official formats; the prompt's prefix; datasets by hub address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules import SQA3D, Mixture, ReVSI, Rooms, ScanQA, VideoQADataModule, VSIBench
from datamodules.chat_format import ChatFormat
from datamodules.samplers import Duplicate
from datamodules.sources import vsibench as hub_dataset
from datamodules.sources.mixture import Part
from zoo.backbones import tiny_preprocessor
from zoo.errors import InputError

OPTIONS = ["A. left", "B. right", "C. back"]


def row(id: int, budget: str, kind: str, truth: str | None, options: list[str] | None = None) -> dict[str, Any]:
    """One row of the hub's parquet file."""
    return {"id": id, "dataset": "scannet", "scene_id": "scene0011_00", "num_frames": budget, "question_type": kind,
            "question": "How many chair(s)?", "options": options, "ground_truth": truth}  # fmt: skip


def revsi(root: Path, truths: dict[str, str | None]) -> Path:
    """Two questions about one scene, the first with a ground truth per budget."""
    for budget, truth in truths.items():
        folder = root / f"{budget}_frame"
        (folder / "scene0011_00").mkdir(parents=True)
        rows = [
            row(0, budget, "object_counting_single", truth),
            row(1, budget, "object_rel_direction_forward_easy", "B", OPTIONS),
        ]
        parquet.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize(("options", "truth"), [
    ({"num_frames": 16}, "2"), ({"num_frames": 32}, "3"), ({"num_frames": 32, "frame_pairing": Duplicate()}, "2"),
])  # fmt: skip
def test_the_number_of_frames_that_the_sampler_takes_chooses_the_truth(
    tmp_path: Path, options: Any, truth: str
) -> None:
    source = ReVSI(str(revsi(tmp_path, {"16": "2", "32": "3", "all": "5"})))
    (scene,) = VideoQADataModule(source, **options).scenes("test")
    assert [question.ground_truth for question in scene.questions] == [truth, "B"]
    assert scene.name == f"{16 if truth == '2' else 32}_frame/scene0011_00" and scene.questions[1].options == tuple(
        OPTIONS
    )


def test_whole_videos_and_a_mixture(tmp_path: Path) -> None:
    root = str(revsi(tmp_path, {"16": "2", "all": "5"}))
    (scene,) = VideoQADataModule(ReVSI(root, whole_videos=True), num_frames=10).scenes("test")
    assert scene.questions[0].ground_truth == "5"
    mixture = Mixture([Part(source=Rooms())], evaluation=ReVSI(root))
    (scene,) = VideoQADataModule(mixture, num_frames=16).scenes("test")
    assert scene.questions[0].ground_truth == "2" and mixture.benchmark.name == "ReVSI"


def test_a_missing_truth_is_one_line_that_names_the_remedy(tmp_path: Path) -> None:
    root = str(revsi(tmp_path / "a", {"16": "2", "64": None, "all": "5"}))
    remedy = r"only for 16, 64, all: choose --data\.num_frames 16 or 64, or ask about the whole videos"
    with pytest.raises(InputError, match=f"no ground truth for 8 frames, {remedy}"):
        VideoQADataModule(ReVSI(root), num_frames=8).scenes("test")
    with pytest.raises(InputError, match=r"parquet:1: question 0 has no ground truth for 64 frames"):
        VideoQADataModule(ReVSI(root), num_frames=64).scenes("test")
    file = tmp_path / "a/16_frame/test-00000-of-00001.parquet"
    file.replace(tmp_path / "a/64_frame/test-00000-of-00001.parquet")  # the file of another budget
    with pytest.raises(InputError, match="question 0 has no ground truth for 64 frames"):
        VideoQADataModule(ReVSI(root), num_frames=64).scenes("test")
    (tmp_path / "a/64_frame/test-00001-of-00002.parquet").touch()
    with pytest.raises(InputError, match="several files of annotations"):
        VideoQADataModule(ReVSI(root), num_frames=64).scenes("test")
    with pytest.raises(FileNotFoundError, match="no folder such as 16_frame: download the dataset 3dlg-hcvc/ReVSI"):
        ReVSI(str(tmp_path)).prepare()
    with pytest.raises(ValueError, match="no training split"):
        ReVSI(root).scenes("train")


def scannet_files(folder: Path) -> tuple[ScanQA, SQA3D]:
    (folder / "scannet/scene0000_00").mkdir(parents=True)
    scanqa = {"scene_id": "scene0000_00", "question_id": "val-0", "question": "What color is it?", "object_ids": [1],
              "object_names": ["chair"], "answers": ["brown", "dark\nbrown"]}  # fmt: skip
    asked = {"scene_id": "scene0000_00", "situation": "I sit. ", "question": "Is it red?", "question_id": 2206,
             "alternative_situation": []}  # fmt: skip
    answered = {"scene_id": "scene0000_00", "question_id": 2206, "question_type": "N/A", "answer_type": "other",
                "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}]}  # fmt: skip
    files = {"scanqa.json": [scanqa], "q.json": {"questions": [asked]}, "a.json": {"annotations": [answered]}}
    paths = [folder / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_text(json.dumps(content))
    videos = str(folder)
    return ScanQA(str(paths[0]), videos, evaluation=True), SQA3D(*map(str, paths[1:]), videos, evaluation=True)


def test_scanqa_and_sqa3d_are_scored_with_all_answers(tmp_path: Path) -> None:
    scanqa, sqa3d = scannet_files(tmp_path)
    (scene,) = scanqa.scenes("test")
    assert [(q.question_type, q.ground_truth) for q in scene.questions] == [("color", "brown\ndark brown")]
    (scene,) = sqa3d.scenes("test")
    assert [(q.question_type, q.question) for q in scene.questions] == [("is", "I sit. Is it red?")]
    data = VideoQADataModule(sqa3d, prompt_prefix="Look.")
    prompt = ChatFormat(tiny_preprocessor(), data.source.benchmark).prompt(scene.questions[0])
    assert "Look.\nI sit. Is it red? Answer the question using a single word or phrase.<" in prompt
    with pytest.raises(ValueError, match="evaluation is for a test"):
        scanqa.scenes("train")
    assert scanqa.benchmark.name == "ScanQA" and ScanQA("", "").benchmark.name == "VSIBench"


def test_the_prefix_is_a_setting_of_one_datamodule(tmp_path: Path) -> None:
    own, none = VideoQADataModule(ReVSI("")), VideoQADataModule(ReVSI(""), prompt_prefix="")
    assert own.source.benchmark.prefix == "These are frames of a video." and none.source.benchmark.prefix == ""
    assert ReVSI.benchmark.prefix and VideoQADataModule(Rooms()).source.benchmark.prefix == ""


def test_a_dataset_of_the_hub_is_downloaded_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"question_type": "room_size_estimation", "options": None, "ground_truth": "9"}
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"id": 0, "dataset": "arkitscenes", "scene_name": "1", "question": "How large?", **kind})
    )
    with ZipFile(tmp_path / "arkitscenes.zip", "w") as archive:
        archive.writestr("arkitscenes/1.mp4", b"")
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        hub_dataset, "snapshot_download", lambda name, repo_type: asked.append((name, repo_type)) or str(tmp_path)
    )
    source = VSIBench("hf://datasets/nyu-visionx/VSI-Bench")
    assert not asked and [scene.name for scene in source.scenes("test")] == ["arkitscenes/1"]
    assert asked == [("nyu-visionx/VSI-Bench", "dataset")]
    (tmp_path / "arkitscenes.zip").write_bytes(b"damaged")  # unpacked already
    assert source.scenes("test")
    monkeypatch.setattr(hub_dataset, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(FileNotFoundError, match=r"can't be downloaded \(offline\).*`hf download nyu-visionx/VSI-Bench"):
        source.prepare()
