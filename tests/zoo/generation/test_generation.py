"""Answers with cameras: each step from the cache equals a forward pass of the whole sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.combinations import FEWER_NAMES
from tests.zoo.decoder import SHAPE, VIDEO, Example, install, tiny_model
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.generation import CachedPrefix

NEW = 4


def of_row(cameras: Cameras, row: int, tokens: Tensor) -> Cameras:
    """The cameras of some tokens of one sequence."""
    one = cameras[row : row + 1]
    assert one.index is not None and one.patch_centers is not None and one.points is not None and one.time is not None
    every = (one.patch_centers, one.points, one.time, one.patch_sizes)
    per_token = (None if each is None else each[:, tokens] for each in every)
    return one.with_index(one.index[:, tokens]).with_tokens(*per_token)


@torch.no_grad()
def answers(model: Any, example: Example) -> Tensor:
    """From a cache of all but the last token of each sequence, which is the question: (B, new)."""
    backbone, found = Qwen25VLBackbone(model, None), []
    for row, real in enumerate(example.attention_mask.bool()):
        *tokens, last = real.nonzero()[:, 0]
        prefix = torch.stack(tokens)
        ids = example.input_ids[row : row + 1, prefix]
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == VIDEO] = example.embeddings[row, prefix][ids[0] == VIDEO]
        inputs = {
            "inputs_embeds": embeddings,
            "position_ids": example.positions()[0][:, row : row + 1, prefix],
            "attention_mask": None,
            "camera_encoding": example.encoding.encode(of_row(example.cameras(), row, prefix), **SHAPE),
        }
        (reply,) = CachedPrefix(backbone, ids, inputs).answer([[int(example.input_ids[row, last])]], NEW)
        assert reply.error is None
        found.append(torch.tensor(reply.ids))
    return torch.stack(found)


@torch.no_grad()
def log_probabilities(model: Any, example: Example, sequences: Tensor, stock: bool = False) -> Tensor:
    """Of each new token's successors, by one forward pass of the whole without a cache: (B, new, V)."""
    length, new = example.input_ids.shape[1], sequences.shape[1] - example.input_ids.shape[1]
    embeddings = model.get_input_embeddings()(sequences)
    visual = F.pad(example.input_ids == VIDEO, (0, new))
    embeddings[visual] = F.pad(example.embeddings, (0, 0, 0, new))[visual]
    positions, deltas = example.positions(stock)
    after = deltas + length + torch.arange(new)
    cameras = example.cameras()
    assert cameras.index is not None and cameras.patch_centers is not None and cameras.points is not None
    longer = cameras.with_index(F.pad(cameras.index, (0, new), value=-1))
    centers, points = (F.pad(each, (0, 0, 0, new)) for each in (cameras.patch_centers, cameras.points))
    sizes = None if cameras.patch_sizes is None else F.pad(cameras.patch_sizes, (0, 0, 0, new))
    longer = longer.with_tokens(centers, points, F.pad(cameras.time, (0, new)), sizes)
    output = model(
        inputs_embeds=embeddings,
        attention_mask=F.pad(example.attention_mask, (0, new), value=1),
        position_ids=torch.cat((positions, after.expand(3, -1, -1)), -1),
        camera_encoding=None if stock else example.encoded(longer),
    )
    return output.logits[:, length - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", FEWER_NAMES)
def test_each_step_equals_a_forward_of_the_whole(name: str) -> None:
    """Each sequence by itself, against a left-padded, ragged batch."""
    model = tiny_model()
    example = Example(install(model, name))
    found = answers(model, example)
    sequences = torch.cat((example.input_ids, found), 1)
    expected = log_probabilities(model, example, sequences)
    taken = expected.gather(-1, found[..., None])[..., 0]
    torch.testing.assert_close(taken, expected.amax(-1), rtol=0, atol=1e-5)
    stock = log_probabilities(model, example, sequences, stock=True)  # the control
    assert (stock - expected).abs().max() > 1e-3
