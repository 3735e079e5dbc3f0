"""The table of docs/positions.md: the positions of one clip by every rule. Each number is computed.

    python -m docs.position_tables                         # updates docs/positions.md

The clip is the golden case `one_video` of transformers 4.51: 6 frames of 10 s at 30 fps, in 3 temporal patches of
2 x 3 visual tokens, between 6 tokens of text and 9 more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.video_utils import VideoMetadata

from datamodules.samplers.base import sampled_seconds_per_grid, seconds_per_grid
from timings.tables import filled, markdown
from zoo.positions import TextAfterVision, mrope_position_ids

DOCUMENT = Path(__file__).with_name("positions.md")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "rope_index"
FPS, NUM_FRAMES, CHOSEN = 30.0, 300, 6
TIMES_S = [i / FPS for i in range(NUM_FRAMES)]
FRAMES = np.linspace(0, NUM_FRAMES - 1, CHOSEN).round().astype(int).tolist()
Row = tuple[str, str, float, Tensor]  # the first two cells, seconds per grid step, and position ids (3, L)


def rows() -> Iterator[Row]:
    """Return the rows of the table."""
    golden = load_file(GOLDEN / "one_video.safetensors")
    yield "transformers 4.51", "the processor's default: 2 / 2 fps", 1.0, golden["pos_hf_tps2"][:, 0]
    sampled = 2 / VideoMetadata(NUM_FRAMES, fps=FPS, frames_indices=FRAMES).sampled_fps
    unknown = 2 / VideoMetadata(CHOSEN).sampled_fps
    yield "transformers 5", "2 / sampled fps, with the video's metadata", sampled, transformers_5(sampled)
    yield "transformers 5", "frames without metadata: 2 / 24 fps", unknown, transformers_5(unknown)
    yield "lmms-eval 0.7.3, on transformers 5", "with the video's metadata", sampled, transformers_5(sampled)
    clip = seconds_per_grid([TIMES_S[i] for i in FRAMES])
    own = sampled_seconds_per_grid(TIMES_S, CHOSEN)
    index = "--model.time_index TimestampIndex --model.time_index"
    for option, seconds, rule in (
        ("the default", 1.0, "max_thw"),
        (f"`{index}.seconds_per_grid 0.5`, as Spatial-MLLM's training", 0.5, "max_thw"),
        (f"`{index}.seconds clip`", clip, "max_thw"),
        (f"`{index}.seconds sampled_fps`", own, "max_thw"),
        ("the same with `--model.text_after_vision max_hw`", own, "max_hw"),
    ):
        yield "this zoo", option, seconds, this_zoo(seconds, rule)


def clip() -> tuple[Tensor, Tensor, dict[str, int]]:
    """Return token ids (1, L), the grid (1, 3) and the ids of placeholders."""
    golden, meta = load_file(GOLDEN / "one_video.safetensors"), json.loads((GOLDEN / "one_video.json").read_text())
    return golden["input_ids"], golden["video_grid_thw"], meta["token_ids"]


def this_zoo(seconds: float, rule: TextAfterVision) -> Tensor:
    """Return the position ids (3, L) of the clip."""
    ids, grid, tokens = clip()
    positions, _ = mrope_position_ids(
        ids,
        video_grid_thw=grid,
        seconds_per_grid=[seconds],
        image_token_id=tokens["image"],
        video_token_id=tokens["video"],
        vision_start_token_id=tokens["vision_start"],
        text_after_vision=rule,
    )
    return positions[:, 0]


@cache
def transformers_5(seconds: float) -> Tensor:
    """Return the position ids (3, L) of the clip, computed by the installed transformers."""
    ids, grid, tokens = clip()
    with torch.device("meta"):
        model = Qwen2_5_VLModel._from_config(Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2}))
    positions, _ = model.get_rope_index(
        ids,
        mm_token_type_ids=2 * (ids == tokens["video"]).int(),
        video_grid_thw=grid,
        second_per_grid_ts=torch.tensor([seconds]),
    )
    return positions[:, 0]


def document() -> str:
    """Return docs/positions.md with an up-to-date table."""
    ids, grid, tokens = clip()
    visual = ids[0] == tokens["video"]
    first, last = int(visual.nonzero()[0]), int(visual.nonzero()[-1])
    table = []
    for who, source, seconds, positions in rows():
        per_patch = positions[0, first : last + 1].reshape(int(grid[0, 0]), -1)[:, 0] - first
        table.append(
            {
                "who": who,
                "where the number comes from": source,
                "seconds per patch": f"{seconds:.3g}",
                "T of the patches": ", ".join(map(str, per_patch.tolist())),
                "text goes on at": int(positions[0, last + 1]) - first,
            }
        )
    return filled(DOCUMENT, {"positions": markdown(table)})


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
