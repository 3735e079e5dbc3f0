"""A geometry encoder behind a cache: what was found out once is read, and where all of it was, nothing is loaded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.cache import Description, GeometryCache, Packed, pack, unpack
from zoo.precision import full_precision
from zoo.weights import fingerprint, raw_bytes

VERSION = 1  # raised when encoders come to say something else by the same weights, so that no entry is stale
KINDS = {
    "tokens": ("patches", "camera_tokens"),
    "cameras": ("world_to_camera", "K_normalized", "has_camera", "depth"),
}  # each an entry of its own
EXACT = 1e-6  # of bytes / 255 in float32, whichever way it was divided

Recipe = Callable[[], GeometryEncoder | None]


class CachedGeometry(GeometryEncoder):
    """A frozen encoder that is asked for nothing but what its cache lacks, and loaded when that first happens.

    An entry is found by the pixels of the frames, the encoder's settings, and its weights' files. The pixels say at
    once which scene, which frames in which order, and at what size: they are at hand, since the 2D branch sees them
    too, and no name has to be trusted. Poses and intrinsics are kept exactly, and 3D tokens come in bfloat16 rounded as
    the cache has it, also when they were just made: a run says the same whatever the cache held before.

    The encoder computes without autocast, so that an entry doesn't depend on the precision of the run that made it:
    load weights in bfloat16 where speed matters. It is no submodule, and the model's state is the same whether it is
    loaded or not; `encoder` is the way to its weights.

    Args:
        build: makes the encoder. Called on the meta device at first, where only shapes are made and no weights read;
            an encoder that isn't there then, or doesn't come from files, is known by all of its numbers.
        cache: where entries are kept.

    Attributes:
        folder: of the cache.
        made: scenes that the encoder was asked for.
        unwritten: why the last entry that couldn't be written wasn't; the run goes on without it.

    Raises:
        InputError: nothing is built, or what can't be kept.
    """

    def __init__(self, build: Recipe, cache: GeometryCache) -> None:
        super().__init__()
        self._build, self._cache, self._wants_cameras, self._wants_depth = build, cache, False, False
        self.folder = cache.folder
        with torch.device("meta"):
            outline = self._built()
        self.width, self.files = outline.width, outline.files
        self.requires_cameras, self.requires_frames = outline.requires_cameras, outline.requires_frames
        self.requires_depth, self.predicts_cameras = outline.requires_depth, outline.predicts_cameras
        self.predicts_depth = outline.predicts_depth
        self._identity = {"class": type(outline).__qualname__, **outline.identity()}
        self._from_files = bool(self.files) and all(tensor.is_meta for tensor in outline.parameters())
        self._outline = [outline]  # in lists: no modules of this one
        self._loaded: list[GeometryEncoder] = []
        self.num_computed = 0
        self.write_error: OSError | None = None

    def _built(self) -> GeometryEncoder:
        encoder = self._build()
        if encoder is None:
            raise InputError("--model.geometry_cache: say with --model.geometry what it is to keep")
        return encoder

    def encoder(self) -> GeometryEncoder:
        """The encoder itself, frozen, which is loaded now unless it is already."""
        if not self._loaded:
            with torch.inference_mode(False):  # it stays, and may be needed for training later
                encoder = self._built()
                if self._wants_cameras:
                    encoder.enable_camera_head()
                if self._wants_depth:
                    encoder.enable_depth_head()
            self._loaded.append(encoder.requires_grad_(False).eval())
        return self._loaded[0]

    def enable_camera_head(self) -> None:
        self._wants_cameras = True
        for encoder in self._loaded:
            encoder.enable_camera_head()
        with torch.device("meta"):
            self._outline[0].enable_camera_head()  # says now if it can't

    def enable_depth_head(self) -> None:
        self._wants_depth = True
        for encoder in self._loaded:
            encoder.enable_depth_head()
        with torch.device("meta"):
            self._outline[0].enable_depth_head()
        self._identity |= self._outline[0].identity()

    @cached_property
    def weights(self) -> list[str]:
        """Digests that stand for the encoder's weights: of their files, or of their numbers."""
        if self._from_files:
            return [self._cache.fingerprint(file) for file in self.files]
        return [fingerprint(self.encoder())]

    def entries(self, frames: Float[Tensor, "S 3 H W"], *, tokens: bool, cameras: bool) -> dict[str, Description]:
        """What each entry that is wanted of a scene depends on."""
        every = {
            "frames": pixels_digest(frames),
            "encoder": self._identity,
            "weights": self.weights,
            "dtype": self._cache.dtype,
            "version": VERSION,
        }
        return {kind: {"kind": kind, **every} for kind, wanted in (("tokens", tokens), ("cameras", cameras)) if wanted}

    def forward(
        self,
        frames: Sequence[Float[Tensor, "_S 3 _H _W"]],
        given: Sequence[SceneGeometry | None],
        *,
        tokens: bool = True,
        cameras: bool = True,
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`; `given` isn't looked at."""
        entries = [self.entries(each, tokens=tokens, cameras=cameras) for each in frames]
        found = [{kind: self._cache.get(entry) for kind, entry in scene.items()} for scene in entries]
        lacking = [i for i, scene in enumerate(found) if None in scene.values()]
        if lacking:
            kinds = {kind for i in lacking for kind, packed in found[i].items() if packed is None}
            made = self._make([frames[i] for i in lacking], [given[i] for i in lacking], kinds)
            for i, scene in zip(lacking, made, strict=True):
                for kind in [kind for kind, packed in found[i].items() if packed is None]:
                    found[i][kind] = scene[kind]
                    self._keep(entries[i][kind], scene[kind])
        return [self._unpacked(scene, where.device) for scene, where in zip(found, frames, strict=True)]

    def _make(
        self, frames: Sequence[Tensor], given: Sequence[SceneGeometry | None], kinds: Collection[str]
    ) -> list[dict[str, Packed]]:
        device = frames[0].device
        encoder = self.encoder().to(device)
        with torch.no_grad(), full_precision(device):
            scenes = encoder(frames, given, tokens="tokens" in kinds, cameras="cameras" in kinds)
        self.num_computed += len(scenes)
        fields = [{name: value for name, value in vars(scene).items() if value is not None} for scene in scenes]
        return [
            {
                kind: pack({name: each[name] for name in KINDS[kind] if name in each}, self._cache.dtype)
                for kind in kinds
            }
            for each in fields
        ]

    def _keep(self, entry: Description, packed: Packed) -> None:
        try:
            self._cache.put(entry, packed)
        except OSError as error:
            self.write_error = error
            warnings.warn(
                f"{self.folder}: geometry can't be kept ({error.strerror}), so it will be found out again",
                stacklevel=2,
            )

    @staticmethod
    def _unpacked(kinds: dict[str, Packed | None], device: torch.device) -> SceneGeometry:
        every = {name: tensor.to(device) for packed in kinds.values() for name, tensor in (packed or {}).items()}
        return SceneGeometry(**unpack(every))

    def holds(self, frames: Float[Tensor, "S 3 H W"], *, tokens: bool, cameras: bool) -> bool:
        """Whether there is an entry, sound or not, for all that is wanted of a scene."""
        entries = self.entries(frames, tokens=tokens, cameras=cameras)
        return all(self._cache.file(entry).exists() for entry in entries.values())


def build_first_available(*recipes: Recipe | None) -> GeometryEncoder | None:
    """What the first recipe makes that makes something."""
    return next((encoder for recipe in recipes if recipe is not None and (encoder := recipe()) is not None), None)


def pixels_digest(frames: Float[Tensor, "S 3 H W"]) -> str:
    """Names frames by content and size.

    Those that were bytes have one name on every device: dividing them by 255 may differ in the last digit.
    """
    counts = (frames * 255).round().clamp(0, 255)
    were_bytes = bool(((counts / 255 - frames).abs() < EXACT).all())
    pixels = counts.to(torch.uint8) if were_bytes else frames
    found = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)};".encode())
    found.update(raw_bytes(pixels))
    return found.hexdigest()
