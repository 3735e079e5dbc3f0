"""Write studies/forgotten.md: what trainings on panels cost a pretrained decoder of its language.

    python -m docs.forgotten runs/studies/pretrained

The loss is that of eight passages of English text, without cameras. The passages are those of `check-encoding`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from commands.disturbance import PosedText, Row
from timings.tables import markdown
from zoo.model import SpatialVLM
from zoo.progress import progress
from zoo.weights.saved_models import LAST_CHECKPOINT

DOCUMENT = Path(__file__).parents[1] / "studies" / "forgotten.md"
TEXT = """# What do trainings on panels cost of language?

The runs of [pretrained.md](pretrained.md) train a decoder that knows English to answer by how many degrees a camera
must turn. The loss of eight passages of English text, without cameras and in nats per token, says what it has
forgotten. The first row is the decoder before any training.

`python -m docs.forgotten runs/studies/pretrained` makes this file from the runs.

"""


def text_loss(model: SpatialVLM) -> float:
    """Return the loss of the passages without an encoding."""
    return float(PosedText(model.requires_grad_(False).eval()).losses(Row("", None)).mean())


def table(runs: list[Path]) -> list[dict[str, str]]:
    """Return a row for the decoder before training, and one per run."""
    rows: list[dict[str, str]] = []
    for run in progress(runs, "read", "runs", len(runs)):
        model = SpatialVLM.from_pretrained(run)
        if not rows:
            before = text_loss(SpatialVLM(model.loader))
            rows.append({"run": "before training", "loss in nats": f"{before:.2f}", "rise": ""})
        loss = text_loss(model)
        rows.append({"run": run.name, "loss in nats": f"{loss:.2f}", "rise": f"{loss - before:+.2f}"})
    return rows


if __name__ == "__main__":
    runs = sorted(path.parent.parent for path in Path(sys.argv[1]).glob(f"*/{LAST_CHECKPOINT}"))
    DOCUMENT.write_text(TEXT + markdown(table(runs)) + "\n", encoding="utf-8")
