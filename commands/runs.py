"""Choose the run's folder and checkpoint for a command, and the name of a new run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentError
from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint import optimizer_files
from commands.faults import explained
from commands.parser import EVALUATION, build, command_parser, split_configs, split_options, trusted_modules
from datamodules import VideoQADataModule
from datamodules.dataset import SceneDataset
from datamodules.sources.base import Split
from run_folder.configs import (
    MergedConfig,
    buildable_classes,
    check_run,
    find_class,
    find_config,
    merge,
    merge_configs,
    model_of,
    read_config,
)
from run_folder.new import describe_failure, make_folder, shared_folder
from run_folder.record import TEST_FILE, TRAIN_SCENES, RunRecord, config_of_training, folder_of_run
from run_folder.results import is_interrupted
from zoo.backbones import BackboneLoader
from zoo.configuration import (
    RUNS,
    OptionEffects,
    check_class_paths,
    from_config,
    is_own,
    named_modules,
    unusable_class,
    with_default_caches,
)
from zoo.errors import InputError, add_file_to_errors
from zoo.files.ownership import file_name
from zoo.model import SpatialVLM
from zoo.weights.checkpoint import refuse_damaged
from zoo.weights.saved_models import (
    CHECKPOINTS,
    LAST,
    LAST_CHECKPOINT,
    config_of,
    latest_run,
    readable_config,
    trained_at,
)
from zoo.weights.saved_models import RUN_CONFIG as CONFIG

RESTARTED = "ZOO_RESTARTED"  # set to "1" by a study that restarts a training
RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", RESTARTED)
NAME = re.compile(r"[\w.-]+")
LENGTH = 60  # largest length of the changes in a run's name
SIZES = ("backbone", "geometry", "geometry_cache")  # parts of which a run's name has only the class, for brevity


# ---- Existing runs ---------------------------------------------------------------------------------------------------


def run_of(checkpoint: Path) -> Path | None:
    """Return the run whose folder contains a checkpoint, relative to the current folder if it is inside. Or None."""
    run, here = folder_of_run(checkpoint), Path.cwd()
    if not (run / CONFIG).exists():
        return None
    return run.relative_to(here) if run.is_relative_to(here) else run


def with_checkpoint() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the runs in `runs/` that have a checkpoint, with their settings, newest first.

    Trainings that failed or have no checkpoint are reported, so that an older run is not mistaken for them.
    """
    runs = sorted((path.parent for path in RUNS.glob(f"*/{CONFIG}")), key=trained_at, reverse=True)
    newest = next((run for run in runs if (run / LAST_CHECKPOINT).exists()), None)
    if newest and (failure := describe_failure(newest)):
        rank_zero_info(failure)
    for run in runs:
        if (run / LAST_CHECKPOINT).exists():
            if (settings := readable_config(run)) is not None:
                yield run, settings
        elif not (run / TEST_FILE).exists():  # otherwise it only evaluated other weights
            rank_zero_info(f"{run} is passed over: it has no checkpoint")


def newest_run() -> Path:
    """Return the run under `runs/` with the newest checkpoint of a model that answers questions.

    Raises:
        InputError: There is none.
    """
    for run, settings in with_checkpoint():
        model = settings["model"].get("class_path", "")
        if reason := unusable_class(model):
            rank_zero_info(f"{run} is passed over: {reason}")
        elif getattr(find_class(model), "answers_questions", False):
            return run
    raise InputError(f"no finished run under {RUNS}/: train one first, python main.py fit --config prope.yaml")


def find_run(folder: str | None) -> Path:
    """Return the run of a folder, or the newest one.

    Raises:
        InputError: The folder is not a run's, or there is no run.
    """
    run = Path(folder).expanduser() if folder else newest_run()
    if not (run / CONFIG).exists():
        raise InputError(f"{run} is no folder of a run: it has no {CONFIG}")
    return run


class LoadedRun(NamedTuple):
    """A run's model and some scenes of its data.

    Attributes:
        folder: The run's folder.
        model: The model, frozen and in eval mode.
        data: Its data.
        dataset: The scenes. Its `spec` says what is read from them: what the model needs.
    """

    folder: Path
    model: SpatialVLM
    data: VideoQADataModule
    dataset: SceneDataset


