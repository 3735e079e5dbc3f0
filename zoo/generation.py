"""Answer generation: a prefix shared by several questions is decoded once, then the answers token by token.

`answer_batch` is the entry point. `CachedPrefix` answers the questions that follow one prefix. `greedy` and `Sampling`
choose the next token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import RepetitionPenaltyLogitsProcessor
from transformers.cache_utils import LinearAttentionLayer

from zoo.backbones.base import Backbone
from zoo.errors import InputError
from zoo.precision import answer_precision, to_float32
from zoo.scene_encoding import EncodedScene
from zoo.sequences.batch import Batch, Prompt, Sequences
from zoo.sequences.packing import PREFIX

# ---- How the next token is chosen ------------------------------------------------------------------------------------

# (logits, random numbers in [0, 1) or None) -> (token ids, log-probabilities if the tokens are drawn)
TokenChoice = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def greedy(logits: Float[Tensor, "n V"], draws: Float[Tensor, " n"] | None = None) -> tuple[Int[Tensor, " n"], None]:
    """Choose the token with the largest logit."""
    return logits.argmax(-1), None


@dataclass(frozen=True)
class Sampling:
    """Draw tokens from the `top_k` most likely ones and, among those, from the `top_p` mass, as transformers does.

    Args:
        temperature: Divides the logits.
        top_p: Draw from the most likely tokens that together have this probability.
        top_k: Draw from this number of most likely tokens. null is all.
        excluded: Ids that are never drawn, such as placeholders of visual tokens.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, is_right, wanted in (
            ("temperature", self.temperature > 0, "above 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
        ):
            if not is_right:
                raise InputError(f"sampling with {name} {getattr(self, name)}: {wanted}")

    def __call__(
        self, logits: Float[Tensor, "n V"], draws: Float[Tensor, " n"] | None = None
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Return tokens and their log-probabilities at this temperature, among all tokens.

        Args:
            logits: Logits of each answer's next token.
            draws: A number in [0, 1) per answer that determines its token. None draws with torch's generator of the
                device.
        """
        log_probs = (to_float32(logits) / self.temperature).log_softmax(-1)
        probs = log_probs.exp().nan_to_num(1.0)  # keeps the draw valid; the caller reports logits that are not finite
        for excluded in self.excluded:  # indexing by a list would copy it to the GPU and wait
            probs[:, excluded] = 0.0
        if self.top_k is not None and self.top_k < probs.shape[-1]:
            probs = probs.where(probs >= probs.topk(self.top_k).values[:, -1:], 0.0)
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            kept = before < self.top_p * ordered.sum(-1, keepdim=True)
            probs = torch.zeros_like(probs).scatter(-1, order, ordered * kept)
        if draws is None:
            # as `torch.multinomial`, without the checks that make the host wait
            ids = (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)
        else:
            bounds = probs.double().cumsum(-1)  # the first token whose bound is above the draw
            ids = torch.searchsorted(bounds, draws.double()[:, None] * bounds[:, -1:], right=True)
        return ids[:, 0], log_probs.gather(-1, ids)[:, 0]


# ---- States of Gated DeltaNet layers in a KV cache, instead of keys and values: one row per question -----------------

# A row of a layer holds the last inputs of the convolution and the recurrent state in float32. That is 2 MiB per layer
# in Qwen3.5-4B and 48 MiB in total, for any length of video. A layer writes its states in place.

States = list[tuple[Tensor, Tensor]]  # (rows, channels, K) and (rows, heads, D, D) of each such layer


def read_states(cache: Any) -> States:
    """Return the states of all Gated DeltaNet layers. The list is empty for a decoder without such layers."""
    return [(layer.conv_states[0], layer.recurrent_states[0]) for layer in _layers(cache)]


def write_states(cache: Any, states: States) -> None:
    """Set the layers' states to a copy of the given ones."""
    for layer, (inputs, state) in zip(_layers(cache), states, strict=True):
        layer.conv_states[0], layer.recurrent_states[0] = inputs.clone(), state.clone()


def join_states(cache: Any, states: list[States]) -> None:
    """Set the layers' states to the states of several questions, one row per question.

    The states are removed from the lists, so that memory holds them once, except for one layer at a time.
    """
    for layer in _layers(cache):
        inputs, state = zip(*(question.pop(0) for question in states), strict=True)
        layer.conv_states[0], layer.recurrent_states[0] = torch.cat(inputs), torch.cat(state)


def keep_rows(cache: Any, rows: Int[Tensor, " rows"]) -> None:
    """Keep the states of some of the questions."""
    for layer in _layers(cache):
        layer.reorder_cache(rows)


def _layers(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]


# ---- Answers to the questions after one prefix, which is decoded into the KV cache once ------------------------------

BROKEN = -1  # replaces a token whose logits are not finite
TOKENS_AT_ONCE = 1024  # question tokens per forward pass, which bounds the mask and the activations
CANDIDATES_AT_ONCE = 128  # bounds the logits, and the rows of states in a hybrid decoder


class Reply(NamedTuple):
    """The new tokens of an answer, up to and including a stop token, or the reason why there is no answer.

    Attributes:
        log_probs: Log-probability of each token, if tokens are drawn.
        candidates: Log-probability of each candidate as the whole answer, if there are candidates.
    """

    ids: list[int]
    error: str | None = None
    log_probs: tuple[float, ...] = ()
    candidates: tuple[float, ...] = ()


class CachedPrefix:
    """The keys and values of a prefix that questions share, and the answering of these questions.

    The questions of a pass follow each other in one sequence. Each attends to the prefix and to itself, so there is one
    copy of the prefix and no padding between questions. In a hybrid decoder each question continues from its own copy
    of the prefix's states. An attention backend without custom masks gets one question at a time, from the same cache.

    Args:
        backbone: The model.
        input_ids: Token ids of the prefix.
        inputs: Decoder inputs of the prefix, from `SpatialVLM.decoder_inputs`.
        next_position: First position after the prefix. None reads it from the inputs.
        repetition_penalty: Divides positive logits and multiplies negative logits of tokens that occur in the prompt or
            answer, as in transformers. 1 is no penalty.
        choose: How the next token is chosen.
    """

    @torch.no_grad()
    def __init__(
        self,
        backbone: Backbone,
        input_ids: Int[Tensor, "1 L"],
        inputs: Mapping[str, Any],
        next_position: int | None = None,
        repetition_penalty: float = 1.0,
        choose: TokenChoice = greedy,
    ) -> None:
        self.backbone, self.input_ids, self.choose = backbone, input_ids, choose
        self.penalize = None if repetition_penalty == 1 else RepetitionPenaltyLogitsProcessor(float(repetition_penalty))
        self.cache = backbone.decode(inputs, use_cache=True).cache
        self.states = read_states(self.cache)
        self.length = input_ids.shape[1]
        # the prefix ends in text, and the video before it may have higher positions, see `text_after_vision`
        self.next_position = inputs["position_ids"][..., -1].amax() + 1 if next_position is None else next_position
        encoding = inputs.get("camera_encoding")
        self.encoding = None if encoding is None else encoding.for_decode_step()
        self.groups = torch.full_like(input_ids, PREFIX)

    def answer(
        self, questions: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        """Answer questions independently of each other, in one pass or in more where memory is short.

        Args:
            questions: Token ids that follow the prefix, at least one per question.
            max_new_tokens: Maximum length of an answer in tokens.
            seeds: Random seed of each answer, which makes answers independent of each other. None draws with torch's
                generator.
        """
        at_once = max(len(questions), 1) if self.backbone.packs_questions else 1
        replies: list[Reply] = []
        while len(replies) < len(questions):
            part = slice(len(replies), len(replies) + at_once)
            some, own = questions[part], None if seeds is None else seeds[part]
            try:
                found = self._decode_batch(some, max_new_tokens, own)
            except (RuntimeError, MemoryError) as error:
                is_out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
                if not is_out_of_memory and "can't allocate memory" not in str(error):  # torch's message on the CPU
                    raise
                if len(some) == 1:
                    replies.append(Reply([], f"no memory for this question alone: {error}"))
                at_once = max(1, len(some) // 2)
                continue
            if len(some) > 1 and any(reply.error for reply in found):
                # 0 * NaN is NaN, so one question's keys and values spoil questions that are masked from them
                alone = [(some[n : n + 1], own and own[n : n + 1]) for n in range(len(some))]
                found = [self._decode_batch(question, max_new_tokens, seed)[0] for question, seed in alone]
            replies += found
        return replies

    @torch.no_grad()
    def _decode_batch(
        self, questions: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int] | None
    ) -> list[Reply]:
        """Answer questions that follow each other in one sequence. On a GPU the host waits once per token."""
        self._rewind()
        stops, alone, device = self.backbone.stop_tokens, len(questions) == 1, self.groups.device
        # 1. Questions. Each token has its id, its place after the prefix, and its question number (from 0).
        tokens = [(token, place, n) for n, question in enumerate(questions) for place, token in enumerate(question)]
        read = _on_device(list(zip(*tokens, strict=True)), device)
        ends = _on_device([end - 1 for end in accumulate(map(len, questions))], device)
        hidden = self._read_questions(read, list(map(len, questions)), alone)[ends]
        last, seen = read[:, ends], self._seen(questions)
        # 2. Answers, one token of each at a time.
        answers: list[list[int]] = [[] for _ in questions]
        drawn: list[list[float]] = [[] for _ in questions]
        generators = [random.Random(seed) for seed in seeds or ()]
        errors: dict[int, str] = {}
        going = list(range(len(questions)))
        for step in range(max_new_tokens):
            logits = self.backbone.lm_head(hidden)
            if self.penalize is not None:
                logits = self.penalize(seen, logits.float())  # float32, as in transformers' generate
            draws = [generators[n].random() for n in going] if generators else []
            chosen, log_probs = self.choose(logits, _on_device(draws, device, torch.float64) if draws else None)
            found = torch.where(logits.amax(-1).isfinite(), chosen, BROKEN)
            # copied together, because the host waits for each copy; float64 holds ids exactly
            told = found[None] if log_probs is None else torch.stack((found.double(), log_probs.double()))
            for n, token, *log_prob in zip(going, *told.tolist(), strict=True):
                if token == BROKEN:
                    errors[n] = f"the logits of token {step + 1} of the answer are not finite"
                else:
                    answers[n].append(int(token))
                drawn[n] += log_prob
            kept = [i for i, n in enumerate(going) if n not in errors and answers[n][-1] not in stops]
            if not kept or step + 1 == max_new_tokens:
                break
            last = torch.stack((found, last[1] + 1, last[2]))
            seen = torch.cat((seen, found[:, None]), 1)
            if len(kept) < len(going):
                rows = _on_device(kept, device)
                last, seen, going = last[:, rows], seen[rows], [going[i] for i in kept]
                keep_rows(self.cache, rows)
            hidden = self._read(last, None if alone else self.backbone.step_mask)
        replies = zip(answers, drawn, strict=True)
        return [
            Reply([], errors[n]) if n in errors else Reply(ids, log_probs=tuple(log_probs))
            for n, (ids, log_probs) in enumerate(replies)
        ]

    @torch.no_grad()
    def score(self, question: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each whole answer to a question, without repetition penalty.

        An answer ends with any of the stop tokens, so 7 does not count as the beginning of 72. The question is read
        once, and all answers follow it.

        Args:
            question: Token ids that follow the prefix, at least one.
            answers: Token ids of each answer, at least one each, without a stop token.
        """
        self._rewind()
        rows = _on_device([list(question), list(range(len(question))), [0] * len(question)], self.groups.device)
        last = self._read_questions(rows, [len(question)], alone=True)[-1:]
        before = self.length, self.states, self.next_position
        self.length, self.states = self.length + len(question), read_states(self.cache)
        self.next_position, self.groups = self.next_position + len(question), torch.full_like(self.groups, PREFIX)
        try:
            at_once = CANDIDATES_AT_ONCE if self.backbone.packs_questions else 1
            parts = [answers[start : start + at_once] for start in range(0, len(answers), at_once)]
            return torch.cat([self._score_batch(last, part) for part in parts]).tolist() if parts else []
        finally:
            self.length, self.states, self.next_position = before

    def _score_batch(self, last: Float[Tensor, "1 D"], answers: Sequence[Sequence[int]]) -> Float[Tensor, " answers"]:
        """Score answers that follow the prefix, one token of each at a time.

        Args:
            last: Hidden state of the prefix's last token.
            answers: See `score`.
        """
        self._rewind()
        join_states(self.cache, [list(self.states) for _ in answers])
        device, mask = self.groups.device, None if len(answers) == 1 else self.backbone.step_mask
        stops = _on_device(self.backbone.stop_tokens, device)
        total, going, hidden = torch.zeros(len(answers), device=device), list(range(len(answers))), last
        for step in range(max(map(len, answers)) + 1):
            log_probs = to_float32(self.backbone.lm_head(hidden)).log_softmax(-1).expand(len(going), -1)
            goes_on = [len(answers[n]) > step for n in going]
            tokens = [answers[n][step] if more else 0 for n, more in zip(going, goes_on, strict=True)]
            ids, more, rows = (_on_device(each, device) for each in (tokens, goes_on, going))
            chosen = torch.where(more, log_probs.gather(1, ids[:, None])[:, 0], log_probs[:, stops].logsumexp(1))
            total = total.index_add(0, rows, chosen.to(total.dtype))
            if not all(goes_on):
                keep_rows(self.cache, more.nonzero()[:, 0])
                going, ids, rows = [n for n, each in zip(going, goes_on, strict=True) if each], ids[more], rows[more]
            if going:
                hidden = self._read(torch.stack((ids, torch.full_like(ids, step), rows)), mask)
        return total

    def _seen(self, questions: Sequence[Sequence[int]]) -> Int[Tensor, "questions L"]:
        """Return the tokens of prefix and question, padded with a token that all of them contain."""
        longest, first = max(map(len, questions)), self.input_ids[:, :1]
        rows = [[*question, *[BROKEN] * (longest - len(question))] for question in questions]
        padded = _on_device(rows, first.device)
        prefix = self.input_ids.expand(len(questions), -1)
        return torch.cat((prefix, torch.where(padded == BROKEN, first, padded)), 1)

    def _rewind(self) -> None:
        """Shorten the cache to the prefix, also after a pass that ran out of memory between two layers."""
        self.groups = self.groups[:, : self.length]
        for layer in self.cache.layers:
            if hasattr(layer, "keys"):
                layer.keys, layer.values = layer.keys[..., : self.length, :], layer.values[..., : self.length, :]
        write_states(self.cache, self.states)

    def _read_questions(self, tokens: Int[Tensor, "3 T"], lengths: list[int], alone: bool) -> Float[Tensor, "T D"]:
        """Compute the hidden states of the questions, see `_read`. Hybrid layers get one row of states per question."""
        mask = None if alone else self.backbone.question_mask
        if alone or not self.states:
            return self._read(tokens, mask)
        hidden, states = [], []
        for question in tokens.split(lengths, 1):
            write_states(self.cache, self.states)
            hidden.append(self._read(question, mask))
            states.append(read_states(self.cache))
        join_states(self.cache, states)
        return torch.cat(hidden)

    def _read(self, tokens: Int[Tensor, "3 T"], mask: Callable[..., Any] | None) -> Float[Tensor, "T D"]:
        """Compute the hidden states of more tokens, given their id, place after the prefix, and question (from 0)."""
        hidden = []
        for ids, place, question in (part.unbind() for part in tokens.split(TOKENS_AT_ONCE, 1)):
            group = question[None] + PREFIX + 1
            self.groups = torch.cat((self.groups, group), 1)
            inputs = {
                "input_ids": ids[None],
                "position_ids": (self.next_position + place).expand(3, 1, -1),
                "attention_mask": None if mask is None else mask(group, self.groups),
                "camera_encoding": self.encoding,
            }
            output = self.backbone.decode(inputs, cache=self.cache, use_cache=True)
            hidden.append(output.last_hidden_state[0])
        return torch.cat(hidden)


def _on_device(values: list[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy Python values to a device without waiting for it."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# ---- Answers to the prompts of a batch -------------------------------------------------------------------------------

Candidates = Sequence[Sequence[Sequence[int]]]  # token ids of possible answers to each question of a batch


@runtime_checkable
class Answerer(Protocol):
    """The part of a model that answering uses. `SpatialVLM` implements it."""

    backbone: Backbone
    precision: str | None

    def encode_scenes(self, batch: Batch) -> list[EncodedScene]:
        """Encode each scene of a batch once."""

    def decoder_inputs(self, scenes: Sequence[EncodedScene], sequences: Sequences) -> dict[str, Any]:
        """Insert encoded scenes into their sequences."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the context, for example to answer between two training steps."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_penalty(factor: float) -> None:
    """Raise an InputError for an invalid repetition penalty."""
    if not 0 < factor < math.inf:
        raise InputError(f"--model.repetition_penalty {factor}: a factor above 0; 1 is no penalty")


@torch.no_grad()
def answer_batch(
    model: Answerer,
    batch: Batch,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    candidates: Candidates | None = None,
) -> list[Reply]:
    """Answer the prompts of a batch in the model's `precision`. Scenes are encoded once, see `answer_prompts`."""
    with answer_precision(model.backbone.device, model.precision):
        scenes, settings = model.encode_scenes(batch), (max_new_tokens, repetition_penalty)
        return answer_prompts(model, scenes, batch.prompts, *settings, candidates=candidates)


@torch.no_grad()
def answer_prompts(
    model: Answerer,
    scenes: Sequence[EncodedScene],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    choose: TokenChoice = greedy,
    seeds: Sequence[int] | None = None,
    candidates: Candidates | None = None,
) -> list[Reply]:
    """Answer prompts about encoded scenes. A prefix shared by prompts about the same scenes is decoded once.

    Args:
        model: The model to ask.
        scenes: Scenes from the model's `encode_scenes`.
        prompts: Prompts about these scenes.
        max_new_tokens: Maximum length of an answer in tokens.
        repetition_penalty: See `CachedPrefix`.
        choose: See `CachedPrefix`.
        seeds: Random seeds by the number of the question in the batch, see `CachedPrefix.answer`.
        candidates: Answers to score, by the number of the question in the batch, see `CachedPrefix.score`.

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
            # stops without taking a number after the last question
            for question, number in zip(questions, numbers, strict=False):
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
            if candidates is not None:
                for number, tokens in each:
                    replies[number] = _with_candidates(replies[number], prefix.score(tokens, candidates[number]))
    return [replies[number] for number in sorted(replies)]


def _with_candidates(reply: Reply, log_probs: Sequence[float]) -> Reply:
    """Return a reply with the log-probabilities of its candidates, or with an error if one is not finite."""
    if reply.error is None and not all(map(math.isfinite, log_probs)):
        return reply._replace(error="the logits of a candidate answer are not finite")
    return reply._replace(candidates=tuple(log_probs))
