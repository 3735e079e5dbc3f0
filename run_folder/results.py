"""The folder of a test, and the identity by which an interrupted test is resumed.

A test with the run's own model and data settings writes into the run's folder. A test with other settings, or a
repeated one, writes into `tests/<short name>/` inside it. A finished test has a metrics.json and is never overwritten.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from datamodules.datamodule import is_limited
from datamodules.scenes import questions_fingerprint
from run_folder.record import (
    METRICS,
    OWN_CODE,
    PREDICTIONS,
    TEST_FILE,
    RunRecord,
    config_of_command,
    find_saved_config,
    option_of,
    own_files,
    read_code,
)
from zoo.configuration import changed_options
from zoo.errors import InputError
from zoo.files.atomic_io import RECORD, try_lock
from zoo.files.fingerprint import fingerprint
from zoo.files.ownership import file_name, remove_own
from zoo.geometry.cache import CachedGeometry
from zoo.versions import ROOT
from zoo.weights.checkpoint import fingerprints, read_checkpoint, released_sources
from zoo.weights.saved_models import RUN_CONFIG, config_of

TESTS = "tests"  # folder for further tests of a run
LOCK = ".test.lock"  # lock file of a running test
PROTOCOL = "metrics.protocol"  # a name that has no effect by itself
MAX_NAME = 40


# ---- Identity: everything on which the answers of a test depend -----------------------------------------------------


def identify_test(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return everything on which the answers of a test depend. The scorer is not part of it.

    Call it on every process, after the weights and the test's scenes are read.

    Returns:
        "config": flattened options of model and data that may change answers, the Trainer's precision and limit of
        batches, and the seed. "processes": their number, for a limited test only. Fingerprints: "weights" of the
        released files and the checkpoint's tensors (without either, of the tensors in memory), "code" of the zoo's and
        of the user's own classes, and "scenes" of the questions and of size and time of all files.
    """
    data: Any = getattr(trainer, "datamodule", None)
    model = getattr(pl_module, "model", None)
    # 1. Options.
    record = RunRecord.of(config_of_command(trainer, pl_module), pl_module, data)
    config = {name: value for name, value in record.options.items() if record.changes_answers(name)}
    # 2. Weights.
    released = fingerprints(released_sources(model)) if hasattr(model, "loader") else {}
    weights: list[Any] = [{part: each["files"] for part, each in released.items()}]
    if trainer.ckpt_path is not None:
        weights.append(fingerprint(read_checkpoint(trainer.ckpt_path)["state_dict"]))
    elif not released or getattr(pl_module, "trained", None):  # random, or trained by this command
        weights.append(fingerprint(pl_module))
    if isinstance(geometry := getattr(model, "geometry", None), CachedGeometry):
        weights.append(geometry.weights)
    # 3. Questions, and the files of scenes.
    scenes: list[Any] = []
    if tested := getattr(data, "tested_scenes", ()):
        scenes = [questions_fingerprint(tested)]
        for scene in tested:
            read = (scene.video, scene.cameras, scene.depth, *scene.images, *data.sampler.reads(scene.name))
            scenes.append([*_states(path for path in read if path is not None)])
    found = {
        "config": config,
        "processes": trainer.world_size if is_limited(trainer.limit_test_batches) else None,  # the limit is per process
        "weights": fingerprint(weights),
        "code": fingerprint_code(config, pl_module, data),
        "scenes": fingerprint(scenes),
    }
    return dict(json.loads(json.dumps(found, default=str)))


def fingerprint_code(config: Mapping[str, Any], *objects: Any) -> str:
    """Return the fingerprint of the code on which answers depend: the zoo's, and that of the user's own classes.

    Args:
        config: A config that may name classes.
        objects: Objects of classes that it may not name.
    """
    files = {file for package in OWN_CODE for file in (ROOT / package).rglob("*.py")}
    files |= own_files(config, *objects)
    return fingerprint(f"{file.name} {read_code(file)}" for file in sorted(files))


