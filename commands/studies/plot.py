"""A plot of a study: scores as dots in rows, with a line from the least to the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from callbacks.baselines import NAMES
from zoo.files.atomic_io import replace_file

Rows = Mapping[str, Mapping[str, Sequence[float]]]  # by row, then by series: one score per seed
COLORS = ("#b2182b", "#2166ac", "#1b7837", "#994f00", "#762a83", "#787878", "#008b8b")
LINES = {"constant": "--", "text": ":", "cameras": "-."}  # of the blind baselines
ROW, HEAD = 0.27, 0.5  # heights in inches: one row; a group's title with its margins


def draw(groups: Mapping[str, Rows], blind: Mapping[str, Mapping[str, float]], label: str, output: Path) -> None:
    """Draw the rows that have scores, in 0..1, in one panel per group.

    Args:
        groups: Rows by the group's title.
        blind: The scores of blind baselines for each series, by name: vertical lines in the panels that have it.
        label: The name of the score.
        output: The PNG file.
    """
    groups = {title: {name: row for name, row in rows.items() if any(row.values())} for title, rows in groups.items()}
    groups = {title: rows for title, rows in groups.items() if rows} or {"not measured yet": {}}
    measured = {each: None for rows in groups.values() for row in rows.values() for each in row if row[each]}
    colors = {each: COLORS[number % len(COLORS)] for number, each in enumerate(measured)}
    heights = [HEAD + ROW * len(rows) for rows in groups.values()]
    figure = Figure(figsize=(11, 1.4 + sum(heights)), dpi=100, layout="constrained")
    panels = figure.subplots(len(groups), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (title, rows) in zip(panels, groups.items(), strict=True):
        panel.set_title(title, loc="left", fontsize=11, fontweight="bold")
        shown = [each for each in colors if any(row.get(each) for row in rows.values())]
        for number, each in enumerate(shown):
            shift = min(0.2, 0.8 / len(shown)) * (number - (len(shown) - 1) / 2)
            found = [(place + shift, row[each]) for place, row in enumerate(rows.values()) if row.get(each)]
            places, scores = zip(*found, strict=True)
            panel.hlines(places, [*map(min, scores)], [*map(max, scores)], colors[each], linewidth=2.5)
            panel.scatter([*map(statistics.mean, scores)], places, s=36, color=colors[each], zorder=3)
            for baseline, own in blind.items():
                if each in own:
                    panel.axvline(own[each], color=colors[each], linestyle=LINES[baseline], linewidth=1)
        panel.set(yticks=range(len(rows)), yticklabels=rows, ylim=(max(1, len(rows)) - 0.5, -0.5), xlim=(0, 1))
        panel.set_xticks([tenth / 10 for tenth in range(11)])
        panel.tick_params(labelbottom=True, length=0)
        panel.grid(axis="x", color="#e1e1e1")
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlabel(label)
    dots = [
        Line2D([], [], color=color, marker="o", linestyle="", label=each or label) for each, color in colors.items()
    ]
    lines = [Line2D([], [], color="black", linestyle=LINES[each], label=NAMES[each]) for each in blind if blind[each]]
    if dots:
        figure.legend(handles=[*dots, *lines], loc="outside upper center", ncols=4)
    replace_file(output, lambda file: figure.savefig(file, format="png"))
