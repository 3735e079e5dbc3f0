"""Spa3R's field and adapter: golden cases of the published code, in float32 and float64."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.weights import init_
from tests.tiny import difference, learned, one_by_one, one_per_row, replies, tiny_batch, tiny_model, two_scenes
from tests.zoo.fused_golden import build, check_case, load_case, logits_of, media
from tests.zoo.released import GOLDEN
from zoo import AddFusion, InputError, SpatialVLM, TinyQwen25VL, TinyVGGT
from zoo.checkpoints import official_tensors
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.heads import pose_encoding_to_cameras
from zoo.published.spa3_vlm import (
    PREFIX,
    PretrainedSpa3VLM,
    Spa3RAdapter,
    Spa3RFusion,
    load_spa3_vlm,
    official_spa3r_adapter,
    official_spa3r_field,
    official_spa3r_latents,
    official_spa3r_prope,
)
from zoo.published.spa3r import FIELD, LOSSES, PREDICTOR, Spa3RVGGT, TinySpa3R
from zoo.tasks import VideoQATask


def cases(group: str) -> list[str]:
    """The cases of a group. The repository holds the small ones."""
    return sorted(path.stem for path in (GOLDEN / "spa3r" / group).glob("*.json"))


UNUSED = tuple(f"{PREFIX}{each}" for each in PREDICTOR)


def weights_of(meta: dict[str, Any], dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """The weights of a case, which are functions of their official names."""
    names = meta["param_names"].items()
    return {name: nn.Parameter(init_(name, torch.empty(shape)).to(dtype)) for name, shape in names}


def gradients_of(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {f"grad.{name}": each.grad for name, each in weights.items() if each.grad is not None}


def run_field(meta: dict[str, Any], t: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    weights, grid = weights_of(meta, dtype), (meta["grid"][0], meta["grid"][1])
    field = official_spa3r_field(meta["config"], weights)
    context = t["f_ctx"] if "f_ctx" in t else t["f_all"][~t["view_mask"]].unflatten(0, (meta["batch"], -1))
    cameras = pose_encoding_to_cameras(t["pose_enc"], tuple(meta["image_hw"]))
    latents = field.encode(context.to(dtype), grid)
    decoded = field.decode(latents, *cameras, grid)
    depth = F.interpolate(t["depth"].flatten(0, 1).movedim(-1, 1), grid).flatten(2).mT.unflatten(0, decoded.shape[:2])
    losses = field.losses(decoded, geo=t["f_all"].to(dtype), sem=t["sem_target"].to(dtype), depth=depth.to(dtype))
    assert tuple(losses) == LOSSES
    sum(losses.values()).backward()
    found = {"latents": latents, "dec_out": decoded, **{f"loss_{k}": v for k, v in losses.items()}}
    return found | gradients_of(weights)


@pytest.mark.parametrize("case", cases("field"))
def test_the_field_equals_the_published_code(case: str) -> None:
    meta, t = load_case(f"spa3r/field/{case}")
    found = run_field(meta, t, torch.float32)
    for name, bound in (("latents", 1e-5), ("dec_out", 1e-5), *((f"loss_{each}", 2e-6) for each in LOSSES)):
        assert (found[name] - t[f"out_{name}"]).abs().max() < bound, name
    exact = run_field(meta, t, torch.float64)
    for name in ("latents", "dec_out"):
        assert (exact[name] - t[f"out_{name}_f64"]).abs().max() < 1e-6, name  # its tables are float32
    for name, norm in meta["grad_l2_norms_f64"].items():
        own = exact.get(f"grad.{name}")
        assert abs((0.0 if own is None else float(own.norm())) - (norm or 0.0)) < 1e-5 * (norm or 0) + 1e-7, name
    assert not any(float(exact[f"grad.{name}"].norm()) for name in meta["no_gradient"] if f"grad.{name}" in exact)


def check_gradients(found: dict[str, Tensor], t: dict[str, Tensor]) -> None:
    for name in [name for name in t if name.startswith("grad.")]:
        own, whole = found[name], t[name]
        assert (own - whole).abs().max() < 1e-4 * whole.abs().max() + 1e-5, name


@pytest.mark.parametrize("case", cases("adapter"))
def test_the_adapter_equals_the_published_code(case: str) -> None:
    meta, t = load_case(f"spa3r/adapter/{case}")
    for dtype, expected, bound in ((torch.float32, t["out"], 5e-6), (torch.float64, t["out_f64"], 1e-12)):
        weights = weights_of(meta, dtype)
        tokens = t["image_embeds"].detach().to(dtype, copy=True).requires_grad_()
        out = official_spa3r_adapter(meta["config"], weights)(tokens, t["latents"].to(dtype))
        assert (out - expected).abs().max() < bound
        (out.square().sum() / 2).backward()
        check_gradients(gradients_of(weights), t)
        assert tokens.grad is not None
        assert (tokens.grad - t["grad_image_embeds"]).abs().max() < 1e-4 * t["grad_image_embeds"].abs().max()


@pytest.mark.parametrize("case", cases("prope"))
def test_prope_on_rays_alone_equals_the_published_code(case: str) -> None:
    meta, t = load_case(f"spa3r/prope/{case}")
    for dtype, expected, bound in ((torch.float32, t["out"], 5e-6), (torch.float64, t["out_f64"], 1e-10)):
        weights = weights_of(meta, dtype)
        attend = official_spa3r_prope(meta["config"], weights)
        places = {"grid": tuple(meta["grid"]), "other_tokens": meta["other_tokens"]}
        out = attend(t["x"].to(dtype), t["viewmats"], t["Ks"], **places)
        assert (out - expected).abs().max() < bound
        (out.square().sum() / 2).backward()
        check_gradients(gradients_of(weights), t)
        turned = attend(t["x"].to(dtype), torch.linalg.inv(t["viewmats"]), t["Ks"], **places)
        assert (turned - expected).abs().max() > 1e-2  # the control: the inverse poses


@pytest.mark.parametrize("case", cases("backbone"))
def test_vggt_with_rms_norms_equals_the_published_code(case: str) -> None:
    """The control: stock VGGT differs by much more."""
    meta, t = load_case(f"spa3r/backbone/{case}")
    weights = {name: init_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    for layer in range(meta["config"]["depth"]):  # what the published code drops from the file of VGGT
        biases = (f"aggregator.global_blocks.{layer}.attn.{each}_norm.bias" for each in "qk")
        weights |= {name: torch.zeros(meta["config"]["embed_dim"] // meta["config"]["num_heads"]) for name in biases}
    images, context = t["images_u8"] / 255, ~t["view_mask"]
    for kind, is_equal in ((Spa3RVGGT, True), (VGGT, False)):
        vggt = kind.from_official({"aggregator": meta["config"]}, weights)
        last = vggt(images, heads=()).tokens[-1]
        assert ((last - t["out_all_last"]).abs().max() < 2e-5) == is_equal
        if is_equal:
            views = torch.stack([own[mask] for own, mask in zip(images, context, strict=True)])
            alone = vggt(views, heads=()).tokens[-1]
            assert (alone - t["out_context_alone_last"]).abs().max() < 2e-5


# ---- The whole model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("qwen2_5_vl"))
def test_the_model_equals_the_published_one(case: str) -> None:
    check_case(f"spa3r/qwen2_5_vl/{case}", 6e-5)
    meta, t = load_case(f"spa3r/qwen2_5_vl/{case}")
    frames = t["geometry_images_u8"] / 255
    assert (official_spa3r_latents(build(meta), frames) - t["out_latents"]).abs().max() < 1e-5


def test_an_export_has_the_published_names_and_is_read_again() -> None:
    """DINOv3, which answers do not need, is left out. What predicts features is kept where it was."""
    meta, t = load_case("spa3r/qwen2_5_vl/one_frame_cropped")
    model = build(meta)
    kept = {name: shape for name, shape in meta["param_names"].items() if ".dino." not in name}
    written = official_tensors(model)
    assert {name: [*tensor.shape] for name, tensor in written.items()} == kept
    config = {**meta["config"]["qwen"], "vggt_aggregator": meta["config"]["vggt_aggregator"]}
    for tensors in (written, {name: each for name, each in written.items() if not name.startswith(UNUSED)}):
        again = load_spa3_vlm(config, tensors)
        assert torch.equal(logits_of(again, t, media(t, meta)), logits_of(model, t, media(t, meta)))
    del written[f"{PREFIX}encoder.norm.bias"]
    with pytest.raises(InputError, match="1 missing: geometry_encoder.spa3r.encoder.norm.bias"):
        load_spa3_vlm(config, written)


def test_every_tensor_at_full_size_has_its_place() -> None:
    """By lists of the official classes, on the meta device. The released files were not seen."""
    adapter, own = (
        json.loads((GOLDEN / f"spa3r/manifests/{each}.json").read_text()) for each in ("spa3_vlm_3b", "spa3r")
    )
    with torch.device("meta"):
        model = SpatialVLM(**PretrainedSpa3VLM.released_parts("hustvl/Spa3-VLM"))
        names = {name: [*each.shape] for name, each in official_tensors(model).items()}
    assert adapter["tensors"].items() <= names.items()
    assert model.fusion is not None
    assert sum(p.numel() for p in model.fusion.parameters()) == adapter["parameters_adapter"] == 28_857_344
    field = {name.removeprefix(PREFIX): shape for name, shape in names.items() if name.startswith(PREFIX)}
    assert {name: shape for name, shape in own["tensors"].items() if name.startswith(FIELD)}.items() <= field.items()
    assert not {*own["vggt_names_absent"]} & {*field}


# ---- In a model ------------------------------------------------------------------------------------------------------


def model(**options: Any) -> VideoQATask:
    geometry = partial(TinySpa3R, embed_dim=32, depth=2, num_heads=2, dim=16, queries=4, layers=(1, 1), seed=0)
    return tiny_model("plain", geometry=geometry, fusion=partial(Spa3RFusion, **options))


def test_a_batch_is_its_scenes_and_a_step_its_rows() -> None:
    task = model().train()
    scenes = two_scenes()
    packed = learned(task, task.loss(tiny_batch(task, *scenes, training=True)))
    assert difference(packed, learned(task, task.loss(one_per_row(task, *scenes)))) < 1e-5
    trained = {name for name, each in packed[1].items() if each.any()}
    assert any("fusion.adapter.geometry_gate" in name for name in trained)
    assert not any(name.startswith("model.geometry.vggt") for name in packed[1])


def test_answers_are_those_of_one_pass_and_read_the_latents_of_all_frames() -> None:
    task = model().eval()
    scenes = two_scenes()
    asked = tiny_batch(task, *scenes)
    assert [reply.ids for reply in replies(task, asked)] == one_by_one(task, asked)
    first = task.model.encode_scenes(asked)[0].visual.tokens
    assert scenes[0].frames is not None
    frames = scenes[0].frames.clone()
    frames[-2:] = 255 - frames[-2:]  # the last view
    other = task.model.encode_scenes(tiny_batch(task, replace(scenes[0], frames=frames)))[0].visual.tokens
    assert (first[0] - other[0]).abs().max() > 1e-6  # the first view reads the latents of all
    plain = model(active_branches="2d").eval()
    plain.load_state_dict(task.state_dict(), strict=False)
    own = plain.model.encode_scenes(asked)[0].visual.tokens
    other = plain.model.encode_scenes(tiny_batch(plain, replace(scenes[0], frames=frames)))[0].visual.tokens
    assert torch.equal(own[0], other[0]) and not torch.equal(own[-1], other[-1])  # the control


def test_tokens_of_another_kind_are_an_error_at_construction() -> None:
    with pytest.raises(InputError, match="Spa3RFusion reads latents .*TinyVGGT"):
        SpatialVLM(TinyQwen25VL(), geometry=TinyVGGT, fusion=Spa3RFusion)
    with pytest.raises(InputError, match="AddFusion reads patches .*TinySpa3R"):
        SpatialVLM(TinyQwen25VL(), geometry=TinySpa3R, fusion=AddFusion)


def test_an_adapter_may_start_as_the_plain_model() -> None:
    tokens, latents = torch.randn(6, 16), torch.randn(3, 8)
    assert torch.equal(Spa3RAdapter(16, 2, 8, published_start=False)(tokens, latents), tokens)
    assert not torch.equal(Spa3RAdapter(16, 2, 8)(tokens, latents), tokens)  # the control
