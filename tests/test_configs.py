"""Every shipped config is understood, alone and stacked, and what it says reaches its part."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

import main

CONFIGS = sorted(path.name for path in (Path(main.__file__).parent / "configs").glob("*.yaml"))
MODELS = {
    "qwen25_vl.yaml": "Qwen25VL",
    "spatial_mllm.yaml": "SpatialMLLM",
    "concat_split.yaml": "ConcatSplitMLLM",
    "prope.yaml": "PRoPEMLLM",
}
WEIGHTS = {
    "scale_3b.yaml": "Qwen/Qwen2.5-VL-3B-Instruct",
    "scale_7b.yaml": "Qwen/Qwen2.5-VL-7B-Instruct",
}


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """What --print_config says, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *configs: str) -> dict:
        words = [word for name in configs for word in ("--config", name)]
        monkeypatch.setattr(sys, "argv", ["main.py", command, *words, "--print_config"])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return call


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("others", [[], ["scale_3b.yaml"], ["scale_7b.yaml", "data_vsibench.yaml"], ["data_rooms"]])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_models_scales_and_data_compose(command: str, model: str, others: list[str], parsed) -> None:
    config = parsed(command, model, *others)
    assert config["model"]["class_path"] == f"zoo.{MODELS[model]}"
    parts, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone, geometry = parts["backbone"], parts["geometry"]
    is_real = bool(WEIGHTS.keys() & set(others))
    assert data["pixels"]["legacy_folder_resize"] == is_real == (data["train_sampler"] is None)  # nothing tiny leaks
    if is_real:
        assert backbone["init_args"]["path"] == WEIGHTS[others[0]]
        assert geometry["init_args"]["path"] == "facebook/VGGT-1B"
    else:
        # the demo of the camera-aware model needs no VGGT made before it
        expected = "zoo.DatasetGeometry" if model == "prope.yaml" else "zoo.TinyVGGT"
        assert (backbone["class_path"], geometry["class_path"]) == ("zoo.TinyQwen25VL", expected)


def test_the_released_spatial_mllm_brings_its_parts(parsed) -> None:
    config = parsed("test", "spatial_mllm.yaml", "scale_3b.yaml", "spatial_mllm_released.yaml", "data_vsibench.yaml")
    assert config["model"]["init_args"]["backbone"]["class_path"] == "zoo.PretrainedSpatialMLLM"


def test_the_pretraining_of_the_tiny_geometry(parsed) -> None:
    config = parsed("fit", "geometry_tiny.yaml")
    assert config["model"]["class_path"] == "zoo.VGGTPretraining"
    assert config["trainer"]["default_root_dir"] == "runs/vggt_tiny"
    assert config["model"]["init_args"]["geometry"]["init_args"]["path"] is None


def test_no_config_is_left_out() -> None:
    elsewhere = {name for name in CONFIGS if name.startswith("data_")}  # tests/datamodules/test_configs.py
    others = {"scale_tiny.yaml", "model_default.yaml", "geometry_tiny.yaml", "spatial_mllm_released.yaml"}
    assert set(CONFIGS) == {*MODELS, *WEIGHTS, *elsewhere, *others}
