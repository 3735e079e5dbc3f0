"""Encodings by rotation: of values by position, of queries and keys by 3D points, and the pose as an axis of mRoPE."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import QK, CameraEncoding, DecoderLayout, EncodedCameras, HeadLayout, Rope, Symmetries
from zoo.encodings.prope import ApplyTo
from zoo.errors import InputError, check_choice
from zoo.sequences.time_index import PoseDistanceIndex, PoseTimeIndex

# ---- RoPE on values and outputs --------------------------------------------------------------------------------------


class ValueRoPE(CameraEncoding):
    """v' = R v and o' = R^-1 o for visual tokens, with RoPE's rotations R. Outputs then depend on relative positions.

    From GTA (arXiv 2310.10375): RoPE rotates only q and k, so values carry no position. R is the decoder's own mRoPE
    rotation relative to the first token with a camera. Text values are not rotated, so text does not depend on absolute
    positions. Poses and intrinsics are not read. Cameras only mark the visual tokens. In a `Compose` it must precede
    encodings that transform values on the same channels, or their world invariance is lost.
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
        dtype: Dtype of the rotations.
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
        # cosine and sine of the difference of the angles
        cos, sin = cos * cos_0 + sin * sin_0, sin * cos_0 - cos * sin_0
        return Rotation(cos.where(visual[..., None], 1.0), sin.where(visual[..., None], 0.0), "vo")


# ---- RoPE by the 3D points of tokens ---------------------------------------------------------------------------------


