"""Every shipped config is read, alone and merged with others, and its settings reach their part."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import pytest
import yaml

import main
from callbacks.configs import CONFIGS, merge, merge_configs, read_config
from callbacks.metrics import departures
from commands import runs
from commands.parser import split_configs
from commands.studies.switches import with_defaults
from datamodules import VideoQADataModule
from datamodules.inference import RELEASED_AS
from zoo.configuration import flatten, from_config
from zoo.errors import InputError

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
MODELS = {
    "qwen25_vl.yaml": "Qwen25VL",
    "qwen3_vl.yaml": "Qwen3VL",
    "qwen3_5.yaml": "Qwen35",
    "spatial_mllm.yaml": "SpatialMLLM",
    "concat_split.yaml": "ConcatSplitMLLM",
    "prope.yaml": "PRoPEMLLM",
    "vg_llm.yaml": "VGLLM",
    "spatial_stack.yaml": "SpatialStack",
}
WEIGHTS = {
    "scale_3b.yaml": "Qwen/Qwen2.5-VL-3B-Instruct",
    "scale_7b.yaml": "Qwen/Qwen2.5-VL-7B-Instruct",
    "scale_qwen3vl_2b.yaml": "Qwen/Qwen3-VL-2B-Instruct",
    "scale_qwen3vl_4b.yaml": "Qwen/Qwen3-VL-4B-Instruct",
    "scale_qwen3vl_8b.yaml": "Qwen/Qwen3-VL-8B-Instruct",
    **{f"scale_qwen3_5_{size.lower()}.yaml": f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B")},
    "spatial_mllm_released.yaml": "Diankun/Spatial-MLLM-v1.1-Instruct-135K",
    "vg_llm_released.yaml": "zd11024/vgllm-qa-vggt-4b",
    "spatial_stack_released.yaml": "Journey9ni/SpatialStack-Qwen3.5-4B",
    "spatial_stack_qwen25_released.yaml": "Journey9ni/SpatialStack-Qwen2.5-4B",
}
TINY = {
    "scale_tiny.yaml": "zoo.TinyQwen25VL",
    "scale_tiny_qwen3.yaml": "zoo.TinyQwen3VL",
    "scale_tiny_qwen3_5.yaml": "zoo.TinyQwen35",
}
DEFAULT_SCALES = {"qwen3_vl.yaml": "scale_tiny_qwen3.yaml", "qwen3_5.yaml": "scale_tiny_qwen3_5.yaml"}
COMPOSED = {  # each model with a scale, and a scale of each family
    ("qwen25_vl.yaml", "scale_tiny.yaml"),
    ("qwen3_vl.yaml", "scale_qwen3vl_4b.yaml"),
    ("qwen3_5.yaml", "scale_tiny_qwen3_5.yaml"),
    ("qwen3_5.yaml", "scale_qwen3_5_4b.yaml"),
    ("concat_split.yaml", "scale_3b.yaml"),
    ("prope.yaml", "scale_tiny_qwen3.yaml"),
    *((f"{name}.yaml", f"{name}_released.yaml") for name in ("spatial_mllm", "vg_llm", "spatial_stack")),
}
WITHOUT_GEOMETRY = ("Qwen25VL", "Qwen3VL", "Qwen35")  # the others have the dataset's at a tiny scale
DATA = [name for name in SHIPPED if name.startswith("data_")]
RECIPES = [name for name in SHIPPED if name.startswith("recipe_")]
TRIOS = [*product(MODELS, [*WEIGHTS, *TINY], DATA)]
FAST = {("qwen25_vl.yaml", "scale_3b.yaml", "data_conversations.yaml")}
PRETRAINING = "recipe_geometry_tiny.yaml"
WITH_RECIPE = ("prope.yaml", "scale_7b.yaml", "data_vsibench.yaml", "recipe_full.yaml")
PARTS = {"fusion", "view_mixer", "camera_encoding", "geometry"}
TRAINING = {"learning_rates", "lora", "gradient_checkpointing", "max_new_tokens"}
FRAMES = {"num_frames", "pixels", "train_sampler"}
LOADING = {"batch_size", "questions_per_batch", "num_workers", "keep_in_memory"}
DEVICES = {"precision", "accelerator", "devices"}
STEPS = {"max_steps", "accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval", "default_root_dir"}
MAY_SET: dict[str, dict[str, set[str]]] = {  # each kind of config
    "model": {"model": {"class_path", "backbone", *PARTS}, "data": {"frames_as"}, "recipe": set(), "scale": set()},
    "scale": {"model": {"backbone", "geometry"}, "data": {"still_resize"}, "recipe": set()},
    "recipe": {"model": TRAINING, "data": FRAMES | LOADING, "trainer": STEPS | DEVICES},
    "data": {"data": {"class_path", "source", "datasets", "question_types", "num_frames"}},  # of videos that need all
    "strategy": {"trainer": {"strategy", "devices"}},
    "cameras": {"model": {"camera_source"}},
    "grpo": {"model": {"learning_rates", "algorithm"}, "data": {"batch_size"}, "trainer": {"max_steps"}},
    "geovr": {
        "model": {"class_path", "backbone", "teacher", "objectives"},
        "data": {"train_frame_pairing"},
        "recipe": set(),
    },
    "protocol": {
        "model": {"time_index", "text_after_vision", "max_new_tokens", "repetition_penalty", "sampling"},
        "data": {
            *("num_frames", "sampler", "frame_pairing", "frames_as", "system_prompt", "prompt_prefix"),
            *("prompt_wording", "pixels", "image_pixels", "still_resize"),
        },
        "metrics": {"scorer", "protocol"},
    },
}
PROTOCOLS = [name for name in SHIPPED if name.startswith("protocol_")]
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
        assert end.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return call


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        pytest.param(*pair, marks=() if pair in COMPOSED else pytest.mark.slow)
        for pair in product(MODELS, [*TINY, *WEIGHTS])
    ],
)
def test_models_and_scales_compose(model: str, scale: str, parsed: Parsed) -> None:
    config = parsed("fit", model, scale)
    assert config["model"]["class_path"] == f"zoo.{MODELS[model]}"
    parts, data = config["model"]["init_args"], config["data"]["init_args"]
    is_tiny = scale in TINY
    assert data["pixels"]["legacy_folder_resize"] == (not is_tiny) == (data["train_sampler"] is None)
    if is_tiny:
        assert (config == parsed("fit", model)) == (scale == DEFAULT_SCALES.get(model, "scale_tiny.yaml"))
        assert parts["backbone"]["class_path"] == TINY[scale]
        geometry = (parts["geometry"] or {}).get("class_path")
        assert geometry == (None if MODELS[model] in WITHOUT_GEOMETRY else "zoo.DatasetGeometry")
    else:
        assert parts["backbone"]["init_args"]["path"] == WEIGHTS[scale]
    if not is_tiny and not scale.endswith("_released.yaml"):
        assert parts["geometry"]["init_args"]["path"] == "facebook/VGGT-1B"


@pytest.mark.slow
def test_own_data_is_asked_whatever_its_types(parsed: Parsed, tmp_path: Path) -> None:
    """The default question type is that of the rooms, by default and in the config of a run on them."""
    own = ("--data.source", "SceneFolder", "--data.source.root", str(tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(parsed("fit", "qwen25_vl.yaml")))
    (tmp_path / "own.yaml").write_text(
        f"data: {{init_args: {{source: {{class_path: SceneFolder, init_args: {{root: {tmp_path}}}}}}}}}"
    )
    cases = [
        (("qwen25_vl.yaml",), (), ("room_size_estimation",)),
        (("qwen25_vl.yaml",), own, None),
        (("run.yaml",), own, None),
        (("qwen25_vl.yaml", "own.yaml"), (), None),
        (("qwen25_vl.yaml",), (*own, "--data.question_types", "[object_counting]"), ["object_counting"]),
        (("qwen25_vl.yaml",), ("--data.question_types", "null"), None),
    ]
    for configs, options, types in cases:
        data = from_config(VideoQADataModule, parsed("fit", *configs, options=options)["data"])
        assert data.filter.question_types == types, (configs, options)


def kind_of(name: str) -> str:
    """The kind that a config's name states; those of models state none."""
    kind = "scale" if name.endswith("_released.yaml") else Path(name).stem.partition("_")[0]
    return kind if kind in MAY_SET else "model"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_sets_what_its_name_says(name: str) -> None:
    allowed = MAY_SET[kind_of(name)]
    for section, content in read_config(CONFIGS / name).items():
        assert section in allowed
        if isinstance(content, dict):
            options = content.keys() - {"init_args"} | content.get("init_args", {}).keys()
            assert options <= allowed[section], (section, options - allowed[section])


