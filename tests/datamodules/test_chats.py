"""Chats about videos and pictures: against `SpatialVLM.answer`, and against `generate` on whole prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Conversations, PixelBounds, UniformSampler
from datamodules.dataset import SceneDataset
from datamodules.inference import answer_chats, data_of, load_video
from tests import tiny
from tests.datamodules.batches import question_batch
from zoo import InputError, SpatialVLM
from zoo.backbones import tiny_preprocessor
from zoo.benchmarks import VSIBench
from zoo.geometry import DatasetGeometry

NEW = tiny.NEW
PIXELS = {"min_pixels": 784, "max_pixels": 65536, "legacy_folder_resize": False}


def model_of(name: str, family: str = "Qwen2.5-VL", frames_as: str = "video", **parts: Any) -> SpatialVLM:
    model = tiny.tiny_model(name, family=family, **parts).model
    settings = {"pixels": PIXELS, "image_pixels": PIXELS, "num_frames": 4, "frames_as": frames_as}
    model.data_config = {"class_path": "datamodules.VideoQADataModule", "init_args": settings}
    return model


def chat(*items: str) -> list[dict[str, Any]]:
    """One message of videos, images and texts."""
    return [
        {
            "role": "user",
            "content": [{"type": i} if i in ("video", "image") else {"type": "text", "text": i} for i in items],
        }
    ]


def picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def videos(rooms_root: Path) -> list[Path]:
    return sorted(rooms_root.rglob("*.mp4"))[:2]


@torch.no_grad()
def whole(model: SpatialVLM, chat: Sequence[Any], media: Sequence[Path | Image.Image]) -> list[int]:
    """The slow reference: each medium an own input of `generate_ids`, with the prompt of transformers' processor."""
    preprocessor, data = model.backbone.preprocessor, data_of(model)
    options = dict(preprocessor.template_options)
    text = preprocessor.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **options)
    pixels: dict[str, list[Any]] = {"video": [], "image": []}
    times: list[float] = []
    order = []
    for medium in media:
        if isinstance(medium, Path):
            loaded = load_video(model, data, medium)
            frames, kind = loaded.frames, "video"
            times += loaded.frame_times or ()
        else:
            frames, kind = torch.from_numpy(np.array(medium)).permute(2, 0, 1).repeat(2, 1, 1, 1), "image"
        assert frames is not None
        patches, grid = preprocessor.cut_patches(frames)
        pixels[kind].append((preprocessor.normalize(patches), grid))
        order.append(pixels[kind][-1][1].tolist())
    ids = preprocessor.tokenize([text], order, model.extra_tokens, times).input_ids[None]
    given: dict[str, Any] = {}
    for kind, names in (
        ("video", ("pixel_values_videos", "video_grid_thw")),
        ("image", ("pixel_values", "image_grid_thw")),
    ):
        if pixels[kind]:
            values, grids = zip(*pixels[kind], strict=True)
            given |= {names[0]: torch.cat(values), names[1]: torch.stack(grids)}
    return model.generate_ids(ids, torch.ones_like(ids), max_new_tokens=NEW, **given)[0]


@pytest.mark.parametrize(
    ("name", "family", "frames_as", "parts"),
    [
        ("prope.yaml", "Qwen2.5-VL", "video", {}),  # cameras beside the video
        ("AddFusion", "Qwen2.5-VL", "labeled_image", {"geometry": DatasetGeometry}),  # and depth
        ("plain", "Qwen3-VL", "video", {}),
    ],
)
def test_chats_about_a_video_are_answered_as_by_answer(
    name: str, family: str, frames_as: str, parts: dict[str, Any], videos: list[Path]
) -> None:
    model, wording = model_of(name, family, frames_as, **parts), VSIBench()
    chats = [chat("video", wording.user_text(text, ())) for text in tiny.TEXTS]
    with patch.object(SpatialVLM, "encode_scenes", autospec=True, side_effect=SpatialVLM.encode_scenes) as encode:
        replies = answer_chats(model, videos[:1], chats, max_new_tokens=NEW)
    assert encode.call_count == 1  # for all chats
    found = model.backbone.preprocessor.decode([reply.ids for reply in replies])
    assert found == model.answer(videos[0], tiny.TEXTS, max_new_tokens=NEW)
    assert len(set(found)) > 1
    other = answer_chats(model, videos[1:], chats, max_new_tokens=NEW)
    assert [reply.ids for reply in other] != [reply.ids for reply in replies]  # the control


