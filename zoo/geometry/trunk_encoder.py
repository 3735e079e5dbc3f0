"""The license of released geometry encoders whose weights are not for commercial use."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError
from zoo.geometry.base import DatasetGeometries, Frames, GeometryEncoder, SceneGeometry, same_shape, valid_cameras
from zoo.progress import is_first_process


@cache  # once per process
def announce_license(path: str) -> None:
    """Prints that weights are not for commercial use: VGGT-1B's, and the large, giant and nested ones of DA3."""
    if is_first_process():
        print(f"{path}: these weights are under CC BY-NC 4.0, for non-commercial use only", file=sys.stderr)


# ---- What VGGT and Depth Anything 3 share as geometry encoders: tokens of a trunk's layers, and cameras of its heads


class TrunkEncoder(GeometryEncoder):
    """A network whose 3D tokens are outputs of some layers of its trunk, and whose heads predict the rest.

    Scenes of one shape form a batch; none is padded, since frames attend to each other. Without trainable parameters
    no activations are kept for a backward pass.

    Args:
        layers: Of the trunk whose outputs are the 3D tokens, concatenated on the channels; counted from the end where
            negative.
        depth: Of the trunk, in layers.
        channels: Of the tokens of one layer.
        to_cameras: Converts pose encodings to world-to-camera poses and intrinsics in pixels.

    Attributes:
        layers: As they were given.
        layer_numbers: The same, counted from 0.
        heads: That are enabled.

    Raises:
        InputError: There is no such layer, or none is named.
    """

    requires_frames = True
    heads: tuple[str, ...] = ()

    def __init__(
        self, layers: Sequence[int], depth: int, channels: int, to_cameras: Callable[..., tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise InputError(
                f"--model.geometry.layers {list(layers)}: {type(self).__name__} has layers 0 to {depth - 1}"
            )
        self.layers, self.layer_numbers = tuple(layers), [layer % depth for layer in layers]
        self.num_layers, self.width, self._to_cameras = len(layers), channels * len(layers), to_cameras

    @abstractmethod
    def predict(
        self, images: Float[Tensor, "B S 3 H W"], given: DatasetGeometries, *, tokens: bool, heads: Sequence[str]
    ) -> tuple[Any, dict[str, Tensor | None]]:
        """Run the network on scenes of one shape.

        Args:
            images: RGB in 0..1.
            given: The dataset's geometry of each scene.
            tokens: Whether to compute the tokens of `layer_numbers`.
            heads: To compute.

        Returns:
            The network's output with `tokens` by layer, `patch_start` and `pose_enc`; and depth, points and confidence
            by their names in `SceneGeometry`.
        """

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`; VGGT uses `given` for the scale alone."""
        trained = any(parameter.requires_grad for parameter in self.parameters())
        found: dict[int, SceneGeometry] = {}
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            for members in same_shape(frames):
                images = torch.stack([frames[i] for i in members])
                heads = self.heads if cameras else ()
                output, dense = self.predict(images, [given[i] for i in members], tokens=tokens, heads=heads)
                fields = self._tokens(output.tokens, output.patch_start, images) if tokens else {}
                fields |= self._cameras(output.pose_enc, images) | dense
                present = {name: value for name, value in fields.items() if value is not None}
                for k, i in enumerate(members):
                    found[i] = SceneGeometry(**{name: value[k] for name, value in present.items()})
        scenes = [found[i] for i in range(len(frames))]
        return self.scale_from.in_meters(scenes, frames, given) if cameras and self.scale_from else scenes

    def _tokens(
        self, tokens: Mapping[int, Float[Tensor, "B S P _C"]], patch_start: int, images: Float[Tensor, "B S 3 H W"]
    ) -> dict[str, Tensor | None]:
        grid = [side // self.patch_size for side in images.shape[-2:]]
        parts = [tokens[layer] for layer in self.layer_numbers]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)  # those of one layer are not copied
        return {"camera_tokens": joined[:, :, 0], "patches": joined[:, :, patch_start:].unflatten(2, grid)}

    def _cameras(
        self, pose_enc: Float[Tensor, "B S 9"] | None, images: Float[Tensor, "B S 3 H W"]
    ) -> dict[str, Tensor | None]:
        if pose_enc is None:
            return {}
        found = valid_cameras(pose_enc, (images.shape[-2], images.shape[-1]), self._to_cameras)
        return dict(zip(("world_to_camera", "K_normalized", "has_camera"), found, strict=True))
