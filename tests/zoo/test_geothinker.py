"""GeoThinker: the published numbers, what acts within decoder layers, groups, compressed tokens, and its files."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from datamodules.resize import WholeStills
from tests.golden.weights_geothinker import init_geo_
from tests.tiny import OF_VIDEOS, RATES, tiny_backbone
from tests.zoo.fused_golden import check_case, load_case, logits_of, media, official_weights
from tests.zoo.released import GOLDEN, read_release, write_release
from tests.zoo.showing import STARTS, batch, check_start, logits
from zoo import DepthPrediction, GeoThinker, GeoThinkerFusion, InputError, SpatialVLM, TinyVGGT
from zoo.backbones.qwen3_vl import tiny_processor
from zoo.checkpoints import (
    PretrainedGeoThinker,
    PretrainedGeoThinkerQwen3,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    load_geothinker,
    official_3d_tokens,
    official_interaction,
    official_parameters,
    official_tensors,
)
from zoo.checkpoints.export import export_model, unofficial_parts
from zoo.fusions.geothinker import Interaction
from zoo.media import Media, batch_of_media
from zoo.scene_encoding import encode_vision
from zoo.sequences.loaded_scene import FrameRules
from zoo.tasks import VideoQATask

HERE = Path(__file__).parents[1] / "golden"
MODULE = sorted(path.stem for path in (GOLDEN / "geothinker/module").glob("*.safetensors"))
WHOLE = sorted(
    f"geothinker/{family}/{path.stem}"
    for family in ("qwen2_5_vl", "qwen3_vl")
    for path in (GOLDEN / "geothinker" / family).glob("*.safetensors")
)
ONE = {family: f"geothinker/{family}/one_frame" for family in ("qwen2_5_vl", "qwen3_vl")}


# ---- Published numbers -----------------------------------------------------------------------------------------------


def interaction_case(case: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    meta = json.loads((GOLDEN / f"geothinker/module/{case}.json").read_text())
    t = load_file(GOLDEN / f"geothinker/module/{case}.safetensors")
    return meta, t, {name: init_geo_(name, torch.empty(s)).to(dtype) for name, s in meta["param_names"].items()}


@pytest.mark.parametrize("case", [case for case in MODULE if not case.startswith("distance")])
def test_an_interaction_equals_the_published_one(case: str) -> None:
    for dtype, expected, atol in ((torch.float32, "out", 3e-6), (torch.float64, "out_f64", 1e-10)):
        meta, t, weights = interaction_case(case, dtype)
        act = official_interaction(meta["config"], weights)
        hidden, geometry = (t[name].to(dtype).requires_grad_() for name in ("hidden", "geometry"))
        found = act(hidden, geometry, t.get("image_grid_thw"))
        assert torch.allclose(found, t[expected], atol=atol, rtol=0)
        (found.square().sum() / 2).backward()
        for given, name in ((hidden, "grad_hidden"), (geometry, "grad_geometry")):
            assert (given.grad - t[name]).abs().max() < 1e-5 * t[name].abs().max()
    if wrong := meta["sensitivity_out_max_abs"].get("all_tokens_in_one_group"):
        difference = (act(hidden, geometry, None) - t["out_f64"]).abs().max().item()
        assert difference == pytest.approx(wrong, rel=1e-3)


def test_the_distance_term_is_refused() -> None:
    meta = json.loads((GOLDEN / "geothinker/module/distance_flash.json").read_text())
    with pytest.raises(NotImplementedError, match="no released model has the distance term"):
        official_interaction(meta["config"], {})


@pytest.mark.parametrize("case", WHOLE)
def test_a_model_equals_the_published_one(case: str) -> None:
    model = check_case(case, atol=4e-5)
    meta, t = load_case(case)
    given = media(t, meta)
    (tokens,) = official_3d_tokens(model, given["frames"][0], given["image_grid_thw"])
    assert torch.allclose(tokens, t["out_geometry"], atol=1e-5, rtol=0)
    for interaction in model.fusion.layers.values():  # type: ignore[union-attr]
        interaction.gate.data.zero_()
    closed = (logits_of(model, t, given) - t["out_logits"]).abs().max().item()
    assert closed == pytest.approx(meta["sensitivity_logits_max_abs"]["gates_closed"], rel=1e-3)


@pytest.mark.parametrize(("family", "px"), [("qwen2_5_vl", 28), ("qwen3_vl", 32)])
def test_pictures_tokens_and_groups_have_the_published_sizes(family: str, px: int) -> None:
    fusion = GeoThinkerFusion(32, 8, hidden=8)
    rule = FrameRules(compress_beyond=8)
    for row in json.loads((GOLDEN / "geothinker/preprocess/sizes.json").read_text())["rows"]:
        expected, picture = row[family], torch.zeros(1, 3, row["height"], row["width"], dtype=torch.uint8)
        for fit, name in (("crop", "train_grid_thw"), ("resize", "eval_grid_thw")):
            shown = WholeStills(fit)(picture, px)  # type: ignore[arg-type]
            assert list(shown.geometry_frames.shape[-2:]) == expected["vggt"]
            _, height, width = grid = [1, *(2 * side // px for side in shown.frames.shape[-2:])]
            assert grid == expected[name]
        assert height * width // 4 == expected["tokens_up_to_8_frames"]
        sizes = [fusion.group_size((n, height, width), rule.token_side((n, height, width))) for n in range(1, 9)]
        assert sizes == expected["group_of_n_frames_1_to_8"]
        side = rule.token_side((9, height, width))
        assert (height // side) * (width // side) == expected["tokens_beyond"]


# ---- What acts within the layers -------------------------------------------------------------------------------------


def task(family: str, fused: bool = True, dtype: str = "float32", fusion: Any = None, **options: Any) -> VideoQATask:
    """With 3D tokens of VGGT's last layer in three of four layers, in Qwen3.5 in the one of full attention."""
    backbone = tiny_backbone(family, 6 if family == "Qwen3.5" else 4, dtype=dtype)
    if fused:
        options["fusion"] = partial(GeoThinkerFusion, hidden=16, **(fusion or {}))
        options["geometry"] = lambda: TinyVGGT(embed_dim=32, depth=2, num_heads=2, seed=0)
    torch.manual_seed(0)
    return VideoQATask(backbone=backbone, learning_rates=RATES, **options)


