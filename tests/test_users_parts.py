"""A user's own part that raises is one line with its file and line; --traceback shows the calls that led there."""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from datetime import timedelta
from enum import Enum
from pathlib import Path

import pytest

from tests.cli import Run
from zoo import CameraEncoding, InputError
from zoo.configuration import changed_options, from_config, is_same_class, to_config
from zoo.errors import add_file_to_errors, describe, input_error

MINE = """
import os, torch
from zoo import LanguageModeling, Objective, PRoPE
from datamodules import Rooms, UniformSampler

def fail(place):
    if os.environ.get("FAIL") == place:
        raise TypeError("no\\nroom")  # TypeError
    if os.environ.get("SHAPE") == place:
        return torch.zeros(2) + torch.zeros(3)  # RuntimeError
    if os.environ.get("VALUE") == place:
        raise ValueError("wrong")  # ValueError

class Encoding(PRoPE):
    def __init__(self):
        fail("init")
        super().__init__()
    def encode(self, *args, **kwargs):
        fail("step")
        return super().encode(*args, **kwargs)

class Loss(Objective):
    def __init__(self):
        fail("init")
        super().__init__()
    def forward(self, decoded):
        fail("step")
        return {"none": decoded.last_hidden_state.sum() * 0}
    def errors(self, decoded):
        fail("step")
        return {}

class Sampler(UniformSampler):
    def __init__(self):
        fail("init")
        super().__init__()
    def choose(self, scene, n):
        fail("step")
        return super().choose(scene, n)

class Source(Rooms):
    def __init__(self, root="cache/rooms", scenes=(6, 2, 3)):
        fail("init")
        super().__init__(root=root, scenes=scenes)
    def scenes(self, split):
        fail("step")
        return super().scenes(split)
"""
LINES = {kind: n for n, line in enumerate(MINE.splitlines(), 1) for kind in re.findall(r"# (\w+)$", line)}
ERRORS = {"FAIL": "TypeError", "SHAPE": "RuntimeError", "VALUE": "ValueError"}
PARTS = {
    "Encoding": ("--model.camera_encoding", "mine.Encoding"),
    "Loss": ("--model.objectives", "[{class_path: LanguageModeling}, {class_path: mine.Loss}]"),
    "Sampler": ("--data.sampler", "mine.Sampler", "--data.train_sampler", "null"),
    "Source": ("--data.source", "mine.Source"),
}
FIT = ("fit", "--config")
TEST = ("test", "--model.allow_untrained", "true", "--config")
HINT = "; --traceback shows the calls"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's outside of the repository."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def line_of(place: Path, kind: str) -> str:
    """How an error ends that the user's module raised."""
    return rf"{ERRORS[kind]}: .*\({place}:{LINES[ERRORS[kind]]}\)"


