"""Trainings of a benchmark: none is made twice, and none is taken for another."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.runs import Results, Run, make, parse, parser, spread


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands, which leave what `main.py` would; one with `--broken` fails."""
    made: list[str] = []

    def main_py(log: Path, threads: int, command: str, *words: str) -> None:
        folder = Path(words[-1].removeprefix("--trainer.default_root_dir="))
        made.append(f"{command} {folder.name}")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        log.write_text("error: something is wrong\n")
        if "--broken" in words:
            raise subprocess.CalledProcessError(1, "main.py")
        if command == "fit":
            (folder / "checkpoints/last.ckpt").touch()
        scores = {runs.QUESTION: {"score": len(made) / 10, "count": 3}, "object_counting": {"score": 0.0, "count": 0}}
        metrics = {"per_question_type": scores, "all": {"micro": 0.0, "macro": len(made) / 20}}
        (folder / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(runs, "main_py", main_py)
    return made


def test_what_is_done_is_not_made_again_here_or_in_a_fresh_clone(tmp_path: Path, calls: list[str]) -> None:
    kept, plan = tmp_path / "results/some.jsonl", [Run("a", ("--x=1",), {"": (), "swapped": ("--y",)})]
    make(plan, Results(kept), tmp_path / "out", jobs=1)
    assert calls == ["fit a", "test a", "test swapped"]
    make(plan, Results(kept), tmp_path / "elsewhere", jobs=1)
    assert len(calls) == 3 and Results(kept).scores(plan) == [0.2] and Results(kept).scores(plan, "swapped") == [0.3]
    assert Results(kept).find(plan[0])["scores"] == {runs.QUESTION: 0.2, "macro": 0.1}


def test_other_settings_are_another_result_and_another_training(tmp_path: Path, calls: list[str]) -> None:
    results = Results(tmp_path / "some.jsonl")
    make([Run("a", ("--x=1",))], results, tmp_path, jobs=1)
    make([Run("a", ("--x=2",))], results, tmp_path, jobs=1)
    assert calls == ["fit a", "test a"] * 2
    make([Run("a", ("--x=2",), {"": (), "other": ("--y",)})], results, tmp_path, jobs=1)
    assert calls[4:] == ["test other"]  # of the training that is there


def test_a_training_that_was_broken_off_is_made_anew(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    (tmp_path / "a/checkpoints/last.ckpt").touch()
    make([Run("a", ())], Results(tmp_path / "some.jsonl"), tmp_path, jobs=1)
    assert calls == ["fit a", "test a"]


def test_a_run_that_fails_is_named_and_the_rest_goes_on(tmp_path: Path, calls: list[str], capsys) -> None:
    plan, results = [Run("bad", ("--broken",)), Run("good", ())], Results(tmp_path / "some.jsonl")
    with pytest.raises(SystemExit, match="1 of 2 runs have failed"):
        make(plan, results, tmp_path, jobs=2)
    assert "bad failed: error: something is wrong" in capsys.readouterr().out
    assert len(results.scores(plan)) == 1


def test_a_cell_of_the_table_says_how_many_seeds_it_is_of() -> None:
    assert spread([0.5, 0.25, 0.75], 3) == "0.500 (0.250 to 0.750)"
    assert spread([0.5], 3) == "0.500 (0.500 to 0.500, 1 of 3 seeds)" and spread([], 3) == ""


def test_what_no_option_takes_is_for_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["some", "--seeds", "3", "4", "--trainer.max_steps", "5", "--jobs=1", "--seed=7"])
    asked, overrides = parse(parser("", "some"))
    assert (asked.seeds, asked.jobs) == ([3, 4], 1) and overrides == ("--trainer.max_steps=5", "--seed=7")
