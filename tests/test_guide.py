"""The commands of the guide run in their order, at the least size, of released models tiny ones; or are understood."""

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
from commands.plan import parsed
from zoo.errors import InputError

ROOT = Path(main.__file__).parent
TEXTS = {
    page: (ROOT / f"docs/guide/{page}.md").read_text(encoding="utf-8").replace("\\\n", "")
    for page in ("running", "models", "full_size", "published_models")
}
COMMANDS = {
    page: [line.strip() for line in re.findall(r"^    (?:python main\.py|sbatch) .*$", text, re.MULTILINE)]
    for page, text in TEXTS.items()
}
NAMES = {  # of this page, for what a reader has of his own
    "runs/mine-<time>": "runs/mine-*",
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
FEW_PANELS = '{"class_path": "PanelRooms", "init_args": {"task": "PanelOrder", "scenes": [4, 2, 2]}}'
PARTS = f"--data.source.parts '[{{\"source\": {FEW_PANELS}}}]'"
OF_FEW_PANELS = f"--data.num_frames 4 {PARTS} --data.source.evaluation '{FEW_PANELS}'"
MORE = {  # the first that fits
    r"fit .*data_panels_images": SMALL.replace("--trainer.limit_val_batches 0 ", "").replace(DATA, OF_FEW_PANELS),
    r"fit .*SceneFolder": SMALL.replace(DATA, "--data.num_frames 4") + " --model.geometry TinyVGGT",
    r"cache-geometry .*SceneFolder": "--data.num_frames 4 --data.train_sampler null --model.geometry TinyVGGT",
    r"fit .*grpo": f"{SMALL} --model.algorithm.num_generations 2",
    r"fit .*--ckpt_path last": f"{SMALL} --trainer.max_steps 2 --data.question_types null",  # as the run before
    r"predict ": MODEL,
    r"report .*--verify": "--row PRoPEMLLM",
    r"fit --config prope.yaml$": f"{SMALL} --name mine",
    r"fit .*geometry_tiny": f"{DATA} --trainer.max_steps 1 --trainer.limit_val_batches 0",
    r"fit .*geometry_cache": f"{SMALL} --model.geometry TinyVGGT --data.keep_in_memory false",
    r"fit .*--print_config": "",
    r"fit .*--data.num_frames": SMALL.replace("--data.num_frames 4 ", ""),
    r"fit ": SMALL,
    r"select-frames ": DATA,
    r"cache-geometry .*--split train": f"{GEOMETRY} --data.train_sampler null",  # as every full scale
    r"cache-geometry ": GEOMETRY,
    r"cache-frames ": f"{DATA} --data.train_sampler null --data.keep_in_memory false",
    r"test .*(SceneFolder|Conversations)": "--data.num_frames 4",
    r"study ": "--dry_run",
    r"probe ": "--scenes 2 --split train",
}
HYBRID = "--config prope.yaml --config scale_tiny_qwen3_5.yaml {}"
FULL = "--config spatial_mllm.yaml --config scale_3b.yaml"
AROUND = {  # what the text around options names: the first that fits
    r"--config (?!scale|strategy|recipe)": "{}",
    r"deepstack": "--config spatial_mllm.yaml --config scale_tiny_qwen3.yaml {}",
    r"UnrotatedChannels": HYBRID,
    r"DeltaNetLayers": f"{HYBRID} --model.camera_encoding.encoding.apply_to vo",
    r"PretrainedDA3": "--config spatial_mllm.yaml --model.geometry TinyDA3",  # released sizes are in a file
    r"scale_from": f"{FULL} --model PRoPEMLLM --model.camera_source predicted {{}}",
    r"camera_encoding.count": "--config prope.yaml --config scale_3b.yaml --model.camera_encoding PoseAxis {}",
    r"fusion.mode": f"{FULL} --model.fusion CameraTokenFusion {{}}",
    r"geometry.layers|CameraTokenFusion|vggt-1b": f"{FULL} {{}}",
    r"camera_source": "--config prope.yaml --config scale_3b.yaml {}",
    r"PosedScenes": "--config prope.yaml {} --data.source.root raw --data.source.poses ScanNet",
    r"fusion.axis": "--config concat_split.yaml {}",
    r"fusion|geometry": "--config spatial_mllm.yaml {}",
    r"teacher|train_frame_pairing": "--config geovr_tiny.yaml {}",
    r"frame_cache": "--config prope.yaml {} --data.keep_in_memory false",
    r"": "--config prope.yaml {}",
}
DOORS = """
from zoo.benchmarks import OwnQuestions

class Doors(OwnQuestions):
    def __init__(self):
        super().__init__(types={"door_width": "number"})
"""


def expanded(words: str, page: str) -> str:
    """The words with the shell variables that the page sets."""
    for name, meaning in re.findall(r'(\w+)="([^"]*)"', TEXTS[page]):
        words = words.replace(f"${name}", meaning)
    return words


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
    (folder / "data/mine/train.jsonl").write_text(json.dumps(question | {"question_type": "object_counting"}) + "\n")
    turns = [{"from": "human", "value": "<video>\nHow wide is the door?"}, {"from": "gpt", "value": "0.9"}]
    row = {"video": "clip.mp4", "question_type": "door_width", "conversations": turns}
    (folder / "asked.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "my_benchmark.py").write_text(DOORS)


def options_of(page: str) -> list[str]:
    """Commands of training and tests, and options in the text of a page, each with what the text names around it."""
    text = TEXTS[page]
    blocks = [re.sub(r"^sbatch .*\.sbatch", "fit", command.partition(" #")[0]) for command in COMMANDS[page]]
    spans = [
        " ".join(span.split()) for span in re.findall("`([^`]+)`", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
    ]
    found = []
    for words in blocks + spans:
        words = words.removeprefix("python main.py ").replace(" --config ...", "").replace(" ...", "")
        words = expanded(words, page)
        is_option = re.match(r"(fit|test|--(model|data)[\w.]+|--config) \S", words)
        if not is_option or re.match(r"test --config protocol_\w+\.yaml$", words) or "runs/mine" in words:
            continue  # the latter two need a trained run
        command, options = words.split(" ", 1) if words[0] != "-" else ("fit", words)
        around = next(around for part, around in AROUND.items() if re.search(part, options))
        found.append(f"{command} {around.format(options)}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "count"), [("models", 35), ("full_size", 12), ("published_models", 0)])
def test_its_options_are_understood(
    page: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """By the parser, and by the model and the DataModule, which are built without memory."""
    monkeypatch.chdir(tmp_path)
    failed = []
    for command in dict.fromkeys(options_of(page)):
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", ["main.py", *words, "--print_config"])
        with pytest.raises(SystemExit) as end:
            main.main()
        failed += [f"{command}\n    {end.value}"] if end.value.code else []
        if "data/mine" in command and "datamodules.SceneFolder" not in capsys.readouterr().out:
            failed.append(f"{command}\n    data/mine would be the cache of rendered rooms")
        if "geometry_tiny" in command:
            continue  # which learns from no questions
        hub = shlex.split(re.sub(r"--model\.\w+\.path weights/\S+", "", command))  # whose sizes are known
        try:
            parsed(tuple(hub[1:]))
        except InputError as error:
            failed.append(f"{command}\n    {error}")
    assert len(set(options_of(page))) > count and not failed, "\n".join(failed)


@pytest.mark.slow
def test_the_studies_at_full_size_are_listed_and_have_files_for_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    printed = []
    for command in (each.partition(" #")[0] for each in COMMANDS["full_size"] if " study " in each):
        few = ["--settings", "Qwen2.5-VL as released"] if "--print_scripts" in command else ["--dry_run"]
        monkeypatch.setattr(sys, "argv", [*shlex.split(command)[1:], *few])
        main.main()
        printed.append(capsys.readouterr().out)
    assert [len(re.findall("main.py fit", each)) for each in printed] == [3, 3, 0]
    assert len(list(tmp_path.glob("runs/studies/seed_question/scripts/*.sbatch"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("page", "count"), [("running", 30), ("models", 3)])
def test_its_commands_run_in_their_order(
    page: str, count: int, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(tmp_path, rooms_root)
    failed = []
    for command in COMMANDS[page]:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        given = shlex.split(made_small(expanded(command, page)))
        words = [found for word in given for found in (glob(word) or [word])]
        print("$", *words)
        monkeypatch.setattr(sys, "argv", words[1:])
        try:
            main.main()
        except SystemExit as end:  # 1 of a report: the score is not the published one
            failed += [f"{command}\n    {end}"] if isinstance(end.code, str) else []
    assert len(COMMANDS[page]) > count and not failed, "\n".join(failed)
