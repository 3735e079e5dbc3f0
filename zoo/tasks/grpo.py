"""GRPO: sampling answers from a policy, their rewards, and the policy's losses.

Scenes and the prefixes of questions are processed once for all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from zoo.errors import InputError, check_choice
from zoo.generation import CachedPrefix, Reply, Sampling
from zoo.model import SpatialVLM
from zoo.objectives.base import Decoded, LanguageModeling, weighted_losses
from zoo.objectives.grpo import (
    Aggregation,
    Level,
    LossType,
    RewardScale,
    group_advantages,
    mean_over_tokens,
    policy_terms,
    token_log_probs,
)
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.loaded_scene import PreparedScene, TeacherTargets
from zoo.sequences.packing import IGNORED, Row
from zoo.tasks.rewards import AnswerScore, Reward, RewardSum
from zoo.tasks.video_qa import Algorithm, StepLoss

if TYPE_CHECKING:
    from zoo.tasks.video_qa import VideoQATask

LOGITS_AT_ONCE = 4096  # tokens; with a vocabulary of 150,000 their logits take 2.5 GB in float32
SAMPLE_COLUMNS = ("scene", "question", "ground_truth", "answer", "reward", "advantage")


class SampledAnswer(NamedTuple):
    """A sampled answer to a question of a batch.

    Attributes:
        record: Number of the question's record.
        scene: Number of the question's scene.
        prompt: Token ids before the answer.
        reply: The answer.
    """

    record: int
    scene: int
    prompt: list[int]
    reply: Reply


@dataclass(eq=False)
class Rollout:
    """The sampled answers of a batch, and the values that the policy learns from.

    Attributes:
        sequences: Sequences with the answers.
        lengths: Number of tokens of each answer.
        mask: True where answers have tokens.
        advantages: Advantage of each answer.
        sampled_logps: Log-probabilities of the sampled tokens at the time of sampling.
        num_tokens: Divisor of the loss type `dapo`.
        ref_logps: Log-probabilities by the reference policy. None without a reference.
        old_logps: Log-probabilities by the policy before the first update. None until then, and with a single update.
        statistics: Statistics of answers and rewards, for the loggers.
        samples: Texts of the first question's answers, with the columns `SAMPLE_COLUMNS`.
    """

    sequences: Sequences
    lengths: list[int]
    mask: Bool[Tensor, "N T"]
    advantages: Float[Tensor, " N"]
    sampled_logps: Float[Tensor, "N T"]
    num_tokens: float
    ref_logps: Float[Tensor, "N T"] | None
    old_logps: Float[Tensor, "N T"] | None
    statistics: dict[str, float]
    samples: list[list[str]]


@torch.no_grad()
def sample_answers(
    model: SpatialVLM, batch: Batch, sampling: Sampling, num_answers: int, max_new_tokens: int
) -> list[SampledAnswer]:
    """Sample several answers to each question of a batch, from one encoded scene and one prefix.

    Args:
        model: The policy, in eval mode.
        batch: A batch with prompts.
        sampling: How tokens are drawn.
        num_answers: Answers per question. They are consecutive in the result.
        max_new_tokens: Maximum length of an answer in tokens.

    Raises:
        InputError: A prompt leaves too little room for an answer, or logits are not finite.
    """
    scenes = model.encode_scenes(batch)
    placeholders = model.backbone.placeholders
    sampling = replace(sampling, excluded=placeholders.reserved)
    sampled: list[SampledAnswer] = []
    for prompt in batch.prompts:
        inputs = model.decoder_inputs(scenes, prompt.prefix)
        prefix_ids = prompt.prefix.input_ids
        prefix = CachedPrefix(model.backbone, prefix_ids, inputs, prompt.next_position, choose=sampling)
        shared, numbers = prefix_ids[0].tolist(), iter(prompt.rows)
        for questions in prompt.passes:
            if max(map(len, questions)) + len(shared) + max_new_tokens > model.backbone.context_length:
                raise InputError(
                    f"a prompt and its answer have more than the {model.backbone.context_length} tokens of the model's "
                    "context: lower --data.num_frames or --data.pixels.max_pixels"
                )
            asked = [list(question) for question in questions for _ in range(num_answers)]
            of_answer = [number for _, number in zip(questions, numbers, strict=False) for _ in range(num_answers)]
            replies = prefix.answer(asked, max_new_tokens)
            for number, question, reply in zip(of_answer, asked, replies, strict=True):
                if reply.error is not None:
                    raise InputError(f"an answer can't be sampled: {reply.error}")
                sampled.append(SampledAnswer(number, prompt.scenes[0], shared + question, reply))
    return sampled


def answer_sequences(
    builder: SequenceBuilder, sampled: Sequence[SampledAnswer], scenes: Sequence[PreparedScene], max_tokens: int | None
) -> Sequences:
    """Build sequences with the sampled answers as supervised tokens. Answers about a scene share its prefix.

    The answers are ordered by scene. The scenes may be on any device. Without `max_tokens` a sequence may have any
    length.
    """
    rows = []
    for answer in sampled:
        ids = torch.tensor([*answer.prompt, *answer.reply.ids])
        labels = ids.clone()
        labels[: len(answer.prompt)] = IGNORED
        rows.append(Row.of(ids, labels))
    outlines = [_outline(scene) for scene in scenes]
    return builder.training(rows, [answer.scene for answer in sampled], outlines, max_tokens=max_tokens)


def _outline(scene: PreparedScene) -> PreparedScene:
    """Return a copy of a scene on the CPU with only what sequences depend on: its grid and cameras."""
    outline = replace(scene, frames=None, geometry=None, cached_geometry=None, pixel_values=None)
    return outline.to("cpu")


def answer_log_probs(
    model: SpatialVLM,
    batch: Batch,
    sequences: Sequences,
    lengths: Sequence[int],
    temperature: float,
    teacher_targets: Sequence[TeacherTargets | None] | None = None,
) -> tuple[Float[Tensor, "N T"], Decoded]:
    """Compute the log-probabilities of all answers in one pass through the decoder.

    Args:
        model: The policy, or another model with the same parts.
        batch: The batch whose scenes the sequences are about.
        sequences: Sequences from `answer_sequences`, on the model's device.
        lengths: Number of tokens of each answer.
        temperature: Temperature of the sampling.
        teacher_targets: See `SpatialVLM.forward`.

    Returns:
        Log-probabilities, padded with 0, and the decoder's outputs for the other objectives.
    """
    decoded = model.hidden_states(model.encode_scenes(batch, teacher_targets), sequences)
    hidden = decoded.last_hidden_state.flatten(0, 1)[sequences.answer_places]
    flat = _log_probs(decoded.lm_head, hidden, sequences.answer_ids, temperature)
    return pad_sequence(list(flat.split(list(lengths))), batch_first=True), decoded


def _log_probs(
    lm_head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "M D"], ids: Int[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Compute log-probabilities of tokens.

    The logits of many tokens are computed in parts, and again in the backward pass, to save memory.
    """

    def part(some: Tensor, own: Tensor) -> Tensor:
        return token_log_probs(lm_head(some), own, temperature=temperature)

    if len(ids) <= LOGITS_AT_ONCE:
        return part(hidden, ids)
    parts = zip(hidden.split(LOGITS_AT_ONCE), ids.split(LOGITS_AT_ONCE), strict=True)
    return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in parts])


