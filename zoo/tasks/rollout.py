"""Answers that a policy samples, and their log-probabilities under it: scenes and prefixes are read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from zoo.errors import InputError
from zoo.generation.prefix_cache import CachedPrefix, Reply
from zoo.generation.sampling import Sampling
from zoo.model import SpatialVLM
from zoo.objectives import Decoded, decode
from zoo.objectives.average import AVERAGES
from zoo.objectives.grpo import token_log_probs
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.builder import SequenceBuilder
from zoo.sequences.packing import IGNORED, Row
from zoo.sequences.scene_inputs import SceneInputs

LOGITS_AT_ONCE = 4096  # tokens: of a vocabulary of 150,000, some 2.5 GB in float32
SAMPLE_COLUMNS = ("scene", "question", "ground_truth", "answer", "reward", "advantage")


class SampledAnswer(NamedTuple):
    """An answer to a question of a batch.

    Attributes:
        record: The number of the question's record.
        scene: The number of its scene.
        prompt: Token ids in front of the answer.
        reply: The answer.
    """

    record: int
    scene: int
    prompt: list[int]
    reply: Reply


@dataclass(eq=False)
class Rollout:
    """The sampled answers of a batch, and what is learned from them.

    Attributes:
        sequences: With the answers.
        lengths: Tokens of each answer.
        mask: Where answers have tokens.
        advantages: Of each answer.
        sampled_logps: Log-probabilities of the sampled tokens, as they were drawn.
        num_tokens: What `dapo` divides by.
        ref_logps: By the reference; None without.
        old_logps: By the policy before the first update; None until then, and with one update.
        statistics: Of answers and rewards, for the loggers.
        samples: Texts of the first question's answers, by `SAMPLE_COLUMNS`.
    """

    sequences: Sequences
    lengths: list[int]
    mask: Bool[Tensor, "N T"]
    advantages: Float[Tensor, " N"]
    sampled_logps: Float[Tensor, "N T"]
    num_tokens: float
    ref_logps: Float[Tensor, "N T"] | None
    old_logps: Float[Tensor, "N T"] | None
    statistics: dict[str, float]
    samples: list[list[str]]


@torch.no_grad()
def sample_answers(
    model: SpatialVLM, batch: Batch, sampling: Sampling, num_answers: int, max_new_tokens: int
) -> list[SampledAnswer]:
    """Sample several answers to each question of a batch, from one encoded scene and one prefix.

    Args:
        model: The policy, in eval mode.
        batch: With prompts.
        sampling: How tokens are drawn.
        num_answers: Of each question; they follow each other.
        max_new_tokens: The longest answer.

    Raises:
        InputError: A prompt that leaves too little room for an answer, or logits that are not finite.
    """
    scenes = model.encode_scenes(batch)
    placeholders = model.backbone.placeholders
    sampling = replace(sampling, excluded=(*placeholders.visual, placeholders.vision_start))
    sampled: list[SampledAnswer] = []
    for prompt in batch.prompts:
        inputs = model.decoder_inputs(scenes, prompt.prefix)
        prefix_ids = prompt.prefix.input_ids
        prefix = CachedPrefix(model.backbone, prefix_ids, inputs, prompt.next_position, choose=sampling)
        shared, numbers = prefix_ids[0].tolist(), iter(prompt.rows)
        for questions in prompt.passes:
            if max(map(len, questions)) + len(shared) + max_new_tokens > model.backbone.context_length:
                raise InputError(
                    f"a prompt and its answer have more than the {model.backbone.context_length} tokens of the model's "
                    "context: lower --data.num_frames or --data.pixels.max_pixels"
                )
            asked = [list(question) for question in questions for _ in range(num_answers)]
            of_answer = [number for _, number in zip(questions, numbers, strict=False) for _ in range(num_answers)]
            replies = prefix.answer(asked, max_new_tokens)
            for number, question, reply in zip(of_answer, asked, replies, strict=True):
                if reply.error is not None:
                    raise InputError(f"an answer can't be sampled: {reply.error}")
                sampled.append(SampledAnswer(number, prompt.scenes[0], shared + question, reply))
    return sampled


def answer_sequences(
    builder: SequenceBuilder, sampled: Sequence[SampledAnswer], scenes: Sequence[SceneInputs], max_tokens: int | None
) -> Sequences:
    """Build sequences in which the sampled answers are supervised: those about a scene share its prefix.

    Args:
        builder: Of the model.
        sampled: The answers, scene after scene.
        scenes: Of the batch, on any device.
        max_tokens: Most tokens of a sequence with several answers; None is no bound.
    """
    rows = []
    for answer in sampled:
        ids = torch.tensor([*answer.prompt, *answer.reply.ids])
        labels = ids.clone()
        labels[: len(answer.prompt)] = IGNORED
        rows.append(Row.of(ids, labels))
    outlines = [_outline(scene) for scene in scenes]
    return builder.training(rows, [answer.scene for answer in sampled], outlines, max_tokens=max_tokens)


def _outline(scene: SceneInputs) -> SceneInputs:
    """What sequences depend on of a scene, on the CPU: its grid and cameras."""
    outline = copy(scene)
    outline.pixel_values = scene.pixel_values[:0]
    outline.frames = outline.geometry = outline.cached_geometry = outline.teacher = None
    return outline.to("cpu")


def answer_log_probs(
    model: SpatialVLM, batch: Batch, sequences: Sequences, lengths: Sequence[int], temperature: float
) -> tuple[Float[Tensor, "N T"], Decoded]:
    """Compute the log-probabilities of all answers in one pass through the decoder.

    Args:
        model: The policy, or another model of the same parts.
        batch: Whose scenes the sequences are about.
        sequences: From `answer_sequences`, on the model's device.
        lengths: Tokens of each answer.
        temperature: That of the sampling.

    Returns:
        Log-probabilities, padded with 0; and what the decoder computed, for other objectives.
    """
    scenes = model.encode_scenes(batch)
    inputs = model.decoder_inputs(scenes, sequences)
    average = AVERAGES[model.average]
    decoded = decode(model.backbone, model.objectives.layers, inputs, scenes, sequences, average)
    hidden = decoded.last_hidden_state.flatten(0, 1)[sequences.answer_places]
    flat = _log_probs(decoded.lm_head, hidden, sequences.answer_ids, temperature)
    return pad_sequence(list(flat.split(list(lengths))), batch_first=True), decoded


def _log_probs(
    lm_head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "M D"], ids: Int[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Log-probabilities of tokens; the logits of many are computed in parts, and again in the backward pass."""

    def part(some: Tensor, own: Tensor) -> Tensor:
        return token_log_probs(lm_head(some), own, temperature=temperature)

    if len(ids) <= LOGITS_AT_ONCE:
        return part(hidden, ids)
    parts = zip(hidden.split(LOGITS_AT_ONCE), ids.split(LOGITS_AT_ONCE), strict=True)
    return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in parts])


def answer_mask(lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "N T"]:
    """Return where answers of these lengths have tokens."""
    places = torch.arange(max(lengths), device=device)
    return places < torch.tensor(lengths, device=device)[:, None]
