"""Write a study that compares two evaluation protocols, one option at a time.

    python -m commands.studies.protocols protocol_spatial_mllm.yaml protocol_lmms_eval.yaml --run runs/mine > mine.yaml
    python main.py study mine.yaml

The study tests the weights by the first protocol, then with each option in which the second protocol differs switched
alone, and with all of them switched. The difference from the first test is an option's effect. What is left between the
sum of these effects and all options together is their interaction. For released weights, give --config, not --run.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from commands.runs import CONFIG
from run_folder.configs import find_config, read_settings
from zoo.errors import InputError
from zoo.weights.saved_models import LAST_CHECKPOINT

SCORER, NAME = "metrics.scorer", "metrics.protocol"
ALL = "all together"


def protocol_study(first: str, second: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a study file that compares two protocols.

    The scorer is left out: `main.py score predictions.jsonl --scorer NAME` scores the same answers by another one.

    Args:
        first: The config of a protocol; the study's tests have its options.
        second: The config of another protocol.
        weights: `configs` of the tested model, and options such as its `ckpt_path`.

    Raises:
        InputError: A config is absent, or the protocols differ in nothing but their scorers.
    """
    one, other = (_options(read_settings(find_config(name))) for name in (first, second))
    switched = {name: each for name, each in other.items() if name not in (SCORER, NAME) and each != one.get(name)}
    if not switched:
        raise InputError(f"{first} and {second} differ in nothing that changes an answer")
    names = [Path(name).stem.removeprefix("protocol_") for name in (first, second)]
    tests = {name: {name: value} for name, value in switched.items()} | {ALL: switched}
    return {
        "title": f"What separates the protocols {names[0]} and {names[1]}?",
        "test": {name: value for name, value in one.items() if name != NAME},
        "tests": tests,
        "settings": {names[0]: {**weights, "trainer.max_steps": 0, "tests": [*tests]}},
        "compare": [
            {"title": f"What does each option of {names[1]} change?", "settings": [names[0]], "tests": [*tests]}
        ],
    }


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of model, data and metrics by dotted name, each part in one piece."""
    sections = {name: config.get(name) or {} for name in ("model", "data", "metrics")}
    own = {name: content.get("init_args", content) for name, content in sections.items()}
    return {f"{name}.{option}": value for name, options in own.items() for option, value in options.items()}


def main() -> None:
    """Print the study of a command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("first", help="the config of a protocol")
    parser.add_argument("second", help="the config of another protocol")
    parser.add_argument("--run", help="the folder of the trained run to test")
    parser.add_argument("--config", action="append", default=[], help="in place of --run: configs of released weights")
    asked = parser.parse_args()
    if bool(asked.run) == bool(asked.config):
        parser.error("give either --run or --config")
    weights: dict[str, Any] = {"configs": asked.config}
    if asked.run:
        run = Path(asked.run)
        weights = {"configs": [str(run / CONFIG)], "ckpt_path": str(run / LAST_CHECKPOINT)}
    try:
        content = json.dumps(protocol_study(asked.first, asked.second, weights))
        print(yaml.safe_dump(json.loads(content), sort_keys=False), end="")  # equal parts in full, and not as anchors
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
