"""Answer lmms-eval's requests with a `SpatialVLM`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import Image, ImageFile
from tqdm import tqdm

from datamodules.inference import ShownMedium, answer_chats
from datamodules.video import to_rgb
from zoo import InputError, SpatialVLM
from zoo.backbones.base import Message
from zoo.errors import SCENE_FAULTS, describe_fault
from zoo.files.fingerprint import fingerprint
from zoo.generation import Reply
from zoo.tasks.video_qa import FirstScenes

UNREADABLE_PICTURE = (OSError, SyntaxError, Image.DecompressionBombError)  # Pillow raises these on damaged files


class SpatialVLMZoo(lmms):
    """A run, exported folder or hub id of the zoo. Requests about the same videos and images share their encoding.

    Answers are greedy. Stop strings (`until`) are left to the tasks' filters, as in lmms-eval's own chat models.

    Args:
        run: See `SpatialVLM.from_pretrained`.
        num_frames: Frames of each video. None uses the number of the model's training.
        device: "cuda" is one GPU per process, and the default if there is one.
        batch_size, max_batch_size: Ignored. lmms-eval passes them to every model.
        trust_modules: Modules that the run may import, separated by spaces, see `SpatialVLM.from_pretrained`.
        overrides: Overrides of the model's parts, such as `camera_source=auto`.
    """

    is_simple = False

    def __init__(
        self,
        run: str,
        num_frames: int | None = None,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        trust_modules: str = "",
        **overrides: Any,
    ) -> None:
        super().__init__()
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval's tasks enable it, which would show half of an image
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(own if device in (None, "cuda") else device)
        self.model = SpatialVLM.from_pretrained(run, trust_modules=trust_modules.split(), **overrides).to(self.device)
        self.num_frames, self.first_scenes = num_frames, FirstScenes()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return the answers in the order of the requests. Requests that can't be answered get "" and a warning.

        Raises:
            InputError: A request is not supported, no request has readable images, or the first media all failed in the
                same way, see `FirstScenes`.
            RuntimeError: The first media all failed with an error that is not an InputError.
        """
        # 1. Group requests by media and options. Images are read again with their group, not kept.
        groups: dict[tuple[Any, ...], list[int]] = {}
        answers: dict[int, GenerationResult] = {}
        unreadable = ""
        for number, request in enumerate(requests):
            options = generation_options(request.args[2])
            try:
                shown = [medium_fingerprint(medium) for medium in self._chat(request)[0]]
            except UNREADABLE_PICTURE as error:  # damaged data of the benchmark: no model can answer
                *_, doc, task, _ = request.args
                unreadable = f"{task}, document {doc}: a picture can't be read: {error}"
                logger.warning(f"no answer: {unreadable}")
                answers[number] = GenerationResult("", TokenCounts(output_tokens=0))
                continue
            groups.setdefault((*shown, *options), []).append(number)
        if unreadable and not groups:
            raise InputError(f"no request has pictures that can be read; {unreadable}")
        # 2. Answers, one group after the other.
        progress = tqdm(groups.items(), desc="Scenes", disable=self.rank != 0)
        for (*shown, max_new_tokens, penalty), members in progress:
            fault: Exception | None = None
            try:
                media, chats = zip(*(self._chat(requests[number]) for number in members), strict=True)
                replies = answer_chats(self.model, media[0], chats, self.num_frames, max_new_tokens, penalty)
            except torch.AcceleratorError:  # a failed GPU can't answer further requests
                raise
            except SCENE_FAULTS as error:
                fault, replies = error, [Reply([], describe_fault(error))] * len(members)
            for reason in {reply.error for reply in replies if reply.error}:
                logger.warning(f"no answer: {reason}")
            self.first_scenes.check([{"scene": str(shown), "error": reply.error} for reply in replies], fault)
            texts = self.model.backbone.preprocessor.decode([reply.ids for reply in replies])
            for number, reply, text in zip(members, replies, texts, strict=True):
                answers[number] = GenerationResult(text, TokenCounts(output_tokens=len(reply.ids)))
        return [answers[number] for number in range(len(requests))]

    def _chat(self, request: Instance) -> tuple[list[ShownMedium], list[Message]]:
        """Return the videos and images of a request, and its messages with an empty item for each.

        Raises:
            InputError: The request has sound, or a part of a video.
            OSError, SyntaxError, DecompressionBombError: An image is missing or damaged.
        """
        _, doc_to_messages, _, doc, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc])).to_hf_messages()
        media: list[ShownMedium] = []
        for item in (item for message in messages for item in message["content"] if item["type"] != "text"):
            url = item.pop(item["type"])
            if item["type"] == "image":
                media.append(url if isinstance(url, Image.Image) else Image.open(url))
            elif item == {"type": "video"} and isinstance(url, str | Path):
                media.append(Path(url))
            else:
                raise InputError(f"spatial_vlm_zoo takes text, pictures and whole videos by their files, not {url}")
        return media, messages

    def loglikelihood(self, requests: list[Instance]) -> Any:
        """Raise an InputError. Tasks of several rounds are not supported either."""
        raise InputError("spatial_vlm_zoo answers tasks whose output_type is generate_until, and no others")

    generate_until_multi_round = loglikelihood


def generation_options(options: dict[str, Any]) -> tuple[int, float]:
    """Return the length of the longest answer and the repetition penalty from a task's `generation_kwargs`.

    Raises:
        InputError: The task samples its answers.
    """
    if options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1:
        greedy = "--gen_kwargs temperature=0,do_sample=False,num_beams=1"
        raise InputError(f"spatial_vlm_zoo answers greedily, and this task samples or searches: give {greedy}")
    # 128 as in lmms-eval's own Qwen2.5-VL
    return int(options.get("max_new_tokens") or 128), float(options.get("repetition_penalty") or 1)


def medium_fingerprint(medium: ShownMedium) -> str:
    """Return a fingerprint that is equal for the same video file, or for equal pixels (RGB)."""
    if isinstance(medium, Path):
        return str(medium)
    return fingerprint(f"{medium.size}".encode() + to_rgb(medium).tobytes())
