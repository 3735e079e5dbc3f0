"""An interrupted test resumes with the missing questions and leaves the files of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from datamodules.samplers import SelectedFrames
from datamodules.samplers.selection_files import FILE, write_selection
from run_folder.record import METRICS
from tests.callbacks.breakable import (
    BROKEN,
    QUESTIONS,
    Answers,
    Tiny,
    finish,
    log,
    on_disk,
    results,
    run,
    start,
)
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines

StoppedAfter = Callable[[int, Path], None]
SECONDS = 0.1  # that a scene takes at most, where a test is killed


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    Tiny(root).prepare()
    return root


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a test leaves that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, scenes)
    return results(folder)


@pytest.fixture(scope="module")
def stopped_after(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> StoppedAfter:
    """Puts into a folder what a test leaves that stops after so many scenes; each is made once."""
    made: dict[int, Path] = {}

    def call(after: int, folder: Path) -> None:
        if after not in made:
            made[after] = tmp_path_factory.mktemp("stopped")
            stopped(made[after], scenes, after)
        shutil.copytree(made[after], folder, dirs_exist_ok=True)

    return call


class StopAfter(Callback):
    def __init__(self, scenes: int) -> None:
        self.scenes = scenes

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx + 1 == self.scenes:
            raise RuntimeError("stopped")


def stopped(folder: Path, scenes: Path, after: int, **settings: Any) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        run(folder, scenes, StopAfter(after), **settings)


# ---- killed -------------------------------------------------------------------------------------------------
def kill(folder: Path, scenes: Path, processes: int, chance: random.Random) -> bool:
    """Starts the test and kills a process at a random moment, and then the others, as a launcher does; whether it
    came too late. Nothing that was answered may be lost, but for the scene that each process was at."""
    before = {key for key, record in on_disk(folder).items() if not record["error"]}
    begun = len(log(folder))
    started = start(folder, scenes, processes=processes, seconds=SECONDS)
    # while it starts up, or so many scenes on
    more = begun + chance.choice([0, 1, 2, 3])
    while len(log(folder)) < more and all(process.is_alive() for process in started):
        time.sleep(0.001)
    time.sleep(chance.random() * (SECONDS if more > begun else 1.5))
    for process in chance.sample(started, len(started)):
        process.kill()
        process.join()
        time.sleep(chance.random() * 0.05)
    if all(process.exitcode == 0 for process in started):
        return True
    now = on_disk(folder)
    assert before <= now.keys()
    rounds = log(folder)[begun:]
    for rank in {rank for rank, *_ in rounds}:
        for _, scene, questions in [each for each in rounds if each[0] == rank][:-1]:
            assert sum(record["scene"] == scene for record in now.values()) >= questions
    return False


@pytest.mark.parametrize(("processes", "kills"), [pytest.param([1], 8, marks=pytest.mark.slow), ([2, 3, 1], 3)])
def test_killed_at_random_moments_it_ends_in_the_same_files(
    processes: list[int], kills: int, scenes: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Whatever number of processes goes on. A test that is done begins anew, in a folder of its own."""
    chance, left, tests = random.Random(0), kills, 0
    while left:
        folder, killed, tests = tmp_path / str(tests), 0, tests + 1
        while not (folder / METRICS).exists():
            count = processes[left % len(processes)]
            if not left:
                finish(start(folder, scenes, processes=count))
            elif not kill(folder, scenes, count, chance):
                left, killed = left - 1, killed + count
        assert results(folder) == whole
        asked = Counter(scene for _, scene, _ in log(folder))
        assert len(asked) == len(QUESTIONS)
        asked.pop(f"tiny/scene{BROKEN}")  # what failed is tried again each time
        assert asked.total() - len(asked) <= killed  # a scene for each process that was killed


