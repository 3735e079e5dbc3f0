"""Every data config is read, and absent data is an error of one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import main

SOURCES = {
    "data_arkitscenes": "PosedScenes",
    "data_conversations": "Mixture",
    "data_glimpse": "PanelRooms",
    "data_panels": "PanelRooms",
    "data_panels_images": "Mixture",
    "data_real_rooms": "RealRooms",
    "data_revsi": "ReVSI",
    "data_rooms": "Rooms",
    "data_turn": "PanelRooms",
    "data_scanqa": "ScanQA",
    "data_sqa3d": "SQA3D",
    "data_vsibench": "VSIBench",
    "data_vstibench": "VSTIBench",
}
QUICK = {"data_conversations", "data_scanqa"}  # a mixture, and a download


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs main.py in an empty folder up to its exit and returns what it exits with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_RUN", raising=False)

    def call(*words: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["main.py", *words])
        with pytest.raises(SystemExit) as end:
            main.main()
        return end.value.code

    return call


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in SOURCES]
)
def test_each_names_its_source_and_sets_its_options(name, cli, capsys):
    options = ("--data.source.debiased", "true") if name == "data_vsibench" else ()
    assert cli("fit", "--config", "qwen25_vl.yaml", "--config", f"{name}.yaml", *options, "--print_config") == 0
    source = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["source"]
    assert source["class_path"].rsplit(".", 1)[1] == SOURCES[name]
    assert "debiased" not in source["init_args"] or source["init_args"]["debiased"] is True
    assert SOURCES.keys() == {path.stem for path in (Path(main.__file__).parent / "configs").glob("data_*.yaml")}


ABSENT = {
    "data_arkitscenes": "test.jsonl is absent",
    "data_revsi": "no folder such as 16_frame: download the dataset 3dlg-hcvc/ReVSI",
    "data_scanqa": "ScanQA_v1.0_val.json is absent: download it from",
    "data_vstibench": "test.json is absent: download the dataset Journey9ni/vstibench",
}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in ABSENT]
)
def test_absent_data_is_an_error_of_one_line(name, cli):
    end = cli("test", "--config", "qwen25_vl.yaml", "--config", f"{name}.yaml", "--model.allow_untrained", "true")
    assert isinstance(end, str) and re.search(ABSENT[name], end) and "\n" not in end
