"""python main.py between: what the difference of two evaluations is made of.

    python main.py between protocol_spatial_mllm.yaml protocol_lmms_eval.yaml
    python main.py between protocol_vg_llm.yaml protocol_lmms_eval.yaml --run runs/VGLLM-test-20261125-012048
    python main.py between protocol_vg_llm.yaml protocol_lmms_eval.yaml --options "--data.subset 200"

lists the parts of an evaluation in which two configs differ (frames, sizes, prompts, positions, lengths of answers,
scorer), tests a run by the first config, with each of the parts switched to the second one's alone, and with all of
them. The table has the change of the score (all questions, macro) with its 95 % interval over scenes, and how many
answers and scores changed. What is left between the sum of the single changes and all together is their interaction.
The tests are in the output folder; an interrupted command goes on. A scorer is switched without a test, and a part that
--options sets not at all.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float

from callbacks.baselines import NAMES
from callbacks.configs import find_config, read_settings
from commands.parser import command_parser, parse
from commands.reports.bootstrap import intervals, observed
from commands.reports.loaded_runs import Run, load_run, measures, newest_test
from commands.runs import CONFIG, newest_run
from commands.studies.processes import Launch, main_py
from commands.studies.sections import table
from commands.studies.switches import SCORER, config_of_parts, differing_parts, is_set, parts_of
from zoo.errors import InputError
from zoo.files.atomic_io import write_whole
from zoo.files.fingerprint import file_fingerprint
from zoo.metrics import with_scores
from zoo.versions import zoo_version
from zoo.weights.saved_models import LAST_CHECKPOINT, config_of

HEADLINE = "All macro"
ROUNDING = 1e-6  # of a score in float32
ALL, FIRST = "all together", "first"
LOG, WARNING = "log.txt", "warning: "
RULE = "All macro is the mean over question types, a group of types as one by the mean of its types, for every scorer."
LEGEND = """\
an effect: the interval excludes 0. not shown: scores changed, and the interval holds 0; an effect within it may exist.
other words, the same scores: no score changed. no effect: every answer is the same text."""


class Effect(NamedTuple):
    """What switching a part changes.

    Attributes:
        change: Of the score, in 0..1.
        interval: 95 %, over scenes.
        answers: Number of answers that are other texts.
        scores: Number of answers with another score.
    """

    change: float
    interval: tuple[float, float]
    answers: int
    scores: int

    @property
    def verdict(self) -> str:
        """Whether the switch changes the score."""
        if not (self.answers or self.scores):
            return "no effect"
        if not self.scores:
            return "other words, the same scores"
        low, high = self.interval
        return "not shown" if low <= 0 <= high else "an effect"


def between(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `between`.

    Raises:
        InputError: A config is absent, they differ in nothing, in weights or in questions, or a test has failed.
    """
    parser = command_parser("between", __doc__)
    parser.add_argument("first", type=str, help="a protocol, or the config of a run")
    parser.add_argument("second", type=str, help="another one")
    parser.add_argument(
        "--run",
        type=str | None,
        default=None,
        help="the run to test, or a test of released weights; null is the newest run",
    )
    parser.add_argument("--options", type=str, default="", help="further options of each test, in quotes")
    parser.add_argument(
        "--output", type=str | None, default=None, help="folder of the tests; null is runs/between/<name>"
    )
    asked = parse(parser, arguments)
    run = Path(asked.run) if asked.run else newest_run()
    files = [find_config(name) for name in (asked.first, asked.second)]
    first, second = (read_settings(file) for file in files)
    fixed = shlex.split(asked.options)
    parts = differing_parts(first, second, config_of(run), fixed)
    names = [file.parent.name if file.name == CONFIG else file.stem.removeprefix("protocol_") for file in files]
    output = Path(asked.output or f"runs/between/{run.name}/{'-and-'.join(names)}")
    print(f"{run}: {' and '.join(names)} differ in {', '.join(parts)}", flush=True)
    if same := [name for name in parts_of(first) if is_set(name, fixed)]:
        print(f"the same in all tests, by --options: {', '.join(same)}", flush=True)

    stated = {**parts_of(first), **{name: each["first"] for name, each in parts.items()}}
    switched = {name: {name: each["second"]} for name, each in parts.items() if name != SCORER}
    everything = {name: each["second"] for name, each in parts.items()}
    plan = {FIRST: {}, **switched, ALL: everything}
    tests = {
        name: run_test(output / re.sub(r"\W+", "-", name), run, config_of_parts({**stated, **changes}), asked.options)
        for name, changes in plan.items()
    }
    text = report(tests, parts, names)
    write_whole(output / "between.md", text)
    print(f"{text}\nwritten: {output / 'between.md'}")


