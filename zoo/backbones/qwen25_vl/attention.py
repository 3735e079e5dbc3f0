"""The camera hooks in the decoder's attention: before RoPE on q and k, after RoPE on q and k, on v, on the output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from zoo.encodings.base import EncodedCameras


class CameraAttention(Qwen2_5_VLAttention):
    """Qwen2.5-VL's decoder attention that takes a `camera_encoding`; without one, the stock forward runs.

    Put in place by `install_camera_attention`. The encoding is a keyword argument of the model's forward,
    which hands down to the layers what it doesn't know, also under gradient checkpointing. Keys and values
    enter the KV cache encoded, so later steps, which hold text only, need no encoding.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        camera_encoding: EncodedCameras | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock forward.

        Args:
            hidden_states: (B, L, width).
            attention_mask: see the stock forward, as for the next three and `kwargs`.
            position_ids: of each token.
            cache: keys and values of the tokens before.
            position_embeddings: cosines and sines of mRoPE.
            camera_encoding: for exactly these tokens, from `CameraEncoding.encode`; None changes nothing.
            **kwargs: for the attention function.

        Raises:
            ValueError: an encoding of another number of tokens.
        """
        if camera_encoding is not None:
            num_tokens = camera_encoding.num_tokens
            if num_tokens not in (None, hidden_states.shape[1]):
                raise ValueError(
                    f"the camera encoding is of {num_tokens} tokens, not {hidden_states.shape[1]}: "
                    "take its `decoding()` where only text is decoded"
                )
            assert self.layer_idx is not None and position_embeddings is not None  # the text model gives both
            camera_encoding = camera_encoding.at_layer(self.layer_idx, hidden_states, position_embeddings)
        if camera_encoding is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k = self.q_proj(hidden_states).view(heads), self.k_proj(hidden_states).view(heads)
        v = camera_encoding.transform_values(self.v_proj(hidden_states).view(heads)).transpose(1, 2)

        q, k = camera_encoding.before_rope(q, k)
        assert position_embeddings is not None
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        q, k = camera_encoding.after_rope(q.transpose(1, 2), k.transpose(1, 2))
        q, k = q.transpose(1, 2), k.transpose(1, 2)

        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, kwargs=kwargs)
        implementation = self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            position_ids=position_ids,
            **kwargs,
        )
        output = camera_encoding.transform_outputs(output)
        return self.o_proj(output.reshape(*hidden_states.shape[:2], -1)), weights


def install_camera_attention(decoder: nn.Module) -> None:
    """Turns the attention of every decoder layer into `CameraAttention`, in place; names and weights stay.

    Raises:
        ValueError: a model without Qwen2.5-VL decoder attention.
    """
    attentions = [module for module in decoder.modules() if isinstance(module, Qwen2_5_VLAttention)]
    if not attentions:
        raise ValueError(f"{type(decoder).__name__} has no Qwen2.5-VL decoder attention")
    for attention in attentions:
        attention.__class__ = CameraAttention
