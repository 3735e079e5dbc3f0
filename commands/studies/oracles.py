"""Add the scores of oracles to the results of a study on panel rooms, without training or rendering anything.

The rooms are drawn again from their seeds. The best constant answer must score as the results say. Otherwise the rooms
have changed since, and nothing is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

from callbacks.baselines import MOST_SCENES, constant_baseline, evenly, oracle_scores
from commands.parser import build, command_parser, parse
from commands.studies.results import Questions, Results, rounded_scores
from commands.studies.study_file import Options, as_words
from datamodules.sources import PanelRooms, SceneSource
from datamodules.sources.base import Split
from zoo.files.atomic_io import json_lines, write_whole

SOURCE = "data.source"
Scores = dict[str, dict[str, float]]  # of each baseline by measure


def add_oracles(results: Results) -> Iterator[str]:
    """Write the oracles' scores into a study's own file of results.

    Args:
        results: The results of the study. They are changed as well.

    Yields:
        A remark for each kind of rooms that the results are about.
    """
    found: dict[tuple[str, str], Scores] = {}
    for number, result in enumerate(results.own):
        options = {name: value for name, value in {**result.options, **result.test_options}.items() if SOURCE in name}
        key = json.dumps(options), result.questions
        if key not in found:
            found[key] = _score(options, results.questions[result.questions])
            is_same = found[key].get("constant") == result.baselines.get("constant")
            yield f"{key[0]}: {_describe(found[key]) if is_same else 'no panel rooms, or they have changed since'}"
            if not is_same:
                found[key] = {}
        results.own[number] = replace(result, baselines={**result.baselines, **found[key]})
    used = dict.fromkeys(result.questions for result in results.own)
    lines = [asdict(each) for each in [*(results.questions[key] for key in used), *results.own]]
    write_whole(results.path, json_lines(lines))


def _score(options: Options, questions: Questions) -> Scores:
    """Return the scores of the oracles and of the best constant, for questions about panel rooms. Otherwise {}."""
    source = _build(options)
    if not isinstance(source, PanelRooms):
        return {}
    training = [source.drawn_oracles("train", index) for index in evenly(range(source.counts["train"]), MOST_SCENES)]
    tested = [source.drawn_oracles(*_place(scene)) for scene in dict.fromkeys(questions.scenes)]
    asked, shown = (
        [(scene, question) for scene, _ in rows for question in scene.questions] for rows in (training, tested)
    )
    records = [vars(question) for _, question in shown if question.id in questions.ids]
    knowledge = {scene.name: known for scene, known in (*training, *tested)}
    scores = constant_baseline(records, source.benchmark, questions.scorer).scores
    scores |= oracle_scores(knowledge, asked, shown, records, source.benchmark, questions.scorer)
    return {name: rounded_scores(each) for name, each in scores.items()}


def _build(options: Options) -> SceneSource:
    """Build the dataset that the options name."""
    parser = command_parser("study", None)
    parser.add_argument(f"--{SOURCE}", type=SceneSource)
    names = {name.removesuffix(".class_path"): value for name, value in options.items()}
    ordered = dict(sorted(names.items(), key=lambda pair: pair[0].count(".")))  # a class comes before its options
    source: SceneSource = build(parser, parse(parser, as_words(ordered))).data.source
    return source


def _place(scene: str) -> tuple[Split, int]:
    """Return split and index of a rendered scene, such as panels/test_00012."""
    split, _, index = scene.rpartition("/")[2].rpartition("_")
    return split, int(index)  # type: ignore[return-value]


def _describe(scores: Scores) -> str:
    return ", ".join(f"{name} {next(iter(each.values())):.3f}" for name, each in scores.items())
