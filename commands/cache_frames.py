"""python main.py cache-frames: fills the frame cache before a run needs it.

    python main.py cache-frames --config prope.yaml --config scale_3b.yaml --split train --workers 8
    torchrun --nproc-per-node 4 main.py cache-frames --config prope.yaml --config scale_3b.yaml --split train

takes the options of a run, and decodes and resizes the frames that it will read. The run then maps them into memory
with --data.frame_cache.folder cache/frames. No weights are read. Existing entries are kept, so that an interrupted
command resumes; the processes of torchrun or SLURM share the scenes. Scenes that fail are listed and skipped.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import seed_everything
from torch.utils.data import DataLoader, Dataset, Subset

from commands.cache_geometry import refuse_random_frames
from commands.defaults import with_defaults
from commands.new_run import launcher
from commands.run_options import OF_RUNS, SceneCounts, prepare_split, scene_parser
from datamodules.dataset import SceneDataset
from datamodules.frame_cache import FrameCache
from zoo.errors import InputError
from zoo.model_spec import DataRequirements
from zoo.progress import progress
from zoo.tasks import VideoQATask


class CachedScenes(Dataset):
    """Item i keeps the frames of scene i; its value is an outcome for `SceneCounts`.

    Args:
        scenes: With a frame cache.
    """

    def __init__(self, scenes: SceneDataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> str:
        cache = self.scenes.frame_cache
        assert cache is not None
        before = cache.num_decoded
        loaded = self.scenes[index]
        return loaded.error or (SceneCounts.KEPT if cache.num_decoded == before else SceneCounts.MADE)


def cache_frames(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `cache-frames`, with config names resolved.

    Raises:
        InputError: The frames differ each epoch or aren't kept, the folder is too small, or some scenes have failed;
            the other entries are written by then.
    """
    parser = scene_parser("cache-frames", __doc__, OF_RUNS)
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parser.parse_args(with_defaults(arguments))
    seed_everything(settings.seed_everything, verbose=False)
    options = settings.data.init_args
    if options.get("frame_cache") is None:
        options["frame_cache"] = Namespace(**asdict(FrameCache()))
    settings.model.init_args["geometry_cache"] = None
    with torch.device("meta"):
        built: Any = parser.instantiate_classes(settings)
    data, needs, process = built.data, built.model.requirements, launcher()
    refuse_random_frames(data, built.split)
    if data.still_resize is not None and data.frames_as != "video":
        raise InputError("no frame cache keeps still images of --data.still_resize: leave cache-frames out")
    prepare_split("cache-frames", built)
    scenes = data.dataset(data.scenes(built.split), training=built.split == "train")
    scenes.requirements = replace(DataRequirements(), token_px=needs.token_px, image_pixels=needs.image_pixels)
    mine = Subset(CachedScenes(scenes), range(process.global_rank(), len(scenes), process.world_size()))
    counts = SceneCounts()
    for outcome in progress(
        DataLoader(mine, batch_size=None, num_workers=built.workers), f"cache-frames {built.split}", "scenes"
    ):
        counts.add(outcome)
    print(f"cache-frames: frames of {len(mine)} scenes: {counts}; see {data.frame_cache.folder}/")
    counts.refuse_failed("frames")
