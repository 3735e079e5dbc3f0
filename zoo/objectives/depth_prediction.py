"""Depth as something to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jaxtyping import Float
from torch import Tensor

from zoo.objectives.base import LayerObjective
from zoo.objectives.decoded import Decoded
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding.encoded_scene import EncodedScene

Pair = tuple[EncodedScene, Float[Tensor, "rows t n"], Float[Tensor, "t n"]]  # predicted logarithms, and depth


class DepthPrediction(LayerObjective):
    """Predict the logarithm of the depth beneath each 2D token, from the token's own hidden state.

    The target is the median depth of the token's pixels over the frames that are merged in it, in meters where the
    depth is metric. The loss is the mean absolute error of the logarithm, an error in proportions; tokens without known
    depth are masked. The prompt is unchanged, and so is inference.

    Args:
        layer: See `LayerObjective`.
        weight: See `Objective`.
    """

    targets, uses_lengths = ("depth",), True
    num_outputs = 1

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        losses = ((scene, (found - depth.log()).abs(), depth > 0) for scene, found, depth in self._pairs(decoded))
        return {"log_depth": decoded.mean_over_scenes(losses)}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `depth_errors`."""
        return depth_errors(self._pairs(decoded))

    def _pairs(self, decoded: Decoded) -> Iterator[Pair]:
        """Yield each scene with depth, its predicted logarithms, and the depth, 0 where unknown."""
        for scene, states in decoded.views(self.layers[0]):
            if scene.targets.depth is not None:
                flat = states[:, :, : scene.targets.depth.shape[1]]  # without extra tokens
                with full_precision(states.device):
                    yield scene, to_float32(self.head(flat))[..., 0], to_float32(scene.targets.depth.detach())


def depth_errors(pairs: Iterable[Pair]) -> dict[str, Tensor]:
    """Compute mean |predicted - true| / true of one scene, and that of its own median depth everywhere.

    `aligned` is the error after the prediction has the true median (Zhou et al. 2017, arXiv 1704.07813, section 4.1),
    so that a wrong scale of the scene costs nothing; the null model knows the scale.

    Args:
        pairs: The scene, if it has depth.
    """
    found: dict[str, Tensor] = {}
    for _, logarithms, depth in pairs:
        known = depth > 0
        if known.any():
            true, predicted = depth[known], logarithms.exp()[:, known]
            median = true.median()
            aligned = predicted * (median / predicted.median(-1, keepdim=True).values)
            for name, each in (("", predicted), ("aligned_", aligned), ("unlearned/", median)):
                found[f"{name}depth_relative"] = ((each - true).abs() / true).mean()
            found["unlearned/aligned_depth_relative"] = found["unlearned/depth_relative"]
    return found
