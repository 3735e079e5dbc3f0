"""Scenes read from disk: frames chosen, decoded and resized, their cameras, and the questions to ask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.cameras_file import read_cameras, read_times
from datamodules.collate import LoadedScene
from datamodules.depth import read_depth
from datamodules.resize import PixelBounds, resize_frames
from datamodules.samplers import Consecutive, FramePairing, FrameSampler, SceneView
from datamodules.samplers.frame_pairing import seconds_per_grid
from datamodules.scenes import Scene
from datamodules.video import Video
from zoo.errors import SCENE_FAULTS, InputError
from zoo.geometry.base import SceneGeometry
from zoo.requirements import DataRequirements

TRIES = 2
NOTHING = DataRequirements()


@dataclass
class OpenScene:
    """A scene whose video and cameras were found sound; `raw` holds all of its frames if they are kept."""

    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None  # of every raw frame, float64; NaN where it isn't known
    K_normalized: Float[Tensor, "N 3 3"] | None
    raw: UInt8[Tensor, "N 3 H W"] | None
    times_s: list[float]  # when each raw frame was taken
    depths: dict[int, Float32[Tensor, "H W"]] = field(default_factory=dict)  # of raw frames, where those are kept

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        return self.video.read(indices) if self.raw is None else self.raw[list(indices)]

    def read_depth(self, file: Path, indices: Sequence[int], size_hw: tuple[int, int]) -> Float32[Tensor, "T H W"]:
        """See `datamodules.depth.read_depth`; each frame's once."""
        known = {} if self.raw is None else self.depths
        absent = [i for i in dict.fromkeys(indices) if i not in known]
        if absent:
            maps = read_depth(file, absent, num_frames=self.video.num_frames, size_hw=size_hw)
            known.update(zip(absent, maps, strict=True))
        return torch.stack([known[i] for i in indices])

    def view(self, scene: Scene, epoch: int = 0) -> SceneView:
        """What a sampler may look at."""
        return SceneView(self.video, self.world_to_camera, self.K_normalized, scene.depth, epoch, name=scene.name)

    def geometry(self, indices: Sequence[int]) -> SceneGeometry | None:
        """The cameras of some frames; an unknown pose is an identity that says so."""
        if self.world_to_camera is None or self.K_normalized is None:
            return None
        poses, K = self.world_to_camera[list(indices)], self.K_normalized[list(indices)]
        known = poses.isfinite().flatten(1).all(1)
        poses = torch.where(known[:, None, None], poses, torch.eye(4, dtype=poses.dtype))
        return SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=known)


class SceneDataset(Dataset):
    """Reads scenes: (scene, epoch) for training, which draws some questions, or a scene with all of them.

    A scene that can't be read is tried once more (a network's folder may stall), then comes with its `error`, and the
    rest goes on.

    Args:
        scenes: of a split.
        sampler: chooses num_frames frames of each.
        bounds: of the frames' size.
        requirements: a scene without what the model requires is an error.
        questions_per_scene: how many questions training draws of a scene, anew each epoch.
        seed: of that draw.
        keep: keep decoded videos in memory, and what is read of their depth.
        frame_pairing: which frames share a token; consecutive ones if None.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        sampler: FrameSampler,
        num_frames: int,
        bounds: PixelBounds,
        requirements: DataRequirements = NOTHING,
        questions_per_scene: int = 1,
        seed: int = 0,
        keep: bool = False,
        frame_pairing: FramePairing | None = None,
    ):
        self.frame_pairing = frame_pairing or Consecutive()
        self.scenes, self.sampler, self.num_frames, self.bounds = scenes, sampler, num_frames, bounds
        self.requirements = requirements
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
        for _ in range(TRIES):
            loaded = LoadedScene(scene, questions)
            try:
                self._fill(loaded, self.open(index), epoch or 0)
                break
            except SCENE_FAULTS as error:
                loaded.error = format_scene_error(scene, error)
        return loaded

    def open(self, index: int) -> OpenScene:
        """The video and the cameras of a scene, found sound, whether or not the model reads the cameras: one that
        does and one that doesn't are to be asked the same questions.

        Raises OSError or ValueError, in one line, where they are not."""
        if index in self._kept:
            return self._kept[index]
        scene = self.scenes[index]
        if self.requirements.cameras and scene.cameras is None:
            raise InputError(
                f"{scene.video}: no cameras, and this model needs them: put {scene.video.stem}.cameras.json beside it, "
                "train with a VGGT that finds them (--model.geometry PretrainedVGGT "
                "--model.camera_source auto), or take a "
                "model that does without (--config qwen25_vl.yaml)"
            )
        if self.requirements.depth and scene.depth is None:
            raise InputError(
                f"{scene.video}: no depth, and this model needs it: put a folder {scene.video.stem}.depth of 16-bit "
                "images beside it (DatasetGeometry does without: --model.geometry.depth false)"
            )
        video = Video(scene.video)
        world_to_camera = K = None
        if scene.cameras is not None:
            world_to_camera, K = read_cameras(scene.cameras, video.num_frames, video.height, video.width)
        times_s = video.times_s
        if video.is_folder and scene.cameras is not None:
            times_s = read_times(scene.cameras, video.num_frames) or times_s
        raw = video.read(range(video.num_frames)) if self.keep else None
        opened = OpenScene(video, world_to_camera, K, raw, times_s)
        if self.keep:
            self._kept[index] = opened
        return opened

    def _fill(self, loaded: LoadedScene, opened: OpenScene, epoch: int) -> None:
        video = opened.video
        chosen = self.frame_pairing(self.sampler, opened.view(loaded.scene, epoch), self.num_frames)
        loaded.frames = resize_frames(opened.read(chosen), self.bounds, is_folder=video.is_folder)
        loaded.frame_indices = tuple(chosen)
        loaded.seconds_per_grid = seconds_per_grid([opened.times_s[i] for i in chosen])
        loaded.geometry = opened.geometry(chosen)
        poses = opened.world_to_camera
        if self.requirements.cameras and poses is not None and poses[chosen].isnan().flatten(1).any(1).all():
            raise InputError(
                f"{loaded.scene.cameras}: none of the frames {chosen} has a pose: take a sampler that chooses by poses"
            )
        if self.requirements.depth and loaded.scene.depth is not None:
            height, width = loaded.frames.shape[-2:]
            loaded.geometry = loaded.geometry or SceneGeometry()
            depth = opened.read_depth(loaded.scene.depth, chosen, (height, width))
            if not (depth > 0).any():
                raise InputError(f"{loaded.scene.depth}: empty, no pixel of frames {chosen} has depth: write it again")
            loaded.geometry.depth = depth


def format_scene_error(scene: Scene, error: Exception) -> str:
    """What went wrong with a scene, in a line that names it once."""
    said = str(error) or type(error).__name__
    return said if scene.name.rpartition("/")[2] in said else f"{scene.name}: {said}"
