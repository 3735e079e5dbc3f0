"""A first run on a GPU, rehearsed on the CPU: no mixed devices, no autocast of the CPU, few waits of the host."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_in_process
from tests.zoo.asking import NEW

Rehearsals = Callable[..., list[dict[str, Any]]]
TOKENS = {"answers": NEW, "answers alone, None": 2, "answers alone, 32-true": 2}  # the longest answers
IN_HEADS = re.compile(r"zoo/geometry/(dpt|da3/heads)\.py")  # of depth, whose convolutions overlap
FEW = ("prope.yaml", "objectives", "pose index on predicted cameras")


@pytest.fixture
def rehearsals(tmp_path: Path) -> Rehearsals:
    def call(*arguments: str) -> list[dict[str, Any]]:
        run_in_process(rehearse, tmp_path / "found", arguments, limit_s=1700)
        return [json.loads(line) for line in (tmp_path / "found").read_text().splitlines() if line.startswith("{")]

    return call


def rehearse(file: Path, arguments: Sequence[str]) -> None:
    from tests import rehearsal  # importing it makes torch report a GPU

    with file.open("w") as out, redirect_stdout(out):
        rehearsal.main(arguments)


def check(found: list[dict[str, Any]]) -> None:
    for each in found:
        name, parts = f"{each['family']} {each['model']}", each["parts"]
        faults = {part: log["faults"] for part, log in parts.items() if log["faults"]}
        assert not faults, name
        waits = {part: parts[part]["waits"] for part in ("move", "loss", "backward", "step")}
        assert not any(waits.values()), (name, waits)
        for part, tokens in TOKENS.items():
            found_by = {place: n for place, n in parts[part]["waits"].items() if "zoo/objectives" not in place}
            assert sum(found_by.values()) <= tokens, (name, part, found_by)
        math = [kernel for log in parts.values() for kernel in log["attention"] if kernel.startswith("MATH")]
        assert not math, name
        own = [kernel for kernel in parts["answers alone, None"]["attention"] if "zoo/backbones" in kernel]
        assert own and all(": bfloat16, " in kernel for kernel in own), name  # heads of cameras are in float32
        convolutions = [place for log in parts.values() for place in log["convolutions"] if not IN_HEADS.search(place)]
        assert not convolutions, name


SLOW = [pytest.param(each, FEW, marks=pytest.mark.slow) for each in ("Qwen2.5-VL", "Qwen3-VL", "Qwen3.5")]


@pytest.mark.parametrize(("family", "models"), [("Qwen2.5-VL", FEW[:1]), *SLOW])
def test_a_step_and_answers_on_a_pretended_gpu(family: str, models: tuple[str, ...], rehearsals: Rehearsals) -> None:
    found = rehearsals("--family", family, "--only", *models)
    assert len(found) == len(models)
    check(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("packing", [(), ("--packs",)], ids=["rows", "packed scenes"])
def test_every_model_on_a_pretended_gpu(packing: tuple[str, ...], rehearsals: Rehearsals) -> None:
    found = rehearsals(*packing)
    assert len(found) > 120
    check(found)


@pytest.mark.slow
def test_planted_faults_are_found(rehearsals: Rehearsals) -> None:
    """The control: a tensor and autocast of the CPU, a wait, stock convolution and attention, each with its place."""
    (mixed,) = rehearsals("--only", "plain", "--family", "Qwen2.5-VL", "--plant", "cpu")
    assert any("tests/rehearsal.py" in fault for fault in mixed["parts"]["loss"]["faults"])
    (cast,) = rehearsals("--only", "plain", "--family", "Qwen2.5-VL", "--plant", "autocast")
    assert any("autocast" in fault and "tests/rehearsal.py" in fault for fault in cast["parts"]["loss"]["faults"])
    (waiting,) = rehearsals("--only", "plain", "--family", "Qwen2.5-VL", "--plant", "wait")
    assert [place for place in waiting["parts"]["loss"]["waits"] if "tests/rehearsal.py" in place]
    assert sum(waiting["parts"]["answers"]["waits"].values()) > TOKENS["answers"]
    (convolved,) = rehearsals("--only", "plain", "--family", "Qwen3-VL", "--plant", "convolution")
    assert convolved["parts"]["loss"]["convolutions"] and convolved["parts"]["answers"]["convolutions"]
    (of_stock,) = rehearsals("--only", "plain", "--family", "Qwen2.5-VL", "--plant", "stock attention")
    assert any(kernel.startswith("MATH") for kernel in of_stock["parts"]["answers alone, 32-true"]["attention"])
    for found in (mixed, cast, waiting, convolved, of_stock):
        with pytest.raises(AssertionError):
            check([found])
