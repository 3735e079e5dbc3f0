"""A toolbox for authors of encodings: measure in float64 which symmetries an encoding keeps exactly.

Nothing here runs in a model. `check-encoding` prints these numbers for any class. The tests of the zoo compare them
with the declared symmetries.

1. Random cameras and tokens: `random_cameras`, `random_sequence`.
2. The reference attention: `Decoder` uses plain tensor operations, with or without an encoding's hooks. `LAYOUTS` are
   small versions of the heads of Qwen2.5-VL, Qwen3-VL and Qwen3.5.
3. A function per symmetry, in `PROPERTIES`, returns the largest change of an output where nothing should change.
   `holds` judges this number. `effect` and `other_cameras` are controls: an encoding without effect has every symmetry.

Example:
    >>> from zoo import PRoPE
    >>> from zoo.encodings.testing import EXACT, effect, world_text, world_views
    >>> world_views(PRoPE()) < EXACT  # another world frame changes nothing between views
    True
    >>> world_text(PRoPE()) < EXACT  # but text sees the world
    False
    >>> effect(PRoPE()) > 0.1  # the control: cameras change the outputs
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings.base import CameraEncoding, DecoderLayout, EncodedCameras, HeadLayout
from zoo.sequences.time_index import TemporalPatches, TimeIndex

HEAD_DIM, MROPE_SECTION, HEADS, KV_HEADS, LAYERS = 32, [4, 4, 8], 4, 2, 2
VIEWS, TOKENS = 3, 4  # tokens per view
EXACT = 1e-10  # a symmetry holds if the change is below
NOT_EXACT = 1e-6  # a symmetry is broken if the change is above; in between it is undecided
BROKEN = 1e-3  # the change that the zoo's tests expect of a broken symmetry
HYBRID_HEAD = HeadLayout(HEAD_DIM, (0, 1, 2) * 4)  # RoPE rotates 24 of 32 channels
# heads of Qwen2.5-VL, Qwen3-VL and Qwen3.5. The decoder for Qwen3.5 has a Gated DeltaNet layer after the two others.
LAYOUTS = {
    "axes in a row": HeadLayout.in_row(HEAD_DIM, MROPE_SECTION),
    "axes in turns": HeadLayout(HEAD_DIM, (*[0, 1, 2] * 4, *[0] * 4)),
    "part of the channels": HYBRID_HEAD,
}
HEAD = LAYOUTS["axes in a row"]
ONE_AXIS = HeadLayout(HEAD_DIM, (0,) * (HEAD_DIM // 2))  # a head of a decoder with positions 0, 1, 2, ..., as a LLaVA's


# ---- Random cameras and tokens ---------------------------------------------------------------------------------------


def random_cameras(batch: int, views: int = VIEWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random poses, and intrinsics that are neither the identity, nor square, nor centered."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(batch, views, 3, 4, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(random[..., :3])
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    poses[..., :3, :3] = Q * torch.linalg.det(Q)[..., None, None]
    poses[..., :3, 3] = random[..., 3]
    K = torch.eye(3, dtype=torch.float64).repeat(batch, views, 1, 1)
    K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2] = 0.8, 1.1, 0.05, -0.02
    return poses, K


@dataclass
class Sequence:
    """Samples of several views, with or without text around them.

    Attributes:
        qkv: q, k and v (B, L, heads, D), float64.
        hidden_states: Input of the layers' projections (B, L, W).
        index: The camera of each token (B, L), -1 for none.
        ids: Position ids (3, B, L).
        patch_centers: Center of each token in its view (B, L, 2).
        points: 3D point of each token (B, L, 3), in the frame of the first view and in meters.
    """

    qkv: list[Tensor]
    hidden_states: Tensor
    index: Tensor
    ids: Tensor
    patch_centers: Tensor
    points: Tensor

    def constant_time(self) -> Sequence:
        """Give all views one time position."""
        ids = self.ids.clone()
        ids[0, self.index >= 0] = ids[0, self.index >= 0].min()
        return replace(self, ids=ids)

    def in_order(self) -> Sequence:
        """Number all tokens from the position of the first one, on every axis."""
        count = torch.arange(self.ids.shape[-1])
        return replace(self, ids=self.ids[..., :1] + count)

    def shifted(self, by: int) -> Sequence:
        """Shift all positions."""
        return replace(self, ids=self.ids + by)

    def cameras(self, poses: Tensor, K: Tensor, unit: float = 1.0) -> Cameras:
        """Return cameras with every tensor that an encoding may read."""
        camera_to_world = invert_se3(poses[:, :1])
        rotated = (camera_to_world[..., :3, :3] @ (unit * self.points)[..., None])[..., 0]
        reference = torch.full((len(poses),), poses.shape[1] - 1)
        depth = torch.full((len(poses),), 2.5 * unit, dtype=torch.float64)
        cameras = Cameras(poses, K, self.index).with_reference(reference).with_median_depth(depth)
        sizes = torch.full_like(self.patch_centers, 0.5)
        return cameras.with_tokens(self.patch_centers, rotated + camera_to_world[..., :3, 3], self.ids[0], sizes)


def random_sequence(
    text: int,
    seed: int = 1,
    kv_heads: int = KV_HEADS,
    *,
    batch: int = 2,
    views: int = VIEWS,
    tokens: int = TOKENS,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
) -> Sequence:
    """Return random tokens with `text` tokens before and after the views. The tokens of a view form a square."""
    generator = torch.Generator().manual_seed(seed)
    length, side = views * tokens + 2 * text, math.isqrt(tokens)
    qkv = [
        torch.randn(batch, length, count, head_dim, generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads, kv_heads)
    ]
    hidden_states = torch.randn(batch, length, heads * head_dim, generator=generator, dtype=torch.float64)
    index = torch.arange(views).repeat_interleave(tokens)
    patch = torch.arange(tokens).repeat(views)
    grid = torch.stack((2 * index, patch // side, patch % side)) + text
    index = F.pad(index, (text, text), value=-1).expand(batch, -1)
    after = int(grid.max()) + 1 + torch.arange(text)
    ids = torch.cat((torch.arange(text).expand(3, -1), grid, after.expand(3, -1)), 1)
    ids = ids[:, None].expand(-1, batch, -1)
    patch_centers = ((ids[[2, 1]] - text).permute(1, 2, 0) + 0.5) / side - 0.5
    points = torch.randn(batch, length, 3, generator=generator, dtype=torch.float64)
    return Sequence(qkv, hidden_states, index, ids, patch_centers, points)


def qkv_and_index(text: int) -> tuple[list[Tensor], Tensor]:
    """Return q, k and v, and the camera of each token."""
    sequence = random_sequence(text)
    return sequence.qkv, sequence.index


# ---- The reference attention: a decoder of two or three layers -------------------------------------------------------


def hybrid_layout(
    hidden_size: int = HEADS * HEAD_DIM, num_heads: int = HEADS, num_key_value_heads: int = KV_HEADS
) -> DecoderLayout:
    """Return the layout of a hybrid decoder with two layers of full attention and one of Gated DeltaNet."""
    count = len(HYBRID_HEAD.axes)
    full = DecoderLayout(
        hidden_size,
        num_layers=LAYERS + 1,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head=HYBRID_HEAD,
        rope_frequencies=(1e4 ** -(torch.arange(count, dtype=torch.float64) / count),),
        kinds=("full_attention", "full_attention", "linear_attention"),
    )
    return replace(full, linear=replace(full, kind="linear_attention", head=HeadLayout(HYBRID_HEAD.dim, ())))


class Decoder:
    """The attention of a two-layer decoder in float64, with an encoding bound to it.

    With the head of a hybrid decoder, a layer of Gated DeltaNet follows, which gets the same inputs.

    Args:
        encoding: The encoding. Its parameters are replaced by random numbers, as if it had been trained. None is the
            original attention.
        kv_heads: Number of k and v heads, as in the sequence.
        head: The axes of the frequencies of a head.
    """

    def __init__(self, encoding: CameraEncoding | None, kv_heads: int = KV_HEADS, head: HeadLayout = HEAD) -> None:
        count = len(head.axes)
        frequencies = 1e4 ** -(torch.arange(count, dtype=torch.float64) / count)
        self.encoding, self.head, self.is_hybrid = encoding, head, head is HYBRID_HEAD
        if encoding is not None:
            layout = DecoderLayout(HEADS * HEAD_DIM, LAYERS, HEADS, kv_heads, head, (frequencies,))
            layout = hybrid_layout(HEADS * HEAD_DIM, HEADS, kv_heads) if self.is_hybrid else layout
            (frequencies,) = layout.rope_frequencies
            encoding.bind_to_decoder(layout, layout.layers)
            generator = torch.Generator().manual_seed(3)
            for parameter in encoding.double().parameters():
                nn.init.normal_(parameter, std=0.2, generator=generator)
        self.inv_freq = frequencies

    def rope(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cosine and sine of position ids."""
        return mrope(ids, self.inv_freq, self.head)

    @torch.no_grad()
    def attend(self, sequence: Sequence, poses: Tensor, K: Tensor, unit: float = 1.0) -> Tensor:
        """Compute the output of every layer for the same q, k and v: (layers, B, L, heads, D).

        Args:
            sequence: The tokens.
            poses: World-to-camera.
            K: Normalized intrinsics.
            unit: Units of the poses per meter, for depth and points.
        """
        sequence = sequence.in_order() if self.head.has_one_axis else sequence
        encoded, ids = None, sequence.ids
        if self.encoding is not None:
            cameras = sequence.cameras(poses, K, unit)
            encoded = self.encoding.encode(cameras, self.head, torch.float64)
            if self.encoding.time_index is not None:
                ids = with_time_index(self.encoding.time_index, sequence, cameras)
        outputs = [attend(encoded, layer, sequence, self.rope(ids)) for layer in range(LAYERS)]
        return torch.stack([*outputs, *([delta_net(encoded, LAYERS, sequence)] if self.is_hybrid else [])])


