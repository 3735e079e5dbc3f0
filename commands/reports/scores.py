"""The scores of tests, as a report or a study compares them: a row per question, read from the files of runs.

Every measure of a test is a weighted sum of the scores of its questions. The weights say what a mean is over:

- a question type: its mean over questions
- a column of the benchmark's table, such as "Rel. Dir.": the mean over its question types
- "micro": the mean over all questions
- "macro": the mean over question types, where types that belong together count once (`Benchmark.grouped_types`)
- "acc/micro", "acc/macro", "mra/micro", "mra/macro": the means of multiple-choice and of numeric questions alone
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from callbacks.checkpoint import BEST
from callbacks.metrics import describe_unfinished
from commands.reports.predictions import read_predictions
from commands.responses.results import Response, read_responses
from commands.runs import CONFIG
from evaluation.baselines import constant_baseline
from run_folder.configs import is_own
from run_folder.record import METRICS, PREDICTIONS, TEST_FILE, RunRecord
from run_folder.results import TESTS, rank_files
from zoo.benchmarks import find_benchmark
from zoo.configuration import flatten, is_covered, is_same_value
from zoo.errors import InputError, printable
from zoo.metrics import with_scores
from zoo.weights.saved_models import config_of

GROUPS, MEANS = ("acc", "mra", "all"), ("macro", "micro")


@dataclass(frozen=True, eq=False)
class Tested:
    """One test of one model: the test of a run, or a line of a study's results.

    Attributes:
        label: The row of a table: the name of the run or of the setting.
        test: The name of a further test of the trained model; "" for its own test.
        seed: The seed of the training; None if it is not recorded.
        benchmark: The name of the benchmark.
        scorer: The name of its scorer.
        questions: One row per question, by its id, with the columns question_type, scene and score (0..1). Those of a
            run also have question, prompt, ground_truth, prediction, frames and error ("" without one).
        baselines: The scores of blind baselines by measure, by the baseline's name (constant, text, cameras, ...).
        group: What repetitions share: tests of one group differ in the seed alone.
        corpus: Measures of the whole test that are no means over questions, such as CIDEr, by name.
        options: The flattened options of training and test, to show what differs.
        small_parameters: All values of each small parameter before and after the training, see `Task`, by its name.
        folder: The folder of the test.
        training: Names the training: tests of one training are compared with each other in pairs. "" if it is unknown.
        responses: Responses of the model to interventions, if they were measured. Those of a run are with its own test.
    """

    label: str
    test: str
    seed: int | None
    benchmark: str
    scorer: str
    questions: pd.DataFrame
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    group: str = ""
    corpus: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    small_parameters: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    folder: Path | None = None
    training: str = ""
    responses: Sequence[Response] = ()
    __test__: ClassVar[bool] = False  # its name is that of a class of tests, for pytest

    @cached_property
    def measures(self) -> dict[str, float]:
        """The scores of all measures that have questions, in 0..1."""
        scores = {str(kind): own.tolist() for kind, own in self.questions.groupby("question_type")["score"]}
        benchmark = find_benchmark(self.benchmark)
        columns = {
            column: float(np.mean([np.mean(scores[kind]) for kind in kinds if kind in scores]))
            for column, kinds in benchmark.columns.items()
            if not scores.keys().isdisjoint(kinds)
        }
        return {**columns, **flatten_scores(benchmark.aggregate(scores, self.scorer)), **self.corpus}

    @cached_property
    def asked(self) -> frozenset[tuple[object, ...]]:
        """The questions: tests with the same ones are compared question by question."""
        columns = [name for name in ("question_type", "scene", "question", "ground_truth") if name in self.questions]
        return frozenset(zip(self.questions.index, *(self.questions[name].tolist() for name in columns), strict=True))

    def score(self, measure: str) -> float | None:
        """Return the score of a measure in 0..1; None if no question belongs to it."""
        return self.measures.get(measure)

    def blind(self, baseline: str, measure: str) -> float | None:
        """Return the score of a blind baseline; None if it is absent or answers only some of the questions."""
        scores = self.baselines.get(baseline, {})
        if measure in scores:
            return scores[measure]
        asked = set(self.questions["question_type"])
        kinds = [kind for kind in find_benchmark(self.benchmark).columns.get(measure, ()) if kind in asked]
        return float(np.mean([scores[kind] for kind in kinds])) if kinds and scores.keys() >= set(kinds) else None

    def weights(self, measure: str) -> pd.DataFrame:
        """Return the weights by which the scores of the questions add up to a measure.

        Returns:
            For each question of the measure its "weight", and as "part" the questions with which it forms a mean.
            Without rows if no question belongs to the measure.
        """
        kinds, benchmark = self.questions["question_type"], find_benchmark(self.benchmark)
        group, _, mean = measure.rpartition("/")
        among: Sequence[str] = (measure,)
        part = kinds  # each type has a mean of its own
        merged = kinds  # types of one name count once
        if mean in MEANS and (group or "all") in benchmark.groups:
            among = benchmark.groups[group or "all"]
            if mean == "micro":
                part = merged = pd.Series("all", kinds.index)
            else:
                names = {kind: name for name, own in benchmark.grouped_types(self.scorer).items() for kind in own}
                merged = kinds.map(lambda kind: names.get(kind, kind))
                part = merged if self.scorer in benchmark.pooling_scorers else kinds
        elif measure not in benchmark.question_types:
            among = benchmark.columns.get(measure, ())
            merged = pd.Series(measure, kinds.index)
        found = pd.DataFrame({"part": part, "merged": merged})[kinds.isin(list(among))]
        size = found.groupby("part")["part"].transform("size")
        parts = found.groupby("merged")["part"].transform("nunique")
        return found.assign(weight=1.0 / (size * parts * max(1, found["merged"].nunique())))[["part", "weight"]]


def scores_of(tests: Iterable[Tested], measure: str) -> list[float]:
    """Return the scores of the tests that have a measure."""
    return [score for each in tests if (score := each.score(measure)) is not None]


def flatten_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a `Benchmark.aggregate`, as metrics.json has them, by measure; without columns."""
    types = {kind: float(entry["score"]) for kind, entry in result["per_question_type"].items()}
    means = {
        mean if group == "all" else f"{group}/{mean}": score
        for group in GROUPS
        for mean in MEANS
        if (score := (result.get(group) or {}).get(mean)) is not None
    }
    return types | means


