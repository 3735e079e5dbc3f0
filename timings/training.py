"""Fine-tune on scenes with many questions: the zoo and original transformers, with the same weights and rows.

    python -m timings.training                    # a tiny model, and one of 97 M parameters
    python -m timings.training --size tiny --questions 1 18 --frames 4
    python -m timings.training --device cuda

The peer is transformers' `Trainer` with its Qwen2.5-VL and one question per row, as published scripts train. The rows
of a scene are the accumulated batches of one optimizer step, each with the whole video. The zoo learns from all of them
in one sequence. Both freeze the vision encoder and use the same AdamW. The Trainer averages the losses of accumulated
rows, whatever the lengths of their answers (`accepts_loss_kwargs` is False in transformers' Qwen2.5-VL). This equals
`average: questions`, and `micro_batch_tokens` with one question per batch. The three losses must be equal. Batches are
already in memory. Memory is the growth at the peak of a step, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from datamodules.collate import TrainingCollate
from datamodules.scenes import Question
from timings.evaluate import TEXTS
from timings.measure import add_options, in_a_process, interleaved, peak_growth, processor, spread
from timings.tables import markdown
from zoo import LearningRates, Qwen25VL, TinyQwen25VL, VideoQATask
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.objectives.base import AverageRule
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED
from zoo.tasks.base import fused_adamw

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "97M": {
        "layers": 12,
        "hidden_size": 768,
        "heads": 12,
        "key_value_heads": 2,
        "vision_layers": 12,
        "vision_hidden_size": 512,
    },
}
RATE = 1e-5
TOLERANCE = 1e-5  # largest relative difference of equal losses
Step = Callable[[], Tensor]  # an optimizer step, which returns the loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument(
        "--questions", type=int, nargs="+", default=[1, 8, 18], help="questions per scene, which form one step"
    )
    parser.add_argument("--frames", type=int, default=8)
    add_options(parser)
    parser.add_argument("--memory-of", choices=tuple(STEPS), help="print only the memory of one step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory(options)))
        return
    where = processor(options)
    for size in options.size:
        parameters = sum(each.numel() for each in backbone(size).stock_model().parameters()) / 1e6
        print(f"\nQwen2.5-VL, {size}: {parameters:.1f} M parameters, float32, {options.frames} frames, {where}\n")
        print(markdown([row for count in options.questions for row in rows(options, size, count)]), flush=True)


def rows(options: argparse.Namespace, size: str, count: int) -> list[dict[str, object]]:
    """Return the table of both ways for scenes with `count` questions."""
    steps = {way: build(options, size, count) for way, build in STEPS.items()}
    losses = {way: float(step()) for way, step in steps.items()}
    seconds = interleaved(steps, options.repeats, options.device, warm_up=False)  # computing the losses was the warm-up
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    mib = {way: memory_in_a_process(options, size, count, way) / 2**20 for way in STEPS}
    stock, zoo = STEPS
    published = published_loss(options, size, count)
    if any(abs(each - losses[stock]) > TOLERANCE * losses[stock] for each in (losses[zoo], published)):
        sys.exit(f"the losses differ: {losses}, by micro_batch_tokens {published}")
    return [
        {
            "questions a scene": count,
            "way": way,
            "s a step: median (least to most)": spread(seconds[way], 2),
            "questions a second": f"{count / middle[way]:.2f}",
            "times the peer": f"{middle[stock] / middle[way]:.1f}",
            "memory at the peak, MiB": f"{mib[way]:.0f}",
            "first loss": f"{losses[way]:.6f}",
        }
        for way in STEPS
    ]


def backbone(size: str) -> TinyQwen25VL:
    return TinyQwen25VL(**SIZES[size], seed=0)


def task_of(size: str, average: AverageRule = "questions") -> Qwen25VL:
    """Return the zoo's baseline with the positions of transformers 5."""
    rates = LearningRates(decoder=RATE, connector=None, vision=None)  # as the peer's
    return Qwen25VL(
        backbone=backbone(size),
        text_after_vision="max_hw",
        learning_rates=rates,
        average=average,
    )


def batch(options: argparse.Namespace, task: Qwen25VL, count: int, *, is_packed: bool) -> Batch:
    """Return a scene of noise with `count` questions, in one sequence or in one each."""
    return collate_of(task, is_packed=is_packed)([noise(options, count)]).to(options.device)


