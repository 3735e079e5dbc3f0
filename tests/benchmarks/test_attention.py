"""The benchmark of attention runs at any size and precision; what it finds is no matter here."""

from __future__ import annotations

import sys

import pytest

from benchmarks import attention

SMALL = ["--views", "2", "--tokens", "4", "--heads", "2", "--head-dim", "32", "--layers", "1", "--repeats", "1"]


@pytest.mark.parametrize(
    ("dtype", "heads"),
    [pytest.param("float32", [], marks=pytest.mark.slow), ("bfloat16", ["--heads", "4", "--key-heads", "2"])],
)
def test_each_encoding_has_a_row_in_each_table(
    dtype: str, heads: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["attention", *SMALL, *heads, "--device", "cpu", "--threads", "1", "--dtype", dtype]
    monkeypatch.setattr(sys, "argv", words)
    attention.main()
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ") and "ms, median" not in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [row[0] for row in rows]
    assert all(names.count(name) >= 2 for name in attention.ENCODINGS) and names.count("stock") == 3
    assert all(names.count(name) >= 3 for name in (*attention.IN_DECODER, attention.NO_ENCODING))
    assert all(float(row[-1]) > 0 for row in rows)
    assert [row[-1] for row in rows if row[0] in ("SDPA alone", "stock")] == ["1.000"] * 5


@pytest.mark.parametrize("words", [["--tokens", "5"], ["--heads", "8", "--key-heads", "3"]])
def test_sizes_that_do_not_fit_are_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["attention", *words])
    with pytest.raises(SystemExit):
        attention.main()
    assert f"{words[-2]}: {words[-1]}" in capsys.readouterr().err
