"""The three models of Depth Anything 3 (any-view, metric and nested) and their released weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras.poses import rigid_matrix
from zoo.errors import InputError
from zoo.geometry.da3.heads import CameraDecoder, CameraEncoder, DualDPT, SkyDPT, pose_encoding_to_cameras
from zoo.geometry.da3.trunk import PATCH_SIZE, Strategy, Trunk
from zoo.geometry.layers import check_images, check_range, layer_index, normalize
from zoo.precision import full_precision
from zoo.weights.load import (
    CONFIG,
    ReleasedWeights,
    Tensors,
    TensorsUnder,
    builds_shapes_only,
    files_of,
    find_folder,
    first_tensor,
    load_weights,
    read_config,
    source_path,
)


@dataclass(eq=False)
class DA3Output:
    """The outputs for B scenes of S views, in the order of the input. None if not requested or not available.

    Attributes:
        tokens: Layer outputs by requested index: the camera token, then patches. D is 2C, [last local block | block],
            or C without `cat_token`. Only the block's patches are normalized.
        patch_start: Number of tokens before the patches.
        reference: The reference view. None where none is chosen (fewer than three views, or given cameras).
        pose_enc: Cameras, see `pose_encoding_to_cameras`.
        world_to_camera: The same as poses, in the scene's own scale. In meters for a nested model.
        K_px: Intrinsics in pixels.
        depth: Depth along the camera's z axis, in the unit of the poses. A metric model's depth is for a focal length
            of 300 pixels, see `to_meters`.
        depth_conf: Confidence, at least 1.
        rays: Direction (not unit length) and camera center of each ray, in the world.
        rays_conf: Confidence, at least 1.
        sky: Sky score of metric and nested models. Sky where >= 0.3.
        scale: Factor by which a nested model has multiplied depth and translations.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int = 1
    reference: Int[Tensor, " B"] | None = None
    pose_enc: Float[Tensor, "B S 9"] | None = None
    world_to_camera: Float[Tensor, "B S 4 4"] | None = None
    K_px: Float[Tensor, "B S 3 3"] | None = None
    depth: Float[Tensor, "B S H W"] | None = None
    depth_conf: Float[Tensor, "B S H W"] | None = None
    rays: Float[Tensor, "B S _h _w 6"] | None = None
    rays_conf: Float[Tensor, "B S _h _w"] | None = None
    sky: Float[Tensor, "B S H W"] | None = None
    scale: Float[Tensor, " B"] | None = None


# ---- The any-view model: tokens, cameras, depth and rays of views with or without cameras ----------------------------

CamerasPx = tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"]]  # world_to_camera, K_px
DENSE = {"depth", "ray"}  # one dense head predicts both


class AnyView(nn.Module):
    """The trunk with the heads that a config names, with the official names.

    Args:
        net: Arguments of `Trunk`.
        head: Arguments of `DualDPT`. None builds no dense head.
        cam_enc: Arguments of `CameraEncoder`. None builds none.
        cam_dec: Arguments of `CameraDecoder`. None builds none.
    """

    parts_of_head = {"camera": ("cam_dec",), "depth": ("head",), "ray": ("head",)}

    def __init__(
        self,
        net: dict[str, Any],
        head: dict[str, Any] | None = None,
        cam_enc: dict[str, Any] | None = None,
        cam_dec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"pretrained": Trunk(**net)})
        self.head = None if head is None else DualDPT(**head)
        self.cam_enc = None if cam_enc is None else CameraEncoder(**cam_enc)
        self.cam_dec = None if cam_dec is None else CameraDecoder(**cam_dec)

    @property
    def trunk(self) -> Trunk:
        """The trunk, whose official name is `backbone.pretrained`."""
        trunk = self.backbone["pretrained"]
        assert isinstance(trunk, Trunk)
        return trunk

    @property
    def heads(self) -> set[str]:
        """The heads that can be requested."""
        return ({"camera"} if self.cam_dec is not None else set()) | (DENSE if self.head is not None else set())

    @property
    def takes_cameras(self) -> bool:
        """Whether cameras can be given."""
        return self.cam_enc is not None

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy,
        cameras: CamerasPx | None,
    ) -> DA3Output:
        """Compute the requested outputs only, see `DA3`."""
        batch, _, _, height, width = images.shape
        trunk, dense = self.trunk, DENSE & set(heads)
        indices = {layer: layer_index(layer, trunk.depth) for layer in layers}
        needed = {*indices.values(), *(trunk.out_layers if dense else ())}
        if "camera" in heads:
            needed.add(trunk.out_layers[-1])
        condition = None
        if cameras is not None and self.cam_enc is not None:
            with full_precision(images.device):
                condition = self.cam_enc(*cameras, (height, width))
        outputs, chosen = trunk(normalize(images).to(trunk.dtype), needed, reference, condition)

        result = DA3Output({layer: outputs[i] for layer, i in indices.items()}, reference=chosen)
        with full_precision(images.device):
            if "camera" in heads and self.cam_dec is not None:
                token = outputs[trunk.out_layers[-1]][:, :, 0].to(self.cam_dec.fc_t.weight.dtype)
                result.pose_enc = self.cam_dec(token)
                result.world_to_camera, result.K_px = pose_encoding_to_cameras(result.pose_enc, (height, width))
            if dense and self.head is not None:
                tokens = [outputs[i][:, :, 1:].flatten(0, 1).to(self.head.dtype) for i in trunk.out_layers]
                for name, maps in self.head(tokens, height, width, dense).items():
                    setattr(result, name, maps.unflatten(0, (batch, -1)))
        return result


