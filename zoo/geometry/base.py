"""The interface of geometry encoders: frames and the dataset's geometry to 3D tokens, cameras, depth and points."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.progress import is_first_process

# ---- The geometry encoder --------------------------------------------------------------------------------------------

DARKEST, BRIGHTEST = -0.5, 2.0  # frames are in 0..1, and resizing overshoots a little
Head = Literal["camera", "depth", "point"]
Frames = Sequence[Float[Tensor, "_S 3 _H _W"]]  # RGB in 0..1 of each scene
DatasetGeometries = Sequence[SceneGeometry | None]  # the dataset's geometry of each scene


class GeometryEncoder(Configurable, nn.Module, ABC):
    """Computes the geometry of scenes from their frames and the dataset's geometry.

    To add one, subclass, set the attributes, and implement `forward`. An encoder that predicts cameras can be used with
    `--model.camera_source predicted` and `auto`. One that also predicts points or depth can be used with
    `PredictedPoints`. An encoder with `identity` can be cached.

    Attributes:
        width: Channels D of its tokens, all layers together. 0 if it has none.
        gives_latents: The tokens are `SceneGeometry.latents`, of the whole scene, and not patches of its frames.
        num_layers: Number of layers whose tokens are concatenated on the channels.
        patch_size: Patch size in pixels. The sides of frames must be multiples of it.
        takes_vision_patches: The encoder has no patch size of its own, see `match_patches`.
        is_metric: The predicted lengths are meters.
        has_metric_tokens: The 3D tokens contain lengths in meters.
        requires_cameras: The dataset must provide a camera for each frame.
        requires_frames: The dataset must provide the frames.
        requires_depth: The dataset must provide depth.
        reads_depth: The dataset's depth is used in scenes that have it.
        predicts_cameras: The encoder predicts cameras, so the dataset needs none.
        predicts_depth: The encoder can predict depth with the cameras, in their unit.
        predicts_points: The encoder can predict the point of each pixel with the cameras, in their world and unit.
        scale_from: How its lengths are converted to meters. None keeps its own unit.
        given_fields: Fields of the dataset's geometry that its `tokens` and `cameras` depend on, for cache keys.
        path: Hub id, folder or file of its weights, as given. None if they come from elsewhere.
        taught_as: The GeoVR teacher whose published map of layers is used if a decoder learns from this encoder.
    """

    width: int = 0
    gives_latents: bool = False
    num_layers: int = 1
    patch_size: int = 14
    takes_vision_patches: bool = False
    is_metric: bool = False
    has_metric_tokens: bool = False
    requires_cameras: bool = False
    requires_frames: bool = False
    requires_depth: bool = False
    reads_depth: bool = False
    predicts_cameras: bool = False
    predicts_depth: bool = False
    predicts_points: bool = False
    scale_from: ScaleSource | None = None
    given_fields: Mapping[str, tuple[str, ...]] = {}
    path: str | None = None
    taught_as: Literal["vggt", "da3"] = "vggt"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its weights are read from. Empty if they come from elsewhere."""
        return ()

    @property
    def meta_encoder(self) -> GeometryEncoder:
        """This encoder. For a cache, the cached encoder on the meta device."""
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine its outputs besides the weights, as JSON-like values, for cache keys.

        Raises:
            InputError: The outputs depend on more than frames and weights, or cost nothing to compute.
        """
        raise InputError(f"{type(self).__name__} has nothing that a cache would save: leave --model.geometry_cache out")

    def blocks(self) -> list[nn.Module]:
        """Return its transformer blocks, whose matrices are sharded."""
        return []

    def match_patches(self, patch_size: int) -> None:
        """Use the vision encoder's patch size in pixels, if this encoder has no patch size of its own."""

    def enable_head(self, head: Head) -> None:
        """Load what only this head needs, and add its output to each later prediction of cameras.

        Raises:
            InputError: There is no such head.
        """

    def align_lengths(self, source: ScaleSource | None) -> None:
        """Convert all lengths to meters by this source. None keeps the encoder's own unit.

        Raises:
            InputError: The source needs depth, and this encoder does not predict it.
        """
        if source is not None:
            self.scale_from, self.is_metric, self.requires_cameras = source, True, source.requires_cameras
            read = (*self.given_fields.get("cameras", ()), *source.reads)
            self.given_fields = {**self.given_fields, "cameras": tuple(dict.fromkeys(read))}
            if source.requires_depth:
                self.enable_head("depth")

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """Return whether the parameter never gets a gradient from the tokens and cameras that are used."""
        return not (tokens or cameras)

    @abstractmethod
    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """Return the geometry of each scene. Scenes may differ in their number of frames and in size.

        Args:
            frames: RGB in 0..1 of each scene, in the order of the video.
            given: The dataset's geometry of each scene.
            tokens: Whether to compute 3D tokens.
            cameras: Whether to compute cameras, with depth and points if their heads are enabled.

        Raises:
            InputError: The encoder can't use this frame size or scene.
        """


