"""Padding in a training step, by batch size and questions per scene, and the effect of packed scenes.

    python -m timings.padding --vsibench data/vsibench/test.jsonl --tokenizer Qwen/Qwen2.5-VL-3B-Instruct

The questions are those of the embedded rooms with the tiny tokenizer, and of VSI-Bench (a jsonl file) with a released
tokenizer. Texts are tokenized, and no video is read. Sequences are packed as in training: the visual tokens of a scene
once, then its questions and answers. The second table is about `--data.pack_scenes`: a step has as many scenes as fit
into a limit of tokens, padded to the longest or concatenated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from datamodules import Rooms
from datamodules.chat_format import user_text
from datamodules.question_sampler import QuestionSampler
from datamodules.scenes import Question
from timings.tables import markdown
from zoo import TinyQwen25VL

BATCHES, PER_SCENE, EPOCHS = (4, 32), (1, 8), 3
ROOM_TOKENS = 48  # visual tokens of 24 frames of 56 x 56
VIDEO_TOKENS = 3128  # visual tokens of 16 frames of 476 x 644
Batch = list[tuple[int, Sequence[int]]]  # scenes with their questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vsibench", type=Path)
    parser.add_argument("--tokenizer")
    arguments = parser.parse_args()
    rooms = Rooms()
    rooms.prepare()
    tiny = TinyQwen25VL().load().preprocessor.processor.tokenizer
    sets = {"rooms": ([scene.questions for scene in rooms.scenes("train")], tiny, ROOM_TOKENS)}
    if arguments.vsibench:
        released = AutoTokenizer.from_pretrained(arguments.tokenizer)
        sets["VSI-Bench"] = (vsibench(arguments.vsibench), released, VIDEO_TOKENS)
    rows = []
    for name, (scenes, tokenizer, visual) in sets.items():
        lengths = [[len(ids) for ids in tokenizer([text(q) for q in own])["input_ids"]] for own in scenes]
        for batch_size in BATCHES:
            for most in PER_SCENE:
                found = [measure(lengths, visual, question_draws(lengths, batch_size, most, e)) for e in range(EPOCHS)]
                padding, tokens, steps = np.mean(found, axis=0)
                rows.append(
                    {
                        "questions of": name,
                        "sequences in a batch": batch_size,
                        "most questions in one": most,
                        "padding": f"{padding:.1%}",
                        "tokens per question, with padding": f"{tokens:,.0f}",
                        "steps": f"{steps:.0f}",
                    }
                )
    print(f"{markdown(rows)}\n\n{markdown(list(packed(sets)))}")


def packed(sets: Mapping[str, tuple[list[Any], Any, int]]) -> Iterator[dict[str, object]]:
    """Yield the rows of the table of steps within a limit of tokens, for few and many questions per sequence."""
    for name, (scenes, tokenizer, visual) in sets.items():
        lengths = [[len(ids) for ids in tokenizer([text(q) for q in own])["input_ids"]] for own in scenes]
        for most in PER_SCENE:
            batches = [b for e in range(EPOCHS) for b in question_draws(lengths, 1, most, e)]
            rows = [visual + sum(lengths[scene][q] for q in asked) for ((scene, asked),) in batches]
            for bound in (4 * max(rows), 16 * max(rows)):
                padding, padded = steps_within(rows, bound, is_packed=False)
                _, packed_steps = steps_within(rows, bound, is_packed=True)
                yield {
                    "questions of": name,
                    "most questions in one": most,
                    "most tokens per step": f"{bound:,}",
                    "padding": f"{padding:.1%}",
                    "steps per epoch, padded": f"{padded / EPOCHS:.0f}",
                    "packed": f"{packed_steps / EPOCHS:.0f}",
                    "steps saved": f"{1 - packed_steps / padded:.1%}",
                }


def steps_within(rows: Sequence[int], bound: int, is_packed: bool) -> tuple[float, int]:
    """Return the share of padding and the number of steps, if each step takes the next rows that fit."""
    steps: list[list[int]] = [[]]
    for row in rows:
        step = [*steps[-1], row]
        if (sum(step) if is_packed else len(step) * max(step)) > bound:
            steps.append([row])
        else:
            steps[-1] = step
    total = sum(sum(step) if is_packed else len(step) * max(step) for step in steps)
    return 1 - sum(rows) / total, len(steps)


def vsibench(path: Path) -> list[list[Question]]:
    """Return the questions of each video."""
    scenes: dict[str, list[Question]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        question = Question(
            str(row["id"]), row["question_type"], row["question"], row["ground_truth"], tuple(row["options"] or ())
        )
        scenes.setdefault(f"{row['dataset']}/{row['scene_name']}", []).append(question)
    return list(scenes.values())


def text(question: Question) -> str:
    return user_text(question) + question.ground_truth


def question_draws(lengths: Sequence[Sequence[int]], batch_size: int, most: int, epoch: int) -> Iterator[Batch]:
    for batch in QuestionSampler([len(own) for own in lengths], batch_size, most, seed=epoch):
        yield [(draw.scene, draw.questions) for draw in batch]


def measure(lengths: Sequence[Sequence[int]], visual: int, batches: Iterator[Batch]) -> tuple[float, ...]:
    """Return the share of padding among all tokens, tokens per question with padding, and the number of steps."""
    real = total = steps = asked = 0
    for batch in batches:
        rows = [visual + sum(lengths[scene][q] for q in questions) for scene, questions in batch]
        asked += sum(len(questions) for _, questions in batch)
        real, total, steps = real + sum(rows), total + len(rows) * max(rows), steps + 1
    return 1 - real / total, total / asked, steps


if __name__ == "__main__":
    main()
