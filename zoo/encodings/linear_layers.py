"""Camera encodings in the Gated DeltaNet layers of a hybrid decoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras, EncodedGroup, Rope
from zoo.encodings.subsets import EncodingWrapper, HeadSubset
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError

LINEAR = "linear"  # before the terms q, k, v and o of these layers


class DeltaNetLayers(EncodingWrapper):
    """An encoding in the Gated DeltaNet layers of a hybrid decoder (Qwen3.5), in place of its full attention.

    It transforms q, k and v behind the convolution, and the output before the gated norm. The layer writes
    S_t = g_t S_(t-1) + b_t k_t (v_t - g_t k_t^T S_(t-1))^T and reads o_t = q_t^T S_t. It is linear in v, so matrices on
    values and their inverses on outputs are exact whatever they are. But it multiplies keys with keys as well as with
    queries: only orthogonal matrices keep k_i^T k_j a function of relative poses and keys at length 1. There are no
    positions to share channels with. Without this class an encoding acts in full attention alone; for both, `Compose`
    one of each.

    Args:
        encoding: Acts on values and outputs (`apply_to: vo`), or on q and k by orthogonal matrices: GTA's rotations
            (`pose_component: rotation`), `PointRoPE`, `PoseAxis`. A `LayerSubset` inside chooses among these layers.

    Raises:
        InputError: An encoding whose matrices on q and k are not orthogonal or depend on the looking view, or that acts
            on no channels of a head.

    Example:
        >>> from zoo import DeltaNetLayers, GTA, PRoPE, UnrotatedChannels
        >>> DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo")).symmetries.world_views
        True
        >>> DeltaNetLayers(GTA(UnrotatedChannels(), pose_component="rotation")).symmetries.shift
        True
    """

    chooses_linear_layers = True

    def __init__(self, encoding: CameraEncoding) -> None:
        super().__init__(encoding)
        for part in _leaves(encoding):
            if part.attends_per_view:
                raise InputError(
                    f"DeltaNetLayers: {type(part).__name__} turns keys anew for each view that looks, and a recurrent "
                    "state has read each key once: put it beside DeltaNetLayers in a Compose, in full attention"
                )
            if not part.is_orthogonal:
                raise InputError(
                    f"DeltaNetLayers: {type(part).__name__} multiplies queries and keys by matrices that are not "
                    "orthogonal, and the delta rule multiplies keys with keys, where they do not cancel: set apply_to "
                    "vo, or take GTA with pose_component rotation; a class of your own whose matrices are orthogonal "
                    "says so by is_orthogonal, or keeps_rotations of a MatrixEncoding"
                )
        self.head: HeadLayout | None = None

    @property
    def symmetries(self) -> Symmetries:
        return replace(super().symmetries, shift=True)  # no position reaches these layers

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        own = self.head or HeadLayout(head.dim, ())
        return {(f"{LINEAR} {term}", channel) for term, channel in self.encoding.touched_channels(own)}

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        if decoder.linear is None or not decoder.linear.layers:
            raise InputError("DeltaNetLayers: this decoder has no Gated DeltaNet layers: take a Qwen3.5")
        self.head = decoder.linear.head
        for part in _leaves(self.encoding):
            if not part.touched_channels(self.head):
                raise InputError(f"DeltaNetLayers: {type(part).__name__} acts on no channels of a Gated DeltaNet head")
        if any(isinstance(part, HeadSubset) for part in self.encoding.modules()):
            raise InputError("DeltaNetLayers: queries have fewer heads than values there: leave HeadSubset out")
        super().bind_to_decoder(decoder.linear, decoder.linear.layers)

    def encode(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype = torch.float32) -> EncodedCameras:
        assert self.head is not None, "bind_to_decoder comes before encode"
        return EncodedLinearLayers([self.encoding.encode(cameras, self.head, dtype)])


class EncodedLinearLayers(EncodedGroup):
    """The hooks of one other encoding in Gated DeltaNet layers; full attention is stock."""

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        return None

    def at_linear_layer(self, layer: int, hidden_states: Tensor) -> EncodedCameras | None:
        no_rope = hidden_states.new_empty(*hidden_states.shape[:2], 0)
        return self.acting[0].at_layer(layer, hidden_states, (no_rope, no_rope))


def _leaves(encoding: CameraEncoding) -> Iterator[CameraEncoding]:
    for part in encoding.parts:
        yield from _leaves(part)
    if not encoding.parts:
        yield encoding
