"""benchmarks/training.py beside transformers, on a tiny model: it ends well only where all losses are equal."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from benchmarks import training

SMALL = ["--size", "tiny", "--questions", "3", "--frames", "2", "--height", "56", "--width", "84", "--repeats", "1"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["training", *SMALL, "--threads", "1", "--device", "cpu", *words])
        training.main()

    return call


def test_benchmarks_training_compares_equal_losses(
    run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("--memory-of", "the zoo")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) >= 0
    monkeypatch.setattr(training, "memory_in_a_process", lambda *_: 1)
    run()
    stock, zoo = capsys.readouterr().out.splitlines()[-2:]
    assert "transformers" in stock and "the zoo" in zoo and stock.split("|")[-2] == zoo.split("|")[-2]
    # the control: over the tokens of a batch with several questions, the published rule has another loss
    monkeypatch.setattr(training, "published_loss", packed_loss)
    with pytest.raises(SystemExit, match="the losses differ"):
        run()


def packed_loss(options: argparse.Namespace, size: str, count: int) -> float:
    task = training.task_of(size, "micro_batch_tokens").train()
    return float(task.loss(training.batch(options, task, count, is_packed=True)).detach())
