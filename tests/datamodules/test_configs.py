"""Every data config is read, and absent data is an error of one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import main

CONFIGS = sorted((Path(main.__file__).parent / "configs").glob("data_*.yaml"))
SOURCES = {
    "data_arkitscenes": "PosedScenes",
    "data_conversations": "Mixture",
    "data_panels": "PanelRooms",
    "data_panels_images": "Mixture",
    "data_real_rooms": "RealRooms",
    "data_revsi": "ReVSI",
    "data_rooms": "Rooms",
    "data_scanqa": "ScanQA",
    "data_sqa3d": "SQA3D",
    "data_vsibench": "VSIBench",
}

QUICK = {"data_conversations", "data_real_rooms", "data_scanqa"}  # a mixture, rendered rooms, a download


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
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in CONFIGS],
)
def test_it_names_its_source(path, cli, capsys):
    assert cli("fit", "--config", "qwen25_vl.yaml", "--config", path.name, "--print_config") == 0
    source = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["source"]
    assert source["class_path"].rsplit(".", 1)[1] == SOURCES[path.stem]


def test_options_of_a_source_are_set(cli, capsys):
    configs = ("--config", "qwen25_vl.yaml", "--config", "data_vsibench.yaml")
    assert cli("test", *configs, "--data.source.debiased", "true", "--print_config") == 0
    source = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["source"]
    assert source["init_args"]["debiased"] is True


ABSENT = {
    "data_arkitscenes": "test.jsonl is absent",
    "data_real_rooms": r"data/meta_info: no \*_meta_info_val.json: get data/meta_info",
    "data_revsi": "no folder such as 16_frame: download the dataset 3dlg-hcvc/ReVSI",
    "data_scanqa": "ScanQA_v1.0_val.json is absent: download it from",
    "data_vsibench": "test.jsonl is absent: download the dataset nyu-visionx/VSI-Bench",
}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in ABSENT]
)
def test_absent_data_is_an_error_of_one_line(name, cli):
    end = cli("test", "--config", "qwen25_vl.yaml", "--config", f"{name}.yaml", "--model.allow_untrained", "true")
    assert isinstance(end, str) and re.search(ABSENT[name], end) and "\n" not in end