def open_gates(model: VideoQATask) -> None:
    """Weights that say something."""
    fusion: Any = model.model.fusion
    for i, (name, parameter) in enumerate(fusion.named_parameters()):
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
        elif parameter.ndim == 2:
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.data.copy_(drawn * parameter.shape[1] ** -0.5)


@pytest.mark.parametrize(("family", "options"), STARTS)
def test_it_starts_as_the_stock_model_and_learns_by_its_gates(family: str, options: dict[str, Any]) -> None:
    layers = [1] if family == "Qwen3.5" else [0, 1, 2]
    check_start(task, open_gates, {f"layers.{i}.gate" for i in layers}, family, options)


def act_slowly(part: Interaction, states: Tensor, tokens: Tensor, groups: list[list[int]]) -> Tensor:
    """Query by query, head by head, over the tokens of its group."""
    added, heads = torch.zeros_like(states), part.heads
    flat = F.layer_norm(states, states.shape[-1:], part.input_layernorm.weight, part.input_layernorm.bias, 1e-6)
    spatial = F.layer_norm(tokens, tokens.shape[-1:], part.vggt_layernorm.weight, part.vggt_layernorm.bias, 1e-6)
    net: Any = part.importance_net
    importance = torch.sigmoid(net[2](torch.relu(net[0](flat))))[:, 0]
    for group in groups:
        group_keys = torch.stack([part.k_proj.weight @ spatial[j] for j in group])
        group_values = torch.stack([part.v_proj.weight @ spatial[j] for j in group])
        for i in group:
            found = []
            for head in range(heads):
                own = slice(head * states.shape[1] // heads, (head + 1) * states.shape[1] // heads)
                query = (part.q_proj.weight @ flat[i])[own]
                keys, values = group_keys[:, own], group_values[:, own]
                scores = keys @ query / len(query) ** 0.5 + torch.log(importance[group] + 0.1)
                found.append(torch.softmax(scores, 0) @ values)
            added[i] = torch.tanh(part.gate) * (part.o_proj.weight @ torch.cat(found))
    return added


@torch.no_grad()
def walk(model: VideoQATask, given: dict[str, Any], wrong: str = "") -> Tensor:
    """Hidden states of one sequence of two scenes, step by step; the controls are wrong in one way each."""
    zoo, decoder = model.model, model.model.backbone.decoder
    shown: Media = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}  # type: ignore
    asked = batch_of_media(zoo.sequence_builder, given["input_ids"], given["attention_mask"], shown)
    sequences, fusion = asked.sequences, zoo.fusion
    assert sequences is not None and sequences.position_ids is not None and fusion is not None
    encoded, seen = zoo.encode_scenes(asked), encode_vision(zoo.backbone, asked)
    tokens = torch.cat([each.layer_tokens.flatten(0, 1) for each in encoded])  # type: ignore[union-attr]
    flat = torch.cat([each.visual.tokens.flatten(0, 1) for each in encoded])
    assert torch.equal(flat, torch.cat([each.visual.tokens.flatten(0, 1) for each in seen]))  # as they were
    places, sources = sequences.visual_places.tolist(), sequences.visual_sources.tolist()
    place_of = dict(zip(sources, places, strict=True))
    groups, start = [], 0
    for scene in asked.scenes:
        count = scene.num_steps * scene.tokens_per_step
        size = count if wrong == "one group" else fusion.group_size(scene.grid_thw, scene.token_side)
        groups += [list(range(at, at + size)) for at in range(start, start + count, size)]
        start += count
    hidden = decoder.embed_tokens(given["input_ids"]).clone()
    order = [place_of[source] for source in range(len(tokens))]
    hidden[0, order] = flat
    rotary, layers = decoder.rotary_emb(hidden, sequences.position_ids), fusion.interactions
    deepstack = torch.cat([each.visual.deepstack.flatten(1, 2) for each in encoded], 1)
    for i, layer in enumerate(decoder.layers):
        part: Any = layers.get(i)
        if hasattr(layer, "self_attn"):
            attended = layer.self_attn(layer.input_layernorm(hidden), attention_mask=None, position_embeddings=rotary)
            hidden = hidden + attended[0]
        else:
            hidden = hidden + layer.linear_attn(layer.input_layernorm(hidden))
        if part is not None and wrong != "behind the MLP":
            hidden[0, order] += act_slowly(part, hidden[0, order], tokens, groups)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if part is not None and wrong == "behind the MLP":
            hidden[0, order] += act_slowly(part, hidden[0, order], tokens, groups)
        if i < len(deepstack):
            hidden[0, order] += deepstack[i]
    return decoder.norm(hidden)


