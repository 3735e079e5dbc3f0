"""What each encoding declares is what is measured, in both directions, for every row of the table.

Float64, at the level of attention. What is declared exact holds to 1e-10; what is not is seen to be broken.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.zoo.encodings.attention import Decoder, Sequence, random_cameras, random_sequence
from zoo.encodings import CameraEncoding
from zoo.encodings.table import COMBINATIONS, DOCUMENT, document

EXACT, BROKEN, MOVES = 1e-10, 1e-6, 1e-3
UNIT = 3.0


def of_the_data(encoding: CameraEncoding) -> CameraEncoding:
    """The same, with the data's own world in the place of a reference view."""
    for module in encoding.modules():
        if isinstance(module, CameraEncoding) and module.reference is not None:
            module.reference = None
    return encoding


def sequence_for(encoding: CameraEncoding, text: int) -> Sequence:
    sequence = random_sequence(text)
    return sequence.constant_time() if encoding.needs_constant_time else sequence


def difference(encoding: CameraEncoding, text: int, change: Callable[[Tensor], Tensor], unit: float = 1.0) -> float:
    """How far a change of the poses, and of the scene's unit, moves the outputs."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, text), Decoder(encoding)
    moved = decoder.attend(sequence, change(poses), K, unit)
    return float((decoder.attend(sequence, poses, K) - moved).abs().max())


def other_world(poses: Tensor) -> Tensor:
    return poses @ random_cameras(2, 1, seed=5)[0]


def other_unit(poses: Tensor) -> Tensor:
    poses = poses.clone()
    poses[..., :3, 3] *= UNIT
    return poses


def world_views(encoding: CameraEncoding) -> float:
    return difference(of_the_data(encoding), 0, other_world)


def world_text(encoding: CameraEncoding) -> float:
    return difference(of_the_data(encoding), 3, other_world)


def canonical(encoding: CameraEncoding) -> float:
    return difference(encoding, 3, other_world)


def scale(encoding: CameraEncoding) -> float:
    return difference(encoding, 3, other_unit, UNIT)


def shift(encoding: CameraEncoding) -> float:
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding)
    return float((decoder.attend(sequence, poses, K) - decoder.attend(sequence.shifted(7), poses, K)).abs().max())


def per_token(encoding: CameraEncoding) -> float:
    """A camera for each token: its view's."""
    poses, K = random_cameras(2)
    sequence, decoder = sequence_for(encoding, 3), Decoder(encoding)
    an_image = decoder.attend(sequence, poses, K)
    visual = sequence.index >= 0
    of_token = sequence.index[visual].view(2, -1)
    each = torch.arange(2)[:, None], of_token
    sequence.index = torch.where(visual, visual.cumsum(1) - 1, -1)
    return float((decoder.attend(sequence, poses[each], K[each]) - an_image).abs().max())


def identity_stock(encoding: CameraEncoding) -> float:
    sequence = sequence_for(encoding, 3)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    return from_stock(encoding, sequence, eye, eye[..., :3, :3])


def text_stock(encoding: CameraEncoding) -> float:
    sequence = sequence_for(encoding, 3)
    sequence.index = torch.full_like(sequence.index, -1)
    return from_stock(encoding, sequence, *random_cameras(2))


def from_stock(encoding: CameraEncoding, sequence: Sequence, poses: Tensor, K: Tensor) -> float:
    """0 only if every bit is equal."""
    outputs, stock = (Decoder(each).attend(sequence, poses, K) for each in (encoding, None))
    return 0.0 if torch.equal(outputs, stock) else max(float((outputs - stock).abs().max()), 1e-300)


PROPERTIES = [world_views, world_text, canonical, scale, shift, per_token, identity_stock, text_stock]


@pytest.mark.parametrize("measure", PROPERTIES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_declared_is_what_is_measured(name: str, measure: Callable[[CameraEncoding], float]) -> None:
    encoding = COMBINATIONS[name]()
    declared = getattr(encoding.symmetries, measure.__name__)
    measured = measure(encoding)
    if not declared:
        assert measured > BROKEN
    elif measure in (identity_stock, text_stock):
        assert measured == 0
    else:
        assert measured < EXACT


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_matters(name: str) -> None:
    """What is silently off would have every symmetry."""
    poses, K = random_cameras(2)
    encoding = COMBINATIONS[name]()
    assert from_stock(encoding, sequence_for(encoding, 3), poses, K) > MOVES


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if not name.startswith(("VORoPE", "XYZRoPE"))])
def test_other_cameras_matter(name: str) -> None:
    """For all but those that go by positions or by points."""
    encoding = COMBINATIONS[name]()
    assert difference(encoding, 3, lambda poses: poses.flip(1)) > MOVES


def test_the_document_is_of_these_declarations() -> None:
    assert DOCUMENT.read_text() == document(), "run python -m zoo.encodings.table"
