"""python main.py plan: what a training needs, before a GPU is rented.

    python main.py plan --config spatial_mllm.yaml --config scale_3b.yaml --gpus 8 --memory_gb 80

takes the options of `fit` and runs a training step on tensors without memory: no weights are read, no video, no GPU.
Weights, gradients, the optimizer's state and activations are of each GPU; activations are the most bytes of all other
tensors at once, with 96 tokens of text per question. Validations take the weights, under FSDP2 the whole ones beside
the shards, and the optimizer's state; the activations of answers are not counted. The last line states what fits, or
what to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from commands.defaults import with_defaults
from commands.run_options import OF_RUNS, run_parser
from datamodules import VideoQADataModule
from datamodules.resize import bounds_of_images
from zoo.errors import InputError
from zoo.sequences.sequence_layout import MediaKind
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE
from zoo.tasks import Task, VideoQATask
from zoo.tasks.optim import LearningRates
from zoo.tasks.training_cost import BatchSizes, TrainingCost, training_cost

WIDTH = 120  # of a table, so that a narrow terminal breaks lines instead of cells
USABLE = 0.9  # of a GPU's memory: the rest is for CUDA itself, for NCCL, and lost to fragmentation
VIDEO = [480, 640]  # height and width of a raw frame where nothing states it
MOST_GPUS = 512
CHECKPOINTING, FSDP2 = ("--model.gradient_checkpointing", "true"), ("--config", "strategy_fsdp2.yaml")
STRATEGIES = ("ddp", "fsdp2")
PARTS = tuple(each.name for each in fields(LearningRates))


class Setup(NamedTuple):
    """How a model is trained: the strategy and whether with gradient checkpointing."""

    strategy: str
    checkpointing: bool

    def __str__(self) -> str:
        return self.strategy + (", checkpointing" if self.checkpointing else "")


class Training(NamedTuple):
    """A training of the command line.

    Attributes:
        title: Model and parts.
        setup: As the options have it.
        gpus: Processes.
        memory: Bytes that are usable on each GPU.
        cost: On one GPU.
        batch: Sizes of a batch.
        accumulated: Batches per step.
    """

    title: str
    setup: Setup
    gpus: int
    memory: float
    cost: TrainingCost
    batch: BatchSizes
    accumulated: int

    def shards(self, setup: Setup, gpus: int | None = None) -> int:
        """Number of GPUs that share one copy of the weights."""
        return (gpus or self.gpus) if setup.strategy == "fsdp2" else 1

    def rows(self, setup: Setup, gpus: int | None = None) -> dict[str, float]:
        """Bytes on each GPU in a training step, by what they are for."""
        cost, shards = self.cost, self.shards(setup, gpus)
        return {
            "weights": cost.weights / shards,
            "gradients": cost.gradients / shards,
            "optimizer": cost.optimizer / shards,
            "gathered": float(cost.gathered[self.accumulated > 1]) if shards > 1 else 0.0,
            "activations": float(cost.activations[setup.checkpointing]),
        }

    def evaluation(self, setup: Setup, gpus: int | None = None) -> float:
        """Bytes on each GPU in a validation, before its activations: FSDP2 gathers the whole weights for it."""
        cost, shards = self.cost, self.shards(setup, gpus)
        return (cost.weights + cost.optimizer) / shards + (cost.gathered_weights if shards > 1 else 0)

    def needed(self, setup: Setup, gpus: int | None = None) -> float:
        """Bytes on each GPU."""
        return max(sum(self.rows(setup, gpus).values()), self.evaluation(setup, gpus))

    def setups(self) -> Iterator[tuple[Setup, int]]:
        """The setup as it is, then others that compute the same, with their number of GPUs."""
        yield self.setup, self.gpus
        yield Setup(self.setup.strategy, True), self.gpus
        gpus = self.gpus
        while gpus <= MOST_GPUS:
            yield from ((Setup("fsdp2", checkpointing), gpus) for checkpointing in (self.setup.checkpointing, True))
            gpus *= 2


def plan(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `plan`, with config names resolved.
    """
    training = parse(arguments)
    console = Console(highlight=False, width=WIDTH)
    print(training.title)
    console.print(parameters_table(training.cost))
    console.print(memory_table(training))
    print(described(training))
    print(verdict(training, arguments))


