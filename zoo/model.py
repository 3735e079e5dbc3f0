"""SpatialVLM: the PyTorch model that all models of the zoo are instances of, with different parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.backbones import BackboneLoader, default_loader, released_parts
from zoo.backbones.base import Preprocessor
from zoo.backbones.lora import LoRA
from zoo.backbones.output_gate import OutputGate
from zoo.cameras.scene_geometry import MergedCamera, SceneGeometry
from zoo.configuration import Configurable
from zoo.encodings import CameraEncoding, ViewMixer
from zoo.encodings.per_view import PackedEncoding
from zoo.errors import InputError, check_choice
from zoo.faulty_kernels import avoid_faulty_cudnn
from zoo.fusions.base import Fusion
from zoo.generation import Reply, answer_batch, answer_prompts, check_penalty, eval_mode
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.cache import CachedGeometry, GeometryCache, GeometryReader, build_first_available
from zoo.model_spec import (
    CameraPlan,
    CameraSource,
    ModelSpec,
    asks_encoder,
    check_geometry,
    check_tokens,
    choose_time_index,
)
from zoo.objectives.base import (
    AVERAGES,
    AverageRule,
    Decoded,
    Objective,
    append_view_token,
    end_token,
    join_target_views,
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
    interactions_of,
    override_tokens,
    sequence_cameras,
)
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, Media, Sequences
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import FrameRules, TeacherTargets
from zoo.sequences.position_ids import TextAfterVision
from zoo.sequences.time_index import TimeIndex
from zoo.weights.load import builds_shapes_only, leave_unread, read_weights, whole
from zoo.weights.saved_models import load_model, save_model

# Parts whose small parameters are logged. A small parameter has up to FEW numbers, the weight or bias of a layer up to
# FEWEST.
ENCODING_PARTS = ("camera_encoding", "view_mixer", "fusion")
FEW, FEWEST = 64, 4


@lru_cache(maxsize=4096)  # a fourth of the time of scoring 360 numbers by a tiny model
def _answer_ids(preprocessor: Preprocessor, text: str) -> list[int]:
    """Return the tokens of an answer without a stop token."""
    ids: list[int] = preprocessor.tokenize([text], (), ExtraTokens.NONE).input_ids.tolist()
    return ids


class SpatialVLM(Configurable, nn.Module):
    """A video-language model whose visual tokens can be fused with 3D tokens and can carry camera information.

    Training, evaluation, notebooks and `logits` share one path. `sequence_builder` makes a `Batch` on the CPU; then
    `encode_scenes`, `decoder_inputs` and the backbone's `decode` run. Setting a part to None leaves it as in the
    original model, bit for bit.

    Args:
        backbone: The video-language model. The default is a tiny, randomly initialized Qwen2.5-VL.
        geometry: Builds the encoder that computes 3D tokens and cameras. It is called only if a fusion or
            `camera_source` needs it, and only if the backbone was not released with its own geometry encoder.
        geometry_cache: Stores the outputs of a frozen geometry encoder on disk. null computes them each time.
        fusion: Builds the fusion of 2D and 3D tokens from the widths of the decoder and of the geometry encoder. null
            uses the 2D tokens alone.
        view_mixer: Builds the branch that adds camera information to the 2D tokens before the fusion (`ViewAttention`,
            `RayEmbedding`, `PoseEmbedding`). It has no effect before training.
        camera_encoding: Camera encoding in the decoder's attention. null keeps the original attention.
        camera_source: Which cameras the encoding and the view mixer use. `dataset`: the dataset's cameras. `predicted`:
            the geometry encoder's predictions, usually in a unit of their own. `auto`: the dataset's cameras where a
            scene has them, otherwise predictions if the encoder makes them. Objectives learn to predict the same
            cameras, and with `predicted` also the encoder's depth. The option has no effect if no part uses
            cameras.
        merged_camera: The camera of a token that merges two frames.
        time_index: The time component of mRoPE's position ids. null is the backbone's own.
        text_after_vision: The position of the text after a video. `max_thw`: after the highest position on any axis, as
            in transformers 4.51, with which the released checkpoints were trained. `max_hw`: max(h, w) after the
            video's start, as in transformers 5.
        lora: Low-rank adapters on the decoder.
        output_gate: A gate on the output of each attention of the decoder. null keeps the original attention.
        objectives: The training losses. `LanguageModeling` is added if it is not listed.
        average: What a loss is averaged over. `questions`: the questions of an optimizer step, so that the number of
            processes and micro-batches makes no difference. `micro_batch_tokens`: the tokens of each process's
            micro-batch, as the published scripts train.
        defer_weights: Do not read the released weights of backbone and geometry encoder before `read_weights` of
            `zoo.weights.load` is called. A task calls it when its run starts.

    Attributes:
        objectives: The training losses by class name, in an `nn.ModuleDict`.
        camera_plan: What the parts that use cameras read, and where cameras and depth come from.
        extra_tokens: The tokens after the 2D tokens of each row and view, and after the last view of a video.
        training_tokens: The same during training.
        is_pretrained: Whether the model can answer questions without being trained here.
        loaded_names: Names of tensors that were trained or were read from a saved model or a checkpoint, not from
            released files.
        data_config: How the training data were read, see `SpatialVLM.answer`.
        trust_modules: Modules that the model may import, see `SpatialVLM.from_pretrained`.
        precision: Precision of training and answering, with the values of `--trainer.precision`. None uses the device's
            default, see `answer_precision`.

    Raises:
        InputError: The parts do not fit together.

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
        output_gate: OutputGate | None = None,
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
        avoid_faulty_cudnn()
        self.loader = backbone or default_loader()
        self.camera_encoding, self.merged_camera = camera_encoding, merged_camera
        self.text_after_vision, self.average = text_after_vision, average
        named = objectives_by_name(objectives)
        # 1. Backbone, with the camera hooks in its attention. Weights are quantized when they are read.
        is_quantized = lora is not None and lora.quantization is not None
        with leave_unread(defer_weights or is_quantized):
            self.backbone = self.loader.load()
        self.time_index = choose_time_index(camera_encoding, time_index, self.backbone.default_time_index())
        self.backbone.install_encoding(camera_encoding)
        # 2. Geometry encoder, if some part reads its output.
        uses_cameras = view_mixer is not None or camera_encoding is not None or self.time_index.requires_cameras
        targets = tuple(dict.fromkeys(target for each in named.values() if each.weight for target in each.targets))
        asks = fusion is not None or asks_encoder(camera_source, targets, uses_cameras=uses_cameras)
        self.geometry = self._build_geometry(geometry, geometry_cache, defer_weights) if asks else None
        uses_any = uses_cameras or bool(targets)
        check_geometry(self.geometry, camera_source, uses_cameras=uses_any, uses_tokens=fusion is not None)
        # 3. Fusion and view mixer, in the backbone's dtype.
        width, num_layers = self.backbone.hidden_size, self.backbone.decoder_layout.num_layers
        self.fusion: Fusion | None = None
        if fusion is not None and self.geometry is not None:
            self.fusion = fusion(width, self.geometry.width)
            check_tokens(self.fusion, self.geometry)
            self.loader.fit_fusion(self.fusion)
            self.fusion.bind(self.geometry.num_layers, self.backbone.decoder_layout)
            self.fusion = self._like_backbone(self.fusion)
        flat_width = width if self.fusion is None else self.fusion.flat_width
        self.view_mixer: ViewMixer | None = None if view_mixer is None else self._like_backbone(view_mixer(flat_width))
        # 4. Cameras and depth that the parts need.
        parts = (camera_encoding, self.view_mixer)
        self.camera_plan = CameraPlan.of(camera_source, targets, parts, self.time_index, self.geometry)
        self._enable_heads()
        beneath = self.camera_plan.uses_points or "depth" in targets
        if beneath and self.fusion is not None and (beyond := self.fusion.compress_beyond) is not None:
            raise InputError(
                f"--model.fusion.compress_beyond {beyond}: an encoding or an objective reads the depth under each "
                "token, which compressed tokens do not have: set it to null"
            )
        # 5. Weights. An untrained fusion makes the whole model untrained.
        self.has_released_fusion = self.fusion is not None and self.loader.load_fusion(self.fusion)
        is_fused = self.fusion is None or self.has_released_fusion
        if lora is not None:
            lora.apply(self.backbone.decoder, self.backbone.lora_targets)
            self.backbone.lm_head.requires_grad_(False)
        self.output_gate: OutputGate | None = None
        if output_gate is not None:
            output_gate.install(self.backbone.decoder)
            self.output_gate = self._like_backbone(output_gate)
        if is_quantized and not defer_weights and not builds_shapes_only():
            read_weights(self.backbone)
        # 6. Objectives, in float32.
        appended = ExtraTokens.NONE if self.fusion is None else self.fusion.appended
        self.training_tokens, self.extra_tokens = (
            replace(
                resolve_extra_tokens(named.values(), appended, training=training),
                per_row=int(self.backbone.row_token is not None),
            )
            for training in (True, False)
        )
        if join_target_views(named.values()) is not None and camera_source == "predicted":
            raise InputError(
                "--model.camera_source predicted: target views need cameras of frames that the geometry encoder does "
                "not see: take dataset or auto"
            )
        camera_parts = [part for part in (camera_encoding, self.view_mixer) if part is not None]
        for objective in named.values():
            objective.check_camera_parts(camera_parts)
            objective.bind(width, num_layers)
        new = [each for each in named.values() if not self.loader.load_objective(each)]
        has_new_part = any(each.is_part_of_answers for each in new)
        self.is_pretrained = self.loader.is_whole and is_fused and not has_new_part
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
        """The class of the geometry encoder, including one behind a cache. None without one."""
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

        On a GPU the host does not wait here, with two exceptions that check computed values: training a geometry
        encoder with random weights, and a source of metric scale.

        Args:
            batch: A batch with sequences, on the model's device.
            teacher_targets: One entry per scene, for objectives that learn from a teacher. None without a teacher.

        Returns:
            Each objective's loss by class name, and the weighted sum as `loss`. They are means over this batch, see
            `Batch.weight`.
        """
        assert batch.sequences is not None
        # 1. Encode each scene once.
        scenes = self.encode_scenes(batch, teacher_targets)
        # 2. Decode the sequences.
        decoded = self.hidden_states(scenes, batch.sequences)
        # 3. Compute the losses.
        losses = weighted_losses(self.active_objectives, decoded)
        return {**losses, "loss": losses["loss"] + self.zero_of_unused()}

    def zero_of_unused(self) -> Float[Tensor, ""] | int:
        """Return 0, with zero-valued gradients for parts that some batches do not use.

        A batch without cameras does not use the parts that read them, and a batch with the dataset's cameras does
        not use the ones that predict them. The zero-valued gradients let DDP reduce the same parameters on every
        process.
        """
        parts = [self.camera_encoding, self.view_mixer, self.geometry, *self.objectives.values()]
        all_parameters = [parameter for part in parts if part is not None for parameter in part.parameters()]
        # Sharded parameters belong to blocks that every batch uses.
        return sum(0.0 * p.sum() for p in all_parameters if p.requires_grad and not isinstance(p, DTensor))

    def encode_scenes(
        self, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None = None
    ) -> list[EncodedScene]:
        """Encode each scene of a batch once: vision, geometry, cameras, view mixing, fusion.

        Args:
            batch: A batch on the model's device.
            teacher_targets: See `forward`.

        Raises:
            InputError: A scene lacks the frames, cameras or depth that this model requires.
        """
        # 1. Vision: patches to 2D tokens.
        encoded = encode_vision(self.backbone, batch)
        # 2. Geometry: 3D tokens, and predicted cameras for the scenes that need them.
        needs = [self.camera_plan.needs_prediction(scene, training=self.training) for scene in batch.scenes]
        rules, tokens = self.frame_rules, self.uses_geometry_tokens
        geometry = encode_geometry(self.geometry, batch.scenes, rules, tokens=tokens, cameras=any(needs))
        if tokens:  # which a perturbed test may exchange
            geometry = override_tokens(geometry, batch.scenes, self.geometry, rules)
        # 3. Cameras per temporal patch, and the targets of objectives.
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
        # 4. View mixing and fusion. Objectives may change the 2D tokens before and append a token afterwards.
        for objective in self.active_objectives:
            if self.training or objective.changes_answers:
                changed = objective.change_tokens([each.visual for each in encoded], batch.scenes)
                encoded = [replace(each, visual=visual) for each, visual in zip(encoded, changed, strict=True)]
        every = self.objectives.values()
        return [
            replace(
                each,
                visual=append_view_token(every, each.visual, training=self.training),
                row_token=self.backbone.row_token,
                end_token=end_token(every, each.scene, training=self.training),
            )
            for each in fuse_scenes(encoded, geometry, self.fusion, self.view_mixer)
        ]

    def decoder_inputs(self, scenes: Sequence[EncodedScene], sequences: Sequences) -> dict[str, Any]:
        """Insert encoded scenes, from `encode_scenes`, into the sequences about them.

        Returns:
            The inputs of `Backbone.decode`.
        """
        rows, packing = [[scenes[i] for i in row] for row in sequences.scene_index], sequences.packing
        # 1. Cameras: one per temporal patch of each sequence, and the camera of each token.
        cameras = sequence_cameras(rows, sequences) if self.camera_plan.uses_cameras else None
        # 2. Positions. They are known in advance, except for a pose index on predicted cameras.
        position_ids = sequences.position_ids
        if position_ids is None:
            assert cameras is not None and sequences.deferred_positions is not None
            position_ids = sequences.deferred_positions.compute(cameras.world_to_camera, cameras.used_mask())
        # 3. Camera encoding, computed once for all layers.
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
        # 4. Visual tokens replace the placeholders. Features are added in the first layers, and fusions act in layers.
        input_ids = sequences.input_ids if packing is None else packing.pack(sequences.input_ids)
        embeddings = self.backbone.embed(input_ids)
        if any(rows):
            places, sources = sequences.in_decoder(sequences.visual_places), sequences.visual_sources
            visual = [scene.in_sequence() for scene in scenes]
            tokens = torch.cat([each.tokens for each in visual])[sources]
            flat = embeddings.flatten(0, 1).index_copy(0, places, tokens.to(embeddings.dtype))
            embeddings = flat.view_as(embeddings)
            features = torch.cat([each.deepstack for each in visual], 1)
            if len(features):
                inputs |= self.backbone.deepstack_inputs(places, features[:, sources])
            if self.fusion is not None and (found := interactions_of(self.fusion, scenes, sequences)) is not None:
                inputs["interactions"] = found
        # 5. Masks: plain causal attention, or one that separates questions of a scene and scenes of a sequence.
        mask: Any = sequences.padding_mask
        if packing is not None:
            position_ids = torch.stack([packing.pack(axis) for axis in position_ids])
            mask = self.backbone.question_mask(packing.group, packing.group, packing.prefix_group)
        elif sequences.group is not None:
            mask = self.backbone.training_mask(sequences)
        return {**inputs, "inputs_embeds": embeddings, "position_ids": position_ids, "attention_mask": mask}

    def hidden_states(
        self, scenes: Sequence[EncodedScene], sequences: Sequences, layers: Iterable[int] | None = None
    ) -> Decoded:
        """Run the decoder on sequences about encoded scenes, and keep the outputs of some layers.

        Sequences that share a row of the decoder are taken apart again. None keeps the layers that objectives read.
        """
        inputs, packing = self.decoder_inputs(scenes, sequences), sequences.packing
        if layers is None:
            layers = dict.fromkeys(layer for each in self.active_objectives for layer in each.layers)
        with self.backbone.layer_outputs(layers) as kept:
            hidden = self.backbone.decode(inputs).last_hidden_state
        if packing is not None:
            hidden, kept = packing.unpack(hidden), {number: packing.unpack(output) for number, output in kept.items()}
        return Decoded(
            scenes,
            sequences,
            hidden,
            kept,
            self.backbone.lm_head,
            AVERAGES[self.average],
            inputs.get("camera_encoding"),
        )

    # ---- parameters -----------------------------------------------------------------------------------------------

    def part_of(self, name: str) -> str:
        """Return the field of `LearningRates` that applies to the parameter of this name."""
        part, _, rest = name.partition(".")
        if part == "backbone":
            return self.backbone.part_of(rest)
        if name.startswith("view_mixer.encoding."):  # an encoding's learned parameters, as in the decoder
            return "encoding"
        others = {
            "geometry": "geometry",
            "camera_encoding": "encoding",
            "output_gate": "encoding",
            "objectives": "objective",
        }
        return others.get(part, "connector")

    def small_parameters(self) -> dict[str, Tensor]:
        """Return trained strengths, gates, frequencies and scales of the parts by name, whole on every process.

        These are the parameters of the camera encoding, the view mixer and the fusion with at most 64 numbers, such as
        one per head. A `weight` or `bias` is seldom one of them, so at most 4 numbers count: the bias of a gate.
        """
        parts = nn.ModuleDict({name: part for name in ENCODING_PARTS if (part := getattr(self, name)) is not None})
        return {
            name: whole(parameter.detach())
            for name, parameter in parts.named_parameters()
            if parameter.requires_grad and parameter.numel() <= (FEWEST if name.endswith((".weight", ".bias")) else FEW)
        }

    def restored_by_files(self, name: str) -> bool:
        """Return whether released files can restore the tensor of this name while it is frozen."""
        if name in self.loaded_names:
            return False
        part = name.partition(".")[0]
        if part == "backbone":
            in_files = self.loader.released_path is not None and self.part_of(name) in self.loader.pretrained_parts
            return in_files and ".lora_" not in name
        if part == "geometry":
            return self.geometry is not None and bool(self.geometry.files)
        return part == "fusion" and self.has_released_fusion

    def sharded_units(self) -> dict[nn.Module, list[nn.Parameter]]:
        """Return the matrices that a sharded model gathers for each module's call.

        Only modules that every process calls equally often are included: a decoder layer, a fusion's interaction in it
        and a vision block, once per batch, and a frozen geometry encoder as a whole, because its blocks run once per
        shape of videos. Vectors are left out, because autocast keeps norms and scales in float32.
        """
        blocks: dict[nn.Module, list[nn.Module]] = {block: [block] for block in self.backbone.blocks()}
        encoder = self.geometry
        is_called = self.uses_geometry_tokens or self.camera_plan.source == "predicted"
        if self.uses_geometry_tokens and self.fusion is not None:
            blocks |= {each: [each] for each in self.fusion.interactions.values()}
        if encoder is not None and is_called and not any(p.requires_grad for p in encoder.parameters()):
            blocks[encoder] = encoder.blocks()
        every = {unit: [p for block in own for p in block.parameters() if p.ndim > 1] for unit, own in blocks.items()}
        return {unit: matrices for unit, matrices in every.items() if matrices}

    # ---- what the model needs from the data -------------------------------------------------------------------------

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        """Return what the model needs from the data, for training or evaluation."""
        plan, backbone, geometry = self.camera_plan, self.backbone, self.geometry
        labels = set(plan.pseudo_labels)
        told = () if geometry is None else geometry.given_fields.get("cameras", ())
        # 1. Uses of the geometry encoder: tokens or cameras for the decoder, pseudo-labels for objectives.
        fused = geometry if self.uses_geometry_tokens else None
        encoder = geometry if plan.predicts_cameras else fused
        shown = self._encoder_of_frames
        # 2. Whether the model reads lengths in an arbitrary unit.
        learns_lengths = any(each.uses_lengths and labels.intersection(each.targets) for each in self.active_objectives)
        lengths = (plan.predicts_cameras and plan.uses_lengths) or learns_lengths
        has_own_unit = bool(lengths and geometry and not geometry.is_metric)
        has_own_unit = has_own_unit or bool(fused and not fused.has_metric_tokens)
        # 3. Targets that the dataset must provide.
        required_targets = {target for target in plan.targets if target not in labels}
        types = dict.fromkeys(kind for each in self.objectives.values() for kind in each.question_types)
        if plan.pseudo_labels and geometry is not None and geometry.requires_cameras:
            required_targets.add("cameras")
        changes_answers = any(each.changes_answers for each in self.active_objectives)
        # 4. Cached geometry that data workers read.
        reader = None
        if isinstance(geometry, CachedGeometry):
            reader = GeometryReader(
                geometry.cache,
                geometry.keys,
                tokens=self.uses_geometry_tokens,
                predicted_cameras=plan.predicts_cameras or (bool(plan.pseudo_labels) and training),
                only_predicted=plan.source == "predicted",
                rules=self.frame_rules,
                is_resampled=geometry.is_resampled,
            )
        return ModelSpec(
            preprocessor=getattr(backbone, "preprocessor", None),  # a model built from tensors has no tokenizer
            frames=self.frame_rules,
            requires_frames=bool(shown and shown.requires_frames) or changes_answers,
            requires_posed_frames=changes_answers,
            requires_frame_times=backbone.span_per_step,
            seconds=self.time_index.seconds,
            vision=backbone.vision_rules,
            requires_cameras=(plan.uses_cameras and not plan.predicts_cameras)
            or bool(encoder and encoder.requires_cameras)
            or changes_answers,
            requires_depth=(plan.uses_depth and plan.source != "predicted") or bool(fused and fused.requires_depth),
            reads_depth=bool(shown and shown.reads_depth),
            merged_camera=self.merged_camera,
            uses_cameras=plan.uses_cameras,
            may_predict_cameras=plan.predicts_cameras,
            only_predicted_cameras=plan.predicts_cameras and plan.source == "predicted",
            geometry_reader=reader,
            arbitrary_unit=self.geometry_name if has_own_unit else None,
            targets=plan.targets,
            target_views=join_target_views(self.active_objectives),
            required_targets=tuple(sorted(required_targets)),
            has_posed_labels=plan.source == "predicted" and bool(labels) and "world_to_camera" in told,
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
        """Return the builder of evaluation sequences."""
        return SequenceBuilder(self.model_spec())

    @property
    def uses_geometry_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder. Follows `fusion.active_branches`, which may change after training."""
        return self.fusion is not None and self.fusion.uses_geometry

    @property
    def frame_rules(self) -> FrameRules:
        """How the model reads the frames of a scene."""
        fusion, shown = self.fusion, self._encoder_of_frames
        return FrameRules(
            patch_size=self.backbone.patch_size,
            image_pixels=self.backbone.image_pixels,
            compress_beyond=None if fusion is None else fusion.compress_beyond,
            stills_once=fusion is not None and fusion.frames_per_token == 1,
            whole_frames=fusion is not None and fusion.whole_frames,
            own_frames=bool(shown and not shown.meta_encoder.takes_vision_patches),
        )

    @property
    def _encoder_of_frames(self) -> GeometryEncoder | None:
        """The geometry encoder if it needs the frames, at least in training."""
        plan = self.camera_plan
        needs = self.uses_geometry_tokens or plan.predicts_cameras or plan.pseudo_labels
        return self.geometry if needs else None

    def is_unreachable(self, name: str) -> bool:
        """Return whether no loss has a gradient for this parameter, because its branch or head is unused."""
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
        if part == "backbone" and self.backbone.is_unused(rest):
            return True
        if part == "backbone" and self.fusion is not None and self.backbone.serves_deepstack(name):
            return not self.fusion.keeps_deepstack
        return drops_2d and (part == "view_mixer" or (part == "backbone" and self.part_of(name) != "decoder"))

    # ---- raw sequences ----------------------------------------------------------------------------------------------

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], **media: Unpack[Media]
    ) -> Float[Tensor, "B L vocabulary"]:
        """Compute the logits of whole sequences. `Media` describes the other arguments."""
        from zoo.media import batch_of_media  # no training and no test reads raw sequences

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
        """Answer padded sequences greedily, without autocast.

        Returns the new tokens only, up to and including a stop token.
        """
        from zoo.media import prompts_of_media

        batch = prompts_of_media(self.sequence_builder, input_ids, attention_mask, media).to(self.backbone.device)
        replies = answer_prompts(self, self.encode_scenes(batch), batch.prompts, max_new_tokens)
        for reply in replies:
            if reply.error is not None:
                raise InputError(reply.error)
        return [reply.ids for reply in replies]

    @torch.no_grad()
    def score_candidates(
        self,
        batch: Batch,
        candidates: Sequence[Sequence[str]],
        max_new_tokens: int = 32,
        repetition_penalty: float = 1.0,
    ) -> list[Reply]:
        """Answer the prompts of a batch greedily, and return the probability of other answers as well.

        `Reply.candidates` has the log-probability of each candidate as the whole answer: with a stop token, so that 7
        is not the beginning of 72, and without repetition penalty. The probabilities of a question's candidates add up
        to at most 1.

        Args:
            batch: Prompts, from `QuestionCollate`.
            candidates: Texts of possible answers to each question of the batch. A question may have none.
            max_new_tokens: Maximum length of the greedy answer.
            repetition_penalty: Penalty of the greedy answer, see `VideoQATask`.
        """
        ids = [[_answer_ids(self.backbone.preprocessor, text) for text in texts] for texts in candidates]
        with eval_mode(self):
            return answer_batch(self, batch.to(self.backbone.device), max_new_tokens, repetition_penalty, ids)

    # ---- saved models -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, *, trust_modules: Collection[str] = (), **overrides: Any) -> SpatialVLM:
        """Load a model from a run, an exported folder, a released folder, or a hub id. It is frozen and in eval mode.

        Args:
            path: `runs/<name>`, a folder written by `save_pretrained`, the folder of a released model, or a hub id.
            trust_modules: Modules outside the zoo that its configuration may import, such as `["my_encoding"]`.
            overrides: Constructor arguments that replace the stored ones, such as `camera_source="auto"`.

        Raises:
            InputError: Nothing can be loaded from there.
        """
        return load_model(cls, path, overrides, released_parts, trust_modules)

    def save_pretrained(self, folder: str | Path, *, full: bool = False) -> None:
        """Write a folder for `from_pretrained`: configuration, weights, tokenizer files and a model card.

        Trained weights, and weights that no file can restore, are written as safetensors. Frozen released weights are
        referenced by path or hub id, with a fingerprint.

        Args:
            folder: A new or empty folder.
            full: Also copy the frozen released weights.

        Raises:
            InputError: The folder is not empty, or a part was built by a function instead of a class.
        """
        save_model(self, Path(folder), full, name=Path(folder).name)

    def push_to_hub(self, repo_id: str, *, full: bool = False, private: bool = False) -> str:
        """Upload the folder that `save_pretrained` writes to the Hugging Face hub, and return its address."""
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
        """Answer one or several questions about a video greedily, in eval mode. The video is encoded once.

        Args:
            video: A video file, a folder of frames, or frames (T, 3, H, W) as bytes or in 0..1.
            questions: One question, or several.
            cameras: A cameras.json with one camera per raw frame. None uses the one beside the video, if any. For
                frames in memory, a `SceneGeometry` with one camera per frame, and the depth if the model reads it.
            num_frames: Number of frames to sample. None uses the number of the model's training. Frames in memory are
                all shown, paired and resized like the frames of a video file.
            sampler: A `FrameSampler`. None uses the sampler of the model's run.
            max_new_tokens: Maximum length of an answer in tokens.
            times_s: Time of each frame in memory in seconds, for a model that reads it.
            repetition_penalty: See `VideoQATask`.

        Returns:
            One text for one question, a list for several.

        Raises:
            FileNotFoundError: The video does not exist.
            InputError: The video can't be read, or lacks the cameras or depth that this model requires.
        """
        check_penalty(repetition_penalty)
        from datamodules.inference import batch_of_questions  # application layer, imported at call time only

        asked = [questions] if isinstance(questions, str) else list(questions)
        batch = batch_of_questions(self, video, asked, cameras, num_frames, sampler, times_s)
        with eval_mode(self):
            replies = answer_batch(self, batch, max_new_tokens, repetition_penalty)
        for reply in replies:
            if reply.error is not None:
                raise InputError(reply.error)
        texts = self.backbone.preprocessor.decode([reply.ids for reply in replies])
        return texts[0] if isinstance(questions, str) else texts
