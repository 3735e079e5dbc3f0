"""The prefix that questions about one scene share, up to the end of its video: its length, packing, attention masks.

Several questions in one sequence are `[prefix][question 1][question 2]...`: each attends to the prefix and to itself,
and its positions continue from the prefix, as if it had been alone. With an answer after each question that is a
training sequence; read step by step into a KV cache it is a batch of answers, see `zoo.prefix_cache`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from zoo.backbones.base import Backbone

PREFIX = 0  # the group of the shared tokens; those of the questions count from 1
Row = tuple[Tensor, Tensor]  # token ids and labels
IGNORED = -100  # the label of tokens that are not supervised


def shared_length(prompts: Sequence[Sequence[int]], visual: Collection[int]) -> int:
    """Number of tokens that all prompts start with, at most up to the one after the last visual token.

    At least one token is left to each prompt. 0 if some visual token would not be shared.

    Args:
        prompts: token ids without padding.
        visual: the placeholders of visual tokens.
    """
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    last = max((i for i, token in enumerate(prompts[0]) if token in visual), default=-1)
    length = min(same, last + 2, min(map(len, prompts)) - 1)
    return 0 if any(token in visual for prompt in prompts for token in prompt[length:]) else length


class PackedScenes(NamedTuple):
    """Training sequences with the questions and answers of one scene each, padded on the right.

    Attributes:
        scene: the scene of each row.
        input_ids, attention_mask, labels: as of a batch with one question per row.
        group: the group of each token, see `prefix_causal_mask`; padding is a group of its own.
        position_offset: difference between a token's position and the one it would have if its question were alone.
    """

    scene: Int[Tensor, " S"]
    input_ids: Int[Tensor, "S L"]
    attention_mask: Int[Tensor, "S L"]
    labels: Int[Tensor, "S L"]
    group: Int[Tensor, "S L"]
    position_offset: Int[Tensor, "S L"]

    def with_question_masks(self, backbone: Backbone, inputs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's inputs for these rows, changed so that each question is as if it were alone."""
        positions = inputs["position_ids"] - self.position_offset
        return {**inputs, "position_ids": positions, "attention_mask": backbone.question_mask(self.group, self.group)}


def pack_questions(batch: dict[str, Any], visual: Collection[int]) -> PackedScenes | None:
    """Packs the questions of each scene into one sequence; returns None if no two rows share a prefix.

    Args:
        batch: `input_ids`, `attention_mask` and `labels` (N, L), `scene_index` (N,) and the bound
            `tokens_per_sequence`, see `datamodules.collate`; questions beyond the bound are packed into further
            sequences.
        visual: the placeholders of visual tokens.
    """
    scenes: dict[int, list[Row]] = {}
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    for scene, (ids, labels, real) in zip(batch["scene_index"].tolist(), rows, strict=True):
        scenes.setdefault(scene, []).append((ids[real], labels[real]))
    if all(len(members) == 1 for members in scenes.values()):
        return None
    packed: list[dict[str, Tensor]] = []
    scene_of: list[int] = []
    for scene, members in scenes.items():
        # neither an answer is shared nor the token before it, or only one question would learn from that token
        prompts = [ids[: int((labels != IGNORED).int().argmax())].tolist() for ids, labels in members]
        length = shared_length(prompts, visual) if all(prompts) else 0
        if not length:
            return None
        for own in _within(members, length, batch.get("tokens_per_sequence")):
            packed.append(_in_one(own, length))
            scene_of.append(scene)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED, "group": -1, "position_offset": 0}
    columns = {name: [row[name] for row in packed] for name in fill}
    padded = {name: pad_sequence(rows, batch_first=True, padding_value=fill[name]) for name, rows in columns.items()}
    return PackedScenes(torch.tensor(scene_of, device=batch["input_ids"].device), **padded)


def _within(members: Sequence[Row], length: int, bound: int | None) -> list[list[Row]]:
    """Divides the questions of a scene among sequences of at most `bound` tokens; a longer question has its own."""
    divided, used = [[members[0]]], len(members[0][0])
    for row in members[1:]:
        added = len(row[0]) - length
        if bound is not None and used + added > bound:
            divided.append([])
            used = length
        divided[-1].append(row)
        used += added
    return divided


def _in_one(members: Sequence[Row], length: int) -> dict[str, Tensor]:
    """One row of (ids, labels) that share their first `length` tokens."""
    lengths = torch.tensor([length, *(len(ids) - length for ids, _ in members)])
    number = torch.arange(len(lengths)).repeat_interleave(lengths)
    position_offset = (lengths.cumsum(0) - lengths - length).clamp(min=0)[number]  # of the prefix 0
    ids = torch.cat([members[0][0][:length], *(ids[length:] for ids, _ in members)])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.cat([members[0][1][:length], *(labels[length:] for _, labels in members)]),
        "group": (PREFIX + number).to(ids.device),
        "position_offset": position_offset.to(ids.device),
    }


def prefix_causal_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T K"]:
    """Mask of the tokens that each query attends to: earlier ones of the prefix and of its own group.

    Args:
        queries: the group of each query, `PREFIX` or that of a question; the queries are the last T of the keys.
        keys: the group of each key.
        prefixes: the group of each query's prefix, in a sequence of several scenes; None is `PREFIX`.
    """
    prefixes = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    place = torch.arange(keys.shape[1], device=keys.device)
    earlier = place <= place[keys.shape[1] - queries.shape[1] :, None]
    return earlier & ((keys[:, None] == prefixes[:, :, None]) | (keys[:, None] == queries[:, :, None]))


def block_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> BlockMask:
    """`prefix_causal_mask` for FlexAttention, block by block; on a GPU no T x K tensor is built."""
    own = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    (batch, rows), columns = queries.shape, keys.shape[1]
    skipped = columns - rows
    return create_block_mask(
        lambda b, head, query, key: (
            (key <= query + skipped) & ((keys[b, key] == own[b, query]) | (keys[b, key] == queries[b, query]))
        ),
        batch,
        None,
        rows,
        columns,
        device=str(queries.device),
        _compile=queries.is_cuda,
    )
