"""GeoVR's heads on the decoder's hidden states (arXiv 2606.05833), with the names of its released files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.geometry.dpt import DPT, FusionChain, ResidualUnit, upsample
from zoo.objectives.geovr.teachers import find_teacher, geovr_layers

CAMERA_WIDTH, SCALE_WIDTH = 1536, 512
DEPTH_FEATURES, DEPTH_CHANNELS = 256, (256, 512, 1024, 1024)
TOKEN_CELLS = 4  # cells of the merged map per side of a token


class PoseMLP(nn.Module):
    """State of a camera token to VGGT's pose encoding: translation, quaternion, fields of view.

    Args:
        width: Of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, CAMERA_WIDTH),
            nn.GELU(),
            nn.Linear(CAMERA_WIDTH, CAMERA_WIDTH),
            nn.GELU(),
        )
        self.fc_t = nn.Linear(CAMERA_WIDTH, 3)
        self.fc_qvec = nn.Linear(CAMERA_WIDTH, 4)
        fields_of_view = nn.Linear(CAMERA_WIDTH, 2)
        nn.init.ones_(fields_of_view.bias)  # below 0, where half of them would start, the ReLU passes no gradient
        self.fc_fov = nn.Sequential(fields_of_view, nn.ReLU())

    def forward(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 9"]:
        """Predict pose encodings."""
        hidden = self.backbone(states)
        return torch.cat((self.fc_t(hidden), self.fc_qvec(hidden), self.fc_fov(hidden)), -1)


class ScaleMLP(nn.Module):
    """State of the scale token to meters per unit of the teacher's lengths.

    Args:
        width: Of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, SCALE_WIDTH), nn.GELU(), nn.Linear(SCALE_WIDTH, 1)
        )

    def forward(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Predict a scale above 0."""
        return self.backbone(states)[..., 0].exp()


class TokenMLP(nn.Module):
    """Visual tokens to a teacher's tokens: LayerNorm and two linear layers.

    Args:
        width: Of the decoder.
        teacher_width: Of the teacher's tokens.
    """

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, teacher_width)
        self.fc2 = nn.Linear(teacher_width, teacher_width)

    def forward(self, hidden: Float[Tensor, "T h w D"], target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Resample the tokens to the grid of the teacher's pooled tokens, and predict these."""
        if tuple(hidden.shape[1:3]) != tuple(target_hw):
            maps = F.interpolate(hidden.movedim(-1, 1), tuple(target_hw), mode="bilinear", align_corners=False)
            hidden = maps.movedim(1, -1)
        return self.fc2(F.gelu(self.fc1(self.norm(hidden))))


class DepthHead(DPT):
    """DPT on the visual tokens of four decoder layers: a depth for each pixel of the teacher's image.

    Args:
        width: Of the decoder.
        side: Pixels of the teacher's image for each token and side.
        features: Width of the merged maps.
        channels: Widths of the four maps.
    """

    def __init__(
        self,
        width: int,
        side: int,
        features: int = DEPTH_FEATURES,
        channels: Sequence[int] = DEPTH_CHANNELS,
    ) -> None:
        super().__init__(width, channels, patch_size=1)  # images are counted in tokens here
        self.side = side
        self.scratch = FusionChain(features, channels, ResidualUnit)
        self.proj = nn.Conv2d(features, (side // TOKEN_CELLS) ** 2, 1)

    def forward(
        self, hidden: Sequence[Float[Tensor, "T tokens D"]], grid_hw: Sequence[int], target_hw: Sequence[int]
    ) -> Float[Tensor, "T H W"]:
        """Predict depth.

        Args:
            hidden: Visual tokens of the four layers.
            grid_hw: Rows and columns of tokens.
            target_hw: Of the teacher's image in pixels, multiples of `side`.
        """
        (rows, columns), (height, width) = grid_hw, target_hw
        levels = self.scratch.levels(self.reassemble(hidden, rows, columns))
        size = (height // self.side * TOKEN_CELLS, width // self.side * TOKEN_CELLS)
        merged = upsample(self.scratch.merge(levels, upscale=1), size)
        maps = self.proj(self.embed_positions(merged, width / height))
        return F.pixel_shuffle(maps, self.side // TOKEN_CELLS)[:, 0].exp()


class GeoVRHeads(nn.Module):
    """The heads of a GeoVR model, as far as its files have them.

    Args:
        teacher: `vggt`, `vggt_omega` or `da3`.
        decoder_layers: Of the decoder.
        width: Of the decoder.
        parts: Names of the heads.

    Attributes:
        depth_layers: The hidden states that `depth` reads, see `geovr_layers`.
        distill_layers: Those that `distill` reads.
        teacher_layers: The teacher's layers that are distilled.
    """

    def __init__(self, teacher: str, decoder_layers: int, width: int, parts: Sequence[str]) -> None:
        super().__init__()
        own, layers = find_teacher(teacher), geovr_layers(teacher, decoder_layers)
        self.depth_layers, self.distill_layers, self.teacher_layers = layers["depth"], layers["distill"], own.distill
        if "camera_head" in parts:
            self.camera_head = PoseMLP(width)
        if "dpt_head" in parts:
            self.dpt_head = DepthHead(width, own.side)
        if "scale_head" in parts:
            self.scale_head = ScaleMLP(width)
        if "distill_head_list" in parts:
            self.distill_head_list = nn.ModuleList([TokenMLP(width, own.width) for _ in own.distill])

    @classmethod
    def from_official(cls, teacher: str, decoder_layers: int, state_dict: Mapping[str, Tensor]) -> GeoVRHeads:
        """Build the heads of official tensors, in their dtype; all other tensors are ignored."""
        norms = ("camera_head.backbone.0", "dpt_head.norm", "scale_head.backbone.0", "distill_head_list.0.norm")
        found = {
            name.partition(".")[0]: state_dict[f"{name}.weight"] for name in norms if f"{name}.weight" in state_dict
        }
        first = next(iter(found.values()))
        heads = cls(teacher, decoder_layers, len(first), list(found)).to(first.dtype)
        heads.load_state_dict({name: tensor for name, tensor in state_dict.items() if name.partition(".")[0] in found})
        return heads

    def named_official_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their official names."""
        return self.named_parameters()

    def camera(self, states: Float[Tensor, "T D"]) -> Float[Tensor, "T 9"]:
        """Predict the teacher's pose encodings."""
        return self.camera_head(states)

    def depth(
        self, hidden: Sequence[Float[Tensor, "T tokens D"]], grid_hw: Sequence[int], target_hw: Sequence[int]
    ) -> Float[Tensor, "T H W"]:
        """Predict the teacher's depth; see `DepthHead`."""
        return self.dpt_head(hidden, grid_hw, target_hw)

    def distill(self, hidden: Float[Tensor, "T h w D"], i: int, target_hw: Sequence[int]) -> Float[Tensor, "T H W C"]:
        """Predict the teacher's pooled tokens of the i-th distilled layer."""
        return self.distill_head_list[i](hidden, target_hw)

    def scale(self, states: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Predict meters per unit of the teacher."""
        return self.scale_head(states)
