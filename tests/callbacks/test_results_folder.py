"""A finished test stays: one with other settings, of another step, or repeated gets a folder inside the run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from breakable import Tiny, run
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from test_broken_off import on_disk, results
from toy import trainer

from callbacks import SaveRunConfig
from callbacks.results_folder import choose_folder, differences, finished_tests, identify_test
from callbacks.run_config import METRICS, TEST_FILE
from datamodules import Duplicate
from zoo.errors import InputError
from zoo.files.atomic_io import try_lock


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
        ("subset-20", {"subset": 20}),
        ("num_frames-4", {"num_frames": 4}),
        ("Duplicate", {"frame_pairing": Duplicate()}),
        ("repeat", {}),
        ("repeat", {"scorer": "thinking_in_space"}),
        ("step-150", {"callback": OtherWeights(150)}),
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


def test_tests_of_one_name_are_numbered(finished: dict[str, bytes], scenes: Path, tmp_path: Path) -> None:
    for _ in range(3):
        run(tmp_path, scenes, OtherWeights(100), subset=20)
    folders = sorted((tmp_path / "tests").iterdir())
    assert [folder.name for folder in folders] == ["subset-20", "subset-20-2", "subset-20-3"]
    assert results(tmp_path) == finished and len({str(results(folder)) for folder in folders}) == 1


# ---- with a command line ----------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "zoo.PRoPEMLLM",
        "init_args": {
            "camera_encoding": {"class_path": "zoo.PRoPE", "init_args": {"layers": "all"}},
            "learning_rates": {"decoder": 1e-4},
            "max_new_tokens": 32,
        },
    },
    "data": {
        "class_path": "datamodules.VideoQADataModule",
        "init_args": {"num_frames": 16, "num_workers": 1, "perturbation": None},
    },
    "trainer": {"precision": None, "limit_test_batches": None, "devices": 1},
    "metrics": {"scorer": None, "protocol": None},
}
EXCEPTED = ("model.learning_rates", "data.num_workers")


class Model(LightningModule):
    changes_no_answer = EXCEPTED


def changed(**options: Any) -> dict[str, Any]:
    """The config with other options, named as `data__num_frames`."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in options.items():
        part, option = name.split("__")
        section = config[part]
        section.get("init_args", section)[option] = value
    return config


def place(folder: Path, config: dict[str, Any], step: int | None = None, finish: bool = True) -> str:
    """Where a test with this config is written; its files are left there."""
    save = SaveRunConfig.__new__(SaveRunConfig)
    save.content = lambda: config  # type: ignore[method-assign]
    tester = trainer(folder, save)
    identity = identify_test(tester, Model())
    chosen, lock = choose_folder(tester, identity, EXCEPTED, step)
    chosen.mkdir(parents=True, exist_ok=True)
    (chosen / TEST_FILE).write_text(json.dumps(identity))
    if finish:
        (chosen / METRICS).write_text(json.dumps({"step": step}))
    lock.close()
    return str(chosen.relative_to(folder))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


OTHERS = {"class_path": "datamodules.OtherCameras", "init_args": {}}
GTA = {"class_path": "zoo.GTA", "init_args": {"layers": "all"}}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "."),
        ({"data__num_workers": 4, "model__learning_rates": {"decoder": 2.0}}, "."),
        ({"metrics__scorer": "thinking_in_space"}, "."),
        ({"metrics__protocol": "lmms_eval"}, "tests/lmms_eval"),
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


def test_an_interrupted_test_goes_on_whatever_has_ended_since(trained: Path) -> None:
    """Its folder keeps the name, though a test that begins now would have another one."""
    assert place(trained, changed(data__num_frames=8), 100, finish=False) == "tests/num_frames-8"
    assert place(trained, CONFIG, 150) == "."
    assert place(trained, changed(data__num_frames=8), 100) == "tests/num_frames-8"
    assert place(trained, changed(data__num_frames=8), 100) == "tests/num_frames-8-step-100"  # the control


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


def test_an_equal_test_that_runs_is_refused_and_another_is_not(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place(trained, CONFIG, finish=False) == "."
    taken = lambda path: None if path.parent == trained else try_lock(path)  # noqa: E731
    monkeypatch.setattr("callbacks.results_folder.try_lock", taken)
    with pytest.raises(InputError, match=f"another test is writing to {trained}: wait until it ends"):
        place(trained, CONFIG)
    assert place(trained, changed(data__num_frames=8)) == "tests/num_frames-8"


def test_released_weights_without_a_training_have_a_place_of_their_own(tmp_path: Path) -> None:
    """The config in the folder is that of its first test, also of a perturbed one."""
    config = changed(data__perturbation=OTHERS)
    assert place(tmp_path, config) == "."
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert place(tmp_path, config) == "tests/repeat" and place(tmp_path, CONFIG) == "tests/no-perturbation"


def test_what_differs_from_the_training_has_both_values(trained: Path) -> None:
    save = SaveRunConfig.__new__(SaveRunConfig)
    options = {"data__num_frames": 8, "data__num_workers": 4, "model__camera_encoding": None}
    save.content = lambda: changed(**options)  # type: ignore[method-assign]
    config = identify_test(trainer(trained, save), Model())["config"]
    assert differences(config, trained / "config.yaml", EXCEPTED) == {
        "data.num_frames": {"training": 16, "test": 8},
        "model.camera_encoding": {"training": {"class_path": "zoo.PRoPE", "layers": "all"}, "test": None},
    }
    assert differences(config, trained / "absent.yaml", EXCEPTED) == {}
