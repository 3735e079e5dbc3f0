"""VGGT and Depth Anything 3 as geometry encoders: equal to the models, on demand, from folders, trainable."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.zoo.geometry.da3 import any_view_config, given_cameras, hash_model, metric_config, nested_config, save
from tests.zoo.geometry.official import check_reachable, hash_weights, tiny_config, tiny_images
from tests.zoo.geometry.official import hash_model as hash_vggt
from zoo.cameras import Cameras, normalize_intrinsics
from zoo.errors import InputError
from zoo.geometry import (
    CachedGeometry,
    DA3Encoder,
    GeometryCache,
    PosedDA3,
    PretrainedDA3,
    PretrainedVGGT,
    SceneGeometry,
    TinyDA3,
    TinyPi3X,
    TinyVGGT,
    VGGTEncoder,
    pose_encoding_to_cameras,
)
from zoo.geometry.base import GeometryEncoder, announce_license, encoder_frames, valid_cameras
from zoo.geometry.da3 import DA3, normalize_poses

OWN_HEADS = ("camera", "depth")


def scenes(*shapes: tuple[int, int, int]) -> list[Tensor]:
    return [tiny_images(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]


def encode(encoder: GeometryEncoder, frames: list[Tensor], **wanted: bool) -> list[SceneGeometry]:
    return encoder(frames, [None] * len(frames), **wanted)


def vggt_encoder() -> VGGTEncoder:
    vggt = hash_vggt(tiny_config()).requires_grad_(False)
    last = vggt.camera_head.pose_branch.fc2  # hash weights would give fields of view below 0
    last.weight[7:].mul_(0.1)
    last.bias[7:] = 0.25  # four steps add up to a radian
    return VGGTEncoder(vggt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("any_view"), any_view_config())


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("nested"), nested_config())


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("metric"), metric_config())


@pytest.fixture
def encoder() -> VGGTEncoder:
    return vggt_encoder()


KINDS = {"VGGT": lambda folder: vggt_encoder(), "DA3": PretrainedDA3}
kinds = pytest.mark.parametrize("kind", KINDS)


# ---- both ------------------------------------------------------------------------------------------------------


@kinds
def test_scenes_of_different_lengths_and_sizes_are_grouped(kind: str, folder: str) -> None:
    encoder, frames = KINDS[kind](folder), scenes((2, 28, 42), (3, 28, 42), (2, 28, 42), (2, 42, 28), (1, 28, 42))
    trunk, batches = encoder.vggt.aggregator if kind == "VGGT" else encoder.da3.model.trunk, []
    hook = trunk.register_forward_hook(lambda module, args, out: batches.append(args[0].shape[:2]))
    together = encode(encoder, frames, cameras=False)
    hook.remove()
    assert sorted(batches) == [(1, 1), (1, 2), (1, 3), (2, 2)]  # (scenes, frames): no frame is made up
    for one, scene in zip(frames, together, strict=True):
        (alone,) = encode(encoder, [one], cameras=False)
        assert torch.allclose(scene.patches, alone.patches, atol=3e-5)
        assert torch.allclose(scene.camera_tokens, alone.camera_tokens, atol=3e-5)
    (padded,) = encode(encoder, [torch.cat((frames[0], torch.zeros(1, 3, 28, 42)))], cameras=False)
    assert not torch.allclose(padded.patches[:2], together[0].patches, atol=1e-3)  # the control
    with pytest.raises(InputError, match="^frames of 42 x 30 pixels.* 42 x 28$"):
        encode(encoder, scenes((2, 28, 28), (1, 30, 42)), cameras=False)


@kinds
def test_other_layers_are_joined_in_their_order(kind: str, folder: str) -> None:
    def of(*layers: int) -> GeometryEncoder:
        return VGGTEncoder(vggt_encoder().vggt, layers) if kind == "VGGT" else PretrainedDA3(folder, layers)

    frames = scenes((2, 28, 28))
    (first,), (last,), (both,) = (encode(of(*each), frames, cameras=False) for each in ((0,), (-1,), (-1, 0)))
    assert (of(-1, 0).width, of(-1, 0).num_layers) == (both.patches.shape[-1], 2) and of(0).width * 2 == of(-1, 0).width
    for name in ("patches", "camera_tokens"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(last, name), getattr(first, name)], -1))
    assert not torch.allclose(first.patches, last.patches, atol=1e-3)
    for layers in ((6,), (0, -7), ()):
        with pytest.raises(InputError, match=r"--model.geometry.layers \[.*\]: .* has layers 0 to"):
            of(*layers)


TINY = {"VGGT": TinyVGGT, "DA3": partial(TinyDA3, features=8), "Pi3X": TinyPi3X}


@pytest.mark.parametrize("kind", TINY)
def test_tiny_weights_come_from_a_seed_and_start_at_identity_rotations(kind: str) -> None:
    tiny: Any = TINY[kind]
    state, frames = torch.random.get_rng_state(), scenes((3, 28, 28))
    first, again, other = (tiny(seed=seed, embed_dim=64) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    made = [encode(each, frames)[0] for each in (first, again, other)]
    assert torch.equal(made[0].patches, made[1].patches)
    assert not torch.allclose(made[0].patches, made[2].patches, atol=1e-2)
    for scene in made:
        assert scene.has_camera.all()
        assert torch.allclose(scene.world_to_camera, torch.eye(4).expand(3, 4, 4), atol=0.35)
    assert made[0].patches.requires_grad
    first.requires_grad_(False)  # a frozen encoder keeps no graph
    assert not encode(first, frames)[0].patches.requires_grad
    if kind == "Pi3X":  # its heads are not chosen
        return
    with pytest.raises(InputError, match=r"no camera head: .*--model.geometry.heads \[camera"):
        tiny(embed_dim=32, heads=()).enable_head("camera")
    with pytest.raises(InputError, match=r"no depth head: .*--model.geometry.heads \[camera,depth\]"):
        tiny(embed_dim=32).enable_head("depth")


@pytest.mark.parametrize(
    ("name", "process", "is_printed"),
    [
        *(("VGGT-1B", "0", True), ("VGGT-1B", "1", False), ("VGGT-1B-Commercial", "0", False)),
        *(("vits", "0", False), ("vitg", "0", True)),
    ],
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
    monkeypatch.setattr("zoo.geometry.vggt.model.VGGT_1B", tiny_config())
    if name.startswith("VGGT"):
        (tmp_path / name).mkdir()
        save_file(hash_weights(tiny_config()), tmp_path / name / "model.safetensors")
        load = partial(PretrainedVGGT, str(tmp_path / name))
    else:
        load = partial(PretrainedDA3, save(tmp_path / name, any_view_config(name=name)))
    announce_license.cache_clear()
    for _ in range(2):
        load()
    assert capsys.readouterr().err.count("CC BY-NC 4.0") == is_printed


# ---- VGGT ------------------------------------------------------------------------------------------------------


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


def test_bytes_are_shares_of_255() -> None:
    frames = torch.randint(256, (2, 3, 28, 42), dtype=torch.uint8)
    assert torch.equal(encoder_frames(frames, 14, 14), frames / 255)


def test_a_frozen_encoder_keeps_no_graph(encoder: VGGTEncoder) -> None:
    frames = scenes((2, 28, 28))
    assert not encode(encoder, frames)[0].patches.requires_grad
    frozen = [frame.requires_grad_() for frame in scenes((2, 28, 28))]
    assert not encode(encoder, frozen)[0].patches.requires_grad
    encoder.vggt.aggregator.camera_token.requires_grad_(True)
    assert encode(encoder, frames)[0].patches.requires_grad
    with torch.no_grad():
        assert not encode(encoder, frames)[0].patches.requires_grad


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


def test_released_weights_and_their_heads_are_loaded_when_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGGT-1B's architecture is shrunk here."""
    config = tiny_config()
    config["camera_head"] = {"dim_in": 64}  # VGGT-1B's but for the width
    monkeypatch.setattr("zoo.geometry.vggt.model.VGGT_1B", config)
    weights, frames, whole = hash_weights(config), scenes((2, 28, 28)), hash_vggt(config)
    save_file(weights, tmp_path / "model.safetensors")
    half = PretrainedVGGT(str(tmp_path), dtype="bfloat16")
    half.enable_head("camera")
    (scene,) = encode(half, frames)
    assert scene.patches.dtype == scene.world_to_camera.dtype == torch.float32
    encoder = PretrainedVGGT(str(tmp_path))
    assert half.vggt.matrix_dtype == torch.bfloat16 and half.identity() != encoder.identity()
    assert encoder.vggt.camera_head is None
    (found,) = encode(encoder, frames, cameras=False)
    assert torch.equal(found.patches, encode(VGGTEncoder(whole), frames)[0].patches)
    encoder.enable_head("camera")
    head, identity = encoder.vggt.camera_head, encoder.identity()
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), whole.camera_head.parameters(), strict=True))
    encoder.enable_head("camera")
    assert encoder.vggt.camera_head is head and encode(encoder, frames)[0].depth is None  # loaded once
    encoder.enable_head("depth")
    expected = whole(frames[0][None], layers=(), heads=("depth",)).depth[0, ..., 0]
    torch.testing.assert_close(encode(encoder, frames)[0].depth, expected)
    assert encoder.identity() != identity and encode(encoder, frames, cameras=False)[0].depth is None

    save_file({name: t for name, t in weights.items() if "camera_head" not in name}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"no camera head \(camera_head\.\*\).*--model.camera_source dataset"):
        PretrainedVGGT(str(tmp_path / "bare.safetensors")).enable_head("camera")
    with pytest.raises(InputError, match="hf download facebook/VGGT-1B"):
        PretrainedVGGT(str(tmp_path / "absent" / "folder"))


