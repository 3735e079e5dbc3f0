"""A cache of computed geometry: a folder of limited size with one safetensors file per scene and kind.

`CachedGeometry` is the encoder that uses the folder. `GeometryReader` reads the folder in data workers.
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
from zoo.geometry.base import DatasetGeometries, Frames, GeometryEncoder, Head, resample_depth, resample_frames
from zoo.precision import full_precision
from zoo.sequences.layout import MediaKind
from zoo.sequences.loaded_scene import FrameRules
from zoo.weights.load import read_weights

VERSION = 1  # raise it when encoders compute something else from the same weights, so that no entry is stale
EXACT = 1e-6  # tolerance for bytes / 255 in float32, because devices round differently
TokenDType = Literal["bfloat16", "float8"]


# ---- The folder -----------------------------------------------------------------------------------------------------


@dataclass
class GeometryCache(Cache):
    """A folder of entries shared by processes, runs and models. The least recently used entries are evicted.

    The name of an entry is a digest of everything that it depends on, so stale entries are never found. Files are
    written whole or not at all. A damaged file counts as absent, and its entry is computed again.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again. They fill the folder up to its limit and
    evict entries of other runs. Train with a sampler that always chooses the same frames, `--data.train_sampler null`.

    Args:
        folder: Folder of the entries.
        max_size_gb: Limit of the total size in 1e9 bytes. Each further process may exceed it by 1/64 or by one entry.
        dtype: Dtype of 3D tokens. Poses and intrinsics are stored exactly. `float8` (e4m3, one scale per token) takes
            half the space. timings/README.md reports its error.

    Raises:
        InputError: The limit is not positive, or the dtype is unknown.
    """

    folder: str = "cache/geometry"
    max_size_gb: float = 100.0
    dtype: TokenDType = "bfloat16"
    option: ClassVar[str] = "--model.geometry_cache"

    def __post_init__(self) -> None:
        check_choice(f"{self.option}.dtype", self.dtype, TokenDType)
        super().__post_init__()

    def weights_fingerprint(self, weights: Path) -> str:
        """Return `content_fingerprint` of a file. It is stored here, and computed again only if the file changed."""
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
}  # each kind is a separate entry
SCALE = ".scale"
FLOAT8 = torch.float8_e4m3fn


def pack(tensors: Mapping[str, Tensor], dtype: TokenDType) -> dict[str, Tensor]:
    """Round 3D tokens to half precision, and return CPU tensors that own their memory."""
    packed = {}
    for name, tensor in tensors.items():
        if name in TOKENS and dtype == "float8":
            packed[name], packed[name + SCALE] = to_float8(tensor)
        else:
            packed[name] = tensor.bfloat16() if name in TOKENS else tensor
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in packed.items()}


def unpack(packed: Tensors) -> dict[str, Tensor]:
    """Invert `pack`. 3D tokens are bfloat16."""
    plain = {name: tensor for name, tensor in packed.items() if not name.endswith(SCALE)}
    scaled = {name: (plain[name].float() * packed[name + SCALE]).bfloat16() for name in plain if name + SCALE in packed}
    return plain | scaled


def to_float8(tokens: Float[Tensor, "*rest D"]) -> tuple[Shaped[Tensor, "*rest D"], Float[Tensor, "*rest 1"]]:
    """Round to e4m3 with one scale per token, which maps its largest channel to e4m3's maximum. Error at most 6 %."""
    tokens = tokens.float()
    largest = tokens.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / torch.finfo(FLOAT8).max
    return (tokens / scale).to(FLOAT8), scale


def scene_of(entries: Sequence[Tensors]) -> SceneGeometry:
    """Return the geometry of a scene from its entries."""
    return SceneGeometry(**unpack({name: tensor for packed in entries for name, tensor in packed.items()}))


