"""Parameters, bytes and floating-point operations of a training step, from a model that has only shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM
from zoo.scenes import SceneInputs
from zoo.sequences.layout import MediaKind
from zoo.sequences.packing import IGNORED
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE
from zoo.tasks.fake_tensors import Footprint, fake_tensor, make_fake
from zoo.tasks.optim import parameter_groups
from zoo.tasks.video_qa import VideoQATask

SYSTEM, SPAN, QUESTION, ANSWER = 20, 8, 96, 8  # tokens of text: before the video, per temporal patch, per question
TEXT = 0  # any token id that is no placeholder


@dataclass(frozen=True)
class Batch:
    """The sizes of a training batch on one GPU.

    Attributes:
        num_frames: of each video.
        height: of a resized frame, in pixels.
        width: of a resized frame, in pixels.
        scenes: sequences, each about a scene of its own.
        questions: in each sequence.
        tokens_per_sequence: most tokens of a sequence with several questions.
        kind: whether frames are shown as a video or each as an image.
    """

    num_frames: int
    height: int
    width: int
    scenes: int = 1
    questions: int = 1
    tokens_per_sequence: int | None = None
    kind: MediaKind = "video"

    def grid(self, patch_size: int) -> Tensor:
        """(t, h, w) in patches of each scene."""
        steps = self.num_frames // (TEMPORAL_PATCH_SIZE if self.kind == "video" else 1)
        return torch.tensor([steps, self.height // patch_size, self.width // patch_size])


@dataclass
class TrainingCost:
    """What a training step takes on one GPU that holds the whole model.

    Attributes:
        trained: trained parameters of each part.
        frozen: frozen parameters of each part.
        weights: bytes of the parameters and buffers.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        activations: most bytes of all other tensors at once, without and with gradient checkpointing.
        flops: floating-point operations of forward and backward pass, without and with gradient checkpointing.
        visual_tokens: of a scene.
        sequence_tokens: of the longest sequence.
        gathered: bytes that a sharded model holds beside its shard, see `gathered_bytes`.
    """

    trained: Counter[str] = field(default_factory=Counter)
    frozen: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: dict[bool, int] = field(default_factory=dict)
    flops: dict[bool, int] = field(default_factory=dict)
    visual_tokens: int = 0
    sequence_tokens: int = 0
    gathered: int = 0


def training_cost(task: VideoQATask, batch: Batch, precision: str) -> TrainingCost:
    """Runs a training step without and with gradient checkpointing, and counts.

    Args:
        task: built by `zoo.weight_reading.shapes_only` without gradient checkpointing; its tensors become fake.
        batch: sizes of the batch.
        precision: Lightning's; bf16-mixed is autocast.
    """
    cost, model = TrainingCost(), task.model
    make_fake(task)
    # 1. What is there before the step.
    for name, parameter in task.named_parameters():
        (cost.trained if parameter.requires_grad else cost.frozen)[task.part_of(name)] += parameter.numel()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    cost.weights = total_bytes([*task.parameters(), *task.buffers()])
    cost.gradients, cost.gathered = total_bytes(trained), gathered_bytes(model)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # of earlier batches of the same step, or DDP's buckets
    cost.optimizer = optimizer_bytes(task)
    # 2. The step.
    for checkpointing in (False, True):
        if checkpointing:
            model.backbone.enable_gradient_checkpointing()
        held = [*task.parameters(), *task.buffers(), *(p.grad for p in trained if p.grad is not None)]
        with Footprint(held) as step:
            run_step(task, batch, precision)
        cost.activations[checkpointing], cost.flops[checkpointing] = step.peak, step.flops
    # 3. Tokens.
    ids = example_inputs(model, batch)["input_ids"]
    cost.visual_tokens = int(torch.isin(ids[0], torch.tensor(model.backbone.placeholders.visual)).sum())
    packed = ids.shape[1] + (batch.questions - 1) * QUESTION
    cost.sequence_tokens = max(ids.shape[1], min(packed, batch.tokens_per_sequence or packed))
    return cost


def run_step(task: VideoQATask, batch: Batch, precision: str) -> None:
    """Forward and backward pass of an example batch."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16"), cache_enabled=False):
        loss = task.loss(example_inputs(task.model, batch))
    loss.backward()


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


def gathered_bytes(model: SpatialVLM) -> int:
    """Bytes of the gathered parameters and gradients that each process holds beside its shard under FSDP2.

    They are what lies in no block, which stays gathered, and two blocks, of which one is gathered ahead; where they
    train, the gradients before they are scattered.
    """
    units = [sum(_gathered(parameter) for parameter in block.parameters()) for block in model.blocks()]
    within = {parameter for block in model.blocks() for parameter in block.parameters()}
    rest = sum(_gathered(parameter) for parameter in model.parameters() if parameter not in within)
    return rest + sum(sorted(units)[-2:])


def _gathered(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size() * (2 if parameter.requires_grad else 1)


def example_inputs(model: SpatialVLM, batch: Batch) -> dict[str, Any]:
    """A batch of `datamodules.collate` with these sizes; pixels are fake, cameras move along a line."""
    needs, backbone, grid = model.requirements, model.backbone, batch.grid(model.backbone.patch_size)
    steps, per_step = int(grid[0]), int(grid[1:].prod()) // backbone.spatial_merge_size**2
    # 1. Scenes.
    views = TEMPORAL_PATCH_SIZE * steps
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = torch.arange(views) / 10
    geometry = SceneGeometry(
        world_to_camera=poses,
        K_normalized=torch.eye(3).repeat(views, 1, 1),
        depth=torch.ones(views, batch.height, batch.width) if needs.depth or "depth" in needs.targets else None,
    )
    scenes = [
        SceneInputs(
            fake_tensor(int(grid.prod()), 3 * TEMPORAL_PATCH_SIZE * backbone.patch_size**2),
            grid,
            kind=batch.kind,
            frames=torch.zeros(views, 3, batch.height, batch.width, dtype=torch.uint8) if needs.frames else None,
            geometry=geometry if needs.cameras or needs.depth or needs.targets else None,
            frame_indices=tuple(range(views)),
        )
        for _ in range(batch.scenes)
    ]
    # 2. One row per question.
    marks = backbone.placeholders
    visual = marks.video if batch.kind == "video" else marks.image
    spans = steps if marks.span_per_step or batch.kind == "image" else 1
    per_step += model.extra_tokens.count(per_step)
    span = [*[TEXT] * (SPAN if spans > 1 else 0), marks.vision_start, *[visual] * (per_step * steps // spans)]
    rows = []
    for question in range(batch.questions):
        rows.append([*[TEXT] * SYSTEM, *span * spans, *[TEXT + 1 + question] * QUESTION])
    ids = torch.tensor(rows).repeat(batch.scenes, 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    return {
        "failed": [],
        "records": [{"id": "example"}] * len(ids),
        "scenes": scenes,
        "scene_index": torch.arange(batch.scenes).repeat_interleave(batch.questions),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "tokens_per_sequence": batch.tokens_per_sequence,
    }
