"""Pictures: what is on them, and when TensorBoard gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks.gallery import GalleryCallback, log_table
from datamodules import PixelBounds, Rooms
from datamodules.dataset import SceneDataset
from datamodules.samplers import DatasetDepth, PoseFarthestSampler, SceneView
from datamodules.samplers.base import PointMaps, PointSource
from datamodules.scenes import Scene
from datamodules.video import Video
from evaluation.drawings import camera_map, compute_coverage, contact_sheet
from tests.conftest import ROOMS

TINY = PixelBounds(784, 65536, legacy_folder_resize=False)


@pytest.fixture
def rooms(rooms_root: Path) -> SceneDataset:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("val")
    return SceneDataset(scenes, PoseFarthestSampler(), 6, TINY)


@pytest.fixture(scope="module")
def room_map(rooms_root: Path) -> np.ndarray:
    """The map of the first room, which takes half a second."""
    (room, *_) = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("val")
    return np.asarray(camera_map(SceneDataset([room], PoseFarthestSampler(), 6, TINY).open(0), [0, 9]))


def test_a_contact_sheet_holds_every_frame_in_its_place() -> None:
    frames = torch.zeros(6, 3, 40, 80, dtype=torch.uint8)
    for i in range(6):
        frames[i, i % 3] = 200
    sheet = np.asarray(contact_sheet(frames, range(6), columns=4)).astype(int)
    for i in range(6):
        expected = np.where(np.arange(3) == i % 3, 200, 0)
        assert (np.abs(sheet - expected).max(-1) <= 2).sum() >= 2 * 160 * 80  # two frames have each color
    assert sheet.shape[0] > 2 * 80 and sheet.shape[1] > 4 * 160


def view(poses: torch.Tensor) -> SceneView:
    video = Video.__new__(Video)
    video.num_frames, video.path, video.height, video.width = len(poses), Path("clip.mp4"), 6, 8
    return SceneView(video, poses)


def test_the_map_shows_where_cameras_are_seen_from_above() -> None:
    """Level cameras on a line along the world's x, which looks along y with z up: the path is level on the map."""
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, :3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    poses[:, 0, 3] = -torch.arange(5.0)
    ink = np.asarray(camera_map(view(poses), [0, 4])).astype(int)[:, :700]  # without the color bar
    blue = np.argwhere(ink[..., 2] - ink[..., 0] > 100).mean(0)  # the first view
    orange = np.argwhere(ink[..., 0] - ink[..., 2] > 100).mean(0)  # the last one
    assert blue[1] < orange[1] - 300 and abs(blue[0] - orange[0]) < 20
    poses[3] = torch.nan
    gap = np.asarray(camera_map(view(poses), [0, 4])).astype(int)[:, :700]
    assert (gap != ink).any() and np.isfinite(gap).all()
    with pytest.raises(ValueError, match="no frame has a pose"):
        camera_map(view(torch.full_like(poses, torch.nan)), [0])


def test_a_video_without_cameras_is_drawn_as_the_samplers_geometry_saw_it(
    rooms: SceneDataset, room_map: np.ndarray, tmp_path: Path
) -> None:
    whole = rooms.open(0)

    class Seen(PointSource):
        """Knows the video's cameras and depth by itself, as VGGT would."""

        def points(self, scene: SceneView) -> PointMaps:
            return DatasetDepth().points(replace(whole, frames=scene.frames))

    bare = SceneView(whole.video)
    assert np.array_equal(camera_map(bare, [0, 9], geometry=Seen()), room_map)
    assert compute_coverage(replace(whole, depth=tmp_path), [0]) is None  # depth that can't be read stops no run
    with pytest.raises(ValueError, match="no frame has a pose"):
        camera_map(bare, [0, 20])


class Nothing(LightningModule):
    """A model without a thing to validate."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def validate(gallery: GalleryCallback, scenes: SceneDataset, logger: Logger) -> None:
    """Validates twice."""
    trainer = Trainer(
        accelerator="cpu", logger=logger, callbacks=[gallery], enable_progress_bar=False, enable_model_summary=False
    )
    for _ in range(2):
        trainer.validate(Nothing(), DataLoader(scenes, batch_size=1, collate_fn=len), verbose=False)


def test_tensorboard_gets_the_first_validation_scenes_once(rooms: SceneDataset, tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    validate(GalleryCallback(scenes=1), rooms, logger)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    name, _ = (scene.name for scene in rooms.scenes)
    assert sorted(events.Tags()["images"]) == [f"{kind}/{name}" for kind in ("frames", "path")]
    assert len(events.Images(f"frames/{name}")) == 1
    # a scene that can't be read has no picture
    broken = [Scene("mine/clip", tmp_path / "absent.mp4", ())]
    logger = TensorBoardLogger(str(tmp_path / "broken"), name="", version="")
    validate(GalleryCallback(), SceneDataset(broken, PoseFarthestSampler(), 4, TINY), logger)
    logger.experiment.flush()
    assert EventAccumulator(str(tmp_path / "broken")).Reload().Tags()["images"] == []


class RecordedWandb(WandbLogger):
    """Keeps what W&B would get; nothing is installed or sent."""

    save_dir = name = version = "recorded"
    experiment: Any = None

    def __init__(self) -> None:
        self.images: dict[str, list[Image.Image]] = {}
        self.texts: dict[str, tuple[list[str], list[list[str]]]] = {}

    def log_image(self, key: str, images: list[Image.Image], **_: Any) -> None:
        self.images[key] = images

    def log_text(self, key: str, columns: list[str], data: list[list[str]], **_: Any) -> None:
        self.texts[key] = columns, data

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def finalize(self, status: str) -> None: ...


def test_wandb_gets_the_pictures_and_answers(rooms: SceneDataset, tmp_path: Path) -> None:
    wandb, board = RecordedWandb(), TensorBoardLogger(str(tmp_path), name="", version="")
    validate(GalleryCallback(scenes=1), rooms, wandb)
    name = rooms.scenes[0].name
    assert list(wandb.images) == [f"frames/{name}", f"path/{name}"]
    trainer = Trainer(accelerator="cpu", logger=[wandb, board], enable_checkpointing=False)
    log_table(trainer, "answers", ["question", "prediction"], [["how\nmany | where?", "3"]])
    assert wandb.texts == {"answers": (["question", "prediction"], [["how\nmany | where?", "3"]])}
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("answers/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines() == [
        "| question | prediction |",
        "| --- | --- |",
        "| how many \\| where? | 3 |",
    ]
