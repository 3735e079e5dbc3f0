"""A tiny Qwen2.5-VL with random weights and a tokenizer that is trained when it is first used; no download.

Only the sizes differ from the released model: the classes of model, tokenizer and processor are those of transformers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen25_vl.preprocessor import Qwen25VLPreprocessor
from zoo.seed import resolve_seed

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
INITIALIZER_RANGE = 0.06  # the released 0.02 suits widths of thousands: here it only delays the start
FOLDER = Path(__file__).parent


@cache
def tiny_processor() -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's processor with a byte-level BPE tokenizer of under 800 tokens.

    The tokenizer is trained on tiny_corpus.txt, the benchmark's wording. A change of that file changes the token ids,
    and with them the meaning of tiny checkpoints. The chat template renders the same text as the released one.
    """
    lines = (FOLDER / "tiny_corpus.txt").read_text().splitlines(keepends=True)
    untrained = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = untrained.train_new_from_iterator(
        lines * 3,  # a pair must be seen more than once to be merged
        vocab_size=1000,
        new_special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=(FOLDER / "tiny_chat_template.jinja").read_text().rstrip("\n"),
    )


def tiny_preprocessor() -> Qwen25VLPreprocessor:
    """Return the tiny processor behind the zoo's interface."""
    return Qwen25VLPreprocessor(tiny_processor())


class TinyQwen25VL(BackboneLoader):
    """Random weights.

    Args:
        layers: decoder layers.
        hidden_size: width of the decoder.
        heads: attention heads of the decoder, of hidden_size / heads channels each.
        key_value_heads: heads of the decoder's keys and values.
        vision_layers: layers of the vision tower; the last attends to the whole frame, the others to windows.
        vision_hidden_size: width of the vision tower.
        seed: seed of the weights; null is the run's.
        attn_implementation: the attention backend of transformers.
        dtype: the type in which the weights are kept.
    """

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
        ids = tiny_processor().tokenizer.convert_tokens_to_ids
        self.seed = resolve_seed(seed)
        self.config = Qwen2_5_VLConfig(
            text_config=dict(
                vocab_size=len(tiny_processor().tokenizer),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_value_heads,
                rms_norm_eps=1e-6,
                initializer_range=INITIALIZER_RANGE,
                # the released models' split of a head: 2/8 time, 3/8 height, 3/8 width
                rope_parameters=dict(
                    rope_type="default", rope_theta=1e6, mrope_section=[pairs // 4, pairs * 3 // 8, pairs * 3 // 8]
                ),
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=ids("<|im_end|>"),
                pad_token_id=ids("<|endoftext|>"),
            ),
            vision_config=dict(
                depth=vision_layers,
                hidden_size=vision_hidden_size,
                intermediate_size=2 * vision_hidden_size,
                num_heads=4,
                tokens_per_second=2,
                out_hidden_size=hidden_size,
                fullatt_block_indexes=[vision_layers - 1],
                initializer_range=INITIALIZER_RANGE,
            ),
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        self.config._attn_implementation = self.model_attention

    def stock_model(self) -> Qwen2_5_VLForConditionalGeneration:
        """Return transformers' model without the zoo's hooks."""
        # not .to(dtype) afterwards: that would round RoPE's frequencies as well
        with local_torch_dtype(self.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Qwen2_5_VLForConditionalGeneration(self.config).train()

    def load(self) -> Qwen25VLBackbone:
        return Qwen25VLBackbone(self.stock_model(), tiny_processor(), self.attn_implementation)
