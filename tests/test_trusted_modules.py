"""A model that someone else has saved imports no module but the zoo's own, unless the caller names it."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from callbacks.configs import is_own, merge_configs
from commands.parser import trusted_modules
from commands.runs import newest_run
from tests.cli import Run, the_run
from zoo import PRoPE, SpatialVLM, TinyQwen25VL, VideoQATask
from zoo.configuration import check_class_paths
from zoo.errors import InputError

SIZES: dict[str, Any] = dict(layers=2, hidden_size=32, heads=2, key_value_heads=1, vision_hidden_size=32)
CANARY = """
from pathlib import Path
from zoo import PRoPE

Path("imported").touch()

class Encoding(PRoPE):
    pass

def function(*args):
    Path("called").touch()
"""


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


def edited(folder: Path, camera_encoding: Any, data: Any = None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["init_args"]["camera_encoding"] = camera_encoding
    config["data"] = data or {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WAYS = (
    {"class_path": "canary.Encoding"},
    "canary.Encoding",
    {"class_path": "Compose", "init_args": {"encodings": [{"class_path": "canary.Encoding"}]}},
    {"class_path": "zoo.PRoPE", "init_args": {"placement": "canary.function"}},
    {"class_path": " canary.Encoding"},
)
# jsonargparse reads these texts, and the content of these files, as YAML
HIDDEN = (
    "class_path: canary.Encoding",
    "encoding.yaml",
    "payload",
    '["canary.Encoding"]',
)


def test_a_saved_model_imports_what_the_caller_names(canary: Path, tmp_path: Path) -> None:
    SpatialVLM(TinyQwen25VL(**SIZES), camera_encoding=PRoPE()).save_pretrained(tmp_path / "saved")
    for way in WAYS:
        folder = edited(tmp_path / "saved", way)
        for trusted in ((), ("can",), ("canary.other",)):
            with pytest.raises(
                InputError, match=r"saved/config\.json: canary\.\w+ is of a module that is not the zoo's"
            ):
                SpatialVLM.from_pretrained(folder, trust_modules=trusted)
        assert not canary.exists() and "canary" not in sys.modules
    (tmp_path / "encoding.yaml").write_text("class_path: canary.Encoding")
    (tmp_path / "payload").write_text("canary.Encoding")
    for hidden in HIDDEN:
        with pytest.raises(InputError, match=r"canary\.Encoding is of a module that is not the zoo's"):
            SpatialVLM.from_pretrained(edited(tmp_path / "saved", hidden))
        assert not canary.exists()
    with pytest.raises(InputError, match="trust_modules is a list"):
        SpatialVLM.from_pretrained(folder, trust_modules="canary")
    model = SpatialVLM.from_pretrained(edited(tmp_path / "saved", WAYS[0]), trust_modules=["canary"])
    assert canary.exists() and type(model.camera_encoding).__name__ == "Encoding"
    SpatialVLM.from_pretrained(tmp_path / "saved")  # the module is imported now: nothing more is


def test_how_a_saved_model_reads_frames_imports_nothing_either(canary: Path, tmp_path: Path) -> None:
    SpatialVLM(TinyQwen25VL(**SIZES)).save_pretrained(tmp_path / "saved")
    data = {"init_args": {"sampler": {"class_path": "canary.Encoding"}}}
    model = SpatialVLM.from_pretrained(edited(tmp_path / "saved", None, data))
    with pytest.raises(InputError, match=r"canary\.Encoding is of a module that is not the zoo's"):
        model.answer(torch.zeros(4, 3, 56, 56), "How big?")
    assert not canary.exists()


@pytest.mark.parametrize("path", ["gone.Encoding", "zoo.Gone", "zoo.encodings.base.CameraEncoding"])
def test_a_class_that_can_not_be_used_is_one_line(path: str, tmp_path: Path) -> None:
    SpatialVLM(TinyQwen25VL(**SIZES)).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=rf"saved/config\.json: {path} (can't be imported|is abstract)") as raised:
        SpatialVLM.from_pretrained(edited(tmp_path / "saved", {"class_path": path}))
    assert len(str(raised.value)) < 300


def test_files_and_numbers_are_no_modules() -> None:
    check_class_paths({"path": "train.jsonl", "a": 1.5, "b": ["no.such_module"], "c": "json.loads and more", "d": None})
    with pytest.raises(InputError, match=r"json\.loads is of a module"):
        check_class_paths({"path": ["json.loads"]})  # a function that is imported already might be called
    check_class_paths({"class_path": "json.JSONDecoder"})


@pytest.mark.slow
def test_a_run_of_someone_else(
    run: Run,  # noqa: F811
    canary: Path,
    tmp_path: Path,
    rooms_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    mine = the_run(tmp_path)
    theirs = tmp_path / "downloads/theirs"
    shutil.copytree(mine, theirs)
    config = yaml.safe_load((theirs / "config.yaml").read_text())
    config["model"]["init_args"]["camera_encoding"] = {"class_path": "canary.Encoding"}
    (theirs / "config.yaml").write_text(yaml.safe_dump(config))
    says = r"config\.yaml: canary\.Encoding is of a module that is not the zoo's.*--trust_modules canary"
    checkpoint = theirs / "checkpoints/last.ckpt"
    video = str(next(rooms_root.glob("*/rooms/test_*.mp4")))
    for words in (
        ["test", "--ckpt_path", str(checkpoint)],
        ["test", "--config", str(theirs / "config.yaml")],
        ["predict", "--trainer.default_root_dir", str(theirs), "--data.video", video, "--data.question", "Q?"],
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{says}"):
            run(*words)
    with pytest.raises(InputError, match=r"canary\.Encoding is of a module"):
        SpatialVLM.from_pretrained(theirs)
    assert not canary.exists()
    with pytest.raises(SystemExit, match="no such checkpoint|fewer|other|camera"):  # it gets further
        run("test", "--ckpt_path", str(checkpoint), "--trust_modules", "canary")
    assert canary.exists()

    # One's own run whose class is gone is passed over in one line.
    config["model"]["class_path"] = "gone.Model"
    (mine / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="no finished run"):
        newest_run()
    with pytest.raises(InputError, match=r"config\.yaml: gone\.Model can't be imported") as raised:
        SpatialVLM.from_pretrained(mine, trust_modules=["canary"])
    assert "\n" not in str(raised.value)
    assert VideoQATask.load_from_checkpoint(mine / "checkpoints/last.ckpt") is not None


def test_runs_of_ones_own_lie_in_runs() -> None:
    assert is_own(Path("runs/mine")) and is_own(Path("runs/../runs/mine").absolute())
    assert not is_own(Path("runs/../theirs")) and not is_own(Path("theirs/runs/one"))


def test_the_config_of_someone_elses_run_imports_nothing(canary: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "downloads/theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    (tmp_path / "evil.yaml").write_text("model: {init_args: {camera_encoding: {class_path: canary.Encoding}}}")
    (tmp_path / "own.yaml").write_text("configs: [downloads/theirs/config.yaml]")
    parts = "model: {class_path: PRoPEMLLM, init_args: {camera_encoding: {class_path: %s}}}"
    for content in (
        parts % "canary.Encoding",
        parts % '"canary:Encoding"',
        "recipe: ../../evil.yaml",
        "scale: ../../evil.yaml",
        "configs: [../../evil.yaml]",
    ):
        (theirs / "config.yaml").write_text(content)
        for name in ("downloads/theirs/config.yaml", "own.yaml"):
            with suppress(InputError):  # a colon makes no import path
                merge_configs(["prope.yaml", name])
            assert not canary.exists() and "canary" not in sys.modules, (content, name)
    with pytest.raises(InputError, match=r"canary\.Encoding is of a module"):
        (theirs / "config.yaml").write_text(parts % "canary.Encoding")
        merge_configs(["own.yaml"])
    assert trusted_modules(["--trust_modules", "foo, canary"]) == ["foo", "canary"]
    merge_configs(["own.yaml"], ["foo", "canary"])
    assert canary.exists()  # the control: a class that is trusted is imported