SKIP = "; --data.on_error skip trains without this scene"
FAST = ("fit init Encoding SHAPE", "fit step Sampler VALUE")  # a sampler fails in a worker, which passes it on as text
SLOW = (
    *("fit init Loss VALUE", "fit init Sampler FAIL", "fit init Source FAIL"),
    *("fit step Sampler FAIL", "fit step Encoding FAIL", "fit step Source VALUE"),
    *("test step Encoding SHAPE", "test step Loss VALUE", "test step Sampler FAIL"),
)


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_an_error_is_one_line_with_its_file_and_line(
    case: str, place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, where, part, kind = case.split()
    monkeypatch.setenv(kind, where)
    config = "prope.yaml" if part == "Encoding" else "qwen25_vl.yaml"
    with pytest.raises(SystemExit, match=rf"^error: [^\n]*{line_of(place, kind)}({HINT}|{SKIP})?$"):
        run(*(FIT if command == "fit" else TEST), config, *PARTS[part])


@pytest.mark.slow
def test_traceback_shows_the_calls(
    place: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SHAPE", "step")
    monkeypatch.setenv("ZOO_TRACEBACK", "0")  # restored after the test: the option sets it
    with pytest.raises(RuntimeError, match="must match") as training:
        run(*FIT, "prope.yaml", *PARTS["Encoding"], "--traceback")
    assert str(place) in {str(entry.path) for entry in training.traceback}
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    with pytest.raises(InputError, match="failed alike"):
        run(*TEST, "prope.yaml", *PARTS["Encoding"])
    printed = capsys.readouterr().err  # of each scene: nothing that is recorded stops a test
    assert printed.count(f'File "{place}", line {LINES["RuntimeError"]}, in fail') >= 3


def test_a_bug_while_an_error_is_handled_is_not_shown_as_that_error() -> None:
    def bug() -> None:
        try:
            raise InputError("the old message")
        except InputError:
            {}["a bug"]  # noqa: B018

    with pytest.raises(KeyError) as raised:
        bug()
    assert isinstance(raised.value.__context__, InputError) and input_error(raised.value) is None
    assert describe(raised.value).startswith(f"KeyError: 'a bug' ({__file__}:")


def test_python_gets_the_whole_traceback(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"class_path": "Compose", "init_args": {"encodings": [{"class_path": "mine.Encoding"}]}}
    monkeypatch.setenv("FAIL", "init")
    with pytest.raises(Exception) as raised, add_file_to_errors("settings.json"):  # noqa: PT011 - of any type
        from_config(CameraEncoding, config)
    assert re.fullmatch(f"settings.json: {line_of(place, 'FAIL')}", str(raised.value))
    for file, named in ("b", "b: a/bob"), ("a", "a/bob"):  # a name within a longer word names nothing
        with pytest.raises(InputError, match=f"^{named} is damaged$"), add_file_to_errors(file):
            raise InputError("a/bob is damaged")
    shown = "".join(traceback.format_exception(raised.value))
    assert f'File "{place}", line {LINES["TypeError"]}, in fail' in shown


TYPED = """
from enum import Enum
from pathlib import Path
from zoo import PRoPE

class Color(Enum):
    RED = "red"
    BLUE = "blue"

class Typed(PRoPE):
    def __init__(
        self,
        folder: Path = Path("x"),
        pairs: list[tuple[int, int]] = [(1, 2)],
        color: Color = Color.RED,
        names: set[str] = {"a", "b", "c"},
        **kwargs,
    ):
        super().__init__(**kwargs)
"""


@pytest.mark.slow
def test_a_part_that_changes_between_a_training_and_its_resumption_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_part.py").write_text("from own_base import Base\n\nclass Own(Base): pass\n")
    own = tmp_path / "own_base.py"
    own.write_text("from zoo import PRoPE\n\nclass Base(PRoPE): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run("fit", "--config", "prope.yaml", "--model.camera_encoding", "own_part.Own")
    (folder,) = (tmp_path / "runs").iterdir()
    resumed = ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps"]
    changed = "own_base.py has changed since"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run(*resumed, "3", sized=False)
        assert not any(changed in str(each.message) for each in warned)
        own.write_text(own.read_text() + "# edited")
        run(*resumed, "4", sized=False)
        assert any(changed in str(each.message) for each in warned)


@pytest.mark.slow
def test_a_part_with_options_of_many_types_is_tested_and_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files have paths, enums, sets and tuples in other types; another value is still another model."""
    (tmp_path / "typed_part.py").write_text(TYPED)
    monkeypatch.syspath_prepend(tmp_path)
    run("fit", "--config", "prope.yaml", "--model.camera_encoding", "typed_part.Typed")
    run("test")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "metrics.json").exists()  # its own test, with equal settings
    resumed = ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "3"]
    run(*resumed, sized=False)
    for option, value in (("names", "[a,d]"), ("color", "BLUE"), ("folder", "y"), ("pairs", "[[2,1]]")):
        with pytest.raises(SystemExit, match=f"another model.camera_encoding.{option}"):
            run(*resumed, f"--model.camera_encoding.{option}", value, sized=False)


def test_classes_of_one_name_in_two_modules_of_a_package_differ() -> None:
    """A training does not resume with the other one, and a test of the other one is not the run's own."""
    assert not is_same_class("parts.one.Mine", "parts.two.Mine")
    for path in ("zoo.PRoPE", "PRoPE"):  # the zoo's names are unique
        assert is_same_class(path, "zoo.encodings.prope.PRoPE")
    assert is_same_class("parts.Mine", "parts.one.Mine")  # imported in the package


class Color(Enum):
    RED = "red"


def test_options_of_many_types_are_as_files_store_them() -> None:
    """An export writes them, and a run that was trained with their defaults resumes."""
    assert to_config([Path("x"), Color.RED, {"b", "a"}]) == ["x", "RED", ["a", "b"]]
    given = {"wait": timedelta(hours=1), "color": Color.RED, "names": {"a"}, "of": complex(1)}
    assert changed_options({"wait": "1:00:00", "color": "RED", "names": ["a"], "of": "(1+0j)"}, given) == []
    assert changed_options({"wait": "2:00:00"}, {"wait": given["wait"]}) == ["wait"]
