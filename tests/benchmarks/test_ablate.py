"""The ablation: every setting is understood, none is asked for in vain, and its documents are those of its results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import main
from benchmarks import ablate, questions
from benchmarks.dots import draw
from benchmarks.perturbed import ShuffledFrameIds, ShuffledSteps, WrongIntrinsics
from benchmarks.runs import Results, Run
from benchmarks.settings import PATHS, SEEDS, SETTINGS, TESTS, planned, run
from datamodules import Rooms, UniformSampler, VideoQADataModule
from datamodules.video import Video
from tests.conftest import ROOMS
from tests.zoo.asking import build, scene

ROOT = Path(main.__file__).parent


# ---- the settings -----------------------------------------------------------------------------------------


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """What --print_config says, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["main.py", *words, "--print_config"])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0, end.value.code
        return yaml.safe_load(capsys.readouterr().out)

    return call


ALL_KINDS = (  # of words; the others are like one of these
    "PRoPE on both",
    "PRoPE, data world",
    "ValueRoPE and GTA",
    "PRoPE, x and y in turns",
    "VGGT tokens and PRoPE by VGGT cameras",
    "camera token alone",
    "moving: PRoPE, no time",
)
EVERY = [pytest.param(name, marks=() if name in ALL_KINDS else pytest.mark.slow) for name in SETTINGS]


@pytest.mark.parametrize("name", EVERY)
def test_a_setting_is_understood(name: str, parsed) -> None:
    planned_run = run(name, "local", 7)
    config = parsed("fit", *planned_run.fit)
    parts, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (
        data["source"]["init_args"]["trajectory"] == "local"
        and data["seed"] == parts["backbone"]["init_args"]["seed"] == 7
    )
    assert config["trainer"]["max_steps"] == 100 and data["num_frames"] == 16
    given = {
        part: (parts.get(part) or {}).get("class_path")
        for part in ("camera_encoding", "view_mixer", "time_index", "fusion")
    }
    words = dict(word.split("=", 1) for word in SETTINGS[name].words)  # the last one counts
    asked = [part for part in ("camera_encoding", "view_mixer") if words.get(f"--model.{part}", "null") != "null"]
    assert asked == [
        part for part in ("camera_encoding", "view_mixer") if given[part] is not None
    ]  # nothing is left over


def test_what_is_made_first() -> None:
    plan = planned(list(SETTINGS), PATHS, SEEDS)
    names = [(each.name, each.fit) for each in plan]
    assert len(set(names)) == len(plan) and len({each.name for each in plan}) == len(plan)
    core = [name for name, setting in SETTINGS.items() if setting.core]
    assert len(core) >= 12
    first = plan[: len(core)]
    assert first == [run(name, "loop", 0) for name in core]
    hard = [name for name, setting in SETTINGS.items() if setting.hard]
    assert plan[-1] == run(core[-1], "local", 2)
    on_local = {name for name in SETTINGS if run(name, "local", 0) in plan}
    assert on_local == {*core, *hard}
    assert planned(["PRoPE"], ["local"], [1], ["--x=1"])[0].fit[-1] == "--x=1"


def test_every_setting_answers_a_question_and_every_test_is_one() -> None:
    text = questions.DOCUMENT.read_text()
    blocks = "; ".join(" ".join(block[3].split()) for block in questions.BLOCK.finditer(text))
    asked = {name for entry in blocks.split(";") for name in (entry.split(" / ")[0].strip(),)}
    assert asked == set(SETTINGS)
    assert {test for setting in SETTINGS.values() for test in setting.tests} == set(TESTS) - {""}


# ---- what trained models are tested on --------------------------------------------------------------------


def test_wrong_intrinsics_are_wrong_by_so_much_and_nothing_else(rooms_root: Path) -> None:
    right, wrong = (kind(scenes=ROOMS, root=str(rooms_root)) for kind in (Rooms, WrongIntrinsics))
    assert wrong.error == 0.05
    for a, b in zip(right.scenes("test"), wrong.scenes("test"), strict=True):
        assert a.cameras is not None and b.cameras is not None and a.cameras != b.cameras and a.video == b.video
        given, made = (json.loads(each.cameras.read_text()) for each in (a, b))  # type: ignore[union-attr]
        ratio = torch.tensor(made["K_px"]) / torch.tensor(given["K_px"])
        focal = torch.diag(torch.tensor([True, True, False]))
        torch.testing.assert_close(ratio[..., focal], torch.full_like(ratio[..., focal], 1.05))
        assert (ratio[..., ~focal].nan_to_num(1.0) == 1).all()
        assert {**made, "K_px": None} == {**given, "K_px": None}


def test_steps_are_shuffled_whole_and_the_same_each_time(rooms_root: Path) -> None:
    video = Video(Rooms(scenes=ROOMS, root=str(rooms_root)).scenes("test")[0].video)
    chosen, shuffled = UniformSampler()(video, 16), ShuffledSteps()(UniformSampler(), video, 16)
    pairs, moved = (list(zip(each[::2], each[1::2], strict=True)) for each in (chosen, shuffled))
    assert moved != pairs and sorted(moved) == pairs
    assert ShuffledSteps()(UniformSampler(), video, 16) == shuffled


