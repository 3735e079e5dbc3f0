"""What 2D tokens learn of their cameras before they are joined with 3D ones: stock at the start, never silently off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.cases import each_once
from tests.zoo.test_vlm import GRID, RATES, cameras, sequences, tiny
from zoo import (
    AddFusion,
    Cameras,
    ConcatSplitFusion,
    ConcatSplitMLLM,
    DatasetGeometry,
    InputError,
    LoRA,
    PRoPE,
    PRoPEMLLM,
)
from zoo.backbones.base import VisualTokens
from zoo.cameras.scene_geometry import PatchCameras
from zoo.encodings import GTA, CaPE, RayAttention, RayEmbedding, ViewAttention
from zoo.encodings.testing import random_cameras
from zoo.geometry import SceneGeometry
from zoo.scene_encoding import EncodedScene, fuse_scenes
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

WIDTH = 64  # of `tiny`

GEOMETRY: dict[str, Any] = {"geometry": lambda: DatasetGeometry(depth=False)}
FRAMES = [torch.zeros(2 * int(t), 3, 14 * int(h), 14 * int(w)) for t, h, w in GRID]
FUSIONS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "add": AddFusion,
    "channels": ConcatSplitFusion,
}
VIEWS: dict[str, Callable[[int], nn.Module]] = {
    "PRoPE": lambda width: ViewAttention(width, 16),
    "GTA": lambda width: ViewAttention(width, 16, GTA(apply_to="vo")),
    "CaPE": lambda width: ViewAttention(width, 16, CaPE()),
    "rays": RayEmbedding,
    "RayRoPE": RayAttention,
}


def model(views: Any = None, fusion: str = "channels", dtype: str = "float32", **more: Any) -> VideoQATask:
    torch.manual_seed(0)
    parts = {"view_mixer": views, "fusion": FUSIONS[fusion], **(GEOMETRY if fusion != "none" else {}), **more}
    return VideoQATask(backbone=tiny(dtype=dtype), learning_rates=RATES, **parts)


def woken(ours: VideoQATask) -> VideoQATask:
    """With an output projection that is no longer zero, as after training."""
    assert ours.model.view_mixer is not None
    generator = torch.Generator().manual_seed(3)
    for name, parameter in ours.model.view_mixer.named_parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            assert "norm" not in name
    return ours


def batch(fusion: str = "channels") -> dict[str, Any]:
    return {**sequences(), **({"frames": FRAMES} if fusion != "none" else {})}


@pytest.mark.parametrize(("views", "fusion"), each_once([*VIEWS], [*FUSIONS]))
def test_it_starts_without_effect_and_then_has_one(views: str, fusion: str) -> None:
    given = batch(fusion)
    without, ours = model(fusion=fusion), model(VIEWS[views], fusion)
    expected = without.model.logits(**given, cameras=cameras())
    assert torch.equal(ours.model.logits(**given, cameras=cameras()), expected)
    real = given["attention_mask"].bool()
    seen = woken(ours).model.logits(**given, cameras=cameras())
    assert (seen - expected)[real].abs().max() > 1e-3
    other = ours.model.logits(**given, cameras=cameras(2)) if fusion == "none" else None
    if other is not None:  # where no 3D token knows the cameras, they reach the logits by this branch alone
        assert (other - seen)[real].abs().max() > 1e-3


def test_prope_mllm_is_concat_split_before_training() -> None:
    torch.manual_seed(0)
    plain = ConcatSplitMLLM(backbone=tiny(), learning_rates=RATES, **GEOMETRY)
    torch.manual_seed(0)
    ours = PRoPEMLLM(None, backbone=tiny(), learning_rates=RATES, **GEOMETRY)
    given = batch()
    assert torch.equal(ours.model.logits(**given, cameras=cameras()), plain.model.logits(**given, cameras=cameras()))
    state = dict(plain.state_dict())
    assert state.keys() < ours.state_dict().keys() and all("view_mixer." in k for k in ours.state_dict().keys() - state)
    both = PRoPEMLLM(PRoPE(), backbone=tiny(), learning_rates=RATES, **GEOMETRY)  # in the decoder as well
    assert not torch.equal(
        both.model.logits(**given, cameras=cameras()), plain.model.logits(**given, cameras=cameras())
    )


@pytest.mark.parametrize("variant", [{}, {"lora": LoRA(r=4)}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_it_learns(variant: dict[str, Any]) -> None:
    ours, given = model(VIEWS["PRoPE"], **variant), batch()
    assert isinstance(ours.model.view_mixer, ViewAttention)
    for _ in range(2):  # the output first, since it is zero; then what is behind it
        ours.zero_grad()
        ours.model.logits(**given, cameras=cameras())[given["attention_mask"].bool()].float().square().mean().backward()
        assert ours.model.view_mixer.o.weight.grad is not None and ours.model.view_mixer.o.weight.grad.abs().max() > 0
        ours.model.view_mixer.o.weight.data -= ours.model.view_mixer.o.weight.grad
    assert ours.model.view_mixer.qkv.weight.grad is not None and ours.model.view_mixer.qkv.weight.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("views", VIEWS)
def test_a_view_that_the_index_leaves_out_is_left_out(views: str) -> None:
    """Whoever gives an index says with it which views have a camera: the others' poses are placeholders."""
    ours, given = woken(model(VIEWS[views], "none")), batch("none")
    every = ours.model.logits(**given, cameras=cameras())
    shown = given["input_ids"] == ours.model.backbone.vlm.config.video_token_id
    index = torch.where(shown, (shown.cumsum(1) - 1) // 4, -1)  # the first video has four tokens a view
    index[1] = torch.where(shown[1], (shown[1].cumsum(0) - 1) // 6, -1)
    assert torch.equal(ours.model.logits(**given, cameras=cameras().with_index(index)), every)
    known = cameras().with_index(index.masked_fill(index == 1, -1))
    poses = known.world_to_camera.clone()
    poses[:, 1] = cameras(5).world_to_camera[:, 1]
    without = ours.model.logits(**given, cameras=known)
    assert torch.equal(ours.model.logits(**given, cameras=known.with_poses(poses)), without)
    assert (without - every).abs().max() > 1e-3


def test_each_video_is_a_scene_of_its_own() -> None:
    """Views of one sequence don't look at those of another: a batch of two is two batches of one."""
    ours, given = woken(model(VIEWS["PRoPE"])), batch()
    together = ours.model.logits(**given, cameras=cameras())
    patches = GRID.prod(1).tolist()
    pixels = given["pixel_values_videos"].split(patches)
    for i in range(2):
        mask = given["attention_mask"][i].bool()
        own = ours.model.logits(
            given["input_ids"][i : i + 1, mask],
            torch.ones(1, int(mask.sum()), dtype=torch.long),
            pixel_values_videos=pixels[i],
            video_grid_thw=GRID[i : i + 1],
            frames=FRAMES[i : i + 1],
            cameras=cameras()[i : i + 1],
        )
        assert torch.allclose(own[0], together[i, mask], atol=2e-5)


def test_two_videos_of_one_sequence_have_their_own_cameras() -> None:
    ours = woken(model(VIEWS["PRoPE"], "none"))
    ids, mask = (sequences()[name] for name in ("input_ids", "attention_mask"))
    row = torch.cat([one[real.bool()] for one, real in zip(ids, mask, strict=True)])[None]
    pixels, poses = sequences()["pixel_values_videos"], cameras().world_to_camera
    steps = GRID[:, 0].tolist()

    def logits(second: torch.Tensor) -> torch.Tensor:
        both = torch.cat((poses[0, : steps[0]], second[: steps[1]]))[None]
        K = torch.eye(3).expand(1, both.shape[1], 3, 3)
        media = {"pixel_values_videos": pixels, "video_grid_thw": GRID, "cameras": Cameras(both, K)}
        return ours.model.logits(row, torch.ones_like(row), **media)[0]

    first, other = logits(poses[1]), logits(poses[1].flip(0))
    length = int(mask[0].sum())
    assert torch.equal(first[:length], other[:length])  # the first video's views don't see the second's
    assert (first[length:] - other[length:]).abs().max() > 1e-3


@pytest.mark.parametrize(("views", "fusion", "ragged"), each_once([*VIEWS], [*FUSIONS], [True, False]))
def test_scenes_of_one_grid_are_fused_together_as_if_alone(views: str, fusion: str, ragged: bool) -> None:
    ours = woken(model(VIEWS[views], fusion))
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[3, 2, 4], [2, 4, 4], [3, 2, 4], [3, 2, 4]])
    visual = [torch.randn(int(g.prod()) // 4, WIDTH, generator=generator) for g in grids]
    poses = Cameras(random_cameras(4, 3)[0].float(), torch.eye(3).expand(4, 3, 3, 3))
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool() if ragged else torch.ones(4, 3).bool()
    frames = [torch.zeros(2 * int(t), 3, 14 * int(h), 14 * int(w)) for t, h, w in grids]
    of_frames = [
        SceneGeometry(
            world_to_camera=poses.world_to_camera[i, : len(f) // 2].repeat_interleave(2, 0),
            K_normalized=poses.K_normalized[i, : len(f) // 2].repeat_interleave(2, 0),
        )
        for i, f in enumerate(frames)
    ]
    parts, geometry = ours.model, ours.model.geometry
    found = of_frames if geometry is None else geometry(frames, of_frames, cameras=False)

    def fuse(visual: Any, grids: Any, found: Any, poses: Cameras, present: torch.Tensor) -> list[EncodedScene]:
        shown = []
        for i, (tokens, grid) in enumerate(zip(visual, grids, strict=True)):
            steps = int(grid[0])
            own = tokens.unflatten(0, (steps, -1))
            patches = (each[i, :steps] for each in (poses.world_to_camera, poses.K_normalized, present))
            shown.append(
                EncodedScene(
                    LoadedScene(grid_thw=tuple(grid.tolist())),
                    VisualTokens(own, own.new_empty(0, *own.shape)),
                    PatchCameras(*patches, is_complete=not ragged),
                )
            )
        fused = fuse_scenes(shown, found, parts.fusion, parts.view_mixer)
        for each, tokens in zip(shown, visual, strict=True):
            assert torch.equal(each.visual.tokens.flatten(0, 1), tokens)
        return fused

    with torch.no_grad():
        together = fuse(visual, grids, found, poses, present)
        for i, (steps, _, _) in enumerate(grids.tolist()):
            one = slice(i, i + 1)
            (alone,) = fuse(visual[one], grids[one], found[one], poses[one].span(0, steps), present[one, :steps])
            shape = (steps, len(visual[i]) // steps)
            assert together[i].visual.tokens.shape == alone.visual.tokens.shape == (*shape, WIDTH)
            torch.testing.assert_close(together[i].visual.tokens, alone.visual.tokens, rtol=0, atol=1e-5)
            torch.testing.assert_close(together[i].raw_depth, alone.raw_depth, rtol=0, atol=1e-5)
            assert (alone.raw_depth is not None) == (views == "RayRoPE")
            assert alone.raw_depth is None or alone.raw_depth.shape == (*shape, 2)
        # the control: another scene of the same grid is another one
        others = fuse(visual, grids, found, poses[[2, 1, 0, 3]], present)
    assert (others[0].visual.tokens - together[0].visual.tokens).abs().max() > 1e-3
    torch.testing.assert_close(others[3].visual.tokens, together[3].visual.tokens, rtol=0, atol=1e-5)


def test_a_view_mixer_has_no_effect_without_the_2d_branch() -> None:
    only_3d = lambda *widths: ConcatSplitFusion(*widths, active_branches="3d")  # noqa: E731
    torch.manual_seed(0)
    ours = VideoQATask(backbone=tiny(), view_mixer=VIEWS["PRoPE"], fusion=only_3d, learning_rates=RATES, **GEOMETRY)
    before = ours.model.logits(**batch(), cameras=cameras())
    assert torch.equal(woken(ours).model.logits(**batch(), cameras=cameras()), before)


def test_heads_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(InputError, match="head_dim=24 does not fit ViewAttention"):
        model(lambda width: ViewAttention(width, 24))
