"""mRoPE position ids equal the golden ones, a slow reference implementation, and transformers 5."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from tests.zoo.layouts import sequence_layout
from zoo.positions import mrope_position_ids
from zoo.sequences.time_index import ConstantIndex, StepIndex, TimestampIndex

GOLDEN = Path(__file__).parents[2] / "golden" / "rope_index"
PAD, START, END, IMAGE, VIDEO = 0, 1, 2, 3, 4
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}


# ---- the official numbers ---------------------------------------------------------------------------------


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


# ---- an obvious slow version ------------------------------------------------------------------------------

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


def test_padding_changes_nothing_else() -> None:
    samples: list[Sample] = [[3, (VIDEO, 3, 4, 4), 2], [2, (VIDEO, 2, 2, 4)]]
    ids, mask, grids = write_batch(samples, "left")
    batched = mrope_position_ids(ids, mask.long(), **grids, **TOKENS)[0]
    alone, _, grid = write_batch(samples[1:], "left")
    assert torch.equal(batched[:, 1, mask[1]], mrope_position_ids(alone, **grid, **TOKENS)[0][:, 0])


def test_a_row_of_padding_only() -> None:
    ids = torch.tensor([[PAD, PAD], [9, 9]])
    positions, deltas = mrope_position_ids(ids, ids != PAD, **TOKENS)
    assert positions[:, 0].unique().tolist() == [1]
    assert deltas.tolist() == [[-2], [0]]


# ---- time -------------------------------------------------------------------------------------------------


def test_nominal_seconds_where_none_are_given() -> None:
    ids, mask, grids = write_batch([[1, (VIDEO, 4, 2, 2), 1]], "left")
    half = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=TimestampIndex(0.5))[0]
    assert torch.equal(half, mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=StepIndex())[0])
    given = mrope_position_ids(ids, mask, **grids, **TOKENS, seconds_per_grid=[1.0], time_index=TimestampIndex(0.5))
    assert torch.equal(given[0], mrope_position_ids(ids, mask, **grids, **TOKENS)[0])
    assert not torch.equal(given[0], half)


def test_constant_attribute_of_each_time_index() -> None:
    ids, mask, grids = write_batch([[1, (VIDEO, 4, 2, 4), 1]], "left")
    visual = sequence_layout(ids, mask, **grids, **TOKENS).camera_index() >= 0
    for time in TIMES.values():
        t = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=time)[0][0, visual]
        assert (len(t.unique()) == 1) == time.constant


# ---- transformers 5 ---------------------------------------------------------------------------------------


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
    """With fractions of seconds: earlier releases of transformers 5 cast them to integers, 5.24 does not.

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


# ---- errors -----------------------------------------------------------------------------------------------


def test_bad_arguments_are_errors() -> None:
    ids, mask, grids = write_batch([[1, (VIDEO, 2, 4, 4), 1]], "left")
    with pytest.raises(ValueError, match="1 videos, but video_grid_thw has 0 rows"):
        mrope_position_ids(ids, mask, **TOKENS)
    with pytest.raises(ValueError, match="0 images, but image_grid_thw has 1 rows"):
        mrope_position_ids(ids, mask, **TOKENS, video_grid_thw=grids["video_grid_thw"],
                           image_grid_thw=torch.tensor([[1, 2, 2]]))  # fmt: skip
    with pytest.raises(ValueError, match="sample 0 of the batch has fewer placeholder tokens"):
        mrope_position_ids(ids, mask, **TOKENS, video_grid_thw=torch.tensor([[4, 4, 4]]))
    with pytest.raises(ValueError, match="sample 0 of the batch has more placeholder tokens"):
        mrope_position_ids(ids, mask, **TOKENS, video_grid_thw=torch.tensor([[1, 4, 4]]))
    with pytest.raises((ValueError, TypeError), match="seconds_per_grid"):
        mrope_position_ids(ids, mask, **grids, **TOKENS, seconds_per_grid=[1.0, 1.0])
    with pytest.raises((ValueError, TypeError), match="text_after_vision"):
        mrope_position_ids(ids, mask, **grids, **TOKENS, text_after_vision="max")
