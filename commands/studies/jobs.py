"""What a study executes: trainings with their tests, and the commands that make files for them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.checkpoint import FOLDER, LAST
from callbacks.results_folder import PREFIX, SETTINGS
from commands.runs import CONFIG
from commands.studies.executors import Job
from commands.studies.plan import OWN, Run, folder_name
from commands.studies.source_code import ROOT
from datamodules.sources.rooms.rendered import cores
from zoo.atomic_io import write_json

CLAIM, TRAINED, LOG = "study.json", "trained.json", "log.txt"


@dataclass(frozen=True)
class Training(Job):
    """A training and its tests, in a folder of its own.

    Of several tasks, each calls main.py and Lightning makes one run of them; rank zero's results count.

    Args:
        run: the training.
        folder: its folder.
        code: the digest of the code.
        at_once: number of jobs that share the cores.
    """

    run: Run
    folder: Path
    code: str
    at_once: int = 1

    def prepare(self) -> None:
        """Keep the content of its folders if it is of this training and these tests, else empty them."""
        for folder, owner in self._owners().items():
            if _read(folder / CLAIM) != owner:
                shutil.rmtree(folder, ignore_errors=True)
                write_json(folder / CLAIM, owner)

    def __call__(self) -> str | None:
        """Train and test what is not finished; return the reason if that fails."""
        checkpoint, rank = self.folder / FOLDER / LAST, int(os.environ.get("SLURM_PROCID", 0))
        log = self.folder / (f"rank-{rank}-{LOG}" if rank else LOG)
        if not (self.folder / TRAINED).exists():
            resumes, started = checkpoint.exists(), time.monotonic()
            resume = [f"--ckpt_path={checkpoint}"] if resumes else []
            root = f"--trainer.default_root_dir={self.folder}"
            if failure := main_py(log, self.at_once, "fit", *self.run.fit, *resume, root):
                return failure
            if rank == 0:
                fit_s = None if resumes else round(time.monotonic() - started, 1)
                write_json(self.folder / TRAINED, {"fit_s": fit_s})
        trained = ("--config", str(self.folder / CONFIG), f"--ckpt_path={checkpoint}")
        for test, words in self.run.tests.items():
            folder = self.folder_of(test)
            if not (folder / SETTINGS).exists():
                root = f"--trainer.default_root_dir={folder}"
                if failure := main_py(log, self.at_once, "test", *trained, *words, root):
                    return failure
        return None

    def folder_of(self, test: str) -> Path:
        """Return the folder of a test."""
        return self.folder if test == OWN else self.folder / f"{PREFIX}{folder_name(test)}"

    def finished_tests(self) -> list[str]:
        """Return the tests that are done, also by an earlier command."""
        owners = {folder: _read(folder / CLAIM) == owner for folder, owner in self._owners().items()}
        folders = {test: self.folder_of(test) for test in self.run.tests if owners[self.folder]}
        return [test for test, folder in folders.items() if owners[folder] and (folder / SETTINGS).exists()]

    def _owners(self) -> dict[Path, dict[str, Any]]:
        """Return what each of its folders belongs to; the folders of tests lie in that of the training."""
        owners: dict[Path, dict[str, Any]] = {self.folder: {"fit": list(self.run.fit), "code": self.code}}
        tests = {self.folder_of(test): {"test": list(words)} for test, words in self.run.tests.items() if test != OWN}
        return owners | tests

    def seconds(self) -> float | None:
        """Return how long the training took; None if it was interrupted."""
        fit_s: float | None = _read(self.folder / TRAINED)["fit_s"]
        return fit_s


@dataclass(frozen=True)
class Requirement(Job):
    """A command that makes a file for the trainings.

    Args:
        file: the file.
        command: what follows `main.py`.
        log: where its output goes.
    """

    file: Path
    command: str
    log: Path

    def prepare(self) -> None:
        """Make the folder of the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> str | None:
        """Make the file; return the reason if that fails."""
        failure = main_py(self.log, 1, *shlex.split(self.command))
        return failure or (None if self.file.exists() else f"main.py {self.command} has not made {self.file}")


def main_py(log: Path, at_once: int, *words: str) -> str | None:
    """Run main.py with its output in a log; return the log's last line if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // at_once))}
    with log.open("a", encoding="utf-8") as file:
        print("main.py", shlex.join(words), file=file, flush=True)
        command = [sys.executable, str(ROOT / "main.py"), *words]
        status = subprocess.run(command, check=False, stdout=file, stderr=file, env=environment).returncode
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{lines[-1]} (all of it in {log})" if status else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
