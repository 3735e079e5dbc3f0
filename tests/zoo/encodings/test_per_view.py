"""RayRoPE and URoPE, which turn keys anew for each view: the published numbers, then the same in a decoder."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from tests.golden.weights import init_
from tests.tiny import QUESTIONS, tiny_batch, tiny_model, tiny_scene
from tests.zoo.decoder import Example, install, tiny_qwen
from zoo import Cameras, InputError, LayerSubset, PRoPE, RayAttention, RayRoPE, TinyDA3, TinyQwen25VL, URoPE
from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.rays import grid_centers, token_points
from zoo.encodings import per_view, rayrope_attention, urope, urope_attention
from zoo.encodings import rayrope as positions
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.per_view import rotate_pairs
from zoo.encodings.rayrope import rayrope_coefficients
from zoo.encodings.testing import TOKENS, VIEWS, random_cameras, random_sequence
from zoo.encodings.urope import depth_anchors, image_rope, urope_positions

GOLDEN = Path(__file__).parents[2] / "golden" / "rayrope"
ILL_CONDITIONED = "centre_and_infinity"  # the own center's direction is rounding noise: float64 alone


def cases(group: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / group).glob("*.safetensors"))


def load(group: str, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta = json.loads((GOLDEN / group / f"{case}.json").read_text())
    return load_file(GOLDEN / group / f"{case}.safetensors"), meta


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: config[name] for name in ("patches_x", "patches_y", "image_width", "image_height", "freq_base")},
        "points": config["pos_enc_type"],
        "rays": config["num_rays_per_patch"],
        "depth_encoding": config["denc_type"],
    }


def attend(tensors: dict[str, Tensor], config: dict[str, Any], **changed: Any) -> Tensor:
    options: dict[str, Any] = {**arguments(config), "transform_values": config["apply_vo"], **sources(tensors)}
    given = [tensors[name] for name in ("q", "k", "v", "world_to_camera", "K_px", "predicted_d")]
    return rayrope_attention(*given, **{**options, **changed})


def sources(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the options for known depth and for separate views of the keys, where the case has them."""
    found: dict[str, Any] = {}
    if "context_depths" in tensors:
        found["known_depth"] = tensors["context_depths"]
    if "world_to_camera_kv" in tensors:
        found["keys"] = tuple(tensors[f"{name}_kv"] for name in ("world_to_camera", "K_px", "predicted_d"))
    return found


@pytest.mark.parametrize("case", cases("attention"))
def test_matches_official_attention(case: str) -> None:
    tensors, meta = load("attention", case)
    config = meta["config"]
    own, seen = rayrope_coefficients(
        *(tensors[name] for name in ("world_to_camera", "K_px", "predicted_d")),
        head_dim=config["head_dim"],
        transform_values=config["apply_vo"],
        **arguments(config),
        **sources(tensors),
    )
    atol = 1e-7 if case == ILL_CONDITIONED else 1e-9
    for found, name in zip((*own, *seen[-1]), ("cos_q", "sin_q", "cos_kv_last", "sin_kv_last"), strict=True):
        torch.testing.assert_close(found, tensors[name], rtol=0, atol=atol)

    learned = [name for name in tensors if f"grad_{name}" in tensors]
    assert len(learned) >= 3
    for name in learned:
        tensors[name].requires_grad_()
    out = attend(tensors, config)
    torch.testing.assert_close(out, tensors["out_f64"], rtol=0, atol=1e-5 if case == ILL_CONDITIONED else 1e-9)
    wanted = [tensors[name] for name in learned]
    found = torch.autograd.grad(out.square().sum() / 2, wanted, allow_unused=True, materialize_grads=True)
    for name, gradient in zip(learned, found, strict=True):
        torch.testing.assert_close(gradient, tensors[f"grad_{name}"].double(), rtol=1e-5, atol=1e-6)
    if case == ILL_CONDITIONED:
        return
    rounded = attend({name: x.detach().float() for name, x in tensors.items()}, config)
    assert rounded.dtype == torch.float32
    atol = 3e-5 + 5 * meta["f32_vs_f64"]["out"]["max_abs"]
    torch.testing.assert_close(rounded.double(), tensors["out_f64"], rtol=0, atol=atol)


