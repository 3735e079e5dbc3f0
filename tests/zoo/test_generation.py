"""Generation with cameras: each step equals a forward pass of the whole sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.symmetries import COMBINATIONS
from tests.zoo.decoder import VIDEO, Example, install, tiny_model
from zoo.backbones.attention import greedy
from zoo.backbones.qwen25_vl.backbone import CameraQwen25VL

NEW = 4


def setting(name: str) -> tuple[CameraQwen25VL, Example]:
    model = tiny_model()
    model.__class__ = CameraQwen25VL
    return model, Example(install(model, name))


def prompt(example: Example) -> dict[str, Any]:
    """As `SpatialVLM` gives it: token ids, the visual tokens apart, and the cameras."""
    visual = example.input_ids == VIDEO
    tokens = tuple(row[seen] for row, seen in zip(example.embeddings, visual, strict=True))
    return {
        "input_ids": example.input_ids,
        "attention_mask": example.attention_mask,
        "position_ids": example.positions()[0],
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=tokens)},
        "camera_encoding": example.encoded(),
    }


@torch.no_grad()
def log_probabilities(model: CameraQwen25VL, example: Example, sequences: Tensor, stock: bool = False) -> Tensor:
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
    padded = (F.pad(each, (0, 0, 0, new)) for each in (cameras.patch_centers, cameras.points))
    longer = longer.with_tokens(*padded, F.pad(cameras.time, (0, new)))
    output = model(
        inputs_embeds=embeddings,
        attention_mask=F.pad(example.attention_mask, (0, new), value=1),
        position_ids=torch.cat((positions, after.expand(3, -1, -1)), -1),
        camera_encoding=None if stock else example.encoded(longer),
    )
    return output.logits[:, length - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_each_step_equals_a_forward_of_the_whole(name: str) -> None:
    """A left-padded, ragged batch."""
    model, example = setting(name)
    answers = greedy(model, prompt(example), NEW, [])
    sequences = torch.cat((example.input_ids, torch.tensor(answers)), 1)
    expected = log_probabilities(model, example, sequences)
    taken = expected.gather(-1, torch.tensor(answers)[..., None])[..., 0]
    torch.testing.assert_close(taken, expected.amax(-1), rtol=0, atol=1e-5)
    stock = log_probabilities(model, example, sequences, stock=True)  # the control
    assert (stock - expected).abs().max() > 1e-3


def test_without_a_cache_it_is_an_error() -> None:
    model, example = setting("PRoPE, ChannelRange")
    with pytest.raises(ValueError, match="use_cache=True"):
        model.generate(**prompt(example), use_cache=False, max_new_tokens=2)
