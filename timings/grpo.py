"""One step of GRPO on a scene with many questions: the scene is read once, or once for each answer.

    python -m timings.grpo                        # a tiny model: 18 questions, 8 answers each
    python -m timings.grpo --size 97M --questions 4
    python -m timings.grpo --device cuda --size 97M

Both ways sample the same number of tokens and learn from the same answers, the zoo's. Their gradients are compared.
"each answer" is how TRL trains on images: every answer has its own prompt, whose scene and prefix are read for sampling
and for scoring, and gradients are accumulated answer by answer, so that only one is in memory. It is timed on `--timed`
answers, evenly spaced, and its seconds are scaled to all of them. Gradients are compared on the same answers. Memory is
the growth at the peak of a step, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from datamodules.collate import QuestionCollate
from timings.measure import add_options, in_a_process, interleaved, peak_growth, processor, spread
from timings.tables import markdown
from timings.training import SIZES, noise, task_of
from zoo.generation import Sampling, eval_mode
from zoo.objectives.grpo import grpo_loss
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask
from zoo.tasks.grpo import SampledAnswer, answer_log_probs, answer_mask, answer_sequences, sample_answers

TOLERANCE = 1e-5  # largest difference of equal gradients, relative to the norm
NEW_TOKENS = 8
Step = Callable[[], None]  # sample, and compute the gradients of the given answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--questions", type=int, default=18, help="questions about the scene")
    parser.add_argument("--answers", type=int, default=8, help="answers to each question")
    parser.add_argument("--timed", type=int, default=8, help="number of answers on which the slow way is timed")
    parser.add_argument("--frames", type=int, default=8)
    add_options(parser)
    parser.add_argument("--memory-of", choices=tuple(WAYS), help="print only the memory of one step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        small = argparse.Namespace(**{**vars(options), "frames": 2, "height": 56, "width": 84, "questions": 1})
        WAYS[options.memory_of](small)()  # warm-up, for what is set up once
        print(json.dumps(peak_growth(WAYS[options.memory_of](options), options.device)))
        return
    error = gradient_error(options)
    if error > TOLERANCE:
        sys.exit(f"the gradients differ by {error:.1e} of their norm")
    seconds = interleaved({way: build(options) for way, build in WAYS.items()}, options.repeats, options.device)
    scale = options.questions * options.answers / len(timed_answers(options))
    seconds["each answer"] = [scale * value for value in seconds["each answer"]]
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    where = processor(options)
    print(
        f"\nQwen2.5-VL, {options.size}, float32, {options.frames} frames, {options.questions} questions, "
        f"{options.answers} answers each, {where}; gradients of "
        f"{len(timed_answers(options))} answers equal to {error:.0e} of their norm\n"
    )
    slow = middle["each answer"]
    rows = [
        {
            "the scene is read for": way,
            "s per step: median (least to most)": spread(values, 2),
            "times faster": f"{slow / middle[way]:.1f}",
            "memory at the peak, MiB": f"{memory(options, way) / 2**20:.0f}",
        }
        for way, values in seconds.items()
    ]
    print(markdown(rows))


def memory(options: argparse.Namespace, way: str) -> int:
    given = {name: value for name, value in vars(options).items() if name not in ("memory_of", "repeats")}
    return int(in_a_process("timings.grpo", **given, **{"memory-of": way}))


def questions(options: argparse.Namespace, task: VideoQATask) -> Batch:
    """Return a batch with all questions about one scene."""
    return QuestionCollate(task.model_spec(), questions_per_batch=8)([noise(options, options.questions)]).to(
        options.device
    )


def prepared(options: argparse.Namespace) -> tuple[VideoQATask, Batch, list[SampledAnswer], Tensor]:
    """Return the model, the questions, the answers to learn from, and their advantages."""
    torch.manual_seed(0)
    task = task_of(options.size).to(options.device)
    asked = questions(options, task)
    with eval_mode(task):
        answers = sample_answers(task.model, asked, Sampling(), options.answers, NEW_TOKENS)
    advantages = torch.randn(len(answers), generator=torch.Generator().manual_seed(1)).to(options.device)
    return task, asked, answers, advantages


def timed_answers(options: argparse.Namespace) -> list[int]:
    """Return the indices of the answers on which the slow way is timed."""
    count = options.questions * options.answers
    return torch.linspace(0, count - 1, min(count, options.timed)).round().long().tolist()


def gradient_error(options: argparse.Namespace) -> float:
    """Return the largest difference between a parameter's gradients of both ways, relative to their norm."""
    task, asked, answers, advantages = prepared(options)
    chosen = timed_answers(options)
    learn(task, asked, [answers[i] for i in chosen], advantages[chosen], 1.0)
    together = gradients(task)
    for i in chosen:
        learn(task, asked, [answers[i]], advantages[i : i + 1], 1 / len(chosen))
    return max(
        float((together[name] - value).norm() / value.norm().clamp(min=1e-9)) for name, value in gradients(task).items()
    )


def learn(task: VideoQATask, asked: Batch, answers: list[SampledAnswer], advantages: Tensor, share: float) -> None:
    """Add the gradient of a share of the loss."""
    lengths = [len(answer.reply.ids) for answer in answers]
    sequences = answer_sequences(task.model.sequence_builder, answers, asked.scenes, None).to(task.device)
    logps, _ = answer_log_probs(task.model, asked, sequences, lengths, 1.0)
    loss = grpo_loss(logps, None, advantages, answer_mask(lengths, logps.device), loss_type="grpo")
    (share * loss).backward()


def gradients(task: VideoQATask) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad(set_to_none=True)
    return found


def once(options: argparse.Namespace) -> Step:
    """Read the scene once to sample, and once to learn."""
    task, asked, answers, advantages = prepared(options)

    def step() -> None:
        with eval_mode(task):
            sample_answers(task.model, asked, Sampling(), options.answers, NEW_TOKENS)
        learn(task, asked, answers, advantages, 1.0)
        task.zero_grad(set_to_none=True)

    return step


def for_each_answer(options: argparse.Namespace) -> Step:
    """Read the scene twice for each of the timed answers."""
    task, asked, answers, advantages = prepared(options)
    scene = noise(options, options.questions)
    alone = [
        QuestionCollate(task.model_spec())([replace(scene, questions=(question,))]).to(options.device)
        for question in scene.questions
    ]

    def step() -> None:
        for number in timed_answers(options):
            answer = answers[number]
            with eval_mode(task):
                sample_answers(task.model, alone[answer.record], Sampling(), 1, NEW_TOKENS)
            learn(task, asked, [answer], advantages[number : number + 1], 1 / len(answers))
        task.zero_grad(set_to_none=True)

    return step


WAYS: dict[str, Callable[[argparse.Namespace], Step]] = {"all answers": once, "each answer": for_each_answer}

if __name__ == "__main__":
    main()
