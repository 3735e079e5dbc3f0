"""The reference view: whose frame is the world of a clip. By position, by the poses, or by what the views show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.precision import full_precision, to_float32

ReferenceView = Literal["first", "middle", "medoid", "saddle_balanced"]
CHOOSE_FROM = 3  # views at the least; of fewer it is the first


def to_reference_frame(cameras: Cameras, reference: ReferenceView | None) -> Cameras:
    """The cameras in the frame of a reference view, see `Cameras.canonical`; None leaves them in the data's world.

    Raises:
        ValueError: `saddle_balanced` where the cameras come without a reference.
    """
    if reference is None:
        return cameras
    if reference == "saddle_balanced" and cameras.reference is None:
        raise ValueError("saddle_balanced goes by the tokens of the views: give Cameras the reference that it chose")
    return cameras.canonical("given" if reference == "saddle_balanced" else reference)


def balanced_views(
    visual: Sequence[Float[Tensor, "_N D"]],
    steps: Sequence[int],
    samples: Sequence[int],
    has_camera: Bool[Tensor, "B C"],
) -> Int[Tensor, " B"]:
    """The `saddle_balanced` view of each sample, by the mean of the 2D tokens of each view.

    Args:
        visual: the tokens of each scene.
        steps: views of each scene.
        samples: the sample that each scene belongs to; its views follow those of the sample's scenes before.
        has_camera: the views to choose from.
    """
    views: list[list[Tensor]] = [[] for _ in has_camera]
    for tokens, count, sample in zip(visual, steps, samples, strict=True):
        views[sample].extend(tokens.unflatten(0, (count, -1)).mean(1))
    chosen = torch.zeros(len(has_camera), dtype=torch.long, device=has_camera.device)
    for sample, own in enumerate(views):
        if own:
            chosen[sample] = saddle_balanced(torch.stack(own), has_camera[sample, : len(own)].to(own[0].device))
    return chosen


@torch.no_grad()
def saddle_balanced(views: Float[Tensor, "S C"], present: Bool[Tensor, " S"] | None = None) -> Int[Tensor, ""]:
    """The most middling of the views, by one token each: Depth Anything 3's choice of a reference, arXiv 2511.10647.

    Three numbers a view: its mean cosine similarity to the others, the norm of its token, and the variance over the
    channels of the token at unit length. Each is spread over 0 to 1, and the view nearest to 1/2 in all three wins,
    by the sum of distances. There the tokens are DINOv2's class tokens before views see each other; Qwen2.5-VL's
    tower has none, so the mean of a view's 2D tokens stands for them.

    Args:
        views: a token a view.
        present: the views to choose from; None is all. Of fewer than three it is the first.
    """
    places = torch.arange(len(views), device=views.device)
    if present is not None:
        views, places = views[present], places[present]
    if len(views) < CHOOSE_FROM:
        return places[0] if len(places) else torch.zeros((), dtype=torch.long, device=views.device)
    with full_precision(views.device):
        views = to_float32(views)
        norm = views.norm(dim=-1)
        unit = views / norm[:, None]
        similarity = ((unit @ unit.T).sum(-1) - 1) / (len(views) - 1)
        measures = torch.stack((similarity, norm, unit.var(-1)))
    low, high = measures.amin(1, keepdim=True), measures.amax(1, keepdim=True)
    middling = ((measures - low) / (high - low + 1e-8) - 0.5).abs().sum(0)
    return places[middling.argmin()]
