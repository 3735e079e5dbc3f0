"""check-encoding measures a class of the user's own: a wrong statement about its symmetries is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from commands.check_encoding import check_encoding

MINE = """
from dataclasses import replace
from zoo.encodings import CaPE, GTA, DeltaNetLayers, PRoPE, UnrotatedChannels
from zoo.encodings.base import CameraEncoding
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

class Unchecked(DeltaNetLayers):
    def __init__(self):
        CameraEncoding.__init__(self, reference=None)
        self.encoding = PRoPE(UnrotatedChannels(), apply_to="qk")
        self.parts, self.head = (self.encoding,), None

class Off(GTA):
    def encode(self, *args, **kwargs):
        return super().encode(*args, **kwargs).__class__.__mro__[-2](None)
"""
WRONG = {
    "Unstated": "intrinsics is not declared and holds",
    "Overstated": "scale is declared and broken",
    "Inverted": "world_views is declared and broken",
    "Unchecked": "world_views is declared and broken",
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
    assert re.search(r"world_views +yes( +\d\.\de-1\d){2} +-", printed)  # 11 frequencies of time fit no groups of four
    assert re.search(r"scale +no( +\d\.\de[+-]0\d){2} +-", printed)
    assert "broken" not in printed and re.search(r"cost .*: 0 parameters; .* times", printed.replace("\n", " "))


STOP = ("--encoding.placement.stop", "1.0")
VALUES = ("--encoding.encoding", "PRoPE", "--encoding.encoding.placement", "UnrotatedChannels")


@pytest.mark.parametrize(
    ("words", "has_cost"),
    [
        (("GTA", "--encoding.placement", "UnrotatedChannels"), True),
        pytest.param(
            *(("DeltaNetLayers", *VALUES, "--encoding.encoding.apply_to", "vo"), False),  # not in full attention
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_encoding_of_hybrid_decoders_alone(words: tuple[str, ...], has_cost: bool, capsys) -> None:
    check_encoding([*words])
    printed = capsys.readouterr().out
    assert re.search(r"world_views +yes +- +- +\d\.\de-1\d", printed) and re.search(r"scale +no +- +- +\d", printed)
    assert re.search(r"control: cameras +- +- +\d\.\de[+-]0[01]", printed) and "broken" not in printed
    assert ("without" in printed) == has_cost


@pytest.mark.slow
def test_a_symmetry_of_one_model_alone(capsys) -> None:
    """The last channels have no position in Qwen3.5; an encoding that fits no model is an error."""
    check_encoding(["PRoPE", "--encoding.placement", "ChannelRange", "--encoding.placement.start", "0.75", *STOP])
    printed = capsys.readouterr().out
    assert re.search(r"shift +Qwen3\.5( +\d\.\de[+-]0\d){2} +\d\.\de-1\d", printed)
    with pytest.raises(ValueError, match=r"like Qwen2\.5-VL's: .* like Qwen3\.5's: .* leaves 192"):
        check_encoding(["GTA", "--encoding.placement", "UnrotatedChannels", "--encoding.placement.count", "200"])


@pytest.mark.parametrize(
    "name", ["Overstated", *(pytest.param(each, marks=pytest.mark.slow) for each in WRONG if each != "Overstated")]
)
def test_a_wrong_one(name: str, mine: None) -> None:
    with pytest.raises(ValueError, match=WRONG[name]):
        check_encoding([f"mine_measured.{name}"])


def test_no_such_class(mine: None) -> None:
    with pytest.raises(ValueError, match=r"mine_measured\.Gone can't be imported: module .* has no attribute 'Gone'$"):
        check_encoding(["mine_measured.Gone"])
