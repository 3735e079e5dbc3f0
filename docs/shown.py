"""Write studies/shown.md: how often samplers find the panel of a dwelling camera, and what models answer then.

    python -m docs.shown runs/studies/sampling

The frames are those of the runs' predictions.jsonl. The rooms are drawn again, and rendered to know what a frame shows.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from datamodules import PanelDwelling, PanelRooms
from datamodules.sources.rooms import render
from timings.tables import markdown
from zoo.cameras.poses import pose_distance
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

DOCUMENT = Path(__file__).parents[1] / "studies" / "shown.md"
TEST_ROOMS = PanelRooms(PanelDwelling(), frames=64, seed=1)  # as in studies/sampling.yaml
SAME_VIEW_DEG = 10.0  # two views are at least 20 degrees apart, and the camera shakes by less than 5
TEXT = """# Do the selected frames show the panel?

The runs of [sampling.md](sampling.md) answer about a panel that few frames of a video show.

Even where their frames show the panel, models that are trained on uniform frames score lower than on diverse ones.

- *Panel* is the share of test videos with a part of the panel in the selected frames.
- *And start* is the share whose first selected frame is also of the view to which the question refers.
- *Angle* is between the two frames of a token, the mean over tokens.
- The scores are means over seeds and videos: of the videos that show both, and of the others. Frames without the
  panel still tell where it is not, so the others need not fall to the constant.

`python -m docs.shown runs/studies/sampling` makes this file from the runs.

"""


class Video(NamedTuple):
    """What the frames of a test video show.

    Attributes:
        shows_panel: Whether a frame shows a part of the panel.
        world_to_camera: Pose of each frame.
        answer: The ground truth.
    """

    shows_panel: Bool[np.ndarray, " T"]
    world_to_camera: Float64[Tensor, "T 4 4"]
    answer: str


@cache
def video_of(rooms: PanelRooms, index: int) -> Video:
    """Draw and render test video `index`."""
    rng = rooms.generator("test", index)
    drawn = rooms.draw("test", index, rng)
    rendering = render(drawn.scene, drawn.world_to_camera, drawn.K_px, rooms.size, rooms.size)
    (question,) = drawn.ask(rendering.ids, rng)
    return Video((rendering.ids == 0).any((1, 2)), torch.from_numpy(drawn.world_to_camera), question.ground_truth)


def facts(rooms: PanelRooms, record: dict[str, Any]) -> dict[str, float | bool]:
    """Return what the selected frames of a line of predictions.jsonl show, and its score.

    Raises:
        InputError: The answer is about another room.
    """
    video = video_of(rooms, int(record["scene"].rpartition("_")[2]))
    if video.answer != record["ground_truth"]:
        raise InputError(f"{record['scene']}: the answer is about another room: TEST_ROOMS must be those of the study")
    frames, poses = record["frames"], video.world_to_camera
    first, second = np.reshape(frames, (-1, TEMPORAL_PATCH_SIZE)).T.tolist()
    from_start = pose_distance(poses[frames[0]], poses[0])[0].rad2deg()
    shows_panel = bool(video.shows_panel[frames].any())
    return {
        "panel": shows_panel,
        "both": shows_panel and bool(from_start < SAME_VIEW_DEG),
        "angle": float(pose_distance(poses[first], poses[second])[0].rad2deg().mean()),
        "score": record["score"],
    }


def mean(scores: pd.Series) -> str:
    """Return a mean as a cell, empty if there are no scores."""
    return f"{scores.mean():.3f}" if len(scores) else ""


def table(rooms: PanelRooms, study: Path) -> list[dict[str, str]]:
    """Return a row per setting, from the folders <setting>-<seed> of a study's runs."""
    rows = []
    for file in sorted(study.glob("*/tests/own/predictions.jsonl")):
        setting = file.parents[2].name.rpartition("-")[0]
        records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        rows += [{"setting": setting, **facts(rooms, record)} for record in records]
    return [
        {
            "setting": str(setting),
            "panel": f"{own['panel'].mean():.2f}",
            "and start": f"{own['both'].mean():.2f}",
            "angle": f"{own['angle'].mean():.0f}°",
            "score, both visible": mean(own["score"][own["both"]]),
            "score, others": mean(own["score"][~own["both"]]),
        }
        for setting, own in pd.DataFrame(rows).groupby("setting")
    ]


if __name__ == "__main__":
    DOCUMENT.write_text(TEXT + markdown(table(TEST_ROOMS, Path(sys.argv[1]))) + "\n", encoding="utf-8")
