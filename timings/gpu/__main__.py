"""Run every timing that needs a GPU, in parts, and write timings/gpu.md.

    make gpu PYTHON=python3.12                 # or: python3.12 -m timings.gpu
    make gpu PYTHON=python3.12 ARGS=--tiny     # all parts with tiny models on a CPU, to test that they work

Models have random weights of the released sizes. Each part is a separate process and ends within eight minutes. A part
is skipped if its result exists, so that an interrupted command can be repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PARTS = (
    *("deltanet", "answers-qwen25", "answers-qwen3", "answers-qwen35"),  # checks, before anything is measured
    *("training-qwen25", "training-qwen3", "whole-qwen25", "whole-qwen3", "peer-qwen25"),
    *("evaluation-qwen25", "evaluation-qwen3", "attention", "precision", "geometry", "prope", "tests"),
)
SECONDS = 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU if there is no GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--results", type=Path, help="folder of the parts' results; by default in cache/")
    parser.add_argument("--output", type=Path, help="the document; by default timings/gpu.md, or in the results")
    options = parser.parse_args()
    if lacking := missing():
        sys.exit(f"{sys.executable} lacks {'; '.join(lacking)}; see timings/README.md for a machine without a network")
    results = options.results or ROOT / "cache" / ("gpu-tiny" if options.tiny else "gpu")
    results.mkdir(parents=True, exist_ok=True)
    failed = [part for part in options.parts if not run(part, results, options.tiny)]
    written = {part: path for part in PARTS if (path := results / f"{part}.json").exists()}
    output = options.output or (results / "gpu.md" if options.tiny else ROOT / "timings" / "gpu.md")
    output.write_text(document({part: json.loads(path.read_text()) for part, path in written.items()}))
    print(f"{output}: {len(written)} of {len(PARTS)} parts")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; give the command again")


def missing() -> list[str]:
    """Return the requirements of pyproject.toml that this Python does not meet, each with the installed version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in map(Requirement, project["dependencies"]):
        try:
            has = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{requirement}, not installed")
            continue
        if not requirement.specifier.contains(has, prereleases=True):
            found.append(f"{requirement}, has {has}")
    return found


def run(part: str, results: Path, is_tiny: bool) -> bool:
    """Run a part unless its result exists. Return whether the result exists now."""
    path = results / f"{part}.json"
    if path.exists():
        print(f"{part}: done", flush=True)
        return True
    print(f"{part}: up to {SECONDS} s", flush=True)
    words = [sys.executable, "-m", "timings.gpu.parts", part, str(path), *(["--tiny"] if is_tiny else [])]
    try:
        done = subprocess.run(words, cwd=ROOT, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{part}: broken off after {SECONDS} s", flush=True)
    else:
        print(f"{part}: {'done' if done.returncode == 0 else 'failed'}", flush=True)
    return path.exists()


def document(found: dict[str, dict]) -> str:
    """Return the tables of all parts, each with the machine on which it ran."""
    from timings.tables import markdown  # imported after `missing` has checked the requirements

    text = ["# On a GPU", "", "    make gpu PYTHON=python3.12", "", "Random weights of the released sizes; medians."]
    for part, result in found.items():
        text += ["", f"## {part}", "", result["about"], "", result["machine"]]
        for title, rows in result["tables"].items():
            text += ["", title, "", markdown(rows)]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
