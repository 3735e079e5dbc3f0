"""mRoPE position ids equal the golden ones, a slow reference and transformers 5; time by frames and by poses."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from tests.zoo.cameras.test_cameras import eye_intrinsics, random_poses
from tests.zoo.decoder import sequence_layout
from zoo import (
    BackboneIndex,
    Cameras,
    ConstantIndex,
    FrameNumberIndex,
    PathLengthIndex,
    PoseDistanceIndex,
    PRoPE,
    SpanIndex,
    StepIndex,
    TemporalSection,
    TimeIndex,
    TimestampIndex,
)
from zoo.cameras import pose_distance
from zoo.cameras.poses import PoseMeasure
from zoo.model_spec import choose_time_index
from zoo.positions import layout_position_ids, mrope_position_ids
from zoo.sequences.layout import ExtraTokens, Placeholders, SequenceLayout

GOLDEN = Path(__file__).parents[2] / "golden" / "rope_index"
PAD, START, END, IMAGE, VIDEO = 0, 1, 2, 3, 4
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}


def golden_uses() -> list[tuple[str, str]]:
    paths = sorted(GOLDEN.glob("*.safetensors"))
    return [(p.stem, key) for p in paths for key in sorted(load_file(p)) if key.startswith("pos_")]


@pytest.mark.parametrize(("case", "key"), golden_uses())
def test_equals_the_official_positions(case: str, key: str) -> None:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    meta = json.loads((GOLDEN / f"{case}.json").read_text())
    seconds = meta["second_per_grid_ts"] if "list" in key else tensors.get("second_per_grid_ts")
    tokens_per_second = int(key.split("tps")[1].split("_")[0]) if "tps" in key else 2
    ids, deltas = mrope_position_ids(
        tensors["input_ids"],
        None if "nomask" in key else tensors["attention_mask"],
        image_grid_thw=tensors.get("image_grid_thw"),
        video_grid_thw=tensors.get("video_grid_thw"),
        seconds_per_grid=seconds,
        tokens_per_second=tokens_per_second,
        image_token_id=meta["token_ids"]["image"],
        video_token_id=meta["token_ids"]["video"],
        vision_start_token_id=meta["token_ids"]["vision_start"],
        time_index=StepIndex() if key == "pos_train2" else None,  # the trainer's rule for Qwen2-VL
    )
    assert torch.equal(ids, tensors[key])
    official = tensors.get(key.replace("pos_", "delta_"))
    assert official is None or torch.equal(deltas, official)


# ---- an obvious slow version -----------------------------------------------------------------------------------------


MediaSpan = tuple[int, int, int, int]  # the token (IMAGE or VIDEO) and (t, h, w) before merging

Sample = list[int | MediaSpan]  # a number of text tokens, or a run


def write_batch(samples: list[Sample], side: str) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    rows = []
    for sample in samples:
        row: list[int] = []
        for part in sample:
            if isinstance(part, int):
                row += [9] * part
            else:
                token, t, h, w = part
                row += [START, *[token] * (t * h * w // 4), END]
        rows.append(row)
    longest = max(map(len, rows))
    pads = [[PAD] * (longest - len(row)) for row in rows]
    ids = torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])
    runs = [part for sample in samples for part in sample if not isinstance(part, int)]
    grids = {token: [list(run[1:]) for run in runs if run[0] == token] for token in (IMAGE, VIDEO)}
    tensors = {token: torch.tensor(grid) if grid else None for token, grid in grids.items()}
    return ids, ids != PAD, {"image_grid_thw": tensors[IMAGE], "video_grid_thw": tensors[VIDEO]}


def slow_positions(
    samples: list[Sample], side: str, seconds: list[float], rule: str, time: str
) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, _ = write_batch(samples, side)
    positions, index = torch.ones(3, *ids.shape, dtype=torch.long), torch.full(ids.shape, -1)
    deltas, video = [], 0
    for row, sample in enumerate(samples):
        here: list[tuple[int, int, int]] = []
        steps: list[int] = []
        following, first_step = 0, 0

        def text(count: int, here: list = here, steps: list = steps) -> None:
            nonlocal following
            for _ in range(count):
                here.append((following,) * 3)
                steps.append(-1)
                following += 1

        for part in sample:
            if isinstance(part, int):
                text(part)
                continue
            text(1)
            token, T, H, W = part[0], part[1], part[2] // 2, part[3] // 2
            start, highest = following, 0
            for t in range(T):
                if token == IMAGE or time == "none":
                    at = 0
                elif time == "index":
                    at = t
                else:
                    at = int(torch.tensor(t, dtype=torch.float32) * torch.tensor(seconds[video]) * 2)
                for h in range(H):
                    for w in range(W):
                        here.append((start + at, start + h, start + w))
                        steps.append(first_step + t)
                        highest = max(highest, at, h, w)
            following = start + (highest + 1 if rule == "max_thw" else max(H, W))
            first_step += T
            video += token == VIDEO
            text(1)
        positions[:, row, mask[row]] = torch.tensor(here).T
        index[row, mask[row]] = torch.tensor(steps)
        deltas.append([max(max(p) for p in here) + 1 - ids.shape[1]])
    return positions, torch.tensor(deltas), index


TIMES = {"seconds": TimestampIndex(), "index": StepIndex(), "none": ConstantIndex()}


def random_samples(rng: random.Random, tokens: tuple[int, ...] = (IMAGE, VIDEO)) -> list[Sample]:
    def run() -> MediaSpan:
        token = rng.choice(tokens)
        return token, 1 if token == IMAGE else rng.randint(1, 5), 2 * rng.randint(1, 3), 2 * rng.randint(1, 3)

    return [
        [rng.randint(1, 6)] + [rng.choice((rng.randint(1, 4), run())) for _ in range(rng.randint(0, 4))]
        for _ in range(rng.randint(1, 4))
    ]


@pytest.mark.parametrize("rule", ["max_thw", "max_hw"])
@pytest.mark.parametrize("time", list(TIMES))
@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_the_slow_version(side: str, time: str, rule: str) -> None:
    rng = random.Random(f"{side} {time} {rule}")
    for _ in range(20):
        samples = random_samples(rng)
        ids, mask, grids = write_batch(samples, side)
        count = 0 if grids["video_grid_thw"] is None else len(grids["video_grid_thw"])
        seconds = [rng.choice((0.2, 0.5, 0.7, 1.0, 1.9)) for _ in range(count)]
        positions, deltas, index = slow_positions(samples, side, seconds, rule, time)
        fast = mrope_position_ids(
            ids,
            mask,
            **grids,
            **TOKENS,
            seconds_per_grid=seconds,
            time_index=TIMES[time],
            text_after_vision=rule,
        )
        assert torch.equal(fast[0], positions)
        assert torch.equal(fast[1], deltas)
        assert torch.equal(sequence_layout(ids, mask, **grids, **TOKENS).camera_index(), index)


def test_nominal_seconds_where_none_are_given() -> None:
    ids, mask, grids = write_batch([[1, (VIDEO, 4, 2, 2), 1]], "left")
    half = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=TimestampIndex(0.5))[0]
    assert torch.equal(half, mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=StepIndex())[0])
    given = mrope_position_ids(ids, mask, **grids, **TOKENS, seconds_per_grid=[1.0], time_index=TimestampIndex(0.5))
    assert torch.equal(given[0], mrope_position_ids(ids, mask, **grids, **TOKENS)[0])
    assert not torch.equal(given[0], half)


# ---- transformers 5 --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock() -> Qwen2_5_VLModel:
    config = Qwen2_5_VLConfig(
        text_config={"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 10},
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "tokens_per_second": 2},
    )
    with torch.device("meta"):
        return Qwen2_5_VLModel(config)


@pytest.mark.parametrize("side", ["left", "right"])
def test_max_hw_equals_transformers_5(stock: Qwen2_5_VLModel, side: str) -> None:
    """Fractions of seconds are kept, as in transformers 5.24; earlier releases of 5 cast them to integers.

    The deltas of transformers 5 count from the end of the unpadded row.
    """
    rng = random.Random(side)
    for _ in range(20):
        ids, mask, grids = write_batch(random_samples(rng), side)
        count = 0 if grids["video_grid_thw"] is None else len(grids["video_grid_thw"])
        seconds = torch.tensor([rng.choice((0.5, 0.7, 1.0, 1.3)) for _ in range(count)])
        kinds = torch.where(ids == IMAGE, 1, torch.where(ids == VIDEO, 2, 0))
        theirs, their_deltas = stock.get_rope_index(
            ids, kinds, **grids, second_per_grid_ts=seconds, attention_mask=mask.long()
        )
        ours, deltas = mrope_position_ids(
            ids, mask, **grids, **TOKENS, seconds_per_grid=seconds, text_after_vision="max_hw"
        )
        assert torch.equal(ours[:, mask], theirs[:, mask])
        assert torch.equal(deltas, their_deltas - (~mask).sum(1, keepdim=True))
    ids, mask, grids = write_batch([[1, (VIDEO, 8, 2, 2), 3]], side)  # the control: the rules differ after a long video
    rules = ("max_thw", "max_hw")
    old, new = (mrope_position_ids(ids, mask, **grids, **TOKENS, text_after_vision=rule)[0] for rule in rules)
    assert old[0, 0, -1] > new[0, 0, -1]


# ---- time by frames and poses ----------------------------------------------------------------------------------------


STEPS = 6
ONE_VIDEO: list[Sample] = [[2, (VIDEO, STEPS, 2, 2), 3]]  # one token per temporal patch


def times(time: TimeIndex, samples: Sequence[Sample] = ONE_VIDEO, **more: Any) -> Tensor:
    """Compute the time position of each visual token of the batch, from 0."""
    ids, mask, grids = write_batch(list(samples), "left")
    positions = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=time, **more)[0][0]
    index = sequence_layout(ids, mask, **grids, **TOKENS).camera_index()
    return torch.cat([row[visual] - row[visual].min() for row, visual in zip(positions, index >= 0, strict=True)])


def cameras(poses: Tensor, index: Tensor | None = None) -> Cameras:
    return Cameras(poses, eye_intrinsics(*poses.shape[:2]), index)


def track(*x: float) -> Tensor:
    """Return poses with the same orientation and centers (x, 0, 0)."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, len(x), 1, 1)
    poses[0, :, 0, 3] = -torch.tensor(x, dtype=torch.float64)
    return poses


