"""VSI-Bench's layout, ReVSI, VSTI-Bench, and SQA3D and ScanQA as tests: questions are read whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from datamodules import (
    SQA3D,
    Duplicate,
    Mixture,
    ReVSI,
    Rooms,
    ScanQA,
    SingleVideo,
    VideoQADataModule,
    VSIBench,
    VSTIBench,
)
from datamodules.chat_format import ChatFormat
from datamodules.datamodule import check_split
from datamodules.dataset import check_scene
from datamodules.scenes import Question, Scene
from datamodules.sources import vsibench as hub_dataset
from datamodules.sources.annotations import read_layout, read_questions
from datamodules.sources.mixture import Part
from zoo.backbones import tiny_preprocessor
from zoo.errors import InputError
from zoo.model_spec import ModelSpec

NUMBER = {"dataset": "d", "question_type": "object_counting", "question": "How many?", "ground_truth": "4"}
CHOICE = {
    "dataset": "d",
    "question_type": "object_rel_direction_easy",
    "question": "Left or right?",
    "ground_truth": "B",
    "options": ["A. left", "B. right"],
}


def write_questions(path: Path, *rows: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_questions_are_grouped_by_scene_in_the_order_of_the_file(tmp_path):
    file = write_questions(
        tmp_path / "test.jsonl",
        NUMBER | {"id": 7, "scene_name": "z", "options": None},
        CHOICE | {"id": "8", "scene_name": "a"},
        "",
        NUMBER | {"id": 3, "scene_name": "z", "ground_truth": 23.5},
        NUMBER | {"id": 4, "scene_name": "z", "dataset": "other"},
        NUMBER | {"id": 5, "scene_name": "a..b/c d"},
    )
    scenes = read_questions(file)
    assert list(scenes) == ["d/z", "d/a", "other/z", "d/a..b/c d"]
    assert scenes["d/z"] == [
        Question("7", "object_counting", "How many?", "4"),
        Question("3", "object_counting", "How many?", "23.5"),
    ]
    assert scenes["d/a"][0].options == ("A. left", "B. right")


GOOD = NUMBER | {"id": 1, "scene_name": "s"}
BAD_ROWS = {
    "json": ("{", "not valid JSON"),
    "not utf-8": (b"\xff\xfe{}".decode("latin-1"), "not valid JSON"),
    "list": ("[1]", "expected a JSON object"),
    "missing": ({"id": 2, "scene_name": "s", "question": "?"}, "missing or no text: dataset, question_type, ground"),
    "type": (GOOD | {"id": 2, "question_type": "color"}, "unknown question_type 'color'; VSIBench has obj"),
    "duplicate as text": (GOOD | {"id": "1"}, "id 1 repeats line 1"),
    "no options": (CHOICE | {"id": 2, "scene_name": "s", "options": None}, "options are missing"),
    "options as text": (CHOICE | {"id": 2, "scene_name": "s", "options": "A. B."}, "options must be a list"),
    "letter": (CHOICE | {"id": 2, "scene_name": "s", "ground_truth": "C"}, "'C' is none of the options A, B"),
    "no letters": (CHOICE | {"id": 2, "scene_name": "s", "options": ["left", "right"]}, "none of the opt"),
    "a word for a letter": (
        CHOICE | {"id": 2, "scene_name": "s", "options": ["left", "right"], "ground_truth": "left"},
        "ground_truth 'left' is not a letter, which object_rel_direction_easy requires",
    ),
    "a letter twice": (CHOICE | {"id": 2, "scene_name": "s", "options": ["B. a", "b. c"]}, "letter twice: B, b"),
    "half a character": (GOOD | {"id": 2, "question": "How many \ud83d?"}, "half of a surrogate pair"),
    "a name that is not UTF-8": (GOOD | {"id": 2, "scene_name": "\udcff"}, "half of a surrogate pair"),
    "options of a number": (GOOD | {"id": 2, "options": ["A. 4"]}, "options must be null"),
    "no number": (GOOD | {"id": 2, "ground_truth": "four"}, "'four' is not a number"),
    "nan": (GOOD | {"id": 2, "ground_truth": "nan"}, "'nan' is not a number"),
    "a name that leaves its folder": (GOOD | {"id": 2, "scene_name": "../s"}, "d/../s leaves its folder"),
    "a dataset that leaves its folder": (GOOD | {"id": 2, "dataset": ".."}, "../s leaves its folder"),
    "an absolute name": (GOOD | {"id": 2, "scene_name": "/s"}, "d//s leaves its folder"),
    "no name": (GOOD | {"id": 2, "scene_name": ""}, "d/ leaves its folder"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path, name):
    row, reason = BAD_ROWS[name]
    file = write_questions(tmp_path / "test.jsonl", GOOD, row)
    with pytest.raises(ValueError) as error:
        read_questions(file)
    message = str(error.value)
    assert f"{file}:2: " in message and reason in message and "\n" not in message
    with pytest.raises(ValueError, match=r"test\.jsonl: no questions"):
        read_questions(write_questions(file, ""))


def test_layout_finds_videos_folders_cameras_and_depth_and_counts_what_is_missing(tmp_path):
    names = ["file", "folder", "both", "gone", "gone", "3.1", "capital", "title", "moving", "scan_2024.05"]
    rows = [NUMBER | {"id": i, "scene_name": name} for i, name in enumerate(names)]
    write_questions(tmp_path / "test.jsonl", *rows)
    for folder in ("folder", "both", "scan_2024.05", "file.depth"):
        (tmp_path / "d" / folder).mkdir(parents=True)
    for name in ("file.webm", "both.mov", "3.1.mp4", "capital.MOV", "title.Mp4", "moving.gif"):
        (tmp_path / "d" / name).touch()
    for name in ("file", "folder", "3.1", "scan_2024.05"):
        (tmp_path / "d" / f"{name}.cameras.json").touch()
    Image.new("I;16", (2, 2)).save(tmp_path / "d/file.depth/0.png")

    scenes, missing = read_layout(tmp_path, "test.jsonl")
    assert missing == {"d/gone": {"object_counting": 2}}
    assert [scene.name for scene in scenes if scene.depth] == ["d/file"]
    found = {scene.name: (scene.video.name, scene.cameras and scene.cameras.name) for scene in scenes}
    assert found == {
        "d/file": ("file.webm", "file.cameras.json"),
        "d/folder": ("folder", "folder.cameras.json"),
        "d/both": ("both.mov", None),  # a file goes before a folder
        "d/3.1": ("3.1.mp4", "3.1.cameras.json"),
        "d/capital": ("capital.MOV", None),
        "d/title": ("title.Mp4", None),
        "d/moving": ("moving.gif", None),
        "d/scan_2024.05": ("scan_2024.05", "scan_2024.05.cameras.json"),
    }
    assert sum(len(scene.questions) for scene in scenes) + 2 == len(rows)


def test_a_model_that_needs_cameras_names_the_file_to_add_or_another_remedy(tmp_path):
    images = Scene("d/0.png", Path("d/0.png"), (), images=(Path("d/0.png"),))
    video = Scene("d/bare.1", tmp_path, ())
    for scene, needs, remedy in (
        (video, ModelSpec(requires_cameras=True), f"put {tmp_path.name}.cameras.json beside it"),
        (images, ModelSpec(requires_cameras=True), "predict them"),
        (images, ModelSpec(requires_depth=True), "use a model"),
    ):
        with pytest.raises(InputError, match=f"{scene.video}: no .*{remedy}"):
            check_scene(scene, needs)
    with pytest.raises(InputError, match="has cameras: predict them"):
        check_split([images], "test", SingleVideo("d/0.png", "?"), ModelSpec(requires_cameras=True))


# ---- VSI-Bench

SCENE = "47334096"


@pytest.fixture
def root(tmp_path: Path, realdata: Path) -> Path:
    """The layout of the benchmark with one of its scenes, by links to the real files."""
    (tmp_path / "arkitscenes").mkdir()
    (tmp_path / "test.jsonl").symlink_to(realdata / "vsibench/test.jsonl")
    (tmp_path / "arkitscenes" / SCENE).symlink_to(realdata / "scenes/arkitscenes_47334096/frames")
    return tmp_path


def test_room_size_on_all_of_arkitscenes_is_150_questions(tmp_path, realdata):
    """`--data.datasets [arkitscenes] --data.question_types [room_size_estimation]`."""
    (tmp_path / "test.jsonl").symlink_to(realdata / "vsibench/test.jsonl")
    for row in map(json.loads, (tmp_path / "test.jsonl").open()):
        video = tmp_path / row["dataset"] / f"{row['scene_name']}.mp4"
        video.parent.mkdir(exist_ok=True)
        video.touch()
    source = VSIBench(str(tmp_path))
    everything = VideoQADataModule(source).scenes("test")
    assert (len(everything), sum(len(scene.questions) for scene in everything)) == (288, 5130)
    data = VideoQADataModule(source, datasets=["arkitscenes"], question_types=["room_size_estimation"])
    scenes = data.scenes("test")
    assert len(scenes) == sum(len(scene.questions) for scene in scenes) == 150 and data.missing == {}
    listed = (realdata / "vsibench/arkitscenes_room_size.jsonl").open()
    assert {scene.questions[0].id for scene in scenes} == {str(json.loads(line)["id"]) for line in listed}


ROWS = [
    {
        "id": i,
        "dataset": "scannet",
        "scene_name": f"scene{i // 2}",
        "question_type": "object_rel_direction_easy" if i % 2 else "object_counting",
        "question": f"Question {i}?",
        "ground_truth": "A" if i % 2 else "4",
        "options": ["A. left", "B. right"] if i % 2 else None,
    }
    for i in range(6)
]
PRUNED = ("1", "4", "5")


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """The hub's data set in small: the questions as jsonl, the ids that debiasing pruned, three videos."""
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "pruned_ids.txt").write_text("\n".join(PRUNED) + "\n")
    (tmp_path / "scannet").mkdir()
    for i in range(3):
        (tmp_path / f"scannet/scene{i}.mp4").touch()
    return tmp_path


