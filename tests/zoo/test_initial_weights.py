"""A training starts from the weights of another: of the same model, or of one without some of its parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.zoo.sharded import SMALL
from zoo import ConcatSplitMLLM, InputError, Qwen25VL, SpatialMLLM, TinyQwen25VL
from zoo.tasks import VideoQATask


def built(kind: type[VideoQATask], seed: int, **options: Any) -> VideoQATask:
    torch.manual_seed(seed)
    return kind(backbone=TinyQwen25VL(**{**SMALL, "seed": seed}), **options)


def start(task: VideoQATask, former: VideoQATask, path: Path) -> None:
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    strategy._lightning_module = task
    task._trainer = SimpleNamespace(strategy=strategy)
    torch.save({"state_dict": former.state_dict()}, path)
    task.initial_weights, task._trainer.state = str(path), SimpleNamespace(fn="fit")
    task._trainer.ckpt_path = None
    task.configure_model()


def test_parts_that_the_start_lacks_keep_their_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(Qwen25VL, 1), built(SpatialMLLM, 2)
    own = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    given, now = former.state_dict(), task.state_dict()
    assert given.keys() < now.keys() and all(name.startswith("model.fusion.") for name in now.keys() - given.keys())
    for name, tensor in now.items():
        assert torch.equal(tensor, given.get(name, own[name]))
    assert any(not torch.equal(own[name], tensor) for name, tensor in given.items())  # the control
    assert "a.ckpt lacks fusion, which start from their own weights" in caplog.text


def test_of_the_same_model_all_weights_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(SpatialMLLM, 1), built(SpatialMLLM, 2)
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    assert all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in task.state_dict().items())
    assert "lacks" not in caplog.text


@pytest.mark.parametrize(("former", "kind"), [(SpatialMLLM, Qwen25VL), (SpatialMLLM, ConcatSplitMLLM)])
def test_a_start_with_other_parts_is_an_error(
    former: type[VideoQATask], kind: type[VideoQATask], tmp_path: Path
) -> None:
    """With a fusion that the model lacks, or another one: what is there can't be told from what is damaged."""
    with pytest.raises(InputError, match=r"a.ckpt: .* of another model"):
        start(built(kind, 2), built(former, 1), tmp_path / "a.ckpt")
