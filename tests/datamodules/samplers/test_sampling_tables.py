"""The tables of studies/pairs.md and studies/shown.md: what selected frames merge, and whether they show a panel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules import PanelDwelling, PanelRooms
from datamodules.samplers import PoseFarthestSampler, UniformSampler
from docs import pairs, shown
from zoo.errors import InputError


def test_pairs_of_uniform_frames_differ_on_vsibenchs_trajectories_too(realdata: Path) -> None:
    scenes, points = pairs.vsibench(realdata / "scenes/vsibench_trajectories"), pairs.FixedDepth()
    found = [pairs.merged(scene, UniformSampler(), 16, points) for scene in scenes]
    assert np.median(np.concatenate([each.angle_deg for each in found])) == pytest.approx(44, abs=0.5)
    assert np.median(np.concatenate([each.distance_m for each in found])) == pytest.approx(0.69, abs=0.005)
    whole = pairs.merged(scenes[0], UniformSampler(), 90, points)  # the control: pairs of adjacent poses
    assert whole.coverage == 1.0 and np.median(whole.angle_deg) < 15
    assert np.median(whole.overlap) > 0.6 > np.median(found[0].overlap)
    maps = points.points(scenes[0])
    assert pairs.share_seen(maps, 3, by=3) == 1.0
    diverse = pairs.merged(scenes[0], PoseFarthestSampler(), 16, points)
    assert diverse.angle_deg.tolist() != found[0].angle_deg.tolist()
    document = pairs.DOCUMENT.read_text(encoding="utf-8")
    assert document.startswith(pairs.TEXT) and len(document.splitlines()) == len(pairs.TEXT.splitlines()) + 20


def test_scores_of_the_videos_whose_selected_frames_show_the_panel(tmp_path: Path) -> None:
    rooms = PanelRooms(PanelDwelling(), frames=64, seed=1)
    video = shown.video_of(rooms, 3)
    (of_panel,) = np.nonzero(video.shows_panel)
    panel, dwelling = int(of_panel[0]), [0, 1]
    selected = {"found": [*dwelling, panel, panel], "missed": [*dwelling, 2, 3], "late": [panel, panel]}
    for number, (setting, frames) in enumerate(selected.items()):
        folder = tmp_path / f"{setting}-0/tests/own"
        folder.mkdir(parents=True)
        line = {"scene": "panels/test_00003", "ground_truth": video.answer, "frames": frames, "score": number / 4}
        (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    rows = {row["setting"]: row for row in shown.table(rooms, tmp_path)}
    assert [rows[name]["panel"] for name in selected] == ["1.00", "0.00", "1.00"]
    assert [rows[name]["and start"] for name in selected] == ["1.00", "0.00", "0.00"]
    assert rows["found"]["score, both visible"] == "0.000" and rows["missed"]["score, others"] == "0.250"
    wrong = {"scene": "panels/test_00003", "ground_truth": "1", "frames": dwelling, "score": 0.0}
    with pytest.raises(InputError, match="about another room"):
        shown.facts(rooms, wrong)
