"""Depth Anything 3: the official numbers and names, computation on demand, the order of views, bad input."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.geometry.da3 import (
    HEADS,
    any_view_config,
    case_model,
    error,
    errors,
    given_cameras,
    hash_model,
    hash_weights,
    manifest,
    metric_config,
    nested_config,
    run,
)
from tests.zoo.geometry.official import cases, load_case, load_json, tiny_images
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.errors import InputError
from zoo.geometry.da3 import (
    DA3,
    cameras_to_pose_encoding,
    choose_reference,
    normalize_poses,
    official_size,
    pose_encoding_to_cameras,
    pose_scale,
    rays_to_cameras,
)
from zoo.geometry.vggt import pose_encoding_to_cameras as vggt_cameras

RELEASED = (
    *("da3_small", "da3_base", "da3_large", "da3_giant", "da3metric_large", "da3mono_large"),
    "da3nested_giant_large",
)
CLOSE = 3e-5  # ten times what other kernels make of it
SMALL = 1e-5  # a few roundings of float32 at numbers of some units


@pytest.fixture(scope="module")
def model() -> DA3:
    return hash_model(any_view_config()).requires_grad_(False)


# ---- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("da3/any_view"))
def test_any_view_equals_the_official_code(case: str) -> None:
    meta, t = load_case(case)
    model = case_model(meta)
    assert set(model.official_state_dict()) == set(meta["param_names"])
    output = run(model, meta, t)
    chosen = None if output.reference is None else output.reference.tolist()
    assert chosen == (meta["reference"] if meta["reference_chosen"] else None)
    start = meta["config"]["net"]["alt_start"]
    if start % 2:  # the official code overwrites the camera token of the local half of this layer, in place
        half = output.tokens[start].shape[-1] // 2
        kept, theirs = output.tokens[start][:, :, 0, :half], t[f"layer_{start}"][:, :, 0, :half]
        assert (kept - theirs).abs().max() > 0.1
        kept.copy_(theirs)
    found = errors(output, t)
    assert len(found) == meta["config"]["net"]["depth"] + 7 and max(found.values()) < 1, found


@pytest.mark.parametrize("case", cases("da3/metric"))
def test_metric_equals_the_official_code(case: str) -> None:
    meta, t = load_case(case)
    output = run(case_model(meta), meta, t)
    found = errors(output, t, depth="metric_depth")
    assert {"depth", "sky"} < found.keys() and max(found.values()) < 1, found
    assert output.pose_enc is output.rays is output.reference is output.scale is None


@pytest.mark.parametrize("case", cases("da3/nested"))
def test_nested_equals_the_official_code(case: str) -> None:
    meta, t = load_case(case)
    found = errors(run(case_model(meta), meta, t), t, depth="metric_depth")
    assert {"scale", "depth", "depth_conf", "world_to_camera", "sky"} < found.keys() and max(found.values()) < 1, found


FLOAT64 = ("any_view/giant_s3_42x42", "any_view/posed_b2_s3_42x56", "metric/sky_s2_42x56", "nested/sky_s3_42x56")


@pytest.mark.parametrize("case", FLOAT64)
def test_float64_stays_float64(case: str) -> None:
    meta, t = load_case(f"da3/{case}")
    output = run(case_model(meta, torch.float64), meta, t, torch.float64)
    assert output.depth.dtype == torch.float64
    found = errors(output, t, "_f64", depth="depth" if case.startswith("any_view") else "metric_depth")
    assert found and max(found.values()) < 0.2, found  # float32 is seen at 0.1


def larger_eps(model: DA3) -> None:
    for block in model.model.trunk.blocks:
        block.norm1.eps = block.norm2.eps = 1e-5


def no_query_norm(model: DA3) -> None:
    for block in model.model.trunk.blocks:
        block.attn.q_norm = nn.Identity()


def swapped_camera_tokens(model: DA3) -> None:
    model.model.trunk.camera_token.data = model.model.trunk.camera_token.data.flip(1)


def last_norm_left_out(model: DA3) -> None:
    model.model.trunk.norm = nn.Identity()


def norm_of_rays_not_loaded(model: DA3) -> None:
    model.model.head.scratch.output_conv2_aux[0].get_submodule("2").reset_parameters()


MISTAKES: dict[Callable[[DA3], None], tuple[str, ...]] = {  # the outputs in which each shows
    larger_eps: ("layer_5", "pose_enc", "depth"),
    no_query_norm: ("layer_5", "pose_enc", "depth", "rays"),
    swapped_camera_tokens: ("layer_5", "pose_enc", "depth", "rays"),
    last_norm_left_out: ("layer_5", "depth", "rays"),
    norm_of_rays_not_loaded: ("rays",),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_detected(mistake: Callable[[DA3], None]) -> None:
    meta, t = load_case("da3/any_view/saddle_b2_s4_28x42")  # two scenes, whose reference view is not the first
    model = deepcopy(case_model(meta))
    mistake(model)
    found = errors(run(model, meta, t), t)
    assert all(found[name] > 3 for name in MISTAKES[mistake]), found


# ---- cameras, scales, reference views and sizes: golden, or the truth ------------------------------------------


@pytest.mark.parametrize("case", cases("da3/poses"))
def test_pose_encodings_equal_the_official_ones(case: str) -> None:
    meta, t = load_case(case)
    size = tuple(meta["image_size_hw"])
    poses, K = pose_encoding_to_cameras(t["pose_enc"], size)
    assert error("world_to_camera", poses[..., :3, :], t["world_to_camera"]) < 1
    assert error("K_px", K, t["intrinsics"]) < 1 and K.isfinite().all()  # with fields of view of 0 and beyond pi
    encoding = cameras_to_pose_encoding(t["given_world_to_camera"], t["given_K_px"], size)
    assert torch.allclose(encoding, t["given_pose_enc"], atol=SMALL)
    # controls: VGGT's encoding is world-to-camera, and its field of view of 0 is an infinite focal length
    theirs = vggt_cameras(t["pose_enc"], size)[0]
    assert error("world_to_camera", theirs[..., :3, :], t["world_to_camera"]) > 100


@pytest.mark.parametrize("case", cases("da3/poses"))
def test_given_poses_are_normalized_as_in_the_official_code(case: str) -> None:
    _, t = load_case(case)
    given = t["given_world_to_camera"]
    every = normalize_poses(given)
    for i in range(len(given)):
        assert torch.allclose(every[i], t[f"normalised_{i}"], atol=SMALL)
    for name, count in (("normalised_first_one", 1), ("normalised_first_two", 2)):
        assert torch.allclose(normalize_poses(given[:1, :count])[0], t[name], atol=SMALL)
    assert not torch.allclose(every, given, atol=1e-2)
    moved = given @ rigid_matrix(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(normalize_poses(moved), every, atol=10 * SMALL)  # whatever the world


@pytest.mark.parametrize("case", cases("da3/ray_pose"))
def test_cameras_from_rays_are_the_true_ones(case: str) -> None:
    meta, t = load_case(case)
    poses, K = rays_to_cameras(t["rays"], t["rays_conf"], tuple(meta["image_size_hw"]))
    assert (poses - t["true_world_to_camera"]).abs().max() < 1e-4
    assert (K - t["true_K_px"]).abs().max() < 5e-3
    swapped = rays_to_cameras(t["rays"], t["rays_conf"], tuple(meta["image_size_hw"][::-1]))[1]
    assert (swapped - t["true_K_px"]).abs().max() > 1  # the control
    if not meta["centred"]:  # the official code factorizes the homography the other way round
        assert (t["official_K_px"] - t["true_K_px"]).abs().max() > 1


def test_the_scale_of_poses_is_umeyamas() -> None:
    meta, t = load_case("da3/alignment/align_a")
    for each in meta["sets"]:
        predicted, given = t[f"predicted_world_to_camera_{each['i']}"], t[f"given_world_to_camera_{each['i']}"]
        bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(len(predicted), 1, 4)
        found = pose_scale(torch.cat((predicted, bottom), 1), given)
        # the official code fits from ten views on to some of them, drawn at random
        assert found == pytest.approx(each["scale"], rel=1e-3 if each["ransac"] else 1e-6)
        assert 1 / found != pytest.approx(each["scale"], rel=1e-2)


def test_no_scale_fits_a_mirrored_path_as_well() -> None:
    """Centers on three axes, so that the scale can be computed by hand: rotations alone are fitted."""
    centers = torch.cat((torch.diag(torch.tensor([3.0, 2.0, 1.0])), -torch.diag(torch.tensor([3.0, 2.0, 1.0]))))
    poses, mirrored = (
        invert_se3(rigid_matrix(torch.eye(3).expand(6, 3, 3), centers * torch.tensor([1.0, 1.0, side])))
        for side in (1.0, -1.0)
    )
    assert pose_scale(poses, poses) == pytest.approx(1)
    assert pose_scale(mirrored, poses) == pytest.approx((9 + 4 - 1) / (9 + 4 + 1))


def along_a_line(*places: float) -> Tensor:
    centers = torch.tensor(places)[:, None] * torch.tensor([1.0, 2.0, -1.0])
    return invert_se3(rigid_matrix(torch.eye(3).expand(len(places), 3, 3), centers))


@pytest.mark.parametrize("poses", [along_a_line(0.0), along_a_line(0.0, 1.0), along_a_line(0.0, 1.0, 3.0, 4.0)])
def test_no_scale_of_too_few_poses_or_of_poses_on_a_line(poses: Tensor) -> None:
    with pytest.raises(InputError, match="three cameras or more"):
        pose_scale(poses, poses)


def test_reference_views_are_the_official_ones() -> None:
    meta, t = load_case("da3/reference/reference_a")
    differing = 0
    for each in meta["sets"]:
        tokens = t[f"class_tokens_{each['i']}"]
        for strategy, chosen in each["chosen"].items():
            margin = each["margin"].get(strategy, [1.0] * len(chosen))
            found = choose_reference(tokens, strategy).tolist()
            # without a margin two views tie, and rounding decides
            assert [a for a, m in zip(found, margin, strict=True) if m > 1e-6] == [
                b for b, m in zip(chosen, margin, strict=True) if m > 1e-6
            ]
            differing += choose_reference(tokens.flip(1), strategy).tolist() != found
    assert differing > len(meta["sets"])  # the control: they depend on the tokens


def test_the_choice_is_made_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    # as the class tokens of one video: nearly the same, so that half precision would round their differences away
    tokens = (
        torch.randn(50, 1, 64, generator=generator) + 0.1 * torch.randn(50, 8, 64, generator=generator)
    ).bfloat16()
    exact = choose_reference(tokens.double(), "saddle_balanced")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose_reference(tokens, "saddle_balanced"), exact)
        unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
        assert (unit @ unit.mT).dtype == torch.bfloat16  # the control: what autocast would do


def test_sizes_are_the_official_ones() -> None:
    table = load_json("da3/preprocess/sizes_a")["table"]
    assert table and all(list(official_size(*row[:4])) == row[4] for row in table)
    assert any(list(official_size(*row[:3])) != row[4] for row in table)  # the control: the method matters


# ---- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_every_official_tensor(name: str) -> None:
    about = manifest(name)
    model = DA3.from_official(about["config"], about["tensors"])  # raises for anything else
    skipped = {each for each in about["tensors"] if ".gs_head." in each or ".gs_adapter." in each}
    assert set(model.official_state_dict()) == set(about["tensors"]) - skipped
    assert bool(skipped) == ("giant" in name)


@pytest.mark.parametrize("config", [any_view_config(), metric_config(), nested_config()])
def test_weights_round_trip_bit_for_bit(config: dict[str, Any]) -> None:
    official = hash_model(config, torch.float64).official_state_dict()
    again = DA3.from_official(config, official).official_state_dict()
    assert again.keys() == official.keys() and all(torch.equal(again[name], official[name]) for name in official)
    assert {tensor.dtype for tensor in again.values()} == {torch.float64}


def test_older_files_hold_copies_of_a_layer_norm(model: DA3) -> None:
    official = model.official_state_dict()
    kept = "model.head.scratch.output_conv2_aux.0.2."
    copies = {
        name.replace(".0.2.", f".{level}.2."): tensor
        for name, tensor in official.items()
        if name.startswith(kept)
        for level in (1, 2, 3)
    }
    assert len(copies) == 6  # weight and bias on three levels
    DA3.from_official(model.config, official | copies)
    with pytest.raises(InputError, match="2 missing: .*output_conv2_aux.0.2"):
        DA3.from_official(model.config, {n: t for n, t in (official | copies).items() if not n.startswith(kept)})


def test_parts_that_the_config_leaves_out_are_not_loaded(model: DA3) -> None:
    trunk = DA3.from_official({"net": model.config["net"]}, model.official_state_dict())
    assert not trunk.model.heads and trunk(tiny_images()).pose_enc is None
    with_all, alone = model(tiny_images()).tokens[-1], trunk(tiny_images()).tokens[-1]
    assert torch.equal(with_all, alone)
    with pytest.raises(InputError, match="missing: model.head.norm.weight"):
        DA3.from_official(model.config, trunk.official_state_dict())


# ---- on demand -------------------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_computed(model: DA3) -> None:
    ran: set[str] = set()
    parts = {"last block": model.model.trunk.blocks[5], "cam_dec": model.model.cam_dec, "head": model.model.head}
    parts["ray chain"] = model.model.head.scratch.refinenet1_aux
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, part in parts.items()]
    wanted = {(0, ()): set(), (0, ("camera",)): {"last block", "cam_dec"}, (5, ()): {"last block"}}
    wanted[0, ("depth",)] = {"last block", "head"}
    wanted[0, ("ray",)] = {"last block", "head", "ray chain"}
    for (layer, heads), expected in wanted.items():
        ran.clear()
        output = model(tiny_images(), (layer,), heads)
        assert ran == expected
        given = (output.pose_enc, output.depth, output.rays)
        assert [each is not None for each in given] == [head in heads for head in HEADS]
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("views", [1, 4, 9])  # the official head fails for nine views of two scenes
def test_scenes_of_a_batch_are_independent(views: int, model: DA3) -> None:
    images = tiny_images(2, views)
    both = model(images, heads=HEADS)
    assert both.depth.shape == (2, views, 28, 42) and both.depth.isfinite().all() and both.pose_enc.isfinite().all()
    for i in range(2):
        alone = model(images[i : i + 1], heads=HEADS)
        assert torch.allclose(both.tokens[-1][i], alone.tokens[-1][0], atol=CLOSE)
        assert torch.allclose(both.depth[i], alone.depth[0], rtol=1e-4)
    images[0, -1] = 1 - images[0, -1]  # the control: the views of a scene attend to each other
    assert (model(images).tokens[-1][0, 0] - both.tokens[-1][0, 0]).abs().max() > 1e-3


def test_nested_scenes_have_their_own_scales() -> None:
    nested = hash_model(nested_config()).requires_grad_(False)
    images = torch.stack((tiny_images(1, 3)[0], 0.2 * tiny_images(1, 3, seed=1)[0]))
    both, single = nested(images, heads=HEADS), [nested(images[i : i + 1], heads=HEADS) for i in range(2)]
    for i, alone in enumerate(single):
        assert torch.allclose(both.scale[i], alone.scale[0], rtol=1e-4)
        assert torch.allclose(both.depth[i], alone.depth[0], rtol=1e-4)
    assert (both.scale[0] / both.scale[1] - 1).abs() > 1e-3
    poses, _ = pose_encoding_to_cameras(both.pose_enc, (28, 42))
    assert torch.allclose(poses, both.world_to_camera, atol=CLOSE)  # both are in meters, and so are the rays
    own = nested.model.da3(images, (), HEADS, "saddle_balanced", None)
    assert torch.allclose(both.rays[..., 3:], own.rays[..., 3:] * both.scale[:, None, None, None, None], rtol=1e-5)
    assert torch.equal(both.rays[..., :3], own.rays[..., :3])


# ---- the order of the views ------------------------------------------------------------------------------------

ORDER = [2, 0, 3, 1]


def difference(model: DA3, views: int, **options: Any) -> float:
    """What else than their order changes in the tokens and in what the heads predict if the views are permuted."""
    order, images = ORDER if views == 4 else [1, 0], tiny_images(1, views, seed=3).double()
    options = {name: each.double() if isinstance(each, Tensor) else each for name, each in options.items()}
    cameras = {name: tensor[:, order] for name, tensor in options.items() if isinstance(tensor, Tensor)}
    usual = model(images, (-1,), HEADS, **options)
    permuted = model(images[:, order], (-1,), HEADS, **options | cameras)
    pairs = [(permuted.tokens[-1], usual.tokens[-1])]
    pairs += [(getattr(permuted, name), getattr(usual, name)) for name in ("depth", "rays", "pose_enc", "K_px")]
    return max(float((one - other[:, order]).abs().max()) for one, other in pairs)


def test_permuting_the_views_permutes_the_tokens(model: DA3) -> None:
    model = deepcopy(model).double()
    assert difference(model, 4, reference="saddle_balanced") < 1e-12
    assert difference(model, 4, **given_cameras(4)) < 1e-12 and difference(model, 2, **given_cameras(2)) < 1e-12
    # controls: the first or the middle view, and of two views the first, is another one then
    assert difference(model, 4, reference="first") > 1e-2
    assert difference(model, 4, reference="middle") > 1e-2
    assert difference(model, 2, reference="saddle_balanced") > 1e-2


def test_the_reference_view_is_permuted_too(model: DA3) -> None:
    images = tiny_images(1, 4, seed=3)
    chosen, permuted = model(images).reference, model(images[:, ORDER]).reference
    assert ORDER[int(permuted)] == int(chosen)
    assert model(images, reference="first").reference.tolist() == [0]
    assert model(images[:, :2]).reference is None  # fewer than three views
    assert model(images, **given_cameras(4)).reference is None


def test_given_cameras_move_the_tokens(model: DA3) -> None:
    images, cameras = tiny_images(1, 3), given_cameras(3)
    tokens = model(images, **cameras).tokens[-1]
    assert (tokens - model(images).tokens[-1]).abs().max() > 1e-2
    others = cameras | {"world_to_camera": normalize_poses(cameras["world_to_camera"])}
    assert (model(images, **others).tokens[-1] - tokens).abs().max() > 1e-3  # they are used as they are


def test_a_bfloat16_trunk_gives_float32_geometry() -> None:
    config, images = any_view_config(), tiny_images(1, 3)
    names = {name: list(tensor.shape) for name, tensor in hash_model(config).official_state_dict().items()}
    half = DA3.from_official({"net": config["net"]}, hash_weights(names), torch.bfloat16).requires_grad_(False)
    half.load_parts(("cam_dec", "head"), config, hash_weights(names))
    exact, found = hash_model(config)(images, heads=HEADS), half(images, heads=HEADS)
    assert found.tokens[-1].dtype == torch.bfloat16
    for name in ("pose_enc", "depth", "rays"):
        assert getattr(found, name).dtype == torch.float32
        assert 0 < (getattr(found, name) - getattr(exact, name)).abs().mean() < 0.1
    assert torch.equal(found.reference, exact.reference)


def test_bad_input_is_an_error(model: DA3) -> None:
    images, cameras = tiny_images(1, 4), given_cameras(4)
    half = {name: tensor[:, :2] for name, tensor in cameras.items()}
    trunk = DA3.from_official({"net": model.config["net"]}, model.official_state_dict())
    for call, message in (
        (lambda: model(torch.rand(1, 2, 3, 30, 42)), "42 x 30 pixels: .*multiples of 14"),
        (lambda: model(255 * images), "in 0..1, .*divide by 255"),
        (lambda: model(images, heads=("point",)), "heads point: choose from camera, depth, ray"),
        (lambda: trunk(images, heads=("depth",)), "has no depth head"),
        (lambda: model(images, layers=(6,)), "no layer 6"),
        (lambda: model(images, **half), "give one camera per view"),
        (lambda: model(images, K_px=cameras["K_px"]), "K_px alone"),
        (lambda: trunk(images, **cameras), "no camera encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
