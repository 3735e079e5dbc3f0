"""Answers to chats about any videos and pictures, as evaluation harnesses ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from datamodules.asking import collate_for, data_of, load_frames, load_video
from datamodules.collate import Content, LoadedScene, media_of
from zoo.backbones.base import Message
from zoo.errors import InputError
from zoo.prefix_cache import Reply, answer_questions

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

PICTURE: Content = [{"type": "image"}]


@torch.no_grad()
def answer_chats(
    model: SpatialVLM,
    media: Sequence[Path | Image.Image],
    chats: Sequence[Sequence[Message]],
    *,
    num_frames: int | None = None,
    max_new_tokens: int = 32,
    questions_per_batch: int = 8,
    repetition_penalty: float = 1.0,
) -> list[Reply]:
    """Greedy answers to chats that show the same media, which are encoded once.

    Args:
        model: the model to ask.
        media: a path for each video, read as `SpatialVLM.answer` does, and a picture for each image, in the order in
            which the chats show them. Pictures of one size in a row are views of one scene.
        chats: messages of system, user and assistant, with one item of type "video" or "image" per medium.
        num_frames: frames of each video; None takes the number that the model was trained with.
        max_new_tokens: the longest answer.
        questions_per_batch: chats answered together.
        repetition_penalty: see `CachedPrefix`.

    Raises:
        InputError: a medium that can't be read or lacks cameras or depth that the model requires; a chat with a
            special token in its text.
    """
    # 1. Scenes, in the order of their media.
    shown = list(_scenes(model, media, num_frames))
    contents = [content for _, own in shown for content in own]
    collate, device = collate_for(model), model.backbone.like.device
    scenes = [collate.scene_inputs(loaded) for loaded, _ in shown]
    grids = [grid for scene in scenes for grid in scene.media_grids.tolist()]
    times = [time for loaded, _ in shown for time in loaded.frame_times or ()]
    # 2. Prompts.
    preprocessor, prompts = collate.preprocessor, []
    for chat in chats:
        written = "\n".join(item["text"] for message in chat for item in _items(message) if "text" in item)
        if token := preprocessor.reserved_token(written):
            raise InputError(f"a question holds {token}, a special token of the chat: take it out")
        texts = preprocessor.texts(_with_contents(chat, contents))
        prompts.append(preprocessor.tokenize(texts, grids, model.extra_tokens, times).input_ids.tolist())
    # 3. Answers.
    encoded = model.encode_scenes([scene.to(device) for scene in scenes])
    rows = [range(len(encoded))] * len(chats)
    return answer_questions(model, encoded, prompts, rows, max_new_tokens, questions_per_batch, repetition_penalty)


def _scenes(
    model: SpatialVLM, media: Sequence[Path | Image.Image], num_frames: int | None
) -> Iterator[tuple[LoadedScene, Sequence[Content]]]:
    """Each scene, and the content of a message for each of its media."""
    data = data_of(model)
    for size, group in groupby(media, lambda each: each.size if isinstance(each, Image.Image) else None):
        if size is None:
            for video in group:
                loaded = load_video(model, data, video, num_frames=num_frames)
                if loaded.error is not None:
                    raise InputError(loaded.error)
                yield loaded, media_of(loaded)
        else:
            views = [torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1) for view in group]
            yield load_frames(model, data, torch.stack(views), as_images=True), [PICTURE] * len(views)


def _items(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_contents(chat: Sequence[Message], contents: Sequence[Content]) -> list[Message]:
    """The chat with each medium as the model is shown it: a video may be several images."""
    left, messages = iter(contents), []
    for message in chat:
        items = [each for item in _items(message) for each in ([item] if "text" in item else next(left))]
        is_text = message["role"] == "assistant"
        messages.append({**message, "content": "".join(item["text"] for item in items) if is_text else items})
    return messages
