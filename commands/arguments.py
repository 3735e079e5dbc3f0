"""What a command line leaves out: where configs lie, and the run that `test` alone means."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import Path

from callbacks.checkpoint import FOLDER, LAST
from commands.model_help import with_model
from commands.registry import registered_classes
from commands.runs import CONFIG, newest_run, refuse_unreadable, run_of
from datamodules import SceneSource, VideoQADataModule
from zoo.errors import InputError

MISSPELLED = 0.85  # how alike a word is to the name of an option that it stands for
CONFIGS = Path(__file__).parent.parent / "configs"
DEFAULTS = [str(CONFIGS / f"{name}.yaml") for name in ("model_default", "data_rooms", "scale_tiny")]
EVALUATION = ("validate", "test", "predict", "export")
PARSER_DEFAULTS = {command: {"default_config_files": DEFAULTS} for command in ("fit", *EVALUATION)}
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the DataModule deals the scenes out itself, none twice
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,  # Spatial-MLLM's
    "log_every_n_steps": 10,
}


def preprocess_argv(arguments: list[str]) -> list[str]:
    """Bare config names become paths in `configs/`, options of the dataset find it, and an evaluation without a
    config gets that of the newest run.

    Raises:
        InputError: a config that does not exist, or no run to evaluate.
    """
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--config=") else [expand_dataset_option(argument)]
    for i, word in enumerate(words[:-1]):
        if word in ("--config", "-c"):
            words[i + 1] = str(find_config(words[i + 1]))
    words = with_model(words)
    checkpoint = value_of("--ckpt_path", words)
    if checkpoint and checkpoint != "last":
        refuse_unreadable(Path(checkpoint))  # before Lightning opens it to parse its settings
    asks_help = any(word == "-h" or (word.startswith("--") and word.endswith("help")) for word in words)
    if words[:1] and words[0] in EVALUATION and "--config" not in words and "-c" not in words and not asks_help:
        words[1:1] = _from_run(words)
    return words


def _from_run(words: list[str]) -> list[str]:
    """The config, folder and checkpoint of the run that is meant: of the named checkpoint or folder, or the newest."""
    checkpoint, folder = value_of("--ckpt_path", words), value_of("--trainer.default_root_dir", words)
    if checkpoint and checkpoint != "last":
        run = run_of(Path(checkpoint))
    else:
        run = Path(folder) if folder else newest_run()
        if not (run / CONFIG).exists():
            raise InputError(f"{run} is no folder of a run: it has no {CONFIG}")
    if run is None:
        raise InputError(f"{checkpoint} lies in no run with a {CONFIG}: name its model with --config")
    given = ["--config", str(run / CONFIG), "--trainer.default_root_dir", str(run)]
    return given if checkpoint else [*given, "--ckpt_path", str(run / FOLDER / LAST)]


def value_of(option: str, words: list[str]) -> str | None:
    """What an option is set to on the command line, as `--option value` or `--option=value`."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def expand_dataset_option(word: str) -> str:
    """An option of the dataset may leave `source` out: `--data.dynamic_objects` is `--data.source.dynamic_objects`."""
    start, dot, option = word.partition("--data.")
    if start or not dot:
        return word
    known = {*inspect.signature(VideoQADataModule).parameters, "help", "class_path", "init_args"}
    name = option.split("=")[0].split(".")[0]
    misspelled = name not in _of_sources() and get_close_matches(name, known, cutoff=MISSPELLED)
    return word if name in known or misspelled else f"--data.source.{option}"


def _of_sources() -> set[str]:
    """The options that some dataset has."""
    return {option for source in registered_classes(SceneSource) for option in inspect.signature(source).parameters}


def find_config(name: str) -> Path:
    """The config of this path, or of this name in `configs/`."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise InputError(f"no config {name}, neither here nor in configs/ ({known})")
