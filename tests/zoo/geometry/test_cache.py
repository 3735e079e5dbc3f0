"""The geometry cache: the same again, nothing stale, nothing damaged, nothing lost, and no VGGT where all is there."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from callbacks.settings import differences, settings_of
from datamodules.collate import LoadedScene
from tests.zoo import asking
from tests.zoo.geometry.official import hash_model, tiny_config
from tests.zoo.released import TINY_DINO, tiny_release, write_release
from zoo import LearningRates, PretrainedSpatialMLLM, SpatialMLLM, SpatialVLM
from zoo.checkpoints import export_model
from zoo.errors import InputError
from zoo.geometry import CachedGeometry, GeometryCache, GivenGeometry, SceneGeometry, TinyVGGT, VGGTEncoder
from zoo.geometry import cache as on_disk
from zoo.geometry.cache import PARTIAL, pack, unpack
from zoo.geometry.vggt.aggregator import Aggregator
from zoo.geometry.vggt.patch_embed import DINOV2

SIZES = dict(embed_dim=16, depth=4, num_heads=2)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "vggt" / "model.safetensors"
    path.parent.mkdir()
    save_vggt(TinyVGGT(**SIZES), path)
    return path


@pytest.fixture
def cached(weights: Path, tmp_path: Path) -> Callable[..., CachedGeometry]:
    """A new one each time it is called, as in another run, on the same folder."""

    def new(path: Path = weights, layer: int = -1, **cache: object) -> CachedGeometry:
        keep = GeometryCache(str(tmp_path / "cache"), **cache)
        return CachedGeometry(lambda: TinyVGGT(str(path), layer=layer, **SIZES), keep)

    return new


def save_vggt(encoder: VGGTEncoder, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in encoder.vggt.official_state_dict().items()}, path)


def frames(count: int = 3, height: int = 28, width: int = 42, seed: int = 0) -> Tensor:
    """Those of a video: bytes / 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator) / 255


def ask(encoder: CachedGeometry, *scenes: Tensor, **wanted: bool) -> list[SceneGeometry]:
    return encoder(list(scenes), [None] * len(scenes), **wanted)


def same(a: SceneGeometry, b: SceneGeometry) -> bool:
    pairs = [(x, getattr(b, name)) for name, x in vars(a).items()]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def entries(encoder: CachedGeometry) -> list[Path]:
    return sorted(Path(encoder.folder).glob("*.safetensors"))


# ---- the same again -----------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_made(cached, weights: Path) -> None:
    scenes = frames(3), frames(2, seed=1), frames(4, 28, 28, seed=2)
    first, second = cached(), cached()
    made, read = ask(first, *scenes), ask(second, *scenes)
    assert (first.made, second.made) == (3, 0) and all(map(same, made, read))
    plain = TinyVGGT(str(weights), **SIZES)(scenes, [None] * 3)
    for exact, kept in zip(plain, read, strict=True):
        assert torch.equal(kept.patches, exact.patches.bfloat16()) and kept.patches.dtype == torch.bfloat16
        assert torch.equal(kept.camera_tokens, exact.camera_tokens.bfloat16())
        for name in ("world_to_camera", "K_normalised", "has_camera"):
            assert torch.equal(getattr(kept, name), getattr(exact, name)), name
        assert kept.world_to_camera.dtype == torch.float32 and kept.depth is None
    assert not same(*made[:2])


def test_tokens_and_cameras_are_found_out_apart(cached) -> None:
    encoder = cached()
    (tokens,) = ask(encoder, frames(), cameras=False)
    assert tokens.world_to_camera is None and encoder.made == 1
    (both,) = ask(encoder, frames())
    assert encoder.made == 2 and both.world_to_camera is not None and torch.equal(both.patches, tokens.patches)
    (cameras,) = ask(cached(), frames(), tokens=False)
    assert cameras.patches is None and torch.equal(cameras.world_to_camera, both.world_to_camera)
    assert ask(encoder) == []  # a batch of text