@dataclass(frozen=True)
class GeometryKeys:
    """The keys of an encoder's outputs, as a value that data workers can hold.

    A key consists of the frames' pixels, the encoder's settings and weights, the fields that it reads of the dataset's
    geometry, and for cameras the source of their scale. The pixels identify scene, frames, order and size, so no name
    has to be trusted. They are taken before any resampling, because devices round that differently.

    Attributes:
        shared: Values in every key: the encoder's class, settings and weights, the dtype of 3D tokens, and the patch
            size of the frames.
        fields: Stored fields of each kind.
        given_fields: See `GeometryEncoder`.
        scale: Class and files of the source of scale. None without one.
    """

    shared: Mapping[str, Any]
    fields: Mapping[str, Sequence[str]]
    given_fields: Mapping[str, Sequence[str]]
    scale: Sequence[str] | None = None

    def of(
        self, frames: Shaped[Tensor, "S 3 H W"], given: SceneGeometry | None, *, tokens: bool, cameras: bool
    ) -> dict[str, Key]:
        """Return the key of each requested entry, by kind."""
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
    """Return the fingerprint of frames. Bytes and their quotients by 255 give the same one on every device."""
    if frames.is_floating_point():
        counts = (frames * 255).round().clamp(0, 255)
        if bool(((counts / 255 - frames).abs() < EXACT).all()):
            frames = counts.to(torch.uint8)
    return fingerprint(frames)


# ---- Reading in data workers, so that a step waits neither for a disk nor for a hash --------------------------------


def geometry_of_frames(
    geometry: SceneGeometry | None, frames: Shaped[Tensor, "S 3 H W"], window: Window | None
) -> SceneGeometry | None:
    """Return the dataset's geometry of the frames that the geometry encoder sees.

    `window` is the part of the frames that the vision encoder sees, or None for all of it. `geometry` belongs to that
    part.
    """
    if geometry is None or window is None:
        return geometry
    return window.inverse.crop(geometry, (frames.shape[-2], frames.shape[-1]))


@dataclass(frozen=True)
class GeometryReader:
    """Reads the cached geometry of a scene that a model uses.

    Attributes:
        cache: The folder.
        keys: Keys of the cached encoder.
        tokens: Whether the model uses 3D tokens.
        predicted_cameras: Whether the model may use predicted cameras.
        only_predicted: Whether the model uses predicted cameras also for scenes with cameras.
        rules: How the model reads frames.
        is_resampled: Whether the encoder's patch size differs from the vision encoder's, see `check_grid`.
    """

    cache: GeometryCache
    keys: GeometryKeys
    tokens: bool
    predicted_cameras: bool
    only_predicted: bool
    rules: FrameRules = FrameRules()
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
        """Return the geometry of a scene. None if it must be computed, or if the model needs nothing from the encoder.

        Args:
            frames: Frames as the model gets them.
            given: The dataset's geometry of the part that the vision encoder sees.
            kind: Kind of the scene's media.
            has_cameras: Whether the scene has merged cameras from the dataset.
            window: The part of the frames that the vision encoder sees. None is all of it.
        """
        cameras = self.predicted_cameras and (self.only_predicted or not has_cameras)
        if not (self.tokens or cameras):
            return None
        shown = self.rules.shown_to_geometry(kind)
        own = geometry_of_frames(given and given[shown], frames, window)
        found = []
        for key in self.keys.of(frames[shown], own, tokens=self.tokens, cameras=cameras).values():
            entry = self.cache.read(key)
            if entry is None:
                return None
            found.append(entry)
        return scene_of(found)


# ---- The cached encoder ---------------------------------------------------------------------------------------------

EncoderFactory = Callable[[], GeometryEncoder | None]
STILLS_OF_ANOTHER_GRID = (
    "--data.still_resize with patches of another size: leave --model.geometry_cache and --model.teacher.cache out"
)


class LazyGeometry:
    """Builds a geometry encoder on the meta device, and again with its weights when it is first needed.

    Args:
        build: Builds the encoder. On the meta device it only creates shapes and reads no weights.

    Attributes:
        meta_encoder: The encoder on the meta device.
        from_files: Whether its weights are read from files.

    Raises:
        InputError: No encoder is built.
    """

    def __init__(self, build: EncoderFactory) -> None:
        self._build = build
        self._heads: list[Head] = []
        self._loaded: GeometryEncoder | None = None
        with torch.device("meta"):
            self.meta_encoder = read_weights(self._built())  # to check names and shapes
        self.from_files = bool(self.meta_encoder.files) and all(
            tensor.is_meta for tensor in self.meta_encoder.parameters()
        )

    def _built(self) -> GeometryEncoder:
        encoder = self._build()
        if encoder is None:
            raise InputError("no geometry encoder: set --model.geometry, or leave --model.geometry_cache out")
        return encoder

    def enable_head(self, head: Head) -> None:
        """Enable a head of the meta encoder now, and of the real encoder when it is loaded.

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
        """Return the encoder itself, frozen. Its weights are read at the first call."""
        if self._loaded is None:
            with torch.inference_mode(False):  # kept beyond this call, and may be needed for training later
                encoder = self._built()
                for head in self._heads:
                    encoder.enable_head(head)
            self._loaded = encoder.requires_grad_(False).eval()
        return self._loaded

    def identity(self) -> dict[str, Any]:
        """Return the class and the settings of the encoder, as JSON-like values."""
        return {"class": type(self.meta_encoder).__qualname__, **self.meta_encoder.identity()}

    def weights(self, fingerprint_of_file: Callable[[Path], str]) -> list[str]:
        """Return fingerprints of the weights' files, or of the tensors if the weights do not come from files."""
        if self.from_files:
            return [fingerprint_of_file(file) for file in self.meta_encoder.files]
        return [fingerprint(self.load().state_dict())]