def load_run(
    run: Path,
    build: Callable[..., SpatialVLM],
    split: Split,
    num_scenes: int,
    device: str | None,
    trust_modules: Collection[str],
    data_config: str | None = None,
) -> LoadedRun:
    """Load the model of a run, and the first scenes of a split.

    Args:
        run: The run's folder.
        build: Builds the model from the folder and the modules that it may import, such as
            `SpatialVLM.from_pretrained`.
        split: Which scenes.
        num_scenes: Largest number of scenes.
        device: Device of the model. None is a GPU if there is one, else the CPU.
        trust_modules: Modules that a run of someone else may import.
        data_config: A config whose data replace the run's. Options that it does not set are the run's.

    Raises:
        InputError: The run or its data can't be read.
    """
    config = config_of(run) if is_own(run) else with_default_caches(config_of(run))
    trusted = named_modules(config) if is_own(run) else trust_modules
    seed_everything(int(config.get("seed_everything") or 0), verbose=False)  # the same random weights as in training
    model = build(run, trust_modules=trusted)
    check_class_paths(config["data"], trusted)
    given = config["data"]
    data = from_config(VideoQADataModule, given) if data_config is None else _other_data(given, data_config)
    data.prepare_splits((split,))
    dataset = data.dataset([scene for scene in data.scenes(split) if not scene.is_text][:num_scenes])
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset.spec = model.model_spec()
    return LoadedRun(run, model, data, dataset)


def _other_data(settings: dict[str, Any], name: str) -> VideoQADataModule:
    """Build the DataModule of a config, with the settings of a run for the options that the config does not set."""
    parser = command_parser("data", None)
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False)
    given = {"data": merge(settings, merge_configs([name]).settings["data"])}
    try:
        data: VideoQADataModule = build(parser, parser.parse_object(given)).data
        return data
    except ArgumentError as error:
        refused = error
    raise explained(refused, parser, MergedConfig(given), ()) from refused


def check_readable(checkpoint: Path) -> None:
    """Raise InputError for a checkpoint that is missing, a folder or truncated."""
    if checkpoint.is_dir():
        inside = [path for path in (checkpoint / LAST, checkpoint / LAST_CHECKPOINT) if path.exists()]
        raise InputError(f"{checkpoint} is a folder: give a file, {inside[0] if inside else 'such as ' + LAST}")
    if not checkpoint.exists():
        other = _of_named_run(checkpoint)
        advice = f"did you mean {other}?" if other else "give the path of a .ckpt file"
        raise InputError(f"{checkpoint}: no such checkpoint; {advice}")
    refuse_damaged(checkpoint)


def _of_named_run(checkpoint: Path) -> Path | None:
    """Return the checkpoint of the newest run with this name or model. A run's folder has the time after the name."""
    run = checkpoint.parent.parent
    try:
        found = latest_run(run.name, run.parent) / checkpoint.relative_to(run) if run.name else None
    except InputError:
        return None
    return found if found and found.exists() else None


# ---- The run of a command --------------------------------------------------------------------------------------------


def with_run(command: str, words: Sequence[str]) -> list[str]:
    """Return a command line. An evaluation that names no model gets config, folder and checkpoint of a run.

    This is the run of the given checkpoint or folder, or the newest one.

    Args:
        command: The command.
        words: The words after the command.

    Raises:
        InputError: A config, checkpoint or video is missing, there is no run, or its config names an untrusted class.
    """
    names, options = split_configs(words)
    given = dict(split_options(options)[0])
    trusted = trusted_modules(options)
    checkpoint, folder = given.get("ckpt_path"), given.get("trainer.default_root_dir")
    if checkpoint and checkpoint != "last":
        check_readable(Path(checkpoint))
    video = given.get("data.video") if command == "predict" else None
    if video and not Path(video).expanduser().exists():  # checked before searching for a model
        raise InputError(f"{video}: no such video file or folder of frames")
    asks_help = any(word == "-h" or word.partition("=")[0].endswith("help") for word in options)
    if command not in EVALUATION or asks_help or "model" in given:
        return [*words]
    if any(model_of(read_config(find_config(name), trusted)) for name in names):
        return [*words]
    run = run_of(Path(checkpoint)) if checkpoint and checkpoint != "last" else find_run(folder)
    if run is None:  # its own config
        return ["--config", str(checkpoint), *words]
    config = run / CONFIG
    if checkpoint and checkpoint != "last":
        config = Path(checkpoint)  # it may have been copied into the folder of another run
    check_run(config, trusted)
    found = ["--config", str(config), "--trainer.default_root_dir", str(run)]
    return [*found, *([] if checkpoint else ["--ckpt_path", str(run / LAST_CHECKPOINT)]), *words]


