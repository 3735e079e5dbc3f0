"""SpatialStack against numbers from the published code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.configs import CONFIGS, read_config
from tests.zoo.fused_golden import build, check_case, load_case, logits_of, media, official_weights
from tests.zoo.released import GOLDEN, read_release, write_release
from zoo import PatchMergerFusion, SpatialStack, SpatialVLM, TinyVGGT
from zoo.backbones.official_names import STACK_QWEN25_SECOND_NAMES, STACK_SECOND_NAMES
from zoo.backbones.qwen3_5 import tiny_processor
from zoo.checkpoints import (
    PretrainedQwen25VL,
    PretrainedQwen35,
    PretrainedSpatialStack,
    PretrainedSpatialStackQwen25,
    export_model,
    load_spatial_stack,
    official_3d_tokens,
    unofficial_parts,
)
from zoo.configuration import from_config
from zoo.errors import InputError
from zoo.fusions import StackFusion
from zoo.fusions.base import RMSNorm
from zoo.geometry.base import SceneGeometry

OTHERS = ("vision_add", "language_cross_attention")  # ways of fusing that no released model has
QWEN25 = sorted(
    f"spatial_stack/qwen2_5_vl/{path.stem}"
    for path in (GOLDEN / "spatial_stack/qwen2_5_vl").glob("*.safetensors")
    if path.stem not in OTHERS
)
LANGUAGE_ADD = "spatial_stack/qwen2_5_vl/language_add_images3"


QWEN35 = sorted(
    f"spatial_stack/qwen3_5/{path.stem}" for path in (GOLDEN / "spatial_stack/qwen3_5").glob("*.safetensors")
)


def release(folder: Path, case: str, tensors: dict[str, Tensor], **settings: Any) -> str:
    """Write a case as a released folder, with other settings than its own."""
    config = load_case(case)[0]["config"]
    kind, processor = ("qwen3_5", {"processor": tiny_processor()}) if "qwen3_5" in case else ("qwen2_5_vl", {})
    own = config["qwen"] | {"vggt_aggregator": config["vggt_aggregator"], "model_type": kind}
    write_release(folder, own | settings, tensors, **processor)
    return str(folder)


@pytest.mark.parametrize("case", QWEN25 + QWEN35)
def test_logits_loss_gradients_and_answers(case: str) -> None:
    check_case(case, atol=3e-5 if case in QWEN25 else 2e-4)


# ---- traps: each mistake shows ------------------------------------------------------------------------------------

IMAGES3 = "spatial_stack/qwen3_5/images3"
FOLDERS = pytest.mark.parametrize(
    "case, loader", [(IMAGES3, PretrainedSpatialStack), (LANGUAGE_ADD, PretrainedSpatialStackQwen25)]
)


def earlier_layers(model: SpatialVLM) -> None:
    model.geometry.layer_numbers = [0, 1, 2]  # type: ignore[union-attr, assignment]


def reversed_layers(model: SpatialVLM) -> None:
    model.geometry.layer_numbers = [3, 2, 1]  # type: ignore[union-attr, assignment]


def last_layer_for_all(model: SpatialVLM) -> None:
    model.geometry.layer_numbers = [3, 3, 3]  # type: ignore[union-attr, assignment]


def last_frame(model: SpatialVLM) -> None:
    model.geometry.reference = "last"  # type: ignore[union-attr, assignment]


def no_geometry(model: SpatialVLM) -> None:
    model.fusion.active_branches = "2d"  # type: ignore[union-attr]


def rms_norm(model: SpatialVLM) -> None:
    connectors: Any = model.fusion.connectors  # type: ignore[union-attr]
    for connector in connectors:
        norm = RMSNorm(96)
        norm.weight = connector.ln_q.weight
        connector.ln_q = norm


def added_before_the_layer(model: SpatialVLM) -> None:
    fusion: Any = model.fusion

    def forward(visual: Tensor, grid_thw: Any, geometry: Any, views: Any = None) -> Tensor:
        return visual.unflatten(0, (3, -1)) + fusion.branch_3d(geometry, grid_thw, visual.dtype)[0]

    fusion.forward = forward
    fusion.deep_features = lambda *inputs: fusion.branch_3d(*inputs)[1:]


MISTAKES = {
    earlier_layers: 2.527,
    reversed_layers: 2.161,
    last_layer_for_all: 2.290,
    last_frame: 0.603,
    no_geometry: 3.528,
    rms_norm: 1.695,
    added_before_the_layer: 4.785,
}


@pytest.fixture(scope="module")
def images3() -> SpatialVLM:
    """Tests that change it take a copy."""
    return build(load_case(IMAGES3)[0])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_geometry_shows(mistake: Callable[[SpatialVLM], None], images3: SpatialVLM) -> None:
    meta, t = load_case(IMAGES3)
    model, given = deepcopy(images3), media(t, meta)
    mistake(model)
    difference = (logits_of(model, t, given) - t["out_logits"]).abs().max()
    assert difference == pytest.approx(MISTAKES[mistake], rel=0.01)  # as measured with the published code


@pytest.mark.parametrize("case", [IMAGES3, "spatial_stack/qwen3_5/same_layer_twice_last_frame", LANGUAGE_ADD])
def test_what_each_connector_adds(case: str, images3: SpatialVLM) -> None:
    meta, t = load_case(case)
    model = images3 if case == IMAGES3 else build(meta)
    added = official_3d_tokens(model, media(t, meta)["frames"][0])
    layers, expected = meta["config"]["qwen"]["geometry_fusion_layers"], []
    for number, layer in enumerate(layers):
        expected.append(t[f"out_added_{layer}_{layers[:number].count(layer)}"])
    assert len(added) == len(expected)
    for ours, theirs in zip(added, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize(
    "case",
    [IMAGES3, pytest.param("spatial_stack/qwen3_5/post_merger_add", marks=pytest.mark.slow), LANGUAGE_ADD],
)
def test_a_file_may_hold_either_name_or_both(case: str) -> None:
    meta, t = load_case(case)
    official, given = official_weights(meta), media(t, meta)
    names = STACK_QWEN25_SECOND_NAMES if case == LANGUAGE_ADD else STACK_SECOND_NAMES
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


@pytest.mark.parametrize("case", OTHERS)
def test_ways_of_fusing_that_were_never_released_are_refused(case: str) -> None:
    meta, _ = load_case(f"spatial_stack/qwen2_5_vl/{case}")
    with pytest.raises(InputError, match="feature_fusion_method .* in the config: only 'deepstack_language_add' or"):
        load_spatial_stack(meta["config"], official_weights(meta))


def test_the_connectors_start_at_zero_as_the_plain_model() -> None:
    """VG-LLM's merger starts at random: `test_vg_llm`."""
    fusion = StackFusion(16, 24, (0, 1), hidden=8)
    fusion.bind(3 - 1, 4)
    geometry = SceneGeometry(patches=torch.randn(4, 2, 4, 24))
    features = fusion.deep_features(geometry, (2, 2, 4), torch.float32)
    assert features is not None and features.shape == (2, 2, 2, 16) and not features.any()


