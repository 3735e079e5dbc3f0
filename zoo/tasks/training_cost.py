"""Parameters, bytes and floating-point operations of a training step, from a model that has only shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from zoo.configuration import known_config
from zoo.geometry.base import ScaleSource, SceneGeometry
from zoo.geometry.metric_model import MetricModel
from zoo.model import SpatialVLM
from zoo.model_spec import ModelSpec
from zoo.objectives.teacher_model import Teacher
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind
from zoo.sequences.loaded_scene import LoadedScene, TeacherTargets
from zoo.sequences.packing import IGNORED, Row
from zoo.tasks.base import parameter_groups
from zoo.tasks.fake_tensors import Footprint, ShapesOnlyPreprocessor, fake_tensor, make_fake
from zoo.tasks.fsdp2 import GATHERED_DTYPES
from zoo.tasks.repeated_calls import count_repeated_calls_once
from zoo.tasks.video_qa import VideoQATask

SYSTEM, SPAN, QUESTION, ANSWER = 20, 8, 96, 8  # tokens of text: before the video, per temporal patch, per question


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a training batch on one GPU.

    Attributes:
        num_frames: Of each video.
        height: Of a resized frame, in pixels.
        width: Of a resized frame, in pixels.
        scenes: Sequences, each about a scene of its own.
        questions: In each sequence.
        tokens_per_sequence: Most tokens of a sequence with several questions.
        kind: Whether frames are shown as a video or each as an image.
        pack_scenes: Whether scenes share sequences.
    """

    num_frames: int
    height: int
    width: int
    scenes: int = 1
    questions: int = 1
    tokens_per_sequence: int | None = None
    kind: MediaKind = "video"
    pack_scenes: bool = False

    def grid(self, patch_size: int) -> tuple[int, int, int]:
        """(t, h, w) in patches of each scene."""
        steps = self.num_frames // (TEMPORAL_PATCH_SIZE if self.kind == "video" else 1)
        return steps, self.height // patch_size, self.width // patch_size


class StepCost(NamedTuple):
    """What one step takes.

    Attributes:
        activations: Most bytes at once of all tensors but weights, gradients and the optimizer's state.
        flops: Floating-point operations of forward and backward pass.
    """

    activations: int
    flops: int


class StepCosts(dict[bool, StepCost]):
    """What a step takes without and with gradient checkpointing; each is counted when it is first asked for.

    Args:
        count_step: Counts a step; its argument is whether with checkpointing.
    """

    def __init__(self, count_step: Callable[[bool], StepCost]) -> None:
        super().__init__()
        self._count_step = count_step

    def __missing__(self, checkpointing: bool) -> StepCost:
        return self.setdefault(checkpointing, self._count_step(checkpointing))


@dataclass
class TrainingCost:
    """What a training step takes on one GPU that holds the whole model.

    Attributes:
        trained: Trained parameters of each part.
        frozen: Frozen parameters of each part.
        weights: Bytes of the parameters and buffers.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer's state.
        steps: What a step takes, without and with gradient checkpointing.
        visual_tokens: Of a scene.
        sequence_tokens: Of the longest sequence.
        gathered: Bytes that a sharded model holds beside its shard in a step, of one batch and of several, see
            `gathered_bytes`.
        gathered_weights: Bytes of the whole weights, which a sharded model gathers for an evaluation.
        teacher: Bytes of the teacher's weights, of which each process has all.
    """

    trained: Counter[str] = field(default_factory=Counter)
    frozen: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    steps: dict[bool, StepCost] = field(default_factory=dict)
    visual_tokens: int = 0
    sequence_tokens: int = 0
    gathered: dict[bool, int] = field(default_factory=dict)
    gathered_weights: int = 0
    teacher: int = 0