@pytest.mark.parametrize("fusion", [{}, {"groups": "view"}, {"compress_beyond": 1}], ids=str)
@pytest.mark.parametrize("family", OF_VIDEOS)
def test_it_acts_between_attention_and_mlp(family: str, fusion: dict[str, Any]) -> None:
    model = task(family, fusion=fusion).eval()
    open_gates(model)
    sample = [("t", 3), ("i", 4, 8), ("v", 6, 4, 4), ("i", 4, 8), ("t", 4)]  # a video between the images of a scene
    given = batch(model.model, [sample])
    with torch.no_grad():
        (found,), lm_head = logits(model.model, given), model.model.backbone.lm_head
        assert torch.allclose(found, lm_head(walk(model, given))[0], atol=2e-5)
        for wrong in ("behind the MLP", "one group"):
            assert (found - lm_head(walk(model, given, wrong))[0]).abs().max() > 1e-3, wrong


# ---- A quarter of the tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Qwen2.5-VL", "Qwen3-VL"])
def test_a_scene_of_many_views_keeps_a_quarter_of_its_tokens(family: str) -> None:
    """Of even sides, they are means of 2 x 2 tokens; positions are those of images of half the size."""
    whole, model = (task(family, fusion={"compress_beyond": n}).model for n in (None, 2))
    stills = [("t", 2), *[("i", 8, 12)] * 3, ("t", 3)]
    asked = {name: batch(each, [stills]) for name, each in (("whole", whole), ("quarter", model))}
    scenes = {}
    for name, each in (("whole", whole), ("quarter", model)):
        given = asked[name]
        shown: Any = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}
        made = batch_of_media(each.sequence_builder, given["input_ids"], given["attention_mask"], shown)
        with torch.no_grad():
            scenes[name] = made, each.encode_scenes(made)[0].visual
    (full, full_visual), (made, visual) = scenes["whole"], scenes["quarter"]
    assert (full.scenes[0].tokens_per_step, made.scenes[0].tokens_per_step) == (24, 6)
    for ours, theirs in zip(visual, full_visual, strict=True):
        means = theirs.unflatten(-2, (2, 2, 3, 2)).mean((-2, -4)).flatten(-3, -2)
        assert torch.allclose(ours, means, atol=1e-5)
    assert len(visual.deepstack) == (2 if family == "Qwen3-VL" else 0)
    small = batch(whole, [[("t", 2), *[("i", 4, 6)] * 3, ("t", 3)]])
    media: Any = {k: v for k, v in small.items() if k not in ("input_ids", "attention_mask")}
    half = batch_of_media(whole.sequence_builder, small["input_ids"], small["attention_mask"], media)
    assert torch.equal(made.sequences.position_ids, half.sequences.position_ids)  # type: ignore[union-attr]
    assert made.sequences.input_ids.shape != full.sequences.input_ids.shape  # type: ignore[union-attr]
    two = batch(model, [[("t", 2), *[("i", 8, 12)] * 2, ("t", 3)]])  # not beyond
    assert (two["input_ids"] == model.backbone.placeholders.image).sum() == 2 * 24
    with pytest.raises(ValueError, match="more placeholder tokens than its grid_thw requires"):
        logits(model, asked["whole"])


