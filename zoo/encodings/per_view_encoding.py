"""Base class of camera encodings whose keys and values depend on the view that looks at them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras, Scale
from zoo.cameras.token_runs import camera_runs
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras
from zoo.encodings.per_view import Channels, PerViewAttention
from zoo.encodings.placements import ChannelRange, UnrotatedChannels
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice

Applied = Literal["qkvo", "qk"]
PairedChannels = ChannelRange | UnrotatedChannels | None  # without gaps: the second half pairs with the first


class PerViewEncoding(CameraEncoding):
    """Base class of encodings whose keys and values depend on the view that looks at them.

    The KV cache holds stock keys and values, so decoded text, and whatever else has no camera, is as in the stock
    decoder; text that a view looks at is not rotated. Only relative poses enter, so no reference view is needed.

    Args:
        apply_to: Queries and keys alone, or values and outputs as well.
        channels: The rotated channels, whose second half pairs with the first; those that RoPE leaves alone keep the
            shift of positions exact. None takes RoPE's own pairs, with which the rotations commute, from the first one
            on, as many as fit.
        scale: Unit of translations and depths, see `CameraEncoding`.
    """

    def __init__(self, apply_to: Applied = "qkvo", channels: PairedChannels = None, scale: Scale = "none") -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("apply_to", apply_to, Applied)
        self.apply_to, self.channels = apply_to, channels

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        last = decoder.num_layers - 1
        if last and list(layers) == [last]:
            raise InputError(
                f"{type(self).__name__} changes what views read of each other, which from the last layer reaches no "
                "answer: let it act in an earlier layer of full attention too (tiny Qwen3.5: --model.backbone.layers 8)"
            )
        if self.channels is not None:
            self.channels.bind_to_decoder(decoder, layers)

    @property
    def attends_per_view(self) -> bool:
        return True

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            scale=self.scale != "none",
            shift=self.channels is None or self.channels.keeps_shift,
            intrinsics=False,
            identity_stock=False,
        )

    def pairs(self, head: HeadLayout, multiple: int) -> Channels:
        """Return the rotated pairs of channels, a multiple of so many.

        Raises:
            InputError: They do not fit heads of this size.
        """
        if self.channels is None:
            count, first, second = len(head.axes) // multiple * multiple, 0, len(head.axes)
        else:
            channels = self.channels.head_channels(head)
            count, first, second = len(channels) // 2, channels[0], channels[len(channels) // 2]
        if not count or count % multiple:
            raise InputError(
                f"{type(self).__name__} rotates multiples of {2 * multiple} channels, not {2 * count or head.dim}: set "
                "its channels to a ChannelRange of such a width, or give it fewer rays"
            )
        return Channels(first, second, count)

    def encode_canonical(
        self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool = True
    ) -> EncodedCameras:
        index = cameras.required("index")
        runs = camera_runs(index) if cameras.token_runs is None else cameras.token_runs
        if not runs.views:
            return EncodedCameras()
        used = cameras.used_mask()[..., None, None]  # the other cameras may be anything
        poses, K = (
            x.where(used, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
            for x in (cameras.world_to_camera, cameras.K_normalized)
        )
        finite = Cameras.trusted(poses, K, index, runs)
        tokens = [getattr(cameras, name) for name in ("patch_centers", "points", "time", "patch_sizes")]
        return self.encode_views(finite.with_tokens(*tokens), head, dtype, is_causal)

    @abstractmethod
    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> PerViewAttention:
        """Compute the attention from canonical cameras with `token_runs`, all of them finite; see `encode`."""

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        pairs = self.pairs(head, 1)
        channels = [start + i for start in (pairs.first, pairs.second) for i in range(pairs.count)]
        return set(product(self.apply_to, channels))


def token_intrinsics(cameras: Cameras) -> Float[Tensor, "B L 3 3"]:
    """Return the intrinsics of each token; those of the first camera for tokens without one."""
    index = cameras.required("index")
    return cameras.K_normalized[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]
