"""What objectives predict in an evaluation, beside the answers: its errors, and cameras to be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.objectives.camera_prediction import CameraPrediction
from zoo.objectives.decoded import Decoded, decode
from zoo.scenes import PatchCameras, SceneTokens

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

Batch = Mapping[str, Any]  # of `datamodules.collate`


def prediction_errors(model: SpatialVLM, batch: Batch, scenes: Sequence[SceneTokens]) -> list[dict[str, Any]]:
    """What the record of each question gets: the errors of its scene as `objectives`, if it can have some.

    Args:
        model: the model.
        batch: with one row per question.
        scenes: its encoded scenes; those without what is predicted cost nothing.
    """
    errors = {number: model.objectives.errors(decoded) for number, decoded in _decoded(model, batch, scenes)}
    return [{"objectives": errors[i]} if errors.get(i) else {} for i in batch["scene_index"].tolist()]


@torch.no_grad()
def predicted_cameras(model: SpatialVLM, batch: Batch) -> dict[str, tuple[PatchCameras, Float[Tensor, "t 4 4"]]]:
    """True and predicted cameras by scene, see `CameraPrediction.predicted_cameras`; of no scene without it."""
    objective = model.objectives.active.get("CameraPrediction")
    if not (isinstance(objective, CameraPrediction) and "reference" in objective.anchors and batch["records"]):
        return {}
    scenes = model.encode_scenes(batch["scenes"])
    names = dict(zip(batch["scene_index"].tolist(), (record["scene"] for record in batch["records"]), strict=True))
    drawn = {
        names[number]: objective.predicted_cameras(decoded)
        for number, decoded in _decoded(model, batch, scenes)
        if scenes[number].target_cameras is not None
    }
    return {name: cameras for name, cameras in drawn.items() if cameras[0].has_camera.any()}


def _decoded(model: SpatialVLM, batch: Batch, scenes: Sequence[SceneTokens]) -> Iterator[tuple[int, Decoded]]:
    """Yields each scene of which something is to be predicted, with its number in the batch."""
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    prompts = dict(zip(batch["scene_index"].tolist(), (ids[real] for ids, real in rows), strict=True))
    for number, prompt in prompts.items():
        if model.objectives.measures(scenes[number]):
            yield number, decode_scene(model, scenes[number], prompt)


@torch.no_grad()
def decode_scene(model: SpatialVLM, scene: SceneTokens, prompt: Int[Tensor, " L"]) -> Decoded:
    """Decodes a question about one scene up to its last visual token.

    Args:
        model: the model.
        scene: from its `encode_scenes`.
        prompt: token ids of the question, without padding.
    """
    visual = torch.tensor(model.backbone.placeholders.visual, device=prompt.device)
    ids = prompt[None, : int(torch.isin(prompt, visual).nonzero().max()) + 1]
    mask = torch.ones_like(ids)
    layout = model.layout(ids, mask, [[scene]])
    inputs = model.build_inputs(ids, mask, [scene], [[0]], layout=layout)
    return decode(model, inputs, [scene], [0], layout)
