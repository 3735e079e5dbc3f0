"""The commands of "Running experiments" run in their order, at the least size; of released models the tiny ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from glob import glob
from pathlib import Path

import pytest

import main

ROOT = Path(main.__file__).parent
TEXT = (ROOT / "docs/guide/running.md").read_text(encoding="utf-8").replace("\\\n", "")
COMMANDS = [line.strip() for line in re.findall(r"^    python main\.py .*$", TEXT, re.MULTILINE)]
NAMES = {  # of this page, for what a reader has of his own
    "runs/mine": "runs/mine-*",
    "runs/<supervised run>": "runs/mine-*",
    "scale_3b.yaml": "scale_tiny.yaml",
}
DATA = "--data.source.scenes [6,2,3] --data.num_frames 4"
MODEL = (
    "--model.backbone.layers 2 --model.backbone.hidden_size 64 --model.backbone.heads 2 "
    "--model.backbone.key_value_heads 1 --model.max_new_tokens 2"
)
SMALL = f"--trainer.max_steps 1 --trainer.limit_val_batches 0 --data.batch_size 2 {DATA} {MODEL}"
GEOMETRY = f"{DATA} --model.geometry TinyVGGT"
MORE = {  # the first that fits
    r"fit .*grpo": f"{SMALL} --model.algorithm.num_generations 2",
    r"fit .*--ckpt_path last": f"{SMALL} --trainer.max_steps 2 --data.question_types null",  # as the run before
    r"predict ": MODEL,
    r"report .*--verify": "--row PRoPEMLLM",
    r"fit --config prope.yaml$": f"{SMALL} --name mine",
    r"fit .*--print_config": "",
    r"fit .*--data.num_frames": SMALL.replace("--data.num_frames 4 ", ""),
    r"fit ": SMALL,
    r"select-frames ": DATA,
    r"cache-geometry ": GEOMETRY,
    r"cache-frames ": f"{DATA} --data.train_sampler null --data.keep_in_memory false",
    r"test .*(SceneFolder|Conversations)": "--data.num_frames 4",
    r"study .*--verify": "--settings GTA",  # which has no result to verify
    r"study ": "--dry_run",
    r"probe ": "--scenes 2 --split train",
}
DOORS = """
from zoo.benchmarks import OwnQuestions

class Doors(OwnQuestions):
    def __init__(self):
        super().__init__(types={"door_width": "number"})
"""


def made_small(command: str) -> str:
    """The command with the names and sizes of this test."""
    words = command.partition(" #")[0].strip()
    if "OwnQuestions(" in words:
        words = words.replace("predictions.jsonl", "own.jsonl")
    for name, own in NAMES.items():
        words = words.replace(name, own)
    return words + " " + next((more for place, more in MORE.items() if re.search(f"main.py {place}", words)), "")


def write_files(folder: Path, rooms_root: Path) -> None:
    """What the page takes as given: a clip, answers, published numbers, questions and a benchmark of one's own."""
    (rooms,) = {path.parent.parent for path in rooms_root.glob("*/rooms/test_*.mp4")}
    (folder / "data/mine/homes").mkdir(parents=True)
    for suffix in (".mp4", ".cameras.json"):
        for name in ("clip", "data/mine/homes/kitchen"):
            shutil.copy(rooms / f"rooms/test_00000{suffix}", folder / f"{name}{suffix}")
    for name in ("studies", "docs"):  # a study may write into them
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "README.md", folder)
    answer = {"id": 1, "question_type": "room_size_estimation", "prediction": "20", "ground_truth": "21"}
    own = [{**answer, "id": 2, "question_type": "door_width"}, {**answer, "id": 3, "question_type": "color"}]
    (folder / "predictions.jsonl").write_text(json.dumps(answer) + "\n")
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in own))
    (folder / "published.json").write_text(json.dumps({"mine": {"rows": {"PRoPEMLLM": {"micro": {"all": 50.0}}}}}))
    question = {"id": 1, "dataset": "homes", "scene_name": "kitchen", "question_type": "door_width"}
    question |= {"question": "How wide is the door?", "ground_truth": "0.9", "options": None}
    (folder / "data/mine/test.jsonl").write_text(json.dumps(question) + "\n")
    turns = [{"from": "human", "value": "<video>\nHow wide is the door?"}, {"from": "gpt", "value": "0.9"}]
    row = {"video": "clip.mp4", "question_type": "door_width", "conversations": turns}
    (folder / "asked.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "my_benchmark.py").write_text(DOORS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_commands_run_in_their_order(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(tmp_path, rooms_root)
    failed = []
    for command in COMMANDS:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        words = [found for word in shlex.split(made_small(command)) for found in (glob(word) or [word])]
        print("$", *words)
        monkeypatch.setattr(sys, "argv", words[1:])
        try:
            main.main()
        except SystemExit as end:  # 1 of a report: the score is not the published one
            failed += [f"{command}\n    {end}"] if isinstance(end.code, str) else []
    assert len(COMMANDS) > 30 and not failed, "\n".join(failed)
