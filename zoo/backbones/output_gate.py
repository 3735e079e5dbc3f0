"""A gate on the output of the decoder's attention (arXiv 2505.06708)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.configuration import Configurable
from zoo.errors import InputError, check_choice

WEIGHT_STD = 0.02  # of the published start without a bias


class OutputGate(Configurable, nn.Module):
    """Multiply the output of each attention by sigmoid(W x + b), before its output projection.

    Two forms are published. Qiu et al. (arXiv 2505.06708) compute the gate from the attention layer's input, without a
    bias: `reads: input`, `bias: null`. Half of the output then remains at the start. A fork of Spatial-MLLM computes it
    from the attention's own output, with weights of 0 and a bias of 4, so 0.982 of it remains: the default. The gate
    acts on all tokens and is independent of camera encodings, which act within the attention. Its learning rate is that
    of encodings.

    Args:
        reads: What the gate is computed from: the attention's `output`, all heads together, or the layer's `input`.
        per: Whether each `channel` or each `head` has a gate.
        bias: The bias of all gates at the start. null leaves it out, and weights start at random (deviation 0.02).

    Raises:
        InputError: A choice is unknown.

    Example:
        >>> from zoo import SpatialVLM
        >>> model = SpatialVLM(output_gate=OutputGate(per="head"))
        >>> len(model.output_gate.gates), model.output_gate.gates[0].bias.tolist()
        (4, [4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    """

    def __init__(
        self,
        reads: Literal["output", "input"] = "output",
        per: Literal["channel", "head"] = "channel",
        bias: float | None = 4.0,
    ) -> None:
        super().__init__()
        check_choice("--model.output_gate.reads", reads, Literal["output", "input"])
        check_choice("--model.output_gate.per", per, Literal["channel", "head"])
        self.reads, self.per, self.bias = reads, per, bias
        self.gates = nn.ModuleList()

    def install(self, decoder: nn.Module) -> None:
        """Create one gate for each attention layer of a decoder of transformers, and hook it in.

        Raises:
            InputError: The decoder's attention has an output gate of its own.
        """
        layers: list[Any] = [
            each for each in decoder.modules() if hasattr(each, "o_proj") and hasattr(each, "head_dim")
        ]
        for attention in layers:
            wide, width = attention.o_proj.in_features, attention.q_proj.in_features
            if attention.q_proj.out_features != wide:
                raise InputError("--model.output_gate: this decoder's attention has an output gate: leave it out")
            outputs = wide if self.per == "channel" else wide // attention.head_dim
            gate = nn.Linear(wide if self.reads == "output" else width, outputs, bias=self.bias is not None)
            if self.bias is None:
                nn.init.normal_(gate.weight, std=WEIGHT_STD)
            else:
                nn.init.zeros_(gate.weight)
                nn.init.constant_(gate.bias, self.bias)
            self.gates.append(gate)
            seen: list[Tensor] = []  # input of the running layer
            if self.reads == "input":
                attention.register_forward_pre_hook(partial(_remember, seen), with_kwargs=True)
            # partial, because a copy of the model must have a copy of the gate
            attention.o_proj.register_forward_pre_hook(partial(_gate, gate, seen))


def _remember(seen: list[Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen[:] = [args[0] if args else kwargs["hidden_states"]]


def _gate(gate: nn.Linear, seen: list[Tensor], _: nn.Module, args: tuple[Float[Tensor, "B L width"]]) -> tuple[Tensor]:
    (output,) = args
    read = seen.pop() if seen else output
    opened = torch.sigmoid(gate(read.to(gate.weight.dtype))).to(output.dtype)
    if opened.shape[-1] != output.shape[-1]:
        opened = opened.repeat_interleave(output.shape[-1] // opened.shape[-1], -1)
    return (output * opened,)
