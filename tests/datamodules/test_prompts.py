"""Prompts, labels and batches: as the official code and the stock processors write them; padding, cameras, failures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from datamodules.cameras_file import write_cameras
from datamodules.chat_format import ChatFormat, user_text
from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.dataset import SceneDataset
from datamodules.inference import batch_of_questions
from datamodules.resize import PixelBounds
from datamodules.samplers import UniformSampler
from datamodules.scenes import Question, RawQuestion, Scene
from tests.datamodules.batches import labels_of, question_batch, sequences_of, training_batch
from tests.tiny import prompts_of
from zoo import InputError, SpatialVLM, TinyQwen3VL
from zoo.backbones import qwen3_vl
from zoo.backbones.qwen25_vl import tiny_preprocessor, tiny_processor
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.benchmarks import VSIBench
from zoo.benchmarks.base import FRAMES_PREFIX
from zoo.geometry.base import SceneGeometry
from zoo.sequences.batch import Batch
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED

GOLDEN = Path(__file__).parents[1] / "golden/preprocess/prompts.json"


def test_the_wording_and_the_tiny_template_are_those_of_the_official_code() -> None:
    wording, processor = ChatFormat(tiny_preprocessor()), tiny_processor()
    for row in json.loads(GOLDEN.read_text()):
        question = Question("0", row["question_type"], row["question"], options=tuple(row.get("options") or ()))
        assert user_text(question) == row["spatial_mllm_user_text"] != row["thinking_in_space_user_text"]
        prefixed = VSIBench().user_text(question.question, question.options, prefix=FRAMES_PREFIX)
        assert prefixed == row["thinking_in_space_user_text"]
        assert wording.prompt(question) == row["spatial_mllm_chat_text"]
        ids = processor.tokenizer(row["spatial_mllm_chat_text"])["input_ids"]
        assert processor.tokenizer.decode(ids) == row["spatial_mllm_chat_text"]


def test_a_free_question_asks_for_a_short_answer_and_a_raw_one_is_unchanged():
    text = user_text(Question("0", "", "Is the lamp on?"))
    assert text == "Is the lamp on?\nPlease answer the question using a single word or phrase."
    assert user_text(RawQuestion("0", "", "Is the lamp on?")) == "Is the lamp on?"


def scene(name: str, *questions: Question, size: tuple[int, int] = (56, 84), frames: int = 4) -> LoadedScene:
    pixels = torch.randint(0, 255, (frames, 3, *size), dtype=torch.uint8)
    geometry = SceneGeometry(
        world_to_camera=torch.eye(4).repeat(frames, 1, 1), K_normalized=torch.eye(3).repeat(frames, 1, 1)
    )
    return LoadedScene(
        name, questions, pixels, frame_indices=tuple(range(frames)), seconds_per_grid=1.0, geometry=geometry
    )


A = Question("a", "object_counting", "How many chair(s) are in this room?", "4")
B = Question("b", "object_rel_direction_easy", "Is it left?", "B", ("A. left", "B. right"))


@pytest.mark.parametrize("build", [training_batch, question_batch])
def test_a_question_with_a_mark_of_the_chat_is_refused_and_spoils_no_other(build: Callable[..., Batch]) -> None:
    """Its <|video_pad|> would count as a visual token, and fail every question of its scene."""
    marked = Question("c", "object_counting", "How many <|video_pad|>?", "4")
    found = build(tiny_preprocessor(), scene("a", A, marked, B), scene("b", marked))
    alone = build(tiny_preprocessor(), scene("a", A, B))
    assert [record["id"] for record in found.records] == ["a", "b"] and len(found.scenes) == 1
    assert prompts_of(found) == prompts_of(alone)
    if alone.sequences is not None:
        assert torch.equal(sequences_of(found).input_ids, alone.sequences.input_ids)
    said = "question c holds <|video_pad|>, a special token of the chat: take it out"
    assert [(record["scene"], record["error"]) for record in found.failed] == [("a", f"a: {said}"), ("b", f"b: {said}")]
    fine = Question("d", "object_counting", "How many <b>chairs</b> | tables?", "4")
    assert not build(tiny_preprocessor(), scene("a", fine)).failed


def test_real_and_tiny_templates_agree_on_any_chat(realdata: Path) -> None:
    real = AutoProcessor.from_pretrained(realdata / "qwen2.5-vl")
    for question in (A, B):
        for with_answers in (False, True):
            texts = [
                ChatFormat(preprocessor).chat(question, with_answers=with_answers)
                for preprocessor in (QwenVLPreprocessor(real), tiny_preprocessor())
            ]
            assert texts[0] == texts[1] and len(texts[0]) == 1 + with_answers
    own_system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    for prompt in (False, True):
        kwargs = {"tokenize": False, "add_generation_prompt": prompt}
        expected = real.apply_chat_template(own_system, **kwargs)
        assert expected == tiny_processor().apply_chat_template(own_system, **kwargs)


def test_training_pads_right_and_labels_the_answer_only() -> None:
    batch = training_batch(tiny_preprocessor(), scene("one", A, B), scene("two", A))
    sequences, labels, decode = sequences_of(batch), labels_of(batch), tiny_processor().tokenizer.decode
    assert sequences.scene_index == [[0], [0], [1]]
    assert [decode(row[row != IGNORED]) for row in labels] == ["4<|im_end|>\n", "B<|im_end|>\n", "4<|im_end|>\n"]
    assert sequences.padding_mask is None and len(set(sequences.lengths)) > 1
    ends = [decode(ids[:length]) for ids, length in zip(sequences.input_ids, sequences.lengths, strict=True)]
    assert all(end.endswith("<|im_end|>\n") for end in ends)
    assert torch.equal(labels[labels != IGNORED], sequences.input_ids[labels != IGNORED])


def test_questions_of_a_scene_share_its_prefix_and_a_scene_is_seen_once() -> None:
    batch = question_batch(tiny_preprocessor(), scene("one", A, B))
    assert batch.sequences is None
    (shown,), (prompt,) = batch.scenes, batch.prompts
    assert shown.grid_thw == (2, 4, 6) and len(shown.pixel_values) == 48
    is_video = prompt.prefix.input_ids == tiny_processor().video_token_id
    assert is_video.sum() == 12 and prompt.rows == (0, 1)
    texts = [tiny_processor().tokenizer.decode(ids).replace("<|video_pad|>" * 11, "") for ids in prompts_of(batch)]
    assert texts == [ChatFormat(tiny_preprocessor()).prompt(question) for question in (A, B)]
    assert [r["id"] for r in batch.records] == ["a", "b"] and batch.records[0]["frames"] == [0, 1, 2, 3]


def test_failed_scenes_become_records() -> None:
    failed = LoadedScene("bad", (A, B), error="bad.mp4: truncated")
    for scenes in ([failed], [failed, scene("good", A)]):
        batch = question_batch(tiny_preprocessor(), *scenes)
        assert [(r["id"], r["prediction"], r["error"]) for r in batch.failed] == [
            ("a", "", "bad.mp4: truncated"),
            ("b", "", "bad.mp4: truncated"),
        ]
        assert len(batch.records) == len(batch.prompts) == len(batch.scenes) == len(scenes) - 1


def test_faults_of_a_scene_in_a_worker_travel_as_its_records() -> None:
    """A scene whose patches can't be cut, and a question beyond the context: a worker that raised would end the run."""
    odd, good = scene("odd", A, frames=3, size=(50, 70)), scene("good", A)
    too_long = Question("long", "object_counting", "chair " * 200, "4")
    long, mixed = scene("long", too_long), scene("mixed", A, too_long, B)
    batch = training_batch(tiny_preprocessor(), odd, long, good, context_length=200)
    assert [each["scene"] for each in batch.records] == ["good"] and len(batch.scenes) == 1
    left = training_batch(tiny_preprocessor(), mixed, context_length=200)
    assert [each["id"] for each in left.failed] == ["long"] and [each["id"] for each in left.records] == ["a", "b"]
    assert left.num_answers == (2,) and sequences_of(left).scene_index == [[0], [0]]
    reasons = {each["scene"]: each["error"] for each in batch.failed}
    assert set(reasons) == {"odd", "long"} and reasons["odd"]
    said = "long: question long has [0-9]+ tokens, more than the 200 of the model's context: lower .*"
    assert re.fullmatch(said, reasons["long"]) and reasons["odd"].startswith("odd: ")
    assert not question_batch(tiny_preprocessor(), long, context_length=200).failed  # an answer's length is known later


