"""Which view of a scene becomes the reference of Depth Anything 3, from the class tokens of its views."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import check_choice
from zoo.precision import full_precision, to_float32

Strategy = Literal["first", "middle", "saddle_balanced", "saddle_sim_range"]
FEWEST_VIEWS = 3  # for which a reference is chosen; else the first view has its camera token
EPS = 1e-8


@torch.no_grad()
def choose_reference(class_tokens: Float[Tensor, "B S C"], strategy: Strategy) -> Int[Tensor, " B"]:
    """Choose the reference view of each scene in float32 or better: another reference is another world.

    - `first`, `middle`: view 0, S // 2
    - `saddle_balanced`: the view that is least extreme in its similarity to the others, and in the norm and the
      variance of its token
    - `saddle_sim_range`: the view whose similarities to the others have the widest range. Without a negative cosine the
      two most similar views tie, and rounding decides.

    Args:
        class_tokens: One per view.
        strategy: One of the above.

    Raises:
        InputError: An unknown strategy.
    """
    check_choice("reference", strategy, Strategy)
    scenes, views, _ = class_tokens.shape
    if strategy in ("first", "middle"):
        return torch.full((scenes,), 0 if strategy == "first" else views // 2, device=class_tokens.device)
    with full_precision(class_tokens.device):
        tokens = to_float32(class_tokens)
        unit = F.normalize(tokens, dim=-1)
        similarity = unit @ unit.mT
        similarity = similarity - torch.eye(views, dtype=unit.dtype, device=unit.device)
        if strategy == "saddle_sim_range":
            return (similarity.amax(-1) - similarity.amin(-1)).argmax(-1)
        measures = torch.stack((similarity.sum(-1) / (views - 1), tokens.norm(dim=-1), unit.var(-1)))
        low, high = measures.amin(-1, keepdim=True), measures.amax(-1, keepdim=True)
        return ((measures - low) / (high - low + EPS) - 0.5).abs().sum(0).argmin(-1)
