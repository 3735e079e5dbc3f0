"""Extensions of transformers' decoders: camera hooks, changes of visual tokens within layers, and grouped attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Qwen3-VL's two functions are the same, and so is Qwen3.5's eager attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, eager_attention_forward
from transformers.utils.generic import is_flash_attention_requested

from zoo.encodings.base import QK, EncodedCameras
from zoo.errors import InputError
from zoo.faulty_kernels import check_flex_channels
from zoo.values import check_shape

# ---- Camera hooks: before and after RoPE, on v, around the attention, on the output ----------------------------------

FLASH_CHANNELS = 256  # maximum head width in FlashAttention 2


class CameraAttention(nn.Module):
    """A decoder attention of transformers with a `camera_encoding`. Without one, the original forward runs.

    A backbone derives a class from this one and its original attention, and installs it by `replace_classes`. The
    encoding is a keyword argument of the model's forward, which passes unknown arguments to the layers, also under
    gradient checkpointing. Keys and values enter the KV cache encoded, so later steps, which contain only text, need no
    encoding.
    """

    config: Any
    layer_idx: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any

    apply_rope: Callable[..., QK] = staticmethod(apply_rotary_pos_emb)

    def project_queries(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return queries, and the logits of the output gate if the original attention has one."""
        return self.q_proj(hidden_states), None

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        """Normalize queries and keys per head before the hooks, if the original attention does."""
        return q, k

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        camera_encoding: EncodedCameras | None = None,
        before_mlp: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the original forward with the encoding's five hooks.

        Args:
            hidden_states: (B, L, width).
            camera_encoding: Encoding of exactly these tokens, from `CameraEncoding.encode`. None changes nothing.
            before_mlp: Changes the output, from `Interactions.of_layer`. None changes nothing.
            **kwargs: Other arguments of the original forward, all by name as the decoder layer passes them.

        Raises:
            ValueError: The encoding has another number of tokens.
            InputError: The encoding appends more channels than the attention backend accepts.
        """
        output, weights = self.attend(hidden_states, camera_encoding, **kwargs)
        return output if before_mlp is None else before_mlp(output), weights

    def attend(
        self, hidden_states: Tensor, camera_encoding: EncodedCameras | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, see `forward`."""
        if camera_encoding is not None:
            check_num_tokens(camera_encoding, hidden_states)
            camera_encoding = camera_encoding.at_layer(self.layer_idx, hidden_states, kwargs["position_embeddings"])
        if camera_encoding is None:
            return super().forward(hidden_states, **kwargs)
        names = ("attention_mask", "position_ids", "cache", "position_embeddings")
        mask, position_ids, cache, position_embeddings = (kwargs.pop(name, None) for name in names)
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        q, gate = self.project_queries(hidden_states)
        q, k = q.view(heads), self.k_proj(hidden_states).view(heads)
        v = self.v_proj(hidden_states).view(heads)
        sizes = q.shape, k.shape, v.shape
        v = camera_encoding.transform_values(v).transpose(1, 2)

        q, k = camera_encoding.before_rope(*self.normalize_heads(q, k))
        check_shape(camera_encoding, "queries before RoPE (B, L, H, D)", q, *sizes[0])
        check_shape(camera_encoding, "keys before RoPE (B, L, G, D)", k, *sizes[1])
        q, k = self.apply_rope(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        q, k = camera_encoding.after_rope(q.transpose(1, 2), k.transpose(1, 2))
        check_shape(camera_encoding, "queries (B, L, H, E)", q, *sizes[0][:3], None)
        check_shape(camera_encoding, "keys (B, L, G, E)", k, *sizes[1][:3], q.shape[3])
        check_head_channels(self.config._attn_implementation, q.shape[3])
        q, k = q.transpose(1, 2), k.transpose(1, 2)

        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, kwargs=kwargs)
        implementation = self.config._attn_implementation
        attention = partial(
            ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward),
            self,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),
            position_ids=position_ids,
            **kwargs,
        )
        output, weights = camera_encoding.attend(attention, q, k, v, mask)
        output = camera_encoding.transform_outputs(output)
        check_shape(camera_encoding, "outputs (B, L, H, D)", output, *sizes[0])
        output = output.reshape(*hidden_states.shape[:2], -1)
        if gate is not None:
            output = output * gate.sigmoid()
        return self.o_proj(output), weights


def check_num_tokens(encoding: EncodedCameras, hidden_states: Tensor) -> None:
    """Raise ValueError if an encoding has another number of tokens than (B, L, width)."""
    if encoding.num_tokens not in (None, hidden_states.shape[1]):
        raise ValueError(
            f"the camera encoding is of {encoding.num_tokens} tokens, not {hidden_states.shape[1]}: "
            "take its `for_decode_step()` for the steps of an answer"
        )


def check_head_channels(attention: str, channels: int) -> None:
    """Raise InputError if heads, with the channels that an encoding appends, are too wide for the attention backend."""
    if is_flash_attention_requested(requested_attention_implementation=attention) and channels > FLASH_CHANNELS:
        raise InputError(
            f"the camera encoding makes heads of {channels} channels, and {attention} takes {FLASH_CHANNELS} at most: "
            "set --model.backbone.attn_implementation sdpa"
        )
    if attention == "flex_attention":
        check_flex_channels(channels)


