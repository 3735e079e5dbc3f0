"""Base class of objectives: losses on what a model computed from a batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.backbones.base import VisualTokens
from zoo.cameras.teacher_targets import TeacherTarget
from zoo.configuration import Configurable
from zoo.encodings.base import CameraModule
from zoo.errors import InputError
from zoo.fusions.connector import Connector
from zoo.objectives.decoded import Decoded
from zoo.requirements import Target
from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.visual_grid import ExtraTokens

if TYPE_CHECKING:
    from zoo.objectives.geovr.teachers import TeacherName


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

    def match_teacher(self, name: TeacherName) -> None:
        """Read the decoder layers that are published for a teacher of this kind; most objectives do not."""

    def check_camera_parts(self, parts: Sequence[CameraModule]) -> None:
        """Raise an InputError if the objective reads none of the model's camera parts.

        Args:
            parts: The camera encoding and the view mixer, as far as the model has them.
        """

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[SceneInputs]) -> Sequence[VisualTokens]:
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
