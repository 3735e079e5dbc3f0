"""Weights by official names: every tensor of VGGT-1B, round trips, files, errors; the official package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.zoo.geometry.official import HEADS, HERE, hash_model, hash_weights, tiny_config, tiny_images
from zoo.errors import InputError
from zoo.geometry.vggt import DINOV2, VGGT, VGGT_1B, current_names, find_weights, official_name
from zoo.geometry.vggt_encoder import PretrainedVGGT


@pytest.fixture(scope="module")
def manifest() -> dict[str, Tensor]:
    """VGGT-1B's tensors on the meta device."""
    shapes = json.loads((HERE / "vggt/vggt_1b_shapes.json").read_text())["shapes"]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def vggt_1b(manifest: dict[str, Tensor]) -> VGGT:
    return VGGT.from_official(VGGT_1B, manifest)  # raises for anything missing, unexpected or misshapen


def test_vggt_1b_has_every_official_tensor(manifest: dict[str, Tensor], vggt_1b: VGGT) -> None:
    assert sum(tensor.numel() for tensor in manifest.values()) == 1_256_537_516
    tracker = {name for name in manifest if name.startswith("track_head.")}
    written = vggt_1b.official_state_dict()
    assert set(written) == set(manifest) - tracker and len(tracker) == 394
    assert all(written[name].shape == manifest[name].shape for name in written)


@pytest.mark.slow
def test_vggt_1b_forward_on_the_meta_device(vggt_1b: VGGT) -> None:
    output = vggt_1b(torch.empty(1, 4, 3, 252, 336, device="meta"), layers=(-1,), heads=HEADS)
    assert output.tokens[-1].shape == (1, 4, 5 + 18 * 24, 2048)
    assert output.pose_enc.shape == (1, 4, 9) and output.points.shape == (1, 4, 252, 336, 3)


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize("dino", [True, False])
def test_names_round_trip(dino: bool, manifest: dict[str, Tensor]) -> None:
    for name in manifest if dino else hash_weights(tiny_config()):
        ours = current_names(name)
        assert {official_name(part) for part in ours} == {name}
        assert len(ours) == (3 if ".patch_embed.blocks." in name and ".qkv." in name else 1)


@pytest.mark.parametrize("dino", [True, False])
def test_weights_round_trip_bit_for_bit(dino: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))
    config = tiny_config(patch_embed="tiny", img_size=56) if dino else tiny_config()
    official = hash_weights(config)
    written = VGGT.from_official(config, official).official_state_dict()
    assert set(written) == set(official)
    assert all(torch.equal(written[name], official[name]) for name in official)
    assert any("mask_token" in name for name in official) == dino


def test_weights_are_copied_and_keep_their_dtype() -> None:
    official = hash_weights(tiny_config(), torch.bfloat16)
    model = VGGT.from_official(tiny_config(), official)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.aggregator.camera_token.data.zero_()
    assert official["aggregator.camera_token"].abs().max() > 0


def test_heads_missing_in_the_config_are_not_loaded() -> None:
    official = hash_weights(tiny_config())
    config = {"aggregator": tiny_config()["aggregator"]}
    trunk = VGGT.from_official(config, official)
    assert trunk.camera_head is trunk.depth_head is trunk.point_head is None
    both = [m(tiny_images(), heads=()).tokens[-1] for m in (trunk, hash_model(tiny_config()))]
    assert torch.equal(*both)
    with pytest.raises(InputError, match="missing: camera_head"):
        VGGT.from_official(tiny_config(), {n: t for n, t in official.items() if n.startswith("aggregator.")})


def test_an_error_lists_the_tensors() -> None:
    official = hash_weights(tiny_config())
    broken = without(official, "aggregator.camera_token")
    broken["aggregator.extra"] = torch.zeros(1)
    broken["camera_head.token_norm.bias"] = torch.zeros(3)
    with pytest.raises(InputError) as error:
        VGGT.from_official(tiny_config(), broken)
    message = str(error.value)
    assert "1 missing: aggregator.camera_token" in message
    assert "1 unexpected: aggregator.extra" in message
    assert "1 misshapen: camera_head.token_norm.bias [3] instead of [64]" in message
    assert "\n" not in message
    VGGT.from_official(tiny_config(), official | {"track_head.anything": torch.zeros(1)})


# ---- files ------------------------------------------------------------------------------------------------


def test_a_local_file_or_folder_or_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    assert find_weights(str(file)) == find_weights(str(tmp_path)) == file
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("zoo.weights.load.snapshot_download", download)
    assert find_weights("facebook/VGGT-1B") == file
    assert asked == [("facebook/VGGT-1B", ["model.safetensors"])]


def test_unusable_files_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(b"pickle")
    for path in (tmp_path, tmp_path / "model.pt"):
        with pytest.raises(InputError, match="is no .safetensors file, no folder"):
            PretrainedVGGT(str(path))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="can't be read as safetensors"):
        PretrainedVGGT(str(tmp_path))
    with pytest.raises(InputError, match="hf download"):
        PretrainedVGGT("not/a/hub/id")


# ---- the official package ---------------------------------------------------------------------------------


def test_equals_the_official_package() -> None:
    """Where a user has installed facebookresearch/vggt, which isn't on PyPI."""
    reason = "the official vggt package is not installed: it is not on PyPI, and only this test uses it"
    aggregator = pytest.importorskip("vggt.models.aggregator", reason=reason)
    camera_head = pytest.importorskip("vggt.heads.camera_head", reason=reason)
    dpt_head = pytest.importorskip("vggt.heads.dpt_head", reason=reason)
    config, images = tiny_config(), tiny_images(2, 3)
    official = torch.nn.Module()
    official.aggregator = aggregator.Aggregator(**config["aggregator"])
    official.camera_head = camera_head.CameraHead(**config["camera_head"])
    official.depth_head = dpt_head.DPTHead(**config["depth_head"], conf_activation="expp1")
    official.point_head = dpt_head.DPTHead(**config["point_head"], conf_activation="expp1")
    official.load_state_dict(hash_weights(config))
    official.eval()
    with torch.no_grad():
        layers, start = official.aggregator(images)
        pose_enc = official.camera_head(layers)[-1]
        depth, depth_conf = official.depth_head(layers, images, start)
        points, points_conf = official.point_head(layers, images, start)
        ours = hash_model(config)(images, layers=range(3), heads=HEADS)
    for i, layer in enumerate(layers):
        assert torch.allclose(ours.tokens[i], layer, atol=2e-5, rtol=0)
    pairs = ((ours.pose_enc, pose_enc), (ours.depth, depth), (ours.depth_conf, depth_conf))
    for mine, theirs in (*pairs, (ours.points, points), (ours.points_conf, points_conf)):
        assert torch.allclose(mine, theirs, atol=4e-5, rtol=0)
