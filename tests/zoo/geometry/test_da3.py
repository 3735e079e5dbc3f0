"""Depth Anything 3: official weights, computation on demand, the order of views, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.geometry.da3 import HEADS, hash_model, hash_weights, manifest
from tests.zoo.geometry.official import tiny_images
from zoo.cameras.poses import rigid_matrix
from zoo.errors import InputError
from zoo.geometry.da3 import DA3, normalize_poses, pose_encoding_to_cameras, to_meters

RELEASED = (
    *("da3_small", "da3_base", "da3_large", "da3_giant", "da3metric_large", "da3mono_large"),
    "da3nested_giant_large",
)
WIDTH = 32
CLOSE = 3e-5  # ten times what other kernels make of it


def any_view_config(**net: Any) -> dict[str, Any]:
    """Six small blocks with all heads."""
    trunk = {"name": "vits", "embed_dim": WIDTH, "depth": 6, "num_heads": 2, "out_layers": [2, 3, 4, 5]}
    trunk |= {"alt_start": 2, "qknorm_start": 2, "rope_start": 2, "cat_token": True}
    return {
        "net": trunk | net,
        "head": dense("DualDPT", 2 * WIDTH, 2),
        "cam_enc": {"dim_out": WIDTH, "num_heads": 4, "trunk_depth": 1},
        "cam_dec": {"dim_in": 2 * WIDTH},
    }


def metric_config() -> dict[str, Any]:
    trunk = {"name": "vitl", "embed_dim": WIDTH, "depth": 4, "num_heads": 2, "out_layers": [0, 1, 2, 3]}
    return {"net": trunk | {"cat_token": False}, "head": dense("DPT", WIDTH, 1)}


def nested_config() -> dict[str, Any]:
    return {"anyview": any_view_config(), "metric": metric_config()}


def dense(kind: str, width: int, outputs: int) -> dict[str, Any]:
    sizes = {"dim_in": width, "output_dim": outputs, "features": 16, "out_channels": [8, 8, 8, 8]}
    return {"__object__": {"name": kind}, **sizes}


@pytest.fixture(scope="module")
def model() -> DA3:
    return hash_model(any_view_config()).requires_grad_(False)


# ---- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_every_official_tensor(name: str) -> None:
    about = manifest(name)
    model = DA3.from_official(about["config"], about["tensors"])  # raises for anything else
    skipped = {each for each in about["tensors"] if ".gs_head." in each or ".gs_adapter." in each}
    assert set(model.official_state_dict()) == set(about["tensors"]) - skipped
    assert bool(skipped) == ("giant" in name)


@pytest.mark.slow
def test_a_released_model_runs_on_the_meta_device() -> None:
    about = manifest("da3_giant")
    model = DA3.from_official(about["config"], about["tensors"])
    output = model(torch.empty(1, 3, 3, 42, 56, device="meta"), (-1,), HEADS)
    assert output.tokens[-1].shape == (1, 3, 13, 3072) and output.depth.shape == (1, 3, 42, 56)


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


def test_an_error_names_the_tensors(model: DA3) -> None:
    broken = model.official_state_dict()
    del broken["model.backbone.pretrained.camera_token"]
    broken["model.extra"] = torch.zeros(1)
    broken["model.cam_dec.fc_t.bias"] = torch.zeros(5)
    with pytest.raises(InputError) as error:
        DA3.from_official(model.config, broken)
    message = str(error.value)
    assert "1 missing: model.backbone.pretrained.camera_token" in message and "1 unexpected: model.extra" in message
    assert "1 misshapen: model.cam_dec.fc_t.bias [5] instead of [3]" in message


def test_parts_that_the_config_leaves_out_are_not_loaded(model: DA3) -> None:
    trunk = DA3.from_official({"net": model.config["net"]}, model.official_state_dict())
    assert not trunk.model.heads and trunk(tiny_images()).pose_enc is None
    with_all, alone = model(tiny_images()).tokens[-1], trunk(tiny_images()).tokens[-1]
    assert torch.equal(with_all, alone)
    with pytest.raises(InputError, match="missing: model.head.norm.weight"):
        DA3.from_official(model.config, trunk.official_state_dict())


# ---- on demand ------------------------------------------------------------------------------------------


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


def test_requested_outputs_do_not_depend_on_the_others(model: DA3) -> None:
    images = tiny_images(2, 3)
    everything, some = model(images, range(6), HEADS), model(images, (-1, 0), ("depth",))
    assert list(some.tokens) == [-1, 0] and torch.equal(some.depth, everything.depth)
    assert torch.equal(some.tokens[-1], everything.tokens[5]) and torch.equal(some.tokens[0], everything.tokens[0])
    assert not torch.equal(some.tokens[-1], everything.tokens[4])
    poses, K = pose_encoding_to_cameras(everything.pose_enc, (28, 42))
    assert torch.equal(everything.world_to_camera, poses) and torch.equal(everything.K_px, K)
    assert everything.rays.shape == (2, 3, 2 * 8, 3 * 8, 6)  # eight rays along each side of a patch


def test_scenes_of_a_batch_are_independent(model: DA3) -> None:
    images = tiny_images(2, 4)
    both = model(images, heads=HEADS)
    for i in range(2):
        alone = model(images[i : i + 1], heads=HEADS)
        assert torch.allclose(both.tokens[-1][i], alone.tokens[-1][0], atol=CLOSE)
        assert torch.allclose(both.depth[i], alone.depth[0], rtol=1e-4)
    images[0, 2] = 1 - images[0, 2]  # but the views of a scene attend to each other
    assert (model(images).tokens[-1][0, 0] - both.tokens[-1][0, 0]).abs().max() > 1e-3


def test_more_than_eight_views_of_two_scenes(model: DA3) -> None:  # the official head crashes
    output = model(tiny_images(2, 9), heads=HEADS)
    assert output.depth.shape == (2, 9, 28, 42) and output.depth.isfinite().all()


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


def test_meters_need_the_focal_length() -> None:
    depth, K = torch.full((1, 2, 2, 2), 3.0), torch.eye(3).repeat(1, 2, 1, 1)
    K[0, 0, 0, 0], K[0, 0, 1, 1], K[0, 1, 0, 0], K[0, 1, 1, 1] = 300.0, 300.0, 100.0, 500.0
    assert torch.equal(to_meters(depth, K), depth)  # the mean of fx and fy
    assert torch.equal(to_meters(depth, 2 * K), 2 * depth)


# ---- the order of the views ----------------------------------------------------------------------------------

ORDER = [2, 0, 3, 1]


def difference(model: DA3, views: int, **options: Any) -> float:
    """What else than their order changes in the tokens and in what the heads predict if the views are permuted."""
    order, images = ORDER if views == 4 else [1, 0], tiny_images(1, views, seed=3)
    cameras = {name: tensor[:, order] for name, tensor in options.items() if isinstance(tensor, Tensor)}
    usual = model(images, (-1,), HEADS, **options)
    permuted = model(images[:, order], (-1,), HEADS, **options | cameras)
    pairs = [(permuted.tokens[-1], usual.tokens[-1])]
    pairs += [(getattr(permuted, name), getattr(usual, name)) for name in ("depth", "rays", "pose_enc", "K_px")]
    return max(float((one - other[:, order]).abs().max()) for one, other in pairs)


def given_cameras(views: int, spread: float = 1.0) -> dict[str, Tensor]:
    centers = spread * torch.arange(3.0 * views).reshape(1, views, 3).sin()
    K = torch.tensor([[30.0, 0, 21], [0, 30, 14], [0, 0, 1]]).expand(1, views, 3, 3)
    return {"world_to_camera": rigid_matrix(torch.eye(3).expand(1, views, 3, 3), centers), "K_px": K}


def test_permuting_the_views_permutes_the_tokens(model: DA3) -> None:
    assert difference(model, 4, reference="saddle_balanced") < CLOSE
    assert difference(model, 4, **given_cameras(4)) < CLOSE and difference(model, 2, **given_cameras(2)) < CLOSE
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


# ---- bad input --------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(model: DA3) -> None:
    images, cameras = tiny_images(1, 4), given_cameras(4)
    half = {name: tensor[:, :2] for name, tensor in cameras.items()}
    trunk = DA3.from_official({"net": model.config["net"]}, model.official_state_dict())
    for run, message in (
        (lambda: model(torch.rand(1, 2, 3, 30, 42)), "42 x 30 pixels: .*multiples of 14; .*42 x 28$"),
        (
            lambda: model(255 * images),
            "Depth Anything 3 needs images in 0..1, .*divide by 255, or undo a normalization$",
        ),
        (lambda: model(images, heads=("point",)), "heads point: choose from camera, depth, ray$"),
        (lambda: trunk(images, heads=("depth",)), "has no depth head: it has no heads$"),
        (lambda: hash_model(metric_config())(images, heads=("ray",)), "has no ray head: it has depth$"),
        (lambda: model(images, layers=(6,)), "no layer 6: the model has 6$"),
        (lambda: model(images, **half), r"world_to_camera of \[1, 2\] .*images of \[1, 4\]: give one camera per view"),
        (lambda: model(images, K_px=cameras["K_px"]), "K_px alone: give world_to_camera and K_px, or neither$"),
        (lambda: trunk(images, **cameras), "no camera encoder .*leave the cameras out$"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            run()
        assert "\n" not in str(error.value)


def test_one_view(model: DA3) -> None:
    output = model(tiny_images(1, 1), heads=HEADS)
    assert output.reference is None and output.depth.shape == (1, 1, 28, 42) and output.pose_enc.isfinite().all()
