"""A training step of GeoVR on tensors with official names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.qwen_weights import EmptyQwenVL
from zoo.backbones.released_configs import qwen3_config
from zoo.checkpoints.from_tensors import load_backbone
from zoo.model import SpatialVLM
from zoo.objectives import Distillation, MetricScale, Objective, TeacherDepth, TeacherPose
from zoo.objectives.geovr import expand_tokens, find_teacher, geovr_layers, scale_target
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import SceneInputs, TeacherTargets

STOCK = ("model.visual.", "model.language_model.", "lm_head.")
OURS = {  # prefixes of official names
    "camera_head.": "objectives.TeacherPose.head.",
    "dpt_head.": "objectives.TeacherDepth.head.",
    "scale_head.": "objectives.MetricScale.head.",
    "distill_head_list.": "objectives.Distillation.heads.",
    "model.camera_token.weight": "objectives.TeacherPose.token",
    "model.scale_token.weight": "objectives.MetricScale.token",
}


def run_geovr(
    qwen: dict[str, Any],
    state_dict: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    targets: Sequence[Mapping[str, Any]],
    *,
    teacher: str,
    camera: bool,
    depth: bool,
    scale: bool,
    distill: bool,
) -> dict[str, Any]:
    """Compute losses and gradients of a whole model on a micro-batch of videos, in float32, by the zoo's own step.

    Args:
        qwen: `Qwen3VLConfig.to_dict()`.
        state_dict: By official names; heads that are switched off may be absent or present.
        inputs: `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels` (before `expand_tokens`),
            `video_grid_thw`, `pixel_values_videos`; one video per sequence.
        targets: Of each video, as far as they are learned: `pose`, `depth`, `features` (by layer of the teacher, (T, h,
            w, C)); for the scale also `conf`, `metric_depth` and `sky`, see `scale_target`.
        teacher: `vggt`, `vggt_omega` or `da3`.
        camera: Learn poses, with a token per view.
        depth: Learn depth.
        scale: Learn the metric scale, with a token behind the video.
        distill: Learn the teacher's tokens.

    Returns:
        The losses `lm`, `camera`, `depth`, `distill` and `scale` (0 where switched off), their weighted sum `total`,
        and `gradient_norms` of it by official name.
    """
    layers, layout = geovr_layers(teacher, qwen["text_config"]["num_hidden_layers"]), find_teacher(teacher)
    # 1. The model.
    objectives: list[Objective] = []
    if camera:
        objectives.append(TeacherPose())
    if depth:
        objectives.append(TeacherDepth(indices=list(layers["depth"]), side=layout.side))
    if distill:
        objectives.append(Distillation(layout.width, list(layers["distill"])))
    if scale:
        objectives.append(MetricScale())
    model = SpatialVLM(
        EmptyQwenVL(qwen3_config(qwen), torch.float32),
        objectives=objectives,
        average="micro_batch_tokens",
        text_after_vision="max_hw",
    )
    load_backbone(model, {name: tensor for name, tensor in state_dict.items() if name.startswith(STOCK)})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {name: own for name in state_dict if (own := our_name(name)) in parameters}
    with torch.no_grad():
        for name, own in names.items():
            if not name.startswith(STOCK):
                parameters[own].copy_(state_dict[name].view_as(parameters[own]))
    # 2. A training batch.
    grids = inputs["video_grid_thw"]
    ids, mask, _, labels = expand_tokens(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["mm_token_type_ids"],
        inputs["labels"],
        grids,
        video_token_id=qwen["video_token_id"],
        merge_size=qwen["vision_config"]["spatial_merge_size"],
        camera=camera,
        scale=scale,
    )
    pixels = inputs["pixel_values_videos"].float().split(grids.prod(1).tolist())
    scenes = [
        SceneInputs(patches, grid, teacher=_teacher_targets(own, teacher, scale))
        for patches, grid, own in zip(pixels, grids, targets, strict=True)
    ]
    builder = model.training_sequence_builder
    index = [[number] for number in range(len(scenes))]
    sequences = builder.build(ids, mask.bool(), scenes, index, labels=labels)
    batch = Batch(scenes, builder.vision(scenes), sequences, num_answers=[1] * len(scenes))
    # 3. The step.
    losses = model.train()(batch)
    losses["loss"].backward()
    found = {
        "lm": "LanguageModeling",
        "camera": "TeacherPose",
        "depth": "TeacherDepth",
        "distill": "Distillation",
        "scale": "MetricScale",
        "total": "loss",
    }
    gradients = {name: parameters[own].grad for name, own in names.items()}
    return {
        **{name: losses[own].item() if own in losses else 0.0 for name, own in found.items()},
        "gradient_norms": {name: 0.0 if grad is None else grad.norm().item() for name, grad in gradients.items()},
    }


def our_name(official: str) -> str:
    """Return the name of a parameter in a `SpatialVLM`."""
    for theirs, ours in OURS.items():
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    return f"backbone.vlm.{official}"


def _teacher_targets(given: Mapping[str, Any], teacher: str, scale: bool) -> TeacherTargets:
    features, meters = given.get("features") or {}, None
    if scale:
        read = (given[name] for name in ("depth", "conf", "pose", "metric_depth", "sky"))
        meters = torch.tensor(scale_target(*read, teacher=teacher))
    pose = given.get("pose")
    return TeacherTargets(
        tokens=tuple(features[layer] for layer in find_teacher(teacher).distill) if features else (),
        pose_enc=pose,
        has_camera=None if pose is None else torch.ones(len(pose), dtype=torch.bool),
        depth=given.get("depth"),
        meters_per_unit=meters,
    )
