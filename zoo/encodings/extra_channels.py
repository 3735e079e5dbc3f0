"""Extra channels of queries, keys and values for the cameras, beside the model's own."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.encodings.channel_blocks import CameraMatrices, ChannelBlock
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import QK, EncodedCameras, Rope, ZeroChannels
from zoo.encodings.placements import Matrices, Placement
from zoo.errors import InputError


class ExtraChannels(Placement):
    """Extra channels per head, projected from the hidden states of visual tokens; zeros for text.

    The model's own channels and RoPE are unchanged. The projections are learned; those of queries and outputs start at
    zero, so the untrained model is the stock one. Text has zeros in these channels, so the invariance to a change of
    world holds with text in the sequence. A batch without cameras gets no extra channels. Otherwise text equals the
    stock model up to the order of summation in wider heads.

    Args:
        channels: Extra channels per head, a multiple of four; of eight for flash attention.
    """

    leaves_text = True
    keeps_stock = False

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise InputError(f"the number of extra channels must be a multiple of four, got {channels}")
        self.channels = channels
        self.layers: nn.ModuleDict | None = None

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        projections = {str(layer): ExtraChannelProjections(decoder, self.channels) for layer in layers}
        self.layers = nn.ModuleDict(projections).to(decoder.device)

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        assert self.layers is not None, "bind_to_decoder comes before encode"
        encoded = CameraMatrices(cameras, ChannelBlock(range(self.channels)), True, **matrices)
        return EncodedCameras(encoded.num_tokens) if encoded.is_empty else ExtraChannelCameras(encoded, self.layers)


class ExtraChannelProjections(nn.Module):
    """Projections of one layer: to extra channels of q, k and v, and from each head's extra outputs to its others."""

    def __init__(self, decoder: DecoderLayout, channels: int) -> None:
        super().__init__()
        self.heads = (decoder.num_heads, decoder.num_key_value_heads, decoder.num_key_value_heads)
        self.q, self.k, self.v = (nn.Linear(decoder.hidden_size, n * channels, bias=False) for n in self.heads)
        self.o = nn.Parameter(torch.zeros(decoder.num_heads, channels, decoder.head.dim))
        nn.init.zeros_(self.q.weight)

    def forward(self, hidden_states: Float[Tensor, "B L W"]) -> list[Float[Tensor, "B L heads d"]]:
        projected = (F.linear(hidden_states, layer.weight.to(hidden_states)) for layer in (self.q, self.k, self.v))
        return [x.unflatten(-1, (heads, -1)) for x, heads in zip(projected, self.heads, strict=True)]


class ExtraChannelCameras(EncodedCameras):
    """The cameras of a forward pass, and the projections of all layers."""

    def __init__(self, cameras: CameraMatrices, layers: nn.ModuleDict) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.layers = cameras, layers

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras:
        projections = self.layers[str(layer)]
        assert isinstance(projections, ExtraChannelProjections)
        return _ExtraChannelsAtLayer(self.cameras, hidden_states, projections)

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(len(self.cameras.block.channels))


class _ExtraChannelsAtLayer(EncodedCameras):
    def __init__(self, cameras: CameraMatrices, hidden_states: Tensor, projections: ExtraChannelProjections) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.projections = cameras, projections
        self.visual: Bool[Tensor, "B L 1 1"] = (cameras.index >= 0)[..., None, None]
        self.q, self.k, self.v = (x * self.visual for x in projections(hidden_states))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        extra_q, extra_k = self.cameras.after_rope(self.q, self.k)
        return torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1)

    def transform_values(self, v: Tensor) -> Tensor:
        return torch.cat((v, self.cameras.transform_values(self.v)), -1)

    def transform_outputs(self, o: Tensor) -> Tensor:
        own, extra = o.split((o.shape[-1] - self.q.shape[-1], self.q.shape[-1]), -1)
        extra = self.cameras.transform_outputs(extra) * self.visual
        return own + torch.einsum("blhe,hed->blhd", extra, self.projections.o.to(extra))
