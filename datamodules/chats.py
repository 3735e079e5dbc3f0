"""Answers to chats about any videos and pictures, as evaluation harnesses ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from datamodules.asking import collate_for, data_of, load_frames, load_video
from datamodules.loaded_scene import LoadedScene
from datamodules.wording import Content, media_of
from zoo.backbones.preprocessor import Message
from zoo.errors import InputError
from zoo.generation.answers import answer_batch
from zoo.generation.prefix_cache import Reply
from zoo.sequences.batch import Batch

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

ShownMedium = Path | Image.Image  # a video file or a folder of frames, or a picture


@torch.no_grad()
def answer_chats(
    model: SpatialVLM,
    media: Sequence[ShownMedium],
    chats: Sequence[Sequence[Message]],
    num_frames: int | None = None,
    max_new_tokens: int = 32,
    repetition_penalty: float = 1.0,
) -> list[Reply]:
    """Greedy answers to chats that show the same media, which are encoded once; or why a chat has none.

    Args:
        model: The model to ask.
        media: Videos, read as `SpatialVLM.answer` does, and pictures, in the order in which the chats show them.
            Consecutive pictures of one size are views of one scene. Camera encodings relate all views of a chat, so its
            videos must have cameras in one world frame: ask about unrelated scenes in separate chats.
        chats: Messages of system, user and assistant, whose content is a list of items of type "text", "video" or
            "image": one of the latter per medium.
        num_frames: Frames of each video; None takes the number that the model was trained with.
        max_new_tokens: The longest answer.
        repetition_penalty: See `CachedPrefix`.

    Raises:
        FileNotFoundError: There is no such video.
        InputError: A medium can't be read or lacks cameras or depth that the model requires.
    """
    # 1. Scenes, in the order of their media.
    shown = list(_scenes(model, media, num_frames))
    contents = [content for _, own in shown for content in own]
    collate = collate_for(model)
    scenes = [collate.scene_inputs(loaded) for loaded, _ in shown]
    grids = [grid for scene in scenes for grid in scene.media_grids]
    times = [time for loaded, _ in shown for time in loaded.frame_times or ()]
    # 2. Prompts.
    preprocessor, builder = collate.wording.preprocessor, collate.builder
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
    model: SpatialVLM, media: Sequence[Any], num_frames: int | None
) -> Iterator[tuple[LoadedScene, Sequence[Content]]]:
    """Each scene, and the content of a message for each of its media."""
    data = data_of(model)
    for size, group in groupby(media, lambda medium: None if isinstance(medium, Path) else medium.size):
        if size is None:
            for video in group:
                loaded = load_video(model, data, video, num_frames=num_frames)
                if loaded.error is not None:
                    raise InputError(loaded.error)
                yield loaded, media_of(loaded)
        else:
            views = [torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1) for view in group]
            yield load_frames(model, data, torch.stack(views), None, as_images=True), [[{"type": "image"}]] * len(views)


def _with_contents(chat: Sequence[Message], contents: Sequence[Content]) -> list[Message]:
    """The chat with each medium as the model is shown it: a video may be several images."""
    left, messages = iter(contents), []
    for message in chat:
        items = [each for item in message["content"] for each in ([item] if item["type"] == "text" else next(left))]
        is_text = message["role"] == "assistant"
        messages.append({**message, "content": "".join(item["text"] for item in items) if is_text else items})
    return messages
