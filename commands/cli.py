"""python main.py fit, validate, test, predict, export: Lightning's command line, as the zoo has it."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import Checkpoint, GalleryCallback, MetricsCallback, PredictionsCallback, SaveRunConfig, progress_bar
from commands.arguments import PARSER_DEFAULTS, TRAINER_DEFAULTS
from commands.export import ExportingTrainer
from commands.parser import OneLineParser
from commands.runs import resolve_run
from datamodules import VideoQADataModule
from zoo.errors import InputError
from zoo.tasks import Task


class ZooCLI(LightningCLI):
    """LightningCLI with the callbacks that every run has, and a run folder settled before anything is built."""

    def __init__(self) -> None:
        super().__init__(
            Task,
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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(MetricsCallback, "metrics")
        parser.add_lightning_class_args(PredictionsCallback, "predictions")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(GalleryCallback, "gallery")
        parser.link_arguments("metrics.scorer", "predictions.scorer")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        command = str(self.subcommand)
        settings = self.config[command]
        resolve_run(command, settings)
        if settings.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"] = [progress_bar()]

    def after_fit(self) -> None:
        if self.model.answers_questions and self.trainer.global_step:
            rank_zero_info(f"{self.trainer.default_root_dir} is trained: python main.py test scores it")

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**settings)
        except (ValueError, MisconfigurationException) as error:  # no such accelerator, strategy, number of devices
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