def test_frame_ids_are_shuffled_and_nothing_else() -> None:
    ours = build("plain")
    trainer = SimpleNamespace(lightning_module=ours)
    batches = []
    for kind in (VideoQADataModule, ShuffledFrameIds):
        data = kind()
        data.trainer = trainer  # type: ignore[assignment]
        batches.append(data._collate(False)([scene("a", steps=6)]))
    there, moved = (batch["scenes"][0].frame_indices for batch in batches)
    pairs = [list(zip(ids[::2], ids[1::2], strict=True)) for ids in (there, moved)]
    assert pairs[0] != pairs[1] and pairs[0] == sorted(pairs[1])
    assert torch.equal(batches[0]["scenes"][0].pixel_values, batches[1]["scenes"][0].pixel_values)


# ---- the documents ----------------------------------------------------------------------------------------


def made_up(folder: Path) -> Results:
    """Of three settings, and a seed of a fourth."""
    results = Results(folder / "ablate.jsonl")
    for name, base in (("none", 0.2), ("PRoPE", 0.7), ("GTA", 0.68), ("CaPE", 0.6)):
        for seed in SEEDS if name != "CaPE" else (0,):
            each: Run = run(name, "loop", seed)
            for number, test in enumerate(each.tests):
                score = base + seed / 50 - number / 10
                metrics = {
                    "per_question_type": {SETTINGS[name].kind: {"score": score, "count": 3}},
                    "all": {"macro": 0},
                }
                results.add(each, test, 100 + seed, metrics)
    return results


def test_documents_say_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    text = ablate.document(results)
    assert "| none | 0.220 (0.200 to 0.240) |  |\n" in text and "1 of 3 seeds" in text and "101 s" in text
    assert "| PRoPE | views shuffled | 0.320 (0.300 to 0.340) | 0.720 (0.700 to 0.740) |" in text
    block = "<!-- settings: PRoPE; GTA; none; CaPE; ValueRoPE -->\nold\n<!-- end -->"
    filled = questions.filled(block, results)
    assert "| none | 0.220 (0.200 to 0.240) |  | -0.500 |" in filled and "old" not in filled
    assert "| GTA | 0.700 (0.680 to 0.720) |  | -0.020, the seeds overlap |" in filled
    assert "    python -m benchmarks.ablate --paths loop --settings CaPE ValueRoPE\n" in filled
    local = questions.filled(block.replace("settings", "local"), results)
    assert "| none | 0.220 (0.200 to 0.240) |  |  |" in local and "`local`, beside *PRoPE*" in local
    assert "    python -m benchmarks.ablate --paths local --settings PRoPE GTA none CaPE ValueRoPE\n" in local
    assert questions.filled(filled, results) == filled
    tests = "<!-- tests: PRoPE / focal +1 %; none / views shuffled -->\n<!-- end -->"
    assert "| PRoPE | focal +1 % | 0.620 (0.600 to 0.640) | -0.100 |" in questions.filled(tests, results)
    for wrong in ("settings: PRoPO", "tests: GTA / focal +1 %", "tests: PRoPO / focal +1 %"):
        with pytest.raises(KeyError):
            questions.filled(f"<!-- {wrong} -->\n<!-- end -->", results)


def test_the_documents_are_of_these_results() -> None:
    results = Results(ablate.RESULTS)
    assert ablate.DOCUMENT.read_text() == ablate.document(results), "run python -m benchmarks.ablate --write"
    text = questions.DOCUMENT.read_text()
    assert text == questions.filled(text, results), "run python -m benchmarks.ablate --write"


def test_a_proof_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", questions.DOCUMENT.read_text()))
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10 and not {name for name in named if f"def {name}(" not in source}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(line, marks=() if number % 8 == 0 else pytest.mark.slow)
        for number, line in enumerate(re.findall(r"^    (\$T.*)", questions.DOCUMENT.read_text(), re.MULTILINE))
    ],
)
def test_a_command_at_full_size_is_understood(words: str, parsed) -> None:
    for name, meaning in re.findall(
        r'^    (\w+)="(?:python main.py )?(.*?)"', questions.DOCUMENT.read_text(), re.MULTILINE
    ):
        words = words.replace(f"${name}", meaning)
    config = parsed(*words.split())
    assert config["model"]["init_args"]["backbone"]["class_path"] == "zoo.PretrainedQwen25VL"


def test_the_plot_is_small(tmp_path: Path) -> None:
    rows = {name: {path: [0.1, 0.3, 0.4] for path in PATHS} for name in SETTINGS}
    draw(rows, PATHS, (0.0, 1.0), "MRA", tmp_path / "dots.png")
    assert 10_000 < (tmp_path / "dots.png").stat().st_size < 200_000
    draw({"nothing yet": {"loop": []}}, PATHS, (0.0, 1.0), "MRA", tmp_path / "empty.png")
