"""Train, test and query spatial video-language models.

    python main.py <command> [options]; python main.py <command> --help explains the options

If the package is installed without its repository, write `spatial-vlm-zoo` in place of `python main.py`.

Commands:
    fit             train; the run's folder is in runs/
    test            score the newest run on its benchmark
    validate        score the newest run on the validation split
    predict         answer one question about one video
    export          write the weights of a run as a folder, in the official layout where there is one
    select-frames   choose the frames of each scene beforehand
    cache-geometry  compute 3D tokens and cameras beforehand
    cache-frames    decode and resize the frames of videos beforehand
    doctor          print what the machine, the data and the weights lack for a training, each with its remedy
    plan            print what a training needs: GPUs, memory, hours, and the command that starts it
    check-encoding  measure a camera encoding (also your own): symmetries, channels, cost, and how it disturbs a model
    score           score a file of answers, without a model
    report          compare runs, as tables or as a page
    probe           measure what the hidden states of a run contain, before and after training
    measure-responses   measure by how much a run's answers follow its cameras, its pixels, and the lengths it is told
    explain         measure which views an answer depends on, and draw what its tokens attend to
    show            write a scene in 3D for the viewer rerun: cameras, chosen frames, points, questions and answers
    import-cameras  make a scene of a capture (COLMAP, Record3D, ScanNet and others), or of each scene of a dataset
    check-cameras   check cameras against the images of a video: convention, speed, jumps, intrinsics
    check-overlap   find test scenes that are also training scenes, by name and by content
    study           run the experiments of a YAML file, and write their tables

Defaults for --config <file of configs/ or recipes/>; of several configs, a later one wins:
    model           none: name one, such as prope.yaml or qwen25_vl.yaml
    scale           scale_tiny.yaml: 2 million parameters from random weights
    recipe          the scale's recipe; recipe_tiny.yaml for the default scale: minutes on a CPU
    data            data_rooms.yaml: rendered rooms; of prope.yaml data_turn.yaml: rooms with a panel

Examples:
    python main.py fit --config prope.yaml
    python main.py fit --config prope.yaml --config scale_3b.yaml --data.source SceneFolder --data.source.root data/mine
    python main.py test
    python main.py predict --data.video clip.mp4 --data.question "How large is this room?"
    python main.py export --out folder
    python main.py score predictions.jsonl
    python main.py report runs/*
    python main.py probe runs/PRoPEMLLM-20261125-012048
    python main.py import-cameras captures/kitchen data/mine/homes/kitchen
    python main.py plan --config prope.yaml --config scale_3b.yaml --gpus 8
    python main.py study studies/encodings.yaml --dry_run

    --version prints the versions of this package, with its commit, and of its main dependencies.
    Class paths such as my_encoding.MyEncoding are also looked for in the current folder. The config of someone else's
    run (outside of runs/) may import such modules only if --trust_modules my_encoding names them.
    --traceback, with any command, or ZOO_TRACEBACK=1 prints the full traceback of an error instead of one line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from pkgutil import resolve_name
from platform import python_version

from zoo.errors import TRACEBACK, InputError, did_you_mean, wants_traceback
from zoo.versions import package_versions, zoo_version

# Nothing here imports PyTorch, so that `main.py --help` answers at once.
LIGHTNING = ("fit", "validate", "test", "predict", "export")
OTHERS = {
    "select-frames": "commands.select_frames:select_frames",
    "cache-geometry": "commands.caches:cache_geometry",
    "cache-frames": "commands.caches:cache_frames",
    "doctor": "commands.doctor:doctor",
    "plan": "commands.plan:plan",
    "score": "commands.score:score",
    "report": "commands.report:report",
    "probe": "commands.probe:probe",
    "measure-responses": "commands.measure_responses:measure_responses",
    "explain": "commands.explain:explain",
    "show": "commands.show:show",
    "study": "commands.study:study",
    "import-cameras": "commands.import_cameras:import_cameras",
    "check-cameras": "commands.check_cameras:check_cameras",
    "check-overlap": "commands.check_overlap:check_overlap",
    "check-encoding": "commands.check_encoding:check_encoding",
}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
LARGEST = 32 * 2**20  # largest MMAP_THRESHOLD that glibc accepts: larger blocks always return to the system
COMMANDS = (*LIGHTNING, *OTHERS)


def main() -> None:
    """Run the command that is named on the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that it can't encode must not end a command
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for class paths such as my_encoding.MyEncoding; last, so that it hides no module
    if "--traceback" in sys.argv:
        sys.argv.remove("--traceback")
        os.environ[TRACEBACK] = "1"
    command = "".join(sys.argv[1:2])
    if command in ("", "-h", "--help"):
        print(__doc__)
        return
    if command == "--version":
        found = {"spatial-vlm-zoo": zoo_version(), **package_versions(), "python": python_version()}
        print("\n".join(f"{name} {version}" for name, version in found.items()))
        return
    try:
        if command not in COMMANDS:
            advice = did_you_mean(command, COMMANDS)
            raise InputError(f"there is no command {command}, only {', '.join(COMMANDS)}{advice}")
        run(command)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from commands.faults import error_line

        if wants_traceback() or (line := error_line(error)) is None:
            raise
        sys.exit(f"error: {line}")


def run(command: str) -> None:
    """Import the command and run it with the options in `sys.argv`."""
    keep_freed_memory()
    share_cores()
    if command in (*LIGHTNING, "study"):  # end in order, to remove the folder of a run that has not begun
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if command in LIGHTNING:
        from commands.parser import split_configs
        from run_folder.configs import find_config

        for name in split_configs(sys.argv[2:])[0]:
            find_config(name)  # a misspelled name is found before PyTorch is imported, which takes seconds
        from commands.cli import ZooCLI, quiet_lightning

        quiet_lightning()
        ZooCLI(command)
    else:
        resolve_name(OTHERS[command])(sys.argv[2:])


def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait, unless OMP_WAIT_POLICY is set. Call it before importing PyTorch.

    By default they wait busily and take the cores from other trainings on the machine. With three trainings on two
    cores, each made 0.06 steps per second instead of 0.17 to 0.29. A training still has as many threads as cores, or
    OMP_NUM_THREADS.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Keep up to 2 GiB of freed memory for the next step, because the system would have to clear it each time.

    A training on a CPU requests gigabytes from the C library in each step. Settings in the environment, such as
    MALLOC_TRIM_THRESHOLD_ and GLIBC_TUNABLES, take precedence. Other C libraries and other allocators ignore this.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(MMAP_THRESHOLD, LARGEST)  # by default the thresholds change with the sizes of freed blocks
        glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


if __name__ == "__main__":  # python -m commands.main
    main()
