"""Lengths in meters, by the dataset's poses or a metric model: known scales recovered, cached, and refused."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.zoo.geometry.da3 import any_view_config, hash_model, manifest, metric_config, save
from tests.zoo.geometry.official import alter, tiny_images
from zoo import PRoPE, SpatialVLM, TinyQwen25VL
from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.errors import InputError
from zoo.geometry import (
    CachedGeometry,
    DatasetPoses,
    FittedMetricModel,
    GeometryCache,
    MetricModel,
    SceneGeometry,
    TinyDA3,
    TinyVGGT,
)
from zoo.geometry.da3 import to_meters
from zoo.geometry.da3.model import SKY
from zoo.geometry.vggt import cameras_to_pose_encoding
from zoo.objectives.geovr import scale_target
from zoo.weights.checkpoint import check_frozen, frozen_weights

HEADS = ("camera", "depth")


def given(count: int = 6, seed: int = 0, focal: float = 0.8, spread: float = 1.0) -> SceneGeometry:
    """Cameras of a dataset at random places."""
    generator = torch.Generator().manual_seed(seed)
    skew = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    centers = spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return SceneGeometry(
        world_to_camera=invert_se3(rigid_matrix(torch.linalg.matrix_exp(skew - skew.mT), centers)),
        K_normalized=torch.diag(torch.tensor([focal, focal, 1.0], dtype=torch.float64)).repeat(count, 1, 1),
        has_camera=torch.ones(count, dtype=torch.bool),
    )


def predicted(truth: SceneGeometry, unit: float) -> SceneGeometry:
    """The same cameras in another world, in units of this many meters, with depth, points and tokens."""
    world = given(1, seed=7).world_to_camera
    count, generator = len(truth.world_to_camera), torch.Generator().manual_seed(1)
    return SceneGeometry(
        world_to_camera=truth.scaled(1 / unit).world_to_camera @ world,
        K_normalized=truth.K_normalized,
        has_camera=truth.has_camera.clone(),
        depth=torch.rand(count, 2, 3, generator=generator).double() + 1,
        points=torch.rand(count, 2, 3, 3).double(),
        patches=torch.rand(count, 1, 1, 4),
        confidence=torch.rand(count, 2, 3, generator=generator),
    )


def distances(scene: SceneGeometry) -> Tensor:
    centers = invert_se3(scene.world_to_camera)[:, :3, 3]
    return torch.cdist(centers[None], centers[None])[0]


def in_meters(source: DatasetPoses | MetricModel, scene: SceneGeometry, truth: SceneGeometry | None) -> SceneGeometry:
    return source.in_meters([scene], [torch.zeros(len(scene.world_to_camera), 3, 2, 3)], [truth])[0]


@pytest.mark.parametrize("unit", [0.02, 1.0, 30.0])
def test_poses_recover_a_known_unit(unit: float) -> None:
    truth = given()
    scene = predicted(truth, unit)
    found = in_meters(DatasetPoses(), scene, truth)
    assert torch.allclose(distances(found), distances(truth), rtol=1e-9)
    assert torch.allclose(found.world_to_camera[:, :3, :3], scene.world_to_camera[:, :3, :3])
    assert torch.allclose(found.depth, unit * scene.depth) and torch.allclose(found.points, unit * scene.points)
    assert found.patches is scene.patches and found.confidence is scene.confidence  # they have no unit
    other = in_meters(DatasetPoses(), scene.scaled(5.0), truth)  # whatever the encoder's unit
    assert torch.allclose(other.world_to_camera, found.world_to_camera) and torch.allclose(other.depth, found.depth)
    assert unit == 1.0 or not torch.allclose(distances(scene), distances(truth), rtol=1e-2)  # the control


def test_only_frames_with_both_cameras_count() -> None:
    truth = given()
    scene = predicted(truth, 3.0)
    expected = in_meters(DatasetPoses(), scene, truth).depth
    for side, frame in ((scene, 1), (truth, 4)):
        side.world_to_camera[frame] = torch.eye(4)
    wrong = in_meters(DatasetPoses(), scene, truth).depth
    scene.has_camera[1] = truth.has_camera[4] = False
    assert torch.allclose(in_meters(DatasetPoses(), scene, truth).depth, expected)
    assert not torch.allclose(wrong, expected, rtol=1e-2)


@pytest.mark.parametrize("known", [0, 2, "line", None])
def test_poses_that_determine_no_scale(known: int | str | None) -> None:
    truth = None if known is None else given()
    scene = predicted(given(), 2.0)
    if known == "line":
        truth.world_to_camera[:, :3, :] = torch.eye(4)[:3]
        truth.world_to_camera[:, 0, 3] = torch.arange(6.0)
    elif known is not None:
        truth.has_camera[known:] = False
    counted = {"line": 6, None: 0}.get(known, known)
    with pytest.raises(InputError) as error:
        in_meters(DatasetPoses(), scene, truth)
    message = str(error.value)
    assert message.startswith("scene 0 of the batch: the scale of poses needs three cameras or more")
    assert f"; {counted} of 6 frames have one" in message and message.endswith("scale_from MetricModel")
    assert ("complete its cameras.json" in message) == (known != "line")


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("weights") / "metric", metric_config())


def test_the_ratio_is_a_median_over_confident_pixels(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, truth = MetricModel(metric), given()
    scene = predicted(truth, 1.0)
    scene.confidence = (torch.arange(36) % 2).view(6, 2, 3).float()
    scene.confidence[0, 0, 0] = 1.0  # so that the median is
    meters = 2.5 * scene.depth
    meters[scene.confidence == 0] = 40.0
    meters[1][scene.confidence[1] == 1] = 1e3  # outliers
    meters[2] = 0.0  # sky
    monkeypatch.setattr(source, "depth", lambda *_: meters)
    found = in_meters(source, scene, truth)
    assert torch.allclose(found.depth, 2.5 * scene.depth) and torch.allclose(distances(found), 2.5 * distances(scene))
    scene.confidence = torch.ones(6, 2, 3)  # the control: unsure pixels count
    assert not torch.allclose(in_meters(source, scene, truth).depth, 2.5 * scene.depth, rtol=1e-2)
    meters = torch.zeros_like(meters)
    with pytest.raises(InputError, match="^scene 0 .*DatasetPoses"):
        in_meters(source, scene, truth)


def test_the_fit_is_geovrs_target(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, scene = FittedMetricModel(metric), predicted(given(), 1.0)
    assert scene.depth is not None and scene.confidence is not None
    generator = torch.Generator().manual_seed(2)
    raw, sky = torch.rand(6, 2, 3, generator=generator) + 1, torch.rand(6, 2, 3, generator=generator)
    K_px = intrinsics_in_pixels(scene.K_normalized, 3, 2)
    pose = cameras_to_pose_encoding(scene.world_to_camera, K_px, (2, 3))

    def depth(frames: Tensor, K: Tensor) -> Tensor:
        return (to_meters(raw[None], intrinsics_in_pixels(K, 3, 2)[None]) * (sky < SKY))[0]

    monkeypatch.setattr(source, "depth", depth)
    other = given(focal=0.4)  # which is not read
    factor = source.meters_per_unit(scene, torch.zeros(6, 3, 2, 3), other)
    expected = scale_target(scene.depth, scene.confidence, pose, raw, sky, teacher="vggt")
    assert float(factor) == pytest.approx(expected, rel=1e-6)
    sky[:] = 1.0
    with pytest.raises(InputError, match="share no pixel"):
        in_meters(source, scene, None)


@pytest.mark.parametrize("kind", [TinyDA3, TinyVGGT])
def test_the_metric_models_focal_length_is_the_datasets(kind: type, metric: str) -> None:
    options = {"embed_dim": 32, "num_heads": 2, "features": 8, "heads": HEADS, "seed": 3}
    plain, scaled = kind(**options), kind(**options, scale_from=MetricModel(metric))
    for encoder in (plain, scaled):
        encoder.requires_grad_(False).enable_head("depth")
    assert scaled.is_metric and not plain.is_metric and not scaled.requires_cameras
    (frames,) = tiny_images(1, 3, 28, 42)
    (own,) = plain([frames], [None])
    output = hash_model(metric_config())(frames[None], layers=(), heads=("depth",))
    factors = {}
    for name, K in (
        ("predicted", own.K_normalized),
        ("one", given(3).K_normalized),
        ("two", 2 * given(3).K_normalized),
    ):
        data = None
        if name != "predicted":
            data = given(3)
            data.K_normalized = K
        meters = to_meters(output.depth, intrinsics_in_pixels(K, 42, 28)[None])[0]
        used = (own.confidence >= own.confidence.median()) & (output.sky[0] < 0.3)
        ratios = [a / b for a, b in zip(meters[used].tolist(), own.depth[used].tolist(), strict=True)]
        (found,) = scaled([frames], [data])
        factors[name] = statistics.median_low(ratios)
        assert torch.allclose(found.depth, factors[name] * own.depth, rtol=1e-4)
        translation = factors[name] * own.world_to_camera[:, :3, 3]
        assert torch.allclose(found.world_to_camera[:, :3, 3], translation, rtol=1e-4)
        assert torch.equal(found.patches, own.patches)  # tokens are what they were
    assert factors["two"] == pytest.approx(2 * factors["one"]) and factors["one"] != pytest.approx(factors["predicted"])


def test_folders_of_other_models_are_refused(metric: str, tmp_path: Path) -> None:
    relative = Path(save(tmp_path / "mono", metric_config()))
    text = (relative / "config.json").read_text()
    (relative / "config.json").write_text(text.replace('"da3"', '"da3mono-large"'))
    for folder in (save(tmp_path / "any_view", any_view_config()), str(relative)):
        with pytest.raises(InputError, match=f"{folder} is no metric model"):
            MetricModel(folder)
    with pytest.raises(InputError, match="set --model.geometry.scale_from.path weights/absent"):
        MetricModel(str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"no depth head: .*--model.geometry.heads \[camera,depth\]"):
        TinyVGGT(embed_dim=16, num_heads=2, scale_from=MetricModel(metric))


@pytest.mark.slow
def test_cached_cameras_depend_on_the_source_of_their_scale(metric: str, tmp_path: Path) -> None:
    (frames,) = tiny_images(1, 3, 28, 28)
    options = {"embed_dim": 16, "num_heads": 2, "features": 8, "heads": HEADS, "seed": 0}

    def cached(source: DatasetPoses | MetricModel | None) -> CachedGeometry:
        cache = GeometryCache(str(tmp_path / "cache"))
        return CachedGeometry(lambda: TinyDA3(**options, scale_from=source), cache)

    def keys(source: DatasetPoses | MetricModel | None, kind: str = "cameras") -> list[str]:
        """Of a scene without cameras, with some, with another focal length, and with other centers."""
        encoder, datas = cached(source), (None, given(3), given(3, focal=0.9), given(3, spread=2.0))
        return [json.dumps(encoder.keys.of(frames, data, tokens=True, cameras=True)[kind]) for data in datas]

    source = MetricModel(metric)
    none, poses, meters = keys(None), keys(DatasetPoses()), keys(source)
    assert len(set(none)) == 1 and poses[1] == poses[2] and meters[1] == meters[3]  # what is not read is no part
    assert len({*none, *poses}) == 4 and len({*none, *meters}) == 4
    assert set(keys(DatasetPoses(), "tokens")) == set(keys(None, "tokens"))  # tokens have no unit
    alter(Path(metric, "model.safetensors"), "model.head.scratch.output_conv2.2.bias")
    assert not {*keys(MetricModel(metric))} & {*meters}

    (made,), (read,) = ((each := cached(source))([frames], [given(3)], tokens=False) for _ in range(2))
    assert each.num_computed == 0 and each.is_metric and not each.requires_cameras
    (exact,) = TinyDA3(**options, scale_from=source)([frames], [given(3)])
    assert torch.equal(made.world_to_camera, exact.world_to_camera) and torch.equal(made.depth, read.depth)


def test_a_saved_model_knows_the_weights_of_its_scale(metric: str) -> None:
    def tiny_da3() -> TinyDA3:
        return TinyDA3(embed_dim=16, num_heads=2, features=8, heads=HEADS, scale_from=MetricModel(metric))

    backbone = TinyQwen25VL(layers=1, hidden_size=32, heads=2, key_value_heads=1, vision_hidden_size=32)
    model = SpatialVLM(backbone, tiny_da3, camera_encoding=PRoPE(), camera_source="predicted")
    assert not model.model_spec().requires_cameras and model.model_spec().arbitrary_unit is None
    before = frozen_weights(model)
    assert before["scale"]["path"] == metric
    file = Path(metric, "model.safetensors")
    save_file(load_file(file), file, metadata={"of": "another download"})
    with pytest.raises(InputError, match=f"trained with the frozen scale {metric}"):
        check_frozen(before, frozen_weights(model), "a run")
    assert not any("da3_metric" in name or "scale" in name for name in model.state_dict())


def test_a_kept_scale_is_not_measured_again(metric: str, tmp_path: Path) -> None:
    """For the same depth and frames; those of another model, or of other frames, are measured."""
    frames, scene = torch.rand(6, 3, 28, 42), predicted(given(), 1.0)
    scene.depth, scene.confidence = torch.rand(6, 28, 42) + 1, torch.rand(6, 28, 42)

    def scale(shown: Tensor, kind: type[MetricModel] = FittedMetricModel, cameras: float = 0.8) -> tuple[float, int]:
        source = kind(metric, GeometryCache(str(tmp_path)))
        found = source.meters_per_unit(scene, shown, given(focal=cameras))
        return float(found), source.cache.num_computed

    expected = float(FittedMetricModel(metric).meters_per_unit(scene, frames, None))
    assert scale(frames) == (expected, 1) and scale(frames) == (expected, 0)
    assert scale(frames, cameras=0.4) == (expected, 0)  # which the fit does not read
    assert scale(frames.flip(-1))[1] == 1 and scale(frames, MetricModel)[1] == 1  # the controls
    assert scale(frames, MetricModel)[1] == 0 and scale(frames, MetricModel, cameras=0.4)[1] == 1
    scene.depth = scene.depth + 0.1
    assert scale(frames)[1] == 1


def test_the_released_config_is_known() -> None:
    """A plan needs no folder."""
    about = manifest("da3metric_large")
    with torch.device("meta"):
        known = FittedMetricModel().network
    shapes = {name: tensor.shape for name, tensor in known.official_state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in about["tensors"].items()}
