"""Time and memory of calls: turns, warm-up, and processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import in_a_process, interleaved, spread
from benchmarks.tables import markdown


def test_calls_take_turns_and_the_warm_up_is_not_counted() -> None:
    called: list[str] = []
    seconds = interleaved({name: lambda name=name: called.append(name) for name in "ab"}, 2)
    assert called == list("ababab") and [len(seconds[name]) for name in "ab"] == [2, 2]


def test_the_spread_is_the_median_with_both_ends() -> None:
    assert spread([3.0, 1.0, 2.5], 1) == "2.5 (1.0 to 3.0)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "measured.py").write_text(f"import json, sys\n{source}\n")
        return "measured"

    return write


def test_a_process_has_the_options_and_its_last_line_is_the_result(module) -> None:
    found = in_a_process(
        module("print('loading')\nprint(json.dumps(sys.argv[1:]))"),
        memory_of="ours",
        frames=[1, 4],
        small=True,
        tiny=False,
    )
    assert found == ["--memory-of", "ours", "--frames", "1", "4", "--small"]


@pytest.mark.parametrize("source", ["sys.exit('CUDA out of memory')", "import os; os.kill(os.getpid(), 9)"])
def test_too_little_memory_is_told_from_other_errors(module, source: str) -> None:
    with pytest.raises(MemoryError):
        in_a_process(module(source))
    with pytest.raises(SystemExit, match="no such size"):
        in_a_process(module("sys.exit('no such size')"))


def test_a_cell_that_a_row_lacks_is_empty_and_numbers_stay_as_written() -> None:
    lines = markdown([{"step": "one", "s": "0.10"}, {"step": "two", "GB": 3}]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0], *cells[2:]] == [["step", "s", "GB"], ["one", "0.10", ""], ["two", "", "3"]]
