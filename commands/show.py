"""python main.py show: a scene in 3D, with its cameras, the chosen frames, points, questions and answers.

    pip install 'spatial-vlm-zoo[show]'                                   # rerun, the viewer
    python main.py show runs/mine-<time> --scene scannet/scene0025_01
    python main.py show runs/mine-<time> --scene scannet/scene0025_01 --samplers '[UniformSampler, SpaceAwareSampler]'
    python main.py show runs/mine-<time> --points PredictedPoints         # VGGT's points and cameras beside the told
    rerun runs/mine-<time>/scenes/scannet-scene0025_01-5f0c12ab.rrd       # also on another machine

The command writes one file, which the viewer opens without the video, the model or this program:

    path                the centers of all cameras
    run, <sampler>      the frames that the run's sampler and each other one choose: frusta with their images, one color
                        per sampler
    points              the points of the chosen frames in the colors of the images: from the dataset's depth, or
                        predicted by a geometry encoder (--points PredictedPoints)
    predicted, encoder  the cameras that the model's CameraPrediction and the geometry encoder predict, with a line
                        from each to the dataset's
    questions           each question with the truth, and the answer of each of the run's tests

The encoder's points and cameras are turned, moved and scaled together onto the dataset's cameras; without those they
stay in a world of their own. What a scene lacks is left out and named. Rooms that are not rendered yet are rendered
first, all of the split's. SpaceAwareSampler and PredictedPoints take VGGT-1B; `--points.encoder zoo.PretrainedDA3` is
another one. In a notebook, `commands.showing.recording_of(...).notebook_show()` is a cell with the viewer, with
`pip install 'rerun-sdk[notebook]'`.
"""

from __future__ import annotations

from pathlib import Path

from commands.parser import build, parse, run_parser
from zoo.errors import InputError, printable

FOLDER = "scenes"  # in the run's


def show(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `show`.

    Raises:
        InputError: The run or the scene can't be read, or rerun is not installed.
    """
    # jsonargparse needs the classes, which import PyTorch
    from datamodules.samplers import FrameSampler, PointSource
    from datamodules.sources.base import Split

    parser = run_parser("show", __doc__)
    parser.add_argument("--scene", type=str | None, default=None, help="its name; null is the first scene")
    sampler_help = "samplers beside the run's, classes of datamodules/samplers"
    parser.add_argument("--samplers", type=list[FrameSampler], default=[], help=sampler_help)
    points_help = "source of the points, a class of datamodules/samplers; null is the dataset's depth"
    parser.add_argument("--points", type=PointSource | None, default=None, help=points_help)
    parser.add_argument("--split", type=Split, default="test", help="the split of the scene")
    output_help = f"a new file; null is one in the folder {FOLDER} of the run"
    parser.add_argument("--output", type=str | None, default=None, help=output_help)
    settings = parse(parser, arguments)
    built = build(parser, settings)
    try:
        from commands.showing import place_of, recording_of
    except ImportError as error:
        raise InputError(f"show needs rerun: pip install rerun-sdk ({error})") from error

    from commands.explaining import load_explained
    from commands.runs import find_run
    from zoo.files.fingerprint import fingerprint
    from zoo.files.ownership import file_name, make_if_absent

    run = find_run(settings.run)
    loaded = load_explained(run, settings.split, settings.device, settings.trust_modules, settings.data)
    name = loaded.dataset.scenes[place_of(loaded, settings.scene)].name
    key = fingerprint(
        [name, settings.split, settings.data, [str(each) for each in (*settings.samplers, settings.points)]]
    )[:8]
    folder = run / FOLDER
    output = Path(settings.output).expanduser() if settings.output else folder / f"{file_name(name)}-{key}.rrd"
    if folder.is_symlink() and not settings.output:  # someone else's run may name any folder of this machine
        raise InputError(f"{folder} is a link, which is not followed: remove it, or name a file with --output")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file in it")
    if output.exists() or output.is_symlink():
        raise InputError(
            f"{output} is there already: open it with `rerun {output}`, remove it, or name another --output"
        )
    make_if_absent(output.parent)
    recording, notes = recording_of(loaded, name, built.samplers, built.points)
    try:
        recording.save(output)
    except RuntimeError as error:
        raise InputError(f"{output} can't be written: {error}") from error
    recording.flush()
    print("".join(f"{note}\n" for note in notes) + printable(f"show: {name} is in {output}: rerun {output}"))
