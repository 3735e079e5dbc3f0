"""Depth Anything 3 as a geometry encoder: equal to the model, loaded from folders, cached, and trainable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cases import each_once
from tests.zoo.geometry.da3 import hash_model
from tests.zoo.geometry.official import tiny_images
from tests.zoo.geometry.test_da3 import any_view_config, given_cameras, metric_config, nested_config
from zoo.cameras import Cameras, normalize_intrinsics
from zoo.errors import InputError
from zoo.geometry import CachedGeometry, DA3Encoder, GeometryCache, PosedDA3, PretrainedDA3, SceneGeometry, TinyDA3
from zoo.geometry.base import announce_license
from zoo.geometry.da3 import DA3, normalize_poses


def scenes(*shapes: tuple[int, int, int]) -> list[Tensor]:
    return [tiny_images(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]


def encode(encoder: DA3Encoder, frames: list[Tensor], **wanted: bool) -> list[SceneGeometry]:
    return encoder(frames, [None] * len(frames), **wanted)


def save(folder: Path, config: dict[str, Any], model: DA3 | None = None) -> str:
    """A folder as released ones are."""
    folder.mkdir(exist_ok=True)
    save_file((model or hash_model(config)).official_state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_name": "da3", "config": config}))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("any_view"), any_view_config())


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("nested"), nested_config())


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("metric"), metric_config())


# ---- equal to the model -----------------------------------------------------------------------------------


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


def test_layer_and_reference_are_the_given_ones(folder: str) -> None:
    frames = scenes((4, 28, 42))
    model = hash_model(any_view_config())
    first = encode(PretrainedDA3(folder, layers=(3,), reference="first"), frames, cameras=False)[0]
    assert torch.equal(first.camera_tokens, model(frames[0][None], (3,), (), reference="first").tokens[3][0, :, 0])
    (other,) = encode(PretrainedDA3(folder, layers=(3,), reference="middle"), frames, cameras=False)
    assert not torch.allclose(first.patches, other.patches, atol=1e-2)
    (both,) = encode(PretrainedDA3(folder, layers=(3, -1), reference="first"), frames, cameras=False)
    (last,) = encode(PretrainedDA3(folder, reference="first"), frames, cameras=False)
    assert torch.equal(both.patches, torch.cat((first.patches, last.patches), -1))
    with pytest.raises(InputError, match=r"--model.geometry.layers \[2, 6\]: PretrainedDA3 has layers 0 to 5"):
        PretrainedDA3(folder, layers=(2, 6))


def test_scenes_of_different_lengths_and_sizes(folder: str) -> None:
    encoder, frames = PretrainedDA3(folder), scenes((3, 28, 42), (1, 28, 42), (3, 28, 42), (2, 42, 28))
    for one, scene in zip(frames, encode(encoder, frames, cameras=False), strict=True):
        assert torch.allclose(scene.patches, encode(encoder, [one], cameras=False)[0].patches, atol=3e-5)
    with pytest.raises(InputError, match="^frames of 40 x 28 pixels.* to 42 x 28$"):
        encode(encoder, scenes((2, 28, 40)), cameras=False)


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
        with pytest.raises(InputError, match="no camera head: use an any-view or nested model"):
            other.enable_head(head)


# ---- with the dataset's cameras ------------------------------------------------------------------------------


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
        with pytest.raises(InputError, match="is no any-view model with a camera encoder: give depth-anything/DA3-"):
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


def test_the_cache_serves_it(folder: str, tmp_path: Path) -> None:
    def new() -> CachedGeometry:
        encoder = CachedGeometry(lambda: PretrainedDA3(folder), GeometryCache(str(tmp_path / "cache")))
        encoder.enable_head("camera")
        return encoder

    first, again, (frames,) = new(), new(), scenes((3, 28, 42))
    scene, kept = (encode(each, [frames])[0] for each in (first, again))
    assert first.num_computed == 1 and again.num_computed == 0
    assert torch.equal(scene.patches, kept.patches) and torch.equal(scene.world_to_camera, kept.world_to_camera)
    encode(again, [1 - frames])
    assert again.num_computed == 1  # the control


@pytest.mark.parametrize("count", [1, 200])
def test_one_frame_and_two_hundred(count: int) -> None:
    encoder = TinyDA3(embed_dim=16, depth=4, num_heads=2, features=8, heads=("camera", "depth")).requires_grad_(False)
    encoder.enable_head("depth")
    (scene,) = encode(encoder, [torch.rand(count, 3, 28, 28)])
    assert scene.patches.shape == (count, 2, 2, 32) and scene.depth.shape == (count, 28, 28)
    assert scene.world_to_camera.isfinite().all() and scene.depth.isfinite().all()
    with pytest.raises(InputError, match="no depth head"):
        TinyDA3(embed_dim=16, num_heads=2).enable_head("depth")


# ---- folders ----------------------------------------------------------------------------------------------


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
    with pytest.raises(InputError, match=r"no tensors model.cam_dec.\*: download it again"):
        encoder.enable_head("camera")


@pytest.mark.parametrize(
    ("name", "is_printed"),
    [
        *(("vits", False), ("vitg", True)),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("vitb", False), ("vitl", True))),
    ],
)
def test_the_license_is_printed_once(
    name: str, is_printed: bool, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "weights", any_view_config(name=name))
    announce_license.cache_clear()
    for _ in range(2):
        PretrainedDA3(folder)
    assert capsys.readouterr().err.count("CC BY-NC 4.0") == is_printed
    PretrainedDA3(metric)  # as large, but under Apache 2.0
    assert "CC BY-NC" not in capsys.readouterr().err


# ---- tiny -------------------------------------------------------------------------------------------------


def test_tiny_weights_come_from_a_seed() -> None:
    state, frames = torch.random.get_rng_state(), scenes((3, 28, 28))
    first, again, other = (TinyDA3(seed=seed, embed_dim=32) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    tokens = [encode(each, frames)[0].patches for each in (first, again, other)]
    assert torch.equal(tokens[0], tokens[1]) and not torch.allclose(tokens[0], tokens[2], atol=1e-2)
    for heads, head, lacking in (
        ((), "camera", "camera"),
        (("camera",), "depth", "depth"),
        (("depth",), "depth", "camera"),
    ):
        with pytest.raises(
            InputError, match=rf"no {lacking} head: build both \(--model.geometry.heads \[camera,depth\]\)"
        ):
            TinyDA3(embed_dim=32, heads=heads).enable_head(head)
    for sizes in ({"depth": 3}, {"features": 12}):
        with pytest.raises(InputError, match="the dense head reads four blocks"):
            TinyDA3(embed_dim=32, **sizes)


@pytest.mark.parametrize("seed", range(3))
def test_tiny_da3_starts_at_identity_rotations(seed: int) -> None:
    (scene,) = encode(TinyDA3(seed=seed, embed_dim=64), scenes((3, 28, 28)))
    assert scene.has_camera.all()
    assert torch.allclose(scene.world_to_camera, torch.eye(4).expand(3, 4, 4), atol=0.35)


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        (scene,) = TinyDA3(embed_dim=32)([torch.empty(3, 3, 28, 42)], [None])
    assert scene.patches.shape == (3, 2, 3, 64) and scene.world_to_camera.shape == (3, 4, 4)


OUTPUTS = {  # tokens, cameras, depth
    "tokens": (True, False, False),
    "tokens, cameras": (True, True, False),
    "cameras, depth": (False, True, True),
}


@pytest.mark.parametrize(("layers", "outputs"), each_once([(0,), (3, 0), (5,)], OUTPUTS))
@pytest.mark.parametrize("is_posed", [False, True])
def test_unreachable_parameters_have_no_gradient(
    layers: tuple[int, ...], outputs: tuple[bool, bool, bool], is_posed: bool, folder: str
) -> None:
    """A parameter gets a gradient if and only if it is reachable."""
    tokens, cameras, depth = outputs
    encoder = PosedDA3(folder, layers) if is_posed else DA3Encoder(hash_model(any_view_config()), layers)
    for head in ("camera", "depth") if depth else ():
        encoder.enable_head(head)
    (scene,) = encoder(scenes((4, 28, 42)), [dataset_cameras()], tokens=tokens, cameras=cameras)
    sum(value.sin().sum() for value in scene.present().values() if value.requires_grad).backward()
    for name, parameter in encoder.named_parameters():
        unreachable = encoder.is_unreachable(name, tokens=tokens, cameras=cameras)
        assert (parameter.grad is None) == unreachable, name
    assert all(encoder.is_unreachable(name, tokens=False, cameras=False) for name, _ in encoder.named_parameters())


def test_a_frozen_encoder_keeps_no_graph() -> None:
    encoder, frames = TinyDA3(embed_dim=32), scenes((3, 28, 28))
    assert encode(encoder, frames)[0].patches.requires_grad
    encoder.requires_grad_(False)
    assert not encode(encoder, frames)[0].patches.requires_grad
