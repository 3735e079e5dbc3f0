"""The scores that README.md and docs/ quote, and where they come from.

    python -m docs.scores

fills them in from studies/results/. Each score stands in a Markdown table, in the row whose first cell is named here.
The differences that docs/questions.md tells are one family: `judged` says which of them are shown.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from commands.reports.statistics import Difference, verdicts
from commands.studies.document import Cell, Document
from commands.studies.results import open_results
from commands.studies.study_file import OWN, read_study
from datamodules.sources.rooms.panel_oracles import AMOUNT, COARSE, NEARNESS
from evaluation.baselines import NAMES
from zoo.errors import InputError

BASELINES = {**{label: name for name, label in NAMES.items()}, **{name: name for name in (NEARNESS, AMOUNT, COARSE)}}
# the document, the first cell of its row, and of the result: study, setting, column and test.
# A study without columns has the column None. The test None is the setting's own.
SCORES: list[tuple[str, str, str, str, str | None, str | None]] = [
    *(("README.md", name, "turn", name, None, None) for name in (*NAMES.values(), NEARNESS, AMOUNT, COARSE)),
    *(("README.md", name, "turn", name, None, None) for name in ("images alone", "PRoPE")),
    ("README.md", "PRoPE, tested with the cameras of another room", "turn", "PRoPE", None, "cameras of another room"),
]


QUESTIONS, INTEREST = "docs/questions.md", 0.05
DIFFERENCE = re.compile(r"[+-]0\.\d{3} ±0\.\d{3} \(\d\)")  # with the number of seeds


class Claim(NamedTuple):
    """A difference that a row of docs/questions.md tells.

    Attributes:
        question: The first cell of the row.
        study: The study.
        cell: What is compared.
        base: What it is compared with; None is the best blind baseline or oracle.
    """

    question: str
    study: str
    cell: Cell
    base: Cell | None = None


VIEWPOINT = "Viewpoint rather than frame number?"
CLAIMS = [
    Claim(VIEWPOINT, "glimpse", Cell("PRoPE", ""), Cell("images alone", "")),
    Claim("GTA or PRoPE?", "glimpse", Cell("GTA", ""), Cell("PRoPE", "")),
    Claim("One number per viewpoint?", "glimpse", Cell("pose index", ""), Cell("PRoPE", "")),
    Claim(
        "Rotation or translation?",
        "panel_questions",
        Cell("PRoPE, rotation", "rotation"),
        Cell("PRoPE, translation", "rotation"),
    ),
    Claim(
        "Moving things: time?",
        "panel_questions",
        Cell("images alone", "motion"),
        Cell("images alone, no time", "motion"),
    ),
    Claim("Which reference view?", "encodings", Cell("PRoPE", ""), Cell("PRoPE, medoid", "")),
    Claim("Translations of 100?", "encodings", Cell("GTA, translations x 100", ""), Cell("GTA", "")),
    Claim("Accuracy of K?", "panel_questions", Cell("PRoPE", "width", "focal +20 %"), Cell("PRoPE", "width")),
    Claim("Wrong cameras?", "free_turn", Cell("PRoPE", "", "20 degrees"), Cell("PRoPE", "")),
    Claim("One time for static scenes?", "encodings", Cell("PRoPE, no time", ""), Cell("PRoPE", "")),
    Claim("The camera token alone?", "encodings", Cell("camera token alone", ""), Cell("images alone", "")),
    Claim("A loss on held-out views, as tokens?", "held_out_views", Cell("with tokens", ""), Cell("PRoPE", "")),
    Claim("A loss on held-out views, as pixels?", "held_out_views", Cell("with pixels", ""), Cell("PRoPE", "")),
    Claim("Predict poses instead of reading them?", "pose_supervision", Cell("supervision", ""), Cell("attention", "")),
    Claim("Predict poses as well?", "pose_supervision", Cell("both", ""), Cell("attention", "")),
    Claim("May different views be merged?", "merged_views", Cell("merged", ""), Cell("each frame with itself", "")),
    Claim("The T section?", "placements", Cell("PRoPE, T section", ""), Cell("PRoPE", "")),
    Claim("Values, VO-RoPE?", "placements", Cell("PRoPE, vo", ""), Cell("PRoPE, qk", "")),
    Claim(
        "High or low frequencies?",
        "placements",
        Cell("PRoPE, high frequencies", ""),
        Cell("PRoPE, low frequencies", ""),
    ),
    Claim("CaPE?", "encodings", Cell("CaPE", ""), Cell("PRoPE", "")),
    Claim("ALiBi by angle or distance?", "encodings", Cell("PoseALiBi", ""), Cell("images alone", "")),
    Claim("Is the connector suspicious?", "published_models", Cell("Spatial-MLLM, stills", ""), Cell("VG-LLM", "")),
    Claim(
        "Cameras for Pi3X, or for the decoder?", "where_cameras_enter", Cell("in the decoder", ""), Cell("in Pi3X", "")
    ),
    Claim("2D half and 3D half, or added?", "halves", Cell("half and half", ""), Cell("added", "")),
    Claim(
        "PRoPE on the 2D half as well?",
        "halves",
        Cell("half and half, PRoPE on the 2D half", ""),
        Cell("half and half", ""),
    ),
    Claim(
        "Uniform or diverse frames?",
        "sampling",
        Cell("pose-farthest, consecutive", ""),
        Cell("uniform, consecutive", ""),
    ),
]


@cache
def judged() -> list[tuple[Claim, Difference, str]]:
    """Return each claim of docs/questions.md with its difference and "shown", "equal", "unknown" or "lead"."""
    found = [document_of(each.study).compare(each.cell, each.base) for each in CLAIMS]
    words = [each.partition(":")[0] for each in verdicts(found, INTEREST)]
    words = ["shown" if word in ("higher", "lower") else word for word in words]
    return list(zip(CLAIMS, found, words, strict=True))


def text_of(study: str, setting: str, column: str | None, test: str | None) -> str:
    """Return a score as a study's document shows it."""
    document = document_of(study)
    if setting in BASELINES:
        return f"{document.baselines[BASELINES[setting]][column or '']:.3f}"
    return document.text(Cell(setting, column or "", test or OWN))


@cache
def document_of(study: str) -> Document:
    """Return the tables of a study in studies/."""
    plan = read_study(Path(f"studies/{study}.yaml"))
    return Document(plan, open_results(plan))


def filled(file: str) -> str:
    """Return the text of a document with the scores of the present results.

    Raises:
        InputError: The document has no row or several rows of a name, or a result is missing.
    """
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    for claim, found, _ in judged() if file == QUESTIONS else ():
        half = ((found.high or 0) - (found.low or 0)) / 2
        text = f"{found.value:+.3f} ±{half:.3f} ({found.seeds})"
        is_row = [line.startswith(f"| {claim.question} |") for line in lines]
        lines = [DIFFERENCE.sub(text, line) if own else line for line, own in zip(lines, is_row, strict=True)]
    for where, name, *result in SCORES:
        if where != file:
            continue
        rows = [place for place, line in enumerate(lines) if line.startswith(f"| {name} |")]
        text = text_of(*result)
        if len(rows) != 1 or not text:
            raise InputError(f"{file}: {len(rows)} rows {name}" if text else f"{file}: {name} is not measured")
        _, first, _, *others = lines[rows[0]].split("|")
        lines[rows[0]] = "|".join(["", first, f" {text} ", *others])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for file in dict.fromkeys([*(where for where, *_ in SCORES), QUESTIONS]):
        Path(file).write_text(filled(file), encoding="utf-8")
