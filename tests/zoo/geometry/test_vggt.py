"""VGGT: computation on demand, independence of scenes, precision, errors; attention against a slow reference."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.geometry.official import HEADS, hash_model, tiny_config, tiny_images
from zoo.geometry.da3.trunk import Trunk
from zoo.geometry.layers import Attention, FusionBlock, PatchConvolution, patch_rotations, rotate, upsample
from zoo.geometry.vggt import DINOV2, VGGT, ReluResidualUnit, build_patch_embed, pose_encoding_to_cameras


@pytest.fixture(scope="module")
def model() -> VGGT:
    return hash_model(tiny_config()).requires_grad_(False)


def calls(model: VGGT, **kwargs: object) -> dict[str, int]:
    """How often each kind of module runs."""
    count = dict.fromkeys(("frame", "global", "camera", "depth", "point"), 0)
    hooks = []
    for kind in count:
        blocks = getattr(model.aggregator, f"{kind}_blocks", None) or [getattr(model, f"{kind}_head")]
        for block in blocks:
            hooks.append(block.register_forward_hook(lambda *_, kind=kind: count.update({kind: count[kind] + 1})))
    model(tiny_images(), **kwargs)
    for hook in hooks:
        hook.remove()
    return count


# ---- on demand -------------------------------------------------------------------------------


def test_only_requested_outputs_are_computed(model: VGGT) -> None:
    assert calls(model, layers=(0,), heads=()) == dict(frame=1, depth=0, point=0, camera=0) | {"global": 1}
    assert calls(model, layers=(1, -3), heads=())["global"] == 2
    assert calls(model, layers=(), heads=()) == dict.fromkeys(("frame", "global", "camera", "depth", "point"), 0)
    assert calls(model, layers=(0,), heads=("camera",)) == dict(frame=3, depth=0, point=0, camera=1) | {"global": 3}


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


def alive(shape: tuple[int, ...]) -> int:
    """Tensors of this shape that something holds."""
    return sum(type(each) is Tensor and tuple(each.shape) == shape for each in gc.get_objects())


@pytest.mark.parametrize("depth", [pytest.param(3, marks=pytest.mark.slow), 9])
def test_other_outputs_are_not_kept_in_memory(depth: int) -> None:
    """However deep it is: the tokens of a block or two, and the outputs that were asked for."""
    model = VGGT(tiny_config(depth=depth)["aggregator"]).requires_grad_(False)
    images, tokens, found = tiny_images(2, 3, 28, 56), 5 + 8, {"tokens": 0, "outputs": 0}

    def look(*_: object) -> None:
        found["tokens"] = alive((6, tokens, 32)) + alive((2, 3 * tokens, 32))
        found["outputs"] = alive((2, 3, tokens, 64))

    model.aggregator.global_blocks[-1].register_forward_hook(look)
    model(images, layers=(-1,), heads=())
    assert found["outputs"] == 0 and 2 <= found["tokens"] <= 5
    model(images, layers=(0, -1), heads=())
    assert found["outputs"] == 1 and found["tokens"] <= 5
    model(images, layers=range(depth), heads=())
    assert found["outputs"] == depth - 1 and found["tokens"] <= 5  # the official way, for a control


def test_dense_maps_of_some_frames_only(model: VGGT) -> None:
    images = tiny_images(2, 4)
    chosen = torch.tensor([[3, 1], [0, 1]])
    every, some = model(images, heads=HEADS), model(images, heads=HEADS, dense_frames=chosen)
    assert torch.equal(some.pose_enc, every.pose_enc) and some.depth.shape[:2] == (2, 2)
    for name in ("depth", "depth_conf", "points", "points_conf"):
        for scene, frames in enumerate(chosen):  # those of each scene
            assert torch.allclose(getattr(some, name)[scene], getattr(every, name)[scene, frames], atol=1e-5), name
    assert not torch.allclose(some.depth, every.depth[:, [1, 3]], atol=1e-3)


# ---- scenes and frames ------------------------------------------------------------------------------------


def test_scenes_of_a_batch_are_independent(model: VGGT) -> None:
    images = tiny_images(2, 3)
    both = model(images, heads=HEADS)
    for i in range(2):
        alone = model(images[i : i + 1], heads=HEADS)
        assert torch.allclose(both.tokens[-1][i], alone.tokens[-1][0], atol=1e-5)
        assert torch.allclose(both.points[i], alone.points[0], atol=1e-5)
    images[0, 2] = 1 - images[0, 2]  # but the frames of a scene attend to each other
    assert (model(images).tokens[-1][0, 0] - both.tokens[-1][0, 0]).abs().max() > 1e-3


def test_only_the_first_frame_depends_on_the_order(model: VGGT) -> None:
    images = tiny_images(1, 4)
    tokens = model(images).tokens[-1]
    later = model(images[:, [0, 3, 1, 2]]).tokens[-1]
    assert torch.allclose(later, tokens[:, [0, 3, 1, 2]], atol=1e-5)
    first = model(images[:, [1, 0, 2, 3]]).tokens[-1]
    assert (first - tokens[:, [1, 0, 2, 3]]).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 100])
def test_one_frame_and_a_hundred(model: VGGT, frames: int) -> None:
    output = model(tiny_images(1, frames), heads=HEADS)
    assert output.pose_enc.shape == (1, frames, 9) and output.points.isfinite().all()


def test_frames_in_chunks_equal_frames_at_once(model: VGGT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_images(1, 11)
    chunked = model(images, heads=("depth",)).depth
    monkeypatch.setattr("zoo.geometry.layers.FRAMES_AT_A_TIME", 100)
    assert torch.allclose(chunked, model(images, heads=("depth",)).depth, atol=1e-5)


# ---- other configs ----------------------------------------------------------------------------------------

DINO = {"patch_embed": "tiny", "img_size": 56}
CONFIGS: dict[str, dict] = {
    "one register": {"num_register_tokens": 1},
    "no register": {"num_register_tokens": 0},
    "six registers, of DINOv2 as well": {"num_register_tokens": 6, **DINO},
    "patches of 16": {"patch_size": 16},
    "patches of 16, DINOv2": {"patch_size": 16, **DINO},
    "DINOv2 whose table is that of another size": {**DINO, "img_size": 98},
    "deeper, a narrower MLP": {"depth": 5, "mlp_ratio": 2.0, "rope_freq": 10.0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_configs_of_the_trunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))
    config = tiny_config(**CONFIGS[name])
    for head in ("depth_head", "point_head"):
        config[head]["patch_size"] = CONFIGS[name].get("patch_size", 14)
    model = hash_model(config).requires_grad_(False)
    shapes = {key: tensor.shape for key, tensor in model.official_state_dict().items()}
    registers = CONFIGS[name].get("num_register_tokens", 4)
    assert shapes["aggregator.register_token"] == (1, 2, registers, 32)
    if "patch_embed" in CONFIGS[name]:
        assert shapes["aggregator.patch_embed.register_tokens"] == (1, registers, 32)
        grid = CONFIGS[name]["img_size"] // model.aggregator.patch_size
        assert shapes["aggregator.patch_embed.pos_embed"] == (1, 1 + grid**2, 32)
    height, width = 3 * model.aggregator.patch_size, 2 * model.aggregator.patch_size
    images = tiny_images(2, 3, height, width)
    both = model(images, layers=range(model.aggregator.depth), heads=HEADS)
    assert both.patch_start == 1 + registers and both.tokens[0].shape == (2, 3, 1 + registers + 6, 64)
    assert both.points.shape == (2, 3, height, width, 3) and both.points.isfinite().all()
    for i in range(2):  # a batch of two is two batches of one
        alone = model(images[i : i + 1], layers=range(model.aggregator.depth), heads=HEADS)
        assert all(torch.allclose(both.tokens[k][i], alone.tokens[k][0], atol=1e-5) for k in both.tokens)
        for each in ("pose_enc", "depth", "points", "points_conf"):
            assert torch.allclose(getattr(both, each)[i], getattr(alone, each)[0], atol=2e-5), each
    other = model(images.flip(-1), heads=())  # not a constant
    assert (other.tokens[-1] - both.tokens[model.aggregator.depth - 1]).abs().max() > 1e-2


def test_heads_by_themselves_and_layers_from_the_end(model: VGGT) -> None:
    images, config = tiny_images(), tiny_config()
    expected = model(images, heads=HEADS)
    config["depth_head"]["intermediate_layer_idx"] = [-3, -2, 1, -1]
    for head, names in (("camera", ["pose_enc"]), ("depth", ["depth", "depth_conf"]), ("point", ["points"])):
        alone = hash_model({name: config[name] for name in ("aggregator", f"{head}_head")})
        output = alone(images, heads=(head,))
        assert all(torch.equal(getattr(output, name), getattr(expected, name)) for name in names)
        assert sum(value is not None for value in vars(output).values()) == 4  # nothing else
    with pytest.raises(ValueError, match="has no depth head: add depth_head"):
        alone(images, heads=("depth",))  # it has the point head alone
    for wrong in ([0, 1, 2, 3], [-4, 0, 1, 2]):
        config["depth_head"]["intermediate_layer_idx"] = wrong
        with pytest.raises(ValueError, match=f"there is no layer {wrong[-1 if wrong[0] == 0 else 0]}"):
            VGGT(**config)


# ---- against slow references ------------------------------------------------------------------------------


def reference_attention(attention: Attention, x: Tensor, positions: Tensor | None) -> Tensor:
    """Softmax written out, and RoPE as a multiplication by e^(i angle), token by token."""
    heads, dim = attention.num_heads, x.shape[-1] // attention.num_heads
    q, k, v = (part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    q, k = attention.q_norm(q), attention.k_norm(k)

    def turn(y: Tensor) -> Tensor:
        halves = []
        for axis, half in enumerate(y.chunk(2, -1)):
            real, imaginary = half.chunk(2, -1)
            frequency = torch.tensor([100 ** (-i / (dim // 4)) for i in range(dim // 4)], dtype=x.dtype)
            z = torch.complex(real, imaginary) * torch.exp(1j * positions[:, axis, None] * frequency)
            halves += [z.real, z.imag]
        return torch.cat(halves, -1)

    if positions is not None:
        q, k = turn(q), turn(k)
    weights = (q @ k.mT / math.sqrt(dim)).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("with_rope", [True, False])
def test_attention_equals_a_slow_reference(with_rope: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(48, 3, qk_norm=True).double()
    x = torch.randn(2, 5 + 6, 48, dtype=torch.float64)
    positions = [(0, 0)] * 5 + [(row, column) for row in (1, 2) for column in (1, 2, 3)]
    rotations = patch_rotations((2, 3), 5, 16, 100.0, x.device) if with_rope else None
    positions = torch.tensor(positions, dtype=torch.float64) if with_rope else None
    out = attention(x, rotations)
    assert torch.allclose(out, reference_attention(attention, x, positions), atol=1e-6)
    shifted = positions + 1 if with_rope else torch.arange(22.0, dtype=torch.float64).view(11, 2)
    shifted[0] = 0
    assert not torch.allclose(out, reference_attention(attention, x, shifted), atol=1e-4)


def test_rope_is_the_identity_on_special_tokens_and_relative_on_patches() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(-1, 1, 1, 5 + 12, 16)
    rotations = patch_rotations((3, 4), 5, 16, 100.0, q.device)
    assert torch.equal(rotate(q, rotations)[:, :, :5], q[:, :, :5])
    scores = (rotate(q, rotations) @ rotate(k, rotations).mT)[0, 0, 5:, 5:].view(3, 4, 3, 4)
    assert torch.allclose(scores[0, 0, 1, 2], scores[1, 1, 2, 3], atol=1e-6)
    assert (scores[0, 0, 1, 2] - scores[0, 0, 2, 1]).abs() > 1e-3


def test_pointwise_convolution_before_upsampling_is_the_same() -> None:
    torch.manual_seed(0)
    block = FusionBlock(8, False, ReluResidualUnit).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    official = block.out_conv(upsample(block.resConfUnit2(x), (6, 8)))
    assert torch.allclose(block(None, x, (6, 8)), official, atol=1e-12)


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


# ---- precision and gradients ------------------------------------------------------------------------------


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


def autocast(model: VGGT, images: Tensor):
    with torch.autocast("cpu", torch.bfloat16):
        return model(images, heads=HEADS)


def test_heads_ignore_autocast(model: VGGT) -> None:
    camera = torch.randn(1, 3, 64)
    expected = model.camera_head(camera)
    seen = []
    hook = model.camera_head.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    autocast(model, tiny_images())
    hook.remove()
    assert torch.equal(model.camera_head(seen[0][0]), seen[0][1])  # the same without autocast
    assert expected.dtype == torch.float32


def test_gradients_reach_every_parameter() -> None:
    model = hash_model(tiny_config())
    output = model(tiny_images(1, 3), heads=HEADS)
    (output.pose_enc_list.sum() + output.points.sum() + output.depth.sum() + output.depth_conf.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        (tiny_images(height=30), {}, "42 x 30 pixels: .*multiples of 14"),
        (tiny_images(width=41), {}, "41 x 28 pixels: .*multiples of 14"),
        (255 * tiny_images(), {}, r"in 0..1, got \S+ to \S+: divide by 255, or undo a normalization$"),
        (2 * tiny_images() - 1, {}, r"in 0..1, got -\S+ to \S+: divide by 255, or undo a normalization$"),
        (tiny_images(), {"layers": (3,)}, "no layer 3: the model has 3"),
        (tiny_images(), {"heads": ("normals",)}, "has no normals head"),
    ],
)
def test_bad_input(model: VGGT, images: Tensor, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(images, **kwargs)


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        ({"patch_embed": "resnet"}, "unknown patch_embed 'resnet'"),
        ({"patch_embed": "dinov2_vits14_reg"}, "width 384, not 32"),
        ({"embed_dim": 36}, "multiple of 4"),
    ],
)
def test_bad_configs(aggregator: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGGT(**tiny_config(**aggregator))


def test_layer_scale_starts_at_a_hundredth() -> None:
    torch.manual_seed(0)
    model = VGGT(**tiny_config())
    gammas = [p.detach() for name, p in model.named_parameters() if name.endswith("gamma")]
    assert gammas and all(torch.equal(gamma, torch.full_like(gamma, 0.01)) for gamma in gammas)
    assert model(tiny_images(), heads=HEADS).points.isfinite().all()
