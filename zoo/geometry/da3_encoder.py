"""Depth Anything 3 as a geometry encoder, released or tiny.

--model.geometry PretrainedDA3 --model.geometry.path weights/DA3-BASE
--model.geometry TinyDA3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError, add_file_to_errors
from zoo.geometry.base import (
    DatasetGeometries,
    DatasetPoses,
    Frames,
    Head,
    ScaleSource,
    SceneGeometry,
    TrunkEncoder,
    announce_license,
)
from zoo.geometry.da3 import DA3, normalize_poses, pose_encoding_to_cameras
from zoo.geometry.da3.model import HEADS, AnyView, DA3Output, Nested, build, find_model
from zoo.geometry.da3.trunk import PATCH_SIZE, Strategy
from zoo.seed import resolve_seed
from zoo.weights.load import CONFIG, Tensors, find_tensors


class DA3Encoder(TrunkEncoder):
    """Tokens and cameras of Depth Anything 3. Float32, with the reference view's camera as the world.

    Lengths are meters for a nested model, and in the scene's own scale for the others. A metric model predicts neither
    cameras nor a focal length, so only its tokens are used.

    Args:
        da3: A DA3 with its weights.
        layers: Trunk layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count from
            the end.
        reference: How the view is chosen whose camera is the world, see `choose_reference`. `first` uses frame 0.
        config: Config of the whole model, if `da3` lacks heads that can be loaded.
        weights: Official tensors for such heads. A head is loaded when it is enabled.
        scale_from: How lengths are converted to meters. None keeps the model's own unit.

    Raises:
        InputError: A layer does not exist, or the depth head that the scale needs is missing.
    """

    patch_size = PATCH_SIZE
    taught_as = "da3"
    # remedy for a model without the head
    with_heads = "use an any-view or nested model, such as depth-anything/DA3-BASE"

    def __init__(
        self,
        da3: DA3,
        layers: Sequence[int] = (-1,),
        reference: Strategy = "saddle_balanced",
        config: Mapping[str, Any] | None = None,
        weights: Tensors | None = None,
        scale_from: ScaleSource | None = None,
    ) -> None:
        trunk = da3.model.trunk
        super().__init__(layers, trunk.depth, trunk.width, pose_encoding_to_cameras)
        self.da3, self.reference = da3, reference
        self._config, self._weights = config or da3.config, weights
        with torch.device("meta"):
            heads = build(self._config).heads
        self.predicts_cameras, self.predicts_depth = "camera" in heads, {"camera", "depth"} <= heads
        self.is_metric = isinstance(da3.model, Nested)
        self.heads = ("camera",) if self.predicts_cameras else ()
        self.align_lengths(scale_from)

    @property
    def files(self) -> tuple[Path, ...]:
        """See `GeometryEncoder`."""
        return self.da3.files

    def identity(self) -> dict[str, Any]:
        """See `GeometryEncoder`."""
        trunk = self.da3.model.trunk
        return {
            "config": dict(self._config),
            "heads": self.heads,
            "layers": self.layer_numbers,
            "reference": self.reference,
            "dtype": str(trunk.dtype),
        }

    def blocks(self) -> list[nn.Module]:
        """See `GeometryEncoder`."""
        return [*self.da3.model.trunk.blocks]

    def enable_head(self, head: Head) -> None:
        """See `GeometryEncoder`."""
        if not (self.predicts_cameras if head == "camera" else head == "depth" and self.predicts_depth):
            missing = head if self.predicts_cameras else "camera"  # depth alone has no unit
            raise InputError(
                f"this Depth Anything 3 has no {missing} head: {self.with_heads}, or use the dataset's geometry, "
                "--model.camera_source dataset"
            )
        self.heads = tuple(each for each in HEADS if each == head or each in self.heads)
        if head not in self.da3.model.heads and self._weights is not None:
            lacking = [part for part in self.da3.model.parts_of_head[head] if not self.da3.has_part(part)]
            self.da3.load_parts(lacking, self._config, self._weights)

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """See `GeometryEncoder`. Rays are not used, and the camera encoder is used only by `PosedDA3`."""
        if not (tokens or cameras):
            return True
        name, heads = name.removeprefix("da3.model.").removeprefix("da3."), set(self.heads if cameras else ())
        if isinstance(self.da3.model, Nested) and heads:  # the scale depends on depth
            heads |= {"camera", "depth"}
        if name.startswith(("cam_enc.", "cam_dec.")):
            return name.startswith("cam_enc.") or "camera" not in heads
        if "sky_output_conv2." in name or "_aux." in name:
            return True
        if name.startswith(("head.", "da3_metric.")):
            return "depth" not in heads
        trunk = self.da3.model.trunk
        read = self.layer_numbers if tokens else [0]
        last = max(*read, trunk.out_layers[-1] if heads else 0)
        part, number, *_ = [*name.removeprefix("backbone.pretrained.").split("."), ""]
        if part == "blocks":
            return int(number) > last
        if part == "norm":  # camera tokens are not normalized
            return not (tokens or "depth" in heads)
        return part == "camera_token" and last < trunk.alt_start

    def predict(
        self, images: Float[Tensor, "B S 3 H W"], given: DatasetGeometries, *, tokens: bool, heads: Sequence[str]
    ) -> tuple[DA3Output, dict[str, Tensor | None]]:
        """See `TrunkEncoder`."""
        if lacking := set(heads) - self.da3.model.heads:
            raise ValueError(f"heads that are not enabled: {', '.join(sorted(lacking))}: call enable_head")
        known = self.known_cameras(given, (images.shape[-2], images.shape[-1]))
        output = self.da3.compute(
            images, self.layer_numbers if tokens else (), heads, reference=self.reference, **known
        )
        return output, {"depth": output.depth, "confidence": output.depth_conf} if "depth" in heads else {}

    def known_cameras(self, given: DatasetGeometries, size_hw: tuple[int, int]) -> dict[str, Tensor]:
        """Return the dataset's cameras as arguments of `DA3`. Empty if the model gets none."""
        return {}


