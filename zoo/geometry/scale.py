"""Where the scale of an encoder whose lengths are not meters comes from.

--model.geometry.scale_from DatasetPoses
--model.geometry.scale_from MetricModel --model.geometry.scale_from.path depth-anything/DA3METRIC-LARGE
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras.poses import invert_se3
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.geometry.base import DatasetGeometries, Frames, SceneGeometry

FLAT = 1e-6  # second singular value of centers on a line, relative to the first


class ScaleSource(Configurable, ABC):
    """Measure the unit of predicted lengths, once per scene.

    Attributes:
        reads: The fields of the dataset's geometry that the scale depends on.
        requires_cameras: The dataset must provide cameras.
        requires_depth: The encoder must predict depth.
        path: Hub id or folder of the weights that it uses; None without.
    """

    reads: tuple[str, ...] = ()
    requires_cameras: bool = False
    requires_depth: bool = False
    path: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its weights are read from."""
        return ()

    @abstractmethod
    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""] | float:
        """The factor from predicted lengths to meters.

        Args:
            scene: As predicted.
            frames: RGB in 0..1.
            given: The dataset's geometry.

        Raises:
            InputError: The scene does not determine it; the message names the remedy.
        """

    def in_meters(
        self, scenes: Sequence[SceneGeometry], frames: Frames, given: DatasetGeometries
    ) -> list[SceneGeometry]:
        """Scale the poses, depth and points of each scene; 3D tokens stay as they are.

        Raises:
            InputError: A scene has no scale; names it by its number in the batch.
        """
        scaled = []
        for number, scene in enumerate(zip(scenes, frames, given, strict=True)):
            try:
                scaled.append(scene[0].scaled(self.meters_per_unit(*scene)))
            except InputError as error:
                raise InputError(f"scene {number} of the batch: {error}") from error
        return scaled


class DatasetPoses(ScaleSource):
    """The dataset's camera centers, to which the predicted ones are aligned (Umeyama 1991).

    Over the frames with a valid camera on both sides. The scenes need not share a frame of reference.
    """

    reads = ("world_to_camera", "has_camera")
    requires_cameras = True

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> float:
        """See `ScaleSource`."""
        poses, _, valid = scene.cameras()
        known, both = poses, torch.zeros_like(valid)
        if given is not None and given.has_cameras:
            known, _, present = given.cameras()
            both = valid & present
        try:
            return 1 / pose_scale(poses[both], known[both])
        except InputError as error:
            complete = "" if both.all() else "complete its cameras.json, or "
            raise InputError(
                f"{error}; {int(both.sum())} of {len(both)} frames have one: {complete}take --model.geometry "
                "PretrainedDA3 or PretrainedVGGT with --model.geometry.scale_from MetricModel"
            ) from error


@torch.no_grad()
def pose_scale(predicted: Float[Tensor, "S 4 4"], given: Float[Tensor, "S 4 4"]) -> float:
    """The scale of the similarity that maps given camera centers to predicted ones (Umeyama 1991), over all views.

    Lengths divided by it are in the unit of the given cameras.

    Args:
        predicted: World-to-camera poses.
        given: The same views.

    Raises:
        InputError: Fewer than three views, or centers on a line: the similarity is not determined.
    """
    target, source = (invert_se3(poses.double())[:, :3, 3] for poses in (predicted, given))
    source, target = source - source.mean(0), target - target.mean(0)
    U, singular, Vh = torch.linalg.svd(target.mT @ source / max(1, len(source)))
    if len(source) < 3 or singular[1] <= FLAT * singular[0]:
        raise InputError("the scale of poses needs three cameras or more whose centers are not on one line")
    singular[2] *= torch.det(U @ Vh).sign()  # a rotation, no reflection
    return float(singular.sum() / source.square().sum(1).mean())
