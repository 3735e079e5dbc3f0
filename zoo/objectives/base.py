"""Objectives compute the losses of a training from what the model computed of a batch.

A model's forward pass iterates its objectives. Each reads hidden states from `Decoded`, and its targets from
`EncodedScene`: the dataset's, the geometry encoder's, or a teacher's.

The rules of averaging come first. They count questions: one question is one answer that is learned from, so each turn
of a conversation is one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone, VisualTokens
from zoo.configuration import Configurable
from zoo.encodings.base import CameraModule, EncodedCameras
from zoo.errors import InputError
from zoo.fusions.base import Connector
from zoo.model_spec import Target
from zoo.precision import to_float32
from zoo.scene_encoding import EncodedScene
from zoo.sequences.batch import Sequences
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene, TeacherTarget
from zoo.values import check_shape

AverageRule = Literal["questions", "micro_batch_tokens"]


class SceneLoss(NamedTuple):
    """A loss on the visual tokens of a scene.

    Attributes:
        values: In each sequence that shows the scene; any shape behind the first axis.
        known: Where the target is known.
        num_answers: Answers that are learned from in each of these sequences.
    """

    values: Float[Tensor, "rows ..."]
    known: Bool[Tensor, " ..."]
    num_answers: Sequence[int]


class Average(ABC):
    """A rule of averaging the losses of a batch."""

    @abstractmethod
    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """Average the losses of the supervised tokens.

        Args:
            losses: Of each token.
            lengths: The supervised tokens of its answer.
            num_answers: Of the batch.
        """

    @abstractmethod
    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """Average the losses on visual tokens.

        Args:
            losses: Of at least one scene; of a scene without a known target 0.
            num_answers: Of the batch.
        """


class QuestionAverage(Average):
    """Mean over the questions of a batch, whatever the lengths of their answers.

    The loss of a question is the mean over the tokens of its answer; on visual tokens, the mean over those of its scene
    whose target is known, and 0 where none is. So the losses of batches, weighted by their questions, are the loss of
    all of them together, however questions and scenes are distributed, see `Batch.weight`.
    """

    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """See `Average`."""
        return (losses / lengths).sum() / max(num_answers, 1)  # none where another process learns from them

    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """See `Average`."""
        total = losses[0].values.new_zeros(())
        for values, known, counts in losses:
            mean = _known(values, known).flatten(1).sum(1) / known.sum().clamp(min=1)
            for row, count in zip(mean, counts, strict=True):  # no tensor of counts: it would be copied to a GPU
                total = total + count * row
        return total / max(num_answers, 1)


class MicroBatchAverage(Average):
    """Mean over the tokens of one batch in one process, as the published scripts train.

    An answer then counts by its share of the tokens of its batch, so the loss of an optimizer step depends on how its
    questions are distributed across processes and batches. On visual tokens it is the mean over those with a known
    target, each scene once.
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


# How a step is averaged. `QuestionSampler` knows which questions an optimizer step has, over all processes and
# accumulated batches, and each batch carries their number (`OptimizerStep.num_answers`). An objective returns the mean
# over the answers of its batch. `Batch.weight` turns that into the batch's part of the mean over the step, so that each
# answer weighs the same on any number of devices. With `--data.on_error skip` answers may be missing:
# `Task.on_before_optimizer_step` divides the gradients once more by the share that could be read.
AVERAGES: dict[AverageRule, Average] = {"questions": QuestionAverage(), "micro_batch_tokens": MicroBatchAverage()}


def _known(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0)  # an unknown value may be infinite


# ---- What objectives read: the hidden states of chosen decoder layers, at the visual tokens of each scene -----------


