"""Answers that fail: NaN logits, sequences beyond the context, scenes on which the model raises."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.asking import NEW, QUESTIONS, TEXTS, batch, build, one_by_one, one_per_row, prompts_of, replies, scene
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.errors import InputError
from zoo.generation import Reply
from zoo.tasks import VideoQATask


def spoil(model: VideoQATask, question: int) -> None:
    """NaN where a token is read that only this question has."""
    words = [set(tiny_processor().tokenizer(text)["input_ids"]) for text in TEXTS]
    own = words.pop(question).difference(*words)

    def hook(module: nn.Module, given: tuple[Tensor], states: Tensor) -> Tensor:
        return states.masked_fill((given[0] == min(own))[..., None], torch.nan)

    model.model.backbone.vlm.model.language_model.embed_tokens.register_forward_hook(hook)


def test_nan_logits_are_an_error_of_that_question_alone() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = one_by_one(model, asked)
    spoil(model, 2)
    records = model.predict_batch(asked)
    assert [record["error"] for record in records] == [
        None, None, "the logits of token 1 of the answer are not finite", None, None
    ]  # fmt: skip
    assert records[2]["prediction"] == ""
    expected[2] = []
    assert [reply.ids for reply in replies(model, asked)] == expected


def test_nan_in_the_middle_of_an_answer_leaves_no_half_of_it() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = one_by_one(model, asked)
    third = expected[1][2]
    assert third not in expected[1][:2] and third not in expected[3]
    model.model.backbone.vlm.lm_head.register_forward_hook(
        lambda *each: each[2] + torch.where(each[2].argmax(-1, True) == third, torch.nan, 0)
    )
    found = replies(model, asked)
    assert found[1] == Reply([], "the logits of token 3 of the answer are not finite")
    assert found[3] == Reply(expected[3])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_logits_are_no_answer(value: float) -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    model.model.backbone.vlm.lm_head.register_forward_hook(lambda *each: torch.full_like(each[2], value))
    assert replies(model, asked) == [Reply([], "the logits of token 1 of the answer are not finite")] * 5


def test_a_token_that_is_ruled_out_is_no_error() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = one_by_one(model, asked)
    token = next(i for i in range(99) if all(i not in answer for answer in expected))
    model.model.backbone.vlm.lm_head.register_forward_hook(
        lambda *each: each[2].index_fill(-1, torch.tensor([token]), -torch.inf)
    )
    assert replies(model, asked) == [Reply(answer) for answer in expected]


def test_nan_in_the_video_fails_every_question() -> None:
    model = build("plain")
    asked = batch(model, scene("a"), scene("b", seed=1))
    pixels = model.preprocessor.normalize(asked.scenes[0].pixel_values)
    pixels[:4] = torch.nan
    asked.scenes[0] = replace(asked.scenes[0], pixel_values=pixels)
    errors = [record["error"] for record in model.predict_batch(asked)]
    assert all(error and "not finite" in error for error in errors[:5]) and errors[5:] == [None] * 5


def test_a_prompt_longer_than_the_context() -> None:
    model = build("plain")
    long = replace(QUESTIONS[0], id="long", question="How many chairs? " * 200)
    asked = batch(model, scene("a", (QUESTIONS[0], long, QUESTIONS[1])))
    lengths = [len(row) for row in prompts_of(asked)]
    context = lengths[1] + NEW - 1
    model.model.backbone.context_length = context
    short = batch(model, scene("a", QUESTIONS[:2]))
    expected = model.predict_batch(short)
    first, failed, last = model.predict_batch(asked)
    assert failed["error"] == (
        f"the prompt has {lengths[1]} tokens and its answer up to {NEW}, more than the {context} of the model's context"
    )
    assert failed["prediction"] == "" and [first, last] == expected
    model.model.backbone.context_length = context + 1
    assert all(record["error"] is None for record in model.predict_batch(asked))


def test_training_on_a_sequence_longer_than_the_context_is_an_error() -> None:
    """Of its question alone, as a value; the step raises it."""
    model = build("plain").train()
    shown = scene("a")
    rows = one_per_row(model, shown).sequences
    assert rows is not None
    longest = max(rows.lengths)
    model.model.backbone.context_length = longest - 1
    failed = batch(model, shown, scene("b", QUESTIONS[2:3]), training=True)
    said = f"has {longest} tokens, more than the {longest - 1} of the model's context"
    assert [record["scene"] for record in failed.failed] == ["a"] and len(failed.records) == 5
    assert all(said in record["error"] for record in failed.failed)
    with pytest.raises(InputError, match=said):
        model.loss(failed)
    model.model.backbone.context_length = longest
    assert model.loss(batch(model, shown, training=True)).isfinite()


def fails(model: VideoQATask, times: int, error: Exception) -> list[str]:
    """The model's vision tower fails so many times; fills with a mark for each time it is called."""
    called: list[str] = []

    def hook(*_: Any) -> None:
        called.append("x")
        if len(called) <= times:
            raise error

    model.model.backbone.vlm.model.visual.register_forward_pre_hook(hook)
    return called


SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_a_scene_on_which_the_model_fails_once_is_answered() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = model.test_step(asked, 0)
    called = fails(model, 1, SHORT)
    assert model.test_step(asked, 0) == expected and len(called) == 2


def test_a_broken_gpu_stops_the_run() -> None:
    """It would fail with every scene that is left, and a run that goes on finds them unanswered."""
    model = build("plain")
    asked = batch(model, scene("a"))
    fails(model, 1, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(torch.AcceleratorError):
        model.test_step(asked, 0)


@pytest.mark.parametrize(
    "error",
    [SHORT, RuntimeError("The size of tensor a must match"), torch.linalg.LinAlgError("singular"), MemoryError()],
)
def test_a_second_failure_is_the_error_of_the_scenes_questions(error: Exception) -> None:
    model = build("plain")
    asked, broken = batch(model, scene("a")), replace(scene("b"), error="b.mp4: no frames")
    called = fails(model, 2, error)
    failed = model.test_step(batch(model, scene("a"), broken), 0)
    name = type(error).__name__ + (f": {error}" if str(error) else "")
    first, *others = [record["error"] for record in failed]
    assert re.fullmatch(rf"{re.escape(name)} \({__file__}:\d+\)", first)  # the hook is no part of the zoo
    assert others == [first] * 4 + ["b.mp4: no frames"] * 5
    assert [record["prediction"] for record in failed] == [""] * 10 and len(called) == 2
    assert all(record["error"] is None for record in model.validation_step(asked, 0))  # and the next one is answered


def test_a_bug_stops_the_run_and_so_does_any_failure_of_predict() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    fails(model, 9, TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        model.test_step(asked, 0)
    with pytest.raises(TypeError, match="a bug"):
        model.predict_step(asked, 0)
