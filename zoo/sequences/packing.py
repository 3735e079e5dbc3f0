"""Packing several questions, or several scenes, into one sequence: rows, places and attention masks.

Tokens have groups: `PREFIX` for the shared tokens, other numbers for the questions. Each question sees the shared
prefix and itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.utils.rnn import pad_sequence

from zoo.values import Movable

PREFIX = 0  # group of the shared tokens; the groups of questions count from 1


def prefix_causal_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T K"]:
    """Return the mask of tokens that each query attends to: earlier ones of the prefix and of its own group.

    Args:
        queries: Group of each query, `PREFIX` or a question's group. The queries are the last T of the keys.
        keys: Group of each key.
        prefixes: Group of each query's prefix, in a sequence of several scenes. None is `PREFIX`.
    """
    prefixes = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    place = torch.arange(keys.shape[1], device=keys.device)
    earlier = place <= place[keys.shape[1] - queries.shape[1] :, None]
    return earlier & ((keys[:, None] == prefixes[:, :, None]) | (keys[:, None] == queries[:, :, None]))


def block_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> BlockMask:
    """Return `prefix_causal_mask` for FlexAttention, by blocks. On a GPU no T x K tensor is built."""
    own = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    (batch, rows), columns = queries.shape, keys.shape[1]
    skipped = columns - rows
    # compilation reduces each block of the mask as it is computed
    create = torch.compile(create_block_mask) if queries.is_cuda else create_block_mask
    return create(
        lambda b, head, query, key: (
            (key <= query + skipped) & ((keys[b, key] == own[b, query]) | (keys[b, key] == queries[b, query]))
        ),
        batch,
        None,
        rows,
        columns,
        device=str(queries.device),
    )


# ---- Several questions in one sequence, after a shared prefix that ends with the video ------------------------------
# In a sequence `[prefix][question 1][question 2]...` each question attends to the prefix and to itself, and its
# positions continue from the prefix, as if it were alone. With an answer after each question it is a training sequence.
# Decoded step by step into a KV cache it is a batch of answers, see `zoo.generation`.

IGNORED = -100  # label of tokens that are not supervised


class Row(NamedTuple):
    """One sequence without padding.

    Attributes:
        input_ids: Token ids.
        labels: The supervised ids, and `IGNORED` elsewhere.
        group: Group of each token, see `zoo.sequences.packing`.
        position_offset: Difference between a token's position and the one it would have if its question were alone.
    """

    input_ids: Int[Tensor, " L"]
    labels: Int[Tensor, " L"]
    group: Int[Tensor, " L"]
    position_offset: Int[Tensor, " L"]

    @classmethod
    def of(cls, input_ids: Int[Tensor, " L"], labels: Int[Tensor, " L"]) -> Row:
        """Return the row of one question."""
        return cls(input_ids, labels, torch.full_like(input_ids, PREFIX), torch.zeros_like(input_ids))


def shared_length(prompts: Sequence[Sequence[int]], visual: Collection[int]) -> int:
    """Count the tokens that all prompts start with, at most up to the one after the last visual token.

    At least one token is left to each prompt. Returns 0 if some visual token would not be shared.
    """
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    last = max((i for i, token in enumerate(prompts[0]) if token in visual), default=-1)
    length = min(same, last + 2, min(map(len, prompts)) - 1)
    return 0 if any(token in visual for prompt in prompts for token in prompt[length:]) else length


def pack_questions(
    rows: Sequence[Row], scene_of: Sequence[int], visual: Collection[int], max_tokens: int | None = None
) -> tuple[list[Row], list[int]] | None:
    """Pack questions of a scene that share a prefix into one row. Return None if no two do.

    Args:
        rows: One per question.
        scene_of: Scene of each row.
        visual: The placeholders of visual tokens.
        max_tokens: Maximum number of tokens of a packed row. Further questions go to further rows. None is unlimited.

    Returns:
        The packed rows, and the scene of each row.
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
        # answers are not shared, nor is the token before them, or only one question would learn from that token
        prompts = [row.input_ids[: int((row.labels != IGNORED).int().argmax())].tolist() for row in members]
        length = shared_length(prompts, visual) if all(prompts) else 0
        made = [_in_one(own, length) for own in _within(members, length, max_tokens)] if length else members
        packed += made
        scene_of_packed += [scene] * len(made)
        is_shared |= length > 0 and len(members) > 1
    return (packed, scene_of_packed) if is_shared else None


def _within(members: Sequence[Row], length: int, bound: int | None) -> list[list[Row]]:
    """Divide the questions of a scene among rows of at most `bound` tokens. A longer question gets its own row."""
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
    position_offset = (lengths.cumsum(0) - lengths - length).clamp(min=0)[number]  # 0 for the prefix
    return Row(
        torch.cat([members[0].input_ids[:length], *(row.input_ids[length:] for row in members)]),
        torch.cat([members[0].labels[:length], *(row.labels[length:] for row in members)]),
        PREFIX + number,
        position_offset,
    )


# ---- Places of the questions in packed training sequences, for layers with a recurrent state ------------------------