# ---- The metric model: depth of single views for a known focal length, and its rules for sky and meters --------------

FOCAL = 300.0  # focal length in pixels for which the depth is in meters
SKY = 0.3
FEWEST_PIXELS = 10  # minimum number of pixels of sky, and of the rest, for depth to be replaced
FAR = 0.99  # quantile of the other depths that sky gets


class Metric(nn.Module):
    """The trunk of the metric model and its head, with the official names.

    Args:
        net: Arguments of `Trunk`.
        head: Arguments of `SkyDPT`.
    """

    heads = frozenset({"depth"})
    parts_of_head = {"depth": ("head",)}
    takes_cameras = False

    def __init__(self, net: dict[str, Any], head: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"pretrained": Trunk(**net)})
        self.head = SkyDPT(**head)

    @property
    def trunk(self) -> Trunk:
        """The trunk, whose official name is `backbone.pretrained`."""
        trunk = self.backbone["pretrained"]
        assert isinstance(trunk, Trunk)
        return trunk

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy = "first",
        cameras: CamerasPx | None = None,
    ) -> DA3Output:
        """Compute the requested outputs only, see `DA3`. The model has no reference view and no camera."""
        trunk = self.trunk
        indices = {layer: layer_index(layer, trunk.depth) for layer in layers}
        needed = {*indices.values(), *(trunk.out_layers if "depth" in heads else ())}
        outputs, _ = trunk(normalize(images), needed, reference)
        result = DA3Output({layer: outputs[i] for layer, i in indices.items()})
        if "depth" in heads:
            with full_precision(images.device):
                tokens = [outputs[i][:, :, 1:].flatten(0, 1).to(self.head.dtype) for i in trunk.out_layers]
                maps = self.head(tokens, *images.shape[-2:])
                result.sky = maps["sky"].unflatten(0, (len(images), -1))
                result.depth = fill_sky(maps["depth"].unflatten(0, (len(images), -1)), result.sky >= SKY)
        return result


def fill_sky(depth: Float[Tensor, "B S H W"], is_sky: Bool[Tensor, "B S H W"]) -> Float[Tensor, "B S H W"]:
    """Replace the depth of sky by the 0.99 quantile of the scene's other pixels, if there are enough of both."""
    far = masked_quantile(depth.flatten(1), ~is_sky.flatten(1), FAR)
    counts = torch.stack((is_sky.flatten(1).sum(1), (~is_sky).flatten(1).sum(1)))
    is_filled = is_sky & (counts > FEWEST_PIXELS).all(0)[:, None, None, None]
    return torch.where(is_filled, far[:, None, None, None], depth)


def masked_quantile(values: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], quantile: float) -> Float[Tensor, " B"]:
    """Return the linearly interpolated quantile of masked values. Unlike `torch.quantile`, any number is allowed."""
    ordered = values.masked_fill(~mask, torch.inf).sort(1).values
    place = (mask.sum(1, keepdim=True) - 1).clamp(min=0).double() * quantile
    low, high = (ordered.gather(1, index.long()) for index in (place.floor(), place.ceil()))
    return torch.lerp(low, high, place.frac().to(values.dtype))[:, 0]


