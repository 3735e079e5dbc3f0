"""Official checkpoints: every tensor of the released ones has its place, both ways of naming, configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.zoo.released import GOLDEN, build, load_case, official_weights, tiny_release
from zoo import (
    Cameras,
    ConcatSplitMLLM,
    InputError,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    PretrainedQwen35,
    PRoPE,
    PRoPEMLLM,
    SpatialMLLM,
    SpatialVLM,
)
from zoo.backbones.pretrained import qwen25_config
from zoo.checkpoints import (
    load_qwen3_5,
    load_qwen3_vl,
    load_qwen25_vl,
    load_spatial_mllm,
    load_spatial_stack,
    load_vg_llm,
    official_tensors,
)
from zoo.geometry import PretrainedVGGT
from zoo.published import PretrainedSpatialStack, PretrainedVGLLM
from zoo.published.spatial_mllm import geometry_of
from zoo.tasks import VideoQATask

HERE = Path(__file__).parents[1] / "golden"
pytestmark = pytest.mark.usefixtures("tiny_dino")


# ---- the released checkpoints, by their manifests --------------------------------------------------------------


def manifest(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors on the meta device) of a released checkpoint."""
    qwen = json.loads((HERE / f"manifests/{name.removeprefix('spatial_mllm_')}_shapes.json").read_text())
    config, shapes = {"qwen": qwen["config"]}, qwen["shapes"]
    if name.startswith("spatial_mllm"):
        config["spatial_config"] = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
        config["connector_config"] = {"connector_type": "mlp_add", "spatial_embeds_layer_idx": -1}
        vggt = json.loads((HERE / "vggt/vggt_1b_shapes.json").read_text())["shapes"]
        wide, hidden = 8 * 2048, config["qwen"]["hidden_size"]
        connector = {"ln_q.weight": [wide], "mlp.0.weight": [wide, wide], "mlp.0.bias": [wide]}
        connector |= {"mlp.2.weight": [hidden, wide], "mlp.2.bias": [hidden]}
        shapes |= {f"spatial_encoder.vggt_model.{name}": shape for name, shape in vggt.items()}
        shapes |= {f"connector.{name}": shape for name, shape in connector.items()}
    return config, {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}


RELEASED = {  # tensors and parameters of the file
    "qwen2_5_vl_3b": (824, 3_754_622_976),
    "qwen2_5_vl_7b": (729, 8_292_166_656),
    "spatial_mllm_qwen2_5_vl_3b": (2626, 5_313_185_196),
}


@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_a_released_checkpoint_has_its_place(name: str) -> None:
    config, tensors = manifest(name)
    assert (len(tensors), sum(tensor.numel() for tensor in tensors.values())) == RELEASED[name]
    load = load_spatial_mllm if name.startswith("spatial_mllm") else load_qwen25_vl
    with torch.device("meta"):
        model = load(config, tensors)  # raises for anything missing, unexpected or misshapen
        written = official_tensors(model)
        assert all(written[name].shape == tensors[name].shape for name in written)
        left = set(tensors) - set(written)
        heads = ("camera_head.", "depth_head.", "point_head.", "track_head.")
        assert all(name.removeprefix("spatial_encoder.vggt_model.").startswith(heads) for name in left)
        assert bool(left) == name.startswith("spatial_mllm") and set(written) <= set(tensors)


