"""The geometry cache: equal results, no stale entries, damaged files, and models that read it."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.collate import QuestionCollate
from tests.tiny import inputs_of, logits_of, tiny_batch, tiny_model, tiny_scene
from tests.zoo.geometry.official import alter, hash_model, save_vggt, tiny_config
from zoo import LearningRates, PretrainedSpatialMLLM, SpatialMLLM, VideoQATask
from zoo.checkpoints import export_model
from zoo.errors import InputError
from zoo.files import cache as files
from zoo.geometry import CachedGeometry, DatasetGeometry, GeometryCache, SceneGeometry, TinyVGGT, VGGTEncoder, base
from zoo.geometry.cache import pack, unpack
from zoo.geometry.vggt import Aggregator
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.weights.checkpoint import saved_names

SIZES = dict(embed_dim=16, depth=4, num_heads=2)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def saved_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `weights` copies."""
    path = tmp_path_factory.mktemp("vggt") / "model.safetensors"
    save_vggt(TinyVGGT(**SIZES), path)
    return path


@pytest.fixture
def weights(tmp_path: Path, saved_weights: Path) -> Path:
    (tmp_path / "vggt").mkdir()
    return Path(shutil.copy(saved_weights, tmp_path / "vggt"))


@pytest.fixture
def cached(weights: Path, tmp_path: Path) -> Callable[..., CachedGeometry]:
    """Makes a new encoder at each call, as another run does, on one folder."""

    def new(path: Path = weights, layers: tuple[int, ...] = (-1,), **cache: object) -> CachedGeometry:
        keep = GeometryCache(str(tmp_path / "cache"), **cache)
        return CachedGeometry(lambda: TinyVGGT(str(path), layers=layers, **SIZES), keep)

    return new


