"""Questions and scenes that share a training sequence: loss and gradients are those of a sequence each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers import masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules.scenes import RawQuestion
from tests.tiny import (
    MASKED_FAMILIES,
    MODELS,
    MODELS_AND_FAMILIES,
    NEW,
    QUESTIONS,
    Learned,
    difference,
    learned,
    one_by_one,
    one_per_row,
    prompts_of,
    replies,
    tiny_batch,
    tiny_model,
    tiny_scene,
    two_scenes,
)
from zoo import CameraPrediction, InputError, TimestampIndex, VideoQATask
from zoo import sequence_builder as builder
from zoo.backbones.decoder import GROUPED_SDPA
from zoo.encodings.per_view import PackedEncoding
from zoo.positions import TextAfterVision
from zoo.sequences import packing as packing_module
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import Row, block_mask, pack_questions, prefix_causal_mask

SCENES = two_scenes()


def training_batch(model: VideoQATask, *scenes: LoadedScene, **packing: Any) -> Batch:
    return tiny_batch(model, *scenes, training=True, **packing)


def sequences(asked: Batch) -> Sequences:
    assert asked.sequences is not None
    return asked.sequences


def packed(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    asked = training_batch(model, *scenes)
    assert sequences(asked).group is not None and len(sequences(asked)) == len(scenes) < len(asked.records)
    return learned(model, model.loss(asked))


def a_row_each(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    asked = one_per_row(model, *scenes)
    assert sequences(asked).group is None and len(sequences(asked)) == len(asked.records)
    return learned(model, model.loss(asked))


def alone(model: VideoQATask, *scenes: LoadedScene) -> Learned:
    """Return the mean over batches of one question each, the slow reference."""
    batches = [training_batch(model, replace(each, questions=(q,))) for each in scenes for q in each.questions]
    return learned(model, torch.stack([model.loss(one) for one in batches]).mean())


# ---- questions of a scene --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "family"), MODELS_AND_FAMILIES)
def test_loss_and_gradients_equal_one_question_per_row(name: str, family: str) -> None:
    """Scenes, questions and answers have different lengths; float32 alone comes near 1e-5 on some processors."""
    model, scenes = tiny_model(name, family=family).train().double(), two_scenes(family)
    bound = 1e-4 if family == "Qwen3.5" else 1e-5  # chunks of the delta rule begin elsewhere
    assert difference(packed(model, *scenes), a_row_each(model, *scenes)) < bound


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["plain", "PRoPE on ConcatSplitFusion"])
def test_loss_and_gradients_are_those_of_each_question_alone(name: str, implementation: str) -> None:
    model = tiny_model(name, implementation=implementation).train().double()
    assert difference(packed(model, *SCENES), alone(model, *SCENES)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PRoPE on ConcatSplitFusion", "URoPE"])
def test_flex_attention_by_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs uncompiled on the CPU, where torch refuses gradients although the uncompiled ones exist."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model = tiny_model(name, implementation="flex_attention").train().double()
    reference = tiny_model(name).train().double()
    backbone = model.model.backbone
    assert backbone.supports_custom_mask and backbone.vlm.config.vision_config._attn_implementation == "sdpa"
    with torch.compiler.set_stance("force_eager"):
        expected = alone(reference, *SCENES)
        assert difference(packed(model, *SCENES), expected) < 1e-5
        assert difference(a_row_each(model, *SCENES), expected) < 1e-5
        assert difference(losses_of(model, pack_scenes=True), losses_of(reference)) < 2e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for a GPU, and there is none")
@pytest.mark.parametrize("pack_scenes", [False, True])
def test_flex_attention_on_a_gpu(pack_scenes: bool) -> None:
    name = "PRoPE on ConcatSplitFusion"
    model, reference = (tiny_model(name, implementation=each).train().cuda() for each in ("flex_attention", "sdpa"))
    assert difference(losses_of(model, pack_scenes=pack_scenes), losses_of(reference)) < 1e-3


@pytest.mark.parametrize("is_gpu", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("error:_compile flag:DeprecationWarning")
def test_block_mask_equals_the_dense_mask(is_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_gpu:  # the path that compiles the mask
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    keys = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, 1, 1, 1, 2, 3, 3, 3]])
    for queries in (keys, keys[:, -4:]):
        mask = block_mask(queries, keys)
        seen = create_mask(mask.mask_mod, 2, 1, queries.shape[1], 8, device="cpu")[:, 0]
        assert torch.equal(seen, prefix_causal_mask(queries, keys)) and not seen.all()


def test_gradient_checkpointing_keeps_the_mask() -> None:
    expected = a_row_each(tiny_model("PRoPE, ChannelRange").train().double(), *SCENES)
    model = tiny_model("PRoPE, ChannelRange", gradient_checkpointing=True).train().double()
    assert difference(packed(model, *SCENES), expected) < 1e-5


@pytest.mark.parametrize("removed", ["mask", "positions"])
def test_without_mask_or_positions_of_the_questions_they_differ(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("plain").train()
    expected = a_row_each(model, *SCENES)

    def run_on(*arguments: Any) -> tuple[list[Row], list[int]]:
        packed_rows = pack_questions(*arguments)
        assert packed_rows is not None
        rows, scene_of = packed_rows
        return [row._replace(position_offset=torch.zeros_like(row.input_ids)) for row in rows], scene_of

    if removed == "positions":
        monkeypatch.setattr(builder, "pack_questions", run_on)
    asked = training_batch(model, *SCENES)
    if removed == "mask":
        prefix = torch.zeros_like(sequences(asked).input_ids)  # all of them are the prefix
        vars(asked)["sequences"] = replace(sequences(asked), group=prefix)
    assert difference(learned(model, model.loss(asked)), expected) > 1e-2


def test_attention_without_custom_masks_gets_one_question_per_row() -> None:
    """Like flash attention, the backend is causal and takes no mask, so padding is on the right."""
    model = tiny_model("plain").train()
    expected, seen = a_row_each(model, *SCENES), []

    def causal(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        seen.append((tuple(q.shape[::2]), mask))
        earlier = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, earlier[None, None], **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("causal", causal)
    ALL_MASK_ATTENTION_FUNCTIONS.register("causal", flash_attention_mask)
    model.model.backbone.vlm.model.language_model.config._attn_implementation = "causal"
    asked = training_batch(model, *SCENES)
    found = learned(model, model.loss(asked))
    assert len(asked.records) == len(sequences(asked)) and len(set(sequences(asked).lengths)) > 1
    assert set(seen) == {((len(asked.records), max(sequences(asked).lengths)), None)}
    assert difference(found, expected) < 1e-5


def test_a_bound_of_tokens_divides_the_questions_and_changes_no_gradient() -> None:
    model = tiny_model("plain").train()
    unbounded = training_batch(model, *SCENES)
    expected, longest = learned(model, model.loss(unbounded)), max(sequences(unbounded).lengths)
    for bound in (longest, longest - 1, 1):
        asked = training_batch(model, *SCENES, tokens_per_sequence=bound)
        packed_rows = sequences(asked)
        assert (packed_rows.group is None) == (bound == 1)  # a row each
        lengths = torch.tensor(packed_rows.lengths)
        questions = torch.ones_like(lengths) if packed_rows.group is None else packed_rows.group.amax(1)
        assert ((lengths <= bound) | (questions == 1)).all()  # one question alone may be longer
        assert questions.sum() == len(asked.records)
        assert (len(packed_rows) == len(SCENES)) == (bound == longest)
        assert difference(learned(model, model.loss(asked)), expected) < 1e-5


@pytest.mark.parametrize("name", ["plain", "PRoPE, ChannelRange"])
@pytest.mark.parametrize(
    ("packing", "has_mask"),
    [
        ({}, True),
        ({"pack_scenes": True}, True),
        ({"tokens_per_sequence": 1}, False),
        ({"tokens_per_sequence": 1, "pack_scenes": True}, False),
    ],
)
def test_a_mask_that_is_plainly_causal_is_left_out(
    name: str, packing: dict[str, Any], has_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash kernels take none. Masks of several questions or scenes stay."""
    model, masks = tiny_model(name).train(), []
    attend = ALL_ATTENTION_FUNCTIONS[GROUPED_SDPA]

    def spy(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        masks.append(mask)
        return attend(module, q, k, v, mask, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, GROUPED_SDPA, spy)
    model.loss(training_batch(model, *SCENES, **packing))
    assert len(masks) == 2 and [mask is not None for mask in masks] == [has_mask] * 2
    assert all(mask is masks[0] for mask in masks)  # one for all layers


@pytest.mark.parametrize("packing", [{}, {"pack_scenes": True}, {"tokens_per_sequence": 1}])
def test_a_block_mask_is_built_once_for_all_layers(packing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model, built = tiny_model("plain", implementation="flex_attention").train(), []

    def counted(*args: Any, **options: Any) -> Any:
        built.append(create_block_mask(*args, **options))
        return built[-1]

    for module in (packing_module, masking_utils):
        monkeypatch.setattr(module, "create_block_mask", counted)
    with torch.compiler.set_stance("force_eager"):
        model.loss(training_batch(model, *SCENES, **packing))
    assert len(built) == 1 < len(model.model.backbone.decoder.layers)


def test_prompts_without_a_question_of_their_own_are_not_packed() -> None:
    """Of two answers to one question, only one could learn from the token before it. Single questions share nothing."""
    model = tiny_model("plain").train()
    apart = tiny_scene("a", QUESTIONS[:1]), tiny_scene("b", QUESTIONS[1:2])
    twice = tiny_scene("a", (QUESTIONS[0], replace(QUESTIONS[0], id="again", ground_truth="7")))
    assert sequences(training_batch(model, *apart)).group is None
    answers = [sequences(each).answer_ids for each in (training_batch(model, twice), one_per_row(model, twice))]
    assert sequences(training_batch(model, twice)).group is not None and len(answers[0]) == len(answers[1])
    assert difference(packed(model, twice), a_row_each(model, twice)) < 1e-5


@pytest.mark.parametrize(("family", "pack_scenes"), [("Qwen2.5-VL", False), ("Qwen2.5-VL", True), ("Qwen3.5", False)])
def test_a_scene_whose_questions_share_no_prefix_leaves_others_packed(family: str, pack_scenes: bool) -> None:
    model, (shared, _) = tiny_model("plain", family=family).train(), two_scenes(family)
    later = RawQuestion("later", "", "Look first: <video> What is it?", "a room")
    unshared = tiny_scene("b", (QUESTIONS[0], later), steps=2, seed=1, family=family)
    asked = training_batch(model, unshared, shared, pack_scenes=pack_scenes)
    assert sequences(asked).scene_index == [[0], [0], [1]] and len(asked.records) == 5
    expected = a_row_each(model, unshared, shared)
    assert difference(learned(model, model.loss(asked)), expected) < (1e-4 if family == "Qwen3.5" else 1e-5)


def test_questions_that_another_process_learns_from_give_zero_gradients() -> None:
    """Every parameter keeps a gradient, because the other processes of DDP wait for it."""
    model = tiny_model("plain").train()
    loss, gradients = learned(
        model, model.loss(training_batch(model, *(replace(each, is_supervised=False) for each in SCENES)))
    )
    reference = learned(model, model.loss(training_batch(model, *SCENES)))[1]
    assert loss == 0 and gradients.keys() == reference.keys()
    assert all((gradient == 0).all() for gradient in gradients.values())
    assert any((gradient != 0).any() for gradient in reference.values())


# ---- several scenes in one sequence, without padding -----------------------------------------------------------------


def asked_of(model: VideoQATask, family: str = "Qwen2.5-VL", questions: int = 2, **packing: Any) -> Batch:
    """Collate three scenes of different lengths; the first has `questions` questions."""
    scenes = [tiny_scene("a", QUESTIONS[1 : 1 + questions], family=family)]
    scenes += [tiny_scene(name, QUESTIONS[n : n + 1], 2, 1, family) for n, name in ((0, "b"), (2, "c"))]
    return training_batch(model, *scenes, **packing).to(model.device)


def losses_of(model: VideoQATask, *what: Any, **packing: Any) -> Learned:
    return learned(model, model.loss(asked_of(model, *what, **packing)))


FAST = {
    *("plain", "prope.yaml", "DeepFusion", "CameraTokenFusion, append", "PRoPE, ExtraChannels", "PoseALiBi"),
    *("ValueRoPE", "RayRoPE"),
}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, MASKED_FAMILIES[number % 2], marks=() if name in FAST else pytest.mark.slow)
        for number, name in enumerate(MODELS)
    ],
)
def test_losses_and_gradients_equal_those_of_padded_rows(name: str, family: str) -> None:
    model = tiny_model(name, family=family).train()
    expected = losses_of(model, family)
    assert difference(losses_of(model, family, pack_scenes=True), expected) < 2e-5


