"""The preprocessor seam: frames and text to a backbone's inputs, in data workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.sequences.visual_grid import ExtraTokens

Message = dict[str, Any]  # a turn of a chat, as transformers' chat templates take it


class TokenizedPrompt(NamedTuple):
    """A tokenized chat.

    Attributes:
        input_ids: The whole sequence, one placeholder per visual token; with the answer in training.
        labels: The supervised ids, -100 elsewhere.
    """

    input_ids: Int[Tensor, " L"]
    labels: Int[Tensor, " L"]


class Preprocessor(ABC):
    """Turn frames and text into the backbone's inputs, in data workers; hold no weights.

    Attributes:
        pad_token_id: Padding of shorter sequences in a batch.
    """

    pad_token_id: int

    @abstractmethod
    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[UInt8[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        """Return the patches of resized frames as bytes, and their (t, h, w) before the merge."""

    @abstractmethod
    def normalize(self, patches: UInt8[Tensor, "patches channels"]) -> Float[Tensor, "patches channels"]:
        """Normalize patches as the model's own processor does, on their device: as bytes they get there faster."""

    @abstractmethod
    def texts(self, messages: Sequence[Message]) -> list[str]:
        """Return a chat as texts, in turn a prompt up to the start of the answer, and an answer up to its end.

        Args:
            messages: Of system, user and assistant; those between two answers are one prompt.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message]) -> str:
        """Return a chat up to the start of its next answer, as the chat template writes it.

        Earlier answers may differ from those of `texts`, which a model learns from: some templates shorten them.

        Args:
            messages: Of system, user and assistant.
        """

    @abstractmethod
    def tokenize(
        self,
        texts: Sequence[str],
        media_grids: Sequence[Sequence[int]],
        extra_tokens: ExtraTokens,
        frame_times: Sequence[float] | None = None,
    ) -> TokenizedPrompt:
        """Return the token ids of a chat; the answers are supervised.

        Args:
            texts: From `texts`.
            media_grids: (t, h, w) in patches before the merge of each video or image.
            extra_tokens: Tokens that follow the 2D tokens of each view, and the last view of a video.
            frame_times: Seconds of each frame of each video; None for images, or if unknown.

        Raises:
            InputError: Unknown times, for a backbone that writes them.
        """

    @abstractmethod
    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of generated token ids, without special tokens."""

    @abstractmethod
    def reserved_token(self, text: str) -> str | None:
        """Return the first special token in a text, which the tokenizer would not read as text; None if absent."""

    @abstractmethod
    def save_pretrained(self, folder: str) -> None:
        """Write the tokenizer and processor files."""
