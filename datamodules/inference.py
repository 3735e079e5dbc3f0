"""Inference: prepare a video or frames as in the model's run, and batch them with the user's questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.chat_format import Content
from datamodules.collate import QuestionCollate
from datamodules.datamodule import VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.samplers import FrameSampler, SceneView
from datamodules.scenes import Question, Scene
from datamodules.sources import SingleVideo
from datamodules.video import Video, to_rgb
from zoo.backbones.base import Message
from zoo.cameras import SceneGeometry
from zoo.configuration import check_class_paths, from_config
from zoo.errors import InputError
from zoo.generation import Reply, answer_batch
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

# settings of a run on which the model's inputs depend
READ_FROM_RUN = (
    *("num_frames", "sampler", "frame_pairing", "frames_as", "system_prompt", "prompt_prefix", "prompt_wording"),
    *("pixels", "image_pixels", "still_resize", "poses_in_prompt"),
)
NO_CAMERAS = (
    "this model needs cameras: of frames in memory give a zoo.geometry.SceneGeometry, else a video with cameras"
)
NO_DEPTH = "this model needs depth: of frames in memory give a zoo.geometry.SceneGeometry with depth, 0 where unknown"


def batch_of_questions(
    model: SpatialVLM,
    video: str | Path | Tensor,
    questions: Sequence[str],
    cameras: str | Path | SceneGeometry | None,
    num_frames: int | None,
    sampler: FrameSampler | None,
    times_s: Sequence[float] | None = None,
) -> Batch:
    """Build the batch of a scene with its questions on the model's device; see `SpatialVLM.answer`.

    Raises:
        InputError: The video can't be read, or lacks data that the model requires.
    """
    data = data_of(model)
    asked = tuple(Question(str(i), "", text) for i, text in enumerate(questions))
    if isinstance(video, Tensor):
        if num_frames or sampler or isinstance(cameras, (str, Path)):
            raise InputError(
                "frames in memory: all are shown, and cameras are a SceneGeometry; give no file, num_frames or sampler"
            )
        if times_s is None and (seconds := model.model_spec().seconds) != "nominal":
            raise InputError(f"--model.time_index.seconds {seconds} needs the time of each frame: give times_s")
        loaded = load_frames(model, data, video, times_s, as_images=False, geometry=cameras)
    else:
        if times_s is not None or isinstance(cameras, SceneGeometry):
            raise InputError("times_s and a SceneGeometry are for frames in memory: a video has files of its own")
        loaded = load_video(model, data, video, cameras, num_frames, sampler)
    collate = QuestionCollate(model.model_spec(), data.source.benchmark, poses_in_prompt=data.poses_in_prompt)
    batch = collate([replace(loaded, questions=asked)])
    if batch.failed:
        raise InputError(batch.failed[0]["error"])
    return batch.to(model.backbone.device)


def load_video(
    model: SpatialVLM,
    data: VideoQADataModule,
    video: str | Path,
    cameras: str | Path | None = None,
    num_frames: int | None = None,
    sampler: FrameSampler | None = None,
) -> LoadedScene:
    """Load a video file or a folder of frames, see `SpatialVLM.answer`. A failure is in the scene's `error`."""
    scenes = SingleVideo(str(video), "", cameras=None if cameras is None else str(cameras)).scenes("test")
    return _dataset(model, data, scenes, sampler, num_frames)[0]


def load_frames(
    model: SpatialVLM,
    data: VideoQADataModule,
    frames: Tensor,
    times_s: Sequence[float] | None,
    as_images: bool,
    geometry: SceneGeometry | None = None,
) -> LoadedScene:
    """Load frames (T, 3, H, W) in memory, as bytes or in 0..1: all frames of a video, or still images.

    They are handled like the frames of a video file, with their times, cameras and depth, and paired as in the run.

    Args:
        model: The model to ask.
        data: DataModule with the settings of the model's run.
        frames: The frames. All are shown.
        times_s: Time of each frame in seconds. None if unknown.
        as_images: Whether they are still images. Otherwise they are frames of a video, shown as in the run.
        geometry: Cameras and depth of the frames.

    Raises:
        InputError: The model requires cameras or depth that are missing, there is not one time or camera per frame, or
            the pixel values are out of range.
    """
    geometry = geometry and geometry.without_invalid_cameras().to("cpu")
    spec, given = model.model_spec(), {} if geometry is None else geometry.present()
    has_depth = "depth" in given and bool((given["depth"] > 0).any())
    if spec.requires_cameras and not (geometry and geometry.has_cameras):
        raise InputError(NO_CAMERAS)
    if spec.requires_depth and not has_depth:
        raise InputError(NO_DEPTH)
    for name, each in {**given, **({} if times_s is None else {"times_s": times_s})}.items():
        if len(each) != len(frames):
            raise InputError(f"{len(each)} {name} for {len(frames)} frames: give one per frame")
    if frames.dtype != torch.uint8:
        if not frames.is_floating_point():
            raise InputError(f"frames in memory are {frames.dtype}: give bytes (torch.uint8), or floats in 0..1")
        darkest, brightest = torch.stack(frames.aminmax()).tolist()
        if not 0 <= darkest <= brightest <= 1:
            raise InputError(
                f"frames in memory reach from {darkest:.3g} to {brightest:.3g}: give bytes, or floats in 0..1"
            )
        frames = (frames * 255).round().to(torch.uint8)
    frames = frames.cpu()
    video, poses, K = Video(frames), None, None
    if geometry is not None and geometry.has_cameras:
        poses, K, has_camera = geometry.cameras()
        poses = poses.where(has_camera[:, None, None], torch.nan)
    view = SceneView(
        video,
        poses,
        K,
        name="frames",
        times_s=None if times_s is None else [float(time_s) for time_s in times_s],
        depth_maps=None if geometry is None else geometry.depth,
    )
    dataset = _dataset(model, data, [])
    return dataset.load(view, dataset.pair_all(view, are_images=as_images), are_images=as_images)