@pytest.mark.parametrize("case", cases("mha"))
def test_matches_official_layer(case: str) -> None:
    tensors, meta = load("mha", case)
    config = meta["config"]
    weights = {}
    for name, shape in meta["param_names"].items():
        as_weight = f"{name}.weight" if name in ("in_proj_weight", "d_proj_weight") else name
        weights[name] = init_(as_weight, torch.empty(shape)).double()
    weights["d_proj_bias"] = (weights["d_proj_bias"] + torch.tensor([0.3, 0.8])).requires_grad_()
    x, d_weight = tensors["x"].requires_grad_(), weights["d_proj_weight"].requires_grad_()

    projected = F.linear(x, weights["in_proj_weight"], weights.get("in_proj_bias")).chunk(3, -1)
    q, k, v = (each.unflatten(-1, (config["heads"], -1)).transpose(1, 2) for each in projected)
    if config["qk_norm"]:
        names = [name for name in weights if "norm" in name]
        q, k = (
            F.rms_norm(each, each.shape[-1:], weights[name], 1e-5) for each, name in zip((q, k), names, strict=True)
        )
    depth = F.linear(x, d_weight, weights["d_proj_bias"])
    out = rayrope_attention(q, k, v, tensors["world_to_camera"], tensors["K_px"], depth, **arguments(config))
    out = F.linear(out.transpose(1, 2).flatten(2), weights["out_proj.weight"], weights.get("out_proj.bias"))
    torch.testing.assert_close(out, tensors["out_f64"], rtol=0, atol=1e-6)
    found = torch.autograd.grad(out.square().sum() / 2, (x, d_weight, weights["d_proj_bias"]))
    for gradient, name in zip(found, ("x", "d_proj_weight", "d_proj_bias"), strict=True):
        torch.testing.assert_close(gradient, tensors[f"grad_{name}"], rtol=1e-5, atol=1e-5)


