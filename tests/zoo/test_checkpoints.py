"""Official checkpoints in memory: every tensor of the released ones, both ways of naming, configs, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.released import GOLDEN, build, load_case, official_weights, tiny_release
from zoo import InputError
from zoo.backbones.official_names import backbone_names
from zoo.backbones.released_configs import ReleasedConfig
from zoo.checkpoints import load_qwen25_vl, load_spatial_mllm, official_tensors
from zoo.checkpoints.export import model_names

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


def test_the_composed_manifest_is_the_whole_one() -> None:
    whole = GOLDEN / "manifests/spatial_mllm_v1_1_qwen2_5_vl_3b.json"
    if not whole.exists():
        pytest.skip("ZOO_GOLDEN names no folder with the whole manifests")
    shapes = {name: tensor["shape"] for name, tensor in json.loads(whole.read_text())["tensors"].items()}
    assert {name: list(t.shape) for name, t in manifest("spatial_mllm_qwen2_5_vl_3b")[1].items()} == shapes


# ---- names -----------------------------------------------------------------------------------------------------


def test_names_round_trip() -> None:
    model, backbone = model_names(), backbone_names()
    for name in manifest("spatial_mllm_qwen2_5_vl_3b")[1]:
        assert {model.official(part) for part in model.current(name)} == {name}
        (current,) = backbone.current(name)
        assert backbone.official(current) == name and backbone.current(current) == (current,)


@pytest.mark.parametrize("case", ["one_video", "one_video_layer0_untied"])
def test_names_of_transformers_5_and_a_tied_head_that_is_there(case: str) -> None:
    meta, t = load_case(case)
    model, official = build(meta)
    newer = {backbone_names().current(name)[0]: tensor for name, tensor in official.items()}
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


def test_weights_keep_their_dtype_and_are_copied() -> None:
    meta, _ = load_case("one_video")
    half = {name: tensor.bfloat16() for name, tensor in official_weights(meta["config"], True).items()}
    model = load_spatial_mllm(meta["config"], half)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = [b for name, b in model.backbone.vlm.named_buffers() if "inv_freq" in name]
    assert frequencies and all(b.dtype == torch.float32 for b in frequencies)
    model.fusion.connector.ln_q.weight.data.zero_()
    assert half["connector.ln_q.weight"].abs().min() > 0


# ---- errors ----------------------------------------------------------------------------------------------------


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
        with pytest.raises(InputError, match="weights of Spatial-MLLM v1.0 .*no published numbers"):
            load(meta["config"], older)
    meta["config"]["connector_config"]["connector_type"] = "cross_attention"
    with pytest.raises(InputError, match="connector of type cross_attention"):
        load_spatial_mllm(meta["config"], official)


@pytest.mark.parametrize("version", ["4.51", "4.51 saved again", "5"])
def test_a_config_of_any_version_means_the_same(version: str) -> None:
    config = tiny_release()[0]
    expected = ReleasedConfig(config)
    noise = {"transformers_version": "4.51.3", "torch_dtype": "bfloat16", "_attn_implementation_autoset": True}
    config["spatial_config"] |= noise | {"model_type": "vggt_spatial_encoder"}
    if version != "4.51":
        config["rope_scaling"] = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
        config["vision_config"] |= noise | {"model_type": "qwen2_5_vl"}
    if version == "5":
        parts = {name: config[name] for name in ("spatial_config", "connector_config", "vggt_aggregator")}
        config = expected.qwen.to_dict() | parts
    found = ReleasedConfig(config)
    assert (found.aggregator, found.layer) == (expected.aggregator, expected.layer)
    for part in ("text_config", "vision_config"):
        ours, theirs = (getattr(each.qwen, part) for each in (found, expected))
        for setting in ("hidden_size", "intermediate_size", "hidden_act", "initializer_range"):
            assert getattr(ours, setting) == getattr(theirs, setting)
    ropes = [each.qwen.text_config.rope_parameters for each in (found, expected)]
    assert ropes[0]["mrope_section"] == ropes[1]["mrope_section"] == [2, 3, 3]
    assert ropes[0]["rope_theta"] == ropes[1]["rope_theta"] == 1e6
    assert found.qwen.tie_word_embeddings and found.qwen.video_token_id == expected.qwen.video_token_id
    assert ReleasedConfig({"qwen": {}}).aggregator == {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
