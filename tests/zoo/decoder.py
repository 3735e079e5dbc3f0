"""A tiny random Qwen2.5-VL and two samples with one video each, for tests of encodings in a decoder."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from docs.symmetries import COMBINATIONS
from zoo import TinyQwen25VL
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, EncodedCameras, PRoPE
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.positions import mrope_position_ids
from zoo.sequences.layout import Placeholders, SequenceLayout
from zoo.sequences.time_index import ConstantIndex

PAD, START, END, VIDEO = 0, 1, 2, 3
HEAD_DIM, MROPE_SECTION, WIDTH = 32, [4, 6, 6], 128
SHAPE: dict[str, Any] = {"head": HeadLayout.in_row(HEAD_DIM, MROPE_SECTION)}
TOKENS = {"image_token_id": 4, "video_token_id": VIDEO, "vision_start_token_id": START}
GRIDS = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}
ROWS = [[9, 8, START, *[VIDEO] * 12, END, 7, 6, 5], [9, START, *[VIDEO] * 8, END, 5, 6]]
MOVES = 1e-3  # how far cameras have to move the logits, at least
FAST = {  # an encoding of each kind, and of each kind of layer; the slow tests take all
    *("PRoPE, ChannelRange", "PRoPE, TemporalSection", "PRoPE, LowFrequencies shared", "PRoPE, ExtraChannels"),
    *("GTA, TemporalSection, learned scale", "RayEncoding, TemporalSection", "PoseALiBi, learned slopes"),
    *("PoseIndex, PoseDistanceIndex", "PoseAxis", "ValueRoPE", "PointRoPE, qkvo", "RayRoPE", "URoPE"),
    *("DeltaNetLayers(GTA rotation)", "DeltaNetLayers(PoseAxis)", "Compose(RayRoPE, DeltaNetLayers(PRoPE vo))"),
    *("PRoPE, UnrotatedChannels", "CaPE, UnrotatedChannels", "LearnedStrength(PRoPE, UnrotatedChannels)"),
    *("HeadSubset(PRoPE, TemporalSection)", "Compose(PRoPE TemporalSection, PoseALiBi)"),
}


def case(is_fast: bool, *values: Any, id: str | None = None) -> Any:
    """A case of every run, or of the slow tests alone."""
    return pytest.param(*values, id=id, marks=() if is_fast else pytest.mark.slow)


NAMES = [case(name in FAST, name) for name in COMBINATIONS]


def sequence_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    **grids: Any,
) -> SequenceLayout:
    """Make a layout by the arguments of `mrope_position_ids`."""
    placeholders = Placeholders(video_token_id, image_token_id, vision_start_token_id)
    return SequenceLayout(input_ids, attention_mask, placeholders=placeholders, **grids)


def tiny_qwen(implementation: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    """Copy the model of transformers, which takes a fifth of the time of a build."""
    torch.manual_seed(0)
    return deepcopy(built_model(implementation))


@cache
def built_model(implementation: str) -> Qwen2_5_VLForConditionalGeneration:
    sizes = {"layers": 3, "hidden_size": WIDTH, "heads": 4, "key_value_heads": 2, "vision_hidden_size": 32}
    model = TinyQwen25VL(**sizes, vision_layers=1, attn_implementation=implementation).stock_model()
    for parameter in model.parameters():  # the usual 0.02 makes attention uniform at this width
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def layout_of(model: nn.Module) -> DecoderLayout:
    return Qwen25VLBackbone(model, None).decoder_layout


def install(model: nn.Module, name: str) -> CameraEncoding:
    """Install an encoding of the table in a model, with random parameters as if it had been trained."""
    encoding = COMBINATIONS[name]()
    Qwen25VLBackbone(model, None).install_encoding(encoding)
    generator = torch.Generator().manual_seed(3)
    for parameter in encoding.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return encoding


class Example:
    """Two samples with one video each and random visual tokens; the second sample is shorter and padded.

    Args:
        encoding: the encoding that acts on them; PRoPE if not given.
        side: the side of the padding.
        seed: the seed of tokens and cameras.
        text: whether words replace the videos.
    """

    def __init__(
        self, encoding: CameraEncoding | None = None, side: str = "left", seed: int = 0, text: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.encoding = encoding or PRoPE()
        rows = [[7 if text and token <= VIDEO else token for token in row] for row in ROWS]
        pads = [[PAD] * (len(rows[0]) - len(row)) for row in rows]
        self.input_ids = torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])
        self.attention_mask = (self.input_ids != PAD).long()
        self.layout: dict[str, Any] = {**TOKENS, **({} if text else GRIDS)}
        layout = sequence_layout(self.input_ids, self.attention_mask, **self.layout)
        self.index = layout.camera_index()
        visual = self.input_ids == VIDEO
        cells = torch.tensor([[x, y] for y in (-0.25, 0.25) for x in (-0.25, 0.25)])  # a view has 2 x 2 tokens
        self.patch_centers = torch.zeros(*visual.shape, 2)
        self.patch_centers[visual] = cells.repeat(int(visual.sum()) // 4, 1)
        self.embeddings = torch.randn(*self.input_ids.shape, WIDTH, generator=generator)
        Q, R = torch.linalg.qr(torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64))
        Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        self.poses = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
        self.poses[..., :3, :3] = Q * torch.linalg.det(Q)[..., None, None]
        self.poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        self.K = torch.diag(torch.tensor([0.8, 1.1, 1.0], dtype=torch.float64)).repeat(2, 3, 1, 1)

    def cameras(self) -> Cameras:
        # what a token shows goes by its place and its view, on whichever side the padding is
        points = torch.cat((self.patch_centers, self.index[..., None] + 1.0), -1) / 3
        chosen = torch.full((2,), self.poses.shape[1] - 1)  # as a model chooses by what the views show
        cameras = Cameras(self.poses, self.K, self.index).with_reference(chosen)
        time = self.stock_positions[0][0, :, : self.index.shape[1]]
        sizes = torch.full_like(self.patch_centers, 0.5)
        return cameras.with_tokens(self.patch_centers, points, time, sizes)

    def encoded(self, cameras: Cameras | None = None) -> EncodedCameras:
        return self.encoding.encode(self.cameras() if cameras is None else cameras, **SHAPE)

    def identities(self) -> Example:
        """Replace all cameras by identities."""
        self.poses, self.K = torch.eye(4).expand_as(self.poses), torch.eye(3).expand_as(self.K)
        return self

    def without_cameras(self) -> Example:
        """Remove the cameras of all tokens."""
        self.index = torch.full_like(self.index, -1)
        return self

    def positions(self, stock: bool = False) -> tuple[Tensor, Tensor]:
        """Return position ids (3, B, L) and deltas (B, 1), see `mrope_position_ids`.

        Args:
            stock: whether to use the model's own time instead of the encoding's.
        """
        own = self.encoding.time_index
        if stock or own is None or self.encoding.requires_constant_time:
            return self.stock_positions
        cameras = Cameras(self.poses, self.K, self.index)
        return mrope_position_ids(self.input_ids, self.attention_mask, **self.layout, time_index=own, cameras=cameras)

    @cached_property
    def stock_positions(self) -> tuple[Tensor, Tensor]:
        """Return them without cameras."""
        time = ConstantIndex() if self.encoding.requires_constant_time else None
        return mrope_position_ids(self.input_ids, self.attention_mask, **self.layout, time_index=time)

    def inputs(self, model: nn.Module, stock: bool = False) -> dict[str, Any]:
        return {
            "inputs_embeds": self.embeddings.to(next(model.parameters()).dtype),
            "attention_mask": self.attention_mask,
            "position_ids": self.positions(stock)[0],
        }


def every_logit(model: nn.Module, example: Example, stock: bool = False) -> Tensor:
    """Return the logits (B, L, V) of all tokens; `stock` leaves the encoding out."""
    inputs = example.inputs(model, stock)
    return model(**inputs, camera_encoding=None if stock else example.encoded()).logits


def logits(model: nn.Module, example: Example, stock: bool = False) -> Tensor:
    """Return the logits of all tokens but the padding."""
    return every_logit(model, example, stock)[example.attention_mask.bool()]


def moved(model: nn.Module, example: Example) -> float:
    """Return the largest change of a logit by the cameras."""
    return float((logits(model, example) - logits(model, example, stock=True)).detach().abs().max())


def gradients(model: nn.Module, example: Example, other: Example | None = None) -> dict[str, Tensor]:
    """Return the gradients of a loss on all logits; `other` runs a forward pass between forward and backward."""
    learned = {f"encoding.{name}": p for name, p in example.encoding.named_parameters()}
    for parameter in (*model.parameters(), *learned.values()):
        parameter.grad = None
    loss = logits(model, example).float().square().sum(-1).mean()
    if other is not None:
        logits(model, other)
    loss.backward()
    named = {**dict(model.named_parameters()), **learned}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
