"""Answers lmms-eval's requests with a `SpatialVLM`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import Image
from tqdm import tqdm

from datamodules.chats import answer_chats
from zoo import SpatialVLM
from zoo.backbones.base import Message
from zoo.errors import SCENE_FAULTS, InputError
from zoo.prefix_cache import Reply
from zoo.tasks.first_scenes import FirstScenes

MAX_NEW_TOKENS = 128  # of tasks that state no number, as in lmms-eval's own models of Qwen2.5-VL
Medium = Path | Image.Image


class SpatialVLMZoo(lmms):
    """Any run, exported folder or hub id of the zoo; requests about the same videos and pictures share their encoding.

    As in lmms-eval's own chat models, stop strings (`until`) are left to the tasks' filters.

    Args:
        run: see `SpatialVLM.from_pretrained`.
        num_frames: frames of each video; those that the model was trained with if not given.
        questions_per_batch: questions about the same media that are answered together.
        device: a CUDA device, if there is one, and each process has its own; or as given.
        batch_size, max_batch_size: without effect; lmms-eval gives them to every model.
        overrides: of the model's parts, such as `camera_source=auto`.
    """

    is_simple = False

    def __init__(
        self,
        run: str,
        num_frames: int | None = None,
        questions_per_batch: int = 8,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(own if device in (None, "cuda") else device)
        self.model = SpatialVLM.from_pretrained(run, **overrides).to(self.device)
        self.num_frames, self.questions_per_batch = num_frames, questions_per_batch
        self.first_scenes = FirstScenes()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests; that of a scene which can't be read is empty, with a warning."""
        # 1. Groups of the same media and options. Pictures are read again with their group, not kept.
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            media, _ = read_chat(self._messages(request))
            options = max_new_tokens, penalty = generation_options(request.args[2])
            groups.setdefault((*map(fingerprint, media), *options), []).append(number)
        # 2. Answers, one group after the other.
        answers: dict[int, GenerationResult] = {}
        progress = tqdm(total=len(requests), desc="Questions", disable=self.rank != 0)
        for (*shown, max_new_tokens, penalty), members in groups.items():
            chats = [read_chat(self._messages(requests[number])) for number in members]
            fault: Exception | None = None
            try:
                replies = answer_chats(
                    self.model,
                    chats[0][0],
                    [messages for _, messages in chats],
                    num_frames=self.num_frames,
                    max_new_tokens=max_new_tokens,
                    questions_per_batch=self.questions_per_batch,
                    repetition_penalty=penalty,
                )
            except torch.AcceleratorError:  # a failed GPU answers nothing more
                raise
            except SCENE_FAULTS as error:
                fault, replies = error, [Reply([], str(error) or type(error).__name__)] * len(members)
            for error_text in {reply.error for reply in replies if reply.error}:
                logger.warning(f"no answer: {error_text}")
            self.first_scenes.check([{"scene": str(shown), "error": reply.error} for reply in replies], fault)
            texts = self.model.backbone.preprocessor.decode([reply.ids for reply in replies])
            for number, reply, text in zip(members, replies, texts, strict=True):
                answers[number] = GenerationResult(text, TokenCounts(output_tokens=len(reply.ids)))
            progress.update(len(members))
        progress.close()
        return [answers[number] for number in range(len(requests))]

    def _messages(self, request: Instance) -> ChatMessages:
        _, doc_to_messages, _, doc, task, split = request.args
        return ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc]))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise InputError("spatial_vlm_zoo answers tasks of output_type generate_until, not of several rounds")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise InputError("spatial_vlm_zoo answers tasks of output_type generate_until, not loglikelihood")


def generation_options(options: dict[str, Any]) -> tuple[int, float]:
    """The longest answer and the repetition penalty of a task's `generation_kwargs`.

    Raises:
        InputError: the task samples its answers.
    """
    if options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1:
        raise InputError(
            "spatial_vlm_zoo answers greedily, and this task samples or searches: give "
            "--gen_kwargs temperature=0,do_sample=False,num_beams=1"
        )
    return int(options.get("max_new_tokens") or MAX_NEW_TOKENS), float(options.get("repetition_penalty") or 1)


def read_chat(chat: ChatMessages) -> tuple[list[Medium], list[Message]]:
    """The videos and pictures of a chat, and its messages with an item without content for each.

    Raises:
        InputError: sound, or a part of a video.
    """
    media: list[Medium] = []
    messages: list[Message] = []
    for message in chat.messages:
        items: list[dict[str, str]] = []
        for content in message.content:
            if content.type == "text":
                items.append({"type": "text", "text": content.text})
                continue
            url = content.url
            if content.type == "image":
                media.append(url if isinstance(url, Image.Image) else Image.open(url))
            elif content.type == "video" and isinstance(url, str | Path) and content.start_time == content.end_time:
                media.append(Path(url))
            else:
                raise InputError(f"spatial_vlm_zoo takes text, pictures and whole videos by their files, not {url}")
            items.append({"type": content.type})
        messages.append({"role": message.role, "content": items})
    return media, messages


def fingerprint(medium: Medium) -> str:
    """Equal for the same video file, or for equal pixels."""
    if isinstance(medium, Path):
        return str(medium)
    return hashlib.sha256(f"{medium.mode} {medium.size}".encode() + medium.tobytes()).hexdigest()
