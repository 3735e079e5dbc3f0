"""The printed channels of each axis are those that the stock decoder turns when a position on that axis changes."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

import main
from commands.positions import ranges
from zoo import TinyQwen3VL, TinyQwen25VL, TinyQwen35

CONFIGS = {
    TinyQwen25VL: ["--config", "prope.yaml"],
    TinyQwen3VL: ["--config", "prope.yaml", "--config", "scale_tiny_qwen3.yaml"],
    TinyQwen35: ["--config", "prope.yaml", "--config", "scale_tiny_qwen3_5.yaml"],
}
AXIS = re.compile(r"^(t|h|w|p|none|camera, [qkvo])  +(?:\d+: [\d,/ -]+?  +|  +)([\d,/ -]+?)(?:  |$)", re.MULTILINE)


def output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["main.py", "positions", *words])
    main.main()
    text: str = capsys.readouterr().out
    return text


def channels_in(text: str) -> dict[str, set[int]]:
    return {name: parsed(channels.strip()) for name, channels in AXIS.findall(text)}


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> dict[str, set[int]]:
    return channels_in(output(monkeypatch, capsys, *words))


def parsed(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(", ") if text != "-" else ():
        ends, _, step = part.partition("/")
        first, _, last = ends.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


@pytest.mark.parametrize("loader", CONFIGS, ids=lambda each: each.__name__)
def test_the_channels_of_an_axis_are_those_that_its_positions_turn(loader: type, monkeypatch, capsys) -> None:
    found = printed(monkeypatch, capsys, *CONFIGS[loader])
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


def test_the_layers_of_a_subset_are_printed(monkeypatch, capsys) -> None:
    """Of full attention in every fourth layer, and of the others."""

    def subset(layers: object, **options: str) -> dict:
        prope = {"class_path": "PRoPE", "init_args": {"placement": "UnrotatedChannels", **options}}
        return {"class_path": "LayerSubset", "init_args": {"encoding": prope, "layers": layers}}

    linear = {"class_path": "DeltaNetLayers", "init_args": {"encoding": subset("even", apply_to="vo")}}
    encodings = json.dumps([subset([4]), linear])
    words = ("--config", "qwen3_5.yaml", "--model.camera_encoding", "Compose")
    text = output(monkeypatch, capsys, *words, f"--model.camera_encoding.encodings={encodings}")
    assert "PRoPE acts in layers 4\n" in text and "PRoPE acts in layers 2\n" in text


def test_the_pose_takes_channels_of_time(monkeypatch, capsys) -> None:
    stock = printed(monkeypatch, capsys, "--config", "qwen25_vl.yaml")
    words = ("--model.camera_encoding", "PoseAxis", "--model.camera_encoding.count", "2")
    found = printed(monkeypatch, capsys, "--config", "prope.yaml", *words)
    assert found["p"] == {0, 1, 16, 17} == found["camera, q"] and found["t"] | found["p"] == stock["t"]
    assert "p" not in stock and found["camera, v"] == set()


def test_layers_of_both_kinds_are_printed(monkeypatch, capsys) -> None:
    inner = {"class_path": "PRoPE", "init_args": {"placement": "UnrotatedChannels", "apply_to": "vo"}}
    given = {"class_path": "DeltaNetLayers", "init_args": {"encoding": inner}}
    words = ("--config", "prope.yaml", "--config", "scale_tiny_qwen3_5.yaml")
    text = output(monkeypatch, capsys, *words, f"--model.camera_encoding={json.dumps(given)}")
    found = channels_in(text)
    assert found["camera, v"] == found["camera, o"] == set(range(32)) and found["camera, q"] == set()
    assert "full attention: layers 0, 4; Gated DeltaNet: layers 1-3\n" in text


def test_numbers_are_written_as_ranges() -> None:
    for numbers in ([], [3], [1, 2], [0, 3, 6, 9, 60, 61, 62, 63], [0, 5], [0, 5, 6, 7], list(range(9))):
        assert parsed(ranges(numbers)) == set(numbers)
    assert ranges([0, 3, 6, 60, 61, 62]) == "0-6/3, 60-62"
