"""VGGT pretraining: it overfits rooms, and writes weights that `TinyVGGT` loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader

from callbacks import Checkpoint
from callbacks.checkpoint import CheckpointFiles
from datamodules import PixelBounds, Rooms, VideoQADataModule
from datamodules.cameras_file import read_cameras
from datamodules.depth import read_depth
from datamodules.scenes import Scene
from datamodules.video import Video
from tests.conftest import ROOMS
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.errors import InputError
from zoo.geometry import SceneGeometry, TinyVGGT
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks.base import LearningRates
from zoo.tasks.vggt_pretraining import VGGTPretraining
from zoo.weights.checkpoint import saved_names


@pytest.fixture(scope="module")
def rooms(rooms_root: Path) -> list[Scene]:
    return Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")


def batch(scenes: list[Scene], frames: tuple[int, ...] = (0, 4, 8, 12)) -> Batch:
    """As the DataModule gives it to a model that needs frames, cameras and depth."""
    found = []
    for scene in scenes:
        poses, K = read_cameras(scene.cameras, 48, 56, 56)
        depth = read_depth(scene.depth, frames, num_frames=48, size_hw=(56, 56))
        geometry = SceneGeometry(world_to_camera=poses[list(frames)], K_normalized=K[list(frames)], depth=depth)
        shown = Video(scene.video).read(frames)
        found.append(LoadedScene(grid_thw=(len(frames) // 2, 4, 4), frames=shown, geometry=geometry))
    return Batch(found, num_answers=[1] * len(found))


def model(**options: Any) -> VGGTPretraining:
    tiny = TinyVGGT(embed_dim=32, depth=4, num_heads=2, features=8, heads=("camera", "depth", "point"))
    return VGGTPretraining(tiny, learning_rates=LearningRates(geometry=3e-3), **options)


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
        VGGTPretraining(learning_rates=LearningRates())
    with pytest.raises(InputError, match="without heads can't be trained"):
        VGGTPretraining(TinyVGGT(heads=()), learning_rates=LearningRates(geometry=1e-3))
    with pytest.raises(InputError, match="dense_frames 0"):
        model(dense_frames=0)
    failed = Batch(batch(rooms[:1]).scenes, failed=[{"scene": "rooms/a", "error": "rooms/a: a.mp4: truncated"}])
    with pytest.raises(InputError, match="^rooms/a: a.mp4: truncated$"):
        model().training_step(failed, 0)
    odd = batch(rooms[:1])
    odd.scenes[0] = replace(odd.scenes[0], frames=odd.scenes[0].frames[..., :50])
    with pytest.raises(InputError, match="frames of 50 x 56 pixels"):
        model().training_step(odd, 0)