@pytest.mark.parametrize(
    "names",
    [
        *(pytest.param(t, marks=() if t in FAST else pytest.mark.slow, id="-".join(t)) for t in TRIOS),
        pytest.param(WITH_RECIPE, marks=pytest.mark.slow, id="with a recipe"),
    ],
)
def test_a_model_a_scale_and_data_compose(names: tuple[str, ...], parsed: Parsed) -> None:
    config = parsed("fit", *names)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    for name, part, found in ((names[1], "backbone", model), (names[2], "source", data)):
        stated = read_config(CONFIGS / name)["model" if part == "backbone" else "data"]["init_args"][part]
        stated = {"class_path": stated} if isinstance(stated, str) else stated
        assert found[part]["class_path"].rpartition(".")[2] == stated["class_path"]
        for option, value in stated.get("init_args", {}).items():
            if not isinstance(value, list | dict):
                assert found[part]["init_args"][option] == value


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
        (line,) = merged.overridden
        assert line == f"{names[1]} overrides {names[0]}: model.backbone.path"
        assert merged.origins["model.backbone.path"] == names[1]
    assert merge_configs(["prope.yaml", "scale_3b.yaml", "data_vsibench.yaml"]).overridden == []


def test_a_part_of_another_class_keeps_the_options_that_its_class_has() -> None:
    below = {"class_path": "PRoPE", "init_args": {"placement": "TemporalSection", "scale": "mean"}}
    options = {"placement": "TemporalSection"}
    for above in ("PoseAxis", {"class_path": "zoo.PoseALiBi"}, {"class_path": "PRoPE"}):
        found = merge({"model": {"camera_encoding": below}}, {"model": {"camera_encoding": above}})
        kept = found["model"]["camera_encoding"]["init_args"]
        assert kept == {name: value for name, value in below["init_args"].items() if name in kept}  # type: ignore[attr-defined]
        assert ("placement" in kept) == (above == {"class_path": "PRoPE"}), above
    assert merge(below, {"class_path": "GTA"})["init_args"].keys() >= options.keys()
    assert merge(below, {"class_path": "not.There"})["init_args"] == below["init_args"]  # the parser reports it
    assert merge(below, None) is None and merge(None, below) is below


