"""The disturbance of a pretrained decoder: the rise of its loss by a camera encoding, before any training.

`PosedText` and `VideoAnswers` are what the model reads. `rows` lists variants of an encoding, and `measure` compares
the loss with each of them and without an encoding.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from commands.runs import LoadedRun
from datamodules.collate import TrainingCollate
from datamodules.perturbations import OtherCameras
from datamodules.sources.rooms.layout import ring_along_walls, walk
from datamodules.trajectories.base import from_axis_angle
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3, rigid_matrix, so3_log
from zoo.cameras.rays import grid_centers, ray_directions
from zoo.configuration import from_config, to_config, with_overrides
from zoo.encodings import (
    CameraEncoding,
    ChannelRange,
    ExtraChannels,
    FrequencyRange,
    LayerSubset,
    TemporalSection,
    UnrotatedChannels,
)
from zoo.errors import InputError
from zoo.model import SpatialVLM
from zoo.model_spec import CameraPlan
from zoo.precision import answer_precision, to_float32
from zoo.progress import progress
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.time_index import ConstantIndex, TemporalPatches, TimeIndex
from zoo.weights.saved_models import LAST_CHECKPOINT, config_of

Make = Callable[[], CameraEncoding]
Change = Callable[[Cameras], Cameras]  # of cameras relative to their first view


# ---- An encoding in a model that was built without one ---------------------------------------------------------------


@contextmanager
def installed(model: SpatialVLM, encoding: CameraEncoding | None) -> Iterator[None]:
    """Install an encoding that reads the dataset's cameras, and remove it afterwards. None installs nothing."""
    if encoding is None:
        yield
        return
    parts, plan, time_index = ("camera_encoding", "camera_plan", "time_index"), model.camera_plan, model.time_index
    before = {part: getattr(model, part) for part in parts}
    frequencies = model.backbone.decoder_layout.rope_frequencies  # which an encoding may overwrite
    pretrained = [each.clone() for each in frequencies]
    try:
        model.backbone.install_encoding(encoding)
        model.camera_encoding = encoding.to(model.backbone.device).eval()
        model.time_index = own_time_index(encoding) or time_index
        uses = (encoding, model.view_mixer)
        model.camera_plan = CameraPlan.of("dataset", plan.targets, uses, model.time_index, model.geometry)
        yield
    finally:
        for part, value in before.items():
            setattr(model, part, value)
        for changed, own in zip(frequencies, pretrained, strict=True):
            changed.copy_(own)


def without_encoding(run: Path, trust_modules: Collection[str]) -> SpatialVLM:
    """Load the model of a run without an encoding, and without its objectives besides the answers.

    Raises:
        InputError: The run can't be read, or was trained with an encoding.
    """
    trained = config_of(run)["model"].get("init_args", {}).get("camera_encoding")
    if trained is not None and (run / LAST_CHECKPOINT).exists():
        raise InputError(
            f"{run} was trained with an encoding, and the disturbance is that of a model without one: give a run with "
            "--model.camera_encoding null"
        )
    return SpatialVLM.from_pretrained(run, trust_modules=trust_modules, camera_encoding=None, objectives=None)


def own_time_index(encoding: CameraEncoding) -> TimeIndex | None:
    """Return the time index with which an encoding is used, or None for any."""
    return encoding.time_index or (ConstantIndex() if encoding.requires_constant_time else None)


# ---- What the model reads --------------------------------------------------------------------------------------------


class Reading(ABC):
    """Something that a model reads, with cameras.

    Args:
        model: The model, without an encoding, frozen and in eval mode.

    Attributes:
        title: What the loss is measured on.
    """

    title: str

    def __init__(self, model: SpatialVLM) -> None:
        self.model = model

    @abstractmethod
    def losses(self, row: Row) -> Float[Tensor, " N"]:
        """Compute the loss of each passage or scene, in nats per token."""


