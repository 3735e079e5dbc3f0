"""benchmarks/loading.py runs at a tiny size, and ends where cached patches are others."""

from __future__ import annotations

import sys

import pytest

from benchmarks import loading

TINY = ["--scenes", "1", "--seconds", "0.5", "--size", "112", "84", "--frames", "4", "--repeats", "1"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["loading", *TINY])
    monkeypatch.setattr(loading, "by_decord", lambda *_: [])


def test_benchmarks_loading_names_each_way(capsys: pytest.CaptureFixture) -> None:
    loading.main()
    said = capsys.readouterr().out
    assert all(f"| {way} " in said for way in ("cold", "first epoch", "cached")) and "of a cold scene: open" in said


def test_other_patches_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    load, calls = loading.load, iter(range(9))
    monkeypatch.setattr(loading, "load", lambda *of: [patches + next(calls) for patches in load(*of)])
    with pytest.raises(SystemExit, match="cached patches differ"):
        loading.main()
