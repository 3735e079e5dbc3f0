"""Linear probes: a planted signal is found, a shuffled one is not; what the command writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import main
from commands.probe import MODELS, probe
from commands.probes.hidden_states import SceneStates, scene_states
from commands.probes.results import probe_states, shuffled
from commands.probes.ridge import cross_validated_r2
from datamodules.scenes import Question, RawQuestion
from tests.tiny import FAMILIES, QUESTIONS, tiny_model, tiny_scene
from zoo import LoRA, SpatialVLM
from zoo.benchmarks import VSIBench
from zoo.cameras import Cameras
from zoo.cameras.scene_geometry import merge_cameras
from zoo.errors import InputError
from zoo.weights.saved_models import initial_model


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
    (r2,) = cross_validated_r2(states, [some], number)
    assert r2 > 0.9
    # a number of each scene of its own: known of a scene's other tokens, and of no other scene
    own = torch.randn(len(scenes), 1, generator=torch.Generator().manual_seed(1))[number]
    marked = torch.cat((states, torch.nn.functional.one_hot(number).float()), 1)
    together = cross_validated_r2(marked, [own, targets, some, own], number)
    alone = [cross_validated_r2(marked, [each], number)[0] for each in (own, targets, some, own)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] < 0.1 < 0.9 < together[1]
    (leaked,) = cross_validated_r2(marked, [own], torch.arange(len(number)))  # the control: tokens by themselves
    assert leaked > 0.9


def test_shuffled_targets_are_of_other_scenes_and_as_known_as_before() -> None:
    own = [torch.full((8, 2), float(n)) for n in range(6)]
    own[1][::2], own[3][:], own[4][5:] = torch.nan, torch.nan, torch.nan  # some, all, and the last of a scene's
    for n, (before, after) in enumerate(zip(own, shuffled(own), strict=True)):
        assert torch.equal(before.isnan(), after.isnan())
        assert not (after == n).any() and len(after[after.isfinite()].unique()) == (n != 3)


@torch.no_grad()
def test_cameras_are_in_the_frame_of_the_encodings_reference() -> None:
    model, loaded = tiny_model("PRoPE, TemporalSection, saddle_balanced").model, tiny_scene("a", steps=5, seed=3)
    chosen = []
    assert model.camera_encoding is not None and loaded.geometry is not None
    for reference in ("first", "middle", "medoid", "saddle_balanced", None):
        model.camera_encoding.reference = reference
        (found,) = scene_states(model, VSIBench(), [loaded], 99)
        rotation, position = (found.targets["visual"][name].unflatten(0, (5, -1)) for name in ("rotation", "position"))
        is_own = (rotation - torch.eye(3).flatten()).abs().amax((1, 2)) < 1e-6
        assert is_own.sum() == 1 and torch.equal(is_own, position.abs().amax((1, 2)) < 1e-6)
        chosen.append(int(is_own.int().argmax()))
    poses = merge_cameras(loaded.geometry, model.merged_camera).world_to_camera
    medoid = Cameras(poses[None], torch.eye(3).expand(1, 5, 3, 3)).reference_view("medoid")
    assert chosen[:3] == [0, 2, int(medoid)] and chosen[4] == 0 and len(set(chosen)) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_of_the_questions_that_can_be_asked(family: str) -> None:
    task, benchmark = tiny_model("plain", family=family), VSIBench()
    refused = Question("refused", "object_counting", "How many <|im_end|>?", "5")
    turns = RawQuestion("turns", "", "<video>How many?", "7", later_turns=(("And how many lamps?", "8"),))
    lettered = Question("lettered", "route_planning", "Where to?", "B", ("A. Left", "B. Right"))
    questions = (QUESTIONS[0], refused, turns, QUESTIONS[3], lettered)
    (found,) = scene_states(task.model, benchmark, [tiny_scene("a", questions, family=family)], 5)
    (alone,) = scene_states(task.model, benchmark, [tiny_scene("a", QUESTIONS[3:4], family=family)], 5)
    assert found.states["visual"].shape[1] == 5 and found.states["text"].shape[1] == 4
    torch.testing.assert_close(found.states["text"][:, 2], alone.states["text"][:, 0], rtol=0, atol=1e-3)
    answers = {name: values[:, 0].tolist() for name, values in found.targets["text"].items() if "answer" in name}
    nan = pytest.approx(torch.nan, nan_ok=True)
    assert answers == {"answer: object_counting": [4, nan, 4444, nan], "answer": [nan, 7, nan, nan]}
    letters = found.targets["text"]["option: route_planning"]
    assert letters[:3].isnan().all() and letters[3, :3].tolist() == [0, 1, 0] and letters[3].sum() == 1


def test_states_are_those_of_the_precision_of_the_run() -> None:
    model, states = tiny_model("plain", lora=LoRA(2)).model, []
    for precision in (None, "bf16-mixed"):
        model.precision = precision
        states += [each.states["text"] for each in scene_states(model, VSIBench(), [tiny_scene("a")], 5)]
    with torch.autocast("cpu", torch.bfloat16):
        (expected,) = scene_states(model, VSIBench(), [tiny_scene("a")], 5)
    assert torch.equal(states[1], expected.states["text"]) and not torch.equal(*states)
    assert all(each.dtype == torch.float32 for each in states)


def test_runs_that_can_not_be_probed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, error in (([str(tmp_path)], "is no folder of a run: it has no config.yaml"), ([], "no finished run")):
        with pytest.raises(InputError, match=error):
            probe(words)
    vggt = {"class_path": "zoo.TinyVGGT", "init_args": {"embed_dim": 16, "depth": 4, "num_heads": 2}}
    model = {"class_path": "zoo.GeometryPretraining", "init_args": {"geometry": vggt}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {}}))
    with pytest.raises(InputError, match="config.yaml: a GeometryPretraining"):
        SpatialVLM.from_pretrained(tmp_path)


def check_probed(run: Path, model: SpatialVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Probes a trained run and its model; called where a test has one."""
    words = ["main.py", "probe", str(run), "--split", "train", "--scenes", "99", "--folds", "2", "--tokens", "4"]
    monkeypatch.setattr(sys, "argv", words)
    main.main()
    printed = capsys.readouterr().out
    assert "position" in printed and (run / "probe.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((run / "probe.json").read_text())
    probes = written["probes"]
    assert 2 <= written["scenes"] < 99 and f"{written['scenes']} scenes" in map(str.rstrip, printed.splitlines())
    by_name = {(probe["model"], probe["tokens"], probe["target"]): probe["r2"] for probe in probes}
    cameras, size = ("position", "rotation", "scale"), "answer: room_size_estimation"
    known = {"visual": ("depth", *cameras), "text": (*cameras, size)}
    expected = {(model, tokens, target) for model in MODELS for tokens in known for target in known[tokens]}
    assert expected <= by_name.keys() and len({len(r2) for r2 in by_name.values()}) == 1
    assert all(name in expected or name[2].startswith(("answer: ", "option: ")) for name in by_name)
    assert by_name["before", "visual", "depth"] != by_name["after", "visual", "depth"]
    monkeypatch.setattr(sys, "argv", [*words, "--tokens", "5"])
    with pytest.raises(SystemExit, match="--output .*probe.json is there already"):
        main.main()
    monkeypatch.setattr(sys, "argv", [*words, "--scenes", "1"])
    with pytest.raises(SystemExit, match="--scenes 1: at least 2"):
        main.main()
    # the weights that the run started from: a few small steps from those of its end, or another run's
    trained = model.state_dict()
    torch.manual_seed(0)
    before = initial_model(run).state_dict()
    changes = [(before[name] - tensor).abs().max() for name, tensor in trained.items() if tensor.is_floating_point()]
    assert 0 < max(changes) < 5e-3
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["init_args"]["initial_weights"] = str(run / "checkpoints/last.ckpt")
    other = run.parent / "other"
    other.mkdir()
    # some parts of which it began with anew
    settings["model"]["init_args"]["objectives"] = [{"class_path": "zoo.CameraPrediction"}]
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    more = initial_model(other).state_dict()
    assert more.keys() > trained.keys() and all(torch.equal(more[name], tensor) for name, tensor in trained.items())