# ---- The tests of runs ----------------------------------------------------------------------------------------------

STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")  # of a folder that `fit` named
MOST = 3  # options in a label
# entries of metrics.json: runs are repetitions only with the same code, trained as far
MADE_BY = ("run_step", "max_steps", "training_versions", "versions")

# types of the entries of metrics.json that may be absent or null
ENTRIES = {
    **dict.fromkeys(("training", "config", "option_effects", "baselines", "small_parameters", "captions"), dict),
    **dict.fromkeys(("run_step", "max_steps"), int),
    "checkpoint": str,
}


def load(folders: Iterable[Path]) -> tuple[list[Tested], list[str]]:
    """Load the finished tests of runs: of each run its own test, and those in the folder `tests` inside it.

    Repetitions of a setting get one group and label. A test with the settings and the seed of another one is no further
    repetition: it has a group of its own.

    Returns:
        The tests in the order of the folders, and notes about folders and tests that are left out or unfinished.
    """
    tests: list[Tested] = []
    notes: list[str] = []
    times = Counter[tuple[str, int | None]]()
    for folder in _test_folders(folders):
        try:
            tested, remarks = _load_test(folder)
        except InputError as error:
            notes.append(f"skipped: {error}")
            continue
        notes += [f"{folder}: {remark}" for remark in remarks]
        key = (tested.group, tested.seed)
        times[key] += 1
        tests.append(replace(tested, group=f"{tested.group} {times[key]}"))
    return _with_labels(tests), notes


