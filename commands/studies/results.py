"""The results of a study: a file of JSON lines that is committed, so that a fresh clone goes on from there.

A line is the result of one test of one training, with the score and the answer of each question. The questions and
their truths are written once for each set of questions, in a line of its own. `Results.tested` returns them in a table.
"""

from __future__ import annotations

import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from commands.reports.scores import Tested
from commands.responses.results import Response, as_json, from_json
from commands.studies.study_file import MACRO, OWN, Options, Run, Study, read_study
from run_folder.record import METRICS, PREDICTIONS
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, read_json, read_records
from zoo.files.fingerprint import fingerprint

DIGITS = 5  # of a score
UNLEARNED = "unlearned"  # in the name of a null model's error


@dataclass(frozen=True)
class Questions:
    """The questions of a test, which many results share.

    Attributes:
        key: The fingerprint of the questions, by which a result names them.
        ground_truths: The right answers. Empty in results of former versions.
    """

    key: str
    benchmark: str
    scorer: str
    ids: list[str]
    question_types: list[str]
    scenes: list[str]
    ground_truths: list[str] = field(default_factory=list)

    def is_same(self, other: Questions) -> bool:
        """Return whether the questions are equal, as far as both say what they are."""
        if self.ground_truths and other.ground_truths:
            return self == other
        return replace(self, key="", ground_truths=[]) == replace(other, key="", ground_truths=[])


@dataclass(frozen=True)
class Result:
    """The scores of one test of one training.

    Attributes:
        options: The training's options with its configs merged, see `Run.resolved`.
        test_options: The options of the test.
        commit: The commit of the code that trained; "" if unknown.
        is_clean: Whether the code was as the commit has it.
        trained: When the training ended; all tests of one training share it. "" for results of former versions.
        fit_s: Seconds of the training; None if it was interrupted.
        scores: The score of each question type, and their macro mean.
        baselines: The same of each blind baseline, by its name.
        questions: Key of the questions.
        question_scores: The score of each question.
        errors: The errors of what the model's objectives predict, and of directions, `degrees/<question type>`.
            `<objective>/unlearned/<name>` is a null model's, for directions the best constant's.
        small_parameters: Values of each small parameter before and after the training, see `Task`.
        curve: Pairs of a training step and the score of the validation scenes at it, in the measure of the row.
        predictions: The answer to each question, see `compress`. "" for results of former versions.
        responses: The model's responses to interventions, with the row's own test, see `compress`. "" if none are
            measured.
        hits: For each exact rule of a task, the mean and the standard error of `evaluation.baselines.hit_test`.
    """

    setting: str
    column: str
    seed: int
    test: str
    options: Options
    test_options: Options
    commit: str
    is_clean: bool
    trained: str
    fit_s: float | None
    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    questions: str
    question_scores: list[float]
    errors: dict[str, float] = field(default_factory=dict)
    small_parameters: dict[str, list[list[float]]] = field(default_factory=dict)
    curve: list[list[int | float]] = field(default_factory=list)
    predictions: str = ""
    responses: str = ""
    hits: dict[str, list[float]] = field(default_factory=dict)


