"""Qwen2.5-VL, Spatial-MLLM, VG-LLM and SpatialStack against numbers from the published code, and their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.inference import data_of, load_frames
from run_folder.configs import CONFIGS, read_config
from tests.golden.synth import synth_video
from tests.golden.weights import init_
from tests.zoo import released
from tests.zoo.fused_golden import build, check_case, load_case, logits_of, media, official_weights
from tests.zoo.released import GOLDEN, read_release, write_release
from zoo import SpatialStack, SpatialVLM, TinyVGGT
from zoo.backbones.qwen3_5 import tiny_processor
from zoo.checkpoints import (
    PretrainedQwen25VL,
    PretrainedQwen35,
    PretrainedSpatialStack,
    PretrainedSpatialStackQwen25,
    PretrainedVGLLM,
    export_model,
    load_spatial_mllm,
    load_spatial_stack,
    load_vg_llm,
    official_3d_tokens,
    official_fusion,
    unofficial_parts,
)
from zoo.configuration import from_config
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.errors import InputError
from zoo.fusions import PatchMergerFusion, StackFusion
from zoo.fusions.base import RMSNorm
from zoo.geometry.base import SceneGeometry

CASES = sorted(
    f"{folder}/{path.stem}"
    for folder in (
        *("full_model", "vg_llm/full_model", "vg_llm/first_release"),
        *("spatial_stack/qwen2_5_vl", "spatial_stack/qwen3_5"),
    )
    for path in (GOLDEN / folder).glob("*.safetensors")
    if path.stem not in ("gated_fusion", "vision_add", "language_cross_attention")  # which no released model has
)
CROPPED, FIRST_RELEASE = "vg_llm/full_model/images3_cropped", "vg_llm/first_release/images3_cropped"
IMAGES3, LANGUAGE_ADD = "spatial_stack/qwen3_5/images3", "spatial_stack/qwen2_5_vl/language_add_images3"
ADD = "spatial_stack/qwen3_5/post_merger_add"


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_gradients_and_answers(case: str) -> None:
    folder, _, name = case.partition("/")
    if folder == "full_model":
        released.check_case(name)
    else:
        check_case(case, atol=2e-4 if "qwen3_5" in case else 3e-5)


# ---- each mistake shows ----------------------------------------------------------------------------------------


def test_a_mistake_in_spatial_mllm_shows() -> None:
    def another_layer(config: dict[str, Any], official: dict[str, Tensor]) -> None:
        config["connector_config"]["spatial_embeds_layer_idx"] = 0

    def swapped_camera_tokens(config: dict[str, Any], official: dict[str, Tensor]) -> None:
        name = "spatial_encoder.vggt_model.aggregator.camera_token"
        official[name] = official[name].flip(1)

    for mistake in (another_layer, swapped_camera_tokens):
        meta, t = released.load_case("one_video")
        official = released.official_weights(meta["config"], True)
        mistake(meta["config"], official)
        model = load_spatial_mllm(meta["config"], official)
        found = logits_of(model, t, released.media(t, meta))
        assert (found - t["out_logits"]).abs().max() > 0.05
    meta, t = released.load_case("qwen_one_video")
    wrong = released.media(t, meta) | {"seconds_per_grid": [0.5]}
    found = logits_of(released.build(meta)[0], t, wrong)
    assert not torch.allclose(found, t["out_logits"], atol=1e-2)  # another time is another answer


def other_layer(model: SpatialVLM, given: dict[str, Any]) -> None:
    model.geometry.layer_numbers = [3]  # type: ignore[union-attr, assignment]


def cropped_pictures(model: SpatialVLM, given: dict[str, Any]) -> None:
    given["frames"] = [frames[..., :56, :84] for frames in given["frames"]]


def rows_of_four(model: SpatialVLM, given: dict[str, Any]) -> None:
    merger: Any = model.fusion.merger  # type: ignore[union-attr]
    plain = merger.forward

    def forward(merged: Tensor) -> Tensor:
        t, n, _ = merged.shape  # 2 x 3 tokens of 2 x 2 patches
        blocks = merged.view(t, 2, 3, 2, 2, -1).transpose(2, 3)  # rows of six patches
        return plain(blocks.reshape(t, n, -1))

    merger.forward = forward


def reversed_layers(model: SpatialVLM, given: dict[str, Any]) -> None:
    model.geometry.layer_numbers = [3, 2, 1]  # type: ignore[union-attr, assignment]


def last_frame(model: SpatialVLM, given: dict[str, Any]) -> None:
    model.geometry.reference = "last"  # type: ignore[union-attr, assignment]


def no_geometry(model: SpatialVLM, given: dict[str, Any]) -> None:
    model.fusion.active_branches = "2d"  # type: ignore[union-attr]


def rms_norm(model: SpatialVLM, given: dict[str, Any]) -> None:
    connectors: Any = model.fusion.connectors  # type: ignore[union-attr]
    for connector in connectors:
        norm = RMSNorm(96)
        norm.weight = connector.ln_q.weight
        connector.ln_q = norm


MISTAKES = {  # the difference of the logits, as measured with the published code
    other_layer: (CROPPED, 2.4),
    cropped_pictures: (CROPPED, 0.69),
    rows_of_four: (CROPPED, 3.0),
    reversed_layers: (IMAGES3, 2.161),
    last_frame: (IMAGES3, 0.603),
    no_geometry: (IMAGES3, 3.528),
    rms_norm: (IMAGES3, 1.695),
}


@pytest.fixture(scope="module")
def built() -> Callable[[str], SpatialVLM]:
    """Models of cases, each built once; tests that change them take a copy."""
    return cache(lambda case: build(load_case(case)[0]))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_geometry_shows(mistake: Callable[..., None], built: Callable[[str], SpatialVLM]) -> None:
    case, expected = MISTAKES[mistake]
    meta, t = load_case(case)
    model, given = deepcopy(built(case)), media(t, meta)
    mistake(model, given)
    assert (logits_of(model, t, given) - t["out_logits"]).abs().max() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("case", [CROPPED, IMAGES3, LANGUAGE_ADD])
def test_added_tokens_are_the_published_ones(case: str, built: Callable[[str], SpatialVLM]) -> None:
    meta, t = load_case(case)
    added = official_3d_tokens(built(case), media(t, meta)["frames"][0])
    layers = meta["config"]["qwen"].get("geometry_fusion_layers", [])
    expected = [t[f"out_added_{layer}_{layers[:n].count(layer)}"] for n, layer in enumerate(layers)]
    for ours, theirs in zip(added, expected or [t["out_geometry"]], strict=True):
        assert torch.allclose(ours, theirs, atol=3e-5)


# ---- names of tensors ------------------------------------------------------------------------------------------


def test_the_names_of_the_tensors_tell_the_layouts_apart() -> None:
    """The published code reads the first release's config as one without geometry, and runs a plain Qwen2.5-VL."""
    meta, t = load_case(FIRST_RELEASE)
    official = official_weights(meta)
    del meta["config"]["qwen"]["use_vggt_feature"]
    found = logits_of(load_vg_llm(meta["config"], official), t, media(t, meta))
    assert torch.allclose(found, t["out_logits"], atol=3e-5, rtol=0)
    meta["config"]["qwen"]["use_vggt_feature"] = False
    with pytest.raises(InputError, match="unexpected: .*vggt"):
        load_vg_llm(meta["config"], official)