def _dataset(
    model: SpatialVLM,
    data: VideoQADataModule,
    scenes: list[Scene],
    sampler: FrameSampler | None = None,
    num_frames: int | None = None,
) -> SceneDataset:
    dataset = data.dataset(scenes, spec=replace(model.model_spec(), targets=(), target_views=None))
    dataset.sampler, dataset.num_frames = sampler or data.sampler, num_frames or data.num_frames
    return dataset


def data_of(model: SpatialVLM) -> VideoQADataModule:
    """Return a DataModule with the settings of the model's training. Its source only words the questions."""
    is_released = model.has_released_fusion or not model.loader.released_fusions
    released = model.loader.shown_as if is_released else {}
    settings = (model.data_config or {}).get("init_args") or released
    chosen = {name: settings[name] for name in READ_FROM_RUN if settings.get(name) is not None}
    check_class_paths(chosen, model.trust_modules)
    return from_config(VideoQADataModule, {"class_path": "datamodules.VideoQADataModule", "init_args": chosen})


# ---- Answers to chats about any videos and images, for evaluation harnesses -----------------------------------------

ShownMedium = Path | Image.Image  # a video file, a folder of frames, or an image


@torch.no_grad()
def answer_chats(
    model: SpatialVLM,
    media: Sequence[ShownMedium],
    chats: Sequence[Sequence[Message]],
    num_frames: int | None = None,
    max_new_tokens: int = 32,
    repetition_penalty: float = 1.0,
) -> list[Reply]:
    """Answer chats about the same media, greedily. The media are encoded once. Failed replies hold an error.

    Args:
        model: The model to ask.
        media: Videos, read as in `SpatialVLM.answer`, and images, in the order in which the chats show them.
            Consecutive images of one size are views of one scene. Camera encodings relate all views of a chat, so the
            cameras of its videos must share a world frame: ask about unrelated scenes in separate chats.
        chats: Messages of system, user and assistant. The content of a message is a list of items of type "text",
            "video" or "image", with one "video" or "image" per medium.
        num_frames: Frames of each video. None uses the number from the model's training.
        max_new_tokens: Length of the longest answer.
        repetition_penalty: See `CachedPrefix`.

    Raises:
        FileNotFoundError: A video does not exist.
        InputError: A medium can't be read, or lacks cameras or depth that the model requires.
    """
    # 1. Scenes, in the order of their media.
    data = data_of(model)
    shown = list(_scenes(model, data, media, num_frames))
    collate = QuestionCollate(model.model_spec(), poses_in_prompt=data.poses_in_prompt)
    scenes = [collate.prepare(loaded) for loaded in shown]
    contents = [content for each in zip(shown, scenes, strict=True) for content in collate.media(*each)]
    grids = [grid for scene in scenes for grid in scene.media_grids]
    times = [time for loaded in shown for time in loaded.frame_times or ()]
    # 2. Prompts.
    preprocessor, builder = collate.preprocessor, collate.builder
    prompts, replies = list[list[int]](), dict[int, Reply]()
    for number, chat in enumerate(chats):
        written = "\n".join(item.get("text", "") for message in chat for item in message["content"])
        if token := preprocessor.reserved_token(written):
            replies[number] = Reply([], f"a question holds {token}, a special token of the chat: take it out")
            continue
        text = preprocessor.prompt(_with_contents(chat, contents))
        prompts.append(preprocessor.tokenize([text], grids, model.extra_tokens, times).input_ids.tolist())
    # 3. Answers.
    asked = builder.prompts(prompts, [range(len(scenes))] * len(prompts), scenes) if prompts else []
    batch = Batch(scenes, builder.vision(scenes), prompts=asked).to(model.backbone.device)
    answers = iter(answer_batch(model, batch, max_new_tokens, repetition_penalty))
    return [replies.get(number) or next(answers) for number in range(len(chats))]


def _scenes(
    model: SpatialVLM, data: VideoQADataModule, media: Sequence[Any], num_frames: int | None
) -> Iterator[LoadedScene]:
    """Yield the scenes of media: each video, and the images that are views of one scene."""
    for size, group in groupby(media, lambda medium: None if isinstance(medium, Path) else medium.size):
        if size is None:
            for video in group:
                loaded = load_video(model, data, video, num_frames=num_frames)
                if loaded.error is not None:
                    raise InputError(loaded.error)
                yield loaded
        else:
            views = [torch.from_numpy(np.array(to_rgb(view))).permute(2, 0, 1) for view in group]
            yield load_frames(model, data, torch.stack(views), None, as_images=True)


def _with_contents(chat: Sequence[Message], contents: Sequence[Content]) -> list[Message]:
    """Replace each medium in a chat by the content that the model sees. A video may become several images."""
    left, messages = iter(contents), []
    for message in chat:
        items = [each for item in message["content"] for each in ([item] if item["type"] == "text" else next(left))]
        is_text = message["role"] == "assistant"
        messages.append({**message, "content": "".join(item["text"] for item in items) if is_text else items})
    return messages
