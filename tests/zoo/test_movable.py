"""Values of tensors move as one: to a device, to pinned memory, between processes; precision plugins leave them."""

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

from tests.zoo.asking import QUESTIONS, VGGT, batch, build, scene
from zoo.cameras.scene_geometry import PatchCameras
from zoo.sequences.batch import Batch
from zoo.sequences.position_ids import DeferredPositions
from zoo.values import Movable


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


NAMES = ["packed", "points", "questions", "positions wait", "questions wait"]


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    """Of several kinds: with packed scenes, with depth, with questions, with positions by predicted cameras."""
    scenes = scene("a", QUESTIONS[:2]), scene("b", QUESTIONS[2:3], steps=2, seed=1)
    packed, points = build("prope.yaml"), build("PointRoPE")
    waits = build("PoseDistanceIndex", camera_source="predicted", **VGGT)
    made = (
        batch(packed, *scenes, training=True, pack_scenes=True),
        batch(points, *scenes, training=True),
        batch(packed, *scenes),
        batch(waits, *scenes, training=True),
        batch(waits, *scenes),
    )
    return dict(zip(NAMES, made, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_moves_and_no_number_of_the_host(name: str, batches: dict[str, Batch]) -> None:
    """To the meta device, as to a GPU; the batch itself stays where it is."""
    made = batches[name]
    moved = made.to("meta", non_blocking=True)
    deferred = made.prompts[0].prefix.deferred_positions if made.prompts else made.sequences.deferred_positions
    assert isinstance(deferred, DeferredPositions) == name.endswith("wait")
    kept, found = tensors(made), tensors(moved)
    assert kept.keys() == found.keys() and len(kept) > 20
    assert all(tensor.is_meta for tensor in found.values())
    assert all(not tensor.is_meta for tensor in kept.values())
    assert all(found[path].shape == tensor.shape and found[path].dtype == tensor.dtype for path, tensor in kept.items())
    assert numbers(moved) == numbers(made) and len(numbers(made)) > 20
    for scene_inputs in moved.scenes:
        assert all(type(side) is int for side in scene_inputs.grid_thw)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_survives_the_way_from_a_worker(name: str, batches: dict[str, Batch]) -> None:
    made = batches[name]
    found = pickle.loads(pickle.dumps(made))
    kept, read = tensors(made), tensors(found)
    assert kept.keys() == read.keys() and all(torch.equal(read[path], tensor) for path, tensor in kept.items())
    assert numbers(found) == numbers(made)


def test_a_batch_from_a_worker_teaches_the_same(batches: dict[str, Batch]) -> None:
    task = build("prope.yaml").train()
    expected = task.loss(batches["packed"])
    assert torch.equal(task.loss(pickle.loads(pickle.dumps(batches["packed"]))), expected)


# ---- precision plugins -------------------------------------------------------------------------------------------


@dataclass
class Cast:
    """The control: what Lightning casts."""

    poses: Tensor


PLUGINS = [HalfPrecision("bf16-true"), HalfPrecision("16-true"), DoublePrecision(), MixedPrecision("bf16-mixed", "cpu")]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: f"{type(plugin).__name__} {plugin.precision}")
@pytest.mark.parametrize("name", NAMES)
def test_precision_plugins_change_no_tensor(name: str, plugin: Precision, batches: dict[str, Batch]) -> None:
    """Poses in bfloat16 are useless."""
    made = batches[name]
    before = tensors(made)
    assert any(tensor.is_floating_point() for tensor in before.values())
    for value in (made, *made.prompts, [made], {"batch": made}):
        plugin.convert_input(value)
    found = plugin.convert_input(made)
    assert found is made
    for path, tensor in tensors(found).items():
        assert tensor is before[path] and tensor.dtype == before[path].dtype
    control = plugin.convert_input(Cast(torch.eye(4, dtype=torch.float32)))
    changes = not isinstance(plugin, MixedPrecision)
    assert (control.poses.dtype != torch.float32) == changes
    with pytest.raises(ValueError, match="frozen dataclass"):  # nor can Lightning cast a scene without a word
        plugin.convert_input(made.scenes[0]) if changes else HalfPrecision("bf16-true").convert_input(made.scenes[0])


# ---- the base class ----------------------------------------------------------------------------------------------


class Value(Movable):
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_map_reaches_tensors_values_and_lists_of_them_and_nothing_else() -> None:
    patches = PatchCameras(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1).bool(), is_complete=True)
    inner = Value(tensor=torch.ones(2), number=3)
    value = Value(
        tensor=torch.zeros(2), inner=inner, several=[torch.ones(1), inner, 5, None], patches=patches, pair=(1, 2),
        word="word", nothing=None,
    )  # fmt: skip
    found = value.map(lambda tensor: tensor + 1)
    assert found is not value and type(found) is Value and found.inner is not inner
    assert found.tensor.tolist() == [1, 1] and found.inner.tensor.tolist() == [2, 2] and found.inner.number == 3
    assert found.several[0].tolist() == [2] and found.several[1].tensor.tolist() == [2, 2]
    assert found.several[2:] == [5, None] and (found.pair, found.word, found.nothing) == ((1, 2), "word", None)
    assert isinstance(found.patches, PatchCameras) and found.patches.is_complete is True
    assert torch.equal(found.patches.world_to_camera, patches.world_to_camera + 1)
    # the value itself is not changed
    assert value.tensor.tolist() == [0, 0] and inner.tensor.tolist() == [1, 1] and value.several[0].tolist() == [1]