class PosedText(Reading):
    """Passages of English text, of which the first blocks of tokens stand for the views of a walk through a room.

    Each of eight blocks is a grid of 4 x 6 text tokens, 2 m away, with the camera of one frame of the walk. The loss is
    that of the 64 tokens after them, which have no camera. Each passage has a walk of its own.

    Raises:
        InputError: The model has no pretrained weights.
    """

    PASSAGES = Path(__file__).with_name("passages.txt")
    BLOCKS, GRID, AFTER = 8, (4, 6), 64
    DEPTH_M = 2.0

    def __init__(self, model: SpatialVLM) -> None:
        super().__init__(model)
        if not model.loader.is_pretrained:
            raise InputError(
                f"{type(model.loader).__name__} has random weights, and only pretrained ones can be disturbed: take "
                "--backbone PretrainedQwen25VL --backbone.path <folder>"
            )
        size, length = self.GRID[0] * self.GRID[1], self.BLOCKS * self.GRID[0] * self.GRID[1] + self.AFTER
        passages = self.PASSAGES.read_text(encoding="utf-8").split("\n\n")
        tokenize = model.backbone.preprocessor.tokenize
        ids = [tokenize([passage], (), ExtraTokens.NONE).input_ids[:length] for passage in passages]
        self.ids: Int[Tensor, "N L"] = torch.stack(ids).to(model.backbone.device)
        index = F.pad(torch.arange(self.BLOCKS).repeat_interleave(size), (0, self.AFTER), value=-1)
        self.index: Int[Tensor, "N L"] = index.expand(len(ids), -1)
        poses = torch.stack([walk_poses(self.BLOCKS, seed) for seed in range(len(ids))])
        K = torch.diag(torch.tensor([0.9, 1.2, 1.0], dtype=torch.float64)).expand(*poses.shape[:2], 3, 3)
        self.cameras = Cameras(poses, K)
        self.title = f"{len(ids)} passages of text"

    @torch.no_grad()
    def losses(self, row: Row) -> Float[Tensor, " N"]:
        backbone, encoding = self.model.backbone, None if row.make is None else row.make()
        with installed(self.model, encoding):
            own = self.cameras.with_poses(self.cameras.world_to_camera.roll(int(row.other_scene), 0))
            cameras = row.change(own)
            ids = self._position_ids(encoding, cameras)
            inputs: dict[str, Any] = {
                "inputs_embeds": self.embeddings(),
                "position_ids": ids.to(backbone.device),
                "attention_mask": None,
            }
            if encoding is not None:
                located = self._located(cameras, ids[0]).to(backbone.device)
                inputs["camera_encoding"] = backbone.encode_cameras(encoding, located)
            with answer_precision(backbone.device, self.model.precision):
                states = backbone.decode(inputs).last_hidden_state[:, -self.AFTER - 1 : -1]
                logits = to_float32(backbone.lm_head(states))
            return F.cross_entropy(logits.mT, self.ids[:, -self.AFTER :], reduction="none").mean(1).cpu()

    def embeddings(self) -> Float[Tensor, "N L D"]:
        """Return the embeddings that the decoder reads."""
        return self.model.backbone.embed(self.ids)

    def _position_ids(self, encoding: CameraEncoding | None, cameras: Cameras) -> Int[Tensor, "3 N L"]:
        """Return positions as of text. The blocks are temporal patches for an encoding that changes their time."""
        ids = torch.arange(self.ids.shape[1]).expand(3, *self.ids.shape).clone()
        if encoding is not None and (time_index := own_time_index(encoding)) is not None:
            video = torch.arange(len(ids[0])).repeat_interleave(self.BLOCKS)
            step, one = torch.arange(self.BLOCKS).repeat(len(ids[0])), torch.ones(len(video))
            poses = cameras.world_to_camera.flatten(0, 1)
            per_second = self.model.backbone.tokens_per_second
            patches = TemporalPatches(video, step, one, per_second, world_to_camera=poses, has_camera=one.bool())
            time = time_index(patches).view(-1, self.BLOCKS, 1).expand(-1, -1, self.GRID[0] * self.GRID[1])
            ids[0, :, : -self.AFTER] = time.flatten(1)
        return ids

    def _located(self, cameras: Cameras, time: Tensor) -> Cameras:
        """Return the cameras with what encodings may read of tokens: their place in a view, depth and time."""
        centers = grid_centers(*self.GRID, cameras.K_normalized).flatten(0, 1)
        rays = self.DEPTH_M * ray_directions(cameras.K_normalized[:, :, None], centers)
        to_world = invert_se3(cameras.world_to_camera)[:, :, None]
        points = (to_world[..., :3, :3] @ rays[..., None])[..., 0] + to_world[..., :3, 3]
        after = (0, 0, 0, self.AFTER)  # text has no place
        sizes = torch.tensor([1 / self.GRID[1], 1 / self.GRID[0]]).expand(*self.index.shape, 2)
        depth = torch.full((len(cameras),), self.DEPTH_M)
        cameras = cameras.with_index(self.index).with_median_depth(depth)
        return cameras.with_reference(torch.zeros(len(cameras), dtype=torch.long)).with_tokens(
            F.pad(centers.repeat(len(cameras), self.BLOCKS, 1), after),
            F.pad(points.flatten(1, 2), after, value=torch.nan),
            time,
            sizes,
        )


def walk_poses(views: int, seed: int) -> Float[Tensor, "T 4 4"]:
    """Draw poses of a hand-held walk around a room of 4 x 5 m, relative to the first, in meters."""
    rng = np.random.default_rng(seed)
    ring = ring_along_walls(np.array([5.0, 4.0, 2.6]), 1.5, 0.8, rng)
    poses = torch.from_numpy(walk(ring, 8 * views, rng))[::8]
    return Cameras(poses[None], torch.eye(3).expand(1, views, 3, 3)).canonical("first").world_to_camera[0]


