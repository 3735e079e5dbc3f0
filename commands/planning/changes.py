"""What a training may change to fit into a GPU, and the command that starts it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from callbacks.configs import CONFIGS
from commands.arguments import split_configs
from commands.planning.training import OF_PLAN, Setup, Training, parsed
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

CHECKPOINTING, FSDP2 = ("--model.gradient_checkpointing", "true"), ("--config", "strategy_fsdp2.yaml")
LORA = ("--model.lora.r", "16")
PROCESSES = ("trainer.devices", "trainer.num_nodes")
GPUS_PER_NODE = 8


def alternatives(training: Training) -> Iterator[tuple[str, tuple[str, ...], Setup]]:
    """Yield what a training may change, by itself and at once: the options as text, those of the model, the setup."""
    setup, frames = training.setup, training.batch.num_frames // 2
    yield "as it is", (), setup
    several = [
        ((), Setup(setup.strategy, True)),
        (LORA if _trains_whole_decoder(training) else (), setup),
        (_fewer_frames(frames), setup),
        ((), Setup("fsdp2" if training.gpus > 1 else setup.strategy, setup.checkpointing)),
    ]
    changed = [each for each in several if each != ((), setup)]
    for words, other in changed:
        yield " ".join([*words, *options(setup, other)]), words, other
    if len(changed) > 1:
        together = tuple(word for words, _ in changed for word in words)
        yield "all of these", together, Setup(several[-1][1].strategy, True)


class Choice(NamedTuple):
    """The first change after which a training fits.

    Attributes:
        words: Options that make it.
        gpus: Processes.
        needed: Bytes on each GPU; the least that is known where nothing fits.
        fits: Whether that is usable.
    """

    words: tuple[str, ...]
    gpus: int
    needed: float
    fits: bool


def choose(training: Training, arguments: list[str]) -> Choice:
    """Return the training as it is if it fits, or with the first change after which it does."""
    least = training.needed(training.setup)
    for words in ((), *changes(training)):
        other = parsed((*arguments, *words)) if words else training
        for setup, gpus in other.setups():
            if (needed := other.needed(setup, gpus)) <= other.memory:
                return Choice((*words, *options(training.setup, setup)), gpus, needed, True)
            least = min(least, needed)
    return Choice((), training.gpus, least, False)


def verdict(training: Training, choice: Choice) -> str:
    """Return whether the training fits into the GPUs' memory, or the first change after which it does."""
    usable = f"of {gigabytes(training.memory)} GB that are usable on each GPU"
    if choice.fits and not choice.words and choice.gpus == training.gpus:
        return f"fits: {gigabytes(choice.needed)} {usable}"
    lacks = f"does not fit: {gigabytes(training.needed(training.setup))} {usable}"
    if not choice.fits:
        least = gigabytes(choice.needed)
        return f"{lacks}; with all changes that are known here it still takes {least} GB: rent larger GPUs"
    more = ["on", str(choice.gpus), "GPUs"] if choice.gpus > training.gpus else []
    return f"{lacks}; take {' '.join([*choice.words, *more])}: {gigabytes(choice.needed)} GB"


def launch(arguments: list[str], choice: Choice) -> str:
    """Return the command that starts the chosen training: `fit` with the options of `plan` and the changes."""
    names, rest = split_configs([*arguments, *choice.words])
    configs = [path.name if path.parent == CONFIGS else str(path) for path in map(Path, names)]
    words, skipped = [], False
    for word in rest:
        option, has_value = word.removeprefix("--").partition("=")[::2]
        is_replaced = word.startswith("--") and option in (*OF_PLAN, *PROCESSES)
        if not is_replaced and not skipped:
            words.append(word)
        skipped = is_replaced and not has_value
    nodes = -(-choice.gpus // GPUS_PER_NODE)
    counts = (choice.gpus // nodes if choice.gpus > 1 else 1, nodes)
    words += [
        word
        for option, count in zip(PROCESSES, counts, strict=True)
        if count > 1
        for word in (f"--{option}", str(count))
    ]
    start = "srun python main.py fit" if nodes > 1 else "python main.py fit"
    return f"{start} {shlex.join([*(word for name in configs for word in ('--config', name)), *words])}"


def changes(training: Training) -> Iterator[tuple[str, ...]]:
    """Options that change what is computed, from small to large changes."""
    batch, cost = training.batch, training.cost
    steps: list[tuple[str, ...]] = []
    if batch.scenes > 1:
        accumulated = str(training.accumulated * batch.scenes)
        steps.append(("--data.batch_size", "1", "--trainer.accumulate_grad_batches", accumulated))
    if batch.questions > 1 and batch.tokens_per_sequence is None:
        steps.append(("--data.tokens_per_sequence", str(cost.sequence_tokens // 2)))
    if _trains_whole_decoder(training):
        steps.append(LORA)
    words: tuple[str, ...] = ()
    for step in steps:
        words += step
        yield words
    for frames in (batch.num_frames // 2, batch.num_frames // 4):
        if frames >= TEMPORAL_PATCH_SIZE:
            yield (*words, *_fewer_frames(frames))


def options(now: Setup, wanted: Setup) -> list[str]:
    """The options that turn one setup into another."""
    words = [] if now.checkpointing == wanted.checkpointing else [*CHECKPOINTING]
    return words if now.strategy == wanted.strategy else [*words, *FSDP2]


def gigabytes(count: float) -> str:
    """A number of bytes in units of 10^9."""
    return f"{count / 1e9:,.1f}" if count >= 5e7 else f"{count / 1e9:,.4f}"


def _trains_whole_decoder(training: Training) -> bool:
    """Whether the decoder trains without low-rank adapters."""
    return bool(training.cost.trained["decoder"]) and not training.cost.frozen["decoder"]


def _fewer_frames(count: int) -> tuple[str, ...]:
    """The option of a number of frames, in whole temporal patches; none below one."""
    whole = count // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE
    return ("--data.num_frames", str(whole)) if whole else ()