# ---- Frames for a geometry encoder: their size and their range -------------------------------------------------------


def same_shape(frames: Sequence[Tensor]) -> list[list[int]]:
    """Return groups of indices of tensors with the same shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, scene in enumerate(frames):
        groups.setdefault(tuple(scene.shape), []).append(i)
    return list(groups.values())


def resample_frames(frames: Float[Tensor, "S 3 H W"], patch_size: int, wanted_size: int) -> Float[Tensor, "S 3 h w"]:
    """Resize frames (bicubic) so that patches of another size form the same grid.

    From patches of 16 to patches of 14, a side loses one eighth of its pixels and a frame 23 % of them. Finer details
    then reach only the 2D tokens. In the other direction nothing is lost or gained.

    Args:
        frames: RGB in 0..1, sides in multiples of `patch_size`.
        patch_size: Patch size of the grid in pixels.
        wanted_size: Patch size of the result in pixels.
    """
    if patch_size == wanted_size:
        return frames
    size = [side // patch_size * wanted_size for side in frames.shape[-2:]]
    return F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def resample_depth(geometry: SceneGeometry | None, size_hw: tuple[int, int]) -> SceneGeometry | None:
    """Return the dataset's geometry with depth in the size of resampled frames, by nearest neighbors."""
    if geometry is None or geometry.depth is None or tuple(geometry.depth.shape[1:]) == size_hw:
        return geometry
    depth = F.interpolate(geometry.depth[:, None], size_hw, mode="nearest-exact")[:, 0]
    return SceneGeometry(**{**geometry.present(), "depth": depth})


def check_size(height: int, width: int, patch: int) -> None:
    """Check that frames can be cut into patches.

    Raises:
        InputError: A side is not a positive multiple of the patch size.
    """
    if height % patch or width % patch or not (height and width):
        raise InputError(
            f"frames of {width} x {height} pixels: a geometry encoder needs sides in multiples of {patch}; resize them "
            f"to {max(1, round(width / patch)) * patch} x {max(1, round(height / patch)) * patch}"
        )


def covers(grid: tuple[int, int], own: tuple[int, int]) -> bool:
    """Return whether an encoder's grid equals the vision encoder's, or has at most one more row and column."""
    return all(0 <= here - side <= 1 for here, side in zip(own, grid, strict=True))


def unit_colors(frames: Shaped[Tensor, "S 3 H W"]) -> Float[Tensor, "S 3 H W"]:
    """Return frames, bytes or floats, as floats from 0 to 1."""
    return frames if frames.is_floating_point() else frames.float() / 255


def encoder_frames(
    frames: Shaped[Tensor, "S 3 H W"],
    vision_patch_size: int,
    patch_size: int,
    grid: tuple[int, int] | None = None,
    *,
    any_grid: bool = False,
) -> Float[Tensor, "S 3 h w"]:
    """Prepare frames for a geometry encoder: values in 0..1, and patches on the vision encoder's grid.

    Args:
        frames: Frames in the vision encoder's size, which are resampled, or in the encoder's own size, see `covers`.
        vision_patch_size: Patch size of the vision encoder in pixels.
        patch_size: Patch size of the geometry encoder in pixels.
        grid: Rows and columns of the vision encoder's patches. None computes them from frames in the vision encoder's
            size.
        any_grid: Frames in the encoder's own size may have any number of patches.
    """
    scaled = unit_colors(frames)
    height, width = frames.shape[-2:]
    has_own_size = not (height % patch_size or width % patch_size)
    own = height // patch_size, width // patch_size
    if grid and has_own_size and (any_grid or covers(grid, own)):
        return scaled
    return resample_frames(scaled, vision_patch_size, patch_size)


