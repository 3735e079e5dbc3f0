"""Questions about one scene share all tokens up to the end of the video: which these are, and who sees whom.

Several questions in one sequence are [prefix][question 1][question 2]...: each sees the prefix and itself, and its
positions go on from the prefix, as if it had been alone. With an answer after each question that is a training
sequence; read step by step into a KV cache it is a batch of answers, see `zoo.prefix_cache`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration

PREFIX = 0  # the group of the shared tokens; those of the questions count from 1
IGNORED = -100  # the label of what is not supervised


def shared_length(prompts: Sequence[Sequence[int]], visual: Collection[int]) -> int:
    """How many tokens all prompts start with: at most up to the one after the last visual token, `<|vision_end|>`.

    A token is left to each prompt. 0 if some visual token would not be shared.

    Args:
        prompts: token ids without padding.
        visual: the placeholders of visual tokens.
    """
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    last = max((i for i, token in enumerate(prompts[0]) if token in visual), default=-1)
    length = min(same, last + 2, min(map(len, prompts)) - 1)
    return 0 if any(token in visual for prompt in prompts for token in prompt[length:]) else length


def prefix_causal_mask(queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"]) -> Bool[Tensor, "B T K"]:
    """Which token attends to which: to the prefix and to its own group, and to nothing that comes later.

    Args:
        queries: the group of each, `PREFIX` or a question's; they are the last T of the keys.
        keys: the group of each.
    """
    place = torch.arange(keys.shape[1], device=keys.device)
    earlier = place <= place[keys.shape[1] - queries.shape[1] :, None]
    return earlier & ((keys == PREFIX)[:, None] | (keys[:, None] == queries[:, :, None]))


def supports_custom_mask(qwen: Qwen2_5_VLForConditionalGeneration) -> bool:
    """Whether the model's attention can let each token see what it is told to; flash attention can't."""
    return _implementation(qwen) in ("sdpa", "eager", "flex_attention")


def attention_mask(
    qwen: Qwen2_5_VLForConditionalGeneration, queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"]
) -> Shaped[Tensor, "B 1 T K"] | BlockMask:
    """`sees` as the model takes a mask that is ready: FlexAttention leaves out the blocks where nobody sees anybody.

    Raises:
        ValueError: attention that takes none.
    """
    if not supports_custom_mask(qwen):
        raise ValueError(f"{_implementation(qwen)} takes no mask of its own: give it one question a sequence")
    if _implementation(qwen) == "flex_attention":
        return block_mask(queries, keys)
    seen = prefix_causal_mask(queries, keys)[:, None]
    if _implementation(qwen) == "sdpa":
        return seen
    return torch.zeros_like(seen, dtype=qwen.dtype).masked_fill(~seen, torch.finfo(qwen.dtype).min)  # is added


def block_mask(queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"]) -> BlockMask:
    """`sees` block by block, for FlexAttention; on a GPU no T x K tensor is made on the way."""
    (batch, rows), columns = queries.shape, keys.shape[1]
    skipped = columns - rows
    return create_block_mask(
        lambda b, head, query, key: (
            (key <= query + skipped) & ((keys[b, key] == PREFIX) | (keys[b, key] == queries[b, query]))
        ),
        batch,
        None,
        rows,
        columns,
        device=str(queries.device),
        _compile=queries.is_cuda,
    )


def visual_tokens(qwen: Qwen2_5_VLForConditionalGeneration) -> tuple[int, int]:
    """The placeholders of visual tokens."""
    return qwen.config.video_token_id, qwen.config.image_token_id


def _implementation(qwen: Qwen2_5_VLForConditionalGeneration) -> str:
    return qwen.model.language_model.config._attn_implementation


class PackedScenes(NamedTuple):
    """A training sequence a scene, padded on the right, with all of its questions and answers in it.

    Attributes:
        scene: that each row is about.
        group: of each token, see `sees`; padding is a group of its own.
        ahead: how far each token's position is ahead of what it would be if its question were alone.
    """

    scene: Int[Tensor, " S"]
    input_ids: Int[Tensor, "S L"]
    attention_mask: Int[Tensor, "S L"]
    labels: Int[Tensor, "S L"]
    group: Int[Tensor, "S L"]
    position_offset: Int[Tensor, "S L"]

    def with_question_masks(self, qwen: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, Any]) -> dict[str, Any]:
        """What `SpatialModel.prepare` makes of these rows, but each question for itself: its positions and its mask."""
        mask = attention_mask(qwen, self.group, self.group)
        return {**inputs, "position_ids": inputs["position_ids"] - self.position_offset, "attention_mask": mask}


def pack_questions(batch: dict[str, Any], visual: Collection[int]) -> PackedScenes | None:
    """The sequences of a training batch, those of a scene in one; None where there is nothing to be shared.

    Args:
        batch: `input_ids`, `attention_mask` and `labels` (N, L), and `scene_index` (N,), see `datamodules.collate`.
        visual: the placeholders of visual tokens.
    """
    scenes: dict[int, list[tuple[Tensor, Tensor]]] = {}
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    for scene, (ids, labels, real) in zip(batch["scene_index"].tolist(), rows, strict=True):
        scenes.setdefault(scene, []).append((ids[real], labels[real]))
    if all(len(members) == 1 for members in scenes.values()):
        return None
    packed = []
    for members in scenes.values():
        # an answer is not shared, nor the token before it, which is left to each prompt: only one would learn of it
        prompts = [ids[: int((labels != IGNORED).int().argmax())].tolist() for ids, labels in members]
        length = shared_length(prompts, visual) if all(prompts) else 0
        if not length:
            return None
        packed.append(_in_one(members, length))
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED, "group": -1, "position_offset": 0}
    columns = {name: [row[name] for row in packed] for name in fill}
    padded = {name: pad_sequence(rows, batch_first=True, padding_value=fill[name]) for name, rows in columns.items()}
    return PackedScenes(torch.tensor(list(scenes), device=batch["input_ids"].device), **padded)


def _in_one(members: Sequence[tuple[Tensor, Tensor]], length: int) -> dict[str, Tensor]:
    """(ids, labels) that share `length` tokens as one row."""
    ids, labels = members[0][0][:length], members[0][1][:length]
    parts = [
        {
            "input_ids": ids,
            "labels": labels,
            "group": torch.full_like(ids, PREFIX),
            "position_offset": torch.zeros_like(ids),
        }
    ]
    position_offset = 0
    for number, (ids, labels) in enumerate(members, PREFIX + 1):
        own = ids[length:]
        group, before = torch.full_like(own, number), torch.full_like(own, position_offset)
        parts.append({"input_ids": own, "labels": labels[length:], "group": group, "position_offset": before})
        position_offset += len(own)
    row = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {**row, "attention_mask": torch.ones_like(row["input_ids"])}
