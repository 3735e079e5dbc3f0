"""The tables of a report, independent of their format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from callbacks.baselines import MEANING, NAMES, is_below
from commands.reports.bootstrap import RESAMPLES
from commands.reports.compare import Comparisons, asked_of
from commands.reports.loaded_runs import AVERAGE, MEANS, Run, measures
from commands.reports.seed_differences import seed_differences
from commands.reports.seeds import group_by_seed
from commands.reports.table import NULL_RESULT, BelowBlind, Cell, Table, null_result
from zoo.benchmarks.free_answers import TITLES

# what others need to repeat a test: options of model and data, and entries of metrics.json
ANSWERING = ("max_new_tokens", "repetition_penalty", "sampling")
SHOWN = ("frames_as", "pixels", "image_pixels", "still_resize", "system_prompt", "prompt_prefix", "prompt_wording")
RECORDED = ("step", "max_steps", "training_versions", "commit", "is_clean", "versions", "protocol")
OPTIONAL = ("Perturbation", "Objectives", "Augmentation", "Initial weights")  # settings that a table without any hides


def tables(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """Build all tables of a report."""
    over = [*over_seeds(runs), *seed_differences(runs)]
    measured = [*by_test_set(runs), *over, *captions(runs), *differences(runs, comparisons)]
    return [*measured, settings(runs), reproduction(runs)]


def by_test_set(runs: Sequence[Run]) -> list[Table]:
    """Build the tables of scores and of means, those of tests with other questions apart."""
    sets: dict[object, list[Run]] = {}
    for run in runs:
        asked = asked_of(run) or str({kind: each["count"] for kind, each in run.metrics["per_question_type"].items()})
        sets.setdefault(asked, []).append(run)
    found = []
    for place, own in enumerate(sets.values(), 1):
        which = f"; test set {place} of {len(sets)}: {own[0].metrics['counts']['questions']} questions"
        for table in (scores(own), means(own)):
            found.append(replace(table, title=f"{table.title}{which}") if len(sets) > 1 else table)
    return found


def scores(runs: Sequence[Run]) -> Table:
    """Build the benchmark's results table, of the question types that a run was asked, with their average."""
    asked = [name for name in runs[0].benchmark.columns if any(run.score(name) is not None for run in runs)]
    columns = (*asked, AVERAGE)
    rows = [(run.name, *_marked(run, columns)) for run in runs]
    return _with_blind("Scores by question type (%)", ("Run", *columns), rows, runs, columns)


def means(runs: Sequence[Run]) -> Table:
    """Build the table of means: accuracy of multiple-choice questions, MRA of numeric ones, and both."""
    counts = ("questions", "failed", "unparsable")
    known = [name for name in MEANS if any(run.score(name) is not None for run in runs)]
    rows = [(run.name, *_marked(run, known), *map(run.metrics.get("counts", {}).get, counts)) for run in runs]
    headings = ("Run", *known, *map(str.capitalize, counts))
    return _with_blind("Means over questions (micro) and over question types (macro), %", headings, rows, runs, known)


def _marked(run: Run, measured: Sequence[str]) -> Iterator[Cell]:
    """Yield the scores of a run, those below the best blind baseline marked."""
    for measure in measured:
        score = run.score(measure)
        below = is_below(score, (run.blind(name, measure) for name in NAMES))
        yield BelowBlind(score) if score is not None and below else score


def _with_blind(
    title: str, headings: tuple[str, ...], rows: list[tuple[Cell, ...]], runs: Sequence[Run], measured: Sequence[str]
) -> Table:
    """Build a table with the blind baselines below the runs; those of tests that differ name their runs."""
    has_marks = any(isinstance(cell, BelowBlind) for row in rows for cell in row)
    for name, title_of in NAMES.items():
        tests: dict[tuple[Cell, ...], list[str]] = {}
        for run in runs:
            cells: tuple[Cell, ...] = tuple(run.blind(name, measure) for measure in measured)
            if any(cell is not None for cell in cells):
                tests.setdefault(cells, []).append(run.name)
        for cells, of in tests.items():
            label = title_of if len(of) == len(runs) else f"{title_of} ({', '.join(of)})"
            rows.append((label, *cells, *[None] * (len(headings) - 1 - len(cells))))
    return Table(f"{title}; {MEANING}" if has_marks else title, headings, tuple(rows))


def captions(runs: Sequence[Run]) -> list[Table]:
    """Build the table of caption metrics, of benchmarks with free answers alone."""
    found = [run.metrics.get("captions", {}) for run in runs]
    names = [name for name in TITLES if any(name in own for own in found)]
    rows = tuple((r.name, *map(own.get, names), own.get("tokenizer")) for r, own in zip(runs, found, strict=True))
    headings = ("Run", *(TITLES[name] for name in names), "Tokenizer")
    return [Table("Caption metrics, times 100", headings, rows)] if names else []


