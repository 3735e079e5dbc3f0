"""Rays: the frame of each token, relative rays, the embedding, and points along rays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.zoo.cameras.test_cameras import random_poses
from tests.zoo.geometry.projection import project_points
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import ray_directions, token_points
from zoo.encodings import GTA, ChannelRange, RayEmbedding, RayEncoding
from zoo.encodings.prope import ray_cameras
from zoo.encodings.testing import HEAD, qkv_and_index, random_cameras


def patch_centers(index: Tensor) -> Tensor:
    """Returns the centers of 2 x 2 tokens per view; text comes first and last."""
    text = int((index[0] < 0).sum()) // 2
    patch = (torch.arange(index.shape[1]) - text) % 4
    return (torch.stack((patch % 2, patch // 2), -1).double() - 0.5) / 2 * torch.ones(len(index), 1, 1)


def test_directions_invert_the_projection() -> None:
    K = random_cameras(1)[1][0, 0]
    K_px = K.clone()
    K_px[0] *= 640
    K_px[1] *= 480
    K_px[0, 2], K_px[1, 2] = (K[0, 2] + 0.5) * 640, (K[1, 2] + 0.5) * 480
    centers = torch.tensor([[-0.5, -0.5], [0.0, 0.0], [0.31, -0.12]], dtype=torch.float64)
    directions = ray_directions(K.expand(3, 3, 3), centers)
    pixels, _ = project_points(7.0 * directions, torch.eye(4, dtype=torch.float64), K_px)
    expected = (centers + 0.5) * torch.tensor([640.0, 480.0], dtype=torch.float64)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-10)


def test_ray_frame_looks_along_its_ray() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    centers = patch_centers(index)
    rays = ray_cameras(Cameras(poses, K, index).with_tokens(centers))
    own = rays.index
    assert own is not None and torch.equal(own >= 0, index >= 0)
    for sample, token in ((0, 1), (0, 6), (1, 12)):
        V = poses[sample, index[sample, token]]
        M = rays.world_to_camera[sample, own[sample, token]]
        torch.testing.assert_close(M[:3, :3] @ M[:3, :3].mT, torch.eye(3, dtype=M.dtype), rtol=0, atol=1e-14)
        assert torch.linalg.det(M[:3, :3]) > 0
        torch.testing.assert_close(
            invert_se3(M)[:3, 3], invert_se3(V)[:3, 3], rtol=0, atol=1e-13
        )  # the same camera center
        direction = ray_directions(K[sample, 0], centers[sample, token])
        world = invert_se3(V)[:3, :3] @ direction + invert_se3(V)[:3, 3]
        on_ray = M @ torch.cat((world, torch.ones(1, dtype=M.dtype)))
        torch.testing.assert_close(on_ray[:2], torch.zeros(2, dtype=M.dtype), rtol=0, atol=1e-13)
        assert abs(float(on_ray[2]) - float(direction.norm())) < 1e-13
        down = V[1, :3]  # the camera's y axis in the world: x of the ray frame is orthogonal to it
        assert abs(float(M[0, :3] @ down)) < 1e-13 and float(M[1, :3] @ down) > 0


def test_central_ray_is_the_camera() -> None:
    poses, K = random_cameras(2)
    K[..., :2, 2] = 0
    qkv, index = qkv_and_index(1)
    cameras = Cameras(poses, K, index).with_tokens(torch.zeros(*index.shape, 2))
    decoder = {"head": HEAD, "dtype": torch.float64}
    by_ray, by_camera = (each(ChannelRange()).encode(cameras, **decoder) for each in (RayEncoding, GTA))
    for a, b in zip(by_ray.after_rope(qkv[0], qkv[1]), by_camera.after_rope(qkv[0], qkv[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    off = cameras.with_tokens(patch_centers(index))
    moved = RayEncoding(ChannelRange()).encode(off, **decoder).after_rope(qkv[0], qkv[1])[0]
    assert (moved - by_camera.after_rope(qkv[0], qkv[1])[0]).abs().max() > 0.1


def test_relative_rays_match_definition() -> None:
    """q^T P_i P_j^-1 k with the world-to-ray transform P."""
    poses, K = random_cameras(2)
    qkv, index = qkv_and_index(0)
    cameras = Cameras(poses, K, index).with_tokens(patch_centers(index))
    encoded = RayEncoding(ChannelRange(0, 1)).encode(cameras, HEAD, dtype=torch.float64)
    q, k = encoded.after_rope(qkv[0], qkv[0])
    M = ray_cameras(cameras).world_to_camera
    for i, j in ((0, 1), (2, 9), (11, 4)):
        relative = M[1, i] @ torch.linalg.inv(M[1, j])
        expected = sum(
            a @ relative @ b for a, b in zip(qkv[0][1, i, 2].view(-1, 4), qkv[0][1, j, 2].view(-1, 4), strict=True)
        )
        torch.testing.assert_close(q[1, i, 2] @ k[1, j, 2], expected, rtol=0, atol=1e-11)


def test_rays_require_patch_centers() -> None:
    poses, K = random_cameras(2)
    _, index = qkv_and_index(1)
    with pytest.raises(ValueError, match="pass Sequences.patch_centers"):
        RayEncoding().encode(Cameras(poses, K, index), HEAD)


# ---- the embedding ----------------------------------------------------------------------------------------


def embedding(rays: str, reference: str | None = "first") -> RayEmbedding:
    torch.manual_seed(0)
    module = RayEmbedding(16, rays, reference).double()  # type: ignore[arg-type]
    last = module.embed[-1]
    torch.nn.init.normal_(last.weight)  # type: ignore[union-attr, arg-type]
    return module


def test_embedding_starts_at_zero_and_trains() -> None:
    poses, K = random_cameras(1, views=3)
    tokens = torch.randn(3 * 2 * 4, 16)
    module = RayEmbedding(16)
    out = module(tokens, Cameras(poses, K), (3, 2, 4))
    assert torch.equal(out, tokens)
    (out * torch.randn_like(out)).sum().backward()
    assert module.embed[-1].weight.grad.abs().max() > 1e-3  # type: ignore[union-attr]


@pytest.mark.parametrize("rays", ["plucker", "directions"])
def test_embedding_matches_definition(rays: str) -> None:
    poses, K = random_cameras(1, views=3)
    module, tokens = embedding(rays, None), torch.zeros(3 * 2 * 4, 16, dtype=torch.float64)
    out = module(tokens, Cameras(poses, K), torch.tensor([3, 2, 4]))
    for step, row, column in ((0, 0, 0), (1, 1, 2), (2, 0, 3)):
        center = torch.tensor([(column + 0.5) / 4, (row + 0.5) / 2], dtype=torch.float64) - 0.5
        direction = ray_directions(K[0, step], center)
        if rays == "plucker":
            to_world = torch.linalg.inv(poses[0, step])
            unit = to_world[:3, :3] @ direction / direction.norm()
            direction = torch.cat((unit, torch.linalg.cross(to_world[:3, 3], unit)))
        expected = module.embed(direction)
        torch.testing.assert_close(out[(step * 2 + row) * 4 + column], expected, rtol=0, atol=1e-12)


def test_change_of_world_cancels_with_a_reference_view() -> None:
    poses, K = random_cameras(1, views=3)
    world = random_poses(1, 1, seed=3)
    tokens = torch.zeros(12, 16, dtype=torch.float64)
    for reference, invariant in (("first", True), ("medoid", True), (None, False)):
        module = embedding("plucker", reference)
        here, there = (module(tokens, Cameras(V, K), (3, 2, 2)) for V in (poses, poses @ world))
        difference = (here - there).abs().max()
        assert difference < 1e-10 if invariant else difference > 1e-3
    directions = embedding("directions", None)
    assert torch.equal(
        directions(tokens, Cameras(poses, K), (3, 2, 2)),
        directions(tokens, Cameras(world.expand(1, 3, 4, 4), K), (3, 2, 2)),
    )


def test_views_without_camera_change_no_bit() -> None:
    poses, K = random_cameras(1, views=3)
    tokens = torch.randn(12, 16, dtype=torch.float64)
    present = torch.tensor([True, False, True])
    out = embedding("plucker")(tokens, Cameras(poses, K), (3, 2, 2), present[None])
    assert torch.equal(out[4:8], tokens[4:8])
    assert ((out - tokens).abs().amax(-1)[[0, 3, 8, 11]] > 1e-3).all()


@pytest.mark.parametrize("reference", ["first", "middle", "medoid"])
def test_the_reference_of_the_embedding_has_a_camera(reference: str) -> None:
    poses, K = random_cameras(1, views=5)
    present = torch.tensor([False, True, False, False, True])  # not those that all five would choose
    tokens, module = torch.zeros(20, 16, dtype=torch.float64), embedding("plucker", reference)
    out = module(tokens, Cameras(poses, K), (5, 2, 2), present[None]).unflatten(0, (5, 4))
    alone = module(tokens[:8], Cameras(poses[:, present], K[:, present]), (2, 2, 2)).unflatten(0, (2, 4))
    torch.testing.assert_close(out[present], alone, rtol=0, atol=1e-12)


def test_bfloat16_tokens_get_float32_rays() -> None:
    poses, K = random_cameras(1, views=3)
    poses[..., :3, 3] += 100.0
    module = embedding("plucker").float()
    exact = module(torch.zeros(12, 16), Cameras(poses, K), (3, 2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(torch.zeros(12, 16, dtype=torch.bfloat16), Cameras(poses, K), (3, 2, 2))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))


# ---- points -----------------------------------------------------------------------------------------------


def test_token_points_lie_on_their_rays_at_median_depth() -> None:
    poses, K = random_cameras(1, views=2)
    torch.manual_seed(0)
    depth = torch.full((2, 56, 84), 3.0)
    depth[1, :28, 28:56] = 0.0  # a token without depth
    depth[0, :28, :28] = torch.where(torch.rand(28, 28) < 0.4, 9.0, 2.0)
    depth[0, 28:, 28:56] = torch.where(torch.rand(28, 28) < 0.7, 0.0, 5.0)
    points = token_points(depth, poses[0], K[0], 28)
    assert points.shape == (2, 2, 3, 3) and points[1, 0, 1].isnan().all()
    assert points.isfinite().all(-1).sum() == 11
    for step, row, column, expected in ((0, 0, 0, 2.0), (0, 1, 1, 5.0), (1, 1, 2, 3.0)):
        in_camera = poses[0, step, :3, :3] @ points[step, row, column] + poses[0, step, :3, 3]
        center = torch.tensor([(column + 0.5) / 3, (row + 0.5) / 2], dtype=torch.float64) - 0.5
        torch.testing.assert_close(in_camera, expected * ray_directions(K[0, step], center), rtol=0, atol=1e-12)
