"""The published recipes: they are read, hold the published settings, and train on files of their layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import main
from callbacks.configs import merge_configs, read_config
from tests.test_two_processes import REPOSITORY, launch
from zoo import VGLLM, LearningRates, TinyQwen25VL

RECIPES = sorted((REPOSITORY / "recipes").glob("spatial_mllm_*.yaml"))
STILLS = ["vg_llm_4b", "spatial_stack_4b"]


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [  # of which the larger is the smaller one with other data, see below
        pytest.param(kind, path, id=f"{kind}-{path.stem}", marks=() if number == place == 0 else pytest.mark.slow)
        for place, kind in enumerate(("spatial_mllm", "prope"))
        for number, path in enumerate(RECIPES)
    ],
)
def test_a_recipe_holds_the_published_settings_for_any_model(
    recipe: Path, kind: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [word for name in (recipe, f"{kind}.yaml", "scale_3b.yaml") for word in ("--config", str(name))]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *configs, "--print_config"])
    with pytest.raises(SystemExit):
        main.main()
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model["learning_rates"].pop("vision_merger") == "connector"
    assert model["learning_rates"].pop("deepstack_merger") is None
    assert config["model"]["class_path"] == {"spatial_mllm": "zoo.SpatialMLLM", "prope": "zoo.PRoPEMLLM"}[kind]
    assert model["backbone"]["class_path"] == "zoo.PretrainedQwen25VL"
    assert {part: rate for part, rate in model["learning_rates"].items() if rate} == {
        "decoder": 7e-6,
        "connector": 2e-5,
        **{"encoding": 2e-4, "objective": 2e-4},  # of parts that the published model has not
    }
    assert model["time_index"]["init_args"]["seconds_per_grid"] == 0.5
    assert (data["pixels"]["min_pixels"], data["pixels"]["max_pixels"]) == (293216, 324576)
    assert data["num_frames"] == 16 and data["train_sampler"] is None and data["questions_per_scene"] == 1
    assert (trainer["max_epochs"], trainer["max_steps"], trainer["gradient_clip_val"]) == (1, -1, 1.0)
    assert 6 * data["batch_size"] * trainer["accumulate_grad_batches"] == 48
    page = recipe.with_suffix(".md").read_text()
    for part in data["source"]["init_args"]["parts"]:
        assert part["weight"] is None and part["path"] in page


def test_the_recipe_of_geovr(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = REPOSITORY / "recipes/geovr.yaml"
    configs = [word for name in ("qwen3_vl.yaml", "scale_qwen3vl_2b.yaml", recipe) for word in ("--config", str(name))]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *configs, "--print_config"])
    with pytest.raises(SystemExit):
        main.main()
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    rates = {"decoder": 2e-5, "connector": 2e-5, "vision": None, "geometry": None, "encoding": 2e-4, "objective": 1e-4}
    assert (
        model["learning_rates"] == {**rates, "vision_merger": "connector", "deepstack_merger": "vision"}
        and model["optimizer"]["init_args"]["weight_decay"] == 0
    )
    assert model["teacher"]["init_args"]["encoder"]["init_args"]["layers"] == [4, 11, 17, 23]
    weights = {each["class_path"]: each["init_args"]["weight"] for each in model["objectives"]}
    assert list(weights.values()) == [1.0, 2.5, 1.0, 1.0, 1.0]
    assert data["train_frame_pairing"]["class_path"] == "datamodules.Duplicate" and data["frame_pairing"] is None
    assert 4 * data["batch_size"] * trainer["accumulate_grad_batches"] == 32
    page = recipe.with_suffix(".md").read_text()
    assert all(part["path"] in page for part in data["source"]["init_args"]["parts"])


@pytest.mark.parametrize("name", STILLS)
def test_a_recipe_of_stills_holds_the_published_settings(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    recipe = REPOSITORY / f"recipes/{name}.yaml"
    monkeypatch.chdir(tmp_path)
    names = (f"{name.removesuffix('_4b')}.yaml", f"scale_{name}.yaml", str(recipe))
    configs = [word for each in names for word in ("--config", each)]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *configs, "--print_config"])
    with pytest.raises(SystemExit):
        main.main()
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    rates = model["learning_rates"]
    assert (rates["decoder"], rates["connector"], rates["vision"], rates["vision_merger"]) == (
        1e-5,
        1e-5,
        None,
        "vision",
    )
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.01 and rates["geometry"] is None
    assert model["geometry"]["init_args"]["layers"] == ([-2] if name == "vg_llm_4b" else [11, 17, 23])
    assert data["system_prompt"] == "You are a helpful assistant."  # of which Qwen3.5's template has none
    assert data["frames_as"] == "image" and data["still_resize"]["class_path"] == "datamodules.FixedWidthStills"
    assert 8 * data["batch_size"] * trainer["accumulate_grad_batches"] == 64 and trainer["max_epochs"] == 1
    page = recipe.with_suffix(".md").read_text()
    assert all(part["path"] in page for part in data["source"]["init_args"]["parts"])


@pytest.mark.parametrize("vision_merger", ["connector", "vision"])
def test_the_towers_merger_is_frozen_with_it_or_trained_with_the_connector(vision_merger: str) -> None:
    rates = LearningRates(vision_merger=vision_merger)  # type: ignore[arg-type]
    task = VGLLM(backbone=TinyQwen25VL(layers=2, hidden_size=64, heads=2), learning_rates=rates)
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert any(".visual.merger." in name for name in trained) == (vision_merger == "connector")
    assert any("fusion.merger" in name for name in trained)
    assert not any(".visual.blocks." in name for name in trained)


@pytest.mark.parametrize("name", [*(path.stem for path in RECIPES), *STILLS])
def test_a_recipe_names_no_part_of_a_model_and_no_scale(name: str) -> None:
    recipe = REPOSITORY / f"recipes/{name}.yaml"
    content = read_config(recipe)
    assert content.keys() == {"model", "data", "trainer"}
    training = {"learning_rates", "lora", "gradient_checkpointing", "max_new_tokens", "average"}
    training.add("optimizer" if name in STILLS else "time_index")
    assert content["model"].keys() == {"init_args"} and content["model"]["init_args"].keys() == training
    merged = merge_configs([str(recipe), "recipe_lora.yaml", "scale_7b.yaml"])  # of two recipes, the later one
    assert any("model.learning_rates.decoder" in line for line in merged.overridden)


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_averages_its_loss_as_published_and_its_page_says_so(recipe: Path) -> None:
    average = read_config(recipe)["model"]["init_args"]["average"]
    assert average == "micro_batch_tokens" and f"`average: {average}`" in recipe.with_suffix(".md").read_text()


def test_the_larger_recipe_replaces_the_data_alone() -> None:
    small, large = (read_config(REPOSITORY / f"recipes/spatial_mllm_{size}.yaml") for size in ("135k", "820k"))
    assert len(large["data"]["init_args"]["source"]["init_args"].pop("parts")) == 4
    assert len(small["data"]["init_args"]["source"]["init_args"].pop("parts")) == 2
    assert large == small


@pytest.mark.slow
def test_a_recipe_trains_an_epoch_on_videos_and_images(tmp_path: Path, rooms_root: Path) -> None:
    """At the tiny scale: each of five rows once, two of them about one image."""
    text = (REPOSITORY / "recipes/spatial_mllm_820k.yaml").read_text()
    base = (REPOSITORY / "recipes/spatial_mllm_135k.yaml").read_text()
    base = base.replace("recipe_full.yaml", "recipe_tiny.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/spatial_mllm_135k.yaml").write_text(base)
    (tmp_path / "recipes/recipe.yaml").write_text(text)
    videos = sorted(rooms_root.rglob("*.mp4"))[:2]
    visuals = tmp_path / "data/visuals"
    rows = {
        "spatial-mllm-mix-203k": [{"video": "a.mp4"}, {"video": "b.mp4"}],
        "routeplan-4k": [{"video": "a.mp4"}],
        "vsi_590k": [{"image": "c.png"}],
        "mindcube": [{"image": ["c.png", "d.png"]}],
    }
    for folder in ("vsi-590k", "mindcube"):
        (visuals / folder).mkdir(parents=True)
        for name in ("c.png", "d.png"):
            Image.new("RGB", (56, 56), "red").save(visuals / folder / name)
    for name, video in zip("ab", videos, strict=True):
        (visuals / f"{name}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "data/annotations").mkdir()
    for name, media in rows.items():
        turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "4"}]
        lines = [json.dumps({**medium, "conversations": turns}) + "\n" for medium in media]
        (tmp_path / f"data/annotations/{name}.jsonl").write_text("".join(lines))
    options = ["--model.geometry=TinyVGGT", "--model.geometry.path=null", "--data.num_workers=0", "--data.batch_size=1"]
    small = [
        "--data.pixels.min_pixels=784",
        "--data.pixels.max_pixels=3136",
        "--data.image_pixels=null",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.devices=1",
    ]
    configs = ["--config", "recipes/recipe.yaml", "--config", "spatial_mllm.yaml"]
    launch(tmp_path, "fit", *configs, *options, *small, "--data.num_frames=4")
    (folder,) = (tmp_path / "runs").iterdir()
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 5  # an epoch of five questions
