"""GRPO on models of the zoo: what is sampled is what is scored; rewards, advantages and what is refused."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from datamodules import Rooms
from datamodules.datamodule import check_split
from datamodules.scenes import RawQuestion, Scene
from tests.tiny import NEW, QUESTIONS, tiny_batch, tiny_model, tiny_scene
from zoo.errors import InputError
from zoo.generation import Sampling
from zoo.objectives import DepthPrediction
from zoo.objectives.base import weighted_losses
from zoo.objectives.grpo import group_advantages
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.loaded_scene import OptimizerStep
from zoo.tasks import GRPO, AnswerFormat, AnswerScore, Reward, ShuffledAnswerScore, VideoQATask
from zoo.tasks import grpo as rollouts
from zoo.tasks.base import DataSettings
from zoo.tasks.grpo import SampledAnswer, answer_log_probs, answer_mask, answer_sequences, sample_answers
from zoo.tasks.rewards import RewardSum

COUNT = 3  # answers per question
TOLERANCE = 1e-5
MODELS = [  # models that differ in what a sequence depends on
    *((name, "Qwen2.5-VL") for name in ("prope.yaml", "CameraTokenFusion, append", "PathLengthIndex", "PoseALiBi")),
    *(("plain", "Qwen2.5-VL"), ("DeepFusion", "Qwen3-VL"), ("CameraPrediction", "Qwen3-VL"), ("plain", "Qwen3.5")),
    *(("PoseALiBi", "Qwen3.5"), ("Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))", "Qwen3.5")),
]


class Sampled:
    """Answers that a model has sampled, and the sequences in which they are scored."""

    def __init__(self, task: VideoQATask, asked: Batch, temperature: float = 0.9, top_p: float = 1.0) -> None:
        torch.manual_seed(0)
        self.task, self.asked, self.temperature = task, asked, temperature
        self.answers: list[SampledAnswer] = sample_answers(task.model, asked, Sampling(temperature, top_p), COUNT, NEW)
        self.lengths = [len(answer.reply.ids) for answer in self.answers]
        self.sequences: Sequences = answer_sequences(task.model.sequence_builder, self.answers, asked.scenes, None)
        drawn = [torch.tensor(answer.reply.log_probs) for answer in self.answers]
        self.drawn = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)

    def score(self, **changed: Any) -> Tensor:
        given = {"batch": self.asked, "temperature": self.temperature} | changed
        found, _ = answer_log_probs(self.task.model, given["batch"], self.sequences, self.lengths, given["temperature"])
        return found


def two_scenes(task: VideoQATask, family: str = "Qwen2.5-VL") -> Batch:
    scene = partial(tiny_scene, family=family)
    return tiny_batch(task, scene("a", QUESTIONS[:3]), scene("b", QUESTIONS[1:3], steps=2, seed=1))


@pytest.mark.parametrize(("name", "family"), MODELS)
def test_sampled_log_probabilities_are_those_of_scoring(name: str, family: str, monkeypatch: Any) -> None:
    task = tiny_model(name, family=family)
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


def test_gradients_are_those_of_one_answer_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all answers about a scene in one sequence, or in several; also where logits are computed in parts."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("one by one", "packed", "in several"):
        task = tiny_model("prope.yaml")
        sampled, builder, bound = Sampled(task, two_scenes(task)), task.model.sequence_builder, None
        if name == "in several":
            bound = max(sampled.sequences.lengths) - 40
            monkeypatch.setattr(rollouts, "LOGITS_AT_ONCE", 7)
        elif name == "one by one":
            builder = SequenceBuilder(replace(builder.spec, packs_questions=False))
        sampled.sequences = answer_sequences(builder, sampled.answers, sampled.asked.scenes, bound)
        assert len(sampled.sequences) == {"one by one": 5 * COUNT, "packed": 2, "in several": 3}[name]
        weights = torch.randn(len(sampled.lengths), 1, generator=torch.Generator().manual_seed(3))
        (sampled.score() * weights * answer_mask(sampled.lengths, task.device)).sum().backward()
        found[name] = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    for name in ("packed", "in several"):
        for parameter, gradient in found["one by one"].items():
            error = (found[name][parameter] - gradient).norm() / gradient.norm().clamp(min=1e-6)
            assert error < TOLERANCE, (name, parameter)


@torch.no_grad()
def test_other_objectives_are_averaged_as_the_model_says() -> None:
    """A scene counts by its answers, or by its tokens; and so does a batch in its step."""
    for average, of_first in (("questions", 1 / 3), ("micro_batch_tokens", 3 / 5)):
        task = tiny_model("plain", objectives=[DepthPrediction()], average=average)
        step = OptimizerStep(num_answers=10, num_batches=1)
        first, second = tiny_scene("a", QUESTIONS[:1]), tiny_scene("b", QUESTIONS[1:3], steps=2, seed=1)
        first, second = replace(first, step=step), replace(second, step=step)
        losses = []
        for shown in ((first,), (second,), (first, second)):
            asked = tiny_batch(task, *shown)
            sampled = Sampled(task, asked)
            _, decoded = answer_log_probs(task.model, asked, sampled.sequences, sampled.lengths, 1.0)
            losses.append(float(weighted_losses([task.model.objectives["DepthPrediction"]], decoded)["loss"]))
        assert losses[2] == pytest.approx(of_first * losses[0] + (1 - of_first) * losses[1], rel=1e-4)
        assert losses[0] != pytest.approx(losses[1], rel=0.01)
        assert GRPO().objective_weight(task.model, asked) == (0.3 if average == "questions" else 1)


def test_advantages_by_the_rewards_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of a process that only keeps in step."""
    algorithm, weights = GRPO(num_generations=2, reward_scale="batch"), torch.ones(1)
    own, other = torch.tensor([[1.0], [0.0]]), torch.tensor([[9.0], [3.0]])
    alone, both = (group_advantages(each, 2, weights=weights, scale="batch") for each in (own, torch.cat((other, own))))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_gather_object", lambda every, mine: every.__setitem__(slice(None), [other, mine]))
    torch.testing.assert_close(algorithm._advantages(own), both[2:])
    assert not torch.allclose(both[2:], alone)
    assert not algorithm._advantages(own, is_learned=False).any()
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    other.fill_(torch.nan)
    monkeypatch.setattr(dist, "all_gather_object", lambda every, mine: every.__setitem__(slice(None), [mine, other]))
    torch.testing.assert_close(algorithm._advantages(own), alone)