def test_frame_number_index_follows_the_frames() -> None:
    even = times(FrameNumberIndex(span=10), frame_indices=[range(0, 2 * STEPS)])
    assert even.tolist() == [0, 2, 4, 6, 8, 10]
    bunched = times(FrameNumberIndex(span=100), frame_indices=[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 100, 100]])
    assert bunched.tolist() == [0, 1, 2, 3, 4, 100]
    backwards = times(FrameNumberIndex(span=10), frame_indices=[range(2 * STEPS, 0, -1)])
    assert backwards.tolist() == even.tolist()[::-1]
    single = times(FrameNumberIndex(span=10), frame_indices=[range(STEPS)])  # one frame per temporal patch, not merged
    assert single.tolist() == even.tolist()
    odd = times(FrameNumberIndex(span=10), frame_indices=[range(0, 2 * STEPS - 1)])  # the last frame is duplicated
    assert odd[:-1].tolist() == [0, 2, 4, 6, 8] and odd[-1] == 10
    apart = times(FrameNumberIndex(span=100), frame_indices=[[0, 40, 40, 40, 60, 60, 80, 80, 100, 100, 110, 130]])
    assert apart.tolist() == [0, 20, 40, 60, 80, 100]  # the mean of the two frames


def test_each_video_has_its_own_range() -> None:
    samples: list[Sample] = [[1, (VIDEO, 2, 2, 2), 1, (VIDEO, 3, 2, 2), 1], [2, (VIDEO, 2, 2, 2)]]
    ids, mask, grids = write_batch(samples, "right")
    frames = [[5, 5, 9, 9], [0, 0, 10, 10, 40, 40], [7, 7, 8, 8]]
    t = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=FrameNumberIndex(8), frame_indices=frames)[0][0]
    start = 2
    assert t[0, ids[0] == VIDEO].tolist() == [start, start + 8, start + 8 + 4, start + 8 + 4 + 2, start + 8 + 4 + 8]
    assert t[1, ids[1] == VIDEO].tolist() == [3, 11]


