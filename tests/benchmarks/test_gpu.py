"""`make gpu`: every part runs with tiny models on a CPU, a second time none; what is missing is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.models import Bench
from benchmarks.gpu.peer import OPTIONS, one_per_row

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_parts_run_with_tiny_models_on_a_cpu(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--results", str(tmp_path)]
    first = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr[-3000:]
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {part}\n" in text for part in gpu.PARTS) and "MFU" in text and "questions/s" in text
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.count(": done") == len(gpu.PARTS) and "up to" not in again.stdout


def test_questions_of_a_scene_are_built_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch, in one batch each, and as rows of transformers' model, which only some parts take."""
    monkeypatch.setattr(torch, "compile", torch.compile)  # a tiny task replaces it
    bench = Bench(torch.device("cpu"), is_tiny=True)
    command = bench.fit("qwen25", OPTIONS, model="qwen25_vl.yaml", is_adapted=False)
    task, sizes = command.task().eval(), command.sizes(2)
    together, alone = command.questions(task, sizes), command.questions(task, sizes, are_alone=True)
    assert [[len(each.prompts) for each in batches] for batches in (together, alone)] == [[1], [1, 1]]
    assert len(one_per_row(bench, task, sizes, command.inputs(task, sizes))) == 2


def test_what_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.missing() == []
    installed = gpu.version

    def older(name: str) -> str:
        if name == "peft":
            raise gpu.PackageNotFoundError
        return "4.57.1" if name == "transformers" else installed(name)

    monkeypatch.setattr(gpu, "version", older)
    old, absent = sorted(gpu.missing(), reverse=True)
    assert old.startswith("transformers<6,>=5.") and old.endswith(", has 4.57.1")
    assert absent.startswith("peft>=") and absent.endswith(", not installed")


def test_a_part_with_a_result_is_skipped_and_a_failed_one_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, returncode=1))
    result = {"about": "Steps.", "machine": "a card", "tables": {"A model": [{"step": "one"}, {"step": "two", "s": 3}]}}
    (tmp_path / "prope.json").write_text(json.dumps(result))
    assert gpu.run("prope", tmp_path, False)
    assert not gpu.run("unknown", tmp_path, True)
    rows = [line.split() for line in gpu.document({"prope": result}).splitlines() if line.startswith("| ")]
    assert rows == [["|", "step", "|", "s", "|"], ["|", "one", "|", "|"], ["|", "two", "|", "3", "|"]]
