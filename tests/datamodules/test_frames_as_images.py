"""Frames as pictures: the inputs of the stock processor for the same stills, one camera each, in every path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import Duplicate, PixelBounds, Rooms, UniformSampler, VideoQADataModule
from datamodules.chat_format import ChatFormat, media_of
from datamodules.collate import QuestionCollate
from datamodules.dataset import SceneDataset
from datamodules.inference import batch_of_questions
from datamodules.scenes import Question, RawQuestion
from datamodules.video import Video
from tests.conftest import ROOMS
from tests.datamodules.batches import sequences_of
from tests.zoo.asking import batch, build, one_by_one, one_per_row, prompts_of, replies
from zoo import SpatialVLM, TinyQwen3VL, TinyQwen25VL, TinyQwen35
from zoo.backbones import tiny_preprocessor
from zoo.model_spec import ModelSpec

LOADERS = (TinyQwen25VL, TinyQwen3VL, pytest.param(TinyQwen35, marks=pytest.mark.slow))
QUESTION = "How large is this room?"


def shown(rooms_root: Path) -> Path:
    """The video that is loaded."""
    return Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")[0].video


def loaded(rooms_root: Path, frames_as: str, requirements: ModelSpec, frames: int = 5, **more: Any) -> Any:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")
    scenes = [replace(scenes[0], questions=(Question("0", "", QUESTION, "20"), Question("1", "", "Why?", "4")))]
    bounds = PixelBounds(784, 65536, legacy_folder_resize=False)
    sampler = more.pop("sampler", UniformSampler())
    return SceneDataset(scenes, sampler, frames, bounds, requirements, frames_as=frames_as, **more)[0]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("frames_as", ["image", "labeled_image"])
def test_inputs_are_those_of_the_stock_processor(loader: type, frames_as: str, rooms_root: Path) -> None:
    model = SpatialVLM(loader())
    backbone = model.backbone
    token_px = backbone.patch_size * backbone.spatial_merge_size
    needs = ModelSpec(token_px=token_px, image_pixels=backbone.image_pixels)
    scene = loaded(rooms_root, frames_as, needs)
    assert scene.error is None and scene.num_images == 5 and len(scene.frame_indices) == 10
    made = QuestionCollate(model.model_spec())([scene])

    stills = list(Video(shown(rooms_root)).read(scene.frame_indices[::2]))
    content: list[dict[str, Any]] = []
    for number, _ in enumerate(stills, start=1):
        label = [{"type": "text", "text": f"Frame-{number}: "}], [{"type": "text", "text": "\n"}]
        before, after = label if frames_as == "labeled_image" else ([], [])
        content += [*before, {"type": "image"}, *after]
    asked = made.records[0]["prompt"].rpartition(QUESTION)[2].partition("<|im_end|>")[0]
    content.append({"type": "text", "text": QUESTION + asked})
    processor = backbone.preprocessor.processor
    options = dict(backbone.preprocessor.template_options)
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, **options
    )
    stock = processor(text=[chat], images=stills, return_tensors="pt")
    assert prompts_of(made)[0] == stock["input_ids"][0].tolist()
    (inputs,) = made.scenes
    assert inputs.media_grids == [tuple(grid) for grid in stock["image_grid_thw"].tolist()]
    pixels = backbone.preprocessor.normalize(inputs.pixel_values)
    assert torch.allclose(pixels, stock["pixel_values"], atol=2e-2)  # one level of 255
    assert not torch.allclose(pixels.roll(1, 0), stock["pixel_values"], atol=2e-2)  # the control


def test_each_still_has_the_camera_of_its_frame_and_no_frame_is_merged(rooms_root: Path) -> None:
    needs = ModelSpec(requires_cameras=True)
    stills = loaded(rooms_root, "image", needs, frame_pairing=Duplicate())  # pairings are for videos
    video = loaded(rooms_root, "video", needs, frames=10)
    assert stills.frame_indices[::2] == stills.frame_indices[1::2] == (0, 12, 24, 35, 47)  # of 48
    poses = stills.geometry.world_to_camera
    assert torch.equal(poses[::2], poses[1::2])
    assert not torch.equal(video.geometry.world_to_camera[::2], video.geometry.world_to_camera[1::2])  # the control


def test_stills_are_no_more_than_the_candidates_of_the_sampler(rooms_root: Path) -> None:
    stills = loaded(rooms_root, "image", ModelSpec(), frames=5, sampler=UniformSampler(candidates=3))
    assert stills.num_images == 3 and stills.frame_indices == (0, 0, 23, 23, 47, 47)


@pytest.mark.filterwarnings("error")
def test_a_short_video_shows_each_of_its_frames_once(rooms_root: Path) -> None:
    """As VG-LLM and SpatialStack evaluate; a video repeats its last frame."""
    stills = loaded(rooms_root, "image", ModelSpec(), frames=100)
    assert stills.frame_indices[::2] == tuple(range(48)) and stills.num_images == 48


def test_the_mark_of_a_video_is_where_its_stills_are(rooms_root: Path) -> None:
    scene = loaded(rooms_root, "image", ModelSpec())
    raw = RawQuestion("0", "", "Look: <video>\nWhat is it?", "a room")
    prompt, _ = ChatFormat(tiny_preprocessor()).chat(raw, media_of(scene), with_answers=True)
    assert prompt.index("Look: ") < prompt.index("<|image_pad|>") < prompt.index("What is it?")
    assert prompt.count("<|image_pad|>") == 5


@pytest.mark.parametrize("name", ["plain", "PRoPE, ChannelRange"])
def test_answers_and_packed_questions_agree_with_one_by_one(name: str, rooms_root: Path) -> None:
    task = build(name)
    scene = loaded(rooms_root, "labeled_image", task.model_spec())
    asked = batch(task, scene)
    assert [reply.ids for reply in replies(task, asked)] == one_by_one(task, asked)
    packed, alone = batch(task, scene, training=True), one_per_row(task, scene)
    assert [len(sequences_of(each)) for each in (packed, alone)] == [1, 2]
    assert torch.allclose(task.loss(packed).detach(), task.loss(alone).detach(), rtol=1e-5)


def test_answer_shows_frames_as_the_model_was_trained() -> None:
    task = build("plain")
    frames = torch.rand(3, 3, 56, 84)
    model = task.model
    as_video = model.answer(frames, QUESTION)
    model.data_config = {"init_args": {"frames_as": "image"}}
    found = model.answer(frames, QUESTION)
    assert isinstance(found, str) and found != as_video


def test_frames_in_memory_have_the_labels_of_the_run() -> None:
    model = build("plain").model
    model.data_config = {"init_args": {"frames_as": "labeled_image"}}
    made = batch_of_questions(model, torch.rand(3, 3, 56, 84), [QUESTION], None, None, None)
    assert made.scenes[0].kind == "image"
    assert all(f"Frame-{number}: <" in made.records[0]["prompt"] for number in (1, 2, 3))


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="frames_as"):
        VideoQADataModule(frames_as="pictures")