class VideoAnswers(Reading):
    """The answers to the questions about a run's videos, of scenes with cameras.

    Args:
        run: The run.
        make: The encoding. It says what is read from the scenes.

    Raises:
        InputError: Fewer than two scenes have cameras and answers.
    """

    def __init__(self, run: LoadedRun, make: Make) -> None:
        super().__init__(run.model)
        self.data = run.data
        with installed(self.model, make()):
            run.dataset.spec = replace(self.model.model_spec(), targets=("cameras", "depth"))
            collate = self._collate()
        count = len(run.dataset)
        loaded = progress((run.dataset[n] for n in range(count)), "read", "scenes", count)
        usable = ((relative_to_first(scene), collate([scene])) for scene in loaded)
        self.scenes = [scene for scene, batch in usable if scene is not None and batch.sequences is not None]
        if len(self.scenes) < 2:
            raise InputError(
                f"{run.folder}: {len(self.scenes)} of {count} scenes have cameras and answers, at least 2 are needed: "
                "take --split or --scenes with more, or the run of another dataset"
            )
        self.title = f"answers about {len(self.scenes)} scenes"

    def _collate(self) -> TrainingCollate:
        spec, data = self.model.model_spec(), self.data
        return TrainingCollate(spec, data.source.benchmark, poses_in_prompt=data.poses_in_prompt)

    @torch.no_grad()
    def losses(self, row: Row) -> Float[Tensor, " N"]:
        device, found = self.model.backbone.device, []
        with installed(self.model, None if row.make is None else row.make()):
            collate = self._collate()
            for number, own in enumerate(self.scenes):
                other = self.scenes[(number + 1) % len(self.scenes)]
                scene = OtherCameras()(own, lambda other=other: other) if row.other_scene else own  # type: ignore[misc]
                batch = collate([changed(scene, row.change)]).to(device)
                with answer_precision(device, self.model.precision):
                    found.append(self.model(batch)["LanguageModeling"].float().cpu())
        return torch.stack(found)


def relative_to_first(scene: LoadedScene) -> LoadedScene | None:
    """Return a scene with cameras relative to its first one. None without cameras, or if it can't be read."""
    if scene.error is not None or scene.geometry is None or not scene.geometry.has_cameras:
        return None
    *_, valid = scene.geometry.cameras()
    return changed(scene, lambda cameras: cameras.canonical(valid.int().argmax(0, keepdim=True)))


def changed(scene: LoadedScene, change: Change) -> LoadedScene:
    """Return a scene with changed cameras."""
    geometry = copy(scene.geometry)
    assert geometry is not None
    poses, K, _ = geometry.cameras()
    cameras = change(Cameras(poses[None].double(), K[None].double()))
    geometry.world_to_camera, geometry.K_normalized = cameras.world_to_camera[0], cameras.K_normalized[0]
    return replace(scene, geometry=geometry)


# ---- Variants of an encoding -----------------------------------------------------------------------------------------


def powers(rotations: int | float, translations: int | float, intrinsics: int | float, cameras: Cameras) -> Cameras:
    """Return the cameras to these powers, see `Cameras.powers`."""
    return cameras.powers(*(torch.tensor(float(power)) for power in (rotations, translations, intrinsics)))


def random_axes(cameras: Cameras) -> Cameras:
    """Turn each rotation's axis into a random one, and keep its angle."""
    poses = cameras.world_to_camera.double()
    angle = so3_log(poses[..., :3, :3]).norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    axis = F.normalize(torch.randn(poses[..., 0, :3].shape, dtype=poses.dtype, generator=generator), dim=-1)
    rotations = from_axis_angle((angle * axis).flatten(0, 1)).view_as(poses[..., :3, :3])
    return cameras.with_poses(rigid_matrix(rotations, poses[..., :3, 3]).to(cameras.world_to_camera))


