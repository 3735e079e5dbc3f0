"""The models of the zoo: a choice of one part for each box of `SpatialVLM`.

A literal lambda as a default is read by jsonargparse as a class path with its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from zoo.backbones import (
    Backbone,
    BackboneLoader,
    Qwen3VLBackbone,
    Qwen25VLBackbone,
    Qwen35Backbone,
    TinyQwen3VL,
    TinyQwen35,
)
from zoo.encodings import CameraEncoding, ViewAttention, ViewMixer
from zoo.errors import InputError
from zoo.fusions import AddFusion, ConcatSplitFusion, Fusion, PatchMergerFusion, StackFusion
from zoo.geometry import DatasetGeometry, GeometryEncoder
from zoo.tasks.video_qa import VideoQATask


class BaselineVLM(VideoQATask):
    """The backbone as it is: 2D tokens only, timestamps, no cameras. Arguments as `VideoQATask`.

    A scale config may name a geometry encoder: the baseline builds none.

    Attributes:
        backbone_class: That of the models of this name.
    """

    backbone_class: Any = Backbone

    def __init__(self, **parts: Any) -> None:
        for part, model in (("camera_encoding", "PRoPEMLLM"), ("view_mixer", "PRoPEMLLM"), ("fusion", "SpatialMLLM")):
            if parts.get(part) is not None:
                raise InputError(f"{type(self).__name__} is the baseline without {part}: take {model} for one")
        super().__init__(**parts)
        if not isinstance(self.model.backbone, self.backbone_class):
            raise InputError(
                f"{type(self).__name__} with the backbone {type(self.model.loader).__name__}: take a scale of its "
                "own family (such as scale_tiny.yaml for Qwen25VL, scale_tiny_qwen3.yaml for Qwen3VL, "
                "scale_tiny_qwen3_5.yaml for Qwen35), or BaselineVLM"
            )


class Qwen25VL(BaselineVLM):
    """Qwen2.5-VL (arXiv 2502.13923) as it is: 2D tokens only, timestamps, no cameras. Arguments as `VideoQATask`."""

    backbone_class = Qwen25VLBackbone


class Qwen3VL(BaselineVLM):
    """Qwen3-VL (arXiv 2511.21631) as it is: 2D tokens only, time as text, no cameras.

    Args:
        backbone: A Qwen3-VL, by default a tiny random one.
        parts: The other arguments of `VideoQATask`.
    """

    backbone_class = Qwen3VLBackbone

    def __init__(self, backbone: BackboneLoader | None = None, **parts: Any) -> None:
        super().__init__(backbone=backbone or TinyQwen3VL(), **parts)


class Qwen35(BaselineVLM):
    """Qwen3.5 as it is: a hybrid decoder, 2D tokens only, time as text, no cameras, no thinking.

    Args:
        backbone: A Qwen3.5, by default a tiny random one.
        parts: The other arguments of `VideoQATask`.
    """

    backbone_class = Qwen35Backbone

    def __init__(self, backbone: BackboneLoader | None = None, **parts: Any) -> None:
        super().__init__(backbone=backbone or TinyQwen35(), **parts)


class SpatialMLLM(VideoQATask):
    """Spatial-MLLM (arXiv 2505.23747): the 3D tokens pass a connector and are added to the 2D tokens.

    Args:
        geometry: Encoder of the 3D tokens, VGGT in the paper; by default the dataset's rays and points.
        fusion: `AddFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = AddFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)


class VGLLM(VideoQATask):
    """VG-LLM (arXiv 2505.24625): a merger of each frame's 3D tokens, added to the 2D tokens of stills.

    vg_llm.yaml shows each frame as a still image, as published.

    Args:
        geometry: Encoder of the 3D tokens, the layer before VGGT's last in the paper; by default the dataset's rays and
            points.
        fusion: `PatchMergerFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = PatchMergerFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)
        _warn_of_layers(self.model.geometry, (-2,), "VG-LLM reads the layer before the last")


class SpatialStack(VideoQATask):
    """SpatialStack (arXiv 2603.27437): 3D tokens of several layers, added behind the decoder's first layers.

    spatial_stack.yaml shows each frame as a still image, as published.

    Args:
        geometry: Encoder of the 3D tokens, three layers of VGGT in the paper; by default the dataset's rays and points,
            for all decoder layers.
        fusion: `StackFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = StackFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)
        _warn_of_layers(self.model.geometry, (11, 17, 23), "SpatialStack reads three layers")


def _warn_of_layers(geometry: GeometryEncoder | None, published: tuple[int, ...], what: str) -> None:
    """Warn of an encoder whose layers nobody has chosen, the default is the last; name those that it has."""
    encoder: Any = None if geometry is None else geometry.meta_encoder
    if getattr(encoder, "layers", published) == (-1,):
        is_there = max(published) <= encoder.layer_numbers[0]
        remedy = f': set --model.geometry.layers "{list(published)}"' if is_there else ""
        rank_zero_warn(f"{what}, this model the last{remedy}")


class ConcatSplitMLLM(VideoQATask):
    """2D tokens to one half of the decoder's channels and 3D tokens to the other, concatenated.

    Args:
        geometry: Encoder of the 3D tokens, by default the dataset's rays and points.
        fusion: `ConcatSplitFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = ConcatSplitFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)


class PRoPEMLLM(VideoQATask):
    """`ConcatSplitMLLM` with PRoPE (arXiv 2507.10496) on the 2D half, and in the decoder.

    The views attend to each other by their cameras before both halves are joined, and in the decoder's attention as
    well if `camera_encoding` is set. Without both it is `ConcatSplitMLLM` on the rays alone.

    Args:
        camera_encoding: Of the decoder's attention, `PRoPE` in prope.yaml; null is the stock attention, bit for bit.
        view_mixer: Of the 2D half, `ViewAttention`, or another one, or null.
        geometry: Encoder of the 3D tokens, by default the rays of the dataset's cameras; null only with `fusion: null`.
        fusion: `ConcatSplitFusion`, or another one; null takes the 2D tokens alone.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        camera_encoding: CameraEncoding | None,
        view_mixer: Callable[[int], ViewMixer] | None = ViewAttention,
        geometry: Callable[[], GeometryEncoder] | None = lambda: DatasetGeometry(depth=False),
        fusion: Callable[[int, int], Fusion] | None = ConcatSplitFusion,
        **parts: Any,
    ) -> None:
        super().__init__(
            camera_encoding=camera_encoding, view_mixer=view_mixer, geometry=geometry, fusion=fusion, **parts
        )
