"""Scenes read from disk: frames chosen, decoded and resized, their cameras, and the questions to ask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.cameras_file import read_cameras
from datamodules.collate import LoadedScene
from datamodules.depth import read_depth
from datamodules.resize import PixelBounds, resize_frames
from datamodules.samplers import Consecutive, FrameSampler, Pairing, SceneView
from datamodules.samplers.pairing import seconds_per_grid
from datamodules.scenes import Scene
from datamodules.video import Video
from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry


@dataclass
class OpenScene:
    """A scene whose video and cameras were found sound; `raw` holds all of its frames if they are kept."""

    video: Video
    cameras: Cameras | None  # of every raw frame, float64
    raw: UInt8[Tensor, "N 3 H W"] | None

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        return self.video.read(indices) if self.raw is None else self.raw[list(indices)]

    def view(self, scene: Scene, epoch: int = 0) -> SceneView:
        """What a sampler may look at."""
        poses = None if self.cameras is None else self.cameras.world_to_camera[0]
        K = None if self.cameras is None else self.cameras.K_normalised[0]
        return SceneView(self.video, poses, K, scene.depth, epoch, name=scene.name)


class SceneDataset(Dataset):
    """Reads scenes: (scene, epoch) for training, which draws some questions, or a scene with all of them.

    A scene that can't be read comes with its `error`, and the rest goes on.

    Args:
        scenes: of a split.
        sampler: chooses num_frames frames of each.
        bounds: of the frames' size.
        needs_cameras: a scene without is an error.
        needs_depth: likewise.
        questions_per_scene: how many questions training draws of a scene, anew each epoch.
        seed: of that draw.
        keep: keep decoded videos in memory.
        pairing: which frames share a token; consecutive ones if None.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        sampler: FrameSampler,
        num_frames: int,
        bounds: PixelBounds,
        needs_cameras: bool,
        needs_depth: bool = False,
        questions_per_scene: int = 1,
        seed: int = 0,
        keep: bool = False,
        pairing: Pairing | None = None,
    ):
        self.pairing = pairing or Consecutive()
        self.scenes, self.sampler, self.num_frames, self.bounds = scenes, sampler, num_frames, bounds
        self.needs_cameras, self.needs_depth = needs_cameras, needs_depth
        self.questions_per_scene, self.seed = questions_per_scene, seed
        self.keep = keep
        self._kept: dict[int, OpenScene] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: int | tuple[int, int]) -> LoadedScene:
        index, epoch = (key, None) if isinstance(key, int) else key
        scene = self.scenes[index]
        questions = scene.questions
        if epoch is not None:
            draw = random.Random(f"{self.seed}/{epoch}/{scene.name}")
            questions = tuple(draw.sample(questions, min(self.questions_per_scene, len(questions))))
        loaded = LoadedScene(scene, questions)
        try:
            self._fill(loaded, self.open(index), epoch or 0)
        except (OSError, ValueError) as error:
            loaded.error = str(error)
        return loaded

    def open(self, index: int) -> OpenScene:
        """The video and the cameras of a scene, found sound.

        Raises OSError or ValueError, in one line, where they are not."""
        if index in self._kept:
            return self._kept[index]
        scene = self.scenes[index]
        if self.needs_cameras and scene.cameras is None:
            raise InputError(
                f"{scene.video}: no cameras, so the camera encoding has nothing to act on: put "
                f"{scene.video.stem}.cameras.json beside it, or take a model without an encoding"
            )
        if self.needs_depth and scene.depth is None:
            raise InputError(
                f"{scene.video}: no depth: put a folder {scene.video.stem}.depth of 16-bit images beside it, or take a "
                "geometry without (--model.geometry.depth false)"
            )
        video = Video(scene.video)
        cameras = None
        if scene.cameras is not None:
            world_to_camera, K = read_cameras(scene.cameras, video.num_frames, video.height, video.width)
            cameras = Cameras(world_to_camera[None], K[None])
        opened = OpenScene(video, cameras, video.read(range(video.num_frames)) if self.keep else None)
        if self.keep:
            self._kept[index] = opened
        return opened

    def _fill(self, loaded: LoadedScene, opened: OpenScene, epoch: int) -> None:
        video, cameras = opened.video, opened.cameras
        chosen = self.pairing(self.sampler, opened.view(loaded.scene, epoch), self.num_frames)
        loaded.frames = resize_frames(opened.read(chosen), self.bounds, is_folder=video.is_folder)
        loaded.frame_indices = tuple(chosen)
        loaded.seconds_per_grid = seconds_per_grid(chosen, video.fps)
        if cameras is not None:
            loaded.geometry = SceneGeometry(
                world_to_camera=cameras.world_to_camera[0, chosen], K_normalised=cameras.K_normalised[0, chosen]
            )
        if self.needs_depth and loaded.scene.depth is not None:
            height, width = loaded.frames.shape[-2:]
            loaded.geometry = loaded.geometry or SceneGeometry()
            loaded.geometry.depth = read_depth(
                loaded.scene.depth, chosen, num_frames=video.num_frames, size_hw=(height, width)
            )
