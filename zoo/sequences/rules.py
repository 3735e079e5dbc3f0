"""What a model states about its sequences, as one value that data workers can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.cameras.scene_geometry import MergedCamera
from zoo.errors import InputError
from zoo.sequences.layout import ExtraTokens, Placeholders
from zoo.sequences.loaded_scene import Grid, VisionInputs
from zoo.sequences.position_ids import TextAfterVision
from zoo.sequences.time_index import TimeIndex


class VisionRules(ABC):
    """What a vision tower computes from the sizes of its inputs alone."""

    @abstractmethod
    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        """Return the tower's inputs beside the patches, on the CPU.

        Args:
            grids: (t, h, w) in patches of each video or still image.
        """


@dataclass(frozen=True)
class SequenceRules:
    """What sequences depend on beside token ids and grids; picklable, without weights.

    Attributes:
        placeholders: Token ids that mark visual tokens.
        extra_tokens: The tokens that follow the 2D tokens of each view.
        time_index: The time component of the position ids.
        tokens_per_second: Positions per second.
        text_after_vision: The position of the text after a video, see `SpatialVLM`.
        context_length: Most tokens of a sequence.
        packs_questions: Whether several questions may share a sequence.
        is_hybrid: Whether some layers keep a recurrent state, see `Backbone`.
        merged_camera: The camera of two merged frames.
        uses_cameras: Whether some part reads cameras.
        may_predict_cameras: Whether a scene without cameras of the dataset gets predicted ones.
        only_predicted_cameras: Whether all scenes do, whatever the dataset has.
        vision: The vision tower's.
    """

    placeholders: Placeholders
    extra_tokens: ExtraTokens
    time_index: TimeIndex
    tokens_per_second: int | float
    text_after_vision: TextAfterVision
    context_length: int
    packs_questions: bool
    is_hybrid: bool
    merged_camera: MergedCamera
    uses_cameras: bool
    may_predict_cameras: bool
    only_predicted_cameras: bool
    vision: VisionRules

    def check_scene_packing(self) -> None:
        """Check that several scenes may share a sequence.

        Raises:
            InputError: Layers that no mask divides, or an attention that takes none of several scenes.
        """
        if self.is_hybrid:
            raise InputError(
                "--data.pack_scenes: Gated DeltaNet layers (Qwen3.5) carry their state from one scene into the next, "
                "whatever the mask: leave it out"
            )
        if not self.packs_questions:
            raise InputError(
                "--data.pack_scenes: this attention takes no mask of several scenes, choose "
                "--model.backbone.attn_implementation flex_attention on a GPU, or sdpa"
            )