@pytest.mark.parametrize("size", ["2b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("8b",))])
def test_every_tensor_of_qwen3_vl_has_its_place(size: str) -> None:
    """By manifests of the stock model; the head of 2B and 4B is tied, and may be there all the same."""
    manifest = json.loads((HERE / f"manifests/qwen3_vl_{size}.json").read_text())
    with torch.device("meta"):
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in manifest["tensors"].items()}
        model = load_qwen3_vl(manifest["config"], tensors)  # raises for anything missing, unexpected or misshapen
        written = official_tensors(model)
        assert {name: t.shape for name, t in written.items()} == {name: t.shape for name, t in tensors.items()}
        tied = {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"]}
        assert bool(manifest["tied_not_stored"]) == (size != "8b")
        load_qwen3_vl(manifest["config"], tensors | tied)
        del tensors["model.visual.deepstack_merger_list.1.norm.weight"]
        with pytest.raises(InputError, match="this Qwen3-VL: 1 missing: model.visual.deepstack_merger_list.1.norm"):
            load_qwen3_vl(manifest["config"], tensors)


@pytest.mark.parametrize("size", ["4b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("0.8b", "27b"))])
def test_every_tensor_of_qwen3_5_has_its_place(size: str) -> None:
    """By manifests of the stock model; the tensors of the prediction of several tokens are not read."""
    manifest = json.loads((HERE / f"manifests/qwen3_5_{size}.json").read_text())
    with torch.device("meta"):
        every = manifest["tensors"] | manifest["mtp_not_loaded"]
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in every.items()}
        model = load_qwen3_5(manifest["config"], tensors)  # raises for anything missing, unexpected or misshapen
        written = {name: list(tensor.shape) for name, tensor in official_tensors(model).items()}
        assert written == manifest["tensors"]
        by_its_name = PretrainedQwen35(f"Qwen/Qwen3.5-{size.upper()}").load()  # of a plan, without a download
        assert sum(p.numel() for p in by_its_name.vlm.parameters()) == manifest["num_parameters"]
        # the end of a text by the config, and of a turn, which the tokenizer has and neither of them
        assert model.backbone.stop_tokens == by_its_name.stop_tokens == [248044, 248046]
        del tensors["model.language_model.layers.0.linear_attn.A_log"]
        with pytest.raises(InputError, match="this Qwen3.5: 1 missing: model.language_model.layers.0.linear_attn.A"):
            load_qwen3_5(manifest["config"], tensors)
    head = model.backbone.head_layout
    assert head.dim == 256 and [len(head.frequencies(axis)) for axis in range(3)] == [11, 11, 10]
    assert head.pairs(head.frequencies(1)) == [*range(1, 32, 3), *range(33, 64, 3)]


@pytest.mark.parametrize(
    "manifest, load, loader, path",
    [
        pytest.param("vg_llm_8b", load_vg_llm, PretrainedVGLLM, "zd11024/vgllm-qa-vggt-8b", marks=pytest.mark.slow),
        ("spatial_stack_qwen3_5_4b", load_spatial_stack, PretrainedSpatialStack, PretrainedSpatialStack.released),
    ],
)
def test_every_tensor_of_a_fused_model_has_its_place(manifest, load, loader, path) -> None:  # type: ignore[no-untyped-def]
    known = json.loads((GOLDEN / f"manifests/{manifest}.json").read_text())
    with torch.device("meta"):
        shapes = {name: each if isinstance(each, list) else each["shape"] for name, each in known["tensors"].items()}
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        model = load(known["config"], tensors)  # raises for anything missing, unexpected or misshapen
        assert {name: list(tensor.shape) for name, tensor in official_tensors(model).items()} == shapes
        by_its_name = SpatialVLM(**loader.released_parts(path))  # of a plan, without a download
        assert sum(p.numel() for p in by_its_name.parameters()) == known["num_parameters"]


# ---- forward passes at the size of the released weights, on tensors without memory -----------------------------

GRID = torch.tensor([[2, 12, 16]])  # in patches: four frames
MODE = FakeTensorMode(allow_non_fake_inputs=True)  # token ids, frames and cameras stay real


def fake(tensor: Tensor) -> FakeTensor:
    """A tensor of the CPU without memory, from one of the meta device."""
    return FakeTensor(MODE, tensor.detach(), torch.device("cpu"))


def make_fake(module: nn.Module) -> None:
    """Turn the tensors of a module on the meta device into fake ones, in place."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(fake(value), value.requires_grad) if value.is_meta else value
        part._buffers |= {name: fake(value) for name, value in part.named_buffers(recurse=False) if value.is_meta}


FULL_SIZE: dict[str, Callable[[], VideoQATask]] = {
    "PRoPEMLLM, Qwen2.5-VL-3B": lambda: PRoPEMLLM(
        PRoPE(), backbone=PretrainedQwen25VL("Qwen/Qwen2.5-VL-3B-Instruct"), geometry=PretrainedVGGT
    ),
    "ConcatSplitMLLM, Qwen3-VL-4B": lambda: ConcatSplitMLLM(
        backbone=PretrainedQwen3VL("Qwen/Qwen3-VL-4B-Instruct"), geometry=PretrainedVGGT
    ),
    "SpatialMLLM, Qwen3.5-4B": lambda: SpatialMLLM(
        backbone=PretrainedQwen35("Qwen/Qwen3.5-4B"), geometry=PretrainedVGGT
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_forward_at_the_size_of_the_released_weights(name: str) -> None:
    with torch.device("meta"):
        model = FULL_SIZE[name]().model
    make_fake(model)
    config, patch = model.backbone.vlm.config, model.backbone.patch_size
    spans = int(GRID[0, 0]) if model.backbone.span_per_step else 1
    span = [7, config.vision_start_token_id, *[config.video_token_id] * int(GRID.prod() // 4 // spans)]
    tokens = [1, *span * spans, 5, 6]
    ids, poses = torch.tensor([tokens]), torch.eye(4).repeat(1, 2, 1, 1)
    with torch.no_grad():
        logits = model.logits(
            ids,
            torch.ones_like(ids),
            pixel_values_videos=fake(torch.empty(int(GRID.prod()), 6 * patch**2, device="meta")),
            video_grid_thw=GRID,
            frames=[torch.zeros(4, 3, 12 * patch, 16 * patch)],
            cameras=Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1)),
        )
    assert logits.shape == (1, len(tokens), config.text_config.vocab_size)


# ---- names, configs and errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["one_video", "one_video_layer0_untied"])
def test_names_of_transformers_5_and_a_tied_head_that_is_there(case: str) -> None:
    meta, t = load_case(case)
    model, official = build(meta)
    newer = {PretrainedQwen25VL.backbone_names().current(name)[0]: tensor for name, tensor in official.items()}
    assert newer.keys() != official.keys()
    shared_frequency = "lm_head.weight" not in official
    if shared_frequency:
        newer["lm_head.weight"] = official["model.embed_tokens.weight"]
    again = load_spatial_mllm(meta["config"], newer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (again.backbone.vlm.lm_head.weight is again.backbone.vlm.get_input_embeddings().weight) == shared_frequency
    if not shared_frequency:
        del newer["lm_head.weight"]
        with pytest.raises(InputError, match="1 missing: lm_head.weight;"):
            load_spatial_mllm(meta["config"], newer)


def test_an_error_lists_all_kinds_and_ten_of_each() -> None:
    meta, _ = load_case("one_video")
    broken = official_weights(meta["config"], True)
    broken = {name: tensor for name, tensor in broken.items() if not name.startswith("model.layers.1.")}
    broken["surplus"] = broken["model.surplus"] = torch.zeros(1)
    broken["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(InputError) as error:
        load_spatial_mllm(meta["config"], broken)
    message = str(error.value)
    assert "don't fit this Qwen2.5-VL: 12 missing: model.layers.1." in message and "\n" not in message
    assert " and 2 more; 2 unexpected: surplus, model.surplus; 1 misshapen: model.norm.weight [3] instead of" in message


def test_tensors_of_another_model_are_refused() -> None:
    meta, _ = load_case("one_video")
    official = official_weights(meta["config"], True)
    with pytest.raises(InputError, match="don't fit this Qwen2.5-VL: .* unexpected: spatial_encoder"):
        load_qwen25_vl(meta["config"], official)
    with pytest.raises(InputError, match="don't fit this VGGT: .* missing: spatial_encoder"):
        load_spatial_mllm(meta["config"], official_weights(meta["config"], False))
    connector = [name for name in official if name.startswith("connector.")]
    with pytest.raises(InputError, match=f"don't fit this fusion: 1 misshapen: {connector[0]}"):
        load_spatial_mllm(meta["config"], official | {connector[0]: torch.zeros(3)})
    older = {name.replace("spatial_encoder.vggt_model.", "vggt."): tensor for name, tensor in official.items()}
    older |= {"vggt_embedding_merger.vgg_to_language_ln_q.weight": torch.ones(64)}
    for load in (load_qwen25_vl, load_spatial_mllm):
        with pytest.raises(InputError, match="weights of Spatial-MLLM v1.0"):
            load(meta["config"], older)
    meta["config"]["connector_config"]["connector_type"] = "cross_attention"
    with pytest.raises(InputError, match="connector of type cross_attention"):
        load_spatial_mllm(meta["config"], official)


@pytest.mark.parametrize("version", ["4.51", "4.51 saved again", "5"])
def test_a_config_of_any_version_means_the_same(version: str) -> None:
    config = tiny_release()[0]
    expected, parts_before = qwen25_config(config), geometry_of(config)
    noise = {"transformers_version": "4.51.3", "torch_dtype": "bfloat16", "_attn_implementation_autoset": True}
    config["spatial_config"] |= noise | {"model_type": "vggt_spatial_encoder"}
    if version != "4.51":
        config["rope_scaling"] = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
        config["vision_config"] |= noise | {"model_type": "qwen2_5_vl"}
    if version == "5":
        parts = {name: config[name] for name in ("spatial_config", "connector_config", "vggt_aggregator")}
        config = expected.to_dict() | parts
    found, parts_now = qwen25_config(config), geometry_of(config)
    assert (parts_now.aggregator, parts_now.layers) == (parts_before.aggregator, parts_before.layers)
    for part in ("text_config", "vision_config"):
        ours, theirs = (getattr(each, part) for each in (found, expected))
        for setting in ("hidden_size", "intermediate_size", "hidden_act", "initializer_range"):
            assert getattr(ours, setting) == getattr(theirs, setting)
    ropes = [each.text_config.rope_parameters for each in (found, expected)]
    assert ropes[0]["mrope_section"] == ropes[1]["mrope_section"] == [2, 3, 3]
    assert ropes[0]["rope_theta"] == ropes[1]["rope_theta"] == 1e6
    assert found.tie_word_embeddings and found.video_token_id == expected.video_token_id
    assert geometry_of({"qwen": {}}).aggregator == {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
