"""Several questions in one sequence, and several scenes in one: rows, places and attention masks.

Tokens have groups: `PREFIX` for the shared ones, other numbers for the questions. Each question sees the shared prefix
and itself.
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

PREFIX = 0  # the group of the shared tokens; those of the questions count from 1


def prefix_causal_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T K"]:
    """Mask of the tokens that each query attends to: earlier ones of the prefix and of its own group.

    Args:
        queries: The group of each query, `PREFIX` or that of a question; the queries are the last T of the keys.
        keys: The group of each key.
        prefixes: The group of each query's prefix, in a sequence of several scenes; None is `PREFIX`.
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
    # compiled, each block of the mask is reduced as it is computed
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


# ---- Several questions in one sequence, behind the prefix that they share, up to the end of its video ---------------
# A sequence `[prefix][question 1][question 2]...` lets each question attend to the prefix and to itself, and its
# positions continue from the prefix, as if it had been alone. With an answer after each question that is a training
# sequence; read step by step into a KV cache it is a batch of answers, see `zoo.generation`

IGNORED = -100  # the label of tokens that are not supervised


class Row(NamedTuple):
    """One sequence without padding.

    Attributes:
        input_ids: Token ids.
        labels: The supervised ids, `IGNORED` elsewhere.
        group: The group of each token, see `zoo.sequences.packing`.
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


# ---- Where the questions of packed training sequences are, for layers with a recurrent state ------------------------


class QuestionPlaces(Movable):
    """The N questions of S sequences `[prefix][question 1][question 2]...`, each of which goes on from its prefix.

    Computed on the host, so that no layer waits for a GPU. Places count in the flattened batch, S times L.

    Args:
        group: The group of each token, see `zoo.sequences.packing`; -1 in padding, which is on the right.

    Attributes:
        is_prefix: The tokens of the prefixes.
        row: The sequence of each question.
        prefix_lengths: The tokens of its prefix.
        places: The place of each of its tokens; 0 in the padding behind shorter questions.
        mask: The tokens that are not padding.
        sources: The questions' M tokens, as numbers in the flattened `places`.
        targets: Their places.
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
        """Return the places of the last tokens of each question's prefix, and which of them there are.

        Args:
            count: K, their number.
        """
        index = self.prefix_lengths[:, None] - count + torch.arange(count, device=self.row.device)
        return index.clamp(min=0) + self.row[:, None] * self.is_prefix.shape[1], index >= 0


# ---- Training sequences of several scenes, one behind the other without padding -------------------------------------
# A row of a batch is a scene with its questions; rows are padded to the longest. The decoder, which takes most of a
# step, gets them in few sequences instead, in which each token attends to its own row alone. What depends on rows
# (positions, cameras, losses) is computed from padded rows


class ScenePacking(Movable):
    """Where each token of a batch of rows is in sequences of several rows.

    Rows stay in their order, so that visual tokens do as well.

    Args:
        mask: The tokens that are not padding.
        group: The group of each token of a row, see `zoo.sequences.packing`.
        visual_places: The place of each visual token in the flattened rows.
        max_tokens: Most tokens of a sequence; a longer row has one of its own. None packs all rows into one sequence.

    Attributes:
        rows: The tokens that are not padding, in the flattened batch.
        places: The place of each in the flattened sequences.
        shape: Number of sequences, and tokens of the longest.
        group: The group of each token of the sequences, of no other row; -1 in padding.
        prefix_group: The group of the prefix of each token's row.
        visual_places: The place of each visual token in the flattened sequences.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "S L"],
        group: Int[Tensor, "S L"],
        visual_places: Int[Tensor, " M"],
        max_tokens: int | None = None,
    ) -> None:
        starts: list[tuple[int, int]] = []  # of each row: its sequence, and its first place there
        lengths: list[int] = []  # of each sequence
        for length in mask.sum(1).tolist():
            if not lengths or (max_tokens is not None and lengths[-1] + length > max_tokens):
                lengths.append(0)
            starts.append((len(lengths) - 1, lengths[-1]))
            lengths[-1] += length
        self.padded, self.shape = tuple(mask.shape), (len(lengths), max(lengths))
        first = torch.tensor([sequence * self.shape[1] + start for sequence, start in starts])
        self.rows: Int[Tensor, " N"] = mask.flatten().nonzero()[:, 0]
        self.places: Int[Tensor, " N"] = (first[:, None] + mask.cumsum(1) - 1).flatten()[self.rows]
        place = torch.zeros(mask.numel(), dtype=torch.long)
        place[self.rows] = self.places
        self.visual_places: Int[Tensor, " M"] = place[visual_places]
        own_first = torch.arange(len(mask))[:, None] * (int(group.max()) + 1)
        self.group: Int[Tensor, "B T"] = self.pack(group + own_first, -1)
        self.prefix_group: Int[Tensor, "B T"] = self.pack((own_first + PREFIX).expand_as(group), -1)

    def pack(self, values: Shaped[Tensor, "S L ..."], fill: int | float = 0) -> Shaped[Tensor, "B T ..."]:
        """Move values of the rows to the places of the sequences."""
        return _moved(values, self.rows, self.places, self.shape, fill)

    def unpack(self, values: Shaped[Tensor, "B T ..."], fill: int | float = 0) -> Shaped[Tensor, "S L ..."]:
        """Move values of the sequences to the places of the rows."""
        return _moved(values, self.places, self.rows, self.padded, fill)


def _moved(values: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...], fill: int | float) -> Tensor:
    moved = values.new_full((shape[0] * shape[1], *values.shape[2:]), fill)
    return moved.index_copy(0, target, values.flatten(0, 1).index_select(0, source)).unflatten(0, shape)
