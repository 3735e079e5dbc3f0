"""The `saddle_balanced` reference view, computed from the 2D tokens of the views without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.geometry.da3.reference import EPS, FEWEST_VIEWS
from zoo.precision import full_precision, to_float32


def balanced_views(
    rows: Sequence[Sequence[Float[Tensor, "_t D"]]], has_camera: Bool[Tensor, "B C"]
) -> Int[Tensor, " B"]:
    """Compute the `saddle_balanced` view of each sample from the mean 2D token of each view.

    Args:
        rows: The mean tokens of the views of each sample's scenes, scene after scene.
        has_camera: The views to choose from.

    Returns:
        One view per sample, for `Cameras.with_reference`; 0 for samples without views.
    """
    none = torch.zeros((), dtype=torch.long, device=has_camera.device)
    views = [torch.cat(list(row)) if row else None for row in rows]
    return torch.stack(
        [
            none if own is None else saddle_balanced(own, present[: len(own)])
            for own, present in zip(views, has_camera, strict=True)
        ]
    )


@torch.no_grad()
def saddle_balanced(views: Float[Tensor, "S C"], present: Bool[Tensor, " S"] | None = None) -> Int[Tensor, ""]:
    """Choose the most average view by one token per view, as Depth Anything 3 (arXiv 2511.10647) does.

    Three numbers per view are scaled to 0 ... 1 over the views: its mean cosine similarity to the others, the norm of
    its token, and the variance of the normalized token over channels. The view with the smallest sum of distances to
    1/2 is chosen. Depth Anything 3 uses DINOv2's class tokens before views attend to each other; towers without a
    class token are represented by the mean 2D token of a view.

    Args:
        views: One token per view.
        present: The views to choose from; None is all. If there are fewer than three, the first is chosen.
    """
    known = torch.ones(len(views), dtype=torch.bool, device=views.device) if present is None else present
    count = known.sum()
    with full_precision(views.device):
        tokens = to_float32(views)
        unit = F.normalize(tokens, dim=-1)
        similarity = unit @ unit.mT - torch.eye(len(views), dtype=tokens.dtype, device=tokens.device)
        mean_similarity = (similarity * known).sum(-1) / (count - 1)
        measures = torch.stack((mean_similarity, tokens.norm(dim=-1), unit.var(-1)))
        low = measures.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        high = measures.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
        extremeness = ((measures - low) / (high - low + EPS) - 0.5).abs().sum(0)
    chosen = extremeness.masked_fill(~known, torch.inf).argmin()
    return torch.where(count < FEWEST_VIEWS, known.int().argmax(), chosen)