@dataclass(eq=False)
class Decoded:
    """Sequences about scenes after the decoder.

    Attributes:
        scenes: Encoded scenes of the batch, with what objectives learn to predict.
        sequences: Which scene each of them shows, where its visual tokens are, and what is supervised.
        last_hidden_state: After the decoder's last norm.
        layers: Outputs of the decoder layers that some objective reads.
        lm_head: The projection of hidden states to logits.
        average: How losses are averaged.
        camera_encoding: The hooks of the camera encoding, after all layers; None without cameras.
    """

    scenes: Sequence[EncodedScene]
    sequences: Sequences
    last_hidden_state: Float[Tensor, "S L D"]
    layers: Mapping[int, Float[Tensor, "S L D"]]
    lm_head: Callable[[Tensor], Tensor]
    average: Average = AVERAGES["questions"]
    camera_encoding: EncodedCameras | None = None

    def views(self, layer: int | None) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with the outputs of a layer at its visual tokens, or for None those of the last norm.

        See `views_of`.
        """
        return self.views_of(self.last_hidden_state if layer is None else self.layers[layer])

    def views_of(self, states: Float[Tensor, "S L D"]) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with what the visual tokens of its views have in each of its sequences, in float32.

        See `visual_states`; a token behind the last view is left out.
        """
        for scene, own in self.visual_states(states):
            steps, per_step = scene.visual.tokens.shape[:2]
            yield scene, own[:, : steps * per_step].unflatten(1, (steps, per_step))

    def raw_depths(self) -> Iterator[list[tuple[EncodedScene, Float[Tensor, "rows t n ends"]]]]:
        """Yield what the view mixer predicts of the depth of its tokens, and each decoder layer, by scene.

        See `ViewMixer.raw_depth` and `EncodedCameras.raw_depths`. A view mixer predicts the same in each sequence.
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
        """Yield each scene with what its visual tokens have in each of its sequences, in float32.

        The questions of a scene may share one sequence or have one each. Sequences from which nothing is learned here,
        since another process does, are left out.

        Args:
            states: Of all tokens, such as the outputs of a layer.
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
        """Average losses on visual tokens, see `Average`; 0 without any.

        Args:
            losses: Scenes from `views`, with the loss in each of their sequences and where its target is known.
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
        """The sequences that show a scene and that something is learned from."""
        rows = zip(self.sequences.scene_index, self.sequences.num_answers, strict=True)
        return [row for row, (shown, count) in enumerate(rows) if count and shown[0] == scene]


def decode(
    backbone: Backbone,
    layers: Sequence[int],
    inputs: Mapping[str, Any],
    scenes: Sequence[EncodedScene],
    sequences: Sequences,
    average: Average = AVERAGES["questions"],
) -> Decoded:
    """Run the decoder and keep the outputs of some layers, moved back to rows where scenes share sequences.

    The hooks lie outside of gradient checkpointing, which wraps the forward of a layer.

    Args:
        backbone: The model.
        layers: The numbers of the layers.
        inputs: Of the decoder, for these sequences.
        scenes: Encoded scenes of the batch.
        sequences: About them.
        average: How losses are averaged.
    """
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for number in layers:

            def keep(_: Any, __: Any, output: Tensor, number: int = number) -> None:
                kept[number] = output

            handle = backbone.decoder.layers[number].register_forward_hook(keep)
            stack.callback(handle.remove)
        hidden = backbone.decode(inputs).last_hidden_state
    if (packing := sequences.packing) is not None:
        hidden, kept = packing.unpack(hidden), {number: packing.unpack(output) for number, output in kept.items()}
    return Decoded(scenes, sequences, hidden, kept, backbone.lm_head, average, inputs.get("camera_encoding"))


# ---- Base class of objectives: losses on what a model computed from a batch -----------------------------------------


class Objective(Configurable, nn.Module, ABC):
    """A loss on what the model computed from a batch. To add one, implement `forward` in a file of this folder.

    Args:
        weight: Factor of its loss. With 0 its loss and its head are left out, and a learned token stays in the prompt.

    Attributes:
        targets: What of a scene it learns to predict: the dataset's or the geometry encoder's, see `camera_source`.
        question_types: Those that its settings name, which the benchmark must have.
        uses_lengths: Whether its targets change with the unit of lengths.
        layers: The decoder layers (from 0) whose outputs `forward` reads, known after `bind`.
        adds_token: Whether a learned token follows the 2D tokens of each temporal patch or still, or the last one of a
            video. It is part of the prompt wherever the model is used, but for `token_in_training_only`. It has no
            camera.
        extra_tokens: Which of the two (`END`), and whose position it shares.
        token_in_training_only: Whether that token is in the prompts of a training alone.
        has_first_token: Whether the first view has a token of its own.
        token: That token, after `bind`; with one of the first view, two rows, its own first.
        teacher_target: The field of `TeacherTargets` that it learns, of `--model.teacher`; None without.

    Raises:
        InputError: A negative or infinite weight.
    """

    targets: tuple[Target, ...] = ()
    question_types: tuple[str, ...] = ()
    uses_lengths: bool = False
    layers: tuple[int, ...] = ()
    adds_token: bool = False
    extra_tokens: ExtraTokens = ExtraTokens.ONE
    token_in_training_only: bool = False
    has_first_token: bool = False
    teacher_target: TeacherTarget | None = None
    token: nn.Parameter | None

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InputError(f"--model.objectives: {type(self).__name__} has weight {weight}: give a number from 0 on")
        self.weight = weight
        self.register_parameter("token", None)

    def bind(self, width: int, num_layers: int) -> None:
        """Create the parameters, given the decoder's width and number of layers.

        Raises:
            InputError: The decoder has no such layer.
        """
        if self.adds_token:
            self.token = nn.Parameter(0.02 * torch.randn(*([2] if self.has_first_token else []), width))

    def has_token(self, training: bool) -> bool:
        """Whether its token is in the prompts of a training, or of a test."""
        return self.adds_token and (training or not self.token_in_training_only)

    @property
    def changes_training_prompts(self) -> bool:
        """Whether a training shows other tokens than a test."""
        changes_tokens = type(self).change_tokens is not Objective.change_tokens
        return (self.adds_token and self.token_in_training_only) or (bool(self.weight) and changes_tokens)

    def check_camera_parts(self, parts: Sequence[CameraModule]) -> None:
        """Raise an InputError if the objective reads none of the model's camera parts.

        Args:
            parts: The camera encoding and the view mixer, as far as the model has them.
        """

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[LoadedScene]) -> Sequence[VisualTokens]:
        """Change the 2D tokens of a training step, before view mixing and fusion; most objectives do not.

        Objectives are called in the order of their list.

        Args:
            visual: (t, n, D) tokens of each scene.
            scenes: Of the batch.
        """
        return visual

    @abstractmethod
    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return the terms of the loss by name, in float32; their sum is the loss."""

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return errors of what it predicts of one scene; as `unlearned/<name>`, those of a null model beside them.

        It is asked of each scene of a validation or test that has one of its `targets`, or of all if it has none.
        """
        return {}


class LayerObjective(Objective):
    """An objective with a head on the hidden states of one decoder layer.

    The predictions start at zero. What is undefined there, such as the angle to a direction, needs an offset, as
    `CameraPrediction` has.

    Args:
        layer: The decoder layer, from 0, or from -1 for the last one.
        weight: See `Objective`.

    Attributes:
        num_outputs: Outputs of the head for each hidden state, known before `bind`.
        head: Float32, after `bind`.
    """

    num_outputs: int

    def __init__(self, layer: int = -1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.layer = layer

    def bind(self, width: int, num_layers: int) -> None:
        """Create the head, whose predictions start at zero."""
        super().bind(width, num_layers)
        if not -num_layers <= self.layer < num_layers:
            raise InputError(
                f"--model.objectives: {type(self).__name__} reads layer {self.layer} of a decoder with {num_layers}: "
                f"give one from {-num_layers} to {num_layers - 1}"
            )
        self.layers = (self.layer % num_layers,)
        self.head = Connector(width, width, self.num_outputs, zero=True)


# ---- Next-token prediction of the answers ---------------------------------------------------------------------------


class LanguageModeling(Objective):
    """Cross-entropy (nats) of the supervised tokens, averaged as `average` says; only their logits are computed.

    Args:
        weight: Above 0, since every model answers questions.
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
    """Return objectives by class name; `LanguageModeling` is the first of them unless it is given.

    Raises:
        InputError: Two of one class.
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
    """Return the tokens that follow the 2D tokens: the fusion's, or those of objectives.

    Args:
        objectives: All of a model.
        appended: By the fusion.
        training: In a training, or in a test.

    Raises:
        InputError: There are several that do not go together.
    """
    found = {type(each).__name__: each.extra_tokens for each in objectives if each.has_token(training)}
    if appended is not ExtraTokens.NONE:
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


def check_teacher(objectives: Iterable[Objective], given: Collection[str] | None) -> None:
    """Raise an InputError if an objective learns what no teacher gives.

    Args:
        objectives: Those with a weight.
        given: The fields of `TeacherTargets` that the teacher gives; None without one.
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
    """Append the learned token, if some objective has one, to the tokens of each temporal patch of a scene."""
    for objective in objectives:
        if not objective.has_token(training) or objective.extra_tokens is ExtraTokens.END:
            continue
        assert objective.token is not None  # after `bind`
        token, count = objective.token.to(visual.tokens.dtype), len(visual.tokens)
        if objective.has_first_token:
            token = torch.cat((token[:1], token[1:].expand(count - 1, -1)))[:, None]
        token = token.expand(count, 1, -1)
        visual = VisualTokens(torch.cat((visual.tokens, token), 1), F.pad(visual.deepstack, (0, 0, 0, 1)))
    return visual


def end_token(objectives: Iterable[Objective], scene: LoadedScene, *, training: bool) -> Float[Tensor, " D"] | None:
    """Return the learned token behind the last view of a video; None without, and of still images."""
    own = (each for each in objectives if each.has_token(training) and each.extra_tokens is ExtraTokens.END)
    tokens = [objective.token for objective in own]
    return tokens[0] if tokens and scene.kind == "video" else None


def weighted_losses(objectives: Iterable[Objective], decoded: Decoded) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted sum as `loss`, and unweighted the loss of each objective and its terms, if it has several.

    Args:
        objectives: Those with a weight.
        decoded: What the model computed.
    """
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
