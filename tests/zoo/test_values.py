"""Batches move as one: to a device, to pinned memory, between processes; precision plugins leave them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from tests.tiny import QUESTIONS, VGGT, tiny_batch, tiny_model, tiny_scene
from zoo.sequences.batch import Batch


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and numbers anywhere in a value, by path; positions that are computed on the host stay there."""
    if isinstance(value, list | tuple):
        parts: Mapping[Any, Any] = dict(enumerate(value))
    elif isinstance(value, dict):
        parts = value
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | type) and not callable(value):
        parts = vars(value)
    else:
        yield name, value
        return
    for key, part in parts.items():
        yield from leaves(part, f"{name}.{key}")


def tensors(value: Any) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in leaves(value) if isinstance(leaf, Tensor)}


def numbers(value: Any) -> dict[str, Any]:
    """Of the host, and words."""
    return {name: leaf for name, leaf in leaves(value) if isinstance(leaf, int | float | str | None)}


NAMES = ["packed", "points", "questions", "positions wait"]


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    """Of several kinds: with packed scenes, with depth, with questions, with positions by predicted cameras."""
    scenes = tiny_scene("a", QUESTIONS[:2]), tiny_scene("b", QUESTIONS[2:3], steps=2, seed=1)
    packed, points = tiny_model("prope.yaml"), tiny_model("PointRoPE")
    waits = tiny_model("PoseDistanceIndex", camera_source="predicted", **VGGT)
    made = (
        tiny_batch(packed, *scenes, training=True, pack_scenes=True),
        tiny_batch(points, *scenes, training=True),
        tiny_batch(packed, *scenes),
        tiny_batch(waits, *scenes, training=True),
    )
    return dict(zip(NAMES, made, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_moves_and_no_number_of_the_host(name: str, batches: dict[str, Batch]) -> None:
    """To the meta device, as to a GPU; the batch itself stays where it is."""
    made = batches[name]
    moved = made.to("meta", non_blocking=True)
    kept, found = tensors(made), tensors(moved)
    assert kept.keys() == found.keys() and len(kept) > 20
    assert all(tensor.is_meta for tensor in found.values())
    assert all(not tensor.is_meta for tensor in kept.values())
    assert all(found[path].shape == tensor.shape and found[path].dtype == tensor.dtype for path, tensor in kept.items())
    assert numbers(moved) == numbers(made) and len(numbers(made)) > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_pinned(name: str, batches: dict[str, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread of a DataLoader; here there is no GPU to pin memory for."""
    made, pinned = batches[name], []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    found = pin_memory(made)
    assert type(found) is Batch
    addresses = {tensor.data_ptr() for tensor in pinned if tensor.numel()}
    for path, tensor in tensors(found).items():
        assert tensor.data_ptr() in addresses or not tensor.numel(), path


def test_a_batch_from_a_worker_is_the_same(batches: dict[str, Batch]) -> None:
    for made in batches.values():
        found = pickle.loads(pickle.dumps(made))
        kept, read = tensors(made), tensors(found)
        assert kept.keys() == read.keys() and all(torch.equal(read[path], tensor) for path, tensor in kept.items())
        assert numbers(found) == numbers(made)
    task = tiny_model("prope.yaml").train()
    assert torch.equal(task.loss(pickle.loads(pickle.dumps(batches["packed"]))), task.loss(batches["packed"]))


@dataclass
class Cast:
    """The control: what Lightning casts."""

    poses: Tensor


@pytest.mark.parametrize("plugin", [HalfPrecision("bf16-true"), DoublePrecision(), MixedPrecision("bf16-mixed", "cpu")])
def test_precision_plugins_change_no_tensor(plugin: Precision, batches: dict[str, Batch]) -> None:
    """Poses in bfloat16 are useless."""
    for made in batches.values():
        before = tensors(made)
        assert any(tensor.is_floating_point() for tensor in before.values())
        assert plugin.convert_input(made) is made
        assert all(tensor is before[path] for path, tensor in tensors(made).items())
    control = plugin.convert_input(Cast(torch.eye(4, dtype=torch.float32)))
    assert (control.poses.dtype != torch.float32) == (not isinstance(plugin, MixedPrecision))
