"""What is trained and how: learning rates of six parts, optimizer groups, and a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.precision import to_float32


@dataclass
class LearningRates:
    """One learning rate per part; null or 0 freezes the part, which stays in eval mode.

    The defaults are Spatial-MLLM's published recipe. As there, the vision tower's last projection
    (`visual.merger`) belongs to the connector, and trains although the tower is frozen; `vision_merger` changes that.

    Args:
        decoder: The language model and its embeddings.
        connector: Everything that turns vision or geometry into the decoder's tokens.
        vision: The backbone's vision tower.
        geometry: The geometry encoder.
        encoding: Learned numbers of a camera encoding: slopes, a scale, extra channels. They start from scratch, so a
            rate for pretrained weights would hardly move them; the default is a usual one for LoRA.
        objective: Heads and learned tokens of objectives, which start from scratch as well.
        vision_merger: The part that the tower's projections to the decoder's width belong to, `connector` or `vision`:
            VG-LLM and SpatialStack freeze them with the tower.
        deepstack_merger: The same of those for DeepStack; null is `vision_merger`. GeoVR freezes these alone.
    """

    decoder: float | None = 7e-6
    connector: float | None = 2e-5
    vision: float | None = None
    geometry: float | None = None
    encoding: float | None = 2e-4
    objective: float | None = 2e-4
    vision_merger: Literal["connector", "vision"] = "connector"
    deepstack_merger: Literal["connector", "vision"] | None = None

    def frozen(self) -> set[str]:
        """The parts that do not train."""
        return {part for part, rate in vars(self).items() if not rate}


def freeze(
    module: nn.Module,
    rates: LearningRates,
    part_of: Callable[[str], str],
    is_unreachable: Callable[[str], bool] = lambda name: False,
) -> None:
    """Turn gradients off in every part without a learning rate; what trains becomes float32. In place.

    In bfloat16, with its eight significant bits, most updates of a fine-tuning learning rate are rounded away.

    Args:
        module: The whole model.
        rates: One per part.
        part_of: The part that a parameter's name belongs to.
        is_unreachable: Whether no loss has a gradient for the parameter of a name, which DDP would wait for.
    """
    frozen = rates.frozen()
    for name, parameter in module.named_parameters():
        if part_of(name) in frozen or is_unreachable(name):
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            parameter.data = to_float32(parameter.data)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rates: LearningRates, part_of: Callable[[str], str]
) -> list[dict[str, object]]:
    """Optimizer groups of the trainable parameters: one per part, with biases in a group of their own.

    Biases are not decayed; norm weights are, as in the official trainer (Hugging Face's rule for RMSNorm). Learned
    numbers of an encoding are not decayed either: a scale of 1 or a slope has no reason to be small.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name.endswith("bias")), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": getattr(rates, part),
            "name": part + ("/bias" if is_bias else ""),
            **({"weight_decay": 0.0} if is_bias or part == "encoding" else {}),
        }
        for (part, is_bias), parameters in groups.items()
    ]


def fused_adamw(parameters: Any, weight_decay: float) -> Optimizer:
    """AdamW, fused where there is a GPU: otherwise each step makes temporary copies as large as the parameters."""
    optimizer = AdamW(parameters, weight_decay=weight_decay, fused=torch.cuda.is_available() or None)
    # Lightning refuses to clip gradients that a fused optimizer could still have to unscale (float16 alone is scaled,
    # and then torch's GradScaler unscales before the clipping, as without fusion)
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


class WarmupCosine(LambdaLR):
    """Linear warm-up from zero, then half a cosine down to zero (Loshchilov & Hutter 2017, without restarts).

    A run that is resumed with another number of steps goes on at the rate that the new schedule has there, and says so.

    Args:
        optimizer: Its learning rates are scaled, each from its own value.
        total_steps: Optimizer steps of the whole run.
        warmup_fraction: The fraction of them that warms up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.03):
        self.total_steps = total_steps
        warmup_steps = math.ceil(total_steps * warmup_fraction)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        super().__init__(optimizer, factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; the rates are those of this schedule there, and not the last ones of the checkpoint."""
        total_steps, former = self.total_steps, state_dict.get("total_steps", self.total_steps)
        super().load_state_dict({**state_dict, "total_steps": total_steps})
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if total_steps != former:
            share = f"{self.lr_lambdas[0](self.last_epoch):.0%} of their peak"
            rank_zero_info(f"the schedule has {total_steps} steps, it had {former}: learning rates go on at {share}")
