"""Attention view by view in a decoder: against its definition, its calls, its masks, and what it refuses."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from transformers import DynamicCache

from tests.zoo.asking import QUESTIONS, batch, build, scene
from tests.zoo.decoder import Example, install, tiny_model
from tests.zoo.sequences.test_packed_training import difference, learned
from tests.zoo.sequences.test_scene_packing import asked_of
from zoo import SpatialVLM, TinyDA3, TinyQwen25VL
from zoo.cameras import Cameras, intrinsics_in_pixels
from zoo.cameras.rays import token_points
from zoo.encodings import (
    ChannelRange,
    Compose,
    HeadSubset,
    LayerSubset,
    PoseIndex,
    PRoPE,
    RayAttention,
    RayRoPE,
    URoPE,
    per_view,
    rayrope_attention,
)
from zoo.encodings import per_view as block_masks
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.per_view import attention_calls, rotate_pairs
from zoo.encodings.rayrope import rayrope_coefficients
from zoo.encodings.testing import TOKENS, VIEWS, random_cameras, random_sequence
from zoo.errors import InputError

HEAD = HeadLayout.in_row(24, (4, 4, 4))
SIZE = {"image_width": 64, "image_height": 32, "patches_x": 2, "patches_y": 2}


def in_pixels(K: Tensor) -> Tensor:
    return intrinsics_in_pixels(K, SIZE["image_width"], SIZE["image_height"])


def points_at(depths: Tensor, poses: Tensor, K: Tensor) -> Tensor:
    """Of one ray per token, through its center."""
    of_scenes = zip(depths, poses, K, strict=True)
    return torch.stack([token_points(*of_scene, 1).flatten(0, 2) for of_scene in of_scenes])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    output = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    return output.transpose(1, 2), None


@torch.no_grad()
@pytest.mark.parametrize(("transform_values", "depth"), [(True, "predicted"), (False, "predicted"), (True, "known")])
def test_views_alone_attend_as_by_definition(transform_values: bool, depth: Any) -> None:
    """The last token of a view sees all tokens up to its own, as in attention that is not causal."""
    sequence, (poses, K) = random_sequence(0), random_cameras(2)
    hidden, cameras = sequence.hidden_states, sequence.cameras(poses, K)
    depths, rays = 0.5 + torch.rand(2, VIEWS, 2, 2, dtype=torch.float64), 3
    if depth == "known":
        cameras, rays = cameras.with_tokens(points=points_at(depths, poses, K)), 1
    encoding = RayRoPE(rays=rays, depth=depth, apply_to="qkvo" if transform_values else "qk")
    encoding.bind_to_decoder(DecoderLayout(hidden.shape[-1], 1, 2, 2, HEAD), [0])
    torch.nn.init.normal_(encoding.double().layers["0"].weight, std=0.1)  # type: ignore[index, union-attr]
    encoded = encoding.encode(cameras, HEAD, torch.float64)
    q, k, v = torch.randn(3, 2, 2, VIEWS * TOKENS, HEAD.dim, dtype=torch.float64)
    acting = encoded.at_layer(0, hidden, (hidden, hidden))
    assert acting is not None
    found = acting.attend(attention, q, k, v, None)[0].transpose(1, 2)

    raw_depth = encoding.layers["0"](hidden)  # type: ignore[index]
    K_px = in_pixels(K)
    for views in range(1, VIEWS + 1):
        count = views * TOKENS
        heads = (x[:, :, :count] for x in (q, k, v))
        given = poses[:, :views], K_px[:, :views], raw_depth[:, :count]
        known = depths[:, :views, ..., None] if depth == "known" else None
        options = {"transform_values": transform_values, "rays": rays, "known_depth": known}
        expected = rayrope_attention(*heads, *given, **SIZE, **options)
        torch.testing.assert_close(found[:, :, count - 1], expected[:, :, -1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_views_see_text_by_stock_keys_and_values() -> None:
    """By definition, for the last token of each view; the control turns text as the first token."""
    text = 2
    sequence, (poses, K) = random_sequence(text), random_cameras(2)
    encoding = RayRoPE()
    encoding.bind_to_decoder(DecoderLayout(sequence.hidden_states.shape[-1], 1, 2, 2, HEAD), [0])
    linear = encoding.double().layers["0"]  # type: ignore[index]
    torch.nn.init.normal_(linear.weight, std=0.1)
    encoded = encoding.encode(sequence.cameras(poses, K), HEAD, torch.float64)
    hidden = sequence.hidden_states
    q, k, v = torch.randn(3, 2, 2, hidden.shape[1], HEAD.dim, dtype=torch.float64)
    acting = encoded.at_layer(0, hidden, (hidden, hidden))
    assert acting is not None
    found = acting.attend(attention, q, k, v, None)[0].transpose(1, 2)

    visual = slice(text, text + VIEWS * TOKENS)
    own, seen = rayrope_coefficients(poses, in_pixels(K), linear(hidden[:, visual]), head_dim=HEAD.dim, **SIZE)
    for view, of_keys in enumerate(seen):
        count = (view + 1) * TOKENS
        last = text + count - 1
        cos, sin = (x[:, None, count - 1 : count] for x in own)
        turned = [x[:, None, :count] for x in of_keys]
        query = rotate_pairs(q[:, :, last : last + 1], cos, sin)
        errors = []
        for is_text_turned in (False, True):
            rotation = [F.pad(turned[0], (0, 0, text, 0), value=1.0), F.pad(turned[1], (0, 0, text, 0))]
            if is_text_turned:
                rotation = [torch.cat((x[..., :1, :].expand(-1, -1, text, -1), x), -2) for x in turned]
            keys, values = (rotate_pairs(x[:, :, : last + 1], rotation[0], rotation[1]) for x in (k, v))
            expected = rotate_pairs(F.scaled_dot_product_attention(query, keys, values), cos, -sin)
            errors.append((found[:, :, last : last + 1] - expected).abs().max())
        assert errors[0] < 1e-10 and errors[1] > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    ("most", "depth", "views_with_depth"),
    [(1, "predicted", 0), (2**16, "predicted", 0), (2**16, "known", VIEWS), (2**16, "known", 1)],
)
def test_view_mixer_attends_as_by_definition(
    most: int, depth: Any, views_with_depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where depth is not known, the predicted one takes its place."""
    monkeypatch.setattr(per_view, "MAX_KEYS", most)
    x, (poses, K) = torch.randn(2, VIEWS * TOKENS, 48, dtype=torch.float64), random_cameras(2)
    cameras, options = Cameras(poses, K), dict[str, Any]()
    if depth == "known":
        depths = 0.5 + torch.rand(2, VIEWS, 2, 2, dtype=torch.float64)
        points = points_at(depths, poses, K)
        points[:, views_with_depth * TOKENS :] = torch.nan
        cameras = cameras.with_tokens(points=points)
        options = {"known_depth": depths[:, :views_with_depth, ..., None], "rays": 1}
    mixer = RayAttention(48, 24, RayRoPE(rays=options.get("rays", 3), depth=depth)).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    found = mixer(x.flatten(0, 1), cameras, (VIEWS, 2, 2)).view_as(x)

    hidden = mixer.norm(x)
    q, k, v = mixer.qkv(hidden).unflatten(-1, (3, 2, 24)).permute(2, 0, 3, 1, 4)
    raw_depth = mixer.encoding.layers["0"](hidden)
    out = rayrope_attention(q, k, v, poses, in_pixels(K), raw_depth, **SIZE, **options)
    torch.testing.assert_close(found, x + mixer.o(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_view_mixer_gets_the_depth_of_the_scene() -> None:
    mixer = partial(RayAttention, head_dim=32, encoding=RayRoPE(depth="known"))
    task, given = build("plain", view_mixer=mixer), scene("a", QUESTIONS[:1])
    assert task.model_spec().requires_depth and given.geometry is not None and given.geometry.depth is not None
    losses = []
    for factor in (1.0, 2.0):
        geometry = copy(given.geometry)
        geometry.depth = factor * given.geometry.depth
        losses.append(task.loss(batch(task, replace(given, geometry=geometry), training=True)))
    assert (losses[0] - losses[1]).abs() > 1e-4


@torch.no_grad()
def test_known_depth_beside_predicted_cameras_is_the_geometry_encoders() -> None:
    geometry = partial(TinyDA3, embed_dim=32, depth=4, num_heads=2, heads=("camera", "depth"))
    name = "RayRoPE, known depth, one ray, qk, ChannelRange, scale rms"
    task = build(name, camera_source="predicted", geometry=geometry)
    assert not task.model_spec().requires_depth and not task.model_spec().requires_cameras

    def loss(depth_factor: float) -> Tensor:
        given = scene("a", QUESTIONS[:1])
        assert given.geometry is not None and given.geometry.depth is not None
        given.geometry.depth = depth_factor * given.geometry.depth
        return task.loss(batch(task, given, training=True))

    encoder: Any = task.model.geometry
    log_depth = encoder.da3.model.head.scratch.output_conv2[-1].bias
    log_depth.sub_(3)  # random weights see 140 m, where all depths count as 100 m
    of_encoder = loss(1.0)
    assert torch.equal(loss(2.0), of_encoder)  # the dataset's depth is not read
    log_depth.add_(0.5)
    assert (loss(1.0) - of_encoder).abs() > 1e-5


def test_without_points_at_a_depth_none_is_predicted() -> None:
    encoding = RayRoPE("inf_pj+0_3d")
    sequence, (poses, K) = random_sequence(2), random_cameras(2)
    encoding.bind_to_decoder(DecoderLayout(sequence.hidden_states.shape[-1], 1, 2, 2, HEAD), [0])
    assert not list(encoding.parameters())
    q, k, v = torch.randn(3, 2, 2, sequence.index.shape[1], HEAD.dim, dtype=torch.float64)
    hidden = sequence.hidden_states
    acting = encoding.encode(sequence.cameras(poses, K), HEAD, torch.float64).at_layer(0, hidden, (hidden, hidden))
    assert acting is not None and acting.raw_depths == {}
    assert (acting.attend(attention, q, k, v, None)[0] - attention(q, k, v, None)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("most", [1, 10, 2**16])
def test_calls_cover_each_query_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_view, "MAX_KEYS", most)
    views = [slice(3, 7), slice(7, 11), slice(13, 17), slice(20, 24), slice(26, 29)]  # in rows of 20
    calls = attention_calls(views, 3, 20)
    covered = [row * 20 + i for call in calls for row, start, stop in call.blocks for i in range(start, stop)]
    assert sorted(covered) == list(range(60))
    found = [(row * 20 + start, row * 20 + stop) for call in calls if call.is_view for row, start, stop in call.blocks]
    assert sorted(found) == [(view.start, view.stop) for view in views]
    for call in calls:
        lengths = {stop - start for _, start, stop in call.blocks}
        assert len(lengths) == 1 and call.num_keys == max(stop for _, _, stop in call.blocks)
        assert len(call.blocks) == 1 or len(call.blocks) * call.num_keys <= most
        assert call.num_keys <= per_view.GROWTH * call.blocks[0][2]


@torch.no_grad()
def test_number_of_calls_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    example = Example(install(model, "RayRoPE"))
    inputs = example.inputs(model)
    together = model(**inputs, camera_encoding=example.encoded()).logits
    monkeypatch.setattr(per_view, "MAX_KEYS", 1)
    alone = model(**inputs, camera_encoding=example.encoded()).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_views_that_meet_a_cache_raise() -> None:
    model = tiny_model()
    example = Example(install(model, "RayRoPE"), side="right")
    cache, embeddings = DynamicCache(config=model.config.text_config), example.embeddings
    model(inputs_embeds=embeddings[:, :3], position_ids=example.positions()[0][..., :3], cache=cache)
    with pytest.raises(InputError, match="with RayRoPE or URoPE read a prompt with all of its views in one pass"):
        model(
            inputs_embeds=embeddings,
            position_ids=example.positions()[0],
            cache=cache,
            camera_encoding=example.encoded(),
        )


@pytest.mark.slow
def test_flex_attention_of_packed_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    made: list[Any] = []
    build_mask = block_masks._block_mask
    monkeypatch.setattr(block_masks, "_block_mask", lambda *of: made.append(of) or build_mask(*of))
    model, reference = build("URoPE", implementation="flex_attention").train(), build("URoPE").train()
    with torch.compiler.set_stance("force_eager"):
        found = learned(model, model.loss(asked_of(model, pack_scenes=True)))
        assert difference(found, learned(reference, reference.loss(asked_of(reference)))) < 2e-5
    shapes = [of[1] for of in made]
    assert len(shapes) == len(set(shapes)) > 1  # of the rows, and of each call: once for both layers


def test_a_backend_without_masks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = TinyQwen25VL(hidden_size=64, heads=2, key_value_heads=2)
    backbone = loader.load()
    backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2"):
        backbone.install_encoding(LayerSubset(RayRoPE()))
    backbone.install_encoding(PRoPE())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compose([RayRoPE(), PRoPE()]),
        lambda: Compose([PRoPE(apply_to="vo"), LayerSubset(URoPE())]),
        lambda: Compose([RayRoPE(), URoPE()]),
        lambda: HeadSubset(RayRoPE(), [0]),
        lambda: SpatialVLM(TinyQwen25VL(hidden_size=32, heads=2), camera_encoding=RayRoPE()),
        lambda: SpatialVLM(TinyQwen25VL(hidden_size=64, heads=2), camera_encoding=RayRoPE(channels=ChannelRange(0, 1))),
    ],
)
def test_what_does_not_fit_is_refused(make: Any) -> None:
    with pytest.raises(InputError):
        make()


@torch.no_grad()
def test_a_pose_index_may_stand_beside() -> None:
    sequence, layout = random_sequence(2), DecoderLayout(8, 1, 2, 2, HEAD)
    cameras = sequence.cameras(*random_cameras(2))
    encoding = Compose([PoseIndex(), URoPE()])
    encoding.bind_to_decoder(layout, [0])
    q, k, v = torch.randn(3, 2, 2, sequence.index.shape[1], HEAD.dim, dtype=torch.float64)
    found, expected = (
        each.encode(cameras, HEAD, torch.float64).attend(attention, q, k, v, None)[0]
        for each in (encoding, encoding.parts[1])
    )
    assert encoding.time_index is not None and torch.equal(found, expected)
    assert (found - attention(q, k, v, None)[0]).abs().max() > 1e-3
