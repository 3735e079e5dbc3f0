"""FSDP2 in two processes (gloo): the losses, gradients, checkpoints and answers of DDP and of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

import main
from tests.processes import run_in_process
from tests.zoo import sharded
from tests.zoo.released import read_release
from tests.zoo.sharded import SETTINGS, STEPS, Settings, cases
from zoo import InputError
from zoo.tasks.training_cost import gathered_bytes
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.load import shard_like

CASES = [
    "small",
    "every part",
    "every part, bfloat16",
    "shapes",
    "lora",
    "spatial",
    "hybrid",
    "within layers",
    "text",
    "released, lora",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_in_process(sharded.main, folder, str(rooms_root), CASES, limit_s=1700)
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("record.rank*"))]


def distance(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to the norm of all."""
    assert gradients.keys() == expected.keys()
    apart, norm = (
        torch.stack([each.double().norm() for each in parts]).norm()
        for parts in ([gradients[name] - each for name, each in expected.items()], expected.values())
    )
    return float(apart / norm)


def check(case: Path) -> None:
    settings = SETTINGS.get(case.name, Settings())
    found = {run: records(case / run) for run in settings.runs}
    first = settings.runs[0]  # what the others are compared with
    mixed = settings.precision != "32-true" or case.name == "released, lora"  # frozen weights in bfloat16
    # 1. Losses: those of one process take turns in two.
    losses = {run: [loss for step in zip(*(r["losses"] for r in ranks), strict=True) for loss in step]
              for run, ranks in found.items()}  # fmt: skip
    half = 2 * settings.accumulate  # batches of a step
    for run, own in losses.items():  # the processes share the batches of a step by their cost
        losses[run] = [loss for start in range(0, len(own), half) for loss in sorted(own[start : start + half])]
    equal = found.keys() - {first, "resumed", "control"}
    for run in equal:
        assert losses[run] == pytest.approx(losses[first], rel=1e-4)
    assert losses["fsdp2"][:half] != pytest.approx(losses["fsdp2"][half:], rel=1e-4)  # the control
    if "resumed" in found:
        assert losses["resumed"] == pytest.approx(losses["fsdp2"][half:], rel=1e-4)
    # 2. Gradients, whole, on each process; after a step, some weights are rounded to another number of bfloat16.
    expected = found[first][0]["gradients"]
    for rank in (rank for run in equal for rank in found[run]):
        for gradients, each, tolerance in zip(
            rank["gradients"], expected, (1e-6, 2e-2 if mixed else 1e-5), strict=True
        ):
            assert distance(gradients, each) < tolerance
    # 3. Each process trains about half.
    total = sum(gradient.numel() for gradient in expected[0].values())
    shares = [rank["local"] for rank in found["fsdp2"]]
    assert sum(shares) == total and max(shares) < 0.6 * total
    assert found["fsdp2"][0]["class"] == found[first][0]["class"]
    # 4. Checkpoints.
    saved = {run: read_checkpoint(case / run / "checkpoints" / "last.ckpt") for run in found if run != "control"}
    for run in saved:
        tolerance = {"rtol": 1e-3, "atol": 5e-4 if mixed else 1e-4}
        torch.testing.assert_close(saved[run]["state_dict"], saved[first]["state_dict"], **tolerance)
        assert saved[run]["task"] == saved[first]["task"]
    # 5. Answers: every question once, on uneven shares of scenes.
    if settings.is_tested:
        tested = [run for run in settings.runs if run != "resumed" and run != "control"]
        texts = {run: (case / run / "predictions.jsonl").read_text().splitlines() for run in tested}
        answered = {run: [json.loads(line)["id"] for line in lines] for run, lines in texts.items()}
        assert all(sorted(ids) == sorted(answered["one"]) for ids in answered.values())
        assert len(answered["one"]) == len(set(answered["one"])) > 3
    # 6. What `export` writes of the checkpoints.
    if (case / "one" / "exported").exists():
        exported, official = (read_release(case / run / "exported") for run in ("fsdp2", "one"))
        assert len(official) > 50
        torch.testing.assert_close(exported, official, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_all_models_train_with_shards_as_without(case: str, runs: Path) -> None:
    check(runs / case)


@pytest.mark.slow
@pytest.mark.timeout(2100)
def test_bfloat16_halves_what_is_gathered_and_gradients_are_reduced_once_per_step(runs: Path) -> None:
    plain, mixed, control = (
        records(runs / case)[0]
        for case in ("every part/fsdp2", "every part, bfloat16/fsdp2", "every part, bfloat16/control")
    )
    (one,) = records(runs / "every part, bfloat16/one")
    full, half = (("gather", dtype) for dtype in (torch.float32, torch.bfloat16))
    reduced, rounded = (("reduce", dtype) for dtype in (torch.float32, torch.bfloat16))
    # 1. Matrices of blocks in bfloat16; the step has two batches, and in float32 one.
    assert mixed["bytes"][half] > 0
    assert mixed["bytes"][full] + 2 * mixed["bytes"][half] == 2 * plain["bytes"][full]
    # 2. All else, such as norms, encodings and heads, is float32, and gathered for the whole step.
    blocks = ("language_model.layers.", "visual.blocks.")
    missing = one["gathered"].keys() - mixed["gathered"].keys()
    assert missing and all(any(block in name for block in blocks) and name.endswith(".weight") for name in missing)
    assert not any("norm" in name for name in missing)
    assert "model.camera_encoding.log_scale" in mixed["gathered"]
    assert set(mixed["gathered"].values()) == {torch.float32}
    # 3. Gradients in float32, once per optimizer step, whatever its number of batches.
    assert mixed["bytes"][reduced] == plain["bytes"][reduced] > 0 and not mixed["bytes"][rounded]
    assert mixed["calls"][reduced] == plain["calls"][reduced]
    # 4. What `plan` counts: the units are gathered twice per batch, for the forward and the backward pass.
    model = cases(runs)["every part, bfloat16"]().model
    held, weights = gathered_bytes(model, "bf16-mixed")
    batches = STEPS * SETTINGS["every part, bfloat16"].accumulate
    measured = (mixed["bytes"][full] + mixed["bytes"][half] / 2) / batches
    assert weights == pytest.approx(measured, rel=0.01) and weights < 0.95 * gathered_bytes(model, "32-true")[1]
    assert held[False] < held[True]
    # 5. The control reduces each batch, and in bfloat16.
    assert control["calls"][reduced] + control["calls"][rounded] == 2 * mixed["calls"][reduced]
    assert distance(control["gradients"][0], one["gradients"][0]) > 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_frozen_geometry_encoder_is_gathered_once_for_any_number_of_shapes(runs: Path) -> None:
    first, second = (rank["calls"] for rank in records(runs / "shapes/fsdp2"))
    # root and encoder once, two vision blocks once, two decoder layers twice; in two steps
    assert first["gather", torch.float32] == second["gather", torch.float32] == 2 * (1 + 1 + 2 + 4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--trainer.strategy", "fsdp"], "--trainer.strategy fsdp: FSDP1 is not supported, take fsdp2"),
        (["--config", "geometry_tiny.yaml", "--trainer.strategy", "fsdp2"], "not GeometryPretraining: take ddp"),
    ],
)
def test_what_cant_be_sharded_is_refused(
    words: list[str], error: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "geometry_tiny.yaml" in words else ["--config", "qwen25_vl.yaml"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *model, *words, "--data.source.root", str(rooms_root)])
    # Lightning's launcher leaves its port and ranks in the environment, for processes that other tests start
    with patch.dict(os.environ), pytest.raises(SystemExit) as stop:
        main.main()
    assert error in str(stop.value.code)


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_the_command_line_defers_weights_of_what_it_shards(
    strategy: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built: list[Any] = []

    def stop(cli: Any) -> None:
        built.append(cli.model)
        raise InputError("it is built")

    monkeypatch.setattr("commands.cli.ZooCLI.before_fit", stop)
    words = ["--config", "qwen25_vl.yaml", "--trainer.strategy", strategy, "--data.source.root", str(rooms_root)]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words])
    with patch.dict(os.environ), pytest.raises(SystemExit, match="it is built"):
        main.main()
    _, parts = built[0].model.__dict__["_constructor_arguments"]
    assert parts["defer_weights"] == (strategy == "fsdp2")


def test_a_tensor_with_its_shard_is_not_sharded_again() -> None:
    """As of a part that a start lacks, which keeps its own weights (`zoo.weights.checkpoint`)."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        own = distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (1,)))
        assert shard_like(own, own) is own
        assert torch.equal(shard_like(torch.ones(4), own).to_local(), torch.ones(4))  # type: ignore[attr-defined]
    finally:
        dist.destroy_process_group()
