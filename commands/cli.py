"""The commands fit, validate, test, predict and export: LightningCLI with the parts of the zoo."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_summary import get_human_readable_count

from callbacks import Checkpoint, GalleryCallback, MetricsCallback, progress_bar
from callbacks.checkpoint import CheckpointFiles
from callbacks.interrupts import Interrupts
from commands.export import ExportingTrainer
from commands.faults import error_line, raise_failed_construction
from commands.machine import checkpoint_size, examine_machine
from commands.parser import PARSER_OPTIONS, TRUST, TRUST_HELP, parse_merged
from commands.runs import CONFIG, resolve_run, with_run
from datamodules import VideoQADataModule
from run_folder.new import claim_for_training, is_rank_zero, record_failure, remove_unused
from run_folder.record import SaveRunConfig
from run_folder.results import is_interrupted
from zoo.errors import InputError, describe, printable
from zoo.files.ownership import make_if_absent, remove_empty
from zoo.tasks.base import Task
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.tasks.video_qa import VideoQATask
from zoo.versions import versions
from zoo.weights.saved_models import LAST_CHECKPOINT

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the DataModule distributes the scenes without repetition
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,  # as Spatial-MLLM
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # `describe_size` prints what trains
}
CONFIG_HELP = (
    "\nGive a config by its path, or by its name in configs/ or recipes/. Later configs override earlier ones,\n"
    "and options override all configs."
)
DESCRIPTIONS = {
    "fit": """Train a model; the run's folder is in runs/.

    python main.py fit --config prope.yaml
    python main.py fit --config prope.yaml --config data_panels.yaml --trainer.max_steps 200
    python main.py fit --config prope.yaml --model.camera_encoding GTA
    python main.py fit --config runs/mine-<time>/config.yaml --ckpt_path last
""",
    "test": """Score a run on its benchmark: a table, metrics.json and predictions.jsonl in its folder.

    python main.py test
    python main.py test --ckpt_path runs/mine-<time>/checkpoints/last.ckpt
    python main.py test --data.perturbation OtherCameras
    python main.py test --config vg_llm.yaml --config vg_llm_released.yaml --config protocol_vg_llm.yaml
""",
    "validate": """Score a run on the validation split of its data.

    python main.py validate
""",
    "predict": """Answer one question about one video.

    python main.py predict --data.video clip.mp4 --data.question "How large is this room?"
""",
    "export": """Write the weights of a run as a folder, in the official layout if there is one.

    python main.py export --out folder
    python main.py export --ckpt_path runs/mine-<time>/checkpoints/last.ckpt --out folder
