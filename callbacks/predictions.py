"""predictions.jsonl: the prompt, frames, answer, score and versions of each question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.results_folder import (
    LOCK,
    METRICS,
    PREDICTIONS,
    SETTINGS,
    UNFINISHED,
    choose_folder,
    keep_finished_test,
    rank_file,
    rank_files,
    results_folder,
)
from callbacks.scoring import benchmark_of, score_record
from callbacks.settings import differences, save_config, settings_of
from datamodules.resumable_test import tested_by
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, json_lines, read_records, try_lock, write_json, write_whole
from zoo.versions import versions


class PredictionsCallback(Callback):
    """Write one JSON line per question to `predictions.jsonl` in the test's folder, before the next scene starts.

    An interrupted test resumes when it is run again, on any number of processes: answered questions are kept, failed
    ones are retried. Weights, data and prompts must be the same, see `callbacks.settings`. The folder is the run's;
    once that holds a finished test, one with other settings gets a folder inside it (`callbacks.results_folder`), and
    the same test starts over and replaces its file. Of two tests at once in one folder, the second is refused.

    With several processes each writes `predictions.rank<k>.jsonl`, and rank zero merges them at the end, each id once,
    in the order of the data. `predict` prints its answers and appends them to `answers.jsonl`.

    A line holds the record (id, scene, question_type, question, prompt, prediction, ground_truth, frames, error), its
    `score` (0 for a failed scene, null without a ground truth), `benchmark` and `versions`.

    Args:
        scorer: Name of the benchmark's scorer (VSI-Bench: spatial_mllm, thinking_in_space, lmms_eval_0.7.3); null is
            its first.
    """

    def __init__(self, scorer: str | None = None) -> None:
        self.scorer = scorer
        self.results_folder: Path | None = None  # of the running test
        self._file: JSONLines | None = None
        self._lock: BinaryIO | None = None  # on rank zero

    # ---- test ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the DataModule ask which questions are answered, once it has read the data."""
        self.results_folder = None
        if stage == "test":
            tested_by(trainer).find_answered = partial(self._begin, trainer, pl_module, resumes=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the finished test of the weights that this fit replaces; a fit with no step to go replaces none."""
        if trainer.is_global_zero and (kept := keep_finished_test(Path(trainer.default_root_dir))):
            rank_zero_info(f"fit: the finished test of the former weights is now in {kept}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's file."""
        if self.results_folder is None:  # without a DataModule
            self._begin(trainer, pl_module, resumes=False)
        folder = results_folder(trainer)
        alone = trainer.world_size == 1
        self._file = JSONLines(folder / PREDICTIONS if alone else rank_file(folder, trainer.global_rank))

    def _begin(self, trainer: Trainer, pl_module: LightningModule, *, resumes: bool) -> dict[str, dict[str, Any]]:
        """Choose and prepare the test's folder; return the answers of the interrupted test by id."""
        settings = settings_of(trainer, pl_module)  # on every process: each has a shard of the weights
        chosen: Any = self._prepare(trainer, settings, resumes) if trainer.is_global_zero else None
        self.results_folder, kept, refusal = trainer.strategy.broadcast(chosen)
        if refusal:
            raise InputError(refusal)  # on every process
        return {record["id"]: record for record in kept}

    def _prepare(
        self, trainer: Trainer, settings: dict[str, Any], resumes: bool
    ) -> tuple[Path, list[dict[str, Any]], str | None]:
        """Return the test's folder with its files, the kept answers, and why the interrupted test can't resume."""
        # 1. The folder.
        run, benchmark = Path(trainer.default_root_dir), benchmark_of(trainer)
        scoring = {"benchmark": benchmark.name, "scorer": benchmark.find_scorer(self.scorer)}
        settings = {**scoring, **settings}
        folder, self._lock = _lock_folder(run, settings)
        if self._lock is None:
            return folder, [], f"another test is writing to {folder}: wait until it ends"
        if folder != run:
            has_test = (run / SETTINGS).exists()
            why = "holds a finished test with other settings" if has_test else "is reserved for the unperturbed test"
            rank_zero_info(f"test: {run} {why}, so this one is in {folder}")
            save_config(trainer, folder)
        # 2. The answers of an interrupted test.
        kept: list[dict[str, Any]] = []
        if resumes and (folder / UNFINISHED).exists():
            found = read_records([folder / PREDICTIONS, *rank_files(folder)])
            kept = [record for record in found if not record.get("error")]
        if kept:
            before = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
            differing = differences(before, settings, {record["scene"] for record in kept})
            if differing:
                refusal = (
                    f"{folder / UNFINISHED}: the interrupted test had other settings: {'; '.join(differing)}. Resume "
                    "it with those, or remove that file to start over"
                )
                return folder, [], refusal
            questions = len(tested_by(trainer).records)
            rank_zero_info(f"test: resumes with {len(kept)} of {questions} questions answered")
        else:
            # in this order: whenever this is killed, the answers match the settings beside them
            for name in (UNFINISHED, SETTINGS, METRICS):
                (folder / name).unlink(missing_ok=True)
        # 3. The files.
        write_whole(folder / PREDICTIONS, json_lines(kept))
        for part in (*rank_files(folder), *folder.glob(".*.partial")):  # the latter of writes that were killed
            part.unlink()
        write_json(folder / UNFINISHED, settings)
        return folder, kept, None

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        """Write the records of a batch."""
        self._append(trainer, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the files of all processes; runs after metrics.json is written."""
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            folder = results_folder(trainer)
            place = {record["id"]: place for place, record in enumerate(tested_by(trainer).records)}
            merged = read_records([folder / PREDICTIONS, *rank_files(folder)])
            merged.sort(key=lambda record: place.get(record["id"], len(place)))
            write_whole(folder / PREDICTIONS, json_lines(merged))
            for part in rank_files(folder):
                part.unlink()
            (folder / UNFINISHED).replace(folder / SETTINGS)
        trainer.strategy.barrier("predictions.jsonl is merged")

    # ---- predict ------------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open answers.jsonl."""
        self._file = JSONLines(Path(trainer.default_root_dir) / "answers.jsonl")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Write and print the answers of a batch."""
        self._append(trainer, outputs)
        for record in outputs:
            answer = f"failed: {record['error']}" if record["error"] else record["prediction"] or "(empty answer)"
            pl_module.print(f"{record['scene']}: {record['question']}\n  {answer}")

    # ---- both ---------------------------------------------------------------------------------------------------

    def _append(self, trainer: Trainer, records: Sequence[Mapping[str, Any]]) -> None:
        assert self._file is not None  # opened when the test or the prediction started
        benchmark, made_by = benchmark_of(trainer), versions()
        scorer = benchmark.find_scorer(self.scorer)
        same = {"benchmark": benchmark.name, "versions": made_by}
        self._file.append([{**each, "score": score_record(each, benchmark, scorer), **same} for each in records])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file, and let another test have the folder."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same: Lightning calls `teardown` only without an error."""
        self._close()

    def _close(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None


def _lock_folder(run: Path, settings: Mapping[str, Any]) -> tuple[Path, BinaryIO | None]:
    """Choose and lock a test's folder; the lock is None if another test has it."""
    while True:
        folder = choose_folder(run, settings)
        lock = try_lock(folder / LOCK)
        if lock is None or choose_folder(run, settings) == folder:
            return folder, lock
        lock.close()  # another test has ended in this folder since the choice
