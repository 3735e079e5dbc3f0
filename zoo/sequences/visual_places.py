"""Which visual token of which scene stands at each place of a sequence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.sequence_layout import MediaKind, SequenceLayout
from zoo.sequences.visual_grid import ExtraTokens


def visual_sources(
    layout: SequenceLayout,
    scenes: Sequence[SceneInputs],
    scene_index: Sequence[Sequence[int]],
    extra_tokens: ExtraTokens,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " K"]]:
    """Number the visual tokens of sequences among those of all scenes of a batch, scene after scene.

    Args:
        layout: Of the sequences.
        scenes: Of the batch.
        scene_index: The scenes of each sequence, in the order in which they appear.
        extra_tokens: The tokens that follow the 2D tokens of each view.

    Returns:
        The number of each visual token; and the numbers of those on a 2D grid among the 2D tokens of all scenes.
    """
    # 1. The first token of each medium, counted with and without extra tokens. The media of a scene follow each other.
    first, first_2d = 0, 0
    starts: list[list[tuple[int, int]]] = []
    for scene in scenes:
        own = []
        for steps, *_ in scene.media_grids:
            own.append((first, first_2d))
            first += steps * (scene.tokens_per_step + extra_tokens.count(scene.tokens_per_step))
            first += extra_tokens.at_end if scene.kind == "video" else 0
            first_2d += steps * scene.tokens_per_step
        starts.append(own)
    # 2. Those that the sequences show: each takes the next medium of its kind from its scenes.
    shown: dict[tuple[int, MediaKind], list[tuple[int, int]]] = defaultdict(list)
    for row, numbers in enumerate(scene_index):
        for number in numbers:
            shown[row, scenes[number].kind].extend(starts[number])
    of_medium = torch.tensor([shown[each.row, each.kind].pop(0) for each in layout.media], dtype=torch.long).view(-1, 2)
    # 3. Tokens follow each other within a medium, also over several spans.
    medium = layout.medium[layout.span]
    sources = []
    for start, chosen in ((of_medium[:, 0], torch.ones_like(layout.is_extra)), (of_medium[:, 1], ~layout.is_extra)):
        own_medium = medium[chosen]
        count = torch.bincount(own_medium, minlength=len(of_medium))
        within = torch.arange(len(own_medium)) - (count.cumsum(0) - count)[own_medium]
        sources.append(start[own_medium] + within)
    return sources[0], sources[1]
