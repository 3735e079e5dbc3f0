"""The camera seam: it has to be there, takes what belongs to its tokens, and leaves everything else stock.

What each encoding does in it: tests/zoo/encodings/test_in_decoder.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.zoo.decoder import Example, every_logit, gradients, logits, tiny_model
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.decoder import replace_classes
from zoo.backbones.qwen25_vl import Qwen25VLAttention
from zoo.encodings import ExtraChannels, HeadSubset, PRoPE
from zoo.encodings.base import ZeroChannels
from zoo.errors import InputError


@torch.no_grad()
def test_stock_attention_would_be_silently_off() -> None:
    """Why it has to be installed: without it the encoding is swallowed without a word."""
    model, example = tiny_model(), Example()
    ignored = logits(model, example)
    assert torch.equal(ignored, logits(model, example, stock=True))
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    assert not torch.equal(ignored, logits(model, example))


@torch.no_grad()
def test_all_that_follows_a_view_knows_of_the_cameras() -> None:
    model, example = tiny_model(), Example()
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    moved = (every_logit(model, example) - every_logit(model, example, stock=True)).abs().amax(-1)
    seen = (example.index >= 0).cumsum(1) > 0
    assert (moved[example.attention_mask.bool() & seen] > 1e-3).all()


@torch.no_grad()
def test_an_encoding_of_other_tokens_is_an_error() -> None:
    model, example = tiny_model(), Example()
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    inputs = example.inputs(model)
    example.index, example.patch_centers = example.index[:, :-1], example.patch_centers[:, :-1]
    with pytest.raises(ValueError, match="camera encoding is of 18 tokens, not 19"):
        model(**inputs, camera_encoding=example.encoded())


def test_heads_that_flash_attention_refuses_are_an_error() -> None:
    """Where the encoding is installed, or, if the width follows from the cameras, before the attention."""
    backbone = Qwen25VLBackbone(tiny_model(), None)
    backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="heads of 264 channels.*attn_implementation sdpa"):
        backbone.install_encoding(HeadSubset(PRoPE(ExtraChannels(232)), [0]))
    backbone.install_encoding(PRoPE(ExtraChannels(224)))
    hidden, rope = torch.zeros(1, 2, 128), torch.zeros(1, 2, 32)
    with pytest.raises(InputError, match="heads of 264 channels"):
        backbone.decoder.layers[0].self_attn(
            hidden, camera_encoding=ZeroChannels(232), position_embeddings=(rope, rope)
        )


def test_reentrant_checkpointing_too() -> None:
    model, example, other = tiny_model().train(), Example(), Example(seed=1)
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    for each in (example, other):  # a reentrant checkpoint needs an input with a gradient
        each.embeddings.requires_grad_()
    plain = gradients(model, example)
    model.activation_checkpointing_enable({"use_reentrant": True})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-7)


def test_installing_twice_is_installing_once() -> None:
    model = tiny_model()
    for _ in range(2):
        replace_classes(model, Qwen25VLBackbone.hooked_classes)
    layers = model.model.language_model.layers
    assert [type(layer.self_attn) for layer in layers] == [Qwen25VLAttention] * 3
