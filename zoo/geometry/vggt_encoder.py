"""VGGT as a geometry encoder: --model.geometry PretrainedVGGT --model.geometry.path weights/vggt-1b."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import normalize_intrinsics
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.vggt import VGGT, pose_encoding_to_cameras
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt.dpt_head import DPTHead
from zoo.geometry.vggt.model import VGGT_1B, layer_index
from zoo.geometry.vggt.official import find_weights
from zoo.weights import PrefixView, SafetensorsFile, full_name, load_into, source_path

Head = TypeVar("Head", CameraHead, DPTHead)


class VGGTEncoder(GeometryEncoder):
    """Frames to VGGT's tokens and, if they are asked for, its cameras: float32, in the scene's own scale.

    Scenes of one shape go through VGGT together; none is padded, since frames attend to each other. Without
    trainable parameters it keeps no activations for a backward pass.

    Args:
        vggt: with its weights.
        layer: of the aggregator whose outputs are the 3D tokens, counted from the end where negative.

    Raises:
        InputError: no such layer.
    """

    requires_frames = True
    predicts_cameras = True
    predicts_depth = True

    def __init__(self, vggt: VGGT, layer: int = -1) -> None:
        super().__init__()
        self.depth_enabled = False
        depth = vggt.aggregator.depth
        if not -depth <= layer < depth:
            raise InputError(f"--model.geometry.layer {layer}: this VGGT has layers 0 to {depth - 1}")
        self.vggt, self.layer, self.files = vggt, layer, vggt.files
        self.width = 2 * vggt.aggregator.embed_dim

    def identity(self) -> dict[str, Any]:
        trunk = self.vggt.aggregator
        heads = ("camera_head", "depth_head") if self.depth_enabled else ("camera_head",)
        made = {name: self.vggt.config[name] for name in ("aggregator", *heads)}
        return {**made, "layer": self.layer % trunk.depth, "dtype": str(trunk.camera_token.dtype)}

    def enable_camera_head(self) -> None:
        if self.vggt.camera_head is None:
            self.vggt.camera_head = self.load_camera_head()

    def enable_depth_head(self) -> None:
        if self.vggt.depth_head is None:
            self.vggt.depth_head = self.load_depth_head()
        self.depth_enabled = True

    def load_depth_head(self) -> DPTHead:
        """As `load_camera_head`."""
        raise InputError(
            "this VGGT has no depth head: build one (--model.geometry.heads [camera,depth]), or take the data's depth, "
            "--model.camera_source dataset"
        )

    def load_camera_head(self) -> CameraHead:
        """The head that belongs to this trunk, float32: poses in bfloat16 would be useless."""
        raise InputError(
            "this VGGT has no camera head: build one (--model.geometry.heads [camera]), or take the data's cameras, "
            "--model.camera_source dataset"
        )

    def forward(
        self,
        frames: Sequence[Float[Tensor, "_S 3 _H _W"]],
        given: Sequence[SceneGeometry | None],
        *,
        tokens: bool = True,
        cameras: bool = True,
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`; `given` isn't looked at. The first frame of a scene is its world."""
        if cameras and self.vggt.camera_head is None:
            raise InputError(
                "this VGGT was built without its camera head: ask for its cameras with --model.camera_source auto (or "
                "vggt, even where the data has its own), or give the data cameras"
            )
        found: dict[int, SceneGeometry] = {}
        trained = any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            for members in same_shape(frames):
                images = torch.stack([frames[i] for i in members])
                scenes = self._encode(images, tokens, cameras)
                found.update(zip(members, scenes, strict=True))
        return [found[i] for i in range(len(frames))]

    def _encode(self, images: Float[Tensor, "B S 3 H W"], tokens: bool, cameras: bool) -> list[SceneGeometry]:
        height, width = images.shape[-2:]
        patch = self.vggt.aggregator.patch_size
        check_size(height, width, patch)
        heads = ("camera", "depth") if self.depth_enabled else ("camera",)
        output = self.vggt(images, layers=(self.layer,) if tokens else (), heads=heads if cameras else ())
        say: dict[str, Tensor] = {}
        if tokens:
            every = output.tokens[self.layer]
            say["camera_tokens"] = every[:, :, 0]
            grid = (height // patch, width // patch)
            say["patches"] = every[:, :, output.patch_start :].unflatten(2, grid)
        if cameras:
            say["world_to_camera"], say["K_normalized"], say["has_camera"] = valid_cameras(
                output.pose_enc, (height, width)
            )
            if output.depth is not None:
                say["depth"] = output.depth[..., 0]
        return [SceneGeometry(**{name: value[i] for name, value in say.items()}) for i in range(len(images))]


class PretrainedVGGT(VGGTEncoder):
    """VGGT-1B's aggregator with released weights (arXiv 2503.11651).

    Its camera head, of 0.2 billion parameters, is loaded only if cameras are wanted, its depth head if depth is.

    Args:
        path: a hub id, a folder with model.safetensors in it, or a .safetensors file.
        layer: of the aggregator whose outputs are the 3D tokens, counted from the end where negative.
        dtype: of the aggregator.
    """

    def __init__(
        self, path: str = "facebook/VGGT-1B", layer: int = -1, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        super().__init__(VGGT.from_pretrained(path, heads=(), dtype=getattr(torch, dtype)), layer)
        self.path = path

    def load_camera_head(self) -> CameraHead:
        return camera_head_of(SafetensorsFile(find_weights(self.path)), self.width)

    def load_depth_head(self) -> DPTHead:
        return depth_head_of(SafetensorsFile(find_weights(self.path)), self.vggt.aggregator.depth)


def camera_head_of(vggt: Mapping[str, Tensor], dim_in: int) -> CameraHead:
    """VGGT-1B's camera head alone, out of official weights that hold more; dim_in is the width of the tokens.

    Raises:
        InputError: there is none, or it doesn't fit.
    """
    return _filled(lambda: CameraHead(dim_in), vggt, "camera")


def depth_head_of(vggt: Mapping[str, Tensor], depth: int) -> DPTHead:
    """VGGT-1B's depth head alone, as `camera_head_of`; depth is the number of layers of the trunk."""
    head = _filled(lambda: DPTHead(**VGGT_1B["depth_head"]), vggt, "depth")
    head.layers = tuple(layer_index(layer, depth) for layer in head.layers)
    return head


def _filled(build: Callable[[], Head], vggt: Mapping[str, Tensor], name: str) -> Head:
    weights = PrefixView(vggt, f"{name}_head.")
    if not weights:
        raise InputError(
            f"{source_path(weights)}: no {name} head ({full_name(weights, '')}*): take the data's, "
            f"--model.camera_source dataset"
        )
    with torch.device("meta"):
        head = build()
    head.to_empty(device=torch.get_default_device())
    load_into(head.state_dict(), weights, what=f"{name} head of VGGT ({name}_head.*)")
    return head


def same_shape(frames: Sequence[Tensor]) -> list[list[int]]:
    """The scenes' indices, those of one shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, scene in enumerate(frames):
        groups.setdefault(tuple(scene.shape), []).append(i)
    return list(groups.values())


def check_size(height: int, width: int, patch: int) -> None:
    """InputError for frames that can't be cut into patches."""
    if height % patch or width % patch or not (height and width):
        raise InputError(
            f"frames of {width} x {height} pixels: a geometry encoder needs sides in multiples of {patch}; resize them "
            f"to {max(1, round(width / patch)) * patch} x {max(1, round(height / patch)) * patch}"
        )


def valid_cameras(
    pose_enc: Float[Tensor, "B S 9"], size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"], Bool[Tensor, "B S"]]:
    """(world_to_camera, K_normalized, has_camera) of pose encodings; identities where a camera means nothing.

    That is a field of view of 0, which the head can give and which is an infinite focal length; one of pi or more;
    a rotation of length 0; and what isn't finite.
    """
    fov = pose_enc[..., 7:]
    sound = pose_enc.isfinite().all(-1) & (fov > 0).all(-1) & (fov < torch.pi).all(-1)
    sound = sound & (pose_enc[..., 3:7].square().sum(-1) > 0)
    # put right before as well as after: an infinity that is only masked out still spoils the gradients
    harmless = pose_enc.new_tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    world_to_camera, K_px = pose_encoding_to_cameras(torch.where(sound[..., None], pose_enc, harmless), size_hw)
    K = normalize_intrinsics(K_px, size_hw[1], size_hw[0])
    keep = sound[..., None, None]
    identity = torch.eye(4, dtype=K.dtype, device=K.device)
    return torch.where(keep, world_to_camera, identity), torch.where(keep, K, identity[:3, :3]), sound
