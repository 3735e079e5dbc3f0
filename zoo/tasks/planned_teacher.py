"""A teacher of shapes, so that a plan counts what the teacher of a training takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from zoo.configuration import known_config
from zoo.geometry.base import ScaleSource, SceneGeometry
from zoo.geometry.metric_model import MetricModel
from zoo.objectives.teacher_model import Teacher
from zoo.sequences.loaded_scene import SceneInputs, TeacherTargets
from zoo.tasks.fake_tensors import make_fake


class PlannedTeacher:
    """Run a teacher on fake tensors.

    One with a cache is not loaded, as the cache is taken to be complete: a step reads its targets.

    Args:
        teacher: Not yet built; its tensors become fake.

    Attributes:
        networks: The frozen networks that a training has beside the model.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.is_cached = teacher, known_config(teacher).get("cache") is not None
        with torch.device("meta"):  # no weights are read
            encoder = teacher.outline
            teacher.enable_heads(encoder)
            scale = None if teacher.scale is None else PlannedScale(teacher.scale)
        teacher.encoder, teacher.scale = encoder.requires_grad_(False).eval(), scale
        every: list[nn.Module] = [encoder, *([] if scale is None or scale.network is None else [scale.network])]
        for network in every:
            make_fake(network)
        self.networks = [] if self.is_cached else every

    def show(self, scenes: Sequence[SceneInputs], patch_size: int) -> None:
        """Give scenes their targets, as a training does before a step.

        Args:
            scenes: With frames.
            patch_size: Of the vision tower.
        """
        if self.is_cached:
            with _disable_current_modes():
                found = self._teacher(scenes, patch_size)
            found = [None if each is None else _read(each) for each in found]
        else:
            found = self._teacher(scenes, patch_size)
        for scene, targets in zip(scenes, found, strict=True):
            scene.teacher = targets


class PlannedScale(ScaleSource):
    """The network of a source of scale without its choice of pixels, whose number no shape tells.

    Args:
        source: What a training takes, on the meta device.

    Attributes:
        network: Of the source; None without one.
    """

    def __init__(self, source: ScaleSource) -> None:
        self.reads, self.requires_cameras = source.reads, source.requires_cameras
        self.requires_depth = source.requires_depth
        self.network = source.network if isinstance(source, MetricModel) else None

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> float:
        """See `ScaleSource`."""
        if self.network is not None:
            self.network(frames[None], layers=(), heads=("depth",))
        return 1.0


def _read(targets: TeacherTargets) -> TeacherTargets:
    """Targets in memory of their own, as they are read of a cache."""
    return TeacherTargets(
        tuple(layer.to(torch.bfloat16, copy=True) for layer in targets.tokens),
        *(None if each is None else each.clone() for each in targets[1:]),
    )
