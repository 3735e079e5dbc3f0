"""Answers to the prompts of a batch, whose scenes are encoded once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from zoo.errors import InputError
from zoo.generation.prefix_cache import CachedPrefix, Reply
from zoo.generation.sampling import TokenChoice, greedy
from zoo.precision import answer_precision
from zoo.scene_encoding.encoded_scene import EncodedScene
from zoo.sequences.batch import Batch, Prompt

if TYPE_CHECKING:
    from zoo.model import SpatialVLM


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode within, as for answers between two steps of a training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_penalty(factor: float) -> None:
    """Raise an InputError for a repetition penalty that is no factor."""
    if not 0 < factor < math.inf:
        raise InputError(f"--model.repetition_penalty {factor}: a factor above 0; 1 is no penalty")


@torch.no_grad()
def answer_batch(model: SpatialVLM, batch: Batch, max_new_tokens: int, repetition_penalty: float = 1.0) -> list[Reply]:
    """Answer the prompts of a batch in the model's `precision`, its scenes encoded once; see `answer_prompts`."""
    with answer_precision(model.backbone.device, model.precision):
        return answer_prompts(model, model.encode_scenes(batch), batch.prompts, max_new_tokens, repetition_penalty)


@torch.no_grad()
def answer_prompts(
    model: SpatialVLM,
    scenes: Sequence[EncodedScene],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    choose: TokenChoice = greedy,
    seeds: Sequence[int] | None = None,
) -> list[Reply]:
    """Answer prompts about encoded scenes; the prefix that prompts about the same scenes share is read once.

    Args:
        model: The model to ask.
        scenes: From its `encode_scenes`.
        prompts: About them.
        max_new_tokens: The longest answer.
        repetition_penalty: See `CachedPrefix`.
        choose: See `CachedPrefix`.
        seeds: Of the draws, by the number of the question in the batch; see `CachedPrefix.answer`.

    Returns:
        One reply per question, in the order of their numbers in the batch.
    """
    context = model.backbone.context_length
    replies: dict[int, Reply] = {}
    for prompt in prompts:
        numbers = iter(prompt.rows)
        length = prompt.prefix.lengths[0]
        fitting: list[list[tuple[int, Sequence[int]]]] = []
        for questions in prompt.passes:
            fitting.append([])
            for question, number in zip(questions, numbers, strict=False):  # takes no number behind the last question
                if (total := length + len(question)) + max_new_tokens > context:
                    error = f"the prompt has {total} tokens and its answer up to {max_new_tokens}"
                    replies[number] = Reply([], f"{error}, more than the {context} of the model's context")
                else:
                    fitting[-1].append((number, question))
        if not any(fitting):
            continue
        inputs = model.decoder_inputs(scenes, prompt.prefix)
        prefix = CachedPrefix(
            model.backbone, prompt.prefix.input_ids, inputs, prompt.next_position, repetition_penalty, choose
        )
        for each in fitting:
            own = None if seeds is None else [seeds[number] for number, _ in each]
            answers = prefix.answer([question for _, question in each], max_new_tokens, own)
            replies.update(zip((number for number, _ in each), answers, strict=True))
    return [replies[number] for number in sorted(replies)]
