"""The `saddle_balanced` reference view, computed from the 2D tokens of the views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.geometry.da3.reference import FEWEST_VIEWS, choose_reference


def balanced_views(
    visual: Sequence[Float[Tensor, "_N D"]],
    steps: Sequence[int],
    samples: Sequence[int],
    has_camera: Bool[Tensor, "B C"],
) -> Int[Tensor, " B"]:
    """Computes the `saddle_balanced` view of each sample from the mean 2D token of each view.

    Args:
        visual: 2D tokens of each scene.
        steps: number of views of each scene.
        samples: the sample of each scene; the views of its scenes are concatenated.
        has_camera: the views to choose from.

    Returns:
        One view per sample, for `Cameras.with_reference`; 0 for samples without views.
    """
    views: list[list[Tensor]] = [[] for _ in has_camera]
    for tokens, count, sample in zip(visual, steps, samples, strict=True):
        views[sample].extend(tokens.unflatten(0, (count, -1)).mean(1))
    chosen = torch.zeros(len(has_camera), dtype=torch.long, device=has_camera.device)
    for sample, own in enumerate(views):
        if own:
            chosen[sample] = saddle_balanced(torch.stack(own), has_camera[sample, : len(own)].to(own[0].device))
    return chosen


def saddle_balanced(views: Float[Tensor, "S C"], present: Bool[Tensor, " S"] | None = None) -> Int[Tensor, ""]:
    """Chooses the most average view by one token per view, as Depth Anything 3 (arXiv 2511.10647) does.

    Three numbers per view are scaled to 0 ... 1 over the views: its mean cosine similarity to the others, the norm of
    its token, and the variance of the normalized token over channels. The view with the smallest sum of distances to
    1/2 is chosen. Depth Anything 3 uses DINOv2's class tokens before views attend to each other; towers without a
    class token are represented by the mean 2D token of a view.

    Args:
        views: one token per view.
        present: the views to choose from; None is all. If there are fewer than three, the first is chosen.
    """
    numbers = torch.arange(len(views), device=views.device)
    if present is not None:
        views, numbers = views[present], numbers[present]
    if len(views) < FEWEST_VIEWS:
        return numbers[0] if len(numbers) else torch.zeros((), dtype=torch.long, device=views.device)
    return numbers[choose_reference(views[None], "saddle_balanced")[0]]