def test_what_is_missing_has_its_official_name_and_a_tied_head_may_be_there() -> None:
    meta, t = load_case(CROPPED)
    official = official_weights(meta)
    for name in (
        "geometry_merger.ln_q.weight",
        "geometry_encoder.vggt.aggregator.camera_token",
        "visual.merger.mlp.2.bias",
    ):
        with pytest.raises(InputError, match=f"1 missing: {name}"):
            load_vg_llm(meta["config"], {key: value for key, value in official.items() if key != name})
    official["lm_head.weight"] = official["model.embed_tokens.weight"]
    found = logits_of(load_vg_llm(meta["config"], official), t, media(t, meta))
    assert torch.allclose(found, t["out_logits"], atol=3e-5, rtol=0)
    with pytest.raises(InputError, match="feature_fusion_method 'gated'.*'add' is supported"):
        load_vg_llm(load_case("vg_llm/full_model/gated_fusion")[0]["config"], official)


def test_merger_and_fusion_by_themselves() -> None:
    meta, t = load_case("vg_llm/fusions/add")
    official = {name: init_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    geometry, fused = official_fusion(meta["config"], official)(t["patches"], t["visual"].flatten(0, 2))
    assert torch.allclose(geometry, t["out_geometry"].flatten(0, 2), atol=1e-5)
    assert torch.allclose(fused, t["out_fused"].flatten(0, 1), atol=1e-5)
    with pytest.raises(InputError, match="geometry_merger_type 'avg'"):
        official_fusion(load_case("vg_llm/fusions/add_average")[0]["config"], official)


def test_ways_of_fusing_that_were_never_released_are_refused() -> None:
    for method in ("concat", "gated", "weighted", "cross_attention"):
        meta, _ = load_case(f"vg_llm/fusions/{method}")
        official = {name: init_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
        with pytest.raises(InputError, match=f"feature_fusion_method '{method}' in the config: only 'add'"):
            official_fusion(meta["config"], official)
    for case in ("vision_add", "language_cross_attention"):
        meta, _ = load_case(f"spatial_stack/qwen2_5_vl/{case}")
        with pytest.raises(InputError, match="feature_fusion_method .* in the config: only 'deepstack_language_add'"):
            load_spatial_stack(meta["config"], official_weights(meta))


def test_connectors_start_at_zero_and_the_merger_at_random() -> None:
    fusion = StackFusion(16, 24, (0, 1), hidden=8)
    fusion.bind(2, DecoderLayout(16, 4, 2, 1, HeadLayout(8, ())))
    features = fusion.deep_features(SceneGeometry(patches=torch.randn(4, 2, 4, 24)), (2, 2, 4), torch.float32)
    assert features is not None and features.shape == (2, 2, 2, 16) and not features.any()
    torch.manual_seed(0)
    merger = PatchMergerFusion(16, 8, hidden=512).merger
    weights = [parameter for name, parameter in merger.mlp.named_parameters() if name.endswith("weight")]
    assert all(weight.std().item() == pytest.approx(0.02, rel=0.1) for weight in weights)


@pytest.mark.parametrize(
    "case",
    [IMAGES3, LANGUAGE_ADD],
)
def test_a_file_may_hold_either_name_or_both(case: str) -> None:
    meta, t = load_case(case)
    official, given = official_weights(meta), media(t, meta)
    loader = PretrainedSpatialStackQwen25 if case == LANGUAGE_ADD else PretrainedSpatialStack
    names = loader.second_names
    second = {
        name: theirs + name.removeprefix(ours)
        for name in official
        for theirs, ours in names.items()
        if name.startswith(ours)
    }
    assert second
    renamed = {second.get(name, name): tensor for name, tensor in official.items()}
    for tensors in (renamed, official | renamed):
        found = logits_of(load_spatial_stack(meta["config"], tensors), t, given)
        assert torch.allclose(found, t["out_logits"], atol=2e-4, rtol=0)
    last = next(name for name in reversed(renamed) if name in second.values() and name.endswith("mlp.2.bias"))
    with pytest.raises(InputError, match=f"1 missing: .*{re.escape(last.partition('.')[2])}"):
        load_spatial_stack(meta["config"], {name: tensor for name, tensor in renamed.items() if name != last})


# ---- folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CROPPED, FIRST_RELEASE])
def test_exported_bit_for_bit_in_the_layout_of_its_source(tmp_path: Path, case: str) -> None:
    meta, _ = load_case(case)
    official = official_weights(meta)
    model = load_vg_llm(meta["config"], official)
    export_model(model, tmp_path / "out")
    written, config = read_release(tmp_path / "out"), json.loads((tmp_path / "out/config.json").read_text())
    dense = tuple(f"vggt.{head}_head." for head in ("point", "depth"))  # read by no one, and not kept in memory
    assert written.keys() == {name for name in official if not name.startswith(dense)}
    assert all(torch.equal(written[name], official[name]) for name in written)
    geometry = {name: value for name, value in meta["config"]["qwen"].items() if name in PretrainedVGLLM.config_keys}
    assert {name: config[name] for name in geometry} == geometry
    assert load_vg_llm(config, written).fusion.hidden == 80  # type: ignore[union-attr]


@pytest.mark.parametrize("case", [CROPPED, FIRST_RELEASE])
def test_a_released_folder_is_loaded_asked_and_exported(tmp_path: Path, case: str) -> None:
    meta, t = load_case(case)
    settings = meta["config"]["qwen"] | {
        "vggt_aggregator": meta["config"]["vggt_aggregator"],
        "model_type": "qwen2_5_vl",
    }
    write_release(tmp_path / "release", settings, official_weights(meta))
    model = SpatialVLM.from_pretrained(tmp_path / "release")
    assert isinstance(model.loader, PretrainedVGLLM) and model.is_pretrained
    with pytest.raises(InputError, match="--model.backbone PretrainedVGLLM"):
        PretrainedQwen25VL(str(tmp_path / "release")).load()
    loaded = load_frames(model, data_of(model), synth_video(3, 2, 480, 640), None, as_images=True)
    assert loaded.geometry_frames is not None  # `answer` shows stills, as published, whatever the default
    assert data_of(model).frames_as == "image" and loaded.frames.shape[-2:] == (392, 504)  # type: ignore[union-attr]
    export_model(model, tmp_path / "out", dtype=torch.float32)
    assert read_release(tmp_path / "out").keys() == official_weights(meta).keys()  # the unused heads, too


def release(folder: Path, case: str, tensors: dict[str, Tensor], **settings: Any) -> str:
    """Write a case as a released folder, with other settings than its own."""
    config = load_case(case)[0]["config"]
    kind, processor = ("qwen3_5", {"processor": tiny_processor()}) if "qwen3_5" in case else ("qwen2_5_vl", {})
    own = config["qwen"] | {"vggt_aggregator": config["vggt_aggregator"], "model_type": kind}
    write_release(folder, own | settings, tensors, **processor)
    return str(folder)


@pytest.mark.parametrize(
    "case, loader, plain",
    [
        (IMAGES3, PretrainedSpatialStack, PretrainedQwen35),
        (LANGUAGE_ADD, PretrainedSpatialStackQwen25, PretrainedQwen25VL),
    ],
)
def test_a_released_folder_is_loaded_by_itself_and_by_the_published_command(
    tmp_path: Path, case: str, loader: Any, plain: Any
) -> None:
    """The fusion of `spatial_stack.yaml` has the norm of the release."""
    meta, t = load_case(case)
    official = official_weights(meta)
    path = release(tmp_path / "release", case, official)
    model = SpatialVLM.from_pretrained(path)
    assert isinstance(model.loader, loader) and model.is_pretrained
    with pytest.raises(InputError, match=f"--model.backbone {loader.__name__}"):
        plain(path).load()
    parts = read_config(CONFIGS / "spatial_stack.yaml")["model"]["init_args"]
    parts["backbone"] = {"class_path": loader.__name__, "init_args": {"path": path, "dtype": "float32"}}
    model = from_config(SpatialStack, {"class_path": "SpatialStack", "init_args": parts}).model
    assert torch.allclose(logits_of(model, t, media(t, meta)), t["out_logits"], atol=2e-4, rtol=0)
    assert unofficial_parts(model) == []
    export_model(model, tmp_path / "out")
    written, config = read_release(tmp_path / "out"), json.loads((tmp_path / "out/config.json").read_text())
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in written)
    settings = ("reference_frame", "feature_fusion_method", "geometry_fusion_layers", "geometry_encoder_layers")
    assert [config[name] for name in settings] == [meta["config"]["qwen"][name] for name in settings]


@pytest.mark.slow
def test_one_encoder_layer_for_all_is_written_once_for_each(tmp_path: Path) -> None:
    """As the published code pairs the layers; loaded again, the model is the same."""
    meta, t = load_case(IMAGES3)
    qwen = meta["config"]["qwen"] | {"geometry_encoder_layers": [3]}
    model, given = load_spatial_stack(meta["config"] | {"qwen": qwen}, official_weights(meta)), media(t, meta)
    export_model(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["geometry_encoder_layers"] == [3, 3, 3]
    again = load_spatial_stack(config, read_release(tmp_path / "out"))
    assert torch.allclose(logits_of(again, t, given), logits_of(model, t, given), atol=1e-4, rtol=0)


def test_connectors_of_other_decoder_layers_are_refused(tmp_path: Path) -> None:
    case = "spatial_stack/qwen3_5/images2_eight_layers_untied"
    path = release(tmp_path / "release", case, official_weights(load_case(case)[0]))
    with pytest.raises(InputError, match=r"connectors are of the decoder's layers \[0, 2, 5\]"):
        SpatialVLM(PretrainedSpatialStack(path), fusion=partial(StackFusion, decoder_layers=[0, 1, 2]))


@pytest.mark.parametrize("named, layer", [(None, -2), ([0, 1], 1)])
def test_the_layer_of_added_3d_tokens_is_that_of_the_config(
    tmp_path: Path, named: list[int] | None, layer: int
) -> None:
    path = release(tmp_path / "release", ADD, official_weights(load_case(ADD)[0]), geometry_encoder_layers=named)
    model = SpatialVLM.from_pretrained(path)
    assert model.geometry.layers == (layer,) and unofficial_parts(model) == []
    export_model(model, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["geometry_encoder_layers"] == [layer]  # which the published class requires


@pytest.mark.slow
def test_an_export_names_the_class_and_the_layers_of_what_it_holds(tmp_path: Path) -> None:
    off = "spatial_stack/qwen3_5/geometry_off"
    plain, fused = "Qwen3_5ForConditionalGeneration", "Qwen3_5ForConditionalGenerationWithGeometry"
    folders = {
        case: release(tmp_path / name, case, official_weights(load_case(case)[0]), architectures=[name])
        for case, name in ((off, plain), (IMAGES3, fused))
    }
    vggt = partial(TinyVGGT, embed_dim=32, num_heads=2, layers=(-2,))
    merger = partial(PatchMergerFusion, hidden=16, norm="layer")
    export_model(SpatialVLM(PretrainedQwen35(folders[off]), vggt, fusion=merger), tmp_path / "fusion")
    export_model(SpatialVLM(PretrainedSpatialStack(folders[IMAGES3])), tmp_path / "no fusion")
    with_fusion, without = (json.loads((tmp_path / out / "config.json").read_text()) for out in ("fusion", "no fusion"))
    assert with_fusion["architectures"] == [fused] and without["architectures"] == [plain]
    assert with_fusion["geometry_encoder_layers"] == [-2]
    assert with_fusion["geometry_fusion_layers"] is None  # whatever the folder of the plain model has


@pytest.mark.parametrize(
    "case, loader, holds",
    [
        (IMAGES3, PretrainedSpatialStack, "second"),
        (IMAGES3, PretrainedSpatialStack, "both"),
        (LANGUAGE_ADD, PretrainedSpatialStackQwen25, "first"),
    ],
)
def test_a_released_folder_is_written_back_bit_for_bit(tmp_path: Path, case: str, loader: Any, holds: str) -> None:
    """In its names and dtype, whatever the model's: VGGT's heads, which no model reads, as well."""
    meta, _ = load_case(case)
    first = {name: tensor.bfloat16() for name, tensor in official_weights(meta).items()}
    vggt = next(name.partition("aggregator.")[0] for name in first if "geometry_encoder.vggt." in name)
    first[f"{vggt}camera_head.weight"] = torch.randn(3).bfloat16()
    names = loader.second_names
    second = {n: a + n.removeprefix(b) for n in first for a, b in names.items() if n.startswith(b)}
    renamed = {second[name]: first[name] for name in second}
    kept = {name: tensor for name, tensor in first.items() if name not in second}
    released = {"first": first, "second": kept | renamed, "both": first | renamed}[holds]
    assert (released.keys() == first.keys()) == (holds == "first")
    folder = release(tmp_path / "release", case, {name: t.clone() for name, t in released.items()})
    export_model(SpatialVLM.from_pretrained(folder, backbone=loader(folder, dtype="float32")), tmp_path / "out")
    written = read_release(tmp_path / "out")
    assert written.keys() == released.keys()
    assert all(w.dtype == torch.bfloat16 and torch.equal(w, released[name]) for name, w in written.items())
