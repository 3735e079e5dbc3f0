"""The geometry cache: equal results, and no stale entries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.zoo.geometry.caching import SIZES, alter, ask, frames, same, save_vggt, with_patches_of
from tests.zoo.geometry.official import hash_model, tiny_config
from zoo.geometry import CachedGeometry, GeometryCache, TinyVGGT, VGGTEncoder
from zoo.geometry.cache import pack, unpack

# ---- equal results -----------------------------------------------------------------------------------------


def test_read_entries_equal_computed_ones(cached, weights: Path) -> None:
    scenes = frames(3), frames(2, seed=1), frames(4, 28, 28, seed=2)
    first, second = cached(), cached()
    made, read = ask(first, *scenes), ask(second, *scenes)
    assert (first.num_computed, second.num_computed) == (3, 0) and all(map(same, made, read))
    plain = TinyVGGT(str(weights), **SIZES)(scenes, [None] * 3)
    for exact, kept in zip(plain, read, strict=True):
        assert torch.equal(kept.patches, exact.patches.bfloat16()) and kept.patches.dtype == torch.bfloat16
        assert torch.equal(kept.camera_tokens, exact.camera_tokens.bfloat16())
        for name in ("world_to_camera", "K_normalized", "has_camera"):
            assert torch.equal(getattr(kept, name), getattr(exact, name)), name
        assert kept.world_to_camera.dtype == torch.float32 and kept.depth is None
    assert not same(*made[:2])


def test_tokens_and_cameras_are_separate_entries(cached) -> None:
    encoder = cached()
    (tokens,) = ask(encoder, frames(), cameras=False)
    assert tokens.world_to_camera is None and encoder.num_computed == 1
    (both,) = ask(encoder, frames())
    assert encoder.num_computed == 2 and both.world_to_camera is not None and torch.equal(both.patches, tokens.patches)
    (cameras,) = ask(cached(), frames(), tokens=False)
    assert cameras.patches is None and torch.equal(cameras.world_to_camera, both.world_to_camera)
    assert ask(encoder) == []  # a batch of text


def test_depth_is_kept_with_the_cameras(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    heads = {"heads": ("camera", "depth"), "features": 8}
    save_vggt(TinyVGGT(**SIZES, **heads), path)
    plain = TinyVGGT(str(path), **SIZES, **heads)
    plain.enable_head("depth")
    (exact,) = plain([frames()], [None])
    encoders = [
        CachedGeometry(lambda: TinyVGGT(str(path), **SIZES, **heads), GeometryCache(str(tmp_path / "cache")))
        for _ in range(3)
    ]
    (without,) = ask(encoders[0], frames(), tokens=False)
    for encoder in encoders[1:]:
        encoder.enable_head("depth")
        (found,) = ask(encoder, frames(), tokens=False)
        assert torch.equal(found.depth, exact.depth) and torch.equal(found.world_to_camera, exact.world_to_camera)
    assert without.depth is None and [encoder.num_computed for encoder in encoders] == [1, 1, 0]


def test_only_missing_entries_are_computed(cached) -> None:
    encoder = cached()
    ask(encoder, frames(seed=0), frames(seed=1))
    asked = []
    encoder.encoder().register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    again = ask(encoder, frames(seed=1), frames(seed=2), frames(seed=0))
    assert asked == [1] and same(again[0], ask(cached(), frames(seed=1))[0])


def test_float8_has_a_bounded_error_and_half_the_size(cached) -> None:
    tokens = torch.randn(3, 2, 5, 64) * torch.logspace(-3, 3, 30).view(3, 2, 5, 1)
    tokens[0, 0, 0] = 0
    packed = pack({"patches": tokens}, "float8")
    back = unpack(packed)["patches"].float()
    scale = tokens.abs().amax(-1, keepdim=True) / 448
    bound = tokens.abs() * (2**-4 + 2**-8) + scale * 2**-9  # half a unit of e4m3, one of bfloat16; the smallest step
    assert ((back - tokens).abs() <= bound).all()
    assert not ((back - tokens).abs() <= bound / 4).all()  # the bound is tight
    poses = torch.randn(3, 4, 4)
    assert torch.equal(unpack(pack({"world_to_camera": poses}, "float8"))["world_to_camera"], poses)
    half, whole = (
        sum(t.nbytes for t in pack({"patches": torch.ones(4, 8, 8, 512)}, d).values()) for d in ("float8", "bfloat16")
    )
    assert half / whole < 0.51
    first, second = cached(dtype="float8"), cached(dtype="float8")
    assert same(*ask(first, frames()), *ask(second, frames())) and second.num_computed == 0


# ---- no stale entries ------------------------------------------------------------------------------------------


OTHERS: dict[str, Callable[..., tuple[CachedGeometry, Tensor]]] = {
    "layer": lambda new, path: (new(layers=(1,)), frames()),
    "layers": lambda new, path: (new(layers=(1, -1)), frames()),
    "dtype": lambda new, path: (new(dtype="float8"), frames()),
    "order": lambda new, path: (new(), frames().flip(0)),
    "fewer frames": lambda new, path: (new(), frames()[:2]),
    "crop": lambda new, path: (new(), frames()[..., :28]),
    "size": lambda new, path: (new(), frames().reshape(3, 3, 42, 28)),
    "a pixel": lambda new, path: (
        new(),
        frames() + (torch.arange(3 * 3 * 28 * 42).view(3, 3, 28, 42) == 1000) / 255,
    ),
    "no bytes": lambda new, path: (new(), frames() + 1e-4),
    "patches": lambda new, path: (with_patches_of(7, new()), frames()),
    "weights": lambda new, path: (new(alter(path, "aggregator.global_blocks.1.mlp.fc1.weight")), frames()),  # the last
}


def test_another_key_is_computed_again(cached, weights: Path) -> None:
    ask(cached(), frames())
    for name, other in OTHERS.items():
        encoder, scene = other(cached, weights)
        ask(encoder, scene)
        assert encoder.num_computed == 1, name


def test_equal_weights_and_frames_share_an_entry(cached, weights: Path, tmp_path: Path) -> None:
    ask(cached(), frames())
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    as_a_gpu_divides = (frames() * 255).round() * torch.tensor(1 / 255)
    assert not torch.equal(as_a_gpu_divides, frames())
    for encoder, scene in ((cached(copy), frames()), (cached(layers=(3,)), frames()), (cached(), as_a_gpu_divides)):
        ask(encoder, scene)
        assert encoder.num_computed == 0


def test_weights_in_memory_are_identified_by_their_values(tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path))
    vggt = hash_model(tiny_config())
    encoders = [CachedGeometry(lambda: VGGTEncoder(vggt), cache) for _ in range(2)]
    for encoder in encoders:
        ask(encoder, frames())
    assert [encoder.num_computed for encoder in encoders] == [1, 0]
    with torch.no_grad():
        vggt.aggregator.camera_token[0, 0, 0, 0] += 1
    ask(changed := CachedGeometry(lambda: VGGTEncoder(vggt), cache), frames())
    assert changed.num_computed == 1


def test_weights_modified_in_memory_differ_from_their_file(weights: Path, tmp_path: Path) -> None:
    cache, trained = GeometryCache(str(tmp_path / "cache")), TinyVGGT(str(weights), **SIZES)
    with torch.no_grad():
        trained.vggt.aggregator.camera_token.add_(1)
    ask(CachedGeometry(lambda: TinyVGGT(str(weights), **SIZES), cache), frames())
    ask(encoder := CachedGeometry(lambda: trained, cache), frames())
    assert encoder.num_computed == 1
