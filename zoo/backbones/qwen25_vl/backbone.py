"""Qwen2.5-VL behind the backbone seam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.backbones.base import Backbone, BackbonePart
from zoo.backbones.qwen25_vl.attention import CameraQwen25VL, greedy, install_camera_attention
from zoo.backbones.qwen25_vl.preprocessor import Qwen25VLPreprocessor
from zoo.backbones.qwen25_vl.vision_tower import install_fast_vision
from zoo.decoder_layout import DecoderLayout
from zoo.encodings.base import CameraEncoding
from zoo.sequence_layout import MediaKind, Placeholders
from zoo.visual_grid import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE


class Qwen25VLBackbone(Backbone):
    """The stock model with camera hooks in its decoder's attention, and a faster vision tower with the same results.

    Args:
        vlm: the stock model, changed in place; its weights and their names stay.
        processor: its processor; None for a model that takes token ids only.
        attn_implementation: attention backend of the decoder; None is the model's. transformers supports FlexAttention
            for the decoder of this model, but not for the whole model.
        stop_tokens: token ids that end an answer, in addition to the config's.
    """

    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        vlm: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor | None,
        attn_implementation: str | None = None,
        stop_tokens: Iterable[int] = (),
    ) -> None:
        super().__init__()
        text, vision = vlm.config.text_config, vlm.config.vision_config
        merge = (vision.temporal_patch_size, vision.spatial_merge_size)
        if merge != (TEMPORAL_PATCH_SIZE, SPATIAL_MERGE_SIZE):
            raise ValueError(f"this model merges {merge} frames and patches per side; the zoo is built for 2 and 2")
        vlm.__class__ = CameraQwen25VL
        install_fast_vision(vlm.model.visual)
        self.vlm: CameraQwen25VL = vlm
        if attn_implementation is not None:
            self.decoder.config._attn_implementation = attn_implementation
        if processor is not None:
            self.preprocessor = Qwen25VLPreprocessor(processor)
        config = vlm.config
        self.placeholders = Placeholders(config.video_token_id, config.image_token_id, config.vision_start_token_id)
        own = text.eos_token_id
        self.stop_tokens = list(dict.fromkeys([*([own] if isinstance(own, int) else own or ()), *stop_tokens]))
        self.spatial_merge_size, self.tokens_per_second = vision.spatial_merge_size, vision.tokens_per_second
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    @property
    def decoder_layout(self) -> DecoderLayout:
        text, rotary = self.vlm.config.text_config, self.decoder.rotary_emb
        return DecoderLayout(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            mrope_section=tuple(text.rope_parameters["mrope_section"]),
            rope_frequencies=(rotary.inv_freq, rotary.original_inv_freq),
            device=self.like.device,
        )

    def part_of(self, name: str) -> BackbonePart:
        """See `Backbone`; the vision tower's last projection (`visual.merger`) is connector, as in Spatial-MLLM."""
        if ".visual.merger." in f".{name}":
            return "connector"
        return "vision" if ".visual." in f".{name}" else "decoder"

    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        install_camera_attention(self.decoder)
        if encoding is not None:
            encoding.bind_to_decoder(self.decoder_layout, range(self.decoder_layout.num_layers))

    def encode_vision(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "M 3"]
    ) -> list[Float[Tensor, "tokens D"]]:
        return list(self.vlm.model.get_video_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    def visual_inputs(self, tokens: Mapping[MediaKind, Sequence[Float[Tensor, "_n D"]]]) -> dict[str, Any]:
        outputs = {kind: BaseModelOutputWithPooling(pooler_output=tuple(each)) for kind, each in tokens.items() if each}
        return {"mm_encoder_outputs": outputs}

    def generate(
        self, inputs: Mapping[str, Any], max_new_tokens: int, repetition_penalty: float = 1.0
    ) -> list[list[int]]:
        return greedy(self.vlm, dict(inputs), max_new_tokens, self.stop_tokens, repetition_penalty)
