"""Depth Anything 3's cameras, scales, reference views and sizes against the official code, or against the truth."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from tests.zoo.geometry.da3 import cases, error, load_case
from tests.zoo.geometry.official import HERE
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.errors import InputError
from zoo.geometry import vggt
from zoo.geometry.da3 import (
    cameras_to_pose_encoding,
    choose_reference,
    normalize_poses,
    official_size,
    pose_encoding_to_cameras,
    pose_scale,
    rays_to_cameras,
)

SMALL = 1e-5  # a few roundings of float32 at numbers of some units


@pytest.mark.parametrize("case", cases("poses"))
def test_pose_encodings_equal_the_official_ones(case: str) -> None:
    meta, t = load_case("poses", case)
    size = tuple(meta["image_size_hw"])
    poses, K = pose_encoding_to_cameras(t["pose_enc"], size)
    assert error("world_to_camera", poses[..., :3, :], t["world_to_camera"]) < 1
    assert error("K_px", K, t["intrinsics"]) < 1 and K.isfinite().all()  # with fields of view of 0 and beyond pi
    encoding = cameras_to_pose_encoding(t["given_world_to_camera"], t["given_K_px"], size)
    assert torch.allclose(encoding, t["given_pose_enc"], atol=SMALL)
    # controls: VGGT's encoding is world-to-camera, and its field of view of 0 is an infinite focal length
    theirs = vggt.pose_encoding_to_cameras(t["pose_enc"], size)[0]
    assert error("world_to_camera", theirs[..., :3, :], t["world_to_camera"]) > 100


@pytest.mark.parametrize("case", cases("poses"))
def test_given_poses_are_normalized_as_in_the_official_code(case: str) -> None:
    _, t = load_case("poses", case)
    given = t["given_world_to_camera"]
    every = normalize_poses(given)
    for i in range(len(given)):
        assert torch.allclose(every[i], t[f"normalised_{i}"], atol=SMALL)
    for name, count in (("normalised_first_one", 1), ("normalised_first_two", 2)):
        assert torch.allclose(normalize_poses(given[:1, :count])[0], t[name], atol=SMALL)
    assert not torch.allclose(every, given, atol=1e-2)
    moved = given @ rigid_matrix(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(normalize_poses(moved), every, atol=10 * SMALL)  # whatever the world


@pytest.mark.parametrize("case", cases("ray_pose"))
def test_cameras_from_rays_are_the_true_ones(case: str) -> None:
    meta, t = load_case("ray_pose", case)
    poses, K = rays_to_cameras(t["rays"], t["rays_conf"], tuple(meta["image_size_hw"]))
    assert (poses - t["true_world_to_camera"]).abs().max() < 1e-4
    assert (K - t["true_K_px"]).abs().max() < 5e-3
    swapped = rays_to_cameras(t["rays"], t["rays_conf"], tuple(meta["image_size_hw"][::-1]))[1]
    assert (swapped - t["true_K_px"]).abs().max() > 1  # the control
    if not meta["centred"]:  # the official code factorizes the homography the other way round
        assert (t["official_K_px"] - t["true_K_px"]).abs().max() > 1


def test_the_scale_of_poses_is_umeyamas() -> None:
    meta, t = load_case("alignment", "align_a")
    for each in meta["sets"]:
        predicted, given = t[f"predicted_world_to_camera_{each['i']}"], t[f"given_world_to_camera_{each['i']}"]
        bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(len(predicted), 1, 4)
        found = pose_scale(torch.cat((predicted, bottom), 1), given)
        # the official code fits from ten views on to some of them, drawn at random
        assert found == pytest.approx(each["scale"], rel=1e-3 if each["ransac"] else 1e-6)
        assert 1 / found != pytest.approx(each["scale"], rel=1e-2)


def along_a_line(*places: float) -> Tensor:
    centers = torch.tensor(places)[:, None] * torch.tensor([1.0, 2.0, -1.0])
    return invert_se3(rigid_matrix(torch.eye(3).expand(len(places), 3, 3), centers))


@pytest.mark.parametrize("poses", [along_a_line(0.0), along_a_line(0.0, 1.0), along_a_line(0.0, 1.0, 3.0, 4.0)])
def test_no_scale_of_too_few_poses_or_of_poses_on_a_line(poses: Tensor) -> None:
    with pytest.raises(InputError, match="three cameras or more"):
        pose_scale(poses, poses)


def test_reference_views_are_the_official_ones() -> None:
    meta, t = load_case("reference", "reference_a")
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
    table = json.loads((HERE / "da3/preprocess/sizes_a.json").read_text())["table"]
    assert table and all(list(official_size(*row[:4])) == row[4] for row in table)
    assert any(list(official_size(*row[:3])) != row[4] for row in table)  # the control: the method matters
