"""Log-probabilities of candidate answers equal those of a full forward pass, with the stop token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.tiny import (
    MODELS_AND_FAMILIES,
    QUESTIONS,
    logits_of,
    prompts_of,
    scene_of,
    tiny_batch,
    tiny_model,
    tiny_scene,
)
from zoo import VideoQATask
from zoo.generation import answer_batch
from zoo.sequences.batch import Batch
from zoo.sequences.layout import ExtraTokens

CANDIDATES = ("7", "72", "721", "4", "1.5", "A")


def ids_of(model: VideoQATask, text: str) -> list[int]:
    return model.preprocessor.tokenize([text], (), ExtraTokens.NONE).input_ids.tolist()


@torch.no_grad()
def log_probs(model: VideoQATask, asked: Batch, number: int, answer: list[int]) -> Tensor:
    """Log-probabilities of all tokens after each token of an answer's whole sequence, from the question's last one."""
    prompt, scene = prompts_of(asked)[number], scene_of(asked)[number]
    sequence = torch.tensor([[*prompt, *answer]])
    made = model.model.sequence_builder.build(sequence, torch.ones_like(sequence).bool(), asked.scenes, [[scene]])
    inputs = model.model.decoder_inputs(model.model.encode_scenes(asked), made)
    return logits_of(model, inputs)[0, len(prompt) - 1 :].float().log_softmax(-1)


def slow_score(model: VideoQATask, asked: Batch, number: int, answer: list[int], *, stops: bool = True) -> float:
    every = log_probs(model, asked, number, answer)
    total = sum(float(every[place, token]) for place, token in enumerate(answer))
    return total + float(every[-1, model.model.backbone.stop_tokens].logsumexp(0)) if stops else total


CASES = [("plain", "Qwen2.5-VL"), ("prope.yaml", "Qwen2.5-VL"), ("plain", "Qwen3.5"), ("DeepFusion", "Qwen3-VL")]
OTHERS = [case for case in MODELS_AND_FAMILIES if case.values not in CASES]


@pytest.mark.parametrize(
    ("name", "family"), [*CASES, *(pytest.param(*case.values, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_scores_are_those_of_each_whole_sequence(name: str, family: str) -> None:
    """Two scenes; the questions of one share its prefix. Greedy answers stay as they are without candidates."""
    model = tiny_model(name, family=family)
    scenes = tiny_scene("a", QUESTIONS[:2], family=family), tiny_scene("b", QUESTIONS[2:3], 2, seed=1, family=family)
    asked = tiny_batch(model, *scenes)
    texts = [CANDIDATES, CANDIDATES[:2], ()]
    replies = model.model.score_candidates(asked, texts, max_new_tokens=3)
    assert [reply.ids for reply in replies] == [reply.ids for reply in answer_batch(model.model, asked, 3)]
    for number, own in enumerate(texts):
        expected = [slow_score(model, asked, number, ids_of(model, text)) for text in own]
        assert replies[number].candidates == pytest.approx(expected, abs=2e-5)
    assert replies[0].candidates[:2] != pytest.approx(replies[1].candidates, abs=1e-2)  # the control: the question


def test_probabilities_of_different_answers_add_up_to_at_most_1() -> None:
    """All answers of one token, and all that begin with the likeliest one. Without the stop token they exceed 1."""
    model = tiny_model()
    asked = tiny_batch(model, tiny_scene("a", QUESTIONS[:1]))
    words = model.model.backbone.lm_head.out_features
    first = int(log_probs(model, asked, 0, [])[0].argmax())
    answers = [*([token] for token in range(words)), *([first, token] for token in range(words))]
    (reply,) = answer_batch(model.model, asked, 1, candidates=[answers])
    assert 0 < math.fsum(map(math.exp, reply.candidates)) <= 1
    without = log_probs(model, asked, 0, [first])
    total = float(without[0].exp().sum() + (without[0, first] + without[1]).exp().sum())
    assert total > 1.001 and slow_score(model, asked, 0, [first], stops=False) == pytest.approx(
        float(without[0, first])
    )


def test_more_candidates_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several passes, one by one where questions can't be packed, and after an answer that is not finite."""
    model = tiny_model(repetition_penalty=4.0)
    asked = tiny_batch(model, tiny_scene("a", QUESTIONS[:2]))
    texts = [CANDIDATES, CANDIDATES]
    expected = [reply.candidates for reply in model.model.score_candidates(asked, texts, repetition_penalty=4.0)]
    monkeypatch.setattr("zoo.generation.CANDIDATES_AT_ONCE", 4)
    for packs in (True, False):
        monkeypatch.setattr(type(model.model.backbone), "packs_questions", packs)
        found = [reply.candidates for reply in model.model.score_candidates(asked, texts)]  # the penalty is not theirs
        assert found == [pytest.approx(each, abs=2e-5) for each in expected]
    head = model.model.backbone.lm_head
    monkeypatch.setattr(head, "forward", lambda hidden: torch.full((len(hidden), head.out_features), torch.nan))
    assert all("not finite" in str(reply.error) for reply in model.model.score_candidates(asked, texts, 0))
