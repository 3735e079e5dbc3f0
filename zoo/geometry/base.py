"""The contract of a geometry encoder: frames, and the dataset's geometry, to 3D tokens, cameras, depth and points."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.progress import is_first_process

# ---- The geometry encoder --------------------------------------------------------------------------------------------

Head = Literal["camera", "depth", "point"]
Frames = Sequence[Float[Tensor, "_S 3 _H _W"]]  # RGB in 0..1 of each scene
DatasetGeometries = Sequence[SceneGeometry | None]  # the dataset's geometry of each scene


class GeometryEncoder(Configurable, nn.Module, ABC):
    """Compute the geometry of scenes from their frames and the dataset's geometry.

    To add one: subclass, set the attributes, and implement `forward`. An encoder that predicts cameras serves
    `--model.camera_source predicted` and `auto`; one that also predicts points or depth serves `PredictedPoints`.
    With `identity` its outputs can be cached.

    Attributes:
        width: Channels D of its tokens, of all layers together; 0 if it has none.
        num_layers: Layers whose tokens are concatenated on the channels.
        patch_size: In pixels; the sides of frames must be multiples of it.
        takes_vision_patches: It has no size of patches of its own, see `match_patches`.
        is_metric: The lengths that it predicts are meters.
        has_metric_tokens: Its 3D tokens hold lengths in meters.
        requires_cameras: The dataset must provide a camera for each frame.
        requires_frames: The dataset must provide the frames.
        requires_depth: The dataset must provide depth.
        predicts_cameras: It predicts cameras, so that the dataset needs none.
        predicts_depth: It can predict depth with the cameras, in their unit.
        predicts_points: It can predict the point of each pixel with the cameras, in their world and unit.
        scale_from: How its lengths become meters; None keeps its own unit.
        given_fields: The fields of the dataset's geometry that its `tokens` and `cameras` depend on, for cache keys.
        path: Hub id, folder or file of its weights, as it was given; None if they come from elsewhere.
        taught_as: The teacher of GeoVR whose published map of layers a decoder follows that learns from it.
    """

    width: int = 0
    num_layers: int = 1
    patch_size: int = 14
    takes_vision_patches: bool = False
    is_metric: bool = False
    has_metric_tokens: bool = False
    requires_cameras: bool = False
    requires_frames: bool = False
    requires_depth: bool = False
    predicts_cameras: bool = False
    predicts_depth: bool = False
    predicts_points: bool = False
    scale_from: ScaleSource | None = None
    given_fields: Mapping[str, tuple[str, ...]] = {}
    path: str | None = None
    taught_as: Literal["vggt", "da3"] = "vggt"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its weights are read from; empty if they come from elsewhere."""
        return ()

    @property
    def meta_encoder(self) -> GeometryEncoder:
        """This encoder; of a cache, the one behind it, on the meta device."""
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that determine its outputs beside the weights, as JSON; for cache keys.

        Raises:
            InputError: Its outputs depend on more than frames and weights, or cost nothing to compute.
        """
        raise InputError(f"{type(self).__name__} has nothing that a cache would save: leave --model.geometry_cache out")

    def blocks(self) -> list[nn.Module]:
        """Its transformer blocks, whose matrices are sharded."""
        return []

    def match_patches(self, patch_size: int) -> None:
        """Take the vision encoder's size of patches in pixels, if this encoder has no size of its own."""

    def enable_head(self, head: Head) -> None:
        """Load what only this head needs, and add its output to each later prediction of cameras.

        Raises:
            InputError: There is no such head; the message names the remedy.
        """

    def align_lengths(self, source: ScaleSource | None) -> None:
        """Make all lengths meters by this source; None keeps the encoder's own unit.

        Raises:
            InputError: The source needs depth, which this encoder does not predict.
        """
        if source is not None:
            self.scale_from, self.is_metric, self.requires_cameras = source, True, source.requires_cameras
            self.given_fields = {"cameras": source.reads}
            if source.requires_depth:
                self.enable_head("depth")

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """Whether the parameter of this name never gets a gradient from the tokens and the cameras that are used."""
        return not (tokens or cameras)

    @abstractmethod
    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """The geometry of each scene; scenes may differ in their number of frames and in size.

        Args:
            frames: RGB in 0..1 of each scene, in the order of the video.
            given: The dataset's geometry of each scene.
            tokens: Whether to compute 3D tokens.
            cameras: Whether to compute cameras, with depth and points if their heads are enabled.

        Raises:
            InputError: Frames of a size or a scene that this encoder can't use; the message names the remedy.
        """