def begun(task: VideoQATask, **options: Any) -> GRPO:
    """Return an algorithm that has begun the training of a task."""
    strategy = SimpleNamespace(on_validation_start=lambda: None, on_validation_end=lambda: None)
    precision = SimpleNamespace(forward_context=nullcontext)
    trainer: Any = SimpleNamespace(strategy=strategy, precision_plugin=precision, accumulate_grad_batches=1)
    task._trainer = trainer
    algorithm = GRPO(num_generations=COUNT, rewards=[AnswerFormat(".*")], **options)
    algorithm.begin(task)
    return algorithm


def test_dapo_counts_the_tokens_of_all_processes_by_one_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    task, counted = tiny_model("plain"), []
    asked = two_scenes(task)

    def all_reduce(tokens: Tensor) -> None:
        counted.append(float(tokens))
        tokens += 100  # of the other process

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    algorithm = begun(task, loss_type="dapo")
    algorithm.prepare(task.model, asked, task.call_as_in_validation)
    rollout = algorithm.rollout
    assert rollout is not None and counted == [sum(rollout.lengths)]
    assert rollout.num_tokens == (sum(rollout.lengths) + 100) / 2 and rollout.mask.sum() == sum(rollout.lengths)
    assert rollout.statistics["answers_cut"] == sum(length == NEW for length in rollout.lengths) / len(rollout.lengths)
    vars(asked)["num_answers"] = (0, 0)  # the batch only keeps this process in step
    algorithm.prepare(task.model, asked, task.call_as_in_validation)
    assert counted[1:] == [0.0] and algorithm.rollout is not None
    assert not algorithm.rollout.mask.any() and not algorithm.rollout.advantages.any()


