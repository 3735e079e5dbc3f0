"""Models with cached geometry: equal outputs, and no encoder in memory if all entries exist."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from callbacks.results_folder import identify_test
from datamodules.collate import QuestionCollate
from tests.zoo import asking
from tests.zoo.geometry.caching import SIZES, alter, ask, frames
from zoo import LearningRates, PretrainedSpatialMLLM, SpatialMLLM, VideoQATask
from zoo.checkpoints import export_model
from zoo.errors import InputError
from zoo.geometry import CachedGeometry, DatasetGeometry, GeometryCache, TinyVGGT, base
from zoo.geometry.vggt import Aggregator
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.weights.checkpoint import saved_names


def model_of(name: str, weights: Path, cache: GeometryCache | None = None, family: str = "Qwen2.5-VL") -> VideoQATask:
    """One of `asking.MODELS`. Its weights are the same with and without a cache, and its geometry matters."""
    parts = {"geometry": lambda: TinyVGGT(str(weights), **SIZES), "geometry_cache": cache}
    model = asking.build(name, family=family, **parts)
    generator = torch.Generator().manual_seed(2)
    for part, parameter in model.named_parameters():
        if parameter.ndim == 2 and not part.startswith("model.geometry."):
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    if cache is None:
        model.model.geometry = TinyVGGT(str(weights), **SIZES).requires_grad_(False)
    return model


def trained(task: VideoQATask) -> set[str]:
    return {name for name, parameter in task.named_parameters() if parameter.requires_grad}


def logits_of(model: VideoQATask, *scenes: LoadedScene) -> Tensor:
    batch = asking.batch(model, *scenes)
    inputs = asking.inputs_of(model, batch)
    with torch.no_grad():
        return asking.logits_of(model, inputs)


def test_logits_with_and_without_a_cache(weights: Path, tmp_path: Path) -> None:
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
    model = model_of("AddFusion", weights)
    tokens = model.model.geometry([each.float() / 255 for each in (one.frames, other.frames)], [None] * 2)
    model.model.geometry.forward = lambda *_, **__: [tokens[1]]  # the 3D tokens of another scene
    assert (logits_of(model, one) - plain).square().mean().sqrt() / spread > 0.2


def test_cameras_of_a_cache_are_exact(weights: Path, tmp_path: Path) -> None:
    scene, cache = asking.scene("one"), GeometryCache(str(tmp_path / "cache"))
    models = [model_of("PRoPE by VGGT's cameras", weights, each) for each in (None, cache, cache)]
    plain, made, read = (logits_of(model, scene) for model in models)
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
    scenes = [asking.scene(name, seed=seed, family=family) for seed, name in enumerate(("one", "other"))]
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
    mixed = collated(scenes[0], asking.scene("new", seed=2, family=family))
    assert [scene.cached_geometry is None for scene in mixed.scenes] == [False, True]
    assert model.predict_batch(mixed)[: len(expected) // 2] == expected[: len(expected) // 2]
    assert model.model.geometry.num_computed == 3
    # the control: the tokens of another scene give other answers
    cached = [scene.cached_geometry for scene in present.scenes]
    present.scenes[:] = [replace(s, cached_geometry=c) for s, c in zip(present.scenes, cached[::-1], strict=True)]
    assert model.predict_batch(present) != expected


# ---- nothing is loaded -----------------------------------------------------------------------------


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
        model.predict_batch(asking.batch(model, asking.scene("one")))
    assert model.model.geometry.num_computed == 1 and list(model.state_dict()) == names
    assert not any(name.startswith("geometry.") for name in names)
    loss = model.train().loss(asking.batch(model, asking.scene("other", seed=1), training=True))
    loss.backward()
    assert model.model.geometry.num_computed == 2 and all(
        p.grad is None for p in model.model.geometry.encoder().parameters()
    )
    plain = model_of("AddFusion", weights)
    assert trained(model) == trained(plain)
    plain.load_state_dict(model.state_dict())
    kept = saved_names(plain, plain.restored_by_files)
    model.load_state_dict({name: tensor for name, tensor in plain.state_dict().items() if name in kept})


def test_the_weights_of_a_cached_encoder_are_part_of_a_test(weights: Path, tmp_path: Path) -> None:
    """An interrupted test is resumed with the same weights only."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    cache = GeometryCache(str(tmp_path / "cache"))

    def identity() -> dict:
        return identify_test(trainer, model_of("AddFusion", weights, cache))

    before = identity()
    assert identity() == before
    alter(weights, "aggregator.camera_token")
    assert {name for name, each in identity().items() if each != before[name]} == {"weights"}


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
    with pytest.raises(InputError, match="DatasetGeometry has nothing that a cache would save"):
        CachedGeometry(DatasetGeometry, cache)
    with pytest.raises(InputError, match="no geometry encoder: set --model.geometry, or leave"):
        CachedGeometry(lambda: None, cache)
    with pytest.raises(InputError, match="learning_rates.geometry trains what --model.geometry_cache keeps"):
        SpatialMLLM(lambda: TinyVGGT(**SIZES), learning_rates=LearningRates(geometry=1e-5), geometry_cache=cache)
    with pytest.raises(InputError, match="has no camera head"):
        CachedGeometry(lambda: TinyVGGT(**SIZES, heads=()), cache).enable_head("camera")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedGeometry(lambda: TinyVGGT(**SIZES), cache).enable_head("camera")
