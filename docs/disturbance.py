"""Update the tables of docs/encodings.md that say how much cameras disturb a pretrained decoder, by placement.

    python -m docs.disturbance

measures PRoPE and fusions in SmolLM2, in ten minutes on two cores. It needs the extra `pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.disturbance import PosedText, Rise, Row, measure, rows
from timings.tables import filled, markdown
from zoo.backbones.smollm2 import PretrainedSmolLM2
from zoo.encodings import FrequencyRange, PRoPE
from zoo.fusions import AddFusion, ConcatSplitFusion, Fusion, SubspaceFusion
from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM

DOCUMENT = Path(__file__).parents[1] / "docs" / "encodings.md"
TERMS = {"rise in nats": "qkvo", "on q and k alone": "qk", "on v and o alone": "vo"}
HALF = partial(PRoPE, FrequencyRange(0, 0.5))  # without state: one placement may serve several encodings
FUSIONS: dict[str, Callable[[int, int], Fusion]] = {
    "`AddFusion`": AddFusion,
    "`SubspaceFusion`": SubspaceFusion,
    "`SubspaceFusion` before it is fitted: half of the channels": SubspaceFusion,
    "`ConcatSplitFusion`": ConcatSplitFusion,
    "control: zeros in place of the blocks": AddFusion,
}


class FusedText(PosedText):
    """The same passages. The tokens of the blocks are the 2D tokens of a fusion, and its 3D tokens are random."""

    fusion: Fusion | None = None  # None leaves the tokens as they are
    WIDTH_3D = 6

    def embeddings(self) -> Tensor:
        own = super().embeddings()
        if self.fusion is None:
            return own
        patches = torch.randn(2 * self.BLOCKS, *(2 * side for side in self.GRID), self.WIDTH_3D)
        grid = torch.tensor([self.BLOCKS, *(2 * side for side in self.GRID)])
        fused = [self.fusion(of_passage, grid, SceneGeometry(patches=patches)) for of_passage in self.views(own)]
        return torch.cat((torch.stack(fused).flatten(1, 2), own[:, -self.AFTER :]), 1)

    def views(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings of the blocks, which stand for views."""
        return embeddings[:, : -self.AFTER]

    def rises(self) -> dict[str, Rise]:
        """Return the rise by each untrained fusion, of the passages to which none was fitted."""
        without, width, half = self.losses(Row("", None)), self.model.backbone.hidden_size, len(self.ids) // 2
        tokens, found = self.views(self.embeddings())[:half].flatten(0, 1), {}
        for name, make in FUSIONS.items():
            torch.manual_seed(0)
            self.fusion = make(width, self.WIDTH_3D)
            if "before" not in name:
                self.fusion.fit_to_tokens(tokens.T @ tokens)
            if name.startswith("control"):
                self.fusion.active_branches = "3d"
            found[name] = Rise((self.losses(Row(name, None)) - without)[half:])
            self.fusion = None
        return found


def document() -> str:
    """Return docs/encodings.md with measured tables."""
    model = SpatialVLM(PretrainedSmolLM2()).requires_grad_(False).eval()
    layers, by_channels = model.backbone.decoder_layout.layers, "by channels"
    placed = {column: rows(partial(PRoPE, apply_to=terms), layers)[by_channels] for column, terms in TERMS.items()}
    varied = rows(HALF, layers)
    del varied["by terms"], varied[by_channels]  # which are in the other table
    _, rises = measure(PosedText(model), placed | varied)
    variants = {name: rise for group in varied for name, rise in rises[group].items()}
    names = list(rises["rise in nats"])
    tables: dict[str, list[dict[str, Any]]] = {
        "disturbance": [{"PRoPE on": name, **{term: text(rises[term][name]) for term in TERMS}} for name in names],
        "disturbance: variants": [
            {"PRoPE on FrequencyRange 0 to 0.5": name, "rise in nats": text(rise)} for name, rise in variants.items()
        ],
        "disturbance: fusions": [
            {"visual tokens": name, "rise in nats": text(rise)} for name, rise in FusedText(model).rises().items()
        ],
    }
    return filled(DOCUMENT, {name: markdown(table) for name, table in tables.items()})


def text(rise: Rise) -> str:
    """Return a rise with its standard error."""
    return f"{rise} ± {rise.standard_error:.2f}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
