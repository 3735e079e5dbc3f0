"""python main.py select-frames: select the frames of every scene ahead of a run.

    python main.py select-frames --config data_vsibench.yaml --data.sampler SpaceAwareSampler --workers 4 --plot true

The command writes <output>/<dataset>/<scene_name>/selected_frames.json for the sampler SelectedFrames, and fills the
cache of a sampler that has one. Existing selections with the same settings are kept, so that an interrupted command
resumes. Other settings need another folder. Scenes that fail are listed at the end.
"""

from __future__ import annotations

from pathlib import Path

from lightning import seed_everything
from torch.utils.data import DataLoader, Dataset

from commands.parser import build, parse
from commands.scene_commands import OF_RUNS, SceneCounts, prepare_split, scene_parser
from datamodules.dataset import SceneDataset, format_scene_error
from datamodules.samplers.selection_files import (
    FILE,
    find_selection,
    selections_in,
    shared_settings,
    write_selection,
)
from evaluation.drawings import camera_map, contact_sheet
from zoo.errors import SCENE_FAULTS, InputError
from zoo.files.atomic_io import refuse_full, write_output
from zoo.files.fingerprint import fingerprint
from zoo.files.ownership import remove_own
from zoo.progress import progress

MISSING = "# select-frames: scenes whose videos are missing\n"  # the start of the list
DEFAULT_OUTPUT = "selections/{sampler}-{frames}-{settings}"


class SelectScenes(Dataset):
    """Dataset whose item i selects the frames of scene i and returns an outcome for `SceneCounts`.

    Args:
        scenes: Dataset with the sampler and the pairing.
        output: Folder of the selections.
        plot: Also draw a contact sheet, frames.jpg. If there are poses or the sampler has a geometry, also draw the
            camera path, path.png. The geometry then runs even for selections that are kept.
    """

    def __init__(self, scenes: SceneDataset, output: Path, plot: bool) -> None:
        self.scenes, self.output, self.plot = scenes, output, plot

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> str:
        try:
            return self._select(index)
        except SCENE_FAULTS as error:
            return format_scene_error(self.scenes.scenes[index].name, error)

    def _select(self, index: int) -> str:
        scene, sampler = self.scenes.scenes[index], self.scenes.sampler
        view = self.scenes.open(index)
        views = self.scenes.num_views
        key, made_by = sampler.key(view, views)
        file = self.output / scene.name / FILE
        is_new = find_selection(file, key) is None
        if is_new:
            write_selection(file, scene.name, sampler.select(view, views), key, made_by)
        if self.plot:  # always, because it is fast and the pairing may have changed
            frames = self.scenes.select(view)
            contact_sheet(view.video.read(frames), frames).save(file.parent / "frames.jpg", quality=90)
            if view.world_to_camera is not None or sampler.geometry is not None:
                path = camera_map(view, frames, type(sampler).__name__, sampler.geometry)
                path.save(file.parent / "path.png")
        return SceneCounts.MADE if is_new else SceneCounts.KEPT


def select_frames(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `select-frames`, with config names resolved.

    Raises:
        InputError: The folder holds selections with other settings, no scene can be read, or some have failed. The
            other selections are written before that.
    """
    parser = scene_parser("select-frames", __doc__, ("model", *OF_RUNS))
    parser.add_argument("--output", type=str | None, default=None, help=f"folder; null uses {DEFAULT_OUTPUT}")
    parser.add_argument("--plot", type=bool, default=False, help="also plot each scene's frames and camera path")
    parsed = parse(parser, arguments)
    seed_everything(parsed.seed_everything, verbose=False)
    settings = build(parser, parsed)
    data, split = settings.data, settings.split
    prepare_split("select-frames", settings)
    scenes = data.dataset([scene for scene in data.scenes(split) if not scene.is_text])
    made_by = data.sampler.shared_settings(scenes.num_views)
    names = {"sampler": type(data.sampler).__name__, "frames": data.num_frames, "settings": fingerprint(made_by)[:8]}
    output = Path(settings.output or DEFAULT_OUTPUT.format(**names)).expanduser()
    if not (former := [*selections_in(output)]):
        refuse_full(output)  # pictures and lists would replace files of the user
    for file, content in former:
        if shared_settings(content.get("made_by")) != made_by:
            raise InputError(f"{file}: selected with other settings: remove {output}, or give another --output")
    loader = DataLoader(SelectScenes(scenes, output, settings.plot), batch_size=None, num_workers=settings.workers)
    counts = SceneCounts()
    for outcome in progress(loader, f"select-frames {split}", "scenes"):
        counts.add(outcome)
    missing, file = "", output / "missing.txt"
    remove_own(file, MISSING.encode())  # left by an earlier run
    if data.missing:
        write_output(file, MISSING + "".join(f"{name}\n" for name in data.missing), MISSING)
        missing = f"; videos that are missing: {len(data.missing)}, see {file}"
    print(f"select-frames: {type(data.sampler).__name__} on {len(scenes)} scenes: {counts}{missing}; see {output}/")
    counts.refuse_failed("selection")