CONTROLS: dict[str, dict[str, float]] = {  # the least change of the output, where something is wrong
    "freq_base": {"two_freqs": 0.9, "opposite_views": 1.1, "far_wide": 1.3},
    "depth_encoding": {"two_freqs": 0.7, "opposite_views": 0.8, "far_wide": 1.0},
    "transform_values": {"two_freqs": 1.1, "opposite_views": 1.5, "far_wide": 2.2},
    "principal point": {"two_freqs": 0.09, "opposite_views": 0.03, "far_wide": 0.12},
    "no cap": {"far_wide": 0.5},
    "exponentiated width": {"two_freqs": 0.4, "opposite_views": 0.4, "far_wide": 0.6},
}


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_seen(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong rule changes the output at least as much as the golden data states."""
    for case, least in CONTROLS[control].items():
        tensors, meta = load("attention", case)
        changed: dict[str, Any] = {}
        if control == "freq_base":
            changed = {"freq_base": 2.0}
        elif control == "depth_encoding":
            changed = {"depth_encoding": "inv_d"}
        elif control == "transform_values":
            changed = {"transform_values": False}
        elif control == "principal point":
            tensors["K_px"][..., :2, 2] = torch.tensor(
                [meta["config"][f"image_{side}"] / 2 for side in ("width", "height")]
            )
        elif control == "no cap":
            monkeypatch.setattr(positions, "LARGEST_LOG_DEPTH", 99.0)
        else:
            tensors["predicted_d"][..., 1] = tensors["predicted_d"][..., 1].exp()
        difference = (attend(tensors, meta["config"], **changed) - tensors["out_f64"]).abs().max()
        assert difference > least, (case, difference)


def test_known_depth_beside_a_prediction_without_width() -> None:
    """A prediction without width equals one whose width is zero, in views with known depth and without."""
    tensors, meta = load("attention", "known_depth")
    certain = tensors["predicted_d"][..., :1]
    of_no_width = torch.cat((certain, torch.zeros_like(certain)), -1)
    found, wanted = (attend({**tensors, "predicted_d": each}, meta["config"]) for each in (certain, of_no_width))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    moved = {**tensors, "predicted_d": certain}
    moved["world_to_camera"] = tensors["world_to_camera"] @ random_cameras(1, 1, seed=5)[0]
    torch.testing.assert_close(attend(moved, meta["config"]), found, rtol=0, atol=1e-10)
    for depth in (certain + 1, tensors["predicted_d"]):  # the controls: some views are predicted, and a width counts
        assert (attend({**tensors, "predicted_d": depth}, meta["config"]) - found).abs().max() > 0.01
    unknown = {name: x for name, x in tensors.items() if name != "context_depths"} | {"predicted_d": certain}
    assert (attend(unknown, meta["config"]) - found).abs().max() > 0.01


@pytest.mark.parametrize("wrong", [{"points": "d"}, {"points": "d_pj+d_3d"}, {"rays": 4}, {"head_dim": 40}])
def test_wrong_options_raise(wrong: dict[str, Any]) -> None:
    tensors, meta = load("attention", "at_init")
    given = (tensors[name] for name in ("world_to_camera", "K_px", "predicted_d"))
    with pytest.raises(InputError):
        rayrope_coefficients(*given, **{"head_dim": 48, **arguments(meta["config"]), **wrong})


@pytest.mark.parametrize("case", cases("urope"))
def test_matches_official_urope(case: str) -> None:
    tensors, meta = load("urope", case)
    config = meta["config"]
    heads = 1 if config["self_attn"] else config["heads"]
    sizes = {"height": config["h"], "width": config["w"]}
    depths = torch.tensor(urope.depth_anchors(heads, config["min_depth"], config["max_depth"])).double()
    queries, keys = urope_positions(tensors["world_to_camera"], tensors["K_tokens"], depths=depths, **sizes)
    for axis, name in enumerate("xy"):
        of_query = tensors[f"query_{name}"]
        torch.testing.assert_close(queries[:, axis].expand_as(of_query), of_query, rtol=0, atol=1e-9)
        torch.testing.assert_close(keys[..., axis], tensors[f"key_{name}"], rtol=0, atol=1e-9)
    options = {name: config[name] for name in ("num_splits", "min_depth", "max_depth")}
    options |= {"num_heads": config["heads"], "mask": tensors.get("attn_mask"), "shift": config["with_shift"], **sizes}
    names = ("q", "k", "v", "world_to_camera", "K_tokens")
    out = urope_attention(*(tensors[name] for name in names), **options)
    torch.testing.assert_close(out, tensors["out_f64"], rtol=0, atol=1e-9)
    moved = tensors["world_to_camera"] @ random_cameras(1, 1, seed=5)[0]
    again = urope_attention(*(tensors[name] for name in names[:3]), moved, tensors["K_tokens"], **options)
    torch.testing.assert_close(again, out, rtol=0, atol=1e-9)
    if options["mask"] is not None:
        options["mask"] = options["mask"].float()
    rounded = urope_attention(*(tensors[name].float() for name in names), **options)
    atol = 5e-5 + 5 * meta["f32_vs_f64"]["out"]["max_abs"]
    torch.testing.assert_close(rounded.double(), out, rtol=0, atol=atol)


# ---- attention view by view in a decoder, against the published functions ----------------------------------------


HEAD = HeadLayout.in_row(24, (4, 4, 4))
SIZE = {"image_width": 64, "image_height": 32, "patches_x": 2, "patches_y": 2}


def in_pixels(K: Tensor) -> Tensor:
    return intrinsics_in_pixels(K, SIZE["image_width"], SIZE["image_height"])


def points_at(depths: Tensor, poses: Tensor, K: Tensor) -> Tensor:
    """Return one point per token, on the ray through its center."""
    of_scenes = zip(depths, poses, K, strict=True)
    return torch.stack([token_points(*of_scene, 1).flatten(0, 2) for of_scene in of_scenes])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    output = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    return output.transpose(1, 2), None


@torch.no_grad()
@pytest.mark.parametrize(("transform_values", "depth"), [(True, "predicted"), (False, "predicted"), (True, "known")])
def test_views_alone_attend_as_by_definition(transform_values: bool, depth: Any) -> None:
    """The last token of a view sees all tokens up to itself, so full attention over these views is its reference."""
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
    """The definition is computed for each view's last token. The control rotates text like the first visual token."""
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


# ---- URoPE between two views, wherever they look ---------------------------------------------------------------------


HEADS = 4
ROWS, COLUMNS, BATCH = 2, 3, 2
SIZES = {"height": ROWS, "width": COLUMNS}
DEPTHS = (2.0, 20.0)


def random_heads() -> Tensor:
    """Return q, k and v of a view, then those of the view that looks at it."""
    generator = torch.Generator().manual_seed(0)
    length = 2 * ROWS * COLUMNS
    return torch.randn(3, BATCH, HEADS, length, HEAD.dim, generator=generator, dtype=torch.float64)


def turned(degrees: float) -> tuple[Tensor, Tensor]:
    """Return a view and one that is turned about the vertical axis, with cameras off their images' centers."""
    poses, K = random_cameras(BATCH, 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, 0, sin, 1.2], [0, 1, 0, -0.5], [-sin, 0, cos, 0.8], [0, 0, 0, 1]], dtype=torch.float64)
    return torch.stack((poses[:, 0], turn @ poses[:, 0]), 1), K


