"""Build models of `python main.py fit` commands with random weights on a device, and scenes in memory for them."""

from __future__ import annotations

import gc
import shlex
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from commands.parser import build as build_parts
from commands.parser import parse
from commands.plan import PlannedTraining, parsed
from commands.scene_commands import OF_RUNS, run_parser
from timings.example_batch import example_batch, example_questions
from timings.measure import timed
from timings.random_weights import draw
from zoo.backbones.pretrained import compute_buffers
from zoo.sequences.batch import Batch
from zoo.tasks import Task, VideoQATask
from zoo.tasks.training_cost import BatchSizes

Row = dict[str, Any]
Tables = dict[str, list[Row]]
REPEATS = 5
TITLES = {"qwen25": "Qwen2.5-VL-3B + VGGT", "qwen3": "Qwen3-VL-4B", "qwen35": "Qwen3.5-4B"}
FUSED = {"qwen25": "spatial_mllm.yaml", "qwen3": "qwen3_vl.yaml", "qwen35": "qwen3_5.yaml"}
SCALES = {"qwen25": "scale_3b.yaml", "qwen3": "scale_qwen3vl_4b.yaml", "qwen35": "scale_qwen3_5_4b.yaml"}
TINY = {"qwen25": "scale_tiny.yaml", "qwen3": "scale_tiny_qwen3.yaml", "qwen35": "scale_tiny_qwen3_5.yaml"}
LORA = {"qwen25": "recipe_lora.yaml", "qwen3": "recipe_lora_qwen3vl.yaml"}
CHECKPOINTING = "--model.gradient_checkpointing true"
COMMANDS = "Their commands; frames here are random, of 480 x 640 pixels"  # title of a table


class Bench(NamedTuple):
    """The machine and the sizes of a part.

    Attributes:
        device: Device of the model.
        is_tiny: Use the tiny scales and short videos in place of the released sizes.
    """

    device: torch.device
    is_tiny: bool

    def fit(self, family: str, options: str = "", model: str | None = None, is_adapted: bool = True) -> Command:
        """Return a training command.

        Args:
            family: Family of the backbone, one of `TITLES`.
            options: Options of `fit`.
            model: The model's config. None uses the config in `FUSED`.
            is_adapted: Whether to train low-rank adapters.
        """
        configs = [model or FUSED[family], (TINY if self.is_tiny else SCALES)[family]]
        configs += [LORA[family]] if is_adapted else []
        named = [word for config in configs for word in ("--config", config)]
        return Command(self, [*named, *options.split(), *(("--data.num_frames", "4") if self.is_tiny else ())])


class Command:
    """A command line of `fit`.

    Args:
        bench: The machine and the sizes.
        options: Options of the command.
    """

    def __init__(self, bench: Bench, options: list[str]) -> None:
        self.bench, self.options = bench, options

    def __str__(self) -> str:
        return f"python main.py fit {shlex.join(self.options)}"

    @cached_property
    def words(self) -> list[str]:
        """The options in the order in which they are read."""
        return [*self.options]

    @cached_property
    def plan(self) -> PlannedTraining:
        """The cost of a step on one GPU, computed by `python main.py plan`."""
        return parsed((*self.words, "--video_size", "[56,84]" if self.bench.is_tiny else "[480,640]"))

    def sizes(self, questions: int | None = None) -> BatchSizes:
        """Return the sizes of a batch, or of a batch with `questions` questions about one scene."""
        return self.plan.batch if questions is None else replace(self.plan.batch, scenes=1, questions=questions)

    def task(self) -> VideoQATask:
        """Build the model with random weights."""
        parser = run_parser("fit", None, ("seed_everything", "data", *OF_RUNS))
        parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
        settings = parse(parser, self.words)

        def build() -> VideoQATask:
            task: VideoQATask = build_parts(parser, settings).model
            return task

        torch.manual_seed(0)
        if self.bench.is_tiny:  # tracing is enough, because building kernels takes minutes
            torch.compile = partial(torch.compile, backend="eager")
        task = build() if self.bench.is_tiny else without_weights(build, self.bench.device)
        fill(task, self.bench.device)
        task.model.backbone.stop_tokens = []
        return task.to(self.bench.device)

    def inputs(self, task: VideoQATask, sizes: BatchSizes) -> Batch:
        """Return a training batch on the device."""
        packs_scenes = "--data.pack_scenes" in self.options
        return self._on_device(example_batch(task.model, sizes, packs_scenes=packs_scenes))

    def questions(self, task: VideoQATask, sizes: BatchSizes, are_alone: bool = False) -> list[Batch]:
        """Return the questions of a scene on the device, in one batch with a shared prefix or in one batch each."""
        builder = task.model.sequence_builder
        scenes, rows, _ = example_questions(task.model, sizes, task.model.model_spec())
        asked = [row.input_ids.tolist() for row in rows]
        batches = [[each] for each in asked] if are_alone else [asked]
        prompts = [builder.prompts(each, [[0]] * len(each), scenes) for each in batches]
        return [self._on_device(Batch(scenes, builder.vision(scenes), prompts=each)) for each in prompts]

    def _on_device(self, batch: Batch) -> Batch:
        batch.scenes[:] = [replace(each, pixel_values=torch.randn(each.pixel_values.shape)) for each in batch.scenes]
        return batch.to(self.bench.device)


def without_weights(build: Callable[[], VideoQATask], device: torch.device) -> VideoQATask:
    """Build a model of a released size on the meta device. Only RoPE's frequencies are computed."""
    with torch.device("meta"):
        task = build()
    compute_buffers(task.model.backbone.vlm, device)
    return task


def fill(module: nn.Module, device: torch.device) -> None:
    """Give parameters on the meta device random weights on the device, and buffers zeros."""
    made: dict[Tensor, nn.Parameter] = {}
    for part in module.modules():
        for name, found in part._parameters.items():
            if found is not None and found.is_meta:
                if found not in made:
                    weight = draw(torch.empty_like(found, device=device), name)
                    made[found] = nn.Parameter(weight, found.requires_grad)
                part._parameters[name] = made[found]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = torch.zeros_like(buffer, device=device)


def autocast(device: torch.device) -> Any:
    """Return autocast as in --trainer.precision bf16-mixed."""
    return torch.autocast(device.type, torch.bfloat16)


def measured(bench: Bench, run: Callable[[], object]) -> tuple[float, int]:
    """Return median seconds after two warm-ups, and bytes at the peak (0 on a CPU)."""
    for _ in range(1 if bench.is_tiny else 2):
        run()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(run, bench.device.type) for _ in range(1 if bench.is_tiny else REPEATS)]
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0


def card(bench: Bench) -> str:
    """Return the name of the GPU."""
    return torch.cuda.get_device_name() if bench.device.type == "cuda" else ""


def release() -> None:
    """Release unused memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
