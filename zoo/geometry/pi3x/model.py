"""Pi3X: an encoder per view, a trunk without a reference view, and heads, with the published names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.errors import InputError
from zoo.geometry.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Block,
    check_images,
    check_range,
    convert_matrices,
    in_chunks,
    layer_index,
    patch_rotations,
    products_in,
    select_frames,
)
from zoo.geometry.pi3x.conditions import (
    CONDITIONS,
    EPS,
    Condition,
    Conditions,
    Mask,
    PoseInjection,
)
from zoo.geometry.pi3x.heads import CameraHead, ConvHead, HeadDecoder, MetricDecoder, local_points, recover_intrinsics
from zoo.geometry.vggt import ConvPatchEmbed, DINOv2, current_names, official_name, official_tensors_of
from zoo.precision import full_precision, to_float32
from zoo.weights.load import NameTable, ReleasedWeights, Tensors, files_of, first_tensor, load_weights

PATCH_SIZE = 14
PATCH_START = 5  # registers before the patches
ROPE_BASE = 100.0
RELEASED: dict[str, Any] = {  # yyfz233/Pi3X
    "embed_dim": 1024,
    "encoder": {"depth": 24, "num_heads": 16, "img_size": 518},
    "decoder": {"depth": 36, "num_heads": 16},
    "pose_inject": {"num_heads": 16, "blocks": 5, "after": [1, 9, 17, 25, 33]},
    "head_depth": 5,
    "dense": {"embed_dim": 1024, "num_heads": 16, "out_dim": 1024, "upsample": [256, 128, 64], "last_channels": 32},
    "camera": {"embed_dim": 1024, "num_heads": 16, "out_dim": 512},
    "metric": {"embed_dim": 512, "num_heads": 8, "out_dim": 512},
}

# ---- Parts by their names, and the parts that conditions and heads need ----------------------------------------------

HEADS = ("camera", "intrinsics", "point")
METRIC = ("metric_token", "metric_decoder", "metric_head")
POINT = ("point_decoder", "point_head")
PARTS: dict[str, tuple[str, ...]] = {
    "trunk": ("image_mean", "image_std", "register_token", "encoder", "decoder"),
    "rays": ("ray_embed",),
    "depth": ("depth_encoder", "depth_emb"),
    "poses": ("pose_inject_blk",),
    "camera": ("camera_decoder", "camera_head", *METRIC),
    "intrinsics": POINT,
    "point": (*POINT, "conf_decoder", "conf_head", *METRIC),
}
KNOWN = tuple(dict.fromkeys(part for parts in PARTS.values() for part in parts))
DINOV2S = ("encoder.", "depth_encoder.")
NAMES = NameTable(partial(current_names, dinov2=DINOV2S), partial(official_name, dinov2=DINOV2S))


def part_of(name: str) -> str:
    """Return the part that a tensor belongs to."""
    return name.partition(".")[0]


@dataclass(eq=False)
class Pi3XOutput:
    """The outputs for B scenes of S views. None where they were not requested. Lengths are meters, approximately.

    The world is no view's camera, and is not the world of given poses either.

    Attributes:
        tokens: Outputs of pairs of blocks by requested index, [within each view | over all views]: registers, patches.
        patch_start: Number of tokens before the patches.
        world_to_camera: Poses.
        K_px: Intrinsics in pixels, fitted to the local points. The principal point is the center of the image.
        local_points: Point of each pixel in the camera's axes.
        points: The same in the world. None without poses.
        depth: Depth along the camera's z axis.
        conf: Confidence of the points as a logit.
        scale: Metric scale, with which the lengths above are already multiplied.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int = PATCH_START
    world_to_camera: Float[Tensor, "B S 4 4"] | None = None
    K_px: Float[Tensor, "B S 3 3"] | None = None
    local_points: Float[Tensor, "B dense H W 3"] | None = None
    points: Float[Tensor, "B dense H W 3"] | None = None
    depth: Float[Tensor, "B dense H W"] | None = None
    conf: Float[Tensor, "B dense H W"] | None = None
    scale: Float[Tensor, " B"] | None = None


