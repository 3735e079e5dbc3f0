"""Plots of settings: scores as dots in rows, with a line over the seeds; answers against truths; learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluation.baselines import NAMES
from zoo.files.atomic_io import replace_file

Errors = Float64[np.ndarray, "N 2"]  # the truth of each question and its answer, NaN for none
Rows = Mapping[str, Mapping[str, Sequence[float]]]  # by row, then by series: one score per seed
COLORS = ("#b2182b", "#2166ac", "#1b7837", "#994f00", "#762a83", "#787878", "#008b8b")
MARKERS = ("o", "s", "^", "D", "v", "P")  # of the series, where colors are of families
STYLES = (  # of the baselines and oracles
    *("--", ":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2))),
    *((0, (8, 2)), (0, (2, 4)), (0, (8, 2, 2, 2)), (0, (12, 3)), (0, (1, 1, 4, 1))),
)
LINES = ("-", "--", ":", "-.")  # of the settings' errors, which are thus told apart without colors
ROW, HEAD = 0.27, 0.5  # heights in inches: one row; a panel's title with its margins


def draw(
    panels: Mapping[str, Rows],
    baselines: Mapping[str, Mapping[str, float]],
    label: str,
    output: Path | BytesIO,
    families: Mapping[str, str] | None = None,
) -> None:
    """Draw the rows that have scores, in 0..1: one panel below the other, the first one on top.

    Args:
        panels: Rows by the panel's title; a row has one score per seed, by series.
        baselines: The scores of blind baselines for each series, by name: vertical lines in the panels that have it.
        label: The name of the score.
        output: The PNG file, or an open one.
        families: The family of each row, such as the place where an encoding acts: rows of a family have one color,
            and the series of a panel differ by their markers. None colors the series.
    """
    panels = {title: {name: row for name, row in rows.items() if any(row.values())} for title, rows in panels.items()}
    panels = {title: rows for title, rows in panels.items() if rows} or {"not measured yet": {}}
    measured = {each: None for rows in panels.values() for row in rows.values() for each in row if row[each]}
    names = [name for rows in panels.values() for name in rows]
    kinds = dict.fromkeys(families.get(name, "other") for name in names) if families else measured
    colors = dict(zip(kinds, cycle(COLORS), strict=False))
    series_of = [{each for row in rows.values() for each in row if row[each]} for rows in panels.values()]
    has_markers = families is not None and max(map(len, series_of)) > 1
    markers = dict(zip(measured, cycle(MARKERS if has_markers else MARKERS[:1]), strict=False))
    styles = dict(zip(baselines, cycle(STYLES), strict=False))
    heights = [HEAD + ROW * len(rows) for rows in panels.values()]
    figure = Figure(figsize=(11, 1.4 + sum(heights)), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        shown = [each for each in measured if any(row.get(each) for row in rows.values())]
        for number, each in enumerate(shown):
            shift = min(0.2, 0.8 / len(shown)) * (number - (len(shown) - 1) / 2)
            for place, (name, row) in enumerate(rows.items()):
                if not (scores := row.get(each)):
                    continue
                color = colors[families.get(name, "other") if families else each]
                axis.hlines(place + shift, min(scores), max(scores), color, linewidth=2.5)
                mean = statistics.mean(scores)
                axis.scatter(mean, place + shift, s=36, color=color, marker=markers[each], zorder=3)
            for baseline, own in baselines.items():
                if each in own:
                    color = "black" if families else colors[each]
                    axis.axvline(own[each], color=color, linestyle=styles[baseline], linewidth=1)
        axis.set(yticks=range(len(rows)), yticklabels=rows, ylim=(max(1, len(rows)) - 0.5, -0.5), xlim=(0, 1))
        axis.set_xticks([tenth / 10 for tenth in range(11)])
        axis.tick_params(labelbottom=True, length=0)
        axis.grid(axis="x", color="#e1e1e1")
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[-1].set_xlabel(label)
    dots = [
        Line2D([], [], color=color, marker="o", linestyle="", label=kind or label) for kind, color in colors.items()
    ]
    if has_markers:
        dots += [Line2D([], [], color="black", marker=m, linestyle="", label=each) for each, m in markers.items()]
    lines = [
        Line2D([], [], color="black", linestyle=styles[name], label=NAMES.get(name, name))
        for name, own in baselines.items()
        if own
    ]
    if measured:
        figure.legend(handles=[*dots, *lines], loc="outside upper center", ncols=4)
    if isinstance(output, Path):
        replace_file(output, lambda file: figure.savefig(file, format="png"))
    else:
        figure.savefig(output, format="png")


def draw_errors(answers: Mapping[str, Mapping[str, Errors]], output: BytesIO) -> None:
    """Draw the numeric answers of each question type against the truth, and how large their errors are.

    The right panel has the share of questions whose error is at most as large. Answers without a number count, so that
    the line stays below 1. The answers' axis ends at twice the largest truth.

    Args:
        answers: Truths and answers by question type, then by setting.
        output: The open PNG file.
    """
    figure = Figure(figsize=(11, 0.5 + 3.2 * len(answers)), dpi=100, layout="constrained")
    axes = figure.subplots(len(answers), 2, squeeze=False)
    for (kind, settings), (scatter, shares) in zip(answers.items(), axes, strict=True):
        most = 2 * max(float(np.abs(own[:, 0]).max(initial=1e-9)) for own in settings.values())
        scatter.axline((0, 0), slope=1, color="black", linewidth=1)
        styles = zip(cycle(COLORS), cycle(MARKERS), cycle(LINES), strict=False)
        for (name, own), (color, marker, line) in zip(settings.items(), styles, strict=False):
            scatter.scatter(*own.T, s=14, color=color, marker=marker, alpha=0.4, linewidths=0, label=name)
            errors = np.sort(np.abs(own[:, 1] - own[:, 0]))  # NaN last
            shares.step(errors, np.arange(1, len(own) + 1) / max(1, len(own)), color=color, linestyle=line, label=name)
        low = min(0.0, *(float(own[:, 0].min(initial=0)) for own in settings.values()))
        scatter.set(xlim=(low, most / 2), ylim=(2 * low, most), xlabel="truth", ylabel="answer")
        shares.set(xlim=(0, most / 2), ylim=(0, 1), xlabel="error, in the unit of the question")
        shares.set_ylabel("share of questions")
        scatter.set_title(kind, loc="left", fontsize=11, fontweight="bold")
        for axis in (scatter, shares):
            axis.grid(color="#e1e1e1")
            axis.set_axisbelow(True)
        shares.legend(fontsize=9, loc="lower right")
    figure.savefig(output, format="png")


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[Sequence[int | float]]]], threshold: float | None, label: str, output: Path
) -> None:
    """Draw learning curves: one panel per setting, with a line per seed.

    Args:
        curves: For each setting, the pairs of a step and a score of each seed.
        threshold: A score at which to draw a line. None draws none.
        label: The name of the score.
        output: The PNG file.
    """
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(11, 0.5 + 2 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (name, own) in zip(axes.flat, curves.items(), strict=False):
        axis.set_title(name, fontsize=9)
        for curve, color in zip(own, cycle(COLORS), strict=False):
            steps, scores = zip(*curve, strict=True)
            axis.plot(steps, scores, color=color, linewidth=1.2)
        if threshold is not None:
            axis.axhline(threshold, color="black", linestyle=":", linewidth=1)
        axis.set(ylim=(0, 1))
        axis.grid(color="#e1e1e1")
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel(label, fontsize=9)
    replace_file(output, lambda file: figure.savefig(file, format="png"))
