"""The README: its commands and its Python run in order, in a fresh clone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    block for block in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if block[0] != "mermaid"
]


def test_it_is_short_and_each_block_is_run() -> None:
    assert len(README.splitlines()) <= 120
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    rest = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^    \S", rest, re.MULTILINE)  # a block that no test would find


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_works_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "zoo"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv/bin").mkdir(parents=True)
    for name in ("python", "activate"):  # this environment in place of a new one
        (clone / ".venv/bin" / name).symlink_to(Path(sys.prefix) / "bin" / name)
    (clone / ".venv/pyvenv.cfg").symlink_to(Path(sys.prefix) / "pyvenv.cfg")
    (clone / ".venv/lib").symlink_to(Path(sys.prefix) / "lib")
    (clone / ".venv/installed").touch()
    for language, block in BLOCKS:
        command = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=clone, env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    (metrics,) = (clone / "runs/demo/runs/PRoPE-0").glob("metrics.json")
    assert json.loads(metrics.read_text())["per_question_type"]["panel_turn"]["score"] > 0.6
    assert (clone / "runs/report.html").exists() and len(list((clone / "runs").glob("PRoPEMLLM-*"))) == 2
