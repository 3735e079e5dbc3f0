"""DeepStack for a decoder whose stock code has none: features are added behind its first layers."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn


class DeepFeatures(NamedTuple):
    """What is added to the hidden states of visual tokens behind each of the first decoder layers.

    Attributes:
        places: Of the visual tokens in the flattened batch.
        features: Of each layer.
    """

    places: Int[Tensor, " N"]
    features: Float[Tensor, "layers N D"]

    def added_to(self, hidden_states: Float[Tensor, "B L D"], layer: int) -> Float[Tensor, "B L D"]:
        """Return the outputs of a layer (from 0) with its features added."""
        if layer >= len(self.features):
            return hidden_states
        return add_features(hidden_states, self.places, self.features[layer])


def add_features(
    hidden_states: Float[Tensor, "B L D"], places: Int[Tensor, " N"], features: Float[Tensor, "N D"]
) -> Float[Tensor, "B L D"]:
    """Return the hidden states with features added at places of the flattened batch."""
    added = hidden_states.flatten(0, 1).index_add(0, places, features.to(hidden_states.dtype))
    return added.view_as(hidden_states)


class DeepstackLayer(nn.Module):
    """A decoder layer of transformers that adds `DeepFeatures`; without any, the stock forward runs.

    They are a keyword argument of the model's forward, as the camera encoding is (`CameraAttention`), and added in the
    layer's own forward: gradient checkpointing recomputes the addition, and no state is kept between calls. The steps
    of an answer hold text only and need none.
    """

    self_attn: Any

    @property
    def layer_idx(self) -> int:
        """The number of the layer, from 0."""
        return int(self.self_attn.layer_idx)

    def forward(self, hidden_states: Tensor, deepstack: DeepFeatures | None = None, **kwargs: Any) -> Tensor:
        """Run the stock forward, then add the features of this layer."""
        hidden_states = super().forward(hidden_states, **kwargs)
        return hidden_states if deepstack is None else deepstack.added_to(hidden_states, self.layer_idx)
