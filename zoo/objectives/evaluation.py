"""What objectives predict in an evaluation, beside the answers: its errors, and cameras to be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras.patch_cameras import PatchCameras
from zoo.objectives.camera_prediction import CameraPrediction
from zoo.objectives.decoded import Decoded, decode
from zoo.scene_encoding.encoded_scene import EncodedScene
from zoo.sequences.batch import Batch

if TYPE_CHECKING:
    from zoo.model import SpatialVLM


def prediction_errors(model: SpatialVLM, batch: Batch, scenes: Sequence[EncodedScene]) -> list[dict[str, Any]]:
    """Return what the record of each question gets: the errors of its scene as `objectives`, if it can have some.

    Args:
        model: The model.
        batch: With prompts.
        scenes: Its encoded scenes; those without what is predicted cost nothing.
    """
    errors = {number: model.objectives.errors(decoded) for number, decoded in _decoded(model, batch, scenes)}
    found: list[dict[str, Any]] = [{} for _ in batch.records]
    for prompt in batch.prompts:
        if own := errors.get(prompt.scenes[0]):
            for row in prompt.rows:
                found[row] = {"objectives": own}
    return found


@torch.no_grad()
def predicted_cameras(model: SpatialVLM, batch: Batch) -> dict[str, tuple[PatchCameras, Float[Tensor, "t 4 4"]]]:
    """Return true and predicted cameras by scene, see `CameraPrediction.predicted_cameras`; of no scene without it."""
    objective = model.objectives.active.get("CameraPrediction")
    if not (isinstance(objective, CameraPrediction) and "reference" in objective.anchors and batch.records):
        return {}
    scenes = model.encode_scenes(batch)
    names = {prompt.scenes[0]: batch.records[prompt.rows[0]]["scene"] for prompt in batch.prompts}
    drawn = {
        names[number]: objective.predicted_cameras(decoded)
        for number, decoded in _decoded(model, batch, scenes)
        if scenes[number].targets.cameras is not None
    }
    return {name: cameras for name, cameras in drawn.items() if cameras[0].has_camera.any()}


@torch.no_grad()
def _decoded(model: SpatialVLM, batch: Batch, scenes: Sequence[EncodedScene]) -> Iterator[tuple[int, Decoded]]:
    """Yield each scene of which something is to be predicted, with its number in the batch and its decoded prefix."""
    prefixes = {prompt.scenes[0]: prompt.prefix for prompt in reversed(batch.prompts)}
    for number in sorted(prefixes):
        if model.objectives.is_applicable(scenes[number]):
            inputs = model.decoder_inputs(scenes, prefixes[number])
            yield number, decode(model.backbone, model.objectives.layers, inputs, scenes, prefixes[number])
