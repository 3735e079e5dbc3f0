"""The 3D teachers of GeoVR, and which decoder layers learn from which of their layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zoo.errors import check_choice
from zoo.geometry.da3.model import SKY, fit_scale, to_meters
from zoo.geometry.layers import DPT, FusionChain, ResidualUnit, upsample
from zoo.geometry.vggt.model import pose_encoding_to_cameras
from zoo.sequences.layout import ExtraTokens, Placeholders, SequenceLayout, owners
from zoo.sequences.packing import IGNORED
from zoo.sequences.position_ids import layout_position_ids
from zoo.sequences.time_index import SpanIndex

TeacherName = Literal["vggt", "vggt_omega", "da3"]


class TeacherLayout(NamedTuple):
    """A frozen model of geometry.

    Attributes:
        num_layers: Layers of its trunk.
        depth: Those, from 0, whose fraction of the trunk gives the decoder layers that the depth head reads.
        distill: Those whose tokens are distilled.
        width: Channels of these tokens.
        side: Of a double patch, in pixels: one token of the vision tower sees as much of the image.
        longest: Pixels of the longer side of its images.
    """

    num_layers: int
    depth: tuple[int, ...]
    distill: tuple[int, ...]
    width: int
    side: int
    longest: int


VGGT_LAYERS = (4, 11, 17, 23)
TEACHERS: dict[str, TeacherLayout] = {
    "vggt": TeacherLayout(24, VGGT_LAYERS, VGGT_LAYERS, 1024, 28, 504),
    "vggt_omega": TeacherLayout(24, VGGT_LAYERS, VGGT_LAYERS, 1024, 32, 512),
    "da3": TeacherLayout(40, (19, 27, 33, 39), (18, 26, 32, 38), 1536, 28, 504),
}


def find_teacher(name: str) -> TeacherLayout:
    """Return the teacher of this name.

    Raises:
        InputError: There is none.
    """
    check_choice("teacher", name, TeacherName)
    return TEACHERS[name]


def matching_layers(layers: tuple[int, ...], num_layers: int, decoder_layers: int) -> tuple[int, ...]:
    """Return the decoder's hidden states at the same fraction of its depth as layers of a teacher.

    Args:
        layers: Of the teacher, from 0.
        num_layers: Of the teacher.
        decoder_layers: Of the decoder. Index 0 is its input, i the output of layer i - 1, and the last index, which
            is `decoder_layers`, the output of the final norm.
    """
    return tuple(round((layer + 1) / num_layers * decoder_layers) for layer in layers)  # half to even, as published


def geovr_layers(teacher: str, decoder_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the hidden states that the heads for `depth` and `distill` read, see `matching_layers`.

    Example:
        >>> geovr_layers("vggt", 28)["depth"]
        (6, 14, 21, 28)
    """
    own = find_teacher(teacher)
    return {
        "depth": matching_layers(own.depth, own.num_layers, decoder_layers),
        "distill": matching_layers(own.distill, own.num_layers, decoder_layers),
    }


