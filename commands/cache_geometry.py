"""python main.py cache-geometry: fills the geometry cache before a run needs it.

    python main.py cache-geometry --config spatial_mllm.yaml --split train --data.train_sampler null --workers 2
    torchrun --nproc-per-node 4 main.py cache-geometry --config spatial_mllm.yaml --config data_vsibench.yaml

takes the options of the run that it is for and finds out what that run's model reads of a geometry: its VGGT's 3D
tokens, its cameras (with depth where an encoding goes by that), or both. The rest of the model is not built. The run
then reads them with --model.geometry_cache.folder cache/geometry, and loads no VGGT. What is there already is kept, so
that a command that was broken off goes on where it was; processes (torchrun, SLURM) share the scenes. Scenes that fail
are listed, and the rest goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any, NamedTuple, get_args

import torch
from jsonargparse import SUPPRESS, ActionConfigFile, Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.utils.data import DataLoader
from tqdm import tqdm

from commands.configs import DEFAULT_OPTIONS
from commands.parser import OneLineParser
from commands.select_frames import OTHERS, LeftAside
from datamodules import RandomSampler, VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.sources.base import Split
from zoo.backbone import Backbone
from zoo.errors import InputError
from zoo.geometry import CachedGeometry, GeometryCache, GeometryEncoder
from zoo.geometry.cached import build_first_available
from zoo.time_index import TimeIndex
from zoo.vlm import SpatialVLM

MADE, KEPT = "made", "kept"


class Place(NamedTuple):
    """Which of several processes this is."""

    rank: int
    local_rank: int
    processes: int


def cache_geometry(arguments: list[str]) -> None:
    """Runs the command.

    Args:
        arguments: what follows `geometry` on the command line, config names resolved.

    Raises:
        InputError: the model reads no geometry, the frames differ each epoch, the folder can't be written or is too
            small, or some scenes have failed; what was made is there by then.
    """
    settings, encoder, wanted = parse(arguments)
    place = this_process()
    scenes = scenes_of(settings.data, settings.split)
    mine = torch.utils.data.Subset(scenes, range(place.rank, len(scenes), place.processes))
    loader = DataLoader(mine, batch_size=None, num_workers=settings.workers)
    device = settings.device or (f"cuda:{place.local_rank}" if torch.cuda.is_available() else "cpu")
    counts: dict[str, int] = {MADE: 0, KEPT: 0}
    first = None
    for loaded in tqdm(loader, desc=f"cache-geometry {settings.split}", unit="scene", file=sys.stdout, disable=None):
        try:
            if loaded.error is not None:
                raise InputError(loaded.error)
            frames = loaded.frames.to(device).float() / 255
            before = encoder.num_computed
            encoder([frames], [None], **wanted)
        except (OSError, ValueError) as error:
            counts["failed"] = counts.get("failed", 0) + 1
            tqdm.write(f"{loaded.scene.name}: {error}", file=sys.stderr)
            continue
        if encoder.write_error is not None:
            raise InputError(
                f"{encoder.folder}: {encoder.write_error.strerror}; what was written is kept, so run it again"
            )
        first = frames if first is None else first
        counts[KEPT if encoder.num_computed == before else MADE] += 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(
        f"cache-geometry: {' and '.join(k for k in wanted if wanted[k])} of {len(mine)} scenes: "
        f"{said}; see {encoder.folder}/"
    )
    if first is not None and not encoder.holds(first, **wanted):
        raise InputError(
            f"{encoder.folder} was full and lost the first scenes again: raise --model.geometry_cache.max_size_gb"
        )
    if "failed" in counts:
        raise InputError(f"{counts['failed']} of {len(mine)} scenes have no geometry: see above")


def scenes_of(data: VideoQADataModule, split: Split) -> SceneDataset:
    """The scenes of a split with the frames that a run sees.

    Raises:
        InputError: it sees others in each epoch.
    """
    sampler = data.train_sampler if split == "train" else data.sampler
    if isinstance(sampler, RandomSampler):
        raise InputError(
            "RandomSampler draws other frames each epoch, which no cache can hold beforehand: train with "
            "--data.train_sampler null, and give that here too"
        )
    data.prepare_data()
    return SceneDataset(
        data.scenes(split),
        sampler,
        data.num_frames,
        data.pixels,
        requires_cameras=False,
        frame_pairing=data.frame_pairing,
    )


def this_process() -> Place:
    """Which one this is of those that torchrun or SLURM started."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            found = environment()
            return Place(found.global_rank(), found.local_rank(), found.world_size())
    return Place(0, 0, 1)


