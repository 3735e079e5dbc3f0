"""Conversion to meters by the depth of a metric model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint
from zoo.geometry.base import ScaleSource, SceneGeometry
from zoo.geometry.cache import GeometryCache
from zoo.geometry.da3 import DA3, to_meters
from zoo.geometry.da3.model import SKY, Metric, find_model, fit_scale
from zoo.weights.load import builds_shapes_only, find_tensors, read_config, read_weights

RELEASED = "depth-anything/DA3METRIC-LARGE"
RELEASED_CONFIG: dict[str, Any] = {  # from its config.json, for `plan`
    "net": {"name": "vitl", "out_layers": [4, 11, 17, 23], "alt_start": -1, "qknorm_start": -1, "rope_start": -1}
    | {"cat_token": False},
    "head": {"__object__": {"name": "DPT"}, "dim_in": 1024, "output_dim": 1, "features": 256}
    | {"out_channels": [256, 512, 1024, 1024]},
}
VERSION = 1  # version of stored scales
MEASURED = ("depth", "confidence", "K_normalized", "has_camera")  # fields of a prediction that the scale depends on
NO_PIXEL = (
    "the metric model and the encoder share no pixel with depth: leave the scene out, or take DatasetPoses as the scale"
)


class MetricModel(ScaleSource):
    """Scale by a metric Depth Anything 3 on the same frames: the median ratio of its depth to the encoder's depth.

    The median is over pixels that are not sky and whose confidence by the encoder is at least the scene's median, in
    frames with a known focal length. The focal length is the dataset's or, if missing, the predicted one. The model is
    float32, frozen, and loaded when it is first needed.

    Args:
        path: A hub id, or a folder with config.json and model.safetensors.
        cache: Stores the scale of each scene on disk, by depth and frames. null computes it each time.

    Attributes:
        cache: The same.

    Raises:
        InputError: The weights do not exist, or belong to another model.
    """

    reads: tuple[str, ...] = ("K_normalized", "has_camera")
    requires_depth = True

    def __init__(self, path: str = RELEASED, cache: GeometryCache | None = None) -> None:
        self.path, self.cache = path, cache
        option = "--model.geometry.scale_from.path"
        self._weights = find_tensors(path, RELEASED, option)
        if path == RELEASED and builds_shapes_only():
            self._config = RELEASED_CONFIG
            return
        folder, self._config = find_model(path, RELEASED, option)
        with torch.device("meta"):
            outline = self._load()
        # the relative model has the same config
        if not isinstance(outline.model, Metric) or "mono" in str(read_config(folder).get("model_name")).lower():
            raise InputError(f"{path} is no metric model: give depth-anything/DA3METRIC-LARGE")

        if not builds_shapes_only():
            with torch.device("meta"):
                read_weights(outline)  # to check names and shapes

    @property
    def files(self) -> tuple[Path, ...]:
        """See `ScaleSource`."""
        return self._weights.files

    def _load(self) -> DA3:
        return DA3.from_official(self._config, self._weights, torch.float32)

    @cached_property
    def network(self) -> DA3:
        """The network, frozen. Its weights are read at the first access."""
        with torch.inference_mode(False):  # kept beyond this call
            return self._load().requires_grad_(False).eval()

    def depth(self, frames: Float[Tensor, "S 3 H W"], K_normalized: Float[Tensor, "S 3 3"]) -> Float[Tensor, "S H W"]:
        """Return the depth in meters, 0 for sky."""
        output = self.network.to(frames.device)(frames[None], layers=(), heads=("depth",))
        K_px = intrinsics_in_pixels(K_normalized, frames.shape[-1], frames.shape[-2])
        return (to_meters(output.depth, K_px[None]) * (output.sky < SKY))[0]

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""]:
        """See `ScaleSource`."""
        if self.cache is None:
            return self.measure(scene, frames, given)
        read = {} if given is None else {f"given {name}": each for name, each in given.present().items()}
        inputs = {"frames": frames, **{name: each for name, each in read.items() if name[6:] in self.reads}}
        inputs |= {name: each for name, each in scene.present().items() if name in MEASURED}
        key = {
            "kind": "scale",
            "class": type(self).__qualname__,
            "weights": [self.cache.weights_fingerprint(file) for file in self.files],
            "inputs": fingerprint(inputs),
            "version": VERSION,
        }
        kept = self.cache.get(key, lambda: {"scale": self.measure(scene, frames, given).cpu()})
        return kept["scale"].to(frames.device)

    def measure(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""]:
        """Compute the result of `meters_per_unit`."""
        assert scene.depth is not None and scene.confidence is not None  # by `requires_depth`
        _, K, valid = scene.cameras()
        if given is not None and given.has_cameras:
            _, theirs, present = given.cameras()
            K, valid = torch.where(present[:, None, None], theirs, K), valid | present
        meters = self.depth(frames, K)
        used = (meters > 0) & (scene.depth > 0) & (scene.confidence >= scene.confidence.median())
        used &= valid[:, None, None]
        if not used.any():
            raise InputError(NO_PIXEL)
        return (meters[used] / scene.depth[used]).median().to(scene.depth.dtype)


class FittedMetricModel(MetricModel):
    """Scale by a least-squares fit, as in Depth Anything 3's nested model, with predicted focal lengths only.

    This is GeoVR's target (arXiv 2606.05833).
    """

    reads = ()

    def measure(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""]:
        """See `MetricModel`."""
        assert scene.depth is not None and scene.confidence is not None  # by `requires_depth`
        meters = self.depth(frames, scene.cameras()[1])[None]  # 0 for sky
        (fitted,) = fit_scale(scene.depth[None], scene.confidence[None], meters.to(scene.depth), meters == 0)
        if not fitted.isfinite():
            raise InputError(NO_PIXEL)
        return fitted
