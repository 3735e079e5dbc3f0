"""Every combination of the table in a tiny random decoder: stock cases bit for bit, and never without effect."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.zoo.combinations import NAMES
from tests.zoo.decoder import (
    HEAD_DIM,
    MOVES,
    WIDTH,
    Example,
    every_logit,
    install,
    logits,
    moved,
    tiny_model,
)
from zoo.encodings import CameraEncoding

ROUNDING = 2e-5  # float32, in another order of summation
pytestmark = pytest.mark.parametrize("name", NAMES)


@cache
def shared(name: str) -> tuple[Qwen2_5_VLForConditionalGeneration, CameraEncoding]:
    """The model with an encoding, for tests that leave both as they are."""
    model = tiny_model()
    return model, install(model, name)


# ---- stock, bit for bit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@torch.no_grad()
def test_cameras_change_the_logits_and_stock_cases_do_not(name: str, dtype: torch.dtype) -> None:
    stock_model, model = tiny_model().to(dtype), tiny_model().to(dtype)
    names = list(model.state_dict())
    encoding = install(model, name)
    assert list(model.state_dict()) == names
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


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_text_before_the_first_view_is_stock(name: str, side: str) -> None:
    """Bit for bit, unless appended channels, or fewer queries in a call, change the order of summation."""
    model, encoding = shared(name)
    example = Example(encoding, side)
    given, stock = every_logit(model, example), every_logit(model, example, stock=True)
    real, after = example.attention_mask.bool(), (example.index >= 0).cumsum(1) > 0
    before = real & ~after
    if example.encoded().for_decode_step() is None and not encoding.attends_per_view:
        assert torch.equal(given[before], stock[before])
    torch.testing.assert_close(given[before], stock[before], rtol=0, atol=ROUNDING)
    assert (given - stock)[real & after].abs().amax() > MOVES


# ---- attention backends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
@torch.no_grad()
def test_backends_agree_with_grouped_query_attention(name: str, kv_heads: int) -> None:
    if kv_heads == 1 and name.startswith("HeadSubset(PRoPE, TemporalSection)"):
        pytest.skip("acts on the second group")
    results = []
    for implementation in ("sdpa", "eager"):
        model = tiny_model(implementation, kv_heads)
        example = Example(install(model, name))
        results.append(logits(model, example))
    torch.testing.assert_close(*results, rtol=0, atol=ROUNDING)
    assert (results[1] - logits(model, example, stock=True)).abs().max() > MOVES


@torch.no_grad()
def test_backends_get_equal_widths_and_stock_arguments(name: str) -> None:
    """Flash attention and others get the stock softmax scale, and no unknown argument."""
    calls: list[tuple[set[int], dict[str, Any]]] = []

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.append(({x.shape[-1] for x in (q, k, v)}, kwargs))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model = tiny_model()
    example = Example(install(model, name))
    model.model.language_model.config._attn_implementation = "spy"
    inputs = {key: value for key, value in example.inputs(model).items() if key != "attention_mask"}
    model(**inputs)
    model(**inputs, camera_encoding=example.encoded())
    assert len(calls) > 6 if example.encoding.attends_per_view else len(calls) == 6
    for widths, kwargs in calls:
        (width,) = widths
        assert width % 8 == 0 and kwargs.keys() == calls[0][1].keys() and kwargs["scaling"] == HEAD_DIM**-0.5


# ---- batches ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_sides_agree(name: str) -> None:
    model, encoding = shared(name)
    left, right = Example(encoding, "left"), Example(encoding, "right")
    count = int(right.attention_mask[1].sum())
    right.embeddings[1, :count] = left.embeddings[1, -count:]
    torch.testing.assert_close(logits(model, left), logits(model, right), rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_samples_of_a_batch_are_independent(name: str) -> None:
    """Another sample is longer and has more cameras."""
    model, encoding = shared(name)
    example = Example(encoding)
    both = every_logit(model, example)[1]
    count = int(example.attention_mask[1].sum())
    cameras = example.cameras()[1:]
    assert cameras.index is not None
    alone = cameras.with_index(cameras.index[:, -count:])
    per_token = [getattr(cameras, name) for name in ("patch_centers", "points", "time", "patch_sizes")]
    alone = alone.with_tokens(*(x[:, -count:] for x in per_token))
    positions = example.positions()[0][:, 1:, -count:]
    embeddings = example.embeddings[1:, -count:]
    output = model(inputs_embeds=embeddings, position_ids=positions, camera_encoding=example.encoded(alone))
    torch.testing.assert_close(output.logits[0], both[-count:], rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_static_single_and_missing_cameras_are_finite(name: str) -> None:
    model, encoding = shared(name)
    static, single, missing, none = (Example(encoding) for _ in range(4))
    static.poses[:] = static.poses[:, :1].clone()
    single.poses, single.K = single.poses[:, :1], single.K[:, :1]
    single.index = single.index.clamp(max=0)
    missing.index = torch.where(missing.index == 1, -1, missing.index)
    missing.index[1] = -1
    for example in (static, single, missing, none.without_cameras(), Example(encoding).identities()):
        assert logits(model, example).isfinite().all()


@torch.no_grad()
def test_offset_of_100_m_cancels_with_a_reference_view(name: str) -> None:
    """The control: encodings in the world of the data change."""
    model, encoding = shared(name)
    example = Example(encoding)
    cameras, inputs, real = example.cameras(), example.inputs(model), example.attention_mask.bool()
    offset = torch.eye(4, dtype=torch.float64)
    offset[:3, 3] = torch.tensor([100.0, -70.0, 40.0])
    assert cameras.points is not None
    far = cameras.with_poses(cameras.world_to_camera @ offset).with_tokens(points=cameras.points - offset[:3, 3])
    a, b = (model(**inputs, camera_encoding=example.encoded(each)).logits[real] for each in (cameras, far))
    difference = (a - b).abs().max()
    assert difference < 1e-5 if encoding.symmetries.canonical else difference > MOVES


# ---- KV cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@torch.no_grad()
def test_decoding_with_cache_equals_full_forward(name: str, implementation: str) -> None:
    """Keys and values are cached transformed, so decoded text needs no cameras."""
    model = tiny_model(implementation)
    example = Example(install(model, name))
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


@torch.no_grad()
def test_decode_step_only_appends_zeros(name: str) -> None:
    later = Example(shared(name)[1]).encoded().for_decode_step()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 1, WIDTH, generator=generator)
    q, k = (torch.randn(2, 1, heads, HEAD_DIM, generator=generator) for heads in (4, 2))
    rope = (torch.ones(2, 1, HEAD_DIM), torch.zeros(2, 1, HEAD_DIM))
    for layer in range(3):
        acting = None if later is None else later.at_layer(layer, hidden, rope)
        if acting is None:
            continue
        after = acting.after_rope(*acting.before_rope(q, k))
        appended = acting.transform_values(k).shape[-1] - HEAD_DIM
        assert appended > 0
        for out, given in zip((*after, acting.transform_values(k)), (q, k, k), strict=True):
            assert torch.equal(out, F.pad(given, (0, appended)))
        assert torch.equal(acting.transform_outputs(after[0]), q)
