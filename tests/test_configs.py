"""The shipped configs and recipes: each is read, they compose, and they hold the published settings."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import datamodules
import main
import zoo
from callbacks.metrics import departures
from commands.parser import split_configs, split_options, with_options
from datamodules import VideoQADataModule
from run_folder.configs import CONFIGS, defaults_below, find_config, lacks_cameras, merge, merge_configs, read_config
from tests.test_two_processes import REPOSITORY, launch
from zoo import VGLLM, LearningRates, TinyQwen25VL
from zoo.backbones.base import loaders
from zoo.configuration import flatten, from_config
from zoo.errors import InputError

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
PROTOCOLS = [name for name in SHIPPED if name.startswith("protocol_")]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
PAIRS = {  # each model and each scale once
    ("qwen25_vl.yaml", "scale_tiny.yaml"): "Qwen25VL",
    ("qwen3_vl.yaml", "scale_tiny_qwen3.yaml"): "Qwen3VL",
    ("qwen3_vl.yaml", "scale_qwen3vl_2b.yaml"): "Qwen3VL",
    ("qwen3_vl.yaml", "scale_qwen3vl_4b.yaml"): "Qwen3VL",
    ("prope.yaml", "scale_qwen3vl_8b.yaml"): "PRoPEMLLM",
    ("qwen3_5.yaml", "scale_tiny_qwen3_5.yaml"): "Qwen35",
    ("qwen3_5.yaml", "scale_qwen3_5_0.8b.yaml"): "Qwen35",
    ("qwen3_5.yaml", "scale_qwen3_5_2b.yaml"): "Qwen35",
    ("prope.yaml", "scale_qwen3_5_4b.yaml"): "PRoPEMLLM",
    ("concat_split.yaml", "scale_qwen3_5_9b.yaml"): "ConcatSplitMLLM",
    ("concat_split.yaml", "scale_3b.yaml"): "ConcatSplitMLLM",
    ("concat_split_prope.yaml", "scale_3b.yaml"): "ConcatSplitMLLM",
    ("prope.yaml", "scale_7b.yaml"): "PRoPEMLLM",
    ("spatial_mllm.yaml", "spatial_mllm_released.yaml"): "SpatialMLLM",
    ("vg_llm.yaml", "vg_llm_released.yaml"): "VGLLM",
    ("vg_llm.yaml", "scale_vg_llm_4b.yaml"): "VGLLM",
    ("spa3_vlm.yaml", "spa3_vlm_released.yaml"): "Spa3VLM",
    ("cambrian_s.yaml", "scale_tiny_cambrian_s.yaml"): "CambrianS",
    ("cambrian_s.yaml", "cambrian_s_released.yaml"): "CambrianS",
    ("cambrian_p.yaml", "scale_tiny_cambrian_p.yaml"): "CambrianP",
    ("cambrian_p.yaml", "cambrian_p_released.yaml"): "CambrianP",
    ("spatial_stack.yaml", "spatial_stack_released.yaml"): "SpatialStack",
    ("spatial_stack.yaml", "spatial_stack_qwen25_released.yaml"): "SpatialStack",
    ("spatial_stack.yaml", "scale_spatial_stack_4b.yaml"): "SpatialStack",
    ("geothinker.yaml", "geothinker_released.yaml"): "GeoThinker",
    ("geothinker.yaml", "geothinker_qwen3_released.yaml"): "GeoThinker",
    ("geothinker.yaml", "scale_geothinker_7b.yaml"): "GeoThinker",
    ("prope.yaml", "scale_smollm2.yaml"): "PRoPEMLLM",
}
FAST = [("concat_split.yaml", "scale_3b.yaml"), ("spatial_stack.yaml", "spatial_stack_released.yaml")]
Parsed = Callable[..., dict]


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Parsed:
    """The settings that --print_config prints in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *configs: str, options: tuple[str, ...] = ()) -> dict:
        words = [word for name in configs for word in ("--config", name)]
        monkeypatch.setattr(sys, "argv", ["main.py", command, *words, *options, "--print_config"])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0, end.value.code
        return yaml.safe_load(capsys.readouterr().out)

    return call


