"""Qwen3-VL: equal to the stock model, DeepStack beside fusions, and a video of several spans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import each_once
from tests.zoo import asking, showing
from tests.zoo.showing import SAMPLES
from tests.zoo.stock import SHOWN, compare_with_stock, greedy_as_stock
from zoo import (
    AddFusion,
    Cameras,
    CameraTokenFusion,
    ConstantIndex,
    DatasetGeometry,
    DeepFusion,
    Fusion,
    InputError,
    LoRA,
    PRoPE,
    Qwen3VL,
    Qwen25VL,
    SpatialVLM,
    TemporalSection,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyVGGT,
    VideoQATask,
)
from zoo.backbones.qwen3_vl import Qwen3VLAttention
from zoo.geometry.base import encoder_frames


def tiny(**options: Any) -> TinyQwen3VL:
    return TinyQwen3VL(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32, **options)


SHOWN_TOGETHER: dict[str, list[str]] = {
    **{name: [name] for name in SHOWN},
    "all": [*SHOWN],
    "all, text": [*SHOWN, "text"],
}


@pytest.mark.parametrize(("samples", "attention"), each_once(SHOWN_TOGETHER, ["sdpa", "eager"]))
def test_logits_and_gradients_are_the_stock_models(samples: list[str], attention: str) -> None:
    """Left-padded, with videos, pictures, and both."""
    ours, gradients = compare_with_stock(tiny(attn_implementation=attention), samples, atol=2e-6)
    assert any("deepstack_merger_list" in name for name in gradients)
    for name, parameter in ours.backbone.vlm.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_greedy_answers_are_the_stock_models() -> None:
    assert len(greedy_as_stock(tiny(), SHOWN)) > 2


# ---- cameras in the decoder --------------------------------------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"backbone": tiny(dtype="bfloat16", seed=0)},
    "lora": {"lora": LoRA(r=4)},
    "checkpointing": {"gradient_checkpointing": True},
}


def cameras(seed: int | None) -> Cameras:
    """Two sequences of up to four views; identities without a seed."""
    poses, K = torch.eye(4).repeat(2, 4, 1, 1), torch.eye(3).repeat(2, 4, 1, 1)
    if seed is not None:
        skew = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        poses[..., :3, :3], poses[..., 0, 3], K[..., 0, 0] = (
            torch.linalg.matrix_exp(skew - skew.mT),
            skew[..., 0, 1],
            0.9,
        )
    return Cameras(poses, K)


@pytest.mark.parametrize(
    ("placement", "variant"), each_once({"all channels": None, "TemporalSection": TemporalSection()}, [*VARIANTS])
)
def test_identity_cameras_change_nothing_and_others_do(placement: TemporalSection | None, variant: str) -> None:
    """Behind the norms of queries and keys, which cancel the size of what comes before them."""
    options = {"backbone": tiny(seed=0), "time_index": ConstantIndex(), "learning_rates": asking.RATES} | VARIANTS[
        variant
    ]
    torch.manual_seed(0)
    stock, task = VideoQATask(**options), VideoQATask(camera_encoding=PRoPE(placement), **options)
    given = showing.batch(task.model, [SAMPLES["a video"], SAMPLES["two videos"]], side="right")
    real = given["attention_mask"].bool()
    reference = stock.model.logits(**given)[real]
    assert torch.equal(task.model.logits(**given, cameras=cameras(None))[real], reference)
    moved = task.model.logits(**given, cameras=cameras(1))[real]
    assert (moved - reference).abs().max() > 1e-3
    moved.float().square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.model.backbone.decoder.parameters())
    with pytest.MonkeyPatch.context() as patch:  # the control
        patch.setattr(Qwen3VLAttention, "normalize_heads", lambda self, q, k: (q, k))
        without_norms = task.model.logits(**given, cameras=cameras(None))[real]
    assert (without_norms - reference).abs().max() > 1e-3


# ---- DeepStack beside a fusion -----------------------------------------------------------------------------------


DEEP = partial(DeepFusion, decoder_layers=[1])  # beside DeepStack's layers 0 and 1


def fused(kind: Callable[..., Fusion] = AddFusion, **switches: Any) -> SpatialVLM:
    """An untrained fusion adds nothing to the 2D tokens and their features."""
    torch.manual_seed(0)
    fusion = partial(kind, **switches)
    return SpatialVLM(tiny(seed=0), geometry=lambda: TinyVGGT(embed_dim=32, depth=2, num_heads=2), fusion=fusion)


@pytest.mark.parametrize("kind", [AddFusion, DEEP], ids=["add", "deep"])
@torch.no_grad()
def test_features_for_the_first_layers_stay_those_of_the_2d_branch_or_are_left_out(kind: Callable[..., Fusion]) -> None:
    plain, kept, left_out = SpatialVLM(tiny(seed=0)), fused(kind), fused(kind, deepstack=False)
    given = showing.batch(plain, [SAMPLES["stills and videos"], SAMPLES["a video"]])
    expected = showing.logits(plain, given)
    assert all(torch.equal(a, b) for a, b in zip(showing.logits(kept, given), expected, strict=True))
    without = showing.logits(left_out, given)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(without, expected, strict=True))
    for merger in plain.backbone.vlm.model.visual.deepstack_merger_list:  # features of zeros
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    for a, b in zip(showing.logits(plain, given), without, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [AddFusion, DEEP], ids=["add", "deep"])
@torch.no_grad()
def test_without_the_2d_branch_its_pixels_reach_no_layer(kind: Callable[..., Fusion]) -> None:
    for branch, moves in (("3d", False), ("both", True), ("2d", True)):
        model = fused(kind, active_branches=branch)
        given = showing.batch(model, [SAMPLES["a video"]])
        before, after = (
            showing.logits(model, given, pixel_values_videos=pixels)[0]
            for pixels in (given["pixel_values_videos"], given["pixel_values_videos"].flip(0))
        )
        assert torch.equal(before, after) != moves, branch


def test_what_serves_features_that_are_left_out_is_not_trained() -> None:
    name = "model.backbone.vlm.model.visual.deepstack_merger_list.0.linear_fc1.weight"
    for switches, trains in (({}, True), ({"deepstack": False}, False), ({"active_branches": "3d"}, False)):
        task = VideoQATask(
            backbone=tiny(),
            geometry=lambda: TinyVGGT(embed_dim=32, depth=2, num_heads=2),
            fusion=partial(AddFusion, **switches),
            learning_rates=asking.RATES,
        )
        assert dict(task.named_parameters())[name].requires_grad == trains
        assert task.part_of(name) == "connector"


def test_appended_tokens_have_no_such_features() -> None:
    features = torch.randn(2, 3, 6, 8)
    fitted = CameraTokenFusion(8, 4).fit_deepstack(features, 7)
    assert torch.equal(fitted[:, :, :6], features) and not fitted[:, :, 6:].any()
    assert CameraTokenFusion(8, 4, deepstack=False).fit_deepstack(features, 7).shape == (0, 3, 7, 8)


# ---- patches of 16 beside those of 14 ----------------------------------------------------------------------------


def frames_of(model: SpatialVLM, frames: Tensor) -> Tensor:
    assert model.geometry is not None
    return encoder_frames(frames, model.backbone.patch_size, model.geometry.patch_size)


def test_an_encoder_with_patches_of_its_own_gets_resampled_frames() -> None:
    model = fused()
    frames = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    small = frames_of(model, frames)
    assert small.shape == (2, 3, 56, 84) and 0 <= small.min() < small.max() <= 1
    same = SpatialVLM(geometry=TinyVGGT, fusion=AddFusion)  # on Qwen2.5-VL, of 14 as well
    assert torch.equal(frames_of(same, frames), frames / 255)


def test_the_datasets_rays_are_those_of_patches_of_16() -> None:
    task = asking.build("prope.yaml", family="Qwen3-VL")
    shown = asking.batch(task, asking.scene("a", family="Qwen3-VL")).scenes[0]
    (found,) = task.model.geometry([shown.frames.float() / 255], [shown.geometry])
    assert found.patches.shape[:3] == (6, 4, 6) and found.patches.shape[1:3] == tuple(shown.grid_thw[1:])
    shown.geometry.depth = None  # in the size of the frames
    (other,) = DatasetGeometry(depth=False)([torch.zeros(6, 3, 56, 84)], [shown.geometry])
    assert torch.equal(found.patches, other.patches)  # the same grid of rays, whatever the size of its patches


def test_a_baseline_with_a_backbone_of_another_family_is_an_error() -> None:
    for baseline, backbone in ((Qwen3VL, TinyQwen25VL), (Qwen25VL, TinyQwen3VL)):
        with pytest.raises(InputError, match=f"{baseline.__name__} with the backbone {backbone.__name__}"):
            baseline(backbone=backbone())
    assert isinstance(Qwen3VL().model.loader, TinyQwen3VL)
