"""Map-style dataset of scenes: selected frames, their cameras and depth, and the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentations import Augmentation
from datamodules.cameras_file import read_cameras, read_times
from datamodules.depth import read_depth, resize_depth
from datamodules.frame_cache import FrameCache
from datamodules.loaded_scene import LABELS, FramesAs, LoadedScene
from datamodules.question_sampler import TrainingItem
from datamodules.resize import PixelBounds, StillResize, bounds_of_images, resize_frames
from datamodules.samplers import Consecutive, Duplicate, FramePairing, FrameSampler, SceneView
from datamodules.samplers.base import sampled_seconds_per_grid, seconds_per_grid
from datamodules.scenes import Scene
from datamodules.split_requirements import check_scene
from datamodules.video import Video, companion_name
from zoo.cameras import SceneGeometry
from zoo.cameras.scene_geometry import Window
from zoo.errors import SCENE_FAULTS, InputError, describe_fault
from zoo.model_spec import DataRequirements
from zoo.seed import seed_draws
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

MAX_ATTEMPTS = 2
NO_REQUIREMENTS = DataRequirements()


class SceneDataset(Dataset):
    """Scenes by index, with all of their questions, or by (index, epoch), with a random draw of them for training.

    A scene that can't be read is retried once (network storage may stall). After that it is returned with its `error`.

    Args:
        scenes: Scenes of one split.
        sampler: Frame sampler.
        num_frames: Frames per scene.
        bounds: Pixel bounds of resized frames.
        requirements: What a scene must provide; depth is read only if required, or learned to be predicted.
        keep: Whether to keep decoded videos and depth maps in memory.
        frame_pairing: Which frames are merged into one token; consecutive ones if None.
        frames_as: How the frames of a video are shown, see `VideoQADataModule`.
        image_bounds: Pixel bounds of still images; those of the model's own processor if None.
        frame_cache: Keeps resized frames on disk; None decodes them each time.
        still_resize: Resizes still images in place of `image_bounds`; the frame cache keeps none of them.
        augmentation: Changes each loaded scene at random, of a training.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        sampler: FrameSampler,
        num_frames: int,
        bounds: PixelBounds,
        requirements: DataRequirements = NO_REQUIREMENTS,
        keep: bool = False,
        frame_pairing: FramePairing | None = None,
        frames_as: FramesAs = "video",
        image_bounds: PixelBounds | None = None,
        frame_cache: FrameCache | None = None,
        still_resize: StillResize | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.scenes, self.sampler, self.num_frames, self.bounds = scenes, sampler, num_frames, bounds
        self.frame_pairing = frame_pairing or Consecutive()
        self.requirements, self.keep = requirements, keep
        self.frames_as, self.image_bounds, self.frame_cache = frames_as, image_bounds, frame_cache
        self.still_resize, self.augmentation = still_resize, augmentation
        self._kept: dict[int, OpenScene] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: int | TrainingItem) -> LoadedScene:
        """Return a scene with all of its questions, or with those that a training step asks."""
        if isinstance(key, TrainingItem):
            item = key
            seed_draws(item.epoch, item.scene)  # for samplers that draw, whichever process asks which questions
        else:
            item = TrainingItem(key, tuple(range(len(self.scenes[key].questions))))
        scene = self.scenes[item.scene]
        questions = tuple(scene.questions[i] for i in item.questions)
        types = tuple(scene.questions[i].question_type for i in item.step_questions)
        for _ in range(MAX_ATTEMPTS):
            loaded = LoadedScene(
                scene,
                questions,
                is_supervised=not item.is_padding,
                draw=item.draw(scene.name),
                question_types=types,
            )
            try:
                opened = self.open(item.scene)
                self.load(loaded, opened, self._frames(opened, item.epoch))
                return loaded if self.augmentation is None else self.augmentation(loaded)
            except SCENE_FAULTS as error:
                loaded.error = format_scene_error(scene, error)
        return loaded

    @property
    def num_views(self) -> int:
        """The number of frames that the sampler chooses."""
        if self.frames_as == "video":
            return self.frame_pairing.views(self.num_frames, self.sampler)
        return self.sampler.limited(self.num_frames)  # without the rounding of frames to pairs

    def select(self, view: SceneView) -> list[int]:
        """Choose frames of a video, two per temporal patch; a frame that is shown as an image comes twice."""
        if self.frames_as == "video":
            return self.frame_pairing(self.sampler, view, self.num_frames)
        number = min(self.num_views, view.video.num_frames)  # a shorter video has fewer images
        views = self.sampler.pad(self.sampler.select(view, number), number, view)
        return Duplicate().pair(views, view)

    def pair_all(self, opened: OpenScene) -> list[int]:
        """All frames of a scene, two per temporal patch; one that is shown as an image comes twice."""
        as_images = opened.scene.images or self.frames_as != "video"
        pairing = Duplicate() if as_images else self.frame_pairing
        return pairing.pair(range(opened.video.num_frames), opened.view())

    def open(self, index: int) -> OpenScene:
        """Open the video of a scene and read its cameras.

        Cameras are validated even if the model doesn't use them, so that all models are asked the same questions.

        Raises:
            OSError: A file is absent, in one line.
            ValueError: A file is damaged, or required data is missing, in one line.
        """
        if index in self._kept:
            return self._kept[index]
        scene = self.scenes[index]
        check_scene(scene, self.requirements)
        video = Video(scene.images or scene.video)
        world_to_camera = K = None
        times_s, has_times = video.times_s, not video.is_folder
        if scene.cameras is not None:
            world_to_camera, K = read_cameras(scene.cameras, video.num_frames, video.height, video.width)
            if video.is_folder:
                read = read_times(scene.cameras, video.num_frames)
                times_s, has_times = read or times_s, read is not None
        if self.requirements.frame_times and not (has_times or scene.images or self.frames_as != "video"):
            raise InputError(
                f"{scene.video}: no times of the frames, and this model writes them into its prompt: put times_s into "
                f"{companion_name(scene.video)}.cameras.json, or give a video file"
            )
        raw = video.read(range(video.num_frames)) if self.keep else None
        opened = OpenScene(scene, video, world_to_camera, K, times_s, has_times, raw)
        if self.keep:
            self._kept[index] = opened
        return opened

    def _frames(self, opened: OpenScene, epoch: int) -> list[int]:
        return self.pair_all(opened) if opened.scene.images else self.select(opened.view(epoch))

    def _resized(
        self, opened: OpenScene, frames: Sequence[int], bounds: PixelBounds, is_folder: bool
    ) -> UInt8[Tensor, "T 3 h w"]:
        token_px = self.requirements.token_px

        def decode() -> UInt8[Tensor, "T 3 h w"]:
            return resize_frames(opened.read(frames), bounds, is_folder=is_folder, token_px=token_px)

        if self.frame_cache is None:
            return decode()
        entry = self.frame_cache.entry(opened.video, frames, bounds, is_folder=is_folder, token_px=token_px)
        return self.frame_cache.get(entry, decode)

    def _resize_stills(self, loaded: LoadedScene, opened: OpenScene, stills: Sequence[int]) -> Window | None:
        """Set the frames of a scene of still images, two for each; return what of the images they show."""
        assert self.still_resize is not None
        resized = self.still_resize(opened.read(stills), self.requirements.token_px)
        loaded.frames = resized.frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
        if self.requirements.own_frames:
            loaded.geometry_frames = resized.geometry_frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
            loaded.tower_window = resized.tower_window
        return resized.window

    def load(self, loaded: LoadedScene, opened: OpenScene, frames: Sequence[int]) -> None:
        """Load raw frames of an open scene, two per temporal patch, with their times, cameras and depth.

        Raises:
            OSError: A file is absent, in one line.
            ValueError: A file is damaged, or required data is missing, in one line.
        """
        scene = opened.scene
        # 1. Frames: still images, each as a temporal patch of its own, or those of a video
        bounds, is_folder = self.bounds, opened.video.is_folder
        if scene.images or self.frames_as != "video":
            is_folder = False
            loaded.num_images = len(frames) // TEMPORAL_PATCH_SIZE
            loaded.labels = None if scene.images else LABELS.get(self.frames_as)
            bounds = bounds_of_images(self.image_bounds, self.requirements.image_pixels)
        else:
            times_s = [opened.times_s[i] for i in frames]
            sampled = self.requirements.seconds == "sampled_fps"
            loaded.seconds_per_grid = (
                sampled_seconds_per_grid(opened.times_s, len(frames)) if sampled else seconds_per_grid(times_s)
            )
            loaded.frame_times = tuple(times_s) if opened.has_times else None
        window: Window | None = None
        if self.still_resize is not None and loaded.num_images:
            window = self._resize_stills(loaded, opened, frames[::TEMPORAL_PATCH_SIZE])
        else:
            loaded.frames = self._resized(opened, frames, bounds, is_folder)
        loaded.frame_indices = tuple(frames)
        assert loaded.frames is not None
        # 2. Cameras
        loaded.geometry = opened.geometry(frames)
        if self.requirements.cameras and scene.cameras is not None and loaded.geometry is None:
            raise InputError(
                f"{scene.cameras}: none of the frames {frames} has a pose: take a sampler that selects by poses"
            )
        # 3. Depth
        depth, (height, width) = None, loaded.frames.shape[-2:] if window is None else window[:2]
        if self.requirements.depth:
            depth = opened.read_depth(frames, (height, width))
            if not (depth > 0).any():
                raise InputError(f"{scene.depth}: empty, no pixel of frames {frames} has depth: write it again")
        elif "depth" in self.requirements.targets and scene.depth is not None:
            depth, loaded.target_error = _read_target(opened, frames, (height, width))
        if depth is not None:
            loaded.geometry = loaded.geometry or SceneGeometry()
            loaded.geometry.depth = depth
        if window is not None and loaded.geometry is not None:
            loaded.geometry = window.crop(loaded.geometry)


