"""The main task: train a `SpatialVLM` on videos with questions, and answer them.

An `Algorithm` defines how the model learns from a batch: from the dataset's answers, or from rewards of sampled
answers.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.attention_kernels import count_kernels, describe_kernels
from zoo.backbones.base import Preprocessor
from zoo.cameras.scene_geometry import PatchCameras
from zoo.configuration import Configurable, OptionEffects
from zoo.errors import SCENE_FAULTS, InputError, add_file_to_errors, describe_fault, raised_at
from zoo.generation import Sampling, answer_prompts, check_penalty, eval_mode, greedy
from zoo.metrics import with_scores
from zoo.model import SpatialVLM
from zoo.model_spec import ModelSpec
from zoo.objectives.base import BaseTeacher, Decoded, Objective, check_teacher
from zoo.objectives.camera_prediction import CameraPrediction
from zoo.precision import answer_precision
from zoo.scene_encoding import EncodedScene, encode_vision
from zoo.seed import seed_of
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import TeacherTargets
from zoo.tasks.base import LearningRates, Part, Task, WarmupCosine, freeze, fused_adamw
from zoo.weights.checkpoint import TRAINING_ALONE, fingerprints, frozen_weights, read_start
from zoo.weights.load import read_weights


class StepLoss(NamedTuple):
    """What a batch contributes to an optimizer step.

    Attributes:
        loss: The batch's share of the step's loss.
        logged: Values for the loggers by name. Empty for a batch that only keeps this process in step with the others.
    """

    loss: Float[Tensor, ""]
    logged: Mapping[str, Any] = {}


class Algorithm(Configurable, ABC):
    """Computes the loss of a training batch. To add one, implement `step_loss` in a file of this folder.

    The task calls the algorithm, and the algorithm calls the model. It never calls the task.

    Attributes:
        asks_questions: Whether a training batch has prompts, as in a test, instead of answers.
        updates: Optimizer steps per batch.
        needs_start: Whether a resumed training needs the weights that it originally started from.
        requires_types: Whether questions without a type are useless for training.
    """

    asks_questions: bool = False
    updates: int = 1
    needs_start: bool = False
    requires_types: bool = False

    def begin(self, task: VideoQATask) -> None:
        """Take what is needed of the task's settings, before a checkpoint is restored."""

    def prepare(self, model: SpatialVLM, batch: Batch, evaluate: Callable[[Callable[[], Any]], Any]) -> None:
        """Prepare a batch before its first update, outside of the strategy's forward pass.

        Args:
            model: The model that is trained.
            batch: A batch whose scenes can be used.
            evaluate: Calls a function on the model as in a validation, see `VideoQATask.call_as_in_validation`.
        """

    def objective_weight(self, model: SpatialVLM, batch: Batch) -> float:
        """Return the factor of the objectives' mean over a batch: its share of the step's questions, or 1.

        It is zero for a batch that only keeps this process in step with the others.
        """
        if not sum(batch.num_answers):
            return 0.0
        return batch.weight if model.average == "questions" else 1.0

    def averages_over_step(self, model: SpatialVLM) -> bool:
        """Return whether `Batch.weight` turns the loss into its share of the mean over a step's answers."""
        return model.average == "questions"

    @abstractmethod
    def step_loss(
        self, model: SpatialVLM, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None
    ) -> StepLoss:
        """Return the batch's share of the optimizer step's loss. `teacher_targets`: see `SpatialVLM.forward`."""

    def samples(self) -> tuple[Sequence[str], list[list[str]]]:
        """Return a table of texts for the loggers: columns and rows. No rows means no table."""
        return (), []


class SupervisedFineTuning(Algorithm):
    """Learn from the dataset's answers and from the other objectives."""

    def step_loss(
        self, model: SpatialVLM, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None
    ) -> StepLoss:
        """Return the weighted sum of the objectives, and each objective's loss for the loggers."""
        losses = model(batch, teacher_targets)
        if not sum(batch.num_answers):
            return StepLoss(losses["loss"])  # zero
        return StepLoss(self.objective_weight(model, batch) * losses["loss"], losses)


# ---- Stopping an evaluation whose first scenes all fail with the same error -----------------------------------------

SCENES = 3  # errors in fewer scenes are only recorded with the scene


