"""Conversation data of the formats in use, several questions to a scene, and what has no video counted."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from datamodules.chat_format import user_text
from datamodules.scenes import RawQuestion, Scene, questions_fingerprint
from datamodules.sources import SQA3D, Conversations, Mixture, ScanQA
from datamodules.sources.conversations import NO_MEDIUM
from datamodules.sources.mixture import Part
from tests.datamodules.batches import labels_of, sequences_of, training_batch
from tests.datamodules.sources.listing import totals
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.errors import InputError
from zoo.sequences.loaded_scene import LoadedScene

SHORT = "Please answer the question using a single word or phrase."


def says(*turns: str, **row) -> dict:
    roles = ("human", "gpt") * len(turns)
    return row | {"conversations": [{"from": r, "value": text} for r, text in zip(roles, turns, strict=False)]}


# as Spatial-MLLM's file, VSI-590K's (which says <image> of a video) and others have it
ROWS = [
    says(f"<video>\nHow many chairs are there?\n{SHORT}", "4", video="scannet/scene0000_00.mp4"),
    says("<image>\nThese are frames of a video.\nHow big?", "23.5", id=7, video="arkitscenes/41069025.mp4",
         question_type="room_size_estimation"),
    says("<video>\nWhere is the lamp?", "On the table.", video="scannet/scene0000_00.mp4", question_type="where"),
    says("<image>\nWhat is this?", "A cup.", image="pictures/1.jpg"),
    says("Before: <image>, after: <image>.\nWhat moved?", "The cup.", image=["pictures/1.jpg", "pictures/2.jpg"]),
    says("<image>\nWhat color?", "Red.", images=["pictures/1.jpg"]),
    says("<image>\nWho?", "Nobody.", image=["pictures/gone.jpg"]),
    says("Hello?", "Hi there.", video=None),
    says("<video>\nWhat is left?", "A bed.", "And right?", "A door.", video="scannet/scene0001_00.mp4"),
    says("<video>\nWhich room?", "A kitchen.", video="scannet/gone.mp4"),
]  # fmt: skip


def write(folder: Path, rows: list[dict] = ROWS, name: str = "data.jsonl") -> Path:
    lines = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(lines)
    for video in ("scannet/scene0000_00.mp4", "arkitscenes/41069025.mp4"):
        (folder / video).parent.mkdir(exist_ok=True)
        (folder / video).touch()
    (folder / "pictures").mkdir(exist_ok=True)
    for picture in ("1.jpg", "2.jpg"):
        (folder / "pictures" / picture).touch()
    (folder / "scannet/scene0001_00").mkdir(exist_ok=True)  # a folder of frames does as well
    return folder / name


def test_texts_of_a_file_with_a_dot_in_its_name_are_scenes_of_their_own(tmp_path):
    turns = [{"from": who, "value": "A."} for who in ("human", "gpt", "human", "gpt")]
    (tmp_path / "mix.v2.jsonl").write_text(2 * (json.dumps({"conversations": turns}) + "\n"))
    for separate_turns in (False, True):
        scenes = Conversations(str(tmp_path / "mix.v2.jsonl"), separate_turns=separate_turns).scenes("train")
        assert [scene.name for scene in scenes] == ["text/mix.v2-1", "text/mix.v2-2"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_questions_of_one_video_are_one_scene(tmp_path, name):
    source = Conversations(str(write(tmp_path, name=name)))
    scenes = {scene.name: scene for scene in source.scenes("train")}
    pictures = [*scenes][3]
    assert [*scenes] == [
        *("scannet/scene0000_00", "arkitscenes/41069025", "pictures/1.jpg", pictures, "scannet/scene0001_00"),
        "text/data-8",
    ]
    (hello,) = scenes["text/data-8"].questions
    assert [name for name, scene in scenes.items() if scene.is_text] == ["text/data-8"]
    assert (hello.question, hello.ground_truth) == ("Hello?", "Hi there.")
    assert pictures.startswith("pictures/1.jpg+") and len(scenes[pictures].images) == 2
    chairs, lamp = scenes["scannet/scene0000_00"].questions
    assert chairs == RawQuestion("data-1", "", f"<video>\nHow many chairs are there?\n{SHORT}", "4")
    assert (lamp.question, lamp.ground_truth) == ("<video>\nWhere is the lamp?", "On the table.")
    (size,) = scenes["arkitscenes/41069025"].questions
    assert size.question == "<image>\nThese are frames of a video.\nHow big?"
    assert (size.question_type, lamp.question_type) == ("room_size_estimation", "")  # "where" is none of VSI-Bench's
    (left,) = scenes["scannet/scene0001_00"].questions
    assert (left.id, left.ground_truth, left.later_turns) == ("data-9", "A bed.", (("And right?", "A door."),))
    cup, color = scenes["pictures/1.jpg"].questions
    assert (cup.ground_truth, color.ground_truth) == ("A cup.", "Red.")
    assert scenes["pictures/1.jpg"].images == (tmp_path / "pictures/1.jpg",)
    assert scenes["scannet/scene0001_00"].video == tmp_path / "scannet/scene0001_00"
    assert totals(source) == {"scannet/gone": 1, "pictures/gone.jpg": 1}
    assert sum(len(scene.questions) for scene in scenes.values()) + 2 == len(ROWS)
    left, right = Conversations(str(tmp_path / name), separate_turns=True).scenes("train")[-2].questions
    assert (left.id, right.id, right.question, right.later_turns) == ("data-9.1", "data-9.2", "And right?", ())


def test_videos_may_lie_elsewhere_and_have_cameras(tmp_path):
    (tmp_path / "videos").mkdir()
    path = write(tmp_path / "videos")
    (tmp_path / "videos/scannet/scene0000_00.cameras.json").touch()
    path = path.rename(tmp_path / "data.jsonl")
    first, second, *_ = Conversations(str(path), videos=str(tmp_path / "videos")).scenes("train")
    assert first.cameras == tmp_path / "videos/scannet/scene0000_00.cameras.json" and second.cameras is None
    nowhere = Conversations(str(path))
    (text,) = nowhere.scenes("train")
    assert text.is_text and sum(totals(nowhere).values()) == len(ROWS) - 1
    marked = Conversations(str(write(tmp_path, [says("<video>\nIs there a lamp?", "Yes."), says("?", "!")])))
    assert [scene.is_text for scene in marked.scenes("train")] == [True] and totals(marked) == {NO_MEDIUM: 1}

    clip = "videos/scannet/scene0000_00"
    for named, name in ((tmp_path / f"{clip}.mp4", "scannet/scene0000_00"), (f"../{clip}.mp4", clip)):
        file = write(tmp_path, [says("?", "!", video=str(named))], "elsewhere.jsonl")
        (scene,) = Conversations(str(file), videos=str(tmp_path / "videos")).scenes("train")
        assert scene.name == name
    for part in "ab":  # two videos of one name would share a file of chosen frames
        (tmp_path / part / "s").mkdir(parents=True)
        (tmp_path / part / "s/v.mp4").touch()
    twice = write(tmp_path, [says("<video>?", "!", video=str(tmp_path / part / "s/v.mp4")) for part in "ab"], "t.jsonl")
    with pytest.raises(ValueError, match="share the scene name s/v"):
        Conversations(str(twice), str(tmp_path)).scenes("train")


def test_a_share_of_the_rows_is_fixed(tmp_path):
    rows = [says(f"<video>Question {i}?", str(i), video="scannet/scene0000_00.mp4") for i in range(200)]
    path = write(tmp_path, rows)

    def answers(suffix: str, seed: int = 0) -> list[int]:
        (scene,) = Conversations(f"{path}{suffix}", seed=seed).scenes("train")
        return [int(question.ground_truth) for question in scene.questions]

    quarter = answers("%25")
    assert len(quarter) == 50 and quarter == sorted(quarter) == answers("%25")
    assert answers("%25", seed=1) != quarter  # negative control
    assert len(answers("%0.5")) == 1 and answers("%100") == answers("") == list(range(200))
    for wrong in ("%0", "%101", "%many", "%-5"):
        with pytest.raises(InputError, match="after % give the percentage"):
            Conversations(f"{path}{wrong}")


def test_every_answer_of_a_conversation_is_supervised(tmp_path, realdata):
    """Token by token as transformers renders the whole chat."""
    row = says("<image>Left of <image>?", "A bed.", "And right?", "A door.", image=["pictures/1.jpg", "pictures/2.jpg"])
    (scene,) = Conversations(str(write(tmp_path, [row]))).scenes("train")
    processor = AutoProcessor.from_pretrained(realdata / "qwen2.5-vl")
    frames = torch.zeros((4, 3, 28, 28), dtype=torch.uint8)  # one token per image
    loaded = LoadedScene(scene.name, tuple(scene.questions), frames, frame_indices=range(4), kind="image")
    batch = training_batch(QwenVLPreprocessor(processor), loaded)
    image, texts = {"type": "image"}, [{"type": "text", "text": text} for text in ("Left of ", "?")]
    said = [[image, texts[0], image, texts[1]], "A bed.", "And right?", "A door."]
    messages = [{"role": ("user", "assistant")[turn % 2], "content": each} for turn, each in enumerate(said)]
    whole = processor.apply_chat_template(messages, tokenize=False)
    (ids,), (labels,) = sequences_of(batch).input_ids, labels_of(batch)
    assert processor.tokenizer.decode(ids) == whole
    assert processor.tokenizer.decode(labels[labels >= 0]) == "A bed.<|im_end|>\nA door.<|im_end|>\n"
    assert torch.equal(ids[labels >= 0], labels[labels >= 0])


def test_questions_have_the_fingerprint_of_their_content(tmp_path):
    path = write(tmp_path)
    first, again = (Conversations(str(path)).scenes("train") for _ in range(2))
    assert [list(scene.questions) for scene in again] == [list(scene.questions) for scene in first]
    path.write_text(path.read_text().replace("A cup.", "A mug."))  # of the same size
    other = Conversations(str(path)).scenes("train")
    changed = {q.ground_truth for scene in other for q in scene.questions}
    assert "A mug." in changed and "A cup." not in changed
    apart = Conversations(str(path), separate_turns=True).scenes("train")
    digests = [questions_fingerprint(each) for each in (first, again, other, other[:-1], apart)]
    assert digests[0] == digests[1] and len(set(digests)) == 4
    copied = pickle.loads(pickle.dumps(first))  # as for a data worker that is not forked
    assert [list(scene.questions) for scene in copied] == [list(scene.questions) for scene in first]


def chat(*contents, **row) -> dict:
    roles = ("user", "assistant") * len(contents)
    return row | {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def text(words: str) -> list[dict]:
    return [{"type": "text", "text": words}]


CHATS = {  # of ROWS, as ms-swift's files and TRL's have them
    0: chat(f"<video>\nHow many chairs are there?\n{SHORT}", "4", videos=["scannet/scene0000_00.mp4"]),
    1: chat([{"type": "image"}, *text("\nThese are frames of a video.\nHow big?")], text("23.5"),
            videos=["arkitscenes/41069025.mp4"], question_type="room_size_estimation"),
    2: chat([{"type": "video", "video": "scannet/scene0000_00.mp4"}, *text("\nWhere is the lamp?")],
            text("On the table.")),
    4: chat([*text("Before: "), {"type": "image"}, *text(", after: "), {"type": "image"}, *text(".\nWhat moved?")],
            text("The cup."), images=["pictures/1.jpg", {"path": "pictures/2.jpg", "bytes": None}]),
    5: chat("<image>\nWhat color?", "Red.", images=["pictures/1.jpg"]),
    8: chat("<video>\nWhat is left?", "A bed.", "And right?", text("A door."), videos="scannet/scene0001_00.mp4"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_chat_messages_are_read_as_conversations(tmp_path, name):
    expected = Conversations(str(write(tmp_path, name=name))).scenes("train")
    rows = [CHATS.get(number, row) for number, row in enumerate(ROWS)]
    found = Conversations(str(write(tmp_path, rows, name))).scenes("train")
    assert [(scene.name, [*scene.questions]) for scene in found] == [
        (scene.name, [*scene.questions]) for scene in expected
    ]
    assert [scene.images for scene in found] == [scene.images for scene in expected]


BAD = {
    "json": ("{", "not valid JSON"),
    "list": ("[]", "expected a JSON object, got a list"),
    "no conversations": ('{"video": "a.mp4"}', "conversations must list"),
    "role": ('{"conversations": [{"from": "cat", "value": "?"}]}', "conversations must list"),
    "no answer": (json.dumps(says("?", video="a.mp4")), "human and gpt must alternate"),
    "no turn": (json.dumps({"video": "a.mp4", "conversations": []}), "human and gpt must alternate"),
    "number": (json.dumps(says("?", 4, video="a.mp4")), "a turn's value must be a text"),
    "surrogate": (json.dumps(says("?", "!\ud800", video="a.mp4")), "half of a surrogate pair"),
    "more images than marks": (json.dumps(says("<image>?", "!", image=["a.jpg", "b.jpg"])), "1 marks .* for 2"),
    "more marks than videos": (json.dumps(says("<video><video>?", "!", video="a.mp4")), "2 marks .* for 1"),
    "a mark in a later turn": (json.dumps(says("<image>?", "!", "<image>?", "!", image="a.jpg")), "in the first turn"),
    "a video and an image": (json.dumps(says("?", "!", video="a.mp4", image="a.jpg")), "expected one of them"),
    "a system message": (json.dumps({"messages": [{"role": "system", "content": "x"}]}), "--data.system_prompt"),
    "a tool": (json.dumps({"messages": [{"role": "tool", "content": "x"}]}), '"user" or "assistant"'),
    "no messages": ('{"messages": null}', "messages must list"),
    "a sound": (json.dumps(chat([{"type": "audio"}], "!", videos=["a.mp4"])), "messages must list"),
    "a text without its text": (json.dumps(chat([{"type": "text"}], "!", videos=["a.mp4"])), "messages must list"),
    "two videos": (json.dumps(chat("<video><video>?", "!", videos=["a.mp4", "b.mp4"])), "2 videos: expected one"),
    "pictures within the file": (json.dumps(chat("<image>?", "!", images=[{"bytes": "x"}])), "list of file names"),
    "more pictures than marks": (json.dumps(chat("<image>?", "!", images=["a.jpg", "b.jpg"])), "1 marks .* for 2"),
    "an image that is a number": (json.dumps(says("?", "!", image=[3])), "a file name or a list of file names"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_by_file_and_line(name, tmp_path):
    line, reason = BAD[name]
    path = write(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError) as error:
        Conversations(str(path)).scenes("train")
    message = str(error.value)
    assert f"{path}:{len(ROWS) + 1}: " in message and re.search(reason, message) and "\n" not in message


def test_other_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl is absent"):
        Conversations(str(tmp_path / "gone.jsonl")).prepare()
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: expected a list of objects"):
        Conversations(str(tmp_path / "a.json")).scenes("train")
    with pytest.raises(ValueError, match="no row has a video or image"):
        Conversations(str(write(tmp_path, [says("<image>?", "!")]))).scenes("train")
    with pytest.raises(ValueError, match="no row has a video or image"):  # a test shows something
        Conversations(str(write(tmp_path, [says("?", "!")])), evaluation=True).scenes("test")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="no row has a video or image"):
        Conversations(str(tmp_path / "empty.jsonl%25")).scenes("train")
    long = [says("<image>?", "!", image="x" * 300), says("<image>?", "!", image="pictures/1.jpg")]
    source = Conversations(str(write(tmp_path, long)))
    assert len(source.scenes("train")) == 1 and totals(source) == {"x" * 300: 1}
    with pytest.raises(ValueError, match="Conversations is for training"):
        Conversations(str(write(tmp_path))).scenes("val")


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("room_size_estimation", ["23.5", "7"], ["23.5 m", "two", "", "nan"]),
        ("route_planning", ["A", "d"], ["(A)", "A. left", ""]),
    ],
)
def test_a_right_answer_that_no_answer_can_match_is_named_by_file_and_row(
    kind: str, right: list[str], wrong: list[str], tmp_path: Path
) -> None:
    def source(answer: str, **options: bool) -> Conversations:
        row = says("<video>\nWhich?", answer, video="scannet/scene0000_00.mp4", question_type=kind)
        return Conversations(str(write(tmp_path, [row])), **options)

    for answer in right:
        assert len(source(answer, evaluation=True).scenes("test")) == 1
    for answer in wrong:
        with pytest.raises(InputError, match=rf"data\.jsonl:1: .*(empty|ground_truth '{re.escape(answer)}' is not)"):
            source(answer, evaluation=True).scenes("test")
        assert source(answer).scenes("train")  # a training takes free answers


def test_the_name_of_a_scene_of_images_lies_in_its_folder(tmp_path: Path) -> None:
    """Selections and caches are written at this name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "outside.png").touch()
    rows = [says("<image>?", "!", image=name) for name in ("../outside.png", str(tmp_path / "outside.png"))]
    rows.append(says("<image><image>?", "!", image=["../outside.png", "../outside.png"]))
    names = [scene.name for scene in Conversations(str(write(tmp_path / "data", rows))).scenes("train")]
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "selections" / name).resolve().is_relative_to(tmp_path / "selections"), name


