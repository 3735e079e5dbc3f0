"""What a run leaves in checkpoints/: the last state, to test and to go on from, and the best where one is asked for."""

from __future__ import annotations

from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt` always is the newest state; with a monitor, the best is kept beside it.

    Args:
        monitor: a logged score, such as `val/all/macro`; null keeps the newest state only.
        mode: whether the best score is the highest or the lowest.
        save_top_k: how many of the best are kept.
        every_n_train_steps: also save in the middle of an epoch, after so many optimizer steps.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str = "max",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
    ):
        super().__init__(
            filename="{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_train_steps=every_n_train_steps,
            save_last="link",  # no second copy of the weights
        )