@pytest.mark.parametrize(("name", "questions"), [("plain", 3), ("PRoPE, ChannelRange", 1)])
def test_a_bound_of_tokens_divides_the_scenes_and_changes_no_gradient(name: str, questions: int) -> None:
    model = tiny_model(name).train()
    expected, shapes = losses_of(model, questions=questions), list[tuple[int, int]]()
    bounds: list[int | None] = [None]
    for bound in bounds:
        asked = asked_of(model, questions=questions, pack_scenes=True, tokens_per_sequence=bound)
        packing = sequences(asked).packing
        assert (packing is None) == (bound == 1)  # a sequence each
        shapes.append((len(sequences(asked)), shapes[0][1]) if packing is None else packing.shape)
        assert difference(learned(model, model.loss(asked)), expected) < 2e-5
        bounds += [shapes[0][1] - 1, 1] if bound is None else []
    (one, longest), (few, bounded), (many, _) = shapes
    assert one == 1 < few < many and bounded < longest


@pytest.mark.parametrize("removed", ["mask", "cameras"])
def test_without_mask_or_cameras_of_the_rows_they_differ(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls."""
    model = tiny_model("PRoPE, ChannelRange").train()
    expected = losses_of(model)
    if removed == "cameras":
        monkeypatch.setattr(PackedEncoding, "at_layer", lambda *_: None)
    else:
        mask = model.model.backbone.question_mask
        monkeypatch.setattr(model.model.backbone, "question_mask", lambda queries, keys, _: mask(queries * 0, keys * 0))
    assert difference(losses_of(model, pack_scenes=True), expected) > 1e-3


def test_objectives_checkpoints_and_refused_backends_of_packed_scenes() -> None:
    """Hidden states of inner layers are read per scene."""
    for name, options in (
        ("plain", {"objectives": [CameraPrediction(layer=0)]}),
        ("PRoPE on ConcatSplitFusion", {"gradient_checkpointing": True}),
    ):
        model = tiny_model(name, **options).train()
        assert difference(losses_of(model, pack_scenes=True), losses_of(model)) < 2e-5
    model.model.backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="--data.pack_scenes"):
        losses_of(model, pack_scenes=True)


# ---- text behind a video that is long in time, by both rules ---------------------------------------------------------


SECONDS = 20  # per temporal patch: T reaches 80 on a grid of 2 x 3 tokens


def model_of(rule: TextAfterVision) -> VideoQATask:
    return tiny_model("plain", time_index=TimestampIndex(SECONDS), text_after_vision=rule)


def stock_answers(model: VideoQATask, asked: Batch) -> list[list[int]]:
    """Answer by `generate` of transformers, which computes the positions itself."""
    backbone, found = model.model.backbone, []
    for prompt in prompts_of(asked):
        ids = torch.tensor([prompt])
        (shown,) = asked.scenes
        out = backbone.vlm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=model.preprocessor.normalize(shown.pixel_values),
            video_grid_thw=torch.tensor(shown.media_grids),
            second_per_grid_ts=torch.tensor([SECONDS]),
            mm_token_type_ids=2 * (ids == backbone.placeholders.video).int(),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=backbone.stop_tokens,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def test_max_hw_answers_as_transformers_does_by_every_path() -> None:
    model = model_of("max_hw")
    asked = tiny_batch(model, tiny_scene("a"))
    expected = stock_answers(model, asked)
    assert one_by_one(model, asked) == expected
    assert [reply.ids for reply in replies(model, asked)] == expected
    other = model_of("max_thw")
    asked = tiny_batch(other, tiny_scene("a"))
    assert one_by_one(other, asked) == [reply.ids for reply in replies(other, asked)] != expected  # the control


def test_the_highest_position_of_the_prefix_is_not_where_its_text_goes_on() -> None:
    """The negative control of the cached prefix."""
    model = model_of("max_hw")
    asked = tiny_batch(model, tiny_scene("a"))
    expected = one_by_one(model, asked)
    (prompt,) = asked.prompts
    assert prompt.prefix.position_ids is not None and prompt.next_position is not None
    highest = int(prompt.prefix.position_ids.amax()) + 1
    assert highest > prompt.next_position
    prompt.next_position = highest
    assert [reply.ids for reply in replies(model, asked)] != expected


@pytest.mark.parametrize("rule", ["max_thw", "max_hw"])
def test_packed_questions_follow_the_rule(rule: TextAfterVision) -> None:
    model = model_of(rule).train()
    packed = model.loss(training_batch(model, tiny_scene("a")))
    assert torch.allclose(packed, model.loss(one_per_row(model, tiny_scene("a"))), rtol=1e-5)
    model.model.text_after_vision = "max_hw" if rule == "max_thw" else "max_thw"
    assert not torch.allclose(packed, model.loss(one_per_row(model, tiny_scene("a"))), rtol=1e-3)  # the control
