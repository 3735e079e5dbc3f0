"""A folder of computed geometry: one safetensors file per scene and kind, with a limit on its size.

`CachedGeometry` is the encoder behind the folder, and `GeometryReader` reads the folder in data workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import TOKENS, SceneGeometry, Window
from zoo.errors import InputError, check_choice
from zoo.files.atomic_io import replace_file
from zoo.files.cache import Cache, Key, Tensors
from zoo.files.fingerprint import DIGITS, content_fingerprint, fingerprint
from zoo.geometry.base import DatasetGeometries, Frames, GeometryEncoder, Head, resample_frames
from zoo.precision import full_precision
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind
from zoo.weights.load import read_weights

VERSION = 1  # raise it when encoders compute something else from the same weights, so that no entry is stale
EXACT = 1e-6  # tolerance of bytes / 255 in float32, which devices round differently
TokenDType = Literal["bfloat16", "float8"]


# ---- The folder -----------------------------------------------------------------------------------------------------


@dataclass
class GeometryCache(Cache):
    """A folder of entries shared by processes, runs and models; evicts the least recently used entry.

    The name of an entry is a digest of everything that it depends on, so that no stale entry is ever found. Files are
    written whole or not at all, and a damaged file counts as absent: its entry is computed again.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again: they fill the folder up to its limit and
    evict the entries of other runs. Train with a sampler that chooses the same frames, `--data.train_sampler null`.

    Args:
        folder: Where the entries are kept.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes. Each further process may exceed it by 1/64,
            or by one entry.
        dtype: Of 3D tokens; poses and intrinsics are kept exactly. `float8` (e4m3, one scale per token) takes half the
            space; benchmarks/README.md has its error.

    Raises:
        InputError: A limit that is not positive, or another dtype.
    """

    folder: str = "cache/geometry"
    max_size_gb: float = 100.0
    dtype: TokenDType = "bfloat16"
    option: ClassVar[str] = "--model.geometry_cache"

    def __post_init__(self) -> None:
        check_choice(f"{self.option}.dtype", self.dtype, TokenDType)
        super().__post_init__()

    def weights_fingerprint(self, weights: Path) -> str:
        """`content_fingerprint` of a file; kept in this folder, so that a file is read again only if it has changed."""
        status = weights.stat()
        state = [str(weights.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self.path / "weights" / fingerprint(state)
        with suppress(OSError):
            if len(text := known.read_text()) == DIGITS:
                return text
        found = content_fingerprint(weights)
        with suppress(OSError):
            replace_file(known, found.encode())
        return found


# ---- The content of entries -----------------------------------------------------------------------------------------

FIELDS = {
    "tokens": TOKENS,
    "cameras": ("world_to_camera", "K_normalized", "has_camera", "depth"),
}  # each kind is an entry of its own
SCALE = ".scale"
FLOAT8 = torch.float8_e4m3fn


def pack(tensors: Mapping[str, Tensor], dtype: TokenDType) -> dict[str, Tensor]:
    """Round 3D tokens to half precision; return CPU tensors that own their memory."""
    packed = {}
    for name, tensor in tensors.items():
        if name in TOKENS and dtype == "float8":
            packed[name], packed[name + SCALE] = to_float8(tensor)
        else:
            packed[name] = tensor.bfloat16() if name in TOKENS else tensor
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in packed.items()}


def unpack(packed: Tensors) -> dict[str, Tensor]:
    """The inverse of `pack`; 3D tokens are bfloat16."""
    plain = {name: tensor for name, tensor in packed.items() if not name.endswith(SCALE)}
    scaled = {name: (plain[name].float() * packed[name + SCALE]).bfloat16() for name in plain if name + SCALE in packed}
    return plain | scaled


def to_float8(tokens: Float[Tensor, "*rest D"]) -> tuple[Shaped[Tensor, "*rest D"], Float[Tensor, "*rest 1"]]:
    """Round to e4m3 with one scale per token, which maps its largest channel to e4m3's maximum; error at most 6 %."""
    tokens = tokens.float()
    largest = tokens.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / torch.finfo(FLOAT8).max
    return (tokens / scale).to(FLOAT8), scale


def scene_of(entries: Sequence[Tensors]) -> SceneGeometry:
    """The geometry of a scene from its entries."""
    return SceneGeometry(**unpack({name: tensor for packed in entries for name, tensor in packed.items()}))


