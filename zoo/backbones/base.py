"""The backbone seam: everything that the zoo needs of a video-language model."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from zoo.cameras import Cameras
from zoo.configuration import Configurable
from zoo.decoder_layout import DecoderLayout
from zoo.encodings.base import CameraEncoding, EncodedCameras
from zoo.errors import InputError
from zoo.fusions.base import ExtraTokens
from zoo.geometry.base import GeometryEncoder
from zoo.positions import SecondsPerGrid
from zoo.question_masks import block_mask, prefix_causal_mask
from zoo.sequence_layout import MediaKind, Placeholders, SequenceLayout
from zoo.time_index import TimeIndex

AttentionImplementation = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
DType = Literal["float32", "bfloat16"]
BackbonePart = Literal["decoder", "vision", "connector"]


class TokenizedPrompt(NamedTuple):
    """A question as the backbone reads it.

    Attributes:
        input_ids: the whole sequence, one placeholder per visual token; with the answer in training.
        labels: the ids that are supervised, -100 elsewhere.
    """

    input_ids: Int[Tensor, " L"]
    labels: Int[Tensor, " L"]


class Preprocessor(ABC):
    """Turns frames and text into the backbone's inputs. Holds no weights, so that data workers can carry it.

    Attributes:
        pad_token_id: fills shorter sequences of a batch.
    """

    pad_token_id: int

    @abstractmethod
    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[Float[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        """Normalized patches of a video whose frames are already resized, and their (t, h, w) before the merge."""

    @abstractmethod
    def prompt(self, user_text: str) -> str:
        """The chat with one video and one user text, up to where the answer starts."""

    @abstractmethod
    def tokenize(
        self, prompt: str, grid_thw: Sequence[int], extra_tokens: ExtraTokens, answer: str | None = None
    ) -> TokenizedPrompt:
        """Token ids of a prompt, and of the answer that is to be learned.

        Args:
            prompt: from `prompt`.
            grid_thw: of its video, in patches before the merge.
            extra_tokens: tokens that follow the 2D tokens of each view.
            answer: appended and supervised; None leaves room for an answer.
        """

    @abstractmethod
    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Texts of generated token ids, without special tokens."""

    @abstractmethod
    def reserved_token(self, text: str) -> str | None:
        """The first special token of the chat that a text contains, which the tokenizer would not read as text."""

    @abstractmethod
    def save_pretrained(self, folder: str) -> None:
        """Writes the tokenizer and processor files."""