def build_first_available(*factories: EncoderFactory | None) -> GeometryEncoder | None:
    """Build the encoder of the first factory that returns one."""
    return next((encoder for build in factories if build is not None and (encoder := build()) is not None), None)


def check_grid(encoder: GeometryEncoder, frames: Shaped[Tensor, "S 3 H W"], grid: tuple[int, int]) -> None:
    """Check that a resampling cache gets frames with the vision encoder's patches.

    Raises:
        InputError: The frames have the geometry encoder's own patches.
    """
    is_resampled = encoder.patch_size != encoder.meta_encoder.patch_size
    if is_resampled and tuple(frames.shape[-2:]) != tuple(side * encoder.patch_size for side in grid):
        raise InputError(STILLS_OF_ANOTHER_GRID)


class CachedGeometry(GeometryEncoder):
    """A frozen encoder that computes only what its cache lacks. It is loaded when that first happens.

    Entries that data workers have already read (`GeometryReader`) are not requested again. Poses and intrinsics are
    stored exactly. 3D tokens are bfloat16, rounded as the cache stores them even when they were just computed, so that
    results do not depend on the state of the cache.

    Frames have the vision encoder's patches and are resampled only for the computation. Keys of entries therefore do
    not depend on the device that resamples.

    The encoder computes without autocast, so that entries do not depend on the precision of a run. Load the weights in
    bfloat16 for speed. The encoder is not a submodule, so that the model's state does not depend on whether it is
    loaded. `encoder` gives access to it. Random weights, which no file can restore, are part of the model's state.

    Args:
        build: Builds the encoder, see `LazyGeometry`.
        cache: The folder of the entries.
        keeps_confidence: Also store the confidence of depth.

    Attributes:
        cache: The same.
        num_computed: Number of scenes that the encoder has computed.

    Raises:
        InputError: No encoder is built, or its outputs can't be cached.
    """

    def __init__(self, build: EncoderFactory, cache: GeometryCache, keeps_confidence: bool = False) -> None:
        super().__init__()
        self._fields = FIELDS | {"cameras": (*FIELDS["cameras"], *(("confidence",) if keeps_confidence else ()))}
        self._lazy, self.cache = LazyGeometry(build), cache
        for name in GeometryEncoder.__annotations__:  # width, requires_frames, ...
            setattr(self, name, getattr(self._lazy.meta_encoder, name))
        self.predicts_points = False  # points are not stored
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
        """Whether the encoder's patch size differs from the frames' patch size."""
        return self.patch_size != self.meta_encoder.patch_size

    def encoder(self) -> GeometryEncoder:
        """Return the encoder itself, frozen. It is loaded at the first call."""
        return self._lazy.load()

    def match_patches(self, patch_size: int) -> None:
        """Accept frames with patches of this size in pixels."""
        self.patch_size = patch_size

    def enable_head(self, head: Head) -> None:
        """See `GeometryEncoder`."""
        self._lazy.enable_head(head)

    @cached_property
    def weights(self) -> list[str]:
        """Fingerprints of the encoder's weights, from their files or their tensors."""
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
            resampled = [resample_frames(frames[i], self.patch_size, encoder.patch_size) for i in numbers]
            known = [
                resample_depth(given[i], (each.shape[-2], each.shape[-1]))
                for i, each in zip(numbers, resampled, strict=True)
            ]
            scenes = encoder(
                resampled,
                known,
                tokens="tokens" in kinds,
                cameras="cameras" in kinds,
            )
        self.num_computed += len(scenes)
        return dict(zip(numbers, scenes, strict=True))
