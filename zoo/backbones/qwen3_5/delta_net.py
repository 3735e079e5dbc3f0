"""Gated DeltaNet with camera hooks: on q, k and v behind the convolution, on the output before the gated norm."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5GatedDeltaNet,
    apply_mask_to_padding_states,
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
)

from zoo.backbones.attention import check_num_tokens
from zoo.encodings.base import EncodedCameras


class CameraDeltaNet(Qwen3_5GatedDeltaNet):
    """A Gated DeltaNet layer with a `camera_encoding`; without one, the stock forward runs.

    The layer's state is written with encoded keys and values, so later steps, which hold text only, need no encoding.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        camera_encoding: EncodedCameras | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the stock forward with the encoding's hooks.

        Args:
            hidden_states: (B, L, width).
            cache: For answers; without states yet, if there is an encoding.
            attention_mask: (B, L), of tokens that are not padding.
            camera_encoding: Encoding of exactly these tokens; None changes nothing.
            **kwargs: Other arguments of the stock forward.

        Raises:
            ValueError: The encoding has another number of tokens.
        """
        if camera_encoding is not None:
            check_num_tokens(camera_encoding, hidden_states)
            camera_encoding = camera_encoding.at_linear_layer(self.layer_idx, hidden_states)
        if camera_encoding is None:
            output: Tensor = super().forward(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
            return output
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        # 1. Projection and convolution.
        mixed = self.in_proj_qkv(hidden_states).transpose(1, 2)
        if cache is not None:
            cache.update_conv_state(mixed, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        weight = self.conv1d.weight.squeeze(1)
        mixed = causal_conv1d_fn(mixed, weight, self.conv1d.bias, activation=self.activation).transpose(1, 2)
        # 2. Heads, and the hooks on them.
        q, k, v = mixed.split((self.key_dim, self.key_dim, self.value_dim), -1)
        q, k = (x.unflatten(-1, (self.num_k_heads, self.head_k_dim)) for x in (q, k))
        q, k = camera_encoding.after_rope(*camera_encoding.before_rope(q, k))
        v = camera_encoding.transform_values(v.unflatten(-1, (self.num_v_heads, self.head_v_dim)))
        # 3. The delta rule, with decay and step size of each value head; it normalizes queries and keys.
        decay = -self.A_log.float().exp() * F.softplus(self.in_proj_a(hidden_states).float() + self.dt_bias)
        output, state = torch_chunk_gated_delta_rule(
            q,
            k,
            v,
            g=decay,
            beta=self.in_proj_b(hidden_states).sigmoid(),
            output_final_state=cache is not None,
            use_qk_l2norm_in_kernel=True,
        )
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        # 4. The gated norm.
        gate = self.in_proj_z(hidden_states).view(-1, self.head_v_dim)
        output = self.norm(camera_encoding.transform_outputs(output).reshape(-1, self.head_v_dim), gate)
        return self.out_proj(output.view(*hidden_states.shape[:2], -1))
