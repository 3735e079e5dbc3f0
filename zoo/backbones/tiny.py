"""Tiny Qwen-VL models with random weights and a tokenizer that is trained when it is first used; no download.

Only the sizes differ from the released models: the classes of model, tokenizer and processor are those of transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import Qwen2Tokenizer
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.seed import resolve_seed

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
INITIALIZER_RANGE = 0.06  # the released 0.02 suits widths of thousands: here it only delays the start
CORPUS = Path(__file__).parent / "tiny_corpus.txt"


@cache
def tiny_tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level BPE tokenizer of under 800 tokens.

    It is trained on tiny_corpus.txt, the benchmark's wording. A change of that file changes the token ids, and with
    them the meaning of tiny checkpoints.
    """
    untrained = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return untrained.train_new_from_iterator(
        CORPUS.read_text().splitlines(keepends=True) * 3,  # a pair must be seen more than once to be merged
        vocab_size=1000,
        new_special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )


class TinyQwenVL(BackboneLoader):
    """Random weights.

    Args:
        layers: Decoder layers.
        hidden_size: Width of the decoder.
        heads: Attention heads of the decoder, of hidden_size / heads channels each.
        key_value_heads: Heads of the decoder's keys and values.
        vision_layers: Layers of the vision tower.
        vision_hidden_size: Width of the vision tower.
        seed: Seed of the weights; null is the run's.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.

    Attributes:
        stock_class: The model of transformers.
        backbone_class: The same behind the backbone seam.
    """

    stock_class: ClassVar[Any]
    backbone_class: ClassVar[type[QwenVLBackbone]]

    def __init__(
        self,
        layers: int = 4,
        hidden_size: int = 192,
        heads: int = 6,
        key_value_heads: int = 2,
        vision_layers: int = 2,
        vision_hidden_size: int = 128,
        seed: int | None = None,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "float32",
    ):
        super().__init__(attn_implementation, dtype)
        pairs = hidden_size // heads // 2
        if pairs % 8:
            raise ValueError(f"hidden_size / heads = {hidden_size / heads}: a head needs a multiple of 16 channels")
        ids = tiny_tokenizer().convert_tokens_to_ids
        self.seed = resolve_seed(seed)
        text = dict(
            vocab_size=len(tiny_tokenizer()),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            rms_norm_eps=1e-6,
            initializer_range=INITIALIZER_RANGE,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        )
        vision = dict(
            depth=vision_layers,
            hidden_size=vision_hidden_size,
            intermediate_size=2 * vision_hidden_size,
            num_heads=4,
            out_hidden_size=hidden_size,
            initializer_range=INITIALIZER_RANGE,
        )
        more_text, more_vision = self.own_settings(pairs, text, vision_layers)
        self.config = self.stock_class.config_class(
            text_config=text | more_text,
            vision_config=vision | more_vision,
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        self.config._attn_implementation = self.model_attention

    @abstractmethod
    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of decoder and vision tower that other models don't share.

        Args:
            pairs: RoPE's frequencies.
            text: The settings of the decoder that all models share.
            vision_layers: Layers of the vision tower.
        """

    @abstractmethod
    def processor(self) -> Any:
        """Return transformers' processor."""

    def stock_model(self) -> Any:
        """Return transformers' model without the zoo's hooks."""
        # not .to(dtype) afterwards: that would round RoPE's frequencies as well
        with local_torch_dtype(self.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.stock_class(self.config).train()

    def load(self) -> QwenVLBackbone:
        return self.backbone_class(self.stock_model(), self.processor(), self.attn_implementation)
