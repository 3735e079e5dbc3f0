"""Several questions in one sequence, behind the prefix that they share, up to the end of its video.

A sequence `[prefix][question 1][question 2]...` lets each question attend to the prefix and to itself, and its
positions continue from the prefix, as if it had been alone. With an answer after each question that is a training
sequence; read step by step into a KV cache it is a batch of answers, see `zoo.generation.prefix_cache`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.sequences.masks import PREFIX

IGNORED = -100  # the label of tokens that are not supervised


class Row(NamedTuple):
    """One sequence without padding.

    Attributes:
        input_ids: Token ids.
        labels: The supervised ids, `IGNORED` elsewhere.
        group: The group of each token, see `zoo.sequences.masks`.
        position_offset: Difference between a token's position and the one it would have if its question were alone.
    """

    input_ids: Int[Tensor, " L"]
    labels: Int[Tensor, " L"]
    group: Int[Tensor, " L"]
    position_offset: Int[Tensor, " L"]

    @classmethod
    def of(cls, input_ids: Int[Tensor, " L"], labels: Int[Tensor, " L"]) -> Row:
        """Make the row of one question."""
        return cls(input_ids, labels, torch.full_like(input_ids, PREFIX), torch.zeros_like(input_ids))


def shared_length(prompts: Sequence[Sequence[int]], visual: Collection[int]) -> int:
    """Count the tokens that all prompts start with, at most up to the one after the last visual token.

    At least one token is left to each prompt. 0 if some visual token would not be shared.

    Args:
        prompts: Token ids without padding.
        visual: The placeholders of visual tokens.
    """
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    last = max((i for i, token in enumerate(prompts[0]) if token in visual), default=-1)
    length = min(same, last + 2, min(map(len, prompts)) - 1)
    return 0 if any(token in visual for prompt in prompts for token in prompt[length:]) else length


def pack_questions(
    rows: Sequence[Row], scene_of: Sequence[int], visual: Collection[int], max_tokens: int | None = None
) -> tuple[list[Row], list[int]] | None:
    """Pack the questions of each scene into one row, where they share a prefix; return None if no two do.

    Args:
        rows: One per question.
        scene_of: The scene of each.
        visual: The placeholders of visual tokens.
        max_tokens: Most tokens of a packed row; what exceeds them is packed into further rows. None is no bound.

    Returns:
        The packed rows, and the scene of each.
    """
    scenes: dict[int, list[Row]] = {}
    for scene, row in zip(scene_of, rows, strict=True):
        scenes.setdefault(scene, []).append(row)
    if all(len(members) == 1 for members in scenes.values()):
        return None
    packed: list[Row] = []
    scene_of_packed: list[int] = []
    is_shared = False
    for scene, members in scenes.items():
        # neither an answer is shared nor the token before it, or only one question would learn from that token
        prompts = [row.input_ids[: int((row.labels != IGNORED).int().argmax())].tolist() for row in members]
        length = shared_length(prompts, visual) if all(prompts) else 0
        made = [_in_one(own, length) for own in _within(members, length, max_tokens)] if length else members
        packed += made
        scene_of_packed += [scene] * len(made)
        is_shared |= length > 0 and len(members) > 1
    return (packed, scene_of_packed) if is_shared else None


def _within(members: Sequence[Row], length: int, bound: int | None) -> list[list[Row]]:
    """Divide the questions of a scene among rows of at most `bound` tokens; a longer question has its own."""
    divided, used = [[members[0]]], len(members[0].input_ids)
    for row in members[1:]:
        added = len(row.input_ids) - length
        if bound is not None and used + added > bound:
            divided.append([])
            used = length
        divided[-1].append(row)
        used += added
    return divided


def _in_one(members: Sequence[Row], length: int) -> Row:
    """Pack rows that share their first `length` tokens."""
    lengths = torch.tensor([length, *(len(row.input_ids) - length for row in members)])
    number = torch.arange(len(lengths)).repeat_interleave(lengths)
    position_offset = (lengths.cumsum(0) - lengths - length).clamp(min=0)[number]  # of the prefix 0
    return Row(
        torch.cat([members[0].input_ids[:length], *(row.input_ids[length:] for row in members)]),
        torch.cat([members[0].labels[:length], *(row.labels[length:] for row in members)]),
        PREFIX + number,
        position_offset,
    )
