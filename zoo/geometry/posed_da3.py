"""Depth Anything 3 that is given the dataset's cameras.

--model.geometry PosedDA3 --model.geometry.path weights/DA3-BASE
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError
from zoo.geometry.base import DatasetGeometries, Frames, SceneGeometry
from zoo.geometry.da3 import normalize_poses
from zoo.geometry.da3_encoder import PretrainedDA3
from zoo.geometry.scale import DatasetPoses

CAMERA = ("world_to_camera", "K_normalized", "has_camera")


class PosedDA3(PretrainedDA3):
    """Depth Anything 3 with released weights and the dataset's cameras, which pass its camera encoder.

    As in the official API, the cameras of the result are the given ones, and depth is aligned to them. Principal points
    are taken for the center of the image.

    Args:
        path: A hub id, or a folder with config.json and model.safetensors in it, of an any-view model.
        layers: Of the trunk whose outputs are the 3D tokens, concatenated on the channels; counted from the end where
            negative.
        dtype: Of the trunk; the heads are float32.

    Raises:
        InputError: A model without a camera encoder, or a nested one.
    """

    requires_cameras = True
    given_fields = {"tokens": CAMERA, "cameras": CAMERA}

    def __init__(
        self,
        path: str = "depth-anything/DA3-BASE",
        layers: Sequence[int] = (-1,),
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(path, layers, dtype)
        if "anyview" in self._config or self._weights is None or not self._config.get("cam_enc"):
            raise InputError(f"{path} is no any-view model with a camera encoder: give depth-anything/DA3-BASE")
        self.da3.load_parts(["cam_enc"], self._config, self._weights)
        self.is_metric = True

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """See `GeometryEncoder`; predicted cameras serve the alignment of depth alone, which has no gradient."""
        used = {"tokens": tokens, "cameras": cameras and "depth" in self.heads}
        learned = name.endswith(".camera_token")
        if ".cam_enc." in name:  # its tokens stand in for the learned ones
            name = "da3.model.backbone.pretrained.camera_token"
        return learned or ".cam_dec." in name or super().is_unreachable(name, **used)

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`."""
        for number, (images, own) in enumerate(zip(frames, given, strict=True)):
            count = int(own.cameras()[2].sum()) if own is not None and own.has_cameras else 0
            if count < len(images):
                raise InputError(
                    f"scene {number} of the batch: {count} of {len(images)} frames have a camera, and PosedDA3 needs "
                    "one for each: complete its cameras.json, or take --model.geometry PretrainedDA3"
                )
        has_depth = cameras and "depth" in self.heads
        scenes = super().forward(frames, given, tokens=tokens, cameras=has_depth)
        if has_depth:
            try:
                scenes = DatasetPoses().in_meters(scenes, frames, given)
            except InputError as error:
                raise InputError(f"PosedDA3 aligns depth to the cameras: {error}, or the dataset's depth") from error
        if cameras:
            for scene, own in zip(scenes, given, strict=True):
                for name in CAMERA:
                    setattr(scene, name, getattr(own, name))
        return scenes

    def known_cameras(self, given: DatasetGeometries, size_hw: tuple[int, int]) -> dict[str, Tensor]:
        """See `DA3Encoder`."""
        known = [scene.cameras() for scene in given if scene is not None]
        poses, K, _ = (torch.stack(each) for each in zip(*known, strict=True))
        return {
            "world_to_camera": normalize_poses(poses),
            "K_px": intrinsics_in_pixels(K, size_hw[1], size_hw[0]),
        }