def test_geometry_and_frames_come_scene_by_scene_and_only_what_is_wanted() -> None:
    scenes = [scene("long", A, frames=6), scene("short", A, frames=2)]
    shown = training_batch(tiny_preprocessor(), *scenes).scenes
    assert [len(s.geometry.world_to_camera) for s in shown] == [6, 2] and shown[0].frames is None
    assert [len(s.cameras.world_to_camera) for s in shown] == [3, 1]  # merged, one per temporal patch
    shown = training_batch(tiny_preprocessor(), *scenes, requires_frames=True).scenes
    assert [tuple(s.frames.shape) for s in shown] == [(6, 3, 56, 84), (2, 3, 56, 84)]


@pytest.mark.parametrize(
    ("appended", "view"), [(ExtraTokens.NONE, 6), (ExtraTokens.LAST_AND_END, 7), (ExtraTokens.ALL, 12)]
)
def test_what_is_appended_has_placeholders(appended: ExtraTokens, view: int) -> None:
    batch = training_batch(tiny_preprocessor(), scene("a", A, frames=4), extra_tokens=appended)
    is_video = sequences_of(batch).input_ids == tiny_processor().video_token_id
    assert is_video.sum() == sequences_of(batch).visual_counts[0] == 2 * view + appended.at_end


# ---- Qwen3-VL: the times of the views as text

