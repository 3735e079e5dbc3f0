"""Several scenes in one training sequence without padding: loss and gradients are those of padded rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention

from tests.zoo.asking import MASKED_FAMILIES, MODELS, QUESTIONS, build, scene
from tests.zoo.sequences.test_packed_training import Learned, batch, difference, learned, sequences
from zoo import CameraPrediction, InputError
from zoo.encodings.per_view import PackedEncoding
from zoo.sequences.batch import Batch
from zoo.sequences.packing import ScenePacking
from zoo.tasks import VideoQATask

FAST = {("plain", "Qwen2.5-VL"), ("prope.yaml", "Qwen3-VL"), ("DeepFusion", "Qwen2.5-VL"), ("ValueRoPE", "Qwen3-VL")}
FAST |= {("RayRoPE", "Qwen3-VL")}
FAST |= {("CameraTokenFusion, append", "Qwen3-VL"), ("PRoPE, ExtraChannels", "Qwen2.5-VL"), ("PoseALiBi", "Qwen2.5-VL")}


def asked_of(model: VideoQATask, family: str = "Qwen2.5-VL", questions: int = 2, **packing: Any) -> Batch:
    """Three scenes of different lengths, the first with so many questions."""
    scenes = [scene("a", QUESTIONS[1 : 1 + questions], family=family)]
    scenes += [scene(name, QUESTIONS[n : n + 1], 2, 1, family) for n, name in ((0, "b"), (2, "c"))]
    return batch(model, *scenes, **packing).to(model.device)


def losses_of(model: VideoQATask, *what: Any, **packing: Any) -> Learned:
    return learned(model, model.loss(asked_of(model, *what, **packing)))


@pytest.mark.parametrize(
    ("name", "family"),
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in product(MODELS, MASKED_FAMILIES)],
)
def test_losses_and_gradients_equal_those_of_padded_rows(name: str, family: str) -> None:
    model = build(name, family=family).train()
    expected = losses_of(model, family)
    assert difference(losses_of(model, family, pack_scenes=True), expected) < 2e-5


@pytest.mark.parametrize(("name", "questions"), [("plain", 3), ("PRoPE, ChannelRange", 1)])
def test_a_bound_of_tokens_divides_the_scenes_and_changes_no_gradient(name: str, questions: int) -> None:
    model = build(name).train()
    expected, shapes = losses_of(model, questions=questions), list[tuple[int, int]]()
    bounds: list[int | None] = [None]
    for bound in bounds:
        asked = asked_of(model, questions=questions, pack_scenes=True, tokens_per_sequence=bound)
        packing = sequences(asked).packing
        assert packing is not None
        shapes.append(packing.shape)
        assert difference(learned(model, model.loss(asked)), expected) < 2e-5
        bounds += [shapes[0][1] - 1, 1] if bound is None else []
    (one, longest), (few, bounded), (many, _) = shapes
    assert one == 1 < few < many and bounded < longest


def test_packed_sequences_have_no_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    values, group = torch.arange(24).view(3, 4, 2), torch.tensor([[0, 1, 2, -1], [0, -1, -1, -1], [0, 0, 1, 1]])
    visual = torch.tensor([1, 4, 8, 10])  # in the flattened rows
    packing = ScenePacking(mask, group, visual)
    assert packing.shape == (1, 8) and torch.equal(packing.pack(values)[0], values[mask])
    assert torch.equal(packing.unpack(packing.pack(values)), values * mask[..., None])
    flat = packing.pack(values).flatten(0, 1)
    assert torch.equal(flat[packing.visual_places], values.flatten(0, 1)[visual])
    # each row has groups of its own, and each token knows that of its row's prefix
    assert packing.group.tolist() == [[0, 1, 2, 3, 6, 6, 7, 7]]
    assert packing.prefix_group.tolist() == [[0, 0, 0, 3, 6, 6, 6, 6]]
    bounded = ScenePacking(mask, group, visual, 4)
    assert bounded.shape == (2, 4) and torch.equal(bounded.pack(values, -1).flatten(0, 1), values[mask])
    longer = ScenePacking(mask, group, visual, 1)  # a longer row has a sequence of its own
    assert longer.shape == (3, 4) and (longer.group == -1).sum() == 4


@pytest.mark.parametrize("removed", ["mask", "cameras"])
def test_without_mask_or_cameras_of_the_rows_they_differ(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls."""
    model = build("PRoPE, ChannelRange").train()
    expected = losses_of(model)
    if removed == "cameras":
        monkeypatch.setattr(PackedEncoding, "at_layer", lambda *_: None)
    else:
        mask = model.model.backbone.question_mask
        monkeypatch.setattr(model.model.backbone, "question_mask", lambda queries, keys, _: mask(queries * 0, keys * 0))
    assert difference(losses_of(model, pack_scenes=True), expected) > 1e-3


def test_objectives_see_the_rows() -> None:
    """Hidden states of inner layers, per scene."""
    objectives = [CameraPrediction(layer=0)]
    model = build("plain", objectives=objectives).train()
    assert difference(losses_of(model, pack_scenes=True), losses_of(model)) < 2e-5


def test_with_gradient_checkpointing() -> None:
    model = build("PRoPE on ConcatSplitFusion", gradient_checkpointing=True).train()
    expected = losses_of(build("PRoPE on ConcatSplitFusion").train())
    assert difference(losses_of(model, pack_scenes=True), expected) < 2e-5


def test_flex_attention_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, and on the CPU, where torch refuses its gradients though the uncompiled ones are there."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    name = "PRoPE on ConcatSplitFusion"
    model, reference = build(name, implementation="flex_attention").train(), build(name).train()
    with torch.compiler.set_stance("force_eager"):
        assert difference(losses_of(model, pack_scenes=True), losses_of(reference)) < 2e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for a GPU, and there is none")
def test_flex_attention_on_a_gpu() -> None:
    name = "PRoPE on ConcatSplitFusion"
    model, reference = build(name, implementation="flex_attention").train().cuda(), build(name).train().cuda()
    assert difference(losses_of(model, pack_scenes=True), losses_of(reference)) < 1e-3


def test_attention_without_custom_masks_is_refused() -> None:
    model = build("plain").train()
    model.model.backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="--data.pack_scenes: this attention takes no mask of several scenes"):
        losses_of(model, pack_scenes=True)
