"""Objectives that learn from a teacher (`--model.teacher`), a frozen 3D model, as in GeoVR (arXiv 2606.05833).

From top to bottom: the map of decoder layers to teacher layers, the heads on the decoder's hidden states, the losses,
and the objectives. `zoo.objectives.teacher_model` computes the targets. `zoo.published.geovr` compares heads and
losses with the released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError, check_choice
from zoo.geometry.layers import DPT, FusionChain, ResidualUnit, upsample
from zoo.objectives.base import Decoded, Objective
from zoo.precision import full_precision
from zoo.scene_encoding import EncodedScene
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import TeacherTargets

# ---- Map of decoder layers to teacher layers ------------------------------------------------------------------------

TeacherName = Literal["vggt", "vggt_omega", "da3"]


class TeacherLayout(NamedTuple):
    """The sizes of a frozen geometry model.

    Attributes:
        num_layers: Number of layers of its trunk.
        depth: Trunk layers, from 0. The depth head reads the decoder layers at the same fraction of depth.
        distill: Trunk layers whose tokens are distilled.
        width: Channels of these tokens.
        side: Side in pixels of 2 x 2 patches, the part of the image that one 2D token sees.
        longest: Longer side of its images in pixels.
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
    """Return the layout of the teacher with this name.

    Raises:
        InputError: There is no such teacher.
    """
    check_choice("teacher", name, TeacherName)
    return TEACHERS[name]


def matching_layers(layers: tuple[int, ...], num_layers: int, decoder_layers: int) -> tuple[int, ...]:
    """Return the decoder's hidden states at the same fraction of depth as the teacher's layers.

    Args:
        layers: Teacher layers, from 0.
        num_layers: Number of teacher layers.
        decoder_layers: Number of decoder layers. Index 0 is the decoder's input, i the output of layer i - 1, and the
            last index, `decoder_layers`, the output of the final norm.
    """
    # rounds half to even, as published
    return tuple(round((layer + 1) / num_layers * decoder_layers) for layer in layers)


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


# ---- Heads on the decoder's hidden states, with the names of GeoVR's released files ---------------------------------

CAMERA_WIDTH, SCALE_WIDTH = 1536, 512
DEPTH_FEATURES, DEPTH_CHANNELS = 256, (256, 512, 1024, 1024)
TOKEN_CELLS = 4  # cells of the merged map per side of a token


