"""A tiny Qwen2.5-VL with random weights, and a tokenizer trained on the spot: nothing is downloaded.

Everything but the sizes is the real thing: transformers' model, tokenizer and processor classes, the same
special tokens, and a chat template that renders the same text. What runs tiny runs at 3B.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen25_vl.preprocessor import Qwen25VLPreprocessor

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
VISION = dict(patch_size=14, temporal_patch_size=2, merge_size=2)
NORMALIZATION = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
INITIALIZER_RANGE = 0.06  # the released 0.02 suits widths of thousands: here it only delays the start

# ChatML as Qwen2.5-VL writes it: the default system prompt comes first unless the chat brings its own.
CHAT_TEMPLATE = """\
{%- macro turn(role, body) -%}
{{ '<|im_start|>' + role + '\\n' + body + '<|im_end|>\\n' }}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
{{ turn('system', 'You are a helpful assistant.') }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{{ turn(message.role, message.content) }}
{%- else -%}
{%- set body -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'video') -%}
{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endset -%}
{{ turn(message.role, body) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""

# What the tokenizer learns from: the benchmark's wording. Changing it changes the ids, and with them what
# a tiny checkpoint means.
CORPUS = """\
system
You are a helpful assistant.
user
These are frames of a video.
How many chair(s) are in this room?
Please answer the question using a single word or phrase.
Answer with the option's letter from the given choices directly.
assistant
What is the size of this room (in square meters)? If multiple rooms are shown, estimate the size of the combined space.
What is the length of the longest dimension (length, width, or height) of the table, measured in centimeters?
Measuring from the closest point of each object, what is the distance between the sofa and the stove (in meters)?
Measuring from the closest point of each object, which of these objects (chair, table, tv, sofa) is the closest to the bed?
Options:
A. chair
B. table
C. left
D. right
If I am standing by the bed and facing the lamp, is the door to the left or the right of the lamp?
If I am standing by the stove and facing the sofa, is the stool to my left, right, or back?
An object is to my back if I would have to turn at least 135 degrees in order to face it.
If I am standing by the sofa and facing the stove, is the tv to my front-left, front-right, back-left, or back-right?
The directions refer to the quadrants of a Cartesian plane (if I am standing at the origin and facing along the positive y-axis).
What will be the first-time appearance order of the following categories in the video: refrigerator, cabinet, plant, desk?
B. desk, plant, refrigerator, cabinet
front-left back-right back front
bookshelf shelf window monitor trash bin toilet sink bathtub washer dishwasher oven microwave fireplace ceiling light
"""


@cache
def tiny_processor() -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around a byte-level BPE tokenizer of under 800 tokens trained on `CORPUS`."""
    untrained = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = untrained.train_new_from_iterator(
        [line + "\n" for line in CORPUS.splitlines()] * 3,  # a pair must be seen more than once to be merged
        vocab_size=1000,
        new_special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**VISION, **NORMALIZATION),
        video_processor=Qwen2VLVideoProcessor(**VISION, **NORMALIZATION),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_preprocessor() -> Qwen25VLPreprocessor:
    """The tiny processor as the zoo uses it."""
    return Qwen25VLPreprocessor(tiny_processor())


class TinyQwen25VL(BackboneLoader):
    """Random weights from a seed.

    Args:
        layers: of the decoder.
        hidden_size: of the decoder.
        heads: of the decoder's attention; a head has hidden_size / heads channels.
        key_value_heads: of the decoder's attention.
        vision_layers: of the vision tower; the last attends to the whole frame, the others to windows.
        vision_hidden_size: of the vision tower.
        seed: of the weights.
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
        seed: int = 0,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "float32",
    ):
        super().__init__(attn_implementation, dtype)
        pairs = hidden_size // heads // 2
        if pairs % 8:
            raise ValueError(f"hidden_size / heads = {hidden_size / heads}: a head needs a multiple of 16 channels")
        ids = tiny_processor().tokenizer.convert_tokens_to_ids
        self.seed = seed
        self.config = Qwen2_5_VLConfig(
            text_config=dict(
                vocab_size=len(tiny_processor().tokenizer),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_value_heads,
                max_position_embeddings=32768,
                rms_norm_eps=1e-6,
                initializer_range=INITIALIZER_RANGE,
                # the released models' split of a head: 2/8 time, 3/8 height, 3/8 width
                rope_parameters=dict(
                    rope_type="default",
                    rope_theta=1e6,
                    mrope_section=[pairs // 4, pairs * 3 // 8, pairs * 3 // 8],
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
                in_channels=3,
                patch_size=14,
                spatial_merge_size=2,
                temporal_patch_size=2,
                tokens_per_second=2,
                window_size=112,
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
        """The model as transformers has it, without the zoo's hooks."""
        default = torch.get_default_dtype()
        try:
            # not .to(dtype) afterwards: that would round RoPE's frequencies as well
            torch.set_default_dtype(self.dtype)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                vlm = Qwen2_5_VLForConditionalGeneration(self.config)
        finally:
            torch.set_default_dtype(default)
        return vlm.train()

    def load(self) -> Qwen25VLBackbone:
        return Qwen25VLBackbone(self.stock_model(), tiny_processor(), self.attn_implementation)