def frames(count: int = 3, height: int = 28, width: int = 42, seed: int = 0) -> Tensor:
    """Frames of a video: bytes / 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator) / 255


def ask(encoder: CachedGeometry, *scenes: Tensor, **wanted: bool) -> list[SceneGeometry]:
    return encoder(list(scenes), [None] * len(scenes), **wanted)


def with_patches_of(size: int, encoder: CachedGeometry) -> CachedGeometry:
    encoder.match_patches(size)
    return encoder


def same(a: SceneGeometry, b: SceneGeometry) -> bool:
    pairs = [(x, getattr(b, name)) for name, x in vars(a).items()]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def entries(encoder: CachedGeometry) -> list[Path]:
    return sorted(encoder.cache.path.glob("*.safetensors"))


# ---- equal results ---------------------------------------------------------------------------------------------


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


def test_a_file_of_weights_that_is_overwritten_is_other_weights(tmp_path: Path) -> None:
    """The same file of the same size: its time tells that it has to be read again."""
    cache, file = GeometryCache(str(tmp_path / "cache")), tmp_path / "weights"
    file.write_bytes(b"a" * 100)
    os.utime(file, (1, 1))
    before = cache.weights_fingerprint(file)
    assert cache.weights_fingerprint(file) == before
    with file.open("r+b") as opened:
        opened.write(b"b")
    assert cache.weights_fingerprint(file) != before


# ---- files -----------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a byte short": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "a stump": lambda content: content[:5],
    "empty": lambda content: b"",
    "a bit": lambda content: content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
    "zeros": lambda content: content[:-64] + bytes(64),
    "longer": lambda content: content + b"\n",
    "noise": lambda content: os.urandom(1000),
}


def test_a_damaged_entry_is_computed_again(cached) -> None:
    (expected,) = ask(cached(), frames(), cameras=False)
    encoder = cached()
    (path,) = entries(encoder)
    whole = path.read_bytes()
    for number, (name, damage) in enumerate(DAMAGES.items(), 1):
        path.write_bytes(damage(whole))
        (again,) = ask(encoder, frames(), cameras=False)
        assert encoder.num_computed == number and same(again, expected) and path.read_bytes() == whole, name


@pytest.mark.slow
def test_two_writers_that_are_killed_at_any_moment_read_what_was_written(tmp_path: Path) -> None:
    """In a folder that holds half of the entries, so that each writer evicts what the other one reads."""
    one = pack({"patches": torch.randn(4, 16, 16, 64), "depth": torch.randn(4, 56, 56)}, "bfloat16")
    packed = [{name: tensor * number for name, tensor in one.items()} for number in range(16)]
    limit = 8.5 * sum(tensor.nbytes for tensor in one.values())

    def work(seed: int) -> None:
        cache, generator = GeometryCache(str(tmp_path), max_size_gb=limit / 1e9), random.Random(seed)
        while True:  # an error ends the process
            number = generator.randrange(len(packed))
            found = cache.read({"number": number})
            if found is None:
                cache.write({"number": number}, packed[number])
            else:
                assert all(torch.equal(tensor, found[name]) for name, tensor in packed[number].items())

    def started(seed: int) -> BaseProcess:
        process = FORK.Process(target=work, args=(seed,))
        process.start()
        return process

    writers = [started(0), started(1)]
    for kills in range(10):
        time.sleep(0.05 + 0.007 * kills)
        writer = writers.pop(0)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL  # no error until then
        if kills < 8:
            writers.append(started(2 + kills))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1.2 * limit  # one more entry at most
    cache = GeometryCache(str(tmp_path))
    found = [cache.read({"number": number}) for number in range(len(packed))]
    assert sum(each is not None for each in found) == len(list(tmp_path.glob("*.safetensors"))) > 4
    for path in tmp_path.glob("*.partial"):
        os.utime(path, (0, 0))  # as if it had been abandoned long ago
    GeometryCache(str(tmp_path)).write({"number": -1}, one)
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_continues_if_entries_cannot_be_written(cached, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = ask(cached(), frames())

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace_file", refuse)
    encoder = cached()
    with pytest.warns(UserWarning, match="an entry can't be kept .No space left"):
        (found,) = ask(encoder, frames(seed=1))
    assert encoder.cache.write_error.errno == errno.ENOSPC and found.patches is not None
    assert same(*ask(encoder, frames()), before) and encoder.num_computed == 1  # nothing was lost


def test_the_least_recently_used_entry_is_evicted(tmp_path: Path) -> None:
    packed = pack({"patches": torch.randn(1, 10, 10, 500)}, "bfloat16")
    cache = GeometryCache(str(tmp_path), max_size_gb=350_000 / 1e9)  # three of 100 kB
    names = "abcde"

    def put(name: str) -> None:
        cache.write({"name": name}, packed)
        time.sleep(0.02)  # times of files are coarse

    def there() -> str:
        return "".join(name for name in names if cache.file({"name": name}).exists())

    for name in "abc":
        put(name)
    assert there() == "abc"
    assert cache.read({"name": "a"}) is not None
    time.sleep(0.02)
    put("d")
    assert there() == "acd"  # b, although a is older
    put("e")
    assert there() == "ade"
    with pytest.raises(InputError, match=r"one scene takes 0.0001 GB: raise --model.geometry_cache.max_size_gb 5e-05"):
        GeometryCache(str(tmp_path), max_size_gb=5e-5).write({"name": "f"}, packed)
    assert there() == "ade"
    with pytest.raises(InputError, match="max_size_gb 0.0"):
        GeometryCache(max_size_gb=0.0)


def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """A user's weights in a folder that is given as a cache, also with a name like an entry's."""
    packed = pack({"patches": torch.randn(1, 10, 10, 500)}, "bfloat16")
    theirs = ("model.safetensors", f"{'0' * 32}.safetensors", "download.partial", f"sub/{'1' * 32}.safetensors")
    (tmp_path / "sub").mkdir()
    for name in theirs:
        safetensors.torch.save_file({"weight": torch.zeros(200_000)}, tmp_path / name, {"format": "pt"})
        os.utime(tmp_path / name, (0, 0))  # older than all entries
    (tmp_path / f"{'2' * 32}.safetensors").symlink_to(tmp_path / theirs[0])
    cache = GeometryCache(str(tmp_path), max_size_gb=350_000 / 1e9)  # three entries of 100 kB
    for name in "abcde":
        cache.write({"name": name}, packed)
        time.sleep(0.02)
    assert all((tmp_path / name).exists() for name in theirs) and (tmp_path / f"{'2' * 32}.safetensors").is_symlink()
    kept = "".join(name for name in "abcde" if cache.file({"name": name}).exists())
    assert kept == "cde"  # the control: own entries are evicted, as in an empty folder


# ---- models ----------------------------------------------------------------------------------------------------


def model_of(name: str, weights: Path, cache: GeometryCache | None = None, family: str = "Qwen2.5-VL") -> VideoQATask:
    """One of `MODELS`. Its weights are the same with and without a cache, and its geometry matters."""
    parts = {"geometry": lambda: TinyVGGT(str(weights), **SIZES), "geometry_cache": cache}
    model = tiny_model(name, family=family, **parts)
    generator = torch.Generator().manual_seed(2)
    for part, parameter in model.named_parameters():
        if parameter.ndim == 2 and not part.startswith("model.geometry."):
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    if cache is None:
        model.model.geometry = TinyVGGT(str(weights), **SIZES).requires_grad_(False)
    return model


def trained(task: VideoQATask) -> set[str]:
    return {name for name, parameter in task.named_parameters() if parameter.requires_grad}


def logits_about(model: VideoQATask, *scenes: LoadedScene) -> Tensor:
    with torch.no_grad():
        return logits_of(model, inputs_of(model, tiny_batch(model, *scenes)))


def test_logits_with_and_without_a_cache(weights: Path, tmp_path: Path) -> None:
    one, other = tiny_scene("one"), tiny_scene("other", seed=1)
    plain = logits_about(model_of("AddFusion", weights), one)
    spread = plain.std()
    errors = {}
    for dtype in ("bfloat16", "float8"):
        cache = GeometryCache(str(tmp_path / "cache"), dtype=dtype)
        made, read = (logits_about(model_of("AddFusion", weights, cache), one) for _ in range(2))
        assert torch.equal(made, read)
        errors[dtype] = (made - plain).square().mean().sqrt() / spread
    assert 0 < errors["bfloat16"] < 2**-7 < errors["float8"] < 0.2
    model = model_of("AddFusion", weights)
    tokens = model.model.geometry([each.float() / 255 for each in (one.frames, other.frames)], [None] * 2)
    model.model.geometry.forward = lambda *_, **__: [tokens[1]]  # the 3D tokens of another scene
    assert (logits_about(model, one) - plain).square().mean().sqrt() / spread > 0.2


def test_cameras_of_a_cache_are_exact(weights: Path, tmp_path: Path) -> None:
    scene, cache = tiny_scene("one"), GeometryCache(str(tmp_path / "cache"))
    models = [model_of("PRoPE by VGGT's cameras", weights, each) for each in (None, cache, cache)]
    plain, made, read = (logits_about(model, scene) for model in models)
    assert torch.equal(plain, made) and torch.equal(plain, read)
    assert [model.model.geometry.num_computed for model in models[1:]] == [1, 0]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param("AddFusion", "Qwen2.5-VL", marks=pytest.mark.slow),
        *(("PRoPE by VGGT's cameras", "Qwen2.5-VL"), ("AddFusion", "Qwen3-VL")),
    ],
)
def test_data_workers_read_what_is_cached_and_a_step_reads_nothing(
    name: str, family: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = GeometryCache(str(tmp_path / "cache"))
    scenes = [tiny_scene(name, seed=seed, family=family) for seed, name in enumerate(("one", "other"))]
    model = model_of(name, weights, cache, family)

    def collated(*shown: LoadedScene) -> Batch:
        spec = pickle.loads(pickle.dumps(model.model_spec()))  # as a worker has it
        return QuestionCollate(spec)(list(shown))

    absent = collated(*scenes)
    assert all(scene.cached_geometry is None and scene.frames is not None for scene in absent.scenes)
    with monkeypatch.context() as patch:  # another device rounds otherwise
        patch.setattr(
            base, "F", Namespace(interpolate=lambda *a, **k: F.interpolate(*a, **k).nextafter(torch.zeros(())))
        )
        expected = model.predict_batch(collated(scenes[0])) + model.predict_batch(collated(scenes[1]))
    assert model.model.geometry.num_computed == 2
    present = collated(*scenes)
    assert all(scene.cached_geometry is not None and scene.frames is None for scene in present.scenes)
    with monkeypatch.context() as patch:
        patch.setattr(GeometryCache, "read", lambda *_: pytest.fail("read in the step"))
        assert model.predict_batch(present) == expected
    # one scene of two: the encoder computes the other
    mixed = collated(scenes[0], tiny_scene("new", seed=2, family=family))
    assert [scene.cached_geometry is None for scene in mixed.scenes] == [False, True]
    assert model.predict_batch(mixed)[: len(expected) // 2] == expected[: len(expected) // 2]
    assert model.model.geometry.num_computed == 3
    # the control: the tokens of another scene give other answers
    cached = [scene.cached_geometry for scene in present.scenes]
    present.scenes[:] = [replace(s, cached_geometry=c) for s, c in zip(present.scenes, cached[::-1], strict=True)]
    assert model.predict_batch(present) != expected


def test_no_weights_are_read_if_all_entries_exist(cached, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_state_does_not_depend_on_the_encoder_being_loaded(weights: Path, tmp_path: Path) -> None:
    model = model_of("AddFusion", weights, GeometryCache(str(tmp_path / "cache")))
    names = list(model.state_dict())
    with torch.inference_mode():
        model.predict_batch(tiny_batch(model, tiny_scene("one")))
    assert model.model.geometry.num_computed == 1 and list(model.state_dict()) == names
    assert not any(name.startswith("geometry.") for name in names)
    loss = model.train().loss(tiny_batch(model, tiny_scene("other", seed=1), training=True))
    loss.backward()
    assert model.model.geometry.num_computed == 2 and all(
        p.grad is None for p in model.model.geometry.encoder().parameters()
    )
    plain = model_of("AddFusion", weights)
    assert trained(model) == trained(plain)
    plain.load_state_dict(model.state_dict())
    kept = saved_names(plain, plain.restored_by_files)
    model.load_state_dict({name: tensor for name, tensor in plain.state_dict().items() if name in kept})


def test_export_loads_the_weights(release: Path, tmp_path: Path) -> None:
    written = []
    for name, cache in (("plain", None), ("cached", GeometryCache(str(tmp_path / "cache")))):
        backbone = PretrainedSpatialMLLM(str(release), dtype="float32")
        model = SpatialMLLM(geometry=TinyVGGT, backbone=backbone, geometry_cache=cache)
        export_model(model.model, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".md"})
    assert written[0] == written[1] and any("safetensors" in name for name in written[0])
    # the VGGT of a release is available before the rest of it is loaded
    backbone = PretrainedSpatialMLLM(str(release), dtype="float32")
    encoder = CachedGeometry(backbone.load_geometry, GeometryCache(str(tmp_path / "cache")))
    encoder.enable_head("camera")
    (found,) = ask(encoder, frames(2, 28, 28))
    assert found.world_to_camera is not None and len(encoder.files) == 3


def test_encoders_that_cannot_be_cached_are_refused(weights: Path, tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path))
    with pytest.raises(InputError, match="DatasetGeometry"):
        CachedGeometry(DatasetGeometry, cache)
    with pytest.raises(InputError, match="set --model.geometry,"):
        CachedGeometry(lambda: None, cache)
    with pytest.raises(InputError, match="learning_rates.geometry trains what --model.geometry_cache keeps"):
        SpatialMLLM(lambda: TinyVGGT(**SIZES), learning_rates=LearningRates(geometry=1e-5), geometry_cache=cache)
    with pytest.raises(InputError, match="has no camera head"):
        CachedGeometry(lambda: TinyVGGT(**SIZES, heads=()), cache).enable_head("camera")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedGeometry(lambda: TinyVGGT(**SIZES), cache).enable_head("camera")
