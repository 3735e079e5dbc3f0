"""The trunk of Depth Anything 3: a plain DINOv2 in which some blocks attend over all views of a scene.

It expects normalized images, has no register tokens, and keeps DINOv2's official parameter names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.cameras.cameras import FEWEST_VIEWS, saddle_balanced
from zoo.errors import InputError, check_choice
from zoo.geometry.layers import MLP, Block, PatchConvolution, SwiGLU, patch_rotations, rotations_at
from zoo.precision import full_precision, to_float32

PATCH_SIZE = 14
ROPE_BASE = 100.0
BLOCK_EPS = 1e-6  # all other LayerNorms have 1e-5
OFFSET = 0.1  # DINOv2 without registers scales its position table by (side + 0.1) / 37 instead of to a size
SIZES = {  # width, blocks, heads, MLP
    "vits": (384, 12, 6, MLP),
    "vitb": (768, 12, 12, MLP),
    "vitl": (1024, 24, 16, MLP),
    "vitg": (1536, 40, 24, SwiGLU),
}


class Trunk(nn.Module):
    """DINOv2 with alternating attention (section 3 of arXiv 2511.10647).

    Blocks are local (each view alone) or global (all tokens of a scene). Blocks of odd index from `alt_start` on are
    global. Before block `alt_start` the class token of each view is replaced by a camera token. One block earlier a
    reference view is chosen, whose camera is the world. A start of -1 means never.

    Args:
        name: `vits`, `vitb`, `vitl` or `vitg`, which sets width, blocks, heads and kind of MLP.
        out_layers: Blocks whose outputs the heads use.
        alt_start: The first block after the camera token.
        qknorm_start: The first block with LayerNorm on queries and keys.
        rope_start: The first block with RoPE.
        cat_token: Whether a layer's output is [last local block | block] with 2C channels, or the block's output alone.
        embed_dim: Width C, instead of the name's.
        depth: Number of blocks, instead of the name's.
        num_heads: Number of attention heads, instead of the name's.
        img_size: Side in pixels of the square image that the position table was made for.

    Raises:
        InputError: The name is unknown, or the width does not fit the heads.
    """

    def __init__(
        self,
        name: str,
        out_layers: Sequence[int],
        alt_start: int = -1,
        qknorm_start: int = -1,
        rope_start: int = -1,
        cat_token: bool = True,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        img_size: int = 518,
    ) -> None:
        super().__init__()
        if name not in SIZES:
            raise InputError(f"unknown net.name {name!r}: choose {', '.join(SIZES)}")
        width, blocks, heads, mlp = SIZES[name]
        self.embed_dim, self.depth, heads = embed_dim or width, depth or blocks, num_heads or heads
        if self.embed_dim % (4 * heads):
            raise InputError(f"embed_dim={self.embed_dim} must be a multiple of 4 * num_heads={4 * heads} for RoPE")
        never = self.depth
        self.alt_start = alt_start if alt_start >= 0 else never
        self.rope_start = rope_start if rope_start >= 0 else never
        qknorm_start = qknorm_start if qknorm_start >= 0 else never
        self.out_layers, self.cat_token = tuple(out_layers), cat_token
        self.head_dim, self.width = self.embed_dim // heads, (1 + cat_token) * self.embed_dim

        side = img_size // PATCH_SIZE
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, self.embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, self.embed_dim))
        if self.alternates:  # index 0 is for the reference view, 1 for all others
            self.camera_token = nn.Parameter(0.02 * torch.randn(1, 2, self.embed_dim))
        self.patch_embed = nn.ModuleDict({"proj": PatchConvolution(PATCH_SIZE, self.embed_dim)})
        self.blocks = nn.ModuleList(
            [Block(self.embed_dim, heads, 4.0, i >= qknorm_start, BLOCK_EPS, mlp) for i in range(self.depth)]
        )
        self.norm = nn.LayerNorm(self.embed_dim)

    @property
    def alternates(self) -> bool:
        """Whether the trunk has global blocks. Otherwise views do not see each other."""
        return self.alt_start < self.depth

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self.cls_token.dtype

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Collection[int],
        strategy: Strategy,
        camera_tokens: Float[Tensor, "B S C"] | None = None,
    ) -> tuple[dict[int, Float[Tensor, "B S P D"]], Int[Tensor, " B"] | None]:
        """Compute layer outputs, in the order of the input.

        No block after the last of `layers` is computed, and no other output is kept.

        Args:
            images: Normalized images.
            layers: Indices from 0 to depth - 1.
            strategy: How the reference view is chosen.
            camera_tokens: Tokens of given cameras. No reference view is chosen then.

        Returns:
            For each of `layers`, tokens in the order camera token, patches (row by row), and the reference view of each
            scene, or None where none was chosen. The block's patches are normalized. The local block's patches and the
            camera token are not.
        """
        views, grid = images.shape[1], (images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE)
        x = self.embed(images)
        rotations = self._rotations(grid, views, images.device)
        reference = order = None
        outputs: dict[int, Tensor] = {}
        local = x
        for i in range(max(layers, default=-1) + 1):
            if i == self.alt_start - 1 and self.alternates and camera_tokens is None and views >= FEWEST_VIEWS:
                reference = choose_reference(x[:, :, 0], strategy)
                order = reference_first(reference, views)
                x = reorder(x, order)
            if i == self.alt_start:
                x = torch.cat((self._camera_tokens(x, camera_tokens), x[:, :, 1:]), 2)
            is_global = i >= self.alt_start and i % 2 == 1
            rotation = rotations[is_global] if i >= self.rope_start else None
            joined = x.flatten(1, 2) if is_global else x.flatten(0, 1)
            x = self.blocks[i](joined, rotation).reshape(x.shape)
            local = local if is_global else x
            if i in layers:
                output = self._output(local, x)
                outputs[i] = output if order is None or i < self.alt_start - 1 else reorder(output, order.argsort(1))
        return outputs, reference

    def embed(self, images: Float[Tensor, "B S 3 H W"]) -> Float[Tensor, "B S P C"]:
        """Return the class token and the patches of each view, with positions."""
        maps = self.patch_embed["proj"](images.flatten(0, 1).to(self.dtype))
        tokens = torch.cat((self.cls_token.expand(len(maps), -1, -1), maps.flatten(2).mT), 1)
        return (tokens + self._positions(maps.shape[-2], maps.shape[-1])).unflatten(0, images.shape[:2])

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 P C"]:
        special, table = self.pos_embed.split([1, self.pos_embed.shape[1] - 1], 1)
        side = round(table.shape[1] ** 0.5)
        if rows == columns == side:
            return self.pos_embed
        square = to_float32(table).mT.unflatten(2, (side, side))
        scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
        resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat((special, resized.flatten(2).mT.to(special.dtype)), 1)

    def _rotations(self, grid: tuple[int, int], views: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return RoPE of local blocks, by a patch's place, and of global blocks, where all patches are at (1, 1)."""
        local = patch_rotations(grid, 1, self.head_dim, ROPE_BASE, device)
        position = torch.ones(1 + grid[0] * grid[1], 2, device=device)
        position[0] = 0.0
        return local, rotations_at(position.repeat(views, 1), self.head_dim, ROPE_BASE)

    def _camera_tokens(self, x: Tensor, given: Tensor | None) -> Float[Tensor, "B S 1 C"]:
        if given is not None:
            return given.to(x.dtype)[:, :, None]
        which = (torch.arange(x.shape[1], device=x.device) > 0).long()  # the reference view comes first
        return self.camera_token[:, which, None].expand(len(x), -1, -1, -1)

    def _output(self, local: Tensor, x: Tensor) -> Tensor:
        current = torch.cat((x[:, :, :1], self.norm(x[:, :, 1:]).to(x.dtype)), 2)
        return torch.cat((local, current), -1) if self.cat_token else current