# ---- Frames for a geometry encoder: their size and their range -------------------------------------------------------


def same_shape(frames: Sequence[Tensor]) -> list[list[int]]:
    """Group the indices of tensors by shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, scene in enumerate(frames):
        groups.setdefault(tuple(scene.shape), []).append(i)
    return list(groups.values())


def resample_frames(frames: Float[Tensor, "S 3 H W"], patch_size: int, wanted_size: int) -> Float[Tensor, "S 3 h w"]:
    """Resize frames (bicubic) so that patches of another size form the same grid.

    From patches of 16 to patches of 14 a side loses an eighth of its pixels, and a frame 23 % of them; details finer
    than that reach the 2D tokens alone. In the other direction nothing is lost and nothing gained.

    Args:
        frames: RGB in 0..1, sides in multiples of `patch_size`.
        patch_size: Of the grid, in pixels.
        wanted_size: Of the patches of the result, in pixels.
    """
    if patch_size == wanted_size:
        return frames
    size = [side // patch_size * wanted_size for side in frames.shape[-2:]]
    return F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def check_size(height: int, width: int, patch: int) -> None:
    """Check that frames can be cut into patches.

    Raises:
        InputError: A side that is not a positive multiple of the patch size.
    """
    if height % patch or width % patch or not (height and width):
        raise InputError(
            f"frames of {width} x {height} pixels: a geometry encoder needs sides in multiples of {patch}; resize them "
            f"to {max(1, round(width / patch)) * patch} x {max(1, round(height / patch)) * patch}"
        )


def covers(grid: tuple[int, int], own: tuple[int, int]) -> bool:
    """Whether an encoder's rows and columns of patches are the vision encoder's, or at most one more of each."""
    return all(0 <= here - side <= 1 for here, side in zip(own, grid, strict=True))


def encoder_frames(
    frames: Shaped[Tensor, "S 3 H W"], vision_patch_size: int, patch_size: int, grid: tuple[int, int] | None = None
) -> Float[Tensor, "S 3 h w"]:
    """Prepare frames for a geometry encoder: in 0..1, with its patches on the grid of the vision encoder's.

    Args:
        frames: In the vision encoder's size, which are resampled; or in the encoder's own, see `covers`.
        vision_patch_size: In pixels.
        patch_size: Of the encoder, in pixels.
        grid: Rows and columns of the vision encoder's patches; None is that of frames in the vision encoder's size.
    """
    scaled = frames if frames.is_floating_point() else frames.float() / 255
    height, width = frames.shape[-2:]
    has_own_size = not (height % patch_size or width % patch_size)
    if grid and has_own_size and covers(grid, (height // patch_size, width // patch_size)):
        return scaled
    return resample_frames(scaled, vision_patch_size, patch_size)


# ---- Meters for an encoder whose lengths are none: `--model.geometry.scale_from` -------------------------------------

FLAT = 1e-6  # second singular value of centers on a line, relative to the first


class ScaleSource(Configurable, ABC):
    """Measure the unit of predicted lengths, once per scene.

    Attributes:
        reads: The fields of the dataset's geometry that the scale depends on.
        requires_cameras: The dataset must provide cameras.
        requires_depth: The encoder must predict depth.
        path: Hub id or folder of the weights that it uses; None without.
    """

    reads: tuple[str, ...] = ()
    requires_cameras: bool = False
    requires_depth: bool = False
    path: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its weights are read from."""
        return ()

    @abstractmethod
    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> Float[Tensor, ""] | float:
        """The factor from predicted lengths to meters.

        Args:
            scene: As predicted.
            frames: RGB in 0..1.
            given: The dataset's geometry.

        Raises:
            InputError: The scene does not determine it; the message names the remedy.
        """

    def in_meters(
        self, scenes: Sequence[SceneGeometry], frames: Frames, given: DatasetGeometries
    ) -> list[SceneGeometry]:
        """Scale the poses, depth and points of each scene; 3D tokens stay as they are.

        Raises:
            InputError: A scene has no scale; names it by its number in the batch.
        """
        scaled = []
        for number, scene in enumerate(zip(scenes, frames, given, strict=True)):
            try:
                scaled.append(scene[0].scaled(self.meters_per_unit(*scene)))
            except InputError as error:
                raise InputError(f"scene {number} of the batch: {error}") from error
        return scaled