class PretrainedDA3(DA3Encoder):
    """Depth Anything 3 with released weights (arXiv 2511.10647). A head is loaded only when it is enabled.

    Args:
        path: A hub id, or a folder with config.json and model.safetensors.
        layers: Trunk layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count from
            the end.
        dtype: Dtype of the trunk. The heads are float32.
        reference: How the view is chosen whose camera is the world, see `choose_reference`.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the model's own
            unit.
    """

    def __init__(
        self,
        path: str = "depth-anything/DA3-BASE",
        layers: Sequence[int] = (-1,),
        dtype: Literal["float32", "bfloat16"] = "float32",
        reference: Strategy = "saddle_balanced",
        scale_from: ScaleSource | None = None,
    ) -> None:
        folder, config = find_model(path, "depth-anything/DA3-BASE", "--model.geometry.path")
        with add_file_to_errors(folder / CONFIG):
            anyview = config.get("anyview", config)
            trunk = {"anyview": {"net": anyview["net"]}} if "anyview" in config else {"net": anyview["net"]}
            with torch.device("meta"):
                is_large = build(config).trunk.alternates and anyview["net"]["name"] in ("vitl", "vitg")
        weights = find_tensors(path, "depth-anything/DA3-BASE", "--model.geometry.path")
        da3 = DA3.from_official(trunk, weights, getattr(torch, dtype))
        super().__init__(da3, layers, reference, config, weights, scale_from)
        self.path = path
        if is_large:
            announce_license(path)


class TinyDA3(DA3Encoder):
    """A Depth Anything 3 with a few million random weights, for small frames. Its outputs carry no geometry.

    Args:
        layers: Trunk layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count from
            the end.
        embed_dim: Width of the trunk. Its tokens have twice as many channels.
        depth: Number of trunk blocks, at least four. After the first third they alternate.
        num_heads: Number of attention heads.
        features: Width of the dense head.
        heads: Heads to build.
        reference: How the view is chosen whose camera is the world, see `choose_reference`.
        seed: Seed of the random weights. null is the run's seed.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the model's own
            unit.

    Raises:
        InputError: There are fewer than four blocks, or features are not a multiple of 8.
    """

    with_heads = "build both (--model.geometry.heads [camera,depth])"

    def __init__(
        self,
        layers: Sequence[int] = (-1,),
        embed_dim: int = 128,
        depth: int = 6,
        num_heads: int = 4,
        features: int = 16,
        heads: Sequence[Literal["camera", "depth"]] = ("camera",),
        reference: Strategy = "saddle_balanced",
        seed: int | None = None,
        scale_from: ScaleSource | None = None,
    ) -> None:
        if depth < 4 or features < 8 or features % 8:
            raise InputError(
                f"--model.geometry TinyDA3: depth {depth}, features {features}: the dense head reads four blocks, with "
                "features in multiples of 8"
            )
        start = depth // 3
        net = {"name": "vits", "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "alt_start": start}
        net |= {"qknorm_start": start, "rope_start": start, "out_layers": list(range(depth - 4, depth))}
        every = {
            "cam_dec": {"dim_in": 2 * embed_dim},
            "head": {"dim_in": 2 * embed_dim, "output_dim": 2, "features": features, "out_channels": [features] * 4},
        }
        parts = {"camera": "cam_dec", "depth": "head"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(resolve_seed(seed))
            da3 = DA3({"net": net} | {parts[head]: every[parts[head]] for head in heads})
        if isinstance(da3.model, AnyView) and da3.model.cam_dec is not None:
            da3.model.cam_dec.init_identity_pose()
        super().__init__(da3, layers, reference, scale_from=scale_from)


# ---- Depth Anything 3 with the dataset's cameras as input: `--model.geometry PosedDA3` -------------------------------

CAMERA = ("world_to_camera", "K_normalized", "has_camera")


class PosedDA3(PretrainedDA3):
    """Depth Anything 3 with released weights and the dataset's cameras, which pass through its camera encoder.

    As in the official API, the cameras of the result are the given ones, and depth is aligned to them. Principal points
    are assumed to be at the center of the image.

    Args:
        path: A hub id, or a folder with config.json and model.safetensors, of an any-view model.
        layers: Trunk layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count from
            the end.
        dtype: Dtype of the trunk. The heads are float32.

    Raises:
        InputError: The model has no camera encoder, or is a nested one.
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
        """See `GeometryEncoder`. Predicted cameras serve only to align depth, which has no gradient."""
        used = {"tokens": tokens, "cameras": cameras and "depth" in self.heads}
        learned = name.endswith(".camera_token")
        if ".cam_enc." in name:  # its tokens replace the learned ones
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
