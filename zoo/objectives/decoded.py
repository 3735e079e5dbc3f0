"""What objectives read: the hidden states of chosen decoder layers, at the visual tokens of each scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.backbones.base import Backbone
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
    """

    scenes: Sequence[EncodedScene]
    sequences: Sequences
    last_hidden_state: Float[Tensor, "S L D"]
    layers: Mapping[int, Float[Tensor, "S L D"]]
    lm_head: Callable[[Tensor], Tensor]

    def views(self, layer: int) -> Iterator[tuple[EncodedScene, Float[Tensor, "rows t n D"]]]:
        """Yield each scene with the hidden states of its visual tokens in each of its sequences, in float32.

        The questions of a scene may share one sequence or have one each. Sequences from which nothing is learned here,
        since another process does, are left out.
        """
        sequences = self.sequences
        by_row = self.layers[layer].flatten(0, 1)[sequences.visual_places].split(sequences.visual_counts)
        rows_of: dict[int, list[Tensor]] = {}
        for states, shown, is_supervised in zip(by_row, sequences.scene_index, sequences.is_supervised, strict=True):
            if is_supervised:
                rows_of.setdefault(shown[0], []).append(states)
        for number, scene in enumerate(self.scenes):
            if rows := rows_of.get(number):
                yield scene, to_float32(torch.stack(rows)).unflatten(1, (scene.scene.num_steps, -1))


def decode(
    backbone: Backbone,
    layers: Sequence[int],
    inputs: Mapping[str, Any],
    scenes: Sequence[EncodedScene],
    sequences: Sequences,
) -> Decoded:
    """Run the decoder and keep the outputs of some layers, moved back to rows where scenes share sequences.

    The hooks lie outside of gradient checkpointing, which wraps the forward of a layer.

    Args:
        backbone: The model.
        layers: The numbers of the layers.
        inputs: Of the decoder, for these sequences.
        scenes: Encoded scenes of the batch.
        sequences: About them.
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
    return Decoded(scenes, sequences, hidden, kept, backbone.lm_head)
