"""Every combination of the table in a tiny random decoder: stock cases bit for bit, and never without effect.

Every run takes an encoding of each kind, and the slow tests take all.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from docs.symmetries import COMBINATIONS
from tests.zoo.decoder import (
    HEAD_DIM,
    MOVES,
    NAMES,
    Example,
    case,
    every_logit,
    gradients,
    install,
    logits,
    moved,
    tiny_qwen,
)
from zoo.encodings import CameraEncoding

ROUNDING = 2e-5  # float32, in another order of summation
# those that learn, or whose steps backward are written here
LEARN = (
    "PRoPE, TemporalSection",
    "GTA, TemporalSection, learned scale",
    "PoseALiBi, learned slopes",
    "RayRoPE",
    "URoPE",
)
every = pytest.mark.parametrize("name", NAMES)
learning = pytest.mark.parametrize("name", [case(name in LEARN, name) for name in COMBINATIONS])


@cache
def shared(name: str) -> tuple[Qwen2_5_VLForConditionalGeneration, CameraEncoding]:
    """Share a model with an encoding among the tests that change neither."""
    model = tiny_qwen()
    return model, install(model, name)


@every
@torch.no_grad()
def test_cameras_change_the_logits_and_stock_cases_do_not(name: str) -> None:
    stock_model, (model, encoding) = tiny_qwen(), shared(name)
    assert model.state_dict().keys() == stock_model.state_dict().keys()
    example, symmetries = Example(encoding), encoding.symmetries
    stock = logits(stock_model, example, stock=True)
    assert torch.equal(logits(model, example, stock=True), stock) == symmetries.text_stock
    assert logits(model, example).isfinite().all() and moved(model, example) > MOVES
    text = Example(encoding, text=True)
    assert torch.equal(logits(model, text), logits(stock_model, text, stock=True)) == symmetries.text_stock
    if symmetries.identity_stock:
        assert torch.equal(logits(model, example.identities()), stock)
    if symmetries.text_stock and encoding.time_index is None:  # a pose index without poses gives all views one time
        assert torch.equal(logits(model, example.without_cameras()), stock)


@every
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_text_before_the_first_view_is_stock(name: str, side: str) -> None:
    """Logits are equal bit for bit, unless appended channels or fewer queries per call change the order of sums."""
    model, encoding = shared(name)
    example = Example(encoding, side)
    given, stock = every_logit(model, example), every_logit(model, example, stock=True)
    real, after = example.attention_mask.bool(), (example.index >= 0).cumsum(1) > 0
    before = real & ~after
    if example.encoded().for_decode_step() is None and not encoding.attends_per_view:
        assert torch.equal(given[before], stock[before])
    torch.testing.assert_close(given[before], stock[before], rtol=0, atol=ROUNDING)
    assert (given - stock)[real & after].abs().amax() > MOVES


@every
@torch.no_grad()
def test_backends_agree_and_get_equal_widths_and_stock_arguments(name: str) -> None:
    """Flash attention and others get the stock softmax scale, and no unknown argument."""
    results, calls = [], list[tuple[set[int], dict[str, Any]]]()

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.append(({x.shape[-1] for x in (q, k, v)}, kwargs))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    for implementation in ("sdpa", "eager"):
        model = tiny_qwen(implementation)
        example = Example(install(model, name))
        results.append(logits(model, example))
    torch.testing.assert_close(*results, rtol=0, atol=ROUNDING)
    assert (results[1] - logits(model, example, stock=True)).abs().max() > MOVES
    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model.model.language_model.config._attn_implementation = "spy"
    inputs = {key: value for key, value in example.inputs(model).items() if key != "attention_mask"}
    model(**inputs)
    model(**inputs, camera_encoding=example.encoded())
    assert len(calls) > 6 if example.encoding.attends_per_view else len(calls) == 6
    for (width,), kwargs in calls:
        assert width % 8 == 0 and kwargs.keys() == calls[0][1].keys() and kwargs["scaling"] == HEAD_DIM**-0.5


@every
@torch.no_grad()
def test_samples_of_a_batch_are_independent_on_either_side_of_the_padding(name: str) -> None:
    """The other sample is longer and has more cameras."""
    model, encoding = shared(name)
    example, right = Example(encoding), Example(encoding, "right")
    count = int(example.attention_mask[1].sum())
    both = every_logit(model, example)[1]
    cameras = example.cameras()[1:]
    assert cameras.index is not None
    alone = cameras.with_index(cameras.index[:, -count:])
    per_token = [getattr(cameras, name) for name in ("patch_centers", "points", "time", "patch_sizes")]
    alone = alone.with_tokens(*(x[:, -count:] for x in per_token))
    positions = example.positions()[0][:, 1:, -count:]
    embeddings = example.embeddings[1:, -count:]
    output = model(inputs_embeds=embeddings, position_ids=positions, camera_encoding=example.encoded(alone))
    torch.testing.assert_close(output.logits[0], both[-count:], rtol=0, atol=ROUNDING)
    right.embeddings[1, :count] = example.embeddings[1, -count:]
    torch.testing.assert_close(every_logit(model, right)[1, :count], both[-count:], rtol=0, atol=ROUNDING)


@every
@torch.no_grad()
def test_static_single_missing_and_far_cameras(name: str) -> None:
    """A world origin 100 m away changes only encodings without a reference view."""
    model, encoding = shared(name)
    static, single, missing, none = (Example(encoding) for _ in range(4))
    static.poses[:] = static.poses[:, :1].clone()
    single.poses, single.K = single.poses[:, :1], single.K[:, :1]
    single.index = single.index.clamp(max=0)
    missing.index = torch.where(missing.index == 1, -1, missing.index)
    missing.index[1] = -1
    for example in (static, single, missing, none.without_cameras(), Example(encoding).identities()):
        assert logits(model, example).isfinite().all()
    example = Example(encoding)
    cameras, inputs, real = example.cameras(), example.inputs(model), example.attention_mask.bool()
    offset = torch.eye(4, dtype=torch.float64)
    offset[:3, 3] = torch.tensor([100.0, -70.0, 40.0])
    assert cameras.points is not None
    far = cameras.with_poses(cameras.world_to_camera @ offset).with_tokens(points=cameras.points - offset[:3, 3])
    a, b = (model(**inputs, camera_encoding=example.encoded(each)).logits[real] for each in (cameras, far))
    difference = (a - b).abs().max()
    assert difference < 1e-5 if encoding.symmetries.canonical else difference > MOVES


@every
@torch.no_grad()
def test_decoding_with_cache_equals_full_forward(name: str) -> None:
    """Keys and values are cached transformed, so decoded text needs no cameras."""
    model, encoding = shared(name)
    example = Example(encoding)
    whole, stock = every_logit(model, example), every_logit(model, example, stock=True)
    inputs, split = example.inputs(model), example.input_ids.shape[1] - 2  # the rest is text in both samples
    assert (example.index[:, split:] == -1).all()
    example.index, example.patch_centers = example.index[:, :split], example.patch_centers[:, :split]
    encoded = example.encoded()
    cache, steps = DynamicCache(config=model.config.text_config), []
    for start, stop in ((0, split), (split, split + 1), (split + 1, split + 2)):
        steps.append(
            model(
                inputs_embeds=inputs["inputs_embeds"][:, start:stop],
                attention_mask=inputs["attention_mask"][:, :stop],
                position_ids=inputs["position_ids"][..., start:stop],
                cache=cache,
                camera_encoding=encoded if not start else encoded.for_decode_step(),
            ).logits
        )
    real = example.attention_mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real], rtol=0, atol=ROUNDING)
    assert (whole - stock)[:, split:].abs().max() > MOVES


# ---- training ---------------------------------------------------------------------------------------------


@learning
def test_gradient_checkpointing_gives_equal_gradients(name: str) -> None:
    """The gradients stay equal if a forward pass with other cameras runs before the backward pass."""
    model = tiny_qwen().train()
    encoding = install(model, name)
    example, other = Example(encoding), Example(encoding, seed=1)
    plain = gradients(model, example)
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    assert {f"encoding.{each}" for each, _ in encoding.named_parameters()} <= plain.keys()
    for each, gradient in plain.items():
        torch.testing.assert_close(checkpointed[each], gradient, rtol=0, atol=1e-7)
    without = gradients(model, example.without_cameras())  # control: the gradients depend on the cameras
    name_of_v = "model.language_model.layers.0.self_attn.v_proj.weight"
    assert (without[name_of_v] - plain[name_of_v]).abs().max() > MOVES


@learning
def test_lora(name: str) -> None:
    model = tiny_qwen()
    example = Example(install(model, name))
    expected = logits(model, example).detach()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    given = logits(adapted, example).detach()
    torch.testing.assert_close(given, expected)
    assert (given - logits(adapted, example, stock=True)).detach().abs().max() > MOVES
    found = gradients(adapted.train(), example)
    assert found and all("lora" in each or each.startswith("encoding.") for each in found)


def rounding_error(model: nn.Module, examples: Sequence[Example], stock: bool = False) -> float:
    """Return the root mean square of the error that bfloat16 makes."""
    rounded = deepcopy(model).bfloat16()
    errors = [logits(rounded, each, stock).float() - logits(model, each, stock) for each in examples]
    return float(torch.stack([error.square().mean() for error in errors]).mean().sqrt())


@cache
def stock_rounding_error() -> float:
    return rounding_error(tiny_qwen(), [Example(seed=seed) for seed in range(4)], stock=True)


@every
@torch.no_grad()
def test_bfloat16_error_is_close_to_stock(name: str) -> None:
    """Over four samples of cameras the error is at most 1.2 times that of the stock decoder, 1.3 for compositions."""
    model, encoding = shared(name)
    bound = 1.3 if name.startswith("Compose(") else 1.2  # two encodings may round the same channels one after another
    assert rounding_error(model, [Example(encoding, seed=seed) for seed in range(4)]) < bound * stock_rounding_error()
