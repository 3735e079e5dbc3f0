"""Training at the released size, compared with transformers' own Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from timings.example_batch import example_questions
from timings.gpu.models import CHECKPOINTING, COMMANDS, TITLES, Bench, Row, Tables, autocast, measured, release
from timings.training import stock_rows, task_step, trainer_step
from zoo.backbones.pretrained import empty_model
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask
from zoo.tasks.training_cost import BatchSizes

OPTIONS = f"--model.backbone.dtype float32 --model.text_after_vision max_hw {CHECKPOINTING}"  # as the original model
Step = Callable[[], Tensor]  # an optimizer step, which returns the loss


def peer(bench: Bench, family: str) -> Tables:
    """Train the whole decoder on the questions of a scene: the zoo, and transformers' Trainer with one row each.

    Both use the same weights, rows and AdamW, bfloat16 autocast, 16 frames, gradient checkpointing and a frozen vision
    encoder.
    """
    command = bench.fit(family, OPTIONS, model="qwen25_vl.yaml", is_adapted=False)
    rows: list[Row] = []
    for questions in (1, 4) if bench.is_tiny else (1, 8, 18):
        task, sizes = command.task().train(), command.sizes(questions)
        vlm = task.model.backbone.vlm
        kind, config = type(vlm), vlm.config
        state = {name: tensor.cpu().clone() for name, tensor in vlm.state_dict().items()}
        asked = command.inputs(task, sizes)
        examples = one_per_row(bench, task, sizes, asked)
        rows.append(row(bench, "the zoo", questions, task_step(task, asked, lambda: autocast(bench.device))))
        del task, vlm, asked
        release()  # there is no memory for both
        stock = empty_model(kind, config, torch.float32)
        stock.load_state_dict(state, assign=True)
        stock.tie_weights()
        settings = {"bf16": True, "activation_checkpointing": True}
        step = trainer_step(stock.to(bench.device), examples, bench.device.type, **settings)
        rows.append(row(bench, "transformers", questions, step))
        del stock, step, examples
        release()
    return {TITLES[family].partition(" +")[0]: rows, COMMANDS: [{"": "the zoo", "command": str(command)}]}


def one_per_row(bench: Bench, task: VideoQATask, sizes: BatchSizes, asked: Batch) -> list[dict[str, Any]]:
    """Return the inputs of transformers' model for each question."""
    builder = SequenceBuilder(replace(task.model.model_spec(), packs_questions=False))
    scenes, rows, scene_of = example_questions(task.model, sizes, task.model.model_spec())
    scenes[0] = replace(scenes[0], pixel_values=asked.scenes[0].pixel_values.cpu())
    return stock_rows(Batch(scenes, builder.vision(scenes), builder.training(rows, scene_of, scenes)).to(bench.device))


def row(bench: Bench, way: str, questions: int, step: Step) -> Row:
    """Return a row of the table."""
    losses: list[Tensor] = []
    seconds, memory = measured(bench, lambda: losses.append(step()))
    return {
        "questions a scene": questions,
        "way": way,
        "questions/s": f"{questions / seconds:.2f}",
        "GB at the peak": f"{memory / 1e9:.1f}",
        "first loss": f"{float(losses[0]):.4f}",
    }