@pytest.mark.parametrize(
    "case",
    [
        *(IMAGES3, LANGUAGE_ADD),
        pytest.param("spatial_stack/qwen3_5/same_layer_twice_last_frame", marks=pytest.mark.slow),
    ],
)
def test_exported_bit_for_bit(tmp_path: Path, case: str) -> None:
    meta, _ = load_case(case)
    official = official_weights(meta)
    export_model(load_spatial_stack(meta["config"], official), tmp_path / "out")
    written, config = read_release(tmp_path / "out"), json.loads((tmp_path / "out/config.json").read_text())
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in written)
    settings = ("reference_frame", "feature_fusion_method", "geometry_fusion_layers", "geometry_encoder_layers")
    assert [config[name] for name in settings] == [meta["config"]["qwen"][name] for name in settings]
    load_spatial_stack(config, written)


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


@pytest.mark.parametrize(
    "case, loader, plain",
    [
        (IMAGES3, PretrainedSpatialStack, PretrainedQwen35),
        (LANGUAGE_ADD, PretrainedSpatialStackQwen25, PretrainedQwen25VL),
    ],
)
def test_a_released_folder_is_loaded_and_exported(tmp_path: Path, case: str, loader: Any, plain: Any) -> None:
    meta, t = load_case(case)
    official = {
        name.removeprefix("model.") if "geometry" in name else name: w for name, w in official_weights(meta).items()
    }
    release(tmp_path / "release", case, official)
    assert isinstance(SpatialVLM.from_pretrained(tmp_path / "release").loader, loader)
    model = SpatialVLM.from_pretrained(
        tmp_path / "release", backbone=loader(str(tmp_path / "release"), dtype="float32")
    )
    assert model.is_pretrained
    assert torch.allclose(logits_of(model, t, media(t, meta)), t["out_logits"], atol=2e-4, rtol=0)
    with pytest.raises(InputError, match=f"is a SpatialStack: take --model.backbone {loader.__name__} for it"):
        plain(str(tmp_path / "release")).load()