def test_depth_comes_with_the_cameras(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    heads = {"heads": ("camera", "depth"), "features": 8}
    save_vggt(TinyVGGT(**SIZES, **heads), path)
    plain = TinyVGGT(str(path), **SIZES, **heads)
    plain.want_depth()
    (exact,) = plain([frames()], [None])
    encoders = [
        CachedGeometry(lambda: TinyVGGT(str(path), **SIZES, **heads), GeometryCache(str(tmp_path / "cache")))
        for _ in range(3)
    ]
    (without,) = ask(encoders[0], frames(), tokens=False)
    for encoder in encoders[1:]:
        encoder.want_depth()
        (found,) = ask(encoder, frames(), tokens=False)
        assert torch.equal(found.depth, exact.depth) and torch.equal(found.world_to_camera, exact.world_to_camera)
    assert without.depth is None and [encoder.made for encoder in encoders] == [1, 1, 0]


def test_only_what_is_missing_is_asked_for(cached) -> None:
    encoder = cached()
    ask(encoder, frames(seed=0), frames(seed=1))
    asked = []
    encoder.encoder().register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    again = ask(encoder, frames(seed=1), frames(seed=2), frames(seed=0))
    assert asked == [1] and same(again[0], ask(cached(), frames(seed=1))[0])


def test_float8_is_near_and_half_as_large(cached) -> None:
    tokens = torch.randn(3, 2, 5, 64) * torch.logspace(-3, 3, 30).view(3, 2, 5, 1)
    tokens[0, 0, 0] = 0
    packed = pack({"patches": tokens}, "float8")
    back = unpack(packed)["patches"].float()
    scale = tokens.abs().amax(-1, keepdim=True) / 448
    bound = tokens.abs() * (2**-4 + 2**-8) + scale * 2**-9  # half a unit of e4m3, one of bfloat16; the smallest step
    assert ((back - tokens).abs() <= bound).all()
    assert not ((back - tokens).abs() <= bound / 4).all()  # the bound is no formality
    poses = torch.randn(3, 4, 4)
    assert torch.equal(unpack(pack({"world_to_camera": poses}, "float8"))["world_to_camera"], poses)
    half, whole = (
        sum(t.nbytes for t in pack({"patches": torch.ones(4, 8, 8, 512)}, d).values()) for d in ("float8", "bfloat16")
    )
    assert half / whole < 0.51
    first, second = cached(dtype="float8"), cached(dtype="float8")
    assert same(*ask(first, frames()), *ask(second, frames())) and second.made == 0


def model_of(name: str, weights: Path, cache: GeometryCache | None = None) -> SpatialVLM:
    """One of `asking.MODELS`. Its weights are the same with and without a cache, and its geometry matters."""
    model = asking.build(name, geometry=lambda: TinyVGGT(str(weights), **SIZES), geometry_cache=cache)
    generator = torch.Generator().manual_seed(2)
    for part, parameter in model.named_parameters():
        if parameter.ndim == 2 and not part.startswith("geometry."):
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    if cache is None:
        model.geometry = TinyVGGT(str(weights), **SIZES).requires_grad_(False)
    return model


def logits_of(model: SpatialVLM, *scenes: LoadedScene) -> Tensor:
    batch = asking.batch(model, *scenes)
    inputs = model.see(batch)(batch["input_ids"], batch["attention_mask"], batch["scene_index"])
    with torch.no_grad():
        return model.qwen(**inputs, use_cache=False).logits


def test_logits_with_and_without(weights: Path, tmp_path: Path) -> None:
    one, other = asking.scene("one"), asking.scene("other", seed=1)
    plain = logits_of(model_of("AddFusion", weights), one)
    spread = plain.std()
    errors = {}
    for dtype in ("bfloat16", "float8"):
        cache = GeometryCache(str(tmp_path / "cache"), dtype=dtype)
        made, read = (logits_of(model_of("AddFusion", weights, cache), one) for _ in range(2))
        assert torch.equal(made, read)
        errors[dtype] = (made - plain).square().mean().sqrt() / spread
    assert 0 < errors["bfloat16"] < 2**-7 < errors["float8"] < 0.2
    swapped = asking.scene("swapped")
    swapped.frames = other.frames
    model = model_of("AddFusion", weights)
    tokens = model.geometry([each.float() / 255 for each in (one.frames, other.frames)], [None] * 2)
    model.geometry.forward = lambda *_, **__: [tokens[1]]  # the 3D tokens of another scene
    assert (logits_of(model, one) - plain).square().mean().sqrt() / spread > 0.2


def test_cameras_of_a_cache_are_exact(weights: Path, tmp_path: Path) -> None:
    scene, cache = asking.scene("one"), GeometryCache(str(tmp_path / "cache"))
    models = [model_of("PRoPE by VGGT's cameras", weights, each) for each in (None, cache, cache)]
    plain, made, read = (logits_of(model, scene) for model in models)
    assert torch.equal(plain, made) and torch.equal(plain, read)
    assert [model.geometry.made for model in models[1:]] == [1, 0]


# ---- nothing stale ------------------------------------------------------------------------------------------


def alter(path: Path, name: str) -> Path:
    """One number of one tensor, in the middle of the file, by one unit in the last place; size and time as before."""
    tensors, status = load_file(path), path.stat()
    changed = tensors[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(torch.inf))
    save_file(tensors | {name: changed}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    return path


@pytest.mark.parametrize(
    "other",
    [
        lambda new, path: (new(alter(path, "aggregator.global_blocks.1.mlp.fc1.weight")), frames()),
        lambda new, path: (new(layer=1), frames()),
        lambda new, path: (new(dtype="float8"), frames()),
        lambda new, path: (new(), frames().flip(0)),
        lambda new, path: (new(), frames()[:2]),
        lambda new, path: (new(), frames()[..., :28]),
        lambda new, path: (new(), frames().reshape(3, 3, 42, 28)),
        lambda new, path: (new(), frames() + (torch.arange(3 * 3 * 28 * 42).view(3, 3, 28, 42) == 1000) / 255),
        lambda new, path: (new(), frames() + 1e-4),
    ],
    ids=["weights", "layer", "dtype", "order", "fewer frames", "crop", "size", "a pixel", "no bytes"],
)
def test_what_differs_is_found_out_anew(cached, weights: Path, other) -> None:
    ask(cached(), frames())
    encoder, scene = other(cached, weights)
    ask(encoder, scene)
    assert encoder.made == 1


def test_what_is_the_same_is_found(cached, weights: Path, tmp_path: Path) -> None:
    ask(cached(), frames())
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    as_a_gpu_divides = (frames() * 255).round() * torch.tensor(1 / 255)
    assert not torch.equal(as_a_gpu_divides, frames())
    for encoder, scene in ((cached(copy), frames()), (cached(layer=3), frames()), (cached(), as_a_gpu_divides)):
        ask(encoder, scene)
        assert encoder.made == 0


def test_weights_in_memory_are_known_by_their_numbers(tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path))
    vggt = hash_model(tiny_config())
    encoders = [CachedGeometry(lambda: VGGTEncoder(vggt), cache) for _ in range(2)]
    for encoder in encoders:
        ask(encoder, frames())
    assert [encoder.made for encoder in encoders] == [1, 0]
    with torch.no_grad():
        vggt.aggregator.camera_token[0, 0, 0, 0] += 1
    ask(changed := CachedGeometry(lambda: VGGTEncoder(vggt), cache), frames())
    assert changed.made == 1


def test_weights_from_a_file_that_changed_in_memory_are_no_longer_the_files(weights: Path, tmp_path: Path) -> None:
    cache, trained = GeometryCache(str(tmp_path / "cache")), TinyVGGT(str(weights), **SIZES)
    with torch.no_grad():
        trained.vggt.aggregator.camera_token.add_(1)
    ask(CachedGeometry(lambda: TinyVGGT(str(weights), **SIZES), cache), frames())
    ask(encoder := CachedGeometry(lambda: trained, cache), frames())
    assert encoder.made == 1


# ---- nothing damaged, nothing lost --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
        lambda content: content[:-64] + bytes(64),
        lambda content: content + b"\n",
        lambda content: os.urandom(1000),
    ],
    ids=["a byte short", "half", "a stump", "empty", "a bit", "zeros", "longer", "noise"],
)
def test_a_damaged_entry_is_made_again(cached, damage) -> None:
    (expected,) = ask(cached(), frames(), cameras=False)
    (path,) = entries(cached())
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    (again,) = ask(encoder := cached(), frames(), cameras=False)
    assert encoder.made == 1 and same(again, expected) and path.read_bytes() == whole


