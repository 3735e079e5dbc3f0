"""The scores of a run: one table, the loggers, and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.table import render
from callbacks.versions import versions
from zoo.atomic_io import write_whole
from zoo.metrics import Profile, VSIBenchScore, is_parsable

Stage = Literal["val", "test"]
METRICS = "metrics.json"


class MetricsCallback(Callback):
    """Scores the prediction records that validation_step and test_step return.

    At the end of an epoch rank zero prints one table, and every rank logs `val/…` or `test/…`: a question
    type, or `acc`, `mra` and `all` with `/micro` and `/macro`; a checkpoint can monitor `val/all/macro`. A
    test also writes `metrics.json` into the run's folder: what `VSIBenchScore.compute()` returns, counts,
    versions.

    A scene that failed (`error` in its records) scores 0, is counted, and is listed with its reason. Records
    without a ground truth are not scored.

    Args:
        scorer: the official scorer to follow, see `zoo.metrics`.
    """

    def __init__(self, scorer: Profile = "spatial_mllm") -> None:
        self.scorer = scorer
        self.score = VSIBenchScore(scorer)
        self._reset()

    def _reset(self) -> None:
        self.score.reset()
        self._unparsable: set[str] = set()  # ids
        self._failed: dict[str, tuple[str, str]] = {}  # id: scene, error

    def _add(self, trainer: Trainer, records: Sequence[Mapping[str, Any]]) -> None:
        records = [record for record in records if record["ground_truth"]]
        if trainer.sanity_checking or not records:
            return
        answers = ["" if record["error"] else record["prediction"] for record in records]
        types = [record["question_type"] for record in records]
        ids = [record["id"] for record in records]
        self.score.update(answers, [record["ground_truth"] for record in records], types, ids)
        for record in records:
            if record["error"]:
                self._failed[record["id"]] = (record["scene"], record["error"])
            elif not is_parsable(record["prediction"], record["question_type"], self.scorer):
                self._unparsable.add(record["id"])

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.sanity_checking or not getattr(pl_module, "answers_questions", True):
            return
        result = self.score.compute()
        failed: dict[str, tuple[str, str]] = {}
        unparsable: set[str] = set()
        for rank_failed, rank_unparsable in _gather((self._failed, self._unparsable)):
            failed |= rank_failed
            unparsable |= rank_unparsable
        pl_module.log_dict(_scalars(result, stage), sync_dist=True)
        data: Any = getattr(trainer, "datamodule", None)
        missing: dict[str, int] = getattr(data, "missing", {})
        counts = {
            "questions": sum(entry["count"] for entry in result["per_question_type"].values()),
            "failed": len(failed),
            "unparsable": len(unparsable),
            "missing": sum(missing.values()),
            "filtered": getattr(data, "filtered", 0),
        }
        scenes = _by_scene(failed)
        if trainer.is_global_zero:
            pl_module.print(render(result, counts, scenes, title=f"{stage} ({self.scorer})", missing=missing))
            if stage == "test":
                report: dict[str, Any] = {
                    **result,
                    "counts": counts,
                    "failed_scenes": scenes,
                    "missing_scenes": missing,
                    "scorer": self.scorer,
                    "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
                    "data": data.describe() if hasattr(data, "describe") else None,
                    "versions": versions(),
                }
                text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
                write_whole(Path(trainer.default_root_dir) / METRICS, text)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score.to(pl_module.device)
        self._reset()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)
        answered = getattr(getattr(trainer, "datamodule", None), "answered", None)
        if answered and trainer.is_global_zero:  # by the test that this one goes on with
            self._add(trainer, list(answered.values()))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._add(trainer, outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        self._add(trainer, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.validate_loop.verbose = False  # Lightning's own table would be a second one
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.test_loop.verbose = False
        self._finish(trainer, pl_module, "test")


def _scalars(result: Mapping[str, Any], stage: Stage) -> dict[str, float]:
    """Flat names for the loggers; groups without a question have none."""
    types = {f"{stage}/{kind}": entry["score"] for kind, entry in result["per_question_type"].items()}
    groups = {
        f"{stage}/{group}/{mean}": result[group][mean]
        for group in ("acc", "mra", "all")
        for mean in ("micro", "macro")
        if result[group][mean] is not None
    }
    return types | groups


def _by_scene(failed: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    scenes: dict[tuple[str, str], int] = {}
    for scene_and_error in failed.values():
        scenes[scene_and_error] = scenes.get(scene_and_error, 0) + 1
    return [{"scene": s, "error": e, "questions": count} for (s, e), count in sorted(scenes.items())]


def _gather(local: Any) -> list[Any]:
    """The object of every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [local]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, local)
    return everyone
