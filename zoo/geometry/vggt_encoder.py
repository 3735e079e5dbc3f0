"""VGGT as a geometry encoder, released or tiny.

--model.geometry PretrainedVGGT --model.geometry.path weights/vggt-1b
--model.geometry TinyVGGT --model.geometry.path runs/vggt_tiny
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import InputError, check_choice
from zoo.geometry.base import DatasetGeometries, Head, PretrainableEncoder, ScaleSource, announce_license
from zoo.geometry.vggt import VGGT, DINOv2, VGGTOutput, official_tensors, pose_encoding_to_cameras
from zoo.geometry.vggt import model as vggt_1b
from zoo.seed import resolve_seed
from zoo.weights.load import WEIGHTS, StoredTensors, Tensors

ReferenceFrame = Literal["first", "last"]


class VGGTEncoder(PretrainableEncoder):
    """VGGT's tokens and cameras. Float32, in the scene's own unit, with the reference frame as the world.

    Args:
        vggt: A VGGT with its weights.
        layers: Aggregator layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        weights: Official tensors for heads that `vggt` lacks. Such a head is loaded when it is enabled.
        scale_from: How lengths are converted to meters. None keeps the scene's own unit.
        reference: The frame that is the world. With `last`, VGGT sees the frames in reverse order.

    Raises:
        InputError: A layer does not exist, or the depth head that the scale needs is missing.
    """

    heads: tuple[str, ...] = ("camera",)
    predicts_cameras = True
    predicts_depth = True
    predicts_points = True

    def __init__(
        self,
        vggt: VGGT,
        layers: Sequence[int] = (-1,),
        weights: Tensors | None = None,
        scale_from: ScaleSource | None = None,
        reference: ReferenceFrame = "first",
    ) -> None:
        check_choice("reference", reference, ReferenceFrame)
        trunk = vggt.aggregator
        super().__init__(layers, trunk.depth, 2 * trunk.embed_dim, pose_encoding_to_cameras)
        self.vggt, self.patch_size, self._weights, self.reference = vggt, trunk.patch_size, weights, reference
        self.align_lengths(scale_from)

    @property
    def files(self) -> tuple[Path, ...]:
        """See `GeometryEncoder`."""
        return self.vggt.files

    def identity(self) -> dict[str, Any]:
        """See `GeometryEncoder`."""
        trunk = self.vggt.aggregator
        config = {name: self.vggt.config[name] for name in ("aggregator", *(f"{head}_head" for head in self.heads))}
        reference = {} if self.reference == "first" else {"reference": self.reference}
        dtype, matrices = trunk.camera_token.dtype, self.vggt.matrix_dtype
        dtypes = {"dtype": str(dtype)} | ({} if matrices == dtype else {"matrices": str(matrices)})
        return {**config, "layers": self.layer_numbers, **dtypes, **reference}

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The heads that the network has."""
        return tuple(head for head in vggt_1b.HEADS if getattr(self.vggt, f"{head}_head") is not None)

    def official_state_dict(self) -> dict[str, Tensor]:
        """See `PretrainableEncoder`."""
        return self.vggt.official_state_dict()

    def training_output(
        self,
        images: Float[Tensor, "B S 3 H W"],
        given: DatasetGeometries,
        dense_frames: Int[Tensor, "B dense"] | None,
        draws: Sequence[int] | None,
    ) -> VGGTOutput:
        """See `PretrainableEncoder`."""
        return self.vggt(images, (), self.trained_heads, dense_frames)

    def blocks(self) -> list[nn.Module]:
        """See `GeometryEncoder`."""
        trunk = self.vggt.aggregator
        embedding: Any = trunk.patch_embed
        of_embedding = embedding.encoder.layer if isinstance(embedding, DINOv2) else ()
        return [*of_embedding, *trunk.frame_blocks, *trunk.global_blocks]

    def enable_head(self, head: Head) -> None:
        """See `GeometryEncoder`."""
        self.heads = tuple(each for each in vggt_1b.HEADS if each == head or each in self.heads)
        if getattr(self.vggt, f"{head}_head") is not None:
            return
        if self._weights is None:
            raise InputError(
                f"this VGGT has no {head} head: build one (--model.geometry.heads [{','.join(self.heads)}]), or use "
                "the dataset's geometry, --model.camera_source dataset"
            )
        self.vggt.load_head(head, self._weights)

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """See `GeometryEncoder`. DINOv2's mask token serves only its own pretraining."""
        if not (tokens or cameras):
            return True
        part, kind, number, *_ = [*name.removeprefix("vggt.").split("."), ""]
        if part.endswith("_head"):
            return not cameras or part.removesuffix("_head") not in self.heads
        if kind in ("frame_blocks", "global_blocks") and not cameras:  # the heads read the last layer
            return int(number) > max(self.layer_numbers)
        return name.endswith(".mask_token")

    def predict(
        self, images: Float[Tensor, "B S 3 H W"], given: DatasetGeometries, *, tokens: bool, heads: Sequence[str]
    ) -> tuple[VGGTOutput, dict[str, Tensor | None]]:
        """See `TrunkEncoder`."""
        layers = self.layer_numbers if tokens else ()
        if self.reference == "first":
            output = self.vggt.compute(images, layers, heads)
        else:
            output = self.vggt.compute(images.flip(1), layers, heads).reversed()
        return output, {
            "depth": None if output.depth is None else output.depth[..., 0],
            "points": output.points,
            "confidence": output.depth_conf if output.points is None else output.points_conf,
        }