def with_time_index(time_index: TimeIndex, sequence: Sequence, cameras: Cameras) -> Tensor:
    """Replace the time of the visual tokens in the position ids."""
    batch, views = cameras.world_to_camera.shape[:2]
    video, step = torch.arange(batch).repeat_interleave(views), torch.arange(views).repeat(batch)
    steps = TemporalPatches(
        video=video,
        step=step,
        seconds=torch.ones(batch * views),
        tokens_per_second=2,
        world_to_camera=cameras.world_to_camera.flatten(0, 1),
        has_camera=torch.ones(batch * views, dtype=torch.bool),
    )
    times = time_index(steps).view(batch, views)
    visual = sequence.index >= 0
    ids = sequence.ids.clone()
    start = ids[0].masked_fill(~visual, 10**6).amin(1, keepdim=True)
    ids[0] = torch.where(visual, start + times.gather(1, sequence.index.clamp(min=0)), ids[0])
    return ids


def mrope(ids: Tensor, frequencies: Tensor, head: HeadLayout = HEAD) -> tuple[Tensor, Tensor]:
    """Compute mRoPE's cosine and sine (B, L, D) from position ids (3, B, L)."""
    axis = torch.tensor(head.axes)
    angle = ids[axis].permute(1, 2, 0) * frequencies
    return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (c, c + F) of x (B, L, heads, D)."""
    cos, sin = (each[:, :, None] for each in rope)
    rotated, other = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = rotated.chunk(2, -1)
    return torch.cat((rotated * cos + torch.cat((-b, a), -1) * sin, other), -1)


def attend(encoded: EncodedCameras | None, layer: int, sequence: Sequence, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Compute causal attention with the hooks of one layer. None is the original attention."""
    q, k, v = sequence.qkv
    acting = None if encoded is None else encoded.at_layer(layer, sequence.hidden_states, rope)
    acting = acting or EncodedCameras()
    q, k = acting.before_rope(q, k)
    q, k = acting.after_rope(apply_rope(q, rope), apply_rope(k, rope))
    attention = partial(_attention, scale=v.shape[-1] ** -0.5)  # independent of the channels that an encoding appends
    q, k, v = (x.transpose(1, 2) for x in (q, k, acting.transform_values(v)))
    return acting.transform_outputs(acting.attend(attention, q, k, v, None)[0])


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> tuple[Tensor, None]:
    output = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True, scale=scale)
    return output.transpose(1, 2), None


