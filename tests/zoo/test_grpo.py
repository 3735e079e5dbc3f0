"""GRPO on models of the zoo: what is sampled is what is scored, from one encoded scene and one prefix."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.zoo import asking
from tests.zoo.asking import BACKBONES, MODELS, NEW, QUESTIONS, batch, build
from zoo.errors import InputError
from zoo.sampling import Sampling
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.builder import SequenceBuilder
from zoo.tasks import VideoQATask
from zoo.tasks.rollout import SampledAnswer, answer_log_probs, answer_mask, answer_sequences, sample_answers

COUNT = 3  # answers per question
TOLERANCE = 1e-5
# those that differ in what a sequence depends on; the others are slow tests
QUICK = {"plain", "CameraTokenFusion, append", "DeepFusion", "prope.yaml"}
QUICK_ON_QWEN25 = {"PRoPE by VGGT's cameras", "PathLengthIndex", "PoseALiBi"}
MODELS_AND_FAMILIES = [
    pytest.param(
        name,
        family,
        marks=() if name in QUICK or (family == "Qwen2.5-VL" and name in QUICK_ON_QWEN25) else pytest.mark.slow,
    )
    for family in BACKBONES
    for name in MODELS
]


class Sampled:
    """Answers that a model has sampled, and the sequences in which they are scored."""

    def __init__(self, task: VideoQATask, asked: Batch, temperature: float = 0.9, top_p: float = 1.0) -> None:
        torch.manual_seed(0)
        self.task, self.asked, self.temperature = task, asked, temperature
        self.answers: list[SampledAnswer] = sample_answers(task.model, asked, Sampling(temperature, top_p), COUNT, NEW)
        self.lengths = [len(answer.reply.ids) for answer in self.answers]
        self.sequences: Sequences = answer_sequences(task.sequence_builder, self.answers, asked.scenes, None)
        drawn = [torch.tensor(answer.reply.log_probs) for answer in self.answers]
        self.drawn = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)

    def score(self, **changed: Any) -> Tensor:
        given = {"batch": self.asked, "temperature": self.temperature} | changed
        found, _ = answer_log_probs(self.task.model, given["batch"], self.sequences, self.lengths, given["temperature"])
        return found


def two_scenes(task: VideoQATask, family: str = "Qwen2.5-VL") -> Batch:
    scene = partial(asking.scene, family=family)
    return batch(task, scene("a", QUESTIONS[:3]), scene("b", QUESTIONS[1:3], steps=2, seed=1))


@pytest.mark.parametrize(("name", "family"), MODELS_AND_FAMILIES)
def test_sampled_log_probabilities_are_those_of_scoring(name: str, family: str, monkeypatch: Any) -> None:
    task = build(name, family=family)
    sampled = Sampled(task, two_scenes(task, family))
    with torch.no_grad():
        found = sampled.score()
        torch.testing.assert_close(found, sampled.drawn, atol=TOLERANCE, rtol=0)
        # the control, into which TRL falls: scored without the video, they are others
        decoder_inputs = task.model.decoder_inputs

        def without_video(scenes: Any, sequences: Sequences) -> dict[str, Any]:
            inputs = decoder_inputs(scenes, sequences)
            return {**inputs, "inputs_embeds": task.model.backbone.embed(sequences.input_ids)}

        monkeypatch.setattr(task.model, "decoder_inputs", without_video)
        assert (sampled.score() - sampled.drawn).abs().max() > 0.01


def test_scenes_and_prefixes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build("plain")
    asked = two_scenes(task)
    encoded: list[int] = []
    encode = task.model.encode_scenes
    monkeypatch.setattr(task.model, "encode_scenes", lambda each: encoded.append(len(each.scenes)) or encode(each))
    sampled = Sampled(task, asked)
    assert encoded == [2]
    assert len(sampled.answers) == 5 * COUNT and len({tuple(answer.reply.ids) for answer in sampled.answers}) > 5
    assert [answer.record for answer in sampled.answers] == [n for n in range(5) for _ in range(COUNT)]
    shown = sampled.sequences
    assert shown.scene_index == [[0], [1]]  # one sequence per scene, with all of its answers
    assert shown.num_answers == [3 * COUNT, 2 * COUNT]
    assert shown.visual_counts == [scene.num_steps * scene.tokens_per_step for scene in asked.scenes]
    torch.testing.assert_close(
        shown.answer_ids, torch.tensor([token for answer in sampled.answers for token in answer.reply.ids])
    )
    sampled.score()
    assert encoded == [2, 2]


def test_gradients_are_those_of_one_answer_per_sequence() -> None:
    """Of all answers about a scene in one sequence, or in several."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("one by one", "packed", "in several"):
        task = build("prope.yaml")
        sampled, builder, bound = Sampled(task, two_scenes(task)), task.sequence_builder, None
        if name == "in several":
            bound = max(sampled.sequences.lengths) - 40
        elif name == "one by one":
            builder = SequenceBuilder(replace(builder.rules, packs_questions=False))
        sampled.sequences = answer_sequences(builder, sampled.answers, sampled.asked.scenes, bound)
        assert len(sampled.sequences) == {"one by one": 5 * COUNT, "packed": 2, "in several": 3}[name]
        weights = torch.randn(len(sampled.lengths), 1, generator=torch.Generator().manual_seed(3))
        (sampled.score() * weights * answer_mask(sampled.lengths, task.device)).sum().backward()
        found[name] = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    for name in ("packed", "in several"):
        for parameter, gradient in found["one by one"].items():
            error = (found[name][parameter] - gradient).norm() / gradient.norm().clamp(min=1e-6)
            assert error < TOLERANCE, (name, parameter)


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
    """By GeoVR's settings: the probabilities of `top_k` tokens are those among which `top_p` chooses."""
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
    """Whatever else is asked, in whatever order and number at once, as a resumed test or another process asks."""
    task = build("plain", sampling=Sampling(1.5, 0.95, 50))
    scene, few = asking.scene("a"), asking.scene("a", QUESTIONS[3:0:-2])

    def answers(*scenes: Any, at_once: int = 8) -> dict[str, str]:
        torch.manual_seed(len(scenes))  # another generator's state does not matter
        records = task.predict_batch(batch(task, *scenes, at_once=at_once))
        return {each["scene"] + each["id"]: each["prediction"] for each in records}

    found = answers(scene)
    assert answers(scene, at_once=1) == found == answers(scene, at_once=2)
    assert answers(few) == {name: found[name] for name in ("a3", "a1")}
    both = answers(asking.scene("b", steps=2, seed=1), scene)
    assert {name: both[name] for name in found} == found
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert answers(scene) != found
    task.sampling = None
    assert answers(scene) != found  # the most likely tokens
