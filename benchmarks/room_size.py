"""Do cameras say how large a room is? The baseline and the camera-aware model after the same training.

    python -m benchmarks.room_size                  # both models, both camera paths, three seeds; then the table
    python -m benchmarks.room_size --seeds 0 --paths loop

The camera-aware model is tested once more with every room's cameras exchanged for another room's: what it then loses,
it owed to the cameras. What is done is not made again, see `benchmarks.runs`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from benchmarks.runs import QUESTION, Results, Run, make, parse, parser, seeded, spread
from datamodules import Rooms
from datamodules.scenes import Scene
from datamodules.sources.base import Split
from zoo import score_answer

MODELS = {"Qwen25VL": "qwen25_vl.yaml", "PRoPEMLLM": "prope.yaml"}


class SwappedRooms(Rooms):
    """The rooms, each with the cameras of the next one: the control in which cameras must not help."""

    def scenes(self, split: Split) -> list[Scene]:
        scenes = super().scenes(split)
        return [replace(a, cameras=b.cameras) for a, b in zip(scenes, scenes[1:] + scenes[:1], strict=True)]


def main() -> None:
    options = parser(__doc__, "room_size")
    options.add_argument("--paths", nargs="+", default=["loop", "local"])
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    asked, overrides = parse(options)
    results = Results(asked.results)
    plan = [planned(*job, overrides) for job in product(asked.models, asked.paths, asked.seeds)]
    make(plan, results, asked.out, asked.jobs)

    print("| camera path | model | room-size MRA, mean and range over the seeds |\n|---|---|---|")
    for path in asked.paths:
        print(f"| `{path}` | best constant answer | {best_constant(path):.3f} |")
        for model in asked.models:
            runs = [planned(model, path, seed, overrides) for seed in asked.seeds]
            for test in runs[0].tests:
                name = f"{model}, cameras swapped between rooms" if test else model
                print(f"| `{path}` | {name} | {spread(results.scores(runs, test), len(runs))} |")


def planned(model: str, path: str, seed: int, overrides: Sequence[str]) -> Run:
    """A training on one kind of camera path."""
    on_path = f"--data.source.trajectory={path}"
    tests: dict[str, tuple[str, ...]] = {"": ()}
    if model != "Qwen25VL":
        tests["swapped"] = ("--data.source=benchmarks.room_size.SwappedRooms", on_path)
    fit = ("--config", MODELS[model], *seeded(seed), on_path, *overrides)
    return Run(f"{model}-{path}-{seed}", fit, tests)


def best_constant(path: str) -> float:
    """The score of the one answer that scores best on the test rooms."""
    truths = [
        q.ground_truth
        for scene in Rooms(path=path).scenes("test")
        for q in scene.questions
        if q.question_type == QUESTION
    ]
    constants = [f"{tenths / 10}" for tenths in range(50, 600)]
    return max(statistics.mean(score_answer(c, truth, QUESTION) for truth in truths) for c in constants)


if __name__ == "__main__":
    main()
