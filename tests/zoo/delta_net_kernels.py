"""Stand-ins for the optional kernels of Gated DeltaNet, which need a CUDA machine."""

from __future__ import annotations

import sys
from collections import Counter
from inspect import unwrap
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations import use_kernel_func_from_hub_with_fallback
from transformers.models.qwen3_5 import modeling_qwen3_5

from zoo.backbones import qwen3_5 as delta_net

REPLACED = {  # functions of transformers: the kernel in place of each, and its package
    "torch_chunk_gated_delta_rule": ("chunk_gated_delta_rule", "fla"),
    "torch_recurrent_gated_delta_rule": ("fused_recurrent_gated_delta_rule", "fla"),
    "causal_conv1d_fn": ("causal_conv1d_fn", "causal_conv1d"),
    "causal_conv1d_update": ("causal_conv1d_update", "causal_conv1d"),
}


class Kernels:
    """Functions with the signatures of flash-linear-attention 0.4 and causal-conv1d 1.5, whose calls are counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def chunk_gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        self.calls["chunk"] += 1
        assert use_qk_l2norm_in_kernel and scale is None and cu_seqlens is None and g.dtype == torch.float32
        q, k = (F.normalize(x, dim=-1).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
        state = v.new_zeros(len(v), v.shape[2], k.shape[3], v.shape[3]) if initial_state is None else initial_state
        outputs = []
        for t in range(v.shape[1]):
            state = state * g[:, t, :, None, None].exp()
            read = (state * k[:, t, :, :, None]).sum(-2)
            state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - read))[:, :, None]
            outputs.append((state * q[:, t, :, :, None]).sum(-2) * q.shape[-1] ** -0.5)
        return torch.stack(outputs, 1), state if output_final_state else None

    def fused_recurrent_gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        gk: Tensor | None = None,
        gv: Tensor | None = None,
        beta: Tensor | None = None,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        self.calls["recurrent"] += 1
        assert g is not None and beta is not None and gk is gv is None
        return self.chunk_gated_delta_rule(
            q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
        )

    def causal_conv1d_fn(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        seq_idx: Tensor | None = None,
        initial_states: Tensor | None = None,
        return_final_states: bool = False,
        final_states_out: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        self.calls["convolution"] += 1
        assert activation == "silu" and seq_idx is initial_states is None
        padded = F.pad(x, (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))

    def causal_conv1d_update(
        self,
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        cache_seqlens: Tensor | None = None,
        conv_state_indices: Tensor | None = None,
    ) -> Tensor:
        self.calls["update"] += 1
        conv_state.copy_(torch.cat((conv_state, x), -1)[..., -conv_state.shape[-1] :])
        return F.silu((conv_state * weight).sum(-1, keepdim=True))


def install_kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Let transformers find the kernels, as where the packages are installed."""
    kernels = Kernels()
    fla = SimpleNamespace(ops=SimpleNamespace(gated_delta_rule=kernels))
    monkeypatch.setitem(sys.modules, "fla", fla)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "causal_conv1d", kernels)  # type: ignore[arg-type]
    wrap_functions(monkeypatch)
    return kernels


def wrap_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers look for the kernels again, as at its import."""
    for name, kernel in REPLACED.items():
        found = use_kernel_func_from_hub_with_fallback(*kernel)(unwrap(getattr(modeling_qwen3_5, name)))
        for module in (modeling_qwen3_5, delta_net):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, found)
