"""A study of toy settings, and a main.py that trains and tests in no time and leaves the files of a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.commands.made_runs import CONFIG, answers, write_results

STUDY: dict[str, Any] = {
    "title": "Toys",
    "options": {"trainer.max_steps": 3},
    "seeds": [0, 1],
    "score": "object_counting",
    "columns": {"loop": {"data.source.trajectory": "loop"}, "local": {"data.source.trajectory": "local"}},
    "tests": {"wrong cameras": {"data.perturbation": "OtherCameras"}},
    "settings": {
        "none": {"configs": ["qwen25_vl.yaml"]},
        "PRoPE": {
            "configs": ["prope.yaml"],
            "columns": ["loop"],
            "tests": ["wrong cameras"],
            "model.camera_encoding": "PRoPE",
        },
    },
    "compare": [
        {"title": "Do cameras help?", "baseline": "none", "settings": ["PRoPE"]},
        {"title": "Do wrong cameras hurt?", "settings": ["PRoPE"], "tests": ["wrong cameras"]},
    ],
}
ROW = ["--settings", "PRoPE", "--columns", "loop", "--seeds", "0", "--jobs", "1"]
OF_ROW = ["fit PRoPE-loop-0", "test PRoPE-loop-0", "test wrong-cameras"]


def write_study(path: Path, **changes: Any) -> Path:
    """Write the study with other values of some keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


class FakeMain:
    """Stands in for `commands.studies.processes.main_py`.

    Attributes:
        calls: the command, the folder's name and the option --ckpt_path of a fit.
        broken: a word of commands that fail.
        killed: a word of trainings that are interrupted after a checkpoint.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = self.killed = "--nothing"

    def __call__(
        self, log: Path, at_once: int, command: str, *words: str, keep_open: tuple[int, ...] = (), goes_on: bool = False
    ) -> str | None:
        folder = Path(words[-1].removeprefix("--trainer.default_root_dir="))
        resumes = command == "fit" and (goes_on or any(word.startswith("--ckpt_path") for word in words))
        self.calls.append(f"{command} {folder.name}{' again' if resumes else ''}")
        if self.broken in words:
            return f"error: {self.broken} is wrong (all of it in {log})"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        if command == "fit":
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints/last.ckpt").touch()
            return "interrupted" if self.killed in words else None
        for name in ("test.json", "predictions.jsonl"):  # of a test that was interrupted
            (folder / name).unlink(missing_ok=True)
        # cameras help, and wrong ones do not
        right = 0.3 + 0.6 * ("PRoPE" in str(folder)) - 0.6 * ("--data.perturbation=OtherCameras" in words)
        write_results(folder, answers(180, right=right, seed=sum(map(ord, str(folder))), scenes=20))
        return None


def results_of(study_file: Path) -> list[dict]:
    """Return the lines of a study's results."""
    path = study_file.parent / "results/toys.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
