"""A video in several spans, one per temporal patch with text between them, as Qwen3-VL shows it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.positions import layout_position_ids
from zoo.sequences.layout import ExtraTokens, Placeholders, SequenceLayout
from zoo.sequences.time_index import ConstantIndex, FrameNumberIndex, SpanIndex, StepIndex, TimeIndex, TimestampIndex

TEXT, START, END, VIDEO, IMAGE, PAD = 9, 1, 2, 3, 4, 0
Medium = tuple[str, int, int, int]  # "video" or "image", and (t, h, w) in patches


def random_batch(seed: int) -> list[list[Medium]]:
    """Up to three sequences of up to three videos and images."""
    draw = random.Random(seed)

    def medium() -> Medium:
        return draw.choice(("video", "image")), draw.randint(1, 4), draw.choice((2, 4)), 4

    return [[medium() for _ in range(draw.randint(0, 3))] for _ in range(draw.randint(1, 3))]


def layout_of(rows: list[list[Medium]], extra: ExtraTokens, in_spans: bool, side: str = "left") -> SequenceLayout:
    """The layout of a batch, with each temporal patch of a video in a span of its own, or each video in one."""
    sequences, grids = [], {"video": [], "image": []}  # type: ignore[var-annotated]
    for row in rows:
        ids = [TEXT]
        for kind, steps, height, width in row:
            steps = steps if kind == "video" else 1
            view = height * width // 4
            per_view = view + extra.count(view)
            token = VIDEO if kind == "video" else IMAGE
            runs = [per_view] * steps if in_spans else [steps * per_view]
            runs[-1] += extra.at_end if kind == "video" else 0
            for run in runs:
                ids += [*[TEXT] * 2, START, *[token] * run, END]
            grids[kind].append([steps, height, width])
        sequences.append(torch.tensor([*ids, TEXT]))
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD, padding_side=side)
    given: dict[str, Any] = {f"{k}_grid_thw": torch.tensor(g) for k, g in grids.items() if g}
    placeholders = Placeholders(VIDEO, IMAGE, START, in_spans)
    return SequenceLayout(padded, padded != PAD, placeholders=placeholders, extra_tokens=extra, **given)


def at_visual(layout: SequenceLayout, values: Tensor) -> Tensor:
    return values[layout.scatter(torch.ones_like(layout.span, dtype=torch.bool), False)]


@pytest.mark.parametrize("extra", ExtraTokens)
@pytest.mark.parametrize("seed", range(10))
def test_visual_tokens_are_those_of_the_videos_in_one_span(seed: int, extra: ExtraTokens) -> None:
    """Cameras, cells, centers, media: they differ in nothing but the text between them."""
    rows, side = random_batch(seed), ("left", "right")[seed % 2]
    many, one = (layout_of(rows, extra, in_spans, side) for in_spans in (True, False))
    assert many.media == one.media
    assert torch.equal(many.cell, one.cell) and torch.equal(many.is_extra, one.is_extra)
    for name in ("camera_index", "patch_centers"):
        assert torch.equal(*(at_visual(each, getattr(each, name)()) for each in (many, one)))
    steps = sum(medium.steps for medium in one.media)
    assert len(many.start) == steps >= len(one.start)


INDICES: list[TimeIndex] = [SpanIndex(), ConstantIndex(), StepIndex(), TimestampIndex(2.0), FrameNumberIndex(40)]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: type(index).__name__)
@pytest.mark.parametrize("seed", range(10))
def test_text_comes_behind_all_that_is_before_it(seed: int, index: TimeIndex) -> None:
    """After the last span of a video too, however far its time reaches."""
    rows = random_batch(seed)
    layout = layout_of(rows, list(ExtraTokens)[seed % 3], True)
    videos = [medium.steps for medium in layout.media if medium.kind == "video"]
    frames = [[10 * i for i in range(2 * steps)] for steps in videos]
    ids = layout_position_ids(layout, index, frame_indices=frames if index.requires_frames else None)
    visual = layout.scatter(torch.ones_like(layout.span, dtype=torch.bool), False)
    for row in range(len(ids[0])):
        own = ids[:, row, layout.mask[row]]
        is_text = ~visual[row, layout.mask[row]]
        assert (own[0, is_text] == own[1, is_text]).all() and (own[0, is_text] == own[2, is_text]).all()
        assert (own[:, -1] > own[:, :-1].amax()).all()
        text = own[0, is_text]
        assert (text.diff() > 0).all()


def test_time_of_the_views_of_a_video() -> None:
    """Four views of 2 x 2 tokens behind one word of text; before each, two words and a start, and an end after it."""
    layout = layout_of([[("video", 4, 4, 4)]], ExtraTokens.NONE, True)

    def times(index: TimeIndex) -> list[int]:
        return at_visual(layout, layout_position_ids(layout, index)[0])[::4].tolist()

    first = 1 + 3
    assert times(SpanIndex()) == [first + 6 * step for step in range(4)]  # 2 positions per view, and 4 of text
    assert times(ConstantIndex()) == [first] * 4
    assert times(TimestampIndex(20.0)) == [first + 40 * step for step in range(4)]


def test_prompts_that_do_not_match_their_grids() -> None:
    grid = torch.tensor([[2, 2, 2], [3, 2, 2]])
    placeholders = Placeholders(VIDEO, IMAGE, START, span_per_step=True)

    def read(*blocks: int) -> None:
        """Sequences with this many blocks of one token."""
        rows = [torch.tensor([TEXT, *[START, VIDEO, END] * count]) for count in blocks]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        SequenceLayout(ids, ids != PAD, placeholders=placeholders, video_grid_thw=grid)

    read(2, 3)
    with pytest.raises(ValueError, match="hold 4 blocks of videos, but video_grid_thw has 5 temporal patches"):
        read(2, 2)
    with pytest.raises(ValueError, match="temporal patches of a video do not follow each other in one sequence"):
        read(1, 4)
