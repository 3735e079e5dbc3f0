"""Frames and text to Qwen2.5-VL's inputs, by transformers' own processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from zoo.backbones.base import Preprocessor, TokenizedPrompt
from zoo.fusions.base import ExtraTokens
from zoo.shared_prefix import IGNORED

END_OF_TURN = "<|im_end|>\n"  # follows each answer in the chat template
# frames are already sampled and resized: the processor only normalizes and cuts patches
PATCHES_ONLY = dict(do_resize=False, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt")


class Qwen25VLPreprocessor(Preprocessor):
    """See `Preprocessor`.

    Args:
        processor: processor of Qwen2.5-VL.
    """

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self.processor = processor
        self.pad_token_id = processor.tokenizer.pad_token_id

    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[Float[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        cut = self.processor.video_processor(videos=[frames], **PATCHES_ONLY)
        return cut["pixel_values_videos"], cut["video_grid_thw"][0]

    def prompt(self, user_text: str) -> str:
        content = [{"type": "video"}, {"type": "text", "text": user_text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def tokenize(
        self, prompt: str, grid_thw: Sequence[int], extra_tokens: ExtraTokens, answer: str | None = None
    ) -> TokenizedPrompt:
        steps, height, width = grid_thw
        view = height * width // self.processor.video_processor.merge_size**2
        visual = steps * (view + len(extra_tokens.positions(view)))
        tokenizer, placeholder = self.processor.tokenizer, self.processor.video_token_id
        ids: list[int] = []
        for token in tokenizer(prompt)["input_ids"]:
            ids += [placeholder] * visual if token == placeholder else [token]
        learned = [] if answer is None else tokenizer(f"{answer}{END_OF_TURN}")["input_ids"]
        return TokenizedPrompt(torch.tensor(ids + learned), torch.tensor([IGNORED] * len(ids) + learned))

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
