"""What objectives read: the hidden states of chosen decoder layers, at the visual tokens of each scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.backbones.base import Backbone
from zoo.encodings.encoded import EncodedCameras
from zoo.objectives.average import AVERAGES, Average, SceneLoss
from zoo.precision import to_float32
from zoo.scene_encoding.encoded_scene import EncodedScene
from zoo.sequences.batch import Sequences


@dataclass(eq=False)
class Decoded:
    """Sequences about scenes after the decoder.

    Attributes:
        scenes: Encoded scenes of the batch, with what objectives learn to predict.
        sequences: Which scene each of them shows, where its visual tokens are, and what is supervised.
        last_hidden_state: After the decoder's last norm.
        layers: Outputs of the decoder layers that some objective reads.
        lm_head: The projection of hidden states to logits.
        average: How losses are averaged.
        camera_encoding: The hooks of the camera encoding, after all layers; None without cameras.
    """

    scenes: Sequence[EncodedScene]
    sequences: Sequences
    last_hidden_state: Float[Tensor, "S L D"]
    layers: Mapping[int, Float[Tensor, "S L D"]]
    lm_head: Callable[[Tensor], Tensor]
    average: Average = AVERAGES["questions"]
    camera_encoding: EncodedCameras | None = None

    def views(self, layer: int | None) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with the outputs of a layer at its visual tokens, or for None those of the last norm.

        See `views_of`.
        """
        return self.views_of(self.last_hidden_state if layer is None else self.layers[layer])

    def views_of(self, states: Float[Tensor, "S L D"]) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with what the visual tokens of its views have in each of its sequences, in float32.

        See `visual_states`; a token behind the last view is left out.
        """
        for scene, own in self.visual_states(states):
            steps, per_step = scene.visual.tokens.shape[:2]
            yield scene, own[:, : steps * per_step].unflatten(1, (steps, per_step))

    def raw_depths(self) -> Iterator[list[tuple[EncodedScene, Float[Tensor, "rows t n ends"]]]]:
        """Yield what the view mixer predicts of the depth of its tokens, and each decoder layer, by scene.

        See `ViewMixer.raw_depth` and `EncodedCameras.raw_depths`. A view mixer predicts the same in each sequence.
        """
        rows = [len(self._rows_of(number)) for number in range(len(self.scenes))]
        mixed = [
            (scene, to_float32(scene.raw_depth).expand(count, -1, -1, -1))
            for scene, count in zip(self.scenes, rows, strict=True)
            if count and scene.raw_depth is not None
        ]
        if mixed:
            yield mixed
        for raw in () if self.camera_encoding is None else self.camera_encoding.raw_depths.values():
            yield list(self.views_of(raw))

    def visual_states(self, states: Float[Tensor, "S L D"]) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows N D"]]]:
        """Yield each scene with what its visual tokens have in each of its sequences, in float32.

        The questions of a scene may share one sequence or have one each. Sequences from which nothing is learned here,
        since another process does, are left out.

        Args:
            states: Of all tokens, such as the outputs of a layer.
        """
        sequences = self.sequences
        by_row = states.flatten(0, 1)[sequences.visual_places].split(sequences.visual_counts)
        for number, scene in enumerate(self.scenes):
            if rows := self._rows_of(number):
                yield scene, to_float32(torch.stack([by_row[row] for row in rows]))

    def mean_over_answers(self, losses: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """Average the losses of the supervised tokens, see `Average`."""
        return self.average.over_answers(losses, self.sequences.answer_lengths, sum(self.sequences.num_answers))

    def mean_over_scenes(
        self, losses: Iterable[tuple[EncodedScene, Float[Tensor, "rows ..."], Bool[Tensor, " ..."]]]
    ) -> Float[Tensor, ""]:
        """Average losses on visual tokens, see `Average`; 0 without any.

        Args:
            losses: Scenes from `views`, with the loss in each of their sequences and where its target is known.
        """
        numbers = {id(scene): number for number, scene in enumerate(self.scenes)}
        counts = self.sequences.num_answers
        found = [
            SceneLoss(values, known, [counts[row] for row in self._rows_of(numbers[id(scene)])])
            for scene, values, known in losses
        ]
        if not found:
            return to_float32(self.last_hidden_state.new_zeros(()))
        return self.average.over_scenes(found, sum(counts))

    def _rows_of(self, scene: int) -> list[int]:
        """The sequences that show a scene and that something is learned from."""
        rows = zip(self.sequences.scene_index, self.sequences.num_answers, strict=True)
        return [row for row, (shown, count) in enumerate(rows) if count and shown[0] == scene]


def decode(
    backbone: Backbone,
    layers: Sequence[int],
    inputs: Mapping[str, Any],
    scenes: Sequence[EncodedScene],
    sequences: Sequences,
    average: Average = AVERAGES["questions"],
) -> Decoded:
    """Run the decoder and keep the outputs of some layers, moved back to rows where scenes share sequences.

    The hooks lie outside of gradient checkpointing, which wraps the forward of a layer.

    Args:
        backbone: The model.
        layers: The numbers of the layers.
        inputs: Of the decoder, for these sequences.
        scenes: Encoded scenes of the batch.
        sequences: About them.
        average: How losses are averaged.
    """
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for number in layers:

            def keep(_: Any, __: Any, output: Tensor, number: int = number) -> None:
                kept[number] = output

            handle = backbone.decoder.layers[number].register_forward_hook(keep)
            stack.callback(handle.remove)
        hidden = backbone.decode(inputs).last_hidden_state
    if (packing := sequences.packing) is not None:
        hidden, kept = packing.unpack(hidden), {number: packing.unpack(output) for number, output in kept.items()}
    return Decoded(scenes, sequences, hidden, kept, backbone.lm_head, average, inputs.get("camera_encoding"))
