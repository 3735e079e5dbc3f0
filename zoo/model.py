"""SpatialVLM: one plain PyTorch model that every model of the zoo is a choice of parts for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.backbones import BackboneLoader, default_loader
from zoo.backbones.base import VisualTokens
from zoo.backbones.lora import LoRA
from zoo.cameras import Cameras
from zoo.configuration import Configurable
from zoo.encodings import CameraEncoding, ViewMixer
from zoo.errors import InputError, check_choice
from zoo.fusions import Fusion
from zoo.geometry.base import GeometryEncoder, SceneGeometry, resample_frames
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry, build_first_available
from zoo.objectives import Objective, Objectives
from zoo.positions import TextAfterVision
from zoo.prefix_cache import answer_questions, check_penalty, eval_mode
from zoo.pretrained import load_model, save_model
from zoo.requirements import PSEUDO_LABELS, CameraSource, CameraUse, DataRequirements, check_geometry, choose_time_index
from zoo.scene_encoding.scene_cameras import MergedCamera, add_cameras, patch_cameras, sequence_cameras, token_depth
from zoo.scene_encoding.stages import encode_vision, fuse_scenes
from zoo.scenes import Media, SceneInputs, SceneTokens, scenes_of_media
from zoo.sequences.layout import MediaKind, SequenceLayout
from zoo.sequences.time_index import TimeIndex
from zoo.sequences.visual_grid import ExtraTokens


class SpatialVLM(Configurable, nn.Module):
    """A video-language model whose visual tokens may be fused with 3D tokens and may know their cameras.

    Training, evaluation, notebooks and `logits` share one path: `encode_scenes`, then `build_inputs`, then the
    backbone's `decode` or `generate`. A part that is None is the stock model there, bit for bit.

    Args:
        backbone: the video-language model; a tiny random Qwen2.5-VL if not given.
        geometry: builds the encoder of 3D tokens and cameras; called only if a fusion or `camera_source` asks for it,
            and only if the backbone was not released with its own.
        geometry_cache: keeps the outputs of a frozen geometry encoder on disk; null computes them each time.
        fusion: builds the fusion of 2D and 3D tokens from the decoder's width and the geometry's; null uses the 2D
            tokens alone.
        view_mixer: builds the branch that adds camera information to the 2D tokens before the fusion
            (`ViewAttention`, `RayEmbedding`); without effect before training.
        camera_encoding: camera encoding in the decoder's attention; null is the stock attention.
        camera_source: whose cameras the encoding and the view mixer get: those of the `dataset`; those `predicted` by
            the geometry encoder, usually in a unit of its own; or `auto`, the dataset's where a scene has some, else
            predicted ones if the encoder predicts cameras. Objectives learn to predict the same ones, and with
            `predicted` the encoder's depth. Without effect in a model that uses no cameras.
        merged_camera: the camera of two frames that are merged into one token.
        time_index: the time component of mRoPE's position ids; null is the backbone's own.
        text_after_vision: the position of the text after a video: behind its highest position on any axis (`max_thw`,
            transformers 4.51, with which the released checkpoints were trained), or max(h, w) behind its start
            (`max_hw`, transformers 5).
        lora: low-rank adapters on the decoder.
        objectives: the losses of a training; `LanguageModeling`, the default, is added to them if it is not listed.

    Raises:
        InputError: parts that do not fit together.

    Example:
        >>> SpatialVLM().requirements.cameras
        False
    """

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
    ) -> None:
        super().__init__()
        self.loader = loader = backbone or default_loader()
        self.camera_encoding = camera_encoding
        self.camera_source, self.merged_camera = camera_source, merged_camera
        for name, value, choices in (
            ("camera_source", camera_source, CameraSource),
            ("merged_camera", merged_camera, MergedCamera),
            ("text_after_vision", text_after_vision, TextAfterVision),
        ):
            check_choice(name, value, choices)
        self.text_after_vision = text_after_vision
        # 1. Backbone, with the camera hooks in its attention.
        self.backbone = loader.load()
        self.time_index = choose_time_index(camera_encoding, time_index, self.backbone.default_time_index())
        self.backbone.install_encoding(camera_encoding)
        width = self.backbone.hidden_size
        # 2. Geometry, if some part reads it.
        self.view_mixer: ViewMixer | None = None
        self.fusion: Fusion | None = None
        self.geometry: GeometryEncoder | None = None
        losses = Objectives(objectives)
        uses_cameras = view_mixer is not None or camera_encoding is not None or self.time_index.requires_cameras
        pseudo_labels = tuple(target for target in losses.targets if target in PSEUDO_LABELS[camera_source])
        predicts = camera_source == "predicted" or (camera_source == "auto" and (uses_cameras or bool(pseudo_labels)))
        if fusion is not None or predicts:
            build = partial(build_first_available, loader.load_geometry, geometry)
            self.geometry = build() if geometry_cache is None else CachedGeometry(build, geometry_cache)
        if self.geometry is not None:
            self.geometry.match_patches(self.backbone.patch_size)
        reads_cameras = uses_cameras or bool(losses.targets)
        check_geometry(self.geometry, camera_source, uses_cameras=reads_cameras, uses_tokens=fusion is not None)
        if predicts and self.geometry is not None and self.geometry.predicts_cameras:
            self.geometry.enable_head("camera")
        # 3. Fusion and view mixer, in the backbone's dtype.
        if fusion is not None and self.geometry is not None:
            self.fusion = fusion(width, self.geometry.width)
            self.fusion.bind(self.geometry.num_layers, self.backbone.decoder_layout.num_layers)
            self.fusion = self._like_backbone(self.fusion)
        if view_mixer is not None:
            self.view_mixer = self._like_backbone(view_mixer(width if self.fusion is None else self.fusion.flat_width))
        # 4. What the parts read of the cameras, and add to the prompt.
        appended = ExtraTokens.NOTHING if self.fusion is None else self.fusion.appended
        self.extra_tokens = losses.extra_tokens_beside(appended)
        self.camera_use = CameraUse.of((camera_encoding, self.view_mixer), self.time_index)
        self.predicts_cameras = self.camera_use.may_be_predicted(camera_source, self.geometry)
        can_predict = predicts and self.geometry is not None and self.geometry.predicts_cameras
        self.pseudo_labels = pseudo_labels if can_predict else ()  # targets that the encoder predicts, in training
        uses_depth = self.camera_use.depth or "depth" in losses.targets
        if camera_source == "predicted" and uses_depth and self.geometry is not None:
            if not self.geometry.predicts_depth:
                raise InputError(
                    "--model.camera_source predicted: an encoding or an objective uses depth, which "
                    f"{self.geometry_name} does not predict; take the dataset's cameras and depth"
                )
            self.geometry.enable_head("depth")
        # 5. Weights. An untrained fusion makes the whole model untrained.
        self.has_released_fusion = self.fusion is not None and loader.load_fusion(self.fusion)
        self.is_pretrained = loader.is_pretrained and (self.fusion is None or self.has_released_fusion)
        self.is_pretrained = self.is_pretrained and not losses.adding
        if lora is not None:
            lora.apply(self.backbone.decoder, self.backbone.lora_targets)
            self.backbone.lm_head.requires_grad_(False)
        losses.bind(width, self.backbone.decoder_layout.num_layers)
        self.objectives = losses.to(self.backbone.device)  # in float32
        self.loaded_names: frozenset[str] = frozenset()  # tensors of a saved model, or trained: not the released files'
        self.data_config: dict[str, Any] = {}  # the frames that the model was trained with, see `answer`

    def _like_backbone(self, part: Any) -> Any:
        return part.to(device=self.backbone.device, dtype=self.backbone.like.dtype)

    @property
    def geometry_name(self) -> str | None:
        """The class of the geometry encoder, also of one behind a cache; None without one."""
        return None if self.geometry is None else type(self.geometry.outline).__name__

    # ---- parameters -----------------------------------------------------------------------------------------------

    def part_of(self, name: str) -> str:
        """The field of `LearningRates` that governs the parameter of this name."""
        part, _, rest = name.partition(".")
        if part == "backbone":
            return self.backbone.part_of(rest)
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

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks that every batch runs; a sharded model gathers the weights of one at a time."""
        always = self.uses_geometry_tokens or self.camera_source == "predicted"
        return [*self.backbone.blocks(), *(self.geometry.blocks() if self.geometry is not None and always else ())]

    # ---- what the model reads -------------------------------------------------------------------------------------

    @property
    def uses_geometry_tokens(self) -> bool:
        """Whether 3D tokens reach the decoder; follows `fusion.active_branches`, which may change after training."""
        return self.fusion is not None and self.fusion.uses_geometry

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
            return self.geometry.is_unreachable(rest, tokens=self.uses_geometry_tokens, cameras=self.predicts_cameras)
        if part == "fusion" and self.fusion is not None:
            return rest.partition(".")[0] in self.fusion.unused_parts
        if part == "backbone" and self.fusion is not None and self.backbone.serves_deepstack(name):
            return not self.fusion.keeps_deepstack
        return drops_2d and (part == "view_mixer" or (part == "backbone" and self.part_of(name) != "decoder"))

    # ---- one forward path -----------------------------------------------------------------------------------------

    def encode_scenes(self, scenes: Sequence[SceneInputs]) -> list[SceneTokens]:
        """Encodes each scene once: vision, geometry, view mixing, fusion.

        Args:
            scenes: of a batch; they may differ in their number of frames and in size.

        Raises:
            InputError: a scene without the frames or the depth that this model requires.
        """
        # 1. Vision: patches to 2D tokens.
        visual = encode_vision(self.backbone, scenes)
        # 2. Geometry: 3D tokens, and cameras of the scenes that need predicted ones.
        lacking = [self._needs_predicted_cameras(scene) for scene in scenes]
        geometry = self._encode_geometry(scenes, cameras=any(lacking))
        # 3. Cameras: one per temporal patch.
        encoded = [
            SceneTokens(scene, *(each.unflatten(-2, (scene.num_steps, -1)) for each in tokens))
            for scene, tokens in zip(scenes, visual, strict=True)
        ]
        for each, predicted, is_lacking in zip(encoded, geometry, lacking, strict=True):
            if self.camera_use.cameras:
                found = predicted if is_lacking else each.scene.geometry
                add_cameras(each, found, self.camera_use, self.merged_camera)
            self._add_targets(each, predicted if is_lacking and self.training else None)
        # 4. View mixing and fusion; objectives may change the 2D tokens before, and append a token behind.
        if self.training:
            self.objectives.change_tokens(encoded)
        fuse_scenes(encoded, geometry, self.fusion, self.view_mixer, self.backbone.spatial_merge_size)
        self.objectives.append_token(encoded)
        return encoded

    def _add_targets(self, encoded: SceneTokens, predicted: SceneGeometry | None) -> None:
        """Adds what objectives learn to predict: pseudo-labels of a training, or the dataset's."""
        for target in self.objectives.targets:
            geometry = predicted if predicted is not None and target in self.pseudo_labels else encoded.scene.geometry
            if target == "cameras" and encoded.scene.has_true_cameras:
                encoded.target_cameras = patch_cameras(encoded.scene, geometry, self.merged_camera)
            elif target == "depth" and geometry is not None:
                encoded.target_depth = token_depth(geometry, encoded.scene.token_rows)

    def build_inputs(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        scenes: Sequence[SceneTokens],
        scene_index: Sequence[Sequence[int]],
        *,
        cameras: Cameras | None = None,
        layout: SequenceLayout | None = None,
    ) -> dict[str, Any]:
        """The decoder's inputs for any sequences about encoded scenes.

        Args:
            input_ids: one placeholder per visual token, extra tokens included.
            attention_mask: 0 for padding.
            scenes: from `encode_scenes`.
            scene_index: the scenes of each sequence, in the order in which they appear.
            cameras: of each sequence, one per temporal patch or with an `index`, instead of those of the scenes.
            layout: of the sequences, if the caller has walked them already.

        Returns:
            Keyword arguments of `Backbone.decode` and `Backbone.generate`.
        """
        rows = [[scenes[i] for i in row] for row in scene_index]
        videos = [each for row in rows for each in row if each.scene.kind == "video"]
        images = [each for row in rows for each in row if each.scene.kind == "image"]
        # 1. Layout: where the visual tokens stand.
        layout = self.layout(input_ids, attention_mask, rows) if layout is None else layout
        # 2. Cameras: one per temporal patch of each sequence, and the camera of each token.
        cameras = sequence_cameras(rows, layout, cameras) if self.camera_use.cameras else None
        # 3. Positions.
        seconds: list[Any] = [each.scene.seconds_per_grid for each in videos]
        frames: list[Any] = [each.scene.frame_indices for each in videos]
        position_ids = self.backbone.position_ids(
            layout,
            self.time_index,
            seconds_per_grid=None if None in seconds else seconds,
            frame_indices=frames if self.time_index.requires_frames and None not in frames else None,
            cameras=cameras if self.time_index.requires_cameras else None,
            text_after_vision=self.text_after_vision,
        )
        # 4. Visual tokens in place of the placeholders.
        media: dict[MediaKind, list[VisualTokens]] = {
            "video": [VisualTokens(scene.tokens.flatten(0, 1), scene.deepstack.flatten(1, 2)) for scene in videos],
            "image": [
                VisualTokens(*image) for s in images for image in zip(s.tokens, s.deepstack.unbind(1), strict=True)
            ],
        }
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {"position_ids": position_ids, **self.backbone.visual_inputs(media, input_ids)}
        # 5. The camera encoding, shared by all layers.
        if self.camera_encoding is not None and cameras is not None:
            known = [scene.points for row in rows for scene in row if scene.points is not None]
            points = layout.scatter_points(torch.cat(known)) if known else None
            cameras = cameras.with_tokens(layout.patch_centers(), points, position_ids[0])
            inputs["camera_encoding"] = self.backbone.encode_cameras(self.camera_encoding, cameras)
        return inputs

    def layout(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], rows: Sequence[Sequence[SceneTokens]]
    ) -> SequenceLayout:
        """Where the visual tokens stand in sequences about the scenes of each row."""
        grids: dict[MediaKind, list[Tensor]] = {}
        for each in (each for row in rows for each in row):
            grids.setdefault(each.scene.kind, []).append(each.scene.media_grids)
        joined = {kind: torch.cat(shown) for kind, shown in grids.items()}
        return self.backbone.layout(input_ids, attention_mask, joined, self.extra_tokens)

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], **media: Unpack[Media]
    ) -> Float[Tensor, "B L vocabulary"]:
        """Logits of whole sequences; see `Media` for the other arguments."""
        inputs = self._media_inputs(input_ids, attention_mask, media)
        return self.backbone.lm_head(self.backbone.decode(inputs).last_hidden_state)

    def generate_ids(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        max_new_tokens: int,
        **media: Unpack[Media],
    ) -> list[list[int]]:
        """Greedy answers to left-padded sequences: new tokens only, up to a stop token (included)."""
        return self.backbone.generate(self._media_inputs(input_ids, attention_mask, media), max_new_tokens)

    def _media_inputs(self, input_ids: Tensor, attention_mask: Tensor, media: Media) -> dict[str, Any]:
        grids = {"video": media.get("video_grid_thw"), "image": media.get("image_grid_thw")}
        layout = self.backbone.layout(input_ids, attention_mask, grids, self.extra_tokens)  # type: ignore[arg-type]
        scenes, scene_index = scenes_of_media(layout, media)
        cameras = media.get("cameras")
        uses_given = cameras is not None and not any(self._needs_predicted_cameras(scene) for scene in scenes)
        return self.build_inputs(
            input_ids,
            attention_mask,
            self.encode_scenes(scenes),
            scene_index,
            cameras=cameras if uses_given else None,
            layout=layout,
        )

    def _needs_predicted_cameras(self, scene: SceneInputs) -> bool:
        may_need = self.predicts_cameras or (bool(self.pseudo_labels) and self.training)
        return may_need and (self.camera_source == "predicted" or not scene.knows_cameras)

    def _encode_geometry(self, scenes: Sequence[SceneInputs], cameras: bool) -> list[SceneGeometry | None]:
        """The geometry encoder's outputs for each scene, as far as this model reads them; else the dataset's."""
        dataset = [scene.geometry for scene in scenes]
        if self.geometry is None or not (self.uses_geometry_tokens or cameras):
            return dataset
        frames = [scene.frames for scene in scenes]
        if self.geometry.requires_frames and any(each is None for each in frames):
            raise InputError(f"{self.geometry_name} needs the frames of each video: give frames=[(T, 3, H, W), ...]")
        read = [None if each is None else self.geometry_frames(each) for each in frames]
        found = list(self.geometry(read, dataset, tokens=self.uses_geometry_tokens, cameras=cameras))
        for i, other in enumerate(scene.geometry_of for scene in scenes):  # in a perturbed test
            if other is not None and self.uses_geometry_tokens:
                source = found[i] if other == "nothing" else self._encode_geometry([other], cameras=False)[0]
                found[i] = found[i].with_tokens_of(source, scale=0.0 if other == "nothing" else 1.0)
        return found

    def geometry_frames(self, frames: Shaped[Tensor, "S 3 H W"]) -> Float[Tensor, "S 3 h w"]:
        """Frames for the geometry encoder: in 0..1, with its patches on the grid of the vision tower's."""
        assert self.geometry is not None
        scaled = frames if frames.is_floating_point() else frames.float() / 255
        return resample_frames(scaled, self.backbone.patch_size, self.geometry.patch_size)

    # ---- saved models -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> SpatialVLM:
        """A model from a run, an exported folder, a released folder, or a hub id; frozen, in eval mode.

        Args:
            path: `runs/<name>`, a folder of `save_pretrained`, a released Qwen-VL or Spatial-MLLM, or a hub id.
            overrides: constructor arguments in place of the stored ones, such as `camera_source="auto"`.

        Raises:
            InputError: nothing can be loaded from there; naming the remedy.
        """
        return load_model(cls, path, overrides)

    def save_pretrained(self, folder: str | Path, *, full: bool = False) -> None:
        """Writes a folder for `from_pretrained`: the parts' configuration, weights, tokenizer files and a model card.

        Trained weights, and weights that no file restores, are written as safetensors; frozen released ones are named
        by path or hub id, with a fingerprint.

        Args:
            folder: a new or empty folder.
            full: copy the frozen released weights too.

        Raises:
            InputError: the folder is not empty, or a part was built from a function instead of a class.
        """
        save_model(self, Path(folder), full, name=Path(folder).name)

    def push_to_hub(self, repo_id: str, *, full: bool = False, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub; returns the address."""
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
            video: a video file, a folder of frames, or frames (T, 3, H, W) as bytes or in 0..1.
            questions: one question, or several.
            cameras: a cameras.json with one camera per raw frame; None takes the one beside the video, if any. For
                frames in memory a `SceneGeometry` with the camera of each, and the depth for a model that reads it.
            num_frames: frames to sample; None takes the number that the model was trained with. Frames in memory are
                all shown.
            sampler: a `FrameSampler`; None takes that of the model's run.
            max_new_tokens: the longest answer.
            times_s: seconds of each of the frames in memory, for a backbone that writes them into the prompt.
            repetition_penalty: see `VideoQATask`.

        Returns:
            One text for one question, a list for several.

        Raises:
            FileNotFoundError: there is no such video.
            InputError: it can't be read, or lacks the cameras or depth that this model requires.
        """
        check_penalty(repetition_penalty)
        from datamodules.asking import batch_of_questions  # the application layer, at call time only

        asked = [questions] if isinstance(questions, str) else list(questions)
        batch = batch_of_questions(self, video, asked, cameras, num_frames, sampler, times_s)
        with eval_mode(self):
            scenes, rows = self.encode_scenes(batch["scenes"]), [[0]] * len(asked)
            replies = answer_questions(
                self, scenes, batch["prompts"], rows, max_new_tokens, repetition_penalty=repetition_penalty
            )
        for reply in replies:
            if reply.error is not None:
                raise InputError(reply.error)
        texts = self.backbone.preprocessor.decode([reply.ids for reply in replies])
        return texts[0] if isinstance(questions, str) else texts
