"""What the model computes for encodings: the saddle-balanced reference view, median depth, and 3D points."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import RATES, inputs_of, logits_of, prompts_of, tiny_backbone, tiny_batch, tiny_scene
from tests.zoo.two_videos import cameras, sequences
from zoo import (
    GTA,
    CameraEncoding,
    Cameras,
    ConstantIndex,
    GeometryCache,
    InputError,
    PointRoPE,
    PRoPE,
    TemporalSection,
    TinyVGGT,
    VideoQATask,
    ViewAttention,
)
from zoo.backbones.base import VisualTokens
from zoo.cameras import SceneGeometry
from zoo.cameras.cameras import balanced_views, saddle_balanced
from zoo.cameras.scene_geometry import PatchCameras, merge_cameras
from zoo.encodings.base import HeadLayout
from zoo.media import batch_of_media
from zoo.scene_encoding import EncodedScene, add_scene_statistics, encode_vision, known_depth, scene_points
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import PreparedScene


def random_views(count: int, seed: int = 0, channels: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(count, 1, generator=generator, dtype=torch.float64) + 0.5
    return sizes * torch.randn(count, channels, generator=generator, dtype=torch.float64)


def by_definition(views: list[list[float]]) -> int:
    """Compute the rule with Python numbers."""
    norms = [sum(x * x for x in view) ** 0.5 for view in views]
    units = [[x / norm for x in view] for view, norm in zip(views, norms, strict=True)]
    others = range(len(views))
    similarity = [
        statistics.mean(sum(x * y for x, y in zip(units[i], units[j], strict=True)) for j in others if j != i)
        for i in others
    ]
    cost = [0.0] * len(views)
    for measure in (similarity, norms, [statistics.variance(unit) for unit in units]):
        low, high = min(measure), max(measure)
        cost = [c + abs((x - low) / (high - low) - 0.5) for c, x in zip(cost, measure, strict=True)]
    return cost.index(min(cost))


@pytest.mark.parametrize("seed", range(8))
def test_matches_definition(seed: int) -> None:
    views = random_views(3 + seed % 5, seed)
    chosen = int(saddle_balanced(views))
    assert chosen == by_definition(views.tolist())
    assert int(saddle_balanced(5.0 * views)) == chosen  # invariant to a common scale
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))
    assert int(order[saddle_balanced(views[order])]) == chosen
    assert int(saddle_balanced(views.float())) == int(saddle_balanced(views.float().double()))


@pytest.mark.parametrize("seed", range(8))
def test_views_without_a_camera_count_for_nothing(seed: int) -> None:
    """They enter neither the similarity to other views nor the range of a measure."""
    views = random_views(7, seed)
    present = torch.rand(7, generator=torch.Generator().manual_seed(seed)) < 0.7
    own = present.nonzero()[:, 0].tolist()
    expected = by_definition(views[present].tolist()) if len(own) > 2 else 0
    assert int(saddle_balanced(views, present)) == (own[expected] if own else 0)
    views[~present] *= 100
    assert int(saddle_balanced(views, present)) == (own[expected] if own else 0)


def test_few_or_identical_views_choose_the_first() -> None:
    views = random_views(6)
    assert int(saddle_balanced(views[:2])) == 0 == int(saddle_balanced(torch.ones(4, 8)))
    assert int(saddle_balanced(views, torch.arange(6) == 4)) == 4
    assert int(saddle_balanced(views, torch.zeros(6, dtype=torch.bool))) == 0
    assert len({int(saddle_balanced(random_views(5, seed))) for seed in range(20)}) == 5  # the control


def test_scenes_of_a_sample_are_concatenated() -> None:
    tokens = random_views(10, channels=4)
    has_camera = torch.tensor([[True, True, True, True, False], [True] * 5, [True] * 5])
    # sample 0: scenes of 3 and 1 views with two tokens each; sample 1: text; sample 2: 2 views with one token each
    views = tokens[:8].view(4, 2, 4).mean(1)
    chosen = balanced_views([[views[:3], views[3:]], [], [tokens[8:]]], has_camera)
    assert chosen.tolist() == [int(saddle_balanced(views)), 0, 0]


# ---- in a model ------------------------------------------------------------------------------------------------------


def model(**parts: Any) -> VideoQATask:
    torch.manual_seed(0)
    return VideoQATask(backbone=tiny_backbone(), learning_rates=RATES, allow_untrained=True, **parts).eval()


def videos() -> dict[str, Any]:
    """Return two videos: the balanced view of the first is its third view; the second has only two views."""
    given = sequences()
    pixels = torch.randn(given["pixel_values_videos"].shape, generator=torch.Generator().manual_seed(2))
    return {**given, "pixel_values_videos": pixels}


def as_batch(ours: VideoQATask, given: dict[str, Any]) -> Batch:
    media: Any = {name: each for name, each in given.items() if name not in ("input_ids", "attention_mask")}
    return batch_of_media(ours.model.sequence_builder, given["input_ids"], given["attention_mask"], media)


def balanced(**more: Any) -> dict[str, Any]:
    return {
        "camera_encoding": PRoPE(TemporalSection(), reference="saddle_balanced", **more),
        "time_index": ConstantIndex(),
    }


@torch.no_grad()
def test_model_chooses_from_its_2d_tokens() -> None:
    ours, given = model(**balanced()), videos()
    real = given["attention_mask"].bool()
    expected = []
    for each in encode_vision(ours.model.backbone, as_batch(ours, given)):
        expected.append(int(saddle_balanced(each.visual.tokens.mean(1))))
    assert expected == [2, 0]
    found = ours.model.logits(**given, cameras=cameras())[real]
    ours.model.camera_encoding.reference = None  # type: ignore[union-attr]
    by_hand = cameras().to(dtype=torch.float64).with_reference(torch.tensor(expected)).canonical("saddle_balanced")
    torch.testing.assert_close(ours.model.logits(**given, cameras=by_hand)[real], found, rtol=0, atol=0)
    ours.model.camera_encoding.reference = "first"  # type: ignore[union-attr]
    assert (ours.model.logits(**given, cameras=cameras())[real] - found).abs().max() > 1e-4


@torch.no_grad()
def test_view_mixer_uses_the_balanced_view() -> None:
    """The encoding uses translations alone, since only they depend on the reference view."""

    def mixer(width: int) -> ViewAttention:
        return ViewAttention(width, 16, GTA(pose_component="translation", reference="saddle_balanced"))

    ours, given = model(view_mixer=mixer), videos()
    assert ours.model.view_mixer is not None
    torch.nn.init.normal_(ours.model.view_mixer.o.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    found = ours.model.logits(**given, cameras=cameras())
    ours.model.view_mixer.encoding.reference = "first"  # type: ignore[union-attr]
    moved = (ours.model.logits(**given, cameras=cameras()) - found).abs().amax(-1)
    assert moved[0].max() > 1e-4 and moved[1].max() == 0


@torch.no_grad()
def test_scenes_of_a_batch_have_independent_references() -> None:
    """The scenes have different lengths, as in training."""
    ours = model(**balanced())
    scenes = [tiny_scene("a", steps=4), tiny_scene("b", steps=5, seed=1)]
    asked = tiny_batch(ours, *scenes)
    every = logits_of(ours, inputs_of(ours, asked))
    rows = [0, len(scenes[0].questions)]
    for row, each in enumerate(scenes):
        alone = tiny_batch(ours, each)
        (expected,) = logits_of(ours, inputs_of(ours, alone, slice(0, 1)))
        torch.testing.assert_close(every[rows[row], : len(expected)], expected, rtol=0, atol=2e-5)


# ---- depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["PRoPE", "PointRoPE", "views"])
@torch.no_grad()
def test_median_depth_makes_the_unit_cancel(part: str) -> None:
    """The same scene in feet gives the same logits, and with scale `none` other logits."""
    for scale in ("median_depth", "none"):
        if part == "views":
            ours = model(view_mixer=lambda width, scale=scale: ViewAttention(width, 16, PRoPE(scale=scale)))
            torch.nn.init.normal_(ours.model.view_mixer.o.weight, std=0.3)  # type: ignore[union-attr, arg-type]
        elif part == "PRoPE":
            ours = model(camera_encoding=PRoPE(TemporalSection(), scale=scale), time_index=ConstantIndex())
        else:
            ours = model(camera_encoding=PointRoPE(scale=scale))
        assert ours.model_spec().requires_depth == (scale == "median_depth" or part == "PointRoPE")
        meters, feet = tiny_scene("a"), tiny_scene("a")
        feet.geometry.world_to_camera[:, :3, 3] *= 3.28  # type: ignore[union-attr, index]
        feet.geometry.depth *= 3.28  # type: ignore[union-attr, operator]
        logits = []
        for each in (meters, feet):
            asked = tiny_batch(ours, each)
            logits.append(logits_of(ours, inputs_of(ours, asked)))
        apart = (logits[0] - logits[1]).abs().max()
        assert apart < 1e-4 if scale == "median_depth" else apart > 1e-3


def test_median_depth_requires_depth() -> None:
    ours = model(camera_encoding=PRoPE(TemporalSection(), scale="median_depth"), time_index=ConstantIndex())
    bare = tiny_scene("a")
    bare.geometry.depth = None  # type: ignore[union-attr]
    with pytest.raises(InputError, match="--model.merged_camera first"):  # points are of the first frame
        scene_points(tiny_scene("a").geometry, 2, "mean")
    with pytest.raises(InputError, match="median_depth needs scenes with depth"):
        ours.model.encode_scenes(tiny_batch(ours, bare))


def test_scenes_of_a_sample_share_one_median_depth() -> None:
    """The order of the scenes does not matter."""

    def of(*depth: float) -> EncodedScene:
        cameras = PatchCameras(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1, dtype=torch.bool))
        tokens = VisualTokens(torch.empty(1, 1, 1), torch.empty(0, 1, 1, 1))
        shape = SceneGeometry(depth=torch.tensor(depth).view(1, 1, -1))
        return EncodedScene(PreparedScene(), tokens, cameras, depth=known_depth(shape))

    near, far, unknown = of(1.0, 2.0, 3.0, 4.0, 0.0), of(100.0, 200.0, 300.0), of(0.0, 0.0)
    rows = [[near, far], [far, near], [near], [far], [], [unknown, far]]
    two = Cameras(torch.eye(4).repeat(6, 2, 1, 1), torch.eye(3).repeat(6, 2, 1, 1))
    found = add_scene_statistics(two, rows, two.used_mask()).median_depth
    assert found is not None and found.tolist() == [4, 4, 2, 200, 1, 200]


def vggt() -> TinyVGGT:
    """Build a random VGGT with a field of view of one radian."""
    encoder = TinyVGGT(embed_dim=32, depth=2, num_heads=2, features=8, heads=("camera", "depth"))
    last = encoder.vggt.camera_head.pose_branch.fc2  # type: ignore[union-attr]
    if not last.bias.is_meta:
        last.weight.data[7:], last.bias.data[7:] = 0.0, 0.25  # four steps add up
    return encoder


def by_vggt(encoding: CameraEncoding, **more: Any) -> VideoQATask:
    return model(camera_encoding=encoding, camera_source="predicted", geometry=vggt, **more)


@pytest.mark.parametrize("kept", [False, True])
@torch.no_grad()
def test_points_from_predicted_depth(kept: bool, tmp_path: Path) -> None:
    """The encoding gets VGGT's depth along VGGT's rays, also when read back from the cache."""
    cache = {"geometry_cache": GeometryCache(str(tmp_path))} if kept else {}
    for _ in range(1 + kept):  # computed, then read from the cache
        ours = by_vggt(PointRoPE(), **cache)
        assert (
            not ours.model_spec().requires_depth
            and not ours.model_spec().requires_cameras
            and ours.model_spec().requires_frames
        )
        shown = tiny_scene("a")
        asked = tiny_batch(ours, shown)
        assert ours.model.geometry is not None
        (found,) = ours.model.geometry([asked.scenes[0].frames.float() / 255], [None], tokens=False)
        assert found.depth is not None and found.depth.shape == (6, 56, 84) and found.depth.min() > 0
        inputs = inputs_of(ours, asked, slice(0, 1))
        points = scene_points(found, 2).flatten(0, 2)
        assert points.isfinite().all()
        poses, K, *_ = merge_cameras(found)
        cameras = Cameras(poses[None], K[None])
        ids = torch.tensor(prompts_of(asked)[:1])
        index = torch.where(ids == ours.model.backbone.vlm.config.video_token_id, 0, -1)
        index[index == 0] = torch.arange(3).repeat_interleave(6)
        scattered = torch.full((*index.shape, 3), torch.nan, dtype=points.dtype)
        scattered[index >= 0] = points
        expected = PointRoPE().encode(
            cameras.with_index(index).with_tokens(points=scattered), HeadLayout.in_row(32, [4, 6, 6])
        )
        torch.testing.assert_close(inputs["camera_encoding"].cos, expected.cos, rtol=0, atol=1e-6)
