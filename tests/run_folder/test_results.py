"""A finished test stays: one with other settings, of another step, or repeated gets a folder inside the run's.

Which options, weights, files and code count is the identity of a test.
"""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn

from datamodules import Duplicate, OriginalStills, PixelBounds, UniformSampler, VideoQADataModule
from datamodules.scenes import Scene
from run_folder.record import METRICS, OF_COMMAND, TEST_FILE, RunRecord, SaveRunConfig
from run_folder.results import choose_folder, differences, finished_tests, identify_test
from tests.callbacks.breakable import Tiny, on_disk, results, run
from tests.callbacks.toy import trainer
from zoo.configuration import OptionEffects, is_covered
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint
from zoo.model import SpatialVLM
from zoo.tasks import VideoQATask
from zoo.weights.saved_models import config_of


class OtherWeights(Callback):
    """Another training step of the weights."""

    def __init__(self, step: int) -> None:
        self.step = step

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.trained = {"step": self.step, "max_steps": 200}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    Tiny(root).prepare()
    return root


@pytest.fixture(scope="module")
def tested(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tested")
    run(folder, scenes, OtherWeights(100))
    return folder


@pytest.fixture
def finished(tested: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a finished test, which is in the folder."""
    shutil.copytree(tested, tmp_path, dirs_exist_ok=True)
    return results(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Duplicate", {"frame_pairing": Duplicate()}),
        ("repeat", {"scorer": "thinking_in_space"}),
        ("subset-20-step-150", {"subset": 20, "callback": OtherWeights(150)}),
    ],
)
def test_the_finished_test_stays_as_it_is(
    name: str, settings: dict[str, Any], finished: dict[str, bytes], scenes: Path, tmp_path: Path
) -> None:
    others = dict(settings)
    run(tmp_path, scenes, others.pop("callback", OtherWeights(100)), **others)
    assert results(tmp_path) == finished
    folder = tmp_path / "tests" / name
    assert finished_tests(tmp_path) == [tmp_path, folder]
    if "subset" in settings:
        assert len(on_disk(folder)) == 20 < len(on_disk(tmp_path))
        assert json.loads((folder / METRICS).read_text())["counts"]["questions"] == 20


# ---- with a command line

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "zoo.PRoPEMLLM",
        "init_args": {
            "camera_encoding": {"class_path": "zoo.PRoPE", "init_args": {"layers": "all", "size": [1, 2]}},
            "objectives": [{"class_path": "zoo.CameraPrediction", "init_args": {"weight": 0.5}}],
            "learning_rates": {"decoder": 1e-4},
            "max_new_tokens": 32,
        },
    },
    "data": {
        "class_path": "datamodules.VideoQADataModule",
        "init_args": {"num_frames": 16, "num_workers": 1, "perturbation": None, "sampler": None},
    },
    "trainer": {"precision": None, "limit_test_batches": None, "devices": 1},
    "metrics": {"scorer": None, "protocol": None},
}


class Model(LightningModule):
    option_effects = OptionEffects(nothing=("model.learning_rates", "data.num_workers"))

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(sizes))


def changed(**options: Any) -> dict[str, Any]:
    """The config with other options, named as `data__num_frames`."""
    config = deepcopy(CONFIG)
    for name, value in options.items():
        *parts, option = name.split("__")
        section: Any = config
        for part in parts:
            section = section[int(part)] if isinstance(section, list) else section[part]
            section = section.get("init_args", section) if isinstance(section, dict) else section
        section[option] = value
    return config


def trainer_with(folder: Path, config: dict[str, Any]) -> Trainer:
    save = SaveRunConfig.__new__(SaveRunConfig)
    save.content = lambda: config  # type: ignore[method-assign]
    return trainer(folder, save)


def identity(config: dict[str, Any], *sizes: int) -> dict[str, Any]:
    """What the answers of a test with this config, by a weight of this size, depend on."""
    return identify_test(trainer_with(Path("nowhere"), config), Model(*sizes))


def record(config: dict[str, Any]) -> RunRecord:
    """The record of the options in `identity`."""
    return RunRecord.of(identity(config)["config"], Model)


def place(folder: Path, config: dict[str, Any], step: int | None = None, finish: bool = True) -> str:
    """Where a test with this config is written; its files are left there."""
    chosen, lock = choose_folder(trainer_with(folder, config), identity(config), record(config), step)
    chosen.mkdir(parents=True, exist_ok=True)
    (chosen / TEST_FILE).write_text(json.dumps(identity(config)))
    if finish:
        (chosen / METRICS).write_text(json.dumps({"step": step}))
    lock.close()
    return str(chosen.relative_to(folder))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


OTHERS = {"class_path": "datamodules.OtherCameras", "init_args": {}}
GTA = {"class_path": "zoo.GTA", "init_args": {"layers": "all", "size": [1, 2]}}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "."),
        ({"data__num_workers": 4, "model__learning_rates": {"decoder": 2.0}}, "."),
        ({"metrics__scorer": "thinking_in_space"}, "."),
        ({"metrics__protocol": "lmms_eval"}, "tests/lmms_eval"),
        ({"metrics__protocol": "../../../home/x"}, "tests/home-x"),  # of someone else's checkpoint
        ({"metrics__protocol": ".."}, "tests/repeat"),
        ({"data__num_frames": 8}, "tests/num_frames-8"),
        ({"data__perturbation": OTHERS, "data__num_frames": 8}, "tests/OtherCameras"),
        ({"model__camera_encoding": GTA}, "tests/GTA"),
        ({"model__camera_encoding": None}, "tests/no-camera_encoding"),
        ({"metrics__protocol": "lmms_eval", "data__num_frames": 8}, "tests/lmms_eval"),
        ({"trainer__limit_test_batches": 3}, "tests/limit_test_batches-3"),
    ],
)
def test_a_test_with_other_settings_than_the_runs_own_never_takes_its_place(
    options: dict[str, Any], name: str, trained: Path
) -> None:
    assert place(trained, changed(**options)) == name
    assert place(trained, changed(**options)) == ("tests/repeat" if name == "." else f"{name}-2")


def test_no_test_is_written_through_a_link(tmp_path: Path) -> None:
    """Someone else's run may have links, which lead anywhere."""
    run, victim = tmp_path / "run", tmp_path / "project"
    for folder in (run / "tests", victim):
        folder.mkdir(parents=True)
        (folder.parent / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    other = changed(data__num_frames=8)
    (run / "tests/num_frames-8").symlink_to(victim)
    assert place(run, other) == "tests/num_frames-8-2"
    (victim / TEST_FILE).write_text(json.dumps(identity(other)))  # an interrupted test, which could go on
    assert place(run, other) == "tests/num_frames-8-3"
    assert [path.name for path in victim.iterdir()] == [TEST_FILE]
    shutil.rmtree(run / "tests")
    (run / "tests").symlink_to(victim)
    with pytest.raises(InputError, match="tests is a link"):
        place(run, other)
    (run / "tests").unlink()
    (tmp_path / "link").symlink_to(run)  # the control: the user's own link to the run
    assert place(tmp_path / "link", other) == "tests/num_frames-8"


def test_a_test_of_another_step_has_its_name(trained: Path) -> None:
    assert [place(trained, CONFIG, step) for step in (100, 150, 150, 100)] == [
        *(".", "tests/step-150", "tests/step-150-2", "tests/repeat")
    ]
    assert place(trained, changed(data__num_frames=8), 150) == "tests/num_frames-8-step-150"


def test_the_first_interrupted_test_of_this_identity_goes_on(trained: Path) -> None:
    other = changed(data__num_frames=8)
    assert place(trained, other) == "tests/num_frames-8"
    assert place(trained, other, finish=False) == "tests/num_frames-8-2"
    assert place(trained, {**other, "seed_everything": 1}, finish=False) == "tests/num_frames-8-3"
    assert place(trained, other) == "tests/num_frames-8-2"
    assert place(trained, {**other, "seed_everything": 1}) == "tests/num_frames-8-3"
    assert place(trained, CONFIG, finish=False) == "." == place(trained, CONFIG, finish=False)


def test_why_an_interrupted_test_does_not_go_on_is_printed(
    trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    assert place(trained, CONFIG, finish=False) == place(trained, CONFIG, finish=False) == "."
    assert "starts anew" not in caplog.text
    monkeypatch.setattr(Model, "__module__", "pytest")  # a class in another file
    assert place(trained, CONFIG) == "tests/repeat"
    assert "starts anew, because the interrupted test in" in caplog.text and "had other code" in caplog.text


def test_released_weights_without_a_training_have_a_place_of_their_own(tmp_path: Path) -> None:
    """The config in the folder is that of its first test, also of a perturbed one."""
    config = changed(data__perturbation=OTHERS)
    assert place(tmp_path, config) == "."
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert place(tmp_path, config) == "tests/repeat" and place(tmp_path, CONFIG) == "tests/no-perturbation"


def test_what_differs_from_the_training_has_both_values(trained: Path) -> None:
    test = record(changed(data__num_frames=8, data__num_workers=4, model__camera_encoding=None))
    assert differences(test, config_of(trained)) == {
        "data.num_frames": {"training": 16, "test": 8},
        "model.camera_encoding": {
            "training": {"class_path": "zoo.PRoPE", "layers": "all", "size": [1, 2]},
            "test": None,
        },
    }
    assert differences(test, None) == {}


# ---- the same training, the same answers


def test_a_record_compares_by_what_its_own_classes_declare() -> None:
    def compared(one: dict[str, Any], *owners: Any) -> tuple[list[str], list[str]]:
        first, other = RunRecord.of(one, *owners), RunRecord.of(CONFIG, *owners)
        return first.same_training(other), first.same_answers(other)

    faster = {**changed(data__num_workers=4), "trainer": {**CONFIG["trainer"], "devices": 8}}
    assert compared(faster) == ([], [])
    assert compared(changed(data__num_frames=8)) == (["data.num_frames"], ["data.num_frames"])
    assert compared(changed(model__max_new_tokens=8)) == ([], ["model.max_new_tokens"])
    rounded = {**CONFIG, "trainer": {**CONFIG["trainer"], "precision": "bf16-mixed", "max_steps": 9}}
    assert compared(rounded) == (["trainer.precision"], ["trainer.precision"])  # a training may go on for longer
    assert compared({**CONFIG, "trainer": {**CONFIG["trainer"], "precision": "32-true"}}) == ([], [])  # which null is
    fewer = {**CONFIG, "trainer": {**CONFIG["trainer"], "limit_test_batches": 3}}
    assert compared(fewer) == ([], ["trainer.limit_test_batches"])
    rates = changed(model__learning_rates={"decoder": 1.0})
    assert compared(rates) == (["model.learning_rates.decoder"], [])
    assert compared(rates, Model) == ([], [])  # whose class says that they change nothing


def test_classes_of_others_are_not_imported_for_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = {"model": {"class_path": "stranger.Task"}, "data": {"class_path": "stranger.Data"}}
    assert RunRecord.of(strange).effects == RunRecord.of({}).effects
    assert RunRecord.of({"model": {"class_path": "GeometryPretraining"}}).effects != RunRecord.of({}).effects


def test_a_file_says_what_the_options_of_a_users_class_change() -> None:
    """Its reader does not import the class. Of the zoo's own classes it says nothing: newer ones may know more."""
    assert RunRecord.of(CONFIG, VideoQATask, VideoQADataModule).declared_by_users is None
    rate = "model.learning_rates.decoder"
    own = RunRecord.of(CONFIG, Model, VideoQADataModule)
    stored = json.loads(json.dumps(own.declared_by_users))
    known = RunRecord.of(CONFIG)
    assert known.changes_training(rate) and not known.declaring(stored).changes_training(rate)
    assert known.declaring(stored).effects == own.effects and known.declaring(None) == known


# ---- which options count


def test_what_an_option_changes() -> None:
    kinds = VideoQATask, VideoQADataModule
    no_answer, no_training = (
        [name for kind in kinds for name in kind.option_effects.harmless(to)] for to in ("answers", "training")
    )
    options = {
        "answers and trainings": ("model.backbone.layers", "data.num_frames", "data.source.video"),
        "answers": ("model.repetition_penalty",),
        "trainings": (
            "model.geometry_cache.folder",
            "data.source.cache",
            "data.sampler.cache",
            "model.average",
            "model.lora.dropout",
            "model.learning_rates.decoder",
            "data.batch_size",
        ),
        "nothing": ("model.geometry_cache.max_size_gb", "model.backbone.attn_implementation", "data.num_workers"),
    }
    for changes, names in options.items():
        for name in names:
            assert is_covered(name, no_answer) != ("answers" in changes), name
            assert is_covered(name, no_training) != ("trainings" in changes), name


@pytest.mark.parametrize(
    ("prefix", "owner", "classes"),
    [("model.", VideoQATask, (VideoQATask, SpatialVLM)), ("data.", VideoQADataModule, (VideoQADataModule,))],
)
def test_each_option_states_once_what_it_changes(prefix: str, owner: Any, classes: tuple[type, ...]) -> None:
    """So that a new option can't be forgotten, which would refuse a resume or join the tests of other trainings."""
    stated = [name for names in owner.option_effects for name in names]
    assert len(set(stated)) == len(stated)
    parameters = {name for each in classes for name in signature(each).parameters} - {"parts"}
    assert {f"{prefix}{name}" for name in parameters} == {name for name in stated if name.count(".") == 1}


def test_the_options_of_the_trainer_are_known_to_lightning() -> None:
    stated = [name for names in OF_COMMAND for name in names if name.startswith("trainer.")]
    assert stated and {name.removeprefix("trainer.") for name in stated} <= signature(Trainer).parameters.keys()


@pytest.mark.parametrize(
    ("option", "value", "counts"),
    [
        ("model__camera_encoding__layers", "last", True),
        ("model__max_new_tokens", 8, True),
        ("data__num_frames", 8, True),
        ("seed_everything", 3, True),
        ("trainer__precision", "bf16-mixed", True),
        ("trainer__limit_test_batches", 3, True),
        ("model__learning_rates", {"decoder": 1.0}, False),
        ("data__num_workers", 4, False),
        ("trainer__devices", 8, False),
        ("metrics__scorer", "thinking_in_space", False),
    ],
)
def test_which_options_answers_depend_on(option: str, value: Any, counts: bool) -> None:
    assert (identity(CONFIG) != identity(changed(**{option: value}))) is counts


def test_without_a_command_line_the_datas_own_options_count() -> None:
    def identity_with(**more: Any) -> dict[str, Any]:
        made: Any = trainer(Path("nowhere"))
        made.datamodule = VideoQADataModule(**more)
        return identify_test(made, Model(2, 2))

    own = identity_with()
    assert own == identity_with(num_workers=0)
    for options in (
        *({"pixels": PixelBounds(max_pixels=65536)}, {"image_pixels": PixelBounds(min_pixels=784)}),
        *({"still_resize": OriginalStills()}, {"sampler": UniformSampler(candidates=8)}),
        {"frame_pairing": Duplicate(keep="views")},
    ):
        assert identity_with(**options) != own


def test_the_content_of_a_checkpoint_counts_and_its_path_does_not(tmp_path: Path) -> None:
    def identity_of(file: str, number: float) -> str:
        torch.save({"state_dict": {"weight": torch.full((2,), number)}, "optimizer": number}, tmp_path / file)
        tested = trainer(tmp_path)
        tested._checkpoint_connector._ckpt_path = str(tmp_path / file)
        return str(identify_test(tested, Model(2, 2))["weights"])

    assert identity(CONFIG, 2, 2)["weights"] == identity(CONFIG, 2, 2)["weights"] != identity(CONFIG, 2, 3)["weights"]
    assert identity_of("a.ckpt", 1.0) == identity_of("b.ckpt", 1.0) != identity_of("a.ckpt", 2.0)


def test_every_picture_of_a_question_counts(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for number, picture in enumerate(pictures):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(picture)
    scene = Scene("kitchen", pictures[0], (), images=tuple(pictures))
    tested = trainer_with(tmp_path, CONFIG)
    tested.datamodule = SimpleNamespace(tested_scenes=[scene], sampler=UniformSampler())  # type: ignore[attr-defined]
    before = identify_test(tested, Model())["scenes"]
    assert before == identify_test(tested, Model())["scenes"]
    for picture in pictures[1:]:
        Image.new("RGB", (9, 9)).save(picture)
        assert before != (before := identify_test(tested, Model())["scenes"])


def test_the_code_of_ones_own_classes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_sampler_of_a_test.py"
    file.write_text("class Own: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = changed(data__sampler={"class_path": "own_sampler_of_a_test.Own"})
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