def parse(arguments: list[str]) -> tuple[Any, CachedGeometry, dict[str, bool]]:
    """The settings with the DataModule built, the encoder behind its cache, and what the model wants of it.

    A run's config serves as it is.
    """
    parser = OneLineParser(prog="main.py cache-geometry", description=__doc__)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config, in any order")
    parser.add_argument("--split", type=Split, default="test", help=f"which scenes: {', '.join(get_args(Split))}")
    parser.add_argument("--workers", type=int, default=0, help="processes that read frames; 0 reads in the main one")
    parser.add_argument("--device", type=str | None, default=None, help="null is a GPU where there is one, or cpu")
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    parser.add_subclass_arguments(SpatialVLM, "model", fail_untyped=False, required=True)
    for other in OTHERS:
        if other != "model":
            parser.add_argument(f"--{other}", type=LeftAside, default=None, help=SUPPRESS)
    settings = parser.parse_args([*DEFAULT_OPTIONS, *arguments])
    model = settings.pop("model").init_args
    parts = parts_of(model)
    backbone = parts.backbone
    build = partial(build_first_available, None if backbone is None else backbone.geometry, parts.geometry)
    wanted = {"tokens": model.get("fusion") is not None, "cameras": finds_cameras(model, parts.time_index)}
    if not any(wanted.values()):
        raise InputError(
            "this model reads no geometry: name one that does (--config spatial_mllm.yaml), or "
            "--model.camera_source predicted"
        )
    encoder = CachedGeometry(build, parts.geometry_cache or GeometryCache())
    if wanted["cameras"]:
        encoder.enable_camera_head()
        if model.camera_source == "predicted" and requires_depth(
            [model.get("camera_encoding"), model.get("view_mixer")]
        ):
            encoder.enable_depth_head()
    return parser.instantiate_classes(settings), encoder, wanted


def parts_of(model: Namespace) -> Any:
    """Those parts of a model, which is not built itself, that say what it reads of a geometry."""
    parser = OneLineParser(prog="main.py cache-geometry")
    types = {
        "backbone": Backbone | None,
        "geometry": Callable[[], GeometryEncoder] | None,
        "geometry_cache": GeometryCache | None,
        "time_index": TimeIndex | None,
    }
    for name, kind in types.items():
        parser.add_argument(f"--{name}", type=kind)
    return parser.instantiate_classes(parser.parse_object({name: model.get(name) for name in types}))


def finds_cameras(model: Namespace, time: TimeIndex | None) -> bool:
    """Whether it may ask for cameras, as `SpatialParts` has it."""
    reads = any(model.get(part) is not None for part in ("camera_encoding", "view_mixer")) or (
        time and time.requires_cameras
    )
    return bool(model.camera_source == "predicted" or (model.camera_source == "auto" and reads))


def requires_depth(part: Any) -> bool:
    """Whether the settings of a part hold one that `SpatialParts.requires_depth` asks for."""
    if isinstance(part, Namespace):
        part = part.as_dict()
    if isinstance(part, list):
        return any(map(requires_depth, part))
    if not isinstance(part, dict):
        return False
    uses_points = "class_path" in part and getattr(resolve_name(part["class_path"]), "uses_points", False)
    return uses_points or part.get("scale") == "median_depth" or any(map(requires_depth, part.values()))
