"""The results of a study: a file of JSON lines that is committed, so that a fresh clone goes on from there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from commands.reports.loaded_runs import load_run
from commands.studies.study_file import MACRO, Run
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines
from zoo.files.fingerprint import fingerprint

DIGITS = 5  # of a score


@dataclass(frozen=True)
class Questions:
    """The questions of a test, which many results share; `key` is their digest."""

    key: str
    benchmark: str
    scorer: str
    ids: list[str]
    question_types: list[str]
    scenes: list[str]
    ground_truths: list[str]


@dataclass(frozen=True)
class Result:
    """The scores of one test of one training.

    Attributes:
        fit: Words after `main.py fit`.
        tested_with: Words after `main.py test` that change the test.
        code: Digest of the code that trained, see `commands.studies.source_code`.
        fit_s: Seconds of the training; None if it was interrupted.
        scores: By question type, and their macro mean.
        questions: Key of the questions.
        question_scores: In the order of the questions.
        errors: Of what the model's objectives predict, and as <objective>/unlearned/<name> those of a null model.
        version: Of the code that trained, with its commit; empty if unknown.
        baselines: The scores of the blind baselines of text and cameras, by name; `Scores.blind` has the constant.
    """

    setting: str
    column: str
    seed: int
    test: str
    fit: str
    tested_with: str
    code: str
    fit_s: float | None
    scores: dict[str, float]
    questions: str
    question_scores: list[float]
    errors: dict[str, float] = field(default_factory=dict)
    version: str = ""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


Line = Questions | Result


class Results:
    """The results of a study, and those that other studies have of the same trainings.

    Args:
        path: The file; it is made with the first result.
        shared: Files of other studies, which are read only. All tests of a training come from one file: the study's own
            if that has any of them, else the first of these.

    Attributes:
        notes: Remarks about the files.

    Raises:
        InputError: A line of the study's own file is no result; the last may be incomplete, as a kill leaves it.
    """

    def __init__(self, path: Path, shared: Iterable[Path] = ()) -> None:
        self.path = path
        self._own = _File(path)
        self._shared, self.notes = list[_File](), list(self._own.notes)
        for other in shared:
            try:
                self._shared.append(_File(other))
            except InputError as error:
                self.notes.append(f"{error}; until then its results are not shared")

    def find(self, run: Run, test: str) -> Result | None:
        """Return the newest result of these very words, or None."""
        tests = next((file.tests[run.command] for file in (self._own, *self._shared) if run.command in file.tests), {})
        return tests.get(shlex.join(run.tests[test]))

    def has_own(self, result: Result) -> bool:
        """Return whether the study's own file has this result."""
        return self._own.tests.get(result.fit, {}).get(result.tested_with) == result

    def is_outdated(self, result: Result, code: str) -> bool:
        """Return whether other code trained, which may differ in what it does."""
        return result.code != code

    def questions_of(self, result: Result) -> Questions:
        """Return the questions of a result."""
        return next(
            f.questions[result.questions] for f in (self._own, *self._shared) if result.questions in f.questions
        )

    def add(self, result: Result, questions: Questions) -> None:
        """Append a result, and its questions unless an earlier result has them."""
        self._append(*([] if questions.key in self._own.questions else [questions]), result)

    def _append(self, *lines: Line) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = JSONLines(self.path)
        file.append([asdict(line) for line in lines])
        file.close()
        for line in lines:
            self._own.keep(line)


class _File:
    """The lines of a file of results.

    Attributes:
        tests: Results by the words of the training, then by those of the test.
        questions: By their keys.
        notes: What is incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.tests: dict[str, dict[str, Result]] = {}
        self.questions: dict[str, Questions] = {}
        self.notes: list[str] = []
        *lines, rest = (path.read_text(encoding="utf-8") if path.exists() else "").split("\n")
        if rest:
            self.notes.append(f"{path}: line {len(lines) + 1}, the last, is incomplete: its result is made again")
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                if "verified" in content:  # a line of former versions, as are the losses of a result
                    continue
                content.pop("first_losses", None)
                self.keep((Result if "setting" in content else Questions)(**content))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {number}: no result of a study: {error}; remove the line") from error
        every = [result for tests in self.tests.values() for result in tests.values()]
        whole = [result for result in every if result.questions in self.questions]
        if lost := len(every) - len(whole):
            self.notes.append(f"{path}: the questions of {lost} results are missing: the results are made again")
            self.tests = {}
            for result in whole:
                self.keep(result)

    def keep(self, line: Line) -> None:
        """Add a line; of two results of the same words the later one counts."""
        match line:
            case Result():
                self.tests.setdefault(line.fit, {})[line.tested_with] = line
            case Questions():
                self.questions[line.key] = line


@dataclass(frozen=True)
class Trained:
    """A finished training: attributes as of `Result`."""

    fit_s: float | None
    code: str
    version: str = ""


def load_result(run: Run, test: str, folder: Path, trained: Trained) -> tuple[Result, Questions]:
    """Read the result of a finished test from its folder.

    Raises:
        InputError: The test's files are missing or don't match.
    """
    tested = load_run(folder, folder.name)
    if not tested.answers:
        raise InputError("; ".join(tested.remarks) or f"{folder}: no question has a ground truth")
    answers, metrics = tested.answers, tested.metrics
    content = {
        "benchmark": tested.benchmark.name,
        "scorer": metrics["scorer"],
        "ids": [answer.id for answer in answers],
        "question_types": [answer.question_type for answer in answers],
        "scenes": [answer.scene for answer in answers],
        "ground_truths": [answer.ground_truth for answer in answers],
    }
    others = {name: each for name, each in metrics.get("baselines", {}).items() if name != "constant"}
    questions = Questions(fingerprint(content), **content)
    result = Result(
        run.setting,
        run.column,
        run.seed,
        test,
        run.command,
        shlex.join(run.tests[test]),
        trained.code,
        trained.fit_s,
        scores_of(metrics),
        questions.key,
        [round(tested.scores[answer.id], DIGITS) for answer in answers],
        {name: round(error, DIGITS) for name, error in metrics.get("objectives", {}).items()},
        trained.version,
        {name: scores_of(each) for name, each in others.items()},
    )
    return result, questions


def scores_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a test or a baseline by question type, and their macro mean if there is one."""
    scores = {kind: entry["score"] for kind, entry in metrics["per_question_type"].items()}
    macro = metrics["all"]["macro"]
    return {name: round(score, DIGITS) for name, score in {**scores, MACRO: macro}.items() if score is not None}