class FirstScenes:
    """Stops an evaluation if the first scenes that reach the model all fail with the same error.

    Such an error comes from the model, the machine or the command, and would score all other scenes 0 as well. Each
    process checks its own scenes. Scenes that can't be read never reach the model and do not count.
    """

    def __init__(self) -> None:
        self._failed: dict[str, str] | None = {}  # error of each scene, or None once a scene was answered

    def check(self, records: Sequence[Mapping[str, Any]], fault: Exception | None) -> None:
        """Check the records of a batch.

        Args:
            records: Records of the questions that the model was asked.
            fault: The exception that ended the batch, if any.

        Raises:
            InputError: The first scenes all failed with the same error: an InputError, an error in the user's own code,
                or an error of single answers.
            RuntimeError: The first scenes all failed with the same other exception.
        """
        if self._failed is None or not records:
            return
        if not all(record["error"] for record in records):
            self._failed = None
            return
        self._failed.update((record["scene"], record["error"]) for record in records)
        # numbers in the messages differ between scenes: sizes, lengths, free memory, and code lines
        if len(self._failed) >= SCENES and len({re.sub(r"\d+|\(/.*:", "", e) for e in self._failed.values()}) == 1:
            self._failed = {}
            text = f"the first {SCENES} scenes all failed alike, so the run stops: {records[0]['error']}"
            if fault is None or isinstance(fault, InputError) or raised_at(fault):
                raise InputError(text) from fault
            raise RuntimeError(text) from fault


# ---- Objectives in an evaluation: errors of their predictions, and cameras for plots --------------------------------


def prediction_errors(model: SpatialVLM, batch: Batch, scenes: Sequence[EncodedScene]) -> list[dict[str, Any]]:
    """Return each question's addition to its record: the scene's prediction errors as `objectives`, if any.

    Scenes without targets cost nothing.
    """
    errors = {
        number: {
            f"{type(objective).__name__}/{name}": float(error)
            for objective in model.active_objectives
            for name, error in objective.errors(decoded).items()
        }
        for number, decoded in _decode_scenes(model, batch, scenes)
    }
    found: list[dict[str, Any]] = [{} for _ in batch.records]
    for prompt in batch.prompts:
        if own := errors.get(prompt.scenes[0]):
            for row in prompt.rows:
                found[row] = {"objectives": own}
    return found


@torch.no_grad()
def predicted_cameras(model: SpatialVLM, batch: Batch) -> dict[str, tuple[PatchCameras, Float[Tensor, "t 4 4"]]]:
    """Return true and predicted cameras by scene, see `CameraPrediction.predicted_cameras`.

    Returns an empty dict for a model without `CameraPrediction`.
    """
    objective = next((each for each in model.active_objectives if isinstance(each, CameraPrediction)), None)
    if objective is None or "reference" not in objective.anchors or not batch.records:
        return {}
    scenes = model.encode_scenes(batch)
    names = {prompt.scenes[0]: batch.records[prompt.rows[0]]["scene"] for prompt in batch.prompts}
    drawn = {
        names[number]: objective.predicted_cameras(decoded)
        for number, decoded in _decode_scenes(model, batch, scenes)
        if scenes[number].target_cameras is not None
    }
    return {name: cameras for name, cameras in drawn.items() if cameras[0].has_camera.any()}


@torch.no_grad()
def predicted_pictures(model: SpatialVLM, batch: Batch) -> dict[str, dict[str, Float[Tensor, "v 3 H W"]]]:
    """Return what objectives have to look at, see `Objective.pictures`, by objective and scene."""
    drawing = [each for each in model.active_objectives if type(each).pictures is not Objective.pictures]
    if not drawing or not batch.records:
        return {}
    names = {prompt.scenes[0]: batch.records[prompt.rows[0]]["scene"] for prompt in batch.prompts}
    drawn = {
        f"{type(objective).__name__}/{names[number]}": objective.pictures(decoded)
        for number, decoded in _decode_scenes(model, batch, model.encode_scenes(batch))
        for objective in drawing
    }
    return {name: columns for name, columns in drawn.items() if columns}


@torch.no_grad()
def _decode_scenes(model: SpatialVLM, batch: Batch, scenes: Sequence[EncodedScene]) -> Iterator[tuple[int, Decoded]]:
    """Yield each scene's number and the decoder's output for its prefix, if some objective has errors for it.

    An objective has errors for scenes with one of its targets, or for all scenes if it has no targets.
    """
    measuring = [each for each in model.active_objectives if type(each).errors is not Objective.errors]
    prefixes = {prompt.scenes[0]: prompt.prefix for prompt in reversed(batch.prompts)}
    for number in sorted(prefixes):
        known = {name for name in ("cameras", "depth") if getattr(scenes[number], f"target_{name}") is not None}
        if any(not each.targets or known.intersection(each.targets) for each in measuring):
            yield number, model.hidden_states(scenes, prefixes[number])


