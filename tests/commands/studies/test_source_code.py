"""The digest of a training's code is of the modules that its classes import, and changes with what they do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from commands.studies.modules import ROOT, Modules
from commands.studies.source_code import SourceCode
from commands.studies.study_file import Run
from commands.study import study
from tests.commands.studies.faked import STUDY, FakeMain, write_study
from zoo.errors import InputError

ENCODING = '''"""An encoding."""

from zoo.encodings import PRoPE

from mine.angles import turn  # a helper


class Own(PRoPE):
    """Of one's own."""

    def angle(self):
        return turn(1)
'''
MODULES = {
    "mine/__init__.py": "from mine.other import Other\n",
    "mine/encodings.py": ENCODING,
    "mine/angles.py": """def turn(x):
    return open(__file__.replace("angles.py", "table.txt")).read()

def back(x):
    return -x
""",
    "mine/table.txt": "1 2 3",
    "mine/other.py": "class Other:\n    pass\n",
    "loose.py": "pass\n",
}
OWN = "--model.camera_encoding=mine.encodings.Own"


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Replaces a text in a file of the user's package, which is in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in MODULES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)

    def replace(name: str, old: str, new: str) -> None:
        assert old in Path(name).read_text()
        Path(name).write_text(Path(name).read_text().replace(old, new))

    return replace


def training(*options: str, config: str = "prope.yaml") -> Run:
    return Run("own", "", 0, (config,), (f"--config={config}", *options), {}, "macro", ())


def digests() -> tuple[str, str]:
    """Of a training with the user's class, and of one without."""
    source = SourceCode()
    return source.digest(training(OWN)), source.digest(training())


@cache
def digests_before() -> tuple[str, str]:
    """Those of the files as they are written for each test."""
    return digests()


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("mine/encodings.py", "An encoding.", "The encoding.", False),
        pytest.param("mine/encodings.py", "Of one's own.", "My own.", False, marks=pytest.mark.slow),
        ("mine/encodings.py", "  # a helper", "", False),
        ("mine/encodings.py", "\n\n\nclass", "\n\nclass", False),
        ("mine/other.py", "pass", "x = 1", False),
        ("mine/__init__.py", "Other\n", "Other\nfrom mine.angles import turn\n", False),
        pytest.param("loose.py", "pass", "x = 1", False, marks=pytest.mark.slow),
        ("mine/encodings.py", "turn(1)", "turn(2)", True),
        ("mine/encodings.py", "import turn", "import back as turn", True),
        pytest.param("mine/encodings.py", "def angle", "def turned", True, marks=pytest.mark.slow),
        ("mine/angles.py", ".read()", ".read().strip()", True),
        ("mine/table.txt", "2", "5", True),
    ],
)
def test_what_the_users_class_imports_counts(
    file: str, old: str, new: str, changes: bool, edit: Callable[[str, str, str], None]
) -> None:
    before, stock = digests_before()
    edit(file, old, new)
    own, other = digests()
    assert (own != before) == changes
    assert other == stock  # the control: a training without that class


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_function_may_move_to_another_file(is_edited: bool, edit: Callable[[str, str, str], None]) -> None:
    before, _ = digests_before()
    Path("mine/angles.py").rename("mine/turns.py")
    edit("mine/encodings.py", "mine.angles", "mine.turns")
    if is_edited:  # the control
        edit("mine/turns.py", ".read()", ".read().strip()")
    assert (SourceCode().digest(training(OWN)) != before) == is_edited
    edit("mine/turns.py", "def turn", "import math as turn\ndef turn")  # of a library: what it brings is not read
    assert SourceCode().digest(training(OWN)) != before


def test_the_modules_of_the_project_are_those_of_the_classes_in_the_settings() -> None:
    def names(*options: str, config: str = "prope.yaml") -> set[str]:
        return {module.name for module in SourceCode().modules(training(*options, config=config))}

    stock = names(config="qwen25_vl.yaml")
    assert {"zoo.model", "zoo.tasks.models", "datamodules.sources.rooms.source", "zoo.metrics"} <= stock
    assert not {"zoo.encodings.rotary", "zoo.geometry.da3.model", "datamodules.sources.vsibench"} & stock
    assert not [name for name in stock if name.startswith(("commands", "torch", "tests"))]
    assert names("--model.camera_encoding=PointRoPE") - names() == {"zoo.encodings.rotary"}
    assert names("--model.view_mixer.encoding=zoo.PoseALiBi") - names() == {"zoo.encodings.alibi"}
    objectives = '--model.objectives=[{"class_path": "MaskedViews"}, "CameraPrediction"]'
    assert "zoo.objectives.masked_views" in names(objectives) - names()
    assert "zoo.encodings.rotary" not in names("--model.camera_encoding=PointRoPE", "--model.camera_encoding=null")


def test_every_import_of_the_project_is_followed() -> None:
    """The modules that Python itself imports with the models, apart from those that packages import for others."""
    modules = Modules([ROOT])
    found = {module.name for module in modules.closure(["zoo.tasks.video_qa.VideoQATask"])}
    text = (ROOT / "zoo/tasks/video_qa.py").read_text()
    written = set(re.findall(r"^from (zoo\.[\w.]+) import", text, re.MULTILINE))
    assert len(written) > 10 and written <= found
    assert "zoo.benchmarks.vsibench" in found  # `VSIBench`, which the package exports to `zoo.tasks.base`


def test_data_beside_a_module_belongs_to_it() -> None:
    modules = {module.name: module for module in SourceCode().modules(training())}
    assert [path.name for path in modules["datamodules.sources.rooms.layout"].data] == ["furniture.json"]
    assert [path.name for path in modules["zoo.backbones.qwen_vl"].data] == ["tiny_corpus.txt"]


def test_configs_count_by_content(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    digests = []
    for text in ("trainer: {max_steps: 3}", "# A comment.\ntrainer:\n  max_steps: 3\n", "trainer: {max_steps: 4}"):
        config.write_text(text)
        digests.append(SourceCode().digest(training(config=str(config))))
    assert digests[0] == digests[1] != digests[2]
    assert SourceCode().digest(training("--seed_everything=1")) == SourceCode().digest(training())


def test_a_file_that_is_no_python_is_named(edit: Callable[[str, str, str], None]) -> None:
    edit("mine/angles.py", "return", "return )")
    with pytest.raises(InputError, match=r"mine/angles.py is no Python: .*line 2"):
        SourceCode().digest(training(OWN))


def test_a_study_marks_the_settings_whose_code_has_changed(
    main_py: FakeMain, study_file: Path, edit: Callable[[str, str, str], None]
) -> None:
    own = {**STUDY["settings"]["PRoPE"], "model.camera_encoding": "mine.encodings.Own"}
    write_study(study_file, settings={**STUDY["settings"], "PRoPE": own}, seeds=[0])
    study([str(study_file), "--jobs", "1"])

    def marked() -> set[str]:
        study([str(study_file), "--write"])
        lines = study_file.with_suffix(".md").read_text().splitlines()
        return {line.split(" | ")[0].lstrip("| ") for line in lines if "†" in line and line.startswith("| ")}

    assert marked() == set()
    edit("mine/other.py", "pass", "x = 1")
    edit("mine/encodings.py", "Of one's own.", "My own.")
    assert marked() == set()
    edit("mine/encodings.py", "turn(1)", "turn(2)")
    assert marked() == {"PRoPE"}
    with zipfile.ZipFile("runs/studies/toys/PRoPE-loop-0/code.zip") as kept:
        assert "turn(1)" in kept.read("mine/encodings.py").decode()
        assert {"mine/table.txt", "zoo/encodings/prope.py"} <= set(kept.namelist())
