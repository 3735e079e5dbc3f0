"""python main.py plan: estimate what a training needs, before you rent a GPU.

    python main.py plan --config spatial_mllm.yaml --config scale_3b.yaml --gpus 8 --memory_gb 80

The command takes the options of `fit` and builds the model without memory. It reads no weights and no video, and needs
no GPU. It prints the parameters of each part, and for each GPU the bytes of weights, gradients, optimizer state and
activations. `zoo.tasks.training_cost` has the formulas. They assume 96 tokens of text per question. For validations,
weights and optimizer state are counted (with FSDP2 the whole weights beside the shards), but not the activations of
answers. A frozen teacher (--model.teacher) is whole on each GPU, unless its outputs are cached. Steps are counted as in
supervised training. With GRPO, the sampling and the several answers per question are not counted.

A step has the same questions on any number of --gpus: `--trainer.accumulate_grad_batches` is divided, unless you give
it.

For released weights a second table lists alternatives (checkpointing, LoRA, fewer frames, FSDP2, all of them) with the
hours of training on each kind of GPU that has enough memory. Hours are floating-point operations divided by the GPU's
peak times --utilization, without loading data, validations and tests. With --questions, the number of questions per
epoch, they are the hours of one epoch. The last lines print the command that starts a training that fits, the sizes of
its steps, and what was changed.
"""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from rich.console import Console
from rich.table import Table

from commands.parser import build, parse, split_options
from commands.runs import require_model
from commands.scene_commands import OF_RUNS, run_parser
from datamodules import VideoQADataModule
from datamodules.resize import bounds_of_images
from run_folder.configs import CONFIGS
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind
from zoo.tasks.base import LearningRates, Task
from zoo.tasks.training_cost import BatchSizes, TrainingCost, training_cost
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import is_quantized

WIDTH = 120  # of tables, so that a narrow terminal breaks lines instead of cells
VIDEO = [480, 640]  # default height and width of a raw frame, always used for full scales
USABLE = 0.9  # share of a GPU's memory; the rest is for CUDA, NCCL and fragmentation
UTILIZATION = 0.35  # share of the peak: an assumption; trainings of such models report 0.3 to 0.5
QUESTIONS = 10_000  # hours are given for this many questions if the length of a training is unknown
MOST_GPUS, GPUS_PER_NODE = 512, 8
OPTIONS = {  # options that `fit` does not have
    "gpus": (int | None, None, "number of GPUs that share a step; null uses trainer.devices and trainer.num_nodes"),
    "memory_gb": (float, 80.0, "memory of a GPU in 10^9 bytes"),
    "video_size": (
        list[int] | None,
        None,
        "height and width of raw frames; null uses 480, 640, or the size of tiny rooms",
    ),
    "questions": (
        int | None,
        None,
        "questions per epoch, to print the hours of an epoch; null uses --trainer.max_steps",
    ),
    "utilization": (float, UTILIZATION, "share of a GPU's peak that is reached"),
}
PROCESSES = ("trainer.devices", "trainer.num_nodes")
ACCUMULATE = "--trainer.accumulate_grad_batches"
CHECKPOINTING, FSDP2 = ("--model.gradient_checkpointing", "true"), ("--trainer.strategy", "fsdp2")
LORA = ("--model.lora.r", "16")


class GPU(NamedTuple):
    """A GPU's data sheet: memory in 10^9 bytes, dense bfloat16 products in 10^12 operations per second."""

    name: str
    memory_gb: float
    peak_tflops: float

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gb:g} GB"


GPUS = (
    GPU("A100", 80, 312),
    GPU("H100", 80, 989),
    GPU("H200", 141, 989),
    GPU("L40S", 48, 362),
    GPU("4090", 24, 165),
)


