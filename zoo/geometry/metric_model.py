"""Meters by the depth of a metric model."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.geometry.da3 import DA3, to_meters
from zoo.geometry.da3.metric import SKY, Metric
from zoo.geometry.da3.nested import fit_scale
from zoo.geometry.da3.release_folder import find_model
from zoo.geometry.scale import ScaleSource
from zoo.weights.deferred import builds_shapes_only, load_deferred
from zoo.weights.hub import find_tensors, read_config

RELEASED = "depth-anything/DA3METRIC-LARGE"
NO_PIXEL = (
    "the metric model and the encoder share no pixel with depth: leave the scene out, or take DatasetPoses as the scale"
)


class MetricModel(ScaleSource):
    """The depth of a metric Depth Anything 3 on the same frames: the median of its ratio to the encoder's depth.

    Over the pixels that are not sky and where the encoder's confidence is at least the scene's median, of the frames
    whose focal length is known: the dataset's, or else the predicted one. The model is float32, frozen, and loaded when
    it is first needed.

    Args:
        path: A hub id, or a folder with config.json and model.safetensors in it.

    Raises:
        InputError: There are no such weights, or they are of another model.
    """

    reads: tuple[str, ...] = ("K_normalized", "has_camera")
    requires_depth = True

    def __init__(self, path: str = RELEASED) -> None:
        self.path = path
        option = "--model.geometry.scale_from.path"
        folder, self._config = find_model(path, RELEASED, option)
        self._weights = find_tensors(path, RELEASED, option)
        self._da3: DA3 | None = None
        with torch.device("meta"):
            outline = self._load()
        # the relative model has the same config
        if not isinstance(outline.model, Metric) or "mono" in str(read_config(folder).get("model_name")).lower():
            raise InputError(f"{path} is no metric model: give depth-anything/DA3METRIC-LARGE")

        if not builds_shapes_only():
            with torch.device("meta"):
                load_deferred(outline)  # checks names and shapes

    @property
    def files(self) -> tuple[Path, ...]:
        """See `ScaleSource`."""
        return self._weights.files

    def _load(self) -> DA3:
        return DA3.from_official(self._config, self._weights, torch.float32)

    def depth(self, frames: Float[Tensor, "S 3 H W"], K_normalized: Float[Tensor, "S 3 3"]) -> Float[Tensor, "S H W"]:
        """Depth in meters; 0 for sky."""
        if self._da3 is None:
            with torch.inference_mode(False):  # it is kept
                self._da3 = self._load().requires_grad_(False).eval()
        output = self._da3.to(frames.device)(frames[None], layers=(), heads=("depth",))
        K_px = intrinsics_in_pixels(K_normalized, frames.shape[-1], frames.shape[-2])
        return (to_meters(output.depth, K_px[None]) * (output.sky < SKY))[0]

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""]:
        """See `ScaleSource`."""
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
    """The same by a least-squares fit, as in Depth Anything 3's nested model, and by predicted focal lengths alone.

    GeoVR's target (arXiv 2606.05833).
    """

    reads = ()

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""]:
        """See `ScaleSource`."""
        assert scene.depth is not None and scene.confidence is not None  # by `requires_depth`
        meters = self.depth(frames, scene.cameras()[1])[None]  # 0 for sky
        (fitted,) = fit_scale(scene.depth[None], scene.confidence[None], meters.to(scene.depth), meters == 0)
        if not fitted.isfinite():
            raise InputError(NO_PIXEL)
        return fitted
