"""Spa3R and Spa3-VLM (arXiv 2602.21186): a latent of a scene that predicts the features of held-out views.

`Spa3RField` maps the VGGT features of context views to latents, and predicts from them the features of any view by its
camera. `Spa3RAdapter` adds what the 2D tokens read from the latents. Modules have the official names of
hustvl/Spa3R, state 07e0b60. Gradients reach neither VGGT nor DINOv3, whose outputs are inputs here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import FUSION, GEOMETRY, QWEN25, VGGT_MODEL, PretrainedQwen25VL
from zoo.cameras import SceneGeometry, normalize_intrinsics
from zoo.cameras.rays import patch_directions
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.encodings.base import DecoderLayout
from zoo.encodings.prope import projection_matrices
from zoo.encodings.view_mixers import multiview_attention
from zoo.fusions.base import ActiveBranches, Fusion
from zoo.geometry.base import GeometryEncoder, Head, announce_license, valid_cameras
from zoo.geometry.layers import MLP, Attention, Block, rotations_at, select_frames
from zoo.geometry.vggt import VGGT, official_tensors, pose_encoding_to_cameras
from zoo.geometry.vggt.model import VGGT_1B
from zoo.geometry.vggt_encoder import VGGTEncoder, find_run_weights, tiny_vggt
from zoo.model import SpatialVLM
from zoo.precision import full_precision
from zoo.published.release import Release, ReleasedGeometry, aggregator_arguments, flat_settings, refuse_others
from zoo.seed import resolve_seed
from zoo.sequences.layout import GridTHW
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import (
    FirstNames,
    Layout,
    ReleasedWeights,
    StoredTensors,
    Tensors,
    TensorsUnder,
    load_weights,
)

__all__ = [
    "PretrainedSpa3R",
    "PretrainedSpa3VLM",
    "Spa3RFusion",
    "Spa3VLM",
    "TinySpa3R",
    "load_spa3_vlm",
    "official_spa3r_adapter",
    "official_spa3r_backbone",
    "official_spa3r_field",
    "official_spa3r_latents",
    "official_spa3r_prope",
]

EPS = float(torch.finfo(torch.float32).eps)  # of RMSNorm without a given one, in float32
REGISTERS = 4
BASE = 100.0  # of the RoPE over rows and columns
STD, WIDTH = 0.02, 768  # of all linear layers and of the queries at the start, and the field's width
DROPPED = re.compile(r"aggregator\.global_blocks\.\d+\.attn\.[qk]_norm\.bias")
FIELD = ("projection.", "query_embed.", "encoder.")  # starts of the names of what computes latents
PREDICTOR = ("pose_tokenizer.", "decoder.", "heads.", "depth_prob.")  # of what predicts features
TEACHER = ("dino.",)  # of DINOv3, which gives targets
VGGT_HEADS = ("camera_head.", "depth_head.", "point_head.", "track_head.")
LOSSES = ("geo_l1", "geo_cos", "sem_l1", "sem_cos", "depth_prob")  # of weight 1 each

Attend = Callable[[Attention, Tensor], Tensor]


def use_rms_norms(attention: Attention, head_dim: int) -> None:
    """Give an attention RMSNorm on the queries and keys of each head, in place of LayerNorm."""
    attention.q_norm, attention.k_norm = (nn.RMSNorm(head_dim, EPS) for _ in range(2))


class Stack(nn.Module):
    """Blocks over registers and other tokens, with RMSNorm on queries and keys, and a last LayerNorm.

    Args:
        dim: Width.
        num_heads: Number of heads.
        layers: Number of blocks.
    """

    def __init__(self, dim: int, num_heads: int, layers: int) -> None:
        super().__init__()
        self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, REGISTERS, dim))
        blocks = [Block(dim, num_heads, qk_norm=True, eps=1e-6, layer_scale=False) for _ in range(layers)]
        for block in blocks:
            use_rms_norms(block.attn, dim // num_heads)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(dim, 1e-6)

    def forward(self, tokens: Float[Tensor, "B N D"], attend: Attend) -> Float[Tensor, "B N D"]:
        """Apply the blocks to the tokens behind registers. `attend` applies an attention to registers and tokens."""
        x = torch.cat((self.register_tokens.expand(len(tokens), -1, -1), tokens), 1)
        blocks: Any = self.blocks
        for block in blocks:
            x = x + attend(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return self.norm(x)[:, REGISTERS:]


def ray_attention(
    world_to_camera: Float[Tensor, "B 4 4"], K_normalized: Float[Tensor, "B 3 3"], grid: tuple[int, int], others: int
) -> Attend:
    """Return the attention of one view per row with PRoPE on its rays, which follow `others` without a camera."""
    with full_precision(world_to_camera.device):
        P, P_inverse = projection_matrices(world_to_camera[:, None], K_normalized[:, None])
    matrices = {"q": P.mT, "k": P_inverse, "v": P_inverse, "o": P}

    def attend(attention: Attention, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = attention.queries_keys_values(x)
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = multiview_attention(q, k, v, matrices, patches_x=grid[1], patches_y=grid[0], others=others)
        return attention.output(out)

    return attend


class Spa3RField(nn.Module):
    """The predictive spatial field: latents of context views, and the features of any view predicted from them.

    Args:
        channels: Channels of VGGT's features.
        dim: Width.
        num_heads: Number of heads.
        queries: Number of latents.
        layers: Numbers of blocks of the encoder and of the decoder.
        semantic_channels: Channels of DINOv3's features.
        predicts: Whether there are the decoder and the heads, which only its training needs.
    """

    def __init__(
        self,
        channels: int = 2048,
        dim: int = 768,
        num_heads: int = 12,
        queries: int = 256,
        layers: tuple[int, int] = (6, 6),
        semantic_channels: int = 1024,
        predicts: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projection = nn.Linear(channels, dim)
        self.query_embed = nn.Embedding(queries, dim)
        self.encoder = Stack(dim, num_heads, layers[0])
        if predicts:
            self.pose_tokenizer, self.decoder = nn.Linear(3, dim), Stack(dim, num_heads, layers[1])
            heads = {"geo": channels, "sem": semantic_channels}
            self.heads = nn.ModuleDict({name: MLP(dim, 4 * dim, width) for name, width in heads.items()})
            self.depth_prob = MLP(dim, 4 * dim, 1)
        std = STD * (WIDTH / dim) ** 0.5  # at the published width as published; a narrow field would hardly begin
        self.apply(partial(start, std=std))

    def encode(self, features: Float[Tensor, "B V N C"], grid: tuple[int, int]) -> Float[Tensor, "B Q D"]:
        """Return the latents of context views.

        Args:
            features: VGGT's features of the patches.
            grid: Rows and columns of patches.
        """
        batch, views = features.shape[:2]
        queries = self.query_embed.weight
        tokens = torch.cat((queries.expand(batch, -1, -1), self.projection(features.flatten(1, 2))), 1)
        rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=queries.device) for side in grid)
        places = torch.cartesian_prod(rows, columns).repeat(views, 1)  # all views have the same
        position = torch.cat((places.new_zeros(REGISTERS + len(queries), 2), places))
        rotations = rotations_at(position, queries.shape[1] // self.num_heads, BASE)
        return self.encoder(tokens, lambda attention, x: attention(x, rotations))[:, : len(queries)]

    def decode(
        self,
        latents: Float[Tensor, "B Q D"],
        world_to_camera: Float[Tensor, "B V 4 4"],
        K_normalized: Float[Tensor, "B V 3 3"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "B V N D"]:
        """Return what is at the patches of views. Each view is decoded by itself.

        Intrinsics enter by the rays, which are in the camera's frame, and by PRoPE. The pose enters by PRoPE alone,
        between rays and latents.
        """
        batch, views = world_to_camera.shape[:2]
        rows, columns = grid
        with full_precision(latents.device):
            rays = F.normalize(patch_directions(K_normalized.flatten(0, 1), rows, columns), dim=-1).flatten(1, 2)
            P, P_inverse = projection_matrices(
                world_to_camera.flatten(0, 1)[:, None], K_normalized.flatten(0, 1)[:, None]
            )
        queries = self.pose_tokenizer(rays.to(self.pose_tokenizer.weight.dtype))
        tokens = torch.cat((latents.repeat_interleave(views, 0), queries), 1)
        attend = ray_attention(
            world_to_camera.flatten(0, 1), K_normalized.flatten(0, 1), grid, others=REGISTERS + latents.shape[1]
        )
        found = self.decoder(tokens, attend)[:, latents.shape[1] :]
        return found.unflatten(0, (batch, views))

    def losses(
        self,
        decoded: Float[Tensor, "B V N D"],
        geo: Float[Tensor, "B V N C"],
        sem: Float[Tensor, "B V N S"] | None,
        depth: Float[Tensor, "B V N 1"],
    ) -> dict[str, Float[Tensor, "B V"]]:
        """Return the losses of each view, by `LOSSES`. Without `sem` there are no `sem_*`.

        `depth_prob` trains its own head alone. Patches without a known depth, which is 0, do not count for it.
        """
        found: dict[str, Tensor] = {}
        for name, target in (("geo", geo), ("sem", sem)):
            if target is not None:
                found |= feature_losses(name, self.heads[name](decoded), target)
        known = (depth > 0)[..., 0]
        off = F.smooth_l1_loss(self.depth_prob(decoded.detach()), depth, reduction="none")[..., 0]
        return found | {"depth_prob": (off * known).sum(-1) / known.sum(-1).clamp(min=1)}


def feature_losses(
    name: str, predicted: Float[Tensor, "*views N C"], target: Float[Tensor, "*views N C"]
) -> dict[str, Float[Tensor, "*views"]]:
    """Return smooth L1 and 1 - cosine between features of each view, over its patches."""
    off = F.smooth_l1_loss(predicted, target, reduction="none").mean((-2, -1))
    return {f"{name}_l1": off, f"{name}_cos": 1 - F.cosine_similarity(predicted, target, -1).mean(-1)}


class Spa3RVGGT(VGGT):
    """VGGT with RMSNorm in place of LayerNorm on queries and keys of its global blocks, as Spa3R runs it.

    The official file's 48 biases of these norms have no place, and the published code drops them without a word.
    """

    def __init__(self, aggregator: dict[str, Any], **heads: Any) -> None:
        super().__init__(aggregator, **heads)
        blocks: Any = self.aggregator.global_blocks
        for block in blocks:
            use_rms_norms(block.attn, self.aggregator.head_dim)

    @staticmethod
    def drops(name: str) -> bool:
        """See `VGGT`. The names are those of all of Spa3R, or of VGGT alone."""
        return DROPPED.fullmatch(name) is not None or name.startswith((*FIELD, *PREDICTOR, *TEACHER))


def attends_to(is_target: Bool[Tensor, "B V"]) -> Bool[Tensor, "B V V"]:
    """Return which view attends to which in VGGT: targets to all, and context to context."""
    return is_target[:, :, None] | ~is_target[:, None]


class Spa3REncoder(VGGTEncoder):
    """Latents of all frames of a scene, from the features of a frozen VGGT.

    Cameras are those of VGGT's head.

    Args:
        vggt: A `Spa3RVGGT`.
        field: The field, whose encoder computes the latents.
        weights: See `VGGTEncoder`.

    Attributes:
        has_new_field: The field has random weights, which are not in VGGT's files.
    """

    gives_latents = True
    has_new_field = False

    def __init__(self, vggt: VGGT, field: Spa3RField, weights: Tensors | None = None) -> None:
        super().__init__(vggt.requires_grad_(False), (-1,), weights)
        self.field, self.width = field, field.query_embed.embedding_dim

    @property
    def files(self) -> tuple[Path, ...]:
        """See `GeometryEncoder`."""
        return () if self.has_new_field else super().files

    def blocks(self) -> list[nn.Module]:
        """See `GeometryEncoder`."""
        return [*super().blocks(), *self.field.encoder.blocks]

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """No head of VGGT, which is frozen."""
        return ()

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by official names, as in Spa3R's own checkpoint."""
        return {**super().official_state_dict(), **self.field.state_dict()}

    def _tokens(
        self, tokens: Mapping[int, Float[Tensor, "B S P _C"]], patch_start: int, images: Float[Tensor, "B S 3 H W"]
    ) -> dict[str, Tensor | None]:
        features = tokens[self.layer_numbers[0]][:, :, patch_start:]
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        return {"latents": self.field.encode(features, (rows, columns))}

    @torch.no_grad()
    def observe(
        self, images: Float[Tensor, "B V 3 H W"], is_target: Bool[Tensor, "B V"], *, is_masked: bool, cameras: bool
    ) -> tuple[Float[Tensor, "B context N C"], Float[Tensor, "B V N C"], tuple[Tensor, Tensor, Tensor] | None]:
        """Return VGGT's features, which a training of the field reads and predicts.

        Args:
            images: RGB in 0..1.
            is_target: Target views, equally many in each scene. The others are context.
            is_masked: Run VGGT once, so that context views attend to each other and targets to all. Otherwise the
                context views run again without the targets.
            cameras: Whether to predict cameras and depth.

        Returns:
            Features of the context views, features of all views, and poses, intrinsics and depth of all views.
        """
        heads = ("camera", "depth") if cameras else ()
        output = self.vggt.compute(images, (-1,), heads, attends=attends_to(is_target) if is_masked else None)
        features = output.tokens[-1][:, :, output.patch_start :]
        context = is_target.int().argsort(stable=True, dim=1)[:, : is_target.shape[1] // 2]
        if is_masked:
            seen = select_frames(features, context)
        else:
            alone = self.vggt.compute(select_frames(images, context), (-1,), ())
            seen = alone.tokens[-1][:, :, alone.patch_start :]
        if output.pose_enc is None or output.depth is None:
            return seen, features, None
        size = images.shape[-2], images.shape[-1]
        poses, K, _ = valid_cameras(output.pose_enc, size, pose_encoding_to_cameras)
        return seen, features, (poses, K, output.depth[..., 0])

    def is_unreachable(self, name: str, *, tokens: bool, cameras: bool) -> bool:
        """See `GeometryEncoder`. What predicts features serves the pretraining alone."""
        if name.startswith("field."):
            return not tokens or not name.removeprefix("field.").startswith(FIELD)
        return super().is_unreachable(name, tokens=tokens, cameras=cameras)


class PretrainedSpa3R(Spa3REncoder):
    """Spa3R in the published size, with trained weights, or with a new field to be trained over VGGT-1B.

    Args:
        path: Weights of all of Spa3R by official names, which may start with `model.`: a .safetensors file, a folder
            with model.safetensors, such as the run of a pretraining, or a hub id. null is a new field over VGGT-1B.
        vggt: VGGT-1B's weights for a new field: a hub id, a folder or a file. With a path they are not read.
        dtype: Dtype of VGGT's matrices and products. The rest is float32.
    """

    def __init__(
        self,
        path: str | None = None,
        vggt: str = "facebook/VGGT-1B",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        announce_license(vggt if path is None else path)
        given = official_tensors(vggt if path is None else path)
        weights = FirstNames(given, OWN)
        trunk = {"aggregator": VGGT_1B["aggregator"]}
        network = Spa3RVGGT.from_official(trunk, weights, torch.float32, getattr(torch, dtype))
        super().__init__(network, make_field(None if path is None else weights), weights)
        self.path, self.has_new_field = path, path is None


class TinySpa3R(Spa3REncoder):
    """A Spa3R with a few million parameters for small frames, with random weights or pretrained with spa3r_tiny.yaml.

    Args:
        path: A run of `fit --config spa3r_tiny.yaml`, or its model.safetensors. null is random weights.
        vggt: A run of `fit --config geometry_tiny.yaml`, whose VGGT a random field reads. null is a random VGGT, whose
            features hold little but colors. With a path it is not read.
        embed_dim: Width of VGGT. Its features have twice as many channels.
        depth: Number of VGGT's layers.
        num_heads: Number of attention heads of VGGT and of the field.
        features: Width of VGGT's dense heads.
        heads: Heads of VGGT to build.
        dim: Width of the field.
        queries: Number of latents.
        layers: Numbers of blocks of the field's encoder and decoder.
        semantic_channels: Channels of DINOv3's features.
        seed: Seed of the random weights. null is the run's seed.
    """

    def __init__(
        self,
        path: str | None = None,
        vggt: str | None = None,
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        features: int = 16,
        heads: Sequence[Head] = ("camera",),
        dim: int = 96,
        queries: int = 16,
        layers: tuple[int, int] = (2, 2),
        semantic_channels: int = 96,
        seed: int | None = None,
    ) -> None:
        weights: Tensors | None = None
        if path is not None:
            weights = FirstNames(StoredTensors(lambda: find_run_weights(path, "--config spa3r_tiny.yaml")), OWN)
        elif vggt is not None:
            weights = StoredTensors(lambda: find_run_weights(vggt))
        network = tiny_vggt(Spa3RVGGT, embed_dim, depth, num_heads, features, heads, weights, seed)
        sizes = (2 * embed_dim, dim, num_heads, queries, layers, semantic_channels)
        super().__init__(network, make_field(None if path is None else weights, *sizes, seed=seed))
        self.path, self.has_new_field = path, path is None


OWN = {"model.": ""}  # start of the names in Spa3R's own checkpoint


def make_field(
    weights: Tensors | None,
    *sizes: Any,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    **options: Any,
) -> Spa3RField:
    """Build a field with weights by official names, among which VGGT and DINOv3 may be, or with random ones.

    Args:
        weights: The tensors. None is random weights.
        sizes: Arguments of `Spa3RField`.
        dtype: Dtype of weights that are read.
        seed: Seed of the random weights. None is the run's seed.
        options: Arguments of `Spa3RField`.
    """
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(resolve_seed(seed))
            return Spa3RField(*sizes, **options)
    with torch.device("meta"):
        field = Spa3RField(*sizes, **options).to(dtype)
    others = ("aggregator.", *VGGT_HEADS, *TEACHER)
    load_weights(field, ReleasedWeights(weights, "Spa3R", is_skipped=lambda name: name.startswith(others)))
    return field


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


def start(module: nn.Module, std: float) -> None:
    """Draw the weights of a module as the published training does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


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
