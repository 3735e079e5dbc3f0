"""A decoder of Gated DeltaNet and full attention: adapters, cameras, objectives, packed questions, shared prefixes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from docs.symmetries import COMBINATIONS
from tests.zoo import asking, showing
from tests.zoo.delta_net_kernels import install_kernels, wrap_functions
from tests.zoo.sequences.test_packed_training import difference, learned
from tests.zoo.showing import SAMPLES
from tests.zoo.test_qwen3_5 import tiny
from tests.zoo.test_qwen3_vl import cameras
from zoo import (
    GTA,
    CameraPrediction,
    Compose,
    DeltaNetLayers,
    DepthPrediction,
    InputError,
    LoRA,
    PRoPE,
    RayRoPE,
    SpatialVLM,
    UnrotatedChannels,
    VideoQATask,
)
from zoo.backbones.qwen3_5 import Qwen35Backbone
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.encodings import EncodedCameras
from zoo.encodings.testing import random_cameras, sequence_for
from zoo.generation import CachedPrefix, greedy, join_states, read_states


def test_lora_reaches_layers_of_both_kinds() -> None:
    model = SpatialVLM(tiny(), lora=LoRA(r=2))
    adapted = {name.split(".lora_A")[0].split("layers.")[1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert {"0.linear_attn.in_proj_qkv", "0.linear_attn.out_proj", "3.self_attn.q_proj", "3.mlp.up_proj"} <= adapted
    with torch.no_grad():
        given = showing.batch(model, [SAMPLES["a video"]])
        before = showing.logits(model, given)[0]
        layer = model.backbone.decoder.layers[0].linear_attn.in_proj_qkv
        layer.lora_B["default"].weight.fill_(0.1)
        assert (showing.logits(model, given)[0] - before).abs().max() > 1e-4


VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"backbone": tiny(dtype="bfloat16", seed=0)},
    "lora": {"lora": LoRA(r=4)},
    "checkpointing": {"gradient_checkpointing": True},
}


def both_kinds() -> Compose:
    values, rotations = PRoPE(UnrotatedChannels(), "vo"), GTA(UnrotatedChannels(), "qk", "rotation")
    return Compose([PRoPE(UnrotatedChannels()), DeltaNetLayers(Compose([values, rotations]))])


@pytest.mark.parametrize("variant", VARIANTS)
def test_identity_cameras_change_nothing_and_others_do(variant: str) -> None:
    """In layers of both kinds; where the hooks are in a layer is measured in test_hybrid_layers.py."""
    options = {"backbone": tiny(seed=0), "learning_rates": asking.RATES} | VARIANTS[variant]
    torch.manual_seed(0)
    stock, task = VideoQATask(**options), VideoQATask(camera_encoding=both_kinds(), **options)
    given = showing.batch(task.model, [SAMPLES["a video"], SAMPLES["two videos"]], side="right")
    real = given["attention_mask"].bool()
    reference = stock.model.logits(**given)[real]
    assert torch.equal(task.model.logits(**given, cameras=cameras(None))[real], reference)
    moved = task.model.logits(**given, cameras=cameras(1))[real]
    assert (moved - reference).abs().max() > 1e-3
    if variant == "float32":
        left = showing.batch(task.model, [SAMPLES["a video"], SAMPLES["two videos"]], side="left")
        found = task.model.logits(**left, cameras=cameras(1))[left["attention_mask"].bool()]
        torch.testing.assert_close(found, moved, rtol=0, atol=1e-5)
    moved.float().square().mean().backward()
    trained = {name.split("layers.")[-1] for name, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("0.linear_attn" in name for name in trained) and any("3.self_attn" in name for name in trained)
    if variant == "checkpointing":
        whole = VideoQATask(camera_encoding=both_kinds(), **options | {"gradient_checkpointing": False})
        whole.model.logits(**given, cameras=cameras(1))[real].float().square().mean().backward()
        for mine, other in zip(task.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_objectives_learn_from_layers_of_both_kinds() -> None:
    task = asking.build("plain", family="Qwen3.5", objectives=[CameraPrediction(layer=0), DepthPrediction(layer=1)])
    batch = asking.batch(task, asking.scene("a", family="Qwen3.5"), training=True)
    losses = task.train().model(batch)
    losses["loss"].backward()
    assert {"LanguageModeling", "CameraPrediction", "DepthPrediction"} <= losses.keys()
    heads = [p for name, p in task.named_parameters() if ".objectives." in f".{name}" and p.requires_grad]
    assert heads and all(p.grad is not None and p.grad.isfinite().all() for p in heads)


def test_scenes_never_share_a_sequence_and_questions_only_by_their_places() -> None:
    """A Gated DeltaNet layer ignores a mask without an error: the control measures what it would do."""
    task = asking.build("plain", family="Qwen3.5").train()
    scene = asking.scene("a", family="Qwen3.5")
    assert not task.model.backbone.supports_custom_mask
    with pytest.raises(InputError, match=r"pack_scenes: Gated DeltaNet layers \(Qwen3.5\)"):
        asking.batch(task, scene, training=True, pack_scenes=True)
    packed, apart = asking.batch(task, scene, training=True), asking.one_per_row(task, scene)
    with torch.no_grad():
        right, expected = (task.loss(each) for each in (packed, apart))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Qwen35Backbone, "training_mask", QwenVLBackbone.training_mask)
            wrong = task.loss(packed)
    assert abs(right - expected) < 1e-5 < 1e-3 < abs(wrong - expected)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_questions_go_on_from_copies_of_the_states_of_a_scene(at_once: int) -> None:
    """One row per question that is answered at a time; the prefix is read once, and its states stay."""
    task = asking.build("plain", family="Qwen3.5")
    asked = asking.batch(task, asking.scene("a", family="Qwen3.5"), at_once=at_once)
    expected, rows, made, firsts = asking.one_by_one(task, asked), [], [], []
    original = CachedPrefix._decode_batch

    def spy(self: CachedPrefix, *args: Any) -> Any:
        before = [state.clone() for layer in self.states for state in layer]
        seen: list[Tensor] = []
        self.choose = lambda logits, *_: seen.append(logits) or greedy(logits)  # type: ignore[func-returns-value]
        found = original(self, *args)
        firsts.append(seen[0])
        assert all(torch.equal(a, b) for a, b in zip((s for layer in self.states for s in layer), before, strict=True))
        rows.append(len(read_states(self.cache)[0][1]))
        made.append(self)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPrefix, "_decode_batch", spy)
        assert [reply.ids for reply in asking.replies(task, asked)] == expected
        assert max(rows) <= at_once and len({id(each) for each in made}) == 1
        with torch.no_grad():
            logits = asking.logits_of(task, asking.inputs_of(task, asked))
        ends = torch.tensor([len(ids) - 1 for ids in asking.prompts_of(asked)])
        torch.testing.assert_close(torch.cat(firsts), logits[torch.arange(len(ends)), ends], rtol=0, atol=1e-5)
        reversed_states = lambda cache, states: join_states(cache, states[::-1])  # noqa: E731 - the control
        patch.setattr("zoo.generation.join_states", reversed_states)
        assert ([reply.ids for reply in asking.replies(task, asked)] == expected) == (at_once == 1)


def test_keys_of_each_view_are_turned_in_full_attention_alone() -> None:
    """RayRoPE's, on the channels without RoPE, beside matrices in Gated DeltaNet."""
    rays = RayRoPE(channels=UnrotatedChannels())
    encoding = Compose([rays, DeltaNetLayers(PRoPE(UnrotatedChannels(), "vo"))])
    task = VideoQATask(camera_encoding=encoding, backbone=tiny(layers=8, seed=0), learning_rates=asking.RATES)
    assert rays.layers is not None and list(rays.layers) == ["3", "7"] and rays.symmetries.shift
    given = showing.batch(task.model, [SAMPLES["a video"], SAMPLES["two videos"]])
    found, other = (task.model.logits(**given, cameras=cameras(seed)) for seed in (1, 2))
    assert (found - other)[:, -1].abs().max() > 1e-3  # of the next word
    found[:, -1].square().mean().backward()
    grads = [each.weight.grad for each in rays.layers.children()]  # type: ignore[union-attr]
    assert grads[0].any() and not grads[1].any()  # of the last layer, whose views no word sees
    with pytest.raises(InputError, match="RayRoPE changes what views read .* reaches no answer"):
        SpatialVLM(tiny(), camera_encoding=RayRoPE(channels=UnrotatedChannels()))