# ---- ScanQA and SQA3D
def scannet_videos(folder: Path) -> Path:
    (folder / "scannet").mkdir(exist_ok=True)
    (folder / "scannet/scene0000_00.mp4").touch()
    return folder


def asked(scenes: list[Scene]) -> dict[str, list[tuple[str, str]]]:
    return {scene.name: [(each.question, each.ground_truth) for each in scene.questions] for scene in scenes}


def test_scanqa(tmp_path):
    row = {"question": "What is it?", "answers": ["a brown cabinet", "cabinet"], "object_ids": [8], "object_names": []}
    rows = [row | {"scene_id": f"scene000{n}_00", "question_id": str(i)} for i, n in enumerate((0, 1, 0))]
    path = tmp_path / "ScanQA_v1.0_train.json"
    path.write_text(json.dumps(rows))
    source = ScanQA(str(path), str(scannet_videos(tmp_path)))
    scenes = source.scenes("train")
    assert asked(scenes) == {"scannet/scene0000_00": [("What is it?", "a brown cabinet")] * 2}
    assert totals(source) == {"scannet/scene0001_00": 1}
    assert user_text(scenes[0].questions[0]) == f"What is it?\n{SHORT}"
    path.write_text(json.dumps([rows[0] | {"answers": []}]))
    with pytest.raises(ValueError, match=r"train\.json: question 1 is not as published"):
        source.scenes("train")
    with pytest.raises(FileNotFoundError, match="download it from"):
        ScanQA(str(tmp_path / "gone.json"), str(tmp_path)).prepare()


