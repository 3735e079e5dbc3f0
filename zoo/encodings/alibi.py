"""PoseALiBi: an attention bias by the distance between cameras."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale
from zoo.cameras.poses import PoseMeasure, pose_distances
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import QK, EncodedCameras, ZeroChannels
from zoo.encodings.symmetries import Symmetries
from zoo.errors import check_choice

Slopes = Literal["fixed", "learned"]
WIDTH = 8  # attention kernels require a multiple of this head width


class PoseALiBi(CameraEncoding):
    """logit_ij -= m_h d(c_i, c_j) between visual tokens i and j in head h; no bias if one of them is text.

    ALiBi (arXiv 2108.12409) with the distance between cameras instead of the distance in the text. The bias is
    computed by appended channels (see `DistanceChannels`) instead of a dense matrix over pairs of tokens, so it works
    with every attention backend and the KV cache. Only relative poses enter, so no reference view is needed. Poses
    get no gradient.

    Args:
        measure: d, from the angle w (radians) and the center distance t (meters times translation_weight):
            `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the norm of the logarithm of the
            relative pose.
        translation_weight: Radians per meter (or per unit of `scale`).
        slopes: `fixed` uses ALiBi's m_h = 2^(-8 h / H), h = 1 ... H. `learned` trains one slope per head, shared by
            all layers, starting at 0, which is the stock model; a slope may become negative.
        scale: The length that distances are divided by, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, PoseALiBi
        >>> from zoo.encodings.decoder_layout import HeadLayout
        >>> poses = torch.eye(4).repeat(1, 2, 1, 1)
        >>> poses[:, 1, 0, 3] = 0.5
        >>> cameras = Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = PoseALiBi().encode(cameras, HeadLayout.in_row(16, (4, 2, 2)))
        >>> q, k = encoded.after_rope(torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 1, 16))
        >>> (q[0, :, 0] @ k[0, :, 0].T * 16**-0.5).tolist()  # m_1 = 1/16
        [[0.0, -0.03125], [-0.03125, 0.0]]
    """

    def __init__(
        self,
        measure: PoseMeasure = "euclidean",
        translation_weight: int | float = 1.0,
        slopes: Slopes = "fixed",
        scale: Scale = "none",
    ) -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("slopes", slopes, Slopes)
        self.measure, self.translation_weight, self.slopes = measure, translation_weight, slopes
        self.learned: nn.Parameter | None = None

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(scale=self.scale != "none" or self.measure == "rotation")

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        if self.slopes == "learned":
            self.learned = nn.Parameter(torch.zeros(decoder.num_heads, device=decoder.device))

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        """Compute the appended channels; without two different cameras, the stock attention, bit for bit."""
        assert self.slopes != "learned" or self.learned is not None, "bind_to_decoder comes before encode"
        if not cameras.world_to_camera.shape[1]:
            return EncodedCameras()
        pose, poses = distinct_poses(cameras)
        distances = pose_distances(poses[:, :, None], poses[:, None], self.measure, self.translation_weight)
        if not distances.any():  # for which a GPU is waited
            return EncodedCameras()
        logits = distances.to(dtype) * head.dim**0.5  # attention multiplies logits by head_dim^-1/2
        return DistanceChannels(pose, F.pad(logits, (0, -(head.dim + logits.shape[-1]) % WIDTH)), self.learned)


class DistanceChannels(ZeroChannels):
    """Append one channel per pose: the distances from the token's own pose to q, its one-hot pose to k.

    Their product is one distance, so the bias is part of the attention's own matrix product. The slopes are applied
    to q; k is the same in all heads, so it can be shared by a group. v gets zeros, to be equally wide. Tokens without
    a camera get zeros everywhere.

    Args:
        pose: Number of each token's pose, -1 for none.
        distances: Between poses, with zero columns as padding.
        slopes: One per head, or None for ALiBi's.
    """

    def __init__(
        self, pose: Int[Tensor, "B L"], distances: Float[Tensor, "B N E"], slopes: Float[Tensor, " H"] | None
    ) -> None:
        super().__init__(distances.shape[-1], pose.shape[1])
        self.slopes = slopes
        has_pose = (pose >= 0)[..., None]
        row = pose.clamp(min=0)
        self.own_distances = distances.gather(1, row[..., None].expand(-1, -1, self.channels)) * has_pose
        self.own_pose = (row[..., None] == torch.arange(self.channels, device=row.device)) * has_pose

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(self.channels)

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        slopes = self.slopes
        if slopes is None:
            slopes = alibi_slopes(q.shape[2], q.device).to(self.own_distances.dtype)
        bias = self.own_distances[:, :, None] * -slopes[:, None]
        own_pose = self.own_pose[:, :, None].expand(-1, -1, k.shape[2], -1)
        return torch.cat((q, bias.to(q.dtype)), -1), torch.cat((k, own_pose.to(k.dtype)), -1)


def alibi_slopes(num_heads: int, device: torch.device | str = "cpu") -> Float[Tensor, " H"]:
    """Compute ALiBi's slopes 2^(-8 h / H) for h = 1 ... H."""
    return 2.0 ** (-8.0 * torch.arange(1, num_heads + 1, dtype=torch.float64, device=device) / num_heads)


def distinct_poses(cameras: Cameras) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B N 4 4"]]:
    """Number the distinct used poses of each sample, so one camera per token costs no more than one per image.

    A GPU is waited for, to know how many there are.

    Returns:
        The number of each token's pose, -1 for none, and the poses, padded with identities.
    """
    index, poses = cameras.index, cameras.world_to_camera
    assert index is not None
    equal = (poses[:, :, None] == poses[:, None]).all(-1).all(-1)
    first = equal.int().argmax(-1)  # the first camera with the same pose represents all of them
    chosen = torch.zeros_like(first).scatter_reduce(1, first, cameras.used_mask().to(first), "amax").bool()
    number, count = chosen.cumsum(1) - 1, max(int(chosen.sum(1).max()), 1)
    distinct = torch.eye(4, dtype=poses.dtype, device=poses.device).repeat(len(poses), count + 1, 1, 1)
    place = torch.where(chosen, number, count)[..., None, None].expand_as(poses)  # the others behind, and cut off
    distinct = distinct.scatter(1, place, poses)[:, :count]
    pose = number.gather(1, first).gather(1, index.clamp(min=0))
    return pose.masked_fill(index < 0, -1), distinct