# ---- Every config


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=() if pair in FAST else pytest.mark.slow, id=" ".join(pair)) for pair in PAIRS],
)
def test_models_and_scales_compose(pair: tuple[str, str], parsed: Parsed) -> None:
    model, scale = pair
    config = flatten(parsed("fit", model, scale))
    assert config["model.class_path"] == f"zoo.{PAIRS[pair]}"
    stated = {
        f"model.{name}": value
        for name, value in flatten(read_config(CONFIGS / scale)["model"]).items()
        if not name.endswith("class_path")
    }
    assert stated.items() <= config.items() or "tiny" in scale
    is_tiny = config["model.backbone.class_path"].startswith("zoo.Tiny")
    assert is_tiny == ("tiny" in scale)
    is_on_cpu = is_tiny or "smollm2" in scale
    assert is_on_cpu != config["data.pixels.legacy_folder_resize"]
    if is_tiny:  # below a model lies the tiny scale of its family
        assert config == flatten(parsed("fit", model))


@pytest.mark.slow
def test_every_config_is_read(parsed: Parsed) -> None:
    """Each alone, or over a model where it names none. The pairs above are left out."""
    others = [name for name in SHIPPED if not any(name in pair for pair in PAIRS)]
    assert len(others) > 20
    for name in others:
        below = () if "class_path" in read_config(CONFIGS / name).get("model", {}) else ("prope.yaml",)
        parsed("test" if name in PROTOCOLS else "fit", *below, *((name,) if name != "model_default.yaml" else ()))


@pytest.mark.parametrize("kind", ["recipe_", "protocol_"])
def test_configs_that_replace_each_other_set_the_same_options(kind: str) -> None:
    """Or a value of the scale's recipe, or of a run's protocol, would remain below another one."""
    # null, or of classes with other options
    replaced = (
        "data.pixels",
        "data.still_resize",
        "data.sampler.",
        "data.train_sampler",
        "model.sampling",
        "model.lora",
    )
    configs = {name: read_config(CONFIGS / name) for name in SHIPPED if name.startswith(kind)}
    found = {
        name: frozenset(option for option in flatten(config) if not option.startswith(replaced))
        for name, config in configs.items()
        if name != "recipe_geometry_tiny.yaml"  # of a model without questions
    }
    assert len(found) > 4 and len({*found.values()}) == 1, found
    for config in configs.values() if kind == "protocol_" else ():
        parts = [part for section in config.values() for part in section.get("init_args", {}).values()]
        for part in (part for part in parts if isinstance(part, dict) and "class_path" in part):
            name = part["class_path"].rpartition(".")[2]
            signature = inspect.signature(getattr(datamodules, name, None) or getattr(zoo, name)).parameters
            assert part["init_args"].keys() == signature.keys(), name


