"""Add the scores of oracles, and hits, to the results of a study on panel rooms, without training or rendering.

The rooms are drawn again from their seeds. The best constant answer must score as the results say. Otherwise the
questions have changed since, and nothing is added. A task whose cameras or panels change has a new `version`, and its
former results can't be completed this way. Tests with camera errors are taken to show all frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from commands.parser import build, command_parser, parse
from commands.studies.results import Questions, Result, Results, decompress, rounded_hits, rounded_scores
from commands.studies.study_file import Options, as_words
from datamodules.perturbations import Perturbation, wrong_poses
from datamodules.scenes import Question, Scene
from datamodules.sources import PanelRooms
from datamodules.sources.base import ORACLE, POSSIBLE, ChangePoses, Split
from datamodules.sources.rooms.panel_oracles import Posteriors
from evaluation.baselines import MOST_SCENES, constant_baseline, evenly, hit_test, oracle_scores, rule_scores
from zoo.benchmarks import Benchmark
from zoo.files.atomic_io import json_lines, write_whole

SOURCE, PERTURBATION = "data.source", "data.perturbation"
Scores = dict[str, dict[str, float]]  # of each baseline by measure


def add_oracles(results: Results) -> Iterator[str]:
    """Write the oracles' scores into a study's own file of results.

    Args:
        results: The results of the study. They are changed as well.

    Yields:
        A remark for each kind of rooms that the results are about.
    """
    found: dict[tuple[str, str], Oracles | None] = {}
    for number, result in enumerate(results.own):
        every = {**result.options, **result.test_options}
        options = {name: value for name, value in every.items() if name.startswith((SOURCE, PERTURBATION))}
        key = json.dumps(options), result.questions
        if key not in found:
            made = _oracles(options, results.questions[result.questions])
            is_same = made is not None and made.scores.get("constant") == result.baselines.get("constant")
            found[key] = made if is_same else None
            yield f"{key[0]}: {_describe(made) if made and is_same else 'no panel rooms, or they have changed since'}"
        if (own := found[key]) is not None:  # former oracles are replaced
            kept = {name: each for name, each in result.baselines.items() if not name.startswith((ORACLE, POSSIBLE))}
            hits = own.hits(decompress(result.predictions)) if result.predictions else {}
            results.own[number] = replace(result, baselines={**kept, **own.scores}, hits=hits)
    lines: dict[object, Questions | Result] = {}
    for number, result in enumerate(results.own):  # questions come before the first result that names them
        lines |= {result.questions: results.questions[result.questions], number: result}
    write_whole(results.path, json_lines(map(asdict, lines.values())))


class Oracles(NamedTuple):
    """What oracles of panel rooms score, and what is needed to compare answers with exact rules.

    Attributes:
        scores: The scores of the oracles and of the best constant.
        exact: What each exact rule knows, by scene. Empty with camera errors, of which the rules know those.
        shown: The questions with their scenes.
        records: The questions as records.
        questions: Their order in the results, and their scorer.
        benchmark: Their benchmark.
    """

    scores: Scores
    exact: Mapping[str, Posteriors]
    shown: Sequence[tuple[Scene, Question]]
    records: Sequence[Mapping[str, Any]]
    questions: Questions
    benchmark: Benchmark

    def hits(self, predictions: Sequence[str]) -> dict[str, list[float]]:
        """Return the hits of answers in the order of the questions, see `Result.hits`."""
        answers = dict(zip(self.questions.ids, predictions, strict=True))
        records = [{**each, "prediction": answers[each["id"]]} for each in self.records]
        found = hit_test(self.exact, self.shown, records, self.benchmark, self.questions.scorer)
        return {rule: rounded_hits(each) for rule, each in found.items()}


def _oracles(options: Options, questions: Questions) -> Oracles | None:
    """Return the oracles for questions about panel rooms. None for others."""
    if str(options.get(f"{SOURCE}.class_path")).rpartition(".")[2] != PanelRooms.__name__:
        return None
    source, change_poses = _build(options)
    training = [source.drawn("train", index) for index in evenly(range(source.counts["train"]), MOST_SCENES)]
    tested = [source.drawn(*_place(scene), change_poses) for scene in dict.fromkeys(questions.scenes)]
    asked, shown = (
        [(scene, question) for scene, *_ in rows for question in scene.questions] for rows in (training, tested)
    )
    records = [vars(question) for _, question in shown if question.id in questions.ids]
    about = records, source.benchmark, questions.scorer
    scores = constant_baseline(*about).scores
    exact = {scene.name: source.task.posteriors(room, video) for scene, room, video in tested}
    scores |= rule_scores(exact, shown, *about)
    knowledge = {scene.name: source.task.oracles(room, video) for scene, room, video in (*training, *tested)}
    scores |= oracle_scores(knowledge, asked, shown, *about)
    rounded = {name: rounded_scores(each) for name, each in scores.items()}
    return Oracles(rounded, {} if change_poses else exact, shown, records, questions, source.benchmark)


def _build(options: Options) -> tuple[PanelRooms, ChangePoses | None]:
    """Build the rooms that the options describe, and what makes the wrong poses of a test with camera errors."""
    parser = command_parser("study", None)
    parser.add_argument(f"--{SOURCE}", type=PanelRooms)
    parser.add_argument(f"--{PERTURBATION}", type=Perturbation | None, default=None)
    names = {name.removesuffix(".class_path"): value for name, value in options.items()}
    ordered = dict(sorted(names.items(), key=lambda pair: pair[0].count(".")))  # a class comes before its options
    data = build(parser, parse(parser, as_words(ordered))).data
    return data.source, wrong_poses(data.perturbation, {})


def _place(scene: str) -> tuple[Split, int]:
    """Return split and index of a rendered scene, such as panels/test_00012."""
    split, _, index = scene.rpartition("/")[2].rpartition("_")
    return split, int(index)  # type: ignore[return-value]


def _describe(oracles: Oracles) -> str:
    return ", ".join(f"{name} {next(iter(each.values())):.3f}" for name, each in oracles.scores.items())
