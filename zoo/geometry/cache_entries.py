"""The names of a geometry encoder's outputs in a cache, and how they are read without the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import TOKENS, SceneGeometry
from zoo.files.cache_folder import Description
from zoo.files.fingerprint import fingerprint
from zoo.geometry.cache import GeometryCache, Packed, unpack

VERSION = 1  # raise it when encoders compute something else from the same weights, so that no entry is stale
KINDS = {
    "tokens": TOKENS,
    "cameras": ("world_to_camera", "K_normalized", "has_camera", "depth"),
}  # each an entry of its own
EXACT = 1e-6  # tolerance of bytes / 255 in float32, which devices round differently


@dataclass(frozen=True)
class CacheEntries:
    """Describe and read the entries of an encoder; a value that data workers can hold.

    The key of an entry is made of the frames' pixels, the encoder's settings, its weights, what it reads of the
    dataset's geometry, and for cameras the source of their scale. The pixels identify scene, frames, order and size at
    once, and no name has to be trusted. They are those before any resampling, which devices round differently.

    Attributes:
        cache: Where entries are kept.
        encoder: Class and settings of the encoder, as JSON.
        weights: Fingerprints of its weights.
        given_fields: See `GeometryEncoder`.
        scale: Class and files of the source of scale; None without one.
        resampled_from: The size of the frames' patches, if the encoder has another; None if they are not resampled.
        keeps_confidence: Whether the confidence of depth is part of an entry.
    """

    cache: GeometryCache
    encoder: Mapping[str, Any]
    weights: list[str]
    given_fields: Mapping[str, tuple[str, ...]]
    scale: list[str] | None = None
    resampled_from: int | None = None
    keeps_confidence: bool = False

    def describe(
        self, frames: Shaped[Tensor, "S 3 H W"], given: SceneGeometry | None, *, tokens: bool, cameras: bool
    ) -> dict[str, Description]:
        """The full description of each entry that is asked for, by kind."""
        shared: dict[str, Any] = {
            "frames": pixels_fingerprint(frames),
            "encoder": self.encoder,
            "weights": self.weights,
            "dtype": self.cache.dtype,
            "version": VERSION,
        }
        if self.resampled_from is not None:
            shared["resampled_from"] = self.resampled_from
        entries: dict[str, Description] = {}
        present = {} if given is None else given.present()
        for kind in [kind for kind, asked in (("tokens", tokens), ("cameras", cameras)) if asked]:
            entry = {"kind": kind, **shared}
            if read := {name: present[name] for name in self.given_fields.get(kind, ()) if name in present}:
                entry["given"] = fingerprint(read)
            if kind == "cameras" and self.scale is not None:
                entry["scale"] = self.scale
            if kind == "cameras" and self.keeps_confidence:
                entry["confidence"] = True
            entries[kind] = entry
        return entries

    def kept(self, kind: str) -> tuple[str, ...]:
        """Return the fields of an entry of this kind."""
        return (*KINDS[kind], *(("confidence",) if kind == "cameras" and self.keeps_confidence else ()))

    def read(
        self, frames: Shaped[Tensor, "S 3 H W"], given: SceneGeometry | None, *, tokens: bool, cameras: bool
    ) -> SceneGeometry | None:
        """The geometry of a scene; None if some entry is absent or damaged."""
        found: list[Packed] = []
        for entry in self.describe(frames, given, tokens=tokens, cameras=cameras).values():
            packed = self.cache.get(entry)
            if packed is None:
                return None
            found.append(packed)
        return unpacked(found)


def unpacked(kinds: list[Packed]) -> SceneGeometry:
    """The geometry of a scene from its entries."""
    return SceneGeometry(**unpack({name: tensor for packed in kinds for name, tensor in packed.items()}))


def pixels_fingerprint(frames: Shaped[Tensor, "S 3 H W"]) -> str:
    """Fingerprint of frames; equal for bytes and, on every device, for their quotients by 255, which may differ."""
    if not frames.is_floating_point():
        return fingerprint({"frames": frames})
    counts = (frames * 255).round().clamp(0, 255)
    were_bytes = bool(((counts / 255 - frames).abs() < EXACT).all())
    return fingerprint({"frames": counts.to(torch.uint8) if were_bytes else frames})