def to_meters(depth: Float[Tensor, "B S H W"], K_px: Float[Tensor, "B S 3 3"]) -> Float[Tensor, "B S H W"]:
    """Convert the depth of a metric model to meters.

    Args:
        depth: Depth for a focal length of 300 pixels.
        K_px: Intrinsics in pixels of the model's input images.
    """
    focal = (K_px[..., 0, 0] + K_px[..., 1, 1]) / 2
    return depth * (focal / FOCAL)[..., None, None]


# ---- The nested model: an any-view model that takes its scale from a metric model on the same images -----------------

NEAREST_METRIC, NEAREST = 0.01, 0.001  # smaller depths are not used for the scale
FARTHEST = 200.0  # meters; maximum depth of sky


class Nested(nn.Module):
    """Depth, poses and rays of the any-view model in meters, with the official names.

    The metric model's depth is converted to meters with the predicted intrinsics, even if cameras are given. Each scene
    has one scale, from a least-squares fit of one depth to the other.

    Args:
        anyview: Arguments of `AnyView`.
        metric: Arguments of `Metric`. With None there are only tokens.
    """

    parts_of_head = dict.fromkeys(("camera", "depth", "ray"), ("da3.cam_dec", "da3.head", "da3_metric"))

    def __init__(self, anyview: dict[str, Any], metric: dict[str, Any] | None) -> None:
        super().__init__()
        self.da3 = AnyView(**anyview)
        self.da3_metric = None if metric is None else Metric(**metric)

    @property
    def trunk(self) -> Trunk:
        """The trunk of the any-view model."""
        return self.da3.trunk

    @property
    def heads(self) -> set[str]:
        """The heads that can be requested. The scale needs cameras, depth and the metric model."""
        return self.da3.heads if self.da3_metric is not None and {"camera", "depth"} <= self.da3.heads else set()

    @property
    def takes_cameras(self) -> bool:
        """Whether cameras can be given."""
        return self.da3.takes_cameras

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy,
        cameras: CamerasPx | None,
    ) -> DA3Output:
        """Compute the requested outputs and what their scale needs, see `DA3`."""
        if not heads or self.da3_metric is None:
            return self.da3(images, layers, (), reference, cameras)
        result = self.da3(images, layers, {*heads, "camera", "depth"}, reference, cameras)
        metric = self.da3_metric(images, (), ("depth",))
        is_sky, result.sky = metric.sky >= SKY, metric.sky
        # a scene with only sky has no other pixels to fit
        is_sky = is_sky & ((~is_sky).flatten(1).sum(1) > FEWEST_PIXELS)[:, None, None, None]
        meters = to_meters(metric.depth, result.K_px)
        result.scale = fit_scale(result.depth, result.depth_conf, meters, is_sky)

        scale = result.scale[:, None, None]
        result.pose_enc = torch.cat((result.pose_enc[..., :3] * scale, result.pose_enc[..., 3:]), -1)
        poses = result.world_to_camera
        result.world_to_camera = rigid_matrix(poses[..., :3, :3], poses[..., :3, 3] * scale)
        depth = result.depth * scale[..., None]
        far = masked_quantile(depth.flatten(1), ~is_sky.flatten(1), FAR).clamp(max=FARTHEST)
        result.depth = torch.where(is_sky, far[:, None, None, None], depth)
        result.depth_conf = result.depth_conf.masked_fill(is_sky, 1.0)
        if result.rays is not None:
            direction, center = result.rays.chunk(2, -1)
            result.rays = torch.cat((direction, center * scale[..., None, None]), -1)
        return result


def fit_scale(
    depth: Float[Tensor, "B S H W"],
    confidence: Float[Tensor, "B S H W"],
    meters: Float[Tensor, "B S H W"],
    is_sky: Bool[Tensor, "B S H W"],
) -> Float[Tensor, " B"]:
    """Return the factor per scene that best fits its depth to meters, over confident pixels that are not sky."""
    typical = masked_quantile(confidence.flatten(1), ~is_sky.flatten(1), 0.5)
    used = ~is_sky & (confidence >= typical[:, None, None, None]) & (meters > NEAREST_METRIC) & (depth > NEAREST)
    used_depth = depth.masked_fill(~used, 0.0).flatten(1)
    return (used_depth * meters.flatten(1)).sum(1) / used_depth.square().sum(1)


