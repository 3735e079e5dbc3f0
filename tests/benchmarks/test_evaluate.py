"""The benchmark of many questions a scene, on a tiny model: it ends well only where both ways answer alike."""

from __future__ import annotations

import sys

import pytest

from benchmarks import evaluate

SMALL = ["--small", "--frames", "4", "--questions", "3", "--height", "56", "--width", "84", "--repeats", "1"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate", *SMALL, "--threads", "1", *words])
        evaluate.main()

    return call


@pytest.mark.parametrize("in_processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_ways_and_training(
    in_processes: bool, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if not in_processes:
        monkeypatch.setattr(evaluate, "memory_in_a_process", lambda *_: 1)
    run("--learn", "1", "2")
    said = capsys.readouterr().out
    assert "12 visual tokens, 3 questions; 3 answers of 3 that were asked one by one are equal" in said
    assert "times as fast" in said and "questions a second" in said


def test_answers_that_differ_end_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""

    def backwards(*args) -> list[list[int]]:
        return [ids[::-1] + [0] for ids in evaluate.shared(*args)]

    monkeypatch.setitem(evaluate.WAYS, "shared", backwards)
    monkeypatch.setattr(evaluate, "memory_in_a_process", lambda *_: 1)
    with pytest.raises(SystemExit, match="3 of 3 answers differ"):
        run("--learn", "1")
