"""Frames and text to a Qwen-VL's inputs, by transformers' own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.backbones.base import Message, Preprocessor, TokenizedPrompt
from zoo.errors import InputError
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.packing import IGNORED

END_OF_TURN = "<|im_end|>\n"  # follows each answer in the chat template
# frames are already sampled and resized, and are normalized later: the processor only cuts patches
PATCHES_ONLY = dict(
    do_resize=False,
    do_sample_frames=False,
    do_rescale=False,
    do_normalize=False,
    cap_pixels_per_frame=False,
    return_tensors="pt",
)


class QwenVLPreprocessor(Preprocessor):
    """See `Preprocessor`.

    Args:
        processor: Processor of the model.

    Attributes:
        template_options: Options of the chat template.
    """

    template_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.pad_token_id = processor.tokenizer.pad_token_id

    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[UInt8[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        cut = self.processor.video_processor(videos=[frames], **PATCHES_ONLY)
        return cut["pixel_values_videos"], cut["video_grid_thw"][0]

    def normalize(self, patches: UInt8[Tensor, "patches channels"]) -> Float[Tensor, "patches channels"]:
        own = self.processor.video_processor
        # as its `rescale_and_normalize`, of which the check of the deviations would wait for a GPU
        mean, std = (
            (torch.tensor(each) * (1 / own.rescale_factor)).to(patches.device, non_blocking=True)[:, None]
            for each in (own.image_mean, own.image_std)
        )
        return patches.unflatten(1, (3, -1)).float().sub_(mean).div_(std).flatten(1)  # by the channels of a patch

    def texts(self, messages: Sequence[Message]) -> list[str]:
        texts: list[str] = []
        for number, message in enumerate(messages, start=1):
            if message["role"] == "assistant":
                texts.append(f"{message['content']}{END_OF_TURN}")
            elif number == len(messages) or messages[number]["role"] == "assistant":  # the last before an answer
                chat = self.prompt(messages[:number])
                history = self.history(texts)
                if not chat.startswith(history):
                    raise InputError(
                        "the chat template writes earlier turns of a chat otherwise than at first: give chats of one "
                        "turn, or mend the chat_template.jinja of the model"
                    )
                texts.append(chat[len(history) :])
        return texts

    def history(self, texts: Sequence[str]) -> str:
        """Return earlier prompts and answers as the chat template writes them before a later prompt."""
        return "".join(texts)

    def prompt(self, messages: Sequence[Message]) -> str:
        chat: str = self.processor.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **self.template_options
        )
        return chat

    def tokenize(
        self,
        texts: Sequence[str],
        media_grids: Sequence[Sequence[int]],
        extra_tokens: ExtraTokens,
        frame_times: Sequence[float] | None = None,
    ) -> TokenizedPrompt:
        placeholders = (self.processor.video_token_id, self.processor.image_token_id)
        texts, runs = self.place_media(texts, media_grids, frame_times)
        placed, media, left = iter(runs), iter(media_grids), 0
        ids: list[int] = []
        labels: list[int] = []
        for number, text in enumerate(texts):
            is_answer = number % 2 == 1
            for token in self.processor.tokenizer(text)["input_ids"]:
                repeats = 1
                if token in placeholders:
                    run, left = next(placed), left or next(media)[0]
                    left -= run[0]  # temporal patches of the medium that are still to come
                    is_end = token == self.processor.video_token_id and not left
                    repeats = self._num_tokens(run, extra_tokens) + (extra_tokens.at_end if is_end else 0)
                ids += [token] * repeats
                labels += [token if is_answer else IGNORED] * repeats
        return TokenizedPrompt(torch.tensor(ids), torch.tensor(labels))

    def place_media(
        self, texts: Sequence[str], media_grids: Sequence[Sequence[int]], frame_times: Sequence[float] | None
    ) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """Return the texts with one placeholder per run of visual tokens, and the (t, h, w) of each run.

        Args:
            texts: With one placeholder per video or image.
            media_grids: (t, h, w) of each.
            frame_times: See `tokenize`.
        """
        return texts, media_grids

    def _num_tokens(self, grid_thw: Sequence[int], extra_tokens: ExtraTokens) -> int:
        """Visual tokens of a run, with the extra tokens of its views."""
        steps, height, width = grid_thw
        view = height * width // self.processor.video_processor.merge_size**2
        return steps * (view + extra_tokens.count(view))

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return self.processor.tokenizer.batch_decode([list(ids) for ids in answers], skip_special_tokens=True)

    @cached_property
    def _special_tokens(self) -> list[str]:
        """Special tokens, cached since the tokenizer rebuilds its table at each access."""
        return [str(token) for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special]

    def reserved_token(self, text: str) -> str | None:
        return next((token for token in self._special_tokens if token in text), None)

    def save_pretrained(self, folder: str) -> None:
        self.processor.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)  # where transformers 4.51 looks
