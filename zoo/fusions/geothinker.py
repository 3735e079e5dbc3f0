"""GeoThinker's fusion: visual tokens query their 3D tokens between attention and MLP of most decoder layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.encodings.base import DecoderLayout
from zoo.errors import InputError, check_choice
from zoo.fusions.base import HIDDEN, STD, Fusion, PatchMerger, TemporalMerge, merge_spatial, resize_grid
from zoo.geometry.base import SceneGeometry
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, GridTHW

Groups = Literal["published", "view"]
ALIGNMENT = 8  # channels of a head come in multiples of it on a card
FLOOR = 0.1  # added to a token's importance, whose logarithm is added to scores


class Interaction(nn.Module):
    """Let visual tokens attend to the 3D tokens of their group. Official names.

    With the states x of the visual tokens of a group and their 3D tokens g, a = LayerNorm(x) gives the queries and
    b = LayerNorm(g) the keys and values, without positions. Heads have width / heads channels, whatever the decoder's.
    A small network predicts from a, the 2D state, how important each token is as a key: s. Then

        added = tanh(gate) · W_o softmax(q · k / sqrt(d) + log(s + 0.1)) v

    The gate is one number. It starts at zero, and everything else at random, as published on Qwen2.5-VL.

    Args:
        width: D, width of the decoder.
        heads: Number of heads.
        eps: Added to the variance in both norms.
        importance: Whether to predict the importance of keys.
    """

    def __init__(self, width: int, heads: int, eps: float = 1e-6, importance: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.gate = nn.Parameter(torch.zeros(1))  # official files have no dimension here, which FSDP2 refuses
        self.input_layernorm, self.vggt_layernorm = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.importance_net: nn.Sequential | None = None
        if importance:
            self.importance_net = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self, states: Float[Tensor, "N D"], tokens: Float[Tensor, "N D"], groups: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "N D"]:
        """Return what is added to the states of visual tokens.

        Args:
            states: States behind the attention of a layer.
            tokens: The 3D token of each visual token.
            groups: (number of groups, tokens per group) of consecutive tokens.
        """
        dtype = self.gate.dtype  # of trained parameters, which may be float32 in a model in bfloat16
        flat, spatial = self.input_layernorm(states.to(dtype)), self.vggt_layernorm(tokens.to(dtype))
        q, k, v = self.q_proj(flat), self.k_proj(spatial), self.v_proj(spatial)
        bias: Tensor | None = None
        if self.importance_net is not None:
            bias = (self.importance_net(flat).sigmoid() + FLOOR).log().to(q.dtype)  # float32 under autocast
        mixed, start = [], 0
        for count, size in groups:
            own = slice(start, start + count * size)
            queries, keys, values = (x[own].view(count, size, self.heads, -1).transpose(1, 2) for x in (q, k, v))
            scale = queries.shape[-1] ** -0.5
            if bias is not None:  # as one more channel: a card's fast kernels have no gradients for a mask
                channel = (bias[own] / scale).view(count, 1, size, 1).expand(-1, self.heads, -1, -1)
                queries = F.pad(F.pad(queries, (0, 1), value=1.0), (0, ALIGNMENT - 1))
                keys = F.pad(torch.cat((keys, channel), -1), (0, ALIGNMENT - 1))
            found = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
            mixed.append(found.transpose(1, 2).reshape(count * size, -1))
            start = own.stop
        return self.gate.tanh() * self.o_proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))


def interaction_layers(layers: range) -> range:
    """Return the decoder layers with an interaction: the first three quarters."""
    return layers[: len(layers) - len(layers) // 4]


def group_size(size: int, count: int) -> int:
    """Return the tokens per group of `count` tokens: `size` if it divides them, otherwise all, as published."""
    return size if size and count % size == 0 else count


class GeoThinkerFusion(Fusion):
    """Let visual tokens query their 3D tokens within the decoder (GeoThinker, arXiv 2602.06037).

    The 2D tokens at the decoder's input are unchanged. In the first three quarters of the decoder's layers, an
    `Interaction` between attention and MLP adds to each visual token what it finds among the 3D tokens of its group. In
    a hybrid decoder only the layers with full attention have one. All layers read the same 3D tokens, from VG-LLM's
    merger. Text tokens are unchanged, and nothing happens while an answer is written. All gates start at zero, so an
    untrained model with full tokens is the plain one. In the published code on Qwen3-VL gates start as uninitialized
    memory.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        hidden: Channels of the merger's hidden layer.
        compress_beyond: A scene of more views (images, or temporal patches of a video) keeps a quarter of its visual
            tokens: 2D tokens, DeepStack features and 3D patches are resized bilinearly to half of their rows and
            columns. null keeps all.
        groups: The tokens that see each other. `view`: those of one view. `published`: runs of h/4 x w/4 tokens if
            `compress_beyond` is set, where a view has h x w patches, whether or not the scene is compressed. Where it
            is not, such a run is a quarter of a view, which ends within a row. Without `compress_beyond` a run is a
            view. If runs do not divide the tokens of the scene, they all see each other.
        importance: Predict the importance of keys. False leaves the scores as they are.
        detached: Stop the gradient at the 3D tokens, as published on Qwen3-VL. The merger then keeps its weights.
        temporal_merge: How the two frames of a video's 2D token are merged: their `mean` or the `first`.
        options: `active_branches` and `deepstack`, see `Fusion`.

    Raises:
        InputError: `compress_beyond` is less than one.
    """

    frames_per_token = 1
    whole_frames = True
    parts_3d = ("merger", "layers")

    def __init__(
        self,
        width: int,
        geometry_width: int,
        *,
        hidden: int = HIDDEN,
        compress_beyond: int | None = 8,
        groups: Groups = "published",
        importance: bool = True,
        detached: bool = False,
        temporal_merge: TemporalMerge = "mean",
        **options: Any,
    ) -> None:
        super().__init__(width, geometry_width, temporal_merge=temporal_merge, **options)
        check_choice("groups", groups, Groups)
        if compress_beyond is not None and compress_beyond < 1:
            raise InputError(f"--model.fusion.compress_beyond {compress_beyond}: a number of views, or null")
        self.hidden, self.compress_beyond, self.groups = hidden, compress_beyond, groups
        self.importance, self.detached = importance, detached
        self.merger = PatchMerger(geometry_width, hidden, width)
        self.layers = nn.ModuleDict()

    def bind(self, num_encoder_layers: int, decoder: DecoderLayout) -> None:
        """Build the interactions, see `Fusion`."""
        self.check_heads(decoder)
        for layer in interaction_layers(range(decoder.num_layers)):
            if layer in decoder.layers:
                made = Interaction(self.width, decoder.num_heads, decoder.norm_eps, self.importance)
                self.layers[str(layer)] = made
        if not self.layers:
            raise InputError(
                "GeoThinkerFusion acts in layers with full attention among the decoder's first three quarters, and "
                f"none of its {decoder.num_layers} layers is one: set more --model.backbone.layers"
            )

    @property
    def interactions(self) -> Mapping[int, nn.Module]:
        """See `Fusion`."""
        return {int(layer): each for layer, each in self.layers.items()}

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """See `Fusion`."""
        return super().unused_parts or (("merger",) if self.detached else ())

    def forward(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: GridTHW,
        geometry: SceneGeometry | None,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """Return the 2D tokens, see `Fusion`. The geometry is used by `layer_tokens`."""
        return self.branch_2d(visual, grid_thw, views)

    def layer_tokens(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, token_side: int, dtype: torch.dtype
    ) -> Float[Tensor, "t n D"] | None:
        """See `Fusion`. Of compressed tokens the patches are resized before the merger."""
        if not self.uses_geometry:
            return None
        assert geometry is not None, "GeoThinkerFusion reads the geometry of the scene"
        patches = self.paired(geometry.patches, "3D tokens", grid_thw)[:, 0].to(dtype)
        if token_side > SPATIAL_MERGE_SIZE:
            patches = resize_grid(patches, (patches.shape[1] // 2, patches.shape[2] // 2))
        rows, columns = (int(side) // token_side for side in grid_thw[1:])
        tokens = resize_grid(self.embed_3d(patches), (rows, columns)).flatten(1, 2)
        return tokens.detach() if self.detached else tokens

    def embed_3d(self, merged: Float[Tensor, "t h w C"]) -> Float[Tensor, "t rows columns D"]:
        """Merge 2 x 2 patches, without an odd last row and column."""
        steps, *sides = merged.shape[:3]
        rows, columns = (side // SPATIAL_MERGE_SIZE for side in sides)
        even = merged[:, : rows * SPATIAL_MERGE_SIZE, : columns * SPATIAL_MERGE_SIZE]
        blocks = merge_spatial(even.flatten(1, 2), (steps, *even.shape[1:3]), temporal_merge=1)
        return self.merger(blocks).view(steps, rows, columns, -1)

    def group_size(self, grid_thw: GridTHW, token_side: int) -> int:
        """See `Fusion`."""
        steps, height, width = (int(side) for side in grid_thw)
        count = steps * (height // token_side) * (width // token_side)
        if self.groups == "published" and self.compress_beyond is not None:
            token_side = 2 * SPATIAL_MERGE_SIZE
        rows, columns = height // token_side, width // token_side
        return group_size(rows * columns, count)