""",
}

# strategies "ddp" and "auto" with several devices: gradients are views of DDP's buckets instead of copies
StrategyRegistry.register("ddp", DDPStrategy, override=True, gradient_as_bucket_view=True)
StrategyRegistry.register("fsdp2", FSDP2Strategy)


def build_unread(kind: type[VideoQATask], *args: Any, **options: Any) -> VideoQATask:
    """Build a task that reads its released weights later, once each process has its shard."""
    return kind(*args, **{**options, "defer_weights": True})


def build_logger(folder: Path, run: str, kind: type[Logger], /, *args: Any, **options: Any) -> Logger:
    """Build a logger. The default folder and name of WandbLogger are replaced by the run's.

    The stored config keeps the defaults, so that another run with this config logs into its own folder.
    """
    own = {"save_dir": str(folder)} if options.get("save_dir") == "." else {}
    own |= {option: run for option in ("name", "run_name") if option in options and options[option] is None}
    return kind(*args, **options | own)


class ZooCLI(LightningCLI):
    """LightningCLI with the callbacks of every run. The run's folder is resolved before anything is built.

    Args:
        command: The subcommand. Only its options are set up.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.folder = Path()
        self.lock: BinaryIO | None = None  # held while training
        try:
            super().__init__(
                Task,
                VideoQADataModule,
                trainer_class=ExportingTrainer,
                parser_kwargs={
                    **PARSER_OPTIONS,
                    command: {
                        **PARSER_OPTIONS,
                        "usage": f"main.py {command} [options]",
                        "description": f"{DESCRIPTIONS[command]}{CONFIG_HELP}",
                    },
                },
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=SaveRunConfig,
                seed_everything_default=0,
                trainer_defaults=dict(TRAINER_DEFAULTS),
            )
        except BaseException as error:  # including an interrupt and a job's time limit
            self.after_failure(error)
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                sys.exit(128 + signal.SIGINT)  # Ctrl-C before the first batch, for which Lightning would exit with 1
            raise
        finally:
            if self.lock is not None:
                self.lock.close()
        remove_empty(self.folder)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose config files begin with the versions of the code."""
        header = [f"{name}=={version}" for name, version in versions().items()]
        return super().init_parser(dump_header=header, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and the options of the callbacks."""
        self.command_parser = parser
        help = (
            "name of a new run's folder, also in loggers and reports; null uses the model's name with its changed parts"
        )
        parser.add_argument("--name", type=str | None, default=None, help=help)
        parser.add_argument(f"--{TRUST}", type=str | None, default=None, help=TRUST_HELP)
        parser.add_lightning_class_args(MetricsCallback, "metrics")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(GalleryCallback, "gallery")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the arguments of the command's method that are not options."""
        return {self.command: {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}[self.command]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line over the merged configs. An evaluation that names no model gets a run's configs."""
        words = with_run(self.command, sys.argv[2:])
        self.config = parse_merged(self.command_parser, words, parser)

    def instantiate_classes(self) -> None:
        """Build the model, the data and the Trainer. An error of a constructor becomes one line."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise_failed_construction(error)

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would read the whole checkpoint for hyperparameters, which the zoo's lack."""

    def _dump_config(self) -> None:
        """Dump nothing. Lightning would dump the config as the hyperparameters of checkpoints, which the zoo's lack."""
        self.config_dump: dict[str, Any] = {}

    def before_instantiate_classes(self) -> None:
        """Resolve the run's folder and checkpoint, and which cameras `predict` uses."""
        settings = self.config[self.command]
        resolve_run(self.command, settings)
        self.folder = Path(settings.trainer.default_root_dir)
        # Lightning starts DDP's other processes from sys.argv: they must not choose anything themselves
        sys.argv += [f"--trainer.default_root_dir={self.folder}"]
        sys.argv += [f"--ckpt_path={settings.ckpt_path}"] if settings.ckpt_path else []
        if is_rank_zero():
            make_if_absent(self.folder)
        if self.command == "fit":
            self.lock = claim_for_training(self.folder, settings.ckpt_path and Path(settings.ckpt_path))
        self.parser.add_instantiator(partial(build_logger, self.folder, settings.name or self.folder.name), Logger)
        if self.command == "predict" and settings.model.init_args.get("camera_source") == "dataset":
            settings.model.init_args.camera_source = "auto"  # a user's video seldom has cameras
        strategy = settings.trainer.get("strategy")
        if isinstance(strategy, str) and strategy.startswith("fsdp") and strategy != "fsdp2":
            raise InputError(f"--trainer.strategy {strategy}: FSDP1 is not supported, take fsdp2")
        if strategy == "fsdp2" and self.command != "export":  # export has no process group to read the weights later
            self.parser.add_instantiator(build_unread, VideoQATask, prepend=True)

    def before_fit(self) -> None:
        """Print the size of the model, what the machine lacks, and the command that resumes the training."""
        rank_zero_info(describe_size(self.model))
        if is_rank_zero():
            with suppress(Exception):  # what can't be examined ends no training
                for finding in examine_machine(self.folder, checkpoint_size(self.model), is_training=True):
                    if finding.grade == "problem" or (
                        finding.grade == "warning" and finding.text.startswith(("disk", "GPU"))
                    ):
                        rank_zero_warn(finding.text)
        rank_zero_info(f"to resume it after an interruption: {self.way_on()}")

    def after_fit(self) -> None:
        """Print the command that scores the run."""
        if self.model.answers_questions and self.trainer.global_step:
            rank_zero_info(f"{self.folder} is trained: python main.py test scores it")

    def after_failure(self, error: BaseException) -> None:
        """Remove a new folder from which nothing can resume, or print the command that resumes."""
        if self.command == "fit" and isinstance(error, Exception) and not (self.folder / LAST_CHECKPOINT).exists():
            record_failure(error_line(error) or describe(error))
        trainer: Trainer | None = getattr(self, "trainer", None)
        has_trained = trainer is not None and trainer.global_step > 0
        if not has_trained or not isinstance(error, Exception):  # after an error, the last logged values may tell why
            remove_unused(self.folder)
        if trainer is None or not trainer.interrupted:
            return
        if self.command == "fit" and (self.folder / LAST_CHECKPOINT).exists():
            rank_zero_info(f"to go on: {self.way_on()}")
        elif self.command == "test" and not isinstance(error, InputError):
            folder = self._get(self.config_init, "metrics").folder
            if folder is not None and is_interrupted(folder):
                rank_zero_info(f"to go on: python {shlex.join(sys.orig_argv[1:])}")

    def way_on(self) -> str:
        """Return the command that resumes a training."""
        return f"python main.py fit --config {shlex.quote(str(self.folder / CONFIG))} --ckpt_path last"

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Build the Trainer. An unknown accelerator, strategy or number of devices is an `InputError`."""
        asked = self._get(self.config_init, "trainer")
        if asked.logger in (None, True):  # except `predict`, which logs nothing and would leave a file each time
            settings["logger"] = self.command != "predict" and TensorBoardLogger(self.folder, name="", version="")
        if 0 < (asked.max_steps or 0) < asked.log_every_n_steps:  # a shorter training logs each step
            settings["log_every_n_steps"] = 1
        if self.command == "fit":
            self.config.fit.ckpt_path = None  # if stored, it would let another run start from there
        progress = [] if asked.enable_progress_bar is False else [progress_bar()]
        try:
            self.trainer_defaults["callbacks"] = [Interrupts(asked.max_time), *progress]
            trainer = super().instantiate_trainer(**{**settings, "max_time": None})
        except (ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        trainer.strategy.checkpoint_io = CheckpointFiles()
        if isinstance(environment := trainer._accelerator_connector.cluster_environment, SLURMEnvironment):
            environment.auto_requeue = False  # it would save between two optimizer steps; see `resolve_run`
        return trainer


class _Parsed(BaseException):
    """Ends a command after its options are parsed."""


def check_options(command: str, lines: Mapping[str, Sequence[str]]) -> None:
    """Parse the options of several command lines as the command would. Nothing is built, read or made.

    Args:
        command: The command.
        lines: The words after the command, by what the error is to name.

    Raises:
        InputError: An option is unknown, or its value or a config is wrong.
    """

    class Check(ZooCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            for name, words in lines.items():
                try:
                    parse_merged(self.command_parser, words, parser)
                except InputError as error:
                    raise InputError(f"{name}: {error}") from error
            raise _Parsed

    messages = logging.getLogger(rank_zero_info.__module__)
    level = messages.level
    messages.setLevel(logging.WARNING)  # without a line for each config that overrides another
    try:
        Check(command)
    except _Parsed:
        pass
    finally:
        messages.setLevel(level)


# ---- Warnings and lines of a run -------------------------------------------------------------------------------------

WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.13
    ".*in eval mode at the start.*",  # frozen parts are in eval mode on purpose
    "The number of training batches .* smaller than the logging interval",  # steps are counted over all epochs
)


def quiet_lightning() -> None:
    """Suppress warnings on which no user can act, and the source lines in warnings."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = format_warning
    messages = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    messages.addFilter(lambda record: "litlogger" not in record.getMessage())  # advertisement for another logger


def format_warning(message: Any, *_: Any, **__: Any) -> str:
    """Return a warning without the file and line that raised it."""
    return f"warning: {printable(str(message))}\n"


def describe_size(model: Task) -> str:
    """Return a line with the number of parameters, in total and of each trained part."""
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[model.part_of(name)] += parameter.numel()
    total = get_human_readable_count(sum(parameter.numel() for parameter in model.parameters()))
    parts = ", ".join(f"{part} {get_human_readable_count(count).rstrip()}" for part, count in trained.most_common())
    return f"{type(model).__name__}: {total.rstrip()} parameters, trained: {parts}"
