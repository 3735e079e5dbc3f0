"""PoseALiBi: an attention bias by the distance between cameras."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale
from zoo.cameras.cameras import camera_runs
from zoo.cameras.poses import PoseMeasure, pose_distances
from zoo.encodings.base import QK, CameraEncoding, DecoderLayout, EncodedCameras, HeadLayout, Symmetries, ZeroChannels
from zoo.errors import InputError, check_choice

Slopes = Literal["fixed", "learned"]
WIDTH = 8  # attention kernels require a multiple of this head width


class PoseALiBi(CameraEncoding):
    """logit_ij -= m_h d(c_i, c_j) between visual tokens i and j in head h; no bias if one of them is text.

    ALiBi (arXiv 2108.12409) with the distance between cameras instead of the distance in the text. The bias is
    computed by appended channels (see `DistanceChannels`), one per camera, instead of a dense matrix over pairs of
    tokens, so it works with every attention backend and the KV cache. Only relative poses enter, so no reference view
    is needed. Poses get no gradient.

    Args:
        measure: d, from the angle w (radians) and the center distance t (meters times translation_weight):
            `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the norm of the logarithm of the
            relative pose.
        translation_weight: Radians per meter (or per unit of `scale`).
        slopes: `fixed` uses ALiBi's m_h = 2^(-8 h / H), h = 1 ... H. `learned` trains one slope per head, shared by all
            layers. Slopes start at 0, which is the original model, and may become negative.
        scale: The length that distances are divided by, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, PoseALiBi
        >>> from zoo.encodings.base import DecoderLayout, HeadLayout
        >>> poses = torch.eye(4).repeat(1, 2, 1, 1)
        >>> poses[:, 1, 0, 3] = 0.5
        >>> cameras = Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> head = HeadLayout.in_row(16, (4, 2, 2))
        >>> encoding = PoseALiBi()
        >>> encoding.bind_to_decoder(DecoderLayout(32, 1, 2, 1, head), layers=[0])
        >>> encoded = encoding.encode(cameras, head)
        >>> q, k = encoded.after_rope(torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 1, 16))
        >>> (q[0, :, 0] @ k[0, :, 0].T * 16**-0.5).tolist()  # m_1 = 1/16
        [[0.0, -0.03125], [-0.03125, 0.0]]
    """

    is_orthogonal = True

    def __init__(
        self,
        measure: PoseMeasure = "euclidean",
        translation_weight: int | float = 1.0,
        slopes: Slopes = "fixed",
        scale: Scale = "none",
    ) -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("slopes", slopes, Slopes)
        for name, is_set in (("translation_weight", translation_weight != 1), ("scale", scale != "none")):
            if is_set and measure == "rotation":
                raise InputError(f"{name} has no effect with measure=rotation: leave one of them out")
        self.measure, self.translation_weight, self.slopes = measure, translation_weight, slopes
        self.num_heads: int | None = None
        self.learned: nn.Parameter | None = None

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(scale=self.scale != "none" or self.measure == "rotation")

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.num_heads = decoder.num_heads
        if self.slopes == "learned":
            self.learned = nn.Parameter(torch.zeros(decoder.num_heads, device=decoder.device))

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        """Compute the appended channels. Without two different cameras, return the original attention, bit for bit.

        The host decides this, see `CameraRuns.is_static`. If only a GPU knows the poses, channels are always appended.
        """
        assert self.num_heads is not None, "bind_to_decoder comes before encode"
        index, poses = cameras.required("index"), cameras.world_to_camera
        runs = camera_runs(index, poses) if cameras.token_runs is None else cameras.token_runs
        if runs.is_static:
            return EncodedCameras()
        used = cameras.used_mask()
        distances = pose_distances(poses[:, :, None], poses[:, None], self.measure, self.translation_weight)
        # poses of unused cameras may hold any values
        logits = distances.where(used[:, :, None] & used[:, None], 0.0) * head.dim**0.5  # times head_dim^-1/2
        slopes = alibi_slopes(self.num_heads, index.device) if self.learned is None else self.learned
        padded = F.pad(logits, (0, -(head.dim + logits.shape[-1]) % WIDTH))
        return DistanceChannels(index, padded.to(dtype), slopes.to(dtype))


class DistanceChannels(ZeroChannels):
    """Append one channel per camera: the distances from the token's own camera to q, its one-hot camera to k.

    The product of q and k is then the distance, so the bias is part of the attention's own matrix product. The slopes
    are applied to q. k is the same in all heads, so a group can share it. v gets zeros, to have the same width. Tokens
    without a camera get zeros everywhere.

    Args:
        index: The camera of each token, -1 for none.
        distances: Distances between cameras, with zero columns as padding.
        slopes: One per head.
    """

    def __init__(
        self, index: Int[Tensor, "B L"], distances: Float[Tensor, "B C E"], slopes: Float[Tensor, " H"]
    ) -> None:
        super().__init__(distances.shape[-1], index.shape[1])
        self.slopes = slopes[:, None]
        row = index.clamp(min=0)[..., None]
        has_camera = index[..., None] >= 0
        self.own_bias = -distances.gather(1, row.expand(-1, -1, self.channels)) * has_camera
        self.own_camera = (row == torch.arange(self.channels, device=index.device)) & has_camera

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(self.channels)

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        bias = self.own_bias[:, :, None] * self.slopes
        own_camera = self.own_camera[:, :, None].expand(-1, -1, k.shape[2], -1)
        return torch.cat((q, bias.to(q.dtype)), -1), torch.cat((k, own_camera.to(k.dtype)), -1)


def alibi_slopes(num_heads: int, device: torch.device | str = "cpu") -> Float[Tensor, " H"]:
    """Compute ALiBi's slopes 2^(-8 h / H) for h = 1 ... H."""
    return torch.exp2(torch.arange(1, num_heads + 1, dtype=torch.float64, device=device) * (-8.0 / num_heads))