def training_cost(task: VideoQATask, batch: BatchSizes, precision: str) -> TrainingCost:
    """Count parameters, bytes and tokens, and make the steps ready to be counted.

    Args:
        task: Built on the meta device without gradient checkpointing; its tensors become fake.
        batch: Sizes of the batch.
        precision: Lightning's; bf16-mixed is autocast.
    """
    cost, model = TrainingCost(), task.model
    make_fake(task)
    backbone: Any = model.backbone
    if not hasattr(backbone, "preprocessor"):
        backbone.preprocessor = ShapesOnlyPreprocessor()
    # 1. What is there before the step.
    for name, parameter in task.named_parameters():
        (cost.trained if parameter.requires_grad else cost.frozen)[task.part_of(name)] += parameter.numel()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    cost.weights = total_bytes([*task.parameters(), *task.buffers()])
    cost.gradients = total_bytes(trained)
    cost.gathered, cost.gathered_weights = gathered_bytes(model, precision)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # of earlier batches of the same step, or DDP's buckets
    cost.optimizer = optimizer_bytes(task)
    teacher = None if task.teacher is None else PlannedTeacher(task.teacher)
    if teacher is not None and teacher.networks:
        tensors = [each for network in teacher.networks for each in (*network.parameters(), *network.buffers())]
        cost.teacher = total_bytes(tensors)
        cost.frozen["teacher"] = sum(each.numel() for network in teacher.networks for each in network.parameters())
    # 2. Tokens.
    sequences = example_batch(model, batch).sequences
    assert sequences is not None
    cost.visual_tokens, cost.sequence_tokens = sequences.visual_counts[0], max(sequences.lengths)
    # 3. The step, which takes seconds to count.
    cost.steps = StepCosts(partial(count_step, task, batch, precision, teacher))
    return cost


def count_step(
    task: VideoQATask, batch: BatchSizes, precision: str, teacher: PlannedTeacher | None, checkpointing: bool
) -> StepCost:
    """Run a training step of a task with fake tensors, and count."""
    backbone = task.model.backbone
    (backbone.enable_gradient_checkpointing if checkpointing else backbone.disable_gradient_checkpointing)()
    gradients = (parameter.grad for parameter in task.parameters() if parameter.grad is not None)
    networks = [task, *(teacher.networks if teacher is not None else ())]
    weights = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    with Footprint([*weights, *gradients]) as step, count_repeated_calls_once(step):
        run_step(task, batch, precision, teacher)
    return StepCost(step.peak, step.flops)


def run_step(task: VideoQATask, batch: BatchSizes, precision: str, teacher: PlannedTeacher | None = None) -> None:
    """Forward and backward pass of an example batch."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16"), cache_enabled=False):
        loss = _example_loss(task, batch, teacher)
    loss.backward()


def _example_loss(task: VideoQATask, sizes: BatchSizes, teacher: PlannedTeacher | None) -> Tensor:
    """The loss of an example batch, which is released before the backward pass."""
    batch = example_batch(task.model, sizes, task.model_spec(training=True))
    targets = None if teacher is None else teacher(batch.scenes, task.model.backbone.patch_size)
    return task.model(batch, targets)["loss"]


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(task: VideoQATask) -> int:
    """Bytes of the optimizer's state after a step."""
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))
    for group in optimizer.param_groups:
        group["fused"] = False  # the fused kernel has no shapes-only version; its state is the same
    optimizer.step()
    states: list[dict[str, Any]] = list(optimizer.state.values())
    return total_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def gathered_bytes(model: SpatialVLM, precision: str) -> tuple[dict[bool, int], int]:
    """Count the gathered parameters and gradients that each process holds beside its shard under FSDP2.

    Returns:
        Bytes in a step of one batch and of several, and those of the whole weights. A step holds what lies in no unit,
        which stays gathered, and two units, of which one is gathered ahead; of what trains, the gradients before they
        are scattered. With several batches those are the gradients of the whole model.
    """
    units, dtype = model.sharded_units(), GATHERED_DTYPES.get(precision)
    own = {parameter: (dtype or parameter.dtype).itemsize for unit in units.values() for parameter in unit}
    weights = {each: each.numel() * own.get(each, each.element_size()) for each in model.parameters()}
    gradients = {each: total_bytes([each]) if each.requires_grad else 0 for each in weights}

    def largest(sizes: dict[nn.Parameter, int]) -> int:
        rest = sum(size for parameter, size in sizes.items() if parameter not in own)
        return rest + sum(sorted(sum(sizes[parameter] for parameter in unit) for unit in units.values())[-2:])

    of_weights = largest(weights)
    held = {False: of_weights + largest(gradients), True: of_weights + sum(gradients.values())}
    return held, sum(weights.values())