def test_chats_have_the_poses_as_text_if_the_training_had_them(videos: list[Path]) -> None:
    model, chats = model_of("plain"), [chat("video", VSIBench().user_text(tiny.TEXTS[0], ()))]

    def answer() -> str:
        (reply,) = answer_chats(model, videos[:1], chats, max_new_tokens=NEW)
        (found,) = model.backbone.preprocessor.decode([reply.ids])
        assert found == model.answer(videos[0], tiny.TEXTS[0], max_new_tokens=NEW)
        return found

    without = answer()
    model.data_config["init_args"]["poses_in_prompt"] = True
    assert answer() != without


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_several_videos_and_pictures_in_any_order(family: str, videos: list[Path]) -> None:
    model = model_of("plain", family)
    height, width = tiny.SIZES[family]
    one, other = picture(0, height, width), picture(1, height, width)
    for media in ([], [one, videos[0], other, videos[1]]):
        shown = ["video" if isinstance(medium, Path) else "image" for medium in media]
        chats = [chat("Look:", *shown, "How many?"), chat(*shown, "Which?")]
        found = [reply.ids for reply in answer_chats(model, media, chats, max_new_tokens=NEW)]
        assert found == [whole(model, each, media) for each in chats]
        if media:  # the control: the pictures swapped
            assert found[0] != whole(model, chats[0], [media[2], media[1], media[0], media[3]])


def test_pictures_of_several_sizes_are_those_of_the_stock_model() -> None:
    model, media = model_of("plain"), [picture(0, 56, 84), picture(1, 56, 84), picture(2, 112, 84)]
    asked = chat("image", "Then:", "image", "image", "How many?")
    (reply,) = answer_chats(model, media, [asked], max_new_tokens=NEW)
    processor = model.backbone.preprocessor.processor
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=media, do_resize=False, return_tensors="pt")
    stops = model.backbone.stop_tokens
    ids = model.backbone.vlm.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=stops)
    assert reply.ids == ids[0, inputs["input_ids"].shape[1] :].tolist()


THOUGHTS = "\n<think>\nThis or that?\n</think>\n\nThis. \n"


@pytest.mark.parametrize(("family", "said"), [("Qwen2.5-VL", "This."), ("Qwen3-VL", THOUGHTS), ("Qwen3.5", THOUGHTS)])
def test_turns_of_system_and_assistant_are_those_of_the_chat_template(family: str, said: str) -> None:
    """Qwen3.5's leaves out the thoughts of earlier answers, which a training on the same chat shows."""
    model = model_of("plain", family)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        *chat("Which?"),
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
        *chat("Why?"),
        *chat("Where?"),
    ]
    (reply,) = answer_chats(model, [], [turns], max_new_tokens=NEW)
    assert reply.ids == whole(model, turns, [])
    assert reply.ids != whole(model, turns[1:], [])  # the control


def test_pictures_of_one_size_are_one_scene_for_a_geometry_encoder() -> None:
    model, scenes = model_of("AddFusion"), []
    model.geometry.register_forward_pre_hook(lambda _, inputs: scenes.append([len(each) for each in inputs[0]]))
    views = [picture(seed, 56, 84) for seed in range(3)]
    for media in (views, [views[0], picture(1, 112, 84), views[2]]):
        answer_chats(model, media, [chat("image", "image", "image", "Which?")], max_new_tokens=NEW)
    assert scenes == [[6], [2, 2, 2]]  # each picture twice


def test_errors_name_the_remedy(videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs cameras"):
        answer_chats(model_of("prope.yaml"), [picture(0, 56, 84)], [chat("image", "Which?")])
    alone = tmp_path / "alone.mp4"
    alone.symlink_to(videos[0])
    with pytest.raises(InputError, match="put alone.cameras.json beside"):
        answer_chats(model_of("prope.yaml"), [alone], [chat("video", "Which?")])
    refused, answered = answer_chats(model_of("plain"), [], [chat("<|image_pad|> Which?"), chat("Which?")])
    assert "holds <|image_pad|>, a special token" in str(refused.error) and answered.ids and answered.error is None


def test_several_images_with_marks_are_asked_in_an_evaluation(tmp_path: Path) -> None:
    """Each image stands where its mark is, as in a training with the same row."""
    for number in range(3):
        Image.new("RGB", (84, 56), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    turns = [
        {"from": "human", "value": "Look: <image> then <image> and <image>\nHow many?"},
        {"from": "gpt", "value": "4"},
    ]
    row = {"image": ["0.png", "1.png", "2.png"], "question_type": "object_counting", "conversations": turns}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    source = Conversations(str(tmp_path / "data.jsonl"), evaluation=True)
    (loaded,) = SceneDataset(source.scenes("test"), UniformSampler(), 4, PixelBounds(784, 65536))
    batch = question_batch(tiny_preprocessor(), loaded)
    assert not batch.failed, batch.failed[0]["error"]
    (record,) = batch.records
    assert record["error"] is None and record["prompt"].count("<|image_pad|>") == 3
    first, then, last = (record["prompt"].index(word) for word in ("Look: ", " then ", " and "))
    assert first < record["prompt"].index("<|image_pad|>") < then < last
