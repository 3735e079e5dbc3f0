"""VGGT as one module: the aggregator and its heads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.geometry.images import check_images, check_range, select_frames
from zoo.geometry.transformer_blocks import layer_index
from zoo.geometry.vggt.aggregator import Aggregator
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt.dpt_head import DPTHead
from zoo.geometry.vggt.official import current_names, official_name
from zoo.precision import full_precision
from zoo.weights.deferred import load_or_defer
from zoo.weights.filling import TensorsOf, load_into
from zoo.weights.lazy_tensors import PrefixView, Tensors, device_of, files_of, first_tensor, full_name, source_path

HEADS = ("camera", "depth", "point")
NOT_BUILT = "track_head."  # the point tracker is not part of this project
VGGT_1B: dict[str, dict[str, Any]] = {  # facebook/VGGT-1B; everything else is a default
    "aggregator": {"img_size": 518, "patch_size": 14, "embed_dim": 1024},
    "camera_head": {"dim_in": 2048},
    "depth_head": {"dim_in": 2048, "output_dim": 2, "activation": "exp"},
    "point_head": {"dim_in": 2048, "output_dim": 4, "activation": "inv_log"},
}


@dataclass(eq=False)
class VGGTOutput:
    """The outputs of VGGT for B scenes of S frames; None for heads that were not asked for.

    Attributes:
        tokens: Outputs of the layers, by the index asked for; camera token, registers, patches.
        patch_start: Number of tokens before the patches.
        pose_enc: Cameras, see `pose_encoding_to_cameras`.
        pose_enc_list: The same after each refinement step; the last is `pose_enc`.
        depth: Along the camera's z axis, in the scene's own scale, above 0.
        depth_conf: Confidence, above 1.
        points: In the frame of the first camera, in the same scale.
        points_conf: Confidence, above 1.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int
    pose_enc: Float[Tensor, "B S 9"] | None = None
    pose_enc_list: Float[Tensor, "steps B S 9"] | None = None
    depth: Float[Tensor, "B S H W 1"] | None = None
    depth_conf: Float[Tensor, "B S H W"] | None = None
    points: Float[Tensor, "B S H W 3"] | None = None
    points_conf: Float[Tensor, "B S H W"] | None = None

    def reversed(self) -> VGGTOutput:
        """Return the outputs in the reverse order of frames."""
        fields = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        turned: dict[str, Any] = {
            name: value.flip(2 if name == "pose_enc_list" else 1) for name, value in fields.items()
        }
        return replace(self, tokens={layer: each.flip(1) for layer, each in self.tokens.items()}, **turned)