class PlannedTraining(NamedTuple):
    """A training of a command line, possibly with changes.

    Attributes:
        cost: Cost on one GPU that holds the whole model.
        batch: Sizes of a batch.
        strategy: ddp or fsdp2.
        checkpointing: Whether gradient checkpointing is used.
        gpus: Number of processes.
        memory: Usable bytes on each GPU.
        accumulated: Batches per step.
        batches: Batches of a step as the configs and options have it, on all GPUs.
        configured: Machines, GPUs of all machines and batches per step as the configs and options have them.
        max_steps: The Trainer's max_steps; -1 if epochs end the training.
        epoch: Questions of an epoch. None if unknown.
        utilization: Share of a GPU's peak.
        is_pretrained: Whether the model has released weights (a full scale).
        title: Model and parts.
        video: Height and width of the raw frames.
        can_shard: Whether FSDP2 may shard the weights, which it does not in four bits.
        uncounted: Algorithm of the training if it is not supervised. Steps are counted as in supervised training.
        changes: Options that are added to the command line.
    """

    cost: TrainingCost
    batch: BatchSizes
    strategy: str = "ddp"
    checkpointing: bool = False
    gpus: int = 1
    memory: float = USABLE * 80e9
    accumulated: int = 1
    batches: int = 1
    configured: tuple[int, int, int] = (1, 1, 1)
    max_steps: int = -1
    epoch: int | None = None
    utilization: float = UTILIZATION
    is_pretrained: bool = False
    title: str = ""
    video: tuple[int, ...] = tuple(VIDEO)
    can_shard: bool = True
    uncounted: str | None = None
    changes: tuple[str, ...] = ()

    def variant(self, strategy: str, checkpointing: bool, gpus: int | None = None) -> PlannedTraining:
        """Return the same computation in another setup."""
        changes = (*self.changes, *(CHECKPOINTING if checkpointing != self.checkpointing else ()))
        changes = (*changes, *(FSDP2 if strategy != self.strategy else ()))
        return self._replace(strategy=strategy, checkpointing=checkpointing, changes=changes).on(gpus or self.gpus)

    def on(self, gpus: int) -> PlannedTraining:
        """Return the training on another number of GPUs, with the same batches in a step, if they can be divided."""
        return self._replace(gpus=gpus, accumulated=max(1, round(self.batches / gpus)))

    @property
    def rows(self) -> dict[str, float]:
        """Bytes on each GPU in a training step, by purpose."""
        cost, shards = self.cost, self.shards
        return {
            "weights": cost.weights / shards,
            **({"teacher": float(cost.teacher)} if cost.teacher else {}),
            "gradients": cost.gradients / shards,
            "optimizer": cost.optimizer / shards,
            "gathered": float(cost.gathered[self.accumulated > 1]) if shards > 1 else 0.0,
            "activations": float(cost.steps[self.checkpointing].activations),
        }

    @property
    def shards(self) -> int:
        """Number of GPUs that share one copy of the weights."""
        return self.gpus if self.strategy == "fsdp2" else 1

    @property
    def evaluation(self) -> float:
        """Bytes on each GPU in a validation without activations. FSDP2 gathers the whole weights for it."""
        whole = self.cost.gathered_weights if self.shards > 1 else 0
        return (self.cost.weights + self.cost.optimizer) / self.shards + self.cost.teacher + whole

    @property
    def needed(self) -> float:
        """Bytes that are needed on each GPU."""
        return max(sum(self.rows.values()), self.evaluation)

    @property
    def questions_per_step(self) -> int:
        """Questions of a step on all GPUs."""
        return self.gpus * self.accumulated * self.batch.scenes * self.batch.questions

    @property
    def length(self) -> tuple[float, str]:
        """Number of steps for which hours are given, and its description."""
        if self.epoch is None and self.max_steps > 0:
            return float(self.max_steps), f"{self.max_steps:,} steps"
        unknown = f"{QUESTIONS:,} questions (--questions: those of an epoch)"
        name = unknown if self.epoch is None else f"an epoch of {self.epoch:,} questions"
        return (self.epoch or QUESTIONS) / self.questions_per_step, name

    @property
    def hours(self) -> list[float | None]:
        """Hours on each kind of GPU. None where the memory is not enough."""
        return self.hours_of(self.cost.steps[self.checkpointing].flops * self.accumulated * self.length[0])

    def hours_of(self, flops: float) -> list[float | None]:
        """Return the hours of floating-point operations on each kind of GPU. None where the memory is not enough."""
        return [
            flops / (self.utilization * gpu.peak_tflops * 1e12) / 3600
            if self.needed <= USABLE * gpu.memory_gb * 1e9
            else None
            for gpu in GPUS
        ]

    def on_each_gpu(self) -> list[str]:
        """Return the bytes, and the hours on each kind of GPU that has enough memory."""
        return [gigabytes(self.needed), *map(in_tenths, self.hours)]


