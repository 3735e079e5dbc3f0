"""What a setting requires is made first, once, and whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commands.studies import processes
from commands.studies.execution import required
from commands.studies.processes import Launch
from commands.studies.reading import read_study
from commands.study import study
from tests.commands.studies.faked import OF_ROW, ROW, STUDY, FakeMain, write_study

pytestmark = pytest.mark.usefixtures("read_once")


VGGT = "./runs/vggt/config.yaml"  # not as `pathlib` writes it
REQUIRING = {
    "settings": {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": [VGGT]}},
    "requires": {VGGT: "fit --broken --trainer.default_root_dir=runs/vggt"},
}


def test_required_files_are_made_first(main_py: FakeMain, study_file: Path, capsys) -> None:
    made = "fit --config geometry_tiny.yaml --trainer.default_root_dir=runs/vggt"
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": ["runs/vggt/config.yaml"]}}
    write_study(study_file, settings=settings, requires={"runs/vggt/config.yaml": made})
    study([str(study_file), "--settings", "none", "--seeds", "0", "--jobs", "1"])
    assert "fit vggt again" not in main_py.calls
    main_py.calls.clear()
    study([str(study_file), *ROW])
    assert main_py.calls == ["fit vggt again", *OF_ROW]  # where it was interrupted
    write_study(study_file, settings=settings, requires={"runs/vggt/config.yaml": made.replace("vggt", "other")})
    for says in (
        "`main.py fit --config geometry_tiny.yaml .*vggt` has made it, not",
        "main.py fit .*other has not made",
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            study([str(study_file), *ROW, "--seeds", "1"])
        assert re.search(f"seed 1: failed: it requires runs/vggt/config.yaml: {says}", capsys.readouterr().out)
        Path("runs/vggt/config.yaml").unlink(missing_ok=True)


@pytest.mark.parametrize("ended", ["failed", pytest.param("killed", marks=pytest.mark.slow), "running"])
def test_the_file_of_an_unfinished_command_is_not_taken(
    ended: str, main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Such as the first checkpoint of a training: it is there long before the weights are trained."""
    write_study(study_file, **REQUIRING)
    other = []

    def half_made(*args: object, **options: object) -> str:
        Path(VGGT).parent.mkdir(parents=True)
        Path(VGGT).touch()
        if ended == "killed":
            raise KeyboardInterrupt
        if ended == "running":  # another study starts meanwhile
            monkeypatch.setattr(processes, "main_py", main_py)
            with pytest.raises(SystemExit):
                study([str(study_file), *ROW, "--output", "apart"])
            other.append(capsys.readouterr().out)
        return "error: broken"

    monkeypatch.setattr(processes, "main_py", half_made)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        study([str(study_file), *ROW])
    assert Path(VGGT).exists() and main_py.calls == []
    if ended == "failed":
        assert f"PRoPE, loop, seed 0: failed: it requires {VGGT}: error: broken" in capsys.readouterr().out
    if ended == "running":
        assert f"it requires {VGGT}: another process is making {VGGT}" in other[0]
    monkeypatch.setattr(processes, "main_py", main_py)
    study([str(study_file), *ROW])
    study([str(study_file), *ROW, "--output", "apart"])
    made, *others = main_py.calls
    assert made.startswith("fit vggt") and others == OF_ROW * 2  # made once for both studies


@pytest.mark.parametrize(("files", "shared_by"), [(["a", "b"], 2), (["a"], 1)])
def test_commands_of_required_files_share_the_cores(files: list[str], shared_by: int, study_file: Path) -> None:
    """Side by side with all cores each, two trainings take ten times as long."""
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": files}}
    write_study(study_file, settings=settings, requires={file: "fit" for file in files})
    plan = read_study(study_file)
    jobs = required(plan, plan.runs(plan.settings, plan.columns, plan.seeds), Launch(2))
    assert [job.launch.at_once for job in jobs] == [shared_by] * len(files)


def test_a_dry_run_lists_what_is_required_and_a_file_of_ones_own_is_taken(
    main_py: FakeMain, study_file: Path, capsys
) -> None:
    write_study(study_file, **REQUIRING)
    study([str(study_file), *ROW, "--dry_run"])
    assert f"{VGGT}: main.py {REQUIRING['requires'][VGGT]}\n" in capsys.readouterr().out
    Path(VGGT).parent.mkdir(parents=True)
    Path(VGGT).touch()
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW
