"""The commands fit, validate, test, predict and export: LightningCLI with the parts of the zoo."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_summary import get_human_readable_count

from callbacks import Checkpoint, GalleryCallback, MetricsCallback, SaveRunConfig, progress_bar
from callbacks.checkpoint import CheckpointFiles
from callbacks.interrupts import Interrupts
from callbacks.results_folder import is_interrupted
from commands.export import ExportingTrainer
from commands.faults import raise_failed_construction
from commands.new_run import claim_for_training, is_rank_zero, make_if_absent, remove_empty, remove_unused
from commands.parser import PARSER_OPTIONS, TRUST, TRUST_HELP, parse_merged
from commands.runs import CONFIG, resolve_run, with_run
from datamodules import VideoQADataModule
from zoo.errors import InputError
from zoo.tasks import Task, VideoQATask
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.versions import versions
from zoo.weights.saved_models import LAST_CHECKPOINT

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the DataModule distributes the scenes, and repeats none
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,  # Spatial-MLLM's
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # `describe_size` says what trains
}
CONFIG_HELP = (
    "\nA config is named by its path, or its name in configs/ or recipes/. A later one wins, and options over all."
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
    "export": """Write the weights of a run as a folder, in the official layout where there is one.

    python main.py export --out folder
    python main.py export --ckpt_path runs/mine-<time>/checkpoints/last.ckpt --out folder
""",
}

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


class ZooCLI(LightningCLI):
    """LightningCLI with the callbacks of every run; the run's folder is resolved before anything is built.

    Args:
        command: The subcommand; only its options are set up.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.folder = Path()
        self.lock: BinaryIO | None = None  # of a training
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
        except BaseException as error:  # an interrupt and a job's time limit as well
            self.after_failure(error)
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                sys.exit(128 + signal.SIGINT)  # Ctrl-C before the first batch, for which Lightning's own status is 1
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
        self.command_parser = parser
        help = (
            "name of a new run's folder, in loggers and in reports; null: its model, with the changed parts of --model"
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
        """Parse the command line over the merged configs; an evaluation that names no model gets those of a run."""
        words = with_run(self.command, sys.argv[2:])
        self.config = parse_merged(self.command_parser, words, parser)

    def instantiate_classes(self) -> None:
        """Build the model, the data and the Trainer; what a constructor raises is one line."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise_failed_construction(error)

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
        # the other processes of DDP, which Lightning starts from sys.argv, choose nothing themselves
        sys.argv += [f"--trainer.default_root_dir={self.folder}"]
        sys.argv += [f"--ckpt_path={settings.ckpt_path}"] if settings.ckpt_path else []
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
        """Print the size of the model and of what trains, and the command that goes on once it is broken off."""
        rank_zero_info(describe_size(self.model))
        rank_zero_info(f"if it is broken off: {self.way_on()}")

    def after_fit(self) -> None:
        """Name the command that scores the run."""
        if self.model.answers_questions and self.trainer.global_step:
            rank_zero_info(f"{self.folder} is trained: python main.py test scores it")

    def after_failure(self, error: BaseException) -> None:
        """Remove a new folder from which nothing goes on, or name the command that does."""
        trainer: Trainer | None = getattr(self, "trainer", None)
        has_trained = trainer is not None and trainer.global_step > 0
        if not has_trained or not isinstance(error, Exception):  # an error's last values may tell why
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
        """Return the command that goes on with a training."""
        return f"python main.py fit --config {shlex.quote(str(self.folder / CONFIG))} --ckpt_path last"

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Build the Trainer; an unknown accelerator, strategy or number of devices is an `InputError`."""
        asked = self._get(self.config_init, "trainer")
        if asked.logger in (None, True):  # `predict` logs nothing, and would leave a file each time
            settings["logger"] = self.command != "predict" and TensorBoardLogger(self.folder, name="", version="")
        if 0 < (asked.max_steps or 0) < asked.log_every_n_steps:  # a shorter training logs each step
            settings["log_every_n_steps"] = 1
        if self.command == "fit":
            self.config.fit.ckpt_path = None  # stored: it would let another run start from there
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


# ---- What a run prints beside its own lines --------------------------------------------------------------------------

WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.13
    ".*in eval mode at the start.*",  # frozen parts are, on purpose
    "The number of training batches .* smaller than the logging interval",  # steps are counted over all epochs
)


def quiet_lightning() -> None:
    """Leave out warnings that no user can act on, and the paths of the libraries that warn."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = format_warning
    messages = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    messages.addFilter(lambda record: "litlogger" not in record.getMessage())  # the advertisement of another logger


def format_warning(message: Any, *_: Any, **__: Any) -> str:
    """Return a warning without the file and line that raised it."""
    return f"warning: {message}\n"


def describe_size(model: Task) -> str:
    """Return a line with the number of parameters, and of those of each part that trains."""
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[model.part_of(name)] += parameter.numel()
    total = get_human_readable_count(sum(parameter.numel() for parameter in model.parameters()))
    parts = ", ".join(f"{part} {get_human_readable_count(count).rstrip()}" for part, count in trained.most_common())
    return f"{type(model).__name__}: {total.rstrip()} parameters, trained: {parts}"
