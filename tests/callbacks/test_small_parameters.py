"""Strengths, gates and scales: logged in training, and reported with where they began and where they ended."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD

from callbacks import Checkpoint, MetricsCallback
from commands.report import report
from commands.reports.scores import Tested
from commands.reports.tables import parameter_table
from tests.callbacks.toy import Toy, golden_scenes, trainer
from tests.commands.made_runs import CONFIG
from tests.tiny import RATES, tiny_backbone
from zoo import GTA, LearningRates, PoseALiBi, PRoPE
from zoo.encodings import LayerSubset, ViewMixer
from zoo.encodings.base import ViewSymmetries
from zoo.tasks import VideoQATask
from zoo.tasks.base import Task, WarmupCosine

GATE = 2.0  # a sigmoid of 0.881


class Gated(Task):
    """Two gates with equal losses. The gradient of `idle` is a ten-thousandth of that of `used`."""

    def __init__(self) -> None:
        rates = LearningRates(connector=0.1)
        super().__init__(rates, partial(SGD, lr=0.1), partial(WarmupCosine, warmup_fraction=0.0))
        self.scenes = golden_scenes()
        self.gates = nn.ParameterDict({"used": torch.tensor([GATE]), "idle": torch.tensor([GATE, GATE])})

    def part_of(self, name: str) -> str:
        return "connector"

    def small_parameters(self) -> dict[str, Tensor]:
        return {name: gate.detach() for name, gate in self.gates.items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.gates["used"].square().sum() + 1e-4 * self.gates["idle"].square().sum()

    def test_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        return [each for scene in batch for each in scene]

    train_dataloader = test_dataloader = Toy.train_dataloader
    _loader = Toy._loader


def fit(folder: Path, steps: int, ckpt_path: Path | None = None) -> None:
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    settings = {"max_steps": steps, "enable_checkpointing": True, "logger": logger, "log_every_n_steps": 1}
    trainer(folder, Checkpoint(), **settings).fit(Gated(), ckpt_path=ckpt_path)


def score(run: Path, name: str = ".") -> dict[str, list[list[float]]]:
    checkpoint, folder = run / "checkpoints/last.ckpt", run / name
    trainer(folder, MetricsCallback()).test(Gated(), ckpt_path=checkpoint, verbose=False)
    return json.loads((folder / "metrics.json").read_text())["small_parameters"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fit(tmp_path, 2)
    return tmp_path


def test_a_test_records_where_parameters_began_and_ended(run: Path) -> None:
    found = score(run)
    ended = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert found == {name: [[GATE] * n, ended[f"gates.{name}"].tolist()] for name, n in (("used", 1), ("idle", 2))}
    assert found["used"][1][0] < 0.9 * GATE < 0.999 * GATE < found["idle"][1][0] < GATE


def test_a_resumed_training_keeps_the_beginning_and_a_new_one_has_its_own(run: Path) -> None:
    first = score(run)
    fit(run, 4, run / "checkpoints/last.ckpt")
    resumed = score(run, "later")
    assert resumed["used"][0] == [GATE] and resumed["used"][1][0] < first["used"][1][0]
    task = Gated()  # the control: the same weights as a start
    with torch.no_grad():
        task.gates["used"].fill_(first["used"][1][0])
    trainer(run / "new", max_steps=1).fit(task)
    assert task.began["used"] == first["used"][1]


def test_each_step_logs_them(run: Path) -> None:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1]
    used = [float(row["small/used"]) for row in rows]
    assert used[1] < used[0] < GATE
    assert used[1] == pytest.approx(score(run)["used"][1][0])
    assert {name for name in rows[0] if "idle" in name} == {f"small/idle/{x}" for x in ("mean", "least", "greatest")}


def test_the_report_tells_a_gate_that_hardly_moved_from_one_that_did(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "gated"}))
    found = score(run)
    capsys.readouterr()
    report([str(run)])
    said = capsys.readouterr().out
    assert "Small parameters" in said
    cells = {line.split()[1]: line.split()[2:] for line in said.splitlines() if line.startswith("gated ")}
    for name, (_, (ended, *_)) in found.items():
        assert cells[name] == ["2", f"{ended:.4g}", f"{ended - GATE:+.2g}"]
    assert abs(float(cells["used"][2])) > 0.1 > 1e-3 > abs(float(cells["idle"][2])) > 0
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["small_parameters"]  # the control: a model without any
    (run / "metrics.json").write_text(json.dumps(metrics))
    report([str(run)])
    assert "Small parameters" not in capsys.readouterr().out


def test_layers_and_seeds_share_a_row() -> None:
    def tested(label: str, test: str, change: float) -> Tested:
        layers = {f"encoding.layers.{n}.gate": [[0.5, 0.5], [0.5, 0.5 + change * n]] for n in range(3)}
        return Tested(label, test, 0, "VSIBench", "", pd.DataFrame(), small_parameters=layers)

    settings = [[tested("a", "", 0.01), tested("a", "", -0.02)], [tested("a", "other cameras", 0.5)]]
    table = parameter_table([*settings, [tested("b", "", 0.0)]])
    name = "encoding.layers.*.gate"
    assert table.reset_index().to_numpy().tolist() == [
        ["a", name, "0.5", "0.4975 (0.46 to 0.52)", "-0.04"],
        ["b", name, "0.5", "0.5", "+0"],
    ]


# ---- Which parameters of a model they are ----------------------------------------------------------------------------


FROZEN = LearningRates(encoding=None)


class GatedMixer(ViewMixer):
    """A mixer with a gate of its own, a gate that is a layer, and a layer that is neither."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.layered_gate = nn.Parameter(torch.tensor([GATE])), nn.Linear(width, 1)
        self.per_channel, self.layer = nn.Parameter(torch.ones(width + 1)), nn.Linear(width, 8)

    symmetries = ViewSymmetries(True, True, True, True)

    def forward(self, tokens: Tensor, *_: Any) -> Tensor:
        return tokens


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (lambda: {"camera_encoding": GTA(learn_scale=True)}, {"camera_encoding.log_scale": 1}),
        (lambda: {"camera_encoding": PoseALiBi(slopes="learned")}, {"camera_encoding.learned": 2}),
        (lambda: {"camera_encoding": LayerSubset(GTA(learn_scale=True))}, {"camera_encoding.encoding.log_scale": 1}),
        (lambda: {"view_mixer": GatedMixer}, {"view_mixer.gate": 1, "view_mixer.layered_gate.bias": 1}),
        (lambda: {"camera_encoding": GTA(learn_scale=True), "learning_rates": FROZEN}, {}),
        (lambda: {"camera_encoding": PRoPE()}, {}),
    ],
)  # fmt: skip
def test_those_of_a_model_are_few_numbers_of_its_parts(
    parts: Callable[[], dict[str, Any]], expected: dict[str, int]
) -> None:
    found = VideoQATask(backbone=tiny_backbone(), **{"learning_rates": RATES, **parts()}).small_parameters()
    assert {name: values.numel() for name, values in found.items()} == expected
