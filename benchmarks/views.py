"""Does merging diverse views hurt? Samplers, pairings and models, each after the same short training on the rooms.

    python -m benchmarks.views                  # the corners of all seeds, then the rest; the table
    python -m benchmarks.views --seeds 0 --samplers uniform pose_farthest --pairings consecutive duplicate

Qwen2.5-VL merges two consecutive chosen frames into one token. The samplers choose few views of a room, evenly in time
or far apart; the pairings say which two frames meet: consecutive views (official), a view and the next frame, a view
and itself (half as many views, or twice as many frames), or a view and a frame near it. If it hurts to merge diverse
views, `consecutive` loses to `duplicate` with the diverse samplers, and does not with `uniform`.

Only cameras and depth say how large a room is, so that all models get them as 3D tokens, which see both frames of a
token; PRoPE acts in attention, by the camera of the first. Training and test choose frames by the same rule, and every
other setting is the same. What is done is not made again, see `benchmarks.runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.runs import Results, Run, main_py, make, parse, parser, seeded, spread, to_do

GIVEN = ("--model.geometry=DatasetGeometry", "--model.geometry.depth=true")
MODELS = {
    "SpatialMLLM": ("--config=spatial_mllm.yaml", *GIVEN),
    "ConcatSplitMLLM": ("--config=concat_split.yaml", *GIVEN),
    "PRoPEMLLM": ("--config=prope.yaml", *GIVEN),
}
SAMPLERS = {
    "uniform": ("--data.sampler=UniformSampler",),
    "pose_farthest": ("--data.sampler=PoseFarthestSampler",),
    "space_aware": ("--data.sampler=SpaceAwareSampler", "--data.sampler.geometry=DatasetDepth"),
}
PAIRINGS = {
    "consecutive": ("--data.frame_pairing=Consecutive",),
    "duplicate": ("--data.frame_pairing=Duplicate",),
    "neighbor": ("--data.frame_pairing=Neighbor",),
    "merge_aware": ("--data.frame_pairing=OffsetNeighbor", "--data.frame_pairing.step=2"),
    "duplicate_views": ("--data.frame_pairing=Duplicate", "--data.frame_pairing.keep=views"),  # twice the frames
}
CORNERS = ("uniform", "pose_farthest"), ("consecutive", "duplicate")
SHORT = (  # what keeps a run under three minutes on one core
    "--data.num_frames=8",
    "--data.train_sampler=null",
    "--trainer.limit_val_batches=0",
    "--trainer.max_steps=240",
)


def main() -> None:
    options = parser(__doc__, "views")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    options.add_argument("--pairings", nargs="+", default=list(PAIRINGS), choices=list(PAIRINGS))
    asked, overrides = parse(options)
    results = Results(asked.results)
    jobs = sorted(product(asked.seeds, asked.models, asked.samplers, asked.pairings), key=is_rest)
    plan = [planned(*job, overrides) for job in jobs]
    if any("space_aware" in run.name for run in to_do(plan, results)):
        select_frames(asked.out / "selections", asked.jobs, overrides)
    make(plan, results, asked.out, asked.jobs)

    print(f"| model | sampler | {' | '.join(asked.pairings)} |", "|---" * (len(asked.pairings) + 2) + "|", sep="\n")
    for model, sampler in product(asked.models, asked.samplers):
        cells = []
        for pairing in asked.pairings:
            runs = [planned(seed, model, sampler, pairing, overrides) for seed in asked.seeds]
            cells.append(spread(results.scores(runs), len(runs)))
        print(f"| {model} | {sampler} | {' | '.join(cells)} |")


def is_rest(job: tuple[int, str, str, str]) -> bool:
    """Sorts the corners first: they answer the question, the rest says what happens in between."""
    _, _, sampler, frame_pairing = job
    return sampler not in CORNERS[0] or frame_pairing not in CORNERS[1]


def planned(seed: int, model: str, sampler: str, pairing: str, overrides: Sequence[str]) -> Run:
    """A training of one model on one choice of frames."""
    words = (*seeded(seed), *SHORT, *SAMPLERS[sampler], *PAIRINGS[pairing], *overrides)
    return Run(f"{model}-{sampler}-{pairing}-{seed}", (*MODELS[model], *words))


def select_frames(folder: Path, jobs: int, overrides: Sequence[str]) -> None:
    """Fills the cache of the space-aware sampler for the rooms, so that no training waits for their depth maps."""
    data = [word for word in (*SHORT, *SAMPLERS["space_aware"], *overrides) if word.startswith("--data.")]
    for pairing, split in product(CORNERS[1], ("train", "test")):  # all views, and half as many
        words = ("--split", split, "--workers", str(jobs), "--output", str(folder / pairing / split))
        main_py(folder / "log.txt", 1, "sample", *data, *PAIRINGS[pairing], *words)


if __name__ == "__main__":
    main()
