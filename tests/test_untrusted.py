"""What someone else has saved runs no code: checkpoints are data, and modules are imported only if they are trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands.report import report
from run_folder.configs import is_own, merge_configs
from tests.cli import Run, Trained
from zoo import PRoPE, SpatialVLM, TinyQwen25VL, VideoQATask
from zoo.configuration import check_class_paths
from zoo.errors import InputError

CANARY = """
from pathlib import Path
from zoo import PRoPE

Path("imported").touch()

class Encoding(PRoPE):
    pass

def function(*args):
    Path("called").touch()
"""
REFUSED = r"canary\.\w+ is of a module that is not the zoo's"


class Malicious:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def test_the_aliases_of_a_config_are_not_expanded(run: Run, trained: Trained, tmp_path: Path) -> None:
    """Neither in the file nor in a text of it, which jsonargparse would parse."""
    folder = trained().rename(tmp_path / "foreign")
    file, lists = (
        folder / "config.yaml",
        ["&a0 [x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20))],
    )
    whole = file.read_text()
    assert not re.search(r"[&*]\w", whole)  # the control
    for added in (f"more: [{', '.join(lists)}]", f"more: '[{', '.join(lists)}]'"):
        file.write_text(f"{whole}\n{added}\n")
        with pytest.raises(SystemExit, match=r"^error: .*config.yaml.*: it has aliases of YAML"):
            run("test", "--config", str(file), sized=False)
    file.write_text(f"{whole}\nmore: [{', '.join(lists)}]\n")
    with pytest.raises(InputError, match="config.yaml can't be read"):
        report([str(folder)])
    check_class_paths({"pattern": "*.mp4", "text": "a & b *c"})  # no aliases


@pytest.mark.slow
def test_no_command_runs_the_code_of_a_checkpoint(run: Run, trained: Trained, rooms_root: Path) -> None:
    folder = trained()
    checkpoint = folder / "checkpoints/last.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"hyper_parameters": Malicious()}, checkpoint)
    says = r"last\.ckpt holds posix\.system, not only tensors and plain values"
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    for words in (
        ["test", "--weights_only", "false"],
        ["test", "--ckpt_path", str(checkpoint)],
        ["predict", "--data.video", video, "--data.question", "How big?"],
        ["export", "--out", "exported"],
        ["fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3"],
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{says}") as error:
            run(*words)
        assert "\n" not in str(error.value) and not Path("owned").exists()
    for load in (VideoQATask.load_from_checkpoint, lambda _: SpatialVLM.from_pretrained(folder)):
        with pytest.raises(InputError, match=says):
            load(checkpoint)
    assert not Path("owned").exists()
    torch.load(checkpoint, weights_only=False)  # the control
    assert Path("owned").exists()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed module; the file that it leaves when it is imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    monkeypatch.delenv("ZOO_TRUST_MODULES", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "imported"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a model."""
    backbone = TinyQwen25VL(layers=2, hidden_size=32, heads=2, key_value_heads=1, vision_hidden_size=32)
    SpatialVLM(backbone, camera_encoding=PRoPE()).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edited(folder: Path, camera_encoding: Any, data: Any = None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["init_args"]["camera_encoding"] = camera_encoding
    config["data"] = data or {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "way",
    [
        {"class_path": "canary.Encoding"},
        "canary.Encoding",
        {"class_path": "Compose", "init_args": {"encodings": [{"class_path": "canary.Encoding"}]}},
        {"class_path": "zoo.PRoPE", "init_args": {"placement": "canary.function"}},
        {"class_path": " canary.Encoding"},
        # jsonargparse reads these texts, and the content of these files, as YAML
        "class_path: canary.Encoding",
        '["canary.Encoding"]',
        "encoding.yaml",
        "payload",
    ],
)
def test_a_saved_model_imports_what_the_caller_names(way: Any, canary: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "encoding.yaml").write_text("class_path: canary.Encoding")
    (tmp_path / "payload").write_text("canary.Encoding")
    for trusted in ((), ("can",), ("canary.other",)):
        with pytest.raises(InputError, match=REFUSED):
            SpatialVLM.from_pretrained(edited(saved, way), trust_modules=trusted)
    assert not canary.exists() and "canary" not in sys.modules
    if way == {"class_path": "canary.Encoding"}:  # the control
        with pytest.raises(InputError, match="trust_modules is a list"):
            SpatialVLM.from_pretrained(saved, trust_modules="canary")
        model = SpatialVLM.from_pretrained(saved, trust_modules=["canary"])
        assert canary.exists() and type(model.camera_encoding).__name__ == "Encoding"


def test_how_a_saved_model_reads_frames_imports_nothing_either(canary: Path, saved: Path) -> None:
    data = {"init_args": {"sampler": {"class_path": "canary.Encoding"}}}
    model = SpatialVLM.from_pretrained(edited(saved, None, data))
    with pytest.raises(InputError, match=REFUSED):
        model.answer(torch.zeros(4, 3, 56, 56), "How big?")
    assert not canary.exists()


@pytest.mark.parametrize("path", ["gone.Encoding", "zoo.encodings.base.CameraEncoding"])
def test_a_class_that_can_not_be_used_is_one_line(path: str, saved: Path) -> None:
    with pytest.raises(InputError, match=rf"saved/config\.json: {path} (can't be imported|is abstract)") as raised:
        SpatialVLM.from_pretrained(edited(saved, {"class_path": path}))
    assert len(str(raised.value)) < 300


def test_files_and_numbers_are_no_modules() -> None:
    check_class_paths({"path": "train.jsonl", "a": 1.5, "b": ["no.such_module"], "c": "json.loads and more", "d": None})
    with pytest.raises(InputError, match=r"json\.loads is of a module"):
        check_class_paths({"path": ["json.loads"]})  # a function that is imported already might be called
    check_class_paths({"class_path": "json.JSONDecoder"})


def test_the_run_of_someone_else(run: Run, trained: Trained, canary: Path, tmp_path: Path, rooms_root: Path) -> None:
    theirs = tmp_path / "downloads/theirs"
    shutil.copytree(trained(), theirs)
    config = yaml.safe_load((theirs / "config.yaml").read_text())
    config["model"]["init_args"]["camera_encoding"] = {"class_path": "canary.Encoding"}
    (theirs / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = str(theirs / "checkpoints/last.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "run": {**content["run"], "config": config}}, checkpoint)
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    for words in (
        ["test", "--ckpt_path", checkpoint],
        ["test", "--config", str(theirs / "config.yaml")],
        ["predict", "--trainer.default_root_dir", str(theirs), "--data.video", video, "--data.question", "Q?"],
        ["probe", str(theirs)],
        ["measure-responses", str(theirs)],
        ["explain", str(theirs), "--question", "1"],
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{REFUSED}.*--trust_modules canary"):
            run(*words)
    with pytest.raises(InputError, match=REFUSED):
        SpatialVLM.from_pretrained(theirs)
    assert not canary.exists()
    with pytest.raises(SystemExit, match="no such checkpoint|fewer|other|camera"):  # it gets further
        run("test", "--ckpt_path", checkpoint, "--trust_modules", "canary")
    assert canary.exists()


def test_the_config_of_someone_elses_run_imports_nothing(canary: Path, tmp_path: Path) -> None:
    assert is_own(Path("runs/../runs/mine").absolute())
    assert not is_own(Path("runs/../theirs")) and not is_own(Path("theirs/runs/one"))
    theirs = tmp_path / "downloads/theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    (tmp_path / "evil.yaml").write_text("model: {init_args: {camera_encoding: {class_path: canary.Encoding}}}")
    (tmp_path / "own.yaml").write_text("configs: [downloads/theirs/config.yaml]")
    parts = "model: {class_path: PRoPEMLLM, init_args: {camera_encoding: {class_path: %s}}}"
    for content in (
        *(f"{option}: ../../evil.yaml" for option in ("recipe", "scale")),
        *("configs: [../../evil.yaml]", parts % '"canary:Encoding"', parts % "canary.Encoding"),
    ):
        (theirs / "config.yaml").write_text(content)
        for name in ("downloads/theirs/config.yaml", "own.yaml"):
            with suppress(InputError):  # a colon makes no import path
                merge_configs(["prope.yaml", name])
            assert not canary.exists() and "canary" not in sys.modules, (content, name)
    with pytest.raises(InputError, match=REFUSED):
        merge_configs(["own.yaml"])
    merge_configs(["own.yaml"], ["foo", "canary"])
    assert canary.exists()  # the control: a class that is trusted is imported


def test_the_trainer_of_someone_elses_run_writes_nothing(run: Run, trained: Trained, tmp_path: Path) -> None:
    """An evaluation takes model, data, seed and precision from a run. The machine and the command line do the rest."""
    folder = trained()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    there = str(tmp_path / "there")
    cache = {"folder": f"{there}/models", "max_size_gb": 1e-6}
    config["data"]["init_args"] |= {"frame_cache": cache, "keep_in_memory": False}
    config["model"]["init_args"]["geometry_cache"] = cache | {"dtype": "bfloat16"}
    config["trainer"] |= {
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": there}},
        "profiler": {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": there}},
        "default_root_dir": there,
        "devices": 7,
        "precision": "bf16-mixed",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    folder = folder.rename(tmp_path / "theirs")
    run("test", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--config", str(folder / "config.yaml"))
    tested = json.loads((folder / "metrics.json").read_text())
    assert tested["config"]["data"]["init_args"]["frame_cache"]["folder"] == "cache/frames"
    assert len(list((tmp_path / "cache/frames").glob("*.safetensors"))) == 3
    assert tested["config"]["trainer"]["precision"] == "bf16-mixed"
    assert not Path(there).exists()
