"""Many questions about one video: asked one by one, asked with a shared prefix, and learned from together.

    python -m timings.evaluate                      # a Qwen2.5-VL of about 100 M parameters with a mid-sized VGGT
    python -m timings.evaluate --frames 16 --alone 4   # one by one takes as long for each: a few are enough
    python -m timings.evaluate --frames 8 --device cuda

One by one is how published evaluation code works: the ViT, VGGT and the prefill of the whole prompt run for each
question, then its answer. Weights are random and decoding is greedy. EOS is switched off, so both ways generate the
same number of tokens, and their answers must be equal. Videos are already in memory: timings/video.py measures
decoding. Memory is the growth at the peak of a call, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.scenes import Question
from timings.measure import add_options, in_a_process, interleaved, peak_growth, processor, spread, timed
from timings.tables import markdown
from zoo import LearningRates, SpatialMLLM, TinyQwen25VL
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.generation import CachedPrefix, answer_batch
from zoo.geometry import VGGT, VGGTEncoder
from zoo.scene_encoding import encode_vision
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

NEW_TOKENS = 8  # VSI-Bench's answers are a number or a letter
TEXTS = (
    "How many chair(s) are in this room?",
    "What is the size of this room (in square meters)? If multiple rooms are shown, estimate the size of all of them.",
    "What is the length of the longest dimension (length, width, or height) of the table, measured in centimeters?",
    "Measuring from the closest point of each object, what is the distance between the sofa and the lamp (in meters)?",
    "If I am standing by the bed and facing the lamp, is the door to my left, right, or back?",
    "What will be the first-time appearance order of the following categories in the video: bed, lamp, door, sofa?",
)
# about as much work as the ViT and the decoder together at 8 frames
VGGT_CONFIG = {"aggregator": {"embed_dim": 192, "depth": 4, "num_heads": 3, "patch_embed": "conv"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--questions", type=int, default=18, help="questions per scene; VSI-Bench has 18 on average")
    parser.add_argument("--alone", type=int, help="number of questions to ask one by one; all by default")
    parser.add_argument("--learn", type=int, nargs="+", default=[1, 4, 16], help="questions in a training step")
    add_options(parser)
    parser.add_argument("--small", action="store_true", help="a tiny model, as a quick trial")
    parser.add_argument("--memory-of", choices=("one by one", "shared"), help="print only the memory of one call")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options)
    if options.memory_of:
        print(json.dumps(memory(options, model)))
        return
    size = sum(parameter.numel() for parameter in model.model.backbone.parameters()) / 1e6
    geometry = sum(parameter.numel() for parameter in model.model.geometry.parameters()) / 1e6
    where = processor(options)
    print(f"\nQwen2.5-VL of {size:.0f} M, VGGT of {geometry:.0f} M parameters, float32, {where}\n")
    for frames in options.frames:
        answering(options, model, frames)
    learning(options, model, min(options.frames))


def build(options: argparse.Namespace) -> SpatialMLLM:
    if options.small:
        backbone, config = TinyQwen25VL(), {"aggregator": {"embed_dim": 64, "depth": 2, "num_heads": 2}}
        config["aggregator"]["patch_embed"] = "conv"
    else:
        config = VGGT_CONFIG
        backbone = TinyQwen25VL(
            layers=12, hidden_size=768, heads=12, key_value_heads=2, vision_layers=12, vision_hidden_size=512
        )
    torch.manual_seed(0)
    rates = LearningRates(decoder=1e-5, connector=1e-5, vision=None, geometry=None)
    model = SpatialMLLM(
        backbone=backbone, geometry=lambda: VGGTEncoder(VGGT(**config)), max_new_tokens=NEW_TOKENS, learning_rates=rates
    )
    model.model.backbone.stop_tokens = []
    return model.eval().to(options.device)


def batch(options: argparse.Namespace, model: SpatialMLLM, frames: int, count: int, train: bool = False) -> Batch:
    """Return a batch of a scene of noise with `count` questions."""
    generator = torch.Generator().manual_seed(0)
    shape = (frames, 3, options.height, options.width)
    video = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
    asked = tuple(Question(str(i), "object_counting", TEXTS[i % len(TEXTS)], str(i)) for i in range(count))
    scene = LoadedScene("noise", asked, video, frame_indices=tuple(range(frames)))
    spec = replace(model.model_spec(training=train), preprocessor=tiny_preprocessor())
    collate = TrainingCollate(spec) if train else QuestionCollate(spec, questions_per_batch=count)
    return collate([scene]).to(options.device)


def one_by_one(model: SpatialMLLM, asked: Batch, count: int | None = None) -> list[list[int]]:
    """Answer each question, or the first few, from scratch."""
    (prompt,) = asked.prompts
    shared, answers = prompt.prefix.input_ids[0].tolist(), []
    for question in [question for each in prompt.passes for question in each][:count]:
        alone = model.model.sequence_builder.prompts([[*shared, *question]], [[0]], asked.scenes)
        batch = Batch(asked.scenes, asked.vision, prompts=alone).to(model.device)
        answers += [reply.ids for reply in answer_batch(model.model, batch, NEW_TOKENS)]
    return answers


def shared(model: SpatialMLLM, asked: Batch, count: int | None = None) -> list[list[int]]:
    return [reply.ids for reply in answer_batch(model.model, asked, NEW_TOKENS)]


WAYS: dict[str, Callable[..., list[list[int]]]] = {"one by one": one_by_one, "shared": shared}


def answering(options: argparse.Namespace, model: SpatialMLLM, frames: int) -> None:
    """Print the table of both ways, and the time of each part of the shared way."""
    asked, alone = batch(options, model, frames, options.questions), options.alone or options.questions
    found: dict[str, list[list[int]]] = {}

    def answer(way: str) -> None:
        found[way] = WAYS[way](model, asked, alone)

    seconds = interleaved({way: partial(answer, way) for way in WAYS}, options.repeats, options.device, warm_up=False)
    seconds["one by one"] = [options.questions / alone * each for each in seconds["one by one"]]
    same = sum(a == b for a, b in zip(found["one by one"], found["shared"], strict=False))
    mib = {way: memory_in_a_process(options, frames, way) / 2**20 for way in WAYS}
    tokens = asked.prompts[0].prefix.visual_counts[0]
    said = f"{same} answers of {alone} that were asked one by one are equal"
    print(f"{frames} frames, {tokens} visual tokens, {options.questions} questions; {said}\n")
    rows = [
        {
            "way": way,
            "s a scene: median (least to most)": spread(each, 2),
            "questions a second": f"{options.questions / statistics.median(each):.2f}",
            "memory at the peak, MiB": f"{mib[way]:.0f}",
        }
        for way, each in seconds.items()
    ]
    print(markdown(rows))
    times = statistics.median(seconds["one by one"]) / statistics.median(seconds["shared"])
    print(f"\n{times:.1f} times as fast; {mib['shared'] / mib['one by one']:.2f} times the memory; in it, seconds of:")
    print(", ".join(f"{part} {taken:.2f}" for part, taken in parts(options, model, asked).items()) + "\n", flush=True)
    if same < alone:
        sys.exit(f"{alone - same} of {alone} answers differ")


@torch.no_grad()
def parts(options: argparse.Namespace, model: SpatialMLLM, asked: Batch) -> dict[str, float]:
    """Return the seconds of each part of the shared way."""
    (scene,), (prompt,) = asked.scenes, asked.prompts
    taken = {
        "the ViT": timed(lambda: encode_vision(model.model.backbone, asked), options.device),
        "VGGT": timed(lambda: model.model.geometry([scene.frames / 255], [None], cameras=False), options.device),
    }
    inputs = model.model.decoder_inputs(model.model.encode_scenes(asked), prompt.prefix)
    read = partial(CachedPrefix, model.model.backbone, prompt.prefix.input_ids, inputs, prompt.next_position)
    taken["the prefix"] = timed(read, options.device)
    prefix, (questions,) = read(), prompt.passes
    taken["the questions and answers"] = timed(lambda: prefix.answer(questions, NEW_TOKENS), options.device)
    return taken


def learning(options: argparse.Namespace, model: SpatialMLLM, frames: int) -> None:
    """Print the time of a training step by the number of questions about the scene."""
    model.train()
    print(f"{frames} frames, a training step\n")
    rows = []
    for count in options.learn:
        asked, taken = batch(options, model, frames, count, train=True), []
        for _ in range(options.repeats):
            model.zero_grad()
            taken.append(timed(lambda asked=asked: model.loss(asked).backward(), options.device))
        row = {"questions a scene": count, "s a step: median (least to most)": spread(taken, 2)}
        rows.append({**row, "questions a second": f"{count / statistics.median(taken):.2f}"})
    print(markdown(rows), flush=True)


def memory(options: argparse.Namespace, model: SpatialMLLM) -> int:
    run, (frames,) = WAYS[options.memory_of], options.frames
    asked = batch(options, model, frames, options.questions)
    options.height, options.width = 56, 56
    run(model, batch(options, model, 2, 1))
    return peak_growth(lambda: run(model, asked, 2), options.device)  # the second question is enough to reach the peak


def memory_in_a_process(options: argparse.Namespace, frames: int, way: str) -> int:
    passed = {name: getattr(options, name) for name in ("questions", "height", "width", "device", "threads", "small")}
    return in_a_process("timings.evaluate", memory_of=way, frames=frames, **passed)


if __name__ == "__main__":
    main()