def example_batch(model: SpatialVLM, sizes: BatchSizes, needs: ModelSpec | None = None) -> Batch:
    """A training batch of these sizes, see `example_questions`."""
    builder = SequenceBuilder(model.model_spec(training=True))
    scenes, rows, scene_of = example_questions(model, sizes, needs or builder.spec)
    limits: dict[str, Any] = {"max_tokens": sizes.tokens_per_sequence, "packs_scenes": sizes.pack_scenes}
    sequences = builder.training(rows, scene_of, scenes, **limits)
    return Batch(scenes, builder.vision(scenes), sequences, records=[{"id": "example"}] * len(rows))


def example_questions(
    model: SpatialVLM, sizes: BatchSizes, needs: ModelSpec
) -> tuple[list[LoadedScene], list[Row], list[int]]:
    """Scenes of these sizes, one row per question, and the scene of each row.

    Pixels are fake, and cameras move along a line.
    """
    backbone, grid = model.backbone, sizes.grid(model.backbone.patch_size)
    steps = grid[0]
    # 1. Scenes.
    views = TEMPORAL_PATCH_SIZE * steps
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = torch.arange(views) / 10
    geometry = SceneGeometry(
        world_to_camera=poses,
        K_normalized=torch.eye(3).repeat(views, 1, 1),
        depth=torch.ones(views, sizes.height, sizes.width)
        if needs.requires_depth or "depth" in needs.targets
        else None,
    )
    given = geometry if needs.requires_cameras or needs.requires_depth or needs.targets else None
    scenes = [
        LoadedScene(
            pixel_values=fake_tensor(
                math.prod(grid), 3 * TEMPORAL_PATCH_SIZE * backbone.patch_size**2, dtype=torch.uint8
            ),
            grid_thw=grid,
            kind=sizes.kind,
            frames=torch.zeros(views, 3, sizes.height, sizes.width, dtype=torch.uint8)
            if needs.requires_frames
            else None,
            geometry=given,
            cameras=model.sequence_builder.merge_cameras(given),
            frame_indices=tuple(range(views)),
        )
        for _ in range(sizes.scenes)
    ]
    # 2. One row per question.
    marks = backbone.placeholders
    visual = marks.video if sizes.kind == "video" else marks.image
    prompt, *texts = islice((i for i in count() if i not in marks[:3]), sizes.questions + 1)  # token ids of each
    spans = steps if marks.span_per_step or sizes.kind == "image" else 1
    tokens = scenes[0].num_tokens(model.training_tokens)
    span = [*[prompt] * (SPAN if spans > 1 else 0), marks.vision_start, *[visual] * (tokens // spans)]
    rows = []
    for text in texts:
        ids = torch.tensor([*[prompt] * SYSTEM, *span * spans, *[visual] * (tokens % spans), *[text] * QUESTION])
        labels = torch.full_like(ids, IGNORED)
        labels[-ANSWER:] = ids[-ANSWER:]
        rows.append(Row.of(ids, labels))
    return scenes, rows * sizes.scenes, [scene for scene in range(sizes.scenes) for _ in rows]


# ---- A teacher of shapes, so that a plan counts what the teacher of a training takes --------------------------------


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

    def __call__(self, scenes: Sequence[LoadedScene], patch_size: int) -> list[TeacherTargets | None]:
        """Compute the targets of scenes, see `Teacher`."""
        if not self.is_cached:
            return self._teacher(scenes, patch_size)
        with _disable_current_modes():
            found = self._teacher(scenes, patch_size)
        return [None if each is None else _copy(each) for each in found]


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


def _copy(targets: TeacherTargets) -> TeacherTargets:
    """Targets in memory of their own, as they are read of a cache."""
    return TeacherTargets(
        tuple(layer.to(torch.bfloat16, copy=True) for layer in targets.tokens),
        *(None if each is None else each.clone() for each in targets[1:]),
    )
