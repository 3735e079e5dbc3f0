"""Depth prediction as a training objective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.encodings.base import CameraModule
from zoo.encodings.rayrope import RayRoPE
from zoo.errors import InputError
from zoo.objectives.base import Decoded, LayerObjective, Objective
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding import EncodedScene

Pair = tuple[EncodedScene, Float[Tensor, "rows t n"], Float[Tensor, "t n"]]  # scene, predicted log depth, true depth


class DepthPrediction(LayerObjective):
    """Predict the log depth under each 2D token from the token's own hidden state.

    The target is the median depth of the token's pixels over its merged frames, in meters if the depth is metric. The
    loss is the mean absolute error of the logarithm, which measures relative errors. Tokens without known depth are
    masked. The prompt and inference are unchanged.

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
        """Yield each scene with depth, its predicted log depth, and its true depth, 0 where unknown."""
        for scene, states in decoded.views(self.layers[0]):
            if scene.target_depth is not None:
                flat = states[:, :, : scene.target_depth.shape[1]]  # without extra tokens
                with full_precision(states.device):
                    yield scene, to_float32(self.head(flat))[..., 0], to_float32(scene.target_depth.detach())


def depth_errors(pairs: Iterable[Pair]) -> dict[str, Tensor]:
    """Compute the mean |predicted - true| / true of one scene, and the same for the scene's median depth everywhere.

    `aligned` is the error after scaling the prediction to the true median (Zhou et al. 2017, arXiv 1704.07813, section
    4.1), so a wrong scale of the scene does not count. The null model knows the scale.
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


# ---- Supervision of RayRoPE's depth ---------------------------------------------------------------------------------

LEAST_WIDTH = 0.05  # minimum width of a log depth, 5 %; a smooth bound, so that every width has a gradient


class RayDepthPrediction(Objective):
    """Supervise the depth that `RayRoPE` predicts for its rotations, in the decoder and the view mixer.

    The loss is the negative log likelihood of a token's log depth under a Laplace distribution whose scale is the
    predicted half width. It is averaged over the decoder layers and the view mixer (`RayAttention`) that predict depth
    in the unit of the targets. Without a width (`predicts_width: false`) it is the mean absolute error of the
    logarithm. Targets are those of `DepthPrediction`. Scenes with the geometry encoder's cameras and the dataset's
    depth are left out, because their units differ.

    Args:
        weight: See `Objective`.

    Raises:
        InputError: Neither the camera encoding nor the view mixer predicts depth in the unit of the targets.
    """

    targets, uses_lengths = ("depth",), True

    def check_camera_parts(self, parts: Sequence[CameraModule]) -> None:
        modules = [module for part in parts for module in part.modules()]
        if not any(isinstance(module, RayRoPE) and module.predicts_depth for module in modules):
            raise InputError(
                "--model.objectives: RayDepthPrediction supervises the depth that RayRoPE predicts: set "
                "--model.camera_encoding RayRoPE or --model.view_mixer RayAttention, with a point at a depth (d), its "
                "depth predicted and its scale none"
            )

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        found = []
        for layer in self._layers(decoded):
            losses = []
            for scene, raw, depth in layer:
                known = depth > 0
                # avoids log(0), because -inf divided by a width has a NaN gradient
                error = (raw[..., 0] - depth.where(known, 1.0).log()).abs()
                if raw.shape[-1] == 2:
                    width = (raw[..., 1].square() + LEAST_WIDTH**2).sqrt()  # the sign only exchanges the ends
                    error = error / width + width.log()
                losses.append((scene, error, known))
            found.append(decoded.mean_over_scenes(losses))
        return {"log_depth": torch.stack(found).mean()} if found else {}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `depth_errors`. Errors of the middle of the predicted depth range, averaged like the loss."""
        layers = [
            depth_errors((scene, raw[..., 0], depth) for scene, raw, depth in each) for each in self._layers(decoded)
        ]
        return {name: torch.stack([each[name] for each in layers]).mean() for name in (layers[0] if layers else ())}

    def _layers(
        self, decoded: Decoded
    ) -> Iterator[list[tuple[EncodedScene, Float[Tensor, "rows t n ends"], Float[Tensor, "t n"]]]]:
        """For the view mixer and each layer, yield scenes with depth, token predictions, and true depth."""
        for predicted in decoded.raw_depths():
            pairs = []
            for scene, own in predicted:
                if (depth := scene.target_depth) is not None and scene.is_target_in_camera_unit:
                    pairs.append((scene, own[:, :, : depth.shape[1]], to_float32(depth.detach())))
            yield pairs
