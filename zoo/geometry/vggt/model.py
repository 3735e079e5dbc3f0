"""VGGT as one module: the aggregator, and the heads that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.geometry.vggt.aggregator import Aggregator
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt.dpt_head import DPTHead
from zoo.geometry.vggt.official import find_weights, load_official, official_state_dict
from zoo.precision import full_precision
from zoo.weights import SafetensorsFile, files_of

HEADS = ("camera", "depth", "point")
BRIGHTEST = 2.0  # images are in 0..1, and resizing overshoots a little
NOT_BUILT = "track_head."  # the point tracker: not part of this project, skipped on purpose
VGGT_1B: dict[str, dict[str, Any]] = {  # facebook/VGGT-1B; everything else is a default
    "aggregator": {"img_size": 518, "patch_size": 14, "embed_dim": 1024},
    "camera_head": {"dim_in": 2048},
    "depth_head": {"dim_in": 2048, "output_dim": 2, "activation": "exp"},
    "point_head": {"dim_in": 2048, "output_dim": 4, "activation": "inv_log"},
}


@dataclass(eq=False)
class VGGTOutput:
    """What VGGT says of B scenes of S frames; None where a head wasn't asked for.

    Attributes:
        tokens: outputs of the layers, by the index that was asked for; camera token, registers, patches.
        patch_start: number of tokens before the patches.
        pose_enc: cameras, see `pose_encoding_to_cameras`.
        pose_enc_list: the same after each refinement step; the last is `pose_enc`.
        depth: along the camera's z axis, in the scene's own scale, above 0.
        depth_conf: confidence, above 1.
        points: in the frame of the first camera.
        points_conf: confidence, above 1.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int
    pose_enc: Float[Tensor, "B S 9"] | None = None
    pose_enc_list: Float[Tensor, "steps B S 9"] | None = None
    depth: Float[Tensor, "B S H W 1"] | None = None
    depth_conf: Float[Tensor, "B S H W"] | None = None
    points: Float[Tensor, "B S H W 3"] | None = None
    points_conf: Float[Tensor, "B S H W"] | None = None