def _read_target(
    opened: OpenScene, frames: Sequence[int], size_hw: tuple[int, int]
) -> tuple[Float32[Tensor, "T H W"] | None, str | None]:
    """Depth that is only predicted, or why it can't be read; retried once."""
    reason = None
    for _ in range(MAX_ATTEMPTS):
        try:
            return opened.read_depth(frames, size_hw), None
        except SCENE_FAULTS as error:
            reason = format_scene_error(opened.scene, error)
    return None, reason


def format_scene_error(scene: Scene, error: Exception) -> str:
    """The error of a scene in one line that contains the scene's name."""
    message = describe_fault(error)
    return message if scene.name.rpartition("/")[2] in message else f"{scene.name}: {message}"


# ---- A scene whose video is opened, with its cameras ----------------------------------------------------------------


@dataclass
class OpenScene:
    """A scene with its video opened and its cameras read.

    Attributes:
        scene: The scene.
        video: Its video.
        world_to_camera: Poses of all raw frames, NaN where unknown; None without cameras.
        K_normalized: Intrinsics of all raw frames; None without cameras.
        times_s: Timestamps of all raw frames in seconds.
        has_times: Whether they are known; a folder of frames without times_s counts one second per frame.
        raw: All raw frames, if videos are kept in memory.
        depths: Depth maps read so far by raw frame, if videos are kept in memory.
        depth: Depth maps of all raw frames, of frames in memory.
    """

    scene: Scene
    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None
    K_normalized: Float[Tensor, "N 3 3"] | None
    times_s: list[float]
    has_times: bool
    raw: UInt8[Tensor, "N 3 H W"] | None = None
    depths: dict[int, Float32[Tensor, "H W"]] = field(default_factory=dict)
    depth: Float32[Tensor, "N H W"] | None = None

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        """Raw frames."""
        return self.video.read(indices) if self.raw is None else self.raw[list(indices)]

    def read_depth(self, indices: Sequence[int], size_hw: tuple[int, int]) -> Float32[Tensor, "T H W"]:
        """Depth of raw frames, see `datamodules.depth.read_depth`; each frame is read once if videos are kept."""
        if self.depth is not None:
            return resize_depth(self.depth[list(indices)], size_hw)
        assert self.scene.depth is not None
        depths = {} if self.raw is None else self.depths
        unread = [i for i in dict.fromkeys(indices) if i not in depths]
        if unread:
            maps = read_depth(self.scene.depth, unread, num_frames=self.video.num_frames, size_hw=size_hw)
            depths.update(zip(unread, maps, strict=True))
        return torch.stack([depths[i] for i in indices])

    def view(self, epoch: int = 0) -> SceneView:
        """The input of a frame sampler."""
        scene = self.scene
        return SceneView(self.video, self.world_to_camera, self.K_normalized, scene.depth, epoch, name=scene.name)

    def geometry(self, indices: Sequence[int]) -> SceneGeometry | None:
        """Cameras of raw frames, None if no frame has one; a frame without has the identity and `has_camera` False."""
        if self.world_to_camera is None or self.K_normalized is None:
            return None
        poses, K = self.world_to_camera[list(indices)], self.K_normalized[list(indices)]
        has_camera = poses.isfinite().flatten(1).all(1)
        poses = torch.where(has_camera[:, None, None], poses, torch.eye(4, dtype=poses.dtype))
        return SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=has_camera) if has_camera.any() else None
