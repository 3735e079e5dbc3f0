"""Masking of 2D tokens in training, so that the model uses 3D tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbones.base import VisualTokens
from zoo.errors import InputError
from zoo.objectives.base import Decoded, Objective
from zoo.sequences.loaded_scene import PreparedScene


class MaskedViews(Objective):
    """Replace a share of the 2D tokens by a learned token in training, before view mixing and fusion.

    A model that can answer from its 2D tokens ignores the 3D tokens beside them. Masking 2D tokens is GeoSR's remedy.
    This objective has no loss and changes nothing at inference. DeepStack features of a masked token are zero.

    A mask depends on `PreparedScene.draw`, which follows from the data's seed, the scene and the epoch. The mask ratio
    depends on the questions of the optimizer step. A resumed run therefore draws the same masks as an uninterrupted
    one, and a scene has the same mask for any number of processes.

    Args:
        mask_ratio: Share of a scene's 2D tokens that is masked, from 0 to 1.
        mask_ratio_by_type: Ratios by question type, which replace `mask_ratio`. A scene with several questions in an
            optimizer step gets the mean of their ratios.

    Raises:
        InputError: A ratio is not in 0 to 1.

    Example:
        >>> MaskedViews(0.2, {"routes": 1.0}).mask_ratio_of(["counts", "routes"])
        0.6
    """

    def __init__(self, mask_ratio: float = 0.25, mask_ratio_by_type: dict[str, float] | None = None) -> None:
        super().__init__()
        for value in (mask_ratio, *(mask_ratio_by_type or {}).values()):
            if not 0 <= value <= 1:
                raise InputError(f"--model.objectives: MaskedViews with a mask ratio of {value}: give one from 0 to 1")
        self.mask_ratio, self.mask_ratio_by_type = mask_ratio, mask_ratio_by_type or {}
        self.question_types = tuple(self.mask_ratio_by_type)

    def bind(self, width: int, num_layers: int) -> None:
        """Create the learned token."""
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))

    def mask_ratio_of(self, question_types: Sequence[str]) -> float:
        """Return the mask ratio of a scene with questions of these types."""
        ratios = [self.mask_ratio_by_type.get(kind, self.mask_ratio) for kind in question_types] or [self.mask_ratio]
        return sum(ratios) / len(ratios)

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[PreparedScene]) -> Sequence[VisualTokens]:
        """See `Objective`."""
        changed = []
        for (tokens, deepstack), scene in zip(visual, scenes, strict=True):
            generator = torch.Generator().manual_seed(scene.draw)
            drawn = torch.rand(tokens.shape[:2], generator=generator) < self.mask_ratio_of(scene.question_types)
            masked = drawn.to(tokens.device, non_blocking=True)[..., None]
            kept = torch.where(masked, self.mask_token.to(tokens.dtype), tokens)
            changed.append(VisualTokens(kept, deepstack.masked_fill(masked, 0.0)))
        return changed

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return no loss."""
        return {}