class DatasetPoses(ScaleSource):
    """The dataset's camera centers, to which the predicted ones are aligned (Umeyama 1991).

    Over the frames with a valid camera on both sides. The scenes need not share a frame of reference.
    """

    reads = ("world_to_camera", "has_camera")
    requires_cameras = True

    def meters_per_unit(
        self, scene: SceneGeometry, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None
    ) -> float:
        """See `ScaleSource`."""
        poses, _, valid = scene.cameras()
        known, both = poses, torch.zeros_like(valid)
        if given is not None and given.has_cameras:
            known, _, present = given.cameras()
            both = valid & present
        try:
            return 1 / pose_scale(poses[both], known[both])
        except InputError as error:
            complete = "" if both.all() else "complete its cameras.json, or "
            raise InputError(
                f"{error}; {int(both.sum())} of {len(both)} frames have one: {complete}take --model.geometry "
                "PretrainedDA3 or PretrainedVGGT with --model.geometry.scale_from MetricModel"
            ) from error


@torch.no_grad()
def pose_scale(predicted: Float[Tensor, "S 4 4"], given: Float[Tensor, "S 4 4"]) -> float:
    """The scale of the similarity that maps given camera centers to predicted ones (Umeyama 1991), over all views.

    Lengths divided by it are in the unit of the given cameras.

    Args:
        predicted: World-to-camera poses.
        given: The same views.

    Raises:
        InputError: Fewer than three views, or centers on a line: the similarity is not determined.
    """
    target, source = (invert_se3(poses.double())[:, :3, 3] for poses in (predicted, given))
    source, target = source - source.mean(0), target - target.mean(0)
    U, singular, Vh = torch.linalg.svd(target.mT @ source / max(1, len(source)))
    if len(source) < 3 or singular[1] <= FLAT * singular[0]:
        raise InputError("the scale of poses needs three cameras or more whose centers are not on one line")
    singular[2] *= torch.det(U @ Vh).sign()  # a rotation, no reflection
    return float(singular.sum() / source.square().sum(1).mean())


# ---- What VGGT and Depth Anything 3 share: tokens of a trunk's layers, and cameras of its heads ----------------------


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
        has_trainable = any(parameter.requires_grad for parameter in self.parameters())
        found: dict[int, SceneGeometry] = {}
        with torch.set_grad_enabled(has_trainable and torch.is_grad_enabled()):
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


def valid_cameras(
    pose_enc: Float[Tensor, "B S 9"], size_hw: tuple[int, int], to_cameras: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"], Bool[Tensor, "B S"]]:
    """Cameras of pose encodings, with identities in place of invalid ones.

    Invalid are a field of view of 0, which the head can output and which is an infinite focal length, or of pi and
    more; a quaternion of length 0; and numbers that are not finite.

    Args:
        pose_enc: Translation, quaternion, vertical and horizontal field of view.
        size_hw: Of the images in pixels.
        to_cameras: Converts pose encodings to world-to-camera poses and intrinsics in pixels.

    Returns:
        world_to_camera, K_normalized, and a mask of the valid cameras.
    """
    fov = pose_enc[..., 7:]
    valid = pose_enc.isfinite().all(-1) & (fov > 0).all(-1) & (fov < torch.pi).all(-1)
    valid = valid & (pose_enc[..., 3:7].square().sum(-1) > 0)
    # replaced before as well as after the conversion: an infinity that is only masked afterwards gives NaN gradients
    harmless = torch.zeros_like(pose_enc)
    harmless[..., 6:] = 1  # a quaternion of length one, and two fields of view
    world_to_camera, K_px = to_cameras(torch.where(valid[..., None], pose_enc, harmless), size_hw)
    K = normalize_intrinsics(K_px, size_hw[1], size_hw[0])
    keep = valid[..., None, None]
    identity = torch.eye(4, dtype=K.dtype, device=K.device)
    return torch.where(keep, world_to_camera, identity), torch.where(keep, K, identity[:3, :3]), valid


@cache  # once per process
def announce_license(path: str) -> None:
    """Print that weights are not for commercial use: VGGT-1B's, and the large, giant and nested ones of DA3."""
    if is_first_process():
        print(f"{path}: these weights are under CC BY-NC 4.0, for non-commercial use only", file=sys.stderr)
