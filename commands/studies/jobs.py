"""What a study executes: trainings with their tests, and the commands that make files for them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from callbacks.results_folder import TESTS
from callbacks.run_config import METRICS
from commands.main import LIGHTNING
from commands.reports.loaded_runs import newest_test
from commands.runs import CONFIG
from commands.studies import processes
from commands.studies.executors import Job
from commands.studies.processes import Launch, locked
from commands.studies.results import Trained
from commands.studies.source_code import SourceCode
from commands.studies.study_file import OWN, RUNS, Run, folder_name
from zoo.errors import InputError
from zoo.files.atomic_io import write_json
from zoo.versions import zoo_version
from zoo.weights.saved_models import LAST_CHECKPOINT

OWN_TEST = "own"  # the folder of the test that every trained model has, if that has options
CLAIM, TRAINED, LOG = "study.json", "trained.json", "log.txt"
CODE = "code.zip"  # the modules that the training depends on


@dataclass(frozen=True)
class Training(Job):
    """A training and its tests, in a folder of its own.

    Of several tasks, each calls main.py and Lightning makes one run of them; rank zero's results count.

    Args:
        run: The training.
        folder: Its folder.
        code: The digest of the present code.
        launch: How main.py is started.
        redo: Whether to replace weights that other code has trained.
    """

    run: Run
    folder: Path
    code: str
    launch: Launch = Launch()
    redo: bool = False

    @property
    def rank(self) -> int:
        """The number of this task of SLURM."""
        return int(os.environ.get("SLURM_PROCID", 0))

    @property
    def log(self) -> Path:
        """The file of this task's output."""
        return self.folder / (f"rank-{self.rank}-{LOG}" if self.rank else LOG)

    def prepare(self) -> None:
        """Empty the folders of other trainings and tests, and that of a training which other code has begun.

        Raises:
            InputError: Another process uses the folder.
        """
        with self._lock():
            claim = _read(self.folder / CLAIM) or {}
            is_current, is_trained = claim.get("code") == self.code, (self.folder / TRAINED).exists()
            if not (self._is_own(claim) and (is_current or (is_trained and not self.redo))):
                if self._is_own(claim) and (self.folder / LAST_CHECKPOINT).exists():
                    print(f"{self.run}: begun by other code, so it starts anew", flush=True)
                shutil.rmtree(self.folder, ignore_errors=True)
                write_json(self.folder / CLAIM, {"fit": list(self.run.fit), "code": self.code})
            for folder, owner in self._test_owners().items():
                if _read(folder / CLAIM) != owner:
                    shutil.rmtree(folder, ignore_errors=True)
                    write_json(folder / CLAIM, owner)

    def __call__(self) -> str | None:
        """Train and test what is not finished; return the reason if that fails."""
        if self.rank:
            return self._train_and_test()
        try:
            with self._lock() as lock:
                return self._train_and_test(lock)
        except InputError as error:
            return str(error)

    def _train_and_test(self, *locks: int) -> str | None:
        checkpoint = self.folder / LAST_CHECKPOINT
        weights: tuple[str, ...] = ("--config", str(self.folder / CONFIG), f"--ckpt_path={checkpoint}")
        if not self.run.is_trained:
            weights = self.run.fit
        elif not (self.folder / TRAINED).exists():
            resumes, started = checkpoint.exists(), time.monotonic()
            if self.rank == 0:
                SourceCode().save(self.run, self.folder / CODE)
            if failure := self._fit(*([f"--ckpt_path={checkpoint}"] if resumes else []), keep_open=locks):
                return failure
            if self.rank == 0:
                fit_s = None if resumes else round(time.monotonic() - started, 1)
                trained = Trained(fit_s, self.code, zoo_version())
                write_json(self.folder / TRAINED, asdict(trained))
        for test, words in self.run.tests.items():
            folder = self.folder_of(test)
            if self.finished(test) is None:
                root = f"--trainer.default_root_dir={folder}"
                if failure := processes.main_py(self.log, self.launch, "test", *weights, *words, root, keep_open=locks):
                    return failure
        return None

    def _fit(self, *words: str, keep_open: tuple[int, ...]) -> str | None:
        """Train; return the reason if that fails, or if the code has changed meanwhile."""
        arguments = ("fit", *self.run.fit, *words, f"--trainer.default_root_dir={self.folder}")
        if failure := processes.main_py(self.log, self.launch, *arguments, keep_open=keep_open):
            return failure
        if SourceCode().digest(self.run) != self.code:
            return "the code was changed since the study was started: start it again"
        return None

    def folder_of(self, test: str) -> Path:
        """Return the folder of a test: that of the training, of the own test without options."""
        is_own = test == OWN and not (self.run.is_trained and self.run.tests[test])
        return self.folder if is_own else self.folder / TESTS / (folder_name(test) or OWN_TEST)

    def finished(self, test: str) -> Path | None:
        """Return where a test is finished; `main.py test` repeats one that other code began in another folder."""
        folder = self.folder_of(test)
        if folder != self.folder:
            return newest_test(folder)
        found = (folder, *sorted(folder.glob(f"{TESTS}/repeat*")))
        return next((each for each in found if (each / METRICS).exists()), None)

    def finished_tests(self) -> list[str]:
        """Return the tests that are done, also by an earlier command."""
        claim = _read(self.folder / CLAIM) or {}
        trained = _read(self.folder / TRAINED) if self.run.is_trained else claim
        if not self._is_own(claim) or trained is None:
            return []
        if self.redo and trained["code"] != self.code:
            return []
        owners = self._test_owners()
        folders = {test: self.folder_of(test) for test in self.run.tests}
        own = {test: folder for test, folder in folders.items() if owners.get(folder) in (None, _read(folder / CLAIM))}
        return [test for test in own if self.finished(test) is not None]

    def trained(self) -> Trained:
        """Return how the finished training was made; of released weights, by which code they are tested."""
        if not self.run.is_trained:
            return Trained(None, _read(self.folder / CLAIM)["code"], zoo_version())
        return Trained(**_read(self.folder / TRAINED))

    def _is_own(self, claim: dict[str, Any]) -> bool:
        return claim.get("fit") == list(self.run.fit)

    def _test_owners(self) -> dict[Path, dict[str, Any]]:
        """Return what each test's own folder belongs to."""
        folders = {self.folder_of(test): {"test": list(words)} for test, words in self.run.tests.items()}
        return {folder: owner for folder, owner in folders.items() if folder != self.folder}

    def _lock(self) -> AbstractContextManager[int]:
        return locked(self.folder.with_name(f"{self.folder.name}.lock"), f"training in {self.folder}")


