"""benchmarks/grpo.py on a tiny model: it ends well only where the gradients of both ways are equal."""

from __future__ import annotations

import sys

import pytest

from benchmarks import grpo


@pytest.mark.slow
def test_benchmarks_grpo_compares_equal_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["--questions", "2", "--answers", "2", "--frames", "2", "--height", "56", "--width", "84"]
    words += ["--repeats", "1", "--threads", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["grpo", *words])
    monkeypatch.setattr(grpo, "memory", lambda *_: 1)
    grpo.main()
    shown = capsys.readouterr().out
    assert "all answers" in shown and "each answer" in shown
    learn = grpo.learn  # a control: other advantages for single answers
    monkeypatch.setattr(grpo, "learn", lambda *given: learn(*given[:3], given[3] + (len(given[2]) == 1), given[4]))
    with pytest.raises(SystemExit, match="the gradients differ"):
        grpo.main()
