"""A scene that can't be read is tried once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import PixelBounds, UniformSampler
from datamodules.dataset import SceneDataset
from datamodules.scenes import Question, Scene


@pytest.mark.parametrize(
    ("failures", "calls", "error"), [(0, 1, None), (1, 2, None), (2, 2, "a/b: stalled"), (9, 2, "a/b: stalled")]
)
@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, IndexError])
def test_a_scene_is_tried_twice(
    failures: int, calls: int, error: str | None, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frame in range(2):
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / f"{frame}.png")
    scene = Scene("a/b", tmp_path, (Question("1", "object_counting", "How many?", "4"),))
    dataset = SceneDataset([scene], UniformSampler(), 2, PixelBounds(784, 784))
    original, called = SceneDataset.open, []

    def stalls(self: SceneDataset, index: int) -> Any:
        called.append(index)
        if len(called) <= failures:
            raise kind("stalled")
        return original(self, index)

    monkeypatch.setattr(SceneDataset, "open", stalls)
    loaded = dataset[0]
    assert loaded.error == error and len(called) == calls and (loaded.frames is None) == (error is not None)


def test_a_bug_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SceneDataset([Scene("a/b", tmp_path, ())], UniformSampler(), 2, PixelBounds(784, 784))
    monkeypatch.setattr(SceneDataset, "open", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset[0]