class VGGT(nn.Module):
    """Visual Geometry Grounded Transformer (Wang et al., CVPR 2025, arXiv 2503.11651).

    Args:
        aggregator: arguments of `Aggregator`.
        camera_head: arguments of `CameraHead`; None builds no such head.
        depth_head: arguments of `DPTHead`.
        point_head: arguments of `DPTHead`.

    Attributes:
        config: the arguments.
        files: that the weights were read from, if they were.

    Raises:
        ValueError: a dense head that reads a layer which isn't there.
    """

    def __init__(
        self,
        aggregator: dict[str, Any],
        camera_head: dict[str, Any] | None = None,
        depth_head: dict[str, Any] | None = None,
        point_head: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        heads = {"camera_head": camera_head, "depth_head": depth_head, "point_head": point_head}
        self.config = {"aggregator": aggregator, **heads}
        self.files: tuple[Path, ...] = ()
        self.aggregator = Aggregator(**aggregator)
        self.camera_head = None if camera_head is None else CameraHead(**camera_head)
        self.depth_head = self._build_dense_head(depth_head)
        self.point_head = self._build_dense_head(point_head)

    def _build_dense_head(self, arguments: dict[str, Any] | None) -> DPTHead | None:
        if arguments is None:
            return None
        head = DPTHead(**arguments)
        head.layers = tuple(layer_index(layer, self.aggregator.depth) for layer in head.layers)
        return head

    @classmethod
    def from_official(
        cls, config: dict[str, Any], state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> VGGT:
        """The model with official weights, on their device; under `torch.device("meta")` its shapes alone, checked.

        Args:
            config: arguments of the official modules: {"aggregator": {...}, "camera_head": {...}, ...}.
            state_dict: tensors by official names. Those of heads that the config leaves out, and of the
                tracker, are skipped.
            dtype: of the result; None is that of the weights.

        Raises:
            InputError: tensors that are missing, unexpected or misshapen, by name.
        """
        first = next(iter(state_dict.values()), torch.empty(0))
        device = "meta" if torch.get_default_device().type == "meta" else first.device
        return cls._filled(config, state_dict, dtype or first.dtype, dtype or first.dtype, torch.device(device))

    @classmethod
    def _filled(
        cls,
        config: dict[str, Any],
        tensors: Mapping[str, Tensor],
        trunk: torch.dtype,
        heads: torch.dtype,
        device: torch.device,
    ) -> VGGT:
        """The model in these dtypes, which takes no more memory on the way than when it is done."""
        with torch.device("meta"):
            model = cls(**config).to(heads)
        model.aggregator.to(trunk)
        model.to_empty(device=device)
        model.files = files_of(tensors)
        left_out = tuple(f"{head}_head." for head in HEADS if config.get(f"{head}_head") is None)
        load_official(model, tensors, skip=(NOT_BUILT, *left_out))
        return model

    @classmethod
    def from_pretrained(
        cls,
        path: str = "facebook/VGGT-1B",
        heads: Collection[str] = ("camera",),
        dtype: torch.dtype = torch.float32,
    ) -> VGGT:
        """VGGT-1B from a hub id, a folder with model.safetensors in it, or a .safetensors file.

        Args:
            path: where the weights are.
            heads: those to build, any of "camera", "depth", "point"; the others aren't loaded.
            dtype: of the aggregator; the heads are float32, since poses in bfloat16 would be useless.

        Raises:
            InputError: no such weights, or they don't fit.
        """
        unknown = set(heads) - set(HEADS)
        if unknown:
            raise ValueError(f"unknown heads {sorted(unknown)}: choose from {', '.join(HEADS)}")
        names = ["aggregator", *(f"{head}_head" for head in HEADS if head in heads)]
        config = {name: VGGT_1B[name] for name in names}
        tensors = SafetensorsFile(find_weights(path))
        return cls._filled(config, tensors, dtype, torch.float32, torch.get_default_device())

    def official_state_dict(self) -> dict[str, Tensor]:
        """The inverse of `from_official`: tensors by official names."""
        return official_state_dict(self)

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        dense_frames: Sequence[int] | None = None,
    ) -> VGGTOutput:
        """Only what is asked for is computed and kept.

        Args:
            images: RGB in 0..1, not normalized; sides in multiples of the patch size. Frame 0 of a scene is
                the one whose camera is the world.
            layers: of the aggregator, counted from the end where negative.
            heads: any of "camera", "depth", "point".
            dense_frames: those whose depth and points are wanted, in that order; None is all.

        Raises:
            ValueError: image sides that aren't multiples of the patch size, integer images, no such layer, a
                head that the model hasn't got.
        """
        self._check(images, heads)
        depth = self.aggregator.depth
        indices = {layer: layer_index(layer, depth) for layer in layers}
        needed = set(indices.values())
        if "camera" in heads:
            needed.add(depth - 1)
        for head in {"depth", "point"} & set(heads):
            needed.update(self._dense_head(head).layers)
        outputs = self.aggregator(images, needed)

        result = VGGTOutput({layer: outputs[i] for layer, i in indices.items()}, self.aggregator.patch_start)
        with full_precision(images.device):
            if "camera" in heads and self.camera_head is not None:
                camera = outputs[depth - 1][:, :, 0].to(self.camera_head.token_norm.weight.dtype)
                result.pose_enc_list = self.camera_head(camera)
                result.pose_enc = result.pose_enc_list[-1]
            if "depth" in heads:
                result.depth, result.depth_conf = self._dense("depth", outputs, images, dense_frames)
            if "point" in heads:
                result.points, result.points_conf = self._dense("point", outputs, images, dense_frames)
        return result

    def _dense_head(self, name: str) -> DPTHead:
        head = self.depth_head if name == "depth" else self.point_head
        assert head is not None  # _check has looked
        return head

    def _dense(
        self, name: str, outputs: dict[int, Tensor], images: Tensor, wanted: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        head = self._dense_head(name)
        batch, frames, _, height, width = images.shape
        each = slice(None) if wanted is None else list(wanted)
        frames = frames if wanted is None else len(wanted)
        tokens = [
            outputs[layer][:, each, self.aggregator.patch_start :].flatten(0, 1).to(head.norm.weight.dtype)
            for layer in head.layers
        ]
        values, confidence = head(tokens, height, width)
        return values.unflatten(0, (batch, frames)), confidence.unflatten(0, (batch, frames))

    def _check(self, images: Tensor, heads: Collection[str]) -> None:
        height, width = images.shape[-2:]
        patch = self.aggregator.patch_size
        if height % patch or width % patch or not (height and width):
            raise ValueError(
                f"VGGT needs image sides in multiples of {patch} pixels, got {height} x {width}: resize them"
            )
        if not images.is_floating_point():
            raise ValueError(f"VGGT needs images in 0..1, got {images.dtype}: divide by 255")
        if not images.is_meta and images.numel() and images.amax() > BRIGHTEST:
            raise ValueError(f"VGGT needs images in 0..1, got values up to {float(images.amax()):.4g}: divide by 255")
        for head in heads:
            if head not in HEADS:
                raise ValueError(f"unknown head {head!r}: choose from {', '.join(HEADS)}")
            if getattr(self, f"{head}_head") is None:
                raise ValueError(f"this VGGT was built without its {head} head: add {head}_head to its config")


def layer_index(layer: int, depth: int) -> int:
    """The layer counted from the front, which may be given from the end."""
    if not -depth <= layer < depth:
        raise ValueError(f"there is no layer {layer}: the aggregator has {depth}")
    return layer % depth