def test_tiny_weights_come_from_a_path(tmp_path: Path) -> None:
    trained, frames = TinyVGGT(seed=1, embed_dim=32, heads=("camera", "depth", "point")), scenes((2, 28, 28))
    save_file(trained.vggt.official_state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = TinyVGGT(str(path), embed_dim=32)
        assert loaded.vggt.depth_head is None
        assert torch.equal(encode(loaded, frames)[0].patches, encode(trained, frames)[0].patches)
    with pytest.raises(InputError, match="aggregator.camera_token"):
        TinyVGGT(str(tmp_path), embed_dim=64)
    with pytest.raises(InputError, match="holds no model.safetensors"):
        TinyVGGT(str(tmp_path / "nothing"))


def test_tiny_vggt_starts_with_gradients_of_its_fields_of_view() -> None:
    vggt, images = TinyVGGT(embed_dim=64).vggt, tiny_images(1, 3, 28, 28)
    bias = vggt.camera_head.pose_branch.fc2.bias
    vggt(images, layers=()).pose_enc[..., 7:].sum().backward()
    assert bias.grad[7:].abs().min() > 0
    with torch.no_grad():  # the control: below 0 it learns nothing
        bias[7:] = -1.0
    vggt.zero_grad()
    vggt(images, layers=()).pose_enc[..., 7:].sum().backward()
    assert not bias.grad[7:].any()


# ---- Depth Anything 3 ------------------------------------------------------------------------------------------


def test_tokens_cameras_and_depth_are_the_models(folder: str) -> None:
    encoder, (frames,) = PretrainedDA3(folder), scenes((3, 28, 42))
    encoder.enable_head("camera")
    encoder.enable_head("depth")
    (scene,) = encode(encoder, [frames])
    expected = hash_model(any_view_config())(frames[None], heads=("camera", "depth"))
    tokens = expected.tokens[-1][0]
    assert encoder.width == tokens.shape[-1] and torch.equal(scene.camera_tokens, tokens[:, 0])
    assert torch.equal(scene.patches[1, 1, 0], tokens[1, 1 + 3])  # row by row, after the camera token
    assert torch.equal(scene.depth, expected.depth[0]) and torch.equal(scene.confidence, expected.depth_conf[0])
    valid = scene.has_camera
    assert valid.any()
    assert torch.equal(scene.world_to_camera[valid], expected.world_to_camera[0, valid])
    assert torch.equal(scene.K_normalized[valid], normalize_intrinsics(expected.K_px[0, valid], 42, 28))
    Cameras(scene.world_to_camera[None], scene.K_normalized[None])  # what it accepts
    assert not encoder.is_metric and encode(encoder, [frames], cameras=False)[0].depth is None


def test_the_reference_is_the_given_one(folder: str) -> None:
    frames, model = scenes((4, 28, 42)), hash_model(any_view_config())
    first, other = (
        encode(PretrainedDA3(folder, (3,), reference=each), frames, cameras=False)[0] for each in ("first", "middle")
    )
    assert torch.equal(first.camera_tokens, model(frames[0][None], (3,), (), reference="first").tokens[3][0, :, 0])
    assert not torch.allclose(first.patches, other.patches, atol=1e-2)


def test_only_a_nested_model_is_metric(nested: str, metric: str) -> None:
    frames = scenes((3, 28, 42))
    encoder = PretrainedDA3(nested)
    assert encoder.is_metric and encoder.da3.model.da3_metric is None  # not before it is needed
    encoder.enable_head("camera")
    expected = hash_model(nested_config())(frames[0][None], heads=("camera",))
    (scene,) = encode(encoder, frames)
    valid = scene.has_camera
    assert torch.allclose(scene.world_to_camera[valid], expected.world_to_camera[0, valid], atol=1e-5)
    own = expected.world_to_camera[0, :, :3, 3] / expected.scale
    assert not torch.allclose(scene.world_to_camera[:, :3, 3], own, rtol=1e-3)  # the control: without the scale
    assert scene.depth is None

    other = PretrainedDA3(metric)
    assert not (other.is_metric or other.predicts_cameras or other.predicts_depth)
    assert encode(other, frames)[0].patches.shape == (3, 2, 3, other.width)
    for head in ("camera", "depth"):
        with pytest.raises(InputError, match="no camera head"):
            other.enable_head(head)


def dataset_cameras(count: int = 4, spread: float = 1.0, known: int | None = None) -> SceneGeometry:
    cameras = given_cameras(count, spread)
    K = normalize_intrinsics(cameras["K_px"][0], 42, 28)
    has_camera = torch.arange(count) < (count if known is None else known)
    return SceneGeometry(world_to_camera=cameras["world_to_camera"][0], K_normalized=K, has_camera=has_camera)


def test_given_cameras_reach_the_tokens_and_the_unit_of_depth(folder: str) -> None:
    encoder, (frames,), data = PosedDA3(folder), scenes((4, 28, 42)), dataset_cameras()
    cameras = given_cameras(4) | {"world_to_camera": normalize_poses(data.world_to_camera[None])}
    expected = hash_model(any_view_config())(frames[None], heads=("camera", "depth"), **cameras)
    (scene,) = encoder([frames], [data])
    assert encoder.is_metric and encoder.requires_cameras and scene.depth is None
    assert torch.allclose(scene.patches[0, 0], expected.tokens[-1][0, 0, 1:4], atol=3e-5)
    assert torch.equal(scene.world_to_camera, data.world_to_camera) and scene.K_normalized is data.K_normalized
    assert not torch.allclose(
        scene.patches, encode(PretrainedDA3(folder), [frames], cameras=False)[0].patches, atol=1e-2
    )
    for head in ("camera", "depth"):
        encoder.enable_head(head)
    (near,), (far,) = encoder([frames], [data]), encoder([frames], [dataset_cameras(spread=3.0)])
    ratio = near.depth / expected.depth[0]
    assert torch.allclose(ratio, ratio[0, 0, 0].expand_as(ratio), rtol=1e-3)
    assert torch.allclose(far.depth, 3 * near.depth, rtol=1e-4) and torch.allclose(far.patches, near.patches, atol=3e-5)
    (same,) = encoder([frames], [data], cameras=False)
    assert same.world_to_camera is None and torch.equal(same.patches, near.patches)


def test_cameras_of_some_frames_are_refused(folder: str, nested: str, metric: str) -> None:
    encoder, (frames,) = PosedDA3(folder), scenes((4, 28, 42))
    for data, count in ((dataset_cameras(known=2), 2), (None, 0)):
        with pytest.raises(InputError, match=f"^scene 1 of the batch: {count} of 4 frames .*geometry PretrainedDA3$"):
            encoder([frames, frames], [dataset_cameras(), data])
    for other in (metric, nested):
        with pytest.raises(InputError, match="give depth-anything/DA3-"):
            PosedDA3(other)
    encoder.enable_head("camera")
    encoder.enable_head("depth")
    line = dataset_cameras()
    assert line.world_to_camera is not None
    line.world_to_camera[:, :3, 3] = torch.arange(4.0)[:, None]
    with pytest.raises(
        InputError, match="^PosedDA3 aligns depth to the cameras: .*PretrainedDA3.* or the dataset's depth$"
    ):
        encoder([frames], [line])


def test_given_cameras_are_part_of_the_cache_key(folder: str, tmp_path: Path) -> None:
    (frames,) = scenes((4, 28, 42))
    for kind, count in ((PosedDA3, 2), (PretrainedDA3, 1)):
        encoder = CachedGeometry(lambda kind=kind: kind(folder), GeometryCache(str(tmp_path / "cache")))
        keys = [encoder.keys.of(frames, dataset_cameras(spread=s), tokens=True, cameras=True) for s in (1.0, 1.0, 2.0)]
        for output in ("tokens", "cameras"):
            assert len({json.dumps(key[output]) for key in keys}) == count


def test_heads_are_loaded_when_enabled(folder: str) -> None:
    encoder, frames = PretrainedDA3(folder, dtype="bfloat16"), scenes((3, 28, 42))
    assert encoder.da3.model.cam_dec is encoder.da3.model.head is None
    with pytest.raises(ValueError, match="not enabled: camera"):
        encode(encoder, frames)
    encoder.enable_head("camera")
    found = encoder.da3.model.cam_dec
    encoder.enable_head("camera")
    assert encoder.da3.model.cam_dec is found and encoder.da3.model.head is None
    before = encoder.identity()
    encoder.enable_head("depth")
    assert encoder.identity() != before
    (scene,) = encode(encoder, frames)
    assert scene.patches.dtype == torch.bfloat16
    assert scene.depth.dtype == scene.world_to_camera.dtype == torch.float32
    with pytest.raises(InputError, match="no point head"):
        encoder.enable_head("point")


def test_identities_differ_where_outputs_do(folder: str) -> None:
    encoders = [PretrainedDA3(folder), PretrainedDA3(folder, (5,)), PretrainedDA3(folder, (2,))]
    encoders += [PretrainedDA3(folder, dtype="bfloat16"), PretrainedDA3(folder, reference="first")]
    identities = [json.dumps(encoder.identity(), sort_keys=True) for encoder in encoders]
    assert identities[0] == identities[1] and len(set(identities)) == 4  # layer -1 is layer 5


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "any_view", any_view_config())
    config = Path(folder, "config.json")
    larger = any_view_config(embed_dim=64)
    bare = tmp_path / "bare"
    bare.mkdir()
    for content, message in (
        (json.dumps({"config": larger}), r"\d+ misshapen: .*" + re.escape(folder)),
        (json.dumps({"model_name": "da3"}), "is no config of Depth Anything 3"),
        (json.dumps({"config": {"net": {"name": "vitx", "out_layers": []}}}), "config.json: unknown net.name 'vitx'"),
        (json.dumps({"config": {}}), "config.json: KeyError"),
        ("{", "can't be read .*download it again"),
    ):
        config.write_text(content)
        with pytest.raises(InputError, match=message):
            PretrainedDA3(folder)
    with pytest.raises(InputError, match="can't be read"):
        PretrainedDA3(str(bare))
    with pytest.raises(InputError, match="hf download .*--model.geometry.path weights/absent"):
        PretrainedDA3(str(tmp_path / "absent"))


def test_a_folder_without_a_head_is_an_error_when_it_is_needed(tmp_path: Path) -> None:
    config = any_view_config()
    trunk = DA3.from_official({"net": config["net"]}, hash_model(config).official_state_dict())
    encoder = PretrainedDA3(save(tmp_path / "bare", config, trunk))
    with pytest.raises(InputError, match="no tensors model.cam_dec"):
        encoder.enable_head("camera")


@pytest.mark.parametrize("is_posed", [False, True])
@pytest.mark.parametrize(
    ("layers", "outputs"), [((0,), ("tokens",)), ((3, 0), ("tokens", "cameras")), ((5,), ("cameras", "depth"))]
)
def test_unreachable_parameters_have_no_gradient(
    layers: tuple[int, ...], outputs: tuple[str, ...], is_posed: bool, folder: str
) -> None:
    wanted = {"tokens": "tokens" in outputs, "cameras": "cameras" in outputs}
    encoder = PosedDA3(folder, layers) if is_posed else DA3Encoder(hash_model(any_view_config()), layers)
    for head in OWN_HEADS if "depth" in outputs else ():
        encoder.enable_head(head)
    check_reachable(encoder, scenes((4, 28, 42)), dataset_cameras(), **wanted)
