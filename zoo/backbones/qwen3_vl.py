"""Dense Qwen3-VL (arXiv 2511.21631). Released folders are read by `zoo.backbones.pretrained`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionPatchMerger,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from zoo.backbones.decoder import CameraAttention, FusionLayer, add_features
from zoo.backbones.qwen_vl import QwenVLBackbone, QwenVLPreprocessor, TinyQwenVL, tiny_tokenizer
from zoo.backbones.vision import PatchEmbedding, SegmentAttention, VisionMerger
from zoo.encodings.base import QK
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import Grid, Segments, VisionInputs, VisionRules
from zoo.sequences.time_index import SpanIndex, TimeIndex

# ---- The vision encoder's inputs that depend on grids alone, by transformers' own functions --------------------------


@dataclass(frozen=True)
class Qwen3VisionRules(VisionRules):
    """Positions and frames of the patches, and the interpolation of learned positions to a grid.

    Attributes:
        spatial_merge_size: Patches per side in one visual token.
        side: Side of the square of learned positions.
        mode: Mode of the interpolation.
        align_corners: Option of the interpolation.
    """

    spatial_merge_size: int
    side: int
    mode: str
    align_corners: bool

    @classmethod
    def of(cls, encoder: Any) -> Qwen3VisionRules:
        """Read the values from a vision encoder."""
        merge = encoder.config.spatial_merge_size
        return cls(merge, encoder.num_grid_per_side, encoder.interpolation_mode, encoder.interpolation_align_corners)

    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        grid_thw = torch.tensor(grids)
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=self.side,
            mode=self.mode,
            align_corners=self.align_corners,
            spatial_merge_size=self.spatial_merge_size,
        )
        frames = Segments(get_vision_cu_seqlens(grid_thw))
        return VisionInputs(
            [t * h * w // self.spatial_merge_size**2 for t, h, w in grids],
            {
                "interp_indices": indices,
                "interp_weights": weights,
                "position_ids": get_vision_position_ids(grid_thw, self.spatial_merge_size),
                "cu_seqlens": frames,
            },
            {"max_seqlen": frames.longest},
        )


# ---- Frames and text to inputs: the time of each temporal patch is text before its visual tokens ---------------------

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"  # as in the chat template
MEDIUM = re.compile(r"<\|vision_start\|><\|(?:video|image)_pad\|><\|vision_end\|>")


class Qwen3VLPreprocessor(QwenVLPreprocessor):
    """See `Preprocessor`.

    Attributes:
        title: Name of the model, for errors.
    """

    title: ClassVar[str] = "Qwen3-VL"

    def place_media(
        self, texts: Sequence[str], media_grids: Sequence[Sequence[int]], frame_times: Sequence[float] | None
    ) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """Replace each video of a chat by a block `<1.5 seconds><|vision_start|>...<|vision_end|>` per temporal patch.

        The time is the mean of the patch's first and last frame. The blocks also replace the template's own markers, as
        in transformers 4.57, with which the model was released. The processor of 5.24 leaves a second pair of markers
        around them.
        """
        grids, times = iter(media_grids), iter(frame_times or ())
        placed: list[Sequence[int]] = []

        def place(mark: re.Match[str]) -> str:
            steps, height, width = next(grids)
            placed.extend([(1, height, width)] * steps)
            if mark.group() != VIDEO:
                return mark.group()
            found = list(islice(times, steps * TEMPORAL_PATCH_SIZE))
            if len(found) < steps * TEMPORAL_PATCH_SIZE:
                raise InputError(
                    f"{self.title} writes the time of the frames into the prompt, and these have none: give a video "
                    'file, a folder whose cameras.json has "times_s", or times_s with frames in memory'
                )
            first, last = found[::TEMPORAL_PATCH_SIZE], found[TEMPORAL_PATCH_SIZE - 1 :: TEMPORAL_PATCH_SIZE]
            return "".join(f"<{(a + b) / 2:.1f} seconds>{VIDEO}" for a, b in zip(first, last, strict=True))

        return [MEDIUM.sub(place, text) for text in texts], placed

    def save_pretrained(self, folder: str) -> None:
        super().save_pretrained(folder)
        self.processor.video_processor.save_pretrained(folder)  # transformers 4.57 expects it here


# ---- The model of transformers with camera hooks. It has DeepStack, and a prompt block per temporal patch ------------


class Qwen3VLAttention(CameraAttention, Qwen3VLTextAttention):
    """The decoder's attention with camera hooks after the norms of queries and keys."""

    q_norm: Any
    k_norm: Any

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        return self.q_norm(q), self.k_norm(k)


