"""What a model requires of the scenes of a split, and the remedy where they lack it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.scenes import Scene
from datamodules.sources.base import SceneSource, Split
from zoo.errors import InputError
from zoo.requirements import DataRequirements


def check_requirements(scenes: Sequence[Scene], split: Split, source: SceneSource, needs: DataRequirements) -> None:
    """Checks that some scene has the cameras that a model reads, and in training what its objectives predict.

    Warns if questions ask for meters and the model's lengths have a unit of each scene's own.

    Args:
        scenes: Of the split, with the questions that are asked; at least one.
        split: The split.
        source: Of the scenes.
        needs: The model's requirements.

    Raises:
        InputError: No scene has them, or the benchmark lacks a question type that the model's settings name.
    """
    name, video = type(source).__name__, scenes[0].video
    if needs.cameras and all(scene.cameras is None for scene in scenes):
        raise InputError(
            f"{name}: no scene of the {split} split has cameras: put {video.stem}.cameras.json beside "
            f"{video} etc., or predict them: --model.geometry PretrainedVGGT --model.camera_source auto"
        )
    for target in needs.required_targets if split == "train" else ():
        if all(getattr(scene, target) is None for scene in scenes):
            raise InputError(
                f"{name}: no scene of the train split has {target}, which --model.objectives are to predict: put "
                f"{video.stem}.{'cameras.json' if target == 'cameras' else target} beside {video} "
                "etc., or take the geometry encoder's: --model.camera_source predicted"
            )
    asked = {question.question_type for scene in scenes for question in scene.questions}
    for question_type in needs.question_types if split == "train" else ():
        if question_type not in asked:  # a mixture may have other benchmarks in training
            source.benchmark.check_question_type(question_type)
    if (unit := needs.arbitrary_unit) and asked.intersection(source.benchmark.metric_types):
        rank_zero_warn(
            f"{unit} has lengths in a unit of each scene's own, and questions ask for meters: align predicted cameras "
            "by --model.geometry.scale_from DatasetPoses or MetricModel; DatasetGeometry has 3D tokens in meters"
        )
