"""Text behind a video that is long in time: both rules in every path, `max_hw` equal to the installed transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.asking import NEW, batch, build, one_by_one, one_per_row, prompts_of, replies, scene
from zoo.positions import TextAfterVision
from zoo.sequences.batch import Batch
from zoo.sequences.time_index import TimestampIndex
from zoo.tasks import VideoQATask

SECONDS = 20  # per temporal patch: T reaches 80 on a grid of 2 x 3 tokens


def model_of(rule: TextAfterVision) -> VideoQATask:
    return build("plain", time_index=TimestampIndex(SECONDS), text_after_vision=rule)


def stock_answers(model: VideoQATask, asked: Batch) -> list[list[int]]:
    """`generate` of transformers, which computes the positions itself."""
    backbone, found = model.model.backbone, []
    for prompt in prompts_of(asked):
        ids = torch.tensor([prompt])
        (shown,) = asked.scenes
        out = backbone.vlm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=model.preprocessor.normalize(shown.pixel_values),
            video_grid_thw=torch.tensor(shown.media_grids),
            second_per_grid_ts=torch.tensor([SECONDS]),
            mm_token_type_ids=2 * (ids == backbone.placeholders.video).int(),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=backbone.stop_tokens,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def test_max_hw_answers_as_transformers_does_by_every_path() -> None:
    model = model_of("max_hw")
    asked = batch(model, scene("a"))
    expected = stock_answers(model, asked)
    assert one_by_one(model, asked) == expected
    assert [reply.ids for reply in replies(model, asked)] == expected
    other = model_of("max_thw")
    asked = batch(other, scene("a"))
    assert one_by_one(other, asked) == [reply.ids for reply in replies(other, asked)] != expected  # the control


def test_the_highest_position_of_the_prefix_is_not_where_its_text_goes_on() -> None:
    """The negative control of the cached prefix."""
    model = model_of("max_hw")
    asked = batch(model, scene("a"))
    expected = one_by_one(model, asked)
    (prompt,) = asked.prompts
    assert prompt.prefix.position_ids is not None and prompt.next_position is not None
    highest = int(prompt.prefix.position_ids.amax()) + 1
    assert highest > prompt.next_position
    prompt.next_position = highest
    assert [reply.ids for reply in replies(model, asked)] != expected


@pytest.mark.parametrize("rule", ["max_thw", "max_hw"])
def test_packed_questions_learn_as_alone(rule: TextAfterVision) -> None:
    model = model_of(rule).train()

    def loss(make: Callable[..., Batch], **options: Any) -> Tensor:
        return model.loss(make(model, scene("a"), **options)).detach()

    packed = loss(batch, training=True)
    assert torch.allclose(packed, loss(one_per_row), rtol=1e-5)
    model.model.text_after_vision = "max_hw" if rule == "max_thw" else "max_thw"
    assert not torch.allclose(packed, loss(one_per_row), rtol=1e-3)  # the control
