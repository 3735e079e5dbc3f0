"""VGGT as a geometry encoder: equal to VGGT, batched by shape, computed on demand, with valid cameras."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.zoo.geometry.official import hash_model, hash_weights, tiny_config, tiny_images
from zoo.cameras import Cameras, normalize_intrinsics
from zoo.errors import InputError
from zoo.geometry import PretrainedVGGT, SceneGeometry, TinyVGGT, VGGTEncoder, pose_encoding_to_cameras
from zoo.geometry.base import announce_license, valid_cameras


@pytest.fixture
def encoder() -> VGGTEncoder:
    vggt = hash_model(tiny_config()).requires_grad_(False)
    last = vggt.camera_head.pose_branch.fc2  # hash weights would give fields of view below 0
    last.weight[7:].mul_(0.1)
    last.bias[7:] = 0.25  # four steps add up to a radian
    return VGGTEncoder(vggt)


def scenes(*shapes: tuple[int, int, int]) -> list[Tensor]:
    return [tiny_images(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]


def encode(encoder: VGGTEncoder, frames: list[Tensor], **kwargs: bool) -> list[SceneGeometry]:
    return encoder(frames, [None] * len(frames), **kwargs)


# ---- equal to VGGT -------------------------------------------------------------------------------------


def test_tokens_and_cameras_equal_vggts(encoder: VGGTEncoder) -> None:
    (frames,) = scenes((3, 28, 42))
    (scene,) = encode(encoder, [frames])
    expected = encoder.vggt(frames[None])
    tokens = expected.tokens[-1][0]
    assert encoder.width == tokens.shape[-1] == 64
    assert torch.equal(scene.camera_tokens, tokens[:, 0]) and scene.patches.shape == (3, 2, 3, 64)
    assert torch.equal(scene.patches[1, 1, 0], tokens[1, 5 + 3])  # row by row, after five special tokens
    world_to_camera, K_px = pose_encoding_to_cameras(expected.pose_enc[0], (28, 42))
    assert torch.equal(scene.world_to_camera, world_to_camera) and scene.has_camera.all()
    assert torch.equal(scene.K_normalized, normalize_intrinsics(K_px, 42, 28))
    assert not torch.allclose(scene.K_normalized, normalize_intrinsics(K_px, 28, 42))
    Cameras(scene.world_to_camera[None], scene.K_normalized[None])  # what it accepts


def test_other_layers(encoder: VGGTEncoder) -> None:
    frames = scenes((2, 28, 28))
    first, both = VGGTEncoder(encoder.vggt, (0,)), VGGTEncoder(encoder.vggt, (-1, 0))
    tokens = encoder.vggt(frames[0][None], layers=(0,), heads=()).tokens[0][0]
    assert torch.equal(encode(first, frames)[0].camera_tokens, tokens[:, 0])
    assert not torch.allclose(encode(encoder, frames)[0].camera_tokens, tokens[:, 0], atol=1e-3)
    (joined,), alone = encode(both, frames), [encode(each, frames)[0] for each in (encoder, first)]
    assert (both.width, both.num_layers) == (2 * first.width, 2) == (joined.patches.shape[-1], 2)
    for name in ("patches", "camera_tokens"):  # in the order given, on the channels
        assert torch.equal(getattr(joined, name), torch.cat([getattr(each, name) for each in alone], -1))


def test_scenes_of_different_lengths_and_sizes_are_grouped(encoder: VGGTEncoder) -> None:
    frames = scenes((2, 28, 42), (3, 28, 42), (2, 28, 42), (2, 42, 28), (1, 28, 42))
    batches: list[tuple[int, ...]] = []
    hook = encoder.vggt.aggregator.register_forward_hook(lambda module, args, out: batches.append(args[0].shape[:2]))
    together = encode(encoder, frames)
    hook.remove()
    assert sorted(batches) == [(1, 1), (1, 2), (1, 3), (2, 2)]  # (scenes, frames): no frame is made up
    for one, scene in zip(frames, together, strict=True):
        (alone,) = encode(encoder, [one])
        for name, value in vars(alone).items():
            if value is not None:
                assert torch.allclose(getattr(scene, name).float(), value.float(), atol=1e-5), name
    (padded,) = encode(encoder, [torch.cat((frames[0], torch.zeros(1, 3, 28, 42)))])
    assert not torch.allclose(padded.patches[:2], together[0].patches, atol=1e-3)


@pytest.mark.parametrize("count", [1, 100])
def test_one_frame_and_a_hundred(encoder: VGGTEncoder, count: int) -> None:
    (scene,) = encode(encoder, scenes((count, 28, 28)))
    assert scene.patches.shape == (count, 2, 2, 64) and scene.patches.isfinite().all()
    assert scene.world_to_camera.shape == (count, 4, 4)


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        (scene,) = TinyVGGT(embed_dim=32)([torch.empty(2, 3, 28, 42)], [None])
    assert scene.patches.shape == (2, 2, 3, 64) and scene.world_to_camera.shape == (2, 4, 4)


# ---- on demand --------------------------------------------------------------------------------------


def test_only_requested_outputs_are_computed(encoder: VGGTEncoder) -> None:
    ran: set[str] = set()
    parts = {"head": encoder.vggt.camera_head, "last": encoder.vggt.aggregator.global_blocks[2]}
    for name, module in parts.items():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    early = VGGTEncoder(encoder.vggt, (0, 1))
    (scene,) = encode(early, scenes((2, 28, 28)), cameras=False)
    assert not ran and scene.world_to_camera is scene.K_normalized is scene.has_camera is None
    (scene,) = encode(early, scenes((2, 28, 28)), tokens=False)
    assert ran == {"head", "last"} and scene.patches is scene.camera_tokens is None


def test_a_frozen_encoder_keeps_no_graph(encoder: VGGTEncoder) -> None:
    frames = scenes((2, 28, 28))
    assert not encode(encoder, frames)[0].patches.requires_grad
    encoder.vggt.aggregator.camera_token.requires_grad_(True)
    assert encode(encoder, frames)[0].patches.requires_grad
    with torch.no_grad():
        assert not encode(encoder, frames)[0].patches.requires_grad


# ---- invalid cameras ----------------------------------------------------------------------------


def test_invalid_cameras_are_masked_identities() -> None:
    sound = [0.1, 0.2, 0.3, 0.0, 0.6, 0.0, 0.8, 1.0, 1.2]
    rows = [list(sound) for _ in range(6)]
    rows[1][7] = 0.0  # infinite focal length
    rows[2][8] = 3.5  # more than a half turn
    rows[3][3:7] = [0.0] * 4  # no rotation
    rows[4][0] = math.nan
    pose_enc = torch.tensor([rows], requires_grad=True)
    poses, K, has_camera = valid_cameras(pose_enc, (28, 42), pose_encoding_to_cameras)
    assert has_camera.tolist() == [[True, False, False, False, False, True]]
    assert torch.equal(poses[0, 1:5], torch.eye(4).expand(4, 4, 4)) and torch.equal(K[0, 1], torch.eye(3))
    assert not torch.equal(poses[0, 0], torch.eye(4)) and torch.equal(poses[0, 0], poses[0, 5])
    (poses.sum() + K.sum()).backward()
    assert pose_enc.grad.isfinite().all() and pose_enc.grad[0, 0].abs().min() >= 0 and pose_enc.grad[0, 0].any()
    _, K_px = pose_encoding_to_cameras(pose_enc.detach(), (28, 42))
    assert K_px[0, 1].isinf().any()  # the control: infinite without the mask


def test_a_pose_encoding_of_zeros_is_no_camera(encoder: VGGTEncoder) -> None:
    with torch.no_grad():
        encoder.vggt.camera_head.pose_branch.fc2.weight.zero_()
        encoder.vggt.camera_head.pose_branch.fc2.bias.zero_()
    (scene,) = encode(encoder, scenes((2, 28, 28)))
    assert not scene.has_camera.any() and torch.equal(scene.world_to_camera, torch.eye(4).expand(2, 4, 4))


def test_bfloat16_trunk_gives_float32_cameras(encoder: VGGTEncoder) -> None:
    exact = encode(encoder, scenes((2, 28, 28)))[0]
    encoder.vggt.aggregator.to(torch.bfloat16)
    half = encode(encoder, scenes((2, 28, 28)))[0]
    assert (
        half.patches.dtype == torch.bfloat16 and half.world_to_camera.dtype == half.K_normalized.dtype == torch.float32
    )
    assert 0 < (half.world_to_camera - exact.world_to_camera).abs().max() < 0.2


# ---- weights ----------------------------------------------------------------------------------------------


def test_the_camera_head_is_loaded_when_enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    config["camera_head"] = {"dim_in": 64}  # VGGT-1B's but for the width
    monkeypatch.setattr("zoo.geometry.vggt.VGGT_1B", config)
    weights, frames = hash_weights(config), scenes((2, 28, 28))
    save_file(weights, tmp_path / "model.safetensors")
    encoder = PretrainedVGGT(str(tmp_path), dtype="bfloat16")
    assert encoder.vggt.camera_head is None and encode(encoder, frames, cameras=False)[0].patches is not None
    encoder.enable_head("camera")
    expected, found = hash_model(config).camera_head, encoder.vggt.camera_head
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert encode(encoder, frames)[0].world_to_camera.dtype == torch.float32
    encoder.enable_head("camera")
    assert encoder.vggt.camera_head is found  # once

    save_file({name: t for name, t in weights.items() if "camera_head" not in name}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"no camera head \(camera_head\.\*\).*--model.camera_source dataset"):
        PretrainedVGGT(str(tmp_path / "bare.safetensors")).enable_head("camera")
    with pytest.raises(InputError, match=r"no camera head: .*--model.geometry.heads \[camera\]"):
        TinyVGGT(embed_dim=16, num_heads=2, heads=()).enable_head("camera")


@pytest.mark.parametrize(
    ("name", "process", "is_printed"),
    [("VGGT-1B", "0", True), ("VGGT-1B", "1", False), ("VGGT-1B-Commercial", "0", False)],
)
def test_the_license_is_printed_once(
    name: str,
    process: str,
    is_printed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_PROCID", process)
    config = tiny_config()
    monkeypatch.setattr("zoo.geometry.vggt.VGGT_1B", config)
    (tmp_path / name).mkdir()
    save_file(hash_weights(config), tmp_path / name / "model.safetensors")
    announce_license.cache_clear()
    for _ in range(2):
        PretrainedVGGT(str(tmp_path / name))
    assert capsys.readouterr().err.count("CC BY-NC 4.0") == is_printed


def test_the_depth_head_is_loaded_when_enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    monkeypatch.setattr("zoo.geometry.vggt.VGGT_1B", config)
    config["camera_head"] = {"dim_in": 64}
    save_file(hash_weights(config), tmp_path / "model.safetensors")
    encoder, frames = PretrainedVGGT(str(tmp_path)), scenes((2, 28, 28))
    encoder.enable_head("camera")
    identity = encoder.identity()
    assert encode(encoder, frames)[0].depth is None
    encoder.enable_head("depth")
    assert encoder.identity() != identity
    (found,) = encode(encoder, frames)
    whole = hash_model(config)
    expected = whole(frames[0][None], layers=(), heads=("depth",)).depth[0, ..., 0]
    torch.testing.assert_close(found.depth, expected)
    assert encode(encoder, frames, cameras=False)[0].depth is None
    with pytest.raises(InputError, match=r"no depth head: .*--model.geometry.heads \[camera,depth\]"):
        TinyVGGT(embed_dim=16, num_heads=2).enable_head("depth")


def test_tiny_weights_come_from_a_seed_or_a_path(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (TinyVGGT(seed=seed, embed_dim=32) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    tokens = [encode(each, scenes((2, 28, 28)))[0].patches for each in (first, again, other)]
    assert torch.equal(tokens[0], tokens[1]) and not torch.allclose(tokens[0], tokens[2], atol=1e-2)
    trained = TinyVGGT(seed=1, embed_dim=32, heads=("camera", "depth", "point"))
    expected = encode(trained, scenes((2, 28, 28)))[0].patches
    save_file(trained.vggt.official_state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = TinyVGGT(str(path), embed_dim=32)
        assert loaded.vggt.depth_head is None
        assert torch.equal(encode(loaded, scenes((2, 28, 28)))[0].patches, expected)
    with pytest.raises(InputError, match="aggregator.camera_token"):
        TinyVGGT(str(tmp_path), embed_dim=64)
    with pytest.raises(InputError, match="holds no model.safetensors: make one with .*geometry_tiny.yaml"):
        TinyVGGT(str(tmp_path / "nothing"))


@pytest.mark.parametrize("seed", range(4))
def test_tiny_vggt_starts_at_identity_rotations_with_gradients(seed: int) -> None:
    vggt = TinyVGGT(seed=seed, embed_dim=64).vggt
    pose_enc = vggt(tiny_images(1, 3, 28, 28, seed=seed), layers=()).pose_enc
    assert torch.allclose(pose_enc, pose_enc.new_tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]).expand_as(pose_enc), atol=0.35)
    pose_enc[..., 7:].sum().backward()
    assert vggt.camera_head.pose_branch.fc2.bias.grad[7:].abs().min() > 0
    with torch.no_grad():  # control: below 0 it learns nothing
        vggt.camera_head.pose_branch.fc2.bias[7:] = -1.0
    vggt.zero_grad()
    vggt(tiny_images(1, 3, 28, 28, seed=seed), layers=()).pose_enc[..., 7:].sum().backward()
    assert not vggt.camera_head.pose_branch.fc2.bias.grad[7:].any()


def test_released_weights_are_vggt_1b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its architecture shrunk: the true one is accounted for in test_vggt_weights.py."""
    config = tiny_config()
    save_file(hash_weights(config), tmp_path / "model.safetensors")
    monkeypatch.setattr("zoo.geometry.vggt.VGGT_1B", config)
    encoder = PretrainedVGGT(str(tmp_path))
    assert encoder.vggt.camera_head is None
    expected = VGGTEncoder(hash_model(config))
    frames = scenes((2, 28, 28))
    assert torch.equal(encode(encoder, frames, cameras=False)[0].patches, encode(expected, frames)[0].patches)
    half = PretrainedVGGT(str(tmp_path), dtype="bfloat16")
    assert half.vggt.aggregator.camera_token.dtype == torch.bfloat16
    with pytest.raises(InputError, match="hf download facebook/VGGT-1B"):
        PretrainedVGGT(str(tmp_path / "absent" / "folder"))


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "remedy"), [(30, 42, "42 x 28"), (28, 40, "42 x 28"), (10, 28, "28 x 14")])
def test_sides_must_be_multiples_of_14(encoder: VGGTEncoder, height: int, width: int, remedy: str) -> None:
    with pytest.raises(InputError, match=f"^frames of {width} x {height} pixels.* multiples of 14.*to {remedy}$"):
        encode(encoder, scenes((2, 28, 28), (1, height, width)))


def test_an_unknown_layer_is_an_error(encoder: VGGTEncoder) -> None:
    for layers in ((3,), (0, -4), ()):
        with pytest.raises(InputError, match=r"--model.geometry.layers \[.*\]: .* has layers 0 to 2"):
            VGGTEncoder(encoder.vggt, layers)
