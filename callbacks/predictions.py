"""predictions.jsonl: what was asked, what was answered, from which frames, by which versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.metrics import METRICS
from callbacks.settings import differences, settings_of
from callbacks.versions import versions
from zoo.atomic_io import JSONLines, lines, sound_records, write_whole
from zoo.errors import InputError
from zoo.metrics import Profile, score_answer

UNFINISHED = "predictions.unfinished.json"  # the settings of a test, there from its start to its end
SETTINGS = "predictions.settings.json"  # and what it is called from then on


class PredictionsCallback(Callback):
    """A JSON line a question in `predictions.jsonl` in the run's folder, on disk before the next scene starts.

    A test that was broken off, by whatever, goes on where it stopped when it is run again, on any number of processes:
    what has an answer is not asked again, what failed is. It must be the same test, of the same weights, data and
    prompts: see `callbacks.settings`. A test that was finished is started anew, and replaces the file.

    With several processes each writes `predictions.rank<k>.jsonl`, and rank zero merges them at the end, every id once,
    in the order of the data. `predict` prints its answers and adds them to `answers.jsonl`.

    A line holds the record (id, scene, question_type, question, prompt, prediction, ground_truth, frames,
    error), its `score` (0 if the scene failed, null without a ground truth) and `versions`.

    Args:
        scorer: the official scorer to follow, see `zoo.metrics`.
    """

    def __init__(self, scorer: Profile = "spatial_mllm") -> None:
        self.scorer = scorer
        self._versions = versions()
        self._kept: list[dict[str, Any]] = []  # what an earlier, unfinished test has answered
        self._file: JSONLines | None = None

    # ---- test ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the data is read: tells the DataModule what need not be asked again."""
        data: Any = getattr(trainer, "datamodule", None)
        self._kept = []
        if stage != "test" or not hasattr(data, "answered"):
            return
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (folder / UNFINISHED).exists():
            found = sound_records([folder / "predictions.jsonl", *_parts(folder)])
            self._kept = [record for record in found if not record.get("error")]
        self._kept = trainer.strategy.broadcast(self._kept)
        data.answered = {record["id"]: record for record in self._kept}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refusal = self._begin(trainer, pl_module) if trainer.is_global_zero else None
        if refusal := trainer.strategy.broadcast(refusal):
            raise InputError(refusal)  # on every process
        own = "predictions.jsonl" if trainer.world_size == 1 else f"predictions.rank{trainer.global_rank}.jsonl"
        self._file = JSONLines(Path(trainer.default_root_dir) / own)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Leaves the files as a test starts from them; or says why it must not go on with what is there."""
        folder = Path(trainer.default_root_dir)
        settings = {"scorer": self.scorer, **settings_of(trainer, pl_module)}
        if self._kept:
            before = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
            differing = differences(before, settings, {record["scene"] for record in self._kept})
            if differing:
                return (
                    f"{folder / UNFINISHED}: this test was begun with other settings and broken off: "
                    f"{'; '.join(differing)}. Go on with those, or remove that file to start anew"
                )
            questions = len(trainer.datamodule.tested)  # type: ignore[attr-defined]
            rank_zero_info(f"test: goes on, {len(self._kept)} of {questions} questions are answered already")
        else:
            # in this order: wherever this is cut off, the answers of an unfinished test are of the settings beside them
            for name in (UNFINISHED, SETTINGS, METRICS):
                (folder / name).unlink(missing_ok=True)
        write_whole(folder / "predictions.jsonl", lines(self._kept))
        for part in _parts(folder):
            part.unlink()
        write_whole(folder / UNFINISHED, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return None

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        self._append(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After metrics.json is written: what is cut off in between is an unfinished test with nothing left to ask."""
        self._release()
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            folder, data = Path(trainer.default_root_dir), getattr(trainer, "datamodule", None)
            whole = folder / "predictions.jsonl"
            place = {record["id"]: place for place, record in enumerate(getattr(data, "tested", ()))}
            merged = sound_records([whole, *_parts(folder)])
            write_whole(whole, lines(sorted(merged, key=lambda record: place.get(record["id"], len(place)))))
            for part in _parts(folder):
                part.unlink()
            (folder / UNFINISHED).replace(folder / SETTINGS)
        trainer.strategy.barrier("predictions.jsonl is merged")

    # ---- predict ------------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file = JSONLines(Path(trainer.default_root_dir) / "answers.jsonl")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._append(outputs)
        for record in outputs:
            pl_module.print(_readable(record))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    # ---- both ---------------------------------------------------------------------------------------------------

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self._file is not None  # a test or a prediction has started
        self._file.append([{**each, "score": self._score(each), "versions": self._versions} for each in records])

    def _score(self, record: Mapping[str, Any]) -> float | None:
        if not record["ground_truth"]:
            return None
        answer = "" if record["error"] else record["prediction"]
        return score_answer(answer, record["ground_truth"], record["question_type"], self.scorer)

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _parts(folder: Path) -> list[Path]:
    """What each process of a test with several has written."""
    return sorted(folder.glob("predictions.rank*.jsonl"))


def _readable(record: Mapping[str, Any]) -> str:
    answer = f"failed: {record['error']}" if record["error"] else record["prediction"] or "(empty answer)"
    return f"{record['scene']}: {record['question']}\n  {answer}"