class PretrainedVGGT(VGGTEncoder):
    """VGGT-1B with released weights (arXiv 2503.11651). A head is loaded only when it is enabled.

    Args:
        path: A hub id, a folder with model.safetensors, or a .safetensors file.
        layers: Aggregator layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        dtype: Dtype of the aggregator's matrices and products. The rest and the heads are float32, as in the group's
            runs under autocast. With norms and the residual stream in bfloat16, errors would be several times as large.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the scene's own
            unit.
        reference: The frame that is the world.
    """

    def __init__(
        self,
        path: str = "facebook/VGGT-1B",
        layers: Sequence[int] = (-1,),
        dtype: Literal["float32", "bfloat16"] = "float32",
        scale_from: ScaleSource | None = None,
        reference: ReferenceFrame = "first",
    ) -> None:
        weights = official_tensors(path)
        trunk = {"aggregator": vggt_1b.VGGT_1B["aggregator"]}
        vggt = VGGT.from_official(trunk, weights, torch.float32, getattr(torch, dtype))
        if not path.rstrip("/").lower().endswith("-commercial"):  # facebook/VGGT-1B-Commercial
            announce_license(path)
        super().__init__(vggt, layers, weights, scale_from, reference)
        self.path = path


class TinyVGGT(VGGTEncoder):
    """A VGGT with a few million parameters for small frames, random or pretrained with geometry_tiny.yaml.

    Args:
        path: A run of `fit --config geometry_tiny.yaml`, or its model.safetensors. null is random weights, whose
            outputs carry no geometry.
        layers: Aggregator layers whose outputs are the 3D tokens, concatenated on the channels. Negative numbers count
            from the end.
        embed_dim: Width of the aggregator. Its tokens have twice as many channels.
        depth: Number of aggregator layers.
        num_heads: Number of attention heads.
        features: Width of the dense heads.
        heads: Heads to build. Pretraining needs all three.
        seed: Seed of the random weights. null is the run's seed.
        scale_from: How lengths are converted to meters, `DatasetPoses` or `MetricModel`. null keeps the scene's own
            unit.
        reference: The frame that is the world.

    Raises:
        InputError: The path has no weights, or weights of another size.
    """

    def __init__(
        self,
        path: str | None = None,
        layers: Sequence[int] = (-1,),
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        features: int = 16,
        heads: Sequence[Head] = ("camera",),
        seed: int | None = None,
        scale_from: ScaleSource | None = None,
        reference: ReferenceFrame = "first",
    ) -> None:
        weights = None if path is None else StoredTensors(lambda: find_run_weights(path))
        vggt = tiny_vggt(VGGT, embed_dim, depth, num_heads, features, heads, weights, seed)
        super().__init__(vggt, layers, scale_from=scale_from, reference=reference)
        self.path = path


def tiny_vggt(
    kind: type[VGGT],
    embed_dim: int,
    depth: int,
    num_heads: int,
    features: int,
    heads: Sequence[Head],
    weights: Tensors | None,
    seed: int | None,
) -> VGGT:
    """Build a small VGGT.

    Args:
        kind: Its class.
        embed_dim: See `TinyVGGT`, like the next arguments.
        depth: Number of aggregator layers.
        num_heads: Number of attention heads.
        features: Width of the dense heads.
        heads: Heads to build.
        weights: Official tensors. None is random weights.
        seed: Seed of the random weights. None is the run's seed.
    """
    dense = {"dim_in": 2 * embed_dim, "features": features, "out_channels": [features] * 4}
    dense["intermediate_layer_idx"] = [depth * (i + 1) // 4 - 1 for i in range(4)]
    every: dict[str, dict[str, Any]] = {
        "camera_head": {"dim_in": 2 * embed_dim, "trunk_depth": 2, "num_heads": num_heads},
        "depth_head": dense | {"output_dim": 2, "activation": "exp"},
        "point_head": dense | {"output_dim": 4, "activation": "inv_log"},
    }
    config = {"aggregator": dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_embed="conv")}
    config |= {f"{head}_head": every[f"{head}_head"] for head in heads}
    if weights is not None:
        return kind.from_official(config, weights, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolve_seed(seed))
        vggt = kind(**config)
    if vggt.camera_head is not None:
        vggt.camera_head.init_identity_pose()
    return vggt


def find_run_weights(path: str, made_by: str = "--config geometry_tiny.yaml") -> Path:
    """Return the weights file that a pretraining writes.

    Args:
        path: The run folder or its model.safetensors.
        made_by: The options of `fit` that make one, for the error message.

    Raises:
        InputError: There is no such file.
    """
    local = Path(path).expanduser()
    file = local if local.is_file() else local / WEIGHTS
    if not file.is_file():
        raise InputError(
            f"{path} holds no {WEIGHTS}: make one with `python main.py fit {made_by}`, or set --model.geometry.path to "
            "the run that did"
        )
    return file
