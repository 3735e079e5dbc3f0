"""Greedy answers to many questions about a scene, whose prefix is read once into the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoo.generation import stop_tokens
from zoo.shared_prefix import PREFIX, attention_mask, shared_length, supports_custom_mask, visual_tokens

TOKENS_AT_ONCE = 1024  # of the questions: bounds the mask and the activations, however long they are

# of sequences (ids, mask, the scene of each) to what the stock model is called with
Prepare = Callable[[Tensor, Tensor, Tensor], dict[str, Any]]


class Reply(NamedTuple):
    """The new tokens of an answer, up to EOS (included where it came); or why there is none."""

    ids: list[int]
    error: str | None = None


class CachedPrefix:
    """What the questions of a scene share, read once; they are then answered from its keys and values.

    The questions of a batch follow each other in one sequence, in which each sees the prefix and itself
    (`zoo.shared_prefix`): there is one copy of the prefix whatever their number, and no padding between them. An
    implementation of attention that takes no such mask gets one question at a time, still from the same cache.

    Args:
        qwen: the model.
        inputs: of the prefix alone, a batch of one without padding, as `SpatialModel.prepare` gives them.
    """

    @torch.no_grad()
    def __init__(self, qwen: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, Any]) -> None:
        self.qwen = qwen
        self.cache = qwen.model(**{**inputs, "attention_mask": None}, use_cache=True).cache
        self.length = inputs["input_ids"].shape[1]
        self.following = int(inputs["position_ids"].amax()) + 1
        encoding = inputs.get("camera_encoding")
        self.encoding = None if encoding is None else encoding.for_decode_step()  # what follows is text
        self.groups = torch.full_like(inputs["input_ids"], PREFIX)

    def answer(self, questions: Sequence[Sequence[int]], max_new_tokens: int, at_once: int) -> list[Reply]:
        """Greedy answers, no penalties, each as if its question had been alone.

        Args:
            questions: token ids of what follows the prefix, at least one each.
            max_new_tokens: the longest answer.
            at_once: so many questions at a time, or fewer where the memory of the GPU is short.
        """
        if not supports_custom_mask(self.qwen):
            at_once = 1
        replies: list[Reply] = []
        while len(replies) < len(questions):
            some = questions[len(replies) : len(replies) + at_once]
            try:
                found = self._together(some, max_new_tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(some) == 1:
                    replies.append(Reply([], f"no memory for this question alone: {error}"))
                at_once = max(1, len(some) // 2)
                continue
            if len(some) > 1 and any(reply.error for reply in found):
                # zero times NaN is NaN: one question's keys and values spoil what must not see them
                found = [self._together([question], max_new_tokens)[0] for question in some]
            replies += found
        return replies

    @torch.no_grad()
    def _together(self, questions: Sequence[Sequence[int]], max_new_tokens: int) -> list[Reply]:
        self._rewind()
        stops = stop_tokens(self.qwen)
        alone = len(questions) == 1
        hidden = self._read(
            [token for question in questions for token in question],
            [place for question in questions for place in range(len(question))],
            [number for number, question in enumerate(questions) for _ in question],
            alone,
        )
        ends = torch.tensor([len(question) for question in questions]).cumsum(0) - 1
        hidden = hidden[ends.to(hidden.device)]
        answers: list[list[int]] = [[] for _ in questions]
        errors: dict[int, str] = {}
        going = list(range(len(questions)))
        for step in range(max_new_tokens):
            logits = self.qwen.lm_head(hidden)
            broken, tokens = (~logits.amax(-1).isfinite()).tolist(), logits.argmax(-1).tolist()
            for number, token, is_broken in zip(going, tokens, broken, strict=True):
                if is_broken:
                    errors[number] = f"the logits of token {step + 1} of the answer are not finite"
                else:
                    answers[number].append(token)
            going = [number for number in going if number not in errors and answers[number][-1] not in stops]
            if not going or step + 1 == max_new_tokens:
                break
            places = [len(questions[number]) + step for number in going]
            hidden = self._read([answers[number][-1] for number in going], places, going, alone)
        return [Reply([], errors[n]) if n in errors else Reply(ids) for n, ids in enumerate(answers)]

    def _rewind(self) -> None:
        """Back to the prefix, also after a pass that memory cut off between two layers."""
        self.groups = self.groups[:, : self.length]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., : self.length, :], layer.values[..., : self.length, :]

    def _read(self, ids: list[int], places: list[int], questions: list[int], alone: bool) -> Float[Tensor, "T D"]:
        """Hidden states of more tokens: what they are, where after the prefix, and of which question (from 0)."""
        device = self.groups.device
        rows: Int[Tensor, "3 T"] = torch.tensor([ids, places, questions], device=device)
        hidden = []
        for tokens, place, question in (part.unbind() for part in rows.split(TOKENS_AT_ONCE, 1)):
            group = question[None] + PREFIX + 1
            self.groups = torch.cat((self.groups, group), 1)
            mask = None if alone else attention_mask(self.qwen, group, self.groups)
            output = self.qwen.model(
                input_ids=tokens[None],
                position_ids=(self.following + place).expand(3, 1, -1),
                attention_mask=mask,
                cache=self.cache,
                use_cache=True,
                camera_encoding=self.encoding,
            )
            hidden.append(output.last_hidden_state[0])
        return torch.cat(hidden)


def out_of_memory(error: Exception) -> bool:
    """Of the GPU or of the machine: torch has an error of its own for the first only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def answer_questions(
    qwen: Qwen2_5_VLForConditionalGeneration,
    prepare: Prepare,
    batch: dict[str, Any],
    max_new_tokens: int,
) -> list[Reply]:
    """A reply to each row of a batch of prompts; what rows of one scene share is read once.

    Args:
        prepare: what `qwen` is called with for some sequences.
        batch: `input_ids` and `attention_mask` (N, L), `scene_index` (N,), and `questions_per_batch`, see
            `datamodules.collate`.
        max_new_tokens: the longest answer.
    """
    visual, context = visual_tokens(qwen), qwen.config.text_config.max_position_embeddings
    device = batch["input_ids"].device
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    prompts = [ids[real].tolist() for ids, real in rows]
    replies: dict[int, Reply] = {}
    scenes: dict[int, list[int]] = {}
    for row, scene in enumerate(batch["scene_index"].tolist()):
        if len(prompts[row]) + max_new_tokens > context:
            said = (
                f"the prompt has {len(prompts[row])} tokens and its answer up to {max_new_tokens}, more than the "
                f"{context} of the model's context"
            )
            replies[row] = Reply([], said)
        else:
            scenes.setdefault(scene, []).append(row)
    for scene, members in scenes.items():
        shared = shared_length([prompts[row] for row in members], visual)
        for family in [members] if shared else [[row] for row in members]:
            length = shared or shared_length([prompts[family[0]]], visual)
            if not length:
                raise ValueError("a prompt that ends with what it shows asks nothing")
            ids = torch.tensor([prompts[family[0]][:length]], device=device)
            prefix = CachedPrefix(qwen, prepare(ids, torch.ones_like(ids), torch.tensor([scene], device=device)))
            questions = [prompts[row][length:] for row in family]
            answered = prefix.answer(questions, max_new_tokens, batch["questions_per_batch"])
            replies.update(zip(family, answered, strict=True))
    return [replies[row] for row in range(len(prompts))]
