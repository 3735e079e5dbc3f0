"""A plot of a study: scores as dots in rows, with a line from the least to the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from callbacks.baselines.mark import NAMES
from zoo.files.atomic_io import replace_file

Rows = Mapping[str, Mapping[str, Sequence[float]]]  # by row, then by series: one score per seed
COLORS = ("#b2182b", "#2166ac", "#1b7837", "#994f00", "#762a83", "#787878")
LINES = {"constant": "--", "text": ":", "cameras": "-."}  # of the blind baselines
ROW, HEAD = 0.27, 0.5  # heights in inches: one row; a group's title with its margins


def draw(groups: Mapping[str, Rows], blind: Mapping[str, Mapping[str, float]], label: str, output: Path) -> None:
    """Draw the rows that have scores, in 0..1, in one panel per group.

    Args:
        groups: Rows by the group's title.
        blind: The scores of blind baselines for each series, by name, which vertical lines show.
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
        for number, (each, color) in enumerate(colors.items()):
            shift = min(0.2, 0.8 / len(colors)) * (number - (len(colors) - 1) / 2)
            found = [(place + shift, row[each]) for place, row in enumerate(rows.values()) if row.get(each)]
            if found:
                places, scores = zip(*found, strict=True)
                panel.hlines(places, [*map(min, scores)], [*map(max, scores)], color, linewidth=2.5)
                panel.scatter([*map(statistics.mean, scores)], places, s=36, color=color, label=each or label, zorder=3)
            for baseline, own in blind.items():
                if each in own:
                    name = ", ".join(filter(None, (NAMES[baseline], each)))
                    panel.axvline(own[each], color=color, linestyle=LINES[baseline], linewidth=1, label=name)
        panel.set(yticks=range(len(rows)), yticklabels=rows, ylim=(max(1, len(rows)) - 0.5, -0.5), xlim=(0, 1))
        panel.set_xticks([tenth / 10 for tenth in range(11)])
        panel.tick_params(labelbottom=True, length=0)
        panel.grid(axis="x", color="#e1e1e1")
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlabel(label)
    legend = {name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=min(2 * len(colors), 4))
    replace_file(output, lambda file: figure.savefig(file, format="png"))
