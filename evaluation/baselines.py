"""Blind baselines and oracles: scores of a test's questions without their videos.

Blind baselines are the best constant, the text alone and the cameras alone. Text and cameras answer as learned from the
training questions. Questions about the camera's own motion need no training (`Benchmark.answers_from_cameras`). Oracles
answer from the exact geometry of rendered scenes: blind ones lack something that a model needs, such as the pixel,
others show what is possible. Where the distribution of the answers is known, they are exact (`SceneSource.posteriors`).
Otherwise they are fitted (`SceneSource.oracles`). All are scored in the same way as the test's answers. Of the
perturbations, only `CameraErrors` affect them: oracles then answer from the wrong cameras of the test.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from itertools import combinations
from math import fsum
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int

from datamodules.cameras_file import read_cameras_alone
from datamodules.scenes import Question, Scene
from datamodules.sources.base import ORACLE, POSSIBLE, ChangePoses, QuestionFilter, SceneSource
from zoo.benchmarks import Benchmark
from zoo.benchmarks.scorers import THRESHOLDS, to_float
from zoo.errors import SCENE_FAULTS, describe_fault
from zoo.progress import progress

BELOW = "<"
MEANING = f"{BELOW} below the best blind baseline or oracle"
NAMES = {"constant": "best constant answer", "text": "text alone", "cameras": "cameras alone"}
SAME = 1e-6  # smaller differences come from the order of a sum or from float32


def blind_only(baselines: Mapping[str, float | None]) -> dict[str, float]:
    """Return the scores that a model should exceed: without oracles that lack nothing, and without absent scores."""
    return {name: own for name, own in baselines.items() if own is not None and not name.startswith(POSSIBLE)}


def is_below(score: float | None, baselines: Mapping[str, float | None]) -> bool:
    """Return whether a score is below some blind baseline or oracle. None is no score."""
    return score is not None and any(score < own - SAME for own in blind_only(baselines).values())


def is_above(score: float, baselines: Mapping[str, float | None]) -> bool:
    """Return whether a score is above all blind baselines and oracles."""
    return all(score > own + SAME for own in blind_only(baselines).values())


def verdict(score: float | None, baselines: Mapping[str, float | None]) -> str:
    """Return a sentence that says whether a score is above all blind baselines and oracles. "" without oracles.

    Example:
        >>> verdict(0.7, {"constant": 0.4, "oracle: pose without pixel": 0.75, "possible: pose and pixel": 1.0})
        '0.700 is not above oracle: pose without pixel 0.750'
        >>> verdict(0.8, {"constant": 0.4, "oracle: pose without pixel": 0.75})
        '0.800 in this training is above the best blind baseline or oracle, oracle: pose without pixel 0.750'
    """
    blind = blind_only(baselines)
    if score is None or not any(name.startswith(ORACLE) for name in blind):
        return ""
    if not is_above(score, blind):
        named = (f"{NAMES.get(name, name)} {own:.3f}" for name, own in blind.items() if score <= own + SAME)
        return f"{score:.3f} is not above {', '.join(named)}"
    best = max(blind, key=lambda name: blind[name])
    remark = f"{NAMES.get(best, best)} {blind[best]:.3f}"
    return f"{score:.3f} in this training is above the best blind baseline or oracle, {remark}"


# ---- The best constant answer, chosen on the test's own answers: an upper bound for all constants -------------------

MOST_TEXTS = 10  # number of the most frequent free answers to try
ROUNDING = 1e-5  # relative; larger than the rounding of a written constant and of float32 scorers


def best_constant(truths: Sequence[str], question_type: str, benchmark: Benchmark, scorer: str) -> str:
    """Return the answer that scores best when it is given to all questions.

    Args:
        truths: The right answers to questions of one type, at least one.
        question_type: The type.
        benchmark: The benchmark of the questions.
        scorer: Name of the benchmark's scorer.

    Example:
        >>> from zoo.benchmarks import VSIBench
        >>> benchmark = VSIBench()
        >>> best_constant(["2", "2", "9"], min(benchmark.numeric_types), benchmark, "spatial_mllm")
        '2'
    """
    truths = sorted(truths)  # so that ties do not depend on the order of the questions
    counts = Counter(truths)
    best, best_score = "", -1.0
    is_numeric = question_type in benchmark.numeric_types
    for candidate, bound in _number_candidates(truths) if is_numeric else _text_candidates(truths):
        if bound <= best_score + SAME:
            break
        score = sum(n * benchmark.score(candidate, truth, question_type, scorer) for truth, n in counts.items())
        if score > best_score + SAME:
            best, best_score = candidate, score
    return best


def _text_candidates(truths: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield the most frequent accepted answers, each with a bound of its summed score."""
    accepted = Counter(answer for truth in truths for answer in truth.split("\n"))
    for answer, _ in accepted.most_common(MOST_TEXTS):
        yield answer, float(len(truths))


