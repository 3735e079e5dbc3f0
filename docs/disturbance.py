"""Update the tables of docs/encodings.md that say how much cameras disturb a pretrained decoder, by placement.

    python -m docs.disturbance

measures PRoPE in SmolLM2, in ten minutes on two cores. It needs the extra `pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.tables import filled, markdown
from commands.disturbance import Change, PosedText, Rise, Row, measure, powers, random_axes, same
from zoo.backbones.smollm2 import PretrainedSmolLM2
from zoo.encodings import CameraEncoding, ChannelRange, ExtraChannels, FrequencyRange, LayerSubset, Placement, PRoPE
from zoo.encodings.placements import TemporalSection
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


def document() -> str:
    """Return docs/encodings.md with measured tables."""
    reading = PosedText(SpatialVLM(PretrainedSmolLM2()).requires_grad_(False).eval())
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
    return filled(DOCUMENT, {"disturbance": markdown(rows), "disturbance: variants": markdown(variants)})


def text(rise: Rise) -> str:
    """Return a rise with its standard error."""
    return f"{rise} ± {rise.standard_error:.2f}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
