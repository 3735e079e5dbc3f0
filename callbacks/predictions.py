"""predictions.jsonl: what was asked, what was answered, from which frames, by which versions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.versions import versions
from zoo.metrics import Profile, score_answer


class PredictionsCallback(Callback):
    """Appends a JSON line a question to `predictions.jsonl` in the run's folder, batch by batch.

    A test replaces the file when it starts; `predict` prints its answers and adds them to `answers.jsonl`. With several
    processes each writes `predictions.rank<k>.jsonl`, and rank zero merges them at the end, every id once;
    if the run is cut off, these files hold what was answered.

    A line holds the record (id, scene, question_type, question, prompt, prediction, ground_truth, frames,
    error), its `score` (0 if the scene failed, null without a ground truth) and `versions`.

    Args:
        profile: the official scorer to follow, see `zoo.metrics`.
    """

    def __init__(self, profile: Profile = "spatial_mllm") -> None:
        self.profile = profile
        self._versions = versions()
        self._name = "predictions"
        self._file: TextIO | None = None

    def _open(self, trainer: Trainer, name: str, *, fresh: bool) -> None:
        self._name = name
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(f"{name}.rank*.jsonl"):
                left_over.unlink()
            if fresh:
                _replace(folder / f"{name}.jsonl", ())
        trainer.strategy.barrier(f"{name}.jsonl is ready")
        own = name if trainer.world_size == 1 else f"{name}.rank{trainer.global_rank}"
        self._file = (folder / f"{own}.jsonl").open("a", encoding="utf-8")

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            raise RuntimeError(f"{self._name}.jsonl is not open: this batch belongs to no test or predict run")
        for record in records:
            line = {**record, "score": self._score(record), "versions": self._versions}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def _score(self, record: Mapping[str, Any]) -> float | None:
        if not record["ground_truth"]:
            return None
        answer = "" if record["error"] else record["prediction"]
        return score_answer(answer, record["ground_truth"], record["question_type"], self.profile)

    def _close(self, trainer: Trainer) -> None:
        self._release()
        if trainer.world_size == 1:
            return
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            merged = folder / f"{self._name}.jsonl"
            parts = [folder / f"{self._name}.rank{rank}.jsonl" for rank in range(trainer.world_size)]
            former = _lines([merged]) if merged.exists() else []
            _replace(merged, [*former, *_once(_lines(parts))])
            for part in parts:
                part.unlink()
        trainer.strategy.barrier(f"{self._name}.jsonl is merged")

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "predictions", fresh=True)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        self._append(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "answers", fresh=False)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._append(outputs)
        for record in outputs:
            pl_module.print(_readable(record))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()


def _readable(record: Mapping[str, Any]) -> str:
    answer = f"failed: {record['error']}" if record["error"] else record["prediction"] or "(empty answer)"
    return f"{record['scene']}: {record['question']}\n  {answer}"


def _lines(paths: Iterable[Path]) -> list[str]:
    # split at "\n" only: an answer may hold other line separators, which JSON does not escape
    return [line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]


def _once(lines: Iterable[str]) -> list[str]:
    """The first line of each id: DistributedSampler repeats samples to fill its last round."""
    first: dict[str, str] = {}
    for line in lines:
        first.setdefault(json.loads(line)["id"], line)
    return list(first.values())


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Whole or not at all: an interrupted write leaves the former file."""
    partial = path.with_suffix(".jsonl.partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)