@dataclass(frozen=True)
class GeometryKeys:
    """The keys of an encoder's outputs; a value that data workers can hold.

    The key of an entry is made of the frames' pixels, the encoder's settings, its weights, what it reads of the
    dataset's geometry, and for cameras the source of their scale. The pixels identify scene, frames, order and size at
    once, and no name has to be trusted. They are those before any resampling, which devices round differently.

    Attributes:
        shared: What each key holds: the encoder's class, settings and weights, the dtype of 3D tokens, and the size of
            the frames' patches.
        fields: What is kept of each kind.
        given_fields: See `GeometryEncoder`.
        scale: Class and files of the source of scale; None without one.
    """

    shared: Mapping[str, Any]
    fields: Mapping[str, Sequence[str]]
    given_fields: Mapping[str, Sequence[str]]
    scale: Sequence[str] | None = None

    def of(
        self, frames: Shaped[Tensor, "S 3 H W"], given: SceneGeometry | None, *, tokens: bool, cameras: bool
    ) -> dict[str, Key]:
        """The key of each entry that is asked for, by kind."""
        pixels = pixels_fingerprint(frames)
        known = {} if given is None else given.present()
        keys: dict[str, Key] = {}
        for kind in [kind for kind, is_asked in (("tokens", tokens), ("cameras", cameras)) if is_asked]:
            read = {name: known[name] for name in self.given_fields.get(kind, ()) if name in known}
            keys[kind] = {
                **self.shared,
                "frames": pixels,
                "fields": self.fields[kind],
                "given": fingerprint(read) if read else None,
                "scale": self.scale if kind == "cameras" else None,
            }
        return keys


def pixels_fingerprint(frames: Shaped[Tensor, "S 3 H W"]) -> str:
    """Fingerprint of frames; equal for bytes and, on every device, for their quotients by 255, which may differ."""
    if frames.is_floating_point():
        counts = (frames * 255).round().clamp(0, 255)
        if bool(((counts / 255 - frames).abs() < EXACT).all()):
            frames = counts.to(torch.uint8)
    return fingerprint(frames)


# ---- In data workers, so that a step neither waits for a disk nor for a hash ----------------------------------------

EVERY_FRAME = slice(None)


def shown_frames(kind: MediaKind, stills_once: bool) -> slice:
    """Return the frames of a scene that the geometry encoder sees; the two equal ones of a still may be one."""
    return slice(None, None, TEMPORAL_PATCH_SIZE) if stills_once and kind == "image" else EVERY_FRAME


def geometry_of_frames(
    geometry: SceneGeometry | None, frames: Shaped[Tensor, "S 3 H W"], window: Window | None
) -> SceneGeometry | None:
    """Return the dataset's geometry of the frames that the geometry encoder sees.

    Args:
        geometry: Of what the vision encoder sees of them; None if the dataset has none.
        frames: The encoder's.
        window: What of them the tower sees; None is everything.
    """
    if geometry is None or window is None:
        return geometry
    return window.inverse.crop(geometry, (frames.shape[-2], frames.shape[-1]))


@dataclass(frozen=True)
class GeometryReader:
    """Read what a model uses of a scene's cached geometry.

    Attributes:
        cache: The folder.
        keys: Of the cached encoder.
        tokens: Whether the model uses 3D tokens.
        predicted_cameras: Whether it may use predicted cameras.
        only_predicted: Whether it uses them for scenes with cameras as well.
        stills_once: See `encode_geometry`.
        is_resampled: Whether the encoder's patches are not the vision encoder's, see `check_grid`.
    """

    cache: GeometryCache
    keys: GeometryKeys
    tokens: bool
    predicted_cameras: bool
    only_predicted: bool
    stills_once: bool = False
    is_resampled: bool = False

    def read(
        self,
        frames: Shaped[Tensor, "S 3 H W"],
        given: SceneGeometry | None,
        kind: MediaKind,
        *,
        has_cameras: bool,
        window: Window | None = None,
    ) -> SceneGeometry | None:
        """The geometry of a scene; None if it has to be computed, or if nothing is asked of the encoder.

        Args:
            frames: As the model gets them.
            given: The dataset's geometry of what the vision encoder sees.
            kind: Of the scene.
            has_cameras: Whether the scene has merged cameras of the dataset.
            window: What of the frames the tower sees; None is everything.
        """
        cameras = self.predicted_cameras and (self.only_predicted or not has_cameras)
        if not (self.tokens or cameras):
            return None
        shown = shown_frames(kind, self.stills_once)
        own = geometry_of_frames(given and given[shown], frames, window)
        found = []
        for key in self.keys.of(frames[shown], own, tokens=self.tokens, cameras=cameras).values():
            entry = self.cache.read(key)
            if entry is None:
                return None
            found.append(entry)
        return scene_of(found)