@dataclass(frozen=True)
class Requirement(Job):
    """A command that makes a file for the trainings.

    Studies may share the file. What makes it, and whether that has ended, is in `runs/studies/.requires/`, so that the
    file of a command that is running, was killed or has failed isn't taken for the finished one. A file without an
    entry there, made by hand, is taken as it is.

    Args:
        file: The file, as the study names it.
        command: What follows `main.py`.
        log: Where its output goes.
        launch: How main.py is started; Lightning's commands alone are for several processes.
    """

    file: str
    command: str
    log: Path
    launch: Launch = Launch()

    @property
    def _claim(self) -> Path:
        return RUNS / ".requires" / f"{quote(os.path.normpath(self.file), safe='')}.json"

    def is_made(self) -> bool:
        """Return whether the file is there, whole, and made by this command, if that is known."""
        return Path(self.file).exists() and (_read(self._claim) or self._made) == self._made

    @property
    def _made(self) -> dict[str, Any]:
        return {"command": self.command, "is_made": True}

    def prepare(self) -> None:
        """Make the folder of the log.

        Raises:
            InputError: Another command has made the file.
        """
        claim = _read(self._claim) or {}
        if Path(self.file).exists() and claim.get("is_made") and not self.is_made():
            other = f"`main.py {claim['command']}` has made it, not `main.py {self.command}`"
            raise InputError(f"{other}: remove it to have it made again")
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> str | None:
        """Make the file; return the reason if that fails. Of several tasks, only Lightning's commands are for all."""
        words = shlex.split(self.command)
        launch = self.launch if words[0] in LIGHTNING else Launch()
        if int(os.environ.get("SLURM_PROCID", 0)):
            return processes.main_py(self.log, launch, *words, goes_on=True) if words[0] in LIGHTNING else None
        try:
            with locked(self._claim.with_suffix(".lock"), f"making {self.file}") as lock:
                if self.is_made():  # by another study, meanwhile
                    return None
                write_json(self._claim, {**self._made, "is_made": False})
                if failure := processes.main_py(self.log, launch, *words, keep_open=(lock,), goes_on=True):
                    return failure
                if not Path(self.file).exists():
                    return f"main.py {self.command} has not made {self.file}"
                write_json(self._claim, self._made)
        except InputError as error:
            return str(error)
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
