"""Freezing, per-part learning rates, and checkpoints of trained weights only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.backbones.base import Preprocessor
from zoo.configuration import Configurable, from_config, to_config, with_overrides
from zoo.errors import InputError
from zoo.fusions.base import ExtraTokens
from zoo.optim import LearningRates, freeze, parameter_groups
from zoo.requirements import DataRequirements

CONFIG_KEY = "task"  # of a checkpoint: the task's own configuration


class Task(Configurable, LightningModule):
    """A LightningModule that trains the parts that have a learning rate, and saves only what no file restores.

    A 3B model whose decoder trains by low-rank adapters leaves checkpoints of megabytes. Released frozen weights come
    from their files again, so a run continues exactly as if it had not stopped.

    Args:
        learning_rates: one per part, null to freeze it.
        optimizer: takes the parameter groups.
        scheduler: takes the optimizer and the run's number of optimizer steps; stepped once per step.

    Attributes:
        answers_questions: whether validation and test steps return prediction records.
    """

    strict_loading = False  # Lightning then leaves it to load_state_dict to decide what may be absent
    answers_questions: bool = True

    def __init__(
        self,
        learning_rates: LearningRates,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
    ) -> None:
        super().__init__()
        self.learning_rates, self.optimizer, self.scheduler = learning_rates, optimizer, scheduler

    @property
    def requirements(self) -> DataRequirements:
        """What the DataModule must provide beside pixels and questions."""
        raise NotImplementedError

    @property
    def preprocessor(self) -> Preprocessor:
        """Turns frames and questions into a batch."""
        raise NotImplementedError

    @property
    def extra_tokens(self) -> ExtraTokens:
        """Tokens that follow the 2D tokens of each view in the prompt."""
        return ExtraTokens.NOTHING

    def part_of(self, name: str) -> str:
        """The field of `LearningRates` that governs the parameter of this name."""
        raise NotImplementedError

    def restored_by_files(self, name: str) -> bool:
        """Whether a frozen parameter or buffer of this name is read from released files again."""
        return False

    def saved_names(self) -> set[str]:
        """The tensors of a checkpoint, by every name they have (lm_head may be tied)."""
        trained = {n for n, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}
        return trained | {name for name in self.state_dict() if not self.restored_by_files(name)}

    def freeze_parts(self) -> None:
        """Turns gradients off in the parts without a learning rate."""
        freeze(self, self.learning_rates, self.part_of)

    def train(self, mode: bool = True) -> Task:
        """As in PyTorch, but parts without a learning rate stay in eval mode."""
        super().train(mode)
        frozen = self.learning_rates.frozen()
        for prefix, module in self.named_modules():
            if not prefix:
                continue  # the task itself: its eval would return here
            parts = {self.part_of(f"{prefix}.{name}") for name, _ in module.named_parameters()}
            if parts and parts <= frozen:
                module.eval()
        return self

    def configure_optimizers(self) -> Any:
        """One group per part and biases, as in the published recipe."""
        groups = parameter_groups(self.named_parameters(), self.learning_rates, self.part_of)
        optimizer = self.optimizer(groups)
        scheduler = self.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the tensors of `saved_names`, and the task's configuration where it has one."""
        saved = self.saved_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
        try:
            checkpoint[CONFIG_KEY] = to_config(self)
        except InputError:  # built in Python from functions: load it by passing the same parts
            checkpoint[CONFIG_KEY] = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads what checkpoints hold; frozen released weights may be absent, any other difference is an error.

        Raises:
            InputError: listing missing or unexpected tensors (or, from torch, those of another shape).
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = sorted(set(result.missing_keys) & self.saved_names())
        if missing or result.unexpected_keys:
            raise InputError(
                f"the checkpoint is of another model: missing {missing[:5]} ({len(missing)}), "
                f"unexpected {result.unexpected_keys[:5]} ({len(result.unexpected_keys)})"
            )
        return result

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> Task:
        """The task of a checkpoint, rebuilt from the configuration in it.

        Args:
            checkpoint_path: a file of `checkpoints/`.
            map_location: see `torch.load`.
            overrides: constructor arguments in place of the stored ones.

        Raises:
            InputError: the checkpoint holds no configuration, or one of another task.
        """
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        config = checkpoint.get(CONFIG_KEY)
        task = cls(**overrides) if config is None else from_config(cls, with_overrides(config, overrides))
        task.load_state_dict(checkpoint["state_dict"])
        return task
