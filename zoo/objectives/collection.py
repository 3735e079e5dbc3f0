"""The objectives of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import VisualTokens
from zoo.encodings.base import CameraModule
from zoo.errors import InputError
from zoo.model_spec import Target
from zoo.objectives.base import Decoded, LanguageModeling, Objective
from zoo.scene_encoding import EncodedScene
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import SceneInputs, TeacherTarget
from zoo.values import check_shape

if TYPE_CHECKING:
    from zoo.objectives.geovr import TeacherName


class Objectives(nn.ModuleDict):
    """Objectives by class name; `LanguageModeling` is the first of them unless it is given.

    Args:
        given: Objectives of different classes.

    Raises:
        InputError: Two of one class.
    """

    def __init__(self, given: Sequence[Objective] | None) -> None:
        objectives = list(given or ())
        if not any(isinstance(objective, LanguageModeling) for objective in objectives):
            objectives.insert(0, LanguageModeling())
        named = {type(objective).__name__: objective for objective in objectives}
        if len(named) < len(objectives):
            names = ", ".join(type(objective).__name__ for objective in objectives)
            raise InputError(f"--model.objectives lists a class twice: {names}")
        super().__init__(named)

    @property
    def all_objectives(self) -> dict[str, Objective]:
        """All objectives."""
        return dict(self.items())  # type: ignore[arg-type]

    @property
    def active(self) -> dict[str, Objective]:
        """Objectives with a weight."""
        return {name: objective for name, objective in self.all_objectives.items() if objective.weight}

    @property
    def learning(self) -> list[str]:
        """The class names of objectives with parameters that some loss reaches."""
        reached = (name.partition(".")[0] for name, _ in self.named_parameters() if not self.is_unreachable(name))
        return list(dict.fromkeys(reached))

    @property
    def only_in_training(self) -> list[str]:
        """The class names of objectives that show a training other tokens than a test."""
        return [
            name
            for name, each in self.all_objectives.items()
            if (each.adds_token and each.token_in_training_only)
            or (each.weight and type(each).change_tokens is not Objective.change_tokens)
        ]

    @property
    def training_alone(self) -> set[str]:
        """The names of tensors that no answer depends on: all but the tokens in the prompts of a test."""
        in_prompts = {f"{name}.token" for name in self.with_token}
        return {name for name in self.state_dict() if name not in in_prompts}

    @property
    def question_types(self) -> tuple[str, ...]:
        """The question types that settings of objectives name."""
        return tuple(
            dict.fromkeys(kind for objective in self.all_objectives.values() for kind in objective.question_types)
        )

    @property
    def with_token(self) -> dict[str, Objective]:
        """Objectives with a learned token wherever the model is used."""
        return {name: each for name, each in self.with_training_token.items() if not each.token_in_training_only}

    @property
    def with_training_token(self) -> dict[str, Objective]:
        """Objectives with a learned token in training."""
        return {name: objective for name, objective in self.all_objectives.items() if objective.adds_token}

    def resolve_extra_tokens(self, appended: ExtraTokens, training: bool = False) -> ExtraTokens:
        """Return the tokens that follow the 2D tokens: the fusion's, or that of an objective.

        Raises:
            InputError: There are several that do not go together.
        """
        own = self._with_token_in(training)
        found = {name: each.extra_tokens for name, each in own.items()}
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

    def check_teacher(self, given: Collection[str] | None) -> None:
        """Raise an InputError if an objective learns what no teacher gives.

        Args:
            given: The fields of `TeacherTargets` that the teacher gives; None without one.
        """
        for name, objective in self.active.items():
            target = objective.teacher_target
            if target is None or (given is not None and target in given):
                continue
            remedy = "name one with --model.teacher"
            if given is not None:
                source = "scale, such as MetricModel" if target == "meters_per_unit" else "encoder"
                remedy = f"--model.teacher gives none: choose another --model.teacher.{source}"
            raise InputError(f"--model.objectives: {name} learns the {target} of a teacher: {remedy}")

    def match_teacher(self, name: TeacherName) -> None:
        """Read the decoder layers that are published for a teacher of this kind; see `Objective.match_teacher`."""
        for objective in self.all_objectives.values():
            objective.match_teacher(name)

    @property
    def teacher_targets(self) -> frozenset[TeacherTarget]:
        """What objectives learn of a teacher."""
        found = (objective.teacher_target for objective in self.active.values())
        return frozenset(target for target in found if target is not None)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What objectives learn to predict."""
        return tuple(dict.fromkeys(target for objective in self.active.values() for target in objective.targets))

    def uses_lengths_of(self, targets: Sequence[Target]) -> bool:
        """Whether one of these targets is learned in the unit of its lengths."""
        return any(each.uses_lengths and set(each.targets) & set(targets) for each in self.active.values())

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers whose outputs are read."""
        return tuple(dict.fromkeys(layer for objective in self.active.values() for layer in objective.layers))

    def is_unreachable(self, name: str) -> bool:
        """Whether the parameter of this name gets no gradient: the head of an objective without a weight."""
        objective, _, parameter = name.partition(".")
        return parameter != "token" and objective not in self.active

    def check_camera_parts(self, parts: Sequence[CameraModule]) -> None:
        """Raise an InputError if an objective reads other camera parts; see `Objective.check_camera_parts`."""
        for objective in self.all_objectives.values():
            objective.check_camera_parts(parts)

    def bind(self, width: int, num_layers: int) -> None:
        """Create the parameters; see `Objective.bind`."""
        for objective in self.all_objectives.values():
            objective.bind(width, num_layers)

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[SceneInputs]) -> Sequence[VisualTokens]:
        """Change the 2D tokens of a training step; see `Objective.change_tokens`."""
        for objective in self.active.values():
            visual = objective.change_tokens(visual, scenes)
        return visual

    def append_token(self, visual: VisualTokens, training: bool) -> VisualTokens:
        """Append the learned token, if some objective has one, to the tokens of each temporal patch."""
        for objective in self._with_token_in(training).values():
            if objective.extra_tokens is ExtraTokens.END:
                continue
            assert objective.token is not None  # after `bind`
            token, count = objective.token.to(visual.tokens.dtype), len(visual.tokens)
            if objective.has_first_token:
                token = torch.cat((token[:1], token[1:].expand(count - 1, -1)))[:, None]
            token = token.expand(count, 1, -1)
            visual = VisualTokens(torch.cat((visual.tokens, token), 1), F.pad(visual.deepstack, (0, 0, 0, 1)))
        return visual

    def end_token(self, scene: SceneInputs, training: bool) -> Float[Tensor, " D"] | None:
        """Return the learned token behind the last view of a video; None without, and of still images."""
        own = self._with_token_in(training).values()
        tokens = [each.token for each in own if each.extra_tokens is ExtraTokens.END]
        return tokens[0] if tokens and scene.kind == "video" else None

    def _with_token_in(self, training: bool) -> dict[str, Objective]:
        """The objectives with a token in the prompts of a training, or of a test."""
        return self.with_training_token if training else self.with_token

    def losses(self, decoded: Decoded, left_out: type[Objective] | None = None) -> dict[str, Tensor]:
        """The weighted sum as `loss`, and unweighted the loss of each objective and its terms, if there are several.

        Args:
            decoded: What the model computed.
            left_out: The class of an objective that is not asked.
        """
        found: dict[str, Tensor] = {}
        total = decoded.last_hidden_state.new_zeros((), dtype=torch.float32)
        for name, objective in self.active.items():
            if left_out is not None and isinstance(objective, left_out):
                continue
            if terms := objective(decoded):
                for term, value in terms.items():
                    check_shape(objective, f"loss {term!r} ()", value)
                found[name] = sum(terms.values())  # type: ignore[assignment]
                total = total + objective.weight * found[name]
                found |= {f"{name}/{term}": value for term, value in terms.items() if len(terms) > 1}
        return {"loss": total, **found}

    def is_applicable(self, scene: EncodedScene) -> bool:
        """Whether an objective can be compared with a scene: it has no targets, or one that the scene has."""
        known = {"cameras": scene.targets.cameras is not None, "depth": scene.targets.depth is not None}
        measured = [each.targets for each in self.active.values() if type(each).errors is not Objective.errors]
        return any(not targets or any(known[target] for target in targets) for targets in measured)

    def errors(self, decoded: Decoded) -> dict[str, float]:
        """The errors of one scene, as <objective>/<name>."""
        found = {name: objective.errors(decoded) for name, objective in self.active.items()}
        return {f"{name}/{key}": float(value) for name, each in found.items() for key, value in each.items()}