def noise(options: argparse.Namespace, count: int) -> LoadedScene:
    """Return a scene of noise with `count` questions, whose answers have different lengths."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.frames, 3, options.height, options.width)
    video = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
    asked = tuple(Question(str(i), "object_counting", TEXTS[i % len(TEXTS)], str(7**i)) for i in range(count))
    return LoadedScene("noise", asked, video, frame_indices=tuple(range(options.frames)))


def collate_of(task: Qwen25VL, *, is_packed: bool) -> TrainingCollate:
    """Return a collate that puts the questions of a scene into one sequence, or into one each."""
    return TrainingCollate(replace(task.model_spec(training=True), packs_questions=is_packed))


def zoo_step(options: argparse.Namespace, size: str, count: int) -> Step:
    """Return a step on all questions after the video that they share."""
    task = task_of(size).train().to(options.device)
    return task_step(task, batch(options, task, count, is_packed=True))


def task_step(task: VideoQATask, asked: Batch, around: Callable[[], AbstractContextManager] = nullcontext) -> Step:
    """Return a step of a task on a batch. `around` makes the context of the forward pass, such as autocast."""
    trained = [each for each in task.parameters() if each.requires_grad]
    optimizer = fused_adamw([{"params": trained, "lr": RATE}], weight_decay=0.0)

    def step() -> Tensor:
        with around():
            loss = task.loss(asked)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def published_loss(options: argparse.Namespace, size: str, count: int) -> float:
    """Return the mean loss of batches of one question each, by the published rule."""
    task = task_of(size, "micro_batch_tokens").train().to(options.device)
    scene, collate = noise(options, count), collate_of(task, is_packed=False)
    with torch.no_grad():
        batches = (collate([replace(scene, questions=(each,))]).to(options.device) for each in scene.questions)
        return statistics.fmean(float(task.loss(each)) for each in batches)


def stock_step(options: argparse.Namespace, size: str, count: int) -> Step:
    """Return a step on one question per row."""
    examples = stock_rows(batch(options, task_of(size), count, is_packed=False))
    return trainer_step(backbone(size).stock_model(), examples, options.device)


def trainer_step(model: Any, examples: Sequence[dict[str, Any]], device: str, **settings: Any) -> Step:
    """Return a step of transformers' Trainer on rows that it accumulates, with a frozen vision encoder.

    Args:
        model: Transformers' model.
        examples: Rows from `stock_rows`.
        device: The device of the model.
        **settings: Further `TrainingArguments`.
    """
    model.model.visual.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(examples),
        use_cpu=not device.startswith("cuda"),
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments)
    if arguments.activation_checkpointing:  # as in `Trainer.train`, of which this step is a part
        model.activation_checkpointing_enable()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = fused_adamw([{"params": trained, "lr": RATE}], weight_decay=0.0)
    tokens = torch.stack([(each["labels"] != IGNORED).sum() for each in examples]).sum()  # as the Trainer counts
    trainer.current_gradient_accumulation_steps = len(examples)
    model.train()

    def step() -> Tensor:
        losses = [trainer.training_step(model, dict(each), num_items_in_batch=tokens) for each in examples]
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).sum()

    return step


def stock_rows(asked: Batch) -> list[dict[str, Any]]:
    """Return the inputs of transformers' model for each row of a batch about one scene."""
    assert asked.sequences is not None
    sequences, (scene,) = asked.sequences, asked.scenes
    labels = torch.full_like(sequences.input_ids, IGNORED).flatten()
    labels[sequences.answer_places + 1] = sequences.answer_ids
    is_video = torch.zeros_like(labels)
    is_video[sequences.visual_places] = 2  # transformers' number for videos
    pixels = scene.pixel_values
    shown = {
        "pixel_values_videos": pixels if pixels.is_floating_point() else tiny_preprocessor().normalize(pixels),
        "video_grid_thw": torch.tensor([scene.grid_thw]),
        "second_per_grid_ts": torch.tensor([scene.seconds_per_grid or 1.0]),
    }
    return [
        {
            "input_ids": ids[None, :length],
            "attention_mask": torch.ones_like(ids[None, :length]),
            "labels": own_labels[None, :length],
            "mm_token_type_ids": own_kinds[None, :length].int(),
            **shown,
        }
        for ids, own_labels, own_kinds, length in zip(
            sequences.input_ids,
            labels.view_as(sequences.input_ids),
            is_video.view_as(sequences.input_ids),
            sequences.lengths,
            strict=True,
        )
    ]


STEPS: dict[str, Callable[[argparse.Namespace, str, int], Step]] = {"transformers": stock_step, "the zoo": zoo_step}


def memory(options: argparse.Namespace) -> int:
    """Return the growth at the peak of the second step, when the optimizer has its state."""
    (size,), (count,) = options.size, options.questions
    step = STEPS[options.memory_of](options, size, count)
    step()
    return peak_growth(step, options.device)


def memory_in_a_process(options: argparse.Namespace, size: str, count: int, way: str) -> int:
    passed = {name: getattr(options, name) for name in ("frames", "height", "width", "device", "threads")}
    return in_a_process("timings.training", memory_of=way, size=[size], questions=[count], **passed)


if __name__ == "__main__":
    main()
