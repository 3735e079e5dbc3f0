"""GeoVR (arXiv 2606.05833): a Qwen3-VL that is trained with a geometry encoder as the teacher, and used without it.

Published: folders of `WHB139426/GeoVR`. Training uses `zoo.objectives.teacher`, see `recipes/geovr.yaml`. Below, its
layers, heads and losses are compared with the released code: individually, as one module with the names of the released
files (`GeoVRHeads`), and in a whole training step (`run_official`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import EmptyBackbone, PretrainedQwen3VL, qwen3_config
from zoo.checkpoints.from_tensors import load_backbone
from zoo.geometry.da3.model import SKY, fit_scale, to_meters
from zoo.geometry.vggt import pose_encoding_to_cameras
from zoo.model import SpatialVLM
from zoo.objectives.base import Objective
from zoo.objectives.teacher import (
    FIELD_OF_VIEW_WEIGHT,
    DepthHead,
    Distillation,
    MetricScale,
    PoseMLP,
    ScaleMLP,
    TeacherDepth,
    TeacherPose,
    TokenMLP,
    find_teacher,
    geovr_layers,
    pose_errors,
)
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch
from zoo.sequences.layout import ExtraTokens, Placeholders, SequenceLayout, owners
from zoo.sequences.loaded_scene import PreparedScene, TeacherTargets
from zoo.sequences.packing import IGNORED
from zoo.sequences.position_ids import layout_position_ids
from zoo.sequences.time_index import SpanIndex

__all__ = ["PretrainedGeoVR"]

# heads, tokens and teachers, which only the training needs
TRAINING = (
    *("model.camera_token.", "model.scale_token.", "camera_head.", "scale_head.", "dpt_head.", "distill_head_list."),
    *("geometry_encoder.", "metric_encoder."),
)


class PretrainedGeoVR(PretrainedQwen3VL):
    """Released weights of GeoVR (arXiv 2606.05833): a Qwen3-VL that was trained with heads not used for answers.

    The files may contain the heads, their tokens and the frozen teachers. They are not read.

    Args:
        path: A folder of the hub repository (`WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`, `-4B`; `GeoVR-Omega-...`) or a
            local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title, released = "GeoVR", "WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B"
    licensed = License(
        "`WHB139426/GeoVR`",
        "MIT (the code has no license file). "
        "Made of Qwen3-VL; the files may also hold the teacher, VGGT-1B or VGGT-Omega, which are non-commercial",
        "model card",
    )
    skip = TRAINING
    known_configs = {
        f"GeoVR-{teacher}-Qwen3-VL-{size}B": (f"Qwen3-VL-{size}B-Instruct", {})
        for teacher in ("VGGT", "Omega")
        for size in (2, 4)
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        """See `BackboneLoader`. The config.json is Qwen3-VL's."""
        return super().reads(config) and any(name.startswith(TRAINING) for name in names)


# ---- GeoVR's training sequences: a camera token after each view, and a scale token after the last view --------------

TEXT, START, IMAGE, VIDEO = range(4)  # kinds of tokens, which determine positions
VIDEO_TYPE = 2  # value in transformers' mm_token_type_ids
EXTRA_TOKENS = {  # by (camera, scale)
    (False, False): ExtraTokens.NONE,
    (True, False): ExtraTokens.LAST,
    (False, True): ExtraTokens.END,
    (True, True): ExtraTokens.LAST_AND_END,
}


def expand_tokens(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"],
    mm_token_type_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    video_grid_thw: Int[Tensor, "V 3"],
    *,
    video_token_id: int,
    merge_size: int,
    camera: bool,
    scale: bool,
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B M"], Int[Tensor, "B M"], Int[Tensor, "B M"]]:
    """Insert placeholders of GeoVR's tokens into right-padded sequences of the original processor.

    `SequenceBuilder` does not need this step, because the zoo's prompts contain the placeholders from the start.

    Args:
        input_ids: Token ids with one placeholder per visual token.
        attention_mask: 0 for padding.
        mm_token_type_ids: 2 for videos.
        labels: -100 where nothing is supervised.
        video_grid_thw: (t, h, w) in patches of each video, in the order of the batch.
        video_token_id: Token id of the placeholder.
        merge_size: Patches per side in one visual token.
        camera: Insert a token after each view.
        scale: Insert a token after the last view of each video.

    Returns:
        The extended first four arguments.

    Raises:
        ValueError: Grids and placeholders do not match.
    """
    per_view = video_grid_thw[:, 1] * video_grid_thw[:, 2] // merge_size**2
    counts = video_grid_thw[:, 0] * per_view
    is_visual = input_ids == video_token_id
    if int(is_visual.sum()) != int(counts.sum()):
        raise ValueError(f"{int(is_visual.sum())} placeholders of videos, and grids of {int(counts.sum())} tokens")
    video, place = owners(counts)
    repeats = torch.ones_like(input_ids)
    repeats[is_visual] += int(camera) * ((place + 1) % per_view[video] == 0).long()
    repeats[is_visual] += int(scale) * (place + 1 == counts[video]).long()
    # inserted tokens are copies of the visual token before them, which is not supervised
    source = [torch.arange(input_ids.shape[1]).repeat_interleave(row) for row in repeats]

    def inserted(values: Tensor, padding: int) -> Tensor:
        rows = [row[own] for row, own in zip(values, source, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=padding)

    return (
        inserted(input_ids, 0),
        inserted(attention_mask, 0),
        inserted(mm_token_type_ids, 0),
        inserted(labels, IGNORED),
    )


def position_ids(
    input_ids: Int[Tensor, "B L"],
    mm_token_type_ids: Int[Tensor, "B L"],
    video_grid_thw: Int[Tensor, "V 3"],
    *,
    attention_mask: Int[Tensor, "B L"] | None,
    merge_size: int,
    camera: bool,
    scale: bool,
) -> Int[Tensor, "3 B L"]:
    """Return Qwen3-VL's mRoPE positions for sequences with GeoVR's tokens. 0 in padding.

    Args:
        input_ids: Token ids from `expand_tokens`.
        mm_token_type_ids: Token types from `expand_tokens`. Positions depend on these and not on the ids.
        video_grid_thw: (t, h, w) in patches of each video.
        attention_mask: 0 for padding. None means no padding.
        merge_size: Patches per side in one visual token.
        camera: Whether a token follows each view.
        scale: Whether a token follows the last view of each video.
    """
    is_video = mm_token_type_ids == VIDEO_TYPE
    is_before = F.pad(is_video, (0, 1))[:, 1:] & ~is_video
    layout = SequenceLayout(
        torch.where(is_video, VIDEO, torch.where(is_before, START, TEXT)).view_as(input_ids),
        attention_mask,
        video_grid_thw=video_grid_thw,
        placeholders=Placeholders(VIDEO, IMAGE, START, span_per_step=True),
        spatial_merge_size=merge_size,
        extra_tokens=EXTRA_TOKENS[camera, scale],
    )
    positions = layout_position_ids(layout, SpanIndex(), text_after_vision="max_hw")
    return positions.masked_fill(~layout.mask, 0)


# ---- Heads ----------------------------------------------------------------------------------------------------------


class GeoVRHeads(nn.Module):
    """The heads of a GeoVR model that its files contain.

    Args:
        teacher: `vggt`, `vggt_omega` or `da3`.
        decoder_layers: Number of decoder layers.
        width: Width of the decoder.
        parts: Names of the heads.

    Attributes:
        depth_layers: The hidden states that `depth` reads, see `geovr_layers`.
        distill_layers: The hidden states that `distill` reads.
        teacher_layers: The teacher's layers that are distilled.
    """

    def __init__(self, teacher: str, decoder_layers: int, width: int, parts: Sequence[str]) -> None:
        super().__init__()
        own, layers = find_teacher(teacher), geovr_layers(teacher, decoder_layers)
        self.depth_layers, self.distill_layers, self.teacher_layers = layers["depth"], layers["distill"], own.distill
        if "camera_head" in parts:
            self.camera_head = PoseMLP(width)
        if "dpt_head" in parts:
            self.dpt_head = DepthHead(width, own.side)
        if "scale_head" in parts:
            self.scale_head = ScaleMLP(width)
        if "distill_head_list" in parts:
            self.distill_head_list = nn.ModuleList([TokenMLP(width, own.width) for _ in own.distill])

    @classmethod
    def from_official(cls, teacher: str, decoder_layers: int, state_dict: Mapping[str, Tensor]) -> GeoVRHeads:
        """Build the heads from official tensors, in their dtype. All other tensors are ignored."""
        norms = ("camera_head.backbone.0", "dpt_head.norm", "scale_head.backbone.0", "distill_head_list.0.norm")
        found = {
            name.partition(".")[0]: state_dict[f"{name}.weight"] for name in norms if f"{name}.weight" in state_dict
        }
        first = next(iter(found.values()))
        heads = cls(teacher, decoder_layers, len(first), list(found)).to(first.dtype)
        heads.load_state_dict({name: tensor for name, tensor in state_dict.items() if name.partition(".")[0] in found})
        return heads

    def named_official_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their official names."""
        return self.named_parameters()

    def camera(self, states: Float[Tensor, "T D"]) -> Float[Tensor, "T 9"]:
        """Predict the teacher's pose encodings."""
        return self.camera_head(states)

    def depth(
        self, hidden: Sequence[Float[Tensor, "T tokens D"]], grid_hw: Sequence[int], target_hw: Sequence[int]
    ) -> Float[Tensor, "T H W"]:
        """Predict the teacher's depth, see `DepthHead`."""
        return self.dpt_head(hidden, grid_hw, target_hw)

    def distill(self, hidden: Float[Tensor, "T h w D"], i: int, target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Predict the teacher's pooled tokens of the i-th distilled layer."""
        return self.distill_head_list[i](hidden, target_hw)

    def scale(self, states: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Predict meters per unit of the teacher's lengths."""
        return self.scale_head(states)


# ---- Losses and targets, each for one video -------------------------------------------------------------------------


def camera_loss(pred: Float[Tensor, "T 9"], target: Float[Tensor, "T 9"]) -> dict[str, Float[Tensor, ""]]:
    """Return the mean absolute errors of `translation`, `rotation` and `focal`, and their weighted sum `total`."""
    translation, rotation, focal = (error.mean() for error in pose_errors(pred, target))
    total = translation + rotation + FIELD_OF_VIEW_WEIGHT * focal
    return {"translation": translation, "rotation": rotation, "focal": focal, "total": total}


def distill_loss(pred: Float[Tensor, "T h w C"], target: Float[Tensor, "T h w C"]) -> Float[Tensor, ""]:
    """Return the mean cosine distance of tokens."""
    return 1 - F.cosine_similarity(pred, target, dim=-1).mean()


def scale_loss(pred: Float[Tensor, " B"], target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean absolute error of log(1 + scale)."""
    return (pred.log1p() - target.log1p()).abs().mean()


def teacher_size(teacher: str, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a teacher's images for frames of this size, in whole double patches."""
    own = find_teacher(teacher)
    scale = own.longest / max(height, width)

    def fit(side: int) -> int:
        return own.longest if side == max(height, width) else max(1, round(side * scale / own.side)) * own.side

    return fit(height), fit(width)


@torch.no_grad()
def scale_target(
    depth: Float[Tensor, "T H W"],
    conf: Float[Tensor, "T H W"],
    pose: Float[Tensor, "T 9"],
    metric_depth: Float[Tensor, "T h w"],
    sky: Float[Tensor, "T h w"],
    *,
    teacher: str,
) -> float:
    """Fit meters per unit of the teacher's depth to a metric model's depth, over confident pixels that are not sky.

    Args:
        depth: The teacher's depth.
        conf: The confidence of the teacher's depth.
        pose: The teacher's pose encodings. Their fields of view give the focal length.
        metric_depth: Depth of the metric model (DA3METRIC), for a focal length of 300 pixels. Its images may have
            another size: VGGT-Omega's are resized to multiples of 14 pixels.
        sky: The metric model's sky score, 0 where there is no sky.
        teacher: `vggt`, `vggt_omega` or `da3`.
    """
    find_teacher(teacher)
    size = metric_depth.shape[1:]
    _, K_px = pose_encoding_to_cameras(pose, (size[0], size[1]))
    (meters,) = to_meters(metric_depth[None], K_px[None])
    depth, conf = (
        each if each.shape == metric_depth.shape else F.interpolate(each[None], size, mode="bilinear")[0]
        for each in (depth, conf)
    )
    (fitted,) = fit_scale(depth[None], conf[None], meters.to(depth)[None], sky[None] >= SKY)
    return float(fitted)


# ---- A whole training step -------------------------------------------------------------------------------------------

STOCK = ("model.visual.", "model.language_model.", "lm_head.")
OURS = {  # prefixes of official names
    "camera_head.": "objectives.TeacherPose.head.",
    "dpt_head.": "objectives.TeacherDepth.head.",
    "scale_head.": "objectives.MetricScale.head.",
    "distill_head_list.": "objectives.Distillation.heads.",
    "model.camera_token.weight": "objectives.TeacherPose.token",
    "model.scale_token.weight": "objectives.MetricScale.token",
}


def run_official(
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
    """Compute losses and gradients of a whole model on a micro-batch of videos, in float32, with the zoo's own step.

    Args:
        qwen: `Qwen3VLConfig.to_dict()`.
        state_dict: Tensors by official names. Heads that are switched off may be absent or present.
        inputs: `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels` (before `expand_tokens`),
            `video_grid_thw`, `pixel_values_videos`. One video per sequence.
        targets: For each video, the targets that are learned: `pose`, `depth`, `features` (by layer of the teacher, (T,
            h, w, C)). The scale also needs `conf`, `metric_depth` and `sky`, see `scale_target`.
        teacher: `vggt`, `vggt_omega` or `da3`.
        camera: Learn poses, with a token per view.
        depth: Learn depth.
        scale: Learn the metric scale, with a token after the video.
        distill: Learn the teacher's tokens.

    Returns:
        The losses `lm`, `camera`, `depth`, `distill` and `scale` (0 if switched off), their weighted sum `total`, and
        its `gradient_norms` by official name.
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
        EmptyBackbone(PretrainedQwen3VL, qwen3_config(qwen), torch.float32),
        objectives=objectives,
        average="micro_batch_tokens",
        text_after_vision="max_hw",
    )
    load_backbone(
        PretrainedQwen3VL, model, {name: tensor for name, tensor in state_dict.items() if name.startswith(STOCK)}
    )
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
        PreparedScene(pixel_values=patches, grid_thw=tuple(grid.tolist()))
        for patches, grid in zip(pixels, grids, strict=True)
    ]
    builder = SequenceBuilder(model.model_spec(training=True))
    index = [[number] for number in range(len(scenes))]
    sequences = builder.build(ids, mask.bool(), scenes, index, labels=labels)
    batch = Batch(scenes, builder.vision(scenes), sequences, num_answers=[1] * len(scenes))
    # 3. The step.
    losses = model.train()(batch, [_teacher_targets(own, teacher, scale) for own in targets])
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
