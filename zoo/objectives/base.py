"""Objectives compute training losses from the model's outputs for a batch.

A model's forward pass iterates over its objectives. Each reads hidden states from `Decoded`, and its targets from
`EncodedScene`. Targets come from the dataset, the geometry encoder, or a teacher.

The averaging rules come first. They count questions: one question is one answer that is learned from, so each turn of a
conversation counts as one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import VisualTokens
from zoo.configuration import Configurable
from zoo.encodings.base import CameraModule, EncodedCameras
from zoo.errors import InputError
from zoo.fusions.base import Connector
from zoo.model_spec import ModelSpec, Target
from zoo.precision import to_float32
from zoo.scene_encoding import EncodedScene
from zoo.sequences.batch import Sequences
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import PreparedScene, TeacherTarget, TeacherTargets
from zoo.sequences.target_views import TargetViews
from zoo.values import check_shape

AverageRule = Literal["questions", "micro_batch_tokens"]


class SceneLoss(NamedTuple):
    """A loss on the visual tokens of a scene.

    Attributes:
        values: Loss in each sequence that shows the scene, with any shape after the first axis.
        known: True where the target is known.
        num_answers: Number of answers that are learned from in each of these sequences.
    """

    values: Float[Tensor, "rows ..."]
    known: Bool[Tensor, " ..."]
    num_answers: Sequence[int]


class Average(ABC):
    """A rule for averaging the losses of a batch."""

    @abstractmethod
    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """Average the losses of the supervised tokens.

        `lengths` has the number of supervised tokens in each token's answer.
        """

    @abstractmethod
    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """Average the losses on visual tokens.

        There is at least one scene. A scene without a known target contributes 0.
        """


class QuestionAverage(Average):
    """Mean over the questions of a batch, independent of the lengths of their answers.

    The loss of a question is the mean over the tokens of its answer. On visual tokens it is the mean over the scene's
    tokens with a known target, and 0 if there are none. The mean of batch losses, weighted by their numbers of
    questions, therefore equals the loss of all batches together, for any distribution of questions and scenes, see
    `Batch.weight`.
    """

    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """See `Average`."""
        return (losses / lengths).sum() / max(num_answers, 1)  # zero if another process learns from these answers

    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """See `Average`."""
        total = losses[0].values.new_zeros(())
        for values, known, counts in losses:
            mean = _known(values, known).flatten(1).sum(1) / known.sum().clamp(min=1)
            for row, count in zip(mean, counts, strict=True):  # a tensor of counts would be copied to the GPU
                total = total + count * row
        return total / max(num_answers, 1)


class MicroBatchAverage(Average):
    """Mean over the tokens of one batch in one process, as the published scripts train.

    An answer then counts by its share of its batch's tokens, so the loss of an optimizer step depends on how questions
    are distributed over processes and batches. On visual tokens it is the mean over tokens with a known target, with
    each scene counted once.
    """

    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """See `Average`."""
        return losses.sum() / max(len(losses), 1)

    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """See `Average`."""
        total = torch.stack([_known(values, known).mean(0).sum() for values, known, _ in losses]).sum()
        return total / torch.stack([known.sum() for _, known, _ in losses]).sum().clamp(min=1)


# How a step is averaged: `QuestionSampler` knows the questions of an optimizer step over all processes and accumulated
# batches. Each batch carries their number (`OptimizerStep.num_answers`). An objective returns the mean over its batch's
# answers. `Batch.weight` turns it into the batch's share of the mean over the step, so each answer has the same weight
# on any number of devices. With `--data.on_error skip` answers may be missing. `Task.on_before_optimizer_step` then
# divides the gradients by the share that could be read.
AVERAGES: dict[AverageRule, Average] = {"questions": QuestionAverage(), "micro_batch_tokens": MicroBatchAverage()}


def _known(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0)  # values without a known target may be infinite


# ---- Inputs of objectives: hidden states of chosen decoder layers at the visual tokens of each scene ----------------


@dataclass(eq=False)
class Decoded:
    """Decoded sequences about scenes.

    Attributes:
        scenes: Encoded scenes of the batch, with the targets of objectives.
        sequences: The scene that each sequence shows, the places of visual tokens, and the supervised tokens.
        last_hidden_state: After the decoder's last norm.
        layers: Outputs of the decoder layers that some objective reads.
        lm_head: The projection of hidden states to logits.
        average: How losses are averaged.
        camera_encoding: The hooks of the camera encoding, after all layers. None without cameras.
    """

    scenes: Sequence[EncodedScene]
    sequences: Sequences
    last_hidden_state: Float[Tensor, "S L D"]
    layers: Mapping[int, Float[Tensor, "S L D"]]
    lm_head: Callable[[Tensor], Tensor]
    average: Average = AVERAGES["questions"]
    camera_encoding: EncodedCameras | None = None

    def views(self, layer: int | None) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with a layer's outputs at its visual tokens. None selects the last norm's output.

        See `views_of`.
        """
        return self.views_of(self.last_hidden_state if layer is None else self.layers[layer])

    def views_of(self, states: Float[Tensor, "S L D"]) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with the states of its views' tokens in each of its sequences, in float32.

        See `visual_states`. Tokens after rows and after the last view are left out.
        """
        for scene, own in self.visual_states(states):
            yield scene, scene.of_views(own)

    def raw_depths(self) -> Iterator[list[tuple[EncodedScene, Float[Tensor, "rows t n ends"]]]]:
        """Yield the depth predictions of the view mixer and of each decoder layer, by scene.

        See `ViewMixer.raw_depth` and `EncodedCameras.raw_depths`. A view mixer predicts the same depth in each
        sequence.
        """
        rows = [len(self._rows_of(number)) for number in range(len(self.scenes))]
        mixed = [
            (scene, to_float32(scene.raw_depth).expand(count, -1, -1, -1))
            for scene, count in zip(self.scenes, rows, strict=True)
            if count and scene.raw_depth is not None
        ]
        if mixed:
            yield mixed
        for raw in () if self.camera_encoding is None else self.camera_encoding.raw_depths.values():
            yield list(self.views_of(raw))

    def visual_states(self, states: Float[Tensor, "S L D"]) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows N D"]]]:
        """Yield each scene with the states of its visual tokens in each of its sequences, in float32.

        The questions of a scene may share one sequence or have one each. Sequences that only another process learns
        from are left out.

        Args:
            states: States of all tokens, such as the outputs of a layer.
        """
        sequences = self.sequences
        by_row = states.flatten(0, 1)[sequences.visual_places].split(sequences.visual_counts)
        for number, scene in enumerate(self.scenes):
            if rows := self._rows_of(number):
                yield scene, to_float32(torch.stack([by_row[row] for row in rows]))

    def mean_over_answers(self, losses: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """Average the losses of the supervised tokens, see `Average`."""
        return self.average.over_answers(losses, self.sequences.answer_lengths, sum(self.sequences.num_answers))

    def mean_over_scenes(
        self, losses: Iterable[tuple[EncodedScene, Float[Tensor, "rows ..."], Bool[Tensor, " ..."]]]
    ) -> Float[Tensor, ""]:
        """Average losses on visual tokens, see `Average`. The result is 0 without any loss.

        Args:
            losses: Scenes from `views`, with the loss in each of their sequences and a mask of known targets.
        """
        numbers = {id(scene): number for number, scene in enumerate(self.scenes)}
        counts = self.sequences.num_answers
        found = [
            SceneLoss(values, known, [counts[row] for row in self._rows_of(numbers[id(scene)])])
            for scene, values, known in losses
        ]
        if not found:
            return to_float32(self.last_hidden_state.new_zeros(()))
        return self.average.over_scenes(found, sum(counts))

    def _rows_of(self, scene: int) -> list[int]:
        """Return the sequences that show a scene and are learned from."""
        rows = zip(self.sequences.scene_index, self.sequences.num_answers, strict=True)
        return [row for row, (shown, count) in enumerate(rows) if count and shown[:1] == [scene]]


# ---- Base class of objectives ---------------------------------------------------------------------------------------


class Objective(Configurable, nn.Module, ABC):
    """A loss on the model's outputs for a batch. To add one, implement `forward` in a file of this folder.

    Args:
        weight: Factor of the loss. With 0 its loss and its head are left out, but a learned token stays in the prompt.

    Attributes:
        targets: What it learns to predict about a scene, from the dataset or the geometry encoder, see `camera_source`.
        changes_answers: Whether `change_tokens` acts in tests as well, from the frames of a scene and their cameras.
            A frame without a camera is an error.
        question_types: Question types that its settings name. The benchmark must have them.
        uses_lengths: Whether its targets depend on the unit of lengths.
        layers: Decoder layers (from 0) whose outputs `forward` reads. Set by `bind`.
        adds_token: Whether a learned token follows the 2D tokens of each temporal patch or image, or the last one of a
            video. The token is part of every prompt of the model, unless `token_in_training_only` is set. It has no
            camera.
        extra_tokens: Whether the token follows each view or the last one (`END`), and whose position it shares.
        token_in_training_only: Whether the token is only in training prompts.
        has_first_token: Whether the first view has its own token.
        token: The learned token, set by `bind`. With a separate token for the first view it has two rows, and the first
            view's comes first.
        target_views: Frames beside the shown ones whose content it predicts. None if it predicts none.
        teacher_target: The field of `TeacherTargets` that it learns, from `--model.teacher`. None if it learns none.

    Raises:
        InputError: The weight is negative or infinite.
    """

    targets: tuple[Target, ...] = ()
    changes_answers: bool = False
    question_types: tuple[str, ...] = ()
    uses_lengths: bool = False
    layers: tuple[int, ...] = ()
    adds_token: bool = False
    extra_tokens: ExtraTokens = ExtraTokens.ONE
    token_in_training_only: bool = False
    has_first_token: bool = False
    target_views: TargetViews | None = None
    teacher_target: TeacherTarget | None = None
    token: nn.Parameter | None

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InputError(f"--model.objectives: {type(self).__name__} has weight {weight}: give a number from 0 on")
        self.weight = weight
        self.register_parameter("token", None)

    def bind(self, width: int, num_layers: int) -> None:
        """Create the parameters for the decoder's width and number of layers.

        Raises:
            InputError: The decoder has no such layer.
        """
        if self.adds_token:
            self.token = nn.Parameter(0.02 * torch.randn(*([2] if self.has_first_token else []), width))

    def has_token(self, training: bool) -> bool:
        """Return whether its token is in training prompts or in test prompts."""
        return self.adds_token and (training or not self.token_in_training_only)

    @property
    def is_part_of_answers(self) -> bool:
        """Whether answers depend on it: its token is in each prompt, or it changes the 2D tokens of tests."""
        return self.has_token(training=False) or self.changes_answers

    @property
    def changes_training_prompts(self) -> bool:
        """Whether training shows other tokens than a test."""
        changes_tokens = type(self).change_tokens is not Objective.change_tokens and not self.changes_answers
        return (self.adds_token and self.token_in_training_only) or (bool(self.weight) and changes_tokens)

    def check_camera_parts(self, parts: Sequence[CameraModule]) -> None:
        """Raise an InputError if the objective needs a camera part that the model lacks."""

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[PreparedScene]) -> Sequence[VisualTokens]:
        """Change the 2D tokens of a training step before view mixing and fusion. Most objectives do not.

        With `changes_answers` it is called in tests, too.
        Objectives are called in the order in which they are listed. The tokens of each scene have shape (t, n, D).
        """
        return visual

    @abstractmethod
    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return the terms of the loss by name, in float32. Their sum is the loss."""

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return the errors of its predictions for one scene. A null model's errors are named `unlearned/<name>`.

        It is called for each validation or test scene that has one of its `targets`, or for all scenes if it has no
        targets.
        """
        return {}

    def pictures(self, decoded: Decoded) -> dict[str, Float[Tensor, "v 3 _H _W"]]:
        """Return pictures to look at, in 0..1, of one scene: each column by its title. Most objectives have none."""
        return {}


class LayerObjective(Objective):
    """An objective with a head on the hidden states of one decoder layer.

    The predictions start at zero. A quantity that is undefined at zero, such as the angle to a direction, needs an
    offset, as in `CameraPrediction`.

    Args:
        layer: Decoder layer counted from 0, or from the end if negative.
        weight: See `Objective`.

    Attributes:
        num_outputs: Outputs of the head for each hidden state, known before `bind`.
        head: The head in float32, set by `bind`.
    """

    num_outputs: int

    def __init__(self, layer: int = -1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.layer = layer

    def bind(self, width: int, num_layers: int) -> None:
        """Create the head, whose predictions start at zero."""
        super().bind(width, num_layers)
        self.layers = (decoder_layer(self, self.layer, num_layers),)
        self.head = Connector(width, width, self.num_outputs, zero=True)


def decoder_layer(objective: Objective, layer: int, num_layers: int) -> int:
    """Return the number from 0 of the decoder layer that an objective reads. A negative one counts from the end.

    Raises:
        InputError: The decoder has no such layer.
    """
    if not -num_layers <= layer < num_layers:
        raise InputError(
            f"--model.objectives: {type(objective).__name__} reads layer {layer} of a decoder with {num_layers}: "
            f"give one from {-num_layers} to {num_layers - 1}"
        )
    return layer % num_layers


# ---- Next-token prediction of the answers ---------------------------------------------------------------------------


class LanguageModeling(Objective):
    """Cross-entropy (nats) of the supervised tokens, averaged by `average`. Only their logits are computed.

    Args:
        weight: A weight above 0, because every model answers questions.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not weight:
            raise InputError("--model.objectives: LanguageModeling needs a weight above 0: all models answer questions")

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        sequences = decoded.sequences
        logits = decoded.lm_head(decoded.last_hidden_state.flatten(0, 1)[sequences.answer_places])
        losses = F.cross_entropy(to_float32(logits), sequences.answer_ids, reduction="none")
        return {"cross_entropy": decoded.mean_over_answers(losses)}


