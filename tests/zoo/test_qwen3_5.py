"""Qwen3.5: Gated DeltaNet with cameras by slow references, several questions, optional kernels, prompts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.integrations import use_kernel_func_from_hub_with_fallback
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.golden.weights_qwen35 import init35_
from tests.tiny import QUESTIONS, one_per_row, replies, tiny_batch, tiny_model, tiny_scene
from tests.zoo import showing
from tests.zoo.released import GOLDEN, loss_of
from tests.zoo.showing import SAMPLES
from tests.zoo.two_videos import cameras
from zoo import (
    GTA,
    Cameras,
    Compose,
    DeltaNetLayers,
    InputError,
    PRoPE,
    SpatialVLM,
    TinyQwen35,
    UnrotatedChannels,
)
from zoo.backbones import qwen3_5
from zoo.backbones.qwen3_5 import Qwen35Backbone, Qwen35Preprocessor, tiny_preprocessor, tiny_processor
from zoo.backbones.qwen_vl import QwenVLBackbone, QwenVLPreprocessor
from zoo.checkpoints import load_qwen3_5, official_tensors
from zoo.encodings.testing import random_cameras
from zoo.sequences.layout import ExtraTokens

SIZES = dict(layers=4, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


def tiny(**options: Any) -> TinyQwen35:
    """Three layers of Gated DeltaNet and one of full attention."""
    return TinyQwen35(**SIZES | options)


def test_the_golden_case_of_transformers_5_3() -> None:
    """Its torch kernels loop where those of 5.24 solve a triangular system."""
    path = GOLDEN / "spatial_stack/qwen3_5/geometry_off"
    meta, t = json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))
    weights = {name: init35_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    model = load_qwen3_5(meta["config"]["qwen"], weights)
    patches = (t["pixel_values_u8"].float() / 255 - 0.5) / 0.5
    given = {
        "pixel_values": patches[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1),
        "image_grid_thw": t["image_grid_thw"],
    }
    logits = model.logits(t["input_ids"], t["attention_mask"], **given)
    torch.testing.assert_close(logits, t["out_logits"], rtol=0, atol=2e-4)
    assert abs(loss_of(logits, t["labels"]).item() - meta["loss"]) < 1e-4
    answers = model.generate_ids(t["input_ids"], t["attention_mask"], **given, max_new_tokens=8)
    assert answers == t["out_generated"].tolist()


# ---- a layer of each kind against a slow reference -------------------------------------------------------------

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


# ---- the decoder -----------------------------------------------------------------------------------------------


def test_scenes_never_share_a_sequence_and_questions_only_by_their_places() -> None:
    """A Gated DeltaNet layer ignores a mask without an error: the control measures what it would do."""
    task = tiny_model("plain", family="Qwen3.5").train()
    scene = tiny_scene("a", family="Qwen3.5")
    assert not task.model.backbone.supports_custom_mask
    with pytest.raises(InputError, match=r"pack_scenes: Gated DeltaNet layers \(Qwen3.5\)"):
        tiny_batch(task, scene, training=True, pack_scenes=True)
    packed, apart = tiny_batch(task, scene, training=True), one_per_row(task, scene)
    with torch.no_grad():
        right, expected = (task.loss(each) for each in (packed, apart))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Qwen35Backbone, "training_mask", QwenVLBackbone.training_mask)
            wrong = task.loss(packed)
    assert abs(right - expected) < 1e-5 < 1e-3 < abs(wrong - expected)


def test_a_prompt_with_cameras_is_read_in_one_call() -> None:
    """Behind a filled cache the state and the convolution's inputs would be those of the second part alone."""
    model = SpatialVLM(tiny(), camera_encoding=DeltaNetLayers(PRoPE(UnrotatedChannels(), "vo")))
    given = showing.batch(model, [SAMPLES["a video"], SAMPLES["two videos"]])
    layer = model.backbone.decoder.layers[0].linear_attn
    cache = DynamicCache(config=model.backbone.vlm.config.text_config)
    calls: list[dict[str, Any]] = []
    layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    model.logits(**given, cameras=cameras(1, 4))
    prompt = calls[0] | {"cache": cache}
    layer(**prompt)
    with pytest.raises(ValueError, match="reads a prompt in one call"):
        layer(**prompt)
    layer(**prompt | {"camera_encoding": None})  # the control


# ---- optional kernels ------------------------------------------------------------------------------------------

REPLACED = {  # functions of transformers: the kernel in place of each, and its package
    "torch_chunk_gated_delta_rule": ("chunk_gated_delta_rule", "fla"),
    "torch_recurrent_gated_delta_rule": ("fused_recurrent_gated_delta_rule", "fla"),
    "causal_conv1d_fn": ("causal_conv1d_fn", "causal_conv1d"),
    "causal_conv1d_update": ("causal_conv1d_update", "causal_conv1d"),
}