def test_killed_while_writing(cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a process ends, an entry is there whole or not at all, and what was written before stays."""

    def slowly(path: Path, content: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), 1 << 18):
                file.write(content[start : start + (1 << 18)])
                time.sleep(0.001)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    cache = GeometryCache(cached().folder)
    packed = pack({"patches": torch.randn(8, 64, 64, 64)}, "bfloat16")

    def write() -> None:
        for number in range(10_000):
            cache.put({"number": number}, packed)

    cut_short = 0
    for attempt in range(8):
        process = FORK.Process(target=write)
        process.start()
        time.sleep(0.1 + 0.013 * attempt)
        process.kill()
        process.join()
        partial = list(cache.path.glob(f"*{PARTIAL}"))
        cut_short += len(partial)
        for number in range(len(list(cache.path.glob("*.safetensors")))):
            assert all(map(torch.equal, cache.get({"number": number}).values(), packed.values()))
        for path in partial:
            os.utime(path, (0, 0))  # as if it had been abandoned long ago
    assert cut_short > 0  # the kills did come in the middle
    GeometryCache(cache.folder).put({"number": -1}, packed)
    assert not list(cache.path.glob(f"*{PARTIAL}"))


def test_two_processes_fill_one_folder(cached) -> None:
    scenes = [frames(seed=seed) for seed in range(6)]
    barrier, results = FORK.Barrier(2), FORK.SimpleQueue()

    def fill(order: int) -> None:
        encoder = cached()
        barrier.wait()
        for scene in scenes[::order]:
            (found,) = ask(encoder, scene)
            results.put((order, found.patches.float().sum().item()))

    processes = [FORK.Process(target=fill, args=(order,)) for order in (1, -1)]
    for process in processes:
        process.start()
    said = [results.get() for _ in range(12)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    sums = [[value for order, value in said if order == mine] for mine in (1, -1)]
    assert sums[0] == sums[1][::-1] and len(set(sums[0])) == 6
    assert len(entries(encoder := cached())) == 12  # tokens and cameras of six
    ask(encoder, *scenes)
    assert encoder.made == 0 and not list(Path(encoder.folder).glob(f"*{PARTIAL}"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_run_goes_on_where_nothing_can_be_written(cached, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (before,) = ask(cached(), frames())

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(on_disk, "write_whole", refuse)
    encoder = cached()
    with pytest.warns(UserWarning, match=f"geometry can't be kept \\({os.strerror(code)}"):
        (found,) = ask(encoder, frames(seed=1))
    assert encoder.unwritten.errno == code and found.patches is not None
    assert same(*ask(encoder, frames()), before) and encoder.made == 1  # nothing was lost


# ---- the limit ----------------------------------------------------------------------------------------------


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    packed = pack({"patches": torch.randn(1, 10, 10, 500)}, "bfloat16")
    cache = GeometryCache(str(tmp_path), limit_gb=350_000 / 1e9)  # three of 100 kB
    names = "abcde"

    def put(name: str) -> None:
        cache.put({"name": name}, packed)
        time.sleep(0.02)  # times of files are coarse

    def there() -> str:
        return "".join(name for name in names if cache.file({"name": name}).exists())

    for name in "abc":
        put(name)
    assert there() == "abc"
    assert cache.get({"name": "a"}) is not None
    time.sleep(0.02)
    put("d")
    assert there() == "acd"  # b, although a is older
    put("e")
    assert there() == "ade"
    with pytest.raises(InputError, match=r"one scene takes 0.0001 GB: raise --model.geometry_cache.limit_gb 5e-05"):
        GeometryCache(str(tmp_path), limit_gb=5e-5).put({"name": "f"}, packed)
    assert there() == "ade"
    with pytest.raises(InputError, match="limit_gb 0.0"):
        GeometryCache(limit_gb=0.0)


def test_the_folder_is_never_over_its_limit(tmp_path: Path) -> None:
    """Entries far smaller than the limit: not every one is followed by a look at the folder."""
    packed = pack({"patches": torch.randn(1, 1, 1, 500)}, "bfloat16")
    limit = 200_000
    cache, looks, most = GeometryCache(str(tmp_path), limit_gb=limit / 1e9), 0, 0
    for number in range(400):
        seen = cache._unseen
        cache.put({"number": number}, packed)
        looks += cache._unseen < seen
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert 0.9 * limit < most <= limit and looks < 300


# ---- no VGGT where all is there -----------------------------------------------------------------------------


def test_nothing_is_loaded_or_read_where_all_is_there(cached, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, hashed = [], []
    digest, build = hashlib.file_digest, TinyVGGT.__init__
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    monkeypatch.setattr(
        TinyVGGT, "__init__", lambda *a, **k: built.append(torch.get_default_device().type) or build(*a, **k)
    )
    ask(cached(), frames())
    assert built == ["meta", "cpu"] and hashed == [str(weights)]
    built.clear(), hashed.clear()
    monkeypatch.setattr(Aggregator, "forward", None)
    generator = torch.get_rng_state()
    encoder = cached()
    ask(encoder, frames())
    assert built == ["meta"] and not hashed and torch.equal(generator, torch.get_rng_state())
    with pytest.raises(TypeError):  # the spy sees what does load it
        ask(encoder, frames(seed=1))
    assert built == ["meta", "cpu"]


def test_a_model_is_the_same_whether_its_encoder_is_loaded_or_not(weights: Path, tmp_path: Path) -> None:
    model = model_of("AddFusion", weights, GeometryCache(str(tmp_path / "cache")))
    names = list(model.state_dict())
    with torch.inference_mode():
        model.answers(asking.batch(model, asking.scene("one")))
    assert model.geometry.made == 1 and list(model.state_dict()) == names
    assert not any(name.startswith("geometry.") for name in names)
    loss = model.train().loss(asking.batch(model, asking.scene("other", seed=1), training=True))
    loss.backward()
    assert model.geometry.made == 2 and all(p.grad is None for p in model.geometry.encoder().parameters())
    plain = model_of("AddFusion", weights)
    assert model.trained_names() == plain.trained_names()
    (
        plain.load_state_dict(model.state_dict()),
        model.load_state_dict(
            {name: tensor for name, tensor in plain.state_dict().items() if name in plain.trained_names()}
        ),
    )


def test_answers_of_another_vggt_are_told_apart_though_it_is_not_loaded(weights: Path, tmp_path: Path) -> None:
    """A test that was broken off goes on with the same weights only."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    cache = GeometryCache(str(tmp_path / "cache"))

    def settings() -> dict:
        return settings_of(trainer, model_of("AddFusion", weights, cache))

    before = settings()
    assert settings() == before
    alter(weights, "aggregator.camera_token")
    assert [line.split()[0] for line in differences(before, settings(), ())] == ["geometry_weights"]


def test_export_loads_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", TINY_DINO)
    write_release(tmp_path / "release", *tiny_release())
    written = []
    for name, cache in (("plain", None), ("cached", GeometryCache(str(tmp_path / "cache")))):
        backbone = PretrainedSpatialMLLM(str(tmp_path / "release"), dtype="float32")
        model = SpatialMLLM(geometry=TinyVGGT, backbone=backbone, geometry_cache=cache)
        export_model(model, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1] and any("safetensors" in name for name in written[0])
    # the VGGT of a release is found before anything else of it is loaded
    backbone = PretrainedSpatialMLLM(str(tmp_path / "release"), dtype="float32")
    encoder = CachedGeometry(backbone.geometry, GeometryCache(str(tmp_path / "cache")))
    encoder.want_cameras()
    (found,) = ask(encoder, frames(2, 28, 28))
    assert found.world_to_camera is not None and len(encoder.files) == 3


def test_what_cant_be_kept_is_said(weights: Path, tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path))
    with pytest.raises(InputError, match="GivenGeometry has nothing that a cache would save"):
        CachedGeometry(GivenGeometry, cache)
    with pytest.raises(InputError, match="geometry_cache: say with --model.geometry"):
        CachedGeometry(lambda: None, cache)
    with pytest.raises(InputError, match="learning_rates.geometry trains what --model.geometry_cache keeps"):
        SpatialMLLM(lambda: TinyVGGT(**SIZES), learning_rates=LearningRates(geometry=1e-5), geometry_cache=cache)
    with pytest.raises(InputError, match="has no camera head"):
        CachedGeometry(lambda: TinyVGGT(**SIZES, heads=()), cache).want_cameras()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedGeometry(lambda: TinyVGGT(**SIZES), cache).want_cameras()