def test_the_command_line_follows_the_rule_of_configs(tmp_path: Path, parsed: Parsed) -> None:
    (tmp_path / "own.yaml").write_text("model: {init_args: {camera_encoding: GTA, view_mixer: null}}")
    options = ("--model.camera_encoding", "GTA", "--model.view_mixer", "null")
    config = parsed("fit", "prope.yaml", "own.yaml")
    assert config == parsed("fit", "prope.yaml", options=options)
    encoding = config["model"]["init_args"]["camera_encoding"]
    assert encoding["class_path"] == "zoo.GTA" and encoding["init_args"]["placement"]["init_args"]["stop"] == 0.5


def test_a_composed_config_is_its_configs_with_its_own_settings_over_them(tmp_path: Path, parsed: Parsed) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "configs: [scale_3b.yaml, prope.yaml]\n"
        "model: {init_args: {learning_rates: {decoder: 1.0e-6}, camera_encoding: null}}\n"
        "trainer: {max_steps: 7}\n"
    )
    options = ("--model.learning_rates.decoder=1.0e-6", "--model.camera_encoding=null", "--trainer.max_steps=7")
    config = parsed("fit", "recipe.yaml")
    assert config == parsed("fit", "prope.yaml", "scale_3b.yaml", options=options)
    assert config["model"]["init_args"]["camera_encoding"] is None and config["trainer"]["max_steps"] == 7


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("configs: prope.yaml", "recipe.yaml: configs: expected a list of configs"),
        ("configs: [prop.yaml]", "recipe.yaml: no config prop.yaml"),
        ("configs: [recipe.yaml]", "recipe.yaml: it is composed of itself"),
        ("configs: [a list", "recipe.yaml: cannot be read as YAML"),
        ("recipe: [recipe_full.yaml]", "recipe.yaml: recipe: expected the name of a config"),
        ("configs: [recipes/vg_lm.yaml]", "did you mean vg_llm"),
        ("recipe:", "recipe.yaml: recipe: expected the name of a config, not None"),
        ("scale: ''", "recipe.yaml: scale: expected the name of a config"),
        ("scale: {size: 3b}", "recipe.yaml: scale: expected the name of a config"),
        ("recipe: recipe_fll.yaml", "recipe.yaml: no config recipe_fll.yaml, .*did you mean recipe_full"),
        ("", "recipe.yaml: holds no settings"),
    ],
)
def test_a_composition_that_cannot_be_is_named(text: str, error: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    Path("own.yaml").write_text("scale: scale_3b.yaml")
    with pytest.raises(InputError, match=error):
        read_config(Path("recipe.yaml"))


@pytest.mark.parametrize(
    "protocol",
    [pytest.param(each, marks=pytest.mark.slow if each != "protocol_lmms_eval.yaml" else ()) for each in PROTOCOLS],
)
def test_a_protocol_is_read_over_model_data_and_recipe_in_any_place(protocol: str, parsed: Parsed) -> None:
    names = ("vg_llm.yaml", "data_vsibench.yaml", "scale_tiny_qwen3.yaml")
    config = parsed("test", *names, protocol)
    assert config == parsed("test", protocol, *names)
    stated = read_config(CONFIGS / protocol)
    assert departures(stated, config) == {}  # frames_as is the protocol's, not the model's
    changed = parsed("test", *names, protocol, options=("--data.num_frames=4", "--model.repetition_penalty=2.0"))
    assert departures(stated, changed) == {
        "data.num_frames": {"protocol": stated["data"]["init_args"]["num_frames"], "run": 4},
        "model.repetition_penalty": {"protocol": stated["model"]["init_args"]["repetition_penalty"], "run": 2.0},
    }


@pytest.mark.parametrize("rows_per_protocol", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_row_of_the_published_models_is_read(rows_per_protocol: int, parsed: Parsed) -> None:
    page = (CONFIGS.parent / "docs/guide/published_models.md").read_text()
    rows = [line.split()[2:] for line in page.splitlines() if line.startswith("python main.py test --config")]
    found = {tuple(row): split_configs(row)[0] for row in rows}
    assert {config for configs in found.values() for config in configs} >= {"vg_llm.yaml", "geovr.yaml", *PROTOCOLS} - {
        "protocol_lmms_eval.yaml"
    }
    assert len(found) == 8
    read = Counter[str]()
    for row, configs in found.items():
        read[row[-1]] += 1
        if read[row[-1]] > rows_per_protocol:
            continue
        config = parsed("test", *configs)
        assert config["metrics"]["protocol"] == row[-1].removeprefix("protocol_").removesuffix(".yaml")
        assert config["model"]["init_args"]["backbone"]["class_path"].startswith("zoo.Pretrained")


def test_every_protocol_sets_the_same_options() -> None:
    """Or an option of the model's config would remain below one of them."""
    options = {name: {*flatten(read_config(CONFIGS / name))} for name in PROTOCOLS}
    parts = ("data.pixels", "data.still_resize", "model.sampling")  # with options of their own, or null
    bare = {name: {each for each in own if not each.startswith(parts)} for name, own in options.items()}
    assert len({*map(frozenset, bare.values())}) == 1


def test_a_protocol_states_every_option_of_its_parts() -> None:
    """Or one of a run's part of another class would remain below it: jsonargparse keeps what both classes have."""
    for name in PROTOCOLS:
        sections = read_config(CONFIGS / name).values()
        parts = [part for section in sections for part in section.get("init_args", {}).values()]
        for part in (part for part in parts if isinstance(part, dict) and "class_path" in part):
            assert with_defaults(part)["init_args"].keys() == part["init_args"].keys(), (name, part["class_path"])


def test_a_run_with_candidates_is_tested_with_a_protocols_frames(parsed: Parsed, tmp_path: Path) -> None:
    sampler = {"class_path": "SpaceAwareSampler", "init_args": {"candidates": 128}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"sampler": sampler}}}))
    found = parsed("test", "qwen25_vl.yaml", "run.yaml", "protocol_lmms_eval.yaml")["data"]["init_args"]["sampler"]
    assert found == {
        "class_path": "datamodules.UniformSampler",
        "init_args": {"rule": "linspace_floor", "candidates": None},
    }


