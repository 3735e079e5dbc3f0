"""PoseALiBi: views attend less to views that are further away, by a bias on the logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras, Scale
from zoo.encodings.base import QK, CameraEncoding, EncodedCameras, ZeroChannels
from zoo.encodings.symmetries import Symmetries
from zoo.errors import check_choice
from zoo.pose_distances import PoseMeasure, pose_distances

Slopes = Literal["fixed", "learned"]
WIDTH = 8  # attention kernels want heads that are a multiple of this wide


class PoseALiBi(CameraEncoding):
    """logit -= m_h d(c_i, c_j) between visual tokens i and j in head h; nothing where one of them is text.

    ALiBi (arXiv 2108.12409) with the distance of cameras in the place of the distance in the text. It needs no matrix
    of all pairs of tokens, so that any attention backend and the KV cache take it, and is as exact as queries are in
    their precision: see `DistanceChannels`.
    Only the relative pose counts, so no reference view is needed. No gradient reaches the poses.

    Args:
        measure: d, by the angle w (radians) and the distance of centers t (in meters, times
            translation_weight): `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the norm of
            the logarithm of the relative pose.
        translation_weight: radians that a meter (or `scale`) counts as.
        slopes: `fixed` takes m_h = 2^(-8 h / H), h = 1 ... H, ALiBi's. `learned` starts all of them at 0, that is
            at the stock model, and trains one a head, shared by all layers; it may become negative.
        scale: the length that distances are divided by, see `CameraEncoding`.
    """

    def __init__(
        self,
        measure: PoseMeasure = "euclidean",
        translation_weight: int | float = 1.0,
        slopes: Slopes = "fixed",
        scale: Scale = "none",
    ) -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("measure", measure, PoseMeasure)
        check_choice("slopes", slopes, Slopes)
        self.measure, self.translation_weight = measure, translation_weight
        self.slopes = slopes
        self.learned: nn.Parameter | None = None

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            world_views=True,
            world_text=True,
            canonical=True,
            scale=self.scale != "none" or self.measure == "rotation",
            shift=True,
        )

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        if self.slopes == "learned":
            heads = language_model.config.num_attention_heads
            self.learned = nn.Parameter(torch.zeros(heads, device=language_model.device))

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """See `CameraEncoding.encode`. Where no two cameras are apart this is the stock attention, bit for bit."""
        if self.slopes == "learned" and self.learned is None:
            raise ValueError("PoseALiBi has to be attached to a decoder before it can learn its slopes")
        cameras = self.canonical(cameras)
        if not cameras.used_mask().any():
            return EncodedCameras()
        pose, poses = distinct_poses(cameras)
        distances = pose_distances(poses[:, :, None], poses[:, None], self.measure, self.translation_weight)
        if not distances.any():
            return EncodedCameras()
        # the attention multiplies whatever it sums up by head_dim^-1/2
        logits = distances.to(torch.promote_types(dtype, torch.float32)) * head_dim**0.5
        return DistanceChannels(pose, F.pad(logits, (0, -(head_dim + logits.shape[-1]) % WIDTH)), self.learned)


class DistanceChannels(EncodedCameras):
    """Appends a channel a pose: q has the distances from its own pose to each, k marks which one is its own.

    Their product is one distance, so the bias comes out of the attention's own matrix product. k is the same in
    all heads, and so can be shared by a group; the slopes are in q. v is filled up with zeros to the same width.
    Text has zeros in all of them.

    Args:
        pose: of each token, -1 for none.
        distances: from each pose to each, zero in what pads the width.
        slopes: one a head, or None for ALiBi's.
    """

    def __init__(
        self,
        pose: Int[Tensor, "B L"],
        distances: Float[Tensor, "B N E"],
        slopes: Float[Tensor, " H"] | None,
    ) -> None:
        super().__init__(pose.shape[1])
        self.pose, self.distances, self.slopes = pose, distances, slopes
        seen = (pose >= 0)[..., None]
        rows = pose.clamp(min=0)[..., None].expand(-1, -1, distances.shape[-1])
        self.rows = distances.gather(1, rows) * seen
        self.marks = F.one_hot(pose.clamp(min=0), distances.shape[-1]) * seen

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(self.distances.shape[-1])

    def repeat_interleave(self, copies: int) -> DistanceChannels:
        pose, distances = (x.repeat_interleave(copies, 0) for x in (self.pose, self.distances))
        return DistanceChannels(pose, distances, self.slopes)

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        slopes = alibi_slopes(q.shape[2]).to(self.rows) if self.slopes is None else self.slopes
        away = self.rows[:, :, None] * -slopes[:, None]
        marks = self.marks[:, :, None].expand(-1, -1, k.shape[2], -1)
        return torch.cat((q, away.to(q.dtype)), -1), torch.cat((k, marks.to(k.dtype)), -1)

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        return F.pad(v, (0, self.distances.shape[-1]))

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        return o[..., : -self.distances.shape[-1]]


def alibi_slopes(num_heads: int) -> Float[Tensor, " H"]:
    """2^(-8 h / H) for h = 1 ... H."""
    return 2.0 ** (-8.0 * torch.arange(1, num_heads + 1, dtype=torch.float64) / num_heads)


def distinct_poses(cameras: Cameras) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B N 4 4"]]:
    """Which of its sample's different poses each token has, -1 for none; and these poses.

    Cameras given one a token so come to the same as cameras given one an image. Samples with fewer than the N of
    the richest are filled up with identities.
    """
    index, poses = cameras.index, cameras.world_to_camera
    assert index is not None
    same = (poses[:, :, None] == poses[:, None]).all(-1).all(-1)
    first = same.int().argmax(-1)  # the first camera of the same pose stands for all of them
    chosen = torch.zeros_like(first).scatter_reduce(1, first, cameras.used_mask().to(first), "amax").bool()
    number = chosen.cumsum(1) - 1
    distinct = torch.eye(4, dtype=poses.dtype, device=poses.device).repeat(len(poses), int(chosen.sum(1).max()), 1, 1)
    sample, camera = chosen.nonzero(as_tuple=True)
    distinct[sample, number[sample, camera]] = poses[sample, camera]
    pose = number.gather(1, first).gather(1, index.clamp(min=0))
    return pose.masked_fill(index < 0, -1), distinct
