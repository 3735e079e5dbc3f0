"""Qwen3-VL's prompt: the times of the views as text, as transformers 4.57 writes them, and errors without times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from datamodules.cameras_file import write_cameras
from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.dataset import SceneDataset
from datamodules.inference import batch_of_questions
from datamodules.resize import PixelBounds
from datamodules.samplers import UniformSampler
from datamodules.scenes import Question, RawQuestion, Scene
from tests.datamodules.batches import labels_of, sequences_of
from tests.zoo.asking import prompts_of
from zoo import InputError, SpatialVLM, TinyQwen3VL
from zoo.backbones.qwen3_vl import tiny_preprocessor, tiny_processor
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED

FPS, INDICES = 10.0, [0, 7, 20, 33, 40, 41]
TIMES = [index / FPS for index in INDICES]
QUESTION = Question("a", "object_counting", "How many chair(s) are in this room?", "4")
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
    return Scene("scene", path, (QUESTION,), cameras=cameras)


@pytest.mark.parametrize("messages", CHATS)
def test_the_tiny_template_renders_what_the_released_one_does(messages: list[dict[str, Any]], realdata: Path) -> None:
    released = json.loads((realdata / "qwen3-vl/chat_template.json").read_text())["chat_template"]
    texts = [
        tiny_processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template)
        for template in ({}, {"chat_template": released})
    ]
    assert texts[0] == texts[1]
    assert "".join(tiny_preprocessor().texts(messages)) == texts[0]


def test_the_prompt_is_that_of_the_release_and_the_patches_are_the_processors() -> None:
    """transformers 4.57 replaces the template's markers by the blocks; 5.24 leaves them around the blocks."""
    ours, processor = tiny_preprocessor(), tiny_processor()
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
    spec = replace(spec, preprocessor=tiny_preprocessor(), extra_tokens=extra)
    trained, asked = TrainingCollate(spec)([loaded]), QuestionCollate(spec)([loaded])
    (labels,), decode = labels_of(trained), tiny_processor().tokenizer.decode
    assert decode(labels[labels != IGNORED]) == "4<|im_end|>\nThis.<|im_end|>\n"
    for ids in (*sequences_of(trained).input_ids.tolist(), *prompts_of(asked)):
        assert ids.count(tiny_processor().video_token_id) == 3 * (6 + 1) + extra.at_end
        assert decode(ids).count(" seconds><|vision_start|>") == 3


def test_a_folder_without_times_is_an_error_and_images_need_none(tmp_path: Path) -> None:
    model = SpatialVLM(TinyQwen3VL())
    needs, bounds = model.model_spec(), PixelBounds(1024, 65536, legacy_folder_resize=False)
    assert needs.requires_frame_times and needs.token_px == 32
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
    images = Scene("images", lacking.video, (QUESTION,), images=tuple(sorted(lacking.video.glob("*.png"))))
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