def test_released_models_are_tested_on_the_stills_that_they_are_asked_about() -> None:
    scales = [read_config(CONFIGS / name) for name in SHIPPED if name.endswith("_released.yaml")]
    shown = {
        each["model"]["init_args"]["backbone"]["class_path"]: each["data"]["init_args"]["still_resize"]["class_path"]
        for each in scales
        if "data" in each
    }
    assert shown == {
        loader: each["still_resize"]["class_path"].removeprefix("datamodules.") for loader, each in RELEASED_AS.items()
    }


def test_a_protocol_alone_is_put_over_the_config_of_the_newest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "newest_run", lambda: Path("runs/x"))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    words = ["--data.num_frames=8", "--config=protocol_vg_llm.yaml"]
    run = ["--config", "runs/x/config.yaml", "--trainer.default_root_dir", "runs/x"]
    assert runs.with_run("test", words) == [*run, "--ckpt_path", "runs/x/checkpoints/last.ckpt", *words]
    for named in (["--config", "prope.yaml"], ["--model", "PRoPEMLLM"]):  # a model: no run
        assert runs.with_run("test", [*words, *named]) == [*words, *named]
    assert runs.with_run("fit", words) == words


def test_an_option_wins_over_a_config_that_follows_it(parsed: Parsed) -> None:
    option = ("--data.num_frames", "6", "--config", "recipe_full.yaml")
    assert parsed("fit", "prope.yaml", options=option)["data"]["init_args"]["num_frames"] == 6