def delta_net(encoded: EncodedCameras | None, layer: int, sequence: Sequence) -> Tensor:
    """Compute Gated DeltaNet with the hooks of one layer. None is the original layer.

    Its queries and keys are the attention's keys and values, and its values are the attention's queries.
    """
    v, q, k = sequence.qkv
    beta, decay = v.mean(-1).sigmoid(), -F.softplus(v[..., 0]) / 8
    acting = None if encoded is None else encoded.at_linear_layer(layer, sequence.hidden_states)
    acting = acting or EncodedCameras()
    q, k = acting.after_rope(*acting.before_rope(q, k))
    return acting.transform_outputs(delta_rule(q, k, acting.transform_values(v), beta, decay))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """Compute the gated delta rule token by token, with q, k (B, L, G, D), v and the output (B, L, H, D)."""
    group = v.shape[2] // k.shape[2]
    q, k = ((x / (x * x).sum(-1, keepdim=True).sqrt()).repeat_interleave(group, 2) for x in (q, k))
    state, outputs = v.new_zeros(len(v), v.shape[2], v.shape[3], v.shape[3]), []
    for t in range(v.shape[1]):
        state = state * decay[:, t, :, None, None].exp()
        read = (state * k[:, t, :, :, None]).sum(-2)
        state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - read))[:, :, None]
        outputs.append((state * q[:, t, :, :, None]).sum(-2) * v.shape[-1] ** -0.5)
    return torch.stack(outputs, 1)


