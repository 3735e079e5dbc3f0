"""Qwen2.5-VL behind the backbone seam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.backbones.base import Backbone, BackbonePart
from zoo.backbones.qwen25_vl.attention import CameraQwen25VL, greedy, install_camera_attention
from zoo.backbones.qwen25_vl.preprocessor import Qwen25VLPreprocessor
from zoo.backbones.qwen25_vl.vision_tower import install_fast_vision
from zoo.cameras import Cameras
from zoo.decoder_layout import DecoderLayout
from zoo.encodings.base import CameraEncoding
from zoo.positions import SecondsPerGrid, layout_position_ids
from zoo.sequence_layout import MediaKind, Placeholders, SequenceLayout
from zoo.time_index import TimeIndex
from zoo.visual_grid import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE


class Qwen25VLBackbone(Backbone):
    """The stock model with camera hooks in its decoder's attention, and a faster vision tower with the same numbers.

    Args:
        vlm: the stock model, which is changed in place; its weights and their names stay.
        processor: its processor; None for a model that only takes token ids.
        attn_implementation: of the decoder; None keeps that of the model. transformers refuses FlexAttention for this
            model as a whole, but its decoder takes it.
        stop_tokens: token ids that end an answer beside the config's own.
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
        self.spatial_merge_size = vision.spatial_merge_size
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    @property
    def decoder(self) -> Any:
        return self.vlm.model.language_model

    @property
    def lm_head(self) -> nn.Module:
        return self.vlm.lm_head

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

    @property
    def attn_implementation(self) -> str:
        return self.decoder.config._attn_implementation

    def part_of(self, name: str) -> BackbonePart:
        """The vision tower's last projection (`visual.merger`) trains with the connector, as in Spatial-MLLM."""
        if ".visual.merger." in f".{name}":
            return "connector"
        return "vision" if ".visual." in f".{name}" else "decoder"

    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        install_camera_attention(self.decoder)
        if encoding is not None:
            encoding.bind_to_decoder(self.decoder_layout, range(self.decoder_layout.num_layers))

    def enable_gradient_checkpointing(self) -> None:
        self.vlm.activation_checkpointing_enable({"use_reentrant": False})

    def encode_vision(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "M 3"]
    ) -> list[Float[Tensor, "tokens D"]]:
        return list(self.vlm.model.get_video_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    def position_ids(
        self,
        layout: SequenceLayout,
        time_index: TimeIndex,
        *,
        seconds_per_grid: SecondsPerGrid | None = None,
        frame_indices: Sequence[Sequence[int]] | None = None,
        cameras: Cameras | None = None,
    ) -> Int[Tensor, "3 B L"]:
        return layout_position_ids(
            layout,
            time_index,
            seconds_per_grid,
            self.vlm.config.vision_config.tokens_per_second,
            frame_indices=frame_indices,
            cameras=cameras,
        )

    def visual_inputs(self, tokens: Mapping[MediaKind, Sequence[Float[Tensor, "_n D"]]]) -> dict[str, Any]:
        outputs = {kind: BaseModelOutputWithPooling(pooler_output=tuple(each)) for kind, each in tokens.items() if each}
        return {"mm_encoder_outputs": outputs}

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        more = {} if cache is None else {"cache": cache}
        return self.vlm.model(**inputs, **more, use_cache=use_cache)

    def generate(self, inputs: Mapping[str, Any], max_new_tokens: int) -> list[list[int]]:
        return greedy(self.vlm, dict(inputs), max_new_tokens, self.stop_tokens)