# ---- Training and evaluation on videos with questions ---------------------------------------------------------------

T = TypeVar("T")
FITTED_QUESTIONS = 16  # training questions, at least, to whose 2D tokens a fusion is fitted
MAX_ATTEMPTS = 2  # attempts to answer the questions of a scene
DATA = "data"  # key in a checkpoint: the model's `data_config`
PUBLISHED = LearningRates()  # Spatial-MLLM's recipe


def adamw(parameters: Any) -> Optimizer:
    """Return AdamW with the published recipe's weight decay. Biases are in a group without weight decay."""
    return fused_adamw(parameters, weight_decay=0.1)


class VideoQATask(Task):
    """Train a `SpatialVLM` on scenes and their questions, and answer them.

    Args:
        learning_rates: One per part. null freezes the part.
        optimizer: Builds the optimizer from the parameter groups.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps. It is stepped once per
            optimizer step.
        gradient_checkpointing: Saves memory in the decoder and the vision encoder at the cost of time.
        compile_decoder: Compiles the decoder's layers for training (`torch.compile`). The first steps take minutes.
            Results are equal up to rounding.
        max_new_tokens: Maximum length of an answer in tokens.
        repetition_penalty: Penalty for tokens that occur in the prompt or in the answer so far, as in transformers. 1
            is no penalty. Released generation configs use 1.05.
        sampling: How tokens are drawn in evaluations, as in some published evaluations. null takes the most likely
            token. The draws for a question depend only on the run's seed and the question's id.
        allow_untrained: Answer questions even with random weights.
        algorithm: How the model learns from a batch. null is `SupervisedFineTuning`. `GRPO` is another choice.
        teacher: A geometry encoder that objectives such as `Distillation` learn from in training.
        initial_weights: A checkpoint whose weights a new training starts from. It may belong to this model, to one
            without some of its parts, or to one with other objectives. `fit --ckpt_path` of a run with another
            algorithm sets it.
        initial_parts: Names of parts, as in `learning_rates`, that alone are read from `initial_weights`. The other
            parts may be of another model. For instance, `[vision]` reads the vision encoder for a larger decoder. null
            reads all.
        parts: Arguments of `SpatialVLM`. With `defer_weights`, released weights are read when a run starts: onto its
            device, or with `FSDP2Strategy` into the shards of each process.
    """

    not_configuration = SpatialVLM.not_configuration
    option_effects = OptionEffects(
        nothing=(
            *("model.gradient_checkpointing", "model.compile_decoder", "model.allow_untrained", "model.defer_weights"),
            *("model.backbone.attn_implementation", "model.geometry_cache.max_size_gb"),
        ),
        training=(
            *Task.option_effects.training,
            *("model.average", "model.lora.dropout", "model.geometry_cache.folder"),
            *("model.algorithm", "model.teacher", "model.initial_weights", "model.initial_parts"),
        ),
        answers=("model.max_new_tokens", "model.repetition_penalty", "model.sampling"),
        both=(
            *("model.backbone", "model.geometry", "model.geometry_cache", "model.fusion", "model.view_mixer"),
            *("model.camera_encoding", "model.camera_source", "model.merged_camera", "model.time_index"),
            *("model.text_after_vision", "model.lora", "model.output_gate", "model.objectives"),
        ),
    )

    def __init__(
        self,
        *,
        learning_rates: LearningRates = PUBLISHED,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        gradient_checkpointing: bool = False,
        compile_decoder: bool = False,
        max_new_tokens: int = 32,
        repetition_penalty: float = 1.0,
        sampling: Sampling | None = None,
        allow_untrained: bool = False,
        algorithm: Algorithm | None = None,
        teacher: BaseTeacher | None = None,
        initial_weights: str | None = None,
        initial_parts: list[Part] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(learning_rates, optimizer, scheduler)
        if parts.get("geometry_cache") is not None and learning_rates.geometry:
            raise InputError("--model.learning_rates.geometry trains what --model.geometry_cache keeps: leave one out")
        if parts.get("lora") is not None and "decoder" in learning_rates.frozen():
            raise InputError("--model.lora trains the decoder, but --model.learning_rates.decoder freezes it")
        if initial_parts is not None and initial_weights is None:
            raise InputError(f"--model.initial_parts {initial_parts} needs --model.initial_weights FILE")
        check_penalty(repetition_penalty)
        self.model = SpatialVLM(**parts)
        self.max_new_tokens, self.repetition_penalty, self.sampling = max_new_tokens, repetition_penalty, sampling
        self.algorithm = algorithm or SupervisedFineTuning()
        self.initial_weights, self.initial_parts = initial_weights, initial_parts
        self.teacher = teacher
        if teacher is not None:
            learned = (each.teacher_target for each in self.model.active_objectives)
            teacher.targets = frozenset(target for target in learned if target is not None)
        self.training_files: dict[str, dict[str, Any]] = {}  # as `frozen_weights`, for files that only training reads
        names = [name for name, each in self.model.objectives.items() if each.changes_training_prompts]
        if self.algorithm.asks_questions and names:
            raise InputError(
                f"--model.objectives: {' and '.join(names)} show a training other tokens than a test, and answers are "
                "sampled as in a test: leave MaskedViews out, and set token to always or none"
            )
        self._teacher_targets: list[TeacherTargets | None] | None = None  # of the current training batch
        self.can_answer = self.model.is_pretrained or allow_untrained
        self.first_scenes = FirstScenes()
        unreachable = self.model.is_unreachable
        learning = dict.fromkeys(
            name
            for name, each in self.model.objectives.items()
            for parameter, _ in each.named_parameters()
            if not unreachable(f"objectives.{name}.{parameter}")
        )
        if "objective" in learning_rates.frozen() and learning:
            rank_zero_warn(
                f"--model.learning_rates.objective freezes {' and '.join(learning)}, whose heads and tokens stay "
                "random unless a checkpoint has trained them"
            )
        freeze(self, learning_rates, self.part_of, lambda name: unreachable(name.removeprefix("model.")))
        self.frozen_weights = frozen_weights(self.model)  # computed now, because files may be replaced during training
        if gradient_checkpointing:
            self.model.backbone.enable_gradient_checkpointing()
        self.is_compiled = compile_decoder or self.model.backbone.attn_implementation == "flex_attention"
        if compile_decoder:
            self.model.backbone.compile_layers()
        self.train()

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        spec = self.model.model_spec(training=training)
        if not training:
            return spec
        asks = self.algorithm.asks_questions
        spec = replace(spec, asks_in_training=asks, typed_questions=self.algorithm.requires_types)
        return spec if self.teacher is None else self.teacher.added_to(spec)

    @property
    def preprocessor(self) -> Preprocessor:
        """The backbone's tokenizer and prompts."""
        return self.model.backbone.preprocessor

    def part_of(self, name: str) -> str:
        part, rates = self.model.part_of(name.removeprefix("model.")), self.learning_rates
        if part != "connector" or not name.startswith("model.backbone."):
            return part
        own = rates.deepstack_merger if self.model.backbone.serves_deepstack(name) else None
        return own or rates.vision_merger

    def restored_by_files(self, name: str) -> bool:
        return self.model.restored_by_files(name.removeprefix("model."))

    def small_parameters(self) -> dict[str, Tensor]:
        return self.model.small_parameters()

    @property
    def required_files(self) -> dict[str, dict[str, Any]]:
        return self.frozen_weights | self.training_files

    # ---- a batch of scenes --------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted sum of the objectives as `loss`, and each objective by its class name.

        Raises:
            InputError: A scene or a question of the batch can't be used. Training must not continue without it.
        """
        self.check(batch)
        return self.model(batch, self.compute_teacher_targets(batch))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the objectives, see `losses`."""
        return self.losses(batch)["loss"]

    def compute_teacher_targets(self, batch: Batch) -> list[TeacherTargets | None] | None:
        """Return the teacher's outputs for each scene of a training batch. None without a teacher."""
        return None if self.teacher is None else self.teacher(batch.scenes, self.model.backbone.patch_size)

    @torch.no_grad()
    def predict_batch(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one prediction record per question, including failed scenes (see `datamodules.collate`).

        A prefix shared by a scene's questions is decoded once. A record without an answer has the reason in `error`.
        The scene's errors of objectives' predictions are in `objectives`.
        """
        if not batch.records:
            return batch.failed
        seeds = None if self.sampling is None else [seed_of(record["id"]) for record in batch.records]
        with answer_precision(self.device, self.model.precision):
            scenes = self.model.encode_scenes(batch)
            choose, settings = self.sampling or greedy, (self.max_new_tokens, self.repetition_penalty)
            replies = answer_prompts(self.model, scenes, batch.prompts, *settings, choose, seeds)
            measured = prediction_errors(self.model, batch, scenes)
        texts = self.preprocessor.decode([reply.ids for reply in replies])
        answered = [
            {**record, "prediction": text, "error": reply.error, **more}
            for record, reply, text, more in zip(batch.records, replies, texts, measured, strict=True)
        ]
        return answered + batch.failed

    def predict_batch_with_retry(self, batch: Batch) -> list[dict[str, Any]]:
        """Call `predict_batch`, retry once, then record the error for every question of the scene.

        Raises:
            InputError: The first scenes all failed with the same error, see `FirstScenes`.
            RuntimeError: The same, with an error that is not the user's.
        """
        fault: Exception | None = None
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                records = self.predict_batch(batch)
                break
            # a failed GPU can't answer anymore; the run can be continued after a restart
            except torch.AcceleratorError:
                raise
            except SCENE_FAULTS as error:
                fault, reason = error, describe_fault(error)
            torch.cuda.empty_cache()  # by now the failed pass has released its tensors
        else:
            records = [{**record, "prediction": "", "error": reason} for record in batch.records] + batch.failed
        self.first_scenes.check(records[: len(batch.records)], fault)
        return records

    # ---- Lightning's steps ------------------------------------------------------------------------------------------

    @property
    def averages_over_step(self) -> bool:  # type: ignore[override]
        return self.algorithm.averages_over_step(self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the batch's draws, ask the teacher, and let the algorithm prepare the batch. Updates then share both."""
        super().on_train_batch_start(batch, batch_idx)
        self.check(batch)
        self._teacher_targets = self.compute_teacher_targets(batch)
        self.algorithm.prepare(self.model, batch, self.call_as_in_validation)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the algorithm's loss, and log it with the learning rates."""
        for group in self.trainer.optimizers[0].param_groups:
            # a CPU tensor, because Lightning would copy a number to the GPU and wait for it
            self.log(f"lr/{group['name']}", torch.tensor(group["lr"]), batch_size=1)
        with self.counted_attention(batch):
            loss, logged = self.algorithm.step_loss(self.model, batch, self._teacher_targets)
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=len(batch.records))
        return loss

    @contextmanager
    def counted_attention(self, batch: Batch) -> Iterator[None]:
        """Count the attention kernels of a run's first step, for its log and its results."""
        if self.attention_kernels is not None or self.is_compiled or not batch.scenes:
            yield
            return
        with count_kernels() as found:
            yield
        self.attention_kernels = dict(found)
        rank_zero_info(f"attention in the first step: {describe_kernels(found)}")

    def on_train_batch_end(self, *outputs: Any) -> None:
        """See `Task`. The teacher's outputs are released, because they take as much memory as hidden states."""
        super().on_train_batch_end(*outputs)
        self._teacher_targets = None

    def call_as_in_validation(self, compute: Callable[[], T]) -> T:
        """Call a function on the model between two training steps, in eval mode and the Trainer's precision.

        A strategy that shards the model gathers its weights for the call.
        """
        strategy = self.trainer.strategy
        strategy.on_validation_start()
        try:
            with eval_mode(self), self.trainer.precision_plugin.forward_context():
                return self.call(compute)
        finally:
            strategy.on_validation_end()

    def call(self, compute: Callable[[], T]) -> T:
        """Call a function on the model. Sharding strategies register this method as a step."""
        return compute()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights `updates` times, each time with the gradient at the new weights."""
        for _ in range(self.algorithm.updates):
            super().optimizer_step(*args, **kwargs)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return prediction records with their scores."""
        with self.counted_attention(batch):
            answered = self.predict_batch_with_retry(batch)
        return with_scores(answered, self.data_settings.benchmark, self.scorer)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return prediction records without scores. A scene that can't be read is an error."""
        self.check(batch)
        return with_scores(self.predict_batch(batch), self.data_settings.benchmark, self.scorer)

    def configure_model(self) -> None:
        """Read weights that were left unread, and the algorithm's initial weights, before a checkpoint is restored."""
        read_weights(self)
        if self._trainer is None or self._trainer.state.fn != "fit":
            return
        check_teacher(self.model.active_objectives, None if self.teacher is None else self.teacher.given)
        read: dict[str, tuple[str, tuple[Path, ...]]] = {}
        if self.teacher is not None:
            self.teacher.match_layers(self.model.objectives.values())
            read |= self.teacher.sources
        if self.algorithm.needs_start:
            self._read_start()
            start = self.initial_weights
            read["reference"] = ("without --model.initial_weights", ()) if start is None else (start, (Path(start),))
        # computed now, because files may be replaced before this training is resumed
        self.training_files = fingerprints(read)
        self.algorithm.begin(self)

    def on_fit_start(self) -> None:
        """Read the initial weights of a new training. A resumed training has the checkpoint's weights by now."""
        if self.trainer.ckpt_path is None and not self.algorithm.needs_start:
            self._read_start()

    def _read_start(self) -> None:
        if self.initial_weights is None:
            return
        checkpoint, differences = read_start(self, self.initial_weights, self.initial_parts)
        with add_file_to_errors(self.initial_weights):
            self.trainer.strategy.load_model_state_dict(checkpoint)
        for difference in differences:
            rank_zero_info(difference)

    def setup(self, stage: str) -> None:
        """Reject precisions that would round cameras and RoPE, and store the run's precision for answering."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise InputError(
                f"--trainer.precision {self.trainer.precision} would round the cameras' and RoPE's numbers: take "
                "bf16-mixed, or keep the frozen weights in bfloat16 with --model.backbone.dtype bfloat16"
            )
        self.model.precision = self.trainer.precision

    def _reject_untrained(self) -> None:
        if not self.can_answer:
            raise InputError(
                "this model has random weights: train it (python main.py fit --config …), give --ckpt_path, "
                "or set --model.allow_untrained true to get random answers"
            )

    on_test_start = on_predict_start = _reject_untrained

    def on_train_start(self) -> None:
        """Allow the trained model to answer, and let `SpatialVLM.answer` read videos as the training does."""
        super().on_train_start()
        self.can_answer = True
        model = self.model
        if model.fusion is not None and model.fusion.requires_tokens:
            model.fusion.fit_to_tokens(self.call_as_in_validation(self._second_moment))
        if self.data_settings.config:
            model.data_config = {"init_args": dict(self.data_settings.config)}
        model.loaded_names |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def _second_moment(self) -> Float[Tensor, "D D"]:
        """Return the sum of x x^T over the 2D tokens x of the first training questions, over all processes.

        Whole optimizer steps are read, and a scene counts once per question, as in the training. So the sum does not
        depend on the number of processes.
        """
        width, strategy, seen = self.model.backbone.hidden_size, self.trainer.strategy, 0
        total = torch.zeros(width, width, dtype=torch.float64)
        for number, batch in enumerate(self.trainer.train_dataloader or (), 1):
            scenes = encode_vision(self.model.backbone, strategy.batch_to_device(batch))
            for scene, answers in zip(scenes, batch.num_answers, strict=False):  # none of a batch of text alone
                tokens = scene.visual.tokens.flatten(0, 1).double().cpu()
                total += answers * (tokens.mT @ tokens)
            if number % self.trainer.accumulate_grad_batches == 0:
                seen += FITTED_QUESTIONS if batch.step is None else batch.step.num_answers
            if seen >= FITTED_QUESTIONS:
                break
        return strategy.reduce(total.to(self.device), reduce_op="sum")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the training reads videos, and which tensors only training uses."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[DATA] = self.model.data_config
        checkpoint[TRAINING_ALONE] = sorted(
            f"model.objectives.{name}.{tensor}"
            for name, each in self.model.objectives.items()
            for tensor in each.state_dict()
            if not (tensor == "token" and each.has_token(training=False))
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Allow a trained checkpoint to answer, and read videos as its training did."""
        super().on_load_checkpoint(checkpoint)
        self.can_answer = self.can_answer or checkpoint["global_step"] > 0
        self.model.data_config = checkpoint.get(DATA) or self.model.data_config

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """See `Task`. Loaded tensors are saved again, even if they are frozen."""
        result = super().load_state_dict(state_dict, strict, assign)
        self.model.loaded_names |= {name.removeprefix("model.") for name in state_dict}
        return result
