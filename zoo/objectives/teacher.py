"""Objectives that learn from a teacher (`--model.teacher`), as GeoVR does (arXiv 2606.05833)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.errors import InputError, check_choice
from zoo.objectives.base import Decoded, Objective
from zoo.objectives.geovr import (
    DEPTH_CHANNELS,
    DEPTH_FEATURES,
    FIELD_OF_VIEW_WEIGHT,
    MAX_ERROR,
    DepthHead,
    DepthLoss,
    PoseMLP,
    ScaleMLP,
    TeacherName,
    TokenMLP,
    depth_loss,
    geovr_layers,
    pool_teacher,
)
from zoo.precision import full_precision
from zoo.scene_encoding import EncodedScene
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import TeacherTargets

TokenUse = Literal["training", "always", "none"]


class TeacherObjective(Objective):
    """An objective whose targets are a teacher's; scenes without one are left out.

    Args:
        weight: See `Objective`.
        token: Whether its token is part of the prompt in `training` alone, `always`, or there is `none`.

    Attributes:
        indices: The hidden states that are read: i is the output of layer i - 1 (of Qwen3-VL before DeepStack's
            features are added to it), and the last one that of the final norm.
        layer_map: The part of `geovr_layers` that they are of where none are given.
    """

    indices: tuple[int, ...] = ()
    layer_map: Literal["depth", "distill"] | None = None
    _asked: Sequence[int] | None = None

    def __init__(self, weight: float = 1.0, token: TokenUse = "none") -> None:
        super().__init__(weight)
        check_choice(f"--model.objectives: {type(self).__name__}.token", token, TokenUse)
        self.adds_token, self.token_in_training_only = token != "none", token == "training"

    def match_teacher(self, name: TeacherName) -> None:
        """See `Objective`."""
        if self.layer_map is not None:
            self._bind_layers(self._last, name)

    def _bind_layers(self, num_layers: int, teacher: TeacherName = "vggt") -> None:
        """Bind the given indices, or those of a teacher; of few decoder layers these are from 1."""
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
        """Yield each scene with a teacher, and the hidden states of its visual tokens, extra ones last."""
        for scene, states in decoded.views(None if index == self._last else index - 1):
            if scene.scene.teacher is not None:
                yield scene, scene.scene.teacher, states


class Distillation(TeacherObjective):
    """Predict the teacher's tokens of several layers by heads on as many decoder layers; the loss is their cosine.

    Args:
        teacher_width: Channels of a layer of the teacher's tokens.
        indices: The hidden state for each layer of the teacher, see `TeacherObjective`; null are those at the depth of
            layers 18, 26, 32 and 38 of 40 of a Depth Anything 3, of other teachers 4, 11, 17 and 23 of 24.
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
    """Predict the teacher's pose encodings from a learned token behind the 2D tokens of each view.

    They are world-to-camera, as published for VGGT; those published for Depth Anything 3 are camera-to-world.

    Args:
        token: The token is part of the prompt in `training` alone, as published, or `always`; or `none` is added, and
            the last 2D token of a view has its place. The first view has a token of its own.
        weight: See `Objective`; 2.5 as published.
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
                error = (self.head(states[:, :, place]) - teacher.pose_enc).abs()
            parts = (error[..., :3].clamp(max=MAX_ERROR), error[..., 3:7], FIELD_OF_VIEW_WEIGHT * error[..., 7:])
            for own, part in zip(terms.values(), parts, strict=True):
                own.append(_scene_mean(scene, part.mean(-1), teacher.has_camera))
        return {name: decoded.mean_over_scenes(own) for name, own in terms.items()}


class TeacherDepth(TeacherObjective):
    """Predict the teacher's depth of each pixel from the 2D tokens of four layers, by a head of some 32M parameters.

    Args:
        kind: See `zoo.objectives.geovr.depth_loss`.
        indices: The four hidden states, see `TeacherObjective`; null are those at the depth of layers 19, 27, 33 and 39
            of 40 of a Depth Anything 3, of other teachers 4, 11, 17 and 23 of 24.
        side: Pixels of the teacher's images for each 2D token and side: twice its patch size.
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
            target = torch.where(is_known, target, 1.0)  # an unknown pixel has no error, of its logarithm neither
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
    """Predict the meters per unit of the teacher's lengths from a learned token behind the last view of a video.

    Args:
        token: The token is part of the prompt in `training` alone, as published, or `always`; or `none` is added, and
            the last visual token has its place, as for still images.
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
            teacher = scene.scene.teacher
            if teacher is not None and teacher.meters_per_unit is not None:
                with full_precision(states.device):
                    scale = self.head(states[:, -1:])
                losses.append(_scene_mean(scene, (scale.log1p() - teacher.meters_per_unit.log1p()).abs()))
        return {"log_scale": decoded.mean_over_scenes(losses)}


def _scene_mean(
    scene: EncodedScene, values: Float[Tensor, "rows ..."], known: Bool[Tensor, " ..."] | None = None
) -> tuple[EncodedScene, Float[Tensor, "rows 1"], Bool[Tensor, " 1"]]:
    """Average the losses of a scene, which counts once, whatever its number of views."""
    if known is None:
        known = torch.ones_like(values[0], dtype=torch.bool)
    mean = values.where(known, 0.0).flatten(1).sum(1) / known.sum().clamp(min=1)
    return scene, mean[:, None], known.any()[None]
