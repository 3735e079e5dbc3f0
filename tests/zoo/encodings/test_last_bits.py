"""What is equal to the last bit: cameras under autocast, and tokens without a camera beside others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from docs.symmetries import COMBINATIONS
from tests.zoo.combinations import NAMES
from tests.zoo.encodings.test_properties import IN_LAYOUTS
from zoo.encodings import EncodedCameras
from zoo.encodings.alibi import DistanceChannels
from zoo.encodings.per_view import PerViewAttention
from zoo.encodings.testing import HEAD_DIM, LAYERS, LAYOUTS, Decoder, random_cameras, random_sequence


def through(acting: EncodedCameras, q: Tensor, k: Tensor, v: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """Return q, k and v (B, L, heads, D) of each call of the attention, and outputs, if those were its queries."""
    calls: list[list[Tensor]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, None]:
        calls.append([x.transpose(1, 2) for x in (q, k, v)])
        return F.pad(q[..., :HEAD_DIM], (0, v.shape[-1] - HEAD_DIM)).transpose(1, 2), None

    inputs = (*acting.after_rope(*acting.before_rope(q, k)), acting.transform_values(v))
    output, _ = acting.attend(attention, *(x.transpose(1, 2) for x in inputs), None)
    return calls, acting.transform_outputs(output)


@torch.no_grad()
@pytest.mark.parametrize("layout", IN_LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_cameras(name: str, layout: str) -> None:
    """Matrices, biases and angles remain float32 in bf16-mixed; projected extra channels may be rounded."""
    encoding, sequence, head = COMBINATIONS[name](), random_sequence(2), LAYOUTS[layout]
    decoder = Decoder(encoding, head=head)
    encoding.float()
    q, k, v = (x.float() for x in sequence.qkv)
    poses, K = random_cameras(2)
    far = poses.clone()
    far[..., :3, 3] *= 100  # rounding such a pose to bfloat16 gives errors up to 0.4
    results = []
    for on, given in ((False, far), (True, far), (False, far.bfloat16().double())):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            encoded = encoding.encode(sequence.cameras(given, K), head)
            acting = encoded.at_layer(0, sequence.hidden_states.float(), decoder.rope(sequence.ids)) or EncodedCameras()
            calls, output = through(acting, q, k, v)
        results.append([x[..., :HEAD_DIM] for x in (*sum(calls, []), output)])
        if isinstance(acting, DistanceChannels):  # the bias itself
            results[-1].append(calls[0][0][..., HEAD_DIM:])
    for exact, under in zip(*results[:2], strict=True):
        assert under.dtype == torch.float32 and torch.equal(under, exact)
    if encoding.attends_per_view:  # the control: with rounded cameras something reaches the attention otherwise
        assert not all(map(torch.equal, results[0], results[2]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", IN_LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_without_camera_change_no_bit(name: str, dtype: torch.dtype, layout: str) -> None:
    """Text and views without a camera, beside views with one; appended channels are zero."""
    encoding, sequence, head = COMBINATIONS[name](), random_sequence(3), LAYOUTS[layout]
    decoder = Decoder(encoding, head=head)
    sequence.index = index = torch.where(sequence.index == 1, -1, sequence.index)
    encoded = encoding.encode(sequence.cameras(*random_cameras(2)), head)
    q, k, v = (x.to(dtype) for x in sequence.qkv)
    for layer in range(LAYERS):
        acting = encoded.at_layer(layer, sequence.hidden_states.to(dtype), decoder.rope(sequence.ids))
        acting = acting or EncodedCameras()
        calls, output = through(acting, q, k, v)
        found = [(index, q, output)]
        if isinstance(acting, PerViewAttention):
            for call, reached in zip(acting.calls, calls, strict=True):
                selected = zip((call.of_queries, call.of_keys, call.of_keys), (q, k, v), reached, strict=True)
                found += [(of(index), of(given), out) for of, given, out in selected]
        else:
            found += [(index, given, out) for given, out in zip((q, k, v), calls[0], strict=True)]
        for cameras, given, out in found:
            without, appended = out[cameras < 0].split((HEAD_DIM, out.shape[-1] - HEAD_DIM), -1)
            assert out.dtype == dtype
            assert torch.equal(without, given[cameras < 0]) and not appended.any()
        if encoding.attends_per_view:  # the control: tokens with a camera are changed
            assert not all(torch.equal(given, out) for _, given, out in found)
