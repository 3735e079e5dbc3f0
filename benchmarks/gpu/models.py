"""Models of the released sizes with random weights, made on the device, and scenes for them."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import timed
from benchmarks.random_weights import draw
from zoo import (
    AddFusion,
    LearningRates,
    LoRA,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyVGGT,
    VideoQATask,
)
from zoo.backbones.qwen_weights import compute_buffers
from zoo.geometry import PretrainedVGGT
from zoo.sequences.batch import Batch
from zoo.tasks import training_cost
from zoo.tasks.training_cost import BatchSizes, TrainingCost, example_batch, example_questions

Row = dict[str, Any]
Tables = dict[str, list[Row]]
REPEATS = 5
TITLES = {"qwen25": "Qwen2.5-VL-3B + VGGT", "qwen3": "Qwen3-VL-4B"}
FRAMES = {"qwen25": (476, 644), "qwen3": (480, 640)}  # height and width in pixels
TINY_FRAMES = {"qwen25": (56, 84), "qwen3": (64, 96)}
TRAINED = LearningRates(decoder=7e-6, connector=2e-5)


class Bench(NamedTuple):
    """What a part runs on.

    Attributes:
        device: of the model.
        is_tiny: tiny models and short videos instead of the released sizes.
    """

    device: torch.device
    is_tiny: bool

    def task(self, name: str, *, dtype: str = "bfloat16", attention: str = "sdpa", **options: Any) -> VideoQATask:
        """A training task with random weights."""

        def build() -> VideoQATask:
            return self._task(name, dtype, attention, **options)

        torch.manual_seed(0)
        if self.is_tiny:  # to trace is enough: kernels take minutes to build
            torch.compile = partial(torch.compile, backend="eager")
        task = build() if self.is_tiny else without_weights(build, self.device)
        fill(task, self.device)
        task.model.backbone.stop_tokens = []
        return task.to(self.device)

    def cost(self, name: str, batch: BatchSizes, **options: Any) -> TrainingCost:
        """What a training step takes by the plan."""
        with torch.device("meta"):
            shapes = self._task(name, "bfloat16", "sdpa", **options)
        return training_cost.training_cost(shapes, batch, "bf16-mixed")

    def _task(self, name: str, dtype: str, attention: str, *, fused: bool = True, **options: Any) -> VideoQATask:
        loaders: dict[str, tuple[Any, Any, str]] = {
            "qwen25": (TinyQwen25VL, PretrainedQwen25VL, "Qwen/Qwen2.5-VL-3B-Instruct"),
            "qwen3": (TinyQwen3VL, PretrainedQwen3VL, "Qwen/Qwen3-VL-4B-Instruct"),
        }
        tiny, released, path = loaders[name]
        types: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
        parts: dict[str, Any] = {"backbone": tiny(**types) if self.is_tiny else released(path, **types)}
        if name == "qwen25" and fused:
            parts["fusion"] = AddFusion
            parts["geometry"] = TinyVGGT if self.is_tiny else lambda: PretrainedVGGT("facebook/VGGT-1B", dtype=dtype)
        common = {"learning_rates": TRAINED, "allow_untrained": True}
        return VideoQATask(**{**common, **parts, **options})

    def batch(self, model: str, frames: int, scenes: int = 1, questions: int = 1) -> BatchSizes:
        """Sizes of a batch: frames of 480 x 640 as they are resized for the model."""
        height, width = (TINY_FRAMES if self.is_tiny else FRAMES)[model]
        return BatchSizes(4 if self.is_tiny else frames, height, width, scenes, questions)

    def inputs(self, task: VideoQATask, sizes: BatchSizes) -> Batch:
        """A training batch on the device."""
        return self._on_device(example_batch(task.model, sizes))

    def questions(self, task: VideoQATask, sizes: BatchSizes, are_alone: bool = False) -> list[Batch]:
        """The questions of a scene on the device: in one batch with a shared prefix, or one batch each."""
        builder = task.sequence_builder
        scenes, rows, _ = example_questions(task.model, sizes)
        asked = [row.input_ids.tolist() for row in rows]
        batches = [[each] for each in asked] if are_alone else [asked]
        prompts = [builder.prompts(each, [[0]] * len(each), scenes) for each in batches]
        return [self._on_device(Batch(scenes, builder.vision(scenes), prompts=each)) for each in prompts]

    def _on_device(self, batch: Batch) -> Batch:
        for scene in batch.scenes:
            scene.pixel_values = torch.randn(scene.pixel_values.shape)
        return batch.to(self.device)


def without_weights(build: Callable[[], VideoQATask], device: torch.device) -> VideoQATask:
    """A model of a released size whose parameters have no memory yet; RoPE's frequencies are computed."""
    with torch.device("meta"):
        task = build()
    compute_buffers(task.model.backbone.vlm, device)
    return task


def fill(module: nn.Module, device: torch.device) -> None:
    """Gives parameters without memory random weights on the device, and buffers zeros."""
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
    """As --trainer.precision bf16-mixed."""
    return torch.autocast(device.type, torch.bfloat16)


ADAPTED: dict[str, Any] = {"lora": LoRA(r=16), "gradient_checkpointing": True}


def measured(bench: Bench, run: Callable[[], object]) -> tuple[float, int]:
    """Median seconds after two warm-ups, and bytes at the peak (0 on a CPU)."""
    for _ in range(1 if bench.is_tiny else 2):
        run()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(run, bench.device.type) for _ in range(1 if bench.is_tiny else REPEATS)]
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0


def card(bench: Bench) -> str:
    """The name of the GPU."""
    return torch.cuda.get_device_name() if bench.device.type == "cuda" else ""


def release() -> None:
    """Gives the memory of what is no longer used back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
