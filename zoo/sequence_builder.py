"""Builds the sequences of a batch from token ids, for training, logits and answers.

It runs in data workers on the CPU and needs no model. A `ModelSpec` holds everything that sequences depend on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.cameras import Cameras
from zoo.cameras.cameras import camera_runs
from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry, merge_cameras, stack_cameras
from zoo.errors import InputError
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Prompt, Sequences
from zoo.sequences.layout import ExtraTokens, MediaKind, SequenceLayout, is_contiguous
from zoo.sequences.loaded_scene import PreparedScene, VisionInputs, read_by_vision
from zoo.sequences.packing import IGNORED, PREFIX, QuestionPlaces, Row, ScenePacking, pack_questions, shared_length
from zoo.sequences.position_ids import DeferredPositions, check_all_have_cameras, layout_position_ids, valid_index
from zoo.sequences.time_index import ConstantIndex, PoseTimeIndex, TimeIndex


class SupervisedTokens(NamedTuple):
    """The supervised tokens of S sequences, one sequence after the other.

    An answer is a run of supervised tokens. It includes the end of its turn, and the question of the next turn is not
    supervised.

    Attributes:
        places: The place of each supervised token in the flattened batch.
        ids: The id of each supervised token.
        lengths: For each supervised token, the number of supervised tokens in its answer.
        num_answers: Number of answers in each sequence.
    """

    places: Int[Tensor, " M"]
    ids: Int[Tensor, " M"]
    lengths: Int[Tensor, " M"]
    num_answers: list[int]

    @classmethod
    def of(cls, labels: Int[Tensor, "S L"]) -> SupervisedTokens:
        """Find the supervised tokens. The first token of a sequence is excluded, because no token precedes it."""
        is_supervised = labels != IGNORED
        is_supervised[:, :1] = False
        starts = is_supervised.clone()
        starts[:, 1:] &= ~is_supervised[:, :-1]
        places = is_supervised.flatten().nonzero()[:, 0]
        answer = starts.flatten().cumsum(0)[places] - 1
        lengths = torch.bincount(answer)[answer] if len(answer) else answer
        return cls(places, labels.flatten()[places], lengths, starts.sum(1).tolist())


# ---- Which visual token of which scene is at each place of a sequence -----------------------------------------------


def visual_sources(
    layout: SequenceLayout,
    scenes: Sequence[PreparedScene],
    scene_index: Sequence[Sequence[int]],
    extra_tokens: ExtraTokens,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " K"]]:
    """Map each visual token of the sequences to its number among the visual tokens of all scenes.

    Returns:
        The number of each visual token, and for tokens on a 2D grid also their numbers among the 2D tokens of all
        scenes.
    """
    # 1. First token of each medium, counted with and without extra tokens. The media of a scene are consecutive.
    first, first_2d = 0, 0
    starts: list[list[tuple[int, int]]] = []
    for scene in scenes:
        own = []
        for steps, *_ in scene.media_grids:
            own.append((first, first_2d))
            first += steps * extra_tokens.view_tokens(*scene.token_grid[1:])
            first += extra_tokens.at_end if scene.kind == "video" else 0
            first_2d += steps * scene.tokens_per_step
        starts.append(own)
    # 2. Media that the sequences show. Each takes the next medium of its kind from its scenes.
    shown: dict[tuple[int, MediaKind], list[tuple[int, int]]] = defaultdict(list)
    for row, numbers in enumerate(scene_index):
        for number in numbers:
            shown[row, scenes[number].kind].extend(starts[number])
    of_medium = torch.tensor([shown[each.row, each.kind].pop(0) for each in layout.media], dtype=torch.long).view(-1, 2)
    # 3. Tokens are consecutive within a medium, even across several spans.
    medium = layout.medium[layout.span]
    sources = []
    for start, chosen in ((of_medium[:, 0], torch.ones_like(layout.is_extra)), (of_medium[:, 1], ~layout.is_extra)):
        own_medium = medium[chosen]
        count = torch.bincount(own_medium, minlength=len(of_medium))
        within = torch.arange(len(own_medium)) - (count.cumsum(0) - count)[own_medium]
        sources.append(start[own_medium] + within)
    return sources[0], sources[1]


def shown_by(scene_of: Sequence[int]) -> list[list[int]]:
    """Return the scenes of each row, given its scene. A negative number is text, which has none."""
    return [[scene] if scene >= 0 else [] for scene in scene_of]


# ---- The builder -----------------------------------------------------------------------------------------------------


class SequenceBuilder:
    """Builds sequences as a model needs them. Picklable, for data workers.

    Args:
        spec: The model's needs.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    # ---- scenes -----------------------------------------------------------------------------------------------

    def merge_cameras(self, geometry: SceneGeometry | None) -> PatchCameras | None:
        """Merge the cameras of a scene's frames. Returns None without cameras."""
        if geometry is None or not geometry.has_cameras:
            return None
        merged = merge_cameras(geometry, self.spec.merged_camera)
        return merged._replace(is_complete=bool(merged.has_camera.all()))

    def vision(self, scenes: Sequence[PreparedScene]) -> VisionInputs | None:
        """Return the vision encoder's inputs for all scenes together, see `read_by_vision`. None without scenes."""
        grids = [grid for scene in read_by_vision(scenes) for grid in scene.vision_grids]
        return self.spec.vision.inputs(grids) if grids and self.spec.vision is not None else None

    # ---- sequences --------------------------------------------------------------------------------------------

    def training(
        self,
        rows: Sequence[Row],
        scene_of: Sequence[int],
        scenes: Sequence[PreparedScene],
        *,
        max_tokens: int | None = None,
        packs_scenes: bool = False,
    ) -> Sequences:
        """Build training sequences. Questions of a scene share one if the decoder can keep them apart.

        Args:
            rows: One per question, with its answer.
            scene_of: The scene of each row. A negative number is text without a scene, of which equal numbers belong
                together.
            scenes: Scenes of the batch.
            max_tokens: Maximum number of tokens of a sequence with several questions or several scenes.
            packs_scenes: Whether scenes share sequences.

        Raises:
            InputError: Scenes may not share sequences, see `ModelSpec.check_scene_packing`.
        """
        if packs_scenes:
            self.spec.check_scene_packing()
        rows, scene_of, group = list(rows), list(scene_of), None
        if self.spec.packs_questions:
            packed = pack_questions(rows, scene_of, self.spec.placeholders.visual, max_tokens)
            if packed is not None:
                rows, scene_of = packed
                # rows of one question each are plainly causal: without a mask faster kernels exist
                if any(int(row.group[-1]) > PREFIX + 1 for row in rows):
                    group = pad_sequence([row.group for row in rows], batch_first=True, padding_value=-1)
        ids = pad_sequence([row.input_ids for row in rows], batch_first=True)
        labels = pad_sequence([row.labels for row in rows], batch_first=True, padding_value=IGNORED)
        offset = pad_sequence([row.position_offset for row in rows], batch_first=True)
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        made = self.build(ids, mask, scenes, shown_by(scene_of), labels=labels, position_offset=offset)
        packing = None
        if packs_scenes:
            groups = torch.zeros_like(ids) if group is None else group
            packing = ScenePacking(mask, groups, max_tokens)
            packing = None if packing.shape[0] == len(rows) else packing  # each row alone needs no mask of rows
        questions = QuestionPlaces(group) if group is not None and self.spec.is_hybrid else None
        return replace(made, group=group, questions=questions, packing=packing)

    def build(
        self,
        input_ids: Int[Tensor, "S L"],
        mask: Bool[Tensor, "S L"],
        scenes: Sequence[PreparedScene],
        scene_index: Sequence[Sequence[int]],
        *,
        labels: Int[Tensor, "S L"] | None = None,
        position_offset: Int[Tensor, "S L"] | None = None,
        cameras: Cameras | None = None,
    ) -> Sequences:
        """Build sequences about scenes from token ids.

        Args:
            input_ids: Token ids with one placeholder per visual token, extra tokens included.
            mask: True for tokens that are not padding. Padding may be on either side.
            scenes: Scenes of the batch.
            scene_index: The scenes of each sequence, in the order in which they appear.
            labels: The supervised ids, and `IGNORED` elsewhere. None supervises nothing.
            position_offset: Subtracted from the positions, see `Row`.
            cameras: Cameras of each sequence, instead of the scenes' cameras.

        Raises:
            InputError: Some scenes have cameras and others do not, or a video stands between the images of a sequence.
            ValueError: Placeholders and grids do not match.
        """
        spec, rows = self.spec, [[scenes[i] for i in row] for row in scene_index]
        layout = self.layout(input_ids, mask, rows)
        # 1. Place of each visual token, and its number among the tokens of all scenes.
        places, is_grid = layout.places, ~layout.is_extra
        sources, grid_sources = visual_sources(layout, scenes, scene_index, spec.extra_tokens)
        columns, heights = layout.grid[layout.span, 2], layout.grid[layout.span, 1]
        cells = torch.stack((layout.cell % columns, layout.cell // columns), 1)[is_grid]
        # 2. Cameras from the dataset.
        index = layout.camera_index()
        known = self._known_cameras(rows, layout, cameras)
        if known is not None and known.index is not None:
            index = known.index
        runs = camera_runs(index, None if known is None else known.world_to_camera) if spec.uses_cameras else None
        # 3. Positions.
        index_by_poses = spec.time_index
        waits = isinstance(index_by_poses, PoseTimeIndex) and known is None and spec.may_predict_cameras and any(rows)
        position_ids = self._position_ids(layout, ConstantIndex() if waits else spec.time_index, rows, known)
        if position_offset is not None:
            position_ids = position_ids - position_offset
        deferred = None
        if waits and isinstance(index_by_poses, PoseTimeIndex):
            deferred = DeferredPositions(layout, position_ids, index_by_poses, spec.text_after_vision)
        # 4. Supervised tokens. Each is predicted by the token before it.
        answers = SupervisedTokens.of(torch.full_like(input_ids, IGNORED) if labels is None else labels)
        is_right_padded = bool((mask[:, 1:] <= mask[:, :-1]).all())
        return Sequences(
            input_ids=input_ids,
            position_ids=None if waits else position_ids,
            deferred_positions=deferred,
            visual_places=places,
            visual_sources=sources,
            grid_places=places[is_grid],
            grid_sources=grid_sources,
            grid_cells=cells,
            grid_sizes=torch.stack((columns, heights), 1)[is_grid],
            camera_index=index,
            camera_runs=runs,
            answer_places=answers.places - 1,
            answer_ids=answers.ids,
            answer_lengths=answers.lengths,
            padding_mask=None if is_right_padded else mask,
            cameras=cameras,
            scene_index=[list(row) for row in scene_index],
            visual_counts=layout.tokens_per_row,
            lengths=mask.sum(1).tolist(),
            num_answers=[1] * len(rows) if labels is None else answers.num_answers,
        )

    def _position_ids(
        self,
        layout: SequenceLayout,
        time_index: TimeIndex,
        rows: Sequence[Sequence[PreparedScene]],
        cameras: Cameras | None,
    ) -> Int[Tensor, "3 S L"]:
        """Compute the position ids of sequences about the scenes of each row."""
        videos = [scene for row in rows for scene in row if scene.kind == "video"]
        seconds = [scene.seconds_per_grid for scene in videos if scene.seconds_per_grid is not None]
        frames = [scene.frame_indices for scene in videos if scene.frame_indices is not None]
        return layout_position_ids(
            layout,
            time_index,
            seconds if len(seconds) == len(videos) else None,
            self.spec.tokens_per_second,
            self.spec.text_after_vision,
            frames if len(frames) == len(videos) and time_index.requires_frames else None,
            cameras if time_index.requires_cameras else None,
        )

    def layout(
        self, input_ids: Int[Tensor, "S L"], mask: Bool[Tensor, "S L"], rows: Sequence[Sequence[PreparedScene]]
    ) -> SequenceLayout:
        """Locate the visual tokens of sequences about the scenes of each row."""
        shown = [scene for row in rows for scene in row]
        kinds: tuple[MediaKind, ...] = ("video", "image")
        grids = {kind: [grid for scene in shown if scene.kind == kind for grid in scene.media_grids] for kind in kinds}
        return SequenceLayout(
            input_ids,
            mask,
            video_grid_thw=torch.tensor(grids["video"], dtype=torch.long).view(-1, 3),
            image_grid_thw=torch.tensor(grids["image"], dtype=torch.long).view(-1, 3),
            placeholders=self.spec.placeholders,
            extra_tokens=self.spec.extra_tokens,
        )

    def _known_cameras(
        self, rows: Sequence[Sequence[PreparedScene]], layout: SequenceLayout, given: Cameras | None
    ) -> Cameras | None:
        """Return the cameras and camera index of each sequence. None without cameras, or if some are predicted."""
        spec = self.spec
        if not spec.uses_cameras:
            return None
        of_scenes = [[scene.cameras for scene in row if scene.cameras is not None] for row in rows]
        count, total = sum(map(len, of_scenes)), sum(map(len, rows))
        if given is None and not count and not spec.may_predict_cameras:
            return None
        if not is_contiguous(layout.media):
            raise InputError(
                "a sequence with a video between its images can't have cameras: put the images side by side"
            )
        if given is not None:
            on_host = given.to("cpu")
            return on_host if on_host.index is not None else on_host.with_index(layout.camera_index())
        if not total:
            return None
        if spec.only_predicted_cameras or (count < total and spec.may_predict_cameras):
            return None
        check_all_have_cameras(count, total)
        poses, K, present = stack_cameras(of_scenes)
        return Cameras.trusted(poses, K, valid_index(layout.camera_index(), present))

    # ---- answers ----------------------------------------------------------------------------------------------

    def prompts(
        self,
        prompts: Sequence[Sequence[int]],
        scene_index: Sequence[Sequence[int]],
        scenes: Sequence[PreparedScene],
        questions_per_pass: int = 8,
    ) -> list[Prompt]:
        """Group prompts that share a prefix, so that the prefix is decoded once.

        Args:
            prompts: Token ids without padding.
            scene_index: The scenes of each prompt, in the order in which they appear. Empty for text alone.
            scenes: Scenes of the batch.
            questions_per_pass: Maximum number of questions that are answered together.

        Raises:
            InputError: A prompt ends with its video, or has only one token.
        """
        visual = self.spec.placeholders.visual
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, shown in enumerate(scene_index):
            rows_of.setdefault(tuple(shown), []).append(row)
        made = []
        for shown, rows in rows_of.items():
            for family, length in _families([prompts[row] for row in rows], visual):
                own = [rows[i] for i in family]
                ids = torch.tensor([list(prompts[own[0]][:length])])
                prefix = self.build(ids, torch.ones_like(ids, dtype=torch.bool), scenes, [list(shown)])
                questions = [prompts[row][length:] for row in own]
                passes = [
                    questions[start : start + questions_per_pass]
                    for start in range(0, len(questions), questions_per_pass)
                ]
                made.append(Prompt(prefix, passes, own))
        return made


def _families(prompts: Sequence[Sequence[int]], visual: tuple[int, ...]) -> Iterator[tuple[Sequence[int], int]]:
    """Yield groups of prompts that share a prefix, with its length: all prompts together, or each one alone."""
    shared = shared_length(prompts, visual)
    families = [range(len(prompts))] if shared else [range(i, i + 1) for i in range(len(prompts))]
    for family in families:
        length = shared or shared_length([prompts[family[0]]], visual)
        if not length:
            raise InputError("a prompt that ends with its video, or that has one token alone, asks no question")
        yield family, length