class Results:
    """The results of a study, and those that other studies have of equal trainings.

    Args:
        path: The file; it is made with the first result.
        shared: Files of other studies, which are only read.

    Attributes:
        notes: Remarks on files of other studies that are damaged, and so not used.

    Raises:
        InputError: A line of the study's own file is no result. The last may be incomplete, as a kill leaves it.
    """

    def __init__(self, path: Path, shared: Iterable[Path] = ()) -> None:
        self.path = path
        self.questions: dict[str, Questions] = {}
        self.own, self._others, self.notes = list[Result](), list[Result](), list[str]()
        for other in shared:
            try:
                self._others += self._read(other)
            except InputError as error:
                self.notes.append(f"{error}; until then its results are not shared")
        self.own += self._read(path)

    def _read(self, path: Path) -> list[Result]:
        """Return the results in a file whose questions are known."""
        results = []
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # a kill leaves a last line without an end
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                if "setting" in line:
                    results.append(Result(**line))
                else:
                    self.questions[line["key"]] = Questions(**line)
            except (KeyError, TypeError, ValueError) as error:
                message = f"{path}, line {number}: no result of a study: {error}; remove the line"
                raise InputError(message) from error
        return [each for each in results if each.questions in self.questions]

    def find(self, run: Run) -> dict[str, Result]:
        """Return the results of a planned training by the test's name, all of one training.

        A result belongs to the training if its resolved options, its seed and the options of the test are equal.
        Results of released weights count for all seeds. Of several trainings the one with most of the planned tests
        counts; of equals one of the study's own file; of these the last.
        """
        options = run.resolved
        trainings: dict[tuple[bool, str], dict[str, Result]] = {}
        for is_own, results in ((False, self._others), (True, self.own)):
            for result in results:
                if result.options == options and (result.seed == run.seed or not run.depends_on_seed):
                    same = (test for test, options in run.tests.items() if result.test_options == options)
                    found = replace(result, seed=run.seed)
                    trainings.setdefault((is_own, result.trained), {}).update(dict.fromkeys(same, found))
        ranked = sorted(trainings, key=lambda key: (len(trainings[key]), *key))
        return trainings[ranked[-1]] if ranked else {}

    def missing(self, runs: Iterable[Run], again: Collection[str] = ()) -> list[Run]:
        """Return the trainings that lack a result; of released weights that of the first seed, which counts for all.

        Args:
            runs: The planned trainings.
            again: The settings that are trained again, whatever has a result.
        """
        found: dict[tuple[str, str, int | None], Run] = {}
        for run in runs:
            if run.setting in again or not self.are_complete(run):
                found.setdefault((run.setting, run.column, run.seed if run.depends_on_seed else None), run)
        return [*found.values()]

    def are_complete(self, run: Run) -> bool:
        """Return whether a planned training has all of its tests and responses."""
        found = self.find(run)
        measured = {each.intervention for each in unpack_responses(found[OWN])} if OWN in found else set()
        return len(found) == len(run.tests) and measured >= {*run.responses}

    def stale(self, runs: Sequence[Run]) -> list[Result]:
        """Return the own results that belong to none of the planned trainings and tests."""
        planned = [(run.resolved, run.seed, options) for run in runs for options in run.tests.values()]
        return [each for each in self.own if (each.options, each.seed, each.test_options) not in planned]

    def is_recorded(self, trained: str) -> bool:
        """Return whether the own file has a test of the training that ended at this time."""
        return any(each.trained == trained for each in self.own)

    def add(self, result: Result, questions: Questions) -> None:
        """Append a result, unless the file has it, also from another process.

        Raises:
            InputError: The file can't be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = JSONLines(self.path)
        with file.locked():
            self.own = self._read(self.path)
            if result not in self.own:
                new = [] if any(each.questions == questions.key for each in self.own) else [asdict(questions)]
                file.append([*new, asdict(result)])
                self.own.append(result)
        file.close()
        self.questions[questions.key] = questions

    def tested(self, result: Result, label: str, test: str = OWN) -> Tested:
        """Return a result as a row of tables. The label is that of the setting, for all tests of a training."""
        asked = self.questions[result.questions]
        columns = {"question_type": asked.question_types, "scene": asked.scenes, "score": result.question_scores}
        # not "ground_truth", which makes tests of other truths others: former results have none
        columns |= {"truth": asked.ground_truths} if asked.ground_truths else {}
        columns |= {"prediction": decompress(result.predictions)} if result.predictions else {}
        questions = pd.DataFrame(columns, index=pd.Index(asked.ids, name="id"))
        return Tested(
            label=label,
            test=test,
            seed=result.seed,
            benchmark=asked.benchmark,
            scorer=asked.scorer,
            questions=questions,
            baselines=result.baselines,
            group=label,
            training=f"{label}, seed {result.seed}",
            options={**result.options, **{f"test.{name}": value for name, value in result.test_options.items()}},
            small_parameters=result.small_parameters,
            responses=unpack_responses(result),
        )


def open_results(study: Study) -> Results:
    """Read the results of a study, and those of the studies beside it; with a folder of its own there are none."""
    beside = [] if study.output else sorted({*study.results.parent.glob("*.jsonl")} - {study.results})
    return Results(study.results, beside)


def load(path: Path) -> tuple[list[Tested], list[str]]:
    """Return the results of a study file as rows of a report, and notes on what is missing.

    Raises:
        InputError: The file is no study, or its results are damaged.
    """
    study = read_study(path)
    results, rows, missing = open_results(study), list[Tested](), 0
    for run in study.runs():
        found = results.find(run)
        label = ", ".join(filter(None, (run.setting, run.column)))
        rows += [results.tested(result, label, test) for test, result in found.items()]
        missing += len(run.tests) - len(found)
    return rows, [*results.notes, *([f"{path}: {missing} tests have no result yet"] if missing else [])]


# ---- From the folder of a test ---------------------------------------------------------------------------------------


def read_result(
    run: Run,
    test: str,
    folder: Path,
    trained: Mapping[str, Any],
    curve: Sequence[tuple[int, float]] = (),
    responses: Sequence[Response] = (),
) -> tuple[Result, Questions]:
    """Read the result of a finished test from its folder.

    Args:
        run: The training.
        test: The name of the test.
        folder: The folder with its metrics.json.
        trained: `commit`, `is_clean`, `trained` and `fit_s` of the training, see `Result`.
        curve: See `Result`.
        responses: See `Result`.

    Raises:
        InputError: No question has a score.
    """
    metrics = read_json(folder / METRICS)
    records = [each for each in read_records([folder / PREDICTIONS]) if each.get("score") is not None]
    if not records:
        raise InputError(f"{folder}: no question has a ground truth")
    content = {
        "benchmark": metrics["benchmark"],
        "scorer": metrics["scorer"],
        "ids": [record["id"] for record in records],
        "question_types": [record["question_type"] for record in records],
        "scenes": [record["scene"] for record in records],
        "ground_truths": [record["ground_truth"] for record in records],
    }
    questions = Questions(fingerprint(content), **content)
    errors = dict(metrics.get("objectives", {}))
    for prefix, of in (("", metrics), (f"{UNLEARNED}/", metrics.get("baselines", {}).get("constant", {}))):
        types = of.get("per_question_type", {})
        errors |= {f"degrees/{prefix}{kind}": own["degrees"] for kind, own in types.items() if "degrees" in own}
    result = Result(
        setting=run.setting,
        column=run.column,
        seed=run.seed,
        test=test,
        options=run.resolved,
        test_options=run.tests[test],
        **trained,
        scores=rounded_scores(metrics),
        baselines={name: rounded_scores(each) for name, each in metrics.get("baselines", {}).items()},
        questions=questions.key,
        question_scores=[round(record["score"], DIGITS) for record in records],
        errors={name: round(error, DIGITS) for name, error in errors.items()},
        small_parameters={
            name: [[float(f"{value:.6g}") for value in values] for values in both]
            for name, both in metrics.get("small_parameters", {}).items()
        },
        curve=[[step, round(score, DIGITS)] for step, score in curve],
        predictions=compress([record["prediction"] for record in records]),
        responses=compress([as_json(each) for each in responses]) if responses else "",
        hits={name: rounded_hits(own["hits"]) for name, own in metrics.get("baselines", {}).items() if "hits" in own},
    )
    return result, questions


def rounded_hits(hits: Mapping[str, float]) -> list[float]:
    """Return the mean and the standard error of a hit test."""
    return [round(hits[name], DIGITS) for name in ("mean", "standard_error")]


def unpack_responses(result: Result) -> list[Response]:
    """Return the responses in a result. Empty if none are measured."""
    return [from_json(each) for each in decompress(result.responses)] if result.responses else []


def compress(values: list[Any]) -> str:
    """Return values of JSON as one short text: zlib in base 85, some 500 characters for 500 numbers."""
    return b85encode(zlib.compress(json.dumps(values, separators=(",", ":")).encode(), 9)).decode()


def decompress(text: str) -> list[Any]:
    """Return the values that `compress` has packed.

    Example:
        >>> decompress(compress(["1.5", "left"]))
        ['1.5', 'left']
    """
    return list(json.loads(zlib.decompress(b85decode(text))))


def rounded_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the score of each question type, and their macro mean if there is one."""
    scores = {kind: entry["score"] for kind, entry in metrics["per_question_type"].items()}
    scores[MACRO] = metrics["all"]["macro"]
    return {name: round(score, DIGITS) for name, score in scores.items() if score is not None}
