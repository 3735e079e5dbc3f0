"""Rotary encodings beside RoPE: of values and outputs by position, of queries and keys by 3D points."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import HeadLayout
from zoo.encodings.encoded import QK, EncodedCameras, Rope
from zoo.encodings.matrices import ApplyTo
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice


class ValueRoPE(CameraEncoding):
    """v' = R v and o' = R^-1 o for visual tokens, with RoPE's rotations R: outputs depend on relative positions too.

    From GTA (arXiv 2310.10375): RoPE rotates q and k only, so values carry no position. R is the stock decoder's mRoPE
    rotation relative to the first token with a camera, so text, whose values are not rotated, does not depend on
    absolute positions. Poses and intrinsics are not read; cameras only mark the visual tokens. In a `Compose` it must
    precede encodings that transform values on the same channels, or their world invariance is lost.
    """

    uses_cameras = False
    is_orthogonal = True

    def __init__(self) -> None:
        super().__init__(reference=None)

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product("vo", range(head.num_rotated)))

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(identity_stock=False)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        assert cameras.index is not None
        return RelativeRoPE(cameras.index, dtype)


class RelativeRoPE(EncodedCameras):
    """RoPE on values and its inverse on outputs, from the rotations that the decoder passes to `at_layer`.

    Args:
        index: The camera of each token, -1 for none.
        dtype: Of the rotations.
    """

    def __init__(self, index: Int[Tensor, "B L"], dtype: torch.dtype) -> None:
        super().__init__(index.shape[1])
        self.index, self.dtype = index, dtype

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras:
        # RoPE repeats its angles, once for each channel of a pair
        cos, sin = (x[..., : x.shape[-1] // 2].to(self.dtype).expand(len(self.index), -1, -1) for x in rope)
        visual = self.index >= 0
        sample, first = torch.arange(len(visual), device=visual.device), visual.int().argmax(1)
        cos_0, sin_0 = cos[sample, first][:, None], sin[sample, first][:, None]
        cos, sin = cos * cos_0 + sin * sin_0, sin * cos_0 - cos * sin_0  # of the difference of the angles
        return Rotation(cos.where(visual[..., None], 1.0), sin.where(visual[..., None], 0.0), "vo")


class PointRoPE(CameraEncoding):
    """Rotate visual tokens by their 3D point, as if x, y and z were position ids, beside RoPE; needs depth.

    The points are computed from the depth and cameras of the data, or with `--model.camera_source predicted` from
    those of a geometry encoder with depth.

    The angles are 2 pi p / lambda with the point p in the frame of the reference view, added to RoPE's angles on the
    same pairs of channels: y on mRoPE's H section, x on W, and z, the depth, on T. The wavelengths lambda
    of a section are spaced logarithmically; mRoPE's own frequencies, made for tens of thousands of tokens, would hardly
    distinguish meters.

    Logits depend on the difference of two points, so they are invariant to a common translation but not to a rotation;
    only the reference view makes them invariant to a change of world. Text, and visual tokens without a camera or a
    point, are at the center of the reference view.

    Args:
        apply_to: Queries and keys; values, with the inverse on outputs; or both.
        shortest: Shortest wavelength of a section, in meters (or units of `scale`).
        longest: Longest wavelength of a section, in the same unit.
        world: `reference` and `scale`, see `CameraEncoding`.

    Raises:
        InputError: Not 0 < shortest <= longest.
    """

    uses_points = True
    is_orthogonal = True

    def __init__(
        self, apply_to: ApplyTo = "qk", shortest: int | float = 0.5, longest: int | float = 32.0, **world: Any
    ) -> None:
        super().__init__(**world)
        check_choice("apply_to", apply_to, ApplyTo)
        if not 0 < shortest <= longest:
            raise InputError(f"PointRoPE requires 0 < shortest <= longest, got wavelengths {shortest} and {longest}")
        self.apply_to, self.shortest, self.longest = apply_to, shortest, longest

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product(self.apply_to, range(head.with_axes().num_rotated)))

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            world_views=False,
            world_text=False,
            canonical=self.reference is not None,
            scale=self.scale != "none",
            identity_stock=False,
        )

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        head, points = head.with_axes(), cameras.required("points")
        known = (cameras.required("index") >= 0) & points.isfinite().all(-1)
        points = points.where(known[..., None], 0.0)
        coordinate = torch.tensor([2 - axis for axis in head.axes])  # z on T, y on H, x on W
        wavelength = torch.empty(len(head.axes), dtype=torch.float64)
        for axis in set(head.axes):
            pairs = head.frequencies(axis)
            exponent = torch.linspace(0, 1, len(pairs), dtype=torch.float64)
            wavelength[pairs] = self.shortest * (self.longest / self.shortest) ** exponent
        coordinate, wavelength = (x.to(points.device, non_blocking=True) for x in (coordinate, wavelength))
        angle = 2 * math.pi * points[..., coordinate] / wavelength
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), self.apply_to)


class Rotation(EncodedCameras):
    """Rotate the pairs of channels (c, c + F) of each token: q, k and v forward, o backward.

    Tokens whose angles are all 0 are unchanged, bit for bit.

    Args:
        cos: Cosine of the angle of each pair.
        sin: Sine of the angle of each pair.
        apply_to: The rotated terms.
    """

    def __init__(self, cos: Float[Tensor, "B L F"], sin: Float[Tensor, "B L F"], apply_to: ApplyTo) -> None:
        super().__init__(cos.shape[1])
        self.cos, self.sin, self.apply_to = cos, sin, apply_to

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return (self._rotate(q, self.sin), self._rotate(k, self.sin)) if "qk" in self.apply_to else (q, k)

    def transform_values(self, v: Tensor) -> Tensor:
        return self._rotate(v, self.sin) if "vo" in self.apply_to else v

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self._rotate(o, -self.sin) if "vo" in self.apply_to else o

    def _rotate(self, x: Float[Tensor, "B L heads D"], sin: Float[Tensor, "B L F"]) -> Float[Tensor, "B L heads D"]:
        dtype, pairs = torch.promote_types(x.dtype, sin.dtype), sin.shape[-1]
        cos, sin = self.cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)
        a, b, appended = x.to(dtype).split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
        rotated = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
        return torch.cat((*rotated, appended), -1).to(x.dtype)