def parse(arguments: list[str]) -> Training:
    """Build the model's shapes and counts.

    Raises:
        InputError: Options that make no training.
    """
    parser = run_parser("plan", __doc__, ("seed_everything", *OF_RUNS))
    parser.add_argument("--gpus", type=int | None, default=None, help="number of GPUs; null is that of trainer.devices")
    parser.add_argument("--memory_gb", type=float, default=80.0, help="memory of a GPU in 10^9 bytes")
    parser.add_argument(
        "--video_size", type=list[int] | None, default=None, help="height and width of raw frames; null is 480, 640"
    )
    parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    settings = parser.parse_args(with_defaults(arguments))
    trainer: Mapping[str, Any] = dict(settings.trainer or {})
    gpus = _devices(trainer.get("devices")) if settings.gpus is None else settings.gpus
    for option, value in (("gpus", gpus), ("memory_gb", settings.memory_gb)):
        if value <= 0:
            raise InputError(f"--{option} {value}: more than 0")
    options, data = settings.model.init_args, settings.data.init_args
    checkpointing, options.gradient_checkpointing = options.gradient_checkpointing, False
    size = settings.video_size or [getattr(data.source, "init_args", {}).get("size") or side for side in VIDEO]
    for part in ("source", "sampler", "train_sampler", "frame_pairing", "augmentation", "perturbation"):
        data[part] = None  # which may read files
    options.geometry_cache = None
    backbone: Any = getattr(options.backbone, "init_args", {})
    if backbone.get("attn_implementation") == "flex_attention":  # it has no gradients without a GPU
        backbone.attn_implementation = "sdpa"  # which keeps the same tensors
    with torch.device("meta"):  # no weights are read, nor looked for
        built: Any = parser.instantiate_classes(settings)
    task, module = built.model, built.data
    if not isinstance(task, VideoQATask):
        raise InputError(f"plan counts a model that learns from questions, and {type(task).__name__} does not")
    height, width = resized(module, task, size)
    kind: MediaKind = "video" if module.frames_as == "video" else "image"
    num_frames = module.num_frames // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE
    asked = (module.batch_size, module.questions_per_scene, module.tokens_per_sequence)
    batch = BatchSizes(num_frames, height, width, *asked, kind)
    cost = training_cost(task, batch, str(trainer.get("precision") or "32-true"))
    parts = (task.model.loader, task.model.geometry, task.model.fusion, task.model.camera_encoding)
    named = ", ".join(type(part).__name__ for part in parts if part is not None)
    strategy = "fsdp2" if "fsdp2" in str(trainer.get("strategy")).lower() else "ddp"
    return Training(
        title=f"{type(task).__name__}: {named}",
        setup=Setup(strategy, checkpointing),
        gpus=gpus,
        memory=USABLE * settings.memory_gb * 1e9,
        cost=cost,
        batch=batch,
        accumulated=int(trainer.get("accumulate_grad_batches") or 1),
    )