class VGGT(nn.Module):
    """Visual Geometry Grounded Transformer (Wang et al., CVPR 2025, arXiv 2503.11651).

    Args:
        aggregator: Arguments of `Aggregator`.
        camera_head: Arguments of `CameraHead`; None builds no such head.
        depth_head: Arguments of `DPTHead`; None builds no such head.
        point_head: Arguments of `DPTHead`; None builds no such head.

    Attributes:
        config: The arguments.
        source: The official tensors that the weights are read from.

    Raises:
        ValueError: A dense head that uses a layer which the aggregator does not have.

    Example:
        >>> import torch
        >>> config = {
        ...     "aggregator": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_embed": "conv"},
        ...     "camera_head": {"dim_in": 64, "num_heads": 2},
        ... }
        >>> official = VGGT(**config).official_state_dict()
        >>> vggt = VGGT.from_official(config, official)
        >>> output = vggt(torch.rand(1, 3, 3, 28, 42), layers=(-1,), heads=("camera",))
        >>> output.tokens[-1].shape, output.pose_enc.shape  # 5 special tokens and 2 x 3 patches per frame
        (torch.Size([1, 3, 11, 64]), torch.Size([1, 3, 9]))
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
        self.source: Tensors = {}
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

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, if any."""
        return files_of(self.source)

    @classmethod
    def from_official(cls, config: dict[str, Any], state_dict: Tensors, dtype: torch.dtype | None = None) -> VGGT:
        """Build the model with official weights, on their device.

        Under `torch.device("meta")` only names and shapes are checked, and tensors in files are not looked at.

        Args:
            config: Arguments of the official modules: {"aggregator": {...}, "camera_head": {...}, ...}.
            state_dict: Tensors by official names. Those of the tracker, and of heads that the config leaves out, are
                ignored.
            dtype: Of the result; None is that of the weights.

        Raises:
            InputError: Tensors that are missing, unexpected or misshapen, by name.
        """
        with torch.device("meta"):  # so that loading takes no more memory than the model
            model = cls(**config).to(dtype or first_tensor(state_dict).dtype)
        model.source = state_dict
        tensors, skip = TensorsOf(model), [f"{head}_head." for head in HEADS if config.get(f"{head}_head") is None]

        def fill() -> None:
            load_into(
                tensors,
                state_dict,
                what="VGGT",
                current_names=current_names,
                official_name=official_name,
                skip=(NOT_BUILT, *skip),
            )

        load_or_defer(model, state_dict, fill, device_of(state_dict))
        return model

    def load_head(self, name: str, tensors: Tensors) -> None:
        """Add one of VGGT-1B's heads, in float32.

        Args:
            name: "camera", "depth" or "point".
            tensors: By official names; all others are ignored.

        Raises:
            InputError: The weights have no such head, or it does not fit.
        """
        weights = PrefixView(tensors, f"{name}_head.")
        config = VGGT_1B[f"{name}_head"] | {"dim_in": 2 * self.aggregator.embed_dim}
        with torch.device("meta"):
            head = CameraHead(**config) if name == "camera" else self._build_dense_head(config)
        assert head is not None
        state = TensorsOf(head)

        def fill() -> None:
            if not weights:
                raise InputError(
                    f"{source_path(weights)}: no {name} head ({full_name(weights, '')}*): use the dataset's geometry, "
                    "--model.camera_source dataset"
                )
            load_into(state, weights, what=f"{name} head of VGGT ({name}_head.*)")

        with self.aggregator.camera_token.device:  # deferred with the trunk
            load_or_defer(head, weights, fill)
        setattr(self, f"{name}_head", head)

    def official_state_dict(self) -> dict[str, Tensor]:
        """The inverse of `from_official`: the tensors by official names."""
        state = self.state_dict()
        parts: dict[str, list[Tensor]] = {}
        for name in dict.fromkeys(official_name(name) for name in state):
            parts[name] = [state[part] for part in current_names(name)]
        return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        dense_frames: Int[Tensor, "B dense"] | None = None,
    ) -> VGGTOutput:
        """Compute only what is asked for.

        Args:
            images: RGB in 0..1, not normalized; sides in multiples of the patch size. The camera of frame 0 is the
                world.
            layers: Of the aggregator, counted from the end where negative.
            heads: Any of "camera", "depth", "point".
            dense_frames: The frames of each scene's depth and point maps, in this order; None is all.

        Raises:
            ValueError: Image sides that are not multiples of the patch size, integer images, an unknown layer, or a
                head that the model does not have.
        """
        check_range(images, "VGGT")
        return self.compute(images, layers, heads, dense_frames)

    def compute(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        dense_frames: Int[Tensor, "B dense"] | None = None,
    ) -> VGGTOutput:
        """Compute `forward` of images that are known to be in 0..1."""
        self._check(images, heads)
        depth = self.aggregator.depth
        indices = {layer: layer_index(layer, depth) for layer in layers}
        needed = set(indices.values())
        if "camera" in heads:
            needed.add(depth - 1)
        for head in {"depth", "point"} & set(heads):
            needed.update(getattr(self, f"{head}_head").layers)
        outputs = self.aggregator(images, needed)

        result = VGGTOutput({layer: outputs[i] for layer, i in indices.items()}, self.aggregator.patch_start)
        with full_precision(images.device):
            if "camera" in heads and self.camera_head is not None:
                camera = outputs[depth - 1][:, :, 0].to(self.camera_head.token_norm.weight.dtype)
                result.pose_enc_list = self.camera_head(camera)
                result.pose_enc = result.pose_enc_list[-1]
            if "depth" in heads and self.depth_head is not None:
                result.depth, result.depth_conf = self._dense(self.depth_head, outputs, images, dense_frames)
            if "point" in heads and self.point_head is not None:
                result.points, result.points_conf = self._dense(self.point_head, outputs, images, dense_frames)
        return result

    def _dense(
        self, head: DPTHead, outputs: dict[int, Tensor], images: Tensor, dense_frames: Int[Tensor, "B dense"] | None
    ) -> tuple[Tensor, Tensor]:
        batch, _, _, height, width = images.shape
        layers = [outputs[layer][:, :, self.aggregator.patch_start :] for layer in head.layers]
        if dense_frames is not None:
            layers = [select_frames(layer, dense_frames) for layer in layers]
        tokens = [layer.flatten(0, 1).to(head.dtype) for layer in layers]
        values, confidence = head(tokens, height, width)
        return values.unflatten(0, (batch, -1)), confidence.unflatten(0, (batch, -1))

    def _check(self, images: Tensor, heads: Collection[str]) -> None:
        check_images(images, self.aggregator.patch_size, "VGGT")
        for head in heads:
            if head not in HEADS or getattr(self, f"{head}_head") is None:
                raise ValueError(f"this VGGT has no {head} head: add {head}_head to its config ({', '.join(HEADS)})")
