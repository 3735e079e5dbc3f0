"""Several questions of a scene in one training sequence: loss and gradients are those of a sequence each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_mask
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules.scenes import RawQuestion
from tests.zoo import asking
from tests.zoo.asking import MODELS_AND_FAMILIES, QUESTIONS, build, one_per_row, scene
from zoo import sequence_builder as builder
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import Row, block_mask, pack_questions, prefix_causal_mask
from zoo.tasks import VideoQATask

Learned = tuple[float, dict[str, Tensor]]  # the loss, and the gradient of every parameter that has one


def scenes_of(family: str) -> tuple[LoadedScene, LoadedScene]:
    """Three questions about one scene, and one about a shorter one."""
    return scene("a", QUESTIONS[1:4], family=family), scene("b", QUESTIONS[:1], steps=2, seed=1, family=family)


SCENES = scenes_of("Qwen2.5-VL")


def batch(model: VideoQATask, *scenes: LoadedScene, **packing: Any) -> Batch:
    return asking.batch(model, *scenes, training=True, **packing)


def sequences(asked: Batch) -> Sequences:
    assert asked.sequences is not None
    return asked.sequences


def learned(model: VideoQATask, loss: Tensor) -> Learned:
    model.zero_grad()
    loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}


def packed(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    asked = batch(model, *scenes)
    assert sequences(asked).group is not None and len(sequences(asked)) == len(scenes) < len(asked.records)
    return learned(model, model.loss(asked))


def a_row_each(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    asked = one_per_row(model, *scenes)
    assert sequences(asked).group is None and len(sequences(asked)) == len(asked.records)
    return learned(model, model.loss(asked))


def alone(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    """The slow reference: the mean over questions of which each is a batch of its own."""
    batches = [batch(model, replace(each, questions=(q,))) for each in scenes for q in each.questions]
    return learned(model, torch.stack([model.loss(one) for one in batches]).mean())


def difference(found: Learned, expected: Learned) -> float:
    """The greatest relative difference: of the loss, of all gradients, and of each parameter's."""
    (loss, gradients), (reference, references) = found, expected
    assert gradients.keys() == references.keys() and len(references) > 20
    apart = {name: float((gradients[name] - references[name]).norm()) for name in references}
    norms = {name: float(each.norm()) for name, each in references.items()}
    total = torch.tensor(list(norms.values())).norm()
    # a gradient that is zero but for rounding, as of a bias of the keys, has no relative difference of its own
    each = [apart[name] / norm for name, norm in norms.items() if norm > 1e-4 * total]
    return max(abs(loss - reference) / reference, float(torch.tensor(list(apart.values())).norm() / total), *each)


@pytest.mark.parametrize(("name", "family"), MODELS_AND_FAMILIES)
def test_loss_and_gradients_equal_one_question_per_row(name: str, family: str) -> None:
    """A scene with three questions and one with one, of different lengths; answers of different lengths."""
    model, scenes = build(name, family=family).train(), scenes_of(family)
    bound = 1e-4 if family == "Qwen3.5" else 1e-5  # chunks of the delta rule begin elsewhere
    assert difference(packed(model, *scenes), a_row_each(model, *scenes)) < bound


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["plain", "PRoPE on ConcatSplitFusion"])
def test_loss_and_gradients_are_those_of_each_question_alone(name: str, implementation: str) -> None:
    model = build(name, implementation=implementation).train()
    assert difference(packed(model, *SCENES), alone(model, *SCENES)) < 1e-5


@pytest.mark.parametrize(
    "name", ["plain", "PRoPE on ConcatSplitFusion", pytest.param("RayRoPE", marks=pytest.mark.slow)]
)
def test_flex_attention_by_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, and on the CPU, where torch refuses its gradients though the uncompiled ones are there."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model, reference = build(name, implementation="flex_attention").train(), build(name).train()
    assert (
        model.model.backbone.supports_custom_mask
        and model.model.backbone.vlm.config.vision_config._attn_implementation == "sdpa"
    )
    with torch.compiler.set_stance("force_eager"):
        expected = alone(reference, *SCENES)
        assert difference(packed(model, *SCENES), expected) < 1e-5
        assert difference(a_row_each(model, *SCENES), expected) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for a GPU, and there is none")
def test_flex_attention_on_a_gpu() -> None:
    model = build("PRoPE on ConcatSplitFusion", implementation="flex_attention").train().cuda()
    reference = build("PRoPE on ConcatSplitFusion").train().cuda()
    asked = [batch(each, *SCENES).to("cuda") for each in (model, reference)]
    found, expected = (learned(m, m.loss(b)) for m, b in zip((model, reference), asked, strict=True))
    assert difference(found, expected) < 1e-3


