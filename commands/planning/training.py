"""A training of a command line, with the bytes and operations that it takes on each GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch

from commands import planning
from commands.defaults import with_defaults
from commands.planning.hours import USABLE, UTILIZATION, Length, length_of
from commands.resolve_run import require_model
from commands.run_options import OF_RUNS, run_parser
from datamodules import VideoQADataModule
from datamodules.resize import bounds_of_images
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind
from zoo.tasks import Task, VideoQATask
from zoo.tasks.training_cost import BatchSizes, TrainingCost, training_cost

VIDEO = [480, 640]  # height and width of a raw frame where nothing states it, and of every full scale
MOST_GPUS = 512
POSITIVE = ("gpus", "memory_gb", "questions", "utilization")
OF_PLAN = (*POSITIVE, "video_size")  # options that `fit` has not


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
        max_steps: Of the Trainer; -1 if epochs end the training.
        epoch: Questions of an epoch; None if unknown.
        utilization: Share of a GPU's peak.
        is_pretrained: Whether the model has released weights: a full scale.
        video: Height and width of the raw frames.
        uncounted: The algorithm that a training learns by, if it is not the supervised one, whose step is counted.
    """

    title: str
    setup: Setup
    gpus: int
    memory: float
    cost: TrainingCost
    batch: BatchSizes
    accumulated: int
    max_steps: int = -1
    epoch: int | None = None
    utilization: float = UTILIZATION
    is_pretrained: bool = False
    video: tuple[int, ...] = tuple(VIDEO)
    uncounted: str | None = None

    @property
    def length(self) -> Length:
        """What hours are given for."""
        per_step = self.gpus * self.accumulated * self.batch.scenes * self.batch.questions
        return length_of(self.epoch, per_step, self.max_steps)

    def operations(self, setup: Setup) -> float:
        """Floating-point operations of each GPU in the whole `length`."""
        return float(self.cost.steps[setup.checkpointing].flops) * self.accumulated * self.length.steps

    def shards(self, setup: Setup, gpus: int | None = None) -> int:
        """Number of GPUs that share one copy of the weights."""
        return (gpus or self.gpus) if setup.strategy == "fsdp2" else 1

    def rows(self, setup: Setup, gpus: int | None = None) -> dict[str, float]:
        """Bytes on each GPU in a training step, by what they are for."""
        cost, shards = self.cost, self.shards(setup, gpus)
        teacher = {"teacher": float(cost.teacher)} if cost.teacher else {}
        return {
            "weights": cost.weights / shards,
            **teacher,
            "gradients": cost.gradients / shards,
            "optimizer": cost.optimizer / shards,
            "gathered": float(cost.gathered[self.accumulated > 1]) if shards > 1 else 0.0,
            "activations": float(cost.steps[setup.checkpointing].activations),
        }

    def evaluation(self, setup: Setup, gpus: int | None = None) -> float:
        """Bytes on each GPU in a validation, before its activations: FSDP2 gathers the whole weights for it."""
        cost, shards = self.cost, self.shards(setup, gpus)
        return (cost.weights + cost.optimizer) / shards + cost.teacher + (cost.gathered_weights if shards > 1 else 0)

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


@cache
def parsed(words: tuple[str, ...]) -> Training:
    """Return `parse` of a command line, once for each."""
    return parse(list(words))


