"""Pretraining of geometry: targets and losses by slow references; it overfits rooms and writes weights that load."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader

from callbacks import Checkpoint
from callbacks.checkpoint import CheckpointFiles
from datamodules import MissingCameras, NoisyCameras, PixelBounds, Rooms, VideoQADataModule
from datamodules.cameras_file import read_cameras
from datamodules.collate import SceneCollate
from datamodules.depth import read_depth
from datamodules.scenes import Scene
from datamodules.video import Video
from tests.conftest import ROOMS
from tests.poses import random_poses
from tests.zoo.geometry.pi3x import dataset_scene
from zoo.cameras.poses import invert_se3, pose_distance, quaternion_to_rotation, rotation_to_quaternion
from zoo.cameras.rays import unproject_depth
from zoo.errors import InputError
from zoo.geometry import Pi3XEncoder, Pi3XOutput, SceneGeometry, TinyPi3X, TinyVGGT, VGGTOutput
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene, PreparedScene
from zoo.tasks.base import LearningRates
from zoo.tasks.geometry_pretraining import (
    ALPHA,
    HUBER,
    GeometryPretraining,
    camera_loss,
    dense_loss,
    errors,
    losses,
    targets,
)
from zoo.weights.checkpoint import saved_names

HEIGHT, WIDTH = 4, 6
ALL_CONDITIONS = next(  # a draw for which Pi3X keeps them
    seed for seed in range(100) if (torch.rand(3, generator=torch.Generator().manual_seed(seed)) > 0.5).all()
)
K = torch.tensor([[0.8, 0, 0.05], [0, 1.1, -0.1], [0, 0, 1]], dtype=torch.float64)


def scene(seed: int = 0, frames: int = 3, unit: float = 1.0, move: Tensor | None = None) -> SceneGeometry:
    poses = random_poses(frames, seed)
    poses = poses if move is None else poses @ move
    poses[:, :3, 3] *= unit
    depth = 1 + torch.rand(frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    depth[0, 0, :2] = 0
    depth[2:, 3, 5] = 0
    return SceneGeometry(world_to_camera=poses, K_normalized=K.expand(frames, 3, 3), depth=unit * depth)


def perfect(truth) -> VGGTOutput:
    ones = torch.ones_like(truth.depth)
    return VGGTOutput(
        tokens={},
        patch_start=5,
        pose_enc=truth.pose_enc,
        pose_enc_list=truth.pose_enc.expand(4, *truth.pose_enc.shape),
        depth=truth.depth[..., None],
        depth_conf=ones,
        points=truth.points,
        points_conf=ones,
    )


# ---- targets, losses and errors --------------------------------------------------------------------------------


def test_targets_against_a_slow_reference() -> None:
    one = scene()
    truth = targets([one])
    K_px = torch.tensor([[0.8 * WIDTH, 0, 0.55 * WIDTH], [0, 1.1 * HEIGHT, 0.4 * HEIGHT], [0, 0, 1]]).double()
    points = torch.zeros(3, HEIGHT, WIDTH, 3, dtype=torch.float64)
    for s in range(3):
        to_first = one.world_to_camera[0] @ torch.linalg.inv(one.world_to_camera[s])
        for v in range(HEIGHT):
            for u in range(WIDTH):
                ray = torch.linalg.inv(K_px) @ torch.tensor([u + 0.5, v + 0.5, 1], dtype=torch.float64)
                points[s, v, u] = to_first[:3, :3] @ (ray * one.depth[s, v, u]) + to_first[:3, 3]
    known = one.depth > 0
    unit = points[known].norm(dim=-1).mean()
    assert torch.equal(truth.known[0], known) and 0 < (~known).sum() < known.sum()
    assert torch.allclose(truth.points[0][known].double(), points[known] / unit, atol=1e-5)
    assert torch.allclose(truth.depth[0].double(), one.depth.double() / unit, atol=1e-5)
    relative = one.world_to_camera[2] @ torch.linalg.inv(one.world_to_camera[0])
    assert torch.allclose(truth.pose_enc[0, 2, :3].double(), relative[:3, 3] / unit, atol=1e-5)
    assert torch.allclose(truth.pose_enc[0, 2, 3:7].double(), rotation_to_quaternion(relative[:3, :3]), atol=1e-5)
    fov = [2 * math.atan(0.5 / 1.1), 2 * math.atan(0.5 / 0.8)]  # vertical first
    assert torch.allclose(truth.pose_enc[0, :, 7:], torch.tensor(fov).expand(3, 2), atol=1e-6)


def test_targets_are_invariant_to_world_and_unit() -> None:
    first = targets([scene()])
    for other in (targets([scene(unit=3.7)]), targets([scene(move=random_poses(1, 9)[0])])):
        for name in ("pose_enc", "depth", "points"):
            assert torch.allclose(getattr(first, name), getattr(other, name), atol=1e-5), name
    stretched = scene()
    stretched.depth = stretched.depth * 2  # the depth alone: another scene
    assert not torch.allclose(first.points, targets([stretched]).points, atol=1e-2)


def test_incomplete_scenes_are_errors() -> None:
    blind = scene()
    blind.depth = blind.depth * 0
    with pytest.raises(ValueError, match="no pixel"):
        targets([blind])


def test_dense_loss_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    values, truth = torch.randn(2, 1, 2, 3, 4, 3, generator=generator, dtype=torch.float64)
    confidence = 1 + torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    known = torch.rand(1, 2, 3, 4, generator=generator) > 0.3
    terms: dict[str, list[Tensor]] = {"value": [], "down": [], "right": []}
    for s in range(2):
        for v in range(3):
            for u in range(4):
                here = (0, s, v, u)
                if not known[here]:
                    continue
                off = values[here] - truth[here]
                terms["value"].append(confidence[here] * off.norm() - ALPHA * confidence[here].log())
                for name, there in (("down", (0, s, v + 1, u)), ("right", (0, s, v, u + 1))):
                    if there[2] < 3 and there[3] < 4 and known[there]:
                        change = (values[there] - values[here]) - (truth[there] - truth[here])
                        terms[name].append(confidence[here] * change.norm())
    expected = sum(torch.stack(each).mean() for each in terms.values())
    assert torch.allclose(dense_loss(values, confidence, truth, known), expected)
    nonsense = torch.where(known[..., None], values, 1e6)
    assert torch.allclose(dense_loss(nonsense, confidence, truth, known), expected)
    assert not torch.allclose(dense_loss(values, confidence, truth, torch.ones_like(known)), expected)
    both = [torch.cat((each, other)) for each, other in ((values, truth), (confidence, confidence), (truth, values))]
    alone = dense_loss(truth, confidence, values, ~known)
    assert torch.allclose(dense_loss(*both, torch.cat((known, ~known))), torch.cat((expected.view(1), alone)))


def test_camera_loss_against_a_slow_reference() -> None:
    steps = torch.randn(4, 2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = steps[3] + 0.2 * torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, weights = 0.0, [0.6**3, 0.6**2, 0.6, 1.0]
    for step, weight in zip(steps, weights, strict=True):
        off = (step - truth).abs()
        huber = torch.where(off < HUBER, off**2 / (2 * HUBER), off - HUBER / 2)
        expected += weight / sum(weights) * huber.sum(-1).mean(1)  # of each scene
    assert torch.allclose(camera_loss(steps, truth), expected)
    assert (camera_loss(steps.flip(0), truth) > camera_loss(steps, truth) + 0.1).all()  # the last step is the best here


def test_errors_have_their_units() -> None:
    truth = targets([scene(), scene(1)])
    output = perfect(truth)
    assert output.depth is not None
    turn = torch.eye(3).repeat(2, 3, 1, 1)
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    turn[1, 1:] = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])  # scene 1, all but the first frame
    R = quaternion_to_rotation(truth.pose_enc[..., 3:7])
    turned = torch.cat((truth.pose_enc[..., :3], rotation_to_quaternion(turn @ R), truth.pose_enc[..., 7:]), -1)
    output.pose_enc = turned
    output.depth = output.depth * torch.tensor([1.0, 1.25]).view(2, 1, 1, 1, 1)
    found = errors(output, truth)
    assert torch.allclose(found["rotation_deg"], torch.tensor([0.0, 10.0]), atol=0.1)
    assert torch.allclose(found["depth_relative"], torch.tensor([0.0, 0.25]), atol=1e-4)
    moved = truth.pose_enc.clone()
    moved[0, 2, :3] += torch.tensor([0.0, 0.3, 0.4])  # one of two frames, by half a unit
    output.pose_enc = moved
    assert torch.allclose(errors(output, truth)["center"], torch.tensor([0.25, 0.0]), atol=1e-4)


# ---- trainings -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(rooms_root: Path) -> list[Scene]:
    return Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")


def load(scene: Scene, frames: tuple[int, ...] = (0, 4, 8, 12)) -> LoadedScene:
    """With cameras and depth."""
    poses, K = read_cameras(scene.cameras, 48, 56, 56)
    depth = read_depth(scene.depth, frames, num_frames=48, size_hw=(56, 56))
    geometry = SceneGeometry(world_to_camera=poses[list(frames)], K_normalized=K[list(frames)], depth=depth)
    return LoadedScene(frames=Video(scene.video).read(frames), frame_indices=frames, geometry=geometry)


def prepared(loaded: LoadedScene) -> PreparedScene:
    return SceneCollate()([loaded]).scenes[0]


def batch(scenes: list[Scene], frames: tuple[int, ...] = (0, 4, 8, 12)) -> Batch:
    """As the DataModule gives it to a model that needs frames, cameras and depth."""
    return Batch([prepared(load(scene, frames)) for scene in scenes], num_answers=[1] * len(scenes))


def model(**options: Any) -> GeometryPretraining:
    tiny = TinyVGGT(embed_dim=32, depth=4, num_heads=2, features=8, heads=("camera", "depth", "point"))
    return GeometryPretraining(tiny, learning_rates=LearningRates(geometry=3e-3), **options)


def trainer(folder: Path, steps: int, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {"enable_checkpointing": False}
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **(defaults | settings),
    )


def steady(optimizer: torch.optim.Optimizer, total_steps: int) -> ConstantLR:
    """The same rates, whatever the number of steps."""
    return ConstantLR(optimizer, factor=1.0)


def loader(batches: list[Batch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_overfits_a_scene_and_writes_its_weights(
    rooms: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seen = batch(rooms[:1], frames=(0, 8, 20))
    pretraining = model(dense_frames=2)
    run = trainer(tmp_path, steps=80)
    before = run.validate(pretraining, loader([seen]), verbose=False)[0]
    run.fit(pretraining, loader([seen] * 80), loader([seen]))
    after = run.callback_metrics
    assert before["val/rotation_deg"] > 30 and after["val/rotation_deg"] < 12
    assert after["val/depth_relative"] < 0.75 * before["val/depth_relative"]
    assert after["val/center"] < before["val/center"] / 3
    still = before["val/unlearned/rotation_deg"]
    assert after["val/unlearned/rotation_deg"] == still > 2 * after["val/rotation_deg"]
    said = capsys.readouterr().out
    assert (
        f"stays where it is, one depth everywhere: rotation off by {before['val/unlearned/rotation_deg']:.1f}" in said
    )
    assert f"rotation off by {after['val/rotation_deg']:.1f} degrees" in said and "model.safetensors" in said

    tokens = TinyVGGT(str(tmp_path), embed_dim=32, num_heads=2)
    frames = [each.frames.float() / 255 for each in seen.scenes]
    (first,) = tokens(frames, [None])
    pretraining.geometry.vggt.requires_grad_(False)
    assert torch.equal(first.patches, pretraining.geometry(frames, [None])[0].patches)
    poses = seen.scenes[0].geometry.world_to_camera.float()
    true, found = (poses @ invert_se3(poses[0]))[1:], first.world_to_camera[1:]
    assert pose_distance(found, true)[0].rad2deg().max() < 20
    assert pose_distance(invert_se3(found), true)[0].rad2deg().max() > 40  # they are world-to-camera
    assert "depth_head.norm.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_a_resumed_pretraining_draws_the_frames_of_an_uninterrupted_one(rooms_root: Path, tmp_path: Path) -> None:
    pixels = PixelBounds(784, 65536, legacy_folder_resize=False)

    def fit(folder: str, steps: int) -> dict[str, torch.Tensor]:
        data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root)), num_frames=4, pixels=pixels, num_workers=0)
        last, task = tmp_path / folder / "checkpoints/last.ckpt", model(dense_frames=2, scheduler=steady)
        saving: dict[str, Any] = {"callbacks": [Checkpoint(1)], "plugins": [CheckpointFiles()]}
        run = trainer(tmp_path / folder, steps, limit_val_batches=0, enable_checkpointing=True, **saving)
        run.fit(task, data, ckpt_path=str(last) if last.exists() else None)
        return task.state_dict()

    whole = fit("whole", 4)
    torch.manual_seed(1)
    fit("run", 2)
    torch.manual_seed(2)
    resumed = fit("run", 4)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_a_process_without_scenes_logs_the_errors_of_the_others(
    rooms: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[torch.Tensor] = []  # of each process

    def reduce(strategy: Any, own: Any, reduce_op: str) -> Any:
        if not own.ndim:  # the number of batches, for Lightning
            return own
        sums.append(own)
        return sum(sums)

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    run = trainer(tmp_path, steps=1)
    first = run.validate(model(), loader([batch(rooms[:1]), batch(rooms[1:3])]), verbose=False)[0]
    assert run.validate(model(), loader([Batch([])]), verbose=False)[0] == first
    assert len(sums) == 2 and len(first) == 6


def test_losses_are_averaged_over_scenes(rooms: list[Scene]) -> None:
    pretraining = model(dense_frames=1)
    pretraining.log = pretraining.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    scenes = [*batch(rooms[:2]).scenes, *batch(rooms[2:3], frames=(5, 9)).scenes]
    scenes = [replace(scene, draw=number) for number, scene in enumerate(scenes)]  # the same frames, whatever the batch
    asked = [1, 3, 2]  # questions

    def loss(*numbers: int) -> float:
        mixed = Batch([scenes[i] for i in numbers], num_answers=[asked[i] for i in numbers])
        return pretraining.training_step(mixed, 0).item()

    together, alone = loss(0, 1, 2), [loss(i) for i in range(3)]
    assert together == pytest.approx((alone[0] + 3 * alone[1] + 2 * alone[2]) / 6, rel=1e-4)
    assert together == pytest.approx((4 * loss(1, 0) + 2 * alone[2]) / 6, rel=1e-4)
    assert abs(together - sum(alone) / 3) > 1e-3
    asked = [0, 0, 0]  # copies, which keep a process in step
    assert loss(0, 1) == 0


@pytest.mark.parametrize("kind", ["VGGT", "Pi3X"])
def test_the_true_cameras_are_learned_and_compared_whatever_is_told(kind: str, rooms: list[Scene]) -> None:
    task = model() if kind == "VGGT" else GeometryPretraining(tiny_pi3x(), learning_rates=LearningRates(geometry=3e-3))
    task.log = task.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    true = replace(load(rooms[0]), draw=ALL_CONDITIONS)

    def loss(scene: LoadedScene) -> float:
        torch.manual_seed(0)
        return task.training_step(Batch([prepared(scene)], num_answers=[1]), 0).item()

    noisy, lacking = (change(true, lambda: true) for change in (NoisyCameras(40.0, 0.5), MissingCameras(1)))
    for wrong in (noisy, lacking):
        assert (loss(wrong) == loss(true)) == (kind == "VGGT")  # Pi3X reads the wrong poses
        (_, found, _), (_, expected, _) = (
            out for each in (wrong, true) for out in task._outputs(Batch([prepared(each)]))
        )
        assert all(torch.equal(value, getattr(expected, name)) for name, value in vars(found).items())
    # the controls: wrong cameras as targets
    assert loss(replace(noisy, true_geometry=None)) != pytest.approx(loss(noisy), rel=1e-3)
    with pytest.raises(InputError, match="a frame has no camera"):
        loss(replace(lacking, true_geometry=None))


# ---- Pi3X ------------------------------------------------------------------------------------------------------


def tiny_pi3x(path: str | None = None, **options: Any) -> TinyPi3X:
    return TinyPi3X(path, embed_dim=32, depth=2, num_heads=2, seed=0, **options)


def test_pi3x_writes_no_parts_for_conditions_that_it_was_not_told(tmp_path: Path) -> None:
    save_file(tiny_pi3x(conditions=["rays"]).official_state_dict(), tmp_path / "model.safetensors")
    assert tiny_pi3x(path=str(tmp_path), conditions=["rays"]).conditions == ("rays",)
    with pytest.raises(InputError, match="40 missing: depth_emb"):
        tiny_pi3x(path=str(tmp_path))


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_perfect_predictions_of_pi3x_have_no_error(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another world than the dataset's, and in meters: with lengths of another unit there is an error."""
    one, other_world, encoder = scene(), random_poses(1, 7)[0], tiny_pi3x()
    K_px = torch.tensor([[0.8 * WIDTH, 0, 0.55 * WIDTH - 0.5], [0, 1.1 * HEIGHT, 0.4 * HEIGHT - 0.5], [0, 0, 1]])
    local = unproject_depth(one.depth[..., None], torch.eye(4).expand(3, 4, 4), K_px.expand(3, 3, 3))[None] * length
    poses = one.world_to_camera[None] @ other_world
    poses[..., :3, 3] *= length
    frames = torch.tensor([[2, 0]])
    chosen = local[:, [2, 0]]
    output = Pi3XOutput({}, world_to_camera=poses.float(), local_points=chosen, conf=torch.zeros(1, 2, HEIGHT, WIDTH))
    monkeypatch.setattr(encoder.pi3x, "compute", lambda *_: output)
    truth = targets([one])
    given = SceneGeometry(**one.present())
    predicted = encoder.training_output(torch.zeros(1, 3, 3, HEIGHT, WIDTH), [given], frames, None)
    predicted, dense = predicted.in_units(truth.unit), truth.dense_of(frames)
    found = errors(predicted, dense) | losses(predicted, dense)
    assert found["rotation_deg"] < 0.1
    for name in ("center", "depth_relative", "camera"):
        assert (found[name] < 1e-3) == (length == 1), name
    off = (predicted.points - dense.points).norm(dim=-1)[dense.known].max()
    assert (off < 1e-4) == (length == 1)