class QuestionPlaces(Movable):
    """The N questions of S sequences `[prefix][question 1][question 2]...`, each of which continues from its prefix.

    They are computed on the host, so that no layer waits for a GPU. Places are indices into the flattened batch of S
    times L tokens.

    Args:
        group: Group of each token, see `zoo.sequences.packing`. -1 in padding, which is on the right.

    Attributes:
        is_prefix: True for tokens of the prefixes.
        row: Sequence of each question.
        prefix_lengths: Number of tokens of its prefix.
        places: Places of its tokens. 0 in the padding after shorter questions.
        mask: True for tokens that are not padding.
        sources: Indices of the questions' M tokens in the flattened `places`.
        targets: Places of these tokens.
    """

    def __init__(self, group: Int[Tensor, "S L"]) -> None:
        self.is_prefix: Bool[Tensor, "S L"] = group == PREFIX
        rows, lengths, places = [], [], []
        for row, groups in enumerate(group):
            for question in range(PREFIX + 1, int(groups.max()) + 1):
                rows.append(row)
                lengths.append(int(self.is_prefix[row].sum()))
                places.append((groups == question).nonzero()[:, 0] + row * group.shape[1])
        self.row: Int[Tensor, " N"] = torch.tensor(rows)
        self.prefix_lengths: Int[Tensor, " N"] = torch.tensor(lengths)
        self.places: Int[Tensor, "N Q"] = pad_sequence(places, batch_first=True)
        counts = torch.tensor([len(own) for own in places])
        self.mask: Bool[Tensor, "N Q"] = torch.arange(self.places.shape[1]) < counts[:, None]
        self.sources: Int[Tensor, " M"] = self.mask.flatten().nonzero()[:, 0]
        self.targets: Int[Tensor, " M"] = torch.cat(places)

    def before(self, count: int) -> tuple[Int[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Return the places of the last `count` tokens of each question's prefix, and which of them exist."""
        index = self.prefix_lengths[:, None] - count + torch.arange(count, device=self.row.device)
        return index.clamp(min=0) + self.row[:, None] * self.is_prefix.shape[1], index >= 0


# ---- Training sequences of several scenes without padding -----------------------------------------------------------
# A row of a batch is a scene with its questions, padded to the longest row. The decoder, which takes most of a step's
# time, gets few sequences of several rows instead, in which each token attends only to its own row. Everything that
# depends on rows (positions, cameras, losses) is computed from padded rows.


class ScenePacking(Movable):
    """The places of a batch of rows in sequences of several rows.

    Rows keep their order, and so do visual tokens.

    Args:
        mask: True for tokens that are not padding.
        group: Group of each token of a row, see `zoo.sequences.packing`.
        max_tokens: Maximum number of tokens of a sequence. A longer row gets its own. None packs all rows into one
            sequence.

    Attributes:
        rows: Indices of tokens that are not padding in the flattened batch.
        places: Place of each of these tokens in the flattened sequences.
        shape: Number of sequences, and length of the longest.
        group: Group of each token of the sequences. Rows do not share groups. -1 in padding.
        prefix_group: Group of the prefix of each token's row.
        place: Place in the flattened sequences of each token of the flattened rows. 0 in padding.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "S L"],
        group: Int[Tensor, "S L"],
        max_tokens: int | None = None,
    ) -> None:
        starts: list[tuple[int, int]] = []  # sequence and first place of each row
        lengths: list[int] = []  # length of each sequence
        for length in mask.sum(1).tolist():
            if not lengths or (max_tokens is not None and lengths[-1] + length > max_tokens):
                lengths.append(0)
            starts.append((len(lengths) - 1, lengths[-1]))
            lengths[-1] += length
        self.padded, self.shape = tuple(mask.shape), (len(lengths), max(lengths))
        first = torch.tensor([sequence * self.shape[1] + start for sequence, start in starts])
        self.rows: Int[Tensor, " N"] = mask.flatten().nonzero()[:, 0]
        self.places: Int[Tensor, " N"] = (first[:, None] + mask.cumsum(1) - 1).flatten()[self.rows]
        self.place: Int[Tensor, " tokens"] = torch.zeros(mask.numel(), dtype=torch.long)
        self.place[self.rows] = self.places
        own_first = torch.arange(len(mask))[:, None] * (int(group.max()) + 1)
        self.group: Int[Tensor, "B T"] = self.pack(group + own_first, -1)
        self.prefix_group: Int[Tensor, "B T"] = self.pack((own_first + PREFIX).expand_as(group), -1)

    def pack(self, values: Shaped[Tensor, "S L ..."], fill: int | float = 0) -> Shaped[Tensor, "B T ..."]:
        """Move values from the rows to the sequences."""
        return _moved(values, self.rows, self.places, self.shape, fill)

    def unpack(self, values: Shaped[Tensor, "B T ..."], fill: int | float = 0) -> Shaped[Tensor, "S L ..."]:
        """Move values from the sequences to the rows."""
        return _moved(values, self.places, self.rows, self.padded, fill)


def _moved(values: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...], fill: int | float) -> Tensor:
    moved = values.new_full((shape[0] * shape[1], *values.shape[2:]), fill)
    return moved.index_copy(0, target, values.flatten(0, 1).index_select(0, source)).unflatten(0, shape)