RATES = "model.learning_rates"
SPATIAL_MLLM = {
    "model.class_path": "zoo.SpatialMLLM",
    **{f"{RATES}.decoder": 7e-6, f"{RATES}.connector": 2e-5, f"{RATES}.vision": None, f"{RATES}.geometry": None},
    **{f"{RATES}.vision_merger": "connector", "model.time_index.seconds_per_grid": 0.5},
    **{"data.pixels.min_pixels": 293216, "data.pixels.max_pixels": 324576, "data.num_frames": 16},
    **{"data.train_sampler": None, "data.questions_per_scene": 1},
    **{"trainer.max_epochs": 1, "trainer.max_steps": -1, "trainer.gradient_clip_val": 1.0},
}
STILLS = {
    **{f"{RATES}.decoder": 1e-5, f"{RATES}.connector": 1e-5, f"{RATES}.vision": None, f"{RATES}.geometry": None},
    **{f"{RATES}.vision_merger": "vision", "model.optimizer.weight_decay": 0.01, "trainer.max_epochs": 1},
    **{"data.system_prompt": "You are a helpful assistant.", "data.frames_as": "image"},  # Qwen3.5's template has none
    "data.still_resize.class_path": "datamodules.FixedWidthStills",
}
GEOVR = {
    **{f"{RATES}.decoder": 2e-5, f"{RATES}.connector": 2e-5, f"{RATES}.vision": None, f"{RATES}.objective": 1e-4},
    **{f"{RATES}.vision_merger": "connector", f"{RATES}.deepstack_merger": "vision"},
    **{"model.optimizer.weight_decay": 0, "model.teacher.encoder.layers": [4, 11, 17, 23]},
    **{f"model.objectives.{n}.weight": weight for n, weight in enumerate((1.0, 2.5, 1.0, 1.0, 1.0))},
    **{"data.train_frame_pairing.class_path": "datamodules.Duplicate", "data.frame_pairing": None},
}
PUBLISHED = {  # the model, the scale, the GPUs, the questions of a step, the settings
    "spatial_mllm_135k": ("spatial_mllm.yaml", "scale_3b.yaml", 6, 48, SPATIAL_MLLM),
    "vg_llm_4b": ("vg_llm.yaml", "scale_vg_llm_4b.yaml", 8, 64, {**STILLS, "model.geometry.layers": [-2]}),
    "spatial_stack_4b": (
        *("spatial_stack.yaml", "scale_spatial_stack_4b.yaml", 8, 64),
        {**STILLS, "model.geometry.layers": [11, 17, 23]},
    ),
    "geothinker_7b": (
        *("geothinker.yaml", "scale_geothinker_7b.yaml", 8, 64),
        {
            **STILLS,
            **{"data.still_resize.class_path": "datamodules.WholeStills", "data.num_frames": 32},
            **{"model.geometry.layers": [-2], "model.fusion.compress_beyond": 8, "model.fusion.groups": "published"},
        },
    ),
    "geovr": ("qwen3_vl.yaml", "scale_qwen3vl_2b.yaml", 4, 32, GEOVR),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_settings(name: str, parsed: Parsed) -> None:
    model, scale, gpus, questions, settings = PUBLISHED[name]
    config = flatten(parsed("fit", model, scale, str(REPOSITORY / f"recipes/{name}.yaml")))
    assert {option: config[option] for option in settings} == settings
    assert config["model.average"] == "micro_batch_tokens"
    assert gpus * config["data.batch_size"] * config["trainer.accumulate_grad_batches"] == questions


def test_the_larger_recipe_replaces_the_data_alone() -> None:
    small, large = (read_config(REPOSITORY / f"recipes/spatial_mllm_{size}.yaml") for size in ("135k", "820k"))
    parts = [each["data"]["init_args"]["source"]["init_args"].pop("parts") for each in (small, large)]
    assert list(map(len, parts)) == [2, 4] and large == small
    for recipe in RECIPES:  # of two recipes the later one wins
        merged = merge_configs([str(recipe), "recipe_lora.yaml", "scale_7b.yaml"])
        assert any("model.learning_rates.decoder" in line for line in merged.overridden)


def test_released_models_are_tested_on_the_stills_that_they_are_asked_about() -> None:
    scales = [flatten(read_config(CONFIGS / name)) for name in SHIPPED if name.endswith("_released.yaml")]
    shown = {
        each["model.backbone.class_path"]: "datamodules." + each["data.still_resize.class_path"].rpartition(".")[2]
        for each in scales
        if "data.still_resize.class_path" in each
    }
    assert shown and shown == {
        each.__name__: each.shown_as["still_resize"]["class_path"]
        for each in loaders()
        if "still_resize" in each.shown_as
    }


@pytest.mark.parametrize("vision_merger", ["connector", "vision"])
def test_the_merger_is_frozen_with_the_vision_encoder_or_trained_with_the_connector(vision_merger: Any) -> None:
    rates = LearningRates(vision_merger=vision_merger)
    task = VGLLM(backbone=TinyQwen25VL(layers=2, hidden_size=64, heads=2), learning_rates=rates)
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert any(".visual.merger." in name for name in trained) == (vision_merger == "connector")
    assert any("fusion.merger" in name for name in trained)
    assert not any(".visual.blocks." in name for name in trained)


@pytest.mark.slow
def test_a_recipe_trains_an_epoch_on_videos_and_images(tmp_path: Path, rooms_root: Path) -> None:
    """At the tiny scale: each of five rows once, two of them about one image."""
    (tmp_path / "recipes").mkdir()
    for size in ("135k", "820k"):
        text = (REPOSITORY / f"recipes/spatial_mllm_{size}.yaml").read_text()
        (tmp_path / f"recipes/spatial_mllm_{size}.yaml").write_text(text.replace("recipe_full", "recipe_tiny"))
    visuals = tmp_path / "data/visuals"
    rows = {
        "spatial-mllm-mix-203k.jsonl": [{"video": "a.mp4"}, {"video": "b.mp4"}],
        "merged_qa_route_plan_train.json": [{"video": "a.mp4"}],
        "vsi_590k.jsonl": [{"image": "c.png"}],
        "mindcube.jsonl": [{"image": ["c.png", "d.png"]}],
    }
    for folder in ("vsi-590k", "mindcube"):
        (visuals / folder).mkdir(parents=True)
        for name in ("c.png", "d.png"):
            Image.new("RGB", (56, 56), "red").save(visuals / folder / name)
    for name, video in zip("ab", sorted(rooms_root.rglob("*.mp4"))[:2], strict=True):
        (visuals / f"{name}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "data/annotations").mkdir()
    for name, media in rows.items():
        turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "4"}]
        lines = [json.dumps({**medium, "conversations": turns}) for medium in media]
        text = "\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]"
        (tmp_path / f"data/annotations/{name}").write_text(text)
    options = [
        *("--model.geometry=TinyVGGT", "--model.geometry.path=null", "--data.num_workers=0", "--data.batch_size=1"),
        *("--data.pixels.min_pixels=784", "--data.pixels.max_pixels=3136", "--data.image_pixels=null"),
        *("--trainer.accumulate_grad_batches=1", "--trainer.devices=1", "--data.num_frames=4"),
    ]
    launch(tmp_path, "fit", "--config", "recipes/spatial_mllm_820k.yaml", "--config", "spatial_mllm.yaml", *options)
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 5  # an epoch of five questions