# ---- The objectives of a model --------------------------------------------------------------------------------------


def objectives_by_name(given: Iterable[Objective] | None) -> dict[str, Objective]:
    """Return objectives by class name. `LanguageModeling` is added as the first unless it is given.

    Raises:
        InputError: Two objectives have the same class.
    """
    objectives = list(given or ())
    if not any(isinstance(objective, LanguageModeling) for objective in objectives):
        objectives.insert(0, LanguageModeling())
    named = {type(objective).__name__: objective for objective in objectives}
    if len(named) < len(objectives):
        names = ", ".join(type(objective).__name__ for objective in objectives)
        raise InputError(f"--model.objectives lists a class twice: {names}")
    return named


def resolve_extra_tokens(objectives: Iterable[Objective], appended: ExtraTokens, *, training: bool) -> ExtraTokens:
    """Return the tokens that follow the 2D tokens, from the fusion or from objectives.

    Raises:
        InputError: Several parts append tokens that can't be combined.
    """
    found = {type(each).__name__: each.extra_tokens for each in objectives if each.has_token(training)}
    if appended != ExtraTokens.NONE:
        found["the fusion"] = appended
    kinds = list(found.values())
    if len(kinds) == 2 and set(kinds) == {ExtraTokens.LAST, ExtraTokens.END}:
        return ExtraTokens.LAST_AND_END
    if len(kinds) > 1:
        raise InputError(
            f"--model.objectives: {' and '.join(found)} append tokens, which do not go together: CameraPrediction "
            "needs none with token: false, TeacherPose and MetricScale with token: none"
        )
    return kinds[0] if kinds else ExtraTokens.NONE