def reference_first(reference: Int[Tensor, " B"], views: int) -> Int[Tensor, "B S"]:
    """Return an order of views with the reference first. The others keep their order."""
    index = torch.arange(views, device=reference.device).expand(len(reference), -1)
    return torch.where(index == reference[:, None], -1, index).argsort(1)


def reorder(x: Float[Tensor, "B S P C"], order: Int[Tensor, "B S"]) -> Float[Tensor, "B S P C"]:
    """Reorder the views of each scene."""
    return x.gather(1, order[:, :, None, None].expand_as(x))


# ---- The reference view of a scene, from the class tokens of its views -----------------------------------------------

Strategy = Literal["first", "middle", "saddle_balanced", "saddle_sim_range"]


@torch.no_grad()
def choose_reference(class_tokens: Float[Tensor, "B S C"], strategy: Strategy) -> Int[Tensor, " B"]:
    """Choose the reference view of each scene in float32 or better. It determines the world frame.

    - `first`, `middle`: view 0, S // 2
    - `saddle_balanced`: the most average view, see `zoo.cameras.cameras.saddle_balanced`
    - `saddle_sim_range`: the view whose similarities to the others have the widest range. Without a negative cosine the
      two most similar views tie, and rounding decides.

    Raises:
        InputError: The strategy is unknown.
    """
    check_choice("reference", strategy, Strategy)
    scenes, views, _ = class_tokens.shape
    if strategy in ("first", "middle"):
        return torch.full((scenes,), 0 if strategy == "first" else views // 2, device=class_tokens.device)
    if strategy == "saddle_balanced":
        return saddle_balanced(class_tokens)
    with full_precision(class_tokens.device):
        unit = F.normalize(to_float32(class_tokens), dim=-1)
        similarity = unit @ unit.mT - torch.eye(views, dtype=unit.dtype, device=unit.device)
        return (similarity.amax(-1) - similarity.amin(-1)).argmax(-1)


# ---- The size to which the official input processor resizes an image -------------------------------------------------

ResizeMethod = Literal["upper_bound_resize", "lower_bound_resize", "upper_bound_crop", "lower_bound_crop"]


def official_size(
    height: int, width: int, process_res: int = 504, method: ResizeMethod = "upper_bound_resize"
) -> tuple[int, int]:
    """Return height and width after the official processing.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        process_res: The longest side (`upper_bound`) or the shortest (`lower_bound`) before sides become multiples
            of 14.
        method: `resize` rounds to the nearest multiple, `crop` to the next lower one, which can be 0.

    Raises:
        InputError: The method is unknown.
    """
    check_choice("method", method, ResizeMethod)
    side = max(height, width) if method.startswith("upper") else min(height, width)
    scaled = [max(1, round(each * (process_res / side))) for each in (height, width)]
    if method.endswith("crop"):
        rows, columns = (each // PATCH_SIZE * PATCH_SIZE for each in scaled)
    else:  # ties round up
        rows, columns = (max(1, (each + PATCH_SIZE // 2) // PATCH_SIZE) * PATCH_SIZE for each in scaled)
    return rows, columns