def test_a_prompt_with_cameras_is_read_in_one_call() -> None:
    """Behind a filled cache the state and the convolution's inputs would be those of the second part alone."""
    model = SpatialVLM(tiny(), camera_encoding=DeltaNetLayers(PRoPE(UnrotatedChannels(), "vo")))
    given = showing.batch(model, [SAMPLES["a video"], SAMPLES["two videos"]])
    layer = model.backbone.decoder.layers[0].linear_attn
    cache = DynamicCache(config=model.backbone.vlm.config.text_config)
    calls: list[dict[str, Any]] = []
    layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    model.logits(**given, cameras=cameras(1))
    prompt = calls[0] | {"cache": cache}
    layer(**prompt)
    with pytest.raises(ValueError, match="reads a prompt in one call"):
        layer(**prompt)
    layer(**prompt | {"camera_encoding": None})  # the control


@torch.no_grad()
def test_steps_of_an_answer_are_stock_whatever_encoding_acts_in_full_attention() -> None:
    """Bit for bit; some encodings have hooks in these steps, which no Gated DeltaNet layer has."""
    backbone = SpatialVLM(tiny(layers=8, key_value_heads=2)).backbone
    layer, head = backbone.decoder.layers[0].linear_attn, backbone.head_layout
    generator, (poses, K) = torch.Generator().manual_seed(0), random_cameras(2)
    prompt, token = (torch.randn(2, length, backbone.hidden_size, generator=generator) for length in (9, 1))

    def step(encoded: EncodedCameras | None) -> Tensor:
        cache = DynamicCache(config=backbone.vlm.config.text_config)
        layer(prompt, cache=cache)
        found: Tensor = layer(token, cache=cache, camera_encoding=encoded)
        return found

    stock, with_hooks = step(None), set()
    for name, make in COMBINATIONS.items():
        encoding = make()
        backbone.install_encoding(encoding)
        later = encoding.encode(sequence_for(encoding, 3).cameras(poses, K), head).for_decode_step()
        assert torch.equal(step(later), stock), name
        with_hooks |= {name} if later is not None else set()
    assert with_hooks == {name for name in COMBINATIONS if "PoseALiBi" in name or "ExtraChannels" in name}