def test_half_of_the_conditions_are_left_out_in_training_and_none_in_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, told, made = tiny_pi3x(), [], []
    compute = encoder.pi3x.compute

    def compute_once(*arguments: Any) -> Any:
        told.append(arguments[3])
        made.extend([compute(*arguments)] if not made else [])
        return made[0]

    monkeypatch.setattr(encoder.pi3x, "compute", compute_once)
    images, given = torch.rand(1, 2, 3, 28, 42), [dataset_scene(2, 28, 42)]
    for draw in [*range(40), None]:
        encoder.training_output(images, given, torch.tensor([[0]]), None if draw is None else [draw])
    *drawn, validated = [
        tuple(mask is None or bool(mask.all()) for mask in (each.has_ray, each.has_depth, each.has_pose))
        for each in told
    ]
    assert all(each.given == ("rays", "depth", "poses") for each in told)  # each parameter has a gradient
    assert validated == (True, True, True) and len(set(drawn)) == 8


def test_pi3x_trains_with_all_of_its_parameters_and_writes_weights_that_load(
    rooms: list[Scene], tmp_path: Path
) -> None:
    pretraining = GeometryPretraining(tiny_pi3x(), learning_rates=LearningRates(geometry=3e-3))
    seen = batch(rooms[:1], frames=(0, 8, 20))
    seen.scenes[0] = replace(seen.scenes[0], draw=ALL_CONDITIONS)
    before = {name: each.clone() for name, each in pretraining.named_parameters()}
    run = trainer(tmp_path, steps=3)
    run.fit(pretraining, loader([seen] * 3), loader([seen]))
    same = {name for name, each in pretraining.named_parameters() if torch.equal(each, before[name])}
    assert not same and run.callback_metrics["val/center"] < 10
    frames = [each.frames.float() / 255 for each in seen.scenes]
    given = [each.geometry for each in seen.scenes]
    for conditions in (["rays", "depth", "poses"], []):
        (loaded,) = tiny_pi3x(str(tmp_path), conditions=conditions)(frames, given)
        (trained,) = Pi3XEncoder(pretraining.geometry.pi3x, conditions=conditions)(frames, given)
        assert torch.equal(loaded.patches, trained.patches)
    with pytest.raises(InputError, match="misshapen"):
        TinyPi3X(str(tmp_path), embed_dim=64, num_heads=2)