def test_settings_and_views_that_do_not_fit_are_one_line() -> None:
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
    with pytest.raises(InputError, match="--model.fusion.compress_beyond 0"):
        GeoThinkerFusion(16, 8, compress_beyond=0)
    with pytest.raises(InputError, match="--model.fusion.compress_beyond 8"):
        GeoThinker(geometry=vggt, fusion=GeoThinkerFusion, objectives=[DepthPrediction()])
    with pytest.raises(InputError, match="--model.backbone.layers"):
        GeoThinker(backbone=tiny_backbone("Qwen3.5", 4), geometry=vggt, fusion=GeoThinkerFusion)
    with pytest.raises(InputError, match="groups"):
        GeoThinkerFusion(16, 8, groups="frame")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="views of 2 x 8 patches"):
        FrameRules(compress_beyond=1).token_side((2, 2, 8))
    assert FrameRules(compress_beyond=1).token_side((1, 2, 8)) == FrameRules().token_side((2, 2, 8)) == 2


# ---- Files -----------------------------------------------------------------------------------------------------------

LOADERS: dict[str, Any] = {
    "qwen2_5_vl": (PretrainedGeoThinker, PretrainedQwen25VL),
    "qwen3_vl": (PretrainedGeoThinkerQwen3, PretrainedQwen3VL),
}


