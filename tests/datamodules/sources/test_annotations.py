"""Questions are read whole or not at all, and a missing video is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.datamodule import check_split
from datamodules.dataset import check_scene
from datamodules.scenes import Question, Scene
from datamodules.sources import SingleVideo
from datamodules.sources.annotations import read_layout, read_questions
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
    "null": (GOOD | {"id": 2, "ground_truth": None}, "missing or no text: ground_truth"),
    "type": (GOOD | {"id": 2, "question_type": "color"}, "unknown question_type 'color'; VSIBench has obj"),
    "duplicate": (GOOD, "id 1 repeats line 1"),
    "duplicate as text": (GOOD | {"id": "1"}, "id 1 repeats line 1"),
    "no options": (CHOICE | {"id": 2, "scene_name": "s", "options": None}, "options are missing"),
    "options as text": (CHOICE | {"id": 2, "scene_name": "s", "options": "A. B."}, "options must be a list"),
    "letter": (CHOICE | {"id": 2, "scene_name": "s", "ground_truth": "C"}, "'C' is none of the options A, B"),
    "no letters": (CHOICE | {"id": 2, "scene_name": "s", "options": ["left", "right"]}, "none of the opt"),
    "options of a number": (GOOD | {"id": 2, "options": ["A. 4"]}, "options must be null"),
    "no number": (GOOD | {"id": 2, "ground_truth": "four"}, "'four' is not a number"),
    "a name that leaves its folder": (GOOD | {"id": 2, "scene_name": "../s"}, "d/../s leaves its folder"),
    "a dataset that leaves its folder": (GOOD | {"id": 2, "dataset": ".."}, "../s leaves its folder"),
    "an absolute name": (GOOD | {"id": 2, "scene_name": "/s"}, "d//s leaves its folder"),
    "no name": (GOOD | {"id": 2, "scene_name": ""}, "d/ leaves its folder"),
    "nan": (GOOD | {"id": 2, "ground_truth": "nan"}, "'nan' is not a number"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path, name):
    row, reason = BAD_ROWS[name]
    file = write_questions(tmp_path / "test.jsonl", GOOD, row)
    with pytest.raises(ValueError) as error:
        read_questions(file)
    message = str(error.value)
    assert f"{file}:2: " in message and reason in message and "\n" not in message


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"test\.jsonl: no questions"):
        read_questions(write_questions(tmp_path / "test.jsonl", ""))


def test_layout_finds_videos_folders_and_cameras_and_counts_what_is_missing(tmp_path):
    names = ["file", "folder", "both", "gone", "gone", "3.1"]
    rows = [NUMBER | {"id": i, "scene_name": name} for i, name in enumerate(names)]
    write_questions(tmp_path / "test.jsonl", *rows)
    for folder in ("folder", "both"):
        (tmp_path / "d" / folder).mkdir(parents=True)
    for name in ("file.webm", "both.mov", "3.1.mp4"):
        (tmp_path / "d" / name).touch()
    for name in ("file", "folder", "3.1"):
        (tmp_path / "d" / f"{name}.cameras.json").touch()

    scenes, missing = read_layout(tmp_path, "test.jsonl")
    assert missing == {"d/gone": {"object_counting": 2}}
    found = {scene.name: (scene.video.name, scene.cameras and scene.cameras.name) for scene in scenes}
    assert found == {
        "d/file": ("file.webm", "file.cameras.json"),
        "d/folder": ("folder", "folder.cameras.json"),
        "d/both": ("both.mov", None),  # a file goes before a folder
        "d/3.1": ("3.1.mp4", "3.1.cameras.json"),
    }
    assert sum(len(scene.questions) for scene in scenes) + sum(counts.total() for counts in missing.values()) == len(
        rows
    )


def test_a_video_is_found_with_a_suffix_in_capitals(tmp_path):
    write_questions(tmp_path / "test.jsonl", NUMBER | {"id": 1, "scene_name": "kitchen"})
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kitchen.MOV").touch()
    (scene,), missing = read_layout(tmp_path, "test.jsonl")
    assert scene.video == tmp_path / "d/kitchen.MOV" and not missing


def test_a_folder_of_frames_may_have_dots_in_its_name(tmp_path):
    frames = tmp_path / "d/scan_2024.05.01"
    frames.mkdir(parents=True)
    frames.with_name("scan_2024.05.01.cameras.json").touch()
    assert SingleVideo(str(frames), "?").scenes("test")[0].cameras is not None
    assert SingleVideo(str(frames), "?").scenes("test")[0].name == "scan_2024.05.01"
    bare = Scene("d/bare.1", tmp_path / "d/bare.1", ())
    bare.video.mkdir()
    with pytest.raises(InputError, match=r"put bare\.1\.cameras\.json beside it"):
        check_scene(bare, ModelSpec(requires_cameras=True))


@pytest.mark.parametrize(
    ("needs", "remedy"),
    [({"requires_cameras": True}, "predict them .*, or use a model"), ({"requires_depth": True}, "use a model")],
)
def test_no_file_beside_still_images_is_a_remedy(needs: dict[str, bool], remedy: str) -> None:
    stills = Scene("d/0.png", Path("d/0.png"), (), images=(Path("d/0.png"),))
    with pytest.raises(InputError, match=f"d/0.png: no .*: {remedy}") as error:
        check_scene(stills, ModelSpec(**needs))
    assert "beside" not in str(error.value)
    if "requires_cameras" in needs:
        with pytest.raises(InputError, match="has cameras: predict them"):
            check_split([stills], "test", SingleVideo("d/0.png", "?"), ModelSpec(**needs))
