"""Run one part of `python -m timings.gpu`: `python -m timings.gpu.parts training-qwen25 result.json`."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers

from timings.gpu.checks import BACKENDS, answers, deltanet, missing_attention
from timings.gpu.models import (
    CHECKPOINTING,
    COMMANDS,
    TITLES,
    Bench,
    Command,
    Row,
    Tables,
    autocast,
    card,
    measured,
    release,
)
from timings.gpu.peer import peer
from zoo.generation import answer_batch
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask
from zoo.tasks.base import parameter_groups

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12}  # dense bfloat16 operations per second
NEW_TOKENS, QUESTIONS, ALONE = 8, 18, 3
FOUR_SCENES = "--data.batch_size 4 --data.questions_per_scene 2"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("path", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.tiny:
        sys.exit("there is no GPU; --tiny runs all parts with tiny models on a CPU")
    bench = Bench(torch.device("cuda" if has_gpu else "cpu"), options.tiny)
    name, _, model = options.part.partition("-")
    tables = RUNS[name](bench, *([model] if model else []))
    device = card(bench) or f"{torch.get_num_threads()} CPU threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    machine = f"{device}; Python {platform.python_version()}, {versions}"
    about = " ".join((RUNS[name].__doc__ or "").split())
    options.path.write_text(json.dumps({"about": about, "machine": machine, "tables": tables}, indent=1))


def training(bench: Bench, family: str) -> Tables:
    """One LoRA step with gradient checkpointing: 16 frames per scene, forward, backward and AdamW.

    "planned GB" is the estimate of `python main.py plan`. MFU is relative to the plan's FLOPs without recomputation.
    """
    flex = " --model.backbone.attn_implementation flex_attention" if bench.device.type == "cuda" else ""
    return step_tables(
        {
            "LoRA": bench.fit(family),
            "LoRA, 4 scenes padded": bench.fit(family, FOUR_SCENES),
            "LoRA, 4 scenes packed": bench.fit(family, f"{FOUR_SCENES} --data.pack_scenes true{flex}"),
            "LoRA, compiled": bench.fit(family, "--model.compile_decoder true"),
        },
        TITLES[family],
    )


def whole(bench: Bench, family: str) -> Tables:
    """A step that trains the whole decoder and the connector in float32, with gradient checkpointing."""
    return step_tables({"whole decoder": bench.fit(family, CHECKPOINTING, is_adapted=False)}, TITLES[family])


def step_tables(commands: Mapping[str, Command], title: str) -> Tables:
    """Return time, memory and FLOPs per step (or "out of memory"), and the commands."""
    return {title: [step_row(name, command) for name, command in commands.items()], COMMANDS: command_rows(commands)}


def command_rows(commands: Mapping[str, Command]) -> list[Row]:
    """Return the commands that a user types."""
    return [{"": name, "command": str(command)} for name, command in commands.items()]


def step_row(title: str, command: Command) -> Row:
    """Return time, memory and FLOPs of a step, or "out of memory"."""
    planned, bench = command.plan, command.bench
    row: Row = {"step": title, "planned GB": f"{planned.needed / 1e9:.1f}"}
    try:
        task = command.task()
        inputs = command.inputs(task, command.sizes())
        step = stepper(bench, task, inputs)
        seconds, memory = measured(bench, step)
    except torch.OutOfMemoryError:
        return {**row, "GB at the peak": "out of memory"}
    finally:
        task = inputs = step = None  # type: ignore[assignment]
        release()
    tokens, operations = command.sizes().scenes * planned.cost.sequence_tokens, planned.cost.steps[False].flops
    peak = next((each for name, each in PEAK.items() if name in card(bench)), None)
    mfu = "-" if peak is None else f"{operations / seconds / peak:.1%}"
    row |= {"tokens": f"{tokens:,}", "s, median": f"{seconds:.3f}", "tokens/s": f"{tokens / seconds:,.0f}"}
    return {**row, "GB at the peak": f"{memory / 1e9:.1f}", "TFLOP": f"{operations / 1e12:.1f}", "MFU": mfu}


def stepper(bench: Bench, task: VideoQATask, inputs: Batch) -> Callable[[], None]:
    """Return a training step."""
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))

    def step() -> None:
        with autocast(bench.device):
            loss = task.loss(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation(bench: Bench, family: str) -> Tables:
    """Greedy answers of 8 tokens to 18 questions about a scene: with a shared prefix, and one by one.

    One by one encodes the scene and reads the prompt again for each question, as published evaluation code does.
    """
    questions, alone = (4, 1) if bench.is_tiny else (QUESTIONS, ALONE)
    rows, commands = [], {}
    for frames in (16, 32):
        command = bench.fit(family, "" if bench.is_tiny else f"--data.num_frames {frames}", is_adapted=False)
        task, sizes = command.task().eval(), command.sizes(questions)

        def answer(task: VideoQATask, batches: Sequence[Batch]) -> None:
            replies = [reply for each in batches for reply in answer_batch(task.model, each, NEW_TOKENS)]
            assert not any(reply.error for reply in replies), replies

        shared, one_by_one = command.questions(task, sizes), command.questions(task, sizes, are_alone=True)[:alone]
        for way, batches, count in (("shared prefix", shared, questions), ("one by one", one_by_one, alone)):
            seconds, memory = measured(bench, partial(answer, task, batches))
            cells = {"questions/s": f"{count / seconds:.2f}", "GB at the peak": f"{memory / 1e9:.1f}"}
            rows.append({"frames": frames, "way": way, **cells})
        commands[f"{frames} frames, trained by this and scored by `python main.py test`"] = command
        del task
        release()
    return {TITLES[family]: rows, COMMANDS: command_rows(commands)}


def attention(bench: Bench) -> Tables:
    """A LoRA step of 4 scenes with 2 questions each, by attention backend. Flash takes one question per row."""
    rows, commands = [], {}
    for name in BACKENDS:
        if name != "sdpa" and bench.device.type == "cpu":
            rows.append({"step": f"{name}: needs a GPU"})
        elif missing := missing_attention(name):
            rows.append({"step": missing})
        else:
            for packs in (False, True)[: 1 if name == "flash_attention_2" else 2]:
                title = f"{name}, {'packed' if packs else 'padded'}"
                options = f"{FOUR_SCENES} --model.backbone.attn_implementation {name}"
                commands[title] = bench.fit("qwen25", options + " --data.pack_scenes true" * packs)
                rows.append(step_row(title, commands[title]))
    return {TITLES["qwen25"]: rows, COMMANDS: command_rows(commands)}


def precision(bench: Bench) -> Tables:
    """Logits of an answer's tokens in bfloat16 and in float32, with the same weights."""
    torch.set_float32_matmul_precision("highest")
    rows = []
    for family, title in TITLES.items():
        geometry = "--model.geometry.dtype float32" if family == "qwen25" and not bench.is_tiny else ""
        command = bench.fit(family, f"--model.backbone.dtype float32 {geometry}", is_adapted=False)
        task = command.task().eval()
        inputs = command.inputs(task, command.sizes(1))
        exact = logits(task, inputs)
        for parameter in task.parameters():
            parameter.data = parameter.data.bfloat16()
        rounded = logits(task, inputs)
        error = float((rounded - exact).square().mean().sqrt() / exact.std())
        same = float((rounded.argmax(-1) == exact.argmax(-1)).float().mean())
        rows.append({"model": title, "RMS error / standard deviation": f"{error:.4f}", "same token": f"{same:.0%}"})
        del task
        release()
    return {"": rows}


