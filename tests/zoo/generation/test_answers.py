"""Answers from a shared prefix in the KV cache equal those of each question alone; failures, and sampling."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules import PixelBounds, Rooms, SceneFolder, UniformSampler
from datamodules.dataset import SceneDataset
from datamodules.sources.annotations import read_questions
from tests.conftest import ROOMS
from tests.test_real_scenes import red_kitchen
from tests.tiny import (
    MODELS_AND_FAMILIES,
    NEW,
    QUESTIONS,
    TEXTS,
    inputs_of,
    logits_of,
    one_by_one,
    one_per_row,
    prompts_of,
    replies,
    tiny_batch,
    tiny_model,
    tiny_scene,
)
from tests.zoo.released import load_case, official_weights, write_release
from zoo import InputError, PretrainedQwen25VL, VideoQATask
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.generation import Reply, Sampling
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import prefix_causal_mask


def tokens_read(model: VideoQATask) -> list[int]:
    """Return a list that records how many tokens each pass of the decoder reads."""
    counts: list[int] = []
    model.model.backbone.vlm.model.language_model.layers[0].register_forward_hook(
        lambda *each: counts.append(each[2].shape[-2])
    )
    return counts


def ids(model: VideoQATask, asked: Batch) -> list[list[int]]:
    found = replies(model, asked)
    assert not any(reply.error for reply in found)
    return [reply.ids for reply in found]


def assert_one_by_one(model: VideoQATask, asked: Batch) -> list[list[int]]:
    """Check the answers against those of each question by itself, and return them."""
    answers = ids(model, asked)
    assert answers == one_by_one(model, asked, answers)
    return answers


def lengths_of(asked: Batch) -> Tensor:
    """Return the number of tokens of each question and its prefix."""
    return torch.tensor([len(row) for row in prompts_of(asked)])


def video_tokens(asked: Batch) -> int:
    """Return the number of visual placeholders in a prompt."""
    return prompts_of(asked)[0].count(tiny_processor().video_token_id)


@pytest.mark.parametrize(("name", "family"), MODELS_AND_FAMILIES)
def test_answers_are_those_of_each_question_by_itself(name: str, family: str) -> None:
    """Questions and scenes have different lengths, and one question is asked twice."""
    model = tiny_model(name, family=family)
    longer = tiny_scene("a", (*QUESTIONS, QUESTIONS[0]), family=family)
    asked = tiny_batch(model, longer, tiny_scene("b", QUESTIONS[1:2], steps=2, seed=1, family=family))
    answers = assert_one_by_one(model, asked)
    assert answers[0] == answers[5] and len({tuple(answer) for answer in answers}) > 4  # the control


@pytest.mark.parametrize(("dtype", "penalty"), [("float32", 4.0), ("bfloat16", 1.05)])
def test_a_repetition_penalty_is_transformers(dtype: str, penalty: float) -> None:
    """The penalty counts the tokens of the whole prompt and of the answer so far."""
    model = tiny_model("plain", dtype=dtype, repetition_penalty=penalty)
    for at_once in (8, 1):
        asked = tiny_batch(
            model, tiny_scene("a", QUESTIONS[:3]), tiny_scene("b", QUESTIONS[1:2], steps=2, seed=1), at_once=at_once
        )
        penalized = assert_one_by_one(model, asked) if dtype == "float32" else ids(model, asked)
        answers = [record["prediction"] for record in model.predict_batch(asked)]
        assert answers == model.preprocessor.decode(penalized)
    for answer in penalized:
        assert penalty < 2 or len(set(answer)) == len(answer)  # no token twice
    model.repetition_penalty = 1.0
    assert penalty < 2 or ids(model, asked) != penalized  # the control
    with pytest.raises(InputError, match="repetition_penalty 0.0"):
        tiny_model(repetition_penalty=0.0)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_however_many_at_once(at_once: int) -> None:
    model = tiny_model("plain")
    asked = tiny_batch(model, tiny_scene("a"), at_once=at_once)
    read = tokens_read(model)
    answers = ids(model, asked)
    lengths = lengths_of(asked)
    shared = read[0]
    assert shared > video_tokens(asked) > 0
    # the prefix once, the questions once, and all but the last token of each answer
    assert sum(read) == shared + int((lengths - shared).sum()) + sum(len(answer) - 1 for answer in answers)
    assert answers == one_by_one(model, asked, answers)


@pytest.mark.parametrize("name", ["plain", "PoseALiBi"])
def test_answers_that_end_at_different_times(name: str) -> None:
    model = tiny_model(name)
    asked = tiny_batch(model, tiny_scene("a"))
    free = ids(model, asked)
    # each of these ends some answer, at its first, third and fourth token if not earlier
    model.model.backbone.stop_tokens = [free[0][0], free[1][2], free[3][3]]
    expected = one_by_one(model, asked)
    assert len({len(answer) for answer in expected}) > 2 and max(map(len, expected)) == NEW
    assert ids(model, asked) == expected


@pytest.mark.parametrize("name", ["plain", "PoseALiBi"])
def test_long_questions_are_read_piece_by_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    asked = tiny_batch(model, tiny_scene("a"))
    monkeypatch.setattr("zoo.generation.TOKENS_AT_ONCE", 7)
    assert_one_by_one(model, asked)


@pytest.mark.parametrize(
    ("name", "implementation", "family"),
    [
        ("plain", "eager", "Qwen3-VL"),
        ("PRoPE, ExtraChannels", "flex_attention", "Qwen2.5-VL"),
        pytest.param("PRoPE, ChannelRange", "flex_attention", "Qwen3.5", marks=pytest.mark.slow),
    ],
)
def test_other_attention_backends_give_the_same_answers(name: str, implementation: str, family: str) -> None:
    model, other = tiny_model(name, implementation=implementation, family=family), tiny_model(name, family=family)
    asked = tiny_batch(model, tiny_scene("a", QUESTIONS[:3], family=family))
    with torch.compiler.set_stance("force_eager"):
        answers = ids(model, asked)
        assert answers == one_by_one(other, asked, answers)


@pytest.mark.parametrize("name", ["plain", "PRoPE, ExtraChannels"])
def test_attention_that_takes_no_mask_gets_one_question_at_a_time(name: str) -> None:
    """Like flash attention, the backend is causal and takes no mask."""
    masks = []

    def causal(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        masks.append(mask)
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, later[None, None], **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("causal", causal)
    model = tiny_model(name)
    asked = tiny_batch(model, tiny_scene("a"))
    expected = ids(model, asked)  # those of each question by itself
    model.model.backbone.vlm.model.language_model.config._attn_implementation = "causal"
    read = tokens_read(model)
    assert ids(model, asked) == expected
    assert masks and all(mask is None for mask in masks)
    questions = (lengths_of(asked) - read[0]).tolist()
    assert read[1:] == [count for question in questions for count in (question, *[1] * (NEW - 1))]  # still one prefix


def test_questions_before_the_video_share_no_prefix() -> None:
    """Prompts that differ before the video are read whole, one by one."""
    model = tiny_model("PRoPE, ChannelRange")
    asked = tiny_batch(model, tiny_scene("a"))
    words = tiny_processor().tokenizer("Which one?")["input_ids"]
    rows = [[*words[: 1 + i % 3], *row] for i, row in enumerate(prompts_of(asked))]
    prompts = model.model.sequence_builder.prompts(rows, [[0]] * len(rows), asked.scenes)
    apart = Batch(asked.scenes, asked.vision, prompts=prompts, records=asked.records)
    assert len(asked.prompts) == 1 and len(prompts) == len(rows) and prompts_of(apart) == rows
    assert_one_by_one(model, apart)


def test_questions_that_see_each_other_answer_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("plain")
    asked = tiny_batch(model, tiny_scene("a"))
    expected = ids(model, asked)

    def all_of_it(self: Any, queries: Tensor, keys: Tensor) -> Tensor:
        return prefix_causal_mask(torch.zeros_like(queries), torch.zeros_like(keys))[:, None]

    monkeypatch.setattr(Qwen25VLBackbone, "question_mask", all_of_it)
    assert ids(model, asked) != expected


@pytest.mark.parametrize("name", ["plain", "PRoPE, ExtraChannels"])
def test_bfloat16_logits_are_as_near_to_float32s_as_each_questions_own(name: str) -> None:
    """Over 48 questions, the rms error of the first token's logits is at most 1.1 times that of the slow path."""
    whole, model = tiny_model(name), tiny_model(name, dtype="bfloat16")
    asked = [tiny_batch(whole, tiny_scene("a", QUESTIONS[:1] * 8, seed=seed)) for seed in range(6)]

    @torch.no_grad()
    def slowly(model: VideoQATask) -> Tensor:
        rows = [logits_of(model, inputs_of(model, each, slice(1)))[:, -1] for each in asked]
        return torch.cat(rows).repeat_interleave(8, 0).float()  # the questions are the same

    def quickly(model: VideoQATask) -> Tensor:
        found: list[Tensor] = []
        model.max_new_tokens = 1
        model.model.backbone.vlm.lm_head.register_forward_hook(lambda *each: found.append(each[2].flatten(0, -2)[-8:]))
        for each in asked:
            ids(model, each)
        return torch.cat(found).float()

    exact = slowly(whole)
    slow, fast = ((way(model) - exact).square().mean().sqrt() for way in (slowly, quickly))
    assert 0 < fast < 1.1 * slow


