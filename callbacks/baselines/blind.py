"""The blind baselines of a test, scored as its answers are.

They read the test's questions and cameras as they are, whatever a perturbation shows to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from callbacks.baselines.camera_path import describe_path
from callbacks.baselines.cameras import LEAST_ROWS, Asked, camera_answers
from callbacks.baselines.constant import best_constant
from callbacks.baselines.regression import has_boosting
from callbacks.baselines.text import TextAnswers
from datamodules.cameras_file import read_cameras_alone
from datamodules.scenes import Question, Scene
from datamodules.sources.base import QuestionFilter, SceneSource
from zoo.benchmarks import Benchmark
from zoo.errors import SCENE_FAULTS, describe_fault
from zoo.metrics import ScoredAnswer
from zoo.progress import progress

MOST_SCENES, MOST_QUESTIONS = 2_000, 50_000  # of the training, evenly spread: more cost time and change little
BY_ID = Mapping[str, str]  # answers


@dataclass(frozen=True)
class BlindBaselines:
    """The baselines of a test.

    Attributes:
        scores: Of each baseline what `Benchmark.aggregate` returns; the `constant` also has its `answers` by type.
            A baseline that has no answer to some types has no mean that covers them.
        remarks: Why a baseline is absent or not what it could be.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def constant_baseline(records: Sequence[ScoredAnswer], benchmark: Benchmark, scorer: str) -> BlindBaselines:
    """Return the best constant per question type, all that the answers alone permit; empty without scored answers."""
    constants = {}
    for kind in benchmark.question_types:
        if truths := [record.ground_truth or "" for record in records if record.question_type == kind]:
            constants[kind] = best_constant(truths, kind, benchmark, scorer)
    answers = {record.id: constants[record.question_type] for record in records}
    scores = _score(answers, records, benchmark, scorer)
    return BlindBaselines({"constant": {**scores, "answers": constants}} if records else {})


def blind_baselines(
    records: Sequence[ScoredAnswer], scenes: Sequence[Scene], source: SceneSource, scorer: str
) -> BlindBaselines:
    """Return all baselines of a test.

    Args:
        records: The scored answers.
        scenes: The test's scenes with all questions.
        source: Lists the training scenes.
        scorer: Name of the benchmark's scorer.
    """
    benchmark, scored = source.benchmark, {record.id for record in records}
    found = constant_baseline(records, benchmark, scorer)
    tested = [(scene, question) for scene in scenes for question in scene.questions if question.id in scored]
    try:
        training = list(_training(source, {question.question_type for _, question in tested}))
        if not training:
            found.remarks.append("no blind baselines of text and cameras: no training question of the test's types")
            return found
        by_text = TextAnswers((question for _, question in training), benchmark, scorer)
        answers = {question.id: answer for _, question in tested if (answer := by_text(question)) is not None}
        found.scores["text"] = _score(answers, records, benchmark, scorer)
        cameras = _score(_by_cameras(training, tested, records, benchmark, scorer), records, benchmark, scorer)
        if cameras["per_question_type"]:
            found.scores["cameras"] = cameras
            if not has_boosting():
                found.remarks.append("cameras alone by least squares: pip install scikit-learn for gradient boosting")
        else:
            needed = (
                f"no question type has {LEAST_ROWS} training questions and a test question whose scenes have cameras"
            )
            found.remarks.append(f"no blind baseline of cameras: {needed}")
    except SCENE_FAULTS as error:  # no reason to lose the scores of a test
        absent = " and ".join(name for name in ("text", "cameras") if name not in found.scores)
        found.remarks.append(f"no blind baselines of {absent}: {describe_fault(error)}")
    return found


def _training(source: SceneSource, kinds: Iterable[str]) -> Iterator[tuple[Scene, Question]]:
    """Yield training questions of some types with their scenes, whatever the test's filters leave out."""
    kinds, scenes = set(kinds), source.filtered_split("train", QuestionFilter()).scenes
    scenes = scenes[:: max(1, -(-len(scenes) // MOST_SCENES))]
    step = max(1, -(-sum(len(scene.questions) for scene in scenes) // MOST_QUESTIONS))
    for place, scene in enumerate(scenes):  # from another question each time: their order may be that of their types
        some = scene.questions[place % step :: step]
        yield from ((scene, question) for question in some if question.question_type in kinds)


def _by_cameras(
    training: Sequence[tuple[Scene, Question]],
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[ScoredAnswer],
    benchmark: Benchmark,
    scorer: str,
) -> dict[str, str]:
    """Return the answers by the cameras alone: of each type those of the method that scores better on the test."""
    if not all(any(scene.cameras for scene, _ in rows) for rows in (training, tested)):
        return {}
    scenes = {scene.name: scene for scene, _ in (*training, *tested)}
    described = ((name, _path(scene)) for name, scene in progress(scenes.items(), "cameras alone", "scenes"))
    paths = {name: path for name, path in described if path is not None}
    answers: dict[str, str] = {}
    for kind in dict.fromkeys(question.question_type for _, question in tested):
        fitted, asked = (
            [Asked(q, paths[scene.name]) for scene, q in rows if q.question_type == kind and scene.name in paths]
            for rows in (training, tested)
        )
        own = [record for record in records if record.question_type == kind]
        methods = camera_answers(fitted, asked, kind, benchmark)
        means = {name: _mean(found, own, benchmark, scorer) for name, found in methods.items()}
        if means:
            answers |= methods[max(means, key=lambda name: means[name])]
    return answers


def _path(scene: Scene) -> Any:
    """Return the description of a scene's cameras; None without readable ones."""
    if scene.cameras is None:
        return None
    try:
        return describe_path(*(each.numpy() for each in read_cameras_alone(scene.cameras)))
    except (OSError, ValueError):
        return None  # as of a scene without cameras


def _score(answers: BY_ID, records: Sequence[ScoredAnswer], benchmark: Benchmark, scorer: str) -> dict[str, Any]:
    """Aggregate the scores of answers, of the types of which every question has one."""
    by_type: dict[str, list[float | None]] = {}
    for record in records:
        by_type.setdefault(record.question_type, []).append(_score_of(answers, record, benchmark, scorer))
    covered = {kind: [each for each in own if each is not None] for kind, own in by_type.items() if None not in own}
    result = benchmark.aggregate(covered, scorer)
    for group, kinds in benchmark.groups.items():
        if (by_type.keys() - covered.keys()) & set(kinds):
            result[group] = {"micro": None, "macro": None}
    return result


def _score_of(answers: BY_ID, record: ScoredAnswer, benchmark: Benchmark, scorer: str) -> float | None:
    answer = answers.get(record.id)
    return None if answer is None else benchmark.score(answer, record.ground_truth or "", record.question_type, scorer)


def _mean(answers: BY_ID, records: Sequence[ScoredAnswer], benchmark: Benchmark, scorer: str) -> float:
    """Return the mean score, where a question without an answer scores 0."""
    return fsum(_score_of(answers, record, benchmark, scorer) or 0.0 for record in records) / max(1, len(records))