def plan(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `plan`, with config names resolved.
    """
    training = parsed(tuple(arguments))
    console = Console(highlight=False, width=WIDTH)
    print(training.title)
    console.print(parameters_table(training.cost))
    console.print(memory_table(training))
    if training.is_pretrained:
        share = f"{training.utilization:.0%} of a GPU's peak in bfloat16"
        print(f"hours of {training.length[1]}, at {share}; - does not fit")
        *several, together = alternatives(training, arguments)
        rows = [(" ".join(each.changes) or "as it is", *each.on_each_gpu()) for each in several]
        rows += [("all of these", *together.on_each_gpu())] if len(several) > 2 else []
        console.print(table((f"on {training.gpus} GPUs", "GB on each", *map(str, GPUS)), rows))
    choice = choose(training, arguments)
    if choice.needed <= choice.memory:
        print(f"to start it: {launch(arguments, choice)}")
    shown = choice if choice.needed <= choice.memory else training
    print(described(shown))
    if shown.questions_per_step != training.batches * training.batch.scenes * training.batch.questions:
        print(step_warning(shown, training))
    print(verdict(training, choice))


# ---- The training of a command line ----------------------------------------------------------------------------------


@cache
def parsed(arguments: tuple[str, ...]) -> PlannedTraining:
    """Build the model and the DataModule of a command line without memory, and compute the cost.

    Raises:
        InputError: The options don't describe a training.
    """
    parser = run_parser("plan", __doc__, ("seed_everything", *(name for name in OF_RUNS if name != "trainer")))
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    for name, (annotation, default, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=annotation, default=default, help=text)
    parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    settings = parse(parser, arguments)
    require_model(settings)
    for name in ("gpus", "memory_gb", "questions", "utilization"):
        if settings[name] is not None and settings[name] <= 0:
            raise InputError(f"--{name} {settings[name]}: more than 0")
    if not issubclass(task_class := resolve_name(settings.model.class_path), VideoQATask):
        raise InputError(f"plan counts a model that learns from questions, and {task_class.__name__} does not")
    # 1. Leave out parts that would read files.
    trainer, options, data = settings.pop("trainer"), settings.model.init_args, settings.data.init_args
    checkpointing, options.gradient_checkpointing = options.gradient_checkpointing, False
    rendered = getattr(data.source, "init_args", {}).get("size")
    for part in ("source", "sampler", "train_sampler", "frame_pairing", "augmentation", "perturbation"):
        data[part] = None
    options.geometry_cache = None
    # 2. The parts.
    with torch.device("meta"):
        built: Any = build(parser, settings)
    task, module = built.model, built.data
    of_rooms = [rendered] * 2 if rendered and not task.model.loader.is_whole else VIDEO
    size = settings.video_size or of_rooms
    height, width = resized(module, task, size)
    kind: MediaKind = "video" if module.frames_as == "video" else "image"
    frames = module.num_frames // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE
    asked = (module.batch_size, module.questions_per_scene, module.tokens_per_sequence)
    batch = BatchSizes(frames, height, width, *asked, kind, module.poses_in_prompt)
    parts = (task.model.loader, task.model.geometry, task.model.fusion, task.model.camera_encoding)
    named = ", ".join(type(part).__name__ for part in parts if part is not None)
    named += f", learning from {type(task.teacher.outline).__name__}" if task.teacher is not None else ""
    nodes, accumulated = int(trainer.num_nodes or 1), int(trainer.accumulate_grad_batches or 1)
    gpus = nodes * _devices(trainer.devices)
    is_given = ACCUMULATE.removeprefix("--") in dict(split_options(arguments)[0])
    training = PlannedTraining(
        cost=training_cost(task, batch, str(trainer.precision or "32-true")),
        batch=batch,
        strategy="fsdp2" if "fsdp2" in str(trainer.strategy).lower() else "ddp",
        checkpointing=checkpointing,
        memory=USABLE * settings.memory_gb * 1e9,
        batches=accumulated * (settings.gpus if is_given and settings.gpus else gpus),
        configured=(nodes, gpus, accumulated),
        max_steps=int(trainer.max_steps or -1),
        epoch=settings.questions,
        utilization=settings.utilization,
        is_pretrained=task.model.loader.is_whole,
        title=f"{type(task).__name__}: {named}",
        video=tuple(size),
        can_shard=not any(map(is_quantized, task.parameters())),
        uncounted=type(task.algorithm).__name__ if task.algorithm.asks_questions else None,
    )
    return training.on(settings.gpus or gpus)


def resized(module: VideoQADataModule, task: VideoQATask, size: list[int]) -> tuple[int, int]:
    """Return height and width of the resized frames.

    Raises:
        InputError: The size can't be resized.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"--video_size {size}: height and width in pixels, such as [480,640]")
    needs = task.model_spec()
    try:
        if module.frames_as == "video":
            return module.pixels.frame_size(size[0], size[1], module.num_frames, needs.frames.token_px)
        if module.still_resize is not None:
            picture = torch.empty(1, 3, *size, dtype=torch.uint8, device="cpu")
            height, width = module.still_resize(picture, needs.frames.token_px).frames.shape[-2:]
            return height, width
        bounds = bounds_of_images(module.image_pixels, needs.frames.image_pixels)
        return (size[0], size[1]) if bounds is None else bounds.frame_size(size[0], size[1], 1, needs.frames.token_px)
    except ValueError as error:
        raise InputError(f"--video_size: {error}") from error


def _devices(value: Any) -> int:
    """Return the number of GPUs in `trainer.devices`, or 1 if it depends on the machine."""
    if isinstance(value, str) and "," in value:
        value = value.strip(",").split(",")
    return len(value) if isinstance(value, list) else int(value) if str(value or "").isdigit() else 1


# ---- Changes that make a training fit into a GPU, and the command that starts it -------------------------------------


def alternatives(training: PlannedTraining, arguments: list[str]) -> list[PlannedTraining]:
    """Return the training as it is, with each change by itself, and with all of them."""
    batch, cost = training.batch, training.cost
    frames = batch.num_frames // 2 // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE
    of_one_scene = max(1, round(training.batches * batch.scenes / training.gpus))
    one_scene = ("--data.batch_size", "1", ACCUMULATE, str(of_one_scene))
    options = [
        LORA if cost.trained["decoder"] and not cost.frozen["decoder"] else (),
        one_scene if batch.scenes > 1 else (),
        ("--data.num_frames", str(frames)) if frames else (),
    ]

    def with_options(words: tuple[str, ...]) -> PlannedTraining:
        return parsed((*arguments, *words))._replace(changes=words) if words else training

    strategy = "fsdp2" if training.gpus > 1 and training.can_shard else training.strategy
    several = [
        training.variant(training.strategy, True),
        *map(with_options, options),
        training.variant(strategy, training.checkpointing),
    ]
    together = with_options(tuple(word for words in options for word in words)).variant(strategy, True)
    return [training, *(each for each in several if each.changes), together]


def choose(training: PlannedTraining, arguments: list[str]) -> PlannedTraining:
    """Return the training if it fits, or with the first change that makes it fit, else the one that needs least memory.

    Changes that compute the same come first: checkpointing, and shards over an increasing number of GPUs. All
    alternatives follow.
    """
    tried: list[PlannedTraining] = []
    for smaller in (lambda: training, lambda: alternatives(training, arguments)[-1]):
        other, gpus = smaller(), training.gpus
        tried += [other, other.variant(other.strategy, True)]
        while gpus <= MOST_GPUS and training.can_shard:
            tried += [other.variant("fsdp2", recomputes, gpus) for recomputes in (other.checkpointing, True)]
            gpus *= 2
        if found := [each for each in tried if each.needed <= each.memory]:
            return found[0]
    return min(tried, key=lambda each: each.needed)


def launch(arguments: list[str], choice: PlannedTraining) -> str:
    """Return the command that starts the chosen training: `fit` with the options of `plan` and the changes."""
    replaced = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in (*OPTIONS, *PROCESSES):
        replaced.add_argument(f"--{option}")
    words = replaced.parse_known_args([*arguments, *choice.changes])[1]
    words = [Path(word).name if Path(word).parent == CONFIGS else word for word in words]
    configured_nodes, configured_gpus, accumulated = choice.configured
    nodes = configured_nodes
    if choice.gpus != configured_gpus:  # the fewest nodes with equal numbers of GPUs
        nodes = next(n for n in count(-(-choice.gpus // GPUS_PER_NODE)) if choice.gpus % n == 0)
    words += [f"--{PROCESSES[0]}", str(choice.gpus // nodes)]
    words += [f"--{PROCESSES[1]}", str(nodes)] if (nodes, configured_nodes) != (1, 1) else []
    words += [ACCUMULATE, str(choice.accumulated)] if choice.accumulated != accumulated else []
    return f"{'srun ' if nodes > 1 else ''}python main.py fit {shlex.join(words)}"


# ---- Output ----------------------------------------------------------------------------------------------------------


def gigabytes(count: float) -> str:
    """Return a number of bytes in units of 10^9."""
    return f"{count / 1e9:,.1f}" if count >= 5e7 else f"{count / 1e9:,.4f}"


def in_tenths(hours: float | None) -> str:
    """Return hours as text."""
    return "-" if hours is None else f"{hours:,.1f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Return a table without lines."""
    made = Table(*head, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return made


def parameters_table(cost: TrainingCost) -> Table:
    """Return the parameters of each part."""
    counts = {each.name: (cost.trained[each.name], cost.frozen[each.name]) for each in fields(LearningRates)}
    counts |= {"teacher": (0, cost.frozen["teacher"]), "total": (cost.trained.total(), cost.frozen.total())}
    rows = ([part, *(f"{n / 1e6:,.1f}" if n else "-" for n in both)] for part, both in counts.items() if any(both))
    return table(("parameters, million", "trained", "frozen"), rows)


def memory_table(training: PlannedTraining) -> Table:
    """Return the bytes on each GPU, for each strategy without and with checkpointing."""
    strategies = ("ddp", "fsdp2") if training.can_shard else ("ddp",)
    setups = [(strategy, checkpointing) for strategy in strategies for checkpointing in (False, True)]
    titles = (strategy + ", checkpointing" * checkpointing for strategy, checkpointing in setups)
    columns = [training.variant(*setup) for setup in setups]
    rows = {name: [each.rows[name] for each in columns] for name in training.rows}
    rows |= {"total": [sum(each.rows.values()) for each in columns]}
    rows |= {"in validations": [each.evaluation for each in columns]}
    head = (f"GB on each of {training.gpus} GPUs", *titles)
    return table(head, ([name, *map(gigabytes, row)] for name, row in rows.items()))


def described(training: PlannedTraining) -> str:
    """Describe the sizes of a batch and of a step."""
    cost, batch = training.cost, training.batch
    tera = cost.steps[training.checkpointing].flops * training.accumulated / 1e12
    raw = " x ".join(map(str, training.video))
    only = (
        f"; sampling and comparing by {training.uncounted} is not counted and takes more" if training.uncounted else ""
    )
    return (
        f"{batch.num_frames} frames of {batch.height} x {batch.width} pixels after resizing, of {raw} before: "
        f"{cost.visual_tokens:,} visual tokens a scene, sequences of up to {cost.sequence_tokens:,} tokens\n"
        f"a step of {training.questions_per_step:,} questions: {training.gpus} GPUs x {training.accumulated} batches x "
        f"{batch.scenes} scenes with {batch.questions} questions; "
        f"{f'{tera:,.1f}' if tera >= 10 else f'{tera:.3g}'} TFLOP on each GPU{only}"
    )


def step_warning(shown: PlannedTraining, training: PlannedTraining) -> str:
    """Describe how the number of GPUs changes a step."""
    batch, gpus = training.batch, training.configured[1]
    return (
        f"warning: a step has {shown.questions_per_step:,} questions on {shown.gpus} GPUs, and "
        f"{training.batches * batch.scenes * batch.questions:,} on the {gpus} of --trainer.devices: take GPUs that "
        f"divide its {training.batches} batches, or a smaller --data.batch_size"
    )


def verdict(training: PlannedTraining, choice: PlannedTraining) -> str:
    """Return whether the training fits into the GPUs' memory, or the first change that makes it fit."""
    usable = f"of {gigabytes(training.memory)} GB that are usable on each GPU"
    lacks = f"does not fit: {gigabytes(training.needed)} {usable}"
    needed = gigabytes(choice.needed)
    if choice.needed > choice.memory:
        return f"{lacks}; with all known changes it still takes {needed} GB: rent larger GPUs"
    more = ["on", str(choice.gpus), "GPUs"] if choice.gpus > training.gpus else []
    words = " ".join([*choice.changes, *more])
    return f"{lacks}; take {words}: {needed} GB" if words else f"fits: {needed} {usable}"
