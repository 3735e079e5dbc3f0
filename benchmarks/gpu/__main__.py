"""Runs every benchmark that needs a GPU in parts, and writes benchmarks/gpu.md.

    make gpu PYTHON=python3.12                 # or: python3.12 -m benchmarks.gpu
    make gpu PYTHON=python3.12 ARGS=--tiny     # all parts with tiny models, on a CPU: whether they work
    python -m benchmarks.gpu --wheels 3.12     # the command that fetches what a machine without a network lacks

Models have random weights of the released sizes. Each part is a process of its own, ends within eight minutes, and is
skipped when its result exists, so that the command may be broken off and given again. Without a network, put the wheels
into wheels/ beside this project: they are unpacked there, and nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.needs import ROOT, SITE, download, install_carried, missing

PARTS = ("training-qwen25", "training-qwen3", "whole-qwen25", "whole-qwen3", "evaluation-qwen25", "evaluation-qwen3")
PARTS += ("attention", "precision", "geometry", "prope", "tests")
SECONDS = 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU if there is no GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--results", type=Path, help="folder of the parts' results; by default in cache/")
    parser.add_argument("--output", type=Path, help="the document; by default benchmarks/gpu.md, or in the results")
    parser.add_argument("--wheels", metavar="PYTHON", help="print the command that fetches the wheels, no more")
    options = parser.parse_args()
    if options.wheels:
        print(download(options.wheels))
        return
    install_carried()
    if lacking := missing():
        sys.exit(
            f"{sys.executable} lacks {'; '.join(lacking)}.\nWhere there is a network and this project is installed, "
            "python -m benchmarks.gpu --wheels 3.12 prints the command that fetches the wheels: carry the folder wheels"
        )
    results = options.results or ROOT / "cache" / ("gpu-tiny" if options.tiny else "gpu")
    results.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, (str(SITE), str(ROOT), os.environ.get("PYTHONPATH"))))
    failed = [part for part in options.parts if not run(part, results, options.tiny, {"PYTHONPATH": paths})]
    written = {part: path for part in PARTS if (path := results / f"{part}.json").exists()}
    output = options.output or (results / "gpu.md" if options.tiny else ROOT / "benchmarks" / "gpu.md")
    output.write_text(document({part: json.loads(path.read_text()) for part, path in written.items()}))
    print(f"{output}: {len(written)} of {len(PARTS)} parts")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; give the command again")


def run(part: str, results: Path, is_tiny: bool, environment: dict[str, str]) -> bool:
    """Runs a part unless its result exists; returns whether it does now."""
    path = results / f"{part}.json"
    if path.exists():
        print(f"{part}: done", flush=True)
        return True
    print(f"{part}: up to {SECONDS} s", flush=True)
    words = [sys.executable, "-m", "benchmarks.gpu.parts", part, str(path), *(["--tiny"] if is_tiny else [])]
    try:
        done = subprocess.run(words, cwd=ROOT, env=os.environ | environment, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{part}: broken off after {SECONDS} s", flush=True)
    else:
        print(f"{part}: {'done' if done.returncode == 0 else 'failed'}", flush=True)
    return path.exists()


def document(found: dict[str, dict]) -> str:
    """The tables of all parts, each with the machine that it ran on."""
    text = ["# On a GPU", "", "    make gpu PYTHON=python3.12", "", "Random weights of the released sizes; medians."]
    for part, result in found.items():
        text += ["", f"## {part}", "", result["about"], "", result["machine"]]
        for title, rows in result["tables"].items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            text += ["", title, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            text += [f"| {' | '.join(str(row.get(name, '')) for name in columns)} |" for row in rows]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
