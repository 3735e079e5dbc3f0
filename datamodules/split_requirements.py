"""What a model requires of the scenes of a split and of each scene, and a score of its questions; with the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.scenes import Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.video import companion_name
from zoo.errors import InputError
from zoo.model_spec import DataRequirements


def check_requirements(scenes: Sequence[Scene], split: Split, source: SceneSource, needs: DataRequirements) -> None:
    """Checks that some scene has the cameras that a model reads, and in training what its objectives predict.

    Warns if questions ask for meters and the model's lengths have a unit of each scene's own.

    Args:
        scenes: Of the split, with the questions that are asked; at least one.
        split: The split.
        source: Of the scenes.
        needs: The model's requirements.

    Raises:
        InputError: No scene has them, the benchmark lacks a question type that the model's settings name, or no
            question has a type where only those with one are learned from.
    """
    name = type(source).__name__
    if needs.cameras and all(scene.cameras is None for scene in scenes):
        raise InputError(
            f"{name}: no scene of the {split} split has cameras: {_put_beside(scenes, 'cameras.json')}predict them: "
            "--model.geometry PretrainedVGGT --model.camera_source auto"
        )
    for target in needs.required_targets if split == "train" else ():
        if all(getattr(scene, target) is None for scene in scenes):
            raise InputError(
                f"{name}: no scene of the train split has {target}, which --model.objectives are to predict: "
                f"{_put_beside(scenes, 'cameras.json' if target == 'cameras' else target)}take the geometry encoder's: "
                "--model.camera_source predicted, without DatasetPoses"
            )
    for kind in needs.question_types if split == "train" else ():
        # a mixture may have other benchmarks
        if kind not in source.benchmark.question_types and kind not in _types(scenes):
            source.benchmark.check_question_type(kind)
    scored = source.benchmark.question_types
    if needs.typed_questions and split == "train" and not any(kind in scored for kind in _types(scenes)):
        raise InputError(
            f"{name}: no question of the train split has a type of {source.benchmark.name}, so that no reward applies: "
            "give --model.algorithm.rewards that need none, such as AnswerFormat with a pattern"
        )
    if (unit := needs.arbitrary_unit) and any(kind in source.benchmark.metric_types for kind in _types(scenes)):
        rank_zero_warn(
            f"{unit} has lengths in a unit of each scene's own, and questions ask for meters: align predicted cameras "
            "by --model.geometry.scale_from DatasetPoses or MetricModel; DatasetGeometry has 3D tokens in meters"
        )


def _put_beside(scenes: Sequence[Scene], suffix: str) -> str:
    """Word the remedy of a file beside the first video; empty for still images, of which none is read."""
    video = next((scene.video for scene in scenes if not scene.images), None)
    return "" if video is None else f"put {companion_name(video)}.{suffix} beside {video} etc., or "


def _types(scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield the type of each question, as far as the caller reads: a file of conversations has many thousands."""
    return (question.question_type for scene in scenes for question in scene.questions)


def check_questions(scenes: Sequence[Scene], split: Split, source: SceneSource) -> None:
    """Raise an InputError for questions that can't be scored: of an unknown type, or with the id of another one."""
    asked = [question for scene in scenes for question in scene.questions]
    for kind in {question.question_type for question in asked if question.question_type}:
        source.benchmark.check_question_type(kind)
    (id, count), *_ = Counter(question.id for question in asked).most_common(1) or [("", 0)]
    if count > 1:  # an answer is known by its id
        raise InputError(f"{count} questions of the {split} split have the id {id!r}: give each its own")


def check_scene(scene: Scene, needs: DataRequirements) -> None:
    """Raise an InputError if a scene lacks the cameras or the depth that a model reads."""
    beside = companion_name(scene.video)
    if needs.cameras and scene.cameras is None:
        put = "" if scene.images else f"put {beside}.cameras.json beside it, "
        raise InputError(
            f"{scene.video}: no cameras, and this model needs them: {put}predict them (--model.geometry PretrainedVGGT "
            "--model.camera_source auto), or use a model without cameras (--config qwen25_vl.yaml)"
        )
    if needs.depth and scene.depth is None:
        remedy = f"put a folder {beside}.depth of 16-bit images beside it "
        remedy += "(DatasetGeometry works without: --model.geometry.depth false)"
        if scene.images:
            remedy = "use a model without depth (--config qwen25_vl.yaml)"
        raise InputError(f"{scene.video}: no depth, and this model needs it: {remedy}")