def same(cameras: Cameras) -> Cameras:
    """Return the cameras."""
    return cameras


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: What differs from the encoding as given.
        make: Builds the encoding. None is the model without one.
        change: Changes the cameras.
        other_scene: Whether the cameras are another scene's.
    """

    name: str
    make: Make | None
    change: Change = same
    other_scene: bool = False


def rows(make: Make, layers: Sequence[int]) -> dict[str, list[Row]]:
    """Return variants of an encoding, in groups. Some of them may not fit the decoder.

    Args:
        make: Builds the encoding as given.
        layers: Layers of the decoder with full attention.
    """
    encoding = make()
    options, config = inspect.signature(type(encoding).__init__).parameters, to_config(encoding)

    def variant(**changes: Any) -> Make:
        return lambda: from_config(CameraEncoding, with_overrides(config, changes))  # type: ignore[type-abstract]

    def in_layers(own: list[int]) -> CameraEncoding:
        return LayerSubset(make(), own)

    ends = [round(part * len(layers) / 3) for part in range(4)]
    thirds = zip(("first", "middle", "last"), (layers[start:stop] for start, stop in pairwise(ends)), strict=True)
    is_zero = encoding.symmetries.identity_stock and own_time_index(encoding) is None
    found = {
        "": [Row("as given", make)],
        "by terms": [Row("q and k alone", variant(apply_to="qk")), Row("v and o alone", variant(apply_to="vo"))],
        "by layers": [Row(f"{name} third", partial(in_layers, [*own])) for name, own in thirds],
        "by strength": [
            Row("half of each camera: R^0.5, 0.5 t, K^0.5", make, partial(powers, 0.5, 0.5, 0.5)),
            Row("rotations alone", make, partial(powers, 1, 0, 1)),
            Row("translations alone", make, partial(powers, 0, 1, 1)),
            Row("translations x 0.1", make, partial(powers, 1, 0.1, 1)),
            Row("translations x 10", make, partial(powers, 1, 10, 1)),
        ],
        "by channels": [
            *(
                Row(f"FrequencyRange {start} to {stop}: {name}", variant(placement=FrequencyRange(start, stop)))
                for start, stop, name in FREQUENCIES
            ),
            Row("ChannelRange 0 to 0.5: one channel of each pair", variant(placement=ChannelRange(0.0, 0.5))),
            Row("TemporalSection, constant time", variant(placement=TemporalSection())),
            Row("constant time without cameras", variant(placement=TemporalSection()), partial(powers, 0, 0, 0)),
            Row("UnrotatedChannels", variant(placement=UnrotatedChannels())),
            Row("ExtraChannels", variant(placement=ExtraChannels())),
        ],
        "controls": [
            Row(f"identity cameras{' (must be 0)' if is_zero else ''}", make, partial(powers, 0, 0, 0)),
            Row("equal angles about random axes", make, random_axes),
            Row("cameras of another scene", make, other_scene=True),
        ],
    }
    if "apply_to" not in options or getattr(encoding, "apply_to", None) != "qkvo":
        del found["by terms"]
    if "placement" not in options:
        del found["by channels"]
    if not encoding.uses_cameras:
        del found["by strength"], found["controls"]
    return found


FREQUENCIES = [
    *((0, 0.25, "the highest"), (0.25, 0.5, "high"), (0.5, 0.75, "low"), (0.75, 1, "the lowest")),
    *((0, 0.5, "the higher half"), (0.5, 1, "the lower half"), (0, 1, "all")),
]


# ---- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rise:
    """The rise of the loss over the model without an encoding, in nats per token.

    Attributes:
        of_each: The rise on each passage or scene.
    """

    of_each: Float[Tensor, " N"]

    def __str__(self) -> str:
        return f"{float(self.of_each.mean()):+.2f}"

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return float(self.of_each.std() / len(self.of_each) ** 0.5)


def measure(reading: Reading, variants: dict[str, list[Row]]) -> tuple[float, dict[str, dict[str, Rise]]]:
    """Measure the variants of an encoding.

    Args:
        reading: What the model reads.
        variants: Rows of the table, in groups. Rows that do not fit the decoder are left out, but not the first one.

    Returns:
        The loss without an encoding, and the rises by group and row.

    Raises:
        InputError: The encoding as given does not fit.
    """
    without = reading.losses(Row("without an encoding", None))
    every = [(group, row) for group, of_group in variants.items() for row in of_group]
    found: dict[str, dict[str, Rise]] = {}
    for group, row in progress(every, f"disturbance on {reading.title}", "rows"):
        try:
            rise = Rise(reading.losses(row) - without)
        except InputError:
            if not found:
                raise
            continue
        found.setdefault(group, {})[row.name] = rise
    return float(without.mean()), found


def disturbance_table(reading: Reading, make: Make) -> Table:
    """Measure the variants of an encoding and return a table."""
    loss, found = measure(reading, rows(make, reading.model.backbone.decoder_layout.layers))
    title = f"rise of the loss over {loss:.2f} nats, {reading.title}"
    table = Table(title, "mean", "standard error", "least", "most", box=None, pad_edge=False)
    for group, rises in found.items():
        if group:
            table.add_row(f"[b]{group}[/b]")
        for name, rise in rises.items():
            numbers = rise.of_each
            table.add_row(
                name, str(rise), f"{rise.standard_error:.2f}", f"{numbers.min():+.2f}", f"{numbers.max():+.2f}"
            )
    return table
