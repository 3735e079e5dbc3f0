"""An evaluation in which the first scenes all fail alike stops; a fault of a scene, even of the first, does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import main
from zoo.errors import InputError
from zoo.tasks.video_qa import FirstScenes

DEVICE = "Expected all tensors to be on the same device"


def records(scene: str, *errors: str | None) -> list[dict[str, Any]]:
    return [{"scene": scene, "error": error} for error in errors]


def test_three_alike_stop() -> None:
    watched, fault = FirstScenes(), RuntimeError(DEVICE)
    for scene in "ab":
        watched.check(records(scene, DEVICE, DEVICE), fault)
    with pytest.raises(RuntimeError, match=f"first 3 scenes.*{DEVICE}") as stopped:
        watched.check(records("c", DEVICE), fault)
    assert stopped.value.__cause__ is fault and not isinstance(stopped.value, InputError)


def test_errors_of_the_answers_and_of_the_input_stop_with_one_line() -> None:
    watched = FirstScenes()
    for n, scene in enumerate("ab"):  # numbers differ
        watched.check(records(scene, f"the logits of token {n} of the answer are not finite"), None)
    with pytest.raises(InputError, match="not finite"):
        watched.check(records("c", "the logits of token 7 of the answer are not finite"), None)


@pytest.mark.parametrize(
    "scenes",
    [
        [("a", DEVICE), ("b", None), ("c", DEVICE), ("d", DEVICE), ("e", DEVICE)],  # one was answered
        [("a", DEVICE), ("b", DEVICE), ("c", "no memory")],  # not alike
        [("a", DEVICE), ("a", DEVICE), ("a", DEVICE), ("b", None)],  # one scene, in three batches
        [("a", DEVICE), ("b", DEVICE)],  # only two
    ],
)
def test_other_faults_are_recorded_alone(scenes: list[tuple[str, str | None]]) -> None:
    watched = FirstScenes()
    for scene, error in scenes:
        watched.check(records(scene, error), RuntimeError(DEVICE))


def test_an_answer_to_one_question_of_a_scene_is_an_answer() -> None:
    watched = FirstScenes()
    watched.check(records("a", DEVICE, None), None)
    for scene in "bcd":
        watched.check(records(scene, DEVICE), None)


BROKEN = f"""
from zoo import PRoPE


class Broken(PRoPE):
    seen = 0

    def encode(self, *args, **kwargs):
        Broken.seen += 1
        if Broken.seen > FAILING:
            return super().encode(*args, **kwargs)
        raise RuntimeError("{DEVICE}")
"""


def words_of(rooms_root: Path, folder: Path, processes: int) -> list[str]:
    """Of a test of three scenes."""
    return [
        *("test", "--config", "prope.yaml", "--model.allow_untrained", "true", "--trainer.accelerator", "cpu"),
        *("--model.camera_encoding", "broken.Broken", "--data.source.scenes", "[6,2,3]", "--data.num_frames", "4"),
        *("--data.source.root", str(rooms_root), "--data.batch_size", "1", "--data.question_types", "null"),
        *("--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"),
        *("--model.backbone.layers", "2", "--model.backbone.hidden_size", "64", "--model.backbone.heads", "2"),
        *("--model.backbone.key_value_heads", "1", "--trainer.default_root_dir", str(folder)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_main_stops(processes: int, tmp_path: Path, rooms_root: Path) -> None:
    """One process sees all scenes, two see too few each, and stop at the end."""
    (tmp_path / "broken.py").write_text(BROKEN.replace("FAILING", str(10**6)))
    repository = Path(main.__file__).parent
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"}
    environment |= {"OMP_NUM_THREADS": "1"}  # broken.py is found in the current folder
    command = [sys.executable, str(repository / "main.py"), *words_of(rooms_root, tmp_path / "run", processes)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode != 0 and not (tmp_path / "run/metrics.json").exists()
    assert DEVICE in done.stderr and ("failed alike" in done.stderr or "all" in done.stderr)


def test_main_goes_on(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tries of the first scene fail."""
    (tmp_path / "broken.py").write_text(BROKEN.replace("FAILING", "2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", *words_of(rooms_root, tmp_path / "run", 1)])
    main.main()
    assert (tmp_path / "run/metrics.json").exists()
    lines = map(json.loads, (tmp_path / "run/predictions.jsonl").read_text().splitlines())
    errors = {line["error"] for line in lines} - {None}
    assert len(errors) == 1 and re.fullmatch(rf"RuntimeError: {DEVICE} \({tmp_path}/broken.py:\d+\)", errors.pop())