@pytest.mark.parametrize("family", ONE)
def test_what_is_missing_has_its_official_name_and_what_no_one_reads_may_be(family: str) -> None:
    meta, t = load_case(ONE[family])
    official = official_weights(meta)
    layer = "model.layers.1." if family == "qwen2_5_vl" else "model.language_model.layers.1."
    assert f"{layer}cross_attn.bias_gate.0.weight" in official
    for name in (
        f"{layer}cross_attn.gate",
        next(each for each in official if each.endswith("geometry_merger.mlp.0.bias")),
    ):
        with pytest.raises(InputError, match=f"1 missing: {re.escape(name)}"):
            load_geothinker(meta["config"], {key: tensor for key, tensor in official.items() if key != name})
    last = max(map(int, re.findall(r"layers\.(\d+)\.cross_attn", " ".join(official)))) + 1
    gate = f"{layer}cross_attn.gate"
    with pytest.raises(InputError, match="unexpected: .*cross_attn"):
        load_geothinker(meta["config"], official | {gate.replace(".1.", f".{last}."): official[gate]})
    without = {name: tensor for name, tensor in official.items() if "bias_gate" not in name}
    model = load_geothinker(meta["config"], without)
    assert torch.allclose(logits_of(model, t, media(t, meta)), t["out_logits"], atol=4e-5, rtol=0)
    found = official_tensors(model)
    assert found.keys() == without.keys() and all(torch.equal(found[name], without[name]) for name in found)
    assert found[f"{layer}cross_attn.gate"].shape == ()
    assert official_parameters(model).keys() >= {name for name in without if "geometry_encoder" not in name}


@pytest.mark.parametrize("setting", [{"geo_inject_version": "v1"}, {"geo_spatial_bias": True}, {"smi_image_num": 16}])
@pytest.mark.parametrize("family", ONE)
def test_what_was_never_released_is_refused(family: str, setting: dict[str, Any]) -> None:
    meta, _ = load_case(ONE[family])
    qwen = meta["config"]["qwen"]
    (qwen | qwen.get("text_config", {})).update(setting)
    qwen.update(setting)
    with pytest.raises(InputError, match=f"{next(iter(setting))} .* in the config: only .* is supported, as released"):
        load_geothinker(meta["config"], official_weights(meta))


@pytest.mark.parametrize("family", ONE)
def test_a_released_folder_is_written_back_bit_for_bit(tmp_path: Path, family: str) -> None:
    """With the tensors that no one reads, and settings in their places."""
    meta, t = load_case(ONE[family])
    official = {name: tensor.bfloat16() for name, tensor in official_weights(meta).items()}
    own = meta["config"]["qwen"] | {"vggt_aggregator": meta["config"]["vggt_aggregator"], "model_type": family}
    write_release(
        tmp_path / "release", own, official, **({} if family == "qwen2_5_vl" else {"processor": tiny_processor()})
    )
    loader, plain = LOADERS[family]
    model = SpatialVLM.from_pretrained(tmp_path / "release")
    assert isinstance(model.loader, loader) and model.is_pretrained and unofficial_parts(model) == []
    assert model.fusion.detached == (family == "qwen3_vl")  # type: ignore[union-attr]
    with pytest.raises(InputError, match=f"--model.backbone {loader.__name__}"):
        plain(str(tmp_path / "release")).load()
    export_model(model, tmp_path / "out")
    written = read_release(tmp_path / "out")
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in written)
    config = json.loads((tmp_path / "out/config.json").read_text())
    for key, value in own.items():
        if "geo" in key or "smi" in key:
            assert config[key] == value, key
    text, given = config.get("text_config", {}), own.get("text_config", {})
    assert {k: v for k, v in text.items() if k in given} == given
    again = load_geothinker(config, {name: tensor.float() for name, tensor in written.items()})
    float32 = load_geothinker(meta["config"], {name: tensor.float() for name, tensor in official.items()})
    shown = media(t, meta)
    assert torch.equal(logits_of(again, t, shown), logits_of(float32, t, shown))


@pytest.mark.parametrize("name", ["geothinker_qwen2_5_vl_3b", "geothinker_qwen3_vl_8b"])
def test_names_and_shapes_at_full_size(name: str) -> None:
    manifest = json.loads((HERE / f"manifests/{name}.json").read_text())
    with torch.device("meta"):
        tensors = {key: torch.empty(shape, dtype=torch.bfloat16) for key, shape in manifest["tensors"].items()}
        model = load_geothinker(manifest["config"], tensors)  # raises for anything missing, unexpected or misshapen
        found = official_tensors(model)
    expected = {key: list(tensor.shape) for key, tensor in tensors.items() if "bias_gate" not in key}
    assert {key: list(tensor.shape) for key, tensor in found.items()} == expected