def _test_folders(folders: Iterable[Path]) -> list[Path]:
    """Return the given folders and the folders of the tests inside them, each once."""
    unique: dict[Path, Path] = {}
    for given in folders:
        if given.suffix == ".lock" and given.with_suffix("").is_dir():  # of a study, beside the folder of a training
            continue
        inside = sorted(given.glob(f"{TESTS}/*/"))
        has_own = any((given / name).exists() for name in (METRICS, TEST_FILE)) or not inside
        for folder in ([given] if has_own else []) + inside:
            unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def _load_test(folder: Path) -> tuple[Tested, list[str]]:
    """Return the test in a folder, and remarks: its training has steps to go, some of its questions failed.

    Raises:
        InputError: The folder is no run, has no finished test, or a file of the test is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config, path = config_of(folder), folder / PREDICTIONS  # of the test
    if not (folder / METRICS).exists():
        began = path.exists() or rank_files(folder)
        raise InputError(f"{folder}: {'its test was interrupted: run it again' if began else 'no test yet'}")
    metrics = read_metrics(folder / METRICS)
    benchmark = find_benchmark(metrics["benchmark"], trusted=is_own(folder))
    if not path.exists() or not path.stat().st_size:
        raise InputError(f"{folder} has no {PREDICTIONS}: test the run again")
    answers, _ = read_predictions(path, benchmark)
    records = with_scores(map(vars, answers), benchmark, metrics["scorer"])
    own = [each for each in records if each["score"] is not None]
    if not own:
        raise InputError(f"{path}: no answer has a ground_truth, so it has no score")
    scored = [{**each, "error": each["error"] or ""} for each in own]  # pandas has no None among texts
    questions = pd.DataFrame(scored, columns=list(vars(answers[0]))).set_index("id")
    run = folder.parent.parent if folder.parent.name == TESTS else folder
    training, is_known = _training_of(run, config, metrics)
    options = _options(training, metrics)
    if not is_known:
        options["checkpoint"] = metrics["checkpoint"]  # no other test may have the same weights
    tested = Tested(
        label=printable(str(training.get("name") or STAMP.sub("", run.resolve().name))),
        test=printable(folder.name) if run != folder else "",
        seed=seed if isinstance(seed := training.get("seed_everything"), int) and not isinstance(seed, bool) else None,
        benchmark=benchmark.name,
        scorer=metrics["scorer"],
        questions=questions.drop(columns=["benchmark", "scorer"]),
        group=json.dumps([benchmark.name, options], sort_keys=True, default=str),
        corpus={name: each for name, each in (metrics.get("captions") or {}).items() if isinstance(each, float)},
        options=options,
        small_parameters=metrics.get("small_parameters") or {},
        folder=folder,
        training=str(run.resolve()),
        responses=read_responses(folder) if run == folder else (),
    )
    recorded = flatten_scores(metrics)
    if any(abs(score - (tested.score(measure) or 0.0)) > 1e-9 for measure, score in recorded.items()):
        raise InputError(
            f"{path} doesn't match {METRICS}: move that away, and make it by python main.py score {path} --output ..."
        )
    baselines = metrics.get("baselines") or constant_baseline(scored, benchmark, metrics["scorer"]).scores
    blind = {name: flatten_scores(each) for name, each in baselines.items()}
    failed = int((tested.questions["error"] != "").sum())
    remarks = [describe_unfinished(metrics) or "", f"questions that failed and score 0: {failed}" if failed else ""]
    remarks += [] if is_known else ["no record of its training: a row of its own; test the weights again"]
    return replace(tested, baselines=blind), [remark for remark in remarks if remark]


def _training_of(run: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return the config with which the tested weights were trained, and whether it is known.

    Tests of former versions do not record it. Then it is the run's config, if the checkpoint was in the run's folder.

    Args:
        run: The run's folder.
        config: The test's config, which also describes weights that `fit` did not train.
        metrics: The test's metrics.json.
    """
    if "training" in metrics or not (checkpoint := metrics.get("checkpoint")):
        return metrics.get("training") or config, True
    if Path(checkpoint).parent.parent.name == run.resolve().name and (run / CONFIG).is_file():
        return config_of(run), True
    return config, False