@pytest.mark.parametrize(("loss_type", "share"), [("grpo", 0.5), ("dr_grpo", 0.5), ("dapo", 1.0)])
def test_a_batch_counts_by_its_answers_in_its_step(loss_type: Any, share: float) -> None:
    """With 5 of the 10 answers of its step. DAPO counts the tokens of the step instead."""
    task, losses = tiny_model("plain").train(), []
    modes: set[bool] = set()
    layer = task.model.backbone.decoder.layers[0]
    layer.register_forward_pre_hook(lambda module, _: modes.add(module.training))
    algorithm = begun(task, loss_type=loss_type)
    for step in (None, OptimizerStep(num_answers=10, num_batches=1)):
        asked = two_scenes(task)
        vars(asked)["step"] = step
        torch.manual_seed(0)
        algorithm.prepare(task.model, asked, task.call_as_in_validation)
        assert algorithm.rollout is not None and modes == {False}  # answers are sampled in eval mode
        algorithm.rollout = replace(algorithm.rollout, advantages=torch.ones(5 * COUNT))
        modes.clear()
        losses.append(float(algorithm.step_loss(task.model, asked, None).loss.detach()))
        assert modes == {True}
        modes.clear()
    assert losses[0] < -0.01 and losses[1] == pytest.approx(share * losses[0], rel=1e-5)


def test_later_turns_of_a_conversation_are_not_asked_and_do_not_count() -> None:
    task = tiny_model("plain")
    talk = RawQuestion("talk", "", "How many?", "5", later_turns=(("And then?", "7"),))
    shown = tiny_scene("a", (talk, QUESTIONS[0]))
    assert tiny_batch(task, shown).num_answers == (2,) and tiny_batch(task, shown, training=True).num_answers == (3,)
    assert tiny_batch(task, replace(shown, is_supervised=False)).num_answers == (0,)


def test_options_that_do_not_fit_are_refused() -> None:
    def begin(accumulated: int = 1, penalty: float = 1.0, **options: Any) -> None:
        trainer: Any = SimpleNamespace(accumulate_grad_batches=accumulated)
        settings = {"repetition_penalty": penalty, "max_new_tokens": NEW, "data_settings": DataSettings()}
        task: Any = SimpleNamespace(trainer=trainer, **settings)
        GRPO(**options).begin(task)

    of_a_step: list[dict[str, Any]] = [
        *({"reward_scale": "batch"}, {"aggregation": "normalize_then_sum"}, {"loss_type": "dapo"}, {"updates": 2})
    ]
    for options in of_a_step:  # what is of a whole step takes no accumulated batches
        begin(**options)
        with pytest.raises(InputError, match=next(iter(options))):
            begin(2, **options)
    with pytest.raises(InputError, match="--model.repetition_penalty"):  # which its samples lack
        begin(penalty=1.1)
    for option, value in {"num_generations": 1, "temperature": 0.0, "epsilon_low": -0.1, "delta": 0.0}.items():
        with pytest.raises(InputError, match=f"--model.algorithm.{option} {value}: "):
            GRPO(**{option: value})


# ---- rewards ---------------------------------------------------------------------------------------------------


def test_a_batch_to_which_no_reward_applies_teaches_nothing() -> None:
    rewards = RewardSum([AnswerScore(), AnswerFormat()])
    found = rewards(["4", "9"], [{"question_type": "", "ground_truth": "4"}] * 2)
    assert found.isnan().all() and not group_advantages(found, 2, weights=rewards.weights).any()
    assert rewards.statistics(found, 2) == {"reward_deviation": 0, "groups_without_signal": 1}  # and no NaN


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0], "Given gives 1 rewards of 2 answers"), ([1.0, -math.inf], "Given gives an infinite reward")],
)
def test_wrong_values_of_a_reward_are_named(values: list[float | None], message: str) -> None:
    class Given(Reward):
        def __call__(self, answers: Any, records: Any) -> list[float | None]:
            return values

    with pytest.raises(InputError, match=message):
        RewardSum([AnswerFormat(".*"), Given()])(["4", "5"], [{}, {}])


