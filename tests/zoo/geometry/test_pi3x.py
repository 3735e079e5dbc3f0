"""Pi3X: the published numbers and names, conditions, symmetries, the encoder, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.poses import random_poses
from tests.zoo.geometry.official import cases, check_reachable, load_case, load_json, tiny_images
from tests.zoo.geometry.pi3x import (
    CONFIG,
    case_model,
    dataset_scene,
    errors,
    hash_model,
    hash_weights,
    run,
    save,
)
from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError
from zoo.geometry import (
    CachedGeometry,
    GeometryCache,
    Pi3X,
    Pi3XEncoder,
    PretrainedPi3X,
    SceneGeometry,
    TinyPi3X,
)
from zoo.geometry.base import announce_license, encoder_frames, resample_depth
from zoo.geometry.pi3x import (
    CONDITIONS,
    PoseInjection,
    normalize_conditions,
    official_size,
    pose_attention,
    ray_map,
    recover_intrinsics,
    rotation_from_nine,
)

HEADS = ("camera", "point")


@pytest.fixture(scope="module")
def model() -> Pi3X:
    return hash_model()


@pytest.fixture(scope="module")
def exact() -> Pi3X:
    return hash_model(dtype=torch.float64)


# ---- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("pi3x/forward"))
def test_the_network_equals_the_published_code(case: str) -> None:
    meta, t = load_case(case)
    model, masks = case_model(meta), {name: t[name].clone() for name in t if name.startswith("mask_")}
    output = run(model, t)
    found = errors(output, t)
    assert {"features", "metric", "predicted_camera_to_world"} <= found.keys() and max(found.values()) < 1, found
    assert all(torch.equal(t[name], mask) for name, mask in masks.items())  # the published code writes to them
    if "K_px_recovered_centered" in t:
        half = torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # it counts pixels from 0
        assert torch.allclose(output.K_px, t["K_px_recovered_centered"].float() + half, rtol=1e-4)


@pytest.mark.parametrize("case", ["pi3x/forward/all_s3_28x42", "pi3x/forward/poses_s3_28x42"])
def test_float64_stays_float64(case: str) -> None:
    meta, t = load_case(case)
    output = run(case_model(meta, torch.float64), t, torch.float64)
    assert output.local_points.dtype == torch.float64
    found = errors(output, t, "_f64")
    assert len(found) == 5 and max(found.values()) < 0.02, found  # float32 is seen at 0.15


def larger_eps(model: Pi3X) -> None:
    for block in model.decoder:
        block.norm1.eps = block.norm2.eps = 1e-5


def no_query_norm(model: Pi3X) -> None:
    for block in model.decoder:
        block.attn.q_norm = nn.Identity()


def injections_exchanged(model: Pi3X) -> None:
    model.pose_inject_blk = nn.ModuleList(reversed(model.pose_inject_blk))


def depth_embedding_left_out(model: Pi3X) -> None:
    model.depth_emb.data.zero_()


def zeros_at_the_border(model: Pi3X) -> None:
    for part in (*model.point_head.modules(), *model.conf_head.modules()):
        if isinstance(part, nn.Conv2d):
            part.padding_mode = "zeros"


MISTAKES: dict[Callable[[Pi3X], None], tuple[str, ...]] = {  # the outputs in which each shows
    larger_eps: ("features", "predicted_camera_to_world", "local_points", "metric"),
    no_query_norm: ("features", "predicted_camera_to_world", "local_points", "conf", "metric"),
    injections_exchanged: ("features", "layer_1", "predicted_camera_to_world", "local_points"),
    depth_embedding_left_out: ("features", "layer_0", "predicted_camera_to_world"),
    zeros_at_the_border: ("local_points", "conf"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_show(mistake: Callable[[Pi3X], None]) -> None:
    meta, t = load_case("pi3x/forward/all_s3_28x42")
    model = deepcopy(case_model(meta))
    mistake(model)
    found = errors(run(model, t), t)
    assert {name for name, error in found.items() if error > 1} >= set(MISTAKES[mistake]), found


def test_units_equal_the_published_ones() -> None:
    meta, t = load_case("pi3x/normalization/conditions_a")
    units = set()
    for each in meta["sets"]:
        i = each["i"]
        poses, depth = t.get(f"camera_to_world_{i}"), t.get(f"depths_{i}")
        if poses is None and depth is None:
            continue
        masks = (t.get(f"mask_pose_{i}"), t.get(f"mask_depth_{i}"))
        found = normalize_conditions(None if poses is None else invert_se3(poses), depth, *masks)
        assert torch.allclose(found[3].double(), t[f"norm_factor_{i}"], rtol=1e-6), each["what"]
        units.update(found[3].tolist())
        if poses is not None:
            assert torch.allclose(invert_se3(found[0]), t[f"normalized_camera_to_world_{i}"], atol=1e-6), each["what"]
            assert torch.equal(found[2], t[f"used_mask_pose_{i}"]), each["what"]
        if f"depth_input_{i}" in t:
            assert torch.allclose(found[1].float(), t[f"depth_input_{i}"][:, :, 0], atol=1e-6), each["what"]
    assert len(units) > 10  # the control: they differ


def test_rays_equal_the_published_ones() -> None:
    _, t = load_case("pi3x/normalization/conditions_a")
    for i in (3, 12):
        size = tuple(t[f"ray_input_{i}"].shape[-2:])
        assert torch.allclose(ray_map(t[f"K_px_{i}"], size), t[f"ray_input_{i}"], atol=1e-6)
    moved = t["K_px_3"].clone()
    moved[..., 0, 2] += 0.5  # the control: half a pixel
    assert not torch.allclose(ray_map(moved, (28, 28)), t["ray_input_3"], atol=1e-3)


@pytest.mark.parametrize("case", cases("pi3x/prope"))
def test_pose_attention_equals_the_published_one(case: str) -> None:
    meta, t = load_case(case)
    V = invert_se3(t["camera_to_world"])
    grid = {"patches_y": meta["patches_y"], "patches_x": meta["patches_x"]}
    masks = {"has_pose": t["mask_pose"]} if "mask_pose" in t else {}
    found = pose_attention(t["q"], t["k"], t["v"], V, **grid, **masks)
    assert torch.allclose(found, t["out_f64"], atol=1e-9)
    other = pose_attention(t["q"], t["k"], t["v"], invert_se3(V), **grid, **masks)
    assert not torch.allclose(other, t["out_f64"], atol=1e-2)  # the control


def test_the_injection_equals_the_published_one() -> None:
    meta, t = load_case("pi3x/pose_inject/masked_b2")
    weights = {
        name.removeprefix("pose_inject_blk.0."): each for name, each in hash_weights(meta["param_names"]).items()
    }
    block = PoseInjection(48, meta["num_heads"]).double()
    block.load_state_dict({name: each.double() for name, each in weights.items() if not name.startswith("image_")})
    views = t["camera_to_world"].shape[1]
    x = t["x"].double().unflatten(1, (views, -1))
    grid = meta["patches_y"], meta["patches_x"]
    with torch.no_grad():
        found = block(x, invert_se3(t["camera_to_world"]), grid, t["mask_pose"]) - x
    expected = t["out_f64"].unflatten(1, (views, -1))
    assert torch.allclose(found[t["mask_pose"]], expected[t["mask_pose"]], atol=1e-9)
    assert not t["mask_pose"].all() and not found[~t["mask_pose"]].any()


def test_rotations_equal_the_published_ones_and_have_exact_gradients() -> None:
    meta, t = load_case("pi3x/rotations/rotations_a")
    nine, expected = t["rot9"].double(), t["rotation_f64"]
    assert meta["reflections"] and torch.allclose(rotation_from_nine(nine), expected, atol=1e-9)
    rows = nn.functional.normalize(nine.unflatten(-1, (3, 3)), dim=-1)
    assert not torch.allclose(rows, expected, atol=0.1)  # the control
    assert torch.autograd.gradcheck(rotation_from_nine, nine[:8].requires_grad_())
    at_a_rotation = torch.eye(3, dtype=torch.float64).flatten().requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_nine, at_a_rotation)
    U, _, Vh = torch.linalg.svd(at_a_rotation.view(3, 3))  # the reason for a gradient of our own
    (U @ Vh)[0, 1].backward()
    assert at_a_rotation.grad.isnan().any()


def test_intrinsics_are_recovered() -> None:
    _, t = load_case("pi3x/intrinsics/rays_a")
    found, expected = recover_intrinsics(t["unit_rays"].double()), t["K_px_recovered_centered"].clone()
    expected[..., :2, 2] += 0.5  # the published function counts pixels from 0
    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(found[0, 0], t["true_K_px"][0, 0].double(), rtol=1e-3)


def test_sizes_are_the_published_ones() -> None:
    table = load_json("pi3x/preprocess/sizes_a")["table"]
    assert table and all(list(official_size(*row[:2])) == row[2:4] for row in table)
    assert any(list(official_size(*row[1::-1])) != row[2:4] for row in table)  # the control


# ---- symmetries ------------------------------------------------------------------------------------------------


def conditions(names: tuple[str, ...], seed: int = 0, views: int = 4) -> dict[str, Tensor]:
    scene = dataset_scene(views, 28, 42, seed)
    K_px = scene.K_normalized.double()[None] * torch.tensor([[42.0], [28.0], [1.0]])
    K_px[..., :2, 2] = torch.tensor([23.1, 11.2])
    every = {"rays": {"K_px": K_px}, "depth": {"depth": scene.depth[None].double()}}
    every["poses"] = {"world_to_camera": scene.world_to_camera[None]}
    return {name: value for each in names for name, value in every[each].items()}


SUBSETS = [(), ("rays",), ("depth",), ("poses",), ("rays", "poses"), ("depth", "poses"), ("rays", "depth", "poses")]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_order_of_views_matters_where_it_is_stated(names: tuple[Any, ...], exact: Pi3X) -> None:
    images, given, order = tiny_images(1, 4).double(), conditions(names), [2, 0, 3, 1]
    before = exact(images, **given).tokens[-1][:, order]
    after = exact(images[:, order], **{name: value[:, order] for name, value in given.items()}).tokens[-1]
    change = (before - after).abs().max()
    symmetries = Pi3XEncoder(exact, conditions=names).symmetries
    assert symmetries.order == (names not in (("poses",), ("rays", "poses")))
    assert change < 1e-12 if symmetries.order else change > 1e-3, change


def test_the_world_and_the_unit_do_not_matter(exact: Pi3X) -> None:
    images = tiny_images(1, 4).double()
    for names in (("poses",), ("depth", "poses")):
        given = conditions(names)
        plain = exact(images, **given).tokens[-1]
        moved = given | {"world_to_camera": given["world_to_camera"] @ random_poses(1, 9)[0]}
        assert (exact(images, **moved).tokens[-1] - plain).abs().max() < 1e-12
        scaled = {name: value.clone() for name, value in given.items()}
        scaled["world_to_camera"][..., :3, 3] *= 3
        alone = (exact(images, **scaled).tokens[-1] - plain).abs().max()
        if "depth" in names:
            assert alone > 1e-3  # the control: translations against depth
            scaled["depth"] *= 3
            assert (exact(images, **scaled).tokens[-1] - plain).abs().max() < 1e-6
        else:
            assert alone < 1e-6
        turned = given | {"world_to_camera": random_poses(1, 9)[0] @ given["world_to_camera"]}
        assert (exact(images, **turned).tokens[-1] - plain).abs().max() > 1e-3  # the control


def test_scenes_of_a_batch_are_independent(exact: Pi3X) -> None:
    images = tiny_images(2, 3).double()
    given = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in conditions(CONDITIONS, views=3).items()}
    masks = {"has_pose": torch.tensor([[True, True, True], [False, True, False]])}
    masks["has_depth"] = torch.tensor([[False] * 3, [True] * 3])
    masks["has_ray"] = torch.tensor([[True, False, True], [False] * 3])
    together = exact(images, (-1,), HEADS, **given, **masks)
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in (given | masks).items()}
        alone = exact(images[i : i + 1], (-1,), HEADS, **one)
        assert torch.allclose(together.tokens[-1][i], alone.tokens[-1][0], atol=1e-12)
        assert torch.allclose(together.points[i], alone.points[0], atol=1e-12)
    none = exact(images, (-1,), HEADS)
    assert not torch.allclose(none.tokens[-1], together.tokens[-1], atol=1e-3)  # the control


def test_without_conditions_their_parts_do_not_matter(model: Pi3X) -> None:
    parts = ("depth_encoder", "depth_emb", "ray_embed", "pose_inject_blk")
    official = {n: each for n, each in model.official_state_dict().items() if n.partition(".")[0] not in parts}
    alone = Pi3X.from_official(CONFIG, official)
    assert alone.conditions == () and torch.equal(alone(tiny_images()).tokens[-1], model(tiny_images()).tokens[-1])
    with pytest.raises(InputError, match="built without poses: leave out"):
        alone(tiny_images(), world_to_camera=torch.eye(4).expand(1, 2, 4, 4))


# ---- weights ---------------------------------------------------------------------------------------------------


def test_the_released_model_has_every_published_tensor() -> None:
    about = load_json("pi3x/manifests/pi3x")
    tensors = {name: torch.empty(each["shape"], device="meta") for name, each in about["tensors"].items()}
    with torch.device("meta"):
        model = Pi3X.from_official(about["config"], tensors)
    assert set(model.official_state_dict()) == set(tensors) and len(tensors) == 1873
    assert sum(each.numel() for each in model.parameters()) == about["num_parameters"]


def test_weights_round_trip_and_plain_pi3_is_an_error(model: Pi3X, tmp_path: Path, monkeypatch: Any) -> None:
    official = hash_model(dtype=torch.float64).official_state_dict()
    again = Pi3X.from_official(CONFIG, official).official_state_dict()
    assert again.keys() == official.keys() and all(torch.equal(again[name], each) for name, each in official.items())
    del official["decoder.3.attn.q_norm.bias"]
    with pytest.raises(InputError, match=r"1 missing: decoder\.3\.attn\.q_norm\.bias;"):
        Pi3X.from_official(CONFIG, official)
    monkeypatch.setattr("zoo.geometry.pi3x_encoder.RELEASED", CONFIG)
    plain = Pi3X.from_official(CONFIG, model.official_state_dict(), conditions=(), heads=("camera", "point"))
    folder = save(tmp_path / "pi3", plain)
    missing = r"missing: ray_embed\.proj\.weight, ray_embed\.proj\.bias, pose_inject_blk\.0\.norm1\.weight"
    with pytest.raises(InputError, match=missing):
        PretrainedPi3X(folder, conditions=("rays", "poses"))
    assert PretrainedPi3X(folder, conditions=()).pi3x.conditions == ()


# ---- the encoder -----------------------------------------------------------------------------------------------


def frames_of(*shapes: tuple[int, int, int]) -> list[Tensor]:
    return [tiny_images(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]


def pinhole(dtype: torch.dtype = torch.float32) -> Pi3X:
    """A model whose focal lengths are positive, which hash weights do not give."""
    model = hash_model(dtype=dtype)
    model.point_head.init_pinhole()
    return model


def test_the_encoder_gives_the_networks_outputs() -> None:
    model = pinhole()
    encoder, frames, scene = Pi3XEncoder(model, (-1, 0)), frames_of((3, 28, 42)), dataset_scene(3, 28, 42)
    encoder.enable_head("point")
    (found,) = encoder(frames, [scene])
    K_px = scene.K_normalized * torch.tensor([[42.0], [28.0], [1.0]])
    K_px[:, 0, 2], K_px[:, 1, 2] = 0.55 * 42, 0.4 * 28
    given = {"world_to_camera": scene.world_to_camera[None], "K_px": K_px[None], "depth": scene.depth[None]}
    expected = model(frames[0][None], (-1, 0), HEADS, **given)
    joined = torch.cat((expected.tokens[-1], expected.tokens[0]), -1)[0, :, 5:]
    assert torch.allclose(found.patches, joined.unflatten(1, (2, 3)), atol=1e-5)
    assert torch.allclose(found.camera_tokens, joined.mean(1), atol=1e-5) and encoder.width == joined.shape[-1]
    assert found.has_camera.all()
    assert torch.allclose(found.K_normalized, normalize_intrinsics(expected.K_px[0], 42, 28), atol=1e-5)
    names = {"world_to_camera": "world_to_camera", "depth": "depth", "points": "points", "confidence": "conf"}
    for ours, theirs in names.items():
        assert torch.allclose(getattr(found, ours), getattr(expected, theirs)[0], atol=1e-4), ours
    (alone,) = encoder(frames, [None])
    assert not torch.allclose(found.patches, alone.patches, atol=1e-3)  # the control
    (predicted,) = hash_model().forward(frames[0][None], (), HEADS).K_px
    assert (predicted.diagonal(dim1=-2, dim2=-1) <= 0).any()  # such cameras are marked
    assert not Pi3XEncoder(hash_model())(frames, [None])[0].has_camera.all()


def test_each_condition_is_read_where_the_scene_has_it() -> None:
    model, frames = pinhole(), frames_of((3, 28, 42), (3, 28, 42))
    scene = dataset_scene(3, 28, 42)
    cameras = SceneGeometry(world_to_camera=scene.world_to_camera, K_normalized=scene.K_normalized)
    with_depth = SceneGeometry(depth=scene.depth)

    def tokens(given: SceneGeometry | None, *names: Any) -> Tensor:
        return Pi3XEncoder(model, conditions=names)(frames, [given, None], cameras=False)[0].patches

    images = tokens(None, *CONDITIONS)
    assert torch.allclose(images, tokens(scene), atol=1e-5)
    found = [tokens(scene, *names) for names in (("rays",), ("poses",), ("depth",), ("rays", "poses"))]
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in (*found[:i], images))
    assert torch.allclose(tokens(cameras, *CONDITIONS), found[3], atol=1e-5)
    assert torch.allclose(tokens(with_depth, *CONDITIONS), found[2], atol=1e-5)
    blind = SceneGeometry(**{**cameras.present(), "depth": scene.depth * 0})  # as if there were none
    assert torch.allclose(tokens(blind, *CONDITIONS), found[3], atol=1e-5)
    only = Pi3XEncoder(model, conditions=("poses",))
    assert only.given_fields["tokens"] == ("world_to_camera", "has_camera") and not only.reads_depth
    with pytest.raises(InputError, match="conditions depth"):
        Pi3XEncoder(Pi3X(CONFIG, ("poses",)), conditions=("depth",))


def test_frames_without_a_camera_stand_where_the_frame_before_them_does() -> None:
    encoder, frames = Pi3XEncoder(hash_model(), conditions=("rays", "poses")), frames_of((4, 28, 42))
    scene = dataset_scene(4, 28, 42)
    scene.has_camera = torch.tensor([False, True, False, True])
    (found,) = encoder(frames, [scene], cameras=False)
    told = encoder.conditions_of([scene], frames[0][None])
    assert torch.equal(told.world_to_camera[0], scene.world_to_camera[[1, 1, 1, 3]])
    assert told.has_pose.tolist() == told.has_ray.tolist() == [[False, True, False, True]]
    other = SceneGeometry(**scene.present())
    other.world_to_camera = scene.world_to_camera.clone()
    other.world_to_camera[[0, 2]] = torch.eye(4, dtype=torch.float64)  # what stands there is not read
    assert torch.equal(found.patches, encoder(frames, [other], cameras=False)[0].patches)
    other.world_to_camera[3, 0, 3] += 1
    assert not torch.equal(found.patches, encoder(frames, [other], cameras=False)[0].patches)  # the control


def test_depth_follows_resampled_frames(tmp_path: Path) -> None:
    """Frames of a vision encoder with patches of 16 pixels are resampled, and depth with them."""
    scene, frames = dataset_scene(2, 32, 48), encoder_frames(tiny_images(1, 2, 32, 48)[0], 16, 14)
    resampled = resample_depth(scene, (28, 42))
    assert frames.shape[-2:] == (28, 42) and torch.isin(resampled.depth, scene.depth).all()
    assert torch.equal(resampled.K_normalized, scene.K_normalized)
    Pi3XEncoder(hash_model())([frames], [resampled], cameras=False)
    cached = CachedGeometry(lambda: TinyPi3X(embed_dim=32, num_heads=2, seed=0), GeometryCache(str(tmp_path)))
    cached.match_patches(16)
    (found,) = cached([tiny_images(1, 2, 32, 48)[0]], [scene], cameras=False)
    (expected,) = cached.encoder()([frames], [resampled], cameras=False)
    assert torch.equal(found.patches, expected.patches.bfloat16())
    with pytest.raises(InputError, match="depth of 48 x 32 pixels for a frame of 42 x 28"):
        Pi3XEncoder(hash_model())([frames], [scene], cameras=False)


def test_only_what_is_asked_for_is_computed_and_kept(model: Pi3X) -> None:
    ran: set[str] = set()
    parts = {name: getattr(model, name) for name in ("camera_head", "point_head", "conf_head", "metric_decoder")}
    parts |= {"last block": model.decoder[-1], "depth_encoder": model.depth_encoder}
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, part in parts.items()]
    wanted: dict[tuple[str, ...], set[str]] = {(): set(), ("camera",): {"camera_head", "metric_decoder"}}
    wanted["intrinsics",] = {"point_head"}
    wanted["point",] = {"point_head", "conf_head", "metric_decoder"}
    for heads, expected in wanted.items():
        ran.clear()
        output = model(tiny_images(), (0,), heads)
        assert ran == expected | ({"last block"} if heads else set()) and set(output.tokens) == {0}
        assert (output.points is None) and (output.conf is None) == ("point" not in heads)
    for hook in hooks:
        hook.remove()


def test_released_weights_are_loaded_on_demand_and_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("zoo.geometry.pi3x_encoder.RELEASED", CONFIG)
    whole, frames = pinhole(), frames_of((3, 28, 42))
    folder = save(tmp_path / "pi3x", whole)
    announce_license.cache_clear()
    encoder = PretrainedPi3X(folder, conditions=("poses",))
    assert "pi3x: these weights are under CC BY-NC 4.0, for non-commercial use only" in capsys.readouterr().err
    assert encoder.pi3x.heads == () and encoder.pi3x.conditions == ("poses",)
    scene = dataset_scene(3, 28, 42)
    (tokens,) = encoder(frames, [scene], cameras=False)
    encoder.enable_head("camera")
    assert encoder.pi3x.heads == ("camera", "intrinsics")
    (found,) = encoder(frames, [scene])
    (expected,) = Pi3XEncoder(whole, conditions=("poses",))(frames, [scene])
    for name in ("patches", "world_to_camera", "K_normalized"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    assert torch.equal(tokens.patches, found.patches) and found.depth is None
    encoder.enable_head("depth")
    assert encoder(frames, [scene])[0].depth is not None and "point" in encoder.pi3x.heads
    half = PretrainedPi3X(folder, dtype="bfloat16")
    assert half.pi3x.matrix_dtype == torch.bfloat16 and half.pi3x.register_token.dtype == torch.float32
    rounded = half(frames, [scene], cameras=False)[0].patches
    exact = Pi3XEncoder(whole)(frames, [scene], cameras=False)[0].patches
    assert rounded.dtype == torch.float32 and 1e-3 < (rounded - exact).abs().max() < 0.3


def test_the_cache_keeps_what_was_computed_with_other_cameras_apart(tmp_path: Path) -> None:
    frames, scene, other = frames_of((3, 28, 42)), dataset_scene(3, 28, 42), dataset_scene(3, 28, 42, seed=1)
    cache = GeometryCache(str(tmp_path))

    def cached(**options: Any) -> CachedGeometry:
        return CachedGeometry(lambda: TinyPi3X(embed_dim=32, num_heads=2, seed=0, **options), cache)

    encoder = cached()
    first = encoder(frames, [scene], cameras=False)[0]
    assert torch.equal(encoder(frames, [scene], cameras=False)[0].patches, first.patches) and encoder.num_computed == 1
    encoder(frames, [other], cameras=False)
    assert encoder.num_computed == 2
    images = cached(conditions=[])
    for given in (scene, other, None):
        images(frames, [given], cameras=False)
    assert images.num_computed == 1  # it reads none of them


@pytest.mark.parametrize(
    ("layers", "outputs", "names"),
    [((0,), ("tokens",), ("poses",)), ((3, 1), ("tokens", "cameras"), CONDITIONS), ((0,), ("cameras", "depth"), ())],
)
def test_unreachable_parameters_have_no_gradient(
    layers: tuple[int, ...], outputs: tuple[str, ...], names: tuple[Any, ...]
) -> None:
    wanted = {"tokens": "tokens" in outputs, "cameras": "cameras" in outputs}
    encoder = Pi3XEncoder(pinhole().requires_grad_(), layers, names)
    if "depth" in outputs:
        encoder.enable_head("depth")
    check_reachable(encoder, frames_of((3, 28, 42)), dataset_scene(3, 28, 42), **wanted)


def test_tiny_widths_are_whole_heads() -> None:
    with pytest.raises(InputError, match="embed_dim 36, num_heads 4"):
        TinyPi3X(embed_dim=36)


# ---- bad input -------------------------------------------------------------------------------------------------


def spoiled(field: str, view: int) -> SceneGeometry:
    scene = dataset_scene(3, 28, 42)
    if field == "depth":
        scene.depth[view, 3, 4] = torch.nan
    elif field == "negative":
        scene.depth[view, 3, 4] = -1.0
    elif field == "size":
        scene.depth = scene.depth[:, :14]
    else:
        scene.world_to_camera[view, :3, :3] *= 1.2 if field == "stretched" else -1.0
    return scene


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("depth", "^scene 1 of the batch, view 2: depth holds NaN"),
        ("negative", "^scene 1 of the batch, view 2: depth holds NaN, infinite or negative"),
        ("size", "^scene 1 of the batch, view 0: depth of 42 x 14 pixels for a frame of 42 x 28"),
        ("stretched", "^scene 1 of the batch, view 2: the pose is no rotation"),
        ("mirrored", "^scene 1 of the batch, view 2: the pose is no rotation"),
    ],
)
def test_bad_scenes_are_named_in_one_line(field: str, message: str, model: Pi3X) -> None:
    frames, good = frames_of((3, 28, 42), (3, 28, 42)), dataset_scene(3, 28, 42)
    with pytest.raises(InputError, match=message) as raised:
        Pi3XEncoder(model)(frames, [good, spoiled(field, 2)])
    assert "\n" not in str(raised.value)
    kept = ("rays",) if field in ("stretched", "mirrored", "depth", "negative", "size") else ()
    Pi3XEncoder(model, conditions=kept)(frames, [good, spoiled(field, 2)], cameras=False)  # what is not read


def test_bad_conditions_are_named_in_one_line(model: Pi3X) -> None:
    images, mask = tiny_images(1, 3), torch.ones(1, 3, dtype=torch.bool)
    for name in ("has_pose", "has_ray", "has_depth"):
        with pytest.raises(InputError, match=f"^{name} without (poses|rays|depth): give the condition"):
            model(images, **{name: mask})
    with pytest.raises(InputError, match=re.escape("depth [1, 3, 28, 28] for images [1, 3, 3, 28, 42]: it must be")):
        model(images, depth=torch.ones(1, 3, 28, 28))
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[0, 1, :3, :3] *= 2
    with pytest.raises(InputError, match="^scene 0, view 1: the pose is no rotation .* off orthonormal by 3"):
        model(images, world_to_camera=poses)
    poses[0, 1, :, :3] /= 2
    poses[0, 1, 0, 3] = torch.nan
    with pytest.raises(InputError, match="^scene 0, view 1: the pose is no rotation .* holds NaN or infinity"):
        model(images, world_to_camera=poses)
    with pytest.raises(ValueError, match="no layer 4: the model has 4"):
        model(images, (4,))
    with pytest.raises(ValueError, match="no depth head: it has camera, intrinsics, point"):
        model(images, heads=("depth",))
    with pytest.raises(ValueError, match="images in 0..1"):
        model(images * 255)
