"""Generation with cameras: each step equals a forward pass of the whole, greedy and by beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.symmetries import COMBINATIONS
from tests.zoo.decoder import PAD, VIDEO, Example, install, tiny_model
from zoo.backbones.qwen25_vl.attention import CameraQwen25VL, greedy

NEW, BEAMS = 4, 2
pytestmark = pytest.mark.usefixtures("one_thread")


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
    longer = longer.with_tokens(F.pad(cameras.patch_centers, (0, 0, 0, new)), F.pad(cameras.points, (0, 0, 0, new)))
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


@pytest.mark.parametrize("name", COMBINATIONS)
@torch.no_grad()
def test_beams_are_scored_with_their_own_cameras(name: str) -> None:
    model, example = setting(name)
    found = model.generate(
        **prompt(example),
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=NEW,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = found.sequences_scores.view(2, BEAMS)
    assert found.sequences.shape == (2 * BEAMS, example.input_ids.shape[1] + NEW)
    stock = []
    for beam in range(BEAMS):
        sequences = found.sequences.view(2, BEAMS, -1)[:, beam]
        new = sequences[:, -NEW:, None]
        ours, theirs = (
            log_probabilities(model, example, sequences, off).gather(-1, new).sum((1, 2)) for off in (False, True)
        )
        torch.testing.assert_close(ours, scores[:, beam], rtol=0, atol=1e-4)
        stock.append((theirs - scores[:, beam]).abs().max())
    assert max(stock) > 1e-3  # the control


def test_encodings_that_are_not_repeated_would_be_of_another_batch() -> None:
    """What transformers does with objects it doesn't know: nothing."""
    model, example = setting("PRoPE, ChannelRange")
    encoded = example.encoded()
    _, kwargs = model._expand_inputs_for_generation(3, input_ids=example.input_ids, camera_encoding=encoded)
    assert kwargs["camera_encoding"].num_tokens == encoded.num_tokens
    assert len(kwargs["camera_encoding"].index) == 6 and len(encoded.index) == 2
    stock = super(CameraQwen25VL, model)._expand_inputs_for_generation
    assert stock(3, input_ids=example.input_ids, camera_encoding=encoded)[1]["camera_encoding"] is encoded


def test_without_a_cache_it_is_an_error() -> None:
    model, example = setting("PRoPE, ChannelRange")
    with pytest.raises(ValueError, match="use_cache=True"):
        model.generate(**prompt(example), use_cache=False, max_new_tokens=2)