def require_model(settings: Any) -> None:
    """Raise InputError if the parsed settings name no model."""
    if model_of(settings.as_dict()) is None:
        raise InputError("which model? Name one, such as --config qwen25_vl.yaml or --config prope.yaml")


def resolve_run(command: str, settings: Any) -> None:
    """Set the run's folder and its checkpoint in the parsed settings of a command, in place.

    Args:
        command: `fit` gets a new folder, or the folder of the run that it resumes. An evaluation without a checkpoint
            scores the weights with which the model is built.
        settings: `ckpt_path` may be `last`, the newest run of the same model. `trainer.default_root_dir` may name one.
            An evaluation of other weights than this run's is not written there.

    Raises:
        InputError: There is no model, a checkpoint is missing, or it was trained with other settings.
    """
    require_model(settings)
    asked, folder = settings.ckpt_path, settings.trainer.default_root_dir
    is_restarted = any(os.environ.get(name, "0") != "0" for name in RESTARTS)
    if asked is None and folder and Path(folder, LAST_CHECKPOINT).exists() and (command != "fit" or is_restarted):
        asked = "last"
    if asked == "last":
        checkpoint: Path | None = Path(folder, LAST_CHECKPOINT) if folder else _last(command, settings)
    else:
        checkpoint = None if asked is None else Path(asked)
    if checkpoint is not None:
        check_readable(checkpoint)
        if command == "fit":
            _check_resumed(checkpoint, settings)
    elif command in ("validate", "test", "predict"):
        _check_released(settings.model.init_args)
    start = settings.model.init_args.get("initial_weights") if command == "fit" else None
    if checkpoint is None and start:
        with add_file_to_errors("model.initial_weights"):
            check_readable(Path(start))
    if command != "fit" and folder and _has_other_weights(Path(folder), checkpoint):
        rank_zero_info(f"{command}: not in {folder}, which has other weights")
        folder = None
    if folder is None:
        folder = (checkpoint and run_of(checkpoint)) or shared_folder(
            lambda: _find_interrupted_test(command, checkpoint, settings) or make_folder(_new_name(command, settings))
        )
    settings.ckpt_path = None if checkpoint is None else str(checkpoint)
    settings.trainer.default_root_dir = str(folder)
    weights = checkpoint or ("the released weights" if _is_released(settings.model.init_args) else "random weights")
    weights = f"the weights of {start}" if checkpoint is None and start else weights
    rank_zero_info(f"{command}: run {folder}, from {weights}")


def _has_other_weights(folder: Path, checkpoint: Path | None) -> bool:
    """Return whether a folder is that of a training, but not of the evaluated checkpoint or weights."""
    is_trained = any((folder / name).exists() for name in (CHECKPOINTS, TRAIN_SCENES))
    around = () if checkpoint is None else checkpoint.absolute().parents
    return is_trained and not any(each.samefile(folder) for each in around)


def _last(command: str, settings: Any) -> Path:
    """Return the checkpoint of the newest run of the same model."""
    asked, reasons = _record(settings), list[str]()
    is_same = asked.same_training if command == "fit" else asked.same_answers
    for run, trained in with_checkpoint():
        changed = is_same(asked.beside(trained), ("model",))
        if not changed:
            return run / LAST_CHECKPOINT
        reasons.append(f"{run} was trained with another {', '.join(changed)}")
        rank_zero_info(f"{run} is passed over: it was trained with another {changed[0]}")
    newest = f"; {reasons[0]}" if reasons else ""
    raise InputError(
        f"no run of this {_class_name(settings.model)} under {RUNS}/ has a checkpoint: train it first (python main.py "
        f"fit with the same configs), or give the path of a checkpoint with --ckpt_path{newest}"
    )


def _record(settings: Any) -> RunRecord:
    """Return the record of parsed settings."""
    return RunRecord.of(settings.as_dict(), *(find_class(settings[part].class_path) for part in ("model", "data")))


def _check_resumed(checkpoint: Path, settings: Any) -> None:
    """Refuse to resume a training with another model, other data, or another seed or precision."""
    for file in optimizer_files(checkpoint):
        refuse_damaged(file)
    if (training := config_of_training(checkpoint)) is None:
        return
    asked = _record(settings)
    if changed := asked.same_training(asked.beside(training)):
        run = run_of(checkpoint)
        raise InputError(
            f"--ckpt_path {checkpoint}: {run or 'it'} was trained with another {', '.join(changed)}, and a resumed "
            f"training must keep it: see --config {run / CONFIG if run else checkpoint}, or start anew from its "
            "weights with --model.initial_weights"
        )