def _number_candidates(truths: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield numbers by descending bound of their summed mean relative accuracy. Right answers come first among equals.

    Each right answer has one interval per threshold, and a number scores a tenth for each interval that contains it.
    The best number is therefore a right answer, an end of an interval, or between two neighboring ends.
    """
    parsed = np.array([number for truth in truths if (number := to_float(truth)) is not None])
    numbers = parsed[np.isfinite(parsed)]
    widths = np.outer(abs(numbers), 1 - THRESHOLDS)
    ends = np.unique([numbers[:, None] - widths, numbers[:, None] + widths])
    candidates = np.unique(np.concatenate([numbers, ends, (ends[1:] + ends[:-1]) / 2]))
    slack = ROUNDING * abs(numbers)[:, None]
    starts, stops = (np.sort((numbers[:, None] + sign * (widths + slack)).ravel()) for sign in (-1, 1))
    covered = np.searchsorted(starts, candidates, "right") - np.searchsorted(stops, candidates, "left")
    for place in np.lexsort([~np.isin(candidates, numbers), -covered]):
        yield f"{candidates[place]:.6g}", covered[place] / len(THRESHOLDS)


# ---- Answers from the text of a question alone, learned from the training questions ---------------------------------

LEAST_ANSWERS = 5  # smallest number of training answers to a question or about an object that is used
Key = tuple[str, str]  # a question type, and a text or a word, or "" for all questions of the type


class TextAnswers:
    """Answer a question from the answers to training questions of its type.

    For numbers and free texts, this is the best constant among the answers to the same question. If there are too few,
    it is for numbers the geometric mean of the constants of the named objects, and otherwise the constant of the type.
    For a choice it is the option that was right most often where it was offered, or without options the most frequent
    letter.

    Args:
        questions: Training questions. Questions of other types or without an answer are ignored.
        benchmark: The benchmark of the questions.
        scorer: Name of the benchmark's scorer.
    """

    def __init__(self, questions: Iterable[Question], benchmark: Benchmark, scorer: str) -> None:
        self.benchmark = benchmark
        self._answers: dict[Key, list[str]] = defaultdict(list)
        self._right, self._offered = Counter[Key](), Counter[Key]()
        for question in questions:
            kind = question.question_type
            if kind not in benchmark.question_types or not is_answer(question, benchmark):
                continue
            for part in {"", question.question, *(_words(question) if kind in benchmark.numeric_types else ())}:
                self._answers[kind, part].append(question.ground_truth)
            for letter, option in options_of(question).items():
                self._offered[kind, option] += 1
                self._right[kind, option] += letter == question.ground_truth
        self._constant = cache(lambda key: best_constant(self._answers[key], key[0], benchmark, scorer))

    def __call__(self, question: Question) -> str | None:
        """Return the answer, or None for a type without training questions."""
        kind = question.question_type
        if (kind, "") not in self._answers:
            return None
        if options := options_of(question):
            letters = Counter(self._answers[kind, ""])
            return max(options, key=lambda letter: (self._rate(kind, options[letter], len(options)), letters[letter]))
        if self._count(kind, question.question) >= LEAST_ANSWERS:
            return str(self._constant((kind, question.question)))
        if named := [word for word in _words(question) if self._names_object(kind, word)]:
            numbers = [abs(float(self._constant((kind, word)))) for word in named]
            return f"{np.exp(np.mean(np.log(np.maximum(numbers, 1e-6)))):.4g}"
        return str(self._constant((kind, "")))

    def _rate(self, kind: str, option: str, num_options: int) -> float:
        """Return how often an option was right where it was offered, plus one occurrence at chance level."""
        return (self._right[kind, option] + 1) / (self._offered[kind, option] + num_options)

    def _names_object(self, kind: str, word: str) -> bool:
        """Return whether some training questions contain a word, but not most: the template's words occur in most."""
        return LEAST_ANSWERS <= self._count(kind, word) <= self._count(kind, "") / 2

    def _count(self, kind: str, part: str) -> int:
        return len(self._answers.get((kind, part), ()))


def options_of(question: Question) -> dict[str, str]:
    """Return the text of each option by its letter."""
    split = (option.partition(".") for option in question.options)
    return {letter.strip(): text.strip().lower() for letter, _, text in split}


def is_answer(question: Question, benchmark: Benchmark) -> bool:
    """Return whether a question has an answer. For a numeric type it must be a number."""
    truth = question.ground_truth
    return bool(truth) and (question.question_type not in benchmark.numeric_types or to_float(truth) is not None)


def _words(question: Question) -> set[str]:
    return set(re.findall(r"\w+", question.question.lower()))


# ---- Answers from the cameras alone: numbers that describe a path, and regressions on them --------------------------

FRAMES = 8  # number of evenly spread frames that are compared in pairs
SMALLEST_M = 1e-3  # lower bound of lengths before the logarithm
PAIRS = tuple(zip(*combinations(range(FRAMES), 2), strict=True))


def describe_path(
    world_to_camera: Float[np.ndarray, "T 4 4"], K_normalized: Float[np.ndarray, "T 3 3"]
) -> Float64[np.ndarray, " F"] | None:
    """Describe a camera path by lengths, extents, pairwise distances and angles. Lengths are logarithms of meters.

    The features are: the length of the path; its extents and spreads along its principal axes; distance and angle of
    each pair of `FRAMES` evenly spread frames, and their places and viewing directions in the first camera's frame; the
    mean of the focal lengths' logarithms and of the principal points over all frames.

    Args:
        world_to_camera: Poses of all frames of the video, OpenCV axes. Poses that aren't finite are left out.
        K_normalized: Intrinsics of these frames, see `zoo.cameras.normalize_intrinsics`.

    Returns:
        The features, or None for a path without a pose.
    """
    poses = np.asarray(world_to_camera, np.float64)
    valid = np.isfinite(poses).all((1, 2))
    poses, K = poses[valid], np.asarray(K_normalized, np.float64)[valid]
    if not len(poses):
        return None
    # 1. The whole path.
    camera_to_world = np.linalg.inv(poses)
    centers = camera_to_world[:, :3, 3]
    centered = centers - centers.mean(0)
    spreads, axes = np.linalg.eigh(centered.T @ centered / len(centered))
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    lengths = [steps.sum(), *np.ptp(centered @ axes, axis=0), *np.sqrt(np.maximum(spreads, 0))]
    # 2. Some of its frames, relative to the first.
    chosen = np.linspace(0, len(poses) - 1, FRAMES).round().astype(int)
    from_first = poses[0] @ camera_to_world[chosen]
    places, directions = from_first[:, :3, 3], from_first[:, :3, 2]
    first, second = PAIRS
    distances = np.linalg.norm(places[list(first)] - places[list(second)], axis=1)
    angles = np.arccos(np.clip((directions[list(first)] * directions[list(second)]).sum(1), -1, 1))
    logarithms = np.log(np.maximum([*lengths, *distances], SMALLEST_M))
    # 3. The field of view.
    intrinsics = [*np.log(K[:, (0, 1), (0, 1)]).mean(0), *K[:, :2, 2].mean(0)]
    return np.concatenate([logarithms, angles, places[1:].ravel(), directions[1:].ravel(), intrinsics])


PENALTIES = 10.0 ** np.arange(-2, 7)  # on the squared coefficients of standardized features
Predict = Callable[[Float[np.ndarray, "M F"]], np.ndarray]


def least_squares(features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N K"]) -> Predict:
    """Fit by ridge regression. The penalty has the least leave-one-out error."""
    mean, spread = features.mean(0), np.maximum(features.std(0), 1e-9)
    standardized, offset = (features - mean) / spread, targets.mean(0)
    values, axes = np.linalg.eigh(standardized.T @ standardized)
    rotated = standardized @ axes
    projected = rotated.T @ (targets - offset)

    def error(penalty: float) -> float:
        weights = 1 / (np.maximum(values, 0) + penalty)
        residuals = targets - offset - rotated @ (weights[:, None] * projected)
        own = 1 / len(features) + (rotated**2) @ weights  # influence of a row on its own prediction
        return float(np.square(residuals / np.maximum(1 - own, 1e-9)[:, None]).sum())

    penalty = min(PENALTIES.tolist(), key=error)
    coefficients = axes @ (projected / (np.maximum(values, 0) + penalty)[:, None])
    return lambda rows: (rows - mean) / spread @ coefficients + offset


def nearest_neighbors(features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N K"], count: int) -> Predict:
    """Answer by the median of numbers (K = 1), or the mean of classes, of the rows with the nearest features.

    Args:
        features: Features of the rows. They are standardized.
        targets: Numbers, or one column per class.
        count: Number of neighbors.
    """
    mean, spread = features.mean(0), np.maximum(features.std(0), 1e-9)
    known = (features - mean) / spread
    combine = np.median if targets.shape[1] == 1 else np.mean

    def predict(rows: Float[np.ndarray, "M F"]) -> np.ndarray:
        distances = [np.square(known - row).sum(1) for row in (rows - mean) / spread]
        return np.stack([combine(targets[np.argsort(own, kind="stable")[:count]], axis=0) for own in distances])

    return predict


def has_boosting() -> bool:
    """Return whether gradient boosting is installed. Older environments may lack it."""
    return find_spec("sklearn") is not None


def boosted_numbers(features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, " N"]) -> Predict:
    """Fit numbers by gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # slow to import, and few commands need it

    return HistGradientBoostingRegressor(random_state=0).fit(features, targets).predict


def boosted_classes(features: Float[np.ndarray, "N F"], classes: Int[np.ndarray, " N"]) -> Predict:
    """Fit the probability of each class by gradient boosting. All of at least two classes must occur."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=0).fit(features, classes).predict_proba


Fit = Callable[[Float[np.ndarray, "N F"], Float[np.ndarray, "N K"]], Predict]
LINEAR: Mapping[str, Fit] = {"least squares": least_squares}
NEIGHBORS: Mapping[str, Fit] = {
    f"{count} nearest neighbors": partial(nearest_neighbors, count=count) for count in (5, 20)
}
Row = TypeVar("Row")
LEAST_ROWS = 20  # smallest number of training questions of a type whose scenes have cameras
MOST_ROWS = 10_000  # more rows take longer and change little
MOST_CLASSES = 20


class Asked(NamedTuple):
    """A question, and the description of its scene's camera path, or what an oracle knows about the scene."""

    question: Question
    path: Float[np.ndarray, " F"]


def camera_answers(
    training: Sequence[Asked],
    tested: Sequence[Asked],
    kind: str,
    benchmark: Benchmark,
    fits: Mapping[str, Fit] = LINEAR,
) -> dict[str, dict[str, str]]:
    """Answer questions of a type from numbers that describe their scenes, such as the camera paths.

    Numbers are fitted as logarithms if all are positive, and clipped to the range of the training answers. For multiple
    choice, the probability of each option is fitted: by its text if few options occur, otherwise by its letter.

    Args:
        training: Training questions of the type.
        tested: Test questions of the type. Numbers that are unknown (NaN) are replaced by their mean in training.
        kind: The question type.
        benchmark: The benchmark of the questions.
        fits: Methods beside gradient boosting.

    Returns:
        {method: {id of a tested question: answer}}. Empty for free answers, with few training questions, or if all
        training answers are the same.
    """
    rows = evenly([row for row in training if is_answer(row.question, benchmark)], MOST_ROWS)
    if len(rows) < LEAST_ROWS or not tested or kind in benchmark.text_types:
        return {}
    typical = _stack_paths(rows).mean(0)
    known = [Asked(question, np.where(np.isnan(path), typical, path)) for question, path in tested]
    fit = _fit_numbers if kind in benchmark.numeric_types else _fit_choices
    return fit(rows, known, fits)


def _fit_numbers(rows: Sequence[Asked], tested: Sequence[Asked], fits: Mapping[str, Fit]) -> dict[str, dict[str, str]]:
    truths, (paths, shown) = (
        np.array([float(row.question.ground_truth) for row in rows]),
        map(_stack_paths, (rows, tested)),
    )
    if (truths == truths[0]).all():
        return {}
    takes_logarithm = bool((truths > 0).all())
    targets = np.log(truths) if takes_logarithm else truths
    found = {name: fit(paths, targets[:, None])(shown)[:, 0] for name, fit in fits.items()}
    if has_boosting():
        found["gradient boosting"] = boosted_numbers(paths, targets)(shown)
    answers = {}
    for method, predicted in found.items():
        kept = np.clip(predicted, targets.min(), targets.max())
        numbers = np.exp(kept) if takes_logarithm else kept
        answers[method] = {asked.question.id: f"{n:.4g}" for asked, n in zip(tested, numbers.tolist(), strict=True)}
    return answers


def _fit_choices(rows: Sequence[Asked], tested: Sequence[Asked], fits: Mapping[str, Fit]) -> dict[str, dict[str, str]]:
    label = _option_text if _has_few_options(rows) else _letter
    right = [label(row.question, row.question.ground_truth) for row in rows]
    classes = sorted(set(right))
    if len(classes) < 2:
        return {}
    numbers = np.array([classes.index(own) for own in right])
    paths, shown = map(_stack_paths, (rows, tested))
    found = {name: fit(paths, np.eye(len(classes))[numbers])(shown) for name, fit in fits.items()}
    if has_boosting():
        found["gradient boosting"] = boosted_classes(paths, numbers)(shown)
    return {method: _best_options(tested, classes, label, each) for method, each in found.items()}


def _best_options(
    tested: Sequence[Asked],
    classes: Sequence[str],
    label: Callable[[Question, str], str],
    probabilities: Float[np.ndarray, "M K"],
) -> dict[str, str]:
    """Return the most probable letter among each question's options, or among all letters without options."""
    answers = {}
    for (question, _), own in zip(tested, probabilities.tolist(), strict=True):
        probability: Mapping[str, float] = dict(zip(classes, own, strict=True))
        letters = list(options_of(question)) or list(classes)
        shares = [probability.get(label(question, letter), -1.0) for letter in letters]
        answers[question.id] = letters[int(np.argmax(shares))]
    return answers


def _has_few_options(rows: Sequence[Asked]) -> bool:
    """Return whether few different options occur in all questions, such as left and right."""
    texts = Counter(text for row in rows for text in options_of(row.question).values())
    return all(row.question.options for row in rows) and len(texts) <= MOST_CLASSES


def _option_text(question: Question, letter: str) -> str:
    return options_of(question).get(letter, letter)


def _letter(question: Question, letter: str) -> str:
    return letter


def _stack_paths(rows: Sequence[Asked]) -> Float[np.ndarray, "N F"]:
    return np.stack([row.path for row in rows])


# ---- All baselines of a test ----------------------------------------------------------------------------------------

MOST_SCENES, MOST_QUESTIONS = 2_000, 50_000  # from the training split, evenly spread; more change little
Answers = Mapping[str, str]  # answers by the questions' ids
Record = Mapping[str, Any]  # record of a question, see `zoo.metrics.with_scores`


@dataclass(frozen=True)
class BlindBaselines:
    """The baselines of a test.

    Attributes:
        scores: For each baseline, the result of `Benchmark.aggregate`. `constant` also has its `answers` by type, and
            an exact rule the test's `hits`, see `hit_test`. If a baseline has no answer to some types, means that
            include these types are None.
        remarks: Why a baseline is missing or limited.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def constant_baseline(records: Sequence[Record], benchmark: Benchmark, scorer: str) -> BlindBaselines:
    """Return the best constant per question type, chosen on the test's answers. Empty without scored answers."""
    constants = {}
    for kind in benchmark.question_types:
        if truths := [record["ground_truth"] for record in records if record["question_type"] == kind]:
            constants[kind] = best_constant(truths, kind, benchmark, scorer)
    answers = {record["id"]: constants[record["question_type"]] for record in records}
    scores = _score(answers, records, benchmark, scorer)
    return BlindBaselines({"constant": {**scores, "answers": constants}} if records else {})


def blind_baselines(
    records: Sequence[Record],
    scenes: Sequence[Scene],
    source: SceneSource,
    scorer: str,
    change_poses: ChangePoses | None = None,
) -> BlindBaselines:
    """Return all baselines of a test.

    Args:
        records: The scored answers.
        scenes: The test's scenes with all questions.
        source: Lists the training scenes.
        scorer: Name of the benchmark's scorer.
        change_poses: Makes the test's wrong poses, from which its oracles answer. None keeps the true ones.
    """
    benchmark, scored = source.benchmark, {record["id"] for record in records}
    found = constant_baseline(records, benchmark, scorer)
    tested = [(scene, question) for scene in scenes for question in scene.questions if question.id in scored]
    training, reason = [], "no training question of the test's types"
    try:
        training = list(training_questions(source, {question.question_type for _, question in tested}))
    except SCENE_FAULTS as error:  # such as a benchmark without a training split
        reason = describe_fault(error)
    try:
        if training:
            by_text = TextAnswers((question for _, question in training), benchmark, scorer)
            answers = {question.id: answer for _, question in tested if (answer := by_text(question)) is not None}
            found.scores["text"] = _score(answers, records, benchmark, scorer)
        cameras = _score(_answer_by_cameras(training, tested, records, benchmark, scorer), records, benchmark, scorer)
        if cameras["per_question_type"]:
            found.scores["cameras"] = cameras
        if not training:
            found.remarks.append(f"no blind baselines of {_absent(found)}: {reason}")
            return found
        if "cameras" not in found.scores:
            needed = (
                f"no question type has {LEAST_ROWS} training questions and a test question whose scenes have cameras"
            )
            found.remarks.append(f"no blind baseline of cameras: {needed}")
        elif not has_boosting():
            found.remarks.append("cameras alone by least squares: pip install scikit-learn for gradient boosting")
    except SCENE_FAULTS as error:  # keep the scores of the test
        found.remarks.append(f"no blind baselines of {_absent(found)}: {describe_fault(error)}")
        return found
    try:
        rows = {scene.name: (scene, None) for scene, _ in training} | {s.name: (s, change_poses) for s, _ in tested}
        known = ((name, source.oracles(*row)) for name, row in progress(rows.items(), "oracles", "scenes"))
        knowledge = dict(known)
        exact = {scene.name: source.posteriors(scene, change_poses) for scene, _ in tested}
        found.scores.update(rule_scores(exact, tested, records, benchmark, scorer))
        if change_poses is None:
            for name, hits in hit_test(exact, tested, records, benchmark, scorer).items():
                found.scores[name]["hits"] = hits
        found.scores.update(oracle_scores(knowledge, training, tested, records, benchmark, scorer))
    except SCENE_FAULTS as error:
        found.remarks.append(f"no oracles: {describe_fault(error)}")
    return found


def _absent(found: BlindBaselines) -> str:
    return " and ".join(name for name in ("text", "cameras") if name not in found.scores)


def oracle_scores(
    knowledge: Mapping[str, Mapping[str, Sequence[float]]],
    training: Sequence[tuple[Scene, Question]],
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[Record],
    benchmark: Benchmark,
    scorer: str,
) -> dict[str, dict[str, Any]]:
    """Return the score of each oracle, which answers by nearest neighbors or boosting, whichever scores better.

    Args:
        knowledge: What each oracle knows, by scene and by the oracle's name, see `SceneSource.oracles`.
        training: Training questions with their scenes.
        tested: The test's questions with their scenes.
        records: The test's records, with `id`, `question_type` and `ground_truth`.
        benchmark: The benchmark of the questions.
        scorer: Name of the benchmark's scorer.
    """
    scores = {}
    for oracle in dict.fromkeys(name for known in knowledge.values() for name in known):
        numbers = {scene: np.array(known[oracle]) for scene, known in knowledge.items() if oracle in known}
        answers = _answer_by(numbers, training, tested, records, benchmark, scorer, NEIGHBORS)
        if answers:
            scores[oracle] = _score(answers, records, benchmark, scorer)
    return scores


Posteriors = Mapping[str, Mapping[str, Mapping[str, float]]]  # by scene, rule and answer


def rule_scores(
    posteriors: Posteriors,
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[Record],
    benchmark: Benchmark,
    scorer: str,
) -> dict[str, dict[str, Any]]:
    """Return the score of each exact rule, which gives the possible answer with the best expected score.

    The errors in degrees are those of the possible answer with the least expected error.

    Args:
        posteriors: The probability of each answer, see `SceneSource.posteriors`.
        tested: The test's questions with their scenes.
        records: The test's records, with `id`, `question_type` and `ground_truth`.
        benchmark: The benchmark of the questions.
        scorer: Name of the benchmark's scorer.
    """

    @cache
    def gain(kind: str, answer: str, truth: str) -> float:
        return benchmark.score(answer, truth, kind, scorer)

    @cache
    def loss(kind: str, answer: str, truth: str) -> float:
        return -(benchmark.degrees_off(answer, truth, kind, scorer) or 0.0)

    scores: dict[str, dict[str, Any]] = {}
    for rule in dict.fromkeys(name for own in posteriors.values() for name in own):
        known = [(q, own) for scene, q in tested if (own := posteriors[scene.name].get(rule))]
        answers: dict[str, str] = {}
        nearest: dict[str, str] = {}
        for kind in {question.question_type for question, _ in known}:
            asked = {question.id: likely for question, likely in known if question.question_type == kind}
            answers |= _best(asked, partial(gain, kind))
            if kind in benchmark.angle_types:
                nearest |= _best(asked, partial(loss, kind))
        scores[rule] = _score(answers, records, benchmark, scorer, nearest)
    return scores


def _best(posteriors: Mapping[str, Mapping[str, float]], gain: Callable[[str, str], float]) -> dict[str, str]:
    """Return the possible answer to each question that has the greatest expected gain.

    Args:
        posteriors: The probability of each answer, by the question's id.
        gain: The gain by an answer, if another is right.
    """
    every = sorted({answer for likely in posteriors.values() for answer in likely})
    place = {answer: number for number, answer in enumerate(every)}
    gains = np.array([[gain(answer, truth) for truth in every] for answer in every])
    found = {}
    for id, likely in posteriors.items():
        own = [place[answer] for answer in likely]
        expected = gains[np.ix_(own, own)] @ np.array([*likely.values()])
        found[id] = every[own[int(expected.round(9).argmax())]]
    return found


def hit_test(
    posteriors: Posteriors,
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[Record],
    benchmark: Benchmark,
    scorer: str,
) -> dict[str, dict[str, float]]:
    """Return whether a test's answers are right more often than what each exact rule knows permits.

    For each question, the test is 1 over the probability that the given answer is right, if it is right, and otherwise
    0. Whoever answers from what a rule knows has a mean of at most 1. A mean well above 1 shows that the answers used
    more. A mean of at most 1 shows nothing. Answers that can't be parsed are wrong.

    Args:
        posteriors: The probability of each answer, see `SceneSource.posteriors`.
        tested: The test's questions with their scenes.
        records: The test's records, with `id`, `question_type`, `ground_truth` and `prediction`.
        benchmark: The benchmark of the questions.
        scorer: Name of the benchmark's scorer.

    Returns:
        For each rule the `mean` and its `standard_error`.
    """
    scenes = {question.id: scene.name for scene, question in tested}
    values: dict[str, list[float]] = {}
    for record in records:
        prediction = "" if record.get("error") else record["prediction"]

        def is_hit(truth: str, prediction: str = prediction, record: Record = record) -> bool:
            return benchmark.is_hit(prediction, truth, record["question_type"], scorer)

        right = is_hit(record["ground_truth"])
        for rule, likely in posteriors.get(scenes.get(record["id"], ""), {}).items():
            chance = sum(own for truth, own in likely.items() if is_hit(truth)) if right else 1.0
            values.setdefault(rule, []).append(right / chance if chance else math.inf)
    return {
        rule: {"mean": float(np.mean(own)), "standard_error": float(np.std(own, ddof=1) / len(own) ** 0.5)}
        for rule, own in values.items()
        if len(own) > 1
    }


def evenly(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """Return at most `most` rows, evenly spread."""
    return rows[:: max(1, -(-len(rows) // most))]


def training_questions(source: SceneSource, kinds: Iterable[str]) -> Iterator[tuple[Scene, Question]]:
    """Yield training questions of some types with their scenes, without the test's filters."""
    kinds, scenes = set(kinds), evenly(source.filtered_split("train", QuestionFilter()).scenes, MOST_SCENES)
    step = max(1, -(-sum(len(scene.questions) for scene in scenes) // MOST_QUESTIONS))
    for place, scene in enumerate(scenes):  # vary the first question, because questions may be ordered by type
        some = scene.questions[place % step :: step]
        yield from ((scene, question) for question in some if question.question_type in kinds)


def _answer_by_cameras(
    training: Sequence[tuple[Scene, Question]],
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[Record],
    benchmark: Benchmark,
    scorer: str,
) -> dict[str, str]:
    """Return the answers from the cameras alone, computed or learned, whichever scores better."""
    computes = any(question.question_type in benchmark.camera_types for _, question in tested)
    if not computes and not all(any(scene.cameras for scene, _ in rows) for rows in (training, tested)):
        return {}
    computed = _compute_from_cameras(tested, benchmark) if computes else {}
    scenes = {scene.name: scene for scene, _ in (*training, *tested)} if training else {}
    described = (
        (name, _describe_cameras(scene)) for name, scene in progress(scenes.items(), "cameras alone", "scenes")
    )
    paths = {name: path for name, path in described if path is not None}
    return _answer_by(paths, training, tested, records, benchmark, scorer, LINEAR, computed)


def _compute_from_cameras(tested: Sequence[tuple[Scene, Question]], benchmark: Benchmark) -> dict[str, dict[str, str]]:
    """Return the answers of each method of `Benchmark.answers_from_cameras`, by the questions' ids."""
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    poses: dict[str, Any] = {}
    for scene, question in tested:
        kind = question.question_type
        if scene.cameras is None or kind not in benchmark.camera_types:
            continue
        if scene.name not in poses:
            read = _read_cameras(scene)
            poses[scene.name] = None if read is None else read[0]
        if poses[scene.name] is not None:
            asked = (kind, question.question, question.options, poses[scene.name])
            for method, answer in benchmark.answers_from_cameras(*asked).items():
                answers[method][question.id] = answer
    return answers


def _answer_by(
    known: Mapping[str, Float[np.ndarray, " F"]],
    training: Sequence[tuple[Scene, Question]],
    tested: Sequence[tuple[Scene, Question]],
    records: Sequence[Record],
    benchmark: Benchmark,
    scorer: str,
    fits: Mapping[str, Fit],
    computed: Mapping[str, Answers] | None = None,
) -> dict[str, str]:
    """Return the answers from numbers by scene. For each type the method with the best test score is used.

    `computed` holds the answers of further methods.
    """
    answers: dict[str, str] = {}
    for kind in dict.fromkeys(question.question_type for _, question in tested):
        fitted, asked = (
            [Asked(q, known[scene.name]) for scene, q in rows if q.question_type == kind and scene.name in known]
            for rows in (training, tested)
        )
        own = [record for record in records if record["question_type"] == kind]
        methods = camera_answers(fitted, asked, kind, benchmark, fits)
        ids = {record["id"] for record in own}
        methods |= {name: {id: found[id] for id in found if id in ids} for name, found in (computed or {}).items()}
        means = {name: _mean(found, own, benchmark, scorer) for name, found in methods.items()}
        if means:
            answers |= methods[max(means, key=lambda name: means[name])]
    return answers


def _describe_cameras(scene: Scene) -> Any:
    """Return the description of a scene's cameras, or None without readable cameras."""
    cameras = _read_cameras(scene)
    return None if cameras is None else describe_path(*cameras)


def _read_cameras(scene: Scene) -> tuple[np.ndarray, np.ndarray] | None:
    """Return poses and intrinsics of all frames of a scene, or None without readable cameras."""
    if scene.cameras is None:
        return None
    try:
        world_to_camera, K = read_cameras_alone(scene.cameras)
    except (OSError, ValueError):
        return None  # treat it as a scene without cameras
    return world_to_camera.numpy(), K.numpy()


def _score(
    answers: Answers, records: Sequence[Record], benchmark: Benchmark, scorer: str, nearest: Answers | None = None
) -> dict[str, Any]:
    """Aggregate the scores of answers over the types in which every question has an answer.

    Errors in degrees are those of the answers, or of `nearest`.
    """
    by_type: dict[str, list[float | None]] = {}
    for record in records:
        by_type.setdefault(record["question_type"], []).append(_score_of(answers, record, benchmark, scorer))
    covered = {kind: [each for each in own if each is not None] for kind, own in by_type.items() if None not in own}
    degrees: dict[str, list[float]] = {}
    for record in records:
        if (kind := record["question_type"]) in covered and kind in benchmark.angle_types:
            answer = (nearest or answers)[record["id"]]
            error = benchmark.degrees_off(answer, record["ground_truth"], kind, scorer)
            degrees.setdefault(kind, []).append(math.nan if error is None else error)
    result = benchmark.aggregate(covered, scorer, degrees)
    for group, kinds in benchmark.groups.items():
        if (by_type.keys() - covered.keys()) & set(kinds):
            result[group] = {"micro": None, "macro": None}
    return result


def _score_of(answers: Answers, record: Record, benchmark: Benchmark, scorer: str) -> float | None:
    answer = answers.get(record["id"])
    return None if answer is None else benchmark.score(answer, record["ground_truth"], record["question_type"], scorer)


def _mean(answers: Answers, records: Sequence[Record], benchmark: Benchmark, scorer: str) -> float:
    """Return the mean score. A question without an answer scores 0."""
    return fsum(_score_of(answers, record, benchmark, scorer) or 0.0 for record in records) / max(1, len(records))