def test_a_run_to_which_no_reward_applies_is_refused() -> None:
    untyped, other, typed = (
        Scene("a", Path("a.mp4"), (replace(QUESTIONS[0], question_type=kind),))
        for kind in ("", "caption", "route_planning")
    )
    for rewards, scenes in (
        ([AnswerScore()], [untyped]),
        ([AnswerScore()], [other]),
        ([AnswerScore()], [untyped, typed]),
        ([AnswerScore(), AnswerFormat(".*")], [untyped]),
    ):
        needs = tiny_model("plain", algorithm=GRPO(rewards=rewards)).model_spec(training=True)
        is_refused = len(rewards) == len(scenes)
        with pytest.raises(InputError, match="no reward applies") if is_refused else nullcontext():
            check_split(scenes, "train", Rooms(), needs)


def test_statistics_leave_out_answers_without_a_reward() -> None:
    records = [{"question_type": "object_counting", "ground_truth": truth} for truth in ("4", "", "4") for _ in "ab"]
    rewards = RewardSum([AnswerScore(), AnswerScore(weight=0.5)])
    found = rewards(["4", "9", "4", "4", "4", "4"], records)
    assert rewards.total(found).tolist() == pytest.approx([1.5, 0, torch.nan, torch.nan, 1.5, 1.5], nan_ok=True)
    found[4:, 1] = 0.5
    statistics = rewards.statistics(found, 2)
    assert statistics["reward"] == pytest.approx(1.0) and statistics["reward/AnswerScore"] == pytest.approx(0.75)
    assert statistics["reward/AnswerScore_2"] == pytest.approx(0.5)  # each of a class by itself
    assert statistics["reward_deviation"] == pytest.approx(1.5 / 2**0.5 / 2)
    assert statistics["groups_without_signal"] == pytest.approx(2 / 3)


def test_a_shuffled_score_is_that_of_another_question_of_its_type() -> None:
    asked = [("0", "object_counting", "4"), ("1", "object_counting", "2"), ("2", "room_size_estimation", "9.0")]
    records = [dict(id=id, question_type=kind, ground_truth=truth) for id, kind, truth in asked for _ in range(2)]
    rewards = RewardSum([AnswerScore(), ShuffledAnswerScore()])
    found = rewards(["4", "2", "4", "2", "9.0", "9.0"], records)
    assert found[:4, 0].tolist() == [1, 0, 0, 1] and found[:4, 1].tolist() == [0, 1, 1, 0]
    assert found[4:, 0].tolist() == [1, 1] and found[4:, 1].isnan().all()


@pytest.mark.parametrize("options", [{}, {"scale": "batch"}, {"scale": "none"}, {"aggregation": "normalize_then_sum"}])
def test_equal_rewards_teach_nothing_whatever_their_rounding(options: dict[str, Any]) -> None:
    rewards = RewardSum([AnswerScore(), AnswerFormat(weight=0.1)])
    scores = torch.full((8, 1), 0.7)
    assert (scores - scores.mean()).any()  # the mean of eight times 0.7 is not 0.7
    equal = torch.cat((scores, torch.ones(8, 1)), 1)
    assert not group_advantages(equal, 8, weights=rewards.weights, **options).any()
    statistics = rewards.statistics(equal, 8)
    assert statistics["groups_without_signal"] == 1 and statistics["reward_deviation"] == 0
    # the control: one of them is better by the least that a float holds
    equal[3, 0] = torch.nextafter(equal[3, 0], torch.tensor(1.0))
    assert group_advantages(equal, 8, weights=rewards.weights, **options).argmax() == 3
    assert rewards.statistics(equal, 8)["groups_without_signal"] == 0


def test_a_group_with_an_answer_without_a_reward_has_a_signal() -> None:
    rewards, found = RewardSum([AnswerScore()]), torch.tensor([[1.0], [0.0], [torch.nan]])
    statistics = rewards.statistics(found, 3)
    assert statistics["groups_without_signal"] == 0 and statistics["reward_deviation"] == pytest.approx(0.5**0.5)
    advantages = group_advantages(found, 3, weights=rewards.weights)
    assert advantages[0] == -advantages[1] != 0 and advantages[2] == 0  # it trains on them
    partly = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])  # one of two functions applies
    alone = group_advantages(partly[:, :1], 2, weights=torch.ones(1))
    assert torch.equal(group_advantages(partly, 2, weights=torch.ones(2)), alone) and alone[0] > 0