def join_target_views(objectives: Iterable[Objective]) -> TargetViews | None:
    """Return the target views that objectives predict, with 2D tokens if one learns them. None without any.

    Raises:
        InputError: Objectives differ in their number, or in where they are drawn.
    """
    found = {type(each).__name__: each.target_views for each in objectives if each.target_views and each.weight}
    if len({(each.number, each.drawn) for each in found.values()}) > 1:
        own = " and ".join(f"{name} views {each.number}, drawn {each.drawn}" for name, each in found.items())
        raise InputError(f"--model.objectives: {own}: they predict the same frames, so give them equal ones")
    uses_tokens = any(each.tokens for each in found.values())
    return next((each._replace(tokens=uses_tokens) for each in found.values()), None)


class BaseTeacher(Configurable, ABC):
    """What a training asks of a teacher. The one teacher is `zoo.objectives.teacher_model.Teacher`.

    Attributes:
        targets: Targets that objectives learn. Only these are computed.
    """

    targets: frozenset[TeacherTarget] = frozenset(get_args(TeacherTarget))

    @property
    @abstractmethod
    def given(self) -> set[str]:
        """The fields of `TeacherTargets` that it provides. Fields from the dataset exist where a scene has them."""

    @property
    @abstractmethod
    def sources(self) -> dict[str, tuple[str, tuple[Path, ...]]]:
        """Hub id or path, and files, of the released weights that its targets depend on."""

    @abstractmethod
    def match_layers(self, objectives: Iterable[Objective]) -> None:
        """Let objectives read the decoder layers that are published for this kind of teacher."""

    @abstractmethod
    def added_to(self, spec: ModelSpec) -> ModelSpec:
        """Return the needs of a training, given the needs of the model."""

    @abstractmethod
    def __call__(self, scenes: Sequence[PreparedScene], patch_size: int) -> list[TeacherTargets | None]:
        """Compute the targets of scenes. Some may have none (None)."""