@FOLDERS
def test_the_published_command_loads_a_released_folder(tmp_path: Path, case: str, loader: Any) -> None:
    """The fusion of `spatial_stack.yaml`, whose norm is that of the release."""
    meta, t = load_case(case)
    path = release(tmp_path / "release", case, official_weights(meta))
    parts = read_config(CONFIGS / "spatial_stack.yaml")["model"]["init_args"]
    parts["backbone"] = {"class_path": loader.__name__, "init_args": {"path": path, "dtype": "float32"}}
    model = from_config(SpatialStack, {"class_path": "SpatialStack", "init_args": parts}).model
    assert torch.allclose(logits_of(model, t, media(t, meta)), t["out_logits"], atol=2e-4, rtol=0)
    assert unofficial_parts(model) == []


def test_connectors_of_other_decoder_layers_are_refused(tmp_path: Path) -> None:
    case = "spatial_stack/qwen3_5/images2_eight_layers_untied"
    path = release(tmp_path / "release", case, official_weights(load_case(case)[0]))
    with pytest.raises(InputError, match=r"connectors are of the decoder's layers \[0, 2, 5\]"):
        SpatialVLM(PretrainedSpatialStack(path), fusion=partial(StackFusion, decoder_layers=[0, 1, 2]))


@pytest.mark.parametrize("named, layer", [(None, -2), pytest.param([-1], -1, marks=pytest.mark.slow), ([0, 1], 1)])
def test_the_layer_of_added_3d_tokens_is_that_of_the_config(
    tmp_path: Path, named: list[int] | None, layer: int
) -> None:
    case = "spatial_stack/qwen3_5/post_merger_add"
    path = release(tmp_path / "release", case, official_weights(load_case(case)[0]), geometry_encoder_layers=named)
    model = SpatialVLM.from_pretrained(path)
    assert model.geometry.layers == (layer,) and unofficial_parts(model) == []
    export_model(model, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["geometry_encoder_layers"] == [layer]  # which the published class requires


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
        pytest.param(IMAGES3, PretrainedSpatialStack, "first", marks=pytest.mark.slow),
        pytest.param(LANGUAGE_ADD, PretrainedSpatialStackQwen25, "second", marks=pytest.mark.slow),
        pytest.param(LANGUAGE_ADD, PretrainedSpatialStackQwen25, "both", marks=pytest.mark.slow),
    ],
)
def test_a_released_folder_is_written_back_bit_for_bit(tmp_path: Path, case: str, loader: Any, holds: str) -> None:
    """In its names and dtype, whatever the model's: VGGT's heads, which no model reads, as well."""
    meta, _ = load_case(case)
    first = {name: tensor.bfloat16() for name, tensor in official_weights(meta).items()}
    vggt = next(name.partition("aggregator.")[0] for name in first if "geometry_encoder.vggt." in name)
    first[f"{vggt}camera_head.weight"] = torch.randn(3).bfloat16()
    names = STACK_QWEN25_SECOND_NAMES if case == LANGUAGE_ADD else STACK_SECOND_NAMES
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
