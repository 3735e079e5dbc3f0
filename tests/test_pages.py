"""The commands of README.md, docs/, recipes/ and the notebook: they run at the least size, or their options exist.

The tests read code blocks and know nothing of the text. Files that a command names and a reader would have of his own
(a clip, answers, questions, a benchmark) are made by the role of the option that names them.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from textwrap import dedent, indent
from typing import Any
from zipfile import ZipFile

import lightning
import pytest
import torch
import yaml
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers
from safetensors.torch import load_file
from torch import nn

import callbacks
import datamodules
import main
import zoo
import zoo.benchmarks
from commands.cli import check_options
from commands.main import LIGHTNING
from commands.studies.protocols import protocol_study
from tests.cli import Run
from tests.datamodules.clips import numbered_frame, write_video
from zoo import AddFusion, InputError, PretrainedQwen25VL, SpatialVLM, TinyQwen25VL, TinyVGGT
from zoo.backbones.base import find_loader
from zoo.checkpoints import export_model, unofficial_parts
from zoo.configuration import flatten
from zoo.encodings import CameraEncoding

ROOT = Path(main.__file__).parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").glob("*.md"))]
IN_ORDER = [ROOT / "docs/guide/running.md", ROOT / "docs/guide/models.md"]
MADE = {"tests/repeat/", "zoo/published/half_vlm.py"}  # paths that a run or the reader of a tutorial makes
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
FENCED = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands of this project in the code blocks and tables of a page, with the page's shell variables."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    text = FENCED.sub(lambda block: indent(block[2], "    ") if block[1] in ("sh", "bash", "") else "", text)
    lines = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    rows = re.findall(r"^\|.*$", text, re.MULTILINE)
    lines += [cell for row in rows for cell in re.findall(r"`((?:\$[A-Z]+|python main\.py) [^`]*)`", row)]
    for name, meaning in re.findall(r'^ {4}(\w+)="([^"]*)"', text, re.MULTILINE):
        lines = [re.sub(rf"\${name}\b", lambda _, meaning=meaning: meaning, line) for line in lines]
    lines = [re.sub(r"^sbatch \S+\.sbatch", "python main.py fit", line) for line in lines]
    return [line.removeprefix("python main.py ") for line in lines if line.startswith("python main.py ")]


# ---- Options and links


def names_of_options() -> set[str]:
    """The names of all options of public classes."""
    packages = (zoo, datamodules, callbacks)
    parts = [getattr(package, name) for package in packages for name in package.__all__]
    parts += vars(zoo.benchmarks).values()
    parts += [lightning.Trainer, *map(vars(lightning_callbacks).get, lightning_callbacks.__all__)]
    parts += [getattr(loggers, name) for name in loggers.__all__]
    signatures = [inspect.signature(part) for part in parts if isinstance(part, type)]
    return {"class_path", "init_args", "help"} | {name for each in signatures for name in each.parameters}


@cache
def names_of_tests() -> set[str]:
    """The names of all tests."""
    return {name for file in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_options_are_named_as_they_are(page: Path) -> None:
    text, known = page.read_text(encoding="utf-8"), names_of_options()
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
    options = re.findall(r"--(?:model|data|trainer)\.([a-z_.]*[a-z_])", text)
    assert [option for option in options if not {*option.split(".")} <= known] == []
    assert [test for test in re.findall(r"`(test_\w+)`", text) if test not in names_of_tests()] == []
    paths = re.findall(r"`((?:zoo|datamodules|callbacks|commands|configs|tests|docs|studies|recipes)/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists() and path not in MADE] == []
    assert not {"num_frmes"} <= known and {"num_frames", "camera_encoding", "max_steps"} <= known  # the control


def test_the_page_of_files_shows_the_docstrings_that_describe_them() -> None:
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    described = re.findall(r"^From the docstring of \[(.*?)\]", text, re.MULTILINE)
    assert len(described) == 7
    for file in described:
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        assert f"[{file}](../../{file}):\n\n{docstring}\n" in text, f"docs/reference/files.md: {file} says\n{docstring}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_options_of_every_command_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and tests are parsed. To others an option without a meaning is given, as the only error."""
    monkeypatch.chdir(tmp_path)
    pages = [page for page in PAGES if page not in IN_ORDER and page.parent.name != "tutorials"]  # these are run below
    found = {command for page in pages for command in commands(page) if not re.search(r"[<>]|\.\.\.", command)}
    failed = []
    for command in sorted(found):
        words = shlex.split(re.sub(r"--[\w.]+ runs/\S+", "", command), comments=True)  # a run that a reader has
        if words[0] in LIGHTNING and not re.search(r"--config (?!protocol)", command):
            words[1:1] = ["--config", "prope.yaml"]  # in place of the newest run
        error: Any = 0
        try:
            if words[0] in LIGHTNING:
                check_options(words[0], {"": [word for word in words[1:] if word != "--print_config"]})
            else:
                monkeypatch.setattr(sys, "argv", ["main.py", *words, "--no_such_option", "1"])
                main.main()
        except (InputError, SystemExit) as end:
            error = end
        # a reader has his own clips and modules; doctor counts the option as its problem
        own = "no_such_option|1 problem: see above|no such video|can't be imported: there is no"
        if error and not re.search(own, str(error)):
            failed.append(f"{command}\n    {error}")
    assert len(found) > 20 and not failed, "\n".join(failed)


