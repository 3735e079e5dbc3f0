"""The metric model: depth for a known focal length, each view for itself; and its rules for sky and meters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.geometry.da3.any_view import CamerasPx
from zoo.geometry.da3.heads import SkyDPT
from zoo.geometry.da3.output import DA3Output
from zoo.geometry.da3.reference import Strategy
from zoo.geometry.da3.trunk import Trunk
from zoo.geometry.images import normalize
from zoo.geometry.transformer_blocks import layer_index
from zoo.precision import full_precision

FOCAL = 300.0  # in pixels, for which the depth is in meters
SKY = 0.3
FEWEST_PIXELS = 10  # of sky, and of anything else, below which no depth is replaced
FAR = 0.99  # quantile of the depth that sky gets


class Metric(nn.Module):
    """The trunk of the metric model and its head, under the official names.

    Args:
        net: Arguments of `Trunk`.
        head: Arguments of `SkyDPT`.
    """

    heads = frozenset({"depth"})
    parts_of_head = {"depth": ("head",)}
    takes_cameras = False

    def __init__(self, net: dict[str, Any], head: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"pretrained": Trunk(**net)})
        self.head = SkyDPT(**head)

    @property
    def trunk(self) -> Trunk:
        """The trunk, whose official name is `backbone.pretrained`."""
        trunk = self.backbone["pretrained"]
        assert isinstance(trunk, Trunk)
        return trunk

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy = "first",
        cameras: CamerasPx | None = None,
    ) -> DA3Output:
        """Compute only what is asked for; see `DA3`. There is neither a reference view nor a camera."""
        trunk = self.trunk
        indices = {layer: layer_index(layer, trunk.depth) for layer in layers}
        needed = {*indices.values(), *(trunk.out_layers if "depth" in heads else ())}
        outputs, _ = trunk(normalize(images), needed, reference)
        result = DA3Output({layer: outputs[i] for layer, i in indices.items()})
        if "depth" in heads:
            with full_precision(images.device):
                tokens = [outputs[i][:, :, 1:].flatten(0, 1).to(self.head.dtype) for i in trunk.out_layers]
                maps = self.head(tokens, *images.shape[-2:])
                result.sky = maps["sky"].unflatten(0, (len(images), -1))
                result.depth = fill_sky(maps["depth"].unflatten(0, (len(images), -1)), result.sky >= SKY)
        return result


def fill_sky(depth: Float[Tensor, "B S H W"], is_sky: Bool[Tensor, "B S H W"]) -> Float[Tensor, "B S H W"]:
    """Replace the depth of sky by the 0.99 quantile of all other pixels of the scene, if there are enough of both."""
    far = masked_quantile(depth.flatten(1), ~is_sky.flatten(1), FAR)
    counts = torch.stack((is_sky.flatten(1).sum(1), (~is_sky).flatten(1).sum(1)))
    is_filled = is_sky & (counts > FEWEST_PIXELS).all(0)[:, None, None, None]
    return torch.where(is_filled, far[:, None, None, None], depth)


def masked_quantile(values: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], quantile: float) -> Float[Tensor, " B"]:
    """The quantile of the values under a mask, interpolated linearly; any number of them, unlike `torch.quantile`."""
    ordered = values.masked_fill(~mask, torch.inf).sort(1).values
    place = (mask.sum(1, keepdim=True) - 1).clamp(min=0).double() * quantile
    low, high = (ordered.gather(1, index.long()) for index in (place.floor(), place.ceil()))
    return torch.lerp(low, high, place.frac().to(values.dtype))[:, 0]


def to_meters(depth: Float[Tensor, "B S H W"], K_px: Float[Tensor, "B S 3 3"]) -> Float[Tensor, "B S H W"]:
    """Convert the depth of a metric model to meters.

    Args:
        depth: For a focal length of 300 pixels.
        K_px: Intrinsics in pixels of the images that the model was given.
    """
    focal = (K_px[..., 0, 0] + K_px[..., 1, 1]) / 2
    return depth * (focal / FOCAL)[..., None, None]
