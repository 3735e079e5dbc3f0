"""Enlarged frames with corrected cameras: each pixel keeps its ray and its depth, and a draw gives one scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from datamodules import PixelBounds, RandomFocalLength, Rooms, UniformSampler, VideoQADataModule
from datamodules.augmentations import enlarged
from datamodules.dataset import SceneDataset
from datamodules.question_sampler import TrainingItem
from tests.conftest import ROOMS
from tests.zoo.asking import scene
from zoo.cameras.rays import patch_directions
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.model_spec import ModelSpec
from zoo.sequences.loaded_scene import LoadedScene

HEIGHT, WIDTH = 56, 84


def made(K: tuple[float, float, float, float]) -> LoadedScene:
    """Frames that show the direction of each pixel's ray, times 40 plus 128, and depth that grows to the right."""
    fx, fy, cx, cy = K
    intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).repeat(2, 1, 1)
    rays = patch_directions(intrinsics, HEIGHT, WIDTH)
    frames = (128 + 40 * rays).permute(0, 3, 1, 2).round().to(torch.uint8)
    depth = 1 + torch.arange(WIDTH).expand(2, HEIGHT, WIDTH) / WIDTH
    geometry = SceneGeometry(world_to_camera=torch.eye(4).repeat(2, 1, 1), K_normalized=intrinsics, depth=depth)
    return replace(scene("made"), frames=frames, geometry=geometry)


def error(changed: LoadedScene, K: Tensor) -> float:
    """Of the rays that frames show, in units of the color, by intrinsics; without the outermost pixels."""
    assert changed.frames is not None
    expected = 128 + 40 * patch_directions(K, HEIGHT, WIDTH).permute(0, 3, 1, 2)
    return float((changed.frames - expected)[..., 2:-2, 2:-2].abs().max())


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 1.0), (0.8, 0.3)])
@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_each_pixel_keeps_its_ray_and_its_depth(factor: float, place: tuple[float, float]) -> None:
    given = made((0.9, 1.2, 0.04, -0.03))
    changed = enlarged(given, factor, place)
    assert given.geometry is not None and changed.geometry is not None and changed.frames is not None
    K, own = changed.geometry.K_normalized, given.geometry.K_normalized
    assert K is not None and own is not None and changed.geometry.depth is not None
    assert error(changed, K) < 1.1  # rounded twice
    assert K[0, 0, 0] / own[0, 0, 0] == pytest.approx(factor, rel=0.02)
    if factor > 1:
        assert error(changed, own) > 3  # the control: uncorrected intrinsics
        columns = round(WIDTH / factor)
        left = round(place[0] * (WIDTH - columns))
        shown = changed.geometry.depth[0, 0, [0, -1]]
        torch.testing.assert_close(shown, 1 + torch.tensor([left, left + columns - 1]) / WIDTH)
    else:
        assert torch.equal(changed.frames, given.frames) and torch.allclose(K, own)
    assert changed.geometry.world_to_camera is given.geometry.world_to_camera
    alone = enlarged(replace(given, geometry=None), factor, place)  # a dataset without cameras
    assert alone.frames is not None and torch.equal(alone.frames, changed.frames) and alone.geometry is None


def test_training_scenes_change_by_their_draw(rooms_root: Path) -> None:
    rooms = Rooms(scenes=ROOMS, root=str(rooms_root)).scenes("train")
    plain, augmented = (SceneDataset(rooms, UniformSampler(), 4, PixelBounds()) for _ in range(2))
    augmented.augmentation = RandomFocalLength(1.5)
    items = [TrainingItem(0, (0,), epoch) for epoch in (0, 0, 1)]

    def focal(dataset: SceneDataset, item: TrainingItem) -> Tensor:
        loaded = dataset[item]
        assert loaded.geometry is not None and loaded.geometry.K_normalized is not None
        return loaded.geometry.K_normalized[:, 0, 0]

    own, first, again, other = focal(plain, items[0]), *(focal(augmented, item) for item in items)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all((own < each).all() and (each < 1.52 * own).all() for each in (first, other))


def test_scenes_of_validations_and_tests_are_not_augmented(rooms_root: Path, tmp_path: Path) -> None:
    task = SimpleNamespace(model_spec=lambda training=False: ModelSpec())
    position = dict(global_rank=0, world_size=1, ckpt_path=None, is_global_zero=True, global_step=0)
    data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root)), augmentation=RandomFocalLength())
    trainer: Any = SimpleNamespace(lightning_module=task, default_root_dir=tmp_path, limit_test_batches=1.0, **position)
    data.trainer = trainer
    train, *others = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert train.dataset.augmentation is data.augmentation is not None
    assert all(loader.dataset.augmentation is None for loader in others)


@pytest.mark.parametrize("stage", [TrainerFn.FITTING, TrainerFn.TESTING])
def test_a_test_says_that_it_augments_nothing(stage: TrainerFn, caplog: pytest.LogCaptureFixture) -> None:
    data = VideoQADataModule(augmentation=RandomFocalLength())
    data.trainer = cast(Any, SimpleNamespace(state=SimpleNamespace(fn=stage), limit_val_batches=0))
    data.source.prepare_splits = lambda splits: None  # type: ignore[method-assign]
    with caplog.at_level("INFO"):
        data.prepare_data()
    assert ("acts in fit alone" in caplog.text) == (stage == TrainerFn.TESTING)


def test_a_factor_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="longest 1.0: a factor above 1"):
        RandomFocalLength(1.0)