def parse(arguments: list[str]) -> Training:
    """Build the model's shapes and counts.

    Raises:
        InputError: Options that make no training.
    """
    parser = run_parser("plan", planning.__doc__, ("seed_everything", *OF_RUNS))
    parser.add_argument("--gpus", type=int | None, default=None, help="number of GPUs; null is that of trainer.devices")
    parser.add_argument("--memory_gb", type=float, default=80.0, help="memory of a GPU in 10^9 bytes")
    size_help = "height and width of raw frames; null is 480, 640, and of rendered rooms at the tiny scale theirs"
    parser.add_argument("--video_size", type=list[int] | None, default=None, help=size_help)
    epoch_help = "questions of an epoch, for the hours of one; null: those of --trainer.max_steps"
    parser.add_argument("--questions", type=int | None, default=None, help=epoch_help)
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help="share of a GPU's peak that is reached")
    parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    settings = parser.parse_args(with_defaults(arguments))
    require_model(settings.model)
    trainer: Mapping[str, Any] = dict(settings.trainer or {})
    gpus = _devices(trainer.get("devices")) * int(trainer.get("num_nodes") or 1)
    gpus = gpus if settings.gpus is None else settings.gpus
    for option, value in {"gpus": gpus, **{name: settings[name] for name in POSITIVE[1:]}}.items():
        if value is not None and value <= 0:
            raise InputError(f"--{option} {value}: more than 0")
    if not issubclass(task_class := resolve_name(settings.model.class_path), VideoQATask):
        raise InputError(f"plan counts a model that learns from questions, and {task_class.__name__} does not")
    options, data = settings.model.init_args, settings.data.init_args
    checkpointing, options.gradient_checkpointing = options.gradient_checkpointing, False
    rendered = None if _is_pretrained(options.backbone) else getattr(data.source, "init_args", {}).get("size")
    size = settings.video_size or ([rendered] * 2 if rendered else VIDEO)
    for part in ("source", "sampler", "train_sampler", "frame_pairing", "augmentation", "perturbation"):
        data[part] = None  # which may read files
    options.geometry_cache = None
    backbone: Any = getattr(options.backbone, "init_args", {})
    if backbone.get("attn_implementation") == "flex_attention":  # it has no gradients without a GPU
        backbone.attn_implementation = "sdpa"  # which keeps the same tensors
    with torch.device("meta"):  # no weights are read, nor looked for
        built: Any = parser.instantiate_classes(settings)
    task, module = built.model, built.data
    height, width = resized(module, task, size)
    kind: MediaKind = "video" if module.frames_as == "video" else "image"
    num_frames = module.num_frames // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE
    asked = (module.batch_size, module.questions_per_scene, module.tokens_per_sequence)
    batch = BatchSizes(num_frames, height, width, *asked, kind)
    cost = training_cost(task, batch, str(trainer.get("precision") or "32-true"))
    parts = (task.model.loader, task.model.geometry, task.model.fusion, task.model.camera_encoding)
    named = ", ".join(type(part).__name__ for part in parts if part is not None)
    named += f", learning from {type(task.teacher.outline).__name__}" if task.teacher is not None else ""
    strategy = "fsdp2" if "fsdp2" in str(trainer.get("strategy")).lower() else "ddp"
    return Training(
        title=f"{type(task).__name__}: {named}",
        setup=Setup(strategy, checkpointing),
        gpus=gpus,
        memory=USABLE * settings.memory_gb * 1e9,
        cost=cost,
        batch=batch,
        accumulated=int(trainer.get("accumulate_grad_batches") or 1),
        max_steps=int(trainer.get("max_steps") or -1),
        epoch=settings.questions,
        utilization=settings.utilization,
        is_pretrained=task.model.loader.is_pretrained,
        video=tuple(size),
        uncounted=type(task.algorithm).__name__ if task.algorithm.asks_questions else None,
    )


def resized(module: VideoQADataModule, task: VideoQATask, size: list[int]) -> tuple[int, int]:
    """Height and width of the resized frames.

    Raises:
        InputError: Sides that can't be resized.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"--video_size {size}: height and width in pixels, such as [480,640]")
    needs = task.model_spec()
    try:
        if module.frames_as == "video":
            return module.pixels.frame_size(size[0], size[1], module.num_frames, needs.token_px)
        if module.still_resize is not None:
            picture = torch.empty(1, 3, *size, dtype=torch.uint8, device="cpu")
            height, width = module.still_resize(picture, needs.token_px).frames.shape[-2:]
            return height, width
        return bounds_of_images(module.image_pixels, needs.image_pixels).frame_size(size[0], size[1], 1, needs.token_px)
    except ValueError as error:
        raise InputError(f"--video_size: {error}") from error


def _is_pretrained(backbone: Any) -> bool:
    """Whether the settings of a backbone name one with released weights."""
    return backbone is not None and bool(resolve_name(backbone.class_path).is_pretrained)


def _devices(value: Any) -> int:
    """The number of GPUs of `trainer.devices`; one where it is left to the machine."""
    if isinstance(value, str) and "," in value:
        value = value.strip(",").split(",")
    return len(value) if isinstance(value, list) else int(value) if str(value or "").isdigit() else 1
