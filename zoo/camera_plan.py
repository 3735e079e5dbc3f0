"""Whose cameras and depth the parts of a model get: the dataset's, or those of its geometry encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CameraSource = Literal["dataset", "predicted", "auto"]
Target = Literal["cameras", "depth"]  # what an objective learns to predict
PSEUDO_LABELS: dict[CameraSource, tuple[Target, ...]] = {  # those that the geometry encoder may provide in training
    "dataset": (),
    "auto": ("cameras",),
    "predicted": ("cameras", "depth"),
}


@dataclass(frozen=True)
class CameraPlan:
    """Whose cameras and depth the parts of a model get; tests have its truth table.

    Attributes:
        source: The option `--model.camera_source`.
        uses_cameras: Whether an encoding, the view mixer or the time index reads cameras.
        uses_depth: Whether one of them reads depth in the unit of the cameras.
        targets: What objectives learn to predict.
        encoder_predicts: Whether there is a geometry encoder that predicts cameras.
    """

    source: CameraSource
    uses_cameras: bool
    targets: tuple[Target, ...] = ()
    uses_depth: bool = False
    encoder_predicts: bool = False

    @property
    def asks_encoder(self) -> bool:
        """Whether a geometry encoder is needed for cameras or depth."""
        wanted = self.uses_cameras or bool(self._possible_labels)
        return self.source == "predicted" or (self.source == "auto" and wanted)

    @property
    def predicts_cameras(self) -> bool:
        """Whether the cameras of some scenes come from the encoder; `auto` has no depth in the unit of these."""
        is_asked = self.source == "predicted" or (self.source == "auto" and not self.uses_depth)
        return self.uses_cameras and is_asked and self.encoder_predicts

    @property
    def pseudo_labels(self) -> tuple[Target, ...]:
        """The targets that the encoder predicts, in training."""
        return self._possible_labels if self.asks_encoder and self.encoder_predicts else ()

    @property
    def predicts_depth(self) -> bool:
        """Whether the encoder has to predict depth, in the unit of its cameras."""
        return self.source == "predicted" and (self.uses_depth or "depth" in self.targets)

    @property
    def _possible_labels(self) -> tuple[Target, ...]:
        return tuple(target for target in self.targets if target in PSEUDO_LABELS[self.source])
