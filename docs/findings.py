"""Draw the figures of docs/questions.md from the results of the studies: python -m docs.findings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commands.reports.statistics import Difference
from commands.responses.results import Interval, estimate
from commands.studies.document import Cell
from commands.studies.results import unpack_responses
from docs.scores import INTEREST, Claim, document_of, judged
from evaluation.baselines import NAMES

FOLDER = Path(__file__).parent / "findings"
COLORS = {"shown": "#2f8f6b", "equal": "#3458c0", "lead": "#b0681c", "unknown": "#8c959f"}  # by what a difference means
SETTINGS = {"PRoPE": "#e05c2c", "GTA": "#2f8f6b", "pose index": "#3458c0", "images alone": "#8c959f"}
CHANGES = {
    "MovedPanel": "the panel moves\nin its view: 1",
    "TurnedPanelView": "the told camera of\nits view turns: 1",
    "TurnedEmptyViews": "the told cameras of\nother views turn: 0",
}
DEGREES = {10: "10 degrees of noise", 20: "20 degrees"}  # tests of the study of free turns
INK, BAND = "#57606a", "#eaeef2"


def responses() -> dict[str, dict[str, Interval]]:
    """Return the responses in the study of glimpses, by setting and change. A setting may lack some."""
    found: dict[str, dict[str, Interval]] = {}
    for setting in SETTINGS:
        results = document_of("glimpse").found(Cell(setting, "")).values()
        measured = [each for result in results for each in unpack_responses(result)]
        of_change = {change: [each for each in measured if each.intervention == change] for change in CHANGES}
        found[setting] = {change: estimate(own).slope for change, own in of_change.items() if own}
    return found


def scores() -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the scores in the study of glimpses: of each setting by training, and of each rule."""
    document = document_of("glimpse")
    rules = {NAMES.get(name, name): own[""] for name, own in document.baselines.items()}
    return {setting: document.scores(Cell(setting, "")) for setting in SETTINGS}, rules


def costs() -> dict[int, Difference]:
    """Return what noise in the told cameras costs PRoPE in the study of free turns, by degrees."""
    document, own = document_of("free_turn"), Cell("PRoPE", "")
    return {degrees: document.compare(own._replace(test=test), own) for degrees, test in DEGREES.items()}


def draw_responses(found: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Draw how far the answers follow each change."""
    figure, axes = _canvas(3.0)
    axes.hlines([1, 1, 0], [-0.4, 0.6, 1.6], [0.4, 1.4, 2.4], color=INK, linewidth=0.8, linestyle="--")
    for number, (setting, color) in enumerate(SETTINGS.items()):
        for place, change in enumerate(CHANGES):
            if change in found[setting]:
                value, low, high = found[setting][change]
                x = place + 0.16 * (number - 1.5)
                axes.plot([x, x], [low, high], color=color, linewidth=2)
                axes.plot(x, value, "o", color=color, label=setting if place == 0 else None)
    axes.set_xticks(range(len(CHANGES)), list(CHANGES.values()))
    axes.set(ylabel="response", ylim=(-0.2, 1.25))
    axes.legend(fontsize=8, frameon=False)
    return figure


def draw_rules(found: Mapping[str, list[float]], rules: Mapping[str, float]) -> Figure:
    """Draw the scores of models above the scores of rules."""
    rows = {**{rule: [score] for rule, score in rules.items()}, **found}
    order = sorted(rows, key=lambda name: sum(rows[name]) / len(rows[name]))
    figure, axes = _canvas(0.24 * len(rows) + 0.8)
    for row, name in enumerate(order):
        axes.plot(rows[name], [row] * len(rows[name]), "o" if name in SETTINGS else "|", color=SETTINGS.get(name, INK))
    axes.set_yticks(range(len(order)), order, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in SETTINGS else "normal")
    axes.grid(axis="y", color=BAND)
    axes.set(xlabel="score (MRA); each dot is a training", xlim=(0.3, 1.02))
    return figure


def draw_costs(found: Mapping[int, Difference]) -> Figure:
    """Draw the difference from exact cameras by degrees of noise."""
    figure, axes = _canvas(2.6)
    axes.axhspan(-INTEREST, INTEREST, color=BAND, zorder=0)
    axes.plot([0, *found], [0, *(each.value for each in found.values())], "o-", color=SETTINGS["PRoPE"])
    for degrees, each in found.items():
        if each.low is not None and each.high is not None:
            axes.plot([degrees, degrees], [each.low, each.high], color=SETTINGS["PRoPE"], linewidth=2)
    axes.set(xlabel="noise in the rotation of each told camera, degrees", ylabel="change of the score (MRA)")
    axes.set(ylim=(-0.12, 0.06), xticks=[0, *found])
    return figure


def draw_differences(found: list[tuple[Claim, Difference, str]]) -> Figure:
    """Draw each difference of the page with its interval, the most certain first, beside the band of no interest."""
    found = sorted(found, key=lambda each: (list(COLORS).index(each[2]), -abs(each[1].value)))
    figure, axes = _canvas(0.25 * len(found) + 0.9)
    axes.axvspan(-INTEREST, INTEREST, color=BAND, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, (_, own, word) in enumerate(reversed(found)):
        low, high = (own.value, own.value) if own.low is None or own.high is None else (own.low, own.high)
        axes.plot([low, high], [row, row], color=COLORS[word], linewidth=2)
        axes.plot(own.value, row, "o", color=COLORS[word])
    axes.set_yticks(range(len(found)), [claim.question for claim, *_ in reversed(found)], fontsize=8)
    axes.set(xlabel="difference of the scores (MRA), 95 % interval", xlim=(-0.75, 0.75))
    for word, color in COLORS.items():
        axes.plot([], [], "o-", color=color, label=word)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def write() -> None:
    """Write the figures to docs/findings/."""
    figures = {
        "responses": draw_responses(responses()),
        "rules": draw_rules(*scores()),
        "noise": draw_costs(costs()),
        "differences": draw_differences(judged()),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    write()