def resized(module: VideoQADataModule, task: VideoQATask, size: list[int]) -> tuple[int, int]:
    """Height and width of the resized frames.

    Raises:
        InputError: Sides that can't be resized.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"--video_size {size}: height and width in pixels, such as [480,640]")
    needs = task.requirements
    try:
        if module.frames_as == "video":
            return module.pixels.frame_size(size[0], size[1], module.num_frames, needs.token_px)
        return bounds_of_images(module.image_pixels, needs.image_pixels).frame_size(size[0], size[1], 1, needs.token_px)
    except ValueError as error:
        raise InputError(f"--video_size: {error}") from error


def parameters_table(cost: TrainingCost) -> Table:
    """The parameters of each part."""
    table = Table("parameters, million", "trained", "frozen", box=None, pad_edge=False)
    counts = [(part, cost.trained[part], cost.frozen[part]) for part in PARTS if cost.trained[part] + cost.frozen[part]]
    for part, *both in [*counts, ("total", cost.trained.total(), cost.frozen.total())]:
        table.add_row(part, *(f"{count / 1e6:,.1f}" if count else "-" for count in both))
    return table


def memory_table(training: Training) -> Table:
    """Bytes on each GPU, for each strategy without and with checkpointing."""
    setups = [Setup(strategy, checkpointing) for strategy in STRATEGIES for checkpointing in (False, True)]
    table = Table(f"GB on each of {training.gpus} GPUs", *map(str, setups), box=None, pad_edge=False)
    columns = [training.rows(setup) for setup in setups]
    for name in columns[0]:
        table.add_row(name, *(gigabytes(column[name]) for column in columns))
    table.add_row("total", *(gigabytes(sum(column.values())) for column in columns))
    table.add_row("in validations", *(gigabytes(training.evaluation(setup)) for setup in setups))
    return table


def described(training: Training) -> str:
    """The sizes of a batch and of a step."""
    cost, batch = training.cost, training.batch
    operations = cost.flops[training.setup.checkpointing] * training.accumulated
    tera = operations / 1e12
    flops = f"{tera:,.1f}" if tera >= 10 else f"{tera:.3g}"
    return (
        f"{batch.num_frames} frames of {batch.height} x {batch.width} pixels after resizing: {cost.visual_tokens:,} "
        f"visual tokens a scene, sequences of up to {cost.sequence_tokens:,} tokens\n"
        f"a step: {training.gpus} GPUs x {training.accumulated} batches x {batch.scenes} scenes with "
        f"{batch.questions} questions; {flops} TFLOP on each GPU"
    )


def verdict(training: Training, arguments: list[str]) -> str:
    """Whether the training fits into the GPUs' memory, or the first change after which it does."""
    need = training.needed(training.setup)
    if need <= training.memory:
        return f"fits: {gigabytes(need)} of {gigabytes(training.memory)} GB that are usable on each GPU"
    lacks = f"does not fit: {gigabytes(need)} of {gigabytes(training.memory)} GB that are usable on each GPU"
    least = need
    for words in [(), *changes(training, arguments)]:
        other = training if not words else parse([*arguments, *words])
        for setup, gpus in other.setups():
            if (found := other.needed(setup, gpus)) <= other.memory:
                more = ["on", str(gpus), "GPUs"] if gpus > training.gpus else []
                taken = " ".join([*words, *options(training.setup, setup), *more])
                return f"{lacks}; take {taken}: {gigabytes(found)} GB"
            least = min(least, found)
    return f"{lacks}; with all changes that are known here it still takes {gigabytes(least)} GB: rent larger GPUs"


def changes(training: Training, arguments: list[str]) -> Iterator[tuple[str, ...]]:
    """Options that change what is computed, from small to large changes."""
    batch, cost = training.batch, training.cost
    steps: list[tuple[str, ...]] = []
    if batch.scenes > 1:
        accumulated = str(training.accumulated * batch.scenes)
        steps.append(("--data.batch_size", "1", "--trainer.accumulate_grad_batches", accumulated))
    if batch.questions > 1 and batch.tokens_per_sequence is None:
        steps.append(("--data.tokens_per_sequence", str(cost.sequence_tokens // 2)))
    if cost.trained["decoder"] and not cost.frozen["decoder"]:
        steps.append(("--model.lora.r", "16"))
    words: tuple[str, ...] = ()
    for step in steps:
        words += step
        yield words
    for frames in (batch.num_frames // 2, batch.num_frames // 4):
        if frames >= TEMPORAL_PATCH_SIZE:
            yield (*words, "--data.num_frames", str(frames // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE))


def options(now: Setup, wanted: Setup) -> list[str]:
    """The options that turn one setup into another."""
    words = [] if now.checkpointing == wanted.checkpointing else [*CHECKPOINTING]
    return words if now.strategy == wanted.strategy else [*words, *FSDP2]


def gigabytes(count: float) -> str:
    """A number of bytes in units of 10^9."""
    return f"{count / 1e9:,.1f}" if count >= 5e7 else f"{count / 1e9:,.4f}"


def _devices(value: Any) -> int:
    """The number of GPUs of `trainer.devices`; one where it is left to the machine."""
    if isinstance(value, str) and "," in value:
        value = value.strip(",").split(",")
    return len(value) if isinstance(value, list) else int(value) if str(value or "").isdigit() else 1
