"""SpatialVLM: one plain PyTorch model that every model of the zoo is a choice of parts for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.backbones import BackboneLoader, default_loader, released_parts
from zoo.backbones.lora import LoRA
from zoo.cameras.scene_geometry import MergedCamera, SceneGeometry
from zoo.configuration import Configurable
from zoo.encodings import CameraEncoding, ViewMixer
from zoo.encodings.per_view import PackedEncoding
from zoo.errors import InputError, check_choice
from zoo.fusions import Fusion
from zoo.generation import answer_batch, answer_prompts, check_penalty, eval_mode
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.cache import CachedGeometry, GeometryCache, GeometryReader, build_first_available
from zoo.media import Media, batch_of_media, prompts_of_media
from zoo.model_spec import CameraPlan, CameraSource, ModelSpec, check_geometry, choose_time_index
from zoo.objectives import Objective
from zoo.objectives.base import (
    AVERAGES,
    AverageRule,
    Decoded,
    append_view_token,
    decode,
    end_token,
    objectives_by_name,
    resolve_extra_tokens,
    weighted_losses,
)
from zoo.scene_encoding import (
    EncodedScene,
    add_cameras,
    encode_geometry,
    encode_vision,
    fuse_scenes,
    sequence_cameras,
)
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import TeacherTargets
from zoo.sequences.position_ids import TextAfterVision
from zoo.sequences.time_index import TimeIndex
from zoo.weights.load import leave_unread
from zoo.weights.saved_models import load_model, save_model


class SpatialVLM(Configurable, nn.Module):
    """A video-language model whose visual tokens may be fused with 3D tokens and may know their cameras.

    Training, evaluation, notebooks and `logits` share one path: a `Batch`, made on the CPU by `sequence_builder`, then
    `encode_scenes`, `decoder_inputs`, and the backbone's `decode`. Setting a part to None leaves that component of the
    original model unchanged, bit for bit.

    Args:
        backbone: The video-language model; a tiny random Qwen2.5-VL if not given.
        geometry: Builds the encoder of 3D tokens and cameras; called only if a fusion or `camera_source` asks for it,
            and only if the backbone was not released with its own.
        geometry_cache: Keeps the outputs of a frozen geometry encoder on disk; null computes them each time.
        fusion: Builds the fusion of 2D and 3D tokens from the decoder's width and the geometry's; null uses the 2D
            tokens alone.
        view_mixer: Builds the branch that adds camera information to the 2D tokens before the fusion
            (`ViewAttention`, `RayEmbedding`); without effect before training.
        camera_encoding: Camera encoding in the decoder's attention; null is the stock attention.
        camera_source: Whose cameras the encoding and the view mixer get: those of the `dataset`; those `predicted` by
            the geometry encoder, usually in a unit of its own; or `auto`, the dataset's where a scene has some, else
            predicted ones if the encoder predicts cameras. Objectives learn to predict the same ones, and with
            `predicted` the encoder's depth. Without effect in a model that uses no cameras.
        merged_camera: The camera of two frames that are merged into one token.
        time_index: The time component of mRoPE's position ids; null is the backbone's own.
        text_after_vision: The position of the text after a video: behind its highest position on any axis (`max_thw`,
            transformers 4.51, with which the released checkpoints were trained), or max(h, w) behind its start
            (`max_hw`, transformers 5).
        lora: Low-rank adapters on the decoder.
        objectives: The losses of a training; `LanguageModeling`, the default, is added to them if it is not listed.
        average: What a loss is a mean over: the `questions` of an optimizer step, equal for any number of processes
            and micro-batches; or the `micro_batch_tokens` of each process, as the published scripts train.
        defer_weights: Leaves released weights of backbone and geometry unread, until `read_weights` of
            `zoo.weights.load` reads them; a task does so when its run starts.

    Attributes:
        objectives: The losses of a training by class name, in an `nn.ModuleDict`.
        camera_plan: What the camera parts read, and whose cameras and depth they get.
        extra_tokens: The tokens that follow the 2D tokens of each view.
        training_tokens: The same, in training.
        is_pretrained: Whether the model answers questions without training here.
        loaded_names: Tensors of a saved model or a checkpoint, or trained: not the released files'.
        data_config: How the data of the training were read, see `SpatialVLM.answer`.
        trust_modules: Modules that it may import, see `SpatialVLM.from_pretrained`.
        precision: Of the training and of answers, as `--trainer.precision`; None is that of the device, see
            `answer_precision`.

    Raises:
        InputError: Parts that do not fit together.

    Example:
        >>> SpatialVLM().model_spec().requires_cameras
        False
    """

    not_configuration = frozenset({"defer_weights"})
    objectives: Mapping[str, Objective]

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
        named = objectives_by_name(objectives)
        # 1. Backbone, with the camera hooks in its attention.
        with leave_unread(defer_weights):
            self.backbone = self.loader.load()
        self.time_index = choose_time_index(camera_encoding, time_index, self.backbone.default_time_index())
        self.backbone.install_encoding(camera_encoding)
        # 2. Geometry, if some part reads it.
        uses_cameras = view_mixer is not None or camera_encoding is not None or self.time_index.requires_cameras
        learned = dict.fromkeys(target for each in named.values() if each.weight for target in each.targets)
        plan = CameraPlan(camera_source, uses_cameras, tuple(learned))
        asks = fusion is not None or plan.asks_encoder
        self.geometry = self._build_geometry(geometry, geometry_cache, defer_weights) if asks else None
        uses_any = uses_cameras or bool(plan.targets)
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
        parts = (camera_encoding, self.view_mixer)
        self.camera_plan = CameraPlan.of(camera_source, plan.targets, parts, self.time_index, self.geometry)
        self._enable_heads()
        # 5. Weights. An untrained fusion makes the whole model untrained.
        self.has_released_fusion = self.fusion is not None and self.loader.load_fusion(self.fusion)
        is_fused = self.fusion is None or self.has_released_fusion
        has_new_token = any(each.has_token(training=False) for each in named.values())
        self.is_pretrained = self.loader.is_pretrained and is_fused and not has_new_token
        if lora is not None:
            lora.apply(self.backbone.decoder, self.backbone.lora_targets)
            self.backbone.lm_head.requires_grad_(False)
        # 6. Objectives, in float32.
        appended = ExtraTokens.NONE if self.fusion is None else self.fusion.appended
        self.training_tokens = resolve_extra_tokens(named.values(), appended, training=True)
        self.extra_tokens = resolve_extra_tokens(named.values(), appended, training=False)
        camera_parts = [part for part in (camera_encoding, self.view_mixer) if part is not None]
        for objective in named.values():
            objective.check_camera_parts(camera_parts)
            objective.bind(width, num_layers)
        self.objectives = nn.ModuleDict(named).to(self.backbone.device)  # type: ignore[assignment]
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
            with leave_unread(defer_weights):
                encoder = first()
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

    @property
    def active_objectives(self) -> list[Objective]:
        """The objectives with a weight."""
        return [objective for objective in self.objectives.values() if objective.weight]

    # ---- the step ---------------------------------------------------------------------------------------------------

    def forward(
        self, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the losses of a training step.

        On a GPU the host waits for nothing here. There are two exceptions, which check numbers that they compute: a
        geometry encoder with random weights that is trained, and a source of metric scale.

        Args:
            batch: With sequences, on the model's device.
            teacher_targets: Of each scene, for objectives that learn from a teacher; None without one.

        Returns:
            The weighted sum of the objectives as `loss`, and each by its class name; means over this batch, see
            `Batch.weight`.
        """
        assert batch.sequences is not None
        # 1. Scenes, once each.
        scenes = self.encode_scenes(batch, teacher_targets)
        # 2. Sequences through the decoder.
        decoded = self.decode(scenes, batch.sequences)
        # 3. Objectives.
        losses = weighted_losses(self.active_objectives, decoded)
        return {**losses, "loss": losses["loss"] + self.zero_of_unused()}

    def zero_of_unused(self) -> Float[Tensor, ""] | int:
        """Return 0 with a gradient of zero for the parameters of parts that not every batch uses.

        A batch without cameras, or with the dataset's, does not use what reads or predicts them: so all DDP processes
        reduce the same parameters.
        """
        parts = [self.camera_encoding, self.view_mixer, self.geometry, *self.objectives.values()]
        all_parameters = [parameter for part in parts if part is not None for parameter in part.parameters()]
        # Sharded ones are of blocks that every batch uses.
        return sum(0.0 * p.sum() for p in all_parameters if p.requires_grad and not isinstance(p, DTensor))

    def encode_scenes(
        self, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None = None
    ) -> list[EncodedScene]:
        """Encode each scene of a batch once: vision, geometry, cameras, view mixing, fusion.

        Args:
            batch: On the model's device.
            teacher_targets: See `forward`.

        Raises:
            InputError: A scene without the frames, the cameras or the depth that this model requires.
        """
        # 1. Vision: patches to 2D tokens.
        encoded = encode_vision(self.backbone, batch)
        # 2. Geometry: 3D tokens, and cameras of the scenes that need predicted ones.
        needs = [self.camera_plan.needs_prediction(scene, training=self.training) for scene in batch.scenes]
        geometry = encode_geometry(
            self.geometry,
            batch.scenes,
            self.backbone.patch_size,
            tokens=self.uses_geometry_tokens,
            cameras=any(needs),
            stills_once=self.stills_once,
        )
        # 3. Cameras per temporal patch, and what objectives learn to predict.
        taught = teacher_targets or [None] * len(encoded)
        encoded = [
            add_cameras(
                replace(each, teacher_targets=teacher),
                own if need else None,
                self.camera_plan,
                self.merged_camera,
                training=self.training,
            )
            for each, own, need, teacher in zip(encoded, geometry, needs, taught, strict=True)
        ]
        # 4. View mixing and fusion; objectives may change the 2D tokens before, and append a token behind.
        if self.training:
            for objective in self.active_objectives:
                changed = objective.change_tokens([each.visual for each in encoded], batch.scenes)
                encoded = [replace(each, visual=visual) for each, visual in zip(encoded, changed, strict=True)]
        every = self.objectives.values()
        return [
            replace(
                each,
                visual=append_view_token(every, each.visual, training=self.training),
                end_token=end_token(every, each.scene, training=self.training),
            )
            for each in fuse_scenes(encoded, geometry, self.fusion, self.view_mixer)
        ]

    def decoder_inputs(self, scenes: Sequence[EncodedScene], sequences: Sequences) -> dict[str, Any]:
        """Place encoded scenes in sequences.

        Args:
            scenes: From `encode_scenes`.
            sequences: About them, on the same device.

        Returns:
            The inputs of `Backbone.decode`.
        """
        rows, packing = [[scenes[i] for i in row] for row in sequences.scene_index], sequences.packing
        # 1. Cameras: one per temporal patch of each sequence, and the camera of each token.
        cameras = sequence_cameras(rows, sequences) if self.camera_plan.uses_cameras else None
        # 2. Positions: known, but for a pose index on predicted cameras.
        position_ids = sequences.position_ids
        if position_ids is None:
            assert cameras is not None and sequences.deferred_positions is not None
            position_ids = sequences.deferred_positions.compute(cameras.world_to_camera, cameras.used_mask())
        # 3. The camera encoding, shared by all layers.
        inputs: dict[str, Any] = {}
        if self.camera_encoding is not None and cameras is not None:
            points = [scene.token_points() for scene in scenes] if self.camera_plan.uses_points else []
            located = cameras.with_tokens(
                sequences.patch_centers(),
                sequences.scatter_points(torch.cat(points)) if points else None,
                position_ids[0],
                sequences.patch_sizes(),
            )
            encoded = self.backbone.encode_cameras(self.camera_encoding, located)
            inputs["camera_encoding"] = encoded if packing is None else PackedEncoding(encoded, packing)
        # 4. Visual tokens in place of the placeholders, and what is added to them in the first layers.
        input_ids = sequences.input_ids if packing is None else packing.pack(sequences.input_ids)
        embeddings = self.backbone.embed(input_ids)
        if any(rows):
            places, sources = sequences.decoder_places, sequences.visual_sources
            visual = [scene.in_sequence() for scene in scenes]
            tokens = torch.cat([each.tokens for each in visual])[sources]
            flat = embeddings.flatten(0, 1).index_copy(0, places, tokens.to(embeddings.dtype))
            embeddings = flat.view_as(embeddings)
            features = torch.cat([each.deepstack for each in visual], 1)
            if len(features):
                inputs |= self.backbone.deepstack_inputs(places, features[:, sources])
        # 5. Masks: causal attention alone, or the questions of a scene and the scenes of a sequence apart.
        mask: Any = sequences.padding_mask
        if packing is not None:
            position_ids = torch.stack([packing.pack(axis) for axis in position_ids])
            mask = self.backbone.question_mask(packing.group, packing.group, packing.prefix_group)
        elif sequences.group is not None:
            mask = self.backbone.training_mask(sequences)
        return {**inputs, "inputs_embeds": embeddings, "position_ids": position_ids, "attention_mask": mask}

    def decode(self, scenes: Sequence[EncodedScene], sequences: Sequences) -> Decoded:
        """Run the decoder on sequences, and keep the hidden states that objectives read.

        Args:
            scenes: From `encode_scenes`.
            sequences: About them, on the same device.
        """
        layers = dict.fromkeys(layer for each in self.active_objectives for layer in each.layers)
        inputs = self.decoder_inputs(scenes, sequences)
        return decode(self.backbone, list(layers), inputs, scenes, sequences, AVERAGES[self.average])

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

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        """Return what the model needs from the data, in a training or an evaluation."""
        plan, backbone, geometry = self.camera_plan, self.backbone, self.geometry
        labels = set(plan.pseudo_labels)
        # 1. What the geometry encoder shows the decoder, and what objectives learn from it.
        fused = geometry if self.uses_geometry_tokens else None
        encoder = geometry if plan.predicts_cameras else fused
        shown = geometry if plan.pseudo_labels else encoder  # the frames, in training at least
        # 2. Lengths in a unit of its own.
        learns_lengths = any(each.uses_lengths and labels.intersection(each.targets) for each in self.active_objectives)
        lengths = (plan.predicts_cameras and plan.uses_lengths) or learns_lengths
        has_own_unit = bool(lengths and geometry and not geometry.is_metric)
        has_own_unit = has_own_unit or bool(fused and not fused.has_metric_tokens)
        # 3. What is learned from the dataset.
        required_targets = {target for target in plan.targets if target not in labels}
        types = dict.fromkeys(kind for each in self.objectives.values() for kind in each.question_types)
        if plan.pseudo_labels and geometry is not None and geometry.requires_cameras:
            required_targets.add("cameras")
        # 4. What data workers read of cached geometry.
        reader = None
        if isinstance(geometry, CachedGeometry):
            reader = GeometryReader(
                geometry.cache,
                geometry.keys,
                tokens=self.uses_geometry_tokens,
                predicted_cameras=plan.predicts_cameras or (bool(plan.pseudo_labels) and training),
                only_predicted=plan.source == "predicted",
                stills_once=self.stills_once,
                is_resampled=geometry.is_resampled,
            )
        return ModelSpec(
            preprocessor=getattr(backbone, "preprocessor", None),  # a model of tensors has no tokenizer
            token_px=backbone.patch_size * backbone.spatial_merge_size,
            image_pixels=backbone.image_pixels,
            requires_frames=bool(shown and shown.requires_frames),
            own_frames=bool(shown and not shown.meta_encoder.takes_vision_patches),
            requires_frame_times=backbone.span_per_step,
            seconds=self.time_index.seconds,
            vision=backbone.vision_rules,
            requires_cameras=(plan.uses_cameras and not plan.predicts_cameras)
            or bool(encoder and encoder.requires_cameras),
            requires_depth=(plan.uses_depth and plan.source != "predicted") or bool(fused and fused.requires_depth),
            merged_camera=self.merged_camera,
            uses_cameras=plan.uses_cameras,
            may_predict_cameras=plan.predicts_cameras,
            only_predicted_cameras=plan.predicts_cameras and plan.source == "predicted",
            geometry_reader=reader,
            arbitrary_unit=self.geometry_name if has_own_unit else None,
            targets=plan.targets,
            required_targets=tuple(sorted(required_targets)),
            placeholders=backbone.placeholders,
            extra_tokens=self.training_tokens if training else self.extra_tokens,
            time_index=self.time_index,
            tokens_per_second=backbone.tokens_per_second,
            text_after_vision=self.text_after_vision,
            context_length=backbone.context_length,
            packs_questions=backbone.packs_questions,
            is_hybrid=backbone.is_hybrid,
            question_types=tuple(types),
        )

    @property
    def sequence_builder(self) -> SequenceBuilder:
        """Build the sequences of an evaluation."""
        return SequenceBuilder(self.model_spec())

    @property
    def uses_geometry_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder; follows `fusion.active_branches`, which may change after training."""
        return self.fusion is not None and self.fusion.uses_geometry

    @property
    def stills_once(self) -> bool:
        """Whether the geometry encoder sees a still once, and not as two equal frames."""
        return self.fusion is not None and self.fusion.frames_per_token == 1

    def is_unreachable(self, name: str) -> bool:
        """Whether no loss has a gradient for the parameter of this name: a branch or a head that is not used."""
        part, _, rest = name.partition(".")
        drops_2d = self.fusion is not None and self.fusion.active_branches == "3d"
        if part == "objectives":
            objective, _, parameter = rest.partition(".")
            return parameter != "token" and not self.objectives[objective].weight
        if part == "geometry" and self.geometry is not None:
            return self.geometry.is_unreachable(
                rest, tokens=self.uses_geometry_tokens, cameras=self.camera_plan.predicts_cameras
            )
        if part == "fusion" and self.fusion is not None:
            return rest.partition(".")[0] in self.fusion.unused_parts
        if part == "backbone" and self.fusion is not None and self.backbone.serves_deepstack(name):
            return not self.fusion.keeps_deepstack
        return drops_2d and (part == "view_mixer" or (part == "backbone" and self.part_of(name) != "decoder"))

    # ---- raw sequences ----------------------------------------------------------------------------------------------

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], **media: Unpack[Media]
    ) -> Float[Tensor, "B L vocabulary"]:
        """Compute the logits of whole sequences; see `Media` for the other arguments."""
        batch = batch_of_media(self.sequence_builder, input_ids, attention_mask, media).to(self.backbone.device)
        assert batch.sequences is not None
        inputs = self.decoder_inputs(self.encode_scenes(batch), batch.sequences)
        return self.backbone.lm_head(self.backbone.decode(inputs).last_hidden_state)

    def generate_ids(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        max_new_tokens: int,
        **media: Unpack[Media],
    ) -> list[list[int]]:
        """Answer padded sequences greedily: new tokens only, up to a stop token (included); without autocast."""
        batch = prompts_of_media(self.sequence_builder, input_ids, attention_mask, media).to(self.backbone.device)
        replies = answer_prompts(self, self.encode_scenes(batch), batch.prompts, max_new_tokens)
        for reply in replies:
            if reply.error is not None:
                raise InputError(reply.error)
        return [reply.ids for reply in replies]

    # ---- saved models -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, *, trust_modules: Collection[str] = (), **overrides: Any) -> SpatialVLM:
        """A model from a run, an exported folder, a released folder, or a hub id; frozen, in eval mode.

        Args:
            path: `runs/<name>`, a folder of `save_pretrained`, a released Qwen-VL or Spatial-MLLM, or a hub id.
            trust_modules: Modules beside the zoo's that its configuration may import, such as `["my_encoding"]`.
            overrides: Constructor arguments in place of the stored ones, such as `camera_source="auto"`.

        Raises:
            InputError: Nothing can be loaded from there; naming the remedy.
        """
        return load_model(cls, path, overrides, released_parts, trust_modules)

    def save_pretrained(self, folder: str | Path, *, full: bool = False) -> None:
        """Write a folder for `from_pretrained`: the parts' configuration, weights, tokenizer files and a model card.

        Trained weights, and weights that no file restores, are written as safetensors; frozen released ones are named
        by path or hub id, with a fingerprint.

        Args:
            folder: A new or empty folder.
            full: Copy the frozen released weights too.

        Raises:
            InputError: The folder is not empty, or a part was built from a function instead of a class.
        """
        save_model(self, Path(folder), full, name=Path(folder).name)

    def push_to_hub(self, repo_id: str, *, full: bool = False, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; return the address."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            save_model(self, folder, full, name=repo_id)
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    @torch.no_grad()
    def answer(
        self,
        video: str | Path | Tensor,
        questions: str | Sequence[str],
        *,
        cameras: str | Path | SceneGeometry | None = None,
        num_frames: int | None = None,
        sampler: Any = None,
        max_new_tokens: int = 32,
        times_s: Sequence[float] | None = None,
        repetition_penalty: float = 1.0,
    ) -> Any:
        """Greedy answers to one or several questions about a video, which is encoded once; in eval mode.

        Args:
            video: A video file, a folder of frames, or frames (T, 3, H, W) as bytes or in 0..1.
            questions: One question, or several.
            cameras: A cameras.json with one camera per raw frame; None takes the one beside the video, if any. For
                frames in memory a `SceneGeometry` with the camera of each, and the depth for a model that reads it.
            num_frames: Frames to sample; None takes the number that the model was trained with. Frames in memory are
                all shown, paired and resized like those of a video file.
            sampler: A `FrameSampler`; None takes that of the model's run.
            max_new_tokens: The longest answer.
            times_s: Seconds of each of the frames in memory, for a model that reads them.
            repetition_penalty: See `VideoQATask`.

        Returns:
            One text for one question, a list for several.

        Raises:
            FileNotFoundError: There is no such video.
            InputError: It can't be read, or lacks the cameras or depth that this model requires.
        """
        check_penalty(repetition_penalty)
        from datamodules.inference import batch_of_questions  # the application layer, at call time only

        asked = [questions] if isinstance(questions, str) else list(questions)
        batch = batch_of_questions(self, video, asked, cameras, num_frames, sampler, times_s)
        with eval_mode(self):
            replies = answer_batch(self, batch, max_new_tokens, repetition_penalty)
        for reply in replies:
            if reply.error is not None:
                raise InputError(reply.error)
        texts = self.backbone.preprocessor.decode([reply.ids for reply in replies])
        return texts[0] if isinstance(questions, str) else texts