# ---- Measures: how much outputs change although a symmetry says that they do not -------------------------------------
# Each function takes a new encoding and the layout of a head, and returns the largest change of an output. Equality
# with the original decoder is measured bit for bit.

STOCK = ("identity_stock", "text_stock")  # compared bit for bit: even a change by rounding breaks them
UNIT = 3.0
Measure = Callable[[CameraEncoding, HeadLayout], float]


def in_data_world(encoding: CameraEncoding) -> CameraEncoding:
    """Remove the reference views."""
    for module in encoding.modules():
        if isinstance(module, CameraEncoding) and module.reference is not None:
            module.reference = None
    return encoding


def sequence_for(encoding: CameraEncoding, text: int, kv_heads: int = KV_HEADS) -> Sequence:
    """Return random tokens, all at one time if the encoding requires constant time."""
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
    """Measure the change of the outputs when the poses and the unit of the scene change."""
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
    """Measure the effect of another world frame, without text and without a reference view."""
    return difference(in_data_world(encoding), 0, other_world, head)


def world_text(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of another world frame, with text and without a reference view."""
    return difference(in_data_world(encoding), 3, other_world, head)


def canonical(encoding: CameraEncoding, head: HeadLayout = HEAD, kv_heads: int = KV_HEADS) -> float:
    """Measure the effect of another world frame, with text and the encoding's own reference view."""
    return difference(encoding, 3, other_world, head, kv_heads=kv_heads)


def scale(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of another unit of length."""
    return difference(encoding, 3, other_unit, head, UNIT)


def intrinsics(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of another focal length."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding, head=head)
    wrong = K * torch.tensor([1.2, 1.0, 1.0])[:, None]
    return float((decoder.attend(sequence, poses, K) - decoder.attend(sequence, poses, wrong)).abs().max())


def shift(encoding: CameraEncoding, head: HeadLayout = HEAD, kv_heads: int = KV_HEADS) -> float:
    """Measure the effect of a shift of all positions."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3, kv_heads), Decoder(encoding, kv_heads, head)
    return float((decoder.attend(sequence, poses, K) - decoder.attend(sequence.shifted(7), poses, K)).abs().max())


def per_token(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of giving each token its view's camera as a camera of its own."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding, head=head)
    per_image = decoder.attend(sequence, poses, K)
    visual = sequence.index >= 0
    of_token = sequence.index[visual].view(2, -1)
    each = torch.arange(2)[:, None], of_token
    sequence.index = torch.where(visual, visual.cumsum(1) - 1, -1)
    return float((decoder.attend(sequence, poses[each], K[each]) - per_image).abs().max())


def identity_stock(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the difference between identity cameras and the original attention."""
    sequence = sequence_for(encoding, 3)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    return from_stock(encoding, sequence, eye, eye[..., :3, :3], head)


def text_stock(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the difference between tokens without cameras and the original attention."""
    sequence = sequence_for(encoding, 3)
    sequence.index = torch.full_like(sequence.index, -1)
    return from_stock(encoding, sequence, *random_cameras(2), head)


def from_stock(
    encoding: CameraEncoding, sequence: Sequence, poses: Tensor, K: Tensor, head: HeadLayout = HEAD
) -> float:
    """Measure the difference from the original attention. It is 0 only if every bit is equal."""
    outputs, original = (Decoder(each, head=head).attend(sequence, poses, K) for each in (encoding, None))
    return 0.0 if torch.equal(outputs, original) else max(float((outputs - original).abs().max()), 1e-300)


def effect(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of cameras. This is a control: an encoding without effect has every symmetry."""
    return from_stock(encoding, sequence_for(encoding, 3), *random_cameras(2), head)


def other_cameras(encoding: CameraEncoding, head: HeadLayout = HEAD) -> float:
    """Measure the effect of cameras in another order. This is a control too."""
    return difference(encoding, 3, lambda poses: poses.flip(1), head)


# in the order of the fields of `Symmetries`
PROPERTIES: list[Measure] = [
    *(world_views, world_text, canonical, scale, shift, intrinsics, per_token, identity_stock, text_stock)
]


def holds(name: str, change: float) -> bool | None:
    """Return whether a symmetry holds for the measured change. None if neither can be said."""
    if name in STOCK:
        return change == 0
    if change == 0 if name == "intrinsics" else change < EXACT:
        return True
    return False if change > NOT_EXACT else None