class PoseMLP(nn.Module):
    """Predicts VGGT's pose encoding (translation, quaternion, fields of view) from a camera token's state.

    Args:
        width: Width of the decoder.
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
        # otherwise half of them would start below 0, where the ReLU passes no gradient
        nn.init.ones_(fields_of_view.bias)
        self.fc_fov = nn.Sequential(fields_of_view, nn.ReLU())

    def forward(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 9"]:
        """Predict pose encodings."""
        hidden = self.backbone(states)
        return torch.cat((self.fc_t(hidden), self.fc_qvec(hidden), self.fc_fov(hidden)), -1)


class ScaleMLP(nn.Module):
    """Predicts meters per unit of the teacher's lengths from the scale token's state.

    Args:
        width: Width of the decoder.
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
    """Predicts a teacher's tokens from visual tokens, by LayerNorm and two linear layers.

    Args:
        width: Width of the decoder.
        teacher_width: Width of the teacher's tokens.
    """

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, teacher_width)
        self.fc2 = nn.Linear(teacher_width, teacher_width)

    def forward(self, hidden: Float[Tensor, "T h w D"], target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Resample the tokens to the grid of the teacher's pooled tokens, and predict the pooled tokens."""
        if tuple(hidden.shape[1:3]) != tuple(target_hw):
            maps = F.interpolate(hidden.movedim(-1, 1), tuple(target_hw), mode="bilinear", align_corners=False)
            hidden = maps.movedim(1, -1)
        return self.fc2(F.gelu(self.fc1(self.norm(hidden))))


class DepthHead(DPT):
    """DPT on the visual tokens of four decoder layers, which predicts the depth of each pixel of the teacher's image.

    Args:
        width: Width of the decoder.
        side: Side in pixels of the part of the teacher's image that one token covers.
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
        super().__init__(width, channels, patch_size=1)  # the unit of image sizes is a token here
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
            target_hw: Size of the teacher's image in pixels, in multiples of `side`.
        """
        (rows, columns), (height, width) = grid_hw, target_hw
        levels = self.scratch.levels(self.reassemble(hidden, rows, columns))
        size = (height // self.side * TOKEN_CELLS, width // self.side * TOKEN_CELLS)
        merged = upsample(self.scratch.merge(levels, upscale=1), size)
        maps = self.proj(self.embed_positions(merged, width / height))
        return F.pixel_shuffle(maps, self.side // TOKEN_CELLS)[:, 0].exp()


# ---- Losses, each of one video --------------------------------------------------------------------------------------

DepthLoss = Literal["l1", "silog"]
MAX_ERROR = 100.0  # bound on the error of a translation component or a depth gradient
FIELD_OF_VIEW_WEIGHT = 0.5
STRIDES, FEWEST_PIXELS = (1, 2, 4, 8), 10
QUANTILE, FEWEST_VALUES, MOST_VALUES = 0.98, 1000, 10**7
SILOG_MEAN = 0.5


def pose_errors(
    pred: Float[Tensor, "*rows t 9"], target: Float[Tensor, "t 9"]
) -> tuple[Float[Tensor, "*rows t 3"], Float[Tensor, "*rows t 4"], Float[Tensor, "*rows t 2"]]:
    """Return the absolute errors of translation (bounded), quaternion and fields of view of pose encodings."""
    error = (pred - target).abs()
    return error[..., :3].clamp(max=MAX_ERROR), error[..., 3:7], error[..., 7:]


def depth_loss(
    pred: Float[Tensor, "T H W"], target: Float[Tensor, "T H W"], kind: DepthLoss = "l1"
) -> dict[str, Float[Tensor, ""]]:
    """Compare depth maps.

    Args:
        pred: The prediction.
        target: The teacher's depth, in its own unit.
        kind: `l1`: the mean absolute error `l1` without outliers, plus the error `gradient` of spatial gradients at
            four resolutions. `silog`: only the scale-invariant error of the logarithms (arXiv 1406.2283).
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
    """Return the values up to their 98 % quantile and up to 100, or all values if few would be left.

    The quantile of many values is estimated from one million random ones, which are the same in every process.
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


# ---- Objectives -----------------------------------------------------------------------------------------------------

TokenUse = Literal["training", "always", "none"]


class TeacherObjective(Objective):
    """An objective whose targets come from a teacher. Scenes without teacher targets are left out.

    Args:
        weight: See `Objective`.
        token: When its token is part of the prompt: in `training` only, `always`, or `none` if there is no token.

    Attributes:
        indices: Hidden states that are read. i is the output of layer i - 1 (in Qwen3-VL before DeepStack features are
            added), and the last index is the output of the final norm.
        layer_map: The entry of `geovr_layers` that provides default indices.
    """

    indices: tuple[int, ...] = ()
    layer_map: Literal["depth", "distill"] | None = None
    _asked: Sequence[int] | None = None

    def __init__(self, weight: float = 1.0, token: TokenUse = "none") -> None:
        super().__init__(weight)
        check_choice(f"--model.objectives: {type(self).__name__}.token", token, TokenUse)
        self.adds_token, self.token_in_training_only = token != "none", token == "training"

    def match_teacher(self, name: TeacherName) -> None:
        """Read the decoder layers that are published for this kind of teacher, unless layers were given."""
        if self.layer_map is not None:
            self._bind_layers(self._last, name)

    def _bind_layers(self, num_layers: int, teacher: TeacherName = "vggt") -> None:
        """Bind the given indices, or the teacher's. A teacher's indices are at least 1, for small decoders."""
        assert self.layer_map is not None
        published = geovr_layers(teacher, num_layers)[self.layer_map]
        self._bind_indices(self._asked or [max(1, index) for index in published], num_layers)

    def _bind_indices(self, indices: Sequence[int], num_layers: int) -> None:
        if not all(1 <= index <= num_layers for index in indices):
            raise InputError(
                f"--model.objectives: {type(self).__name__} reads hidden states {list(indices)} of a decoder with "
                f"{num_layers} layers: give some from 1 to {num_layers}"
            )
        self.indices, self._last = tuple(indices), num_layers
        self.layers = tuple(dict.fromkeys(index - 1 for index in indices if index < num_layers))

    def _views(
        self, decoded: Decoded, index: int
    ) -> Iterator[tuple[EncodedScene, TeacherTargets, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with teacher targets, and the hidden states of its visual tokens, extra tokens last."""
        for scene, states in decoded.views(None if index == self._last else index - 1):
            if scene.teacher_targets is not None:
                yield scene, scene.teacher_targets, states


class Distillation(TeacherObjective):
    """Predict several layers of the teacher's tokens by heads on as many decoder layers, with a cosine loss.

    Args:
        teacher_width: Channels of one layer of the teacher's tokens.
        indices: The hidden state for each teacher layer, see `TeacherObjective`. null uses the depth of layers 18, 26,
            32 and 38 of 40 for Depth Anything 3, and of layers 4, 11, 17 and 23 of 24 for other teachers.
        weight: See `Objective`.
    """

    teacher_target = "tokens"
    layer_map = "distill"

    def __init__(self, teacher_width: int = 1024, indices: list[int] | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.teacher_width, self._asked = teacher_width, indices

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self._bind_layers(num_layers)
        self.heads = nn.ModuleList([TokenMLP(width, self.teacher_width) for _ in self.indices])

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        return {
            "cosine": torch.stack([self._layer_loss(decoded, number) for number in range(len(self.indices))]).mean()
        }

    def _layer_loss(self, decoded: Decoded, number: int) -> Tensor:
        losses = []
        for scene, teacher, states in self._views(decoded, self.indices[number]):
            if (found := len(teacher.tokens)) != len(self.indices):
                raise InputError(
                    f"--model.objectives: Distillation reads {len(self.indices)} hidden states, and the teacher has "
                    f"{found} layers: give as many indices as --model.teacher.encoder.layers"
                )
            if (width := teacher.tokens[number].shape[-1]) != self.teacher_width:
                raise InputError(
                    f"--model.objectives: Distillation has teacher_width {self.teacher_width}, and the teacher's "
                    f"tokens {width} channels"
                )
            target = pool_teacher(teacher.tokens[number].float())
            _, rows, columns = scene.scene.token_grid
            flat = states[:, :, : rows * columns].unflatten(2, (rows, columns)).flatten(0, 1)
            with full_precision(states.device):
                predicted = self.heads[number](flat, target.shape[1:3]).unflatten(0, (len(states), -1))
                distance = 1 - torch.cosine_similarity(predicted, target, dim=-1)
            losses.append(_scene_mean(scene, distance))
        return decoded.mean_over_scenes(losses)


class TeacherPose(TeacherObjective):
    """Predict the teacher's pose encodings from a learned token after the 2D tokens of each view.

    The encodings are world-to-camera, as published for VGGT. The published ones for Depth Anything 3 are
    camera-to-world.

    Args:
        token: `training`: the token is only part of training prompts, as published. `always`: it is part of all
            prompts. `none`: no token is added, and the last 2D token of a view is used instead. The first view has its
            own token.
        weight: See `Objective`. 2.5 as published.
    """

    teacher_target = "pose_enc"
    extra_tokens = ExtraTokens.LAST

    def __init__(self, token: TokenUse = "training", weight: float = 2.5) -> None:
        super().__init__(weight, token)
        self.has_first_token = self.adds_token

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self._bind_indices([num_layers], num_layers)
        self.head = PoseMLP(width)

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        terms: dict[str, list[tuple[EncodedScene, Tensor, Tensor]]] = {"translation": [], "rotation": [], "focal": []}
        for scene, teacher, states in self._views(decoded, self.indices[0]):
            if teacher.pose_enc is None or teacher.has_camera is None:
                continue
            place = -1 if self.adds_token else scene.scene.tokens_per_step - 1
            with full_precision(states.device):
                translation, rotation, focal = pose_errors(self.head(states[:, :, place]), teacher.pose_enc)
            parts = (translation, rotation, FIELD_OF_VIEW_WEIGHT * focal)
            for own, part in zip(terms.values(), parts, strict=True):
                own.append(_scene_mean(scene, part.mean(-1), teacher.has_camera))
        return {name: decoded.mean_over_scenes(own) for name, own in terms.items()}


class TeacherDepth(TeacherObjective):
    """Predict the teacher's depth of each pixel from the 2D tokens of four layers, by a head of about 32M parameters.

    Args:
        kind: See `depth_loss`.
        indices: The four hidden states, see `TeacherObjective`. null uses the depth of layers 19, 27, 33 and 39 of 40
            for Depth Anything 3, and of layers 4, 11, 17 and 23 of 24 for other teachers.
        side: Side in pixels of the part of the teacher's image that one 2D token covers: twice the teacher's patch
            size.
        features: Width of the head.
        channels: Widths of its four maps.
        weight: See `Objective`.
    """

    teacher_target = "depth"
    layer_map = "depth"

    def __init__(
        self,
        kind: DepthLoss = "l1",
        indices: list[int] | None = None,
        side: int = 28,
        features: int = DEPTH_FEATURES,
        channels: Sequence[int] = DEPTH_CHANNELS,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        check_choice("--model.objectives: TeacherDepth.kind", kind, DepthLoss)
        self.kind, self._asked = kind, indices
        self.side, self.features, self.channels = side, features, tuple(channels)

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self._bind_layers(num_layers)
        self.head = DepthHead(width, self.side, self.features, self.channels)

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        losses = []
        for read in zip(*(self._views(decoded, index) for index in self.indices), strict=True):
            scene, teacher, first = read[0]
            if teacher.depth is None:
                continue
            target, is_known = teacher.depth.float(), teacher.depth > 0
            # unknown pixels get no error, neither of depth nor of its logarithm
            target = torch.where(is_known, target, 1.0)
            _, rows, columns = scene.scene.token_grid
            if any(size % self.side for size in target.shape[1:]):
                raise InputError(
                    f"--model.objectives: TeacherDepth has side {self.side}, and the teacher's images "
                    f"{target.shape[2]} x {target.shape[1]} pixels: set twice its patch size"
                )
            found = []
            for row in range(len(first)):
                hidden = [states[row, :, : rows * columns] for _, _, states in read]
                with full_precision(first.device):
                    depth = self.head(hidden, (rows, columns), target.shape[1:]).where(is_known, target)
                    found.append(depth_loss(depth, target, self.kind)["total"])
            losses.append(_scene_mean(scene, torch.stack(found)[:, None]))
        return {self.kind: decoded.mean_over_scenes(losses)}


class MetricScale(TeacherObjective):
    """Predict meters per unit of the teacher's lengths from a learned token after the last view of a video.

    Args:
        token: `training`: the token is only part of training prompts, as published. `always`: it is part of all
            prompts. `none`: no token is added, and the last visual token is used instead, as for images.
        weight: See `Objective`.
    """

    teacher_target = "meters_per_unit"
    extra_tokens = ExtraTokens.END

    def __init__(self, token: TokenUse = "training", weight: float = 1.0) -> None:
        super().__init__(weight, token)

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self.head = ScaleMLP(width)

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        losses = []
        for scene, states in decoded.visual_states(decoded.last_hidden_state):
            teacher = scene.teacher_targets
            if teacher is not None and teacher.meters_per_unit is not None:
                with full_precision(states.device):
                    scale = self.head(states[:, -1:])
                losses.append(_scene_mean(scene, (scale.log1p() - teacher.meters_per_unit.log1p()).abs()))
        return {"log_scale": decoded.mean_over_scenes(losses)}


def _scene_mean(
    scene: EncodedScene, values: Float[Tensor, "rows ..."], known: Bool[Tensor, " ..."] | None = None
) -> tuple[EncodedScene, Float[Tensor, "rows 1"], Bool[Tensor, " 1"]]:
    """Average the losses of a scene, which counts once for any number of views."""
    if known is None:
        known = torch.ones_like(values[0], dtype=torch.bool)
    mean = values.where(known, 0.0).flatten(1).sum(1) / known.sum().clamp(min=1)
    return scene, mean[:, None], known.any()[None]
