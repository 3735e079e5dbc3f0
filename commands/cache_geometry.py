"""python main.py cache-geometry: fills the geometry cache before a run needs it.

    python main.py cache-geometry --config spatial_mllm.yaml --config scale_3b.yaml --split train --workers 2
    torchrun --nproc-per-node 4 main.py cache-geometry --config spatial_mllm.yaml --config scale_3b.yaml

takes the options of a run and stores what its model uses of the geometry: VGGT's 3D tokens, cameras (with depth if an
encoding requires it), or both. The rest of the model is not built. The run then reads them with
--model.geometry_cache.folder cache/geometry, and loads no VGGT. Existing entries are kept, so that an interrupted
command resumes; the processes of torchrun or SLURM share the scenes. Scenes that fail are listed and skipped.

Of a training (--split train) it also stores what a teacher gives its objectives: tokens, cameras, depth, and the scale.
These are read with --model.teacher.cache.folder and --model.teacher.scale.cache.folder.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import seed_everything
from torch.utils.data import DataLoader, Subset

from commands.defaults import with_defaults
from commands.geometry_filling import Filling, ModelFilling, TeacherFilling
from commands.new_run import launcher
from commands.run_options import OF_RUNS, SceneCounts, prepare_split, scene_parser
from datamodules import VideoQADataModule
from datamodules.sources.base import Split
from zoo.errors import InputError
from zoo.geometry import GeometryCache
from zoo.geometry.cached import STILLS_OF_ANOTHER_GRID
from zoo.model_spec import DataRequirements
from zoo.progress import progress
from zoo.tasks import VideoQATask


def cache_geometry(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `cache-geometry`, with config names resolved.

    Raises:
        InputError: The model uses no geometry, the frames differ each epoch, the folder can't be written or is too
            small, or some scenes have failed; the other entries are written by then.
    """
    settings, fillings = parse(arguments)
    process = launcher()
    data, split = settings.data, settings.split
    refuse_random_frames(data, split)
    if data.still_resize is not None and any(each.encoder.entries.resampled_from is not None for each in fillings):
        raise InputError(STILLS_OF_ANOTHER_GRID)
    prepare_split("cache-geometry", settings)
    scenes = data.dataset(data.scenes(split), training=split == "train")
    needs = settings.model.requirements
    scenes.requirements = DataRequirements(
        own_frames=needs.own_frames, token_px=needs.token_px, image_pixels=needs.image_pixels
    )
    mine = Subset(scenes, range(process.global_rank(), len(scenes), process.world_size()))
    loader = DataLoader(mine, batch_size=None, num_workers=settings.workers)
    device = settings.device or (f"cuda:{process.local_rank()}" if torch.cuda.is_available() else "cpu")
    counts = SceneCounts()
    for loaded in progress(loader, f"cache-geometry {split}", "scenes"):
        before = _num_computed(fillings)
        try:
            if loaded.error is not None:
                raise InputError(loaded.error)
            for filling in fillings:
                filling.fill(loaded, device)
        except (OSError, ValueError) as error:
            counts.add(f"{loaded.scene.name}: {error}")
            continue
        for encoder in (filling.encoder for filling in fillings):
            if encoder.write_error is not None:
                raise InputError(
                    f"{encoder.folder}: {encoder.write_error.strerror}; what was written is kept, so run it again"
                )
        counts.add(counts.KEPT if _num_computed(fillings) == before else counts.MADE)
    outputs = " and ".join(filling.described for filling in fillings)
    folders = " and ".join(dict.fromkeys(f"{filling.encoder.folder}/" for filling in fillings))
    print(f"cache-geometry: {outputs} of {len(mine)} scenes: {counts}; see {folders}")
    for filling in fillings:
        if filling.has_lost_entries:
            raise InputError(
                f"{filling.encoder.folder} was full and lost the first scenes again: raise {filling.option}.max_size_gb"
            )
    counts.refuse_failed("geometry")


def _num_computed(fillings: list[Filling]) -> int:
    return sum(filling.num_computed for filling in fillings)


def refuse_random_frames(data: VideoQADataModule, split: Split) -> None:
    """Raise an InputError if the frames of a split differ each epoch."""
    if split != "train":
        return
    if data.augmentation is not None:
        name = type(data.augmentation).__name__
        raise InputError(
            f"{name} draws other frames each epoch, which no cache can hold beforehand: train without "
            "--data.augmentation, and leave it out here too"
        )
    for option in ("sampler", "frame_pairing")[: 2 if data.frames_as == "video" else 1]:
        part, tested = getattr(data, f"train_{option}"), getattr(data, option)
        if part.varies_by_epoch:
            remedy = f"{option} that does not" if part is tested else f"train_{option} null"
            raise InputError(
                f"{type(part).__name__} draws other frames each epoch, which no cache can hold beforehand: train with "
                f"--data.{remedy}, and give that here too"
            )


def parse(arguments: list[str]) -> tuple[Any, list[Filling]]:
    """Return the settings with a built DataModule and model, and what is to be cached.

    The config of a run can be used unchanged. The model is built on the meta device, without reading weights.
    """
    parser = scene_parser("cache-geometry", __doc__, OF_RUNS)
    parser.add_argument("--device", type=str | None, default=None, help="null is a GPU where there is one, or cpu")
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parser.parse_args(with_defaults(arguments))
    seed_everything(settings.seed_everything, verbose=False)
    options = settings.model.init_args
    _set_cache(options, "geometry_cache")
    is_teacher_cached = options.teacher is not None and options.teacher.init_args.get("cache") is not None
    if options.teacher is not None:
        _cache_teacher(options.teacher.init_args)
    with torch.device("meta"):
        built = parser.instantiate_classes(settings)
    task: VideoQATask = built.model
    fillings: list[Filling] = []
    # 1. What the model uses.
    model = task.model
    wanted = {
        "tokens": model.uses_geometry_tokens,
        "cameras": model.camera_plan.predicts_cameras or bool(model.camera_plan.pseudo_labels),
    }
    if any(wanted.values()):
        fillings.append(ModelFilling(model, wanted))
    # 2. What its teacher gives.
    if task.teacher is not None and built.split == "train":
        name = type(task.teacher.outline).__name__
        try:
            task.teacher.outline.identity()
        except InputError as error:
            if is_teacher_cached or not fillings:
                raise InputError(f"--model.teacher: {name} has nothing that a cache would save") from error
        else:
            fillings.append(TeacherFilling(task.teacher, model.backbone.patch_size))
    if not fillings and task.teacher is not None:
        raise InputError(
            f"--split {built.split}: this model reads no geometry but its teacher's, which is for trainings alone: "
            "give --split train"
        )
    if not fillings:
        raise InputError(
            "this model reads no geometry: name one that does (--config spatial_mllm.yaml --config scale_3b.yaml), or "
            "--model.camera_source predicted"
        )
    return built, fillings


def _cache_teacher(options: Namespace) -> None:
    """Give a teacher, and its scale if that can be kept, a cache unless they have one."""
    _set_cache(options, "cache")
    scale = options.get("scale")
    if scale is not None and "cache" in (scale.get("init_args") or {}):
        _set_cache(scale.init_args, "cache", options.cache)


def _set_cache(options: Namespace, name: str, cache: Namespace | None = None) -> None:
    if options.get(name) is None:
        options[name] = cache or Namespace(**asdict(GeometryCache()))
