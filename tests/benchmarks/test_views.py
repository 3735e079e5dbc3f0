"""The comparison of samplers and pairings: a plan of runs that differ in just these, the corners first."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

import main
from benchmarks.views import CORNERS, MODELS, PAIRINGS, SAMPLERS, is_rest, planned

EVERY = [(0, *job) for job in product(MODELS, SAMPLERS, PAIRINGS)]


def config(words: tuple[str, ...], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0, end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_the_corners_come_first() -> None:
    runs = [planned(*job, ()) for job in EVERY]
    assert len({run.name for run in runs}) == len({run.fit for run in runs}) == len(EVERY)
    corners = len(MODELS) * len(CORNERS[0]) * len(CORNERS[1])
    assert [is_rest(job) for job in sorted(EVERY, key=is_rest)] == [False] * corners + [True] * (len(EVERY) - corners)


@pytest.mark.parametrize("model", MODELS)
def test_runs_differ_in_how_frames_are_chosen_alone(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, rest = [], []
    for sampler, pairing in [
        ("uniform", "consecutive"),
        ("space_aware", "merge_aware"),
        ("pose_farthest", "duplicate"),
    ]:
        found = config(planned(3, model, sampler, pairing, ()).fit, capsys, monkeypatch)
        data = found["data"]["init_args"]
        assert data["seed"] == 3 and data["num_frames"] == 8 and data["train_sampler"] is None
        assert found["model"]["class_path"].endswith(model)
        chosen.append([data.pop(part)["class_path"].rpartition(".")[2] for part in ("sampler", "frame_pairing")])
        rest.append(found)
    assert chosen == [
        ["UniformSampler", "Consecutive"], ["SpaceAwareSampler", "OffsetNeighbor"], ["PoseFarthestSampler",
        "Duplicate"],
    ]  # fmt: skip
    assert rest[0] == rest[1] == rest[2]