def over_seeds(runs: Sequence[Run]) -> list[Table]:
    """Average the runs that differ in the seed alone: in all measures if they are one group, else in two means."""
    groups = group_by_seed(runs)
    chosen = measures(runs[0].benchmark) if len(groups) == 1 else ("All micro", "All macro")
    rows = [
        (", ".join(run.name for run in group), measure, fmean(scored), min(scored), max(scored), len(scored))
        for group in groups
        for measure in chosen
        if (scored := [score for run in group if (score := run.score(measure)) is not None])
    ]
    headings = ("Runs", "Measure", "Mean", "Least", "Greatest", "Count")
    return [Table("Scores of runs that differ in the seed alone (%)", headings, tuple(rows))] if rows else []


def differences(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """Compare each run with the first that has answers: in all measures if it is one pair, else in the means of all."""
    base = first_answered(runs)
    pairs = {pair[1]: found for pair, found in comparisons.pairs.items() if pair[0] == base}
    if base is None or not pairs:
        return []
    chosen = measures(runs[base].benchmark) if len(pairs) == 1 else ("All micro", "All macro")
    rows = tuple(
        (runs[place].name, measure, each.value, each.by_question, each.by_scene, null_result(each.by_scene))
        for place, found in pairs.items()
        for measure in chosen
        if (each := found.get(measure))
    )
    title = (
        f"Differences from {runs[base].name} on the same questions, in points; 95 % intervals of a paired bootstrap, "
        f"{RESAMPLES:,} resamples of questions or of scenes; what a null result could have shown"
    )
    headings = ("Run", "Measure", "Difference", "By question", "By scene", NULL_RESULT)
    return [Table(title, headings, rows, signed=True).without_duplicate("By question", "By scene")]


def first_answered(runs: Sequence[Run]) -> int | None:
    """Return the index of the first run with answers: the base of the comparisons."""
    return next((place for place, run in enumerate(runs) if run.answers), None)


def settings(runs: Sequence[Run]) -> Table:
    """Build the table of settings."""
    rows = [_settings(run) for run in runs]
    names = [name for name in rows[0] if name not in OPTIONAL or any(row[name] for row in rows)]
    return Table("Settings", tuple(names), tuple(tuple(row[name] for name in names) for row in rows))


def reproduction(runs: Sequence[Run]) -> Table:
    """Build the table of what else others need to repeat the tests: a column per run."""
    each = [
        {
            **{name: run.setting("model", name) for name in ANSWERING},
            **{name: run.setting("data", name) for name in SHOWN},
            **{name: run.setting("trainer", name) for name in ("precision",)},
            **{name: run.metrics.get(name) for name in RECORDED},
        }
        for run in runs
    ]
    names = [name for name in each[0] if any(found[name] is not None for found in each)]
    rows = tuple((name.capitalize().replace("_", " "), *(spell(own.get(name)) for own in each)) for name in names)
    return Table("Reproduction", ("Setting", *(run.name for run in runs)), rows)


def _settings(run: Run) -> dict[str, Cell]:
    """Return the settings of the test."""

    def data(name: str) -> str:
        return spell(run.setting("data", name))

    def part(name: str) -> str:
        return spell(run.setting("model", name))

    frames = run.setting("data", "num_frames")
    return {
        "Run": run.name,
        "Model": _class(run.setting("model")),
        "Data": _class(run.setting("data", "source")),
        "Frames": frames if isinstance(frames, int) else spell(frames),
        "Sampler": data("sampler"),
        "Frame pairing": data("frame_pairing"),
        "Perturbation": data("perturbation"),
        "Camera encoding": part("camera_encoding"),
        "View mixer": part("view_mixer"),
        "Fusion": part("fusion"),
        "Geometry": run.metrics.get("geometry") or "",
        "Camera source": part("camera_source"),
        "Time index": part("time_index"),
        "Objectives": part("objectives"),
        "Augmentation": data("augmentation"),
        "Initial weights": part("initial_weights"),
        "Weights": str(run.setting("model", "backbone", "path") or _class(run.setting("model", "backbone"))),
        "Checkpoint": _checkpoint(run),
        "Fingerprint": run.weights or "",
        "Scorer": run.metrics["scorer"],
    }


def _class(part: Any) -> str:
    """Return the class name of a part of a config; "" without one."""
    return str(part.get("class_path") or "").rpartition(".")[2] if isinstance(part, Mapping) else ""


def _checkpoint(run: Run) -> str:
    """Return the tested checkpoint's path, relative to the run's folder if it lies there."""
    path = str(run.metrics.get("checkpoint") or "")
    folder = os.path.abspath(str(run.setting("trainer", "default_root_dir") or run.folder))
    return os.path.relpath(path, folder) if os.path.abspath(path).startswith(folder + os.sep) and path else path


def spell(part: Any) -> str:
    """Return a short text for a part of a config, such as `PRoPE(ChannelRange(0.0, 0.5), first)`; "" for null."""
    if isinstance(part, Mapping):
        if "class_path" not in part:
            return ", ".join(f"{key} {spell(value)}" for key, value in part.items() if value is not None)
        options = part.get("init_args")
        values = options.values() if isinstance(options, Mapping) else ()
        arguments = [spell(value) for value in values if value is not None]
        return f"{_class(part)}({', '.join(arguments)})" if arguments else _class(part)
    if isinstance(part, list):
        return f"[{', '.join(map(spell, part))}]"
    return "" if part is None else str(part)
