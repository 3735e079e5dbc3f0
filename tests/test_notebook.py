"""The notebook: saved with its outputs, and its cells run in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_it_is_saved_as_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4  # frames, path, answers, attention
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_model_owes_its_answers_to_the_cameras(tmp_path: Path) -> None:
    script = tmp_path / "quickstart.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in CODE), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    own, others = map(float, re.findall(r"MRA ([\d.]+), with the cameras of another room ([\d.]+)", done.stdout)[0])
    assert own > others + 0.1
