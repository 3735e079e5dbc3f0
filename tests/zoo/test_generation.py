"""Generation with cameras: each step equals a forward pass of the whole, greedy and by beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.zoo.test_attention import NAMES, PAD, SHAPE, VIDEO, Example, example_for, install, tiny_model
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding
from zoo.generation import CameraQwen25VL, greedy

NEW = 5
BEAMS = [
    "PRoPE, TSection",
    "GTA, TSection, learned scale",
    "PRoPE, Append",
    "PRoPE, Alternate x and y",
    "PoseALiBi",
    "OnHeads(PRoPE, Append)",
    "Stack(VORoPE, GTA TSection qk)",
]


def setting(name: str) -> tuple[CameraQwen25VL, CameraEncoding, Example]:
    model = tiny_model()
    model.__class__ = CameraQwen25VL
    encoding = install(model, name)
    return model, encoding, example_for(encoding)


def prompt(model: CameraQwen25VL, example: Example) -> dict[str, Any]:
    """As `SpatialVLM` gives it: token ids, and the visual tokens apart."""
    visual = example.input_ids == VIDEO
    tokens = tuple(row[seen] for row, seen in zip(example.embeddings, visual, strict=True))
    return {
        "input_ids": example.input_ids,
        "attention_mask": example.attention_mask,
        "position_ids": example.position_ids,
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=tokens)},
    }


@torch.no_grad()
def log_probabilities(
    model: CameraQwen25VL, example: Example, cameras: Cameras | None, encoding: CameraEncoding, sequences: Tensor
) -> Tensor:
    """Of each new token's successors, by one forward pass of the whole without a cache: (B, new, V)."""
    length, new = example.input_ids.shape[1], sequences.shape[1] - example.input_ids.shape[1]
    embeddings = model.get_input_embeddings()(sequences)
    visual = F.pad(example.input_ids == VIDEO, (0, new))
    embeddings[visual] = F.pad(example.embeddings, (0, 0, 0, new))[visual]
    after = example.deltas + length + torch.arange(new)
    encoded = None
    if cameras is not None:
        assert cameras.index is not None and cameras.places is not None and cameras.points is not None
        longer = cameras.with_index(F.pad(cameras.index, (0, new), value=-1))
        longer = longer.with_tokens(F.pad(cameras.places, (0, 0, 0, new)), F.pad(cameras.points, (0, 0, 0, new)))
        encoded = encoding.encode(longer, **SHAPE)
    output = model(
        inputs_embeds=embeddings,
        attention_mask=F.pad(example.attention_mask, (0, new), value=1),
        position_ids=torch.cat((example.position_ids, after.expand(3, -1, -1)), -1),
        camera_encoding=encoded,
    )
    return output.logits[:, length - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", NAMES)
def test_each_step_equals_a_forward_of_the_whole(name: str) -> None:
    """A left-padded, ragged batch."""
    model, encoding, example = setting(name)
    answers = greedy(model, {**prompt(model, example), "camera_encoding": example.encoded(encoding)}, NEW)
    sequences = torch.cat((example.input_ids, torch.tensor(answers)), 1)
    expected = log_probabilities(model, example, example.cameras(), encoding, sequences)
    taken = expected.gather(-1, torch.tensor(answers)[..., None])[..., 0]
    torch.testing.assert_close(taken, expected.amax(-1), rtol=0, atol=1e-5)
    stock = log_probabilities(model, example, None, encoding, sequences)  # the control
    assert (stock - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", BEAMS)
@torch.no_grad()
def test_beams_are_scored_with_their_own_cameras(name: str) -> None:
    model, encoding, example = setting(name)
    found = model.generate(
        **prompt(model, example),
        camera_encoding=example.encoded(encoding),
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=NEW,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = found.sequences_scores.view(2, 3)
    assert found.sequences.shape == (6, example.input_ids.shape[1] + NEW)
    wrong = []
    for beam in range(3):
        sequences = found.sequences.view(2, 3, -1)[:, beam]
        new = sequences[:, -NEW:]
        sums = [
            log_probabilities(model, example, cameras, encoding, sequences).gather(-1, new[..., None]).sum((1, 2))
            for cameras in (example.cameras(), example.cameras()[[1, 0]].with_index(example.index))
        ]
        torch.testing.assert_close(sums[0], scores[:, beam], rtol=0, atol=1e-4)
        wrong.append((sums[1] - scores[:, beam]).abs().max())
    assert max(wrong) > 1e-3  # the control: the other sample's cameras


def test_encodings_that_are_not_repeated_would_be_of_another_batch() -> None:
    """What transformers does with objects it doesn't know: nothing."""
    model, encoding, example = setting("PRoPE, Fraction")
    encoded = example.encoded(encoding)
    _, kwargs = model._expand_inputs_for_generation(3, input_ids=example.input_ids, camera_encoding=encoded)
    assert kwargs["camera_encoding"].num_tokens == encoded.num_tokens
    assert len(kwargs["camera_encoding"].index) == 6 and len(encoded.index) == 2
    stock = super(CameraQwen25VL, model)._expand_inputs_for_generation
    assert stock(3, input_ids=example.input_ids, camera_encoding=encoded)[1]["camera_encoding"] is encoded


def test_without_a_cache_it_is_an_error() -> None:
    model, encoding, example = setting("PRoPE, Fraction")
    with pytest.raises(ValueError, match="use_cache=True"):
        model.generate(
            **prompt(model, example), camera_encoding=example.encoded(encoding), use_cache=False, max_new_tokens=2
        )
