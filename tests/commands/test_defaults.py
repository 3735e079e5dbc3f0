"""What is read below the given configs: a scale and its recipe, and predicted cameras for data without cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.configs import (
    CONFIGS,
    defaults_below,
    find_config,
    lacks_cameras,
    merge_configs,
    read_config,
    read_settings,
)

WITHOUT_CAMERAS = {"data_conversations", "data_revsi", "data_scanqa", "data_sqa3d", "data_vsibench"}


def resolve(*names: str) -> Any:
    """The merged settings of configs, without the model's class."""
    settings = merge_configs(names).settings
    settings["model"].pop("class_path")
    return settings


def recipe_of(*names: str) -> str:
    """The name of the recipe below some configs: the first whose settings all lie there."""
    below = defaults_below([read_config(find_config(name)) for name in names])
    return next(path.stem for path in CONFIGS.glob("recipe_*.yaml") if read_config(path) in below)


@pytest.mark.parametrize(
    ("names", "recipe"),
    [
        ((), "recipe_tiny"),
        (("prope.yaml",), "recipe_tiny"),
        (("scale_tiny_qwen3.yaml", "prope.yaml"), "recipe_tiny_qwen3"),
        (("qwen3_vl.yaml",), "recipe_tiny_qwen3"),
        (("prope.yaml", "scale_3b.yaml"), "recipe_full"),
        (("scale_7b.yaml",), "recipe_lora"),
        (("scale_qwen3vl_4b.yaml",), "recipe_full_qwen3vl"),
        (("scale_qwen3vl_8b.yaml", "data_vsibench.yaml"), "recipe_lora_qwen3vl"),
        (("spatial_mllm.yaml", "spatial_mllm_released.yaml"), "recipe_full"),
        (("geometry_tiny.yaml",), "recipe_geometry_tiny"),
    ],
)
def test_a_scale_names_its_default_recipe(names: tuple[str, ...], recipe: str) -> None:
    assert recipe_of(*names) == recipe


@pytest.mark.parametrize(
    ("names", "backbone"),
    [
        (("prope.yaml",), "TinyQwen25VL"),
        (("qwen3_vl.yaml",), "TinyQwen3VL"),
        (("recipe_lora.yaml", "qwen3_5.yaml"), "TinyQwen35"),
        (("qwen3_vl.yaml", "scale_qwen3vl_4b.yaml"), "PretrainedQwen3VL"),
        (("geovr.yaml",), "PretrainedGeoVR"),
    ],
)
def test_a_model_of_one_family_names_its_default_scale(names: tuple[str, ...], backbone: str) -> None:
    assert resolve(*names)["model"]["init_args"]["backbone"]["class_path"] == backbone


def test_a_given_recipe_replaces_that_of_the_scale() -> None:
    full = resolve("prope.yaml", "scale_3b.yaml", "recipe_full.yaml")
    assert full == resolve("prope.yaml", "scale_3b.yaml")
    large = resolve("prope.yaml", "scale_7b.yaml", "recipe_full.yaml")
    large["model"]["init_args"]["backbone"]["init_args"]["path"] = "Qwen/Qwen2.5-VL-3B-Instruct"
    assert large == full and full["model"]["init_args"]["lora"] is None
    adapted = resolve("prope.yaml", "scale_3b.yaml", "recipe_lora.yaml")
    assert adapted["model"]["init_args"]["lora"] == {"r": 16}


def test_a_config_of_ones_own_is_composed_of_a_scale_and_names_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "scale_own.yaml").write_text("configs: [scale_3b.yaml]\nrecipe: recipe_own.yaml")
    (tmp_path / "recipe_own.yaml").write_text("configs: [recipe_full.yaml]\ntrainer: {max_steps: 7}")
    (tmp_path / "run.yaml").write_text("configs: [prope.yaml, scale_own.yaml]\ndata: {init_args: {num_frames: 6}}")
    settings = resolve(str(tmp_path / "run.yaml"))
    assert settings["trainer"]["max_steps"] == 7 and settings["data"]["init_args"]["num_frames"] == 6
    assert settings["trainer"]["precision"] == "bf16-mixed"


def test_a_strategy_and_settings_of_ones_own_win_over_a_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {max_steps: 7}")
    for recipe in ((), ("recipe_full.yaml",)):
        trainer = resolve("prope.yaml", "scale_3b.yaml", *recipe, "strategy_fsdp2.yaml", str(own))["trainer"]
        assert (trainer["devices"], trainer["strategy"], trainer["max_steps"]) == ("auto", "fsdp2", 7)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("data_*.yaml")), ids=lambda path: path.stem)
def test_data_without_cameras_takes_predicted_ones(path: Path, tmp_path: Path) -> None:
    def source(*names: str) -> str | None:
        return resolve("prope.yaml", "scale_3b.yaml", *names)["model"]["init_args"].get("camera_source")

    assert lacks_cameras(read_settings(path)["data"]) == (path.stem in WITHOUT_CAMERAS)
    assert source(path.name) == ("auto" if path.stem in WITHOUT_CAMERAS else None)
    (tmp_path / "own.yaml").write_text("model: {init_args: {camera_source: dataset}}")
    assert source(path.name, str(tmp_path / "own.yaml")) == "dataset"


@pytest.mark.parametrize(
    ("data", "lacks"),
    [
        ("init_args: {source: VSIBench}", True),
        ("init_args: {source: datamodules.VSIBench}", True),
        ("init_args: {source: {class_path: Mixture, init_args: {parts: [{source: {class_path: ScanQA}}]}}}", True),
        ("init_args: {source: {class_path: Mixture, init_args: {parts: [{path: VSIBench, videos: a}]}}}", False),
        (
            "init_args: {source: {class_path: Mixture, init_args: {parts: [], evaluation: {class_path: VSIBench}}}}",
            False,
        ),
        ("init_args: {source: {class_path: SceneFolder, init_args: {root: data/VSIBench}}}", False),
        ("init_args: {source: tests.commands.test_defaults.Own}", True),
        ("init_args: {source: absent.Source}", False),  # an error of the parser
        ("init_args: {source: null}", False),
        ("null", False),
    ],
)
def test_the_source_states_whether_it_has_cameras(data: str, lacks: bool) -> None:
    assert lacks_cameras(yaml.safe_load(data if data == "null" else f"{{{data}}}")) == lacks


class Own:
    """A source of one's own."""

    has_cameras = False
