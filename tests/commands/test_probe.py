"""Linear probes: a planted signal is found, a shuffled one is not; what the command writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import main
from commands.probe import MODELS
from commands.probes.hidden_states import SceneStates
from commands.probes.results import probe_states, shuffled
from commands.probes.ridge import cross_validated_r2


def made_scenes(width: int, noise: float, scenes: int = 24, tokens: int = 8) -> list[SceneStates]:
    """Two layers: in the second one `planted` is linear in the states, which hold no `absent`; `place` is the same in
    all scenes."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(width, 2, generator=generator)
    direction[-1] = 0
    found = []
    for _ in range(scenes):
        scene = 0.5 * torch.randn(1, width, generator=generator)  # what its tokens share
        states = scene + torch.randn(2, tokens, width, generator=generator)
        place = torch.arange(tokens, dtype=torch.float32)[:, None]
        states[:, :, -1:] = place
        planted = states[1] @ direction + noise * torch.randn(tokens, 2, generator=generator)
        absent = torch.randn(tokens, 1, generator=generator)
        unknown = torch.full((tokens, 1), torch.nan)
        targets = {"planted": planted, "absent": absent, "place": place, "unknown": unknown}
        found.append(SceneStates({"visual": states}, {"visual": targets}))
    return found


@pytest.mark.parametrize("width", [12, 300])  # fewer features than samples, or more
def test_a_planted_signal_is_found_and_a_shuffled_one_is_not(width: int) -> None:
    probes = {probe.target: probe for probe in probe_states("after", made_scenes(width, noise=0.1), folds=4)}
    assert probes.keys() == {"planted", "absent", "place"}
    planted, absent, place = (probes[name] for name in ("planted", "absent", "place"))
    assert planted.best == 1 and planted.r2[1] > (0.95 if width < 100 else 0.3)
    assert planted.r2[0] < 0.15 and max(planted.shuffled) < 0.15 and max(absent.r2 + absent.shuffled) < 0.15
    assert min(place.r2) > 0.4 and place.r2 == place.shuffled  # told by the place alone, so the control shows it too


def test_unknown_targets_are_left_out_and_scenes_are_held_out() -> None:
    scenes = made_scenes(12, noise=0.1)
    states = torch.cat([each.states["visual"][1] for each in scenes])
    targets = torch.cat([each.targets["visual"]["planted"] for each in scenes])
    number = torch.arange(len(scenes)).repeat_interleave(8)
    some = targets.clone()
    some[::3] = torch.nan
    assert cross_validated_r2(states, some, number) > 0.9
    # a number of each scene of its own: known of a scene's other tokens, and of no other scene
    own = torch.randn(len(scenes), 1, generator=torch.Generator().manual_seed(1))[number]
    marked = torch.cat((states, torch.nn.functional.one_hot(number).float()), 1)
    assert cross_validated_r2(marked, own, number) < 0.1
    assert (
        cross_validated_r2(marked, own, torch.arange(len(number))) > 0.9
    )  # the control: tokens held out by themselves
    assert all(not torch.equal(a, b) for a, b in zip(own.split(8), shuffled(own.split(8)), strict=True))


def check_probed(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Probes a trained run; called where a test has one."""
    words = ["main.py", "probe", str(run), "--split", "train", "--scenes", "4", "--folds", "2", "--tokens", "4"]
    monkeypatch.setattr(sys, "argv", words)
    main.main()
    assert "position" in capsys.readouterr().out and (run / "probe.png").read_bytes().startswith(b"\x89PNG")
    probes = json.loads((run / "probe.json").read_text())["probes"]
    by_name = {(probe["model"], probe["tokens"], probe["target"]): probe["r2"] for probe in probes}
    known = {"visual": ("depth", "position", "rotation", "scale"), "text": ("position", "rotation", "scale", "answer")}
    expected = {(model, tokens, target) for model in MODELS for tokens in known for target in known[tokens]}
    assert expected == by_name.keys() and len({len(r2) for r2 in by_name.values()}) == 1
    assert by_name["before", "visual", "depth"] != by_name["after", "visual", "depth"]
    monkeypatch.setattr(sys, "argv", [*words, "--scenes", "1"])
    with pytest.raises(SystemExit, match="--scenes 1: at least 2"):
        main.main()