# ---- The guide, in the order of its commands


SIZES = {  # of a training, where it has these options
    **{"trainer.max_steps": "1", "trainer.limit_val_batches": "0", "data.batch_size": "2", "data.num_frames": "4"},
    **{"data.source.scenes": "[6,2,3]", "model.max_new_tokens": "2", "model.algorithm.num_generations": "2"},
    **{"model.backbone.layers": "2", "model.backbone.hidden_size": "64", "model.backbone.heads": "2"},
    "model.backbone.key_value_heads": "1",
}
MORE = {
    "study": ["--dry_run"],
    "probe": ["--scenes", "2", "--split", "train"],
    "measure-responses": ["--scenes", "1"],
    "cache-frames": ["--data.keep_in_memory", "false"],
}
OWN_BENCHMARK = """
from zoo.benchmarks import OwnQuestions

class {}(OwnQuestions):
    def __init__(self):
        super().__init__(types={{"width": "number"}})
"""


class Reader:
    """Someone who follows a page in an empty folder: has the files that it takes as given, and runs its commands."""

    def __init__(self, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        (self.room,) = rooms_root.glob("*/rooms/test_00000.mp4")
        self.patch, self.capsys = monkeypatch, capsys
        for name in ("studies", "docs", "README.md"):  # a study may write into them
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, name)

    def call(self, *words: str) -> str:
        self.patch.delenv("ZOO_RUN", raising=False)
        self.patch.setattr(sys, "argv", ["main.py", *words])
        main.main()
        return self.capsys.readouterr().out

    def clip(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", ".cameras.json"):
            target = path if not suffix else path.with_name(f"{path.stem}{suffix}")
            shutil.copy(self.room if not suffix else self.room.with_suffix(suffix), target)

    def make_files(self, words: list[str]) -> None:
        """Make what the command reads and this reader does not have yet."""
        given = dict(zip(words, words[1:], strict=False))
        types = re.findall(r"(\w+)[:=]", given.get("--data.source.benchmark.types", given.get("--benchmark", "")))
        kind = (types or ["room_size_estimation"])[0]
        own = re.fullmatch(r"(\w+)\.(\w+)", given.get("--data.source.benchmark", ""))
        if own and own[1] not in ("zoo", "datamodules"):
            Path(f"{own[1]}.py").write_text(OWN_BENCHMARK.format(own[2]))
            kind = "width"
        if (video := Path(given.get("--data.video", "absent.txt"))).suffix == ".mp4" and not video.exists():
            self.clip(video)
        if words[0] == "study" and not Path(words[1]).exists():  # as another command has written it
            protocols = [f"protocol_{name}.yaml" for name in ("spatial_mllm", "lmms_eval")]
            Path(words[1]).write_text(yaml.safe_dump(protocol_study(*protocols, {"configs": ["qwen25_vl.yaml"]})))
        if words[0] == "score":
            rows = [{"id": n, "question_type": kind, "prediction": "20", "ground_truth": "21"} for n in (1, 2)]
            write_lines(Path(words[1]), rows)
        if "--verify" in given:
            rows = {"PRoPEMLLM": {"micro": {"all": 50.0}}}
            Path(given["--verify"]).write_text(json.dumps({"mine": {"rows": rows}}))
        if (root := given.get("--data.source.root")) and given.get("--data.source") == "SceneFolder":
            self.clip(Path(root, "homes/kitchen.mp4"))
            question = {"id": 1, "dataset": "homes", "scene_name": "kitchen", "question_type": kind}
            for split in ("train", "test"):
                row = {**question, "question": "How wide is the door?", "ground_truth": "0.9", "options": None}
                row["question_type"] = kind if split == "test" else "object_counting"
                write_lines(Path(root, f"{split}.jsonl"), [row])
        if path := given.get("--data.source.path"):
            self.clip(Path("clip.mp4"))
            turns = [{"from": "human", "value": "<video>\nHow wide is it?"}, {"from": "gpt", "value": "0.9"}]
            write_lines(Path(path), [{"video": "clip.mp4", "question_type": kind, "conversations": turns}])

    def sizes(self, words: list[str]) -> list[str]:
        """Options that make a training as small as it gets; none if it is still large, and is only understood then."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit):
            self.call(*words, "--print_config")
        config = flatten(yaml.safe_load(self.capsys.readouterr().out))
        lists = [value for name, value in config.items() if name.endswith(".scenes") and name not in SIZES]
        if any(isinstance(value, list) and max(value) > 10 for value in lists):
            return []  # the scenes of a list of sources
        is_tiny = "Tiny" in config.get("model.backbone.class_path", "")
        own = {name for name in SIZES if name in config and (is_tiny or not name.startswith("model.backbone."))}
        return [word for name in SIZES if name in own for word in (f"--{name}", SIZES[name])]

    def follow(self, command: str) -> None:
        words = shlex.split(command, comments=True)
        start = "--model.initial_weights"  # of a model that this reader has not trained
        if start in words and not Path(words[words.index(start) + 1]).exists():
            for option in (start, "--model.initial_parts"):
                if option in words:
                    del words[words.index(option) : words.index(option) + 2]
        newest = max(Path("runs").glob("*/checkpoints"), key=lambda path: path.stat().st_mtime, default=Path("."))
        words = [re.sub(r"runs/[^/ ]*<[^>]+>", str(newest.parent), word) for word in words]
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        is_full = any(re.match(r"scale_(?!tiny)", word) for word in words)
        if words[0] != "plan" and is_full:  # the scale of released weights, of which a tiny one is run
            words = [re.sub(r"scale_(?!tiny)\w+\.yaml", "scale_tiny.yaml", word) for word in words]
            words += [] if "--model.geometry" in words else ["--model.geometry", "TinyVGGT"]
            words += [] if "--data.train_sampler" in words else ["--data.train_sampler", "null"]
        self.make_files(words)
        words += MORE.get(words[0], [])
        words += ["--row", "PRoPEMLLM"] if "--verify" in words else []
        if words[0] in ("select-frames", "cache-geometry", "cache-frames"):
            words += [
                "--data.num_frames",
                "4",
                *([] if "--data.source" in words else ["--data.source.scenes", "[6,2,3]"]),
            ]
        if words[0] == "fit" and words[-2:] == ["--ckpt_path", "last"]:  # of the newest run, whatever its options were
            words = ["fit", "--config", f"{newest.parent}/config.yaml", *words[-2:], "--trainer.max_steps", "2"]
        elif words[0] == "fit" and "--print_config" not in words:
            sizes = self.sizes(words)
            words += sizes or ["--print_config"]
        print("$", *words)
        try:
            self.call(*words)
        except SystemExit as end:  # 1 of a report: the score is not the published one
            if isinstance(end.code, str):
                raise


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", IN_ORDER, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reader, failed = Reader(rooms_root, monkeypatch, capsys), []
    for command in commands(page):
        try:
            reader.follow(command)
        except SystemExit as end:
            failed.append(f"{command}\n    {end}")
    assert len(commands(page)) > 2 and not failed, "\n".join(failed)


# ---- The README and the notebook

SMALL = "--trainer.max_steps 2 --trainer.limit_val_batches 0 --data.source.scenes [6,2,3] --data.num_frames 4"


def run_code(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_readme_runs_in_a_fresh_clone(tmp_path: Path) -> None:
    """Its shell and Python blocks in their order; the demo as it is, and other trainings with fewer steps and rooms.

    The name of the folder has what breaks a command that isn't quoted, and a letter that is also in many messages.
    """
    clone = tmp_path / "ü b'c d" / "zoo"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv/bin").mkdir(parents=True)
    for name in ("bin/python", "bin/activate", "pyvenv.cfg", "lib"):  # this environment in place of a new one
        (clone / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (clone / ".venv/installed").touch()
    blocks = FENCED.findall(README.read_text(encoding="utf-8"))
    for language, text in blocks:
        block = text.replace("main.py fit", f"main.py fit {SMALL}")
        if language == "sh":
            run_code(["bash", "-euc", f"source .venv/bin/activate\n{block}"], clone)
        elif language == "python":
            run_code([sys.executable, "-c", block], clone)
    assert {"sh", "python"} == {language for language, _ in blocks}
    (metrics,) = clone.glob("runs/demo/runs/PRoPE-0/tests/own/metrics.json")
    assert json.loads(metrics.read_text())["per_question_type"]["panel_turn"]["score"] > 0.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_model_of_the_notebook_owes_its_answers_to_the_cameras(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "quickstart.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", encoding="utf-8")
    printed = run_code([sys.executable, str(tmp_path / "quickstart.py")], ROOT)
    own, others = map(float, re.findall(r"MRA ([\d.]+), with the cameras of another room ([\d.]+)", printed)[0])
    assert own > others + 0.1


@pytest.mark.slow
def test_the_lines_about_the_inside_of_a_model_run(run: Run, tmp_path: Path) -> None:
    page = ROOT / "docs/tutorials/inside_a_model.md"
    run("fit", "--config", "prope.yaml")
    blocks = [text for language, text in FENCED.findall(page.read_text(encoding="utf-8")) if language == "python"]
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(blocks)
    printed = run_code([sys.executable, "-c", code], tmp_path)
    assert len(blocks) == 5 and "without_camera" in printed and "rooms/test_00000" in printed


# ---- From a clone to a row of the results

RELEASED, STOCK = "Spatial-MLLM-v1.1-Instruct-135K", "Qwen2.5-VL-3B-Instruct"
HUB = {"arkitscenes": ("41069025", "41126485"), "scannet": ("scene0025_01",), "scannetpp": ("0f25f24a4f",)}
SIZE_QUESTION = {"question_type": "room_size_estimation", "question": "How large is it?", "ground_truth": "20"}
CHOICE = {"question_type": "route_planning", "question": "Where?", "ground_truth": "A", "options": ["A. L", "B. R"]}


def make_hub(hub: Path) -> tuple[int, int]:
    """Make what the page downloads: tiny random weights, and a small VSI-Bench. Return its questions, and its sizes."""
    qwen = partial(TinyQwen25VL, layers=2, hidden_size=64, heads=2)
    vggt = partial(TinyVGGT, embed_dim=32, num_heads=2)
    export_model(SpatialVLM(qwen(), geometry=vggt, fusion=AddFusion), hub / f"Diankun/{RELEASED}")
    export_model(SpatialVLM(qwen()), hub / f"Qwen/{STOCK}")
    bench, rows = hub / "nyu-visionx/VSI-Bench", []
    bench.mkdir(parents=True)
    for dataset, scenes in HUB.items():
        with ZipFile(bench / f"{dataset}.zip", "w") as archive:
            for scene in scenes:
                write_video(hub / "clip.mp4", [numbered_frame(i, 48, 64) for i in range(20)])
                archive.write(hub / "clip.mp4", f"{dataset}/{scene}.mp4")
                asked = [SIZE_QUESTION, CHOICE] * 3
                rows += [{"options": None, **row, "dataset": dataset, "scene_name": scene} for row in asked]
    write_lines(bench / "test.jsonl", [{"id": number, **row} for number, row in enumerate(rows)])
    return len(rows), 3 * len(HUB["arkitscenes"])


def make_programs(folder: Path, hub: Path, of_all: int, of_sizes: int) -> None:
    """The programs that the page calls: a hub, a scheduler and an installer that need no network."""
    counts = f"s/| 5130 |/| {of_all} |/; s/| 150 |/| {of_sizes} |/"
    jobs = "SLURM_JOB_NAME=test SLURM_JOB_ID=17 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS_PER_NODE=1 SLURM_CPUS_PER_TASK=2"
    programs = {
        "git": f'/usr/bin/env PATH="$OLD_PATH" git "$@" --quiet && sed -i "{counts}" zoo/docs/results.md',
        "make": "mkdir -p .venv/bin && touch .venv/bin/activate",
        "hf": f'cp -r "{hub}/$2" placed && mkdir -p "$(dirname "${{@: -1}}")" && mv placed "${{@: -1}}"',
        "python": f'exec {sys.executable} "$@"',
        "sbatch": f'{jobs} bash "$@"',
        "srun": '"$@"',
    }
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/bash\nset -e\n{does}\n")
        (folder / name).chmod(0o755)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_row_is_filled_in_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page, as a reader runs it, with tiny weights and few questions for the downloads."""
    of_all, of_sizes = make_hub(tmp_path / "hub")
    (tmp_path / "bin").mkdir()
    make_programs(tmp_path / "bin", tmp_path / "hub", of_all, of_sizes)
    monkeypatch.setenv("OLD_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("ZOO_URL", str(ROOT))
    monkeypatch.delenv("ZOO_RUN", raising=False)
    text = (ROOT / "docs/tutorials/first_row.md").read_text(encoding="utf-8")
    script = "\n".join(dedent(block) for language, block in FENCED.findall(text) if language == "sh")
    run_code(["bash", "-euc", script], tmp_path)
    runs = {file.parent.name: json.loads(file.read_text()) for file in (tmp_path / "zoo/runs").glob("*/metrics.json")}
    assert {name: record["counts"]["questions"] for name, record in runs.items()} == {
        **{"smoke": 20, "rooms": of_sizes, "rooms-qwen": of_sizes, "rooms-2d": of_sizes, "rooms-3d": of_sizes},
        **{"all": of_all, "test-17": of_all},
    }
    page = (tmp_path / "zoo/docs/results.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip().strip("`") for cell in line.split("|")] for line in page if line.count("|") == 10]
    filled = {(row[2], row[4]) for row in cells if re.fullmatch(r"[\d.]+ / [\d.]+", row[8])}
    assert filled == {(RELEASED, str(of_all)), (RELEASED, str(of_sizes)), (STOCK, str(of_sizes))}


# ---- The tutorials

TINY = "--trainer.max_steps 1 --data.source.scenes [6,2,3] --data.num_frames 4 --data.batch_size 2"


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Writes the files of a tutorial into an empty folder, whose modules Python finds; returns its commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(name: str) -> list[str]:
        page = ROOT / f"docs/tutorials/{name}.md"
        titled = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
        for file, content in titled:
            Path(file).write_text(content, encoding="utf-8")
        return commands(page)

    return call


def run_main(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_RUN", raising=False)
    monkeypatch.setattr(sys, "argv", ["main.py", *shlex.split(command, comments=True)])
    main.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["add_an_encoding", "add_a_geometry_encoder", "add_a_sampler", "add_a_fusion", "add_a_published_model"]
)
def test_a_part_of_ones_own_trains_and_is_tested(
    page: str, follow: Callable[[str], list[str]], rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the commands of the encoding's page is `check-encoding`, which measures that its symmetries hold."""
    found = follow(page)
    assert {"fit", "test"} <= {words.split()[0] for words in found}
    assert ("check-encoding" in {words.split()[0] for words in found}) == (page == "add_an_encoding")
    for words in found:
        words = words.partition(" #")[0]
        rooms = f"--data.source.root {rooms_root}"
        small = {"fit": f"{TINY} {rooms}", "select-frames": f"--data.source.scenes [6,2,3] {rooms}"}
        run_main(f"{words} {small.get(words.split()[0], '')}", monkeypatch)
    assert len(list(Path().glob("runs/*/**/metrics.json"))) == sum(words.startswith("test") for words in found)


def test_a_published_model_of_ones_own_is_loaded_and_exported(follow: Callable[[str], list[str]]) -> None:
    """As its folder is, bit for bit. The control: without the tutorial's file no class reads the folder's settings."""
    follow("add_a_published_model")
    half_vlm = import_module("half_vlm")
    parts = {"geometry": partial(TinyVGGT, embed_dim=32, num_heads=2), "fusion": half_vlm.HalfFusion}
    made = SpatialVLM(TinyQwen25VL(layers=2, hidden_size=64, heads=2), **parts)
    nn.init.normal_(made.fusion.connector.mlp[-1].weight)  # type: ignore[union-attr,arg-type]
    assert unofficial_parts(made) == []
    export_model(made, Path("release"), torch.bfloat16)
    config, tensors = json.loads(Path("release/config.json").read_text()), load_file("release/model.safetensors")
    assert config["half_vlm_layer"] == -1 and {"eyes", "adapter"} < {name.partition(".")[0] for name in tensors}
    model = SpatialVLM.from_pretrained("release")
    assert isinstance(model.loader, half_vlm.PretrainedHalfVLM) and model.is_pretrained
    export_model(model, Path("again"))
    again = load_file("again/model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    with pytest.raises(InputError, match="--model.backbone PretrainedHalfVLM"):
        PretrainedQwen25VL("release").load()
    del config["half_vlm_layer"]
    assert find_loader(config) is PretrainedQwen25VL


@pytest.mark.slow
def test_a_wrong_encoding_of_the_tutorial_is_found(follow: Callable[[str], list[str]], monkeypatch) -> None:
    """The negative control of the page's `check-encoding`: an encoding that states a symmetry too few, or is wrong."""
    follow("add_an_encoding")
    (name,) = [words.split()[1] for words in follow("add_an_encoding") if words.startswith("check-encoding ")][:1]
    module, kind = name.split(".")
    Path("changed.py").write_text(
        f"from {module} import {kind}\n"
        f"class Undeclared({kind}):\n"
        f"    symmetries = super({kind}, {kind}).symmetries\n"
        f"class Transposed({kind}):\n"
        "    def matrices(self, cameras):\n"
        "        return {**super().matrices(cameras), 'q': super().matrices(cameras)['o']}\n"
    )
    for wrong in ("Undeclared", "Transposed"):
        with pytest.raises(SystemExit, match="declared"):
            run_main(f"check-encoding changed.{wrong}", monkeypatch)
    assert issubclass(getattr(sys.modules[module], kind), CameraEncoding)


@pytest.mark.slow
def test_your_own_videos(follow: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from datamodules.trajectories.base import upright_turns
    from tests.commands.test_import_dataset import LAYOUTS
    from tests.datamodules.trajectories.captures import NAMES, colmap, walk

    found = follow("your_own_videos")
    colmap(tmp_path / "captures/kitchen", walk())
    for dataset, (write, scene, _) in LAYOUTS.items():  # a raw scene of each dataset, and a video of it
        write(raw := tmp_path / "raw" / dataset / scene, walk())
        is_turned = dataset == "arkitscenes" and upright_turns(torch.from_numpy(walk().world_to_camera())) % 2
        (tmp_path / "data/videos").mkdir(parents=True, exist_ok=True)
        frames = [numbered_frame(i, *((64, 48) if is_turned else (48, 64))) for i in range(len(NAMES))]
        write_video(tmp_path / f"data/videos/{raw.name}.mp4", frames)
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "captures/kitchen/images")  # a folder of photographs
    for words in found:
        words = words.partition(" #")[0]
        run_main(words + (f" {TINY}" if words.startswith("fit ") else ""), monkeypatch)
    assert len(list(tmp_path.glob("data/cameras/*/*.cameras.json"))) == len(LAYOUTS)
    assert list(tmp_path.glob("runs/*/answers.jsonl")) and list(tmp_path.rglob("*.path.png"))


@pytest.mark.slow
def test_the_study_of_the_tutorial_can_be_listed(follow: Callable[[str], list[str]], monkeypatch) -> None:
    found = [words.partition(" #")[0] for words in follow("study_on_slurm") if words.startswith("study ")]
    assert found
    for words in found:
        run_main(words if "--dry_run" in words else f"{words} --dry_run", monkeypatch)