FPS, INDICES = 10.0, [0, 7, 20, 33, 40, 41]
TIMES = [index / FPS for index in INDICES]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "How many?"}]}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]}],
    [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "video"}]},
        {"role": "assistant", "content": "A room."},
        {"role": "user", "content": "How large?"},
    ],
]


def frames(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 255, (count, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def folder(path: Path, times_s: list[float] | None) -> Scene:
    """A scene of four images in a folder; its cameras file has their times or not."""
    path.mkdir()
    for number, frame in enumerate(frames(4)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path / f"{number}.png")
    cameras = path.with_suffix(".cameras.json")
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    write_cameras(cameras, poses, torch.eye(3, dtype=torch.float64), width=96, height=64, times_s=times_s)
    return Scene("scene", path, (A,), cameras=cameras)


@pytest.mark.parametrize("messages", CHATS)
def test_the_tiny_template_of_qwen3_renders_what_the_released_one_does(
    messages: list[dict[str, Any]], realdata: Path
) -> None:
    released = json.loads((realdata / "qwen3-vl/chat_template.json").read_text())["chat_template"]
    texts = [
        qwen3_vl.tiny_processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template)
        for template in ({}, {"chat_template": released})
    ]
    assert texts[0] == texts[1]
    assert "".join(qwen3_vl.tiny_preprocessor().texts(messages)) == texts[0]


def test_the_prompt_is_that_of_the_release_and_the_patches_are_the_processors() -> None:
    """transformers 4.57 replaces the template's markers by the blocks; 5.24 leaves them around the blocks."""
    ours, processor = qwen3_vl.tiny_preprocessor(), qwen3_vl.tiny_processor()
    (text,) = ours.texts(CHATS[0])
    patches, grid = ours.cut_patches(frames())
    ids = ours.tokenize([text], [grid.tolist()], ExtraTokens.NONE, TIMES).input_ids
    view = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    # means of 0.0 and 0.7, of 2.0 and 3.3, of 4.0 and 4.1 seconds, by Python's rule for halves in binary
    blocks = f"<{0.35:.1f} seconds>{view}<{2.65:.1f} seconds>{view}<{4.05:.1f} seconds>{view}"
    marker = "<|vision_start|><|video_pad|><|vision_end|>"
    assert processor.tokenizer.decode(ids) == text.replace(marker, blocks)

    metadata = VideoMetadata(total_num_frames=50, fps=FPS, frames_indices=list(INDICES))
    options = dict(do_sample_frames=False, do_resize=False, cap_pixels_per_frame=False, return_tensors="pt")
    stock = processor(text=[text], videos=[frames()], video_metadata=[metadata], **options)
    assert torch.equal(stock["pixel_values_videos"], ours.normalize(patches)) and torch.equal(
        stock["video_grid_thw"][0], grid
    )
    around = text.replace(marker, f"<|vision_start|>{blocks}<|vision_end|>")
    assert processor.tokenizer.decode(stock["input_ids"][0]) == around

    pictures = ours.texts(CHATS[1])
    images = [frame.permute(1, 2, 0).numpy() for frame in frames(2)]
    stock = processor(text=pictures, images=images, do_resize=False, return_tensors="pt")
    ids = ours.tokenize(pictures, stock["image_grid_thw"].tolist(), ExtraTokens.NONE).input_ids
    assert torch.equal(ids, stock["input_ids"][0])
    doubled = ours.normalize(ours.cut_patches(frames(2).repeat_interleave(2, 0))[0])
    torch.testing.assert_close(doubled, stock["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("extra", [ExtraTokens.ONE, ExtraTokens.LAST_AND_END])
def test_extra_tokens_and_labels_of_the_blocks(extra: ExtraTokens) -> None:
    """Each view has a token more, and the video one at its end; answers alone are supervised."""
    question = RawQuestion("a", "", "<image> How many?", "4", later_turns=(("Which?", "This."),))
    loaded = LoadedScene("a", (question,), frames(), frame_times=tuple(TIMES))
    spec = SpatialVLM(TinyQwen3VL()).model_spec()
    spec = replace(spec, preprocessor=qwen3_vl.tiny_preprocessor(), extra_tokens=extra)
    trained, asked = TrainingCollate(spec)([loaded]), QuestionCollate(spec)([loaded])
    (labels,), decode = labels_of(trained), qwen3_vl.tiny_processor().tokenizer.decode
    assert decode(labels[labels != IGNORED]) == "4<|im_end|>\nThis.<|im_end|>\n"
    for ids in (*sequences_of(trained).input_ids.tolist(), *prompts_of(asked)):
        assert ids.count(qwen3_vl.tiny_processor().video_token_id) == 3 * (6 + 1) + extra.at_end
        assert decode(ids).count(" seconds><|vision_start|>") == 3


def test_a_folder_without_times_is_an_error_and_images_need_none(tmp_path: Path) -> None:
    model = SpatialVLM(TinyQwen3VL())
    needs, bounds = model.model_spec(), PixelBounds(1024, 65536, legacy_folder_resize=False)
    assert needs.requires_frame_times and needs.frames.token_px == 32
    collate = QuestionCollate(needs)

    def read(scene: Scene, requirements: Any = needs) -> LoadedScene:
        return SceneDataset([scene], UniformSampler(), 4, bounds, spec=requirements)[0]

    timed = read(folder(tmp_path / "timed", [0.0, 0.5, 2.0, 9.0]))
    assert timed.error is None and timed.frame_times == (0.0, 0.5, 2.0, 9.0)
    asked = model.backbone.preprocessor.decode(prompts_of(collate([timed])))[0]
    assert "<0.2 seconds>" in asked and "<5.5 seconds>" in asked
    lacking = folder(tmp_path / "lacking", None)
    error = read(lacking).error
    assert error is not None and "lacking: no times of the frames" in error and "lacking.cameras.json" in error
    (record,) = collate([read(lacking)]).failed
    assert record["error"] == error
    assert read(lacking, SpatialVLM().model_spec()).error is None  # the control: Qwen2.5-VL writes no times
    images = Scene("images", lacking.video, (A,), images=tuple(sorted(lacking.video.glob("*.png"))))
    assert read(images).error is None and not collate([read(images)]).failed


def test_frames_in_memory_come_with_their_times() -> None:
    model = SpatialVLM(TinyQwen3VL())

    def ask(times_s: list[float] | None) -> str:
        batch = batch_of_questions(model, frames(3), ["Which?"], None, None, None, times_s)
        return model.backbone.preprocessor.decode(prompts_of(batch))[0]

    assert "<0.5 seconds>" in ask([0.0, 1.0, 5.0]) and "<5.0 seconds>" in ask([0.0, 1.0, 5.0])  # the last one twice
    with pytest.raises(InputError, match="writes the time of the frames .* times_s"):
        ask(None)
    with pytest.raises(InputError, match="2 times_s for 3 frames"):
        ask([0.0, 1.0])
