"""What the answers of a test depend on, and what they don't."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from torch import nn
from toy import trainer

from callbacks import settings as tables
from callbacks.settings import (
    CHANGES_NO_ANSWER,
    CHANGES_NO_RESULT,
    CHANGES_NO_WEIGHT,
    NOT_ARCHITECTURE,
    differences,
    fingerprint,
    flatten,
    is_one_of,
    settings_of,
    unflatten,
)
from datamodules import Duplicate, OriginalStills, PixelBounds, UniformSampler, VideoQADataModule

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "zoo.PRoPEMLLM",
        "init_args": {
            "backbone": {"class_path": "zoo.TinyQwen25VL", "init_args": {"layers": 2, "attn_implementation": "sdpa"}},
            "encoding": {"class_path": "zoo.PRoPE", "init_args": {"apply_to": "qkvo", "size": (1, 2)}},
            "learning_rates": {"decoder": 1e-4},
            "max_new_tokens": 32,
        },
    },
    "data": {
        "class_path": "datamodules.VideoQADataModule",
        "init_args": {"num_frames": 16, "num_workers": 1, "sampler": UniformSampler, "train_sampler": None},
    },
    "trainer": {"devices": 1},
}


class Model(LightningModule):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(sizes))


def settings(config: dict[str, Any], model: Model | None = None, **more: Any) -> dict[str, Any]:
    save = SaveConfigCallback(LightningArgumentParser(), Namespace(config))
    return settings_of(trainer(Path("nowhere"), save, **more), model or Model(2, 2))


def changed(path: str, value: Any) -> dict[str, Any]:
    def change(config: Any, keys: list[str]) -> Any:
        return {**config, keys[0]: change(config[keys[0]], keys[1:])} if keys else value

    return change(CONFIG, path.split("."))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.init_args.encoding.init_args.apply_to", "qk", ["model.encoding.apply_to was qkvo, now it is qk"]),
        ("model.init_args.backbone.init_args.layers", 3, ["model.backbone.layers was 2, now it is 3"]),
        ("model.init_args.max_new_tokens", 8, ["model.max_new_tokens was 32, now it is 8"]),
        ("data.init_args.num_frames", 8, ["data.num_frames was 16, now it is 8"]),
        (
            "model.init_args.encoding",
            {"class_path": "zoo.GTA", "init_args": {"apply_to": "qkvo"}},
            [
                "model.encoding.class_path was zoo.PRoPE, now it is zoo.GTA",
                "model.encoding.size was [1, 2], now it is None",
            ],
        ),
    ],
)
def test_what_changes_answers_is_named(path: str, value: Any, says: list[str]) -> None:
    assert differences(settings(CONFIG), settings(changed(path, value)), ()) == says


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pixels.max_pixels", {"pixels": PixelBounds(max_pixels=65536)}),
        ("image_pixels.min_pixels", {"image_pixels": PixelBounds(min_pixels=784)}),
        ("still_resize.class_path", {"still_resize": OriginalStills()}),
        ("sampler_options.candidates", {"sampler": UniformSampler(candidates=8)}),
        ("frame_pairing_options.keep", {"frame_pairing": Duplicate(keep="views")}),
    ],
)
def test_a_trainer_without_a_command_line_names_what_changes_answers(name: str, options: dict[str, Any]) -> None:
    def settings_with(**more: Any) -> dict[str, Any]:
        made: Any = trainer(Path("nowhere"))
        made.datamodule = VideoQADataModule(**more)
        return settings_of(made, Model(2, 2))

    said = differences(settings_with(), settings_with(**options), ())
    assert f"data.{name}" in {line.split()[0] for line in said}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.init_args.learning_rates", {"decoder": 1.0, "vision": 2.0}),
        ("model.init_args.backbone.init_args.attn_implementation", "eager"),
        ("data.init_args.num_workers", 4),
        ("data.init_args.train_sampler", {"class_path": "datamodules.RandomSampler"}),
        ("trainer.devices", 8),
    ],
)
def test_what_changes_none_is_left_out(path: str, value: Any) -> None:
    assert settings(CONFIG) == settings(changed(path, value))


def test_flattened_settings_become_the_config_again() -> None:
    parts = {part: deepcopy(CONFIG[part]) for part in ("model", "data")}
    parts["data"]["init_args"] |= {"sampler": None}
    parts["model"]["init_args"]["encoding"]["init_args"] |= {"size": [1, 2], "parts": [{"class_path": "zoo.GTA"}]}
    assert unflatten(flatten(parts)) == parts


@pytest.mark.parametrize(
    ("option", "answer", "result", "architecture"),
    [
        ("model.geometry_cache.max_size_gb", False, False, False),
        ("model.repetition_penalty", True, False, False),
        ("data.batch_size", False, True, False),
        ("model.average", False, True, False),
        ("data.augmentation", False, True, False),
        ("model.lora.dropout", False, True, False),
        ("model.backbone.dtype", True, True, False),
        ("model.backbone.layers", True, True, True),
    ],
)
def test_what_an_option_changes(option: str, answer: bool, result: bool, architecture: bool) -> None:
    unchanging = (CHANGES_NO_ANSWER, CHANGES_NO_RESULT, NOT_ARCHITECTURE)
    assert [not is_one_of(option, names) for names in unchanging] == [answer, result, architecture]


@pytest.mark.parametrize("name", ["fusion.active_branches", "fusion.temporal_merge", "objectives.1.token"])
def test_a_trained_model_is_tested_in_other_ways(name: str) -> None:
    name = f"model.{name}"
    assert is_one_of(name, CHANGES_NO_WEIGHT) and not is_one_of(name, NOT_ARCHITECTURE | CHANGES_NO_RESULT)


def test_each_option_is_in_one_set_alone() -> None:
    sets = (tables._NOTHING, tables._TRAINING, tables._ANSWERS, tables._BOTH, tables._FORWARD_PASS)
    assert len(set().union(*sets)) == sum(map(len, sets))


def test_what_was_recorded_before_it_was_left_out_changes_none() -> None:
    former = settings(CONFIG) | {"model.compile_decoder": False, "data.pack_scenes": False}
    assert differences(former, settings(CONFIG), ()) == [] != differences({**former, "data.x": 1}, settings(CONFIG), ())


def test_frames_drawn_by_the_runs_seed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = changed(
        "data.init_args.sampler", {"class_path": "datamodules.RandomSampler", "init_args": {"seed": None}}
    )
    before = {name: settings(config) for name, config in (("drawing", drawing), ("uniform", CONFIG))}
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert differences(before["drawing"], settings(drawing), ()) == ["data.sampler.seed was 0, now it is 3"]
    assert settings(CONFIG) == before["uniform"]


def test_precision_and_weights_count() -> None:
    assert differences(settings(CONFIG), settings(CONFIG, precision="bf16-mixed"), ()) == [
        "precision was 32-true, now it is bf16-mixed"
    ]
    (weights,) = differences(settings(CONFIG), settings(CONFIG, Model(2, 3)), ())
    assert weights.startswith("weights was ")


def test_a_fingerprint_is_of_names_types_shapes_and_every_number() -> None:
    model = Model(4, 6)
    other = Model(4, 6)
    assert fingerprint(model) == fingerprint(other)
    bits = other.weight.detach().view(torch.int32)
    bits[3, 5] += 1  # one unit in the last place
    different = [other, Model(6, 4), Model(4, 6).bfloat16(), nn.Sequential(Model(4, 6))]
    assert len({fingerprint(each) for each in (model, *different)}) == 1 + len(different)
    other.load_state_dict(model.state_dict())
    assert fingerprint(model) == fingerprint(other)
    other.register_buffer("scale", torch.tensor(2.0))  # of no dimension
    assert fingerprint(model) != fingerprint(other)
