"""Scores as dots in rows, with a line from the least to the greatest; a PNG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # of a row, by series: one a seed
COLORS = ((178, 24, 43), (33, 102, 172), (120, 120, 120))
NAMES_PX, PLOT_PX, ROW_PX, MARGIN_PX, TEXT_PX = 640, 900, 36, 60, 24


def draw(rows: Scores, series: Sequence[str], limits: tuple[float, float], label: str, output: Path) -> None:
    """Draws the rows that have scores, and names the series above.

    Args:
        rows: the scores of each row, by series.
        series: in the order of their colors.
        limits: of the axis.
        label: what the axis counts.
    """
    rows = {name: row for name, row in rows.items() if any(row.values())}
    low, high = limits
    height = 2 * MARGIN_PX + ROW_PX * max(1, len(rows)) + TEXT_PX
    sheet = Image.new("RGB", (NAMES_PX + PLOT_PX + MARGIN_PX, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=TEXT_PX)

    def across(score: float) -> float:
        return NAMES_PX + PLOT_PX * (score - low) / (high - low)

    bottom = height - MARGIN_PX - TEXT_PX
    pen.text((NAMES_PX + PLOT_PX / 2, height - 12), label, fill="black", font=font, anchor="ms")
    for tenth in range(round(10 * low), round(10 * high) + 1):
        x = across(tenth / 10)
        pen.line((x, MARGIN_PX, x, bottom), fill=(225, 225, 225))
        pen.text((x, bottom + 8), f"{tenth / 10:.1f}", fill="black", font=font, anchor="ma")
    for number, (name, color) in enumerate(zip(series, COLORS, strict=False)):
        x = NAMES_PX + 160 * number
        pen.ellipse((x, 22, x + 14, 36), fill=color)
        pen.text((x + 24, 29), name, fill="black", font=font, anchor="lm")
    for number, (name, row) in enumerate(rows.items()):
        y = MARGIN_PX + ROW_PX * (number + 0.5)
        pen.text((NAMES_PX - 16, y), name, fill="black", font=font, anchor="rm")
        for place, (each, color) in enumerate(zip(series, COLORS, strict=False)):
            scores = row.get(each)
            if scores:
                at = y + 8 * (place - (len(series) - 1) / 2)
                pen.line((across(min(scores)), at, across(max(scores)), at), fill=color, width=4)
                x = across(statistics.mean(scores))
                pen.ellipse((x - 7, at - 7, x + 7, at + 7), fill=color)
    sheet.quantize(32).save(output, optimize=True)
