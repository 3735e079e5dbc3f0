"""Measures the symmetries of an encoding in the reference attention: how far outputs move where they should not.

Each function takes a new encoding and the layout of a head, and returns the largest change of an output. It is below
`EXACT` where the symmetry holds, and above `BROKEN` where it doesn't; between them nothing was seen. What equals the
stock decoder does so to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import HeadLayout
from zoo.encodings.reference_attention import HEAD, KV_HEADS, Decoder, Sequence, random_cameras, random_sequence

EXACT, BROKEN = 1e-10, 1e-6
STOCK = ("identity_stock", "text_stock")  # bit for bit, or not: a change by rounding breaks them
UNIT = 3.0
Measure = Callable[[CameraEncoding, HeadLayout], float]


def in_data_world(encoding: CameraEncoding) -> CameraEncoding:
    """Remove the reference views."""
    for module in encoding.modules():
        if isinstance(module, CameraEncoding) and module.reference is not None:
            module.reference = None
    return encoding


def sequence_for(encoding: CameraEncoding, text: int, kv_heads: int = KV_HEADS) -> Sequence:
    """Return random tokens, at one time where the encoding takes the channels of time."""
    sequence = random_sequence(text, kv_heads=kv_heads)
    return sequence.constant_time() if encoding.requires_constant_time else sequence


def difference(
    encoding: CameraEncoding,
    text: int,
    change: Callable[[Tensor], Tensor],
    head: HeadLayout = HEAD,
    unit: float = 1.0,
    kv_heads: int = KV_HEADS,
) -> float:
    """Measure the change of the outputs when the poses, and the unit of the scene, change."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, text, kv_heads), Decoder(encoding, kv_heads, head)
    moved = decoder.attend(sequence, change(poses), K, unit)
    return float((decoder.attend(sequence, poses, K) - moved).abs().max())


def other_world(poses: Tensor) -> Tensor:
    """Return the poses in another world frame."""
    return poses @ random_cameras(2, 1, seed=5)[0]


def other_unit(poses: Tensor) -> Tensor:
    """Return the poses in another unit of length."""
    poses = poses.clone()
    poses[..., :3, 3] *= UNIT
    return poses


def world_views(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure another world, without text and without a reference view."""
    return difference(in_data_world(encoding), 0, other_world, head)


def world_text(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure another world, with text and without a reference view."""
    return difference(in_data_world(encoding), 3, other_world, head)


def canonical(encoding: CameraEncoding, head: HeadLayout = HEAD, kv_heads: int = KV_HEADS) -> float:
    """Measure another world, as the encoding is configured."""
    return difference(encoding, 3, other_world, head, kv_heads=kv_heads)


def scale(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure another unit of length."""
    return difference(encoding, 3, other_unit, head, UNIT)


def intrinsics(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure another focal length."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding, head=head)
    wrong = K * torch.tensor([1.2, 1.0, 1.0])[:, None]
    return float((decoder.attend(sequence, poses, K) - decoder.attend(sequence, poses, wrong)).abs().max())


def shift(encoding: CameraEncoding, head: HeadLayout = HEAD, kv_heads: int = KV_HEADS) -> float:
    """Measure a shift of all positions."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3, kv_heads), Decoder(encoding, kv_heads, head)
    return float((decoder.attend(sequence, poses, K) - decoder.attend(sequence.shifted(7), poses, K)).abs().max())


def per_token(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure one camera per token, that of its view."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding, head=head)
    per_image = decoder.attend(sequence, poses, K)
    visual = sequence.index >= 0
    of_token = sequence.index[visual].view(2, -1)
    each = torch.arange(2)[:, None], of_token
    sequence.index = torch.where(visual, visual.cumsum(1) - 1, -1)
    return float((decoder.attend(sequence, poses[each], K[each]) - per_image).abs().max())


def identity_stock(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure identity cameras against the stock attention."""
    sequence = sequence_for(encoding, 3)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    return from_stock(encoding, sequence, eye, eye[..., :3, :3], head)


def text_stock(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure tokens without cameras against the stock attention."""
    sequence = sequence_for(encoding, 3)
    sequence.index = torch.full_like(sequence.index, -1)
    return from_stock(encoding, sequence, *random_cameras(2), head)


def from_stock(
    encoding: CameraEncoding, sequence: Sequence, poses: Tensor, K: Tensor, head: HeadLayout = HEAD
) -> float:
    """Measure the difference from the stock attention; 0 only if every bit is equal."""
    outputs, stock = (Decoder(each, head=head).attend(sequence, poses, K) for each in (encoding, None))
    return 0.0 if torch.equal(outputs, stock) else max(float((outputs - stock).abs().max()), 1e-300)


def effect(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the cameras against the stock attention: an encoding without effect has every symmetry."""
    return from_stock(encoding, sequence_for(encoding, 3), *random_cameras(2), head)


def other_cameras(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the cameras in another order."""
    return difference(encoding, 3, lambda poses: poses.flip(1), head)


# in the order of the fields of `Symmetries`
PROPERTIES: list[Measure] = [
    *(world_views, world_text, canonical, scale, shift, intrinsics, per_token, identity_stock, text_stock)
]


def holds(name: str, change: float) -> bool | None:
    """Return whether a symmetry holds by the measured change; None where neither was seen."""
    if name in STOCK:
        return change == 0
    if change == 0 if name == "intrinsics" else change < EXACT:
        return True
    return False if change > BROKEN else None
