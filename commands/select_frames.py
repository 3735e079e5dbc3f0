"""python main.py select-frames: chooses the frames of every scene once, before a run needs them.

    python main.py select-frames --config data_vsibench.yaml --data.sampler SpaceAwareSampler --workers 4 --plot true

writes <output>/<dataset>/<scene_name>/selected_frames.json, which the sampler SelectedFrames reads, and fills the cache
of a sampler that has one. What is there already and was made by the same settings is kept, so that a run that was
broken off goes on where it was. Scenes that fail are listed, and the rest goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from jsonargparse import SUPPRESS, ActionConfigFile
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from callbacks.visualization import camera_map, contact_sheet
from commands.configs import DEFAULT_OPTIONS
from commands.parser import OneLineParser
from datamodules import VideoQADataModule
from datamodules.dataset import SceneDataset, format_scene_error
from datamodules.selections import FILE, find_selection, write_selection
from datamodules.sources.base import Split
from zoo.atomic_io import write_whole
from zoo.errors import SCENE_FAULTS, InputError

OTHERS = (
    *("model", "trainer", "optimizer", "lr_scheduler", "seed_everything", "ckpt_path", "weights_only"),
    *("metrics", "predictions", "checkpoint", "gallery"),  # callbacks that every run has
)
LeftAside = dict | list | str | float | None  # and not Any, of which jsonargparse would build the classes it names
MADE, KEPT = "made", "kept"


class SelectScenes(Dataset):
    """Item i chooses the frames of scene i: (its name, "made", "kept", or what went wrong).

    Args:
        scenes: with the sampler and the pairing that are meant.
        output: folder of the selections.
        plot: also draw a contact sheet, frames.jpg, and the camera's path, path.png, where there are poses or the
            sampler has a geometry, which then runs also for a selection that is kept.
    """

    def __init__(self, scenes: SceneDataset, output: Path, plot: bool) -> None:
        self.scenes, self.output, self.plot = scenes, output, plot

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[str, str]:
        scene = self.scenes.scenes[index]
        try:
            return scene.name, self._select(index)
        except SCENE_FAULTS as error:
            return scene.name, format_scene_error(scene, error)

    def _select(self, index: int) -> str:
        scene, sampler, pairing = self.scenes.scenes[index], self.scenes.sampler, self.scenes.frame_pairing
        opened = self.scenes.open(index)
        view = opened.view(scene)
        views = pairing.views(self.scenes.num_frames, sampler)
        key, made_by = sampler.key(view, views)
        file = self.output / scene.name / FILE
        found = find_selection(file, key)
        if found is None:
            write_selection(file, scene.name, sampler.select(view, views), key, made_by)
        if self.plot:  # anew each time: the pairing or the look of them may be another, and it is quick
            frames = pairing(sampler, view, self.scenes.num_frames)
            contact_sheet(opened.read(frames), frames).save(file.parent / "frames.jpg", quality=90)
            if view.world_to_camera is not None or sampler.geometry is not None:
                path = camera_map(view, frames, type(sampler).__name__, sampler.geometry)
                path.save(file.parent / "path.png")
        return MADE if found is None else KEPT


def select_frames(arguments: list[str]) -> None:
    """Runs the command.

    Args:
        arguments: what follows `sample` on the command line, config names resolved.

    Raises:
        InputError: no scene can be read, or some have failed; those that haven't are there by then.
    """
    settings = parse(arguments)
    data, split = settings.data, settings.split
    if data.asked is not None:
        raise InputError("--data.video is for predict: sample takes a source, such as --data.source SceneFolder")
    if settings.workers < 0:
        raise InputError(f"--workers {settings.workers}: at least 0, which works in the main process")
    data.prepare_data()
    scenes = SceneDataset(
        data.scenes(split),
        data.sampler,
        data.num_frames,
        data.pixels,
        requires_cameras=False,
        frame_pairing=data.frame_pairing,
    )
    output = Path(settings.output or f"selections/{type(data.sampler).__name__}-{data.num_frames}").expanduser()
    chosen = SelectScenes(scenes, output, settings.plot)
    outcomes: dict[str, list[str]] = {MADE: [], KEPT: []}
    loader = DataLoader(chosen, batch_size=None, num_workers=settings.workers)
    for name, outcome in tqdm(loader, desc=f"select-frames {split}", unit="scene", file=sys.stdout, disable=None):
        if outcome in outcomes:
            outcomes[outcome].append(name)
        else:
            outcomes.setdefault("failed", []).append(name)
            tqdm.write(outcome, file=sys.stderr)
    counts = [f"{len(names)} {outcome}" for outcome, names in outcomes.items()]
    missing, file = "", output / "missing.txt"
    file.unlink(missing_ok=True)  # of an earlier run
    if data.missing:
        write_whole(file, "".join(f"{name}\n" for name in data.missing))
        missing = f"; videos that are missing: {len(data.missing)}, see {file}"
    done = ", ".join(counts)
    print(f"select-frames: {type(data.sampler).__name__} on {len(scenes)} scenes: {done}{missing}; see {output}/")
    if "failed" in outcomes:
        raise InputError(f"{len(outcomes['failed'])} of {len(scenes)} scenes have no selection: see above")


def parse(arguments: list[str]) -> Any:
    """The settings, with the DataModule built. A run's config serves as it is: what isn't data is left aside."""
    parser = OneLineParser(prog="main.py select-frames", description=__doc__)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config, in any order")
    parser.add_argument("--split", type=Split, default="test", help=f"which scenes: {', '.join(get_args(Split))}")
    parser.add_argument("--output", type=str | None, default=None, help="folder; null is selections/<sampler>-<frames>")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 works in the main one")
    parser.add_argument("--plot", type=bool, default=False, help="also draw each scene's frames and camera path")
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    for other in OTHERS:
        parser.add_argument(f"--{other}", type=LeftAside, default=None, help=SUPPRESS)
    return parser.instantiate_classes(parser.parse_args([*DEFAULT_OPTIONS, *arguments]))