class Qwen3VLLayer(FusionLayer, Qwen3VLTextDecoderLayer):
    """A decoder layer, in which a fusion may change the visual tokens."""


class Qwen3VLDecoder(Qwen3VLTextModel):
    """The original decoder, which adds features by the places of visual tokens. A mask would wait for the GPU.

    They are added outside of the layers, as published: what objectives read of a layer does not have them.
    """

    def _deepstack_process(self, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if visual_pos_masks.dtype == torch.bool:  # called by the original model's own forward
            added: Tensor = super()._deepstack_process(hidden_states, visual_pos_masks, visual_embeds)
            return added
        return add_features(hidden_states, visual_pos_masks, visual_embeds)


class FrameAttention(SegmentAttention, Qwen3VLVisionAttention):
    """The vision encoder's attention, within frames."""


class Qwen3VLPatchEmbedding(PatchEmbedding, Qwen3VLVisionPatchEmbed):
    """The vision encoder's patch embedding."""


class Qwen3VLMerger(VisionMerger, Qwen3VLVisionPatchMerger):
    """The vision encoder's merger."""


class Qwen3VLBackbone(QwenVLBackbone):
    """The original model with camera hooks, see `QwenVLBackbone`.

    DeepStack features are added to the hidden states of the visual tokens after each of the first decoder layers. All
    temporal patches have the positions of images, with their time as text before them.
    """

    hooked_classes = {
        Qwen3VLTextAttention: Qwen3VLAttention,
        Qwen3VLTextDecoderLayer: Qwen3VLLayer,
        Qwen3VLTextModel: Qwen3VLDecoder,
    }
    vision_classes = {
        Qwen3VLVisionAttention: FrameAttention,
        Qwen3VLVisionPatchEmbed: Qwen3VLPatchEmbedding,
        Qwen3VLVisionPatchMerger: Qwen3VLMerger,
    }
    preprocessor_class = Qwen3VLPreprocessor
    span_per_step = True
    tokens_per_second = 2  # Qwen2.5-VL's value, for a time index that replaces this model's own

    @property
    def vision_rules(self) -> Qwen3VisionRules:
        return Qwen3VisionRules.of(self.vlm.model.visual)

    def deepstack_inputs(self, places: Int[Tensor, " N"], features: Float[Tensor, "layers N D"]) -> dict[str, Any]:
        return {"visual_pos_masks": places, "deepstack_visual_embeds": list(features)}

    def default_time_index(self) -> TimeIndex:
        return SpanIndex()


# ---- A tiny model with random weights, see `TinyQwenVL` --------------------------------------------------------------

CHAT_TEMPLATE = Path(__file__).with_name("qwen3_vl.jinja")
HALF = [0.5, 0.5, 0.5]  # mean and deviation of the released processors


@cache
def tiny_processor(chat_template: Path = CHAT_TEMPLATE) -> Qwen3VLProcessor:
    """Return Qwen3-VL's processor with the tiny tokenizer. Chats have the released template's format."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, image_mean=HALF, image_std=HALF),
        video_processor=Qwen3VLVideoProcessor(image_mean=HALF, image_std=HALF),
        tokenizer=tiny_tokenizer(),
        chat_template=chat_template.read_text().rstrip("\n"),
    )


def tiny_preprocessor() -> Qwen3VLPreprocessor:
    """Return the tiny processor with the zoo's interface."""
    return Qwen3VLPreprocessor(tiny_processor())


class TinyQwen3VL(TinyQwenVL):
    """A tiny Qwen3-VL with random weights, see `TinyQwenVL`. DeepStack takes features of every vision layer."""

    stock_class, backbone_class = Qwen3VLForConditionalGeneration, Qwen3VLBackbone

    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # close to the released models' split of a head (3/8 time, 5/16 height, 5/16 width), in multiples of four
        rope = dict(
            rope_type="default",
            rope_theta=5e6,
            mrope_section=[pairs // 2, pairs // 4, pairs // 4],
            mrope_interleaved=True,
        )
        own = dict(rope_parameters=rope, head_dim=2 * pairs)
        return own, dict(num_position_embeddings=64, deepstack_visual_indexes=list(range(vision_layers)))

    def processor(self) -> Qwen3VLProcessor:
        return tiny_processor()
