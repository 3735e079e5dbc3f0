"""The commands fit, validate, test, predict and export: LightningCLI with the parts of the zoo."""

from __future__ import annotations

import math
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from callbacks import Checkpoint, GalleryCallback, MetricsCallback, PredictionsCallback, SaveRunConfig, progress_bar
from callbacks.checkpoint_io import CheckpointFiles
from callbacks.first_losses import FirstLosses
from callbacks.loggers import TensorBoardFiles
from callbacks.results_folder import UNFINISHED
from callbacks.termination import EndOnSigterm
from callbacks.time_limit import TimeLimit
from commands import run_name
from commands.defaults import TRAINER_DEFAULTS, with_defaults
from commands.export import ExportingTrainer
from commands.help_texts import DESCRIPTIONS, explain
from commands.interrupts import INTERRUPTED, TERMINATED
from commands.new_run import claim_for_training, is_rank_zero, make_if_absent, remove_empty, remove_unused
from commands.parser import OneLineParser
from commands.resolve_run import resolve_run
from commands.runs import CONFIG
from commands.terminal import describe_size
from datamodules import VideoQADataModule
from zoo.errors import InputError
from zoo.tasks import Task, VideoQATask
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.versions import versions
from zoo.weights.saved_models import LAST_CHECKPOINT

TIME_IS_OVER = 124  # the exit status, as of the command `timeout`

# Strategies "ddp" and "auto" with several devices: gradients are views of DDP's buckets instead of copies of them.
StrategyRegistry.register("ddp", DDPStrategy, override=True, gradient_as_bucket_view=True)
StrategyRegistry.register("fsdp2", FSDP2Strategy)


def build_unread(kind: type[VideoQATask], *args: Any, **options: Any) -> VideoQATask:
    """Build a task whose released weights are read once each process has its shard."""
    return kind(*args, **{**options, "defer_weights": True})


def build_logger(folder: Path, run: str, kind: type[Logger], /, *args: Any, **options: Any) -> Logger:
    """Build a logger; the default folder and name of WandbLogger are replaced by the run's.

    In the config that a run stores, the defaults stay: another run with this config logs into its own folder.
    """
    own = {"save_dir": str(folder)} if options.get("save_dir") == "." else {}
    own |= {option: run for option in ("name", "run_name") if option in options and options[option] is None}
    return kind(*args, **options | own)


class ZooParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser with errors of one line."""


class ZooCLI(LightningCLI):
    """LightningCLI with the callbacks of every run; the run's folder is resolved before anything is built.

    Args:
        command: The subcommand; only its options are set up.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.folder = Path()
        self.lock: BinaryIO | None = None  # of a training
        self.time_limit: TimeLimit | None = None
        try:
            super().__init__(
                Task,
                VideoQADataModule,
                trainer_class=ExportingTrainer,
                parser_class=ZooParser,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=SaveRunConfig,
                seed_everything_default=0,
                trainer_defaults=dict(TRAINER_DEFAULTS),
            )
        except BaseException as error:  # an interrupt and a job's time limit as well
            self.after_failure(error)
            if isinstance(error, SIGTERMException):  # Lightning's own exit status is 0, as if it were trained
                sys.exit(TERMINATED)
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):  # its own is 1
                sys.exit(INTERRUPTED)
            raise
        finally:
            if self.lock is not None:
                self.lock.close()
        remove_empty(self.folder)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose config files begin with the version of the code."""
        header = [f"{name}=={version}" for name, version in versions().items()]
        return super().init_parser(dump_header=header, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the name of a run, and the options of the callbacks."""
        parser.add_argument("--name", type=str | None, default=None, help=run_name.HELP)
        parser.add_lightning_class_args(MetricsCallback, "metrics")
        parser.add_lightning_class_args(PredictionsCallback, "predictions")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(GalleryCallback, "gallery")
        parser.link_arguments("metrics.scorer", "predictions.scorer")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the arguments of the command's method that are not options."""
        return {self.command: {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}[self.command]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser of the command, with the zoo's own help."""
        kwargs["description"] = DESCRIPTIONS[subcommand]
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        explain(parser, subcommand)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, below it the default configs."""
        self.config = parser.parse_args([self.command, *with_defaults(sys.argv[2:])])

    def _parse_ckpt_path(self) -> None:
        """Lightning reads the whole checkpoint here for its hyperparameters; those of the zoo have none."""

    def _dump_config(self) -> None:
        """Lightning dumps the whole config here for the hyperparameters of checkpoints; those of the zoo have none."""
        self.config_dump: dict[str, Any] = {}

    def before_instantiate_classes(self) -> None:
        """Resolve the run's folder and checkpoint, and whose cameras `predict` uses."""
        settings = self.config[self.command]
        resolve_run(self.command, settings)
        self.folder = Path(settings.trainer.default_root_dir)
        if is_rank_zero():
            make_if_absent(self.folder)
        if self.command == "fit":
            self.lock = claim_for_training(self.folder, settings.ckpt_path and Path(settings.ckpt_path))
        self.parser.add_instantiator(partial(build_logger, self.folder, settings.name or self.folder.name), Logger)
        if self.command == "predict" and settings.model.init_args.get("camera_source") == "dataset":
            settings.model.init_args.camera_source = "auto"  # a video of one's own seldom has cameras
        strategy = settings.trainer.get("strategy")
        if isinstance(strategy, str) and strategy.startswith("fsdp") and strategy != "fsdp2":
            raise InputError(f"--trainer.strategy {strategy}: FSDP1 is not supported, take fsdp2")
        if strategy == "fsdp2" and self.command != "export":  # which has no Trainer's run to read the weights
            self.parser.add_instantiator(build_unread, VideoQATask, prepend=True)

    def before_fit(self) -> None:
        """Print the size of the model and of what trains."""
        rank_zero_info(describe_size(self.model))

    def after_fit(self) -> None:
        """Name the command that scores the run, or after its time limit the one that goes on.

        Raises:
            SystemExit: The time limit came before the last step.
        """
        step, steps = self.trainer.global_step, self.trainer.estimated_stepping_batches
        if self.time_limit is not None and self.time_limit.is_over and step < steps < math.inf:
            rank_zero_info(f"{self.folder}: --trainer.max_time ended it at step {step} of {steps}\n{self.way_on()}")
            sys.exit(TIME_IS_OVER)
        if self.model.answers_questions and step:
            rank_zero_info(f"{self.folder} is trained: python main.py test scores it")

    def after_failure(self, error: BaseException) -> None:
        """Remove a new folder from which nothing goes on, or name the command that does."""
        trainer: Trainer | None = getattr(self, "trainer", None)
        has_trained = trainer is not None and self._get(self.config_init, "checkpoint").has_trained(trainer)
        if not has_trained or not isinstance(error, Exception):  # an error's last values may tell why
            remove_unused(self.folder)
        if trainer is None or not trainer.interrupted:
            return
        if self.command == "fit" and (self.folder / LAST_CHECKPOINT).exists():
            if has_trained or not isinstance(error, Exception):  # else it would fail again; an interrupt would not
                rank_zero_info(self.way_on())
        elif self.command == "test" and (self.folder / UNFINISHED).exists() and not isinstance(error, InputError):
            rank_zero_info(f"to go on: python {shlex.join(sys.orig_argv[1:])}")

    def way_on(self) -> str:
        """Return the command that goes on with a training."""
        words = ("fit", "--config", str(self.folder / CONFIG), "--ckpt_path", "last")
        return f"to go on: python main.py {shlex.join(words)}"

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Build the Trainer; an unknown accelerator, strategy or number of devices is an `InputError`."""
        asked = self._get(self.config_init, "trainer")
        if asked.logger in (None, True):  # `predict` logs nothing, and would leave a file each time
            settings["logger"] = self.command != "predict" and TensorBoardFiles(self.folder)
        if self.command == "fit":
            self.config.fit.ckpt_path = None  # stored: it would let another run start from there
        callbacks = [FirstLosses(), *([] if asked.enable_progress_bar is False else [progress_bar()])]
        try:
            if asked.max_time is not None:
                self.time_limit = TimeLimit(asked.max_time)
                callbacks, settings = [*callbacks, self.time_limit], {**settings, "max_time": None}
            self.trainer_defaults["callbacks"] = callbacks
            trainer = super().instantiate_trainer(**settings)
        except (ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        trainer.strategy.checkpoint_io = CheckpointFiles()
        trainer.callbacks.insert(0, EndOnSigterm())  # type: ignore[attr-defined]
        if isinstance(environment := trainer._accelerator_connector.cluster_environment, SLURMEnvironment):
            environment.auto_requeue = False  # it would save between two optimizer steps; see `resolve_run`
        return trainer