def test_every_recipe_sets_what_the_default_recipe_sets() -> None:
    """Or a value of the scale's own recipe would remain below another one."""

    def options(config: dict, prefix: str = "") -> set[str]:
        if not isinstance(config, dict) or "class_path" in config or prefix.endswith(".lora"):
            return {prefix}
        return {name for key, value in config.items() for name in options(value, f"{prefix}.{key}")}

    recipes = {name: options(read_config(CONFIGS / name)) for name in RECIPES}
    assert all(keys == recipes["recipe_tiny.yaml"] for name, keys in recipes.items() if name != PRETRAINING)
    assert recipes["recipe_tiny.yaml"] <= recipes[PRETRAINING]


def test_the_pretraining_of_the_tiny_geometry(parsed: Parsed) -> None:
    config = parsed("fit", "geometry_tiny.yaml")
    assert config["model"]["class_path"] == "zoo.VGGTPretraining"
    assert config["trainer"]["default_root_dir"] == "runs/vggt_tiny"
    assert config["model"]["init_args"]["geometry"]["init_args"]["path"] is None
    assert config["trainer"]["max_steps"] == 900


def test_no_config_is_left_out() -> None:
    others = {*TINY, "model_default.yaml", "geometry_tiny.yaml", "strategy_fsdp2.yaml", "cameras_auto.yaml"}
    others |= {*PROTOCOLS, "geovr.yaml", "geovr_tiny.yaml", "grpo.yaml"}
    others |= {"scale_vg_llm_4b.yaml", "scale_spatial_stack_4b.yaml"}  # test_recipes.py
    assert set(SHIPPED) == {
        *MODELS,
        *WEIGHTS,
        *DATA,
        *RECIPES,
        *others,
    }  # those of data: tests/datamodules/test_configs.py
