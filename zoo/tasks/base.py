"""The base class of tasks: learning rates by part, optimizer groups, and checkpoints of trained weights only."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from zoo.configuration import Configurable, OptionEffects, check_class_paths, from_config, to_config, with_overrides
from zoo.errors import InputError, add_file_to_errors
from zoo.model_spec import DataSettings, ModelSpec
from zoo.precision import to_float32
from zoo.seed import seed_draws
from zoo.sequences.batch import Batch, OptimizerStep
from zoo.versions import versions
from zoo.weights.checkpoint import CONFIG_KEY, FROZEN, RUN, check_frozen, check_loaded, read_checkpoint, saved_names

Part = Literal["decoder", "connector", "vision", "geometry", "encoding", "objective"]  # of `LearningRates`


@dataclass
class LearningRates:
    """One learning rate per part. null or 0 freezes the part, which then stays in eval mode.

    The defaults are Spatial-MLLM's published recipe. As in that recipe, the vision encoder's last projection
    (`visual.merger`) belongs to the connector and is trained although the vision encoder is frozen. `vision_merger`
    changes that.

    Args:
        decoder: The language model and its embeddings.
        connector: Everything that turns vision or geometry into the decoder's tokens.
        vision: The backbone's vision encoder.
        geometry: The geometry encoder.
        encoding: Learned parameters of a camera encoding: slopes, a scale, extra channels. They are trained from
            scratch and would hardly move at a rate for pretrained weights. The default is a common rate for LoRA.
        objective: Heads and learned tokens of objectives, which are also trained from scratch.
        vision_merger: The part that the vision encoder's projections to the decoder's width belong to, `connector` or
            `vision`. VG-LLM and SpatialStack freeze them with the vision encoder.
        deepstack_merger: The same for the projections of DeepStack features. null uses `vision_merger`. GeoVR freezes
            these projections alone.
    """

    decoder: float | None = 7e-6
    connector: float | None = 2e-5
    vision: float | None = None
    geometry: float | None = None
    encoding: float | None = 2e-4
    objective: float | None = 2e-4
    vision_merger: Literal["connector", "vision"] = "connector"
    deepstack_merger: Literal["connector", "vision"] | None = None

    def frozen(self) -> set[str]:
        """Return the parts that are not trained."""
        return {part for part, rate in vars(self).items() if not rate}


def freeze(
    module: nn.Module,
    rates: LearningRates,
    part_of: Callable[[str], str],
    is_unreachable: Callable[[str], bool] = lambda name: False,
) -> None:
    """Freeze every part without a learning rate, and convert trained parameters to float32. In place.

    bfloat16 has eight significant bits, so most updates of a fine-tuning learning rate would be rounded away.

    Args:
        module: The whole model.
        rates: One learning rate per part.
        part_of: Returns the part that a parameter's name belongs to.
        is_unreachable: Returns whether no loss has a gradient for a parameter's name. DDP would wait for such a
            gradient.
    """
    frozen = rates.frozen()
    for name, parameter in module.named_parameters():
        if part_of(name) in frozen or is_unreachable(name):
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            parameter.data = to_float32(parameter.data)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rates: LearningRates, part_of: Callable[[str], str]
) -> list[dict[str, object]]:
    """Return optimizer groups of the trainable parameters: one per part, with a separate group for biases.

    Biases are not decayed. Norm weights are, as in the official trainer (Hugging Face's rule for RMSNorm). Learned
    parameters of an encoding are not decayed either, because a scale of 1 or a slope need not be small.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name.endswith("bias")), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": getattr(rates, part),
            "name": part + ("/bias" if is_bias else ""),
            **({"weight_decay": 0.0} if is_bias or part == "encoding" else {}),
        }
        for (part, is_bias), parameters in groups.items()
    ]


def fused_adamw(parameters: Any, weight_decay: float) -> Optimizer:
    """Return AdamW, fused on a GPU. Unfused, each step makes temporary copies as large as the parameters."""
    optimizer = AdamW(parameters, weight_decay=weight_decay, fused=torch.cuda.is_available() or None)
    # Lightning refuses to clip gradients if a fused optimizer could still have to unscale them. Only float16 is scaled,
    # and torch's GradScaler then unscales before the clipping, as without fusion.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