# ---- Conversion of an encoder's lengths to meters: `--model.geometry.scale_from` -------------------------------------

FLAT = 1e-6  # below it, the second singular value relative to the first means centers on a line


class ScaleSource(Configurable, ABC):
    """Measures the unit of predicted lengths, once per scene.

    Attributes:
        reads: Fields of the dataset's geometry that the scale depends on.
        requires_cameras: The dataset must provide cameras.
        requires_depth: The encoder must predict depth.
        path: Hub id or folder of the weights that it uses. None if it uses none.
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
        """Return the factor from predicted lengths to meters.

        Args:
            scene: The predicted geometry.
            frames: RGB in 0..1.
            given: The dataset's geometry.

        Raises:
            InputError: The scene does not determine the factor.
        """

    def in_meters(
        self, scenes: Sequence[SceneGeometry], frames: Frames, given: DatasetGeometries
    ) -> list[SceneGeometry]:
        """Scale the poses, depth and points of each scene. 3D tokens are unchanged.

        Raises:
            InputError: A scene has no scale.
        """
        scaled = []
        for number, scene in enumerate(zip(scenes, frames, given, strict=True)):
            try:
                scaled.append(scene[0].scaled(self.meters_per_unit(*scene)))
            except InputError as error:
                raise InputError(f"scene {number} of the batch: {error}") from error
        return scaled


class DatasetPoses(ScaleSource):
    """Scale by aligning the predicted camera centers to the dataset's (Umeyama 1991).

    Only frames with a valid camera on both sides are used. The scenes need not share a frame of reference.
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
    """Return the scale of the similarity that maps given camera centers to predicted ones (Umeyama 1991).

    Both are world-to-camera poses of the same views. Lengths divided by the scale are in the unit of the given cameras.

    Raises:
        InputError: There are fewer than three views, or the centers are on a line, so the similarity is not determined.
    """
    target, source = (invert_se3(poses.double())[:, :3, 3] for poses in (predicted, given))
    source, target = source - source.mean(0), target - target.mean(0)
    U, singular, Vh = torch.linalg.svd(target.mT @ source / max(1, len(source)))
    if len(source) < 3 or singular[1] <= FLAT * singular[0]:
        raise InputError("the scale of poses needs three cameras or more whose centers are not on one line")
    singular[2] *= torch.det(U @ Vh).sign()  # excludes reflections
    return float(singular.sum() / source.square().sum(1).mean())


# ---- Base class of VGGT, Depth Anything 3 and Pi3X: tokens from a trunk's layers, cameras from its heads -------------


