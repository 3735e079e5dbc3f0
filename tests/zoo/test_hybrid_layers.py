"""One layer of each kind of Qwen3.5 with cameras, against a slow reference from the stock layer's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.test_qwen3_5 import tiny
from zoo import GTA, Cameras, Compose, DeltaNetLayers, PRoPE, SpatialVLM, UnrotatedChannels
from zoo.encodings.testing import random_cameras

INDEX = torch.tensor([-1, 0, 0, 0, -1, 1, 1, 2, 2, -1]).expand(2, -1)  # the camera of each token
CLOSE, APART = 1e-4, 1e-2


def built() -> tuple[SpatialVLM, Tensor]:
    """A model whose projections are as large as trained ones, and hidden states (B, L, W).

    The gates of an untrained model are almost constant, and a constant gate commutes with the cameras' matrices.
    """
    world: dict[str, Any] = {"placement": UnrotatedChannels(), "reference": None}
    linear = [PRoPE(apply_to="vo", **world), GTA(apply_to="qk", pose_component="rotation", **world)]
    encoding = Compose([PRoPE(**world), DeltaNetLayers(Compose(linear))])
    model = SpatialVLM(tiny(seed=0), camera_encoding=encoding)
    generator = torch.Generator().manual_seed(0)
    for part in model.backbone.decoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=generator)
        elif "Norm" in type(part).__name__:
            nn.init.normal_(part.weight, std=0.5, generator=generator)
    width = model.backbone.hidden_size
    return model, torch.randn(*INDEX.shape, width, generator=generator)


def token_matrices() -> tuple[Cameras, Tensor, Tensor]:
    """Cameras, and of each token lift(K) V and the rotation of V (B, L, 4, 4), the identity for text."""
    poses, K = (each.float() for each in random_cameras(2))
    eye, lifted, rotation = torch.eye(4), torch.eye(4).repeat(2, 3, 1, 1), poses.clone()
    lifted[..., :3, :3], rotation[..., :3, 3] = K, 0
    rows, is_text = torch.arange(2)[:, None], (INDEX < 0)[..., None, None]
    P, R = (torch.where(is_text, eye, each[rows, INDEX.clamp(min=0)]) for each in (lifted @ poses, rotation))
    return Cameras(poses, K, INDEX), P, R


def turn(x: Tensor, matrices: Tensor, start: int = 0) -> Tensor:
    """Multiply the channels of x (B, L, heads, D) from `start` on in groups of four, as column vectors."""
    groups = x[..., start:].unflatten(-1, (-1, 4))
    return torch.cat((x[..., :start], torch.einsum("blij,blhgj->blhgi", matrices, groups).flatten(3)), -1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def full_attention(layer: Any, x: Tensor, ids: Tensor, P: Tensor, is_gated_first: bool = False) -> Tensor:
    """Causal attention with PRoPE on the channels without RoPE, and the gate before or after its last matrix."""
    width = layer.head_dim
    q, gate = layer.q_proj(x).unflatten(-1, (-1, 2 * width)).split(width, -1)
    k, v = (project(x).unflatten(-1, (-1, width)) for project in (layer.k_proj, layer.v_proj))
    q, k = rms(q, 1 + layer.q_norm.weight), rms(k, 1 + layer.k_norm.weight)
    # 1. RoPE: the axes take turns, and t has what the sections leave.
    rope = layer.config.rope_parameters
    count = int(width * rope["partial_rotary_factor"]) // 2
    axes = [n % 3 if n < 3 * rope["mrope_section"][n % 3] else 0 for n in range(count)]
    q, k = q.clone(), k.clone()
    for n, axis in enumerate(axes):
        angle = (ids[axis] * rope["rope_theta"] ** (-n / count))[..., None]
        for each in (q, k):
            a, b = each[..., n].clone(), each[..., n + count].clone()
            each[..., n], each[..., n + count] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    # 2. Cameras and attention.
    inverse, free = torch.linalg.inv(P), 2 * count
    q, k, v = turn(q, P.mT, free), turn(k, inverse, free), turn(v, inverse, free)
    output = torch.zeros_like(q)
    for head in range(q.shape[2]):
        group = head * k.shape[2] // q.shape[2]
        for t in range(q.shape[1]):
            logits = (k[:, : t + 1, group] * q[:, t, None, head]).sum(-1) * width**-0.5
            output[:, t, head] = (logits.softmax(-1)[..., None] * v[:, : t + 1, group]).sum(1)
    # 3. The inverse and the gate.
    gate = gate.sigmoid()
    output = turn(output * gate, P, free) if is_gated_first else turn(output, P, free) * gate
    return layer.o_proj(output.flatten(2))


def gated_delta_net(layer: Any, x: Tensor, P: Tensor, R: Tensor, is_normed_first: bool = False) -> Tensor:
    """The delta rule with rotations on q and k, P on values and outputs, and the gated norm before or after P."""
    # 1. The convolution looks back at its kernel's length.
    mixed, kernel = layer.in_proj_qkv(x), layer.conv1d.weight[:, 0]
    before = F.pad(mixed, (0, 0, kernel.shape[1] - 1, 0))
    mixed = F.silu(sum(before[:, n : n + mixed.shape[1]] * kernel[:, n] for n in range(kernel.shape[1])))
    sizes = layer.key_dim, layer.key_dim, layer.value_dim
    q, k, v = (each.unflatten(-1, (-1, layer.head_v_dim)) for each in mixed.split(sizes, -1))
    # 2. Cameras, lengths of one, and the rule token by token.
    q, k, v = turn(q, R.mT), turn(k, torch.linalg.inv(R)), turn(v, torch.linalg.inv(P))
    groups = v.shape[2] // k.shape[2]
    q, k = ((each / each.norm(dim=-1, keepdim=True)).repeat_interleave(groups, 2) for each in (q, k))
    beta = layer.in_proj_b(x).sigmoid()
    kept = (-layer.A_log.exp() * F.softplus(layer.in_proj_a(x) + layer.dt_bias)).exp()
    output = torch.zeros_like(v)
    for b in range(v.shape[0]):
        for head in range(v.shape[2]):
            state = torch.zeros(k.shape[3], v.shape[3])
            for t in range(v.shape[1]):
                state = kept[b, t, head] * state
                change = beta[b, t, head] * (v[b, t, head] - k[b, t, head] @ state)
                state = state + torch.outer(k[b, t, head], change)
                output[b, t, head] = q[b, t, head] @ state * k.shape[3] ** -0.5
    # 3. The inverse and the gated norm.
    gate = F.silu(layer.in_proj_z(x).view_as(output))
    normed = lambda o: rms(o, layer.norm.weight) * gate  # noqa: E731
    output = turn(normed(output), P) if is_normed_first else normed(turn(output, P))
    return layer.out_proj(output.flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_attention_turns_outputs_back_before_the_gate(attention: str) -> None:
    model, x = built()
    decoder, (cameras, P, _) = model.backbone.decoder, token_matrices()
    decoder.config._attn_implementation = attention
    ids = torch.stack((torch.arange(10), torch.arange(10) % 4, torch.arange(10) % 3))[:, None].expand(-1, 2, -1)
    mask = torch.full((10, 10), -torch.inf).triu(1) if attention == "eager" else None
    layer = decoder.layers[3].self_attn
    encoded = model.camera_encoding.encode(cameras, model.backbone.head_layout)
    found = layer(x, camera_encoding=encoded, position_embeddings=decoder.rotary_emb(x, ids), attention_mask=mask)[0]
    torch.testing.assert_close(found, full_attention(layer, x, ids, P), rtol=0, atol=CLOSE)
    assert (found - full_attention(layer, x, ids, P, is_gated_first=True)).abs().max() > APART


@torch.no_grad()
def test_delta_net_turns_outputs_back_before_the_gated_norm() -> None:
    model, x = built()
    cameras, P, R = token_matrices()
    layer = model.backbone.decoder.layers[0].linear_attn
    encoded = model.camera_encoding.encode(cameras, model.backbone.head_layout)
    found = layer(x, camera_encoding=encoded)
    torch.testing.assert_close(found, gated_delta_net(layer, x, P, R), rtol=0, atol=CLOSE)
    assert (found - gated_delta_net(layer, x, P, R, is_normed_first=True)).abs().max() > APART