def num_processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def answer_mask(lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "N T"]:
    """Return where answers of these lengths have tokens."""
    places = torch.arange(max(lengths), device=device)
    return places < torch.tensor(lengths, device=device)[:, None]


# ---- GRPO for any model of the zoo: a scene is encoded once per pass (sampling, reference, update) ------------------


class GRPO(Algorithm):
    """Group-relative policy optimization (arXiv 2402.03300): learn from rewards of answers that the model samples.

    Several answers are sampled for each question of a batch, from one encoded scene and one prefix. Their
    log-probabilities are computed in one sequence per scene, or in several if `--data.tokens_per_sequence` requires it.
    A sequence contains the scene once and repeats the question for each answer. A decoder without custom masks has one
    sequence per answer.

    The other objectives of the model are learned as well, except `LanguageModeling`. The reference policy of `beta` has
    the weights that the training started from. A copy of the trained parameters is kept for it.

    Args:
        num_generations: Answers per question.
        temperature: Temperature of the sampling and of the log-probabilities.
        top_p: Sample from the most likely tokens that together have this probability.
        rewards: Rewards, which are summed with their weights. null is `AnswerScore`.
        reward_scale: See `group_advantages`. `batch` compares the rewards of all processes, and therefore does not
            allow accumulated batches.
        aggregation: See `group_advantages`. `normalize_then_sum` does not allow accumulated batches either.
        loss_type: See `grpo_loss`. `dapo` divides by the tokens of all processes, counted after the sampling, and does
            not allow accumulated batches either.
        beta: Weight of the divergence from the reference. 0 uses no reference.
        epsilon_low: See `grpo_loss`. With one of `updates` all ratios are 1 and no `epsilon` has an effect.
        epsilon_high: See `grpo_loss`.
        level: See `grpo_loss`. Ratios of a `sequence` are so close to 1 that 0.2 hardly ever clips one. Published
            ranges are about 3e-4.
        correct_kl: See `grpo_loss`.
        delta: See `grpo_loss`. Values of at least 1 have no effect with one of `updates`.
        updates: Optimizer steps per batch of answers.

    Raises:
        InputError: A choice is unknown, or a number is out of range.
    """

    asks_questions = True

    def __init__(
        self,
        num_generations: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        rewards: list[Reward] | None = None,
        reward_scale: RewardScale = "group",
        aggregation: Aggregation = "sum_then_normalize",
        loss_type: LossType = "grpo",
        beta: float = 0.0,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        level: Level = "token",
        correct_kl: bool = True,
        delta: float | None = None,
        updates: int = 1,
    ) -> None:
        for name, value, choices in (
            ("reward_scale", reward_scale, RewardScale),
            ("aggregation", aggregation, Aggregation),
            ("loss_type", loss_type, LossType),
            ("level", level, Level),
        ):
            check_choice(f"--model.algorithm.{name}", value, choices)
        for name, number, is_right, wanted in (
            ("num_generations", num_generations, num_generations >= 2, "at least 2, which are compared"),
            ("temperature", temperature, temperature > 0, "above 0"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0, up to 1"),
            ("beta", beta, beta >= 0, "at least 0"),
            ("epsilon_low", epsilon_low, epsilon_low >= 0, "at least 0"),
            ("epsilon_high", epsilon_high, epsilon_high >= 0, "at least 0"),
            ("delta", delta, delta is None or delta > 0, "above 0"),
            ("updates", updates, updates >= 1, "at least 1"),
        ):
            if not is_right:
                raise InputError(f"--model.algorithm.{name} {number}: {wanted}")
        self.num_generations, self.sampling = num_generations, Sampling(temperature, top_p)
        self.rewards = RewardSum(rewards or [AnswerScore()])
        self.requires_types = all(reward.requires_type for reward in self.rewards.rewards)
        self.reward_scale, self.aggregation = reward_scale, aggregation
        self.loss_type, self.beta, self.updates = loss_type, beta, updates
        self.terms: dict[str, Any] = {
            "beta": beta,
            "epsilon_low": epsilon_low,
            "epsilon_high": epsilon_high,
            "level": level,
            "correct_kl": correct_kl,
            "delta": delta,
        }
        self.needs_start = beta > 0
        self.reference: dict[str, Tensor] = {}
        self.rollout: Rollout | None = None

    def begin(self, task: VideoQATask) -> None:
        """Check the options against each other, bind the rewards to the data's benchmark, and keep the reference."""
        self.rewards.bind(task.data_settings.benchmark)
        if task.repetition_penalty != 1:
            raise InputError("--model.repetition_penalty: GRPO samples without one, and would learn from other answers")
        of_step = {
            "updates above 1": self.updates > 1,
            "loss_type dapo, which counts a step's tokens": self.loss_type == "dapo",
            "reward_scale batch, which compares a step's rewards": self.reward_scale == "batch",
            "aggregation normalize_then_sum, which compares a step's rewards": self.aggregation == "normalize_then_sum",
        }
        option = next((name for name, is_chosen in of_step.items() if is_chosen), None)
        if task.trainer.accumulate_grad_batches > 1 and option is not None:
            raise InputError(f"--model.algorithm.{option}: leave --trainer.accumulate_grad_batches at 1")
        self.max_new_tokens, self.max_tokens = task.max_new_tokens, task.data_settings.tokens_per_sequence
        if self.beta:
            self.reference = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.requires_grad}

    def averages_over_step(self, model: SpatialVLM) -> bool:
        """Return whether the policy's loss is its share of the mean over an optimizer step's answers."""
        return self.loss_type not in ("dapo", "bnpo")

    # ---- sampling -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, model: SpatialVLM, batch: Batch, evaluate: Callable[[Callable[[], Any]], Any]) -> None:
        """Sample answers and compute their advantages."""
        count, device = self.num_generations, model.backbone.device
        sampled = evaluate(partial(sample_answers, model, batch, self.sampling, count, self.max_new_tokens))
        lengths = [len(answer.reply.ids) for answer in sampled]
        sequences = answer_sequences(model.sequence_builder, sampled, batch.scenes, self.max_tokens).to(device)
        ref_logps = None
        if self.beta:
            score = partial(answer_log_probs, model, batch, sequences, lengths, self.sampling.temperature)
            with self._reference_weights(model):
                ref_logps, _ = evaluate(score)
        # Rewards of this process, or of all processes if the options compare them.
        texts = model.backbone.preprocessor.decode([answer.reply.ids for answer in sampled])
        records = [batch.records[answer.record] for answer in sampled]
        rewards = self.rewards(texts, records)
        is_learned = bool(sum(batch.num_answers))
        advantages = self._advantages(rewards, is_learned)
        mask = answer_mask(lengths, device) & is_learned
        num_tokens = torch.tensor(float(sum(lengths)) if is_learned else 0.0, device=device)
        if num_processes() > 1:
            dist.all_reduce(num_tokens)
        drawn = [torch.tensor(answer.reply.log_probs) for answer in sampled]
        self.rollout = Rollout(
            sequences,
            lengths,
            mask,
            advantages.to(device, torch.float32),
            pad_sequence(drawn, batch_first=True).to(device),
            max(float(num_tokens), 1.0) / num_processes(),
            ref_logps,
            None,
            self._statistics(rewards, [answer.reply.ids for answer in sampled], model.backbone.stop_tokens),
            [
                [str(r["scene"]), str(r["question"]), str(r["ground_truth"]), text, f"{score:.3g}", f"{gain:.2f}"]
                for r, text, score, gain in zip(
                    records[:count], texts, self.rewards.total(rewards).tolist(), advantages.tolist(), strict=False
                )
            ],
        )

    def _advantages(self, rewards: Float[Tensor, "N R"], is_learned: bool = True) -> Float[Tensor, " N"]:
        """Compare rewards within their groups. Options may require the statistics of all processes.

        The rewards of a batch that is not learned from do not count in any statistic.
        """
        rewards = rewards if is_learned else torch.full_like(rewards, torch.nan)
        first, every = 0, [rewards]
        is_of_batch = self.reward_scale == "batch" or self.aggregation == "normalize_then_sum"
        if is_of_batch and num_processes() > 1:
            every = [rewards for _ in range(num_processes())]
            dist.all_gather_object(every, rewards)
            first = sum(len(own) for own in every[: dist.get_rank()])
        advantages = group_advantages(
            torch.cat(every),
            self.num_generations,
            weights=self.rewards.weights,
            scale=self.reward_scale,
            aggregation=self.aggregation,
        )
        return advantages[first : first + len(rewards)]

    def _statistics(
        self, rewards: Float[Tensor, "N R"], answers: Sequence[Sequence[int]], stops: Collection[int]
    ) -> dict[str, float]:
        return {
            **self.rewards.statistics(rewards, self.num_generations),
            "answer_length": sum(map(len, answers)) / len(answers),
            "answers_cut": sum(ids[-1] not in stops for ids in answers) / len(answers),
        }

    @contextmanager
    def _reference_weights(self, model: SpatialVLM) -> Iterator[None]:
        """Use the reference's weights inside the context. They are exchanged in place, because they may be shards."""
        trained = {n: p for n, p in model.named_parameters() if n in self.reference}
        own = {name: parameter.detach().clone() for name, parameter in trained.items()}
        try:
            for name, parameter in trained.items():
                parameter.copy_(self.reference[name])
            yield
        finally:
            for name, parameter in trained.items():
                parameter.copy_(own[name])

    # ---- learning -----------------------------------------------------------------------------------------------

    def step_loss(
        self, model: SpatialVLM, batch: Batch, teacher_targets: Sequence[TeacherTargets | None] | None
    ) -> StepLoss:
        """Return the loss, and rewards, lengths, divergence and clipped shares for the loggers."""
        rollout = self.rollout
        assert rollout is not None  # set by `prepare`
        logps, decoded = answer_log_probs(
            model, batch, rollout.sequences, rollout.lengths, self.sampling.temperature, teacher_targets
        )
        gap = (logps.detach() - rollout.sampled_logps).abs().max() if rollout.old_logps is None else None
        terms = policy_terms(
            logps, rollout.old_logps, rollout.advantages, rollout.mask, ref_logps=rollout.ref_logps, **self.terms
        )
        if self.updates > 1 and rollout.old_logps is None:
            rollout.old_logps = logps.detach()
        policy = mean_over_tokens(
            terms.losses,
            rollout.mask,
            loss_type=self.loss_type,
            max_length=self.max_new_tokens,
            num_tokens=rollout.num_tokens,
        )
        # turn means over this process's answers into shares of the step's mean
        weight = batch.weight if self.averages_over_step(model) else 1.0
        others = weighted_losses(
            [each for each in model.active_objectives if not isinstance(each, LanguageModeling)], decoded
        )
        objectives = self.objective_weight(model, batch) * others["loss"]
        loss = weight * policy + objectives + model.zero_of_unused()
        if not sum(batch.num_answers):
            return StepLoss(loss)  # zero
        tokens = rollout.mask.sum()
        return StepLoss(
            loss,
            {
                **rollout.statistics,
                "clipped_low": terms.clipped_low.sum() / tokens,
                "clipped_high": terms.clipped_high.sum() / tokens,
                **({} if terms.kl is None else {"kl": terms.kl.sum() / tokens}),
                # a gap above rounding means that answers are scored under other conditions than they were sampled
                **({} if gap is None else {"sampling_gap": gap}),
                **others,
                "loss": policy + others["loss"],
            },
        )

    def samples(self) -> tuple[Sequence[str], list[list[str]]]:
        """Return the answers to the first question of the batch."""
        return SAMPLE_COLUMNS, [] if self.rollout is None else self.rollout.samples
