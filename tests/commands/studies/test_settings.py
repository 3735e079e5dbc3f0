"""The command line accepts the settings of the repository's studies, and none is overridden by another option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import main
from tests.repository_studies import NAMES, ROOT, study_named

PARTS = ("camera_encoding", "view_mixer", "time_index", "fusion", "geometry")
ALL_KINDS = (  # of options; the others are like one of these
    *("PRoPE on both", "PRoPE, data world", "ValueRoPE and GTA", "PRoPE, x and y in turns", "camera token alone"),
    *("VGGT tokens and PRoPE by VGGT cameras", "moving: PRoPE, no time", "ConcatSplitMLLM, space_aware"),
)
SETTINGS = [
    pytest.param(study, name, marks=() if name in ALL_KINDS else pytest.mark.slow)
    for study in NAMES
    for name in yaml.safe_load((ROOT / f"studies/{study}.yaml").read_text(encoding="utf-8"))["settings"]
]


@pytest.mark.parametrize(("study", "name"), SETTINGS)
def test_a_setting_is_understood(
    study: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plan = study_named(study)
    run = plan.run(name, list(plan.columns)[-1], 7)
    monkeypatch.chdir(tmp_path)
    words = [word for word in run.fit if not word.startswith("--ckpt_path=")]  # of a file that is yet to be made
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0, end.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    given: dict[str, Any] = {**plan.options, **plan.settings[name].options}
    assert config["seed_everything"] == 7
    for option, value in given.items():
        if option.startswith("trainer."):
            # an int for devices, which may be a str as well, is read as a str since jsonargparse 4.53
            assert str(config["trainer"][option.removeprefix("trainer.")]) == str(value)
        elif option in [f"model.{part}" for part in PARTS]:
            built = (config["model"]["init_args"].get(option.removeprefix("model.")) or {}).get("class_path")
            asked = value["class_path"] if isinstance(value, dict) else value
            assert built == asked or built.endswith(f".{asked}")