def test_optional_kernels_run_in_place_of_the_functions_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In stock layers, in those with cameras and with several questions, and in the steps of answers."""
    task = asking.build("Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))", family="Qwen3.5").train()
    scene = asking.scene("a", asking.QUESTIONS[:3], family="Qwen3.5")
    asked, training = asking.batch(task, scene), asking.batch(task, scene, training=True)
    before, answers = learned(task, task.loss(training)), asking.replies(task, asked)
    kernels = install_kernels(monkeypatch)
    assert difference(learned(task, task.loss(training)), before) < 1e-4
    assert asking.replies(task, asked) == answers
    assert kernels.calls.keys() == {"chunk", "recurrent", "convolution", "update"}


def test_a_missing_kernel_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """By transformers, in stock layers and in those with cameras."""
    for package in ("fla", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    wrap_functions(monkeypatch)
    transformers_logging.warning_once.cache_clear()
    model = SpatialVLM(tiny(), camera_encoding=DeltaNetLayers(PRoPE(UnrotatedChannels(), "vo")))
    given = showing.batch(model, [SAMPLES["a video"], SAMPLES["two videos"]])
    for _ in range(2):
        for more in ({}, {"cameras": cameras(1)}):
            model.logits(**given, **more)
    for kernel in ("chunk_gated_delta_rule", "causal_conv1d_fn"):
        assert sum(f"`{kernel}` is falling back" in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    install_kernels(monkeypatch)
    transformers_logging.warning_once.cache_clear()
    model.logits(**given)
    assert not any("falling back" in record.getMessage() for record in caplog.records)  # the control
