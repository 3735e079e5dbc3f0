"""The commands cache-frames and cache-geometry, which fill the caches ahead of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import seed_everything
from torch.utils.data import DataLoader, Dataset, Subset

from commands.parser import build, parse
from commands.scene_commands import OF_RUNS, SceneCounts, prepare_split, scene_parser
from datamodules import VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.frame_cache import FrameCache
from datamodules.sources.base import Split
from run_folder.new import launcher
from zoo.errors import InputError
from zoo.files.cache import Cache
from zoo.geometry.cache import STILLS_OF_ANOTHER_GRID, CachedGeometry, GeometryCache
from zoo.model_spec import ModelSpec
from zoo.objectives.teacher_model import Teacher
from zoo.progress import progress
from zoo.scene_encoding import encode_geometry
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene, PreparedScene
from zoo.tasks.video_qa import VideoQATask

CACHE_FRAMES = """python main.py cache-frames: fill the frame cache ahead of a run.

    python main.py cache-frames --config prope.yaml --config scale_3b.yaml --split train --workers 8
    torchrun --nproc-per-node 4 main.py cache-frames --config prope.yaml --config scale_3b.yaml --split train

The command takes the options of a run. It decodes and resizes the frames that the run will read. The run then maps
them into memory with --data.frame_cache.folder cache/frames. No weights are read. Existing entries are kept, so that an
interrupted command resumes. The processes of torchrun or SLURM share the scenes. Scenes that fail are listed and
skipped.
"""
CACHE_GEOMETRY = """python main.py cache-geometry: fill the geometry cache ahead of a run.

    python main.py cache-geometry --config spatial_mllm.yaml --config scale_3b.yaml --split train --workers 2
    torchrun --nproc-per-node 4 main.py cache-geometry --config spatial_mllm.yaml --config scale_3b.yaml

The command takes the options of a run. It stores the outputs of the geometry encoder that the model uses: VGGT's 3D
tokens, cameras (with depth if an encoding requires it), or both. The rest of the model is not built. The run then reads
them with --model.geometry_cache.folder cache/geometry, and does not load VGGT. Existing entries are kept, so that an
interrupted command resumes. The processes of torchrun or SLURM share the scenes. Scenes that fail are listed and
skipped.

