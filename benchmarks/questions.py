"""The measured parts of docs/questions.md, filled in between their marks from the results of the ablation.

    <!-- settings: none; PRoPE -->           a table of settings, each beside the first on `loop` paths
    <!-- local: none; PRoPE -->              the same on `local` paths
    <!-- tests: PRoPE / views shuffled -->   a table of trained models that were tested otherwise
    <!-- end -->

What is not measured yet says by which command it would be.
"""

from __future__ import annotations

import re
import shlex
import statistics
from pathlib import Path

from benchmarks.runs import Results, spread
from benchmarks.settings import PATHS, SEEDS, SETTINGS, run, scored

DOCUMENT = Path(__file__).parents[1] / "docs" / "questions.md"
BLOCK = re.compile(r"(<!-- (settings|local|tests):(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Results) -> str:
    """The document with its blocks as the results have them.

    Raises:
        KeyError: a block that names no setting of the ablation.
    """
    return BLOCK.sub(lambda block: block[1] + _block(block[2], block[3], results) + block[4], text)


def _block(kind: str, listed: str, results: Results) -> str:
    names = [" ".join(name.split()) for name in listed.split(";")]
    path = "local" if kind == "local" else "loop"
    if kind != "tests":
        lines, needed = _compared(names, path, results), names
        head = ["", *(f"`{each}`" for each in PATHS), f"`{path}`, beside *{names[0]}*"]
    else:
        pairs = [tuple(name.split(" / ")) for name in names]
        lines, needed = [_otherwise(name, test, results) for name, test in pairs], [name for name, _ in pairs]
        head = ["", "tested with", "`loop`", "beside as trained"]
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *filter(None, lines), ""] if any(lines) else []
    missing = dict.fromkeys(name for name in needed if not _done(name, path, results))
    if missing:
        words = " ".join(shlex.quote(name) for name in missing)
        table += ["Not measured yet:", "", f"    python -m benchmarks.ablate --paths {path} --settings {words}", ""]
    return "\n".join(["", *table, ""])


def _compared(names: list[str], path: str, results: Results) -> list[str]:
    """A line a setting; how much it is above the first on that path, and whether the seeds of the two overlap."""
    lines, base = [], scored(results, names[0], path)
    for name in names:
        cells = [spread(scored(results, name, each), len(SEEDS)) for each in PATHS]
        ours, verdict = scored(results, name, path), ""
        if ours and base and name != names[0]:
            apart = min(ours) > max(base) or max(ours) < min(base)
            verdict = f"{statistics.mean(ours) - statistics.mean(base):+.3f}{'' if apart else ', the seeds overlap'}"
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict} |" if any(cells) else "")
    return lines


def _otherwise(name: str, test: str, results: Results) -> str:
    scores, trained = (scored(results, name, "loop", each) for each in (test, ""))
    if test not in SETTINGS[name].tests:
        raise KeyError(f"{name} is not tested with {test}")
    if not scores or len(scores) != len(trained):
        return ""
    change = statistics.mean(scores) - statistics.mean(trained)
    return f"| {name} | {test} | {spread(scores, len(SEEDS))} | {change:+.3f} |"


def _done(name: str, path: str, results: Results) -> bool:
    runs = [run(name, path, seed) for seed in SEEDS]
    return all(results.find(each, test) is not None for each in runs for test in each.tests)