def _states(paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each file, also of the files in a folder. Missing files yield nothing."""
    for path in paths:
        if path.exists():
            status = path.stat()
            yield path.name, status.st_size, status.st_mtime_ns
            yield from _states(sorted(path.iterdir()) if path.is_dir() else ())


# ---- Where a test is written ----------------------------------------------------------------------------------------


def rank_file(folder: Path, rank: int) -> Path:
    """Return the file of one process of a test, which is used until the answers of all are joined."""
    return folder / f"predictions.rank{rank}.jsonl"


def rank_files(folder: Path) -> list[Path]:
    """Return the files of a test's processes."""
    return sorted(folder.glob("predictions.rank*.jsonl"))


def remove_rank_files(folder: Path) -> None:
    """Remove the files of a test's processes once their answers are joined. Empty ones have no answer."""
    for file in rank_files(folder):
        remove_own(file, RECORD if file.stat().st_size else b"")


def finished_tests(run: Path) -> list[Path]:
    """Return the folders of a run's finished tests: the run's own folder, and those inside it."""
    return [folder for folder in (run, *sorted(run.glob(f"{TESTS}/*"))) if (folder / METRICS).is_file()]


def is_interrupted(folder: Path) -> bool:
    """Return whether a folder holds a test that was started and not finished."""
    return (folder / TEST_FILE).exists() and not (folder / METRICS).exists()


def differences(test: RunRecord, training: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the options in which a test differs from a training, as {option: {"training", "test"}}.

    `training` is the training's config. Without it, nothing differs.
    """
    if training is None:
        return {}
    run = test.beside(training)
    names = test.same_answers(run)
    return {name: {"training": option_of(run.options, name), "test": option_of(test.options, name)} for name in names}


def choose_folder(
    trainer: Trainer, identity: Mapping[str, Any], record: RunRecord, step: int | None
) -> tuple[Path, BinaryIO]:
    """Return the folder of a test, and its lock.

    This is the folder that holds the same test, interrupted, or else the first folder without a test.

    Args:
        trainer: The Trainer of the test.
        identity: See `identify_test`.
        record: The options of `identity`.
        step: Training step of the tested weights.

    Raises:
        InputError: Another process runs this test, or the folder of tests is a link, which may lead anywhere.
    """
    run = Path(trainer.default_root_dir)
    if (run / TESTS).is_symlink():
        raise InputError(f"{run / TESTS} is a link, and nothing is written through links: replace it by a folder")
    while True:
        # 1. The folder of this test if it was interrupted, even if other tests have finished since.
        begun = (run, *(each for each in sorted(run.glob(f"{TESTS}/*")) if not each.is_symlink()))
        same = next((each for each in begun if is_interrupted(each) and _read(each / TEST_FILE) == identity), None)
        folder = same or _free_folder(trainer, run, record, step)
        # 2. Check that no other test begins or ends there at this moment.
        lock = try_lock(folder / LOCK)
        if lock is None and same is not None:
            raise InputError(f"another test is writing to {folder}: wait until it ends")
        if lock is not None:
            if is_interrupted(folder) if same else not _is_taken(folder):
                if same is None:
                    _explain_new_test(filter(is_interrupted, begun), identity)
                return folder, lock
            lock.close()
        time.sleep(0.05)


def _explain_new_test(interrupted: Iterable[Path], identity: Mapping[str, Any]) -> None:
    """Print why interrupted tests with the same options are not continued, such as changed weights."""
    for folder in interrupted:
        before = _read(folder / TEST_FILE)
        changed = ", ".join(key for key, value in identity.items() if before.get(key) != value)
        if before.get("config") == identity["config"]:
            rank_zero_info(f"test: starts anew, because the interrupted test in {folder} had other {changed}")


def _free_folder(trainer: Trainer, run: Path, record: RunRecord, step: int | None) -> Path:
    """Return the run's folder for its own first test, else the first free folder named after the differences."""
    config = record.options
    former = _read(run / TEST_FILE).get("config")
    from_former = [] if former is None else changed_options(former, config)
    # a script has no config, so its test is compared with the present one
    has_config = find_saved_config(trainer) is not None
    of_run = config_of(run) if (run / RUN_CONFIG).exists() else None
    differing = list(differences(record, of_run)) if has_config else from_former
    if not differing and not _is_taken(run):
        return run
    finished = _read(run / METRICS)
    names = [_short_name(differing or from_former, config)]
    if step is not None and finished and finished.get("step") != step:
        names.append(f"step-{step}")
    name = "-".join(filter(None, names)) or "repeat"
    numbered = (run / TESTS / (f"{name}-{number}" if number > 1 else name) for number in count(1))
    return next(folder for folder in numbered if not folder.is_symlink() and not _is_taken(folder))


def _is_taken(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (TEST_FILE, METRICS, PREDICTIONS)) or bool(rank_files(folder))


def _short_name(differing: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the protocol's name, or the first differing option with its value: `num_frames-8`, `OtherCameras`."""
    if not differing:
        return ""
    if PROTOCOL in differing and config.get(PROTOCOL):
        return _of_folder(str(config[PROTOCOL]))
    firsts = ("data.perturbation", "data.", "model.", "")
    option = min(differing, key=lambda name: next(place for place, each in enumerate(firsts) if name.startswith(each)))
    key, value = option.rpartition(".")[2], option_of(config, option)
    text = f"no-{key}" if value is None else f"{key}-{value}"
    if isinstance(value, Mapping) and "class_path" in value:
        text = str(value["class_path"]).rpartition(".")[2]
    return _of_folder(text)


def _of_folder(text: str) -> str:
    return file_name(file_name(text)[:MAX_NAME])  # again, because a cut may leave a dash at the end


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Empty if it is missing or damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