# ---- Folders of released models --------------------------------------------------------------------------------------


def find_model(path: str, released: str, option: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the config of a released model, see `find_folder`.

    Raises:
        InputError: There is no such model.
    """
    folder = find_folder(path, released, option, with_weights=not builds_shapes_only())
    config = read_config(folder).get("config")
    if not isinstance(config, dict) or not isinstance(config.get("anyview", config), dict):
        raise InputError(f"{folder / CONFIG} is no config of Depth Anything 3: give a folder of a released model")
    return folder, config


# ---- The whole model, one of the three, with official weights --------------------------------------------------------

HEADS = ("camera", "depth", "ray")
PARTS = ("head", "cam_enc", "cam_dec")  # parts of a config, beside its net
PREFIX = "model."
NOT_BUILT = ("gs_head.", "gs_adapter.")  # Gaussians are not part of this project
# copies of level 0's LayerNorm, which newer files do not have
COPY = re.compile(r"scratch\.output_conv2_aux\.[123]\.2\.")


class DA3(nn.Module):
    """Depth Anything 3 (Lin et al. 2025, arXiv 2511.10647): any-view, metric or nested.

    Args:
        config: The official config: {"net", "head", "cam_enc", "cam_dec"}, or {"anyview", "metric"} for a nested model.
            Heads are optional.

    Attributes:
        config: The same.
        source: The official tensors that the weights are read from.

    Example:
        >>> import torch
        >>> net = {"name": "vits", "out_layers": [0, 1, 2, 3], "alt_start": 2, "embed_dim": 32, "depth": 4}
        >>> da3 = DA3({"net": {**net, "num_heads": 2}, "cam_dec": {"dim_in": 64}})
        >>> output = da3(torch.rand(1, 3, 3, 28, 42), layers=(-1,), heads=("camera",))
        >>> output.tokens[-1].shape, output.pose_enc.shape  # a camera token and 2 x 3 patches per view
        (torch.Size([1, 3, 7, 64]), torch.Size([1, 3, 9]))
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.source: Tensors = {}
        self.model = build(config)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, if any."""
        return files_of(self.source)

    @classmethod
    def from_official(cls, config: dict[str, Any], state_dict: Tensors, dtype: torch.dtype | None = None) -> DA3:
        """Build the model with official weights, on their device.

        Under `torch.device("meta")` only names and shapes are checked, and tensors in files are not read.

        Args:
            config: See `DA3`.
            state_dict: Tensors by the names of released files. Tensors of Gaussians, and of parts that the config
                leaves out, are ignored.
            dtype: Dtype of the result. None is the weights' dtype.

        Raises:
            InputError: Tensors are missing, unexpected or of another shape.
        """
        with torch.device("meta"):  # loading then takes no more memory than the model
            model = cls(config).to(dtype or first_tensor(state_dict).dtype)
        model.source = state_dict
        load_weights(model, _released_weights(state_dict, _left_out(config)))
        return model

    def load_parts(self, names: Iterable[str], config: Mapping[str, Any], tensors: Tensors) -> None:
        """Add parts that the model was built without: heads in float32, trunks in the dtype of the model's trunk.

        Args:
            names: Module names, such as "cam_dec", or "da3_metric" of a nested model.
            config: The whole config.
            tensors: Tensors by official names. All others are ignored.

        Raises:
            InputError: The weights lack a part, or it does not fit.
        """
        with torch.device("meta"):
            whole = build(config)
        for name in names:
            part, weights = whole.get_submodule(name), TensorsUnder(tensors, f"{PREFIX}{name}.")
            if isinstance(part, Metric):
                part.trunk.to(self.model.trunk.dtype)
            load_weights(part, _released_weights(weights), next(self.model.trunk.parameters()).device)
            parent, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(parent), attribute, part)

    def has_part(self, name: str) -> bool:
        """Return whether the model has a part, such as "cam_dec" or "da3.head"."""
        return attrgetter(name)(self.model) is not None

    def official_state_dict(self) -> dict[str, Tensor]:
        """Invert `from_official`: return the tensors by the names of released files."""
        return self.state_dict()

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        *,
        reference: Strategy = "saddle_balanced",
        world_to_camera: Float[Tensor, "B _S 4 4"] | None = None,
        K_px: Float[Tensor, "B _S 3 3"] | None = None,
    ) -> DA3Output:
        """Compute the requested outputs only.

        Args:
            images: RGB in 0..1, not normalized. Sides are multiples of 14.
            layers: Trunk layers. Negative numbers count from the end.
            heads: Any of "camera", "depth", "ray". A model that predicts no cameras returns none.
            reference: How the view is chosen whose camera is the world, see `choose_reference`.
            world_to_camera: One pose per view, used without normalization, see `normalize_poses`.
            K_px: Intrinsics per view in pixels. Must be given together with `world_to_camera`.

        Raises:
            InputError: Image sides are not multiples of 14, the model has no such depth or ray head, or the cameras do
                not fit the images or the model.
        """
        check_range(images, "Depth Anything 3")
        return self.compute(images, layers, heads, reference=reference, world_to_camera=world_to_camera, K_px=K_px)

    def compute(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        *,
        reference: Strategy,
        world_to_camera: Float[Tensor, "B _S 4 4"] | None = None,
        K_px: Float[Tensor, "B _S 3 3"] | None = None,
    ) -> DA3Output:
        """Compute `forward` for images that are known to be in 0..1."""
        check_images(images, PATCH_SIZE, "Depth Anything 3")
        if unknown := set(heads) - set(HEADS):
            raise InputError(f"heads {', '.join(sorted(unknown))}: choose from {', '.join(HEADS)}")
        if lacking := set(heads) - self.model.heads - {"camera"}:
            known = ", ".join(sorted(self.model.heads)) or "no heads"
            raise InputError(f"this Depth Anything 3 has no {' and no '.join(sorted(lacking))} head: it has {known}")
        cameras = None
        if world_to_camera is not None or K_px is not None:
            self._check_cameras(images, world_to_camera, K_px)
            cameras = (world_to_camera, K_px)
        return self.model(images, layers, heads, reference, cameras)

    def _check_cameras(self, images: Tensor, world_to_camera: Tensor | None, K_px: Tensor | None) -> None:
        if world_to_camera is None or K_px is None:
            given = "K_px" if world_to_camera is None else "world_to_camera"
            raise InputError(f"{given} alone: give world_to_camera and K_px, or neither")
        for name, tensor in (("world_to_camera", world_to_camera), ("K_px", K_px)):
            if tensor.shape[:2] != images.shape[:2]:
                raise InputError(
                    f"{name} of {list(tensor.shape[:2])} scenes and views for images of {list(images.shape[:2])}: give "
                    "one camera per view, or none"
                )
        if not self.model.takes_cameras:
            raise InputError("this Depth Anything 3 has no camera encoder (cam_enc): leave the cameras out")


def build(config: Mapping[str, Any]) -> AnyView | Metric | Nested:
    """Build the network of a config, with random weights."""
    if "anyview" in config:
        metric = config.get("metric")
        return Nested(_arguments(config["anyview"]), None if metric is None else _arguments(metric))
    head = config.get("head") or {}
    kind = Metric if head.get("__object__", {}).get("name") == "DPT" else AnyView
    return kind(**_arguments(config))


def _arguments(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts = {name: config[name] for name in ("net", *PARTS) if config.get(name) is not None}
    return {part: {name: value for name, value in each.items() if name != "__object__"} for part, each in parts.items()}


def _left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the prefixes of the tensors that a config leaves out."""
    models: dict[str, Any] = {PREFIX: config}
    if "anyview" in config:
        models = {f"{PREFIX}da3.": config["anyview"], f"{PREFIX}da3_metric.": config.get("metric")}
    skip = [prefix for prefix, each in models.items() if each is None]
    for prefix, each in models.items():
        absent = [f"{part}." for part in PARTS if each is not None and each.get(part) is None]
        skip += [prefix + part for part in (*NOT_BUILT, *absent)]
    return tuple(skip)


def _released_weights(tensors: Tensors, skip: tuple[str, ...] = ()) -> ReleasedWeights:
    """Return the weights that a module is loaded from. Tensors with prefixes in `skip` are ignored."""

    def check() -> None:
        if isinstance(tensors, TensorsUnder) and not tensors:
            raise InputError(f"{source_path(tensors)}: no tensors {tensors.prefix}*: download it again")

    def is_skipped(name: str) -> bool:
        return name.startswith(skip) or COPY.search(name) is not None

    return ReleasedWeights(tensors, "Depth Anything 3", is_skipped=is_skipped, check=check)
