"""VGGT: the official numbers and names, computation on demand, independent scenes, precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.zoo.geometry.official import (
    HEADS,
    cases,
    hash_model,
    hash_weights,
    load_case,
    load_json,
    tiny_config,
    tiny_images,
)
from zoo.errors import InputError
from zoo.geometry.da3.trunk import Trunk
from zoo.geometry.layers import PatchConvolution, normalize
from zoo.geometry.vggt import (
    DINOV2,
    VGGT,
    VGGT_1B,
    VGGTOutput,
    build_patch_embed,
    find_weights,
    pose_encoding_to_cameras,
)
from zoo.geometry.vggt_encoder import PretrainedVGGT

LAYERS_ATOL, OUTPUTS_ATOL = 2e-5, 4e-5  # four times what float32 runs of the official code differ by


@pytest.fixture(scope="module")
def model() -> VGGT:
    return hash_model(tiny_config()).requires_grad_(False)


# ---- golden cases ----------------------------------------------------------------------------------------------


def run(model: VGGT, t: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> VGGTOutput:
    with torch.no_grad():
        return model(t["images_u8"].to(dtype) / 255, layers=range(model.aggregator.depth), heads=HEADS)


def errors(output: VGGTOutput, t: dict[str, Tensor], suffix: str = "") -> dict[str, float]:
    """The largest deviation of each tensor in the case, in units of its tolerance."""
    found = {f"layer_{i}": (tokens, LAYERS_ATOL) for i, tokens in output.tokens.items()}
    for name in ("pose_enc", "pose_enc_list", "depth", "depth_conf", "points", "points_conf"):
        found[name] = (getattr(output, name), OUTPUTS_ATOL)
    return {
        name: float((value - t[name + suffix]).abs().max()) / atol
        for name, (value, atol) in found.items()
        if name + suffix in t
    }


@pytest.mark.parametrize(
    "case", [pytest.param(each, marks=pytest.mark.slow if "dino518" in each else ()) for each in cases("vggt")]
)
def test_equals_the_official_code(case: str) -> None:
    meta, t = load_case(case)
    model = hash_model(meta["config"])
    assert sum(tensor.numel() for tensor in model.official_state_dict().values()) == meta["num_params"]
    if isinstance(meta["param_names"], list):
        assert set(model.official_state_dict()) == set(meta["param_names"])
    output = run(model, t)
    assert output.patch_start == meta["patch_start_idx"]
    assert max(errors(output, t).values()) < 1, errors(output, t)
    if "patch_tokens" in t:
        with torch.no_grad():
            patches = model.aggregator.patch_embed(normalize(t["images_u8"] / 255).flatten(0, 1))
        assert torch.allclose(patches, t["patch_tokens"], atol=LAYERS_ATOL, rtol=0)


@pytest.mark.parametrize(
    "case", ["vggt/conv_s1_56x56", pytest.param("vggt/dino56_samecount_s1_28x112", marks=pytest.mark.slow)]
)
def test_float64_stays_float64(case: str) -> None:
    meta, t = load_case(case)
    output = run(hash_model(meta["config"], torch.float64), t, torch.float64)
    assert output.pose_enc.dtype == output.depth.dtype == torch.float64
    found = errors(output, t, "_f64")
    assert found and max(found.values()) < 0.1, found


def other_rope_base(model: VGGT) -> None:
    model.aggregator.rope_freq = 50.0


def swapped_first_frame(model: VGGT) -> None:
    for token in (model.aggregator.camera_token, model.aggregator.register_token):
        token.data = token.data.flip(1)


def larger_eps_in_the_aggregator(model: VGGT) -> None:
    set_eps(model.aggregator.frame_blocks, 1e-3)  # at tokens of rms 1, 1e-6 for 1e-5 is below float32's noise


def larger_eps_in_adaln(model: VGGT) -> None:
    set_eps(model.camera_head.adaln_norm, 1e-3)


def set_eps(module: nn.Module, eps: float) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = eps


def no_query_norm(model: VGGT) -> None:
    for block in model.aggregator.global_blocks:
        block.attn.q_norm = nn.Identity()


CHANGES: dict[str, tuple[Callable[[VGGT], None], str]] = {
    "rope": (other_rope_base, "layer_3"),
    "camera token": (swapped_first_frame, "layer_0"),
    "eps": (larger_eps_in_the_aggregator, "layer_0"),
    "adaLN": (larger_eps_in_adaln, "pose_enc"),
    "qk norm": (no_query_norm, "layer_0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_detected(change: str) -> None:
    meta, t = load_case("vggt/conv_s2_56x84")
    model = hash_model(meta["config"])
    apply, where = CHANGES[change]
    apply(model)
    assert errors(run(model, t), t)[where] > 3


def test_position_embeddings_without_interpolation_are_detected() -> None:
    meta, t = load_case("vggt/dino56_samecount_s1_28x112")
    model = hash_model(meta["config"])
    embeddings = model.aggregator.patch_embed.embeddings
    embeddings.interpolate_pos_encoding = lambda tokens, height, width: embeddings.position_embeddings
    assert errors(run(model, t), t)["layer_0"] > 100


# ---- official names --------------------------------------------------------------------------------------------


def test_vggt_1b_has_every_official_tensor() -> None:
    shapes = load_json("vggt/vggt_1b_shapes")["shapes"]
    manifest = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert sum(tensor.numel() for tensor in manifest.values()) == 1_256_537_516
    tracker = {name for name in manifest if name.startswith("track_head.")}
    written = VGGT.from_official(VGGT_1B, manifest).official_state_dict()  # raises if a tensor does not fit
    assert set(written) == set(manifest) - tracker and len(tracker) == 394
    assert all(written[name].shape == manifest[name].shape for name in written)


@pytest.mark.parametrize("dino", [True, False])
def test_weights_round_trip_bit_for_bit(dino: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))
    config = tiny_config(patch_embed="tiny", img_size=56) if dino else tiny_config()
    official = hash_weights(config)
    written = VGGT.from_official(config, official).official_state_dict()
    assert set(written) == set(official)
    assert all(torch.equal(written[name], official[name]) for name in official)
    assert any("mask_token" in name for name in official) == dino


def test_an_error_lists_the_tensors() -> None:
    official = hash_weights(tiny_config())
    broken = {n: t for n, t in official.items() if n != "aggregator.camera_token"}
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


# ---- on demand -------------------------------------------------------------------------------------------------


def test_requested_outputs_do_not_depend_on_the_others(model: VGGT) -> None:
    images = tiny_images()
    everything = model(images, layers=(0, 1, 2), heads=HEADS)
    some = model(images, layers=(-1, 0), heads=("depth",))
    assert list(some.tokens) == [-1, 0]
    assert torch.equal(some.tokens[-1], everything.tokens[2]) and torch.equal(some.tokens[0], everything.tokens[0])
    assert torch.equal(some.depth, everything.depth)
    assert some.pose_enc is some.points is some.points_conf is None
    default = model(images)
    assert list(default.tokens) == [-1] and torch.equal(default.pose_enc, everything.pose_enc)
    assert default.depth is None


def test_dense_maps_of_some_frames_only(model: VGGT) -> None:
    images = tiny_images(2, 4)
    chosen = torch.tensor([[3, 1], [0, 1]])
    every, some = model(images, heads=HEADS), model(images, heads=HEADS, dense_frames=chosen)
    assert torch.equal(some.pose_enc, every.pose_enc) and some.depth.shape[:2] == (2, 2)
    for name in ("depth", "depth_conf", "points", "points_conf"):
        for scene, frames in enumerate(chosen):  # those of each scene
            assert torch.allclose(getattr(some, name)[scene], getattr(every, name)[scene, frames], atol=1e-5), name
    assert not torch.allclose(some.depth, every.depth[:, [1, 3]], atol=1e-3)


# ---- scenes and frames -----------------------------------------------------------------------------------------


def test_only_the_first_frame_depends_on_the_order(model: VGGT) -> None:
    images = tiny_images(1, 4)
    tokens = model(images).tokens[-1]
    later = model(images[:, [0, 3, 1, 2]]).tokens[-1]
    assert torch.allclose(later, tokens[:, [0, 3, 1, 2]], atol=1e-5)
    first = model(images[:, [1, 0, 2, 3]]).tokens[-1]
    assert (first - tokens[:, [1, 0, 2, 3]]).abs().max() > 1e-3


def test_frames_in_chunks_equal_frames_at_once(model: VGGT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_images(1, 11)
    chunked = model(images, heads=("depth",)).depth
    monkeypatch.setattr("zoo.geometry.layers.FRAMES_AT_A_TIME", 100)
    assert torch.allclose(chunked, model(images, heads=("depth",)).depth, atol=1e-5)


DINO = {"patch_embed": "tiny", "img_size": 56}
CONFIGS: dict[str, dict] = {
    "no register": {"num_register_tokens": 0},
    "six registers and patches of 16, of DINOv2 as well": {"num_register_tokens": 6, "patch_size": 16, **DINO},
    "a DINOv2 table of another size": {**DINO, "img_size": 98},
    "deeper, a narrower MLP": {"depth": 5, "mlp_ratio": 2.0, "rope_freq": 10.0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_is_its_scenes_in_other_configs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))
    config = tiny_config(**CONFIGS[name])
    patch, registers = CONFIGS[name].get("patch_size", 14), CONFIGS[name].get("num_register_tokens", 4)
    for head in ("depth_head", "point_head"):
        config[head]["patch_size"] = patch
    model = hash_model(config).requires_grad_(False)
    images = tiny_images(2, 3, 3 * patch, 2 * patch)
    both = model(images, layers=(0, -1), heads=HEADS)
    assert both.patch_start == 1 + registers and both.tokens[0].shape == (2, 3, 1 + registers + 6, 64)
    for i in range(2):
        alone = model(images[i : i + 1], layers=(0, -1), heads=HEADS)
        assert all(torch.allclose(both.tokens[k][i], alone.tokens[k][0], atol=1e-5) for k in both.tokens)
        for each in ("pose_enc", "depth", "points", "points_conf"):
            assert torch.allclose(getattr(both, each)[i], getattr(alone, each)[0], atol=2e-5), each
    other = model(images.flip(-1), heads=()).tokens[-1]
    assert (other - both.tokens[-1]).abs().max() > 1e-2  # the control: the tokens depend on the images


# ---- slow references -------------------------------------------------------------------------------------------


def test_patches_by_a_matrix_product_are_the_convolution() -> None:
    """As on a GPU, in each trunk; a side that is no multiple of the patch loses its rest."""
    da3 = Trunk("vits", out_layers=[0], depth=1)
    trunks = build_patch_embed("conv", 28, 14, 32, 4), build_patch_embed("dinov2_vits14_reg", 28, 14, 384, 4), da3
    images = torch.randn(2, 3, 45, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for trunk in trunks:
        (convolution,) = [part.double() for part in trunk.modules() if isinstance(part, PatchConvolution)]
        assert not any(isinstance(part, nn.Conv2d) and part is not convolution for part in trunk.modules())
        found, expected = convolution.multiply(images), convolution(images)
        assert found.shape[2:] == (3, 2)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---- precision and gradients -----------------------------------------------------------------------------------


def test_bfloat16_trunk_with_geometry_in_float32(model: VGGT) -> None:
    images = tiny_images(1, 3)
    exact = model(images, heads=HEADS)
    half = hash_model(tiny_config()).requires_grad_(False)
    half.aggregator.to(torch.bfloat16)
    for output in (half(images, heads=HEADS), autocast(model, images)):
        for name in ("pose_enc", "depth", "points", "depth_conf"):
            value, reference = getattr(output, name), getattr(exact, name)
            assert value.dtype == torch.float32
            error = (value - reference).norm() / reference.norm()
            assert 0 < error < 0.1, (name, float(error))
    world_to_camera, K_px = pose_encoding_to_cameras(exact.pose_enc.bfloat16(), (28, 42))
    assert world_to_camera.dtype == K_px.dtype == torch.float32


def test_bfloat16_matrices_are_float32_weights_under_autocast() -> None:
    """Bit for bit, as the group runs VGGT, at its depth. The residual stream in bfloat16 is far less exact."""
    config = tiny_config(embed_dim=64, depth=24) | {"depth_head": None, "point_head": None}
    config["camera_head"] = config["camera_head"] | {"dim_in": 128}
    images, exact = tiny_images(1, 4, 56, 84), hash_model(config).requires_grad_(False)
    weights = hash_weights(config)
    ours = VGGT.from_official(config, weights, torch.float32, torch.bfloat16).requires_grad_(False)
    all_rounded = hash_model(config).requires_grad_(False)
    all_rounded.aggregator.to(torch.bfloat16)
    expected = exact(images, [-1])
    found, rounded = ours(images, [-1]), all_rounded(images, [-1])
    with torch.autocast("cpu", torch.bfloat16):
        published = exact(images, [-1])
        within = ours(images, [-1])  # in a run with --trainer.precision bf16-mixed

    def error(output: VGGTOutput) -> tuple[float, float]:
        pairs = ((output.tokens[-1], expected.tokens[-1]), (output.pose_enc, expected.pose_enc))
        tokens, poses = (float((one.float() - other).norm() / other.norm()) for one, other in pairs)
        return tokens, poses

    for output in (found, within):
        assert torch.equal(output.tokens[-1], published.tokens[-1]) and output.tokens[-1].dtype == torch.float32
        assert torch.equal(output.pose_enc, published.pose_enc)
    assert 0 < 2 * error(found)[0] < error(rounded)[0] < 0.05
    assert 0 < error(found)[1] < error(rounded)[1]


def autocast(model: VGGT, images: Tensor):
    with torch.autocast("cpu", torch.bfloat16):
        return model(images, heads=HEADS)


def test_gradients_reach_every_parameter() -> None:
    model = hash_model(tiny_config())
    output = model(tiny_images(1, 3), heads=HEADS)
    (output.pose_enc_list.sum() + output.points.sum() + output.depth.sum() + output.depth_conf.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bad_input_is_an_error(model: VGGT) -> None:
    for images, kwargs, message in (
        (tiny_images(height=30), {}, "42 x 30 pixels: .*multiples of 14"),
        (255 * tiny_images(), {}, "in 0..1, got .*divide by 255"),
        (tiny_images(), {"layers": (3,)}, "no layer 3: the model has 3"),
        (tiny_images(), {"heads": ("normals",)}, "has no normals head"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, **kwargs)
    with pytest.raises(ValueError, match="width 384, not 32"):
        VGGT(**tiny_config(patch_embed="dinov2_vits14_reg"))