def test_a_stop_token_of_the_released_generation_config_ends_an_answer(tmp_path: Path) -> None:
    """Released models list <|im_end|> and <|endoftext|>; config.json has the former alone."""
    config = load_case("qwen_one_video")[0]["config"]
    write_release(tmp_path, config["qwen"] | {"model_type": "qwen2_5_vl"}, official_weights(config, False))
    end = tiny_processor().tokenizer.convert_tokens_to_ids("<|endoftext|>")
    plain = PretrainedQwen25VL(str(tmp_path)).load()
    assert end not in plain.stop_tokens  # the control
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [1, {end}], "repetition_penalty": 1.05}}')
    backbone = PretrainedQwen25VL(str(tmp_path)).load()
    assert {1, end} <= set(backbone.stop_tokens)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch(error: RuntimeError) -> None:
    """Memory ends in the middle of a forward pass, when some layers hold more tokens than others."""
    model = tiny_model("PoseALiBi")
    asked = tiny_batch(model, tiny_scene("a"), at_once=4)
    expected, failures = ids(model, asked), list[int]()
    most = int((lengths_of(asked) - video_tokens(asked)).topk(2).values.sum())  # two questions fit

    def short(module: nn.Module, states: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["hidden_states"].shape[1] > most:
            failures.append(kwargs["hidden_states"].shape[1])
            raise error

    def shorter(module: nn.Module, states: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["cache"].get_seq_length():
            raise error

    first, second = (layer.self_attn for layer in model.model.backbone.decoder.layers)
    second.register_forward_pre_hook(short, with_kwargs=True)
    assert ids(model, asked) == expected and len(failures) == 1
    first.register_forward_pre_hook(shorter, with_kwargs=True)
    found = replies(model, asked)
    assert all(not reply.ids and "no memory for this question alone" in str(reply.error) for reply in found)


# ---- failures -------------------------------------------------------------------------------------------------------


def test_logits_that_are_not_finite_are_an_error_of_that_question_alone() -> None:
    """NaN and infinity fail one question; a token that is ruled out by -inf does not."""
    model = tiny_model()
    asked = tiny_batch(model, tiny_scene("a"))
    expected = one_by_one(model, asked)
    third = expected[1][2]
    assert third not in expected[1][:2] and third not in expected[3]
    head = model.model.backbone.vlm.lm_head
    hook = head.register_forward_hook(
        lambda *each: each[2] + torch.where(each[2].argmax(-1, True) == third, torch.nan, 0)
    )
    found = replies(model, asked)
    assert found[1] == Reply([], "the logits of token 3 of the answer are not finite")
    assert found[3] == Reply(expected[3])
    hook.remove()
    hook = head.register_forward_hook(lambda *each: torch.full_like(each[2], torch.inf))
    assert replies(model, asked) == [Reply([], "the logits of token 1 of the answer are not finite")] * 5
    hook.remove()
    token = next(i for i in range(99) if all(i not in answer for answer in expected))  # one that is ruled out
    hook = head.register_forward_hook(lambda *each: each[2].index_fill(-1, torch.tensor([token]), -torch.inf))
    assert replies(model, asked) == [Reply(answer) for answer in expected]
    hook.remove()
    spoil(model, 2)
    records = model.predict_batch(asked)
    assert [bool(record["error"]) for record in records] == [False, False, True, False, False]
    assert records[2]["prediction"] == "" and "token 1 of the answer" in records[2]["error"]


def spoil(model: VideoQATask, question: int) -> None:
    """Make the embedding NaN of a token that only this question has."""
    words = [set(tiny_processor().tokenizer(text)["input_ids"]) for text in TEXTS]
    own = words.pop(question).difference(*words)

    def hook(module: nn.Module, given: tuple[Tensor], states: Tensor) -> Tensor:
        return states.masked_fill((given[0] == min(own))[..., None], torch.nan)

    model.model.backbone.vlm.model.language_model.embed_tokens.register_forward_hook(hook)


def test_a_prompt_longer_than_the_context() -> None:
    model = tiny_model("plain")
    long = replace(QUESTIONS[0], id="long", question="How many chairs? " * 200)
    asked = tiny_batch(model, tiny_scene("a", (QUESTIONS[0], long, QUESTIONS[1])))
    lengths = [len(row) for row in prompts_of(asked)]
    context = lengths[1] + NEW - 1
    model.model.backbone.context_length = context
    short = tiny_batch(model, tiny_scene("a", QUESTIONS[:2]))
    expected = model.predict_batch(short)
    first, failed, last = model.predict_batch(asked)
    assert failed["error"] == (
        f"the prompt has {lengths[1]} tokens and its answer up to {NEW}, more than the {context} of the model's context"
    )
    assert failed["prediction"] == "" and [first, last] == expected
    model.model.backbone.context_length = context + 1
    assert all(record["error"] is None for record in model.predict_batch(asked))


def test_training_on_a_sequence_longer_than_the_context_is_an_error() -> None:
    """The batch records it for its question alone, and the step raises it."""
    model = tiny_model("plain").train()
    shown = tiny_scene("a")
    rows = one_per_row(model, shown).sequences
    assert rows is not None
    longest = max(rows.lengths)
    model.model.backbone.context_length = longest - 1
    failed = tiny_batch(model, shown, tiny_scene("b", QUESTIONS[2:3]), training=True)
    said = f"has {longest} tokens, more than the {longest - 1} of the model's context"
    assert [record["scene"] for record in failed.failed] == ["a"] and len(failed.records) == 5
    assert all(said in record["error"] for record in failed.failed)
    with pytest.raises(InputError, match=said):
        model.loss(failed)
    model.model.backbone.context_length = longest
    assert model.loss(tiny_batch(model, shown, training=True)).isfinite()


def fails(model: VideoQATask, times: int, error: Exception) -> list[str]:
    """Let the vision encoder fail so many times; return a list with a mark for each call."""
    called: list[str] = []

    def hook(*_: Any) -> None:
        called.append("x")
        if len(called) <= times:
            raise error

    model.model.backbone.vlm.model.visual.register_forward_pre_hook(hook)
    return called


SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [SHORT, RuntimeError("The size of tensor a must match"), torch.linalg.LinAlgError("singular"), MemoryError()],
)
def test_a_second_failure_is_the_error_of_the_scenes_questions(error: Exception) -> None:
    model = tiny_model("plain")
    asked, broken = tiny_batch(model, tiny_scene("a")), replace(tiny_scene("b"), error="b.mp4: no frames")
    called = fails(model, 2, error)
    failed = model.test_step(tiny_batch(model, tiny_scene("a"), broken), 0)
    name = type(error).__name__ + (f": {error}" if str(error) else "")
    first, *others = [record["error"] for record in failed]
    assert re.fullmatch(rf"{re.escape(name)} \({__file__}:\d+\)", first)  # the hook is no part of the zoo
    assert others == [first] * 4 + ["b.mp4: no frames"] * 5
    assert [record["prediction"] for record in failed] == [""] * 10 and len(called) == 2
    assert all(record["error"] is None for record in model.validation_step(asked, 0))  # and the next one is answered


def test_some_failures_are_tried_again_and_others_stop_the_run() -> None:
    """Out of memory is tried again. A broken GPU or a bug would fail with every scene that is left."""
    model = tiny_model()
    asked = tiny_batch(model, tiny_scene("a"))
    expected = model.test_step(asked, 0)
    called = fails(model, 1, SHORT)
    assert model.test_step(asked, 0) == expected and len(called) == 2
    for error in (torch.AcceleratorError("CUDA error: device-side assert triggered"), TypeError("a bug")):
        for step in (model.test_step, model.predict_step):
            fails(model, 1, error)
            with pytest.raises(type(error)):
                step(asked, 0)


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_sampling() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    torch.manual_seed(0)
    ways = Sampling(), Sampling(0.5), Sampling(2.0, 0.8), Sampling(top_k=2), Sampling(excluded=(0,))
    for sampling, draws in product(ways, (None, torch.rand(4000))):
        ids, log_probs = sampling(logits, draws)
        full = (logits[0] / sampling.temperature).log_softmax(-1)
        torch.testing.assert_close(log_probs, full[ids])
        expected = full.exp()
        if sampling.top_p < 1:
            expected[3] = 0  # 0.455, 0.276, 0.167, 0.101: the first three reach 0.8
        if sampling.top_k is not None:
            expected[2:] = 0
        if sampling.excluded:
            expected[0] = 0
        counts = torch.bincount(ids, minlength=4) / len(ids)
        torch.testing.assert_close(counts, expected / expected.sum(), atol=0.03, rtol=0)
        assert not counts[expected == 0].any()


def test_tokens_are_drawn_as_by_transformers() -> None:
    """With GeoVR's settings, `top_p` chooses among the renormalized probabilities of the `top_k` tokens."""
    generator = torch.Generator().manual_seed(0)
    logits, draws = torch.randn(2000, 60, generator=generator), torch.rand(2000, generator=generator)
    warped = logits
    for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        warped = warp(None, warped)
    bounds = warped.double().softmax(-1).cumsum(-1)
    expected = (bounds <= draws.double()[:, None]).sum(-1)
    ids, _ = Sampling(0.7, 0.8, 20)(logits, draws)
    assert (ids == expected).float().mean() > 0.999  # but for rounding at a bound
    other, _ = Sampling(0.7, 0.8)(logits, draws)
    assert (other != expected).any()  # the control
    with pytest.raises(InputError, match="top_p 1.5: above 0, up to 1"):
        Sampling(top_p=1.5)


def test_the_draws_of_a_question_depend_on_the_seed_and_on_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other questions, their order and the batch size do not matter, so a resumed test draws the same tokens."""
    task = tiny_model("plain", sampling=Sampling(1.5, 0.95, 50))
    scene, few = tiny_scene("a"), tiny_scene("a", QUESTIONS[3:0:-2])

    def answers(*scenes: Any, at_once: int = 8) -> dict[str, str]:
        torch.manual_seed(len(scenes))  # another generator's state does not matter
        records = task.predict_batch(tiny_batch(task, *scenes, at_once=at_once))
        return {each["scene"] + each["id"]: each["prediction"] for each in records}

    found = answers(scene)
    assert answers(scene, at_once=1) == found == answers(scene, at_once=2)
    assert answers(few) == {name: found[name] for name in ("a3", "a1")}
    both = answers(tiny_scene("b", steps=2, seed=1), scene)
    assert {name: both[name] for name in found} == found
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert answers(scene) != found
    task.sampling = None
    assert answers(scene) != found  # the most likely tokens


# ---- hundreds of questions ------------------------------------------------------------------------------------------


SMALL = PixelBounds(784, 9408, legacy_folder_resize=False)
EVERY = 30  # so many of VSI-Bench's questions are passed over: 171 of all types are left


@pytest.fixture(scope="module")
def loaded(rooms_root: Path, realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoadedScene]:
    """Load all rooms with their own questions, and a real kitchen with its cameras and VSI-Bench's questions."""
    rooms = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    scenes = [scene for split in ("train", "val", "test") for scene in rooms.scenes(split)]
    dataset = SceneDataset(
        scenes, UniformSampler(), 6, SMALL, spec=ModelSpec(requires_cameras=True, requires_depth=True)
    )
    folder = SceneFolder(str(red_kitchen(realdata, tmp_path_factory.mktemp("kitchen"))))
    kitchen = SceneDataset(folder.scenes("test"), UniformSampler(), 8, SMALL, spec=ModelSpec(requires_cameras=True))[0]
    questions = [q for scene in read_questions(realdata / "vsibench/test.jsonl").values() for q in scene][::EVERY]
    kitchen = replace(kitchen, questions=tuple(questions))
    assert kitchen.frames is not None and kitchen.geometry is not None
    kitchen.geometry.depth = torch.ones(len(kitchen.frames), *kitchen.frames.shape[-2:])  # not measured
    return [*(dataset[i] for i in range(len(scenes))), kitchen]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "prope.yaml"])
def test_answers_about_rooms_and_a_real_scene(name: str, loaded: list[LoadedScene]) -> None:
    """Hundreds of questions of all types are asked with the batch size of a test."""
    model, asked, answers = tiny_model(name), 0, set()
    for shown in loaded:
        assert shown.error is None
        rows = tiny_batch(model, shown, at_once=18)
        found = replies(model, rows)
        assert [reply.ids for reply in found] == one_by_one(model, rows)
        asked, answers = asked + len(found), answers | {tuple(reply.ids) for reply in found}
    assert asked > 250 and len(answers) > 50