def replace_classes(module: nn.Module, classes: Mapping[type, Any]) -> None:
    """Give submodules of these classes another class, in place. Names and weights are unchanged."""
    for each in module.modules():
        each.__class__ = classes.get(type(each), type(each))


# ---- Changes of visual tokens: DeepStack's features after the first layers, and fusions between attention and MLP ----


class DeepFeatures(NamedTuple):
    """Features added to the hidden states of visual tokens after each of the first decoder layers.

    Attributes:
        places: Places of the visual tokens in the flattened batch.
        features: Features of each layer.
    """

    places: Int[Tensor, " N"]
    features: Float[Tensor, "layers N D"]

    def added_to(self, hidden_states: Float[Tensor, "B L D"], layer: int) -> Float[Tensor, "B L D"]:
        """Return the outputs of a layer (from 0) with its features added."""
        if layer >= len(self.features):
            return hidden_states
        return add_features(hidden_states, self.places, self.features[layer])


def add_features(
    hidden_states: Float[Tensor, "B L D"], places: Int[Tensor, " N"], features: Float[Tensor, "N D"]
) -> Float[Tensor, "B L D"]:
    """Return the hidden states with features added at places of the flattened batch."""
    added = hidden_states.flatten(0, 1).index_add(0, places, features.to(hidden_states.dtype))
    return added.view_as(hidden_states)


class Interactions(NamedTuple):
    """What a fusion adds to visual tokens between attention and MLP of some decoder layers (GeoThinker).

    Attributes:
        modules: For the number of a layer, a module that maps the tokens' states (N, D), their 3D tokens (N, D) and the
            groups to what is added (N, D).
        places: Places of the visual tokens in the flattened batch.
        tokens: Their 3D tokens.
        groups: (number of groups, tokens per group): consecutive tokens of a group see each other.
    """

    modules: Mapping[int, Callable[..., Tensor]]
    places: Int[Tensor, " N"]
    tokens: Float[Tensor, "N D"]
    groups: Sequence[tuple[int, int]]

    def of_layer(self, layer: int, residual: Float[Tensor, "B L D"]) -> Callable[[Tensor], Tensor] | None:
        """Return the change of the output of a layer's attention, which will be added to `residual`. None if none."""
        if layer not in self.modules:
            return None

        def change(output: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
            states = (residual.flatten(0, 1)[self.places] + output.flatten(0, 1)[self.places]).to(residual.dtype)
            return add_features(output, self.places, self.modules[layer](states, self.tokens, self.groups))

        return change


class FusionLayer(nn.Module):
    """A decoder layer of transformers with `Interactions` and `DeepFeatures`. Without any, the original forward runs.

    Both are keyword arguments of the model's forward, like the camera encoding (`CameraAttention`). They are added in
    the layer's own forward, so gradient checkpointing recomputes the addition and no state is kept between calls. The
    steps of an answer contain only text and need neither.
    """

    self_attn: Any

    @property
    def layer_idx(self) -> int:
        """The number of the layer, from 0."""
        return int(self.self_attn.layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        deepstack: DeepFeatures | None = None,
        interactions: Interactions | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the original forward with the interaction of this layer, then add its features."""
        before_mlp = None if interactions is None else interactions.of_layer(self.layer_idx, hidden_states)
        if before_mlp is not None:
            kwargs["before_mlp"] = before_mlp
        hidden_states = super().forward(hidden_states, **kwargs)
        return hidden_states if deepstack is None else deepstack.added_to(hidden_states, self.layer_idx)


# ---- `scaled_dot_product_attention` with grouped keys and values, by the kernels that support them -------------------

GROUPED_SDPA = "grouped_sdpa"  # the name of this backend in transformers
FEW = 64  # queries; below that, repeated masks are smaller than repeated keys and values
MASKED = (GROUPED_SDPA, "eager", "flex_attention")  # attention backends that accept any mask


def grouped_sdpa(
    module: Any,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    attention_mask: Bool[Tensor, "B 1 T K"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """Attend as transformers' `sdpa`, but treat the H/G heads that share keys and values differently.

    - Flash kernels take groups: on a GPU in half precision without a mask, on a CPU always, although slowly for one
      query. With gradients a CPU is treated like a GPU.
    - Few queries, as in a step of an answer, become rows of their group, so a long prefix is not copied.
    - Otherwise keys and values are repeated. With `enable_gqa`, float32 would use the math kernel, whose scores for
      16,000 tokens take 17 GB.

    Args:
        module: The attention module, for transformers.
        query: Queries.
        key: Keys.
        value: Values.
        attention_mask: The keys that each query attends to. None is causal attention.
        dropout: Dropout of the attention weights.
        scaling: Factor of the scores. None is D^-1/2.
    """
    batch, heads, length = query.shape[:3]
    groups = heads // key.shape[1]
    is_causal = attention_mask is None and length > 1
    if key.device.type == "cpu" and not torch.is_grad_enabled():
        is_flash = length > 1
    else:
        is_flash = attention_mask is None and key.dtype != torch.float32 and key.shape[-1] == value.shape[-1] <= 256
    if groups > 1 and not is_flash:
        if length <= FEW and not is_causal:
            query = query.reshape(batch, -1, groups * length, query.shape[-1])
            attention_mask = attention_mask if attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
        else:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, is_causal, scale=scaling, enable_gqa=groups > 1 and is_flash
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED_SDPA, grouped_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED_SDPA, sdpa_mask)
