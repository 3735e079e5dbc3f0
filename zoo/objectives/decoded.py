"""What objectives read: the hidden states of chosen decoder layers, at the visual tokens of each scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.encodings.scene_packing import ScenePacking
from zoo.precision import to_float32
from zoo.scenes import SceneTokens
from zoo.sequences.layout import SequenceLayout
from zoo.sequences.packing import IGNORED

if TYPE_CHECKING:
    from zoo.model import SpatialVLM


@dataclass(eq=False)
class Decoded:
    """Sequences about scenes after the decoder.

    Attributes:
        scenes: encoded scenes, with the cameras and the depth that objectives learn to predict.
        scene_of: the scene of each sequence, which shows one.
        layout: where their visual tokens are.
        last_hidden_state: after the decoder's last norm.
        layers: outputs of the decoder layers that some objective reads.
        lm_head: the projection of hidden states to logits.
        labels: the supervised ids, `IGNORED` elsewhere; None outside training.
    """

    scenes: Sequence[SceneTokens]
    scene_of: Sequence[int]
    layout: SequenceLayout
    last_hidden_state: Float[Tensor, "B L D"]
    layers: Mapping[int, Float[Tensor, "B L D"]]
    lm_head: Callable[[Tensor], Tensor]
    labels: Int[Tensor, "B L"] | None = None

    def views(self, layer: int) -> Iterator[tuple[SceneTokens, Float[Tensor, "rows t n D"]]]:
        """Yields each scene with the hidden states of its visual tokens in each of its sequences, in float32.

        The questions of a scene may share one sequence or have one each. Sequences from which nothing is learned here,
        since another process does, are left out.
        """
        layout = self.layout
        counts = layout.row[layout.tokens].bincount(minlength=layout.shape[0]).tolist()
        by_row = layout.gather(self.layers[layer]).split(counts)
        every = [True] * len(by_row)
        learned = every if self.labels is None else (self.labels != IGNORED).any(1).tolist()
        for number, scene in enumerate(self.scenes):
            rows = [by_row[row] for row, own in enumerate(self.scene_of) if own == number and learned[row]]
            if rows:
                yield scene, to_float32(torch.stack(rows)).unflatten(1, (scene.scene.num_steps, -1))


def decode(
    model: SpatialVLM,
    inputs: Mapping[str, Any],
    scenes: Sequence[SceneTokens],
    scene_of: Sequence[int],
    layout: SequenceLayout,
    labels: Tensor | None = None,
    packing: ScenePacking | None = None,
) -> Decoded:
    """Runs the decoder and keeps the outputs of the layers that some objective reads.

    With a `packing` the inputs are of packed sequences, and what is returned is of their rows.

    The hooks lie outside of gradient checkpointing, which wraps the forward of a layer.
    """
    kept: dict[int, Tensor] = {}
    backbone = model.backbone
    with ExitStack() as stack:
        for number in model.objectives.layers:

            def keep(_: Any, __: Any, output: Tensor, number: int = number) -> None:
                kept[number] = output

            handle = backbone.decoder.layers[number].register_forward_hook(keep)
            stack.callback(handle.remove)
        hidden = backbone.decode(inputs).last_hidden_state
    if packing is not None:
        hidden, kept = packing.unpack(hidden), {number: packing.unpack(output) for number, output in kept.items()}
    return Decoded(scenes, scene_of, layout, hidden, kept, backbone.lm_head, labels)