def run_test(folder: Path, run: Path, config: Mapping[str, Any], options: str) -> Run:
    """Test a run by a config, unless the folder holds this test by this version of the code; remove another one.

    Raises:
        InputError: The test has failed; names its log.
    """
    file, text = folder / "protocol_switched.yaml", yaml.safe_dump(dict(config), sort_keys=False)
    checkpoint = run / LAST_CHECKPOINT  # a test of released weights has none
    weights = ("--ckpt_path", str(checkpoint)) if checkpoint.exists() else ()
    words = ("test", "--config", str(run / CONFIG), "--config", str(file), *shlex.split(options), *weights)
    words = (*words, "--trainer.default_root_dir", str(folder))
    asked, tested = folder / "command.txt", f"{shlex.join(words)}\n{text}# code {zoo_version()}\n"
    if weights:
        tested += f"# weights {file_fingerprint(checkpoint)}\n"
    is_there = asked.exists() and asked.read_text(encoding="utf-8") == tested
    if file.exists() and not is_there:
        shutil.rmtree(folder)
    if newest_test(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
        write_whole(asked, tested)  # before the test, so that an interrupted one goes on
        print(f"testing {folder}", flush=True)
        if (error := main_py(folder / LOG, Launch(), *words)) is not None:
            raise InputError(f"{folder}: {error}")
    return load_run(newest_test(folder) or folder, folder.name)


def report(tests: Mapping[str, Run], parts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the table of the effects, in Markdown.

    Args:
        tests: By the parts that are switched.
        parts: Those parts, each with its two settings.
        names: Of the two evaluations.
    """
    base = tests[FIRST]
    effects = {name: effect(base, run.scores, run) for name, run in tests.items() if name not in (FIRST, ALL)}
    if SCORER in parts:
        scorer = base.benchmark.find_scorer(parts[SCORER]["second"])
        effects[SCORER] = effect(base, rescored(base, scorer), base)
    together = effect(base, tests[ALL].scores, tests[ALL])
    single = sum(each.change for each in effects.values())
    rows = [
        [f"`{name}`", _shown(parts[name]["first"]), _shown(parts[name]["second"]), *_cells(each)]
        for name, each in effects.items()
    ]
    rows.append([ALL, "", "", *_cells(together)])
    rows.append(["of it interaction", "", "", f"{100 * (together.change - single):+.1f}", "", "", "", ""])
    changes = ["change of the score", "95 % interval", "answers changed", "scores changed", "verdict"]
    score = headline(base, np.array([[base.scores[answer.id]] for answer in base.answers]))
    both = [f"{100 * each:.1f} by {name}" for each, name in zip((score, score + together.change), names, strict=True)]
    blind = [(text, base.blind(name, HEADLINE)) for name, text in NAMES.items()]
    intro = [f"Of {len(base.answers)} questions, {HEADLINE}: {', '.join(both)}"]
    intro += [f"{text} {100 * value:.1f}" for text, value in blind if value is not None]
    warned = [
        f"{name}: {failed} of {len(run.answers)} questions failed and score 0, see {run.folder / LOG}"
        for name, run in tests.items()
        if (failed := sum(bool(answer.error) for answer in run.answers))
    ]
    warnings = {name: warnings_of(run.folder / LOG) for name, run in tests.items()}
    warned += [
        f"{name}: {lines[0]} ({len(lines)} such lines in {tests[name].folder / LOG})"
        for name, lines in warnings.items()
        if lines and (name == FIRST or lines != warnings[FIRST])
    ]
    return "\n\n".join([f"{'; '.join(intro)}.", table(["option", *names, *changes], rows), RULE, LEGEND, *warned])


def warnings_of(log: Path) -> list[str]:
    """Return the warnings in the log of a test, each once."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return list(dict.fromkeys(line for line in lines if line.startswith(WARNING)))


def rescored(run: Run, scorer: str) -> dict[str, float]:
    """Return the scores of a run's answers by another scorer."""
    return {record["id"]: record["score"] for record in with_scores(map(vars, run.answers), run.benchmark, scorer)}


def effect(base: Run, scores: Mapping[str, float], run: Run) -> Effect:
    """Return what differs between a test and the first one.

    Raises:
        InputError: They asked other questions.
    """
    if scores.keys() != base.scores.keys():
        raise InputError(f"{run.folder} asked other questions than {base.folder}: test both anew")
    asked, benchmark = base.answers, base.benchmark
    texts = {answer.id: answer.prediction for answer in run.answers}
    difference = np.array([[scores[answer.id] - base.scores[answer.id]] for answer in asked])
    kinds, scenes = [answer.question_type for answer in asked], [answer.scene for answer in asked]
    row = measures(benchmark).index(HEADLINE)
    bounds = intervals(difference, kinds, scenes, benchmark)[:, row, 0]
    return Effect(
        headline(base, difference),
        (float(bounds[0]), float(bounds[1])),
        sum(texts[answer.id] != answer.prediction for answer in asked),
        int((abs(difference) > ROUNDING).sum()),
    )


def headline(run: Run, scores: Float[np.ndarray, "Q 1"]) -> float:
    """Return the mean of scores of a run's questions, by the one rule of this table, whatever the scorer's own."""
    kinds = [answer.question_type for answer in run.answers]
    return float(observed(scores, kinds, run.benchmark)[measures(run.benchmark).index(HEADLINE), 0])


def _cells(each: Effect) -> Sequence[str]:
    low, high = (100 * bound for bound in each.interval)
    return [
        f"{100 * each.change:+.1f}",
        f"{low:+.1f} to {high:+.1f}",
        str(each.answers),
        str(each.scores),
        each.verdict,
    ]


def _shown(setting: Any) -> str:
    """Return a setting in one line: of a part, its class and options."""
    if isinstance(setting, Mapping):
        own = dict(setting.get("init_args") or {}) if "class_path" in setting else dict(setting)
        text = ", ".join(f"{key} {value}" for key, value in own.items() if value is not None)
        return f"{str(setting.get('class_path', '')).rpartition('.')[2]} {text}".strip()
    return "null" if setting is None else str(setting) or '""'
