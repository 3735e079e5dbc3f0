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
from zoo.fusions import ExtraTokens, Fusion
from zoo.generation import CameraQwen25VL
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry, build_first_available
from zoo.geometry.temporal_patches import MergedCamera
from zoo.optim import LearningRates, WarmupCosine
from zoo.time_index import TimeIndex, TimestampIndex
from zoo.tiny import TinyQwen25VL
from zoo.trainable import Trainable
from zoo.vision_tower import install_fast_vision

CameraSource = Literal["dataset", "predicted", "auto"]
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
        view_mixer: what the 2D tokens of a scene learn of its cameras before both branches are joined (`ViewAttention`,
            `RayEmbedding`); without effect before training.
        camera_encoding: how the decoder's attention learns of the cameras; null is the stock attention, bit for bit.
        camera_source: whose cameras the encoding and the views get: `dataset`'s own; `predicted` ones of the geometry
        encoder, of
            unknown scale; or `auto`, the dataset's where a scene has some, else those that the geometry finds, if it
            finds any. A model without encoding and views takes no notice of `auto`.
        merged_camera: the camera of two frames that are merged into one token.
        time_index: what the T of mRoPE's position ids means.
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
        view_mixer: Callable[[int], ViewMixer] | None = None,
        camera_encoding: CameraEncoding | None = None,
        camera_source: CameraSource = "dataset",
        merged_camera: MergedCamera = "first",
        time_index: TimeIndex | None = None,
        learning_rates: LearningRates = PUBLISHED,
        lora: LoRA | None = None,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        backbone = backbone or TinyQwen25VL()
        self.camera_encoding, self.time_index = camera_encoding, self._choose_time(camera_encoding, time_index)
        self.camera_source, self.merged_camera = camera_source, merged_camera
        self.qwen, self.processor = backbone.load()
        backbone.attend(self.qwen)
        self.qwen.__class__ = CameraQwen25VL
        install_camera_attention(self.qwen.model.language_model, camera_encoding)
        install_fast_vision(self.qwen.model.visual)
        width = self.qwen.config.text_config.hidden_size
        if geometry_cache is not None and learning_rates.geometry:
            raise InputError("--model.learning_rates.geometry trains what --model.geometry_cache keeps: leave one out")
        self.geometry: GeometryEncoder | None = None
        camera_aware = view_mixer is not None or camera_encoding is not None or self.time_index.requires_cameras
        finds = camera_source == "predicted" or (camera_source == "auto" and camera_aware)
        if fusion is not None or finds:
            build = partial(build_first_available, backbone.geometry, geometry)
            self.geometry = build() if geometry_cache is None else CachedGeometry(build, geometry_cache)
        self.view_mixer: ViewMixer | None = None
        self._refuse_what_lacks_a_part(fusion is not None, camera_aware)
        if finds and self.geometry is not None and self.geometry.predicts_cameras:
            self.geometry.enable_camera_head()
        self.fusion: Fusion | None = None
        if fusion is not None and self.geometry is not None:
            self.fusion = self._like_qwen(fusion(width, self.geometry.width))
        if view_mixer is not None:
            self.view_mixer = self._like_qwen(view_mixer(width if self.fusion is None else self.fusion.flat_width))
        if camera_source == "predicted" and self.goes_by_depth and self.geometry is not None:
            if not self.geometry.predicts_depth:
                raise InputError("this encoding goes by depth, which --model.geometry does not find: take the data's")
            self.geometry.enable_depth_head()
        # a fusion that nobody trained says nothing, whatever the weights around it
        self.pretrained = backbone.pretrained and (self.fusion is None or backbone.load_fusion(self.fusion))
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
            raise InputError(f"{type(encoding).__name__} is the time: leave --model.time_index out")
        chosen = own or time or TimestampIndex()
        if encoding is not None and encoding.requires_constant_time and not chosen.constant:
            raise InputError(
                f"{type(encoding).__name__} acts on mRoPE's T section, where {type(chosen).__name__} would mix "
                "time with the camera: set --model.time_index ConstantIndex"
            )
        return chosen

    def _like_qwen(self, part: Any) -> Any:
        weight = self.qwen.get_input_embeddings().weight
        return part.to(device=weight.device, dtype=weight.dtype)

    def _refuse_what_lacks_a_part(self, fuses: bool, camera_aware: bool) -> None:
        if self.camera_source == "predicted" and not camera_aware:
            raise InputError(
                "--model.camera_source predicted has no effect without --model.camera_encoding or --model.view_mixer"
            )
        if self.camera_source == "predicted" and not (self.geometry and self.geometry.predicts_cameras):
            raise InputError(
                "--model.camera_source predicted needs a --model.geometry that finds them, such as PretrainedVGGT"
            )
        if fuses and not (self.geometry and self.geometry.width):
            raise InputError("--model.fusion needs 3D tokens: say with --model.geometry where they come from")

    # ---- what the data must bring ---------------------------------------------------------------------------

    @property
    def appended(self) -> ExtraTokens:
        """What follows the 2D tokens of each view in the prompt."""
        return ExtraTokens.NOTHING if self.fusion is None else self.fusion.appended

    @property
    def uses_geometry_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder."""
        return self.fusion is not None and self.fusion.uses_geometry

    @property
    def uses_cameras(self) -> bool:
        """Whether cameras reach what the decoder sees: the 2D tokens, its attention, or its positions."""
        return self.view_mixer is not None or self.camera_encoding is not None or self.time_index.requires_cameras

    @property
    def uses_points(self) -> bool:
        """Whether the encoding goes by the 3D points that the tokens show."""
        return any(part.uses_points for part in self.camera_modules)

    @property
    def uses_median_depth(self) -> bool:
        """Whether lengths are divided by the median depth."""
        return any(part.uses_median_depth for part in self.camera_modules)

    @property
    def goes_by_depth(self) -> bool:
        """Whether something goes by depth in the unit of the cameras, and so by whichever came with them."""
        return self.uses_points or self.uses_median_depth

    @property
    def camera_modules(self) -> list[CameraEncoding | ViewMixer]:
        """The parts that read cameras."""
        return [part for part in (self.camera_encoding, self.view_mixer) if part is not None]

    @property
    def can_predict_cameras(self) -> bool:
        """Whether cameras may be the geometry encoder's own; in `predict` always those of a video that has none."""
        predicting = self._trainer is not None and self._trainer.state.fn == "predict"
        able = self.geometry is not None and self.geometry.predicts_cameras
        asked = self.camera_source == "predicted" or (
            not self.goes_by_depth and (self.camera_source == "auto" or predicting)
        )
        return self.uses_cameras and able and asked

    def requires_predicted_cameras(self, given: Sequence[SceneGeometry | None]) -> list[bool]:
        """Of each scene, whether its cameras are to be found: of all by `vggt`, else where the data has none."""
        finds = self.can_predict_cameras
        return [
            finds and (self.camera_source == "predicted" or scene is None or not scene.knows_cameras) for scene in given
        ]

    @property
    def requires_cameras(self) -> bool:
        encoded = self.uses_cameras and not self.can_predict_cameras
        return encoded or (self.uses_geometry_tokens and self.geometry is not None and self.geometry.requires_cameras)

    @property
    def requires_depth(self) -> bool:
        fused = self.uses_geometry_tokens and self.geometry is not None and self.geometry.requires_depth
        return fused or (self.goes_by_depth and self.camera_source != "predicted")

    @property
    def requires_frames(self) -> bool:
        return (
            (self.uses_geometry_tokens or self.can_predict_cameras)
            and self.geometry is not None
            and self.geometry.requires_frames
        )
