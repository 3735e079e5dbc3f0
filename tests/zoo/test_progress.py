"""Progress of long work: lines in a log, a bar in a terminal."""

import re
import sys

import pytest

from zoo import progress as module
from zoo.progress import progress


@pytest.mark.parametrize("total, shown", [(None, r"/4 \(\d+%\)"), (4, r"/4 \(\d+%\)"), (0, "")])
def test_a_log_gets_lines_but_none_of_what_is_done(total: int | None, shown: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    items = range(4) if total is None else iter(range(4))
    assert list(progress(items, "rooms", "scenes", total or None)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (4 if total == 0 else 3)  # of unknown length, the last is like any other
    assert all(re.match(rf"rooms {number}{shown}  \S+ it/s", line) for number, line in enumerate(lines, 1))


def test_one_of_several_processes_reports(monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "DELAY", 0.0)
    for name in ("SLURM_PROCID", "LOCAL_RANK"):  # Lightning's own launcher sets the latter alone
        for rank, lines in (("1", 0), ("0", 2)):
            monkeypatch.setenv(name, rank)
            for is_terminal in (False, True):
                monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
                assert list(progress([1, 2, 3], "rooms", "scenes")) == [1, 2, 3]
                shown = capsys.readouterr().err
                assert bool(shown) == bool(lines) and (is_terminal or len(shown.splitlines()) == lines)


def test_short_work_prints_nothing_to_a_log(capsys) -> None:
    assert list(progress([1, 2], "rooms", "scenes")) == [1, 2] and not capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2], "rooms", "scenes")) == [1, 2] and not capsys.readouterr().err  # too quick for one
    monkeypatch.setattr(module, "DELAY", 0.0)
    assert list(progress([1, 2], "rooms", "scenes")) == [1, 2]
    shown = capsys.readouterr().err
    assert "rooms: 100%" in shown and "2/2" in shown


def test_what_fails_ends_the_work() -> None:
    with pytest.raises(ZeroDivisionError):
        list(progress((1 // each for each in (1, 0)), "rooms", "scenes"))
