"""Train, test and ask the models of the zoo.

    python main.py fit --config prope.yaml     trains; the run lies in runs/
    python main.py test                        scores the newest run; validate also takes it
    python main.py predict --data.video clip.mp4 --data.question "How large is this room?"   asks it
    python main.py export --out folder         writes it as official weights
    python main.py select-frames                      chooses frames beforehand
    python main.py cache-geometry                    finds out 3D tokens and cameras beforehand
    python main.py score predictions.jsonl     scores answers without a model
    python main.py report runs/*               compares runs, as tables or as a page

Configs compose, later ones win: a model, a scale (default scale_tiny.yaml), data (default data_rooms.yaml). Each of the
commands has its own --help.
"""

from __future__ import annotations

import logging
import sys
import warnings

import datamodules  # noqa: F401 - makes short class paths known
import zoo  # noqa: F401
from commands.arguments import preprocess_argv
from commands.cache_geometry import cache_geometry
from commands.cli import ZooCLI
from commands.report import report
from commands.score import score
from commands.select_frames import select_frames
from zoo.errors import InputError, input_error

# of one file each; the others are Lightning's
COMMANDS = {"select-frames": select_frames, "cache-geometry": cache_geometry, "score": score, "report": report}

warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6's own business with torch 2.13
warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # frozen parts are, on purpose
# it advertises another logger in each run
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda said: "litlogger" not in said.getMessage())


def main() -> None:
    command = "".join(sys.argv[1:2])
    if command in ("", "-h", "--help"):
        print(__doc__)
        return
    try:
        if command not in (known := [*ZooCLI.subcommands(), *COMMANDS]):
            raise InputError(f"there is no command {command}, only {', '.join(known)}")
        sys.argv[1:] = preprocess_argv(sys.argv[1:])  # the processes of a DDP run start from sys.argv again
        if command in COMMANDS:
            COMMANDS[command](sys.argv[2:])
        else:
            ZooCLI()
    except Exception as error:
        if (meant := input_error(error)) is None:
            raise
        sys.exit(f"error: {meant}")


if __name__ == "__main__":
    main()
