"""The parts of a model: built, fitted to each other, and asked what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from zoo.backbones import BackboneLoader, default_loader
from zoo.backbones.lora import LoRA
from zoo.camera_plan import CameraPlan, CameraSource
from zoo.cameras.patch_cameras import MergedCamera
from zoo.configuration import Configurable
from zoo.encodings import CameraEncoding, ViewMixer
from zoo.errors import InputError, check_choice
from zoo.fusions import Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry, build_first_available
from zoo.objectives import Objective, Objectives
from zoo.objectives.average import AverageRule
from zoo.requirements import CameraUse, DataRequirements, check_geometry, choose_time_index
from zoo.scene_encoding.geometry_reader import GeometryReader
from zoo.sequences.builder import SequenceBuilder
from zoo.sequences.position_ids import TextAfterVision
from zoo.sequences.rules import SequenceRules
from zoo.sequences.time_index import TimeIndex
from zoo.sequences.visual_grid import ExtraTokens
from zoo.weights.deferred import build_deferred


class AssembledModel(Configurable, nn.Module):
    """The parts of a `SpatialVLM`, which documents the arguments.

    Attributes:
        camera_use: What the camera parts read.
        camera_plan: Whose cameras and depth they get.
        extra_tokens: The tokens that follow the 2D tokens of each view.
        training_tokens: The same, in training.
        is_pretrained: Whether the model answers questions without training here.
        loaded_names: Tensors of a saved model or a checkpoint, or trained: not the released files'.
        data_config: How the data of the training were read, see `SpatialVLM.answer`.
        trust_modules: Modules that it may import, see `SpatialVLM.from_pretrained`.
        precision: Of the training and of answers, as `--trainer.precision`; None is that of the device, see
            `answer_precision`.
    """

    not_configuration = frozenset({"defer_weights"})

    def __init__(
        self,
        backbone: BackboneLoader | None = None,
        geometry: Callable[[], GeometryEncoder] | None = None,
        geometry_cache: GeometryCache | None = None,
        fusion: Callable[[int, int], Fusion] | None = None,
        view_mixer: Callable[[int], ViewMixer] | None = None,
        camera_encoding: CameraEncoding | None = None,
        camera_source: CameraSource = "dataset",
        merged_camera: MergedCamera = "first",
        time_index: TimeIndex | None = None,
        text_after_vision: TextAfterVision = "max_thw",
        lora: LoRA | None = None,
        objectives: list[Objective] | None = None,
        average: AverageRule = "questions",
        defer_weights: bool = False,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("camera_source", camera_source, CameraSource),
            ("merged_camera", merged_camera, MergedCamera),
            ("text_after_vision", text_after_vision, TextAfterVision),
            ("average", average, AverageRule),
        ):
            check_choice(name, value, choices)
        self.loader = backbone or default_loader()
        self.camera_encoding, self.merged_camera = camera_encoding, merged_camera
        self.text_after_vision, self.average = text_after_vision, average
        losses = Objectives(objectives)
        # 1. Backbone, with the camera hooks in its attention.
        self.backbone = self.loader.load_unread() if defer_weights else self.loader.load()
        self.time_index = choose_time_index(camera_encoding, time_index, self.backbone.default_time_index())
        self.backbone.install_encoding(camera_encoding)
        # 2. Geometry, if some part reads it.
        uses_cameras = view_mixer is not None or camera_encoding is not None or self.time_index.requires_cameras
        plan = CameraPlan(camera_source, uses_cameras, losses.targets)
        asks = fusion is not None or plan.asks_encoder
        self.geometry = self._build_geometry(geometry, geometry_cache, defer_weights) if asks else None
        uses_any = uses_cameras or bool(losses.targets)
        check_geometry(self.geometry, camera_source, uses_cameras=uses_any, uses_tokens=fusion is not None)
        # 3. Fusion and view mixer, in the backbone's dtype.
        width, num_layers = self.backbone.hidden_size, self.backbone.decoder_layout.num_layers
        self.fusion: Fusion | None = None
        if fusion is not None and self.geometry is not None:
            self.fusion = fusion(width, self.geometry.width)
            self.loader.fit_fusion(self.fusion)
            self.fusion.bind(self.geometry.num_layers, num_layers)
            self.fusion = self._like_backbone(self.fusion)
        flat_width = width if self.fusion is None else self.fusion.flat_width
        self.view_mixer: ViewMixer | None = None if view_mixer is None else self._like_backbone(view_mixer(flat_width))
        # 4. What the parts need of cameras and depth.
        self.camera_use = CameraUse.of((camera_encoding, self.view_mixer), self.time_index)
        predicts = self.geometry is not None and self.geometry.predicts_cameras
        self.camera_plan = replace(plan, uses_depth=self.camera_use.depth, encoder_predicts=predicts)
        self._enable_heads()
        # 5. Weights. An untrained fusion makes the whole model untrained.
        self.has_released_fusion = self.fusion is not None and self.loader.load_fusion(self.fusion)
        is_fused = self.fusion is None or self.has_released_fusion
        self.is_pretrained = self.loader.is_pretrained and is_fused and not losses.with_token
        if lora is not None:
            lora.apply(self.backbone.decoder, self.backbone.lora_targets)
            self.backbone.lm_head.requires_grad_(False)
        # 6. Objectives, in float32.
        appended = ExtraTokens.NONE if self.fusion is None else self.fusion.appended
        self.training_tokens = losses.resolve_extra_tokens(appended, training=True)
        self.extra_tokens = losses.resolve_extra_tokens(appended)
        losses.check_camera_parts([part for part in (camera_encoding, self.view_mixer) if part is not None])
        losses.bind(width, num_layers)
        self.objectives = losses.to(self.backbone.device)
        self.loaded_names: frozenset[str] = frozenset()
        self.data_config: dict[str, Any] = {}
        self.trust_modules: tuple[str, ...] = ()
        self.precision: str | None = None

    def _build_geometry(
        self, build: Callable[[], GeometryEncoder] | None, cache: GeometryCache | None, defer_weights: bool
    ) -> GeometryEncoder | None:
        first = partial(build_first_available, self.loader.load_geometry, build)
        encoder: GeometryEncoder | None
        if cache is not None:
            encoder = CachedGeometry(first, cache)
        else:
            encoder = build_deferred(first) if defer_weights else first()
        if encoder is not None:
            encoder.match_patches(self.backbone.patch_size)
        return encoder

    def _enable_heads(self) -> None:
        plan, encoder = self.camera_plan, self.geometry
        if encoder is None:
            return
        if plan.asks_encoder and plan.encoder_predicts:
            encoder.enable_head("camera")
        if plan.predicts_depth:
            if not encoder.predicts_depth:
                raise InputError(
                    "--model.camera_source predicted: an encoding or an objective uses depth, which "
                    f"{self.geometry_name} does not predict; take the dataset's cameras and depth"
                )
            encoder.enable_head("depth")

    def _like_backbone(self, part: Any) -> Any:
        return part.to(device=self.backbone.device, dtype=self.backbone.like.dtype)

    @property
    def geometry_name(self) -> str | None:
        """The class of the geometry encoder, also of one behind a cache; None without one."""
        return None if self.geometry is None else type(self.geometry.meta_encoder).__name__

    # ---- parameters -----------------------------------------------------------------------------------------------

    def part_of(self, name: str) -> str:
        """The field of `LearningRates` that governs the parameter of this name."""
        part, _, rest = name.partition(".")
        if part == "backbone":
            return self.backbone.part_of(rest)
        if name.startswith("view_mixer.encoding."):  # the same numbers as in the decoder
            return "encoding"
        others = {"geometry": "geometry", "camera_encoding": "encoding", "objectives": "objective"}
        return others.get(part, "connector")

    def restored_by_files(self, name: str) -> bool:
        """Whether a tensor of this name, as long as it is frozen, is read from released files again."""
        if name in self.loaded_names:
            return False
        part = name.partition(".")[0]
        if part == "backbone":
            return self.loader.released_path is not None and ".lora_" not in name
        if part == "geometry":
            return self.geometry is not None and bool(self.geometry.files)
        return part == "fusion" and self.has_released_fusion

    def sharded_units(self) -> dict[nn.Module, list[nn.Parameter]]:
        """Return the matrices that a sharded model gathers for a module's call, for the modules that every batch calls.

        Every process calls each of them equally often: a decoder layer and a vision block once per batch, and a frozen
        geometry encoder as a whole, since its blocks run once per shape of videos. Vectors are left out: autocast keeps
        norms and scales in float32.
        """
        blocks: dict[nn.Module, list[nn.Module]] = {block: [block] for block in self.backbone.blocks()}
        encoder = self.geometry
        is_called = self.uses_geometry_tokens or self.camera_plan.source == "predicted"
        if encoder is not None and is_called and not any(p.requires_grad for p in encoder.parameters()):
            blocks[encoder] = encoder.blocks()
        every = {unit: [p for block in own for p in block.parameters() if p.ndim > 1] for unit, own in blocks.items()}
        return {unit: matrices for unit, matrices in every.items() if matrices}

    # ---- what the model reads -------------------------------------------------------------------------------------

    @property
    def sequence_rules(self) -> SequenceRules:
        """What the model's sequences depend on, for data workers."""
        plan, backbone = self.camera_plan, self.backbone
        return SequenceRules(
            placeholders=backbone.placeholders,
            extra_tokens=self.extra_tokens,
            time_index=self.time_index,
            tokens_per_second=backbone.tokens_per_second,
            text_after_vision=self.text_after_vision,
            context_length=backbone.context_length,
            packs_questions=backbone.packs_questions,
            is_hybrid=backbone.is_hybrid,
            merged_camera=self.merged_camera,
            uses_cameras=self.camera_use.cameras,
            may_predict_cameras=plan.predicts_cameras,
            only_predicted_cameras=plan.predicts_cameras and plan.source == "predicted",
            vision=backbone.vision_rules,
        )

    def geometry_reader(self, *, training: bool) -> GeometryReader | None:
        """Return what reads the cached geometry for a training or an evaluation; None without a cache.

        Args:
            training: Whether objectives learn to predict the encoder's cameras.
        """
        if not isinstance(self.geometry, CachedGeometry):
            return None
        plan = self.camera_plan
        return GeometryReader(
            self.geometry.entries,
            tokens=self.uses_geometry_tokens,
            predicted_cameras=plan.predicts_cameras or (bool(plan.pseudo_labels) and training),
            only_predicted=plan.source == "predicted",
            stills_once=self.stills_once,
        )

    @property
    def sequence_builder(self) -> SequenceBuilder:
        """Build sequences by these rules."""
        return SequenceBuilder(self.sequence_rules)

    @property
    def training_sequence_builder(self) -> SequenceBuilder:
        """Build the sequences of a training, which may have more extra tokens."""
        return SequenceBuilder(replace(self.sequence_rules, extra_tokens=self.training_tokens))

    @property
    def uses_geometry_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder; follows `fusion.active_branches`, which may change after training."""
        return self.fusion is not None and self.fusion.uses_geometry

    @property
    def stills_once(self) -> bool:
        """Whether the geometry encoder sees a still once, and not as two equal frames."""
        return self.fusion is not None and self.fusion.frames_per_token == 1

    @property
    def requirements(self) -> DataRequirements:
        """What this model needs of the data."""
        return DataRequirements.of(self)

    def is_unreachable(self, name: str) -> bool:
        """Whether no loss has a gradient for the parameter of this name: a branch or a head that is not used."""
        part, _, rest = name.partition(".")
        drops_2d = self.fusion is not None and self.fusion.active_branches == "3d"
        if part == "objectives":
            return self.objectives.is_unreachable(rest)
        if part == "geometry" and self.geometry is not None:
            return self.geometry.is_unreachable(
                rest, tokens=self.uses_geometry_tokens, cameras=self.camera_plan.predicts_cameras
            )
        if part == "fusion" and self.fusion is not None:
            return rest.partition(".")[0] in self.fusion.unused_parts
        if part == "backbone" and self.fusion is not None and self.backbone.serves_deepstack(name):
            return not self.fusion.keeps_deepstack
        return drops_2d and (part == "view_mixer" or (part == "backbone" and self.part_of(name) != "decoder"))
