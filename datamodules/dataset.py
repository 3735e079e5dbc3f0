"""Map-style dataset of scenes: selected frames, their cameras and depth, and the questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentations import Augmentation
from datamodules.cameras_file import read_cameras, read_times
from datamodules.chat_format import LABELS, FramesAs
from datamodules.depth import read_depth, resize_depth
from datamodules.frame_cache import FrameCache
from datamodules.question_sampler import TrainingItem
from datamodules.resize import PixelBounds, StillResize, bounds_of_images, resize_frames
from datamodules.samplers import Consecutive, Duplicate, FramePairing, FrameSampler, SceneView
from datamodules.samplers.base import sampled_seconds_per_grid, seconds_per_grid
from datamodules.scenes import Scene
from datamodules.video import Video, companion_name
from zoo.cameras import SceneGeometry
from zoo.cameras.scene_geometry import Window
from zoo.errors import SCENE_FAULTS, InputError, describe_fault
from zoo.model_spec import ModelSpec
from zoo.seed import resolve_seed, seed_draws
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene

MAX_ATTEMPTS = 2
NO_MODEL = ModelSpec()


class SceneDataset(Dataset):
    """Scenes by index with all of their questions, or by `TrainingItem` with the questions of a training step.

    If a scene can't be read, reading is retried once, because network storage may stall. Then the scene is returned
    with its `error`. So is a scene that is not read in time.

    Args:
        scenes: Scenes of one split.
        sampler: Frame sampler.
        num_frames: Frames per scene.
        bounds: Pixel bounds of resized frames.
        spec: What the model needs. Depth is read only if the model requires it or learns to predict it.
        keep: Keep decoded videos and depth maps in memory.
        frame_pairing: Chooses which frames are merged into one token. None merges consecutive frames.
        frames_as: How the frames of a video are shown, see `VideoQADataModule`.
        image_bounds: Pixel bounds of images. None uses those of the model's own processor.
        frame_cache: Keeps resized frames on disk. None decodes them each time.
        still_resize: Resizes images in place of `image_bounds`. The frame cache does not keep these images.
        augmentation: Random change of each loaded training scene.
        timeout_s: Seconds for reading a scene. None waits forever.
        shows_damage: Whether damaged frames of a video are shown. Otherwise they are an error of the scene.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        sampler: FrameSampler,
        num_frames: int,
        bounds: PixelBounds,
        spec: ModelSpec = NO_MODEL,
        keep: bool = False,
        frame_pairing: FramePairing | None = None,
        frames_as: FramesAs = "video",
        image_bounds: PixelBounds | None = None,
        frame_cache: FrameCache | None = None,
        still_resize: StillResize | None = None,
        augmentation: Augmentation | None = None,
        timeout_s: float | None = None,
        shows_damage: bool = False,
    ):
        self.scenes, self.sampler, self.num_frames, self.bounds = scenes, sampler, num_frames, bounds
        self.frame_pairing = frame_pairing or Consecutive()
        self.spec, self.keep = spec, keep
        self.frames_as, self.image_bounds, self.frame_cache = frames_as, image_bounds, frame_cache
        self.still_resize, self.augmentation, self.timeout_s = still_resize, augmentation, timeout_s
        self.shows_damage = shows_damage
        self._views: dict[int, SceneView] = {}  # open scenes, if `keep`; `_depths` holds their depth
        self._depths: dict[tuple[Path, int], Float32[Tensor, "H W"]] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: int | TrainingItem) -> LoadedScene:
        """Return a scene with all of its questions, or with the questions of a training step."""
        if isinstance(key, TrainingItem):
            item = key
            seed_draws(item.epoch, item.scene)  # random samplers draw the same frames in every process
        else:
            item = TrainingItem(key, tuple(range(len(self.scenes[key].questions))))
        scene = self.scenes[item.scene]
        asked: dict[str, Any] = {
            "questions": tuple(scene.questions[i] for i in item.questions),
            "question_types": tuple(scene.questions[i].question_type for i in item.step_questions),
            "is_supervised": not item.is_padding,
            "draw": item.draw(scene.name),
            "step": item.step,
        }

        if scene.is_text:
            return LoadedScene(scene.name, **asked)

        def read() -> LoadedScene:
            reason = ""
            for _ in range(MAX_ATTEMPTS):
                try:
                    view = replace(self.open(item.scene), epoch=item.epoch)
                    frames = self.pair_all(view, are_images=True) if scene.images else self.select(view)
                    loaded = replace(self.load(view, frames, are_images=bool(scene.images)), **asked)
                    if self.augmentation is None:
                        return loaded
                    return check_depth(self.augmentation(loaded), self.spec, view)
                except SCENE_FAULTS as error:
                    reason = format_scene_error(scene.name, error)
            return LoadedScene(scene.name, **asked, error=reason)

        if (loaded := in_time(read, self.timeout_s)) is not None:
            return loaded
        slow = InputError(
            f"{scene.video}: not read within {self.timeout_s:g} s: copy or export it again, see that its storage "
            "answers, or raise --data.timeout_s"
        )
        return LoadedScene(scene.name, **asked, error=format_scene_error(scene.name, slow))

    @property
    def num_views(self) -> int:
        """The number of frames that the sampler selects."""
        if self.frames_as == "video":
            return self.frame_pairing.views(self.num_frames, self.sampler)
        return self.sampler.limited(self.num_frames)  # not rounded to pairs

    def num_patches(self, scene: Scene) -> int:
        """Return the number of temporal patches of a scene, as far as it is known before the scene is read."""
        if scene.images or scene.is_text:
            return len(scene.images)
        return self.num_frames // TEMPORAL_PATCH_SIZE if self.frames_as == "video" else self.num_views

    def select(self, view: SceneView) -> list[int]:
        """Select frames of a video, two per temporal patch. A frame that is shown as an image is repeated."""
        if self.frames_as == "video":
            return self.frame_pairing(self.sampler, view, self.num_frames)
        number = min(self.num_views, view.video.num_frames)  # a shorter video has fewer images
        views = self.sampler.pad(self.sampler.select(view, number), number, view)
        return Duplicate().pair(views, view)

    def pair_all(self, view: SceneView, *, are_images: bool) -> list[int]:
        """Return all frames of a scene, two per temporal patch. A frame that is shown as an image is repeated."""
        pairing = Duplicate() if are_images or self.frames_as != "video" else self.frame_pairing
        return pairing.pair(range(view.video.num_frames), view)

    def open(self, index: int) -> SceneView:
        """Open the video of a scene and read its cameras.

        Cameras are validated even if the model doesn't use them, so that all models get the same questions.

        Raises:
            OSError: A file is missing.
            ValueError: A file is damaged, or required data is missing.
        """
        if index in self._views:
            return self._views[index]
        scene = self.scenes[index]
        check_scene(scene, self.spec)
        video = Video(scene.images or scene.video, shows_damage=self.shows_damage)
        world_to_camera = K = None
        times_s = None if video.is_folder else video.times_s
        if scene.cameras is not None:
            world_to_camera, K = read_cameras(scene.cameras, video.num_frames, video.height, video.width)
            if video.is_folder:
                times_s = read_times(scene.cameras, video.num_frames)
        if self.spec.requires_frame_times and times_s is None and not (scene.images or self.frames_as != "video"):
            raise InputError(
                f"{scene.video}: no times of the frames, and this model writes them into its prompt: put times_s into "
                f"{companion_name(scene.video)}.cameras.json, or give a video file"
            )
        view = SceneView(
            video.in_memory() if self.keep else video, world_to_camera, K, scene.depth, name=scene.name, times_s=times_s
        )
        if self.keep:
            self._views[index] = view
        return view

    def load(self, view: SceneView, frames: Sequence[int], *, are_images: bool) -> LoadedScene:
        """Load raw frames of an open scene, two per temporal patch, with their times, cameras and depth.

        Args:
            view: The open scene.
            frames: Indices of the raw frames.
            are_images: Whether the frames are separate images rather than frames of a video.

        Raises:
            OSError: A file is missing.
            ValueError: A file is damaged, or required data is missing.
        """
        spec, video = self.spec, view.video
        loaded: dict[str, Any] = {"frame_indices": tuple(frames)}
        # 1. Frames: images, each as its own temporal patch, or frames of a video
        bounds: PixelBounds | None = self.bounds
        is_folder, window = video.is_folder, None
        as_images = are_images or self.frames_as != "video"
        if as_images:
            is_folder = False
            labels = None if are_images else LABELS.get(self.frames_as)
            loaded |= {"kind": "image", "is_one_medium": not are_images, "labels": labels}
            bounds = bounds_of_images(self.image_bounds, spec.frames.image_pixels)
        else:
            times_s = video.times_s if view.times_s is None else view.times_s
            own = [times_s[i] for i in frames]
            is_sampled = spec.seconds == "sampled_fps"
            seconds = sampled_seconds_per_grid(times_s, len(frames)) if is_sampled else seconds_per_grid(own)
            loaded |= {"seconds_per_grid": seconds, "frame_times": None if view.times_s is None else tuple(own)}
        still_resize = self.still_resize if as_images else None
        if still_resize is not None:
            resized = still_resize(video.read(frames[::TEMPORAL_PATCH_SIZE]), spec.frames.token_px)
            window, shown = resized.window, resized.frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
            if spec.frames.own_frames:
                loaded["geometry_frames"] = resized.geometry_frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
                loaded["vision_window"] = resized.tower_window
        elif bounds is None:
            shown = video.read(frames)
        else:
            shown = self._resized(video, frames, bounds, is_folder)
        # 2. Cameras
        geometry = view.geometry(frames)
        if spec.requires_cameras and view.world_to_camera is not None and geometry is None:
            raise InputError(
                f"{companion_name(video.path)}.cameras.json: none of the frames {frames} has a pose: take a sampler "
                "that selects by poses"
            )
        # 3. Depth
        depth, (height, width) = None, shown.shape[-2:] if window is None else window[:2]
        has_depth = view.depth is not None or view.depth_maps is not None
        if spec.requires_depth or (spec.reads_depth and has_depth):
            depth = self._read_depth(view, frames, (height, width))
        elif "depth" in spec.targets and view.depth is not None:
            size = (height, width)
            depth, loaded["target_error"] = _read_target(view, lambda: self._read_depth(view, frames, size))
        if depth is not None:
            geometry = SceneGeometry(**{**({} if geometry is None else geometry.present()), "depth": depth})
        if window is not None and geometry is not None:
            geometry = window.crop(geometry)
        # 4. Target views, for scenes with cameras
        if spec.target_views is not None and geometry is not None and geometry.has_cameras:

            def resize(target: UInt8[Tensor, "T 3 H W"]) -> UInt8[Tensor, "T 3 h w"]:
                size = (shown.shape[-2], shown.shape[-1])
                if still_resize is not None:
                    return still_resize(target, spec.frames.token_px).frames
                return resize_frames(target, bounds, is_folder=is_folder, token_px=spec.frames.token_px, size=size)

            loaded |= self._read_target_views(view, frames, resize, window)
        return check_depth(LoadedScene(view.scene_name, frames=shown, geometry=geometry, **loaded), spec, view)

    def _resized(
        self, video: Video, frames: Sequence[int], bounds: PixelBounds, is_folder: bool
    ) -> UInt8[Tensor, "T 3 h w"]:
        token_px = self.spec.frames.token_px

        def decode() -> UInt8[Tensor, "T 3 h w"]:
            return resize_frames(video.read(frames), bounds, is_folder=is_folder, token_px=token_px)

        if self.frame_cache is None:
            return decode()
        return self.frame_cache.frames(video, frames, bounds, decode, is_folder=is_folder, token_px=token_px)

    def _read_depth(self, view: SceneView, frames: Sequence[int], size_hw: tuple[int, int]) -> Float32[Tensor, "T H W"]:
        """Read the depth of raw frames, see `datamodules.depth.read_depth`. If `keep`, each map is read once."""
        if view.depth_maps is not None:
            return resize_depth(view.depth_maps[list(frames)], size_hw)
        assert view.depth is not None
        path, known = view.depth, self._depths if self.keep else {}
        unread = [i for i in dict.fromkeys(frames) if (path, i) not in known]
        if unread:
            maps = read_depth(path, unread, num_frames=view.video.num_frames, size_hw=size_hw)
            known.update({(path, i): each for i, each in zip(unread, maps, strict=True)})
        return torch.stack([known[path, i] for i in frames])

    def _read_target_views(
        self,
        view: SceneView,
        shown: Sequence[int],
        resize: Callable[[UInt8[Tensor, "T 3 H W"]], UInt8[Tensor, "T 3 h w"]],
        window: Window | None,
    ) -> dict[str, Any]:
        """Draw and read target views of a scene with cameras, each twice, or say why there are none."""
        assert self.spec.target_views is not None and view.world_to_camera is not None
        posed = view.world_to_camera.isfinite().flatten(1).all(1).nonzero()[:, 0].tolist()
        rng = Random(f"{resolve_seed(None)}/{view.epoch}/{view.scene_name}")
        drawn = self.spec.target_views.draw(shown, posed, rng)
        if not drawn:
            reason = (
                f"{view.scene_name}: no frame with a camera lies between the {len(set(shown))} shown ones, and "
                "--model.objectives predict such frames: lower --data.num_frames, or take another --data.train_sampler"
            )
            return {"target_error": reason}
        frames = [frame for frame in drawn for _ in range(TEMPORAL_PATCH_SIZE)]
        geometry = view.geometry(frames)
        assert geometry is not None
        read, error = _read_target(view, lambda: resize(view.video.read(drawn)))
        if read is None:
            return {"target_error": error}
        return {
            "target_views": LoadedScene(
                view.scene_name,
                frames=read.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
                kind="image",
                frame_indices=tuple(frames),
                geometry=geometry if window is None else window.crop(geometry),
            )
        }


