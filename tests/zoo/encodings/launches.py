"""Kernels that encodings launch in the layers of a decoder, counted on a pretended GPU.

`python -m tests.zoo.encodings.launches` prints a JSON object: for each encoding and head layout, the kernels of a layer
in the forward and in the backward pass, for each arrangement of the same visual tokens. Outputs and gradients are
compared with those of a CPU. In a process of its own, since `tests.pretended_gpu` replaces what torch says of devices.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from docs.symmetries import COMBINATIONS, RELEASED
from tests import pretended_gpu as pretend
from zoo.cameras import Cameras
from zoo.cameras.cameras import camera_runs
from zoo.encodings import EncodedCameras
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.testing import random_cameras

NAMES = (
    "PRoPE, ChannelRange",
    "PRoPE, TemporalSection",
    "PRoPE, ExtraChannels",
    "GTA, TemporalSection, learned scale",
    "CaPE, ChannelRange",
    "RayEncoding, TemporalSection",
    "PoseALiBi",
)
VIEWS, TOKENS, HEADS, LAYERS = 6, 132, 2, 2  # no view is so short that a CPU would gather it
# Text before each view. A video is one run; Qwen3-VL writes text between its views, and so do pictures.
ARRANGEMENTS = {"one run": [0] * VIEWS, "three runs": [0, 1, 0, 5, 0, 0], "a run per view": [3] * VIEWS}


def encode(
    name: str, head: HeadLayout, gaps: list[int], device: str = "cpu"
) -> tuple[EncodedCameras, list[Tensor], list[Tensor]]:
    """Encode random cameras, and draw q, k, v, o, hidden states and RoPE's angles of tokens; add the parameters."""
    views = [torch.tensor([-1] * gap + [view] * TOKENS) for view, gap in enumerate(gaps)]
    index = torch.cat(views)[None]
    length, width = index.shape[1], HEADS * head.dim
    torch.manual_seed(0)
    shapes = [(HEADS, head.dim)] * 4 + [(width,), (head.dim,)]
    drawn = [torch.randn(1, length, *shape, requires_grad=number < 4) for number, shape in enumerate(shapes)]
    encoding, layout = COMBINATIONS[name](), DecoderLayout(width, LAYERS, HEADS, HEADS, head)
    encoding.bind_to_decoder(layout, range(LAYERS))
    poses, K = (x.float() for x in random_cameras(1, VIEWS))
    cameras = Cameras.trusted(poses, K, index, camera_runs(index)).with_tokens(patch_centers=torch.rand(1, length, 2))
    cameras, drawn = cameras.to(device, non_blocking=True), [x.to(device, non_blocking=True) for x in drawn]
    return encoding.to(device).encode(cameras, head), drawn, list(encoding.parameters())


def outputs(encoded: EncodedCameras, drawn: list[Tensor]) -> list[Tensor]:
    """Apply the four hooks in each layer."""
    q, k, v, o, hidden, angles = drawn
    found: list[Tensor] = []
    for layer in range(LAYERS):
        acting = encoded.at_layer(layer, hidden, (angles, angles)) or EncodedCameras()
        values = acting.transform_values(v)
        found += [*acting.after_rope(*acting.before_rope(q, k)), values]
        found.append(acting.transform_outputs(F.pad(o, (0, values.shape[-1] - o.shape[-1]))))
    return found


def launches(name: str, head: HeadLayout, gaps: list[int]) -> list[int]:
    """Count the kernels of a layer in the forward and in the backward pass."""
    encoded, drawn, learned = encode(name, head, gaps)
    found = outputs(encoded, drawn)
    gradients = torch.autograd.grad(sum(x.square().sum() for x in found), [*drawn[:4], *learned])
    expected = [*found, *gradients]
    with pretend.on_pretended_cuda():
        encoded, drawn, learned = encode(name, head, gaps, "cuda:0")
        leaves = [*drawn[:4], *learned]
        [x.retain_grad() for x in leaves]
        forward = pretend.fresh()
        found = outputs(encoded, drawn)
        backward = pretend.fresh()
        pretend._backward(sum(x.square().sum() for x in found))
        pretend.fresh()
    for log in (forward, backward):
        assert not log.faults and not log.syncs, (name, log.faults, log.syncs)
    for given, wanted in zip((*found, *(x.grad for x in leaves)), expected, strict=True):
        assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name
    return [log.kernels // LAYERS for log in (forward, backward)]


if __name__ == "__main__":
    counted = {
        f"{name}, {family}": {each: launches(name, head, gaps) for each, gaps in ARRANGEMENTS.items()}
        for name in NAMES
        for family, (head, _) in RELEASED.items()
        if 2 * len(head.axes) == head.dim  # RoPE on all channels, of which the T section here has its share
    }
    print(json.dumps(counted))
