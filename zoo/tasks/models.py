"""The baselines, and the zoo's own models. Each chooses the parts of a `SpatialVLM`.

jsonargparse reads a literal lambda as a default as a class path with its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from zoo.fusions.base import Fusion
from zoo.fusions.entrance import ConcatSplitFusion, SubspaceFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.dataset_geometry import DatasetGeometry
from zoo.tasks.video_qa import VideoQATask


class BaselineVLM(VideoQATask):
    """The unmodified backbone: 2D tokens only, timestamps, no cameras. Arguments as in `VideoQATask`.

    A scale config may name a geometry encoder. The baseline does not build it.

    Attributes:
        backbone_class: Required class of the backbone.
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
    """Unmodified Qwen2.5-VL (arXiv 2502.13923): 2D tokens only, timestamps, no cameras.

    Arguments as in `VideoQATask`.
    """

    backbone_class = Qwen25VLBackbone


class Qwen3VL(BaselineVLM):
    """Unmodified Qwen3-VL (arXiv 2511.21631): 2D tokens only, time as text, no cameras.

    Args:
        backbone: A Qwen3-VL. The default is a tiny, randomly initialized one.
        parts: The other arguments of `VideoQATask`.
    """

    backbone_class = Qwen3VLBackbone

    def __init__(self, backbone: BackboneLoader | None = None, **parts: Any) -> None:
        super().__init__(backbone=backbone or TinyQwen3VL(), **parts)


class Qwen35(BaselineVLM):
    """Unmodified Qwen3.5: a hybrid decoder, 2D tokens only, time as text, no cameras, no thinking.

    Args:
        backbone: A Qwen3.5. The default is a tiny, randomly initialized one.
        parts: The other arguments of `VideoQATask`.
    """

    backbone_class = Qwen35Backbone

    def __init__(self, backbone: BackboneLoader | None = None, **parts: Any) -> None:
        super().__init__(backbone=backbone or TinyQwen35(), **parts)


class ConcatSplitMLLM(VideoQATask):
    """2D tokens fill one half of the decoder's channels and 3D tokens the other half.

    Args:
        geometry: Encoder of the 3D tokens. The default uses the dataset's rays and points.
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
    """2D and 3D tokens in one half of each visual token, PRoPE (arXiv 2507.10496) in the 2D half and the decoder.

    The views attend to each other by their cameras before both halves are joined. If `camera_encoding` is set, the
    decoder's attention uses the cameras too. Without both, the 3D half, the rays, is all that the model knows of
    cameras.

    Args:
        camera_encoding: Encoding in the decoder's attention, `PRoPE` in prope.yaml. null keeps the original attention,
            bit for bit.
        view_mixer: View mixer of the 2D half, `ViewAttention` or another one. null uses none.
        geometry: Encoder of the 3D tokens. The default uses the rays of the dataset's cameras. null is allowed only
            with `fusion: null`.
        fusion: `SubspaceFusion`, or another one. null uses the 2D tokens alone.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        camera_encoding: CameraEncoding | None,
        view_mixer: Callable[[int], ViewMixer] | None = ViewAttention,
        geometry: Callable[[], GeometryEncoder] | None = lambda: DatasetGeometry(depth=False),
        fusion: Callable[[int, int], Fusion] | None = SubspaceFusion,
        **parts: Any,
    ) -> None:
        super().__init__(
            camera_encoding=camera_encoding, view_mixer=view_mixer, geometry=geometry, fusion=fusion, **parts
        )
