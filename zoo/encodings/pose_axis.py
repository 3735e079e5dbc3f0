"""PoseAxis: the camera pose as an axis of mRoPE beside time, height and width."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras
from zoo.encodings.rotary import Rotation
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice
from zoo.sequences.time_index import PoseDistanceIndex, PoseTimeIndex

Choice = Literal["lowest", "highest", "alternate"]
ROPE_BASE = 1e4  # of P's frequencies in heads without RoPE


class PoseAxis(CameraEncoding):
    """An axis P of mRoPE: some of T's frequencies rotate queries and keys by the pose of the view instead of its time.

    P = T_0 + offset + span d / max d, for the position T_0 of the first token with a camera, and the distance d of the
    view to a reference view, or with `PathLengthIndex` the length of the camera path up to it. P is not rounded. H and
    W are as they were. Text has P = T, and so has a view without a camera: those tokens are the stock model's, bit for
    bit.

    With all of T's frequencies the axes are P, H, W ("PHW"). With some of them they are P, T, H, W ("PTHW"): 8 of 16
    give Qwen2.5-VL the sections 8, 8, 24, 24, and 12 of 24 give Qwen3-VL 12, 12, 20, 20.

    Gated DeltaNet has no T to replace: there P, from 0 at the reference view, rotates by frequencies of its own, and
    text is at 0.

    One number does not identify a pose, see `PoseIndex`, which replaces time in all frequencies and rounds.

    Args:
        index: `PoseDistanceIndex` (the default) or `PathLengthIndex`, with its `span` and `measure`.
        count: Number of T's frequencies that P gets; null is all of them.
        frequencies: Which of them. The lowest of Qwen3-VL turn too slowly to tell poses apart, see docs/encodings.md.
        offset: Of P, in positions.

    Raises:
        InputError: A count below 1, or more than T has.

    Example:
        >>> import torch
        >>> from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
        >>> encoding = PoseAxis(count=2, frequencies="alternate")
        >>> encoding.chosen(HeadLayout.in_row(16, (4, 2, 2)))
        [0, 2]
    """

    owns_channels = True
    is_orthogonal = True

    def __init__(
        self,
        index: PoseTimeIndex | None = None,
        count: int | None = None,
        frequencies: Choice = "highest",
        offset: int | float = 0.0,
    ) -> None:
        super().__init__(reference=None)
        check_choice("frequencies", frequencies, Choice)
        if count is not None and count < 1:
            raise InputError(f"PoseAxis: {count} frequencies: give at least 1, or null for all of T's")
        self.index, self.count, self.frequencies, self.offset = index or PoseDistanceIndex(), count, frequencies, offset
        self.rope: Float[Tensor, " F"]
        self.replaces_time = True

    def chosen(self, head: HeadLayout) -> list[int]:
        """Return the numbers of P's frequencies, from high to low.

        Raises:
            InputError: T has fewer.
        """
        section = head.with_axes().frequencies(0)
        count = len(section) if self.count is None else self.count
        if count > len(section):
            raise InputError(f"PoseAxis: mRoPE's T section has {len(section)} frequencies, fewer than {count}")
        if self.frequencies == "alternate":
            return [section[i * len(section) // count] for i in range(count)]
        return section[:count] if self.frequencies == "highest" else section[len(section) - count :]

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product("qk", head.with_axes().pairs(self.chosen(head))))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.chosen(decoder.head)  # raises if it does not fit
        self.replaces_time = bool(decoder.head.axes)
        if self.replaces_time:
            rope = decoder.rope_frequencies[0].detach().clone()
        else:
            count = len(decoder.head.with_axes().axes)
            rope = ROPE_BASE ** -(torch.arange(count, dtype=torch.float32, device=decoder.device) / count)
        self.register_buffer("rope", rope, persistent=False)

    @property
    def symmetries(self) -> Symmetries:
        # identical poses share one position, which differs from the stock model's where that has positions
        identity_stock = not self.replaces_time and not self.offset
        return Symmetries(scale=not self.index.uses_lengths, identity_stock=identity_stock)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        index = cameras.required("index")
        # 1. The position of each view.
        used = cameras.used_mask()
        views = self.index.spread(self.index.pose_values(cameras.world_to_camera, used), used)
        # 2. P - T of each token, or P where there is no T.
        visual = index >= 0
        ahead = self.offset + views.gather(1, index.clamp(min=0))
        if self.replaces_time:
            time = cameras.required("time")
            ahead = ahead + time.gather(1, visual.int().argmax(1, keepdim=True)) - time
        # 3. RoPE has rotated by T: the rest of the angle.
        chosen = torch.zeros(len(self.rope), dtype=torch.bool)
        chosen[self.chosen(head)] = True
        rope = self.rope.to(ahead.dtype) * chosen.to(ahead.device, non_blocking=True)
        angle = ahead.where(visual, 0.0)[..., None] * rope
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), "qk")
