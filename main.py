"""Train, test and ask the models of the zoo.

    python main.py fit --config prope.yaml     trains; the run lies in runs/
    python main.py test                        scores the newest run; validate, predict, export also take it
    python main.py sample                      chooses frames beforehand
    python main.py score predictions.jsonl     scores answers without a model
    python main.py report runs/*               compares runs, as tables or as a page

Configs compose, later ones win: a model, a scale (default scale_tiny.yaml), data (default data_rooms.yaml).
Each command has its own --help.
"""

from __future__ import annotations

import sys
import warnings

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401 - makes short class paths known
import zoo  # noqa: F401
from callbacks import Checkpoint, GalleryCallback, MetricsCallback, PredictionsCallback, SaveRunConfig, progress_bar
from commands.arguments import PARSER_DEFAULTS, TRAINER_DEFAULTS, complete
from commands.export import ExportingTrainer
from commands.parser import OneLineParser
from commands.report import report
from commands.runs import settle
from commands.sample import sample
from commands.score import score
from datamodules import VideoQADataModule
from zoo.errors import InputError, input_error
from zoo.trainable import Trainable

COMMANDS = {"sample": sample, "score": score, "report": report}  # that train and test nothing

warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6's own business with torch 2.13
warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # frozen parts are, on purpose


class ZooCLI(LightningCLI):
    """LightningCLI with the callbacks that every run has, and a run folder settled before anything is built."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(MetricsCallback, "metrics")
        parser.add_lightning_class_args(PredictionsCallback, "predictions")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(GalleryCallback, "gallery")
        parser.link_arguments("metrics.profile", "predictions.profile")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        settle(self.subcommand, settings)
        if settings.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"] = [progress_bar()]


def main() -> None:
    command = "".join(sys.argv[1:2])
    if command in ("", "-h", "--help"):
        print(__doc__)
        return
    try:
        if command not in (known := [*ZooCLI.subcommands(), *COMMANDS]):
            raise InputError(f"there is no command {command}, only {', '.join(known)}")
        sys.argv[1:] = complete(sys.argv[1:])  # the processes of a DDP run start from sys.argv again
        if command in COMMANDS:
            COMMANDS[command](sys.argv[2:])
            return
        ZooCLI(
            Trainable,
            VideoQADataModule,
            trainer_class=ExportingTrainer,
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_kwargs=PARSER_DEFAULTS,
        )
    except Exception as error:
        if (meant := input_error(error)) is None:
            raise
        sys.exit(f"error: {meant}")


if __name__ == "__main__":
    main()
