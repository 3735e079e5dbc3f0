"""The answers and scores of an evaluation: a table, the loggers, predictions.jsonl and metrics.json.

A test writes each scene's answers before the next scene starts, so that the same command resumes a killed test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint import BEST
from datamodules.datamodule import AnswerStore, skipped_scenes
from datamodules.perturbations import wrong_poses
from datamodules.scenes import shared_scenes
from evaluation.baselines import BlindBaselines, blind_baselines, constant_baseline
from evaluation.table import render, summarize
from run_folder.configs import PROTOCOLS, find_config, read_settings
from run_folder.record import (
    METRICS,
    PREDICTIONS,
    TEST_FILE,
    TRAIN_SCENES,
    RunRecord,
    config_of_command,
    config_of_training,
    find_saved_config,
    folder_of_run,
    option_of,
)
from run_folder.results import (
    choose_folder,
    differences,
    identify_test,
    is_interrupted,
    rank_file,
    rank_files,
    remove_rank_files,
)
from zoo.benchmarks import Benchmark, VSIBench
from zoo.configuration import flatten, is_same_value, to_config
from zoo.errors import InputError, printable
from zoo.files.atomic_io import JSONLines, json_lines, read_records, write_json, write_whole
from zoo.files.ownership import remove_partials
from zoo.metrics import BenchmarkScore, with_scores
from zoo.tasks.base import TRAINED, Task
from zoo.versions import git_state, versions
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.saved_models import LAST, RUN_CONFIG

Stage = Literal["val", "test"]
ANSWERS = "answers.jsonl"  # written by `predict`


class MetricsCallback(AnswerStore):
    """Gather the scored records that validation_step and test_step return, for the benchmark of the data.

    At the end of an epoch, rank zero prints one table. Every rank logs `val/...` or `test/...`: each question type, and
    `acc`, `mra` and `all` with `/micro` and `/macro`, so that a checkpoint can monitor `val/all/macro`. The scores come
    from a torchmetrics metric, `zoo.metrics.BenchmarkScore`. Errors of predicted cameras and depth are logged too, and
    the errors of a null model as `unlearned`.

    A test also writes two files into its folder, see `run_folder.results`.
    `predictions.jsonl` has one JSON line per question: its record (id, scene, question_type, question, prompt,
    prediction, ground_truth, score, frames, error), the benchmark and the scorer. With several processes each writes
    `predictions.rank<k>.jsonl`. At the end rank zero joins them, each id once, in the order of the data.
    `metrics.json` is written last. It holds the result of `Benchmark.aggregate`, counts, blind baselines
    (`evaluation.baselines`), where small parameters such as gates began and ended, and what is needed to repeat the
    test: its config, the config of the training (`training`) and their differences, step of the checkpoint, commit,
    versions, ids of the questions, protocol.

    An interrupted test resumes when it is run again, on any number of processes. Answered questions are kept, failed
    ones are retried. If the same test is started twice at once, the second is refused. `predict` prints its answers and
    appends them to `answers.jsonl`.

    Questions of a failed scene (`error` in their records) score 0, are counted, and are listed with the error. If all
    questions failed, the run stops with an `InputError`. Records without a ground truth are not scored. Each id counts
    once.

    Args:
        scorer: Name of the benchmark's scorer (VSI-Bench: spatial_mllm, thinking_in_space, lmms_eval_0.7.3,
            spatial_stack, geovr). null uses its first.
        protocol: Name of the evaluation protocol that `protocol_<name>.yaml` sets. metrics.json records it with the
            test's departures from it.
    """

    def __init__(self, scorer: str | None = None, protocol: str | None = None) -> None:
        self.scorer, self.protocol = scorer, protocol
        self.folder: Path | None = None  # folder of the running test
        self._benchmark: Benchmark = VSIBench()
        self._records: list[dict[str, Any]] = []  # this process's records
        self._identity: dict[str, Any] = {}
        self._file: JSONLines | None = None
        self._lock: BinaryIO | None = None  # held on rank zero

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the scorer and hand it to the task before the run starts. Suppress Lightning's own table."""
        data: Any = getattr(trainer, "datamodule", None)
        task: Any = pl_module
        self._benchmark = getattr(getattr(data, "source", None), "benchmark", VSIBench())
        task.scorer = self._benchmark.find_scorer(self.scorer)
        trainer.validate_loop.verbose = trainer.test_loop.verbose = False
        self.folder = None

    # ---- Starting or resuming a test --------------------------------------------------------------------------------

    def begin_test(self, trainer: Trainer, pl_module: LightningModule, *, resumes: bool = True) -> set[str]:
        """Choose and prepare the test's folder, see `AnswerStore`."""
        self._records = []
        self._identity = identify_test(trainer, pl_module)  # on all processes: each may hold a shard of the weights
        chosen: Any = None
        if trainer.is_global_zero:
            try:
                chosen = self._prepare(trainer, pl_module, resumes)
            except InputError as error:
                chosen = error
        chosen = trainer.strategy.broadcast(chosen)
        if isinstance(chosen, InputError):
            raise chosen  # on every process
        self.folder, answered = chosen
        return set(answered)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, resumes: bool) -> tuple[Path, list[str]]:
        """Return the test's folder with its files, and the ids of the kept answers."""
        data, run = getattr(trainer, "datamodule", None), Path(trainer.default_root_dir)
        record = RunRecord.of(self._identity["config"], pl_module, data)
        folder, self._lock = choose_folder(trainer, self._identity, record, step_of(pl_module))
        found = read_records([folder / PREDICTIONS, *rank_files(folder)]) if resumes and is_interrupted(folder) else []
        kept = with_scores((each for each in found if not each.get("error")), self._benchmark, self.scorer)
        if folder != run:
            rank_zero_info(f"test: it is in {folder}")
            if (saved := find_saved_config(trainer)) is not None:
                saved.save(folder / RUN_CONFIG)
        if kept:
            asked = sum(len(scene.questions) for scene in getattr(data, "tested_scenes", ()))
            rank_zero_info(f"test: resumes with {len(kept)} of {asked} questions answered")
        write_json(folder / TEST_FILE, self._identity)
        write_whole(folder / PREDICTIONS, json_lines(kept))
        remove_partials(folder)  # left by writes that were killed
        remove_rank_files(folder)
        self._records = kept
        return folder, [record["id"] for record in kept]

    # ---- Batches ----------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start without records."""
        self._records = []
        self._metric = BenchmarkScore(self._benchmark, self.scorer).to(pl_module.device)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the records of an interrupted test that is resumed. Report unfinished weights."""
        if self.folder is None:  # the test has another DataModule
            self.begin_test(trainer, pl_module, resumes=False)
        assert self.folder is not None
        alone = trainer.world_size == 1
        self._file = JSONLines(self.folder / PREDICTIONS if alone else rank_file(self.folder, trainer.global_rank))
        self._metric = BenchmarkScore(self._benchmark, self.scorer).to(pl_module.device)
        self._metric.add(self._records)
        if unfinished := describe_unfinished(trained_weights(trainer, pl_module)):
            rank_zero_info(f"test: {unfinished}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open answers.jsonl."""
        self._file = JSONLines(Path(trainer.default_root_dir) / ANSWERS)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Take the records of a batch."""
        self._take(pl_module, outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        """Take and write the records of a batch."""
        assert self._file is not None  # opened when the test started
        self._file.append(self._take(pl_module, outputs))

    def _take(self, pl_module: LightningModule, outputs: Any) -> list[dict[str, Any]]:
        """Add the records of a batch to the scores, and return them."""
        if not getattr(pl_module, "answers_questions", True):
            return []
        records = with_scores(outputs, self._benchmark, self.scorer)  # records of a `Task` already have a score
        self._metric.add(records)
        self._records += records
        return records

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Write and print the answers of a batch."""
        assert self._file is not None  # opened when the prediction started
        self._file.append(with_scores(outputs, self._benchmark, self.scorer))
        for record in outputs:
            answer = f"failed: {record['error']}" if record["error"] else record["prediction"] or "(empty answer)"
            pl_module.print(printable(f"{record['scene']}: {record['question']}\n  {answer}"))

    # ---- The end ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and log the scores."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores, write predictions.jsonl and metrics.json, and print the scores."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.sanity_checking or not getattr(pl_module, "answers_questions", True):
            return
        # 1. The records of all ranks, each question once, and their scores.
        data: Any = getattr(trainer, "datamodule", None)
        asked = [question.id for scene in getattr(data, "tested_scenes", ()) for question in scene.questions]
        records = in_order(gather(self._records), asked if stage == "test" else ())
        if records and all(record["error"] for record in records):
            reason = records[0]["error"]
            raise InputError(f"{stage}: all {len(records)} questions failed, the first with: {reason}")
        summary = summarize(records, self._benchmark, self._metric.scorer, self._metric.compute())
        small = small_parameters(pl_module) if stage == "test" else {}  # on all processes, which may hold shards
        # 2. Loggers, and what the table says. Validations show the best constant, which no training beats at first.
        objectives = {f"{stage}/{name}": error for name, error in summary.get("objectives", {}).items()}
        scored = [record for record in records if record["score"] is not None]
        blind = BlindBaselines() if stage == "test" else constant_baseline(scored, self._benchmark, self._metric.scorer)
        constant = _scalars(blind.scores["constant"], "constant") if blind.scores else {}
        pl_module.log_dict(_scalars(summary, stage) | constant | objectives, sync_dist=True)
        if not trainer.is_global_zero:
            return
        missing: dict[str, int] = getattr(data, "missing", {})
        summary["counts"] |= {"missing": sum(missing.values()), "filtered": getattr(data, "filtered", 0)}
        summary["missing_scenes"] = missing
        if stage == "test":
            blind = self._blind_baselines(records, data)
        summary["baselines"] = blind.scores
        # 3. Files. A test is finished when its metrics.json exists.
        if stage == "test":
            assert self.folder is not None
            write_whole(self.folder / PREDICTIONS, json_lines(records))
            remove_rank_files(self.folder)
            ids = [record["id"] for record in records]
            summary |= {"small_parameters": small} if small else {}
            content = {**summary, **self._describe_test(trainer, pl_module), "question_ids": ids}
            write_json(self.folder / METRICS, content)
        # 4. The table.
        source = getattr(data, "source", None)
        of_data = "" if source is None else f" of {type(source).__name__}"
        title = f"{type(pl_module).__name__}, {stage} split{of_data}"
        chosen_by = data.filter.option if hasattr(data, "filter") else ""
        pl_module.print(render(summary, self._benchmark, title=title, chosen_by=chosen_by, remarks=blind.remarks))

    def _blind_baselines(self, records: Iterable[Mapping[str, Any]], data: Any) -> BlindBaselines:
        """Return the blind baselines of a test. Without a `VideoQADataModule`, only the best constant."""
        scored = [record for record in records if record["score"] is not None]
        if scenes := getattr(data, "tested_scenes", ()):
            shown = {record["scene"]: record["frames"] for record in scored if record["frames"]}
            change_poses = wrong_poses(data.perturbation, shown)
            return blind_baselines(scored, scenes, data.source, self._metric.scorer, change_poses)
        return constant_baseline(scored, self._benchmark, self._metric.scorer)

    def _describe_test(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the entries of metrics.json that describe the test."""
        commit, is_clean = git_state()
        data = getattr(trainer, "datamodule", None)
        record = RunRecord.of(self._identity["config"], pl_module, data)
        differing: dict[str, Any] = {}
        found: dict[str, Any] = {"checkpoint": None, "training": None, "training_overlap": None}
        if trainer.ckpt_path:
            run = folder_of_run(trainer.ckpt_path)
            found["training"] = config_of_training(trainer.ckpt_path)
            differing = differences(record, found["training"])
            found["checkpoint"] = str(trainer.ckpt_path)
            if skipped := skipped_scenes(run):
                found["skipped_training_scenes"] = len(skipped)
            found["training_overlap"] = training_overlap(
                run, [scene.name for scene in getattr(data, "tested_scenes", ())]
            )
        if differing:
            rank_zero_info(f"test: differs from the training in {', '.join(differing)}")
        model: Any = getattr(pl_module, "model", None)
        if hasattr(model, "geometry_name"):  # the class that was built, which may differ from the config
            found["geometry"] = model.geometry_name
        return {
            **found,
            **trained_weights(trainer, pl_module),
            "protocol": protocol_record(trainer, self.protocol),
            "config": config_of_command(trainer, pl_module),
            "option_effects": record.declared_by_users,
            "differs_from_training": differing,
            "commit": commit,
            "is_clean": is_clean,
            "versions": versions(),
            "attention": getattr(pl_module, "attention_kernels", None),
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file, and release the lock of the folder."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same after an error, for which Lightning does not call `teardown`."""
        self.teardown(trainer, pl_module, "")


def gather(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of all processes, on each process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return records
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, records)
    return list(chain.from_iterable(parts))


def in_order(records: Iterable[dict[str, Any]], ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the first record of each id, in the order of the given ids. Records of other ids come last."""
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        first.setdefault(record["id"], record)
    return [first[id] for id in dict.fromkeys(chain(ids, first)) if id in first]


def _scalars(result: Mapping[str, Any], stage: str) -> dict[str, float]:
    """Return flat names and scores for the loggers, without groups that have no questions."""
    types = result["per_question_type"]
    scores = {f"{stage}/{kind}": entry["score"] for kind, entry in types.items()}
    scores |= {f"{stage}/{kind}/degrees": entry["degrees"] for kind, entry in types.items() if "degrees" in entry}
    for group in ("acc", "mra", "all"):
        scores |= {f"{stage}/{group}/{mean}": score for mean, score in result[group].items() if score is not None}
    return scores


def training_overlap(run: Path, tested: Sequence[str]) -> dict[str, Any] | None:
    """Return which test scenes were training scenes of a run, by their names. Report them.

    Returns:
        {"training_scenes": number, "test_scenes": number, "shared": [names]}, or None if the training's are not known.
    """
    try:
        trained = (run / TRAIN_SCENES).read_text(encoding="utf-8").splitlines()
    except OSError:  # a training of an earlier version, or a checkpoint without its run
        return None
    shared = sorted(shared_scenes(tested, trained))
    if shared:
        rank_zero_info(
            f"test: {len(shared)} of {len(tested)} scenes are training scenes by their name, first {shared[0]}"
        )
    return {"training_scenes": len(trained), "test_scenes": len(tested), "shared": shared}


# ---- Training progress of the tested weights ------------------------------------------------------------------------


def step_of(pl_module: LightningModule) -> int | None:
    """Return the training step of the weights, or None if they were not trained by `fit`."""
    step: int | None = (getattr(pl_module, "trained", None) or {}).get("step")
    return step


def trained_weights(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return how far the weights are trained.

    Returns:
        "step" of the weights; "run_step", the last step of their run, which is later for the best checkpoint;
        "max_steps" of the run; "training_versions" of its code; "training_attention", the calls of each attention
        kernel in its first step. All are None for weights that were not trained by `fit`.
    """
    weights: dict[str, Any] = getattr(pl_module, "trained", None) or {}
    checkpoint, run = Path(trainer.ckpt_path or ""), weights
    if checkpoint.name == BEST and checkpoint.with_name(LAST).exists():
        run = read_checkpoint(checkpoint.with_name(LAST)).get(TRAINED) or weights
    found = {"step": weights.get("step"), "run_step": run.get("step"), "max_steps": run.get("max_steps")}
    return {**found, "training_versions": run.get("versions"), "training_attention": run.get("attention_kernels")}


def small_parameters(pl_module: LightningModule) -> dict[str, list[list[float]]]:
    """Return all values of each small parameter before and after the training, see `Task.small_parameters`."""
    began: dict[str, list[float]] = getattr(pl_module, "began", {})
    ended = cast(Task, pl_module).small_parameters() if began else {}
    return {name: [began[name], values.flatten().tolist()] for name, values in ended.items() if name in began}


def describe_unfinished(trained: Mapping[str, Any]) -> str | None:
    """Describe in a few words that a training has steps to go. None if it is finished, or not known."""
    step, steps = trained.get("run_step"), trained.get("max_steps")
    if step is None or steps is None or step >= steps:
        return None
    return f"unfinished weights: their training has made {step} of {steps} steps"


# ---- The evaluation protocol, and the test's departures from it -----------------------------------------------------


def protocol_record(trainer: Trainer, name: str | None) -> dict[str, Any]:
    """Return the name of a test's protocol, and the options in which the test departs from it.

    Args:
        trainer: The Trainer of the test.
        name: Name of `protocol_<name>.yaml`, in the current folder or among the package's configs. None is no protocol.

    Returns:
        {"name", "departures": {option: {"protocol", "run"}}}. "departures" is left out if the protocol's file or the
        command line is not available.
    """
    saved = find_saved_config(trainer)
    if name is None or saved is None:
        return {"name": name}
    try:
        stated = read_settings(find_config(f"{PROTOCOLS}{name}.yaml"))
    except InputError:  # the protocol's file is on another machine
        return {"name": name}
    found = departures(stated, saved.content())
    return {"name": name, "departures": found | _time_of_encoding(trainer.lightning_module, stated)}


def departures(stated: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options in which a run's settings differ from a protocol. Class paths may lack their module.

    Args:
        stated: The protocol.
        run: The settings of the run.

    Returns:
        {option: {"protocol", "run"}}. For a part that the protocol sets to null, "run" holds all of the part's options.
    """
    ours = flatten(run)
    found = {option: {"protocol": value, "run": option_of(ours, option)} for option, value in flatten(stated).items()}
    return {option: each for option, each in found.items() if not is_same_value(option, *each.values())}


def _time_of_encoding(task: Any, stated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the time index as a departure if the camera encoding sets it, whatever the protocol says."""
    model: Any = getattr(task, "model", None)
    encoding = getattr(model, "camera_encoding", None)
    time_index = stated.get("model", {}).get("init_args", {}).get("time_index")
    if encoding is None or time_index is None or not (encoding.time_index or encoding.requires_constant_time):
        return {}
    return {"model.time_index": {"protocol": time_index, "run": to_config(model.time_index)}}
