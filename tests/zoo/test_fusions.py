"""Fusions: the official connector's numbers, and what each switch leaves of the two branches."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_
from tests.zoo.released import GOLDEN
from zoo import AddFusion, CameraTokenFusion, ConcatSplitFusion, Fusion, InputError
from zoo.fusions import ExtraTokens, merge_spatial
from zoo.geometry import SceneGeometry

CASES = sorted(path.stem for path in (GOLDEN / "connector").glob("*.safetensors"))
GRID = torch.tensor([3, 4, 6])  # steps, and patches a column and a row: 3 x 6 tokens
WIDTH, CHANNELS = 16, 5
FUSIONS: dict[str, tuple[type[Fusion], dict[str, Any]]] = {
    "add": (AddFusion, {}),
    "concat on the channel": (ConcatSplitFusion, {}),
    "concat on the token": (ConcatSplitFusion, {"axis": "token"}),
    "camera token appended": (CameraTokenFusion, {}),
    "camera token added": (CameraTokenFusion, {"mode": "add"}),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **switches: str) -> Fusion:
    """With weights that say something, the same whatever the switches."""
    kind, options = FUSIONS[name]
    fusion = kind(WIDTH, CHANNELS, **options, **switches)
    with torch.no_grad():
        for i, parameter in enumerate(fusion.parameters()):
            parameter.copy_(0.3 * draw(*parameter.shape, seed=i))
    return fusion.requires_grad_(False)


def scene(frames: int = 6) -> SceneGeometry:
    return SceneGeometry(patches=draw(frames, 4, 6, CHANNELS, seed=1), camera_tokens=draw(frames, CHANNELS, seed=2))


def change(geometry: SceneGeometry, name: str, frames: slice) -> SceneGeometry:
    """Other tokens in some frames."""
    found = SceneGeometry(**vars(geometry))
    value = getattr(geometry, name).clone()
    value[frames] = draw(*value[frames].shape, seed=9)
    setattr(found, name, value)
    return found


VISUAL = draw(18, WIDTH, seed=3)


# ---- the official connector ------------------------------------------------------------------------------------


def official_case(case: str, dtype: torch.dtype, eps: float = 1e-6) -> tuple[Tensor, dict[str, Tensor]]:
    """What our connector makes of a golden case, whose merged tokens are checked on the way."""
    meta = json.loads((GOLDEN / f"connector/{case}.json").read_text())
    t = load_file(GOLDEN / f"connector/{case}.safetensors")
    fusion = AddFusion(meta["language_dim"], 2 * meta["vggt_dim"]).to(dtype).requires_grad_(False)
    for name, parameter in fusion.named_parameters():
        parameter.copy_(init_(name, torch.empty(parameter.shape)))
    fusion.connector.ln_q.eps = eps
    layer = range(meta["num_layers"])[meta["spatial_embeds_layer_idx"]]
    visual = t.get("video_embeds", t.get("image_embeds")).to(dtype)
    fused: list[Tensor] = []
    for i, members in enumerate(meta["scenes"]):
        grids = t["grid_thw"][members]  # of a video, or of the stills of a scene
        grid = torch.cat((grids[:, :1].sum(0), grids[0, 1:]))
        tokens = t[f"spatial_{i}_layer_{layer}"][:, meta["patch_start_idx"] :].to(dtype)
        merged = merge_spatial(tokens, grid[None])
        done = sum(map(len, fused))
        rows = slice(done, done + len(merged))
        assert torch.equal(merged, t["merged_spatial"][rows].to(dtype))
        geometry = SceneGeometry(patches=tokens.unflatten(1, tuple(grid[1:].tolist())))
        fused.append(fusion(visual[rows], grid, geometry).flatten(0, 1))
    return torch.cat(fused), t


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_connector(case: str) -> None:
    fused, t = official_case(case, torch.float32)
    assert torch.allclose(fused, t["out"], atol=5e-6, rtol=0)
    exact, _ = official_case(case, torch.float64)
    assert torch.allclose(exact, t["out_f64"], atol=1e-12, rtol=0)
    wrong, _ = official_case(case, torch.float64, eps=1e-5)
    assert not torch.allclose(wrong, t["out_f64"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("temporal", "spatial"), [(2, 2), (1, 2), (2, 1), (3, 2)])
def test_merging_against_a_slow_reference(temporal: int, spatial: int) -> None:
    steps, height, width, channels = 2, 4, 6, 3
    tokens = draw(steps * temporal, height * width, channels)
    merged = merge_spatial(tokens, torch.tensor([[steps, height, width]]), temporal, spatial)
    rows = []
    for step in range(steps):
        for row in range(0, height, spatial):
            for column in range(0, width, spatial):
                each = []
                for y in range(row, row + spatial):
                    for x in range(column, column + spatial):
                        for channel in range(channels):
                            for frame in range(step * temporal, (step + 1) * temporal):
                                each.append(tokens[frame, y * width + x, channel])
                rows.append(torch.stack(each))
    assert torch.equal(merged, torch.stack(rows))
    assert spatial == 1 or not torch.equal(merged, tokens.reshape(merged.shape))  # negative control: no order at all


def test_tokens_that_dont_lie_on_the_grid_are_refused() -> None:
    for frames, patches, grid in ((5, 24, [3, 4, 6]), (6, 23, [3, 4, 6]), (6, 15, [3, 3, 5])):
        with pytest.raises(ValueError, match="a grid of 3 x"):
            merge_spatial(draw(frames, patches, 2), torch.tensor([grid]))


# ---- branches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSIONS)
def test_each_branch_alone(name: str) -> None:
    both, flat, spatial = (build(name, active_branches=active_branches) for active_branches in ("both", "2d", "3d"))
    assert (both.uses_geometry, flat.uses_geometry, spatial.uses_geometry) == (True, False, True)
    other = draw(18, WIDTH, seed=8)
    alone = flat(VISUAL, GRID, None)
    assert torch.equal(alone, flat(VISUAL, GRID, scene())) and not torch.equal(alone, flat(other, GRID, None))
    deep = spatial(VISUAL, GRID, scene())
    assert torch.equal(deep, spatial(other, GRID, scene()))
    elsewhere = change(change(scene(), "patches", slice(None)), "camera_tokens", slice(None))
    assert not torch.equal(deep, spatial(VISUAL, GRID, elsewhere))
    together = both(VISUAL, GRID, scene())
    assert alone.shape == deep.shape == together.shape
    assert torch.allclose(together, alone + deep, atol=1e-6)  # each has zeros where the other one is
    assert not torch.allclose(together, alone, atol=1e-2) and not torch.allclose(together, deep, atol=1e-2)


@pytest.mark.parametrize("name", ["add", "camera token added"])
def test_the_2d_branch_of_a_sum_is_the_plain_model(name: str) -> None:
    assert torch.equal(build(name, active_branches="2d")(VISUAL, GRID, None).flatten(0, 1), VISUAL)
    kind, options = FUSIONS[name]
    fresh = kind(WIDTH, CHANNELS, **options)
    assert torch.equal(fresh(VISUAL, GRID, scene()).flatten(0, 1), VISUAL)  # and so is an untrained one
    (fresh(VISUAL, GRID, scene()) * draw(3, 6, WIDTH)).sum().backward()
    learning = {name for name, p in fresh.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {"connector.mlp.2.weight", "connector.mlp.2.bias"}  # from which the others follow


def test_halves_of_the_channels_and_places_in_the_sequence() -> None:
    channel = build("concat on the channel")(VISUAL, GRID, scene())
    assert channel.shape == (3, 6, WIDTH)
    flat, deep = (build("concat on the channel", active_branches=each)(VISUAL, GRID, scene()) for each in ("2d", "3d"))
    half = WIDTH // 2
    assert not flat[..., half:].any() and not deep[..., :half].any()
    assert torch.equal(channel, torch.cat((flat[..., :half], deep[..., half:]), -1))
    token = build("concat on the token")(VISUAL, GRID, scene())
    assert token.shape == (3, 12, WIDTH) and build("concat on the token").appended is ExtraTokens.ALL
    assert torch.equal(token[:, :6].flatten(0, 1), VISUAL)  # the 2D tokens are as they were
    appended = build("camera token appended")(VISUAL, GRID, scene())
    assert appended.shape == (3, 7, WIDTH) and build("camera token appended").appended is ExtraTokens.ONE
    assert torch.equal(appended[:, :6].flatten(0, 1), VISUAL)
    assert build("camera token added").appended is build("add").appended is ExtraTokens.NOTHING
    with pytest.raises(ValueError, match="width 15 has no two halves"):
        ConcatSplitFusion(15, CHANNELS)


@pytest.mark.parametrize("place", ["appended", "added"])
def test_the_camera_token_alone_is_kept(place: str) -> None:
    fusion = build(f"camera token {place}")
    before = fusion(VISUAL, GRID, scene())
    assert torch.equal(before, fusion(VISUAL, GRID, change(scene(), "patches", slice(None))))
    after = fusion(VISUAL, GRID, change(scene(), "camera_tokens", slice(2, 3)))  # of the second view
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    if place == "appended":
        assert torch.equal(after[1, :6], before[1, :6]) and not torch.allclose(after[1, 6], before[1, 6], atol=1e-2)
    else:  # the same is added to each 2D token of the view
        added = after[1] - before[1]
        assert torch.allclose(added, added[:1].expand_as(added), atol=1e-6) and added.abs().max() > 1e-2
    without = SceneGeometry(patches=scene().patches)
    with pytest.raises(ValueError, match="needs camera tokens"):
        fusion(VISUAL, GRID, without)


# ---- pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSIONS)
def test_what_becomes_of_the_two_frames_of_a_pair(name: str) -> None:
    concat, mean, first = (build(name, temporal_merge=pair) for pair in ("concat", "mean", "first"))
    assert concat.state_dict().keys() == mean.state_dict().keys() == first.state_dict().keys()
    geometry = scene()

    def doubled(of: Any) -> SceneGeometry:
        """Both frames of a pair replaced by one."""
        values = {key: value for key, value in vars(geometry).items() if value is not None}
        return SceneGeometry(**{key: of(v.unflatten(0, (-1, 2))).repeat_interleave(2, 0) for key, v in values.items()})

    expected_first = concat(VISUAL, GRID, doubled(lambda pairs: pairs[:, 0]))
    expected_mean = concat(VISUAL, GRID, doubled(lambda pairs: pairs.mean(1)))
    assert torch.equal(first(VISUAL, GRID, geometry), expected_first)
    assert torch.allclose(mean(VISUAL, GRID, geometry), expected_mean, atol=1e-6)
    official = concat(VISUAL, GRID, geometry)
    for other in (expected_first, expected_mean):
        assert not torch.allclose(official, other, atol=1e-2)
    assert not torch.allclose(expected_first, expected_mean, atol=1e-2)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_view_gets_the_tokens_of_its_own_frames(name: str) -> None:
    fusion = build(name)
    before = fusion(VISUAL, GRID, scene())
    other = change(change(scene(), "patches", slice(4, 6)), "camera_tokens", slice(4, 6))
    after = fusion(VISUAL, GRID, other)
    assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2], before[2], atol=1e-2)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_missing_is_said(name: str) -> None:
    with pytest.raises(ValueError, match="needs the geometry of the scene"):
        build(name)(VISUAL, GRID, None)
    with pytest.raises(ValueError, match="and this geometry has none"):
        build(name)(VISUAL, GRID, SceneGeometry())
    with pytest.raises(ValueError, match="needs 6 frames|8 camera tokens for 3 steps"):
        build(name)(VISUAL, GRID, scene(8))


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "concat on the channel", "concat on the token"])
def test_frames_of_another_size_are_refused_even_with_as_many_patches(name: str) -> None:
    fusion, turned = build(name), draw(6, 6, 4, CHANNELS, seed=1)
    with pytest.raises(InputError, match="3D tokens of 6 x 4 patches a frame under 2D tokens of 4 x 6"):
        fusion(VISUAL, GRID, SceneGeometry(patches=turned))
    assert fusion(VISUAL, GRID, scene()).isfinite().all()