# ---- The encoder behind the folder ----------------------------------------------------------------------------------

EncoderFactory = Callable[[], GeometryEncoder | None]
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

    def __init__(self, build: EncoderFactory) -> None:
        self._build = build
        self._heads: list[Head] = []
        self._loaded: GeometryEncoder | None = None
        with torch.device("meta"):
            self.meta_encoder = read_weights(self._built())  # checks names and shapes
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
            read_weights(self.meta_encoder)

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

    def weights(self, fingerprint_of_file: Callable[[Path], str]) -> list[str]:
        """Fingerprints of the weights: of their files, or of the tensors of an encoder that no file describes."""
        if self.from_files:
            return [fingerprint_of_file(file) for file in self.meta_encoder.files]
        return [fingerprint(self.load().state_dict())]


def build_first_available(*factories: EncoderFactory | None) -> GeometryEncoder | None:
    """Build the encoder of the first factory that yields one."""
    return next((encoder for build in factories if build is not None and (encoder := build()) is not None), None)


def check_grid(encoder: GeometryEncoder, frames: Shaped[Tensor, "S 3 H W"], grid: tuple[int, int]) -> None:
    """Check that a cache that resamples gets frames with the patches of the vision encoder.

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

    It takes frames with the patches of the vision encoder, and resamples what the encoder computes: the keys of entries
    do not depend on the device that resamples.

    The encoder computes without autocast, so that entries do not depend on the precision of the run that made them:
    load weights in bfloat16 for speed. It is no submodule, so that the model's state does not depend on whether it is
    loaded; `encoder` gives access to it. Random weights, which no file restores, are part of the model's state.

    Args:
        build: Makes the encoder, see `LazyGeometry`.
        cache: Where entries are kept.
        keeps_confidence: Keep the confidence of depth as well.

    Attributes:
        cache: The same.
        num_computed: Number of scenes that the encoder has computed.

    Raises:
        InputError: Nothing is built, or an encoder whose outputs can't be cached.
    """

    def __init__(self, build: EncoderFactory, cache: GeometryCache, keeps_confidence: bool = False) -> None:
        super().__init__()
        self._fields = FIELDS | {"cameras": (*FIELDS["cameras"], *(("confidence",) if keeps_confidence else ()))}
        self._lazy, self.cache = LazyGeometry(build), cache
        for name in GeometryEncoder.__annotations__:  # width, requires_frames, ...
            setattr(self, name, getattr(self._lazy.meta_encoder, name))
        self.predicts_points = False  # they are not kept
        self._lazy.identity()  # raises for an encoder that can't be cached
        self.num_computed = 0
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

    @property
    def is_resampled(self) -> bool:
        """Whether the encoder's patches are not those of the frames that this takes."""
        return self.patch_size != self.meta_encoder.patch_size

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
        return self._lazy.weights(self.cache.weights_fingerprint)

    @property
    def keys(self) -> GeometryKeys:
        """The keys of the encoder's entries."""
        scale = None
        if self.scale_from is not None:
            files = [self.cache.weights_fingerprint(file) for file in self.scale_from.files]
            scale = [type(self.scale_from).__qualname__, *files]
        shared = {
            "encoder": self._lazy.identity(),
            "weights": self.weights,
            "dtype": self.cache.dtype,
            "patch_size": self.patch_size,
            "version": VERSION,
        }
        return GeometryKeys(shared, self._fields, self.given_fields, scale)

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`."""
        known = self.keys
        keys = [known.of(*scene, tokens=tokens, cameras=cameras) for scene in zip(frames, given, strict=True)]
        found = [{kind: self.cache.read(key) for kind, key in scene.items()} for scene in keys]
        missing = [(i, kind) for i, scene in enumerate(found) for kind, entry in scene.items() if entry is None]
        computed = self._compute(frames, given, missing) if missing else {}
        for i, kind in missing:
            fields = computed[i].present()
            entry = pack({name: fields[name] for name in self._fields[kind] if name in fields}, self.cache.dtype)
            self.cache.write(keys[i][kind], entry)
            found[i][kind] = entry
        return [
            scene_of([entry for entry in scene.values() if entry]).to(each.device)
            for scene, each in zip(found, frames, strict=True)
        ]

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