class TrunkEncoder(GeometryEncoder):
    """A network whose 3D tokens are outputs of some trunk layers. Its heads predict cameras, depth and points.

    Scenes of the same shape form a batch. Scenes are not padded, because frames attend to each other. Without trainable
    parameters no activations are kept for a backward pass.

    Args:
        layers: Trunk layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count from
            the end.
        depth: Number of trunk layers.
        channels: Channels of one layer's tokens.
        to_cameras: Converts pose encodings to world-to-camera poses and intrinsics in pixels. A subclass that
            overrides `_cameras` needs none.

    Attributes:
        layers: The layers as given.
        layer_numbers: The layers counted from 0.
        heads: The enabled heads.

    Raises:
        InputError: A layer does not exist, or no layer is named.
    """

    requires_frames = True
    heads: tuple[str, ...] = ()

    def __init__(
        self,
        layers: Sequence[int],
        depth: int,
        channels: int,
        to_cameras: Callable[..., tuple[Tensor, Tensor]] | None = None,
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
        """Run the network on scenes of the same shape.

        Args:
            images: RGB in 0..1.
            given: The dataset's geometry of each scene.
            tokens: Whether to compute the tokens of `layer_numbers`.
            heads: Heads to compute.

        Returns:
            The network's output with `tokens` by layer, `patch_start` and cameras, and depth, points and confidence
            by their names in `SceneGeometry`.
        """

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`. VGGT uses `given` only for the scale."""
        has_trainable = any(parameter.requires_grad for parameter in self.parameters())
        found: dict[int, SceneGeometry] = {}
        with torch.set_grad_enabled(has_trainable and torch.is_grad_enabled()):
            for members in same_shape(frames):
                images = torch.stack([frames[i] for i in members])
                heads = self.heads if cameras else ()
                output, dense = self.predict(images, [given[i] for i in members], tokens=tokens, heads=heads)
                fields = self._tokens(output.tokens, output.patch_start, images) if tokens else {}
                fields |= self._cameras(output, images) | dense
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
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)  # tokens of a single layer are not copied
        return {"camera_tokens": joined[:, :, 0], "patches": joined[:, :, patch_start:].unflatten(2, grid)}

    def _cameras(self, output: Any, images: Float[Tensor, "B S 3 H W"]) -> dict[str, Tensor | None]:
        if output.pose_enc is None or self._to_cameras is None:
            return {}
        found = valid_cameras(output.pose_enc, (images.shape[-2], images.shape[-1]), self._to_cameras)
        return dict(zip(("world_to_camera", "K_normalized", "has_camera"), found, strict=True))


class PretrainableEncoder(TrunkEncoder):
    """A network that `zoo.tasks.GeometryPretraining` can train."""

    @property
    @abstractmethod
    def trained_heads(self) -> tuple[str, ...]:
        """The heads that are trained. () if the network lacks heads that its pretraining needs."""

    @abstractmethod
    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the trained tensors by official names."""

    @abstractmethod
    def training_output(
        self,
        images: Float[Tensor, "B S 3 H W"],
        given: DatasetGeometries,
        dense_frames: Int[Tensor, "B dense"] | None,
        draws: Sequence[int] | None,
    ) -> Any:
        """Return predictions as a `VGGTOutput`, in the frame of the first camera.

        Args:
            images: RGB in 0..1.
            given: The dataset's geometry of each scene, for an encoder that reads it.
            dense_frames: Frames of the maps. None is all.
            draws: Seed of each scene, for an encoder that leaves out some of what it is given. None leaves nothing out.
        """


def valid_cameras(
    pose_enc: Float[Tensor, "B S 9"], size_hw: tuple[int, int], to_cameras: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"], Bool[Tensor, "B S"]]:
    """Convert pose encodings to cameras, and replace invalid ones by identities.

    A camera is invalid if its field of view is 0 (which the head can output, and which is an infinite focal length) or
    at least pi, if its quaternion has length 0, or if its numbers are not finite.

    Args:
        pose_enc: Translation, quaternion, vertical and horizontal field of view.
        size_hw: Image size in pixels.
        to_cameras: Converts pose encodings to world-to-camera poses and intrinsics in pixels.

    Returns:
        world_to_camera, K_normalized, and a mask of the valid cameras.
    """
    fov = pose_enc[..., 7:]
    valid = pose_enc.isfinite().all(-1) & (fov > 0).all(-1) & (fov < torch.pi).all(-1)
    valid = valid & (pose_enc[..., 3:7].square().sum(-1) > 0)
    # replaced both before and after the conversion: infinities that are only masked afterwards give NaN gradients
    harmless = torch.zeros_like(pose_enc)
    harmless[..., 6:] = 1  # a quaternion of length one, and two fields of view
    world_to_camera, K_px = to_cameras(torch.where(valid[..., None], pose_enc, harmless), size_hw)
    K = normalize_intrinsics(K_px, size_hw[1], size_hw[0])
    keep = valid[..., None, None]
    identity = torch.eye(4, dtype=K.dtype, device=K.device)
    return torch.where(keep, world_to_camera, identity), torch.where(keep, K, identity[:3, :3]), valid


@cache  # once per process
def announce_license(path: str) -> None:
    """Print that weights are for non-commercial use: VGGT-1B, Pi3X, and the large, giant and nested DA3 models."""
    if is_first_process():
        print(f"{path}: these weights are under CC BY-NC 4.0, for non-commercial use only", file=sys.stderr)
