"""VG-LLM against numbers from the published code, in both released layouts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.inference import data_of, load_frames
from tests.golden.synth import synth_video
from tests.golden.weights import init_
from tests.zoo.fused_golden import build, check_case, load_case, logits_of, media, official_weights
from tests.zoo.released import GOLDEN, read_release, write_release
from zoo import SpatialVLM
from zoo.backbones.released_configs import GEOMETRY_KEYS
from zoo.checkpoints import (
    PretrainedQwen25VL,
    PretrainedVGLLM,
    export_model,
    load_vg_llm,
    official_3d_tokens,
    official_fusion,
)
from zoo.errors import InputError
from zoo.fusions import PatchMergerFusion

CASES = sorted(
    f"vg_llm/{folder}/{path.stem}"
    for folder in ("full_model", "first_release")
    for path in (GOLDEN / "vg_llm" / folder).glob("*.safetensors")
    if path.stem != "gated_fusion"
)


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_gradients_and_answers(case: str) -> None:
    check_case(case, atol=3e-5)


# ---- traps: each mistake shows ------------------------------------------------------------------------------------

CROPPED = "vg_llm/full_model/images3_cropped"


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


@pytest.fixture(scope="module")
def cropped() -> SpatialVLM:
    """Tests that change it take a copy."""
    return build(load_case(CROPPED)[0])


@pytest.mark.parametrize("mistake", [(other_layer, 2.4), (cropped_pictures, 0.69), (rows_of_four, 3.0)])
def test_a_mistake_in_the_geometry_shows(mistake: tuple[Callable[..., None], float], cropped: SpatialVLM) -> None:
    meta, t = load_case(CROPPED)
    model, given = copy.deepcopy(cropped), media(t, meta)
    mistake[0](model, given)
    difference = (logits_of(model, t, given) - t["out_logits"]).abs().max()
    assert difference == pytest.approx(mistake[1], rel=0.05)  # as measured with the published code


def test_each_still_is_encoded_once_and_the_callers_frames_stay() -> None:
    meta, t = load_case("vg_llm/full_model/last_frame_reference")
    model, given = build(meta), media(t, meta)
    seen: list[int] = []
    model.geometry.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0][0])))  # type: ignore
    before = [frames.clone() for frames in given["frames"]]
    logits_of(model, t, given)
    assert seen == [len(before[0])] and torch.equal(given["frames"][0], before[0])
    first = build(
        {
            **meta,
            "config": copy.deepcopy(meta["config"]) | {"qwen": {**meta["config"]["qwen"], "reference_frame": "first"}},
        }
    )
    assert (logits_of(first, t, given) - t["out_logits"]).abs().max() > 0.1


def test_the_names_of_the_tensors_tell_the_layouts_apart() -> None:
    """The published code reads the first release's config as one without geometry, and runs a plain Qwen2.5-VL."""
    meta, t = load_case("vg_llm/first_release/images3_cropped")
    official = official_weights(meta)
    del meta["config"]["qwen"]["use_vggt_feature"]
    found = logits_of(load_vg_llm(meta["config"], official), t, media(t, meta))
    assert torch.allclose(found, t["out_logits"], atol=3e-5, rtol=0)
    meta["config"]["qwen"]["use_vggt_feature"] = False
    with pytest.raises(InputError, match="unexpected: .*vggt"):
        load_vg_llm(meta["config"], official)


def test_a_first_release_without_its_geometry_is_no_plain_qwen() -> None:
    """Its config says that there is one."""
    meta, _ = load_case("vg_llm/first_release/images3_cropped")
    others = ("vggt.", "merger.")
    backbone = {name: value for name, value in official_weights(meta).items() if not name.startswith(others)}
    with pytest.raises(InputError, match="missing: .*vggt"):
        load_vg_llm(meta["config"], backbone)
    meta["config"]["qwen"]["use_vggt_feature"] = False
    assert load_vg_llm(meta["config"], backbone).geometry is None


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


@pytest.mark.parametrize("method", ["concat", "gated", "weighted", "cross_attention"])
def test_ways_of_fusing_that_were_never_released_are_refused(method: str) -> None:
    meta, _ = load_case(f"vg_llm/fusions/{method}")
    official = {name: init_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    with pytest.raises(InputError, match=f"feature_fusion_method '{method}' in the config: only 'add' is supported"):
        official_fusion(meta["config"], official)


def test_the_merger_starts_at_random_and_is_no_plain_qwen() -> None:
    torch.manual_seed(0)
    fusion = PatchMergerFusion(16, 8, hidden=512)
    weights = [parameter for name, parameter in fusion.merger.mlp.named_parameters() if name.endswith("weight")]
    assert all(weight.std().item() == pytest.approx(0.02, rel=0.1) for weight in weights)


def test_added_tokens_are_the_published_ones(cropped: SpatialVLM) -> None:
    meta, t = load_case(CROPPED)
    (added,) = official_3d_tokens(cropped, media(t, meta)["frames"][0])
    assert torch.allclose(added, t["out_geometry"], atol=3e-5)


@pytest.mark.parametrize("case", [CROPPED, "vg_llm/first_release/images3_cropped"])
def test_exported_bit_for_bit_in_the_layout_of_its_source(tmp_path: Path, case: str) -> None:
    meta, _ = load_case(case)
    official = official_weights(meta)
    model = load_vg_llm(meta["config"], official)
    export_model(model, tmp_path / "out")
    written, config = read_release(tmp_path / "out"), json.loads((tmp_path / "out/config.json").read_text())
    dense = tuple(f"vggt.{head}_head." for head in ("point", "depth"))  # read by no one, and not kept in memory
    assert written.keys() == {name for name in official if not name.startswith(dense)}
    assert all(torch.equal(written[name], official[name]) for name in written)
    geometry = {name: value for name, value in meta["config"]["qwen"].items() if name in GEOMETRY_KEYS}
    assert {name: config[name] for name in geometry} == geometry
    assert load_vg_llm(config, written).fusion.hidden == 80  # type: ignore[union-attr]


# ---- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CROPPED, "vg_llm/first_release/images3_cropped"])
def test_a_released_folder_is_loaded_asked_and_exported(tmp_path: Path, case: str) -> None:
    meta, t = load_case(case)
    settings = meta["config"]["qwen"] | {
        "vggt_aggregator": meta["config"]["vggt_aggregator"],
        "model_type": "qwen2_5_vl",
    }
    write_release(tmp_path / "release", settings, official_weights(meta))
    model = SpatialVLM.from_pretrained(tmp_path / "release")
    assert isinstance(model.loader, PretrainedVGLLM) and model.is_pretrained
    with pytest.raises(InputError, match="is a VG-LLM: take --model.backbone PretrainedVGLLM"):
        PretrainedQwen25VL(str(tmp_path / "release")).load()
    loaded = load_frames(model, data_of(model), synth_video(3, 2, 480, 640), None, as_images=True)
    assert loaded.geometry_frames is not None  # `answer` shows stills, as published, whatever the default
    assert data_of(model).frames_as == "image" and loaded.frames.shape[-2:] == (392, 504)  # type: ignore[union-attr]
    export_model(model, tmp_path / "out", dtype=torch.float32)
    assert read_release(tmp_path / "out").keys() == official_weights(meta).keys()  # the unused heads, too