def read_metrics(path: Path) -> dict[str, Any]:
    """Read the metrics.json of a test.

    Raises:
        InputError: It is damaged, or lacks entries.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    needed = {"benchmark": str, "scorer": str, "per_question_type": dict, **dict.fromkeys(GROUPS, dict)}
    if not isinstance(content, dict) or not needed.keys() <= content.keys():
        raise InputError(f"{path} lacks entries of a test: test the run again")
    optional = {name: kind for name, kind in ENTRIES.items() if content.get(name) is not None}
    if odd := [name for name, kind in {**optional, **needed}.items() if not isinstance(content[name], kind)]:
        raise InputError(f"{path} is damaged, in {', '.join(odd)}: test the run again")
    return content


def _options(training: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that scores depend on, without seeds; as `test.<name>` those that the test changed."""
    checkpoint = Path(metrics.get("checkpoint") or "").name
    parts = ("model", "data", "trainer", *(["checkpoint"] if checkpoint == BEST else []))  # which says what is best
    records = (RunRecord.of(training), RunRecord.of(metrics.get("config") or {}))
    record, test = (each.declaring(metrics.get("option_effects")) for each in records)
    trained = {
        name: value
        for name, value in record.options.items()
        if is_covered(name, parts) and record.changes_training(name)
    }
    tested = {
        f"test.{name}": value
        for name, value in test.options.items()
        if test.changes_answers(name) and not is_same_value(name, record.options.get(name), value)
    }
    made_by = flatten({name: metrics.get(name) for name in MADE_BY})
    found = {**trained, **tested, "scorer": metrics["scorer"], "checkpoint": checkpoint, **made_by}
    return {name: value for name, value in found.items() if not _is_seed(name)}


def _is_seed(name: str) -> bool:
    """Return whether an option is a seed of the training; the seed of a source makes other data."""
    return name.rpartition(".")[2] in ("seed", "seed_everything") and ".source." not in name


def _with_labels(tests: Sequence[Tested]) -> list[Tested]:
    """Name the tests of a group alike: by their runs, and where groups have one name also by what differs."""
    groups: dict[str, list[Tested]] = {}
    for each in tests:
        groups.setdefault(each.group, []).append(each)
    labels = {group: ", ".join(dict.fromkeys(each.label for each in own)) for group, own in groups.items()}
    alike: dict[tuple[str, str], list[str]] = {}
    for group, own in groups.items():
        alike.setdefault((labels[group], own[0].test), []).append(group)
    for (label, _), several in alike.items():
        options = option_table({group: groups[group][0].options for group in several})
        told = [[f"{name.rpartition('.')[2]} {value}" for name, value in options[group].items()] for group in several]
        names = {group: ", ".join([label, *own]) for group, own in zip(several, told, strict=True)}
        if len(options) > MOST or len(set(names.values())) < len(several):
            names = {group: ", ".join(printable(str(each.folder)) for each in groups[group]) for group in several}
        labels |= names
    return [replace(each, label=labels[each.group], test=groups[each.group][0].test) for each in tests]


def option_table(options: Mapping[str, Mapping[str, Any]], *, differing: bool = True) -> pd.DataFrame:
    """Return the options of settings: a row per option, a column per setting, texts as values.

    Args:
        options: Flattened options by the setting's name.
        differing: Only those in which the settings differ. Where the classes of a part of the model or the data differ,
            the options of these classes are left out.
    """
    shown = {
        name: {key.removesuffix(".class_path"): _spell(value) for key, value in own.items()}
        for name, own in options.items()
    }
    frame = pd.DataFrame(shown, dtype=object).fillna("").rename_axis("option")
    if not differing:
        return frame
    frame = frame[frame.nunique(axis=1) > 1]
    classes = {name for own in options.values() for name in own if name.endswith(".class_path")}
    parts = tuple(f"{name}." for name in frame.index if "." in name and f"{name}.class_path" in classes)
    return frame.loc[[name for name in frame.index if not name.startswith(parts)]]


def _spell(value: object) -> str:
    """Return a value as a short text: a class without its module."""
    return "null" if value is None else re.sub(r"^[a-z_.]+\.(?=[A-Z]\w*$)", "", printable(str(value)))
