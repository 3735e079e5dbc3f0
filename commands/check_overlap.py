"""python main.py check-overlap: find test scenes that are also training scenes.

    python main.py check-overlap --config recipes/spatial_mllm_135k.yaml
    python main.py check-overlap --config recipes/spatial_mllm_135k.yaml --content true --workers 8

The command takes the data of a training: `--config` and `--data.*`. It compares the names of the scenes of the train
and test splits, also of those whose video is missing. A test scene is found if the last part of its name is a part of a
training scene's name: scannet/scene0011_00 in scannet/videos/scene0011_00. Scans of one ScanNet room are one scene.

`--content true` also compares 16 frames of each scene, for datasets that name the same scenes differently. Of each
frame it keeps which of 8 x 8 places is darker than its right neighbor. A scene is found if a quarter of its frames look
like frames of one training scene. Other sizes and encodings of a video are found, and most clips of it. Another video
of the same room is not.

Found scenes are printed, and end the command with an error. So do scenes that can't be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from commands.parser import build, parse
from commands.scene_commands import OF_RUNS, run_parser
from datamodules import VideoQADataModule
from datamodules.datamodule import as_input_error
from datamodules.dataset import format_scene_error
from datamodules.scenes import Scene, shared_scenes
from datamodules.sources.base import Split
from datamodules.video import Video, even_steps
from zoo.errors import SCENE_FAULTS, InputError, printable
from zoo.progress import progress

NUM_FRAMES = 16  # frames of a scene that are compared
SIDE = 8
MAX_DIFFERENT = 10  # of 64 places, in frames that look alike. Frames of different real scenes differ in 19 or more
MIN_ALIKE = 0.25  # share of a test scene's frames that look like frames of one training scene


def check_overlap(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `check-overlap`, with config names resolved.

    Raises:
        InputError: The data has no train or test split, test scenes are training scenes, or frames can't be compared.
    """
    parser = run_parser("check-overlap", __doc__, ("model", "seed_everything", *OF_RUNS))
    parser.add_argument("--content", type=bool, default=False, help="also compare frames of the videos")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 uses the main process")
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    settings = build(parser, parse(parser, arguments))
    data = settings.data
    if data.asked is not None:
        raise InputError("--data.video is for predict: check-overlap takes a source, such as --data.source SceneFolder")
    if settings.workers < 0:
        raise InputError(f"--workers {settings.workers}: at least 0, which uses the main process")
    data.prepare_splits(("train", "test"))
    (trained, trained_names), (tested, tested_names) = (_scenes(data, split) for split in ("train", "test"))

    # 1. Names.
    found = shared_scenes(tested_names, trained_names)
    for test, train in found.items():
        print(f"{test}: by name, {train}")
    print(f"names: {len(found)} of {len(tested_names)} test scenes are among {len(trained_names)} training scenes")
    # 2. Frames.
    unread: list[str] = []
    if settings.content:
        known = list(_read(trained, "training scenes", settings.workers, unread))
        alike = compare_frames(_read(tested, "test scenes", settings.workers, unread), known)
        for test, (train, share) in alike.items():
            print(f"{test}: {share:.0%} of its frames are in {train}")
        print(f"frames: {len(alike)} of {len(tested)} test scenes are among {len(trained)} training scenes")
        if absent := len(trained_names) + len(tested_names) - len(trained) - len(tested):
            print(f"frames: not compared, without a video: {absent} scenes")
        found |= {test: train for test, (train, _) in alike.items()}
    if found:
        raise InputError(f"{len(found)} of {len(tested_names)} test scenes are training scenes: leave them out of one")
    if unread:
        raise InputError(f"the frames of {len(unread)} scenes can't be compared, see above: fetch these files again")


def _scenes(data: VideoQADataModule, split: Split) -> tuple[list[Scene], list[str]]:
    """Return the scenes of a split without repetitions, and their names with those of scenes without a video."""
    with as_input_error():
        kept = data.source.filtered_split(split, data.filter).scenes
    scenes = {scene.name: scene for scene in kept if not scene.is_text}
    return list(scenes.values()), [*scenes, *data.filter.matching(data.source.missing)]


# ---- Frames ---------------------------------------------------------------------------------------------------------

Signs = Float32[Tensor, "T 64"]
Named = tuple[str, Signs]  # a scene's name, and the signs of its frames


class _FrameSigns(Dataset):
    """Dataset whose item i is the name of scene i with the signs of its frames, or with an error."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[str, Signs | str]:
        scene = self.scenes[index]
        try:
            video = Video(scene.images or scene.video)
            return scene.name, frame_signs(video.read(even_steps(video.num_frames, NUM_FRAMES)))
        except SCENE_FAULTS as error:
            return scene.name, format_scene_error(scene.name, error)


def frame_signs(frames: Tensor) -> Signs:
    """Return in which of 8 x 8 places a frame gets brighter (1) or darker (-1) to the right. 0 is neither.

    This is the difference hash of Krawetz ("Kind of like that", 2013). A frame without texture resembles no other.
    """
    gray = frames.float().mean(1, keepdim=True)
    return interpolate(gray, (SIDE, SIDE + 1), mode="area")[:, 0].diff(dim=2).sign().flatten(1)


def compare_frames(tested: Iterable[Named], known: Sequence[Named]) -> dict[str, tuple[str, float]]:
    """Find the training scene whose frames look like those of a test scene.

    Args:
        tested: Names and signs of test scenes.
        known: The same of training scenes.

    Returns:
        For each found test scene, the training scene and the share of the test scene's frames that it has.
    """
    if not known:
        return {}
    scene_of = torch.repeat_interleave(torch.tensor([len(signs) for _, signs in known]))
    every = torch.cat([signs for _, signs in known])
    found = {}
    for name, signs in tested:
        different = (SIDE**2 - signs @ every.T) / 2
        is_alike = torch.zeros(len(signs), len(known)).index_add_(1, scene_of, (different <= MAX_DIFFERENT).float()) > 0
        share, best = is_alike.float().mean(0).max(0)
        if share >= MIN_ALIKE:
            found[name] = (known[int(best)][0], float(share))
    return found


def _read(scenes: Sequence[Scene], what: str, workers: int, unread: list[str]) -> Iterator[Named]:
    """Yield the name and signs of each scene that can be read. Print the others, and add their errors to a list."""
    loader: Any = DataLoader(_FrameSigns(scenes), batch_size=None, num_workers=workers)
    for name, signs in progress(loader, f"check-overlap {what}", "scenes"):
        if isinstance(signs, str):
            unread.append(signs)
            print(f"left out: {printable(signs)}", file=sys.stderr)
        else:
            yield name, signs