def check_teacher(objectives: Iterable[Objective], given: Collection[str] | None) -> None:
    """Raise an InputError if an objective learns something that no teacher provides.

    `given` are the fields of `TeacherTargets` that the teacher provides, or None without a teacher.
    """
    for objective in objectives:
        target = objective.teacher_target
        if target is None or (given is not None and target in given):
            continue
        remedy = "name one with --model.teacher"
        if given is not None:
            source = "scale, such as MetricModel" if target == "meters_per_unit" else "encoder"
            remedy = f"--model.teacher gives none: choose another --model.teacher.{source}"
        raise InputError(f"--model.objectives: {type(objective).__name__} learns the {target} of a teacher: {remedy}")


def append_view_token(objectives: Iterable[Objective], visual: VisualTokens, *, training: bool) -> VisualTokens:
    """Append the objectives' learned token, if any, to the tokens of each temporal patch of a scene."""
    for objective in objectives:
        if not objective.has_token(training) or objective.extra_tokens == ExtraTokens.END:
            continue
        assert objective.token is not None  # set by `bind`
        token, count = objective.token.to(visual.tokens.dtype), len(visual.tokens)
        if objective.has_first_token:
            token = torch.cat((token[:1], token[1:].expand(count - 1, -1)))[:, None]
        token = token.expand(count, 1, -1)
        visual = VisualTokens(torch.cat((visual.tokens, token), 1), F.pad(visual.deepstack, (0, 0, 0, 1)))
    return visual


def end_token(objectives: Iterable[Objective], scene: PreparedScene, *, training: bool) -> Float[Tensor, " D"] | None:
    """Return the learned token after the last view of a video. None without one, and for images."""
    own = (each for each in objectives if each.has_token(training) and each.extra_tokens == ExtraTokens.END)
    tokens = [objective.token for objective in own]
    return tokens[0] if tokens and scene.kind == "video" else None


def weighted_losses(objectives: Iterable[Objective], decoded: Decoded) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted sum as `loss`, and each objective's unweighted loss and, if it has several, its terms."""
    found: dict[str, Tensor] = {}
    total = decoded.last_hidden_state.new_zeros((), dtype=torch.float32)
    for objective in objectives:
        if terms := objective(decoded):
            name = type(objective).__name__
            for term, value in terms.items():
                check_shape(objective, f"loss {term!r} ()", value)
            found[name] = sum(terms.values())  # type: ignore[assignment]
            total = total + objective.weight * found[name]
            found |= {f"{name}/{term}": value for term, value in terms.items() if len(terms) > 1}
    return {"loss": total, **found}
