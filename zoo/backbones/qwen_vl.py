"""What the Qwen-VL backbones share: a stock model with camera hooks in its decoder's attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.backbones.attention import check_head_channels, replace_classes
from zoo.backbones.base import GROUPED_SDPA, MASKED, Backbone, BackbonePart
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.extra_channels import ExtraChannels
from zoo.errors import InputError
from zoo.sequences.layout import IMAGE_PIXELS, SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, Placeholders


class QwenVLBackbone(Backbone):
    """A stock Qwen-VL, changed in place; its weights and their names stay.

    Args:
        vlm: The stock model.
        processor: Its processor; None for a model that takes token ids only.
        attn_implementation: Attention backend of the decoder; None is the model's. transformers supports FlexAttention
            for the decoder of these models, but not for the whole model.
        stop_tokens: Token ids that end an answer, in addition to the config's.

    Attributes:
        hooked_classes: The class with hooks in place of each stock class of the decoder.
        vision_classes: The faster class with the same results in place of each stock class of the vision tower.
        preprocessor_class: Turns frames and text into inputs.
    """

    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    hooked_classes: ClassVar[Mapping[type, type]]
    vision_classes: ClassVar[Mapping[type, type]]
    preprocessor_class: ClassVar[type[QwenVLPreprocessor]]

    def __init__(
        self, vlm: Any, processor: Any, attn_implementation: str | None = None, stop_tokens: Iterable[int] = ()
    ) -> None:
        super().__init__()
        config = vlm.config
        text, vision = config.text_config, config.vision_config
        merge = (vision.temporal_patch_size, vision.spatial_merge_size)
        if merge != (TEMPORAL_PATCH_SIZE, SPATIAL_MERGE_SIZE):
            raise ValueError(f"this model merges {merge} frames and patches per side; the zoo is built for 2 and 2")
        replace_classes(vlm.model.visual, self.vision_classes)
        self.vlm = vlm
        attention = attn_implementation or self.attn_implementation
        self.decoder.config._attn_implementation = GROUPED_SDPA if attention == "sdpa" else attention
        self.image_pixels = IMAGE_PIXELS
        if processor is not None:
            self.preprocessor = self.preprocessor_class(processor)
            size = processor.image_processor.size
            self.image_pixels = (size["shortest_edge"], size["longest_edge"])
        self.placeholders = Placeholders(
            config.video_token_id, config.image_token_id, config.vision_start_token_id, self.span_per_step
        )
        own = getattr(text, "eos_token_id", None)
        self.stop_tokens = list(dict.fromkeys([*([own] if isinstance(own, int) else own or ()), *stop_tokens]))
        self.spatial_merge_size, self.patch_size = vision.spatial_merge_size, vision.patch_size
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    def blocks(self) -> list[nn.Module]:
        return [*self.decoder.layers, *self.vlm.model.visual.blocks]

    @cached_property
    def head_layout(self) -> HeadLayout:
        attention = next(layer.self_attn for layer in self.decoder.layers if hasattr(layer, "self_attn"))
        rotary = self.decoder.rotary_emb
        # the stock code selects the axis of each frequency: here it selects among the axes' own numbers
        count = len(rotary.inv_freq)
        numbers = torch.arange(3, device="cpu")[:, None].repeat(1, count)
        return HeadLayout(attention.head_dim, tuple(rotary.recomposition_frequencies(numbers)[:count].tolist()))

    @property
    def decoder_layout(self) -> DecoderLayout:
        text, rotary = self.vlm.config.text_config, self.decoder.rotary_emb
        frequencies: tuple[Tensor, ...] = (rotary.inv_freq, rotary.original_inv_freq)
        if rotary.inv_freq.is_meta:  # they are no weights: a model without those has them as well
            with torch.device("cpu"):
                frequencies = (type(rotary)(rotary.config).inv_freq,)
        return DecoderLayout(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head=self.head_layout,
            rope_frequencies=frequencies,
            device=self.device,
        )

    def part_of(self, name: str) -> BackbonePart:
        """See `Backbone`; the vision tower's projections to the decoder's width are connector, as in Spatial-MLLM."""
        if ".visual.merger." in f".{name}" or self.serves_deepstack(name):
            return "connector"
        return "vision" if ".visual." in f".{name}" else "decoder"

    def serves_deepstack(self, name: str) -> bool:
        return ".visual.deepstack_merger_list." in f".{name}"

    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        replace_classes(self.decoder, self.hooked_classes)
        if encoding is not None:
            if encoding.attends_per_view and self.attn_implementation not in MASKED:
                raise InputError(
                    f"{type(encoding).__name__} attends view by view, with masks that {self.attn_implementation} does "
                    "not take: set --model.backbone.attn_implementation sdpa, eager or flex_attention"
                )
            layout = self.decoder_layout
            appended = [each.channels for each in encoding.modules() if isinstance(each, ExtraChannels)]
            check_head_channels(self.attn_implementation, layout.head.dim + max(appended, default=0))
            encoding.bind_to_decoder(layout, layout.layers)