def in_decoder(poses: Tensor, K: Tensor, apply_to: Any, max_depth: float = DEPTHS[1]) -> Tensor:
    """Return the output (B, H, N, D) of the second view, which attends to the first view alone."""
    encoding, tokens = URoPE(DEPTHS[0], max_depth, apply_to), ROWS * COLUMNS
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD.dim, 1, HEADS, HEADS, HEAD), [0])
    centers = grid_centers(ROWS, COLUMNS, poses).flatten(0, 1).repeat(2, 1).expand(BATCH, -1, -1)
    sizes = torch.tensor([1 / COLUMNS, 1 / ROWS], dtype=torch.float64).expand_as(centers)
    index = torch.arange(2).repeat_interleave(tokens).expand(BATCH, -1)
    cameras = Cameras(poses, K, index).with_tokens(centers, patch_sizes=sizes)
    mask = torch.ones(1, 1, 2 * tokens, 2 * tokens, dtype=torch.bool)
    mask[..., tokens:, tokens:] = False
    encoded = encoding.encode(cameras, HEAD, torch.float64)
    return encoded.attend(attention, *random_heads(), mask)[0].transpose(1, 2)[:, :, tokens:]


def published(poses: Tensor, K: Tensor, apply_to: str) -> Tensor:
    """Compute the same by `urope_attention`; its values are rotated beforehand to undo its own rule for values."""
    tokens = ROWS * COLUMNS
    (q, k, v), V = random_heads(), poses.flip(1)  # there the first view looks
    q, k, v = (other_pairs(x) for x in (q[:, :, tokens:], k[:, :, :tokens], v[:, :, :tokens]))
    K_tokens = intrinsics_in_pixels(K[:, 0], COLUMNS, ROWS)
    depths = torch.tensor(depth_anchors(HEADS, *DEPTHS), dtype=torch.float64)
    own, seen = (image_rope(x, HEAD.dim // 4) for x in urope_positions(V, K_tokens, depths=depths, **SIZES))
    values = rotate_axes(rotate_axes(v, *seen) if apply_to == "qkvo" else v, *own)
    heads_last = (x.transpose(1, 2).flatten(2) for x in (q, k, values))
    options: dict[str, Any] = {"num_heads": HEADS, "min_depth": DEPTHS[0], "max_depth": DEPTHS[1], **SIZES}
    unmasked = torch.zeros(1, tokens, tokens, dtype=torch.float64)
    out = urope_attention(*heads_last, V, K_tokens, mask=unmasked, **options)
    out = out.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return other_pairs(out if apply_to == "qkvo" else rotate_axes(out, *own))


def rotate_axes(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs within each half of the channels: those of x, then those of y."""
    halves = zip(*(each.chunk(2, -1) for each in (x, cos, sin)), strict=True)
    return torch.cat([rotate_pairs(*half) for half in halves], -1)


def other_pairs(x: Tensor) -> Tensor:
    """Exchange the decoder's order of channels, whose halves pair, with the published one: x pairs, then y pairs."""
    return x.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3)


@pytest.mark.parametrize("apply_to", ["qk", "qkvo"])
@pytest.mark.parametrize("degrees", [0.0, 40.0, 110.0, 180.0])
def test_a_view_reads_another_as_published(degrees: float, apply_to: str) -> None:
    """At 110 degrees some points lie behind the other camera, at 180 all."""
    cameras = turned(degrees)
    expected = published(*cameras, apply_to)
    torch.testing.assert_close(in_decoder(*cameras, apply_to), expected, rtol=0, atol=1e-9)
    for wrong in (in_decoder(*cameras, apply_to, max_depth=10.0), in_decoder(*turned(degrees + 5), apply_to)):
        assert (wrong - expected).abs().max() > 1e-2


# ---- in models -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("most", "depth", "views_with_depth"),
    [(1, "predicted", 0), (2**16, "predicted", 0), (2**16, "known", VIEWS), (2**16, "known", 1)],
)
def test_view_mixer_attends_as_by_definition(
    most: int, depth: Any, views_with_depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view without known depth uses the predicted depth."""
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
    task, given = tiny_model("plain", view_mixer=mixer), tiny_scene("a", QUESTIONS[:1])
    assert task.model_spec().requires_depth and given.geometry is not None and given.geometry.depth is not None
    losses = []
    for factor in (1.0, 2.0):
        geometry = copy(given.geometry)
        geometry.depth = factor * given.geometry.depth
        losses.append(task.loss(tiny_batch(task, replace(given, geometry=geometry), training=True)))
    assert (losses[0] - losses[1]).abs() > 1e-4


@torch.no_grad()
def test_known_depth_beside_predicted_cameras_is_the_geometry_encoders() -> None:
    geometry = partial(TinyDA3, embed_dim=32, depth=4, num_heads=2, heads=("camera", "depth"))
    name = "RayRoPE, known depth, one ray, qk, ChannelRange, scale rms"
    task = tiny_model(name, camera_source="predicted", geometry=geometry)
    assert not task.model_spec().requires_depth and not task.model_spec().requires_cameras

    def loss(depth_factor: float) -> Tensor:
        given = tiny_scene("a", QUESTIONS[:1])
        assert given.geometry is not None and given.geometry.depth is not None
        given.geometry.depth = depth_factor * given.geometry.depth
        return task.loss(tiny_batch(task, given, training=True))

    encoder: Any = task.model.geometry
    log_depth = encoder.da3.model.head.scratch.output_conv2[-1].bias
    log_depth.sub_(3)  # random weights see 140 m, where all depths count as 100 m
    of_encoder = loss(1.0)
    assert torch.equal(loss(2.0), of_encoder)  # the dataset's depth is not read
    log_depth.add_(0.5)
    assert (loss(1.0) - of_encoder).abs() > 1e-5


@torch.no_grad()
def test_number_of_calls_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_qwen()
    example = Example(install(model, "RayRoPE"))
    inputs = example.inputs(model)
    together = model(**inputs, camera_encoding=example.encoded()).logits
    monkeypatch.setattr(per_view, "MAX_KEYS", 1)
    alone = model(**inputs, camera_encoding=example.encoded()).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_caches_and_backends_that_do_not_fit_are_refused() -> None:
    """Views in a second pass of a cache, and attention without masks, raise errors."""
    model = tiny_qwen()
    example = Example(install(model, "RayRoPE"), side="right")
    cache, positions = DynamicCache(config=model.config.text_config), example.positions()[0]
    model(inputs_embeds=example.embeddings[:, :3], position_ids=positions[..., :3], cache=cache)
    given = {"inputs_embeds": example.embeddings, "position_ids": positions, "cache": cache}
    with pytest.raises(InputError, match="in one pass"):
        model(**given, camera_encoding=example.encoded())
    backbone = TinyQwen25VL(hidden_size=64, heads=2, key_value_heads=2).load()
    backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2"):
        backbone.install_encoding(LayerSubset(RayRoPE()))
    backbone.install_encoding(PRoPE())