def _is_released(parts: Any) -> bool:
    """Return whether the backbone has released weights."""
    return parts.get("backbone") is not None and bool(find_class(parts.backbone.class_path).is_pretrained)


def _check_released(parts: Any) -> None:
    """Refuse to score released weights with a part that they were not trained with."""
    lacking = next((part for part in ("camera_encoding", "view_mixer") if parts.get(part) is not None), None)
    released = () if parts.get("backbone") is None else find_class(parts.backbone.class_path).released_fusions
    fusion = None if parts.get("fusion") is None else find_class(parts.fusion.class_path)
    if lacking is None and fusion is not None and fusion not in released:
        lacking = "fusion"
    if lacking is None or not _is_released(parts) or parts.get("allow_untrained", False):
        return  # the model itself refuses random weights
    part = _class_name(parts[lacking])
    loaders: list[Any] = buildable_classes(BackboneLoader)
    loader = next((kind.__name__ for kind in loaders if fusion in kind.released_fusions[:1]), "")
    own = f"; released weights with one are for --model.backbone {loader}" if loader else ""
    raise InputError(
        f"{part} was not trained into the released weights: give --ckpt_path, or --model.allow_untrained true to score "
        f"them anyway{own}"
    )


def _class_name(part: Any) -> str:
    return str(part.class_path).rpartition(".")[2]


def _find_interrupted_test(command: str, checkpoint: Path | None, settings: Any) -> Path | None:
    """Return the newest folder of the same interrupted test, for weights that belong to no run, or None."""
    if command != "test":
        return None
    asked = _record(settings)
    for begun in sorted(RUNS.glob(f"*/{TEST_FILE}"), key=lambda path: -path.stat().st_mtime):
        run = begun.parent
        if not is_interrupted(run) or (run / CHECKPOINTS).exists() or (tested := readable_config(run)) is None:
            continue
        of_these = tested.get("ckpt_path") == (None if checkpoint is None else str(checkpoint))
        if of_these and not asked.same_answers(asked.beside(tested), ("model", "data")):
            return run
    return None


# ---- The name of a new run -------------------------------------------------------------------------------------------


def _new_name(command: str, settings: Any) -> str:
    model = _class_name(settings.model)
    return run_name(settings.get("name"), model, sys.argv[2:]) if command == "fit" else f"{model}-{command}"


def run_name(given: str | None, model: str, words: Sequence[str]) -> str:
    """Return the first part of the name of a new run's folder: `--name`, or its model with the options' changes.

    Args:
        given: `--name`.
        model: Name of the model's class.
        words: The command line after `fit`, such as `--model.camera_encoding GTA`.

    Raises:
        InputError: A folder can't have the given name.
    """
    if given is None:
        excepted = getattr(find_class(model), "option_effects", OptionEffects()).harmless("answers")
        text = file_name("-".join(changed_parts(words, excepted)))
        return f"{model}-{text}" if text and len(text) <= LENGTH else model
    if not NAME.fullmatch(given) or given.strip(".") == "":
        raise InputError(f"--name {given}: letters, digits and . _ - only, because a folder has this name")
    return given


def changed_parts(words: Sequence[str], excepted: Iterable[str] = ()) -> Iterator[str]:
    """Yield the changes of a command line to the model's config: classes, `no-fusion`, and values of options."""
    excepted = tuple(f"{name}." for name in excepted)
    for option, text in dict(split_options(words)[0]).items():
        if not option.startswith("model.") or option.endswith("help") or f"{option}.".startswith(excepted):
            continue
        _, part, *inner = option.removesuffix("+").removesuffix(".class_path").replace(".init_args", "").split(".")
        if inner and part in SIZES:
            continue
        key = part if not inner or [part, *inner] == ["lora", "r"] else inner[-1]
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        names = [_short(each) for each in (value if isinstance(value, list) else [value])]
        if value is None or value == []:
            yield f"no-{key}"
        elif all(name[:1].isupper() for name in names):
            yield "-".join(names)
        else:
            yield "-".join([key, *names])


def _short(value: Any) -> str:
    """Return a class by its name, and another value as text for a folder's name."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value.get("class_path", "") if isinstance(value, dict) else value)
    name = text.rpartition(".")[2]
    return name if name[:1].isupper() else file_name(text)
