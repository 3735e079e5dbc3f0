"""RayRoPE and URoPE as functions of tensors: the numbers of the official code, and symmetries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.golden.weights import init_
from zoo.encodings import rayrope as positions
from zoo.encodings import urope
from zoo.encodings.rayrope import rayrope_attention, rayrope_coefficients, urope_attention, urope_positions
from zoo.encodings.testing import random_cameras
from zoo.errors import InputError

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
    """Known depth, and the views of the keys."""
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
    """As large as the differences that the golden data states."""
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


def test_symmetries() -> None:
    """Rigid motion, resized image and order of the views; not the scale."""
    tensors, meta = load("attention", "two_freqs")
    config, out = meta["config"], tensors["out_f64"]
    V, per_view = tensors["world_to_camera"], config["patches_x"] * config["patches_y"]
    moved = attend({**tensors, "world_to_camera": V @ random_cameras(1, 1, seed=5)[0]}, config)
    torch.testing.assert_close(moved, out, rtol=0, atol=1e-10)
    sides = torch.tensor([2.0, 3.0, 1.0]).double()
    larger = {"image_width": 2 * config["image_width"], "image_height": 3 * config["image_height"]}
    resized = attend({**tensors, "K_px": tensors["K_px"] * sides[:, None]}, config, **larger)
    torch.testing.assert_close(resized, out, rtol=0, atol=1e-10)

    def flip(x: Tensor, axis: int) -> Tensor:
        return x.unflatten(axis, (-1, per_view)).flip(axis).flatten(axis, axis + 1)

    flipped = {name: flip(tensors[name], 2) for name in "qkv"} | {"predicted_d": flip(tensors["predicted_d"], 1)}
    flipped |= {name: tensors[name].flip(1) for name in ("world_to_camera", "K_px")}
    torch.testing.assert_close(flip(attend(flipped, config), 2), out, rtol=0, atol=1e-10)

    far, depth = V.clone(), tensors["predicted_d"].clone()
    far[..., :3, 3] *= 1.7
    depth[..., 0] += torch.tensor(1.7).log()
    assert (attend({**tensors, "world_to_camera": far, "predicted_d": depth}, config) - out).abs().max() > 0.3


def test_vague_depth_shrinks_and_certain_depth_turns() -> None:
    tensors, meta = load("attention", "at_init")
    given = tensors["world_to_camera"], tensors["K_px"]
    norms = []
    for half_width in (0.0, 1.0, 3.0):
        depth = torch.tensor([0.5, half_width]).double().expand_as(tensors["predicted_d"])
        _, seen = rayrope_coefficients(*given, depth, head_dim=meta["config"]["head_dim"], **arguments(meta["config"]))
        norms.append(torch.hypot(*seen[-1]).mean())
    assert norms[0] > 1 - 1e-12 and norms[0] > norms[1] > norms[2]


def test_known_depth_beside_a_prediction_without_width() -> None:
    """As beside one whose width is zero: in the views without known depth, and in the others."""
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


# ---- URoPE ------------------------------------------------------------------------------------------------


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