class Pi3X(nn.Module):
    """Pi3X (the successor of Pi3, arXiv 2507.13347).

    Patches of each view pass a DINOv2. Blocks of even index attend within each view, the others over all views. No
    token marks a view, so the order of the views has no effect, unless poses are given without depth: their unit is
    then the mean distance from view 0.

    Args:
        config: Widths, depths and numbers of heads, see `RELEASED`.
        conditions: Conditions that can be given: rays, depth, poses.
        heads: Heads that can be requested: camera, intrinsics, point.

    Attributes:
        config: The first argument.
        source: The official tensors that the weights are read from.

    Example:
        >>> import torch
        >>> from zoo.geometry.pi3x import tiny_config
        >>> pi3x = Pi3X(tiny_config(embed_dim=32, depth=4, num_heads=2, features=16))
        >>> poses = torch.eye(4).repeat(1, 3, 1, 1)
        >>> output = pi3x(torch.rand(1, 3, 3, 28, 42), heads=("camera", "point"), world_to_camera=poses)
        >>> output.tokens[-1].shape, output.points.shape  # 5 registers and 2 x 3 patches per view
        (torch.Size([1, 3, 11, 64]), torch.Size([1, 3, 28, 42, 3]))
    """

    image_mean: Tensor
    image_std: Tensor
    register_token: nn.Parameter
    encoder: DINOv2
    decoder: nn.ModuleList
    ray_embed: ConvPatchEmbed
    depth_encoder: DINOv2
    depth_emb: nn.Parameter
    pose_inject_blk: nn.ModuleList
    point_decoder: HeadDecoder
    point_head: ConvHead
    conf_decoder: HeadDecoder
    conf_head: ConvHead
    camera_decoder: HeadDecoder
    camera_head: CameraHead
    metric_token: nn.Parameter
    metric_decoder: MetricDecoder
    metric_head: nn.Linear

    def __init__(
        self,
        config: Mapping[str, Any],
        conditions: Collection[Condition] = CONDITIONS,
        heads: Collection[str] = HEADS,
    ) -> None:
        super().__init__()
        self.config = dict(config)
        self.source: Tensors = {}
        self.embed_dim, self.depth = config["embed_dim"], config["decoder"]["depth"] // 2
        self.head_dim = self.embed_dim // config["decoder"]["num_heads"]
        self.inject_after = {block: number for number, block in enumerate(config["pose_inject"]["after"])}
        self._add(["trunk", *conditions, *heads])

    def _add(self, names: Collection[str]) -> list[str]:
        """Build the parts that conditions and heads need and that are not there yet. Return their names."""
        added = []
        for part in dict.fromkeys(part for name in names for part in PARTS[name]):
            if hasattr(self, part):
                continue
            built = self._build(part)
            if isinstance(built, nn.Module):
                self.add_module(part, built)
            elif isinstance(built, nn.Parameter):
                self.register_parameter(part, built)
            else:
                self.register_buffer(part, built)
            added.append(part)
        return added

    def _build(self, part: str) -> nn.Module | Tensor:
        config, width = self.config, self.embed_dim
        if part in ("image_mean", "image_std"):
            return torch.tensor(IMAGENET_MEAN if part == "image_mean" else IMAGENET_STD).view(1, 3, 1, 1)
        if part == "register_token":
            return nn.Parameter(1e-6 * torch.randn(1, 1, PATCH_START, width))
        if part == "depth_emb":
            return nn.Parameter(torch.zeros(1, 1, width))
        if part == "metric_token":
            return nn.Parameter(1e-6 * torch.randn(1, 1, 2 * width))
        if part in ("encoder", "depth_encoder"):
            size = config["encoder"]
            channels = 3 if part == "encoder" else 2
            dino = DINOv2.build(
                width, size["depth"], size["num_heads"], size["img_size"], PATCH_SIZE, channels=channels
            )
            dino.embeddings.mask_token = None  # the published class has none
            return dino
        if part == "decoder":
            size = config["decoder"]
            blocks = [Block(width, size["num_heads"], qk_norm=True, eps=EPS) for _ in range(size["depth"])]
            return nn.ModuleList(blocks)
        if part == "ray_embed":
            return ConvPatchEmbed(PATCH_SIZE, width, channels=2)
        if part == "pose_inject_blk":
            size = config["pose_inject"]
            return nn.ModuleList([PoseInjection(width, size["num_heads"]) for _ in size["after"]])
        size = config[{"point": "dense", "conf": "dense"}.get(part.partition("_")[0], part.partition("_")[0])]
        if part.endswith("_decoder"):
            kind = MetricDecoder if part.startswith("metric") else HeadDecoder
            return kind(2 * width, size["embed_dim"], size["num_heads"], config["head_depth"], size["out_dim"])
        if part == "camera_head":
            return CameraHead(size["out_dim"])
        if part == "metric_head":
            return nn.Linear(size["out_dim"], 1)
        outputs = (2, 1) if part == "point_head" else (1,)
        return ConvHead(size["out_dim"], size["upsample"], size["last_channels"], outputs)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that can be given."""
        return tuple(each for each in CONDITIONS if all(hasattr(self, part) for part in PARTS[each]))

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that can be requested."""
        return tuple(each for each in HEADS if all(hasattr(self, part) for part in PARTS[each]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights, apart from matrices."""
        return self.register_token.dtype

    @property
    def matrix_dtype(self) -> torch.dtype:
        """The dtype of the trunk's matrices."""
        weight: Tensor = self.decoder.get_submodule("0.attn.qkv").weight  # type: ignore[assignment]
        return weight.dtype

    def init_central_cameras(self) -> None:
        """Start with cameras near the identity and rays of a centered pinhole, for training from random weights."""
        self.camera_head.init_identity_pose()
        self.point_head.init_pinhole()

    # ---- weights ----------------------------------------------------------------------------------------------------

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, if any."""
        return files_of(self.source)

    @classmethod
    def from_official(
        cls,
        config: Mapping[str, Any],
        state_dict: Tensors,
        dtype: torch.dtype | None = None,
        matrix_dtype: torch.dtype | None = None,
        conditions: Collection[Condition] | None = None,
        heads: Collection[str] = HEADS,
    ) -> Pi3X:
        """Build the model with official weights, on their device.

        Under `torch.device("meta")` only names and shapes are checked, and tensors in files are not read.

        Args:
            config: Sizes, see `RELEASED`.
            state_dict: Tensors by official names, with the buffers. Tensors of conditions and heads that are left out
                are ignored.
            dtype: Dtype of the result. None is the weights' dtype.
            matrix_dtype: Dtype of the trunk's matrices, in which it then computes products. None is `dtype`.
            conditions: Conditions that can be given. None is all, or none for weights without any of their parts.
            heads: Heads that can be requested.

        Raises:
            InputError: Tensors are missing, unexpected or of another shape.
        """
        if conditions is None:
            parts = {part for each in CONDITIONS for part in PARTS[each]}
            conditions = CONDITIONS if parts.intersection(map(part_of, state_dict)) else ()
        with torch.device("meta"):  # loading then takes no more memory than the model
            model = cls(config, conditions, heads).to(dtype or first_tensor(state_dict).dtype)
            for name in ("trunk", *conditions):
                for part in PARTS[name]:
                    if isinstance(module := getattr(model, part), nn.Module):
                        convert_matrices(module, matrix_dtype)
        model.source = state_dict
        left_out = tuple(part for part in KNOWN if not hasattr(model, part))
        load_weights(model, ReleasedWeights(state_dict, "Pi3X", NAMES, lambda name: part_of(name) in left_out))
        return model

    def load_head(self, head: str, tensors: Tensors) -> None:
        """Add what a head lacks, in float32.

        Raises:
            InputError: The weights have no such head, or it does not fit.
        """
        with torch.device("meta"):
            added = self._add([head])
        weights = ReleasedWeights(tensors, f"{head} head of Pi3X", NAMES, lambda name: part_of(name) not in added)
        load_weights(self, weights, self.register_token.device)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Invert `from_official`: return the tensors by official names."""
        return official_tensors_of(self, NAMES)

    # ---- computation ------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        *,
        world_to_camera: Float[Tensor, "B S 4 4"] | None = None,
        K_px: Float[Tensor, "B S 3 3"] | None = None,
        rays: Float[Tensor, "B S H W 3"] | None = None,
        depth: Float[Tensor, "B S H W"] | None = None,
        has_pose: Mask = None,
        has_ray: Mask = None,
        has_depth: Mask = None,
    ) -> Pi3XOutput:
        """Compute the requested outputs only.

        Args:
            images: RGB in 0..1, not normalized. Sides are multiples of 14.
            layers: Pairs of blocks, [2i | 2i + 1]. Negative numbers count from the end.
            heads: Any of "camera", "intrinsics" and "point", which includes the intrinsics, depth and confidence.
            world_to_camera: See `Conditions`, like all following arguments.
            K_px: Intrinsics.
            rays: Rays.
            depth: Depth.
            has_pose: Views whose pose is used.
            has_ray: Views whose rays or intrinsics are used.
            has_depth: Views whose depth is used.

        Raises:
            ValueError: Image sides are not multiples of 14, images are not in 0..1, or a layer or head does not exist.
            InputError: The conditions do not fit, see `Conditions.check`, or the model has no parts for them.
        """
        check_range(images, "Pi3X")
        check_images(images, PATCH_SIZE, "Pi3X")
        given = Conditions(world_to_camera, K_px, rays, depth, has_pose, has_ray, has_depth)
        given.check(images.shape)
        return self.compute(images, layers, heads, given)

    def compute(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        given: Conditions,
        dense_frames: Int[Tensor, "B dense"] | None = None,
    ) -> Pi3XOutput:
        """Compute `forward` for images and conditions that are known to be valid.

        `dense_frames` are the views of each scene with point maps, in this order. None is all.
        """
        check_images(images, PATCH_SIZE, "Pi3X")
        if lacking := [each for each in given.given if each not in self.conditions]:
            raise InputError(f"this Pi3X was built without {', '.join(lacking)}: leave out the conditions, or add them")
        for head in heads:
            if head not in self.heads:
                raise ValueError(f"this Pi3X has no {head} head: it has {', '.join(self.heads) or 'none'}")
        indices = {layer: layer_index(layer, self.depth) for layer in layers}
        needed = {*indices.values(), *((self.depth - 1,) if heads else ())}
        with products_in(self.matrix_dtype, self.dtype, images.device):
            outputs = self._trunk(images, needed, given)
        result = Pi3XOutput({layer: outputs[i] for layer, i in indices.items()})
        if heads:
            with full_precision(images.device):
                self._predict(result, outputs[self.depth - 1], heads, images.shape, dense_frames)
        return result

    def _trunk(
        self, images: Float[Tensor, "B S 3 H W"], pairs: Collection[int], given: Conditions
    ) -> dict[int, Float[Tensor, "B S P D"]]:
        """Return the outputs of pairs of blocks. No block after the last is computed, and no other output is kept."""
        batch, views, _, height, width = images.shape
        grid = height // PATCH_SIZE, width // PATCH_SIZE
        # 1. Patches of each view, with rays and depth.
        normalized = (images.flatten(0, 1) - self.image_mean) / self.image_std
        patches = self.encoder(normalized).unflatten(0, (batch, views))
        poses, depth, has_pose = given.normalized(images.device)
        if (directions := given.ray_map((height, width))) is not None:
            embedded = self.ray_embed(directions.flatten(0, 1)).unflatten(0, (batch, views))
            patches = patches + of_views(embedded, given.has_ray)
        if depth is not None:
            maps = torch.stack((depth, (depth > 0).to(depth.dtype)), 2).flatten(0, 1)
            embedded = self.depth_encoder(maps).unflatten(0, (batch, views)) + self.depth_emb
            patches = patches + of_views(embedded, given.has_depth)
        # 2. The trunk.
        special = self.register_token.expand(batch, views, -1, -1).to(patches.dtype)
        tokens = torch.cat((special, patches), 2)
        rotations = patch_rotations(grid, PATCH_START, self.head_dim, ROPE_BASE, images.device)
        rotations_all = rotations.repeat(1, views, 1, 1)
        outputs: dict[int, Tensor] = {}
        for pair in range(max(pairs, default=-1) + 1):
            within = self.decoder[2 * pair](tokens.flatten(0, 1), rotations).view_as(tokens)
            tokens = self.decoder[2 * pair + 1](within.flatten(1, 2), rotations_all).view_as(tokens)
            number = self.inject_after.get(2 * pair + 1)
            if poses is not None and number is not None:
                special, patches = tokens.split([PATCH_START, tokens.shape[2] - PATCH_START], 2)
                patches = self.pose_inject_blk[number](patches, poses, grid, has_pose)
                tokens = torch.cat((special, patches), 2)
            if pair in pairs:
                outputs[pair] = torch.cat((within, tokens), -1)
        return outputs

    def _predict(
        self,
        result: Pi3XOutput,
        features: Float[Tensor, "B S P D"],
        heads: Collection[str],
        shape: Sequence[int],
        dense_frames: Int[Tensor, "B dense"] | None,
    ) -> None:
        """Add the outputs of heads to a result."""
        batch, views, _, height, width = shape
        features = features.to(self.register_token.dtype)
        grid = height // PATCH_SIZE, width // PATCH_SIZE

        def rotations(part: HeadDecoder | MetricDecoder) -> Tensor:
            return patch_rotations(grid, PATCH_START, part.head_dim, ROPE_BASE, features.device)

        # 1. The metric scale.
        if "camera" in heads or "point" in heads:
            token = self.metric_token.expand(batch, -1, -1)
            every = rotations(self.metric_decoder).repeat(1, views, 1, 1)
            token = self.metric_decoder(token, features.flatten(1, 2), every)
            result.scale = to_float32(self.metric_head(token)).exp().view(batch)
        # 2. Cameras.
        if "camera" in heads:
            assert result.scale is not None
            tokens = self.camera_decoder(features.flatten(0, 1), rotations(self.camera_decoder))
            center, R = (each.unflatten(0, (batch, views)) for each in self.camera_head(tokens[:, PATCH_START:]))
            camera_to_world = rigid_matrix(R, center * result.scale[:, None, None])
            result.world_to_camera = invert_se3(camera_to_world)
        # 3. Points, their confidence, and the intrinsics that follow from them.
        if "intrinsics" in heads or "point" in heads:

            def maps(chunk: Sequence[Tensor]) -> dict[str, Tensor]:
                tokens = self.point_decoder(chunk[0], rotations(self.point_decoder))[:, PATCH_START:]
                found = {"local": local_points(*self.point_head(tokens, grid, (height, width)))}
                found = {"K_px": recover_intrinsics(found["local"])} | (found if "point" in heads else {})
                if "point" in heads:
                    tokens = self.conf_decoder(chunk[0], rotations(self.conf_decoder))[:, PATCH_START:]
                    found["conf"] = self.conf_head(tokens, grid, (height, width))[0][:, 0]
                return found

            chosen = features if dense_frames is None else select_frames(features, dense_frames)
            chunked = in_chunks(maps, [chosen.flatten(0, 1)])
            found = {name: each.unflatten(0, (batch, -1)) for name, each in chunked.items()}
            result.K_px, result.conf = found["K_px"], found.get("conf")
            if "point" in heads and result.scale is not None:
                result.local_points = found["local"] * result.scale[:, None, None, None, None]
                result.depth = result.local_points[..., 2]
                if "camera" in heads:
                    if dense_frames is not None:
                        camera_to_world = select_frames(camera_to_world, dense_frames)
                    result.points = transformed(result.local_points, camera_to_world)


def of_views(tokens: Float[Tensor, "B S n C"], has: Mask) -> Float[Tensor, "B S n C"]:
    """Return tokens of the views that a mask includes, and zeros for the others."""
    return tokens if has is None else tokens * has[..., None, None]


def transformed(points: Float[Tensor, "B S H W 3"], pose: Float[Tensor, "B S 4 4"]) -> Float[Tensor, "B S H W 3"]:
    """Return points after a rigid transform for each view."""
    rotated = points.flatten(2, 3) @ pose[..., :3, :3].mT
    return (rotated + pose[..., None, :3, 3]).view_as(points)


# ---- Small sizes, and the size to which the published loader resizes -------------------------------------------------


def tiny_config(embed_dim: int, depth: int, num_heads: int, features: int) -> dict[str, Any]:
    """Return the config of a small Pi3X.

    Args:
        embed_dim: Width of the trunk. Its tokens have twice as many channels.
        depth: Number of pairs of blocks.
        num_heads: Number of attention heads everywhere.
        features: Width of the point maps, a multiple of 16.
    """
    after = list(range(1, 2 * depth, 4))
    blocks = {"embed_dim": embed_dim, "num_heads": num_heads, "out_dim": embed_dim // 2}
    return {
        "embed_dim": embed_dim,
        "encoder": {"depth": 1, "num_heads": num_heads, "img_size": 8 * PATCH_SIZE},
        "decoder": {"depth": 2 * depth, "num_heads": num_heads},
        "pose_inject": {"num_heads": num_heads, "blocks": len(after), "after": after},
        "head_depth": 1,
        "dense": {**blocks, "upsample": [2 * features, features, features], "last_channels": features},
        "camera": dict(blocks),
        "metric": dict(blocks),
    }


MOST_PIXELS = 255_000


def official_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width after the published loader, which resizes all images to the size of the first."""
    scale = (MOST_PIXELS / (width * height)) ** 0.5
    columns, rows = (max(1, round(side * scale / PATCH_SIZE)) for side in (width, height))
    while columns * rows * PATCH_SIZE**2 > MOST_PIXELS:
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return rows * PATCH_SIZE, columns * PATCH_SIZE
