"""A trained model answers under the protocol of every group, and the record of each test says what departs from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run_folder.configs import CONFIGS, read_settings
from tests.cli import Run, the_run

PROTOCOLS = sorted(path.stem.removeprefix("protocol_") for path in CONFIGS.glob("protocol_*.yaml"))
FEWER = {"data.num_frames": 4, "model.max_new_tokens": 2}


@pytest.mark.slow
def test_any_protocol_is_put_over_a_run(run: Run, tmp_path: Path) -> None:
    """With the dataset's cameras and depth, which follow what is cropped."""
    run("fit", "--config", "vg_llm.yaml", "--model.fusion.hidden", "16", "--model.geometry", "DatasetGeometry")
    folder, shown = the_run(tmp_path), {}
    for name in PROTOCOLS:
        options = [f"--{option}={value}" for option, value in FEWER.items()]
        run("test", "--config", f"protocol_{name}.yaml", *options, sized=False)
        records = [json.loads(file.read_text()) for file in folder.rglob("metrics.json")]
        (record,) = (each for each in records if each["protocol"]["name"] == name)
        stated = read_settings(CONFIGS / f"protocol_{name}.yaml")
        departures = record["protocol"]["departures"]
        assert {option: each["run"] for option, each in departures.items()} == FEWER
        assert record["scorer"] == stated["metrics"]["scorer"] and not record["counts"]["failed"]
        model, data = (record["config"][part]["init_args"] for part in ("model", "data"))
        assert (model["sampling"] is None) == (name != "geovr")
        assert data["system_prompt"] == stated["data"]["init_args"]["system_prompt"]
        (file,) = (each for each in folder.rglob("metrics.json") if json.loads(each.read_text()) == record)
        lines = file.with_name("predictions.jsonl").read_text().split("\n")[:-1]
        shown[name] = data["frames_as"], str([json.loads(line)["prompt"] for line in lines])
    assert [name for name in PROTOCOLS if shown[name][0] == "image"] == [
        "cambrian_p",
        "cambrian_s",
        "easi",
        "geothinker",
        "spatial_stack",
        "vg_llm",
    ]
    assert len({*shown.values()}) == 4  # the groups of stills ask alike


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "protocol", "options"),
    [
        ("spatial_mllm", "spatial_mllm", ()),
        ("spatial_stack", "spatial_stack", ("--model.fusion.decoder_layers", "[0]", "--model.fusion.hidden", "16")),
        ("qwen3_vl", "geovr", ()),  # which GeoVR is at inference
    ],
)
def test_a_model_is_tested_by_its_groups_protocol(
    run: Run, tmp_path: Path, model: str, protocol: str, options: tuple[str, ...]
) -> None:
    """The rows of docs/results.md at the tiny scale, of random weights."""
    shorter = [f"--{option}={value}" for option, value in FEWER.items()]
    configs = ("--config", f"{model}.yaml", "--config", f"protocol_{protocol}.yaml")
    run("test", *configs, *options, *shorter, "--model.allow_untrained", "true")
    metrics = json.loads((the_run(tmp_path) / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == protocol and metrics["protocol"]["departures"].keys() == FEWER.keys()
    assert metrics["counts"]["questions"] and not metrics["counts"]["failed"]
