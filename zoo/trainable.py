"""What of a model trains, at which rates, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.errors import InputError
from zoo.optim import LearningRates, freeze, parameter_groups, part_of


class Trainable(LightningModule):
    """A LightningModule that trains the parts that have a learning rate, and saves those alone.

    A 3B model whose decoder trains by low-rank adapters leaves checkpoints of megabytes. What is frozen comes from
    the backbone again, so a run goes on exactly as if it had not stopped.
    """

    strict_loading = False  # Lightning then leaves it to load_state_dict to say what may be absent
    learning_rates: LearningRates
    optimizer: Callable[[Any], Optimizer]
    scheduler: Callable[[Optimizer, int], LRScheduler]

    answers_questions: bool = True  # its validation and test steps return prediction records

    @property
    def requires_cameras(self) -> bool:
        """Whether the DataModule must bring cameras with every scene."""
        return False

    @property
    def requires_frames(self) -> bool:
        """Whether it must bring the frames themselves beside the pixels."""
        return False

    @property
    def requires_depth(self) -> bool:
        """Whether it must bring depth."""
        return False

    def trained_names(self) -> set[str]:
        """The parameters that train, by every name they have (lm_head may be tied)."""
        named = self.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if parameter.requires_grad}

    def freeze_parts(self) -> None:
        """Turns gradients off in the parts without a learning rate."""
        freeze(self, self.learning_rates)

    def train(self, mode: bool = True) -> Trainable:
        """As ever, but parts without a learning rate stay in eval mode."""
        super().train(mode)
        frozen = self.learning_rates.frozen()
        for prefix, module in self.named_modules():
            if not prefix:
                continue  # this module itself: its eval would come back here
            parts = {part_of(f"{prefix}.{name}") for name, _ in module.named_parameters()}
            if parts and parts <= frozen:
                module.eval()
        return self

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self.named_parameters(), self.learning_rates))
        scheduler = self.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self.trained_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads what is trained; what is frozen may be absent, anything else that differs is an error.

        Raises:
            InputError: listing the tensors that are missing or unexpected (or, from torch, misshapen).
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = sorted(set(result.missing_keys) & self.trained_names())
        if missing or result.unexpected_keys:
            raise InputError(
                f"the checkpoint is of another model: missing {missing[:5]} ({len(missing)}), "
                f"unexpected {result.unexpected_keys[:5]} ({len(result.unexpected_keys)})"
            )
        return result
