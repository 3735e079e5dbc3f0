"""Fusions: the official connector's numbers, what each switch leaves of the two branches, and fused models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_
from tests.zoo.released import GOLDEN
from zoo import (
    AddFusion,
    AttentionFusion,
    CameraTokenFusion,
    ConcatSplitFusion,
    DeepFusion,
    Fusion,
    InputError,
    SubspaceFusion,
)
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.fusions import merge_spatial
from zoo.geometry import SceneGeometry
from zoo.sequences.layout import ExtraTokens

CASES = sorted(path.stem for path in (GOLDEN / "connector").glob("*.safetensors"))
GRID = torch.tensor([3, 4, 6])  # steps, and patches a column and a row: 3 x 6 tokens
WIDTH, CHANNELS = 16, 6  # of 3D tokens of two layers
DECODER = DecoderLayout(WIDTH, num_layers=4, num_heads=2, num_key_value_heads=1, head=HeadLayout(8, ()))
FUSIONS: dict[str, tuple[type[Fusion], dict[str, Any]]] = {
    "add": (AddFusion, {}),
    "concat on the channel": (ConcatSplitFusion, {}),
    "concat on the token": (ConcatSplitFusion, {"axis": "token"}),
    "camera token appended": (CameraTokenFusion, {}),
    "camera token added": (CameraTokenFusion, {"mode": "add"}),
    "attention": (AttentionFusion, {"head_dim": 8}),
    "deep": (DeepFusion, {"decoder_layers": [2, 0]}),
    "subspaces": (SubspaceFusion, {}),
}
SUMS = ["add", "camera token added", "attention", "deep"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def untrained(name: str, **switches: str) -> Fusion:
    kind, options = FUSIONS[name]
    fusion = kind(WIDTH, CHANNELS, **options, **switches)
    fusion.bind(2, DECODER)
    return fusion


def build(name: str, **switches: str) -> Fusion:
    """With weights that say something, the same whatever the switches."""
    fusion = untrained(name, **switches)
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


def fuse(fusion: Fusion, visual: Tensor, geometry: SceneGeometry | None) -> Tensor:
    """All that reaches the decoder: visual tokens, and beside them on the channels the features of three layers."""
    tokens, deep = fusion(visual, GRID, geometry), fusion.deep_features(geometry, GRID, visual.dtype)
    if deep is None:
        deep = tokens.new_zeros(3 if isinstance(fusion, DeepFusion) else 0, *tokens.shape)
    return torch.cat((tokens, *deep), -1)


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


@pytest.mark.parametrize("name", FUSIONS)
def test_each_branch_alone(name: str) -> None:
    both, flat, spatial = (build(name, active_branches=active_branches) for active_branches in ("both", "2d", "3d"))
    assert (both.uses_geometry, flat.uses_geometry, spatial.uses_geometry) == (True, False, True)
    other = draw(18, WIDTH, seed=8)
    alone = fuse(flat, VISUAL, None)
    assert torch.equal(alone, fuse(flat, VISUAL, scene())) and not torch.equal(alone, fuse(flat, other, None))
    deep = fuse(spatial, VISUAL, scene())
    assert torch.equal(deep, fuse(spatial, other, scene()))
    elsewhere = change(change(scene(), "patches", slice(None)), "camera_tokens", slice(None))
    assert not torch.equal(deep, fuse(spatial, VISUAL, elsewhere))
    together = fuse(both, VISUAL, scene())
    assert alone.shape == deep.shape == together.shape
    # each has zeros where the other one is; what 2D tokens find among 3D tokens is of both
    assert torch.allclose(together, alone + deep, atol=1e-6) == (name != "attention")
    assert not torch.allclose(together, alone, atol=1e-2) and not torch.allclose(together, deep, atol=1e-2)


@pytest.mark.parametrize("name", SUMS)
def test_the_2d_branch_of_a_sum_is_the_plain_model(name: str) -> None:
    assert torch.equal(build(name, active_branches="2d")(VISUAL, GRID, None).flatten(0, 1), VISUAL)
    fresh = untrained(name)
    fused = fuse(fresh, VISUAL, scene())
    assert torch.equal(fused[..., :WIDTH].flatten(0, 1), VISUAL)  # and so is an untrained one
    assert not fused[..., WIDTH:].any()
    (fused * draw(*fused.shape)).sum().backward()
    learning = {name for name, p in fresh.named_parameters() if p.grad is not None and p.grad.any()}
    last = {name for name, _ in fresh.named_parameters() if "mlp.2." in name or name == "o.weight"}
    assert learning == last and last  # from which the others follow


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


@pytest.mark.parametrize("name", FUSIONS)
def test_what_becomes_of_the_two_frames_of_a_pair(name: str) -> None:
    concat, mean, first = (build(name, temporal_merge=pair) for pair in ("concat", "mean", "first"))
    assert concat.state_dict().keys() == mean.state_dict().keys() == first.state_dict().keys()
    geometry = scene()

    def doubled(of: Any) -> SceneGeometry:
        """Both frames of a pair replaced by one."""
        values = {key: value for key, value in vars(geometry).items() if value is not None}
        return SceneGeometry(**{key: of(v.unflatten(0, (-1, 2))).repeat_interleave(2, 0) for key, v in values.items()})

    expected_first = fuse(concat, VISUAL, doubled(lambda pairs: pairs[:, 0]))
    expected_mean = fuse(concat, VISUAL, doubled(lambda pairs: pairs.mean(1)))
    assert torch.equal(fuse(first, VISUAL, geometry), expected_first)
    assert torch.allclose(fuse(mean, VISUAL, geometry), expected_mean, atol=1e-6)
    official = fuse(concat, VISUAL, geometry)
    for other in (expected_first, expected_mean):
        assert not torch.allclose(official, other, atol=1e-2)
    assert not torch.allclose(expected_first, expected_mean, atol=1e-2)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_view_gets_the_tokens_of_its_own_frames(name: str) -> None:
    fusion = build(name)
    before = fuse(fusion, VISUAL, scene())
    other = change(change(scene(), "patches", slice(4, 6)), "camera_tokens", slice(4, 6))
    after = fuse(fusion, VISUAL, other)
    assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2], before[2], atol=1e-2)


def attend_slowly(fusion: AttentionFusion, visual: Tensor, geometry: SceneGeometry, other_step: int = 0) -> Tensor:
    """One 2D token and one head at a time, its keys one by one; the control takes those of another view."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean() + 1e-6).sqrt()

    heads, fused = range(WIDTH // fusion.head_dim), []
    for step in range(3):
        frames = [2 * ((step + other_step) % 3) + i for i in range(2)]
        keys = [geometry.patches[frame, row, column] for frame in frames for row in range(4) for column in range(6)]
        keys = [norm(key, fusion.norm_3d.weight) for key in [*keys, *(geometry.camera_tokens[f] for f in frames)]]
        for token in visual[6 * step : 6 * step + 6]:
            query, found = fusion.q.weight @ norm(token, fusion.norm_2d.weight), []
            for head in heads:
                own = slice(head * fusion.head_dim, (head + 1) * fusion.head_dim)
                scores = [query[own] @ (fusion.k.weight @ key)[own] / fusion.head_dim**0.5 for key in keys]
                weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
                found.append(
                    sum(weight * (fusion.v.weight @ key)[own] for weight, key in zip(weights, keys, strict=True))
                )
            fused.append(token + fusion.o.weight @ torch.cat(found))
    return torch.stack(fused).unflatten(0, (3, 6))


def test_attention_against_a_slow_reference() -> None:
    fusion, geometry = build("attention"), scene()
    assert isinstance(fusion, AttentionFusion)
    found = fusion(VISUAL, GRID, geometry)
    assert torch.allclose(found, attend_slowly(fusion, VISUAL, geometry), atol=2e-6)
    assert not torch.allclose(found, attend_slowly(fusion, VISUAL, geometry, other_step=1), atol=1e-2)
    for name in ("patches", "camera_tokens"):  # both are keys
        assert not torch.allclose(found, fusion(VISUAL, GRID, change(geometry, name, slice(None))), atol=1e-2)
    with pytest.raises(InputError, match="--model.fusion.head_dim 6: .*16 channels"):
        AttentionFusion(WIDTH, CHANNELS, head_dim=6)


def test_each_decoder_layer_gets_the_tokens_of_its_own_encoder_layer() -> None:
    fusion, geometry = build("deep"), scene()  # decoder layers 2 and 0
    assert isinstance(fusion, DeepFusion)
    features = fusion.deep_features(geometry, GRID, VISUAL.dtype)
    expected = torch.zeros(3, 3, 6, WIDTH)
    for share, layer in enumerate((2, 0)):
        own = geometry.patches[..., 3 * share : 3 * share + 3].flatten(1, 2)
        expected[layer] = fusion.connectors[share](merge_spatial(own, GRID[None])).view(3, 6, WIDTH)
    assert torch.allclose(features, expected, atol=1e-6)
    assert not torch.allclose(features.flip(0), expected, atol=1e-2)  # the control: swapped


@pytest.mark.parametrize(
    ("layers", "encoder", "why"),
    [
        ([], 1, r"decoder_layers \[\]: name layers from 0 on"),
        ([0, -1], 1, r"decoder_layers \[0, -1\]: name layers from 0 on"),
        ([0, 3], 1, r"decoder_layers \[0, 3\]: choose from 0 to 2; behind the last of the 4 layers"),
        ([0, 1], 3, r"and 3D tokens of 3 layers: name 2 --model.geometry.layers, .* or a single one for all"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: list[int], encoder: int, why: str) -> None:
    with pytest.raises(InputError, match=why):
        DeepFusion(WIDTH, CHANNELS, layers).bind(encoder, DECODER)


def test_halves_of_the_channels_and_places_in_the_sequence() -> None:
    channel = build("concat on the channel")(VISUAL, GRID, scene())
    flat, deep = (build("concat on the channel", active_branches=each)(VISUAL, GRID, scene()) for each in ("2d", "3d"))
    half = WIDTH // 2
    assert torch.equal(channel, torch.cat((flat[..., :half], deep[..., half:]), -1))
    for name, places, appended in (
        ("concat on the token", 12, ExtraTokens.ALL),
        ("camera token appended", 7, ExtraTokens.ONE),
        ("add", 6, ExtraTokens.NONE),
    ):
        found = build(name)(VISUAL, GRID, scene())
        assert found.shape == (3, places, WIDTH) and build(name).appended is appended
        assert torch.equal(found[:, :6].flatten(0, 1), VISUAL) == (name != "add")  # the 2D tokens are as they were


def test_2d_tokens_stay_in_their_subspace_and_3d_tokens_in_its_complement() -> None:
    half = WIDTH // 2
    visual = (draw(18, half, seed=3) @ draw(half, WIDTH, seed=4)).double()  # of half the dimensions, in all channels
    fresh = untrained("subspaces").double()
    assert fresh.requires_tokens
    assert not torch.allclose(fresh(visual, GRID, scene()).flatten(0, 1), visual, atol=1e-1)  # other channels are lost
    fresh.fit_to_tokens(visual.mT @ visual)
    assert not fresh.requires_tokens
    assert torch.allclose(fresh(visual, GRID, scene()).flatten(0, 1), visual, atol=1e-10)  # 3D tokens start at zero

    trained = build("subspaces").double()
    trained.fit_to_tokens(visual.mT @ visual)
    flat, complement = trained.basis[:, :half], trained.basis[:, half:]
    fused = trained(visual, GRID, scene()).flatten(0, 1)
    assert torch.allclose(fused @ flat @ flat.T, visual, atol=1e-10)  # whatever the 3D tokens are
    spatial = fused @ complement
    assert torch.allclose(spatial, build("subspaces").double().branch_3d(scene(), GRID, fused.dtype).flatten(0, 1))
    assert spatial.abs().max() > 0.1

    # the tokens leave directions of the complement open, where rounding decides on eigenvectors, not on the basis
    rounded = visual + 1e-9 * draw(*visual.shape, seed=5)
    other = build("subspaces").double()
    other.fit_to_tokens(rounded.mT @ rounded)
    assert torch.allclose(other.basis, trained.basis, atol=1e-6)
    one, two = (torch.linalg.eigh(tokens.mT @ tokens).eigenvectors.abs() for tokens in (visual, rounded))
    assert not torch.allclose(one, two, atol=1e-2)  # the control
    with pytest.raises(InputError, match="15 is odd"):
        SubspaceFusion(15, CHANNELS)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    for geometry, why in (
        (SceneGeometry(), "of 6 frames, this geometry has none"),
        (scene(8), "needs .* tokens of 6 frames, this geometry has 8"),
    ):
        with pytest.raises(ValueError, match=why):
            fuse(build(name), VISUAL, geometry)
    if name in ("add", "concat on the channel", "concat on the token", "deep"):
        with pytest.raises(InputError, match="3D tokens of 6 x 4 patches a frame under 2D tokens of 4 x 6"):
            fuse(build(name), VISUAL, SceneGeometry(patches=draw(6, 6, 4, CHANNELS, seed=1)))
