"""Pi3X as a geometry encoder, released or tiny, with the dataset's rays, depth and poses where a scene has them.

--model.geometry PretrainedPi3X --model.geometry.path weights/pi3x --model.geometry.conditions "[rays, poses]"
--model.geometry TinyPi3X --model.geometry.path runs/pi3x_tiny
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras import intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError
from zoo.geometry.base import (
    DatasetGeometries,
    Frames,
    Head,
    PretrainableEncoder,
    ScaleSource,
    SceneGeometry,
    announce_license,
)
from zoo.geometry.layers import select_frames
from zoo.geometry.pi3x import CONDITIONS, RELEASED, Condition, Conditions, Pi3X, Pi3XOutput, check_scene, tiny_config
from zoo.geometry.pi3x.conditions import Mask
from zoo.geometry.pi3x.model import PARTS, PATCH_SIZE, part_of, transformed
from zoo.geometry.vggt import VGGTOutput, cameras_to_pose_encoding
from zoo.geometry.vggt_encoder import find_run_weights
from zoo.precision import full_precision, to_float32
from zoo.seed import resolve_seed
from zoo.weights.load import StoredTensors, Tensors, find_tensors

READ = {  # fields of the dataset's geometry that a condition reads
    "rays": ("K_normalized", "has_camera"),
    "depth": ("depth",),
    "poses": ("world_to_camera", "has_camera"),
}
DROPPED = 0.5  # probability with which a condition is left out of a scene in pretraining


@dataclass(frozen=True)
class Pi3XSymmetries:
    """Symmetries of the 3D tokens.

    Attributes:
        order: A permutation of the views permutes the tokens. Exact. If depth is a condition, only in scenes with it.
        world: A rigid change of the dataset's world changes nothing. Exact.
        unit: A common factor on the dataset's translations and depth changes nothing, up to 1e-6, unless the cameras
            are at rest.
    """

    order: bool
    world: bool = True
    unit: bool = True


class Pi3XEncoder(PretrainableEncoder):
    """Pi3X's tokens and cameras. Float32, in meters (approximately), in a world that is no view's camera.

    The confidence is a logit. The camera token of a frame is the mean over its patches, which the camera head pools as
    well. A frame without a camera has no pose and no rays. In the mean distance from view 0, the unit of poses without
    depth, it counts with the pose of the last frame before it that has one, or else of the first.

    Args:
        pi3x: A Pi3X with its weights.
        layers: Pairs of blocks whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        conditions: What the network is told of the dataset, in scenes that have it: `rays` (the intrinsics), `depth`,
            `poses`. None is all that `pi3x` has parts for.
        weights: Official tensors for heads that `pi3x` lacks. Such a head is loaded when it is enabled.
        scale_from: How lengths are converted to meters. None keeps the network's own.

    Raises:
        InputError: A layer or a condition does not exist.
    """

    heads: tuple[str, ...] = ("camera",)
    patch_size = PATCH_SIZE
    predicts_cameras = True
    predicts_depth = True
    predicts_points = True
    is_metric = True
    has_metric_tokens = True  # the metric scale is read from the tokens alone

    def __init__(
        self,
        pi3x: Pi3X,
        layers: Sequence[int] = (-1,),
        conditions: Sequence[Condition] | None = None,
        weights: Tensors | None = None,
        scale_from: ScaleSource | None = None,
    ) -> None:
        super().__init__(layers, pi3x.depth, 2 * pi3x.embed_dim)
        conditions = pi3x.conditions if conditions is None else conditions
        if lacking := [each for each in conditions if each not in pi3x.conditions]:
            raise InputError(f"--model.geometry.conditions {lacking[0]}: this Pi3X has no parts for it")
        self.pi3x, self._weights = pi3x, weights
        self.conditions: tuple[Condition, ...] = tuple(each for each in CONDITIONS if each in conditions)
        fields = tuple(dict.fromkeys(field for each in self.conditions for field in READ[each]))
        self.given_fields = {"tokens": fields, "cameras": fields} if fields else {}
        self.reads_depth = "depth" in self.conditions
        self.align_lengths(scale_from)

    @property
    def symmetries(self) -> Pi3XSymmetries:
        """The symmetries of its 3D tokens."""
        return Pi3XSymmetries(order="poses" not in self.conditions or "depth" in self.conditions)

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The heads that the network has, if they are what pretraining needs."""
        return self.pi3x.heads if {"camera", "point"} <= set(self.pi3x.heads) else ()

    def official_state_dict(self) -> dict[str, Tensor]:
        """See `PretrainableEncoder`. Parts for conditions that it is not told are left out: they were not trained."""
        untold = {part for each in CONDITIONS if each not in self.conditions for part in PARTS[each]}
        return {name: each for name, each in self.pi3x.official_state_dict().items() if part_of(name) not in untold}

    @property
    def files(self) -> tuple[Path, ...]:
        """See `GeometryEncoder`."""
        return self.pi3x.files

    def identity(self) -> dict[str, Any]:
        """See `GeometryEncoder`."""
        dtypes = {"dtype": str(self.pi3x.dtype), "matrices": str(self.pi3x.matrix_dtype)}
        settings = {"layers": self.layer_numbers, "conditions": self.conditions, "heads": self.heads}
        return {"config": self.pi3x.config, **settings, **dtypes}

    def blocks(self) -> list[nn.Module]:
        """See `GeometryEncoder`."""
        depth = self.pi3x.depth_encoder.encoder.layer if "depth" in self.conditions else ()
        poses = self.pi3x.pose_inject_blk if "poses" in self.conditions else ()
        return [*self.pi3x.encoder.encoder.layer, *depth, *self.pi3x.decoder, *poses]

    def enable_head(self, head: Head) -> None:
        """See `GeometryEncoder`. One head predicts depth and points."""
        self.heads = tuple(each for each in ("camera", "depth", "point") if each == head or each in self.heads)
        for part in self._own_heads(self.heads):
            if part in self.pi3x.heads:
                continue
            if self._weights is None:
                raise InputError(
                    f"this Pi3X has no {part} head: use the dataset's geometry, --model.camera_source dataset"
                )
            self.pi3x.load_head(part, self._weights)

    @staticmethod
    def _own_heads(heads: Collection[str]) -> list[str]:
        """Return the network's names of heads. Cameras need intrinsics, which follow from the points."""
        has_points = not {"depth", "point"}.isdisjoint(heads)
        return [*(["camera", "intrinsics"] if "camera" in heads else []), *(["point"] if has_points else [])]

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """See `GeometryEncoder`. No loss reads the confidence."""
        if not (tokens or cameras):
            return True
        name = name.removeprefix("pi3x.")
        part, number, *_ = [*name.split("."), ""]
        last = 2 * (self.pi3x.depth if cameras else 1 + max(self.layer_numbers)) - 1
        if part == "decoder":
            return int(number) > last
        if part == "pose_inject_blk":
            return "poses" not in self.conditions or self.pi3x.config["pose_inject"]["after"][int(number)] > last
        if part in PARTS["trunk"]:
            return False
        for condition in CONDITIONS:
            if part in PARTS[condition]:
                return condition not in self.conditions
        return part.startswith("conf_") or not cameras

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`."""
        for number, (images, scene) in enumerate(zip(frames, given, strict=True)):
            if scene is not None:
                poses = scene.world_to_camera if "poses" in self.conditions else None
                depth = scene.depth if "depth" in self.conditions else None
                check_scene(f"scene {number} of the batch", tuple(images.shape[-2:]), poses, depth)
        return super().forward(frames, given, tokens=tokens, cameras=cameras)

    def predict(
        self, images: Float[Tensor, "B S 3 H W"], given: DatasetGeometries, *, tokens: bool, heads: Sequence[str]
    ) -> tuple[Pi3XOutput, dict[str, Tensor | None]]:
        """See `TrunkEncoder`."""
        layers = self.layer_numbers if tokens else ()
        output = self.pi3x.compute(images, layers, self._own_heads(heads), self.conditions_of(given, images))
        confidence = None if output.conf is None else output.conf.detach()
        return output, {"depth": output.depth, "points": output.points, "confidence": confidence}

    def conditions_of(self, given: DatasetGeometries, images: Float[Tensor, "B S 3 H W"]) -> Conditions:
        """Return the dataset's geometry of scenes as conditions."""
        views, _, height, width = images.shape[1:]
        found: dict[str, Any] = {}
        known = [scene if scene is not None and scene.has_cameras else None for scene in given]
        if any(scene is not None for scene in known) and not {"rays", "poses"}.isdisjoint(self.conditions):
            every = [no_cameras(views, images) if scene is None else scene.cameras() for scene in known]
            mask: Mask = torch.stack([valid for _, _, valid in every])
            if all(scene is not None and scene.has_camera is None for scene in known):
                mask = None
            if "rays" in self.conditions:
                K = torch.stack([to_float32(K) for _, K, _ in every])
                found |= {"K_px": intrinsics_in_pixels(K, width, height), "has_ray": mask}
            if "poses" in self.conditions:
                poses = torch.stack([standing_in(poses.double(), valid) for poses, _, valid in every])
                found |= {"world_to_camera": poses, "has_pose": mask}
        depths = [None if scene is None else scene.depth for scene in given]
        if "depth" in self.conditions and any(depth is not None for depth in depths):
            nothing = images.new_zeros(views, height, width)
            depth = torch.stack([nothing if depth is None else depth.to(nothing.dtype) for depth in depths])
            found |= {"depth": depth, "has_depth": (depth > 0).flatten(2).any(2)}
        return Conditions(**found)

    def _tokens(self, tokens: Any, patch_start: int, images: Tensor) -> dict[str, Tensor | None]:
        fields = super()._tokens(tokens, patch_start, images)
        assert fields["patches"] is not None
        return fields | {"camera_tokens": fields["patches"].mean((2, 3))}

    def _cameras(self, output: Pi3XOutput, images: Tensor) -> dict[str, Tensor | None]:
        """Return cameras. Invalid ones, without a positive focal length, are identities."""
        if output.world_to_camera is None or output.K_px is None:
            return {}
        poses, K = output.world_to_camera, normalize_intrinsics(output.K_px, images.shape[-1], images.shape[-2])
        focal = K.diagonal(dim1=-2, dim2=-1)[..., :2]
        valid = poses.isfinite().flatten(2).all(2) & focal.isfinite().all(2) & (focal > 0).all(2)
        keep, identity = valid[..., None, None], torch.eye(4, dtype=poses.dtype, device=poses.device)
        return {
            "world_to_camera": torch.where(keep, poses, identity),
            "K_normalized": torch.where(keep, K, identity[:3, :3]),
            "has_camera": valid,
        }

    # ---- pretraining ------------------------------------------------------------------------------------------------

    def training_output(
        self,
        images: Float[Tensor, "B S 3 H W"],
        given: DatasetGeometries,
        dense_frames: Int[Tensor, "B dense"] | None,
        draws: Sequence[int] | None,
    ) -> VGGTOutput:
        """See `PretrainableEncoder`.

        Of `given` the conditions are read, and each is left out of half of the scenes if they are drawn. The network
        predicts no fields of view by its camera head, so the dataset's stand in for them.
        """
        told = self.conditions_of(given, images)
        if draws is not None:
            kept = torch.stack([_kept(draw) for draw in draws]).to(images.device, non_blocking=True)[:, :, None]
            masks = {"has_ray": "rays", "has_depth": "depth", "has_pose": "poses"}
            for column, (mask, condition) in enumerate(masks.items()):
                if condition in told.given:
                    before = getattr(told, mask)
                    every = kept[:, column].expand(*images.shape[:2])
                    told = replace(told, **{mask: every if before is None else every & before})
        output = self.pi3x.compute(images, (), ("camera", "point"), told, dense_frames)
        assert output.world_to_camera is not None and output.local_points is not None and output.conf is not None
        K = torch.stack([scene.K_normalized for scene in given if scene is not None and scene.K_normalized is not None])
        height, width = images.shape[-2:]
        with full_precision(images.device):
            relative = output.world_to_camera @ invert_se3(output.world_to_camera[:, :1])
            K_px = intrinsics_in_pixels(to_float32(K), width, height).to(relative.dtype)
            pose_enc = cameras_to_pose_encoding(relative, K_px, (height, width))
            chosen = relative if dense_frames is None else select_frames(relative, dense_frames)
            points = transformed(output.local_points, invert_se3(chosen))
        confidence = 1 + output.conf.exp()  # as VGGT's heads
        return VGGTOutput(
            {},
            output.patch_start,
            pose_enc=pose_enc,
            pose_enc_list=pose_enc[None],
            depth=output.local_points[..., 2:],
            depth_conf=confidence,
            points=points,
            points_conf=confidence,
        )


def _kept(seed: int) -> Bool[Tensor, " 3"]:
    """Draw which conditions a scene keeps."""
    return torch.rand(len(CONDITIONS), generator=torch.Generator().manual_seed(seed)) >= DROPPED


def no_cameras(views: int, like: Tensor) -> tuple[Float[Tensor, "S 4 4"], Float[Tensor, "S 3 3"], Bool[Tensor, " S"]]:
    """Return the cameras of a scene that has none: identities, and a mask without any."""
    identity = torch.eye(4, dtype=to_float32(like).dtype, device=like.device).expand(views, 4, 4)
    return identity, identity[:, :3, :3], torch.zeros(views, dtype=torch.bool, device=like.device)


def standing_in(world_to_camera: Float[Tensor, "S 4 4"], valid: Bool[Tensor, " S"]) -> Float[Tensor, "S 4 4"]:
    """Give a frame without a camera the pose of the last frame before it that has one, or else of the first."""
    number = torch.arange(len(valid), device=valid.device)
    before = torch.where(valid, number, -1).cummax(0).values
    return world_to_camera[torch.where(before < 0, valid.int().argmax(), before)]


class PretrainedPi3X(Pi3XEncoder):
    """Pi3X with released weights. Parts for conditions and heads are loaded only when they are used.

    Args:
        path: A hub id, or a folder with model.safetensors.
        layers: Pairs of blocks whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        conditions: What the network is told of the dataset, in scenes that have it: `rays` (the intrinsics), `depth`,
            `poses`. An empty list is the images alone.
        dtype: Dtype of the trunk's matrices and products. The rest and the heads are float32.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the network's own,
            which are meters approximately.
    """

    def __init__(
        self,
        path: str = "yyfz233/Pi3X",
        layers: Sequence[int] = (-1,),
        conditions: Sequence[Condition] = CONDITIONS,
        dtype: Literal["float32", "bfloat16"] = "float32",
        scale_from: ScaleSource | None = None,
    ) -> None:
        weights = find_tensors(path, "yyfz233/Pi3X", "--model.geometry.path")
        pi3x = Pi3X.from_official(RELEASED, weights, torch.float32, getattr(torch, dtype), conditions, heads=())
        announce_license(path)
        super().__init__(pi3x, layers, conditions, weights, scale_from)
        self.path = path


class TinyPi3X(Pi3XEncoder):
    """A Pi3X with a few million parameters for small frames, random or pretrained with geometry_tiny.yaml.

    Args:
        path: A run of `fit --config geometry_tiny.yaml --model.geometry TinyPi3X`, or its model.safetensors. null is
            random weights, whose outputs carry no geometry.
        layers: Pairs of blocks whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        conditions: What the network is told of the dataset, in scenes that have it: `rays` (the intrinsics), `depth`,
            `poses`. An empty list is the images alone.
        embed_dim: Width of the trunk. Its tokens have twice as many channels.
        depth: Number of pairs of blocks.
        num_heads: Number of attention heads.
        features: Width of the point maps, a multiple of 16.
        seed: Seed of the random weights. null is the run's seed.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the network's own.

    Raises:
        InputError: The path has no weights, or weights of another size, or the widths do not fit.
    """

    def __init__(
        self,
        path: str | None = None,
        layers: Sequence[int] = (-1,),
        conditions: Sequence[Condition] = CONDITIONS,
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        features: int = 16,
        seed: int | None = None,
        scale_from: ScaleSource | None = None,
    ) -> None:
        if min(embed_dim, num_heads) < 1 or embed_dim % (8 * num_heads) or features < 16 or features % 16:
            raise InputError(
                f"--model.geometry TinyPi3X: embed_dim {embed_dim}, num_heads {num_heads}, features {features}: heads "
                "need a multiple of 8 channels, and features are multiples of 16"
            )
        config = tiny_config(embed_dim, depth, num_heads, features)
        if path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(resolve_seed(seed))
                pi3x = Pi3X(config)
            pi3x.init_central_cameras()
        else:
            tensors = StoredTensors(
                lambda: find_run_weights(path, "--config geometry_tiny.yaml --model.geometry TinyPi3X")
            )
            pi3x = Pi3X.from_official(config, tensors, torch.float32, conditions=conditions)
        super().__init__(pi3x, layers, conditions, scale_from=scale_from)
        self.path = path