def test_only_the_geometry_trains_and_checkpoints_hold_it() -> None:
    pretraining = model()
    assert all(parameter.requires_grad for parameter in pretraining.parameters())
    assert {name.split(".")[0] for name, _ in pretraining.named_parameters()} == {"geometry"}
    assert saved_names(pretraining, pretraining.restored_by_files) == {
        name for name, _ in pretraining.named_parameters()
    }
    checkpoint = {"state_dict": pretraining.state_dict()}
    pretraining.on_save_checkpoint(checkpoint)
    other = model()
    with torch.no_grad():
        other.geometry.vggt.aggregator.camera_token.zero_()
    other.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(other.geometry.vggt.aggregator.camera_token, pretraining.geometry.vggt.aggregator.camera_token)


def test_bad_options_and_scenes_are_errors(rooms: list[Scene]) -> None:
    with pytest.raises(InputError, match="learning_rates.geometry"):
        GeometryPretraining(learning_rates=LearningRates())
    with pytest.raises(InputError, match="use TinyVGGT"):
        GeometryPretraining(TinyVGGT(heads=()), learning_rates=LearningRates(geometry=1e-3))
    with pytest.raises(InputError, match="dense_frames 0"):
        model(dense_frames=0)
    failed = Batch(batch(rooms[:1]).scenes, failed=[{"scene": "rooms/a", "error": "rooms/a: a.mp4: truncated"}])
    with pytest.raises(InputError, match="^rooms/a: a.mp4: truncated$"):
        model().training_step(failed, 0)
    lost = batch(rooms[:1])
    given = lost.scenes[0].geometry.present()
    seen = torch.arange(len(given["world_to_camera"])) != 1
    lost.scenes[0] = replace(lost.scenes[0], geometry=SceneGeometry(**given | {"has_camera": seen}))
    with pytest.raises(InputError, match=f"^{lost.scenes[0].name}: a frame has no camera"):
        model().training_step(lost, 0)
    odd = batch(rooms[:1])
    odd.scenes[0] = replace(odd.scenes[0], frames=odd.scenes[0].frames[..., :50])
    with pytest.raises(InputError, match="frames of 50 x 56 pixels"):
        model().training_step(odd, 0)
