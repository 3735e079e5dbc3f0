"""Answers from a shared prefix in the KV cache equal those of each question alone, token by token."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.cases import each_once
from tests.zoo import asking
from tests.zoo.asking import (
    BACKBONES,
    MODELS_AND_FAMILIES,
    NEW,
    QUESTIONS,
    batch,
    build,
    one_by_one,
    prompts_of,
    replies,
    scene,
)
from tests.zoo.released import load_case, official_weights, write_release
from zoo import PretrainedQwen25VL
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.errors import InputError
from zoo.generation import CachedPrefix, Reply, answer_prompts
from zoo.sequences.batch import Batch
from zoo.sequences.packing import prefix_causal_mask
from zoo.tasks import VideoQATask


def tokens_read(model: VideoQATask) -> list[int]:
    """Fills with how many tokens go through the decoder at a time."""
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
    """The answers, which are those of each question by itself."""
    answers = ids(model, asked)
    assert answers == one_by_one(model, asked, answers)
    return answers


def lengths_of(asked: Batch) -> Tensor:
    """Tokens of each question, with the prefix."""
    return torch.tensor([len(row) for row in prompts_of(asked)])


def video_tokens(asked: Batch) -> int:
    """Placeholders in a prompt."""
    return prompts_of(asked)[0].count(tiny_processor().video_token_id)


FAST_BACKENDS = {("plain", "eager", "Qwen3-VL"), ("plain", "flex_attention", "Qwen2.5-VL")}
FAST_BACKENDS |= {
    ("PRoPE, ExtraChannels", "eager", "Qwen2.5-VL"),
    ("PRoPE, ExtraChannels", "flex_attention", "Qwen3-VL"),
}


# ---- equal to the question-by-question path -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "family"), MODELS_AND_FAMILIES)
def test_answers_are_those_of_each_question_by_itself(name: str, family: str) -> None:
    """Questions of different lengths and scenes of different lengths; two of the questions are the same."""
    model, scene = build(name, family=family), partial(asking.scene, family=family)
    asked = batch(model, scene("a", (*QUESTIONS, QUESTIONS[0])), scene("b", QUESTIONS[1:2], steps=2, seed=1))
    answers = assert_one_by_one(model, asked)
    assert answers[0] == answers[5] and len({tuple(answer) for answer in answers}) > 4  # the control


@pytest.mark.parametrize("name", ["plain", "DeepFusion", "PRoPE, ExtraChannels", "PoseALiBi"])
def test_scenes_with_one_question_each(name: str) -> None:
    model = build(name)
    assert_one_by_one(model, batch(model, scene("a", QUESTIONS[:1]), scene("b", QUESTIONS[2:3], seed=1)))


def test_answers_record_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recording = build("plain"), []
    decoder_inputs = model.model.decoder_inputs

    def recorded(*args: Any) -> dict[str, Any]:
        recording.append(torch.is_grad_enabled())
        return decoder_inputs(*args)

    monkeypatch.setattr(model.model, "decoder_inputs", recorded)
    asked = batch(model, scene("a"))
    answer_prompts(model.model, model.model.encode_scenes(asked), asked.prompts, NEW)
    assert recording and not any(recording)
    asking.inputs_of(model, asked)
    assert recording[-1]  # the control


def test_a_penalty_that_is_no_factor_is_refused() -> None:
    with pytest.raises(InputError, match="--model.repetition_penalty 0.0: a factor above 0"):
        build("plain").model.answer(torch.zeros(4, 3, 56, 84), "How many?", repetition_penalty=0.0)
    with pytest.raises(InputError, match="repetition_penalty 0.0"):
        build("plain", repetition_penalty=0.0)


@pytest.mark.parametrize(("dtype", "penalty"), each_once(["float32", "bfloat16"], [4.0, 1.05]))
def test_a_repetition_penalty_is_transformers(dtype: str, penalty: float) -> None:
    """Of the tokens of the prompt, the shared ones included, and of the answer so far."""
    model = build("plain", dtype=dtype, repetition_penalty=penalty)
    for at_once in (8, 1):
        asked = batch(model, scene("a", QUESTIONS[:3]), scene("b", QUESTIONS[1:2], steps=2, seed=1), at_once=at_once)
        penalized = assert_one_by_one(model, asked) if dtype == "float32" else ids(model, asked)
        answers = [record["prediction"] for record in model.predict_batch(asked)]
        assert answers == model.preprocessor.decode(penalized)
    for answer in penalized:
        assert penalty < 2 or len(set(answer)) == len(answer)  # no token twice
    model.repetition_penalty = 1.0
    assert penalty < 2 or ids(model, asked) != penalized  # the control


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_however_many_at_once(at_once: int) -> None:
    model = build("plain")
    asked = batch(model, scene("a"), at_once=at_once)
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
    model = build(name)
    asked = batch(model, scene("a"))
    free = ids(model, asked)
    # each of these ends some answer, at its first, third and fourth token if not earlier
    model.model.backbone.stop_tokens = [free[0][0], free[1][2], free[3][3]]
    expected = one_by_one(model, asked)
    assert len({len(answer) for answer in expected}) > 2 and max(map(len, expected)) == NEW
    assert ids(model, asked) == expected


@pytest.mark.parametrize("name", ["plain", "PRoPE, TemporalSection", "PoseALiBi"])
def test_long_questions_are_read_piece_by_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    asked = batch(model, scene("a"))
    monkeypatch.setattr("zoo.generation.TOKENS_AT_ONCE", 7)
    assert_one_by_one(model, asked)


@pytest.mark.parametrize(
    ("name", "implementation", "family"),
    [
        pytest.param(*each, marks=() if each in FAST_BACKENDS else pytest.mark.slow)
        for each in product(
            ("plain", "PRoPE, ChannelRange", "PRoPE, ExtraChannels"), ("eager", "flex_attention"), BACKBONES
        )
    ],
)
def test_other_attention_backends_give_the_same_answers(name: str, implementation: str, family: str) -> None:
    model, other = build(name, implementation=implementation, family=family), build(name, family=family)
    asked = batch(model, scene("a", QUESTIONS[:3], family=family))
    with torch.compiler.set_stance("force_eager"):
        answers = ids(model, asked)
        assert answers == one_by_one(other, asked, answers)


@pytest.mark.parametrize("name", ["plain", "PRoPE, ExtraChannels"])
def test_attention_that_takes_no_mask_gets_one_question_at_a_time(name: str) -> None:
    """As flash attention: causal, and nothing else."""
    masks = []

    def causal(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        masks.append(mask)
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, later[None, None], **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("causal", causal)
    model = build(name)
    asked = batch(model, scene("a"))
    expected = ids(model, asked)  # those of each question by itself
    model.model.backbone.vlm.model.language_model.config._attn_implementation = "causal"
    read = tokens_read(model)
    assert ids(model, asked) == expected
    assert masks and all(mask is None for mask in masks)
    questions = (lengths_of(asked) - read[0]).tolist()
    assert read[1:] == [count for question in questions for count in (question, *[1] * (NEW - 1))]  # still one prefix


def test_questions_before_the_video_share_no_prefix() -> None:
    """Prompts that part ways before the video: each is read whole."""
    model = build("PRoPE, ChannelRange")
    asked = batch(model, scene("a"))
    words = tiny_processor().tokenizer("Which one?")["input_ids"]
    rows = [[*words[: 1 + i % 3], *row] for i, row in enumerate(prompts_of(asked))]
    prompts = model.model.sequence_builder.prompts(rows, [[0]] * len(rows), asked.scenes)
    apart = Batch(asked.scenes, asked.vision, prompts=prompts, records=asked.records)
    assert len(asked.prompts) == 1 and len(prompts) == len(rows) and prompts_of(apart) == rows
    assert_one_by_one(model, apart)


def test_gradient_checkpointing_changes_no_answer() -> None:
    """Nor does training mode: layers that were checkpointed while they answer would keep no cache."""
    model = build("plain", gradient_checkpointing=True)
    asked = batch(model, scene("a"))
    assert ids(model, asked) == ids(build("plain"), asked) == ids(model.train(), asked)


# ---- the controls: what the masks and the positions are for -----------------------------------------------


def test_questions_that_see_each_other_answer_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = ids(model, asked)

    def all_of_it(self: Any, queries: Tensor, keys: Tensor) -> Tensor:
        return prefix_causal_mask(torch.zeros_like(queries), torch.zeros_like(keys))[:, None]

    monkeypatch.setattr(Qwen25VLBackbone, "question_mask", all_of_it)
    assert ids(model, asked) != expected


def test_positions_that_do_not_restart_answer_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain")
    asked = batch(model, scene("a"))
    expected = ids(model, asked)
    original = CachedPrefix._read

    def run_on(self: CachedPrefix, tokens: Tensor, mask: Any) -> Tensor:
        count = tokens.shape[1]
        if count > len(QUESTIONS):
            tokens = torch.stack((tokens[0], torch.arange(count), tokens[2]))
        return original(self, tokens, mask)

    monkeypatch.setattr(CachedPrefix, "_read", run_on)
    assert ids(model, asked) != expected


def test_the_cameras_are_in_the_cache() -> None:
    model = build("PRoPE, ChannelRange")
    asked, other = batch(model, scene("a")), scene("a")
    assert other.geometry is not None and other.geometry.world_to_camera is not None
    other.geometry.world_to_camera = other.geometry.world_to_camera.flip(0)
    assert ids(model, asked) != ids(model, batch(model, other))


# ---- memory, and precision ----------------------------------------------------------------------------------


def test_there_is_one_prefix_in_the_cache_and_it_is_left_as_it_was() -> None:
    model = build("PRoPE, ExtraChannels")
    asked = batch(model, scene("a"))
    made: list[CachedPrefix] = []
    original = CachedPrefix.answer

    def spy(self: CachedPrefix, *args: Any) -> list[Reply]:
        before = [layer.keys.clone() for layer in self.cache.layers]
        found = original(self, *args)
        for layer, keys in zip(self.cache.layers, before, strict=True):
            assert len(layer.keys) == 1 and torch.equal(layer.keys[:, :, : self.length], keys)
        made.append(self)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPrefix, "answer", spy)
        ids(model, asked)
    (prefix,) = made
    tokens = int((lengths_of(asked) - prefix.length).sum()) + len(QUESTIONS) * (NEW - 1)
    assert prefix.cache.get_seq_length() <= prefix.length + tokens


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize(("at_once", "error"), zip((4, 5), SHORT, strict=True), ids=["4, GPU", "5, CPU"])
def test_out_of_memory_halves_the_batch(at_once: int, error: RuntimeError) -> None:
    """In the middle of a forward pass, when some layers hold more tokens than others."""
    model = build("PoseALiBi")
    asked = batch(model, scene("a"), at_once=at_once)
    expected, failures = ids(model, asked), []
    most = int((lengths_of(asked) - video_tokens(asked)).topk(2).values.sum())  # two questions fit

    def short(module: nn.Module, states: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["hidden_states"].shape[1] > most:
            failures.append(kwargs["hidden_states"].shape[1])
            raise error

    model.model.backbone.vlm.model.language_model.layers[1].self_attn.register_forward_pre_hook(short, with_kwargs=True)
    assert ids(model, asked) == expected
    assert len(failures) == 1


def test_out_of_memory_for_one_question_is_an_error() -> None:
    model = build("plain")
    asked = batch(model, scene("a"))

    def short(module: nn.Module, states: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["cache"].get_seq_length():
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.backbone.vlm.model.language_model.layers[0].self_attn.register_forward_pre_hook(short, with_kwargs=True)
    said = "no memory for this question alone: CUDA out of memory"
    assert replies(model, asked) == [Reply([], said)] * 5


@pytest.mark.parametrize("name", ["plain", "PRoPE, TemporalSection", "PRoPE, ExtraChannels", "PoseALiBi"])
def test_bfloat16_logits_are_as_near_to_float32s_as_each_questions_own(name: str) -> None:
    """Over 48 questions, the rms error of the first token's logits is at most 1.1 times that of the slow path."""
    whole, model = build(name), build(name, dtype="bfloat16")
    asked = [batch(whole, scene("a", QUESTIONS[:1] * 8, seed=seed)) for seed in range(6)]

    @torch.no_grad()
    def slowly(model: VideoQATask) -> Tensor:
        rows = [asking.logits_of(model, asking.inputs_of(model, each, slice(1)))[:, -1] for each in asked]
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