def ids(scenes: list[Scene]) -> list[str]:
    return [question.id for scene in scenes for question in scene.questions]


def test_the_debiased_split(generated, monkeypatch):
    assert ids(VSIBench(str(generated)).scenes("test")) == ["0", "1", "2", "3", "4", "5"]
    scenes = VSIBench(str(generated), debiased=True).scenes("test")
    assert ids(scenes) == ["0", "2", "3"]
    assert [scene.name for scene in scenes] == ["scannet/scene0", "scannet/scene1"]  # none is left of the third
    monkeypatch.chdir(generated.parent)  # a relative root
    assert ids(VSIBench(generated.name, debiased=True).scenes("test")) == ["0", "2", "3"]
    (generated / "pruned_ids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pruned_ids\.txt is absent"):
        VSIBench(str(generated), debiased=True).prepare()


def test_parquet_holds_the_same_questions(generated):
    table = pa.Table.from_pylist([row | {"pruned": str(row["id"]) in PRUNED} for row in ROWS])
    parquet.write_table(table, generated / "test-00000-of-00001.parquet")
    parquet.write_table(table.filter([str(row["id"]) not in PRUNED for row in ROWS]), generated / "debiased.parquet")
    asked = VSIBench(str(generated)).scenes("test")
    assert VSIBench(str(generated), annotations="test-00000-of-00001.parquet").scenes("test") == asked
    debiased = VSIBench(str(generated), annotations="debiased.parquet").scenes("test")
    assert debiased == VSIBench(str(generated), debiased=True).scenes("test") != asked

    (generated / "cut.parquet").write_bytes((generated / "debiased.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a parquet file") as error:
        VSIBench(str(generated), annotations="cut.parquet").scenes("test")
    assert "\n" not in str(error.value)
    parquet.write_table(pa.Table.from_pylist([ROWS[0], ROWS[0]]), generated / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet:2: id 0 repeats line 1"):
        VSIBench(str(generated), annotations="twice.parquet").scenes("test")


def test_absent_data_says_what_to_download_and_where_to_put_it(tmp_path):
    for act in (VSIBench.prepare, lambda source: source.scenes("test")):
        with pytest.raises(FileNotFoundError) as error:
            act(VSIBench(str(tmp_path)))
        message = str(error.value)
        assert "nyu-visionx/VSI-Bench" in message and str(tmp_path / "test.jsonl") in message
        assert "\n" not in message
    with pytest.raises(ValueError, match="no training split: train on another source"):
        VSIBench(str(tmp_path)).scenes("train")


def test_a_single_video(tmp_path):
    clip, cameras = tmp_path / "clip.mp4", tmp_path / "clip.cameras.json"
    with pytest.raises(FileNotFoundError, match="clip.mp4: no such video file or folder of frames"):
        SingleVideo(str(clip), "?").prepare()
    clip.touch()
    (scene,) = SingleVideo(str(clip), "What is the size of this room?").scenes("test")
    assert (scene.name, scene.video, scene.cameras) == ("clip", clip, None)
    assert scene.questions[0].question_type == "" and scene.questions[0].options == ()
    cameras.write_text(json.dumps({}))
    (scene,) = SingleVideo(str(clip), "Left?").scenes("test")
    assert scene.cameras == cameras
    with pytest.raises(FileNotFoundError, match="k.json: no such cameras file"):
        SingleVideo(str(clip), "?", cameras=str(tmp_path / "k.json")).prepare()


def test_missing_questions_are_those_that_would_be_asked(root, caplog):
    data = VideoQADataModule(
        VSIBench(str(root)), datasets=["arkitscenes", "scanet"], question_types=["room_size_estimation"]
    )
    caplog.set_level("INFO")
    assert sum(len(scene.questions) for scene in data.scenes("test")) == 1
    assert len(data.missing) == sum(data.missing.values()) == 149
    assert "test: no scene meets --data.datasets scanet" in caplog.text
    VideoQADataModule(VSIBench(str(root)), scene_names=[SCENE, "nosuch", f"arkitscenes/{SCENE}"]).scenes("test")
    assert caplog.text.rstrip().endswith("test: no scene meets --data.scene_names nosuch")


# ---- ReVSI, VSTI-Bench, ScanQA and SQA3D

OPTIONS = ["A. left", "B. right", "C. back"]


def revsi(root: Path, truths: dict[str, str | None]) -> Path:
    """Two questions about one scene, the first with a ground truth per budget, as the hub's parquet files have them."""
    scene: dict[str, Any] = {"dataset": "scannet", "scene_id": "scene0011_00", "question": "How many chair(s)?"}
    for budget, truth in truths.items():
        folder = root / f"{budget}_frame"
        (folder / "scene0011_00").mkdir(parents=True)
        rows = [
            {"id": 0, "question_type": "object_counting_single", "ground_truth": truth, "options": None},
            {"id": 1, "question_type": "object_rel_direction_forward_easy", "ground_truth": "B", "options": OPTIONS},
        ]
        table = pa.Table.from_pylist([scene | {"num_frames": budget} | row for row in rows])
        parquet.write_table(table, folder / "test-00000-of-00001.parquet")
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


def test_a_missing_truth_names_the_remedy(tmp_path: Path) -> None:
    root = str(revsi(tmp_path / "a", {"16": "2", "64": None, "all": "5"}))
    remedy = r"only for 16, 64, all: choose --data\.num_frames 16 or 64, or ask about the whole videos"
    with pytest.raises(InputError, match=f"no ground truth for 8 frames, {remedy}"):
        VideoQADataModule(ReVSI(root), num_frames=8).scenes("test")
    with pytest.raises(InputError, match=r"parquet:1: question 0 has no ground truth for 64 frames"):
        VideoQADataModule(ReVSI(root), num_frames=64).scenes("test")
    (tmp_path / "a/64_frame/test-00001-of-00002.parquet").touch()
    with pytest.raises(InputError, match="several files of annotations"):
        VideoQADataModule(ReVSI(root), num_frames=64).scenes("test")
    with pytest.raises(FileNotFoundError, match="no folder such as 16_frame: download the dataset 3dlg-hcvc/ReVSI"):
        ReVSI(str(tmp_path)).prepare()
    with pytest.raises(ValueError, match="no training split"):
        ReVSI(root).scenes("train")


def vstibench(root: Path, **changes: Any) -> VSTIBench:
    """A displacement with options, as the generator writes them, and a direction; and a scene without its video."""
    video = {"video_path": "ScanNet/videos/val/scene0011_00.mp4", "frame_indices": [3, 9]}
    (root / "ScanNet/videos/val/scene0011_00").mkdir(parents=True, exist_ok=True)
    moved = {"question_type": "camera_displacement", "question": "How far between frame 2 and frame 5 of 5?",
             "options": ["A. 1.0", "B. 9.0"], "ground_truth": 1.0, "mc_answer": "A"}  # fmt: skip
    turned = {"question_type": "camera_movement_direction", "question": "Which way between frame 1 and frame 5 of 5?",
              "options": ["A. Left", "B. Right"], "ground_truth": "Right", "mc_answer": "B"}  # fmt: skip
    rows = [video | moved, video | turned | changes, {**video, **moved, "video_path": "ScanNet/videos/val/gone.mp4"}]
    (root / "test.json").write_text(json.dumps(rows))
    return VSTIBench(str(root))


def test_vstibench_takes_the_letter_as_the_truth_and_shows_numbers_no_options(tmp_path: Path) -> None:
    source = vstibench(tmp_path)
    (scene,) = source.scenes("test")
    assert scene.name == "ScanNet/videos/val/scene0011_00" and dict(source.missing) == {
        "ScanNet/videos/val/gone": {"camera_displacement": 1}
    }
    assert [(q.ground_truth, q.options) for q in scene.questions] == [("1.0", ()), ("B", ("A. Left", "B. Right"))]
    assert len({question.id for question in scene.questions}) == 2
    prompt = ChatFormat(tiny_preprocessor(), source.benchmark).prompt(scene.questions[0])
    assert "These are frames of a video.\nHow far" in prompt and "9.0" not in prompt
    (scene,) = vstibench(tmp_path, id=7).scenes("test")
    assert scene.questions[1].id == "7"
    for absent in ("video_path", "mc_answer"):
        with pytest.raises(ValueError, match=rf"test\.json:2: missing: {absent}"):
            vstibench(tmp_path, **{absent: None}).scenes("test")
    with pytest.raises(ValueError, match=r"test\.json:2: ground_truth 'C' is none of the options A, B"):
        vstibench(tmp_path, mc_answer="C").scenes("test")
    with pytest.raises(ValueError, match="no training split"):
        source.scenes("train")
    with pytest.raises(FileNotFoundError, match=r"other\.json is absent: download the dataset Journey9ni/vstibench"):
        VSTIBench(str(tmp_path), "other.json").scenes("test")


def test_vstibench_takes_imported_cameras(tmp_path: Path) -> None:
    cameras = tmp_path / "cameras/scannet/scene0011_00.cameras.json"
    cameras.parent.mkdir(parents=True)
    cameras.write_text("{}")
    assert vstibench(tmp_path).scenes("test")[0].cameras is None
    assert VSTIBench(str(tmp_path), cameras=str(tmp_path / "cameras")).scenes("test")[0].cameras == cameras


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