class Backbone(nn.Module, ABC):
    """A loaded video-language model. A new one: a subclass of this, and a `BackboneLoader` that makes it.

    The decoder stays the stock one of transformers, with hooks for a camera encoding in its attention.

    Attributes:
        vlm: the stock model.
        preprocessor: its processor and tokenizer.
        placeholders: token ids that mark visual tokens.
        stop_tokens: token ids that end an answer.
        lora_targets: names of the decoder's linear layers that LoRA adapts.
        spatial_merge_size: patches per side in one visual token.
        hidden_size: width of the decoder.
        context_length: the most tokens of a sequence.
    """

    vlm: nn.Module
    preprocessor: Preprocessor
    placeholders: Placeholders
    stop_tokens: list[int]
    lora_targets: tuple[str, ...]
    spatial_merge_size: int
    hidden_size: int
    context_length: int

    # ---- structure ------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The language model, without its head."""

    @property
    @abstractmethod
    def lm_head(self) -> nn.Module:
        """From hidden states to logits."""

    @property
    @abstractmethod
    def decoder_layout(self) -> DecoderLayout:
        """The shape of the decoder's attention."""

    @property
    def like(self) -> Tensor:
        """A weight whose dtype and device new parts take."""
        return next(self.decoder.parameters())

    @abstractmethod
    def part_of(self, name: str) -> BackbonePart:
        """The part that a parameter of this name trains with."""

    @abstractmethod
    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        """Puts the camera hooks into the decoder's attention, and binds the encoding to it."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass, in the decoder and the vision tower."""

    # ---- forward ----------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_vision(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "M 3"]
    ) -> list[Float[Tensor, "tokens D"]]:
        """The 2D tokens of each video or still image, in the decoder's width."""

    @abstractmethod
    def position_ids(
        self,
        layout: SequenceLayout,
        time_index: TimeIndex,
        *,
        seconds_per_grid: SecondsPerGrid | None = None,
        frame_indices: Sequence[Sequence[int]] | None = None,
        cameras: Cameras | None = None,
    ) -> Int[Tensor, "axes B L"]:
        """Position ids of every token; see `zoo.positions.mrope_position_ids` for the arguments."""

    @abstractmethod
    def visual_inputs(self, tokens: Mapping[MediaKind, Sequence[Float[Tensor, "_n D"]]]) -> dict[str, Any]:
        """The keyword arguments of the stock model that replace its placeholders by visual tokens."""

    @abstractmethod
    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        """Runs the decoder.

        Returns:
            An object with `last_hidden_state` (B, L, D) and `cache`.
        """

    @abstractmethod
    def generate(self, inputs: Mapping[str, Any], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to left-padded sequences: new tokens only, up to a stop token (included)."""

    def layout(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"],
        grids: Mapping[MediaKind, Int[Tensor, "M 3"] | None],
        extra_tokens: ExtraTokens = ExtraTokens.NOTHING,
    ) -> SequenceLayout:
        """The visual tokens of a batch of sequences."""
        return SequenceLayout(
            input_ids,
            attention_mask,
            video_grid_thw=grids.get("video"),
            image_grid_thw=grids.get("image"),
            placeholders=self.placeholders,
            spatial_merge_size=self.spatial_merge_size,
            extra_tokens=extra_tokens,
        )

    def encode_cameras(self, encoding: CameraEncoding, cameras: Cameras) -> EncodedCameras:
        """What the encoding does in one forward pass of this decoder."""
        shape = self.decoder_layout
        return encoding.encode(cameras, head_dim=shape.head_dim, mrope_section=list(shape.mrope_section))

    # ---- attention of several questions in one sequence ---------------------------------------------------------

    @property
    @abstractmethod
    def attn_implementation(self) -> str:
        """The decoder's attention backend."""

    @property
    def supports_custom_mask(self) -> bool:
        """Whether the attention takes a mask of our own; flash attention does not."""
        return self.attn_implementation in ("sdpa", "eager", "flex_attention")

    def question_mask(
        self, queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"]
    ) -> Bool[Tensor, "B 1 T K"] | Float[Tensor, "B 1 T K"] | BlockMask:
        """`prefix_causal_mask` in the form that the attention backend takes.

        Raises:
            ValueError: a backend without custom masks.
        """
        if not self.supports_custom_mask:
            raise ValueError(f"{self.attn_implementation} takes no mask of its own: give it one question per sequence")
        if self.attn_implementation == "flex_attention":
            return block_mask(queries, keys)
        visible = prefix_causal_mask(queries, keys)[:, None]
        if self.attn_implementation == "sdpa":
            return visible
        dtype = self.like.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)  # is added


class BackboneLoader(Configurable, ABC):
    """A recipe for a `Backbone`: where its weights come from. Nothing is loaded before `load` is called.

    Args:
        attn_implementation: the attention backend of transformers. `flex_attention`, for the decoder alone, needs a GPU
            to train; it skips the blocks that no question sees where several share one sequence.
        dtype: the type of the weights.

    Attributes:
        is_pretrained: whether the weights answer questions before they are trained here.
        released_path: folder or hub id of the released weights; None for random ones.
    """

    is_pretrained: bool = False
    released_path: str | None = None

    def __init__(self, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "float32") -> None:
        if attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                "attn_implementation=flash_attention_2 needs flash-attn, which is not installed: "
                "pip install flash-attn --no-build-isolation on a CUDA machine, or choose sdpa"
            )
        self.attn_implementation: AttentionImplementation = attn_implementation
        self.dtype = getattr(torch, dtype)

    @property
    def model_attention(self) -> str:
        """The attention backend of the model as a whole: FlexAttention serves the decoder alone."""
        return "sdpa" if self.attn_implementation == "flex_attention" else self.attn_implementation

    @abstractmethod
    def load(self) -> Backbone:
        """The model in training mode on the current device; on the meta device no weights are read."""

    def load_geometry(self) -> GeometryEncoder | None:
        """The geometry encoder that was released with these weights, if there is one."""
        return None

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Reads the fusion's weights if they were released with these; returns whether they were."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the released weights."""
        return ()

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a released folder with this config.json is one of this class's."""
        return False

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        """The arguments of `SpatialVLM` for the released model in a folder or hub repository."""
        return {"backbone": cls(path)}  # type: ignore[arg-type]
