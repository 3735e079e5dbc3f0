"""The comparison with lmms-eval: what it says without lmms-eval, and the whole of it on a tiny model where it is."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec

import pytest

from benchmarks import lmms_eval

SMALL = ["--small", "--frames", "4", "--questions", "4", "--scenes", "2", "--seconds", "1", "--size", "392", "280"]


def test_without_lmms_eval_it_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lmms_eval"])
    monkeypatch.setattr(lmms_eval, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="lmms-eval is not installed here: make lmms-eval"):
        lmms_eval.main()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="no lmms-eval: make lmms-eval, then its Python's pytest")
def test_all_ways_answer_alike(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["lmms_eval", *SMALL, "--repeats", "1", "--threads", "1"])
    lmms_eval.main()
    said = capsys.readouterr().out
    assert said.count(" 8 of 8 |") == 3
    assert int(re.search(r"(\d+) different answers", said)[1]) > 2  # the control
