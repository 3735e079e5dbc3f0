"""The parts of a model put together: which there are, which don't fit, and what they need of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.attention import install_camera_attention
from zoo.backbone import Backbone, LoRA
from zoo.encodings import CameraEncoding, ViewMixer
from zoo.errors import InputError
from zoo.fusions import Appended, Fusion
from zoo.generation import CameraQwen25VL
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry, first_built
from zoo.geometry.steps import PairCamera
from zoo.optim import LearningRates, WarmupCosine
from zoo.time_index import Seconds, TimeIndex
from zoo.tiny import TinyQwen25VL
from zoo.trainable import Trainable
from zoo.vision_tower import install_fast_vision

CameraSource = Literal["given", "vggt", "either"]
PUBLISHED = LearningRates()  # Spatial-MLLM's


def adamw(parameters: Any) -> Optimizer:
    """AdamW with the published recipe's weight decay (biases have their own group without)."""
    return torch.optim.AdamW(parameters, weight_decay=0.1)


class SpatialParts(Trainable):
    """A Qwen2.5-VL whose visual tokens may be fused with 3D tokens, and may know their cameras: what it is made of.

    Args:
        backbone: where Qwen2.5-VL comes from; a tiny random one if not given.
        geometry: where 3D tokens and cameras come from; built only if a fusion or `cameras` asks for it, and only if
            the backbone does not bring its own.
        geometry_cache: keeps on disk what a frozen geometry says of a scene's frames; null works it out each time.
        fusion: how 2D and 3D tokens become one sequence; null takes the 2D tokens.
        views: what the 2D tokens of a scene learn of its cameras before both branches are joined (`ViewAttention`,
            `RayEmbedding`); without effect before training.
        encoding: how the decoder's attention learns of the cameras; null is the stock attention, bit for bit.
        cameras: whose cameras the encoding and the views get: those `given` with the data; `vggt`'s own, of unknown
            scale; or `either`, the data's where a scene has some, else those that the geometry finds, if it finds any.
            A model without encoding and views takes no notice of `either`.
        pair_camera: the camera of two frames that are merged into one token.
        time: what the T of mRoPE's position ids means.
        learning_rates: one a part, null to freeze it.
        lora: low-rank adapters on the decoder, in place of training it whole.
        optimizer: takes the parameter groups.
        scheduler: takes the optimizer and the run's number of optimizer steps; stepped once a step.
        gradient_checkpointing: trades time for memory in the decoder and the vision tower.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        geometry: Callable[[], GeometryEncoder] | None = None,
        geometry_cache: GeometryCache | None = None,
        fusion: Callable[[int, int], Fusion] | None = None,
        views: Callable[[int], ViewMixer] | None = None,
        encoding: CameraEncoding | None = None,
        cameras: CameraSource = "given",
        pair_camera: PairCamera = "first",
        time: TimeIndex | None = None,
        learning_rates: LearningRates = PUBLISHED,
        lora: LoRA | None = None,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        backbone = backbone or TinyQwen25VL()
        self.encoding, self.time = encoding, self._choose_time(encoding, time)
        self.cameras, self.pair_camera = cameras, pair_camera
        self.qwen, self.processor = backbone.load()
        backbone.attend(self.qwen)
        self.qwen.__class__ = CameraQwen25VL
        install_camera_attention(self.qwen.model.language_model, encoding)
        install_fast_vision(self.qwen.model.visual)
        width = self.qwen.config.text_config.hidden_size
        if geometry_cache is not None and learning_rates.geometry:
            raise InputError("--model.learning_rates.geometry trains what --model.geometry_cache keeps: leave one out")
        self.geometry: GeometryEncoder | None = None
        camera_aware = views is not None or encoding is not None or self.time.needs_cameras
        finds = cameras == "vggt" or (cameras == "either" and camera_aware)
        if fusion is not None or finds:
            build = partial(first_built, backbone.geometry, geometry)
            self.geometry = build() if geometry_cache is None else CachedGeometry(build, geometry_cache)
        self.views: ViewMixer | None = None
        self._refuse_what_lacks_a_part(fusion is not None, camera_aware)
        if finds and self.geometry is not None and self.geometry.gives_cameras:
            self.geometry.want_cameras()
        self.fusion: Fusion | None = None
        if fusion is not None and self.geometry is not None:
            self.fusion = self._like_qwen(fusion(width, self.geometry.width))
        if views is not None:
            self.views = self._like_qwen(views(width if self.fusion is None else self.fusion.flat_width))
        if cameras == "vggt" and self.goes_by_depth and self.geometry is not None:
            if not self.geometry.gives_depth:
                raise InputError("this encoding goes by depth, which --model.geometry does not find: take the data's")
            self.geometry.want_depth()
        # a fusion that nobody trained says nothing, whatever the weights around it
        self.pretrained = backbone.pretrained and (self.fusion is None or backbone.fill(self.fusion))
        self.learning_rates = learning_rates
        self.freeze_parts()
        if lora is not None:
            if "decoder" in learning_rates.frozen():
                raise InputError("--model.lora trains the decoder, but --model.learning_rates.decoder freezes it")
            lora.apply(self.qwen.model.language_model)
            self.qwen.lm_head.requires_grad_(False)
        if gradient_checkpointing:
            self.qwen.activation_checkpointing_enable({"use_reentrant": False})
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train()

    @staticmethod
    def _choose_time(encoding: CameraEncoding | None, time: TimeIndex | None) -> TimeIndex:
        own = None if encoding is None else encoding.time_index
        if own is not None and time is not None:
            raise InputError(f"{type(encoding).__name__} is the time: leave --model.time out")
        chosen = own or time or Seconds()
        if encoding is not None and encoding.needs_constant_time and not chosen.constant:
            raise InputError(
                f"{type(encoding).__name__} acts on mRoPE's T section, where {type(chosen).__name__} would mix "
                "time with the camera: set --model.time NoTime"
            )
        return chosen

    def _like_qwen(self, part: Any) -> Any:
        weight = self.qwen.get_input_embeddings().weight
        return part.to(device=weight.device, dtype=weight.dtype)

    def _refuse_what_lacks_a_part(self, fuses: bool, camera_aware: bool) -> None:
        if self.cameras == "vggt" and not camera_aware:
            raise InputError("--model.cameras vggt has no effect without --model.encoding or --model.views")
        if self.cameras == "vggt" and not (self.geometry and self.geometry.gives_cameras):
            raise InputError("--model.cameras vggt needs a --model.geometry that finds them, such as PretrainedVGGT")
        if fuses and not (self.geometry and self.geometry.width):
            raise InputError("--model.fusion needs 3D tokens: say with --model.geometry where they come from")

    # ---- what the data must bring ---------------------------------------------------------------------------

    @property
    def appended(self) -> Appended:
        """What follows the 2D tokens of each view in the prompt."""
        return Appended.NOTHING if self.fusion is None else self.fusion.appended

    @property
    def reads_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder."""
        return self.fusion is not None and self.fusion.reads_geometry

    @property
    def reads_cameras(self) -> bool:
        """Whether cameras reach what the decoder sees: the 2D tokens, its attention, or its positions."""
        return self.views is not None or self.encoding is not None or self.time.needs_cameras

    @property
    def reads_points(self) -> bool:
        """Whether the encoding goes by the 3D points that the tokens show."""
        return self._some("reads_points", True)

    @property
    def scales_by_depth(self) -> bool:
        """Whether lengths are divided by the median depth."""
        return self._some("scale", "median_depth")

    @property
    def goes_by_depth(self) -> bool:
        """Whether something goes by depth in the unit of the cameras, and so by whichever came with them."""
        return self.reads_points or self.scales_by_depth

    def _some(self, name: str, value: Any) -> bool:
        """Whether some part that reads cameras says so of itself."""
        parts = (m for part in (self.encoding, self.views) if part is not None for m in part.modules())
        return any(getattr(part, name, None) == value for part in parts)

    @property
    def may_find_cameras(self) -> bool:
        """Whether cameras may be the geometry encoder's own; in `predict` always those of a video that has none."""
        predicting = self._trainer is not None and self._trainer.state.fn == "predict"
        able = self.geometry is not None and self.geometry.gives_cameras
        asked = self.cameras == "vggt" or (not self.goes_by_depth and (self.cameras == "either" or predicting))
        return self.reads_cameras and able and asked

    def lack_cameras(self, given: Sequence[SceneGeometry | None]) -> list[bool]:
        """Of each scene, whether its cameras are to be found: of all by `vggt`, else where the data has none."""
        finds = self.may_find_cameras
        return [finds and (self.cameras == "vggt" or scene is None or not scene.knows_cameras) for scene in given]

    @property
    def needs_cameras(self) -> bool:
        encoded = self.reads_cameras and not self.may_find_cameras
        return encoded or (self.reads_tokens and self.geometry is not None and self.geometry.needs_cameras)

    @property
    def needs_depth(self) -> bool:
        fused = self.reads_tokens and self.geometry is not None and self.geometry.needs_depth
        return fused or (self.goes_by_depth and self.cameras != "vggt")

    @property
    def needs_frames(self) -> bool:
        return (self.reads_tokens or self.may_find_cameras) and self.geometry is not None and self.geometry.needs_frames
