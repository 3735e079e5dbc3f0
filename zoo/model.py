"""The parts of a model put together, and one forward pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.attention import install_camera_attention
from zoo.backbone import Backbone, LoRA
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, ViewMixer, balanced_views
from zoo.errors import InputError
from zoo.fusions import Appended, Fusion
from zoo.generation import CameraQwen25VL, greedy
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry, first_built
from zoo.geometry.steps import PairCamera, median_depths, step_cameras, step_points
from zoo.layout import SequenceLayout
from zoo.media import (
    Media,
    by_row,
    given_cameras,
    refuse_torn,
    runs_of,
    scene_frames,
    scene_grid,
    scenes_of,
    step_spans,
)
from zoo.optim import LearningRates, WarmupCosine
from zoo.time_index import Seconds, TimeIndex
from zoo.tiny import TinyQwen25VL
from zoo.trainable import Trainable

CameraSource = Literal["given", "vggt", "either"]
PUBLISHED = LearningRates()  # Spatial-MLLM's


def adamw(parameters: Any) -> Optimizer:
    """AdamW with the published recipe's weight decay (biases have their own group without)."""
    return torch.optim.AdamW(parameters, weight_decay=0.1)


class SpatialModel(Trainable):
    """A Qwen2.5-VL whose visual tokens may be fused with 3D tokens, and may know their cameras.

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
        self.qwen.__class__ = CameraQwen25VL
        install_camera_attention(self.qwen.model.language_model, encoding)
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

    # ---- one forward pass -----------------------------------------------------------------------------------

    def encode_pixels(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "V 3"]
    ) -> list[Float[Tensor, "tokens D"]]:
        """The 2D tokens of each video or still, in the decoder's width."""
        return list(self.qwen.model.get_video_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    def encode_geometry(
        self, frames: Sequence[Tensor], given: Sequence[SceneGeometry | None], cameras: bool
    ) -> list[SceneGeometry | None]:
        """The geometry of each scene as far as this model reads it; what was given where it reads none.

        Args:
            frames: (S, 3, H, W) of each scene, in 0..1 or as bytes.
            given: what came with the data.
            cameras: whether the encoder is to find cameras.
        """
        if self.geometry is None or not (self.reads_tokens or cameras):
            return list(given)
        scaled = [each if each.is_floating_point() else each.float() / 255 for each in frames]
        return list(self.geometry(scaled, given, tokens=self.reads_tokens, cameras=cameras))

    def refer(
        self,
        cameras: Cameras,
        has_camera: Bool[Tensor, "B C"] | None,
        visual: Sequence[Float[Tensor, "_N D"]],
        grids: Sequence[Int[Tensor, " 3"]] | Int[Tensor, "V 3"],
        samples: Sequence[int],
    ) -> Cameras:
        """The cameras with the reference views that `saddle_balanced` chooses, if some part goes by them.

        Args:
            cameras: of each sample.
            has_camera: the views to choose from; None is all.
            visual: the 2D tokens of each scene.
            grids: of each scene.
            samples: whose views each scene's are.
        """
        if not self._some("reference", "saddle_balanced"):
            return cameras
        present = cameras.seen() if has_camera is None else has_camera
        return cameras.with_reference(balanced_views(visual, [int(grid[0]) for grid in grids], samples, present))

    def points_of(self, scenes: Sequence[SceneGeometry | None]) -> list[Float[Tensor, "_tokens 3"]] | None:
        """What each 2D token of each scene shows, if the encoding goes by it."""
        return [step_points(each, self.pair_camera).flatten(0, 2) for each in scenes] if self.reads_points else None

    def fuse(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: Int[Tensor, " 3"],
        geometry: SceneGeometry | None,
        cameras: Cameras | None = None,
        has_camera: Bool[Tensor, "1 t"] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """The visual tokens of a scene, step by step.

        Args:
            visual: its 2D tokens.
            grid_thw: steps, and patches before merging.
            geometry: what a fusion reads.
            cameras: of the scene alone, one a step, for a model with `views`.
            has_camera: the steps that have one; None is all.
        """
        mix = None
        if self.views is not None and cameras is not None:
            merge = self.qwen.config.vision_config.spatial_merge_size
            steps, rows, columns = grid_thw.tolist()
            present = None if has_camera is None else has_camera[0]
            mix = partial(
                self.views, cameras=cameras, grid=(steps, rows // merge, columns // merge), has_camera=present
            )
        if self.fusion is None:
            return (visual if mix is None else mix(visual)).unflatten(0, (int(grid_thw[0]), -1))
        return self.fusion(visual, grid_thw, geometry, mix)

    def prepare(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        videos: list[Tensor] | None = None,
        video_grid_thw: Int[Tensor, "V 3"] | None = None,
        images: list[Tensor] | None = None,
        image_grid_thw: Int[Tensor, "I 3"] | None = None,
        seconds_per_grid: list[float] | Float[Tensor, " V"] | None = None,
        cameras: Cameras | None = None,
        has_camera: Bool[Tensor, "B C"] | None = None,
        frame_indices: Sequence[Sequence[int]] | None = None,
        points: Float[Tensor, "tokens 3"] | None = None,
    ) -> dict[str, Any]:
        """What the stock model is called with: fused tokens, position ids, and the encoded cameras.

        Args:
            videos: visual tokens of each video, in the order in which they appear in the batch.
            images: likewise for stills.
            seconds_per_grid: of each video, for a time index that uses it.
            cameras: of each sequence, one a grid step; `index` is worked out here unless it is given.
            has_camera: the grid steps that have one; None is all.
            frame_indices: the raw frames that each video shows, for a time index that uses them.
            points: in the cameras' world, what each 2D token of the batch shows; for an encoding that reads them.
        """
        layout = SequenceLayout(
            self.qwen.config, input_ids, attention_mask, video_grid_thw, image_grid_thw, self.appended
        )
        if cameras is not None and cameras.index is None:
            cameras = cameras.with_index(layout.camera_index(has_camera))
        tokens = {"video": videos, "image": images}
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": layout.position_ids(self.time, seconds_per_grid, frame_indices, cameras),
            "mm_encoder_outputs": {
                kind: BaseModelOutputWithPooling(pooler_output=tuple(each)) for kind, each in tokens.items() if each
            },
        }
        if self.encoding is not None and cameras is not None:
            cameras = cameras.with_tokens(layout.places(), None if points is None else layout.scatter(points))
            text = self.qwen.config.text_config
            inputs["camera_encoding"] = self.encoding.encode(
                cameras,
                head_dim=text.hidden_size // text.num_attention_heads,
                mrope_section=text.rope_parameters["mrope_section"],
            )
        return inputs

    def prepare_media(self, input_ids: Tensor, attention_mask: Tensor, media: Media) -> dict[str, Any]:
        """`prepare`, from what the sequences show."""
        grids = {"video": media.get("video_grid_thw"), "image": media.get("image_grid_thw")}
        pixels = {"video": media.get("pixel_values_videos"), "image": media.get("pixel_values")}
        tokens: dict[str, list[Tensor]] = {"video": [], "image": []}
        for kind, values in pixels.items():
            grid = grids[kind]
            if values is not None and grid is not None:
                tokens[kind] = self.encode_pixels(values, grid)

        runs = runs_of(input_ids, self.qwen.config)
        scenes = scenes_of(runs)
        scene_grids = [scene_grid(scene, grids) for scene in scenes]
        cameras = media.get("cameras")
        frames = media.get("frames")
        given = given_cameras(scenes, scene_grids, cameras)
        finds = any(self.lack_cameras(given))
        if scenes and frames is None and self.needs_frames and (self.reads_tokens or finds):
            raise InputError(f"{type(self).__name__} needs the frames of each video: give frames=[(T, 3, H, W), ...]")
        found = self.encode_geometry([] if frames is None else scene_frames(frames, runs, grids), given, cameras=finds)
        has_camera = None
        points = None
        if finds:  # all of them: `cameras` are of the whole batch, or of nothing
            cameras, has_camera = step_cameras(by_row(scenes, found, len(input_ids)), self.pair_camera)
            points = self.points_of(found)
            if self.scales_by_depth:
                depths = torch.ones(len(input_ids), device=input_ids.device)
                depths[[scene[0].row for scene in scenes]] = median_depths(found)
                cameras = cameras.with_median_depth(depths)
        if cameras is not None:
            refuse_torn(runs)
        spans = step_spans(scenes, scene_grids)
        visual = [torch.cat([tokens[run.kind][run.number] for run in scene]) for scene in scenes]
        if cameras is not None:
            cameras = self.refer(cameras, has_camera, visual, scene_grids, [row for row, _, _ in spans])
        every = zip(scenes, visual, scene_grids, found, spans, strict=True)
        for scene, flat, grid, geometry, (row, first, last) in every:
            fused = self.fuse(
                flat,
                grid,
                geometry,
                None if cameras is None else cameras[row : row + 1].span(first, last),
                None if has_camera is None else has_camera[row : row + 1, first:last],
            )
            steps = [int(scene_grid([run], grids)[0]) for run in scene]
            for run, part in zip(scene, fused.split(steps), strict=True):
                tokens[run.kind][run.number] = part.flatten(0, 1)
        return self.prepare(
            input_ids,
            attention_mask,
            videos=tokens["video"],
            video_grid_thw=grids["video"],
            images=tokens["image"],
            image_grid_thw=grids["image"],
            seconds_per_grid=media.get("seconds_per_grid"),
            cameras=cameras,
            has_camera=has_camera,
            points=None if points is None else torch.cat(points),
        )

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], **media: Unpack[Media]
    ) -> Float[Tensor, "B L vocabulary"]:
        """Logits of whole sequences; see `Media` for what else they may come with."""
        return self.qwen(**self.prepare_media(input_ids, attention_mask, media), use_cache=False).logits

    def generate_ids(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        max_new_tokens: int,
        **media: Unpack[Media],
    ) -> list[list[int]]:
        """Greedy answers to left-padded sequences: new tokens only, up to EOS (included where it came)."""
        return greedy(self.qwen, self.prepare_media(input_ids, attention_mask, media), max_new_tokens)