def test_path_length_and_distance_on_a_track() -> None:
    there_and_back = cameras(track(0, 1, 2, 3, 2, 0))
    assert times(PathLengthIndex(span=6), cameras=there_and_back).tolist() == [0, 1, 2, 3, 4, 6]
    assert times(PoseDistanceIndex(span=6), cameras=there_and_back).tolist() == [0, 2, 4, 6, 4, 0]
    two_sides = times(PoseDistanceIndex(span=6, reference="middle"), cameras=cameras(track(0, 1, 2, 3, 4, 6)))
    assert two_sides.tolist() == [6, 4, 2, 0, 2, 6]  # not injective: both ends share a position
    medoid = times(PoseDistanceIndex(span=3, reference="medoid"), cameras=cameras(track(0, 0, 1, 0, 0, 3)))
    assert medoid.tolist() == [0, 0, 1, 0, 0, 3]


def test_measure_and_weight_are_used() -> None:
    poses = random_poses(1, STEPS)
    angle, distance = pose_distance(poses[0, :1], poses[0])
    for measure, values in (("rotation", angle), ("center", distance), ("sum", angle + 0.2 * distance)):
        expected = (values / values.max() * 1000).round().long()
        weight = 0.2 if measure == "sum" else 1.0
        found = times(PoseDistanceIndex(measure, weight, span=1000), cameras=cameras(poses))  # type: ignore[arg-type]
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "time",
    [PoseDistanceIndex(), PoseDistanceIndex("log", reference="medoid"), PathLengthIndex(), PathLengthIndex("rotation")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pose_indices_are_invariant_to_a_change_of_world(time: TimeIndex, dtype: torch.dtype) -> None:
    poses, world = random_poses(1, STEPS), random_poses(1, 1, seed=4, scale=3.0)
    here = times(time, cameras=cameras(poses.to(dtype)))
    assert torch.equal(here, times(time, cameras=cameras((poses @ world).to(dtype))))
    assert not torch.equal(here, times(time, cameras=cameras(random_poses(1, STEPS, seed=9).to(dtype))))


@pytest.mark.parametrize(
    ("kind", "measure"),
    [("first", "rotation"), ("middle", "center"), ("medoid", "euclidean"), ("path", "sum"), ("path", "log")],
)
def test_poses_of_invalid_cameras_do_not_count(kind: Any, measure: PoseMeasure) -> None:
    """Several videos at once equal the valid poses of each video alone."""
    index = PathLengthIndex(measure) if kind == "path" else PoseDistanceIndex(measure, reference=kind)
    poses = random_poses(4, STEPS)
    known = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]]).bool()
    found = index.spread(index.pose_values(poses, known), known)
    for video, mask in enumerate(known):
        alone = poses[video, mask][None]
        expected = index.spread(index.pose_values(alone, torch.ones(1, int(mask.sum()), dtype=torch.bool))[0])
        torch.testing.assert_close(found[video, mask], expected, rtol=0, atol=1e-9)
        assert not found[video, ~mask].any()


