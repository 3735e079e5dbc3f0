"""check-encoding measures a class of the user's own: a wrong statement about its symmetries is named.

The printed channels of each axis are those that the original decoder turns when a position on that axis changes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from commands.check_encoding import check_encoding, print_channels
from zoo import DeltaNetLayers, LayerSubset, PoseAxis, PRoPE, TinyQwen3VL, TinyQwen25VL, TinyQwen35, UnrotatedChannels
from zoo.encodings import CameraEncoding
from zoo.encodings.compose import Compose

MINE = """
from dataclasses import replace
from zoo.encodings import CaPE, GTA, DeltaNetLayers, PRoPE, UnrotatedChannels
from zoo.encodings.base import CameraEncoding
from zoo.cameras.poses import invert_se3

class Same(GTA):
    pass

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


@pytest.mark.parametrize(
    "name", ["Overstated", *(pytest.param(each, marks=pytest.mark.slow) for each in WRONG if each != "Overstated")]
)
def test_a_wrong_one(name: str, mine: None) -> None:
    with pytest.raises(ValueError, match=WRONG[name]):
        check_encoding([f"mine_measured.{name}"])


AXIS = re.compile(r"^(t|h|w|p|none|camera, [qkvo])  +(?:\d+: [\d,/ -]+?  +|  +)([\d,/ -]+?)(?:  |$)", re.MULTILINE)


def printed_channels(encoding: CameraEncoding, loader: type, capsys: pytest.CaptureFixture) -> str:
    print_channels(Console(highlight=False, width=120), encoding, "model", loader().load().decoder_layout)
    text: str = capsys.readouterr().out
    return text


def channels_in(text: str) -> dict[str, set[int]]:
    return {name: parsed(channels.strip()) for name, channels in AXIS.findall(text)}


def parsed(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(", ") if text != "-" else ():
        ends, _, step = part.partition("/")
        first, _, last = ends.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


@pytest.mark.parametrize("loader", [TinyQwen25VL, TinyQwen3VL, TinyQwen35], ids=lambda each: each.__name__)
def test_the_channels_of_an_axis_are_those_that_its_positions_turn(loader: type, capsys) -> None:
    found = channels_in(printed_channels(PRoPE(), loader, capsys))
    decoder = loader().load().decoder
    states = torch.zeros(1, 1, 192)
    for axis, name in enumerate("thw"):
        positions = torch.zeros(3, 1, 1, dtype=torch.long)
        positions[axis] = 10_000
        moved = sum((a - b).abs() for a, b in zip(
            decoder.rotary_emb(states, positions), decoder.rotary_emb(states, torch.zeros_like(positions)), strict=True
        ))  # fmt: skip
        assert found[name] == set((moved.flatten() > 0).nonzero()[:, 0].tolist())
    assert sorted(found["t"] | found["h"] | found["w"]) == list(range(32))
    head = decoder.layers[-1].self_attn.head_dim
    assert found["camera, q"] == set(range(head // 2))
    assert found.get("none", set()) == set(range(32, head))


def test_the_pose_takes_channels_of_time(capsys) -> None:
    original = channels_in(printed_channels(PRoPE(), TinyQwen25VL, capsys))
    found = channels_in(printed_channels(PoseAxis(count=2), TinyQwen25VL, capsys))
    assert found["p"] == {0, 1, 16, 17} == found["camera, q"] and found["t"] | found["p"] == original["t"]
    assert "p" not in original and found["camera, v"] == set()


def test_channels_and_layers_of_both_kinds_are_printed(capsys) -> None:
    inner = LayerSubset(PRoPE(UnrotatedChannels(), apply_to="vo"), "even")
    encoding = Compose([LayerSubset(PRoPE(UnrotatedChannels()), [4]), DeltaNetLayers(inner)])
    text = printed_channels(encoding, lambda: TinyQwen35(layers=5), capsys)
    full, linear = (channels_in(each) for each in text.split("Gated DeltaNet"))
    assert full["camera, v"] == set(range(32, 128))
    assert linear["camera, v"] == linear["camera, o"] == set(range(32)) and linear["camera, q"] == set()
    assert "PRoPE acts in layers 4\n" in text and "PRoPE acts in layers 2\n" in text