@torch.no_grad()
def logits(task: VideoQATask, batch: Batch) -> torch.Tensor:
    """Return the logits of the last 32 tokens of the prompt."""
    assert batch.sequences is not None
    backbone = task.model.backbone
    built = task.model.decoder_inputs(task.model.encode_scenes(batch), batch.sequences)
    return backbone.lm_head(backbone.decode(built).last_hidden_state[0, -32:]).float()


def geometry(bench: Bench) -> Tables:
    """Forward passes of the trunks of VGGT-1B, Depth Anything 3 (base) and Pi3X in bfloat16: 252 x 336 pixels."""
    from timings import da3, pi3x, trunks, vggt

    size = {"height": 56, "width": 84} if bench.is_tiny else {"height": 252, "width": 336}
    rows = []
    for title, module, flops, chosen in (
        ("VGGT", vggt, vggt.aggregator_flops, "large"),
        ("Depth Anything 3", da3, da3.trunk_flops, "base"),
        ("Pi3X", pi3x, pi3x.trunk_flops, "large"),
    ):
        dtype = "bfloat16" if bench.device.type == "cuda" else "float32"
        given = {**size, "size": "tiny" if bench.is_tiny else chosen, "dtype": dtype, "device": bench.device.type}
        arguments = argparse.Namespace(**given)
        forward = module.build(arguments, ("ours",))["ours"]
        for frames in (16, 32):
            images = trunks.random_images(arguments, frames)
            with torch.inference_mode():
                seconds, memory = measured(bench, lambda forward=forward, images=images: forward(images))
            speed = f"{flops(arguments, frames) / seconds / 1e12:.1f}"
            cells = {"s, median": f"{seconds:.4f}", "TFLOP/s": speed, "GB at the peak": f"{memory / 1e9:.1f}"}
            rows.append({"trunk": title, "frames": frames, **cells})
        del forward
        release()
    return {"": rows}


def prope(bench: Bench) -> Tables:
    """The share of the decoder's PRoPE in a LoRA step of prope.yaml. Both rows include the view mixer's PRoPE."""
    commands = {
        "none": bench.fit("qwen25", "--model.camera_encoding null", model="prope.yaml"),
        "PRoPE": bench.fit("qwen25", model="prope.yaml"),
    }
    found = {}
    for title, command in commands.items():
        task = command.task()
        step = stepper(bench, task, command.inputs(task, command.sizes()))
        found[title] = measured(bench, step)[0]
        del task, step
        release()
    share = 1 - found["none"] / found["PRoPE"]
    rows = [{"camera encoding": name, "s, median": f"{seconds:.3f}"} for name, seconds in found.items()]
    rows.append({"camera encoding": "PRoPE's share", "s, median": f"{share:.1%}"})
    return {"": rows, COMMANDS: command_rows(commands)}


def tests(bench: Bench) -> Tables:
    """The tests that need a GPU, with pytest's last line."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-k",
        "on_a_gpu",
        "tests/zoo",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-1000:])
    return {"": [{"tests": lines[-1]}]}


RUNS: dict[str, Callable[..., Tables]] = {
    run.__name__: run
    for run in (answers, deltanet, training, whole, peer, evaluation, attention, precision, geometry, prope, tests)
}

if __name__ == "__main__":
    main()
