"""The values passed from data to model: scenes, sequences of token ids about them, and records of their questions."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.cameras import CameraRuns
from zoo.sequences.loaded_scene import OptimizerStep, PreparedScene, VisionInputs
from zoo.sequences.packing import QuestionPlaces, ScenePacking
from zoo.sequences.position_ids import DeferredPositions
from zoo.values import Movable

Record = dict[str, Any]  # record of a question, as in predictions.jsonl


class Media(TypedDict, total=False):
    """The videos and images of a batch's sequences, in the order in which they appear.

    - pixel_values_videos (patches, channels) and video_grid_thw (V, 3)
    - pixel_values and image_grid_thw: the same for images
    - frames: one (T, 3, H, W) tensor in 0..1 per video, for models with a geometry encoder. The images of a sequence
      are one scene, and each image is doubled.
    - seconds_per_grid: one value per video. None is 1.0.
    - frame_indices: raw frames of each video, for a time index that uses them
    - cameras: cameras of each sequence, one per temporal patch
    """

    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    frames: list[Tensor] | None
    seconds_per_grid: list[float] | Tensor | None
    frame_indices: Sequence[Sequence[int]] | None
    cameras: Cameras | None


@dataclass(frozen=True, eq=False)
class Sequences(Movable):
    """S sequences of up to L tokens about scenes of a batch, ready to decode: N visual tokens, M supervised ones.

    All tensors hold integers or booleans, so precision plugins do not change them. Places are indices into the
    flattened batch of S times L tokens.

    Attributes:
        input_ids: Token ids with one placeholder per visual token, extra tokens included.
        position_ids: (t, h, w) of each token. None if they depend on predicted cameras.
        deferred_positions: Computes `position_ids` in the step if they depend on predicted cameras, otherwise None.
        visual_places: Place of each visual token, ordered by sequence.
        visual_sources: Number of each visual token among the visual tokens of all scenes, in the order of the batch.
        grid_places: Places of the K visual tokens that are on a 2D grid, which excludes extra tokens.
        grid_sources: Numbers of these tokens among the 2D tokens of all scenes.
        grid_cells: Column and row of each of these tokens in its view.
        grid_sizes: Columns and rows of its view.
        camera_index: For each 2D token, the temporal patch of its sequence, counted over all scenes. -1 for other
            tokens, and for tokens whose camera is known to be invalid.
        camera_runs: Runs of tokens with a camera. None in a model without cameras.
        answer_places: Places of the tokens before the supervised ones, which predict them.
        answer_ids: The supervised ids.
        answer_lengths: For each supervised token, the number of supervised tokens in its answer.
        padding_mask: True for tokens that are not padding, if padding is not on the right. None if causal attention is
            sufficient.
        group: Group of each token if several questions share a sequence, see `zoo.sequences.packing`. None otherwise.
        questions: Places of the questions for a hybrid decoder. None otherwise.
        packing: Places of rows in sequences of several scenes, if scenes are packed.
        cameras: Given cameras of each sequence, which replace the scenes' cameras.
        scene_index: The scenes of each sequence, in the order in which they appear.
        visual_counts: Number of visual tokens of each sequence.
        lengths: Number of tokens of each sequence, without padding.
        num_answers: Number of answers that are learned from in each sequence. 0 if another process learns from them. 1
            in sequences without labels.
    """

    input_ids: Int[Tensor, "S L"]
    position_ids: Int[Tensor, "3 S L"] | None
    visual_places: Int[Tensor, " N"]
    visual_sources: Int[Tensor, " N"]
    grid_places: Int[Tensor, " K"]
    grid_sources: Int[Tensor, " K"]
    grid_cells: Int[Tensor, "K 2"]
    grid_sizes: Int[Tensor, "K 2"]
    camera_index: Int[Tensor, "S L"]
    camera_runs: CameraRuns | None
    answer_places: Int[Tensor, " M"]
    answer_ids: Int[Tensor, " M"]
    answer_lengths: Int[Tensor, " M"]
    padding_mask: Bool[Tensor, "S L"] | None = None
    group: Int[Tensor, "S L"] | None = None
    questions: QuestionPlaces | None = None
    packing: ScenePacking | None = None
    cameras: Cameras | None = None
    deferred_positions: DeferredPositions | None = None
    scene_index: list[list[int]] = field(default_factory=list)
    visual_counts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    num_answers: list[int] = field(default_factory=list)

    def __reduce__(self) -> Any:
        """Pickle tensors by value, because each shared tensor costs a file descriptor and prompts may be many."""
        return _unpickled, (pickle.dumps(vars(self)),)

    def __len__(self) -> int:
        """Return S, the number of sequences."""
        return len(self.input_ids)

    def patch_centers(self) -> Float[Tensor, "S L 2"]:
        """Return the center of each 2D token in its view: (x, y) from -1/2 to 1/2, right and down. 0 elsewhere.

        The unit is the one of `zoo.cameras.normalize_intrinsics`.
        """
        return self._scatter((self.grid_cells + 0.5) / self.grid_sizes - 0.5, 0.0)

    def patch_sizes(self) -> Float[Tensor, "S L 2"]:
        """Return the width and height of each 2D token as fractions of its view's. 0 elsewhere."""
        return self._scatter(1 / self.grid_sizes, 0.0)

    def scatter_points(self, points: Float[Tensor, "tokens 3"]) -> Float[Tensor, "S L 3"]:
        """Put the 3D point of each 2D token at its place, and NaN elsewhere.

        Args:
            points: Points of the 2D tokens of all scenes, in the order of the batch.
        """
        return self._scatter(points[self.grid_sources], torch.nan)

    def _scatter(self, values: Float[Tensor, "K d"], fill: float) -> Float[Tensor, "S L d"]:
        flat = values.new_full((self.input_ids.numel(), values.shape[1]), fill)
        return flat.index_copy(0, self.grid_places, values).unflatten(0, self.input_ids.shape)

    def in_decoder(self, places: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
        """Return the places of tokens in the flattened input of the decoder."""
        return places if self.packing is None else self.packing.place[places]


def _unpickled(attributes: bytes) -> Sequences:
    made = object.__new__(Sequences)
    vars(made).update(pickle.loads(attributes))
    return made


class Prompt(Movable):
    """Questions about the same scenes, which follow a shared prefix.

    Args:
        prefix: One sequence with which all questions start.
        passes: For each pass, the token ids after the prefix of the questions that are answered together.
        rows: Number of each question in the batch, ordered by pass.

    Attributes:
        next_position: The position after the prefix. None if it depends on predicted cameras.
    """

    def __init__(self, prefix: Sequences, passes: Sequence[Sequence[Sequence[int]]], rows: Sequence[int]) -> None:
        self.prefix, self.rows = prefix, tuple(rows)
        self.passes = tuple(tuple(tuple(question) for question in each) for each in passes)
        positions = prefix.position_ids
        # the prefix ends in text, and the video before it may have higher positions, see `text_after_vision`
        self.next_position = None if positions is None else int(positions[:, 0, -1].amax()) + 1

    @property
    def scenes(self) -> list[int]:
        """The scenes that the questions are about."""
        return self.prefix.scene_index[0]


class Batch(Movable):
    """The scenes of a step with their sequences. It is immutable.

    This is a plain class, because Lightning's precision plugins would cast the poses in a dataclass.

    Args:
        scenes: The scenes, each encoded once. They may differ in their number of frames and in size.
        vision: The vision encoder's inputs for all scenes together, besides their patches.
        sequences: Sequences for training or logits. None otherwise.
        prompts: Prompts for answers. Empty otherwise.
        records: One record per question, in the order of the numbers in the prompts, without predictions.
        failed: Complete records of questions that can't be asked: their scene can't be read, or they contain a special
            token or too many tokens.
        num_answers: Number of answers that are learned from for each scene. 0 if another process learns from them.
        failed_answers: Number of answers in `failed` that would have been learned from.
        step: The optimizer step that a training batch belongs to. None for other batches.
    """

    scenes: list[PreparedScene]
    vision: VisionInputs | None
    sequences: Sequences | None
    prompts: list[Prompt]
    records: list[Record]
    failed: list[Record]
    num_answers: tuple[int, ...]
    failed_answers: int
    step: OptimizerStep | None

    def __init__(
        self,
        scenes: Sequence[PreparedScene],
        vision: VisionInputs | None = None,
        sequences: Sequences | None = None,
        prompts: Sequence[Prompt] = (),
        records: Sequence[Record] = (),
        failed: Sequence[Record] = (),
        num_answers: Sequence[int] = (),
        failed_answers: int = 0,
        step: OptimizerStep | None = None,
    ) -> None:
        vars(self).update(scenes=list(scenes), vision=vision, sequences=sequences, prompts=list(prompts))
        vars(self).update(records=list(records), failed=list(failed), num_answers=tuple(num_answers))
        vars(self).update(failed_answers=failed_answers, step=step)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Batch does not change: make another one to set {name}")

    @property
    def weight(self) -> float:
        """The factor that turns a mean over this batch's questions into its share of the mean over an optimizer step.

        Lightning divides a loss by the number of accumulated batches, and the strategies average gradients over
        processes. The factor undoes both, so that each question has the weight 1 / `OptimizerStep.num_answers`. The
        total number of failed answers is known only when the step is complete, see `Task.on_before_optimizer_step`.
        """
        return 1.0 if self.step is None else sum(self.num_answers) * self.step.num_batches / self.step.num_answers
