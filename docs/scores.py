"""The scores that README.md and docs/ quote, and where they come from.

    python -m docs.scores

fills them in from studies/results/. Each score stands in a Markdown table, in the row whose first cell is named here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from callbacks.baselines import NAMES
from commands.studies.document import Cell, Document
from commands.studies.results import open_results
from commands.studies.study_file import OWN, read_study
from datamodules.sources.rooms.panel_oracles import AMOUNT, COARSE, NEARNESS
from zoo.errors import InputError

BASELINES = {**{label: name for name, label in NAMES.items()}, **{name: name for name in (NEARNESS, AMOUNT, COARSE)}}
# the document, the first cell of its row, and of the result: study, setting, column and test.
# A study without columns has the column None. The test None is the setting's own.
SCORES: list[tuple[str, str, str, str, str | None, str | None]] = [
    *(("README.md", name, "turn", name, None, None) for name in (*NAMES.values(), NEARNESS, AMOUNT, COARSE)),
    *(("README.md", name, "turn", name, None, None) for name in ("images alone", "PRoPE")),
    ("README.md", "PRoPE, tested with the cameras of another room", "turn", "PRoPE", None, "cameras of another room"),
]


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
    for file in dict.fromkeys(where for where, *_ in SCORES):
        Path(file).write_text(filled(file), encoding="utf-8")
