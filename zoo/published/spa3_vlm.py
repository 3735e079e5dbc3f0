"""Spa3-VLM (arXiv 2602.21186): 2D tokens read Spa3R's latents of the scene before the decoder.

`Spa3RFusion` adds what the 2D tokens of all frames read from the latents (`zoo.published.spa3r`). Names are those of
hustvl/Spa3R, state 07e0b60. Below stand the parts by official names, for comparison with the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import FUSION, GEOMETRY, QWEN25, VGGT_MODEL, PretrainedQwen25VL
from zoo.cameras import SceneGeometry, normalize_intrinsics
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.encodings.base import DecoderLayout
from zoo.fusions.base import ActiveBranches, Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.layers import Attention
from zoo.model import SpatialVLM
from zoo.published.release import Release, ReleasedGeometry, aggregator_arguments, flat_settings, refuse_others
from zoo.published.spa3r import (
    STD,
    VGGT_HEADS,
    Spa3REncoder,
    Spa3RField,
    Spa3RVGGT,
    TinySpa3R,
    attends_to,
    make_field,
    ray_attention,
    use_rms_norms,
)
from zoo.sequences.layout import GridTHW
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import (
    Layout,
    Tensors,
    TensorsUnder,
)

__all__ = [
    "PretrainedSpa3VLM",
    "Spa3RFusion",
    "Spa3VLM",
    "load_spa3_vlm",
    "official_spa3r_adapter",
    "official_spa3r_backbone",
    "official_spa3r_field",
    "official_spa3r_latents",
    "official_spa3r_prope",
]


class CrossAttention(nn.Module):
    """Attention of 2D tokens to latents, with LayerNorm on the queries and keys of each head."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // num_heads) for _ in range(2))

    def forward(self, x: Float[Tensor, "N D"], context: Float[Tensor, "Q D"]) -> Float[Tensor, "N D"]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

        v = heads(self.v_proj(context))
        q, k = self.q_norm(heads(self.q_proj(x))).to(v.dtype), self.k_norm(heads(self.k_proj(context))).to(v.dtype)
        return self.proj(F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1))


