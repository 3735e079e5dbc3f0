"""Extra channels of queries, keys and values for the camera to act on, beside those that the model has."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLTextModel

from zoo.encodings.base import QK, EncodedCameras, Rope, ZeroChannels
from zoo.encodings.blocks import CameraMatrices
from zoo.encodings.channels import ChannelBlock
from zoo.encodings.placements import Placement, RowMatrices
from zoo.errors import InputError


class ExtraChannels(Placement):
    """More channels a head, projected from the hidden states, for visual tokens only; zeros for text.

    What the model has stays as it is, with RoPE and all. The projections are learned, and those of the queries and
    of the outputs start at zero, so the untrained model is the stock one. Text neither asks nor is asked there, so
    a change of world cancels with text in the sequence too. A batch without any camera appends nothing; beside a view,
    text is stock but for the order in which wider heads sum up.

    Args:
        channels: a head, a multiple of four; of eight for flash attention.
    """

    leaves_text = True
    keeps_stock = False

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise InputError(f"appended channels come in groups of four, not {channels}")
        self.channels = channels
        self.layers: nn.ModuleDict | None = None

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        config = language_model.config
        sizes = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        made = {str(i): ExtraChannelProjections(*sizes, self.channels) for i in layers}
        self.layers = nn.ModuleDict(made).to(language_model.device)

    def place(
        self, index: Int[Tensor, "B L"], matrices: RowMatrices, head_dim: int, mrope_section: Sequence[int]
    ) -> EncodedCameras:
        if self.layers is None:
            raise ValueError("ExtraChannels has no projections before it is attached to a decoder")
        if not (index >= 0).any():
            return EncodedCameras(index.shape[1])
        block = ChannelBlock(self.channels, 0, self.channels)
        return ExtraChannelCameras(CameraMatrices(index, block, True, **matrices), index >= 0, self.layers)


class ExtraChannelProjections(nn.Module):
    """The learned part of one layer: q, k and v as of attention, and from each head's extra outputs to the rest."""

    def __init__(self, hidden_size: int, heads: int, key_value_heads: int, channels: int) -> None:
        super().__init__()
        self.heads = (heads, key_value_heads, key_value_heads)
        widths = [count * channels for count in self.heads]
        self.q, self.k, self.v = (nn.Linear(hidden_size, width, bias=False) for width in widths)
        self.o = nn.Parameter(torch.zeros(heads, channels, hidden_size // heads))
        nn.init.zeros_(self.q.weight)

    def forward(self, hidden_states: Float[Tensor, "B L W"]) -> list[Float[Tensor, "B L heads d"]]:
        projected = (F.linear(hidden_states, layer.weight.to(hidden_states)) for layer in (self.q, self.k, self.v))
        return [x.unflatten(-1, (heads, -1)) for x, heads in zip(projected, self.heads, strict=True)]


class ExtraChannelCameras(EncodedCameras):
    """The forward pass of all layers: one camera for each token, extra channels by the layer."""

    def __init__(self, cameras: CameraMatrices, visual: Bool[Tensor, "B L"], layers: nn.ModuleDict) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.visual, self.layers = cameras, visual, layers

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras:
        projections = self.layers[str(layer)]
        assert isinstance(projections, ExtraChannelProjections)
        return _AtLayer(self.cameras, self.visual, hidden_states, projections)

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(self.cameras.block.head_dim)

    def repeat_interleave(self, copies: int) -> ExtraChannelCameras:
        return ExtraChannelCameras(
            self.cameras.repeat_interleave(copies), self.visual.repeat_interleave(copies, 0), self.layers
        )


class _AtLayer(EncodedCameras):
    def __init__(
        self, cameras: CameraMatrices, visual: Tensor, hidden_states: Tensor, projections: ExtraChannelProjections
    ) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.visual, self.projections = cameras, visual[..., None, None], projections
        self.q, self.k, self.v = (x * self.visual for x in projections(hidden_states))

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        extra_q, extra_k = self.cameras.after_rope(self.q, self.k)
        return torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1)

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        return torch.cat((v, self.cameras.values(self.v)), -1)

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        rest, extra = o.split((o.shape[-1] - self.q.shape[-1], self.q.shape[-1]), -1)
        extra = self.cameras.transform_outputs(extra) * self.visual
        return rest + torch.einsum("blhe,hed->blhd", extra, self.projections.o.to(extra))
