"""Build a training batch of given sizes in memory, without data, as `python main.py plan` counts it."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

import torch

from zoo.geometry.base import SceneGeometry
from zoo.model import SpatialVLM
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import PreparedScene
from zoo.sequences.packing import IGNORED, Row
from zoo.tasks.training_cost import ANSWER, QUESTION, SPAN, SYSTEM, BatchSizes


def example_batch(
    model: SpatialVLM, sizes: BatchSizes, needs: ModelSpec | None = None, packs_scenes: bool = False
) -> Batch:
    """Return a training batch of these sizes, see `example_questions`."""
    builder = SequenceBuilder(model.model_spec(training=True))
    scenes, rows, scene_of = example_questions(model, sizes, needs or builder.spec)
    limits: dict[str, Any] = {"max_tokens": sizes.tokens_per_sequence, "packs_scenes": packs_scenes}
    sequences = builder.training(rows, scene_of, scenes, **limits)
    return Batch(scenes, builder.vision(scenes), sequences, records=[{"id": "example"}] * len(rows))


def example_questions(
    model: SpatialVLM, sizes: BatchSizes, needs: ModelSpec
) -> tuple[list[PreparedScene], list[Row], list[int]]:
    """Return scenes of these sizes, one row per question, and the scene of each row.

    Pixels are black, and cameras move along a line.
    """
    backbone, shown = model.backbone, sizes.shown_to(model.backbone)
    grid = shown.grid
    steps = grid[0]
    # 1. Scenes.
    views = TEMPORAL_PATCH_SIZE * steps
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = torch.arange(views) / 10
    geometry = SceneGeometry(
        world_to_camera=poses,
        K_normalized=torch.eye(3).repeat(views, 1, 1),
        depth=torch.ones(views, sizes.height, sizes.width)
        if needs.requires_depth or "depth" in needs.targets
        else None,
    )
    given = geometry if needs.requires_cameras or needs.requires_depth or needs.targets else None
    scenes = [
        PreparedScene(
            pixel_values=torch.zeros(shown.pixels, dtype=torch.uint8),
            grid_thw=grid,
            token_side=needs.frames.token_side(grid),
            kind=sizes.kind,
            frames=torch.zeros(views, 3, sizes.height, sizes.width, dtype=torch.uint8)
            if needs.requires_frames
            else None,
            geometry=given,
            cameras=model.sequence_builder.merge_cameras(given),
            frame_indices=tuple(range(views)),
        )
        for _ in range(sizes.scenes)
    ]
    # 2. One row per question.
    marks = backbone.placeholders
    visual = marks.video if sizes.kind == "video" else marks.image
    prompt, *texts = islice((i for i in count() if i not in marks[:3]), sizes.questions + 1)  # one token id each
    spans = steps if marks.span_per_step or sizes.kind == "image" else 1
    tokens = scenes[0].num_tokens(model.training_tokens)
    start = [] if marks.vision_start is None else [*[prompt] * (SPAN if spans > 1 else 0), marks.vision_start]
    span = [*start, *[visual] * (tokens // spans)]
    rows = []
    for text in texts:
        ids = torch.tensor([*[prompt] * SYSTEM, *span * spans, *[visual] * (tokens % spans), *[text] * QUESTION])
        labels = torch.full_like(ids, IGNORED)
        labels[-ANSWER:] = ids[-ANSWER:]
        rows.append(Row.of(ids, labels))
    return scenes, rows * sizes.scenes, [scene for scene in range(sizes.scenes) for _ in rows]
