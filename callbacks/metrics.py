"""The scores of a run: one table, the loggers and metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.baselines.blind import BlindBaselines, blind_baselines, constant_baseline
from callbacks.protocol import protocol_record
from callbacks.reproduction import reproduction
from callbacks.results_folder import METRICS, results_folder
from callbacks.scoring import Tally, add_records, benchmark_of, tally_of
from callbacks.table import render
from callbacks.trained import describe_unfinished, trained_weights
from datamodules.datamodule import skipped_scenes
from datamodules.resumable_test import tested_by
from datamodules.scenes import Scene
from zoo.errors import InputError
from zoo.files.atomic_io import write_json
from zoo.metrics import BenchmarkScore

Stage = Literal["val", "test"]


class MetricsCallback(Callback):
    """Score the prediction records that validation_step and test_step return, by the benchmark of the data.

    The scores accumulate in a torchmetrics metric, `zoo.metrics.BenchmarkScore`, which gathers those of all processes.

    At the end of an epoch rank zero prints one table, and every rank logs `val/...` or `test/...`: each question type,
    and `acc`, `mra` and `all` with `/micro` and `/macro`; a checkpoint can monitor `val/all/macro`. A test also writes
    `metrics.json` into the test's folder: the result of `Benchmark.aggregate`, counts, versions, how far the weights
    are trained (`callbacks.trained`), and what else others need to repeat the test (`callbacks.reproduction`). A test's
    table and metrics.json have its blind baselines as well (`callbacks.baselines`).

    Errors of what objectives predict (cameras, depth) are logged as well, with those of a null model as `unlearned`,
    and written as `objectives`: means over the scenes.

    Questions of a failed scene (`error` in their records) score 0, are counted, and are listed with the error; if all
    questions failed, the run stops with an `InputError`. Records without a ground truth are not scored. Each id counts
    once.

    Args:
        scorer: Name of the benchmark's scorer (VSI-Bench: spatial_mllm, thinking_in_space, lmms_eval_0.7.3,
            spatial_stack, geovr); null is its first.
        protocol: Name of the evaluation protocol, which `protocol_<name>.yaml` sets; metrics.json records it with what
            departs from it.
    """

    def __init__(self, scorer: str | None = None, protocol: str | None = None) -> None:
        self.scorer, self.protocol = scorer, protocol

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the scorer before the run starts, and suppress Lightning's own table."""
        benchmark_of(trainer).find_scorer(self.scorer)
        trainer.validate_loop.verbose = trainer.test_loop.verbose = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start without scores."""
        self._metric = BenchmarkScore(benchmark_of(trainer), self.scorer).to(pl_module.device)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the records of the interrupted test that this one resumes; name unfinished weights."""
        self.on_validation_start(trainer, pl_module)
        self._trained = trained_weights(trainer, pl_module)
        if unfinished := describe_unfinished(self._trained):
            rank_zero_info(f"test: {unfinished}")
        add_records(self._metric, tested_by(trainer).answered.values())

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Score the records of a batch."""
        add_records(self._metric, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and log the scores."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and log the scores and write metrics.json."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.sanity_checking or not getattr(pl_module, "answers_questions", True):
            return
        # 1. The scores of all ranks' records.
        scored = tally_of(self._metric)
        errors = [record.note["error"] for record in scored.records]
        if errors and all(errors):
            raise InputError(f"{stage}: all {len(errors)} questions failed, the first with: {errors[0]}")
        # 2. Loggers, table and file.
        data: Any = getattr(trainer, "datamodule", None)
        missing: dict[str, int] = getattr(data, "missing", {})
        filtered: int = getattr(data, "filtered", 0)
        objectives = {f"{stage}/{name}": error for name, error in scored.objectives.items()}
        pl_module.log_dict(_scalars(scored.result, stage) | objectives, sync_dist=True)
        if not trainer.is_global_zero:
            return
        chosen_by = data.filter.option if hasattr(data, "filter") else ""
        source = getattr(data, "source", None)
        of_data = "" if source is None else f" of {type(source).__name__}"
        title = f"{type(pl_module).__name__}, {stage} split{of_data}"
        blind = _blind(scored, tested_by(trainer).scenes, data) if stage == "test" else BlindBaselines()
        shown = render(scored, title=title, missing=missing, filtered=filtered, chosen_by=chosen_by, blind=blind)
        pl_module.print(shown)
        for name, error in scored.objectives.items():
            pl_module.print(f"{name} {error:.3g}")
        if stage == "test":
            content = scored.as_metrics(
                counts={**scored.counts, "missing": sum(missing.values()), "filtered": filtered},
                missing_scenes=missing,
                baselines=blind.scores,
                checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path else None,
                trained=self._trained,
                data=data.describe() if hasattr(data, "describe") else None,
                **({"objectives": scored.objectives} if scored.objectives else {}),
                **_skipped(trainer),
                reproduction=reproduction(trainer, pl_module),
                protocol=protocol_record(trainer, self.protocol),
                **_geometry(pl_module),
            )
            write_json(results_folder(trainer) / METRICS, content)


def _blind(scored: Tally, scenes: list[Scene], data: Any) -> BlindBaselines:
    """Return the blind baselines of a test; the best constant alone without a `VideoQADataModule`."""
    if not scenes:
        return constant_baseline(scored.scored, scored.benchmark, scored.scorer)
    return blind_baselines(scored.scored, scenes, data.source, scored.scorer)


def _geometry(pl_module: LightningModule) -> dict[str, str | None]:
    """Return the class of the geometry encoder, which a config may name in vain; empty without a `SpatialVLM`."""
    model: Any = getattr(pl_module, "model", None)
    return {"geometry": model.geometry_name} if hasattr(model, "geometry_name") else {}


def _skipped(trainer: Trainer) -> dict[str, int]:
    """Return the number of scenes that the training of the tested weights has left out, if there are any."""
    skipped = skipped_scenes(Path(trainer.ckpt_path).absolute().parent.parent) if trainer.ckpt_path else ()
    return {"skipped_training_scenes": len(skipped)} if skipped else {}


def _scalars(result: Mapping[str, Any], stage: Stage) -> dict[str, float]:
    """Return flat names and scores for the loggers, without groups that have no question."""
    scores = {f"{stage}/{kind}": entry["score"] for kind, entry in result["per_question_type"].items()}
    for group in ("acc", "mra", "all"):
        scores |= {f"{stage}/{group}/{mean}": score for mean, score in result[group].items() if score is not None}
    return scores
