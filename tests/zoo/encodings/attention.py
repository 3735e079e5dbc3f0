"""The decoder's attention in float64, between its projections, with stock RoPE: where properties are measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, EncodedCameras
from zoo.poses import invert_se3
from zoo.time_index import TemporalPatches

HEAD_DIM, MROPE_SECTION, HEADS, KV_HEADS, LAYERS, WIDTH = 32, [4, 4, 8], 4, 2, 2, 24
VIEWS, TOKENS = 3, 4  # tokens a view
SHAPE = {"head_dim": HEAD_DIM, "mrope_section": MROPE_SECTION}


def random_cameras(batch: int, views: int = VIEWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Poses anywhere, and intrinsics that are neither the identity nor square nor centerd."""
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
    """Two samples: text, three views of four tokens, text; or views alone.

    Attributes:
        qkv: (B, L, heads, D) each, float64, and what a layer projects them from.
        index: the camera of each token, -1 for none.
        ids: (3, B, L), position ids.
        patch_centers: where in its view each token is.
        points: what it shows, in the frame of the first view and in meters.
    """

    qkv: list[Tensor]
    hidden_states: Tensor
    index: Tensor
    ids: Tensor
    patch_centers: Tensor
    points: Tensor

    def constant_time(self) -> Sequence:
        """All views at one time."""
        ids = self.ids.clone()
        ids[0, self.index >= 0] = ids[0, self.index >= 0].min()
        return replace(self, ids=ids)

    def shifted(self, by: int) -> Sequence:
        return replace(self, ids=self.ids + by)

    def cameras(self, poses: Tensor, K: Tensor, unit: float = 1.0) -> Cameras:
        """With all that an encoding may go by: a chosen reference view, a depth, and token centers and points."""
        camera_to_world = invert_se3(poses[:, :1])
        turned = (camera_to_world[..., :3, :3] @ (unit * self.points)[..., None])[..., 0]
        chosen = torch.full((len(poses),), poses.shape[1] - 1)
        depth = torch.full((len(poses),), 2.5 * unit, dtype=torch.float64)
        cameras = Cameras(poses, K, self.index, reference=chosen, median_depth=depth)
        return cameras.with_tokens(self.patch_centers, turned + camera_to_world[..., :3, 3])


def random_sequence(text: int, seed: int = 1, kv_heads: int = KV_HEADS) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    length = VIEWS * TOKENS + 2 * text
    qkv = [
        torch.randn(2, length, heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, kv_heads, kv_heads)
    ]
    hidden_states = torch.randn(2, length, HEADS * HEAD_DIM, generator=generator, dtype=torch.float64)
    views = torch.arange(VIEWS).repeat_interleave(TOKENS)
    index = F.pad(views, (text, text), value=-1).expand(2, -1)
    place = torch.arange(TOKENS).repeat(VIEWS)
    grid = torch.stack((2 * views, place // 2, place % 2)) + text
    after = int(grid.max()) + 1 + torch.arange(text)
    ids = torch.cat((torch.arange(text).expand(3, -1), grid, after.expand(3, -1)), 1)
    ids = ids[:, None].expand(-1, 2, -1)
    patch_centers = (ids[[2, 1]] - text).permute(1, 2, 0) / 2 - 0.25
    points = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    return Sequence(qkv, hidden_states, index, ids, patch_centers, points)


class Decoder:
    """What an encoding is attached to, and its attention in float64.

    Args:
        encoding: what it learns gets random numbers, as if it had been trained; None is stock.
        kv_heads: of keys and values, for a sequence that has as many.
    """

    def __init__(self, encoding: CameraEncoding | None, kv_heads: int = KV_HEADS) -> None:
        config = Qwen2_5_VLTextConfig(
            vocab_size=8,
            hidden_size=HEADS * HEAD_DIM,
            intermediate_size=8,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": MROPE_SECTION},
            pad_token_id=None,
        )
        model = Qwen2_5_VLTextModel(config)
        self.encoding = encoding
        if encoding is not None:
            encoding.bind_to_decoder(model, range(LAYERS))
            generator = torch.Generator().manual_seed(3)
            for parameter in encoding.double().parameters():
                nn.init.normal_(parameter, std=0.2, generator=generator)
        self.inv_freq = model.rotary_emb.inv_freq.double()

    def rope(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.arange(3).repeat_interleave(torch.tensor(MROPE_SECTION))
        angle = ids[row].permute(1, 2, 0) * self.inv_freq
        return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    @torch.no_grad()
    def attend(self, sequence: Sequence, poses: Tensor, K: Tensor, unit: float = 1.0) -> Tensor:
        """The outputs of every layer, each given the same q, k and v: (layers, B, L, heads, D).

        Args:
            unit: of the poses, in 1/meters: the scene is as large in it as they are.
        """
        encoded, ids = None, sequence.ids
        if self.encoding is not None:
            cameras = sequence.cameras(poses, K, unit)
            encoded = self.encoding.encode(cameras, **SHAPE, dtype=torch.float64)
            if self.encoding.time_index is not None:
                ids = in_place_of_time(self.encoding, sequence, cameras)
        return torch.stack([attend(encoded, layer, sequence, self.rope(ids)) for layer in range(LAYERS)])


def in_place_of_time(encoding: CameraEncoding, sequence: Sequence, cameras: Cameras) -> Tensor:
    """The position ids with the encoding's own time index."""
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
    assert encoding.time_index is not None
    times = encoding.time_index(steps).view(batch, views)
    visual = sequence.index >= 0
    ids = sequence.ids.clone()
    start = ids[0].masked_fill(~visual, 10**6).amin(1, keepdim=True)
    ids[0] = torch.where(visual, start + times.gather(1, sequence.index.clamp(min=0)), ids[0])
    return ids


def attend(encoded: EncodedCameras | None, layer: int, sequence: Sequence, rope: tuple[Tensor, Tensor]) -> Tensor:
    """What `CameraAttention` does between its projections, with `EncodedCameras()` for stock."""
    q, k, v = sequence.qkv
    acting = None if encoded is None else encoded.at_layer(layer, sequence.hidden_states, rope)
    acting = acting or EncodedCameras()
    q, k = acting.before_rope(q, k)
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *rope)
    q, k = acting.after_rope(q.transpose(1, 2), k.transpose(1, 2))
    heads = [x.transpose(1, 2) for x in (q, k, acting.transform_values(v))]
    output = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True, scale=HEAD_DIM**-0.5)
    return acting.transform_outputs(output.transpose(1, 2))
