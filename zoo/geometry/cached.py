"""A geometry encoder behind a cache: known entries are read, and the encoder is loaded only if one is missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.errors import InputError
from zoo.files.cache_folder import Description
from zoo.files.fingerprint import fingerprint
from zoo.geometry.base import DatasetGeometries, Frames, GeometryEncoder, Head, SceneGeometry, resample_frames
from zoo.geometry.cache import GeometryCache, Packed, pack
from zoo.geometry.cache_entries import CacheEntries, unpacked
from zoo.precision import full_precision
from zoo.weights.deferred import load_deferred

Recipe = Callable[[], GeometryEncoder | None]
STILLS_OF_ANOTHER_GRID = (
    "--data.still_resize with patches of another size: leave --model.geometry_cache and --model.teacher.cache out"
)


class LazyGeometry:
    """Build a geometry encoder on the meta device, and again with its weights when it is first needed.

    Args:
        build: Makes the encoder. On the meta device only shapes are made and no weights are read.

    Attributes:
        meta_encoder: The encoder on the meta device.
        from_files: Whether its weights are read from files.

    Raises:
        InputError: Nothing is built.
    """

    def __init__(self, build: Recipe) -> None:
        self._build = build
        self._heads: list[Head] = []
        self._loaded: GeometryEncoder | None = None
        with torch.device("meta"):
            self.meta_encoder = load_deferred(self._built())  # checks names and shapes
        self.from_files = bool(self.meta_encoder.files) and all(
            tensor.is_meta for tensor in self.meta_encoder.parameters()
        )

    def _built(self) -> GeometryEncoder:
        encoder = self._build()
        if encoder is None:
            raise InputError("no geometry encoder: set --model.geometry, or leave --model.geometry_cache out")
        return encoder

    def enable_head(self, head: Head) -> None:
        """Enable a head of the outline now, and of the encoder when it is loaded.

        Raises:
            InputError: There is no such head.
        """
        self._heads.append(head)
        if self._loaded is not None:
            self._loaded.enable_head(head)
        with torch.device("meta"):
            self.meta_encoder.enable_head(head)
            load_deferred(self.meta_encoder)

    def load(self) -> GeometryEncoder:
        """The encoder itself, frozen; its weights are read at the first call."""
        if self._loaded is None:
            with torch.inference_mode(False):  # it is kept, and may be needed for training later
                encoder = self._built()
                for head in self._heads:
                    encoder.enable_head(head)
            self._loaded = encoder.requires_grad_(False).eval()
        return self._loaded

    def identity(self) -> dict[str, Any]:
        """The class and the settings of the encoder, as JSON."""
        return {"class": type(self.meta_encoder).__qualname__, **self.meta_encoder.identity()}

    def weights(self, file_fingerprint: Callable[[Path], str]) -> list[str]:
        """Fingerprints of the weights: of their files, or of the tensors of an encoder that no file describes."""
        if self.from_files:
            return [file_fingerprint(file) for file in self.meta_encoder.files]
        return [fingerprint(self.load().state_dict())]


def build_first_available(*recipes: Recipe | None) -> GeometryEncoder | None:
    """Build the encoder of the first recipe that yields one."""
    return next((encoder for recipe in recipes if recipe is not None and (encoder := recipe()) is not None), None)


def check_grid(encoder: GeometryEncoder, frames: Shaped[Tensor, "S 3 H W"], grid: tuple[int, int]) -> None:
    """Check that a cache that resamples gets frames with the patches of the vision tower.

    Args:
        encoder: Cached or not.
        frames: Of a scene.
        grid: Rows and columns of the tower's patches.

    Raises:
        InputError: They have the encoder's own patches.
    """
    is_resampled = encoder.patch_size != encoder.meta_encoder.patch_size
    if is_resampled and tuple(frames.shape[-2:]) != tuple(side * encoder.patch_size for side in grid):
        raise InputError(STILLS_OF_ANOTHER_GRID)


class CachedGeometry(GeometryEncoder):
    """A frozen encoder that computes only the entries that its cache lacks, and is loaded when that first happens.

    What data workers have read already (`GeometryReader`) is not asked of it. Poses and intrinsics are kept exactly; 3D
    tokens are bfloat16, rounded as the cache stores them even when just computed, so that results do not depend on the
    state of the cache.

    It takes frames with the patches of the vision tower, and resamples what the encoder computes: the names of entries
    do not depend on the device that resamples.

    The encoder computes without autocast, so that entries do not depend on the precision of the run that made them:
    load weights in bfloat16 for speed. It is no submodule, so that the model's state does not depend on whether it is
    loaded; `encoder` gives access to it. Random weights, which no file restores, are part of the model's state.

    Args:
        build: Makes the encoder, see `LazyGeometry`.
        cache: Where entries are kept.
        keeps_confidence: Keep the confidence of depth as well.

    Attributes:
        folder: Of the cache.
        num_computed: Number of scenes that the encoder has computed.
        write_error: The last error in writing an entry; the run goes on without that entry.

    Raises:
        InputError: Nothing is built, or an encoder whose outputs can't be cached.
    """

    def __init__(self, build: Recipe, cache: GeometryCache, keeps_confidence: bool = False) -> None:
        super().__init__()
        self._keeps_confidence = keeps_confidence
        self._lazy, self._cache, self.folder = LazyGeometry(build), cache, cache.folder
        for name in GeometryEncoder.__annotations__:  # width, requires_frames, ...
            setattr(self, name, getattr(self._lazy.meta_encoder, name))
        self.predicts_points = False  # they are not kept
        self._lazy.identity()  # raises for an encoder that can't be cached
        self.num_computed = 0
        self.write_error: OSError | None = None
        if not self._lazy.from_files and torch.get_default_device().type != "meta":
            for name, module in self._lazy.load().named_children():
                self.add_module(name, module)

    @property
    def meta_encoder(self) -> GeometryEncoder:
        """The encoder on the meta device."""
        return self._lazy.meta_encoder

    @property
    def files(self) -> tuple[Path, ...]:
        """See `GeometryEncoder`."""
        return self.meta_encoder.files

    def encoder(self) -> GeometryEncoder:
        """The encoder itself, frozen; it is loaded at the first call."""
        return self._lazy.load()

    def match_patches(self, patch_size: int) -> None:
        """Take frames with patches of this size, in pixels."""
        self.patch_size = patch_size

    def enable_head(self, head: Head) -> None:
        """See `GeometryEncoder`."""
        self._lazy.enable_head(head)

    @cached_property
    def weights(self) -> list[str]:
        """Fingerprints of the encoder's weights: of their files, or of its tensors."""
        return self._lazy.weights(self._cache.file_fingerprint)

    @property
    def entries(self) -> CacheEntries:
        """The names of the encoder's entries."""
        scale = None
        if self.scale_from is not None:
            files = [self._cache.file_fingerprint(file) for file in self.scale_from.files]
            scale = [type(self.scale_from).__qualname__, *files]
        is_resampled = self.patch_size != self.meta_encoder.patch_size
        return CacheEntries(
            self._cache,
            self._lazy.identity(),
            self.weights,
            self.given_fields,
            scale,
            self.patch_size if is_resampled else None,
            self._keeps_confidence,
        )

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`."""
        every = zip(frames, given, strict=True)
        named = self.entries
        entries = [named.describe(*scene, tokens=tokens, cameras=cameras) for scene in every]
        found = [{kind: self._cache.get(entry) for kind, entry in scene.items()} for scene in entries]
        missing = [(i, kind) for i, scene in enumerate(found) for kind, packed in scene.items() if packed is None]
        computed = self._compute(frames, given, missing) if missing else {}
        for i, kind in missing:
            fields = computed[i].present()
            packed = pack({name: fields[name] for name in named.kept(kind) if name in fields}, self._cache.dtype)
            found[i][kind] = packed
            self._keep(entries[i][kind], packed)
        scenes = []
        for scene, each in zip(found, frames, strict=True):
            scenes.append(unpacked([packed for packed in scene.values() if packed]).to(each.device))
        return scenes

    def _compute(
        self, frames: Frames, given: DatasetGeometries, missing: list[tuple[int, str]]
    ) -> dict[int, SceneGeometry]:
        numbers, kinds = sorted({i for i, _ in missing}), {kind for _, kind in missing}
        device = frames[0].device
        encoder = self.encoder().to(device)
        with torch.no_grad(), full_precision(device):
            scenes = encoder(
                [resample_frames(frames[i], self.patch_size, encoder.patch_size) for i in numbers],
                [given[i] for i in numbers],
                tokens="tokens" in kinds,
                cameras="cameras" in kinds,
            )
        self.num_computed += len(scenes)
        return dict(zip(numbers, scenes, strict=True))

    def _keep(self, entry: Description, packed: Packed) -> None:
        try:
            self._cache.put(entry, packed)
        except OSError as error:
            self.write_error = error
            warnings.warn(
                f"{self.folder}: geometry can't be kept ({error.strerror}), so it will be computed again", stacklevel=2
            )

    def holds(
        self, frames: Float[Tensor, "S 3 H W"], given: SceneGeometry | None, *, tokens: bool, cameras: bool
    ) -> bool:
        """Whether a file exists, sound or not, for all that is asked of a scene."""
        entries = self.entries.describe(frames, given, tokens=tokens, cameras=cameras)
        return all(self._cache.file(entry).exists() for entry in entries.values())
