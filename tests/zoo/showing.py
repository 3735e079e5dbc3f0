"""Sequences that show videos and stills, with all that a model is given of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo import LoRA, SpatialVLM
from zoo.tasks import VideoQATask

Sample = list[tuple[Any, ...]]  # ("t", tokens), ("v", steps, rows, columns), ("i", rows, columns), in patches
SAMPLES: dict[str, Sample] = {
    "a video": [("t", 5), ("v", 2, 4, 6), ("t", 4)],
    "two videos": [("t", 2), ("v", 1, 4, 4), ("t", 1), ("v", 3, 2, 4), ("t", 7)],
    "stills": [("i", 4, 4), ("t", 2), ("i", 4, 4), ("i", 4, 4), ("t", 3)],
    "stills and videos": [("t", 1), ("v", 1, 2, 2), ("i", 2, 4), ("v", 2, 4, 6), ("t", 3), ("i", 2, 4), ("t", 2)],
    "text": [("t", 6)],
}


def show(model: SpatialVLM, sample: Sample, seed: int = 0) -> tuple[Tensor, dict[str, list[Any]]]:
    """(ids, media in order of appearance); the stills are one scene of each twice, where the first of them comes."""
    config, generator = model.backbone.vlm.config, torch.Generator().manual_seed(seed)
    side, span_per_step = model.backbone.patch_size, model.backbone.span_per_step
    spec, stills = model.model_spec(), sum(kind == "i" for kind, *_ in sample)
    ids: list[int] = []
    found: dict[str, list[Any]] = {}
    scene: list[Tensor] = []
    for kind, *what in sample:
        if kind == "t":
            ids += torch.randint(10, 200, (what[0],), generator=generator).tolist()
            continue
        steps, rows, columns = what if kind == "v" else (1, *what)
        name, suffix = ("video", "_videos") if kind == "v" else ("image", "")
        token_side = spec.frames.token_side((steps if kind == "v" else stills, rows, columns))
        per_view = model.extra_tokens.view_tokens(rows // token_side, columns // token_side)
        token = getattr(config, f"{name}_token_id")
        for step in range(steps) if span_per_step else [0]:
            tokens = per_view if span_per_step else steps * per_view
            times = [11, 12 + step] if span_per_step and kind == "v" else []  # stand for `<1.5 seconds>`
            ids += [*times, config.vision_start_token_id, *[token] * tokens, config.vision_end_token_id]
        pixels = torch.randn(steps * rows * columns, 6 * side**2, generator=generator)
        frames = torch.rand(2 * steps if kind == "v" else 1, 3, side * rows, side * columns, generator=generator)
        found.setdefault(f"pixel_values{suffix}", []).append(pixels)
        found.setdefault(f"{name}_grid_thw", []).append(torch.tensor([steps, rows, columns]))
        if kind == "v":
            before = found.setdefault("seconds_per_grid", [])
            before.append(1.5 + len(before))
            found.setdefault("frames", []).append([frames])
        elif scene:
            scene += [frames, frames]
        else:
            found.setdefault("frames", []).append(scene)
            scene += [frames, frames]
    if "frames" in found:  # stills of several sizes are refused before their frames are looked at
        found["frames"] = [torch.cat([f for f in each if f.shape == each[0].shape]) for each in found["frames"]]
    return torch.tensor(ids), found


def batch(model: SpatialVLM, samples: Sequence[Sample], side: str = "left", first_seed: int = 0) -> dict[str, Any]:
    """What `SpatialVLM.logits` takes; each sample has a seed of its own, so that it is the same in any company."""
    each = [show(model, sample, first_seed + i) for i, sample in enumerate(samples)]
    rows = [ids for ids, _ in each]
    masks = [torch.ones_like(row) for row in rows]
    given: dict[str, Any] = {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=0, padding_side=side),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side=side),
    }
    for name in dict.fromkeys(name for _, media in each for name in media):
        parts = [part for _, media in each for part in media.get(name, ())]
        given[name] = torch.stack(parts) if name.endswith("grid_thw") else parts
        if name.startswith("pixel_values"):
            given[name] = torch.cat(parts)
    return given


def logits(model: SpatialVLM, given: dict[str, Any], **other: Any) -> list[Tensor]:
    """Those of each sequence, without its padding."""
    with torch.no_grad():
        found = model.logits(**given | other)
    return [row[mask.bool()] for row, mask in zip(found, given["attention_mask"], strict=True)]


# ---- how a fusion starts -------------------------------------------------------------------------------------------

ROUNDED: dict[str, Any] = {"dtype": "bfloat16", "lora": LoRA(r=4)}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
STARTS = [  # families of backbones, and options of the task
    *(("Qwen2.5-VL", ROUNDED), ("Qwen3-VL", CHECKPOINTED), ("Qwen3.5", ROUNDED)),
    *(
        pytest.param(family, options, marks=pytest.mark.slow)
        for family, options in (("Qwen2.5-VL", CHECKPOINTED), ("Qwen3-VL", ROUNDED), ("Qwen3.5", CHECKPOINTED))
    ),
]


def check_start(
    task: Callable[..., VideoQATask],
    train: Callable[[VideoQATask], None],
    at_zero: set[str],
    family: str,
    options: dict[str, Any],
) -> None:
    """Check that a fusion starts without effect, that only some parameters learn then, and that later all do.

    Args:
        task: makes a task of a family, without the fusion if `fused` is false.
        train: gives the fusion an effect.
        at_zero: the names of those that learn at first.
        family: of the backbone.
        options: of the task.
    """
    plain, whole = task(family, fused=False, **options), task(family, **options)
    given = batch(whole.model, [SAMPLES[name] for name in ("a video", "stills and videos", "text")])
    real = given["attention_mask"].bool()
    reference = plain.model.logits(**given)[real].detach()
    for each in (plain, whole):  # nothing else learns
        each.requires_grad_(False)
    fusion: Any = whole.model.fusion.requires_grad_(True)  # type: ignore[union-attr]
    found = whole.model.logits(**given)[real]
    assert torch.equal(found, reference)
    found.float().square().mean().backward()
    assert {name for name, p in fusion.named_parameters() if p.grad.any()} == at_zero
    train(whole)
    whole.zero_grad()
    moved = whole.model.logits(**given)
    assert (moved[real] - reference).abs().max() > 0.05
    text = torch.zeros_like(real)
    text[2] = real[2]
    assert torch.equal(moved[text], plain.model.logits(**given)[text])  # a row without visual tokens
    moved[real].float().square().mean().backward()
    assert all(p.grad.abs().max() > 0 for name, p in fusion.named_parameters() if "k_proj" not in name)
    if "gradient_checkpointing" in options:
        other = task(family)
        train(other)
        other.model.logits(**given)[real].float().square().mean().backward()
        for mine, its in zip(fusion.parameters(), other.model.fusion.parameters(), strict=True):  # type: ignore
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-6)