class Kernels:
    """Stand-ins for flash-linear-attention 0.4 and causal-conv1d 1.5, which need a CUDA machine; calls are counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def chunk_gated_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None,
        initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        self.calls["chunk"] += 1
        assert use_qk_l2norm_in_kernel and scale is None and cu_seqlens is None and g.dtype == torch.float32
        q, k = (F.normalize(x, dim=-1).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
        state = v.new_zeros(len(v), v.shape[2], k.shape[3], v.shape[3]) if initial_state is None else initial_state
        outputs = []
        for t in range(v.shape[1]):
            state = state * g[:, t, :, None, None].exp()
            read = (state * k[:, t, :, :, None]).sum(-2)
            state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - read))[:, :, None]
            outputs.append((state * q[:, t, :, :, None]).sum(-2) * q.shape[-1] ** -0.5)
        return torch.stack(outputs, 1), state if output_final_state else None

    def fused_recurrent_gated_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, gk: Tensor | None = None,
        gv: Tensor | None = None, beta: Tensor | None = None, scale: float | None = None,
        initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        self.calls["recurrent"] += 1
        assert g is not None and beta is not None and gk is gv is None
        options = scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
        return self.chunk_gated_delta_rule(q, k, v, g, beta, *options)

    def causal_conv1d_fn(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        self.calls["convolution"] += 1
        assert activation == "silu"
        padded = F.pad(x, (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))

    def causal_conv1d_update(
        self, x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        self.calls["update"] += 1
        conv_state.copy_(torch.cat((conv_state, x), -1)[..., -conv_state.shape[-1] :])
        return F.silu((conv_state * weight).sum(-1, keepdim=True))


def test_optional_kernels_run_in_place_of_the_functions_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In stock layers, in those with cameras and with several questions, and in the steps of answers."""
    task = tiny_model("Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))", family="Qwen3.5").train()
    scene = tiny_scene("a", QUESTIONS[:3], family="Qwen3.5")
    asked, training = tiny_batch(task, scene), tiny_batch(task, scene, training=True)
    before, answers = task.loss(training), replies(task, asked)
    kernels = Kernels()
    fla = SimpleNamespace(ops=SimpleNamespace(gated_delta_rule=kernels))
    monkeypatch.setitem(sys.modules, "fla", fla)  # as where the packages are installed
    monkeypatch.setitem(sys.modules, "causal_conv1d", kernels)
    for name, kernel in REPLACED.items():  # transformers looks for them again, as at its import
        found = use_kernel_func_from_hub_with_fallback(*kernel)(unwrap(getattr(modeling_qwen3_5, name)))
        for module in (modeling_qwen3_5, qwen3_5):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, found)
    torch.testing.assert_close(task.loss(training), before, rtol=1e-4, atol=1e-5)
    assert replies(task, asked) == answers
    assert kernels.calls.keys() == {"chunk", "recurrent", "convolution", "update"}


# ---- prompts ---------------------------------------------------------------------------------------------------


def test_prompts_and_training_texts_have_an_empty_block_of_thoughts() -> None:
    """As SpatialStack trains, whose text is golden; an answer ends with the turn."""
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is left of the sofa? "}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A lamp."},
        {"role": "user", "content": "And right of it?"},
        {"role": "assistant", "content": "B. table"},
    ]
    ours, image = tiny_preprocessor(), "<|vision_start|><|image_pad|><|vision_end|>"
    texts = ours.texts(messages)
    assert texts == [
        f"<|im_start|>user\n{image * 2}What is left of the sofa?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
        "A lamp.<|im_end|>\n",
        "<|im_start|>user\nAnd right of it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "B. table<|im_end|>\n",
    ]
    messages[1] = {"role": "assistant", "content": "\n<think>\nThe lamp?\n</think>\n\nA lamp. \n"}
    assert ours.texts(messages) == [texts[0], "<think>\nThe lamp?\n</think>\n\nA lamp.<|im_end|>\n", *texts[2:]]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="writes earlier turns of a chat"):
        patch.setattr(Qwen35Preprocessor, "history", QwenVLPreprocessor.history)
        ours.texts(messages)
    prompt = ours.tokenize(texts[:1], [(1, 2, 4), (1, 2, 2)], ExtraTokens.NONE).input_ids.tolist()
    assert prompt.count(tiny_processor().image_token_id) == 3
    with pytest.raises(InputError, match="^Qwen3.5 writes the time"):
        ours.tokenize([texts[0].replace("image", "video")], [(1, 2, 4), (1, 2, 2)], ExtraTokens.NONE)


def test_answers_stop_at_the_end_of_a_text_and_of_a_turn() -> None:
    loader = tiny()
    loader.config.text_config.eos_token_id = 0  # as released: the end of a text
    assert loader.load().stop_tokens == [0, tiny_processor().tokenizer.eos_token_id]
    model = SpatialVLM(loader)
    config, tensors = loader.config.to_dict(), official_tensors(model)
    assert load_qwen3_5(config, tensors).backbone.stop_tokens == [0]  # the control: of another vocabulary
