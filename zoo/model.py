"""One forward pass through the parts of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.cameras import Cameras
from zoo.encodings import balanced_views
from zoo.errors import InputError
from zoo.generation import greedy
from zoo.geometry.base import SceneGeometry
from zoo.geometry.temporal_patches import median_depths, step_cameras, step_points
from zoo.layout import SequenceLayout
from zoo.media import (
    Media,
    by_row,
    find_media_spans,
    given_cameras,
    refuse_torn,
    scene_cameras,
    scene_frames,
    scene_grid,
    scenes_of,
    step_spans,
)
from zoo.parts import SpatialParts


class SpatialModel(SpatialParts):
    """From pixels, frames and token ids to what the stock Qwen2.5-VL is called with, and through it."""

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
        if self.geometry is None or not (self.uses_geometry_tokens or cameras):
            return list(given)
        scaled = [each if each.is_floating_point() else each.float() / 255 for each in frames]
        return list(self.geometry(scaled, given, tokens=self.uses_geometry_tokens, cameras=cameras))

    def set_reference_views(
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
        if not any(part.uses_balanced_reference for part in self.camera_modules):
            return cameras
        present = cameras.used_mask() if has_camera is None else has_camera
        return cameras.with_reference(balanced_views(visual, [int(grid[0]) for grid in grids], samples, present))

    def token_points(self, scenes: Sequence[SceneGeometry | None]) -> list[Float[Tensor, "_tokens 3"]] | None:
        """What each 2D token of each scene shows, if the encoding goes by it."""
        return [step_points(each, self.merged_camera).flatten(0, 2) for each in scenes] if self.uses_points else None

    def fuse(
        self,
        visual: Sequence[Float[Tensor, "_N D"]],
        grids: Sequence[Int[Tensor, " 3"]] | Int[Tensor, "V 3"],
        geometry: Sequence[SceneGeometry | None],
        cameras: Cameras | None = None,
        has_camera: Bool[Tensor, "V C"] | None = None,
    ) -> list[Float[Tensor, "_t _n D"]]:
        """The visual tokens of each scene, step by step; scenes of one grid are one long scene for the fusion.

        Args:
            visual: 2D tokens of each scene.
            grids: of each scene: steps, and patches before merging.
            geometry: of each scene, what a fusion reads.
            cameras: of each scene, one a step, for a model with `views`.
            has_camera: the steps that have one; None is all.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, grid in enumerate(grids):
            groups.setdefault(tuple(grid.tolist()), []).append(i)
        fused: dict[int, Tensor] = {}
        for (steps, *sides), members in groups.items():
            mix = None
            if self.view_mixer is not None and cameras is not None:
                merge = self.qwen.config.vision_config.spatial_merge_size
                mix = partial(
                    self.view_mixer,
                    cameras=cameras[members].span(0, steps),
                    grid=(steps, *(side // merge for side in sides)),
                    has_camera=None if has_camera is None else has_camera[members, :steps],
                )
            tokens = torch.cat([visual[i] for i in members])
            if self.fusion is None:
                joined = (tokens if mix is None else mix(tokens)).unflatten(0, (steps * len(members), -1))
            else:
                known = [each for i in members if (each := geometry[i]) is not None and self.fusion.uses_geometry]
                read = SceneGeometry.joined(known) if len(known) == len(members) else None
                joined = self.fusion(tokens, torch.tensor([steps * len(members), *sides]), read, mix)
            fused |= dict(zip(members, joined.split(steps), strict=True))
        return [fused[i] for i in range(len(visual))]

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
            "position_ids": layout.position_ids(self.time_index, seconds_per_grid, frame_indices, cameras),
            "mm_encoder_outputs": {
                kind: BaseModelOutputWithPooling(pooler_output=tuple(each)) for kind, each in tokens.items() if each
            },
        }
        if self.camera_encoding is not None and cameras is not None:
            cameras = cameras.with_tokens(layout.patch_centers(), None if points is None else layout.scatter(points))
            text = self.qwen.config.text_config
            inputs["camera_encoding"] = self.camera_encoding.encode(
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

        cameras = media.get("cameras")
        if cameras is not None and len(cameras) != len(input_ids):
            raise InputError(f"cameras of {len(cameras)} sequences, but there are {len(input_ids)}: give them of each")
        runs = find_media_spans(input_ids, self.qwen.config)
        scenes = scenes_of(runs)
        scene_grids = [scene_grid(scene, grids) for scene in scenes]
        frames = media.get("frames")
        given = given_cameras(scenes, scene_grids, cameras)
        finds = any(self.requires_predicted_cameras(given))
        if scenes and frames is None and self.requires_frames and (self.uses_geometry_tokens or finds):
            raise InputError(f"{type(self).__name__} needs the frames of each video: give frames=[(T, 3, H, W), ...]")
        found = self.encode_geometry([] if frames is None else scene_frames(frames, runs, grids), given, cameras=finds)
        has_camera = None if cameras is None or cameras.index is None else cameras.used_mask()
        points = None
        if finds:  # all of them: `cameras` are of the whole batch, or of nothing
            cameras, has_camera = step_cameras(by_row(scenes, found, len(input_ids)), self.merged_camera)
            points = self.token_points(found)
            if self.uses_median_depth:
                depths = torch.ones(len(input_ids), device=input_ids.device)
                depths[[scene[0].row for scene in scenes]] = median_depths(found)
                cameras = cameras.with_median_depth(depths)
        if cameras is not None:
            refuse_torn(runs)
        spans = step_spans(scenes, scene_grids)
        visual = [torch.cat([tokens[run.kind][run.number] for run in scene]) for scene in scenes]
        if cameras is not None:
            cameras = self.set_reference_views(cameras, has_camera, visual, scene_grids, [row for row, _, _ in spans])
        per_scene = () if cameras is None or not scenes else scene_cameras(cameras, has_camera, spans)
        fused = self.fuse(visual, scene_grids, found, *per_scene)
        for scene, tokens_of in zip(scenes, fused, strict=True):
            steps = [int(scene_grid([run], grids)[0]) for run in scene]
            for run, part in zip(scene, tokens_of.split(steps), strict=True):
                tokens[run.kind][run.number] = part.flatten(0, 1)
        return self.prepare(
            input_ids,
            attention_mask,
            videos=tokens["video"],
            video_grid_thw=grids["video"],
            images=tokens["image"],
            image_grid_thw=grids["image"],
            seconds_per_grid=media.get("seconds_per_grid"),
            frame_indices=media.get("frame_indices"),
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
