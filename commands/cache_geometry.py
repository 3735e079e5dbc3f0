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
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.utils.data import DataLoader
from tqdm import tqdm

from commands.configs import DEFAULT_OPTIONS
from commands.select_frames import KEPT, MADE, OF_RUNS, scene_parser
from datamodules import RandomSampler, VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.sources.base import Split
from zoo.errors import InputError
from zoo.geometry import CachedGeometry, GeometryCache
from zoo.tasks import VideoQATask


class Place(NamedTuple):
    """Which of several processes this is."""

    rank: int
    local_rank: int
    processes: int


def cache_geometry(arguments: list[str]) -> None:
    """Runs the command.

    Args:
        arguments: the command line after `cache-geometry`, with config names resolved.

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
    return data.dataset(data.scenes(split), sampler)


def this_process() -> Place:
    """Which one this is of those that torchrun or SLURM started."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            found = environment()
            return Place(found.global_rank(), found.local_rank(), found.world_size())
    return Place(0, 0, 1)


def parse(arguments: list[str]) -> tuple[Any, CachedGeometry, dict[str, bool]]:
    """The settings with the DataModule built, the encoder behind its cache, and which of its outputs the model reads.

    The config of a run can be used unchanged. The model is built on the meta device, without reading weights.
    """
    parser = scene_parser("cache-geometry", __doc__, OF_RUNS)
    parser.add_argument("--device", type=str | None, default=None, help="null is a GPU where there is one, or cpu")
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parser.parse_args([*DEFAULT_OPTIONS, *arguments])
    options = settings.model.init_args
    if options.get("geometry_cache") is None:
        options["geometry_cache"] = Namespace(**asdict(GeometryCache()))
    with torch.device("meta"):
        built = parser.instantiate_classes(settings)
    model = built.model.model
    wanted = {"tokens": model.uses_geometry_tokens, "cameras": model.predicts_cameras}
    if not any(wanted.values()):
        raise InputError(
            "this model reads no geometry: name one that does (--config spatial_mllm.yaml), or --model.camera_source "
            "predicted"
        )
    return built, model.geometry, wanted
