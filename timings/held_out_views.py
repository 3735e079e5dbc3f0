"""A training step with and without the prediction of held-out views, on a scene with cameras.

    python -m timings.held_out_views --repeats 5
    python -m timings.held_out_views --device cuda

Each scene has two target views. The vision encoder is frozen, the decoder, the connector and the predictor train.
Steps take turns. Memory is the growth at the peak of a step, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from timings.measure import add_options, in_a_process, interleaved, peak_growth, processor, spread
from timings.tables import markdown
from timings.training import RATE, SIZES, Step, backbone, collate_of, noise, task_step
from zoo import HeldOutViews, LearningRates, Qwen25VL
from zoo.cameras import SceneGeometry
from zoo.sequences.loaded_scene import LoadedScene

VIEWS = 2
WAYS: dict[str, list[HeldOutViews]] = {
    "without": [],
    "tokens": [HeldOutViews(views=VIEWS)],
    "pixels": [HeldOutViews("pixels", views=VIEWS)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="97M")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--questions", type=int, default=1)
    add_options(parser)
    parser.add_argument("--memory-of", choices=tuple(WAYS), help="print only the memory of one step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        step = build(options, options.memory_of)
        step()
        print(json.dumps(peak_growth(step, options.device)))
        return
    seconds = interleaved({way: build(options, way) for way in WAYS}, options.repeats, options.device)
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    table = [
        {
            "target views": way,
            "s a step: median (least to most)": spread(seconds[way], 2),
            "times the step without": f"{middle[way] / middle['without']:.2f}",
            "memory at the peak, MiB": f"{in_a_process('timings.held_out_views', **asked(options, way)) / 2**20:.0f}",
        }
        for way in WAYS
    ]
    print(f"\nQwen2.5-VL, {options.size}, float32, {options.frames} frames, {processor(options)}\n")
    print(markdown(table))


def asked(options: argparse.Namespace, way: str) -> dict[str, object]:
    """Return the options of a process that measures memory."""
    return {**{name: value for name, value in vars(options).items() if name != "memory_of"}, "memory_of": way}


def build(options: argparse.Namespace, way: str) -> Step:
    """Return a training step on one scene."""
    rates = LearningRates(decoder=RATE, connector=RATE, vision=None, objective=RATE)
    task = Qwen25VL(backbone=backbone(options.size), objectives=WAYS[way], learning_rates=rates)
    task = task.train().to(options.device)
    return task_step(task, collate_of(task, is_packed=True)([posed(options)]).to(options.device))


def posed(options: argparse.Namespace) -> LoadedScene:
    """Return a scene of noise with a camera that turns, and with target views."""
    shown = noise(options, options.questions)
    targets = noise(argparse.Namespace(**{**vars(options), "frames": 2 * VIEWS}), 0)
    moved = torch.eye(4).repeat(options.frames + 2 * VIEWS, 1, 1)
    moved[:, 0, 3] = torch.linspace(0, 2, len(moved))
    geometry = SceneGeometry(world_to_camera=moved, K_normalized=torch.eye(3).expand(len(moved), 3, 3))
    own = {"kind": "image", "geometry": geometry[slice(options.frames, None)]}
    targets = LoadedScene("noise", frames=targets.frames, frame_indices=targets.frame_indices, **own)
    return LoadedScene(**{**vars(shown), "geometry": geometry[slice(options.frames)], "target_views": targets})


if __name__ == "__main__":
    main()
