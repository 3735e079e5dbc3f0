"""check-encoding measures a class of the user's own: a wrong statement about its symmetries is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from commands.check_encoding import check_encoding

MINE = """
from dataclasses import replace
from zoo.encodings import CaPE, GTA
from zoo.cameras.poses import invert_se3

class Same(GTA):
    pass

class Unstated(GTA):
    @property
    def symmetries(self):
        return replace(super().symmetries, intrinsics=False)

class Overstated(GTA):
    @property
    def symmetries(self):
        return replace(super().symmetries, scale=True)

class Inverted(CaPE):
    def matrices(self, cameras):
        return super().matrices(cameras.with_poses(invert_se3(cameras.world_to_camera)))

class Off(GTA):
    def encode(self, *args, **kwargs):
        return super().encode(*args, **kwargs).__class__.__mro__[-2](None)
"""
WRONG = {
    "Unstated": "intrinsics is not declared and holds",
    "Overstated": "scale is declared and broken",
    "Inverted": "world_views is declared and broken",
    "Off": "cameras move the outputs by 0.0e\\+00 alone",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_measured.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_measured", raising=False)


def test_a_right_statement(mine: None, capsys: pytest.CaptureFixture) -> None:
    check_encoding(["mine_measured.Same", "--encoding.placement", "TemporalSection"])
    printed = capsys.readouterr().out
    assert re.search(r"world_views +yes +\d\.\de-1\d", printed) and re.search(r"scale +no +\d\.\de[+-]0\d", printed)
    assert "broken" not in printed and re.search(r"cost: 0 parameters; .* times", printed.replace("\n", " "))


@pytest.mark.parametrize(
    "name", ["Overstated", "Off", *(pytest.param(each, marks=pytest.mark.slow) for each in ("Unstated", "Inverted"))]
)
def test_a_wrong_one(name: str, mine: None) -> None:
    with pytest.raises(ValueError, match=WRONG[name]):
        check_encoding([f"mine_measured.{name}"])


def test_no_such_class(mine: None) -> None:
    with pytest.raises(ValueError, match=r"mine_measured\.Gone can't be imported: module .* has no attribute 'Gone'$"):
        check_encoding(["mine_measured.Gone"])