class Spa3RAdapter(nn.Module):
    """Add what 2D tokens read from Spa3R's latents, by a gate per channel that sees what was read.

    Args:
        dim: Width of the decoder.
        num_heads: Its number of heads.
        latent_dim: Width of the latents.
        published_start: Start as the published training: all matrices are drawn, so that the first step differs from
            the plain model. Otherwise the last one is zero, and the model starts as the plain one.
    """

    def __init__(self, dim: int, num_heads: int, latent_dim: int = 768, published_start: bool = True) -> None:
        super().__init__()
        self.geometry_projector = nn.Sequential(nn.Linear(latent_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.geom_cross_attention = CrossAttention(dim, num_heads)
        self.ln = nn.LayerNorm(dim)
        self.geometry_adaptor = nn.Sequential(nn.Linear(dim, dim // 4), nn.GELU(), nn.Linear(dim // 4, dim))
        self.geometry_gate = nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)
                nn.init.zeros_(module.bias)
        if not published_start:
            nn.init.zeros_(self.geometry_adaptor[2].weight)  # type: ignore[arg-type]

    def forward(self, tokens: Float[Tensor, "N D"], latents: Float[Tensor, "Q E"]) -> Float[Tensor, "N D"]:
        """Change the 2D tokens of all frames, which are one sequence."""
        read = self.ln(self.geom_cross_attention(tokens, self.geometry_projector(latents)))
        return tokens + self.geometry_adaptor(read) * self.geometry_gate(read)


class Spa3RFusion(Fusion):
    """2D tokens of all frames query the latents of the scene, see `Spa3RAdapter`.

    Args:
        width: Width of the decoder.
        geometry_width: Width of the latents.
        published_start: See `Spa3RAdapter`.
        active_branches: See `Fusion`.
        deepstack: See `Fusion`.
    """

    reads_latents = mixes_views = whole_frames = True
    frames_per_token = 1
    parts_3d = ("adapter",)

    def __init__(
        self,
        width: int,
        geometry_width: int,
        published_start: bool = True,
        active_branches: ActiveBranches = "both",
        deepstack: bool = True,
    ) -> None:
        super().__init__(
            width, geometry_width, active_branches=active_branches, temporal_merge="first", deepstack=deepstack
        )
        self.published_start = published_start

    def bind(self, num_encoder_layers: int, decoder: DecoderLayout) -> None:
        """Build the adapter, which has as many heads as the decoder."""
        self.check_heads(decoder)
        self.adapter = Spa3RAdapter(self.width, decoder.num_heads, self.geometry_width, self.published_start)

    def branch_3d(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, dtype: torch.dtype
    ) -> Float[Tensor, "1 Q C"] | None:
        """Return the latents. None if the branch is inactive."""
        if not self.uses_geometry:
            return None
        if geometry is None or geometry.latents is None:
            raise ValueError("Spa3RFusion needs the latents of one scene")
        return geometry.latents[None].to(dtype)

    def embed_3d(self, merged: Tensor) -> Tensor:
        """Return the tokens: there are none of frames to be embedded."""
        return merged

    def join(self, flat: Float[Tensor, "t n D"], spatial: Float[Tensor, "1 Q C"]) -> Float[Tensor, "t n D"]:
        """Let the 2D tokens of all views read the latents."""
        if not self.uses_geometry:
            return flat
        return self.adapter(flat.flatten(0, 1), spatial[0]).view_as(flat)


# ---- Spa3-VLM: the released folder -----------------------------------------------------------------------------------

PREFIX = "geometry_encoder.spa3r."
ADAPTER = ("geometry_projector.", "geom_cross_attention.", "ln.", "geometry_adaptor.", "geometry_gate.")
LAYOUT: Layout = {
    **{f"{PREFIX}{part}": f"{VGGT_MODEL}{part}" for part in ("aggregator.", *VGGT_HEADS)},
    PREFIX: f"{GEOMETRY}field.",
    **{name: f"{FUSION}adapter.{name}" for name in ADAPTER},
}
SIZES = {"spa3r_embed_dim": 768, "spa3r_num_queries": 256}  # read with defaults
HEADS, LAYERS = 12, (6, 6)
WITH_SPA3R = {"use_geometry_encoder": True, "geometry_encoder_type": "spa3r"}


@dataclass(frozen=True)
class ReleasedSpa3R(ReleasedGeometry):
    """The parts of a released Spa3-VLM besides its backbone.

    Attributes:
        dim: Width of the latents.
        queries: Number of latents.
        predicts: Whether the tensors have what predicts features.
    """

    dim: int = 768
    queries: int = 256
    predicts: bool = False

    def load_encoder(self, tensors: Tensors, dtype: torch.dtype, *, is_restorable: bool = True) -> GeometryEncoder:
        """Return VGGT and the field. DINOv3 is left out."""
        weights = TensorsUnder(tensors, PREFIX)
        vggt = Spa3RVGGT.from_official({"aggregator": dict(self.aggregator)}, weights, dtype)
        if not is_restorable:
            vggt.source = {}
        semantic = {"semantic_channels": weights["heads.sem.fc2.bias"].shape[0]} if self.predicts else {}
        sizes = (2 * vggt.aggregator.embed_dim, self.dim, HEADS, self.queries, LAYERS)
        return Spa3REncoder(vggt, make_field(weights, *sizes, dtype=dtype, predicts=self.predicts, **semantic))


class Spa3VLM(VideoQATask):
    """Spa3-VLM (arXiv 2602.21186): 2D tokens of images read latents of the whole scene, which Spa3R computes.

    spa3_vlm.yaml shows each frame as an image, as published.

    Args:
        geometry: `TinySpa3R`, or the released one of the backbone.
        fusion: `Spa3RFusion`.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = TinySpa3R,
        fusion: Callable[[int, int], Fusion] = Spa3RFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)


class PretrainedSpa3VLM(Release, PretrainedQwen25VL):
    """A released Spa3-VLM: Qwen2.5-VL, with its Spa3R and adapter for a model that combines them.

    Args:
        path: A hub id (`hustvl/Spa3-VLM`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title, released = "Spa3-VLM", "hustvl/Spa3-VLM"
    licensed = License(
        "`hustvl/Spa3-VLM`",
        "unknown (its files were not seen; the code is MIT). Made of Qwen2.5-VL-3B, VGGT-1B and, in training, DINOv3",
    )
    architecture = "Qwen2_5_VLForConditionalGenerationWithSpa3R"
    released_fusions: ClassVar[tuple[type[nn.Module], ...]] = (Spa3RFusion,)
    encoder_class = Spa3REncoder
    prefixes = (PREFIX, "geom_cross_attention.")
    config_keys = (*Release.config_keys, *WITH_SPA3R, *SIZES)
    known_configs = {"Spa3-VLM": ("Qwen2.5-VL-3B-Instruct", WITH_SPA3R)}
    shown_as = {"frames_as": "image", "still_resize": {"class_path": "datamodules.FixedWidthStills"}}

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        is_spa3r = config.get("geometry_encoder_type") == "spa3r"
        return config.get("model_type") == QWEN25 and bool(config.get("use_geometry_encoder")) and is_spa3r

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geometry_of(self.settings, self.tensor_names)

    @classmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        return LAYOUT

    @classmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        geometry = model.geometry
        assert isinstance(geometry, Spa3REncoder)
        embed = geometry.field.query_embed
        return {**WITH_SPA3R, "spa3r_embed_dim": embed.embedding_dim, "spa3r_num_queries": embed.num_embeddings}


def geometry_of(config: Mapping[str, Any], names: Collection[str]) -> ReleasedSpa3R | None:
    """Return the parts of a Spa3-VLM beside its backbone. None if it was saved without geometry.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        names: Official names of its tensors. Empty for a model that is built by shapes only.
    """
    if not config.get("use_geometry_encoder"):
        return None
    refuse_others(config, {"geometry_encoder_type": ("spa3r",)})
    dim, queries = (int(config.get(name, default)) for name, default in SIZES.items())
    predicts = any(name.startswith(f"{PREFIX}heads.") for name in names)
    sizes: dict[str, Any] = {"dim": dim, "queries": queries, "predicts": predicts}
    return ReleasedSpa3R(LAYOUT, aggregator_arguments(config), (-1,), partial(Spa3RFusion), **sizes)


def load_spa3_vlm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Spa3-VLM with these weights, in their dtype. All parameters but VGGT's are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}.
        state_dict: Tensors by official names. Spa3R's decoder, heads and DINOv3 may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the encoder is of another kind.
    """
    return model_from_tensors(PretrainedSpa3VLM, config, geometry_of(flat_settings(config), state_dict), state_dict)


def official_spa3r_latents(model: SpatialVLM, frames: Float[Tensor, "S 3 H W"]) -> Float[Tensor, "1 Q E"]:
    """Return the latents of frames in 0..1, as a model's Spa3R computes them."""
    assert model.geometry is not None
    (found,) = model.geometry([frames], [None], tokens=True, cameras=False)
    assert found.latents is not None
    return found.latents[None]


# ---- Parts by official names, for comparison with the published code -------------------------------------------------


class OfficialField:
    """A `Spa3RField` with these weights, for intrinsics in pixels of pictures of whole patches.

    Args:
        config: The published arguments.
        state_dict: Tensors by official names, in whose dtype it computes.
    """

    def __init__(self, config: Mapping[str, Any], state_dict: Tensors) -> None:
        layers = (config["num_encoder_layers"], config["num_decoder_layers"])
        sizes = (config["embed_dim"], config["num_heads"], config["num_queries"])
        self.field: Any = filled(
            Spa3RField(config["vggt_channels"], *sizes, layers, config["semantic_channels"]), state_dict
        )
        self.patch = config["patch_size"]
        self.encode = self.field.encode

    def decode(
        self,
        latents: Float[Tensor, "B Q D"],
        world_to_camera: Float[Tensor, "B V 4 4"],
        K_px: Float[Tensor, "B V 3 3"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "B V N D"]:
        """See `Spa3RField.decode`."""
        K = normalize_intrinsics(K_px.to(latents), grid[1] * self.patch, grid[0] * self.patch)
        found: Tensor = self.field.decode(latents, world_to_camera.to(latents), K, (grid[0], grid[1]))
        return found

    def losses(self, decoded: Float[Tensor, "B V N D"], **targets: Tensor | None) -> dict[str, Float[Tensor, ""]]:
        """Return the means over all views, see `Spa3RField.losses`."""
        return {name: each.mean() for name, each in self.field.losses(decoded, **targets).items()}


def official_spa3r_field(config: Mapping[str, Any], state_dict: Tensors) -> OfficialField:
    """Return the field with these weights."""
    return OfficialField(config, state_dict)


def official_spa3r_prope(config: Mapping[str, Any], state_dict: Tensors) -> Callable[..., Tensor]:
    """Return the decoder's attention with these weights: of rays with one camera per row, behind `other_tokens`."""
    heads = config["num_heads"]
    attention = Attention(config["dim"], heads, qk_norm=True)
    use_rms_norms(attention, config["dim"] // heads)
    filled(attention, {name.removeprefix("attn."): each for name, each in state_dict.items()})

    def attend(
        x: Float[Tensor, "B N D"],
        world_to_camera: Float[Tensor, "B 4 4"],
        K_px: Float[Tensor, "B 3 3"],
        *,
        grid: tuple[int, int],
        other_tokens: int,
    ) -> Float[Tensor, "B N D"]:
        K = normalize_intrinsics(K_px.to(x), grid[1] * config["patch_size"], grid[0] * config["patch_size"])
        return ray_attention(world_to_camera.to(x), K, (grid[0], grid[1]), other_tokens)(attention, x)

    return attend


def official_spa3r_backbone(config: Mapping[str, Any], state_dict: Tensors) -> Callable[..., Tensor]:
    """Return VGGT as Spa3R runs it: a map of pictures in 0..1 to the tokens of its last layer."""
    vggt = Spa3RVGGT.from_official({"aggregator": dict(config)}, state_dict)

    def run(
        images: Float[Tensor, "B V 3 H W"], view_mask: Bool[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B V P C"]:
        """`view_mask` marks targets."""
        attends = None if view_mask is None else attends_to(view_mask)
        return vggt.compute(images, (-1,), (), attends=attends).tokens[-1]

    return run


def official_spa3r_adapter(config: Mapping[str, Any], state_dict: Tensors) -> Callable[..., Tensor]:
    """Return the adapter with these weights: a map of the 2D tokens of all frames and (1, Q, E) latents."""
    sizes = config["hidden_size"], config["num_attention_heads"], config["spa3r_embed_dim"]
    adapter = filled(Spa3RAdapter(*sizes), state_dict)

    def fuse(image_embeds: Float[Tensor, "N D"], latents: Float[Tensor, "1 Q E"]) -> Float[Tensor, "N D"]:
        found: Tensor = adapter(image_embeds, latents[0])
        return found

    return fuse


def filled(module: nn.Module, state_dict: Tensors) -> nn.Module:
    """Return the module with these weights, in their dtype. Parameters among them get its gradients."""
    module.load_state_dict({**state_dict}, assign=True)
    return module