def test_uniform_motion_does_not_depend_on_rounding_errors() -> None:
    """Halves are rounded up in every world."""
    poses = track(0, 1, 2, 3, 4, 8)
    for seed in range(5):
        moved = poses @ random_poses(1, 1, seed=seed)
        assert times(PathLengthIndex(span=4), cameras=cameras(moved.float())).tolist() == [0, 1, 1, 2, 2, 4]


@pytest.mark.parametrize("time", [PoseDistanceIndex(), PathLengthIndex()])
def test_static_single_and_missing_cameras(time: TimeIndex) -> None:
    static = random_poses(1, 1).expand(1, STEPS, 4, 4).clone()
    assert times(time, cameras=cameras(static)).tolist() == [0] * STEPS
    noise = torch.randn(1, STEPS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    static[..., :3, 3] += 1e-6 * noise
    assert times(time, cameras=cameras(static)).tolist() == [0] * STEPS
    static[..., :3, 3] += 1e-3 * noise
    assert times(time, cameras=cameras(static)).max() == 32
    static[..., :3, 3] = static[:, :1, :3, 3]
    assert times(time, [[1, (VIDEO, 1, 2, 2)]], cameras=cameras(static[:, :1])).tolist() == [0]

    ids, mask, grids = write_batch(ONE_VIDEO, "left")
    index = sequence_layout(ids, mask, **grids, **TOKENS).camera_index()
    none = times(time, cameras=cameras(track(0, 1, 2, 3, 4, 5), torch.full_like(index, -1)))
    assert none.tolist() == [0] * STEPS
    some = torch.where((index == 0) | (index == 3), -1, index)  # without the first and the fourth
    found = times(time, cameras=cameras(track(9, 1, 2, 9, 4, 5), some))
    span = 32
    assert found.tolist() == [0, 0, span // 4, span // 4, 3 * span // 4, span]


def test_a_protocols_seconds_are_for_backbones_that_count_them() -> None:
    given, own = BackboneIndex(seconds="sampled_fps"), TimestampIndex()
    chosen = choose_time_index(None, given, own)
    assert type(chosen) is TimestampIndex and chosen.seconds == "sampled_fps"
    text = SpanIndex()
    assert choose_time_index(None, given, text) is text
    constant = choose_time_index(PRoPE(TemporalSection()), given, own)
    assert type(constant) is ConstantIndex


# ---- a video in several spans, one per temporal patch, as Qwen3-VL shows it ------------------------------------------


TEXT = 9

Medium = tuple[str, int, int, int]  # "video" or "image", and (t, h, w) in patches


def random_batch(seed: int) -> list[list[Medium]]:
    """Draw up to three sequences of up to three videos and images."""
    draw = random.Random(seed)

    def medium() -> Medium:
        return draw.choice(("video", "image")), draw.randint(1, 4), draw.choice((2, 4)), 4

    return [[medium() for _ in range(draw.randint(0, 3))] for _ in range(draw.randint(1, 3))]


def layout_of(rows: list[list[Medium]], extra: ExtraTokens, in_spans: bool, side: str = "left") -> SequenceLayout:
    """Return the layout of a batch with a span per temporal patch, or a span per video."""
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


INDICES: list[TimeIndex] = [SpanIndex(), ConstantIndex(), StepIndex(), TimestampIndex(2.0), FrameNumberIndex(40)]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: type(index).__name__)
def test_text_comes_behind_all_that_is_before_it(index: TimeIndex) -> None:
    """Text behind a video starts after the video's highest position, however far its time reaches."""
    for seed in range(6):
        layout = layout_of(random_batch(seed), list(ExtraTokens)[seed % 3], True)
        videos = [medium.steps for medium in layout.media if medium.kind == "video"]
        frames = [[10 * i for i in range(2 * steps)] for steps in videos]
        ids = layout_position_ids(layout, index, frame_indices=frames if index.requires_frames else None)
        visual = layout.scatter(torch.ones_like(layout.span, dtype=torch.bool), False)
        for row in range(len(ids[0])):
            own = ids[:, row, layout.mask[row]]
            text = own[:, ~visual[row, layout.mask[row]]]
            assert (text == text[0]).all() and (text[0].diff() > 0).all()
            assert (own[:, -1] > own[:, :-1].amax()).all()


def test_time_of_the_views_of_a_video() -> None:
    """Four views of 2 x 2 tokens; two words and a start token precede each view, and an end token follows it."""
    layout = layout_of([[("video", 4, 4, 4)]], ExtraTokens.NONE, True)

    def times(index: TimeIndex) -> list[int]:
        return at_visual(layout, layout_position_ids(layout, index)[0])[::4].tolist()

    first = 1 + 3
    assert times(SpanIndex()) == [first + 6 * step for step in range(4)]  # 2 positions per view, and 4 of text
    assert times(ConstantIndex()) == [first] * 4
    assert times(TimestampIndex(20.0)) == [first + 40 * step for step in range(4)]


# ---- what does not match ---------------------------------------------------------------------------------------------


ONE = [[1, (VIDEO, 2, 4, 4), 1]]
POSED = dict(time_index=PathLengthIndex())
FRAMED = dict(time_index=FrameNumberIndex())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"video_grid_thw": None}, "video_grid_thw has 0 rows"),
        ({"image_grid_thw": torch.tensor([[1, 2, 2]])}, "image_grid_thw has 1 rows"),
        ({"video_grid_thw": torch.tensor([[4, 4, 4]])}, "fewer placeholder tokens"),
        ({"video_grid_thw": torch.tensor([[1, 4, 4]])}, "more placeholder tokens"),
        ({"seconds_per_grid": [1.0, 1.0]}, "seconds_per_grid"),
        ({"text_after_vision": "max"}, "text_after_vision"),
        (FRAMED, "pass frame_indices"),
        ({**FRAMED, "frame_indices": [range(4), range(4)]}, "one list per video"),
        ({**FRAMED, "frame_indices": [range(1)]}, "frame_indices has 1 frames"),
        (POSED, "PathLengthIndex requires cameras"),
        ({**POSED, "cameras": cameras(random_poses(1, 1))}, "cameras for 1"),
    ],
)
def test_what_does_not_match_is_an_error(given: dict[str, Any], said: str) -> None:
    ids, mask, grids = write_batch(ONE, "left")
    with pytest.raises((ValueError, TypeError), match=said):
        mrope_position_ids(ids, mask, **{**grids, **TOKENS, **given})
    assert mrope_position_ids(ids, mask, **grids, **TOKENS)[0].amax() > 1  # the control


def test_a_row_of_padding_only() -> None:
    ids = torch.tensor([[PAD, PAD], [9, 9]])
    positions, deltas = mrope_position_ids(ids, ids != PAD, **TOKENS)
    assert positions[:, 0].unique().tolist() == [1]
    assert deltas.tolist() == [[-2], [0]]


def test_prompts_that_do_not_match_their_grids() -> None:
    grid = torch.tensor([[2, 2, 2], [3, 2, 2]])
    placeholders = Placeholders(VIDEO, IMAGE, START, span_per_step=True)

    def read(*blocks: int) -> None:
        """Build sequences with this many blocks of one token."""
        rows = [torch.tensor([TEXT, *[START, VIDEO, END] * count]) for count in blocks]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        SequenceLayout(ids, ids != PAD, placeholders=placeholders, video_grid_thw=grid)

    read(2, 3)
    with pytest.raises(ValueError, match="hold 4 blocks of videos, but video_grid_thw has 5 temporal patches"):
        read(2, 2)
    with pytest.raises(ValueError, match="do not follow each other"):
        read(1, 4)
