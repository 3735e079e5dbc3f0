"""Rotary encodings beside RoPE: of values and outputs by position, of queries and keys by a 3D point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import QK, CameraEncoding, EncodedCameras
from zoo.encodings.channels import turn_pairs
from zoo.encodings.matrices import ApplyTo
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice


class ValueRoPE(CameraEncoding):
    """v' = R v and o' = R^-1 o for visual tokens, with RoPE's own rotations R: outputs see relative positions too.

    What GTA found to help (arXiv 2310.10375): RoPE turns q and k alone, so the values that a token takes
    in say nothing of where they come from. The rotations are those of the stock decoder (mRoPE) from the first
    token with a camera on, so that text, which isn't turned, sees no absolute position. It goes by positions
    alone: cameras only say which tokens are visual. In a `Compose` it comes before what turns values by cameras on
    the same channels, or a change of world no longer cancels there.
    """

    uses_cameras = False

    def __init__(self) -> None:
        super().__init__(reference=None)

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """See `CameraEncoding.touched_channels`."""
        return set(product("vo", range(head_dim)))

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            world_views=True, world_text=True, canonical=True, scale=True, shift=True, identity_stock=False
        )

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """See `CameraEncoding.encode`."""
        index = self.canonical(cameras).index
        assert index is not None
        return RelativeRoPE(index, torch.promote_types(dtype, torch.float32))


class RelativeRoPE(EncodedCameras):
    """RoPE on values, and its inverse on outputs; `at_layer` makes a `Rotation` of the decoder's own rotations.

    Args:
        index: the camera of each token, -1 for none.
        dtype: of the rotations.
    """

    def __init__(self, index: Int[Tensor, "B L"], dtype: torch.dtype) -> None:
        super().__init__(index.shape[1])
        self.index, self.dtype = index, dtype

    def repeat_interleave(self, copies: int) -> RelativeRoPE:
        return RelativeRoPE(self.index.repeat_interleave(copies, 0), self.dtype)

    def at_layer(
        self,
        layer: int,
        hidden_states: Float[Tensor, "B L W"],
        rope: tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]],
    ) -> Rotation:
        # RoPE's angles come twice, once for each channel of a pair
        cos, sin = (x[..., : x.shape[-1] // 2].to(self.dtype).expand(len(self.index), -1, -1) for x in rope)
        seen = self.index >= 0
        sample, first = torch.arange(len(seen), device=seen.device), seen.int().argmax(1)
        cos_0, sin_0 = cos[sample, first][:, None], sin[sample, first][:, None]
        cos, sin = cos * cos_0 + sin * sin_0, sin * cos_0 - cos * sin_0  # of the difference
        return Rotation(cos.where(seen[..., None], 1.0), sin.where(seen[..., None], 0.0), "vo")


class PointRoPE(CameraEncoding):
    """Visual tokens turned by the 3D point that they show, as by position ids x, y and z, beside RoPE; needs depth.

    The points come from the data's depth and cameras, or with `--model.camera_source predicted` from a geometry that
    finds depth.

    With p the point from the reference view, the angles are 2 pi p / lambda. They add to RoPE's on the same pairs
    of channels (c, c + D/2): y goes with the rows on mRoPE's H section, x with the columns on W, z, the depth, on
    T. Within a section the wavelengths lambda are spread evenly in their logarithm: mRoPE's own frequencies there
    are made for tens of thousands of tokens, and would hardly tell meters apart.

    Two tokens see the difference of their points, so a common translation cancels but a rotation doesn't: only
    the reference view makes it blind to the world. Text sits in the reference view's center, and so does, for
    want of anything better, a visual token without a point or a camera.

    Args:
        apply_to: queries and keys; values, with the inverse on outputs; or both.
        shortest: the first wavelength of a section, in meters (or `scale`).
        longest: the last one.
        world: `reference` and `scale`, see `CameraEncoding`.

    Raises:
        InputError: wavelengths that don't go from the shortest to the longest.
    """

    uses_points = True

    def __init__(
        self, apply_to: ApplyTo = "qk", shortest: int | float = 0.5, longest: int | float = 32.0, **world: Any
    ) -> None:
        super().__init__(**world)
        check_choice("apply_to", apply_to, ApplyTo)
        if not 0 < shortest <= longest:
            raise InputError(f"wavelengths go from shortest to longest, 0 < {shortest} <= {longest} is not so")
        self.apply_to, self.shortest, self.longest = apply_to, shortest, longest

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """See `CameraEncoding.touched_channels`."""
        return set(product(self.apply_to, range(head_dim)))

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            world_views=False,
            world_text=False,
            canonical=self.reference is not None,
            scale=self.scale != "none",
            shift=True,
            identity_stock=False,
        )

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> Rotation:
        """See `CameraEncoding.encode`.

        Raises:
            ValueError: cameras that don't say what points the tokens show.
        """
        cameras = self.canonical(cameras)
        if cameras.points is None or cameras.index is None:
            raise ValueError("PointRoPE goes by the points that tokens show: give them to Cameras.with_tokens")
        seen = (cameras.index >= 0) & cameras.points.isfinite().all(-1)
        points = cameras.points.where(seen[..., None], 0.0)
        angles = []
        for coordinate, count in zip((2, 1, 0), mrope_section, strict=True):
            exponent = torch.linspace(0, 1, count, dtype=torch.float64, device=points.device)
            wavelength = self.shortest * (self.longest / self.shortest) ** exponent
            angles.append(2 * math.pi * points[..., coordinate, None] / wavelength)
        angle = torch.cat(angles, -1)
        dtype = torch.promote_types(dtype, torch.float32)
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), self.apply_to)


class Rotation(EncodedCameras):
    """Turns the pairs of channels (c, c + D/2) of each token by angles: q, k and v forwards, o backwards.

    Tokens with all angles 0 keep their bits.

    Args:
        cos, sin: of the angle of each pair.
        apply_to: what is turned.
    """

    def __init__(self, cos: Float[Tensor, "B L F"], sin: Float[Tensor, "B L F"], apply_to: ApplyTo) -> None:
        super().__init__(cos.shape[1])
        self.cos, self.sin, self.apply_to = cos, sin, apply_to

    def repeat_interleave(self, copies: int) -> Rotation:
        return Rotation(self.cos.repeat_interleave(copies, 0), self.sin.repeat_interleave(copies, 0), self.apply_to)

    def after_rope(self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]) -> QK:
        return (self._turn(q, self.sin), self._turn(k, self.sin)) if "qk" in self.apply_to else (q, k)

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G E"]:
        return self._turn(v, self.sin) if "vo" in self.apply_to else v

    def transform_outputs(self, o: Float[Tensor, "B L H E"]) -> Float[Tensor, "B L H D"]:
        return self._turn(o, -self.sin) if "vo" in self.apply_to else o

    def _turn(self, x: Float[Tensor, "B L heads D"], sin: Float[Tensor, "B L F"]) -> Float[Tensor, "B L heads D"]:
        dtype = torch.promote_types(x.dtype, sin.dtype)
        return _Turn.apply(*(each.to(dtype) for each in (x, self.cos[:, :, None], sin[:, :, None]))).to(x.dtype)


class _Turn(torch.autograd.Function):
    """x with its pairs of channels (c, c + D/2) turned; another encoding may have appended channels that follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(x if cos.requires_grad or sin.requires_grad else None, cos, sin)
        out, width = torch.empty_like(x, memory_format=torch.contiguous_format), 2 * cos.shape[-1]
        turn_pairs(x, out, 0, cos, sin)
        out[..., width:] = x[..., width:]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, cos, sin = ctx.saved_tensors
        of_cos = of_sin = None
        if x is not None:
            (a, b), (grad_a, grad_b) = (each[..., : 2 * cos.shape[-1]].chunk(2, -1) for each in (x, grads[0]))
            of_cos = (grad_a * a + grad_b * b).sum_to_size(cos.shape)
            of_sin = (grad_b * a - grad_a * b).sum_to_size(sin.shape)
        return _Turn.apply(grads[0], cos, -sin), of_cos, of_sin