def write_sqa3d(folder: Path, **changes) -> list[str]:
    """The arguments of a source with one question."""
    row = {"scene_id": "scene0000_00", "situation": "I sit on the bed.", "question": "What is to my left?"}
    answers = {"question_id": 220602000037, "answers": [{"answer": "lamp", "answer_confidence": "yes"}]}
    (folder / "q.json").write_text(json.dumps({"questions": [row | {"question_id": 220602000037} | changes]}))
    (folder / "a.json").write_text(json.dumps({"annotations": [answers]}))
    return [str(folder / "q.json"), str(folder / "a.json"), str(scannet_videos(folder))]


def test_sqa3d(tmp_path):
    source = SQA3D(*write_sqa3d(tmp_path))
    expected = {"scannet/scene0000_00": [("I sit on the bed. What is to my left?", "lamp")]}
    assert asked(source.scenes("train")) == expected
    for content in ({"annotations": []}, []):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"a\.json: question 1 is not as published"):
            source.scenes("train")
    for field in ("situation", "question"):
        with pytest.raises(ValueError, match=r"q\.json.*: question 1 is not as published"):
            SQA3D(*write_sqa3d(tmp_path, **{field: None})).scenes("train")
    with pytest.raises(ValueError, match="SQA3D is for training"):
        source.scenes("test")


def test_rows_of_datasets_and_of_question_types_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)

    def ids(source: Conversations) -> list[str]:
        return sorted(question.id for scene in source.scenes("train") for question in scene.questions)

    scannet = Conversations(str(path), datasets=["scannet"])
    assert ids(scannet) == ["data-1", "data-3", "data-9"] and list(scannet.missing) == ["scannet/gone"]
    assert ids(Conversations(str(path), question_types=["where"])) == ["data-3"]  # VSI-Bench has no such type
    both = Part(
        path=f"{path}%50", datasets=["scannet", "arkitscenes"], question_types=["where", "room_size_estimation"]
    )
    (half,) = Mixture([both]).sources
    assert isinstance(half, Conversations) and len(ids(half)) == 1  # the share is of the two rows that are left
    assert len(ids(Conversations(str(path)))) > 5  # negative control
    with pytest.raises(ValueError, match="no row of question_types size, only of None, room_size_estimation, where$"):
        ids(Conversations(str(path), question_types=["where", "size"]))
    with pytest.raises(ValueError, match="no row of datasets scannetpp, only of , arkitscenes, pictures, scannet$"):
        ids(Conversations(str(path), datasets=["scannetpp"]))
