"""A plot of a study: scores as dots in rows, with a line from the least to the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zoo.atomic_io import replace_file

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # by row, then by series: one score per seed
COLORS = ((178, 24, 43), (33, 102, 172), (27, 120, 55), (153, 79, 0), (118, 42, 131), (120, 120, 120))
NAMES_PX, PLOT_PX, ROW_PX, MARGIN_PX, TEXT_PX = 640, 900, 36, 60, 24


def draw(rows: Scores, constants: Mapping[str, float], series: Sequence[str], label: str, output: Path) -> None:
    """Draw the rows that have scores, in 0..1, and name the series above.

    Args:
        rows: the scores of each row, by series.
        constants: a score for each series that a vertical line shows; may be empty.
        series: in the order of their colors.
        label: what the axis shows.
        output: the PNG file.
    """
    rows = {name: row for name, row in rows.items() if any(row.values())}
    height = 2 * MARGIN_PX + ROW_PX * max(1, len(rows)) + TEXT_PX
    sheet = Image.new("RGB", (NAMES_PX + PLOT_PX + MARGIN_PX, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=TEXT_PX)

    def across(score: float) -> float:
        return NAMES_PX + PLOT_PX * score

    bottom = height - MARGIN_PX - TEXT_PX
    pen.text((NAMES_PX + PLOT_PX / 2, height - 12), label, fill="black", font=font, anchor="ms")
    for tenth in range(11):
        x = across(tenth / 10)
        pen.line((x, MARGIN_PX, x, bottom), fill=(225, 225, 225))
        pen.text((x, bottom + 8), f"{tenth / 10:.1f}", fill="black", font=font, anchor="ma")
    for number, (name, color) in enumerate(zip(series, cycle(COLORS))):
        x = NAMES_PX + 160 * number
        pen.ellipse((x, 22, x + 14, 36), fill=color)
        pen.text((x + 24, 29), name or label, fill="black", font=font, anchor="lm")
        if name in constants:
            pen.line((across(constants[name]), MARGIN_PX, across(constants[name]), bottom), fill=color, width=2)
    if constants:
        pen.text((NAMES_PX + PLOT_PX, 29), "lines: best constant answer", fill="black", font=font, anchor="rm")
    for number, (name, row) in enumerate(rows.items()):
        y = MARGIN_PX + ROW_PX * (number + 0.5)
        pen.text((NAMES_PX - 16, y), name, fill="black", font=font, anchor="rm")
        for place, (each, color) in enumerate(zip(series, cycle(COLORS))):
            scores = row.get(each)
            if scores:
                at = y + 8 * (place - (len(series) - 1) / 2)
                pen.line((across(min(scores)), at, across(max(scores)), at), fill=color, width=4)
                x = across(statistics.mean(scores))
                pen.ellipse((x - 7, at - 7, x + 7, at + 7), fill=color)
    small = sheet.quantize(32)
    replace_file(output, lambda file: small.save(file, format="PNG", optimize=True))
