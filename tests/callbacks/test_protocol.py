"""What of a test departs from its protocol: its options, parts that the protocol leaves out, and a model's own time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks import SaveRunConfig
from callbacks.configs import CONFIGS
from callbacks.metrics import departures, protocol_record
from tests.callbacks.toy import trainer
from tests.zoo.asking import build

STATED = yaml.safe_load((CONFIGS / "protocol_lmms_eval.yaml").read_text())


def test_a_part_that_a_protocol_leaves_out_is_a_departure() -> None:
    stated = {"data": {"init_args": {"still_resize": None, "image_pixels": None, "sampler": {"class_path": "Uniform"}}}}
    options: dict[str, Any] = {"still_resize": {"class_path": "datamodules.Stills", "init_args": {"jpeg": False}}}
    options |= {"image_pixels": None, "sampler": {"class_path": "datamodules.Uniform"}}
    assert departures(stated, {"data": {"init_args": options}}) == {
        "data.still_resize": {"protocol": None, "run": {"class_path": "datamodules.Stills", "jpeg": False}}
    }


@pytest.mark.parametrize("name, index", [("plain", None), ("PRoPE, TemporalSection", "zoo.ConstantIndex")])
def test_a_time_that_an_encoding_sets_is_a_departure(tmp_path: Path, name: str, index: str | None) -> None:
    """Though the option is the protocol's."""
    saved = SaveRunConfig.__new__(SaveRunConfig)
    saved.content = lambda: STATED  # type: ignore[method-assign]
    tester: Any = trainer(tmp_path, saved)
    tester.strategy.connect(build(name))
    found = protocol_record(tester, "lmms_eval")["departures"]
    assert [each["run"]["class_path"] for each in found.values()] == ([] if index is None else [index])
    assert [*found] == ([] if index is None else ["model.time_index"])
    assert protocol_record(tester, None) == {"name": None}
