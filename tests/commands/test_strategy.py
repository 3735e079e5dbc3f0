"""The strategies that the command line builds."""

from __future__ import annotations

import pytest
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy

import commands.cli  # registers them

assert commands.cli


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_gradients_are_views_of_the_buckets(strategy: str) -> None:
    """Otherwise DDP keeps a copy of all of them: 12 GB of a model of 3 billion parameters."""
    built = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False).strategy
    assert type(built) is DDPStrategy
    assert built._ddp_kwargs == {"gradient_as_bucket_view": True}
    assert DDPStrategy()._ddp_kwargs == {}  # the control: Lightning's own
