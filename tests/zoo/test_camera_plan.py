"""Whose cameras and depth the parts of a model get: the truth table of `CameraPlan`."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from zoo.model_spec import CameraPlan

# option, what parts read, and what objectives predict: whether an encoder is needed, the cameras of some scenes are
# its own, which targets are, and whether it has to predict depth
TABLE = """
dataset    -              -             | no   no   -             no
dataset    -              cameras       | no   no   -             no
dataset    -              depth         | no   no   -             no
dataset    -              cameras+depth | no   no   -             no
dataset    cameras        -             | no   no   -             no
dataset    cameras        cameras       | no   no   -             no
dataset    cameras        depth         | no   no   -             no
dataset    cameras        cameras+depth | no   no   -             no
dataset    cameras+depth  -             | no   no   -             no
dataset    cameras+depth  cameras       | no   no   -             no
dataset    cameras+depth  depth         | no   no   -             no
dataset    cameras+depth  cameras+depth | no   no   -             no
auto       -              -             | no   no   -             no
auto       -              cameras       | yes  no   cameras       no
auto       -              depth         | no   no   -             no
auto       -              cameras+depth | yes  no   cameras       no
auto       cameras        -             | yes  yes  -             no
auto       cameras        cameras       | yes  yes  cameras       no
auto       cameras        depth         | yes  yes  -             no
auto       cameras        cameras+depth | yes  yes  cameras       no
auto       cameras+depth  -             | yes  no   -             no
auto       cameras+depth  cameras       | yes  no   cameras       no
auto       cameras+depth  depth         | yes  no   -             no
auto       cameras+depth  cameras+depth | yes  no   cameras       no
predicted  -              -             | yes  no   -             no
predicted  -              cameras       | yes  no   cameras       no
predicted  -              depth         | yes  no   depth         yes
predicted  -              cameras+depth | yes  no   cameras+depth yes
predicted  cameras        -             | yes  yes  -             no
predicted  cameras        cameras       | yes  yes  cameras       no
predicted  cameras        depth         | yes  yes  depth         yes
predicted  cameras        cameras+depth | yes  yes  cameras+depth yes
predicted  cameras+depth  -             | yes  yes  -             yes
predicted  cameras+depth  cameras       | yes  yes  cameras       yes
predicted  cameras+depth  depth         | yes  yes  depth         yes
predicted  cameras+depth  cameras+depth | yes  yes  cameras+depth yes
"""
ROWS = [line.replace("|", "").split() for line in TABLE.strip().splitlines()]


def listed(words: str) -> tuple[str, ...]:
    return () if words == "-" else tuple(words.split("+"))


def plan_of(source: str, reads: str, targets: str) -> CameraPlan:
    """With an encoder that predicts cameras."""
    read, predicted = listed(reads), listed(targets)
    return CameraPlan(source, "cameras" in read, predicted, uses_points="depth" in read, encoder_predicts=True)


def answers(plan: CameraPlan) -> tuple[bool, bool, tuple[str, ...], bool]:
    return plan.asks_encoder, plan.predicts_cameras, plan.pseudo_labels, plan.predicts_depth


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:3]))
def test_the_table(row: list[str]) -> None:
    asks, cameras, labels, depth = row[3:]
    plan = plan_of(*row[:3])
    assert answers(plan) == (asks == "yes", cameras == "yes", listed(labels), depth == "yes")
    # an encoder that predicts none, or none at all, is asked for likewise and gives nothing
    assert answers(replace(plan, encoder_predicts=False)) == (asks == "yes", False, (), depth == "yes")


def test_the_table_is_complete() -> None:
    targets = ("-", "cameras", "depth", "cameras+depth")
    every = product(("dataset", "auto", "predicted"), ("-", "cameras", "cameras+depth"), targets)
    assert [tuple(row[:3]) for row in ROWS] == list(every)
