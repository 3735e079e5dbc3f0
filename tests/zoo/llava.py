"""A tiny LLaVA: SigLIP before a Qwen2 with 1D positions, in other tensor names than any family of the zoo.

A published method of such a family is one file like this one. `LlavaPlus` also has a VGGT and a fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer

from zoo.backbones.base import AttentionImplementation, Backbone, BackboneLoader, BackbonePart, DType, VisualTokens
from zoo.backbones.decoder import GROUPED_SDPA, CameraAttention, FusionLayer
from zoo.backbones.pretrained import GEOMETRY, PretrainedBackbone, empty_model
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.backbones.qwen_vl import QwenVLPreprocessor, tiny_tokenizer
from zoo.encodings.base import HeadLayout
from zoo.fusions import AddFusion
from zoo.published.release import Release, ReleasedGeometry, aggregator_arguments
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, Placeholders
from zoo.sequences.loaded_scene import Grid, VisionInputs, VisionRules
from zoo.sequences.time_index import SequentialIndex, TimeIndex

# ---- The backbone ----------------------------------------------------------------------------------------------------

PATCH, PATCHES = 14, 4  # per side; 2 x 2 patches are averaged to a token
SIDE = PATCH * PATCHES
TEMPLATE = """{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.content is string -%}{{ m.content }}
{%- else -%}{%- for part in m.content -%}{{ '<|image_pad|>' if part.type == 'image' else part.text }}{%- endfor -%}
{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


@dataclass(frozen=True)
class SquareRules(VisionRules):
    """Every picture has the same grid, so nothing depends on it."""

    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        return VisionInputs([t * h * w // 4 for t, h, w in grids], {}, {})


def patches_of(pictures: Tensor) -> Tensor:
    """Cut square pictures (S, 3, SIDE, SIDE) into rows of one patch each."""
    cut = pictures.unflatten(3, (PATCHES, PATCH)).unflatten(2, (PATCHES, PATCH))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


class LlavaPreprocessor(QwenVLPreprocessor):
    """Each picture is resized to a square."""

    def cut_patches(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        pictures = F.interpolate(frames[::TEMPORAL_PATCH_SIZE].float(), (SIDE, SIDE)).to(torch.uint8)
        return patches_of(pictures), torch.tensor([len(pictures), PATCHES, PATCHES])

    def normalize(self, patches: Tensor) -> Tensor:
        return patches.float() / 127.5 - 1


class LlavaAttention(CameraAttention, Qwen2Attention):
    """The decoder's attention with camera hooks."""


class LlavaLayer(FusionLayer, Qwen2DecoderLayer):
    """A decoder layer, in which a fusion may change the visual tokens."""


class LlavaBackbone(Backbone):
    """The original model with camera hooks."""

    hooked_classes = {Qwen2Attention: LlavaAttention, Qwen2DecoderLayer: LlavaLayer}
    lora_targets = ("q_proj", "v_proj")
    tokens_per_second = 1

    def __init__(
        self, vlm: Any, processor: Any, attn_implementation: str | None = None, stop_tokens: Sequence[int] = ()
    ) -> None:
        super().__init__()
        text, ids = vlm.config.text_config, tiny_tokenizer().convert_tokens_to_ids
        self.vlm = vlm
        self.decoder.config._attn_implementation = GROUPED_SDPA
        if processor is not None:
            self.preprocessor = LlavaPreprocessor(processor)
        self.placeholders = Placeholders(ids("<|video_pad|>"), ids("<|image_pad|>"), None)
        self.stop_tokens = [ids("<|im_end|>"), *stop_tokens]
        self.spatial_merge_size, self.patch_size, self.image_pixels = 2, PATCH, None
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    @property
    def head_layout(self) -> HeadLayout:
        width = self.decoder.layers[0].self_attn.head_dim
        return HeadLayout(width, (0,) * (width // 2))

    def blocks(self) -> list[nn.Module]:
        return [*self.decoder.layers, *self.vlm.model.vision_tower.encoder.layers]

    def part_of(self, name: str) -> BackbonePart:
        found: BackbonePart = "vision" if "vision_tower" in name else "decoder"
        return "connector" if "projector" in name else found

    def default_time_index(self) -> TimeIndex:
        return SequentialIndex()

    @property
    def vision_rules(self) -> SquareRules:
        return SquareRules()

    def encode_vision(self, pixel_values: Tensor, vision: VisionInputs) -> VisualTokens:
        tower = self.vlm.model.vision_tower
        patches = self.preprocessor.normalize(pixel_values).view(-1, PATCHES, PATCHES, 3, PATCH, PATCH)
        pictures = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).to(self.like.dtype)
        states = tower(pictures, output_hidden_states=True).hidden_states[-2]
        states = self.vlm.model.multi_modal_projector(states).unflatten(1, (PATCHES, PATCHES)).movedim(-1, 1)
        tokens = F.avg_pool2d(states, 2).flatten(2).mT.flatten(0, 1)
        return VisualTokens(tokens, tokens.new_empty(0, *tokens.shape))

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        return super().decode({**inputs, "position_ids": inputs["position_ids"][0]}, cache=cache, use_cache=use_cache)


def llava_config(settings: Mapping[str, Any]) -> LlavaConfig:
    ids = tiny_tokenizer().convert_tokens_to_ids
    text = dict(
        model_type="qwen2",
        hidden_size=settings["width"],
        intermediate_size=2 * settings["width"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tiny_tokenizer()),
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        bos_token_id=None,
    )
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=ids("<|image_pad|>"), tie_word_embeddings=False
    )


class TinyLlava(BackboneLoader):
    """A tiny LLaVA with random weights."""

    def load(self) -> LlavaBackbone:
        torch.manual_seed(0)
        vlm = LlavaForConditionalGeneration(llava_config({"width": 64, "layers": 2})).train()
        processor = tiny_processor()
        kinds = processor.image_processor, processor.tokenizer, processor.video_processor
        return LlavaBackbone(vlm, Qwen2_5_VLProcessor(*kinds, chat_template=TEMPLATE))


# ---- The published folders -------------------------------------------------------------------------------------------


class PretrainedLlava(PretrainedBackbone):
    """Released weights of the family alone."""

    title = backbone_title = "LLaVA"
    family, released, architecture = "llava_tiny", "example/llava-tiny", "LlavaTinyForCausalLM"
    stock, processor_class, backbone_class = LlavaForConditionalGeneration, Qwen2_5_VLProcessor, LlavaBackbone
    renamed = {
        "model.vision_tower_list.0.": "model.vision_tower.",
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
    }
    not_loaded = ("model.next_frame_head.",)
    known_configs = {"llava-tiny": ("", {"model_type": "llava_tiny", "width": 64, "layers": 2})}
    shown_as = {"frames_as": "image"}

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "float32"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        return llava_config(settings)

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        return {"width": config.text_config.hidden_size, "layers": config.text_config.num_hidden_layers}


class PlusFusion(AddFusion):
    """Its own class, because a fusion tells which release a model belongs to. It has a parameter of no submodule."""

    def __init__(self, width: int, geometry_width: int) -> None:
        super().__init__(width, geometry_width)
        self.strength = nn.Parameter(torch.full((1,), 0.5))

    def embed_3d(self, merged: Tensor) -> Tensor:
        return self.strength * super().embed_3d(merged)


class PretrainedLlavaPlus(Release, PretrainedLlava):
    """The same with a VGGT and a connector."""

    title, released, architecture = "LLaVA-Plus", "example/llava-plus", "LlavaPlusForCausalLM"
    released_fusions = (PlusFusion,)
    prefixes = ("eyes.vggt.",)
    config_keys = (*Release.config_keys, "eyes_layer")
    known_configs = {}

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == cls.family and "eyes_layer" in config

    @cached_property
    def released_geometry(self) -> ReleasedGeometry:
        layers = (self.settings["eyes_layer"],)
        return ReleasedGeometry(LAYOUT, aggregator_arguments(self.settings), layers, partial(PlusFusion))

    @classmethod
    def fusion_layout(cls, model: Any) -> Mapping[str, str]:
        return LAYOUT

    @classmethod
    def fusion_settings(cls, model: Any, source: Mapping[str, Any]) -> dict[str, Any]:
        return {"eyes_layer": model.geometry.layers[0]}


LAYOUT = {"eyes.vggt.": f"{GEOMETRY}vggt.", "adapter.": "fusion.connector.", "adapter_strength": "fusion.strength"}


def official_logits(tensors: Mapping[str, Tensor], ids: Tensor, pictures: Tensor) -> Tensor:
    """Compute a folder's logits by transformers' own forward, without the zoo's code for visual tokens."""
    own = {}
    for name, tensor in tensors.items():
        found = next((old for old in PretrainedLlava.renamed if name.startswith(old)), "")
        own[PretrainedLlava.renamed.get(found, "") + name.removeprefix(found)] = tensor
    vlm = empty_model(LlavaForConditionalGeneration, llava_config({"width": 64, "layers": 2}), torch.float32)
    vlm.load_state_dict(own, strict=False, assign=True)
    vlm.eval()
    pixels = pictures.float() / 127.5 - 1
    states = vlm.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    grid = vlm.model.multi_modal_projector(states).unflatten(1, (PATCHES, PATCHES)).movedim(-1, 1)
    visual = F.avg_pool2d(grid, 2).flatten(2).mT.flatten(0, 1)
    embeddings = vlm.get_input_embeddings()(ids)
    embeddings[ids == vlm.config.image_token_id] = visual
    return vlm.lm_head(vlm.model.language_model(inputs_embeds=embeddings).last_hidden_state)