# ---- What lies below the given configs


@pytest.mark.parametrize(
    ("names", "recipe"),
    [
        (("qwen25_vl.yaml",), "recipe_tiny"),
        (("prope.yaml",), "recipe_turn"),
        (("prope.yaml", "data_rooms.yaml"), "recipe_tiny"),
        (("prope.yaml", "data_panels.yaml"), "recipe_tiny"),
        (("qwen25_vl.yaml", "data_turn.yaml"), "recipe_turn"),
        (("prope.yaml", "scale_tiny_qwen3.yaml"), "recipe_tiny_qwen3"),
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
    below = defaults_below([read_config(find_config(name)) for name in names])
    assert [path.stem for path in CONFIGS.glob("recipe_*.yaml") if read_config(path) in below] == [recipe]


def test_a_model_names_its_default_data_which_a_source_replaces(tmp_path: Path) -> None:
    def settings(*names: str) -> dict[str, Any]:
        return flatten(merge_configs(names).settings)

    default = settings("prope.yaml")
    assert default["data.source.task"] == "PanelTurn" and default["data.source.scenes"][0] == 1600
    assert (default["data.num_frames"], default["data.batch_size"], default["trainer.max_steps"]) == (16, 8, 300)
    (tmp_path / "frames.yaml").write_text("data: {init_args: {num_frames: 8}}")  # names no source
    fewer = settings("prope.yaml", str(tmp_path / "frames.yaml"))
    assert fewer == {**default, "data.num_frames": 8}
    (tmp_path / "all.yaml").write_text("configs: [prope.yaml, data_rooms.yaml]")
    for names in (("prope.yaml", "data_rooms.yaml"), ("data_rooms.yaml", "prope.yaml"), (str(tmp_path / "all.yaml"),)):
        rooms = settings(*names)
        assert rooms["data.source.class_path"] == "Rooms" and "data.source.task" not in rooms
        assert (rooms["data.num_frames"], rooms["data.batch_size"], rooms["trainer.max_steps"]) == (24, 32, 360)
    (tmp_path / "short.yaml").write_text("data: {init_args: {source: Rooms}}")
    assert settings("prope.yaml", str(tmp_path / "short.yaml"))["data.source.class_path"] == "Rooms"
    full = settings("prope.yaml", "scale_3b.yaml")  # the scale's recipe
    assert full["trainer.max_steps"] == 5000 and full["data.source.task"] == "PanelTurn"
    (tmp_path / "absent.yaml").write_text("configs: [prope.yaml]\ndefault_data: data_absent.yaml")
    with pytest.raises(InputError, match="absent.yaml: no config data_absent.yaml"):
        settings(str(tmp_path / "absent.yaml"))


def test_given_recipes_strategies_and_own_settings_win(tmp_path: Path) -> None:
    def settings(*names: str) -> dict[str, Any]:
        return flatten(merge_configs(names).settings)

    full = settings("prope.yaml", "scale_3b.yaml", "recipe_full.yaml")
    assert full == settings("prope.yaml", "scale_3b.yaml") and full["model.lora"] is None
    large = settings("prope.yaml", "scale_7b.yaml", "recipe_full.yaml")
    assert [name for name in full if full[name] != large[name]] == ["model.backbone.path"]
    assert settings("prope.yaml", "scale_3b.yaml", "recipe_lora.yaml")["model.lora.r"] == 16
    (tmp_path / "own.yaml").write_text("trainer: {max_steps: 7}")
    own = settings("prope.yaml", "scale_3b.yaml", "strategy_fsdp2.yaml", str(tmp_path / "own.yaml"))
    found = [own[f"trainer.{name}"] for name in ("devices", "strategy", "max_steps", "precision")]
    assert found == ["auto", "fsdp2", 7, "bf16-mixed"]
    (tmp_path / "recipe_own.yaml").write_text("configs: [recipe_full.yaml]\ntrainer: {max_steps: 7}")
    (tmp_path / "scale_own.yaml").write_text("configs: [scale_3b.yaml]\nrecipe: recipe_own.yaml")
    (tmp_path / "run.yaml").write_text("configs: [prope.yaml, scale_own.yaml]\ndata: {init_args: {num_frames: 6}}")
    own = settings(str(tmp_path / "run.yaml"))
    found = [own[name] for name in ("trainer.max_steps", "data.num_frames", "trainer.precision")]
    assert found == [7, 6, "bf16-mixed"]


class Own:
    """A source of one's own."""

    has_cameras = False


@pytest.mark.parametrize(
    ("data", "lacks"),
    [
        ("init_args: {source: datamodules.VSIBench}", True),
        ("init_args: {source: {class_path: Mixture, init_args: {parts: [{source: {class_path: ScanQA}}]}}}", True),
        ("init_args: {source: {class_path: Mixture, init_args: {parts: [{path: VSIBench, videos: a}]}}}", False),
        ("init_args: {source: {class_path: SceneFolder, init_args: {root: data/VSIBench}}}", False),
        (f"init_args: {{source: {Own.__module__}.Own}}", True),
        ("init_args: {source: absent.Source}", False),  # an error of the parser
        ("init_args: {source: null}", False),
    ],
)
def test_data_without_cameras_takes_predicted_ones(data: str, lacks: bool, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"data: {{{data}}}")
    assert lacks_cameras(yaml.safe_load(f"{{{data}}}")) == lacks
    model = merge_configs(["prope.yaml", "scale_3b.yaml", str(tmp_path / "data.yaml")]).settings["model"]["init_args"]
    assert model.get("camera_source") == ("auto" if lacks else None)


@pytest.mark.slow
def test_own_data_is_asked_whatever_its_types(parsed: Parsed, tmp_path: Path) -> None:
    """The default question type is that of the rooms, by default and in the config of a run on them."""
    own = ("--data.source", "SceneFolder", "--data.source.root", str(tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(parsed("fit", "qwen25_vl.yaml")))
    (tmp_path / "own.yaml").write_text(
        f"data: {{init_args: {{source: {{class_path: SceneFolder, init_args: {{root: {tmp_path}}}}}}}}}"
    )
    for configs, options, types in (
        (("qwen25_vl.yaml",), (), ("room_size_estimation",)),
        (("qwen25_vl.yaml",), own, None),
        (("run.yaml",), own, None),
        (("qwen25_vl.yaml", "own.yaml"), (), None),
        (("qwen25_vl.yaml",), (*own, "--data.question_types", "[object_counting]"), ["object_counting"]),
        (("qwen25_vl.yaml",), ("--data.question_types", "null"), None),
    ):
        data = from_config(VideoQADataModule, parsed("fit", *configs, options=options)["data"])
        assert data.filter.question_types == types, (configs, options)


# ---- How configs are merged


def test_the_options_of_a_class_do_not_depend_on_the_order(tmp_path: Path, parsed: Parsed) -> None:
    """jsonargparse alone drops the options that are read before their class."""
    (tmp_path / "a.yaml").write_text("model: {init_args: {geometry: {init_args: {embed_dim: 32}}}}")
    (tmp_path / "b.yaml").write_text("model: {class_path: PRoPEMLLM, init_args: {geometry: {class_path: TinyVGGT}}}")
    orders = [parsed("fit", "prope.yaml", *order) for order in permutations(("a.yaml", "b.yaml"))]
    assert orders[0] == orders[1] and orders[0]["model"]["init_args"]["geometry"]["init_args"]["embed_dim"] == 32


def test_a_later_config_wins_and_what_it_overrides_is_said() -> None:
    for names, path in ((["scale_3b.yaml", "scale_7b.yaml"], "7B"), (["scale_7b.yaml", "scale_3b.yaml"], "3B")):
        merged = merge_configs(["prope.yaml", *names])
        assert f"-{path}-" in merged.settings["model"]["init_args"]["backbone"]["init_args"]["path"]
        assert merged.overridden == [f"{names[1]} overrides {names[0]}: model.backbone.path"]
    assert merge_configs(["prope.yaml", "scale_3b.yaml", "data_vsibench.yaml"]).overridden == []


def test_a_part_of_another_class_keeps_the_options_that_its_class_has() -> None:
    below = {"class_path": "PRoPE", "init_args": {"placement": "TemporalSection", "scale": "mean"}}
    for above, kept in (("PoseAxis", set()), ({"class_path": "PRoPE"}, {"placement", "scale"}), ("GTA", {"placement"})):
        found = merge({"model": {"camera_encoding": below}}, {"model": {"camera_encoding": above}})
        options = found["model"]["camera_encoding"]["init_args"]
        assert options.items() <= below["init_args"].items() and kept <= options.keys(), above
    assert merge(below, {"class_path": "not.There"})["init_args"] == below["init_args"]  # the parser reports it
    assert merge(below, None) is None and merge(None, below) is below


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("HeadSubset .encoding GTA", {"encoding": "GTA"}),
        ('{"class_path":"HeadSubset","init_args":{"key_value_heads":[0],"encoding":"GTA"}}', {"encoding": "GTA"}),
        ("LayerSubset", {"encoding": "PRoPE"}),  # around the encoding that was there
        ("LayerSubset .encoding LearnedStrength .encoding.encoding GTA", {"encoding.encoding": "GTA"}),
        ("Compose .encodings [GTA,PoseALiBi]", {"encodings.0": "GTA"}),
        ("Compose .encodings+=GTA", {"encodings.0": "PRoPE", "encodings.1": "GTA"}),
        ("LayerSubset .encoding GTA .encoding.placement TemporalSection", {}),  # the controls: one that is given,
        ("DeltaNetLayers .encoding GTA", {}),  # and heads without RoPE
        ("Compose .encodings [PoseALiBi]", {}),
    ],
)
def test_an_encoding_inside_another_keeps_the_placement_of_the_config(options: str, expected: dict[str, str]) -> None:
    first, *others = options.split(" ")
    words = ["--config", "prope.yaml", "--model.camera_encoding", first]
    words += [f"--model.camera_encoding{word}" if word.startswith(".") else word for word in others]
    names, given = split_configs(words)
    merged = with_options(merge_configs(names).settings, split_options(given)[0])
    found = flatten(merged["model"]["init_args"]["camera_encoding"])
    assert {name for name, value in found.items() if value == "FrequencyRange"} == {
        f"{name}.placement.class_path" for name in expected
    }
    for name, kind in expected.items():
        assert found.get(f"{name}.class_path", found.get(name)) == kind


def test_options_composed_configs_and_merged_configs_follow_one_rule(tmp_path: Path, parsed: Parsed) -> None:
    (tmp_path / "own.yaml").write_text(
        "configs: [scale_3b.yaml, prope.yaml]\n"
        "model: {init_args: {learning_rates: {decoder: 1.0e-6}, camera_encoding: GTA, view_mixer: null}}\n"
        "trainer: {max_steps: 7}\n"
    )
    options = ("--model.learning_rates.decoder=1.0e-6", "--model.camera_encoding=GTA", "--model.view_mixer=null")
    config = parsed("fit", "own.yaml")
    assert config == parsed("fit", "prope.yaml", "scale_3b.yaml", options=(*options, "--trainer.max_steps=7"))
    encoding = config["model"]["init_args"]["camera_encoding"]
    below = parsed("fit", "prope.yaml")["model"]["init_args"]["camera_encoding"]
    assert encoding["class_path"] == "zoo.GTA" and below["class_path"] == "zoo.PRoPE"
    assert encoding["init_args"]["placement"] == below["init_args"]["placement"]
    options = ("--data.num_frames", "6", "--config", "recipe_full.yaml")  # an option wins over a later config
    assert parsed("fit", "prope.yaml", options=options)["data"]["init_args"]["num_frames"] == 6


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("configs: prope.yaml", "recipe.yaml: configs: expected a list of configs"),
        ("configs: [prop.yaml]", "recipe.yaml: no config prop.yaml"),
        ("configs: [recipe.yaml]", "recipe.yaml: it is composed of itself"),
        ("configs: [a list", "recipe.yaml: cannot be read as YAML"),
        ("recipe:", "recipe.yaml: recipe: expected the name of a config, not None"),
        ("recipe: recipe_fll.yaml", "recipe.yaml: no config recipe_fll.yaml, .*did you mean recipe_full"),
        ("", "recipe.yaml: holds no settings"),
    ],
)
def test_a_composition_that_cannot_be_is_named(text: str, error: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=error):
        read_config(Path("recipe.yaml"))


@pytest.mark.parametrize(
    "protocol",
    [pytest.param(each, marks=pytest.mark.slow if each != "protocol_lmms_eval.yaml" else ()) for each in PROTOCOLS],
)
def test_a_protocol_wins_over_model_data_and_recipe_in_any_place(protocol: str, parsed: Parsed, tmp_path: Path) -> None:
    sampler = {"class_path": "SpaceAwareSampler", "init_args": {"candidates": 128}}  # its options do not remain
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"sampler": sampler}}}))
    names = ("vg_llm.yaml", "data_vsibench.yaml", "scale_tiny_qwen3.yaml", "run.yaml")
    options = ("--data.num_frames=4", "--model.repetition_penalty=2.0")
    stated = read_config(CONFIGS / protocol)
    assert departures(stated, parsed("test", protocol, *names)) == {}
    assert departures(stated, parsed("test", *names, protocol, options=options)) == {
        "data.num_frames": {"protocol": stated["data"]["init_args"]["num_frames"], "run": 4},
        "model.repetition_penalty": {"protocol": stated["model"]["init_args"]["repetition_penalty"], "run": 2.0},
    }