def teacher_size(teacher: str, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a teacher's images for frames of this size, in whole double patches."""
    own = find_teacher(teacher)
    scale = own.longest / max(height, width)

    def fit(side: int) -> int:
        return own.longest if side == max(height, width) else max(1, round(side * scale / own.side)) * own.side

    return fit(height), fit(width)


# ---- GeoVR's sequences in training: a camera token behind each view, and a scale token behind the last view of a video

TEXT, START, IMAGE, VIDEO = range(4)  # what positions depend on of a token
VIDEO_TYPE = 2  # of transformers' mm_token_type_ids
EXTRA_TOKENS = {  # by camera, scale
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
    """Insert placeholders of GeoVR's tokens into the sequences of a stock processor, padded on the right.

    `SequenceBuilder` needs no such step: the zoo's prompts have the placeholders from the start.

    Args:
        input_ids: One placeholder per visual token.
        attention_mask: 0 for padding.
        mm_token_type_ids: 2 for videos.
        labels: -100 where nothing is supervised.
        video_grid_thw: (t, h, w) in patches of each video, in the order of the batch.
        video_token_id: The placeholder.
        merge_size: Patches per side in one visual token.
        camera: Insert one behind each view.
        scale: Insert one behind the last view of each video.

    Returns:
        The first four arguments, longer.

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
    # what is inserted is a copy of the visual token before it, which nothing is learned from
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
    """Return the mRoPE positions of Qwen3-VL for sequences with GeoVR's tokens; 0 in padding.

    Args:
        input_ids: From `expand_tokens`.
        mm_token_type_ids: From there as well; positions depend on these and not on ids.
        video_grid_thw: (t, h, w) in patches of each video.
        attention_mask: 0 for padding; None is none.
        merge_size: Patches per side in one visual token.
        camera: Whether a token follows each view.
        scale: Whether one follows the last view of each video.
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


# ---- GeoVR's heads on the decoder's hidden states (arXiv 2606.05833), with the names of its released files ----------

CAMERA_WIDTH, SCALE_WIDTH = 1536, 512
DEPTH_FEATURES, DEPTH_CHANNELS = 256, (256, 512, 1024, 1024)
TOKEN_CELLS = 4  # cells of the merged map per side of a token


class PoseMLP(nn.Module):
    """State of a camera token to VGGT's pose encoding: translation, quaternion, fields of view.

    Args:
        width: Of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, CAMERA_WIDTH),
            nn.GELU(),
            nn.Linear(CAMERA_WIDTH, CAMERA_WIDTH),
            nn.GELU(),
        )
        self.fc_t = nn.Linear(CAMERA_WIDTH, 3)
        self.fc_qvec = nn.Linear(CAMERA_WIDTH, 4)
        fields_of_view = nn.Linear(CAMERA_WIDTH, 2)
        nn.init.ones_(fields_of_view.bias)  # below 0, where half of them would start, the ReLU passes no gradient
        self.fc_fov = nn.Sequential(fields_of_view, nn.ReLU())

    def forward(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 9"]:
        """Predict pose encodings."""
        hidden = self.backbone(states)
        return torch.cat((self.fc_t(hidden), self.fc_qvec(hidden), self.fc_fov(hidden)), -1)


class ScaleMLP(nn.Module):
    """State of the scale token to meters per unit of the teacher's lengths.

    Args:
        width: Of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, SCALE_WIDTH), nn.GELU(), nn.Linear(SCALE_WIDTH, 1)
        )

    def forward(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Predict a scale above 0."""
        return self.backbone(states)[..., 0].exp()


class TokenMLP(nn.Module):
    """Visual tokens to a teacher's tokens: LayerNorm and two linear layers.

    Args:
        width: Of the decoder.
        teacher_width: Of the teacher's tokens.
    """

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, teacher_width)
        self.fc2 = nn.Linear(teacher_width, teacher_width)

    def forward(self, hidden: Float[Tensor, "T h w D"], target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Resample the tokens to the grid of the teacher's pooled tokens, and predict these."""
        if tuple(hidden.shape[1:3]) != tuple(target_hw):
            maps = F.interpolate(hidden.movedim(-1, 1), tuple(target_hw), mode="bilinear", align_corners=False)
            hidden = maps.movedim(1, -1)
        return self.fc2(F.gelu(self.fc1(self.norm(hidden))))


class DepthHead(DPT):
    """DPT on the visual tokens of four decoder layers: a depth for each pixel of the teacher's image.

    Args:
        width: Of the decoder.
        side: Pixels of the teacher's image for each token and side.
        features: Width of the merged maps.
        channels: Widths of the four maps.
    """

    def __init__(
        self,
        width: int,
        side: int,
        features: int = DEPTH_FEATURES,
        channels: Sequence[int] = DEPTH_CHANNELS,
    ) -> None:
        super().__init__(width, channels, patch_size=1)  # images are counted in tokens here
        self.side = side
        self.scratch = FusionChain(features, channels, ResidualUnit)
        self.proj = nn.Conv2d(features, (side // TOKEN_CELLS) ** 2, 1)

    def forward(
        self, hidden: Sequence[Float[Tensor, "T tokens D"]], grid_hw: Sequence[int], target_hw: Sequence[int]
    ) -> Float[Tensor, "T H W"]:
        """Predict depth.

        Args:
            hidden: Visual tokens of the four layers.
            grid_hw: Rows and columns of tokens.
            target_hw: Of the teacher's image in pixels, multiples of `side`.
        """
        (rows, columns), (height, width) = grid_hw, target_hw
        levels = self.scratch.levels(self.reassemble(hidden, rows, columns))
        size = (height // self.side * TOKEN_CELLS, width // self.side * TOKEN_CELLS)
        merged = upsample(self.scratch.merge(levels, upscale=1), size)
        maps = self.proj(self.embed_positions(merged, width / height))
        return F.pixel_shuffle(maps, self.side // TOKEN_CELLS)[:, 0].exp()


class GeoVRHeads(nn.Module):
    """The heads of a GeoVR model, as far as its files have them.

    Args:
        teacher: `vggt`, `vggt_omega` or `da3`.
        decoder_layers: Of the decoder.
        width: Of the decoder.
        parts: Names of the heads.

    Attributes:
        depth_layers: The hidden states that `depth` reads, see `geovr_layers`.
        distill_layers: Those that `distill` reads.
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
        """Build the heads of official tensors, in their dtype; all other tensors are ignored."""
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
        """Predict the teacher's depth; see `DepthHead`."""
        return self.dpt_head(hidden, grid_hw, target_hw)

    def distill(self, hidden: Float[Tensor, "T h w D"], i: int, target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Predict the teacher's pooled tokens of the i-th distilled layer."""
        return self.distill_head_list[i](hidden, target_hw)

    def scale(self, states: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Predict meters per unit of the teacher."""
        return self.scale_head(states)


# ---- GeoVR's losses, and the scale that it learns; each of one video ------------------------------------------------

DepthLoss = Literal["l1", "silog"]
MAX_ERROR = 100.0  # of a number of the translation, and of a gradient of depth
FIELD_OF_VIEW_WEIGHT = 0.5
STRIDES, FEWEST_PIXELS = (1, 2, 4, 8), 10
QUANTILE, FEWEST_VALUES, MOST_VALUES = 0.98, 1000, 10**7
SILOG_MEAN = 0.5


def camera_loss(pred: Float[Tensor, "T 9"], target: Float[Tensor, "T 9"]) -> dict[str, Float[Tensor, ""]]:
    """Return the mean absolute errors of `translation`, `rotation` and `focal`, and their weighted sum `total`."""
    error = (pred - target).abs()
    translation, rotation, focal = error[:, :3].clamp(max=MAX_ERROR).mean(), error[:, 3:7].mean(), error[:, 7:].mean()
    total = translation + rotation + FIELD_OF_VIEW_WEIGHT * focal
    return {"translation": translation, "rotation": rotation, "focal": focal, "total": total}


def depth_loss(
    pred: Float[Tensor, "T H W"], target: Float[Tensor, "T H W"], kind: DepthLoss = "l1"
) -> dict[str, Float[Tensor, ""]]:
    """Compare depth maps.

    Args:
        pred: The prediction.
        target: The teacher's, in its own unit.
        kind: `l1`: the mean absolute error `l1` without outliers, plus that of the `gradient` at four resolutions.
            `silog`: the scale-invariant error of the logarithms (arXiv 1406.2283) alone.
    """
    check_choice("kind", kind, DepthLoss)
    if kind == "silog":
        difference = pred.log() - target.log()
        return {"total": (difference.square().mean() - SILOG_MEAN * difference.mean().square() + 1e-6).sqrt()}
    error = pred - target
    l1, gradient = without_outliers(error.abs().flatten()).mean(), _gradient_loss(error)
    return {"l1": l1, "gradient": gradient, "total": l1 + gradient}


def _gradient_loss(error: Float[Tensor, "T H W"]) -> Float[Tensor, ""]:
    total = error.new_zeros(())
    for stride in STRIDES:
        coarse = error[:, ::stride, ::stride]
        if min(coarse.shape[1:]) > 1 and coarse.numel() >= FEWEST_PIXELS:
            for axis in (1, 2):
                total = total + coarse.diff(dim=axis).abs().clamp(max=MAX_ERROR).mean()
    return total / len(STRIDES)


def without_outliers(values: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """Return the values up to their 98 % quantile, and up to 100; all of them if few would be left.

    The quantile of many values is that of a random million of them, the same in any process.
    """
    if len(values) <= FEWEST_VALUES:
        return values
    drawn = values.detach()
    if len(drawn) > MOST_VALUES:
        generator = torch.Generator(drawn.device).manual_seed(0)
        drawn = drawn[torch.randint(len(drawn), (10**6,), generator=generator, device=drawn.device)]
    threshold = drawn.kthvalue(math.ceil(QUANTILE * (len(drawn) - 1)) + 1).values.clamp(max=MAX_ERROR)
    kept = values[values <= threshold]
    return kept if len(kept) > FEWEST_VALUES else values


def pool_teacher(features: Float[Tensor, "T h w C"]) -> Float[Tensor, "T H W C"]:
    """Average the teacher's tokens over double patches."""
    return F.avg_pool2d(features.movedim(-1, 1), 2).movedim(1, -1)


def distill_loss(pred: Float[Tensor, "T h w C"], target: Float[Tensor, "T h w C"]) -> Float[Tensor, ""]:
    """Return the mean cosine distance of tokens."""
    return 1 - F.cosine_similarity(pred, target, dim=-1).mean()


def scale_loss(pred: Float[Tensor, " B"], target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean absolute error of log(1 + scale)."""
    return (pred.log1p() - target.log1p()).abs().mean()


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
    """Fit meters per unit of the teacher's depth to a metric model's, over confident pixels that are not sky.

    Args:
        depth: The teacher's.
        conf: Its confidence.
        pose: Its pose encodings, whose fields of view give the focal length.
        metric_depth: Of the metric model (DA3METRIC), for a focal length of 300 pixels. Its images may have another
            size: VGGT-Omega's are resized to multiples of 14 pixels.
        sky: The metric model's sky, 0 where there is none.
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


# ---- GeoVR's training step on tensors with official names, for comparisons with other code --------------------------


def run_official(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Compute losses and gradients of a whole GeoVR on a micro-batch of videos, by the zoo's own training step.

    Args:
        arguments: Of `zoo.checkpoints.geovr.run_geovr`, as far as they are not named: the stock model's configuration,
            a state dict, inputs, and targets.
        options: The rest of them: `teacher`, `camera`, `depth`, `scale`, `distill`.

    Returns:
        The losses by name, their weighted sum `total`, and `gradient_norms` by official name.
    """
    from zoo.checkpoints.geovr import run_geovr

    return run_geovr(*arguments, **options)