def test_answers_that_wait_for_the_end_are_seen_to_be_lost(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(JSONLines, "append", lambda *_: None)
    run(tmp_path / "whole", scenes)
    assert len(on_disk(tmp_path / "whole")) == sum(QUESTIONS)
    with pytest.raises(AssertionError):
        for seed in range(10):  # some are killed too early to tell
            kill(tmp_path / "killed", scenes, 1, random.Random(seed))


@pytest.mark.parametrize(("launcher", "processes"), [("SLURM", 2), pytest.param("torchrun", 3, marks=pytest.mark.slow)])
def test_any_number_of_processes_leaves_the_same_files(
    launcher: str, processes: int, scenes: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    finish(start(tmp_path, scenes, processes=processes, launcher=launcher))
    assert results(tmp_path) == whole
    begun = log(tmp_path)
    assert len({scene for _, scene, _ in begun}) == len(begun) == len(QUESTIONS)  # none twice, none lost
    loads = [sum(questions for rank, _, questions in begun if rank == str(one)) for one in range(processes)]
    assert sum(loads) == sum(QUESTIONS) and max(loads) - min(loads) <= 1


def test_a_second_test_in_one_folder_is_refused(scenes: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    started = start(tmp_path, scenes, seconds=SECONDS)
    while not log(tmp_path):
        time.sleep(0.001)
    with pytest.raises(InputError, match=f"another test is writing to {tmp_path}"):
        run(tmp_path, scenes)
    finish(started)
    assert results(tmp_path) == whole and len(log(tmp_path)) == len(QUESTIONS)
    run(tmp_path, scenes)  # nothing holds the folder any longer, and what is finished stays
    assert results(tmp_path) == results(tmp_path / "tests/repeat") == whole


# ---- what is asked again ------------------------------------------------------------------------------------
def test_what_is_answered_is_not_asked_again_and_what_failed_is(
    scenes: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(tmp_path, scenes, after=6)
    first = [scene for _, scene, _ in log(tmp_path)]
    assert first == [f"tiny/scene{i}" for i in range(6)]
    run(tmp_path, scenes)
    again = [scene for _, scene, _ in log(tmp_path)[6:]]
    assert again == [f"tiny/scene{i}" for i in (BROKEN, 6, 7, 8, 9)]
    assert results(tmp_path) == whole


@pytest.mark.slow
def test_cut_off_when_all_was_answered_it_asks_nothing(scenes: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """In two processes, with one scene for both, or none."""
    run(tmp_path, scenes)
    for left, processes in ((0, 2), (1, 2)):
        (tmp_path / METRICS).unlink()
        kept = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        kept = [record for record in kept if record["scene"] != "tiny/scene4" or not left]
        (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
        begun = len(log(tmp_path))
        finish(start(tmp_path, scenes, processes=processes))
        assert results(tmp_path) == whole
        asked = [scene for _, scene, _ in log(tmp_path)[begun:]]
        assert sorted(asked) == sorted([f"tiny/scene{BROKEN}"] + ["tiny/scene4"] * left)


@pytest.mark.parametrize(("limit", "processes"), [(0.5, 1), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_a_limit_counts_what_is_answered(limit: int | float, processes: int, scenes: Path, tmp_path: Path) -> None:
    """Lightning's limit is of batches: a resumed test must not take further scenes in place of the answered ones."""
    finish(start(tmp_path / "whole", scenes, processes=processes, limit=limit))
    tested = [json.loads(line)["scene"] for line in (tmp_path / "whole/predictions.jsonl").read_text().splitlines()]
    assert len(set(tested)) in (5, 6) and f"tiny/scene{BROKEN}" in tested
    folder = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / METRICS).unlink()
    answered, begun = set(list(dict.fromkeys(tested))[:2]), len(log(folder))
    kept = [record for record in on_disk(folder).values() if record["scene"] in answered]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    if processes > 1:  # each has so many scenes of its own share
        run(folder, scenes, limit=limit)
        assert not (folder / METRICS).exists() and (folder / "tests/repeat" / METRICS).exists()
    finish(start(folder, scenes, processes=processes, limit=limit))
    assert results(folder) == results(tmp_path / "whole")
    assert {scene for rank, scene, _ in log(folder)[begun:]} >= {*tested} - answered


# ---- another test ---------------------------------------------------------------------------------------------
class OtherWeights(Callback):
    def setup(self, trainer: Any, pl_module: Answers, stage: str) -> None:
        torch.nn.init.constant_(pl_module.weight, 2)


def test_another_test_leaves_the_interrupted_one_as_it_is(
    scenes: Path, whole: dict[str, bytes], tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    stopped_after(5, tmp_path)
    before = on_disk(tmp_path)
    others: dict[str, Callable[[], None]] = {
        "num_frames-4": lambda: finish(start(tmp_path, scenes, processes=2, num_frames=4)),  # both take one folder
        "limit_test_batches-7": lambda: run(tmp_path, scenes, limit=7),
        "repeat": lambda: run(tmp_path, scenes, OtherWeights()),
    }
    for name, other in others.items():
        other()
        assert (tmp_path / "tests" / name / METRICS).exists(), name
        assert on_disk(tmp_path) == before and not (tmp_path / METRICS).exists()
    assert {folder.name for folder in (tmp_path / "tests").iterdir()} == others.keys()
    begun = len(log(tmp_path))
    run(tmp_path, scenes)  # and with its own settings it goes on
    assert results(tmp_path) == whole and len(log(tmp_path)) == begun + 1 + len(QUESTIONS) - 5


def test_with_another_scorer_it_goes_on_and_what_is_answered_is_scored_anew(
    scenes: Path, tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    run(tmp_path / "whole", scenes, scorer="thinking_in_space")
    folder = tmp_path / "cut"
    stopped_after(5, folder)
    run(folder, scenes, scorer="thinking_in_space")
    assert results(folder) == results(tmp_path / "whole")
    assert len(log(folder)) == 5 + 1 + len(QUESTIONS) - 5


def test_other_files_of_a_scene_or_frames_chosen_anew_are_another_test(scenes: Path, tmp_path: Path) -> None:
    for scene in range(len(QUESTIONS)):
        write_selection(tmp_path / f"scene{scene}" / FILE, f"tiny/scene{scene}", [0, 1])
    own, folder, chosen = tmp_path / "scenes", tmp_path / "run", SelectedFrames(str(tmp_path))
    shutil.copytree(scenes, own)
    stopped(folder, own, after=5, sampler=chosen)
    selection, frame = tmp_path / "scene1" / FILE, own / "scene0/0.png"
    changes: dict[Path, Callable[[], Any]] = {
        selection: lambda: write_selection(selection, "tiny/scene1", [0, 0]),
        frame: lambda: Image.fromarray(np.full((28, 28, 3), 200, np.uint8)).save(frame),
    }
    for number, (file, change) in enumerate(changes.items()):
        before, status = file.read_bytes(), file.stat()
        change()
        run(folder, own, sampler=chosen)
        assert not (folder / METRICS).exists()
        assert len(on_disk(folder / "tests" / ("repeat", "repeat-2")[number])) == sum(QUESTIONS)
        file.write_bytes(before)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    begun = len(log(folder))
    run(folder, own, sampler=chosen)
    assert (folder / METRICS).exists() and len(log(folder)) == begun + 1 + len(QUESTIONS) - 5


# ---- files that a crash or a full disk leaves ---------------------------------------------------------------
@pytest.mark.parametrize("damage", ["half a letter", "no end of line", "zeros", "twice"])
def test_damaged_lines_cost_what_they_held(
    damage: str, scenes: Path, whole: dict[str, bytes], tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    stopped_after(3, tmp_path)
    path = tmp_path / "predictions.jsonl"
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    if damage == "twice":
        path.write_bytes(content + content[: last // 2] + content)
    elif damage == "zeros":
        path.write_bytes(content[:last] + bytes(len(content) - last))
    else:
        letter = content.index("\u2026".encode(), last) + 1
        path.write_bytes(content[: letter if damage == "half a letter" else -1])
    run(tmp_path, scenes)
    assert results(tmp_path) == whole
    again = [(scene, questions) for _, scene, questions in log(tmp_path)[3:6]]
    lost = [] if damage in ("twice", "no end of line") else [("tiny/scene2", 1)]
    assert again[: len(lost) + 1] == [*lost, (f"tiny/scene{BROKEN}", QUESTIONS[BROKEN])]


@pytest.mark.parametrize("size", [0, 9000, 20000])
def test_a_full_disk_loses_nothing_that_was_written(
    size: int, scenes: Path, whole: dict[str, bytes], tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    """No file can grow beyond `size` bytes: a write takes as much as fits, and the next one fails."""
    stopped_after(3, tmp_path)
    before = on_disk(tmp_path)
    first = log(tmp_path)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            run(tmp_path, scenes)
        except InputError as error:
            os._exit(2 if "File too large; its former content is kept" in str(error) else 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (2 if size < len(whole["predictions.jsonl"]) else 0)
    assert before.keys() <= on_disk(tmp_path).keys()
    run(tmp_path, scenes)
    assert results(tmp_path) == whole
    assert len(log(tmp_path)) <= len(first) + len(QUESTIONS) + 3