def _read_target(view: SceneView, read: Callable[[], Tensor]) -> tuple[Tensor | None, str | None]:
    """Read what the model only predicts, or return the reason why it can't be read. Retries once."""
    reason = None
    for _ in range(MAX_ATTEMPTS):
        try:
            return read(), None
        except SCENE_FAULTS as error:
            reason = format_scene_error(view.scene_name, error)
    return None, reason


def in_time(read: Callable[[], LoadedScene], limit_s: float | None) -> LoadedScene | None:
    """Return what a function returns, or None if it takes longer than a limit in seconds.

    The function runs in a thread. A thread that waits in FFmpeg or for storage can't be ended, so it is left alone.
    """
    if limit_s is None:
        return read()
    result: Future[LoadedScene] = Future()

    def run() -> None:
        try:
            result.set_result(read())
        except BaseException as error:  # raised again by `result`
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return result.result(limit_s)
    except TimeoutError:
        if result.done():  # the function's own error
            raise
        return None


def format_scene_error(name: str, error: Exception) -> str:
    """Return a scene's error in one line that begins with the scene's name."""
    return f"{name}: {describe_fault(error)}"


def check_depth(loaded: LoadedScene, spec: ModelSpec, view: SceneView) -> LoadedScene:
    """Return a scene whose depth the model can read: some pixel is known after all crops.

    Raises:
        InputError: No pixel has depth. A loss on it would be NaN.
    """
    depth = None if loaded.geometry is None else loaded.geometry.depth
    if spec.requires_depth and depth is not None and not (depth > 0).any():
        where, frames = view.depth or view.scene_name, list(loaded.frame_indices or ())
        raise InputError(f"{where}: empty, no pixel of frames {frames} has depth: write it again, or crop less")
    return loaded


def check_scene(scene: Scene, spec: ModelSpec) -> None:
    """Raise an InputError if a scene lacks cameras or depth that the model reads."""
    if scene.is_text:
        return
    if spec.requires_cameras and scene.cameras is None:
        put = "" if scene.images else f"put {companion_name(scene.video)}.cameras.json beside it, "
        raise InputError(
            f"{scene.video}: no cameras, and this model needs them: {put}predict them (--model.geometry PretrainedVGGT "
            "--model.camera_source auto), or use a model without cameras (--config qwen25_vl.yaml)"
        )
    if spec.requires_depth and scene.depth is None:
        remedy = f"put a folder {companion_name(scene.video)}.depth of 16-bit images beside it "
        remedy += "(DatasetGeometry works without: --model.geometry.depth false)"
        if scene.images:
            remedy = "use a model without depth (--config qwen25_vl.yaml)"
        raise InputError(f"{scene.video}: no depth, and this model needs it: {remedy}")
