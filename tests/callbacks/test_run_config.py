"""Configs by dotted name, what differs in two of them, and what the answers of a test depend on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import nn
from toy import trainer

from callbacks import SaveRunConfig
from callbacks.results_folder import identify_test
from callbacks.run_config import changed_options, is_covered
from datamodules import Duplicate, OriginalStills, PixelBounds, UniformSampler, VideoQADataModule
from zoo.configuration import flatten
from zoo.files.fingerprint import fingerprint
from zoo.tasks import VideoQATask

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "zoo.PRoPEMLLM",
        "init_args": {
            "backbone": {"class_path": "zoo.TinyQwen25VL", "init_args": {"layers": 2, "attn_implementation": "sdpa"}},
            "encoding": {"class_path": "zoo.PRoPE", "init_args": {"apply_to": "qkvo", "size": (1, 2)}},
            "objectives": [{"class_path": "zoo.CameraPrediction", "init_args": {"weight": 0.5}}],
            "learning_rates": {"decoder": 1e-4},
            "max_new_tokens": 32,
            "fusion": None,
        },
    },
    "data": {
        "class_path": "datamodules.VideoQADataModule",
        "init_args": {"num_frames": 16, "num_workers": 1, "sampler": UniformSampler, "train_sampler": None},
    },
    "trainer": {"devices": 1},
}


def changed(path: str, value: Any, config: Any = CONFIG) -> dict[str, Any]:
    """The config with another value at a path of keys and indices."""

    def change(part: Any, keys: list[str]) -> Any:
        if not keys:
            return value
        if isinstance(part, list):
            return [change(each, keys[1:]) if str(place) == keys[0] else each for place, each in enumerate(part)]
        return {**part, keys[0]: change(part.get(keys[0], {}), keys[1:])}

    return change(config, path.split("."))


def test_names_have_no_init_args_and_reach_into_lists() -> None:
    flat = flatten(CONFIG)
    assert flat["model.class_path"] == "zoo.PRoPEMLLM" and flat["model.encoding.size"] == [1, 2]
    assert flat["model.objectives.0.weight"] == 0.5
    assert flat["data.sampler"] == "datamodules.samplers.uniform.UniformSampler"
    assert flatten(flat) == flat


GTA = {"class_path": "zoo.GTA", "init_args": {"apply_to": "qkvo", "strength": 2}}


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("model.init_args.encoding.init_args.apply_to", "qk", ["model.encoding.apply_to"]),
        ("model.init_args.objectives.0.init_args.weight", 1, ["model.objectives.0.weight"]),
        ("model.init_args.encoding", GTA, ["model.encoding"]),
        ("model.init_args.encoding", None, ["model.encoding"]),
        ("model.init_args.fusion", {"class_path": "zoo.AddFusion", "init_args": {"layers": 1}}, ["model.fusion"]),
        ("model.init_args.encoding.class_path", "PRoPE", []),
        ("model.class_path", "zoo.SpatialMLLM", ["model"]),
        ("data.init_args.num_workers", 4, []),
        ("model.init_args.learning_rates", {"decoder": 1.0, "vision": 2.0}, []),
    ],
)
def test_what_differs_is_named(path: str, value: Any, names: list[str]) -> None:
    excepted = ("data.num_workers", "model.learning_rates")
    other = changed(path, value)
    assert changed_options(CONFIG, other, excepted) == changed_options(other, CONFIG, excepted) == names
    assert changed_options(flatten(CONFIG), flatten(other), excepted) == names


def test_a_name_covers_what_is_below_it_and_no_option_of_that_name_elsewhere() -> None:
    names = ("data.video", "model.backbone.attn_implementation")
    assert is_covered("data.video", names) and is_covered("data.video.path", names)
    assert not any(is_covered(name, names) for name in ("data.source.video", "data.video_fps", "model.data.video"))


@pytest.mark.parametrize(
    ("option", "answer", "training"),
    [
        ("model.geometry_cache.max_size_gb", False, False),
        ("model.repetition_penalty", True, False),
        ("model.backbone.attn_implementation", False, False),
        ("model.average", False, True),
        ("model.lora.dropout", False, True),
        ("model.learning_rates.decoder", False, True),
        ("model.backbone.dtype", True, True),
        ("model.backbone.layers", True, True),
        ("data.batch_size", False, True),
        ("data.augmentation.low", False, True),
        ("data.num_workers", False, False),
        ("data.num_frames", True, True),
        ("data.source.video", True, True),
    ],
)
def test_what_an_option_changes(option: str, answer: bool, training: bool) -> None:
    kinds = VideoQATask, VideoQADataModule
    no_answer = [name for kind in kinds for name in kind.changes_no_answer]
    no_training = [name for kind in kinds for name in kind.changes_no_training]
    assert [not is_covered(option, names) for names in (no_answer, no_training)] == [answer, training]


@pytest.mark.parametrize("kind", [VideoQATask, VideoQADataModule])
def test_each_excepted_name_is_of_an_option(kind: Any) -> None:
    import inspect

    from zoo import SpatialVLM

    options = {*inspect.signature(kind.__init__).parameters, *inspect.signature(SpatialVLM.__init__).parameters}
    for name in (*kind.changes_no_answer, *kind.changes_no_training):
        assert name.split(".")[1] in options, name
        assert name.split(".")[0] == ("model" if kind is VideoQATask else "data")


# ---- what the answers of a test depend on -----------------------------------------------------------------------


class Model(LightningModule):
    changes_no_answer = ("model.learning_rates", "data.num_workers")

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(sizes))


def identity(config: dict[str, Any] = CONFIG, model: LightningModule | None = None, **more: Any) -> dict[str, Any]:
    save = SaveRunConfig.__new__(SaveRunConfig)
    save.content = lambda: config  # type: ignore[method-assign]
    return identify_test(trainer(Path("nowhere"), save, **more), model or Model(2, 2))


@pytest.mark.parametrize(
    ("path", "value", "counts"),
    [
        ("model.init_args.encoding.init_args.apply_to", "qk", True),
        ("model.init_args.max_new_tokens", 8, True),
        ("data.init_args.num_frames", 8, True),
        ("seed_everything", 3, True),
        ("trainer.precision", "bf16-mixed", True),
        ("trainer.limit_test_batches", 3, True),
        ("model.init_args.learning_rates", {"decoder": 1.0}, False),
        ("data.init_args.num_workers", 4, False),
        ("trainer.devices", 8, False),
        ("metrics.scorer", "thinking_in_space", False),
    ],
)
def test_which_options_answers_depend_on(path: str, value: Any, counts: bool) -> None:
    assert (identity() != identity(changed(path, value))) is counts


@pytest.mark.parametrize(
    "options",
    [
        {"pixels": PixelBounds(max_pixels=65536)},
        {"image_pixels": PixelBounds(min_pixels=784)},
        {"still_resize": OriginalStills()},
        {"sampler": UniformSampler(candidates=8)},
        {"frame_pairing": Duplicate(keep="views")},
    ],
)
def test_without_a_command_line_the_datas_own_options_count(options: dict[str, Any]) -> None:
    def identity_with(**more: Any) -> dict[str, Any]:
        made: Any = trainer(Path("nowhere"))
        made.datamodule = VideoQADataModule(**more)
        return identify_test(made, Model(2, 2))

    assert identity_with() != identity_with(**options) and identity_with() == identity_with(num_workers=0)


def test_weights_count() -> None:
    assert identity()["weights"] == identity(model=Model(2, 2))["weights"] != identity(model=Model(2, 3))["weights"]


def test_the_content_of_a_checkpoint_counts_and_its_path_does_not(tmp_path: Path) -> None:
    def identity_of(file: str, number: float) -> str:
        torch.save({"state_dict": {"weight": torch.full((2,), number)}, "optimizer": number}, tmp_path / file)
        tester = trainer(tmp_path)
        tester._checkpoint_connector._ckpt_path = str(tmp_path / file)
        return str(identify_test(tester, Model(2, 2))["weights"])

    assert identity_of("a.ckpt", 1.0) == identity_of("b.ckpt", 1.0) != identity_of("a.ckpt", 2.0)


def test_the_code_of_ones_own_classes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_sampler_of_a_test.py"
    file.write_text("class Own: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = changed("data.init_args.sampler", {"class_path": "own_sampler_of_a_test.Own"})
    before = identity(config)
    file.write_text("class Own: pass  # other code\n")
    after = identity(config)
    assert before.pop("code") != after.pop("code") and before == after
    sys.modules.pop("own_sampler_of_a_test")


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