class WarmupCosine(LambdaLR):
    """Linear warm-up from zero, then half a cosine down to zero (Loshchilov & Hutter 2017, without restarts).

    A run that is resumed with another number of steps continues at the rate that the new schedule has at that step, and
    prints this.

    Args:
        optimizer: The optimizer. The schedule scales the learning rate of each group.
        total_steps: Optimizer steps of the whole run.
        warmup_fraction: The fraction of steps that warms up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.03):
        self.total_steps = total_steps
        warmup_steps = math.ceil(total_steps * warmup_fraction)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        super().__init__(optimizer, factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step. Rates follow this schedule, not the last rates of the checkpoint."""
        total_steps, former = self.total_steps, state_dict.get("total_steps", self.total_steps)
        super().load_state_dict({**state_dict, "total_steps": total_steps})
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if total_steps != former:
            share = f"{self.lr_lambdas[0](self.last_epoch):.0%} of their peak"
            rank_zero_info(f"the schedule has {total_steps} steps, it had {former}: learning rates go on at {share}")


# ---- Freezing, per-part learning rates, and checkpoints of trained weights only -------------------------------------

TRAINED = "trained"  # key in a checkpoint: number of steps and code versions of the training
BEGAN = "began"  # key in a checkpoint: values of the small parameters before the training


