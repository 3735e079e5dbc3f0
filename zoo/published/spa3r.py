"""Spa3R (arXiv 2602.21186): a latent of a scene that predicts the features of held-out views.

`Spa3RField` maps the VGGT features of context views to latents, and predicts from them the features of any view by its
camera. Modules have the official names of hustvl/Spa3R, state 07e0b60. Gradients reach neither VGGT nor DINOv3, whose
outputs are inputs here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.cameras.rays import patch_directions
from zoo.encodings.prope import projection_matrices
from zoo.encodings.view_mixers import multiview_attention
from zoo.geometry.base import Head, announce_license, valid_cameras
from zoo.geometry.layers import MLP, Attention, Block, rotations_at, select_frames
from zoo.geometry.vggt import VGGT, official_tensors, pose_encoding_to_cameras
from zoo.geometry.vggt.model import VGGT_1B
from zoo.geometry.vggt_encoder import VGGTEncoder, find_run_weights, tiny_vggt
from zoo.precision import full_precision
from zoo.seed import resolve_seed
from zoo.weights.load import (
    FirstNames,
    ReleasedWeights,
    StoredTensors,
    Tensors,
    load_weights,
)

__all__ = [
    "PretrainedSpa3R",
    "TinySpa3R",
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


def start(module: nn.Module, std: float) -> None:
    """Draw the weights of a module as the published training does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


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