For a training (--split train) the command also stores a teacher's targets: tokens, cameras, depth, and the scale. The
training reads them with --model.teacher.cache.folder and --model.teacher.scale.cache.folder.
"""


def refuse_random_frames(data: VideoQADataModule, split: Split) -> None:
    """Raise an InputError if the frames of a split differ in each epoch."""
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


def _open_scenes(command: str, settings: Any, spec: ModelSpec) -> tuple[SceneDataset, range]:
    """Return the scenes of the split, and the indices of the scenes that this process handles."""
    data, split, process = settings.data, settings.split, launcher()
    prepare_split(command, settings)
    shown = [scene for scene in data.scenes(split) if not scene.is_text]
    scenes = data.dataset(shown, training=split == "train", spec=spec)
    return scenes, range(process.global_rank(), len(scenes), process.world_size())


def too_small(cache: Cache, option: str, scenes: int) -> InputError:
    """Return the error for a cache that has evicted the first scene that the same command has written or kept."""
    limit = f"{option}.max_size_gb {cache.max_size_gb:g}"
    return InputError(f"{cache.folder} has no room for {scenes} scenes, and has lost the first of them: raise {limit}")


# ---- cache-frames ---------------------------------------------------------------------------------------------------


class KeptFrames(Dataset):
    """Dataset whose item i caches the frames of scene i and returns an outcome for `SceneCounts`.

    Args:
        scenes: Dataset with a frame cache.
    """

    def __init__(self, scenes: SceneDataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> str:
        cache = self.scenes.frame_cache
        assert cache is not None
        before = cache.num_computed
        cache.write_error = None
        loaded = self.scenes[index]
        if cache.has_lost_entries:
            return SceneCounts.LOST
        if cache.write_error is not None:
            return f"{loaded.name}: {cache.path}: {cache.write_error.strerror}"
        return loaded.error or (SceneCounts.KEPT if cache.num_computed == before else SceneCounts.MADE)


def cache_frames(arguments: list[str]) -> None:
    """Run the command cache-frames.

    Args:
        arguments: The command line after `cache-frames`, with config names resolved.

    Raises:
        InputError: The frames differ in each epoch or can't be cached, the folder is too small, or some scenes have
            failed. The other entries are written before that.
    """
    parser = scene_parser("cache-frames", CACHE_FRAMES, OF_RUNS)
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parse(parser, arguments)
    seed_everything(settings.seed_everything, verbose=False)
    options = settings.data.init_args
    if options.get("frame_cache") is None:
        options["frame_cache"] = Namespace(**asdict(FrameCache()))
    settings.model.init_args["geometry_cache"] = None
    with torch.device("meta"):
        built: Any = build(parser, settings)
    data, needs = built.data, built.model.model_spec()
    refuse_random_frames(data, built.split)
    if data.still_resize is not None and data.frames_as != "video":
        raise InputError("no frame cache keeps still images of --data.still_resize: leave cache-frames out")
    frames = ModelSpec(frames=needs.frames)
    scenes, mine = _open_scenes("cache-frames", built, frames)
    loader = DataLoader(Subset(KeptFrames(scenes), mine), batch_size=None, num_workers=built.workers)
    counts = SceneCounts()
    for outcome in progress(loader, f"cache-frames {built.split}", "scenes"):
        if outcome == SceneCounts.LOST:
            raise too_small(data.frame_cache, data.frame_cache.option, len(mine))
        counts.add(outcome)
    print(f"cache-frames: frames of {len(mine)} scenes: {counts}; see {data.frame_cache.path}/")
    counts.refuse_failed("frames")


# ---- cache-geometry -------------------------------------------------------------------------------------------------


@dataclass
class CachedOutput:
    """Output of a geometry encoder that one part of a run reads.

    Attributes:
        description: Description of the output.
        caches: Caches of the output, by option.
        encoder: The encoder behind the first cache.
        compute: Computes the output of a scene as a run does, and thereby fills the caches.
    """

    description: str
    caches: dict[str, GeometryCache]
    encoder: CachedGeometry
    compute: Callable[[PreparedScene], Any]


def cache_geometry(arguments: list[str]) -> None:
    """Run the command cache-geometry.

    Args:
        arguments: The command line after `cache-geometry`, with config names resolved.

    Raises:
        InputError: The model uses no geometry, the frames differ in each epoch, the folder can't be written or is too
            small, or some scenes have failed. The other entries are written before that.
    """
    settings, outputs = parse_geometry(arguments)
    model, split, process = settings.model.model, settings.split, launcher()
    refuse_random_frames(settings.data, split)
    if settings.data.still_resize is not None and any(output.encoder.is_resampled for output in outputs):
        raise InputError(STILLS_OF_ANOTHER_GRID)
    needs = settings.model.model_spec()
    shown = ModelSpec(frames=needs.frames)
    scenes, mine = _open_scenes("cache-geometry", settings, shown)
    loader = DataLoader(Subset(scenes, mine), batch_size=None, num_workers=settings.workers)
    device = settings.device or (f"cuda:{process.local_rank()}" if torch.cuda.is_available() else "cpu")
    caches = [each for output in outputs for each in output.caches.items()]
    counts = SceneCounts()
    for loaded in progress(loader, f"cache-geometry {split}", "scenes"):
        before = sum(cache.num_computed for _, cache in caches)
        try:
            scene = _scene_inputs(loaded, model.backbone.patch_size).to(device)
            for output in outputs:
                output.compute(scene)
        except (OSError, ValueError) as error:
            counts.add(f"{loaded.name}: {error}")
            continue
        for option, cache in caches:
            if cache.write_error is not None:
                raise InputError(
                    f"{cache.path}: {cache.write_error.strerror}; what was written is kept, so run it again"
                )
            if cache.has_lost_entries:
                raise too_small(cache, option, len(mine))
        counts.add(counts.KEPT if sum(cache.num_computed for _, cache in caches) == before else counts.MADE)
    described = " and ".join(output.description for output in outputs)
    folders = " and ".join(dict.fromkeys(f"{cache.path}/" for _, cache in caches))
    print(f"cache-geometry: {described} of {len(mine)} scenes: {counts}; see {folders}")
    counts.refuse_failed("geometry")


def _scene_inputs(loaded: LoadedScene, patch_size: int) -> PreparedScene:
    """Return the inputs of geometry encoders for a scene.

    Args:
        loaded: The scene.
        patch_size: Patch size of the vision encoder in pixels.

    Raises:
        InputError: The scene could not be loaded.
    """
    if loaded.error is not None:
        raise InputError(loaded.error)
    assert loaded.frames is not None
    height, width = loaded.frames.shape[-2:]
    return PreparedScene.of(
        loaded,
        frames=loaded.seen_by_geometry,
        grid_thw=(len(loaded.frames) // TEMPORAL_PATCH_SIZE, height // patch_size, width // patch_size),
        geometry=None if loaded.geometry is None else loaded.geometry.without_invalid_cameras(),
    )


def parse_geometry(arguments: list[str]) -> tuple[Any, list[CachedOutput]]:
    """Return the settings with a built DataModule and model, and the outputs to cache.

    A run's config can be used unchanged. The model is built on the meta device, without reading weights.
    """
    parser = scene_parser("cache-geometry", CACHE_GEOMETRY, OF_RUNS)
    parser.add_argument("--device", type=str | None, default=None, help="null uses a GPU if there is one, else the CPU")
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parse(parser, arguments)
    seed_everything(settings.seed_everything, verbose=False)
    options = settings.model.init_args
    _set_cache(options, "geometry_cache")
    is_teacher_cached = options.teacher is not None and options.teacher.init_args.get("cache") is not None
    if options.teacher is not None:
        _set_teacher_caches(options.teacher.init_args)
    with torch.device("meta"):
        built = build(parser, settings)
    task: VideoQATask = built.model
    outputs: list[CachedOutput] = []
    if (output := _output_of_model(task)) is not None:
        outputs.append(output)
    if isinstance(task.teacher, Teacher) and built.split == "train":
        try:
            task.teacher.outline.identity()
        except InputError as error:
            if is_teacher_cached or not outputs:
                name = type(task.teacher.outline).__name__
                raise InputError(f"--model.teacher: {name} has nothing that a cache would save") from error
        else:
            outputs.append(_output_of_teacher(task))
    if not outputs and task.teacher is not None:
        raise InputError(
            f"--split {built.split}: this model reads no geometry but its teacher's, which is for trainings alone: "
            "give --split train"
        )
    if not outputs:
        raise InputError(
            "this model reads no geometry: name one that does (--config spatial_mllm.yaml --config scale_3b.yaml), or "
            "--model.camera_source predicted"
        )
    return built, outputs


def _output_of_model(task: VideoQATask) -> CachedOutput | None:
    """Return the geometry outputs that a model uses, or None if it uses none."""
    model = task.model
    plan = model.camera_plan
    wanted = {
        "tokens": model.uses_geometry_tokens,
        "cameras": plan.predicts_cameras or bool(plan.pseudo_labels),
    }
    if not any(wanted.values()):
        return None
    encoder: Any = model.geometry

    def compute(scene: PreparedScene) -> None:
        encode_geometry(encoder, [scene], model.frame_rules, **wanted)

    description = " and ".join(name for name, is_wanted in wanted.items() if is_wanted)
    return CachedOutput(description, {"--model.geometry_cache": encoder.cache}, encoder, compute)


def _output_of_teacher(task: VideoQATask) -> CachedOutput:
    """Return the outputs of a teacher in training: the targets of objectives, and the scale."""
    teacher, patch_size = task.teacher, task.model.backbone.patch_size
    assert isinstance(teacher, Teacher)
    encoder: Any = teacher.encoder
    encoder.match_patches(patch_size)
    caches = {"--model.teacher.cache": encoder.cache}
    if (cache := getattr(teacher.scale, "cache", None)) is not None:
        caches["--model.teacher.scale.cache"] = cache
    return CachedOutput("the teacher's targets", caches, encoder, lambda scene: teacher([scene], patch_size))


def _set_teacher_caches(options: Namespace) -> None:
    """Give caches to a teacher, and to its scale if it can be cached, unless they have one."""
    _set_cache(options, "cache")
    scale = options.get("scale")
    if scale is not None and "cache" in (scale.get("init_args") or {}):
        _set_cache(scale.init_args, "cache", options.cache)


def _set_cache(options: Namespace, name: str, cache: Namespace | None = None) -> None:
    if options.get(name) is None:
        options[name] = cache or Namespace(**asdict(GeometryCache()))