@pytest.mark.parametrize(
    "is_gpu",
    [
        pytest.param(False, id="on a CPU"),
        pytest.param(True, id="compiled as on a GPU", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("queries", [pytest.param(slice(0, None), marks=pytest.mark.slow), slice(-4, None)])
@pytest.mark.filterwarnings("error:_compile flag:DeprecationWarning")
def test_block_mask_equals_the_dense_mask(queries: slice, is_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_gpu:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    groups = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, 1, 1, 1, 2, 3, 3, 3]])
    mask = block_mask(groups[:, queries], groups)
    seen = create_mask(mask.mask_mod, 2, 1, groups[:, queries].shape[1], 8, device="cpu")[:, 0]
    assert torch.equal(seen, prefix_causal_mask(groups[:, queries], groups)) and not seen.all()


def test_gradient_checkpointing_keeps_the_mask() -> None:
    expected = a_row_each(build("PRoPE, ChannelRange").train(), *SCENES)
    model = build("PRoPE, ChannelRange", gradient_checkpointing=True).train()
    assert difference(packed(model, *SCENES), expected) < 1e-5


# ---- the controls: what the mask and the positions are for ---------------------------------------------------


@pytest.mark.parametrize("removed", ["mask", "positions"])
def test_without_mask_or_positions_of_the_questions_they_differ(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain").train()
    expected = a_row_each(model, *SCENES)

    def run_on(*arguments: Any) -> tuple[list[Row], list[int]]:
        packed_rows = pack_questions(*arguments)
        assert packed_rows is not None
        rows, scene_of = packed_rows
        return [row._replace(position_offset=torch.zeros_like(row.input_ids)) for row in rows], scene_of

    if removed == "positions":
        monkeypatch.setattr(builder, "pack_questions", run_on)
    asked = batch(model, *SCENES)
    if removed == "mask":
        prefix = torch.zeros_like(sequences(asked).input_ids)  # all of them are the prefix
        vars(asked)["sequences"] = replace(sequences(asked), group=prefix)
    assert difference(learned(model, model.loss(asked)), expected) > 1e-2


# ---- what takes a row each -----------------------------------------------------------------------------------


def test_attention_without_custom_masks_gets_one_question_per_row() -> None:
    """As flash attention: causal, with padding on the right, which needs no mask."""
    model = build("plain").train()
    expected, seen = a_row_each(model, *SCENES), []

    def causal(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        seen.append((tuple(q.shape[::2]), mask))
        earlier = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, earlier[None, None], **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("causal", causal)
    ALL_MASK_ATTENTION_FUNCTIONS.register("causal", flash_attention_mask)
    model.model.backbone.vlm.model.language_model.config._attn_implementation = "causal"
    asked = batch(model, *SCENES)
    found = learned(model, model.loss(asked))
    assert len(asked.records) == len(sequences(asked)) and len(set(sequences(asked).lengths)) > 1
    assert set(seen) == {((len(asked.records), max(sequences(asked).lengths)), None)}
    assert difference(found, expected) < 1e-5


def test_a_bound_of_tokens_divides_the_questions_and_changes_no_gradient() -> None:
    model = build("plain").train()
    unbounded = batch(model, *SCENES)
    expected, longest = learned(model, model.loss(unbounded)), max(sequences(unbounded).lengths)
    for bound in (longest, longest - 1, 1):
        asked = batch(model, *SCENES, tokens_per_sequence=bound)
        packed_rows = sequences(asked)
        assert packed_rows.group is not None
        lengths, questions = torch.tensor(packed_rows.lengths), packed_rows.group.amax(1)
        assert ((lengths <= bound) | (questions == 1)).all()  # one question alone may be longer
        assert questions.sum() == len(asked.records)
        assert (len(packed_rows) == len(SCENES)) == (bound == longest)
        assert difference(learned(model, model.loss(asked)), expected) < 1e-5


def test_prompts_without_a_question_of_their_own_are_not_packed() -> None:
    """Two answers to one question: only one could learn of the token before it. A question each shares nothing."""
    model = build("plain").train()
    apart = scene("a", QUESTIONS[:1]), scene("b", QUESTIONS[1:2])
    twice = scene("a", (QUESTIONS[0], replace(QUESTIONS[0], id="again", ground_truth="7")))
    assert sequences(batch(model, *apart)).group is None
    answers = [sequences(each).answer_ids for each in (batch(model, twice), one_per_row(model, twice))]
    assert sequences(batch(model, twice)).group is not None and len(answers[0]) == len(answers[1])
    assert difference(packed(model, twice), a_row_each(model, twice)) < 1e-5


@pytest.mark.parametrize(("family", "pack_scenes"), [("Qwen2.5-VL", False), ("Qwen2.5-VL", True), ("Qwen3.5", False)])
def test_a_scene_whose_questions_share_no_prefix_leaves_others_packed(family: str, pack_scenes: bool) -> None:
    model, (shared, _) = build("plain", family=family).train(), scenes_of(family)
    later = RawQuestion("later", "", "Look first: <video> What is it?", "a room")
    unshared = scene("b", (QUESTIONS[0], later), steps=2, seed=1, family=family)
    asked = batch(model, unshared, shared, pack_scenes=pack_scenes)
    assert sequences(asked).scene_index == [[0], [0], [1]] and len(asked.records) == 5
    expected = a_row_each(model, unshared, shared)
    assert difference(learned(model, model.loss(asked)), expected) < (1e-4 if family == "Qwen3.5" else 1e-5)


def test_questions_that_another_process_learns_from_give_zero_gradients() -> None:
    """Every parameter keeps a gradient, which the other processes of DDP wait for."""
    model = build("plain").train()
    loss, gradients = learned(model, model.loss(batch(model, *(replace(each, is_supervised=False) for each in SCENES))))
    reference = learned(model, model.loss(batch(model, *SCENES)))[1]
    assert loss == 0 and gradients.keys() == reference.keys()
    assert all((gradient == 0).all() for gradient in gradients.values())
    assert any((gradient != 0).any() for gradient in reference.values())
