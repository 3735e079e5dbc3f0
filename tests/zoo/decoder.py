"""A tiny random Qwen2.5-VL, and two samples with a video each: where encodings are tried in a decoder."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from docs.symmetries import COMBINATIONS
from tests.zoo.layouts import sequence_layout
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, EncodedCameras, PRoPE
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.positions import mrope_position_ids
from zoo.sequences.time_index import ConstantIndex, TimeIndex

PAD, START, END, VIDEO = 0, 1, 2, 3
HEAD_DIM, MROPE_SECTION, WIDTH = 32, [4, 4, 8], 128
SHAPE: dict[str, Any] = {"head": HeadLayout.in_row(HEAD_DIM, MROPE_SECTION)}
TOKENS = {"image_token_id": 4, "video_token_id": VIDEO, "vision_start_token_id": START}
GRIDS = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}
ROWS = [[9, 8, START, *[VIDEO] * 12, END, 7, 6, 5], [9, START, *[VIDEO] * 8, END, 5, 6]]
MOVES = 1e-3  # how far cameras have to move the logits, at least


def tiny_model(implementation: str = "sdpa", kv_heads: int = 2) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    return deepcopy(built_model(implementation, kv_heads))


@cache
def built_model(implementation: str, kv_heads: int) -> Qwen2_5_VLForConditionalGeneration:
    """The model that `tiny_model` copies, which takes a fifth of the time of a build."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE_SECTION},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": PAD,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
        image_token_id=4,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():  # the usual 0.02 makes attention uniform at this width
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def layout_of(model: nn.Module) -> DecoderLayout:
    return Qwen25VLBackbone(model, None).decoder_layout


def install(model: nn.Module, name: str) -> CameraEncoding:
    """Puts an encoding of the table into a model; what it learns gets random numbers, as if it had been trained."""
    encoding = COMBINATIONS[name]()
    Qwen25VLBackbone(model, None).install_encoding(encoding)
    generator = torch.Generator().manual_seed(3)
    for parameter in encoding.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return encoding


class Example:
    """Two samples of one video each, the second one shorter and padded; with random visual tokens.

    Args:
        encoding: what acts on them, and says what the time of a view is; PRoPE if not given.
        side: of the padding.
        seed: of tokens and cameras.
        text: with words in the place of the videos.
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
        self.patch_centers = layout.patch_centers()
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
        time = self.positions(stock=True)[0][0, :, : self.index.shape[1]]
        sizes = torch.full_like(self.patch_centers, 0.5)
        return cameras.with_tokens(self.patch_centers, points, time, sizes)

    def encoded(self, cameras: Cameras | None = None) -> EncodedCameras:
        return self.encoding.encode(self.cameras() if cameras is None else cameras, **SHAPE)

    def identities(self) -> Example:
        """The same with nothing but identity cameras."""
        self.poses, self.K = torch.eye(4).expand_as(self.poses), torch.eye(3).expand_as(self.K)
        return self

    def without_cameras(self) -> Example:
        """The same views, of which no camera is known."""
        self.index = torch.full_like(self.index, -1)
        return self

    def positions(self, stock: bool = False) -> tuple[Tensor, Tensor]:
        """Position ids (3, B, L), and deltas (B, 1), see `mrope_position_ids`.

        Args:
            stock: with the model's own time, if the encoding is another one.
        """
        own = None if stock else self.encoding.time_index
        time: TimeIndex | None = ConstantIndex() if self.encoding.requires_constant_time else own
        cameras = Cameras(self.poses, self.K, self.index) if own is not None else None
        return mrope_position_ids(self.input_ids, self.attention_mask, **self.layout, time_index=time, cameras=cameras)

    def inputs(self, model: nn.Module, stock: bool = False) -> dict[str, Any]:
        return {
            "inputs_embeds": self.embeddings.to(next(model.parameters()).dtype),
            "attention_mask": self.attention_mask,
            "position_ids": self.positions(stock)[0],
        }


def every_logit(model: nn.Module, example: Example, stock: bool = False) -> Tensor:
    """(B, L, V), padding included; `stock` is without the encoding."""
    inputs = example.inputs(model, stock)
    return model(**inputs, camera_encoding=None if stock else example.encoded()).logits


def logits(model: nn.Module, example: Example, stock: bool = False) -> Tensor:
    """Of the real tokens."""
    return every_logit(model, example, stock)[example.attention_mask.bool()]


def moved(model: nn.Module, example: Example) -> float:
    """How far the cameras move the logits."""
    return float((logits(model, example) - logits(model, example, stock=True)).detach().abs().max())


def gradients(model: nn.Module, example: Example, other: Example | None = None) -> dict[str, Tensor]:
    """Of a loss of all logits; between forward and backward, another forward with other cameras may run."""
    learned = {f"encoding.{name}": p for name, p in example.encoding.named_parameters()}
    for parameter in (*model.parameters(), *learned.values()):
        parameter.grad = None
    loss = logits(model, example).float().square().sum(-1).mean()
    if other is not None:
        logits(model, other)
    loss.backward()
    named = {**dict(model.named_parameters()), **learned}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