class Task(Configurable, LightningModule):
    """A LightningModule that trains the parts with a learning rate and saves only what no file can restore.

    A 3B model whose decoder is trained by low-rank adapters leaves checkpoints of megabytes. Released frozen weights
    are read from their files again, so a resumed run continues exactly as if it had not stopped.

    Args:
        learning_rates: One per part. null freezes the part.
        optimizer: Builds the optimizer from the parameter groups.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps. It is stepped once per
            optimizer step.

    Attributes:
        data_settings: Settings of the run's data, which the DataModule sets in its `setup`.
        scorer: Name of the benchmark's scorer for validation and test. None is the benchmark's default.
        option_effects: What the task's options change: a training, answers, both or nothing.
        answers_questions: Whether validation and test steps return prediction records.
        frozen_weights: By part, path and fingerprints of the files that frozen weights were read from.
        averages_over_step: Whether `Batch.weight` turns a batch's loss into its share of the mean over an optimizer
            step's answers.
        trained: How far the weights are trained: the "step", and for a known fit its "max_steps" and the "versions" of
            its code. None before a fit.
        began: The values of the `small_parameters` before the training. Empty before a fit.
        run: What the application wants to have in each checkpoint, as plain values.
    """

    data_settings = DataSettings()
    scorer: str | None = None
    option_effects = OptionEffects(training=("model.learning_rates", "model.optimizer", "model.scheduler"))
    strict_loading = False  # lets load_state_dict decide which tensors may be absent
    answers_questions: bool = True
    averages_over_step: bool = True

    def __init__(
        self,
        learning_rates: LearningRates,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
    ) -> None:
        super().__init__()
        self.learning_rates, self.optimizer, self.scheduler = learning_rates, optimizer, scheduler
        self.frozen_weights: dict[str, dict[str, Any]] = {}
        self.trained: dict[str, Any] | None = None
        self.attention_kernels: dict[str, int] | None = None  # calls of each in the run's first forward pass
        self.began: dict[str, list[float]] = {}
        self.run: dict[str, Any] | None = None
        self._step: OptimizerStep | None = None
        self._failed_answers = 0  # in this process, so far in this optimizer step

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        """Return what the model needs from the data, for training or evaluation."""
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        """Raise an InputError if a scene of a batch can't be used, unless the step leaves such scenes out."""
        if batch.failed and not (batch.step is not None and batch.step.skips_failed):
            raise InputError(batch.failed[0]["error"])

    def part_of(self, name: str) -> str:
        """Return the field of `LearningRates` that applies to the parameter of this name."""
        raise NotImplementedError

    def restored_by_files(self, name: str) -> bool:
        """Return whether released files can restore the frozen parameter or buffer of this name."""
        return False

    def train(self, mode: bool = True) -> Task:
        """Set training mode as in PyTorch, but keep parts without a learning rate in eval mode."""
        super().train(mode)
        parts: dict[str, set[str]] = {}  # for each module, the parts that its parameters belong to
        for name, _ in self.named_parameters(remove_duplicate=False):
            part, place = self.part_of(name), name.rpartition(".")[0]
            while place:  # excludes the task itself, whose eval() would call this method
                parts.setdefault(place, set()).add(part)
                place = place.rpartition(".")[0]
        frozen = self.learning_rates.frozen()
        for place, own in parts.items():
            if own <= frozen:
                self.get_submodule(place).eval()
        return self

    def small_parameters(self) -> dict[str, Tensor]:
        """Return trained parameters of few numbers by name, such as gates. They are logged, and reports show them."""
        return {}

    def on_train_start(self) -> None:
        """Note where the small parameters begin. A resumed training has noted it before."""
        if self.trainer.ckpt_path is None:
            self.began = {name: values.flatten().tolist() for name, values in self.small_parameters().items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and everything else that a training step draws, see `seed_draws`.

        Each process has its own seed.
        """
        seed_draws(self.global_rank, self.current_epoch, batch_idx)
        is_first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._step = getattr(batch, "step", None)
        self._failed_answers = getattr(batch, "failed_answers", 0) + (0 if is_first else self._failed_answers)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave failed answers of all processes out of the mean of a step.

        `Batch.weight` counts them as planned answers, so the gradients are rescaled here.
        """
        if self._step is None or not (self._step.skips_failed and self.averages_over_step):
            return
        failed, planned = self._failed_answers, self._step.num_answers
        if self.trainer.world_size > 1:  # the host waits for the GPU once per step
            counted = torch.tensor(failed, device=self.device)
            failed = int(self.trainer.strategy.reduce(counted, reduce_op="sum"))
        if 0 < failed < planned:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(planned / (planned - failed))

    def configure_optimizers(self) -> Any:
        """Build the optimizer with one group per part and separate groups for biases, and the scheduler.

        Raises:
            InputError: The fit has no fixed number of steps.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise InputError(
                "--trainer.max_epochs -1 and --trainer.max_steps -1: the schedule of the learning rates needs a number "
                "of steps, give one of them; --trainer.max_time may end the fit before"
            )
        groups = parameter_groups(self.named_parameters(), self.learning_rates, self.part_of)
        optimizer = self.optimizer(groups)
        scheduler = self.scheduler(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def required_files(self) -> dict[str, dict[str, Any]]:
        """Path and fingerprints of the files that a checkpoint relies on, by name of the part."""
        return self.frozen_weights

    @cached_property
    def configuration(self) -> Any:
        """The task's configuration. None, with a warning, if one of its parts has none."""
        try:
            return to_config(self)
        except InputError as error:
            rank_zero_warn(f"checkpoints can only be loaded by passing the same parts: {error}")
            return None

    def on_train_batch_end(self, *_: Any) -> None:
        """Record how far the weights are trained, and log the small parameters."""
        self._note_progress()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step % every == 0:
            for name, values in self.small_parameters().items():
                if values.numel() == 1:
                    self.log(f"small/{name}", values.squeeze(), batch_size=1)
                else:
                    shown = {"mean": values.mean(), "least": values.min(), "greatest": values.max()}
                    self.log_dict({f"small/{name}/{each}": value for each, value in shown.items()}, batch_size=1)

    def _note_progress(self) -> None:
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":
            max_steps = int(trainer.estimated_stepping_batches)
            progress = {"step": trainer.global_step, "max_steps": max_steps, "versions": versions()}
            self.trained = progress | {"attention_kernels": self.attention_kernels}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the tensors of `saved_names`, and add the task's configuration and training progress."""
        saved = saved_names(self, self.restored_by_files)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
        checkpoint[CONFIG_KEY] = self.configuration
        checkpoint[RUN] = self.run
        checkpoint[FROZEN] = self.required_files
        self._note_progress()  # callbacks save before `on_train_batch_end`
        checkpoint[TRAINED], checkpoint[BEGAN] = self.trained, self.began

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint that was trained with other frozen weights."""
        trainer = self._trainer  # None if a checkpoint is loaded without a Trainer
        source = (trainer and trainer.ckpt_path) or "the checkpoint"
        check_frozen(checkpoint.get(FROZEN, {}), self.required_files, source)
        self.trained = checkpoint.get(TRAINED) or {"step": checkpoint.get("global_step")}
        self.began = checkpoint.get(BEGAN, {})

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint's tensors. Frozen released weights may be absent. Any other difference is an error.

        Raises:
            InputError: Tensors are missing, unexpected, or of other shapes.
        """
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            raise InputError(f"the checkpoint is of another model: {error}") from error
        check_loaded(result, saved_names(self, self.restored_by_files), "the checkpoint")
        return result

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        trust_modules: Collection[str] = (),
        **overrides: Any,
    ) -> Task:
        """Rebuild a task from the configuration in its checkpoint, and load the weights.

        Args:
            checkpoint_path: A file of `checkpoints/`.
            map_location: See `torch.load`.
            trust_modules: Modules outside the zoo that its configuration may import.
            overrides: Constructor arguments that replace the stored ones.

        Raises:
            InputError: The file is not a checkpoint, or belongs to another task.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        config = checkpoint.get(CONFIG_KEY)
        with add_file_to_errors(checkpoint_path):
            check_class_paths(config, trust_modules)
            task = cls(**overrides) if config is None else from_config(cls, with_overrides(config, overrides))
            task.on_load_checkpoint(checkpoint)  # as a Trainer does
            task.load_state_dict(checkpoint["state_dict"])
        return task
