"""Which camera encoding, where it acts and what time means, on the rooms: benchmarks/encodings.md, docs/questions.md.

    python -m benchmarks.ablate                     # the core settings on both camera paths, then the rest; three seeds
    python -m benchmarks.ablate --settings none PRoPE --seeds 0 --paths loop
    python -m benchmarks.ablate --write             # only the documents, of what is done

Every run is `main.py fit` and `main.py test`, of a minute or two on one core: two at a time have one thread each. All
train as many steps on as many rooms. What is done is not made again, see `benchmarks.runs`; what can be told without
training is a test of a model that is there: wrong intrinsics, views or frame ids out of order, cameras of another room.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import questions
from benchmarks.dots import draw
from benchmarks.runs import Results, make, parse, parser, pretrain_vggt, spread, to_do
from benchmarks.settings import BUDGET, CACHED, PATHS, SEEDS, SETTINGS, planned, scored

RESULTS, COSTS = Path(__file__).parent / "results/ablate.jsonl", Path(__file__).with_name("attention.md")
DOCUMENT, PLOT = Path(__file__).with_name("encodings.md"), Path(__file__).with_name("encodings.png")

TEXT = """# Camera encodings beside each other on the rooms

This file is made by `python -m benchmarks.ablate` from `benchmarks/results/ablate.jsonl`: {done} of {all} trainings.

Each is the tiny model of `scale_tiny.yaml` after the same short training, tested on 150 held-out rooms:

    {budget}

on one core, in {seconds} at the median, two at a time and some of them beside other work. A row has the mean over three
seeds, which change the weights and the order of the rooms, with the least and the greatest. Room-size MRA, of which the
best constant answer has 0.345; but for the rows on what moves: there it is the accuracy of the order of appearance,
which guessing gets right in a quarter of the cases. On `loop` paths the camera goes around the room; on `local` ones
around a spot, whatever the room's size. What each row is in words of the command line: `benchmarks/settings.py`.

{table}

{plot}## The same models, tested otherwise

What a model goes by, it loses when that is wrong. Nothing is trained again.

{otherwise}

## What attention costs with them

    python -m benchmarks.attention | tee benchmarks/attention.md

{costs}
"""


def main() -> None:
    options = parser(__doc__, "ablate")
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="NAME")
    options.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    options.add_argument("--write", action="store_true", help="only write the documents, of what is done")
    asked, overrides = parse(options)
    results = Results(asked.results)
    plan = planned(asked.settings, asked.paths, asked.seeds, overrides)
    try:
        if not asked.write:
            if any(set(CACHED) <= set(each.fit) for each in to_do(plan, results)):
                pretrain_vggt()
            make(plan, results, asked.out, asked.jobs)
    finally:
        if asked.results.resolve() == RESULTS:
            write(results)
        print(table(results))


def write(results: Results) -> None:
    """Both documents and the plot, of what is done."""
    scores = {name: {path: scored(results, name, path) for path in PATHS} for name in SETTINGS}
    if any(any(row.values()) for row in scores.values()):
        draw(scores, PATHS, (0.0, 1.0), "room-size MRA; of what moves, accuracy", PLOT)
    DOCUMENT.write_text(document(results))
    questions.DOCUMENT.write_text(questions.filled(questions.DOCUMENT.read_text(), results))


def document(results: Results) -> str:
    """The text of encodings.md."""
    every = planned(list(SETTINGS), PATHS, SEEDS)
    done = len(every) - len(to_do(every, results))
    plot = "![the same as dots, with the range over the seeds](encodings.png)\n\n" if PLOT.exists() else ""
    costs = COSTS.read_text().strip() if COSTS.exists() else "Not measured yet."
    seconds = [found["fit_s"] for each in every if (found := results.find(each))]
    filled = {
        "seconds": f"{statistics.median(seconds or [0.0]):.0f} s",
        "costs": costs,
        "table": table(results),
        "otherwise": otherwise(results),
        "plot": plot,
        "budget": " ".join(BUDGET),
    }
    return TEXT.format(done=done, all=len(every), **filled)


def table(results: Results) -> str:
    """A row a setting; a cell is empty where nothing is planned or done."""
    lines = ["| setting | `loop` | `local` |", "|---|---|---|"]
    for name in SETTINGS:
        cells = [spread(scored(results, name, path), len(SEEDS)) for path in PATHS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def otherwise(results: Results) -> str:
    """The tests of the trained models, on `loop` paths."""
    lines = ["| setting | test | score | as trained |", "|---|---|---|---|"]
    for name, setting in SETTINGS.items():
        for test in setting.tests:
            cells = [spread(scored(results, name, "loop", each), len(SEEDS)) for each in (test, "")]
            lines.append(f"| {name} | {test} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