class PointRoPE(CameraEncoding):
    """Rotate visual tokens by their 3D point, as if x, y and z were position ids, in addition to RoPE. Needs depth.

    The points are computed from the dataset's depth and cameras, or with `--model.camera_source predicted` from a
    geometry encoder with depth.

    The angles are 2 pi p / lambda for the point p in the frame of the reference view. They are added to RoPE's angles
    on the same pairs of channels: y on mRoPE's H section, x on W, and z, the depth, on T. The wavelengths lambda of a
    section are spaced logarithmically. mRoPE's own frequencies are made for tens of thousands of tokens and would
    hardly distinguish meters. If positions have one axis, the pairs take z, y and x in turn.

    Logits depend on the difference of two points, so they are invariant to a common translation but not to a rotation.
    Only the reference view makes them invariant to a change of world. Text tokens, and visual tokens without a camera
    or a point, are placed at the center of the reference view.

    Args:
        apply_to: `qk` rotates queries and keys. `vo` rotates values, and outputs by the inverse. `qkvo` rotates all.
        shortest: Shortest wavelength of a section, in meters (or units of `scale`).
        longest: Longest wavelength of a section, in the same unit.
        world: `reference` and `scale`, see `CameraEncoding`.

    Raises:
        InputError: 0 < shortest <= longest does not hold.
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


# ---- The pose as an axis of mRoPE, or instead of time ----------------------------------------------------------------

Choice = Literal["lowest", "highest", "alternate"]
ROPE_BASE = 1e4  # base of P's frequencies in heads without RoPE


class PoseAxis(CameraEncoding):
    """An axis P of mRoPE: some of T's frequencies rotate queries and keys by the view's pose instead of its time.

    P = T_0 + offset + span d / max d. T_0 is the position of the first token with a camera, and d is the distance of
    the view to a reference view, or with `PathLengthIndex` the length of the camera path up to the view. P is not
    rounded. H and W are unchanged. Text and views without a camera have P = T, so their tokens are unchanged, bit for
    bit.

    With all of T's frequencies the axes are P, H, W ("PHW"). With some of them they are P, T, H, W ("PTHW"): 8 of 16
    give Qwen2.5-VL the sections 8, 8, 24, 24, and 12 of 24 give Qwen3-VL 12, 12, 20, 20.

    Gated DeltaNet has no T to replace. There P starts from 0 at the reference view and rotates by its own frequencies,
    and text is at 0.

    One number does not identify a pose, see `PoseIndex`, which replaces time in all frequencies and rounds.

    Args:
        index: `PoseDistanceIndex` (the default) or `PathLengthIndex`, with its `span` and `measure`.
        count: Number of T's frequencies that P gets. null is all of them.
        frequencies: Which of T's frequencies P gets. The lowest of Qwen3-VL turn too slowly to tell poses apart, see
            docs/encodings.md.
        offset: Offset of P, in positions.

    Raises:
        InputError: The count is below 1 or exceeds the number of T's frequencies.

    Example:
        >>> import torch
        >>> from zoo.encodings.base import DecoderLayout, HeadLayout
        >>> encoding = PoseAxis(count=2, frequencies="alternate")
        >>> encoding.chosen(HeadLayout.in_row(16, (4, 2, 2)))
        [0, 2]
    """

    owns_channels = True
    is_orthogonal = True

    def __init__(
        self,
        index: PoseTimeIndex | None = None,
        count: int | None = None,
        frequencies: Choice = "highest",
        offset: int | float = 0.0,
    ) -> None:
        super().__init__(reference=None)
        check_choice("frequencies", frequencies, Choice)
        if count is not None and count < 1:
            raise InputError(f"PoseAxis: {count} frequencies: give at least 1, or null for all of T's")
        self.index, self.count, self.frequencies, self.offset = index or PoseDistanceIndex(), count, frequencies, offset
        self.rope: Float[Tensor, " F"]
        self.replaces_time = True

    def chosen(self, head: HeadLayout) -> list[int]:
        """Return the numbers of P's frequencies, from high to low.

        Raises:
            InputError: T has fewer frequencies.
        """
        section = head.section(0, self) or head.with_axes().frequencies(0)
        count = len(section) if self.count is None else self.count
        if count > len(section):
            raise InputError(f"PoseAxis: mRoPE's T section has {len(section)} frequencies, fewer than {count}")
        if self.frequencies == "alternate":
            return [section[i * len(section) // count] for i in range(count)]
        return section[:count] if self.frequencies == "highest" else section[len(section) - count :]

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product("qk", head.with_axes().pairs(self.chosen(head))))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.chosen(decoder.head)  # raises if it does not fit
        self.replaces_time = bool(decoder.head.axes)
        if self.replaces_time:
            rope = decoder.rope_frequencies[0].detach().clone()
        else:
            count = len(decoder.head.with_axes().axes)
            rope = ROPE_BASE ** -(torch.arange(count, dtype=torch.float32, device=decoder.device) / count)
        self.register_buffer("rope", rope, persistent=False)

    @property
    def symmetries(self) -> Symmetries:
        # identical poses share one position, which differs from the original model's position, if it has one
        identity_stock = not self.replaces_time and not self.offset
        return Symmetries(scale=not self.index.uses_lengths, identity_stock=identity_stock)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        index = cameras.required("index")
        # 1. The position of each view.
        used = cameras.used_mask()
        views = self.index.spread(self.index.pose_values(cameras.world_to_camera, used), used)
        # 2. P - T of each token, or P where there is no T.
        visual = index >= 0
        ahead = self.offset + views.gather(1, index.clamp(min=0))
        if self.replaces_time:
            time = cameras.required("time")
            ahead = ahead + time.gather(1, visual.int().argmax(1, keepdim=True)) - time
        # 3. RoPE has already rotated by T. Rotate by the rest of the angle.
        chosen = torch.zeros(len(self.rope), dtype=torch.bool)
        chosen[self.chosen(head)] = True
        rope = self.rope.to(ahead.dtype) * chosen.to(ahead.device, non_blocking=True)
        angle = ahead.where(visual, 0.0)[..., None] * rope
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), "qk")


class PoseIndex(CameraEncoding):
    """RoPE by pose: position ids with t = round(span d / max d), for the pose distance d of a view to a reference view.

    With `PathLengthIndex`, d is the length of the camera path up to the view.

    The attention is the original one. The model uses this class's `time_index` instead of its own, which is equivalent
    to `--model.time_index PoseDistanceIndex` or `PathLengthIndex`. It applies to the temporal patches of a video.
    Images keep consecutive positions, as in the original model.

    One number does not identify a pose. With the distance to a reference view, views on opposite sides of it share an
    index. With the length of the path, a view that is seen twice has two.

    Args:
        index: `PoseDistanceIndex` (the default) or `PathLengthIndex`.
    """

    def __init__(self, index: PoseTimeIndex | None = None) -> None:
        super().__init__(reference=None)
        self.index = index or PoseDistanceIndex()

    @property
    def time_index(self) -> PoseTimeIndex:
        return self.index

    @property
    def symmetries(self) -> Symmetries:
        # identical poses share one time position, which differs from the original model
        return Symmetries(scale=not self.index.uses_lengths, identity_stock=False)


# ---- Rotations of pairs of channels ----------------------------------------------------------------------------------


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
