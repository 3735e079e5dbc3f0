"""The backbone seam: everything that the zoo needs of a video-language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.backbones.deepstack import DeepFeatures
from zoo.backbones.grouped_attention import GROUPED_SDPA
from zoo.backbones.preprocessor import Preprocessor
from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.sequences.batch import Sequences
from zoo.sequences.masks import block_mask, prefix_causal_mask
from zoo.sequences.rules import VisionRules
from zoo.sequences.sequence_layout import Placeholders
from zoo.sequences.time_index import TimeIndex, TimestampIndex
from zoo.sequences.vision_inputs import VisionInputs

MASKED = (GROUPED_SDPA, "eager", "flex_attention")  # backends of attention that take any mask
BackbonePart = Literal["decoder", "vision", "connector"]


class VisualTokens(NamedTuple):
    """Visual tokens in the decoder's width.

    Attributes:
        tokens: Take the places of the placeholders.
        deepstack: Added to the hidden states at the same places after each of the first decoder layers (DeepStack,
            arXiv 2406.04334; 3D tokens by `DeepFusion`); of no layer in a model without.
    """

    tokens: Float[Tensor, "*tokens D"]
    deepstack: Float[Tensor, "layers *tokens D"]


class Backbone(nn.Module, ABC):
    """A loaded video-language model; a new one is a subclass of this and of `BackboneLoader`.

    The decoder is the stock one of transformers, with hooks for a camera encoding in its attention.

    Attributes:
        vlm: The stock model.
        preprocessor: Its processor and tokenizer.
        placeholders: Token ids of visual tokens.
        stop_tokens: Token ids that end an answer.
        lora_targets: Names of the linear layers of the decoder that LoRA adapts.
        spatial_merge_size: Patches per side in one visual token.
        patch_size: Side of a patch in pixels.
        image_pixels: Least and most pixels of a still image, as its processor resizes them.
        span_per_step: Whether each temporal patch of a video is a run of placeholders of its own, with its time as text
            before it.
        is_hybrid: Whether some decoder layers keep a recurrent state, which no mask divides.
        tokens_per_second: Steps of mRoPE's time index per second of a video.
        hidden_size: Width of the decoder.
        context_length: Maximum number of tokens in a sequence.
    """

    vlm: Any
    preprocessor: Preprocessor
    placeholders: Placeholders
    stop_tokens: list[int]
    lora_targets: tuple[str, ...]
    spatial_merge_size: int
    patch_size: int
    image_pixels: tuple[int, int]
    span_per_step: bool = False
    is_hybrid: bool = False
    tokens_per_second: int | float
    hidden_size: int
    context_length: int

    # ---- structure ------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The language model, without its head."""
        return self.vlm.get_decoder()

    @property
    def lm_head(self) -> Any:
        """The projection of hidden states to logits."""
        return self.vlm.get_output_embeddings()

    @property
    @abstractmethod
    def decoder_layout(self) -> DecoderLayout:
        """The shape of the decoder's attention."""

    @property
    @abstractmethod
    def head_layout(self) -> HeadLayout:
        """The channels of an attention head, known to the host."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The layers of decoder and vision tower, which are checkpointed and sharded one by one."""

    @property
    def like(self) -> Tensor:
        """A weight whose dtype new parts take."""
        return next(self.decoder.parameters())

    @property
    def device(self) -> torch.device:
        """The device of new parts: that of the weights, or of new tensors where those are read later."""
        return torch.get_default_device() if self.like.is_meta else self.like.device

    @abstractmethod
    def part_of(self, name: str) -> BackbonePart:
        """Return the part that a parameter belongs to for its learning rate."""

    def serves_deepstack(self, name: str) -> bool:
        """Return whether the parameter of this name has an effect on `VisualTokens.deepstack` alone."""
        return False

    def default_time_index(self) -> TimeIndex:
        """Return the time component of the stock model's position ids."""
        return TimestampIndex()

    @abstractmethod
    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        """Install the camera hooks in the decoder's attention, and bind the encoding to it."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of decoder and vision tower in the backward pass."""
        self.vlm.activation_checkpointing_enable({"use_reentrant": False})
        # transformers also makes the outputs of the embeddings require gradients, which only reentrant checkpoints
        # need: a frozen vision tower would keep its whole graph, some 18 GB at full size
        self.vlm.disable_input_require_grads()

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations for the backward pass."""
        self.vlm.activation_checkpointing_disable()

    def compile_layers(self) -> None:
        """Compile attention, MLP and norms of each decoder layer for training, inside of its gradient checkpoint.

        Answers, whose shapes change at each step, run uncompiled.
        """
        layers, config = self.decoder.layers, torch._dynamo.config
        # an encoding that differs between layers, as `LayerSubset` does, is compiled for each of them
        config.recompile_limit = max(config.recompile_limit, 4 * len(layers))
        for part in (part for layer in layers for part in layer.children()):
            part.forward = _compiled_in_training(part)

    # ---- forward ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def vision_rules(self) -> VisionRules:
        """What the vision tower computes from grids alone."""

    def encode_vision(self, pixel_values: Shaped[Tensor, "patches channels"], vision: VisionInputs) -> VisualTokens:
        """Return the 2D tokens of all videos and still images of a batch, one after another.

        Args:
            pixel_values: Patches as bytes, or normalized.
            vision: The tower's other inputs.
        """
        tower = self.vlm.model.visual
        if not pixel_values.is_floating_point():
            pixel_values = self.preprocessor.normalize(pixel_values)
        # the grids have been read: what follows from them are the tower's other arguments
        output = tower(pixel_values.type(tower.dtype), grid_thw=None, return_dict=True, **vision.arguments())
        tokens = output.pooler_output
        layers = getattr(output, "deepstack_features", None)
        return VisualTokens(tokens, torch.stack(layers) if layers else tokens.new_empty(0, *tokens.shape))

    def embed(self, input_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Return the embeddings of token ids."""
        return self.decoder.get_input_embeddings()(input_ids)

    def deepstack_inputs(self, places: Int[Tensor, " N"], features: Float[Tensor, "layers N D"]) -> dict[str, Any]:
        """Return the inputs of `decode` that add features to visual tokens after the first layers.

        Args:
            places: Of the visual tokens in the flattened batch.
            features: Of each layer.
        """
        return {"deepstack": DeepFeatures(places, features)}

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        """Run the decoder.

        Args:
            inputs: `inputs_embeds` (B, L, D) or `input_ids` (B, L), `position_ids` (3, B, L), and where there are some
                `attention_mask`, `camera_encoding` and those of `deepstack_inputs`.
            cache: KV cache of former tokens.
            use_cache: Return a KV cache.

        Returns:
            An object with `last_hidden_state` (B, L, D) and `cache`.
        """
        return self.decoder(**inputs, cache=cache, use_cache=use_cache)

    def encode_cameras(self, encoding: CameraEncoding, cameras: Cameras) -> EncodedCameras:
        """Return the encoding of these cameras for one forward pass of this decoder."""
        return encoding.encode(cameras, self.head_layout)

    # ---- attention of several questions in one sequence ---------------------------------------------------------

    @property
    def attn_implementation(self) -> str:
        """The decoder's attention backend."""
        return self.decoder.config._attn_implementation

    @property
    def supports_custom_mask(self) -> bool:
        """Whether the attention takes any mask; flash attention does not, and a recurrent state ignores it."""
        return not self.is_hybrid and self.attn_implementation in MASKED

    @property
    def packs_questions(self) -> bool:
        """Whether several questions may share a sequence, see `training_mask`, `question_mask` and `step_mask`."""
        return self.supports_custom_mask

    def training_mask(self, sequences: Sequences) -> Any:
        """Return what keeps the questions of sequences with a `group` apart, as the decoder's `attention_mask`."""
        assert sequences.group is not None
        return self.question_mask(sequences.group, sequences.group)

    def step_mask(self, queries: Int[Tensor, "1 T"], keys: Int[Tensor, "1 K"]) -> Any:
        """`question_mask` of the next token of each of T answers."""
        return self.question_mask(queries, keys)

    def question_mask(
        self, queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
    ) -> Any:
        """`prefix_causal_mask` in the form of the attention backend, for a model that `packs_questions`."""
        if self.attn_implementation == "flex_attention":
            return block_mask(queries, keys, prefixes)
        visible = prefix_causal_mask(queries, keys, prefixes)[:, None]
        if self.attn_implementation == GROUPED_SDPA:
            return visible
        dtype = self.like.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)  # is added


def _compiled_in_training(part: nn.Module) -> Callable[..., Any]:
    plain, compiled = part.forward, torch.compile(part.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward
