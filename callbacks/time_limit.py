"""The time limit of a training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Timer


class TimeLimit(Timer):
    """Stop a training after `--trainer.max_time`, which each process has in full.

    Lightning's Timer saves the time that has passed, and would stop a resumed training at its first step.
    """

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        remaining = self.time_remaining()
        return remaining is not None and remaining <= 0

    def state_dict(self) -> dict[str, Any]:
        """Save nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""
