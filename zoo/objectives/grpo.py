"""Group-relative policy optimization as plain functions of tensors: advantages, log-probabilities, and loss.

GRPO is arXiv 2402.03300, section 4.1. The variants have TRL 1.16's names: Dr. GRPO (arXiv 2503.20783), DAPO (arXiv
2503.14476), BNPO (arXiv 2506.02864), and GSPO's ratio of whole answers (arXiv 2507.18071). `zoo.tasks.grpo` samples the
answers and trains on them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.errors import check_choice
from zoo.precision import to_float32

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]
RewardScale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Level = Literal["token", "sequence"]
LOSS_TYPES: tuple[str, ...] = get_args(LossType)
HAS_DELTA = HAS_UNSCORABLE = HAS_NORMALIZE_THEN_SUM = True  # extensions of GRPO that this module has
MIN_DEVIATION = 1e-4  # added to the standard deviation of rewards


class PolicyTerms(NamedTuple):
    """The loss of each token before averaging, and values for the loggers.

    Attributes:
        losses: Loss of each token, 0 where masked.
        kl: Estimated divergence from the reference. None without a reference.
        clipped_low: True where the ratio is clipped from below, so that the token has no gradient.
        clipped_high: True where it is clipped from above.
    """

    losses: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"] | None
    clipped_low: Bool[Tensor, "B T"]
    clipped_high: Bool[Tensor, "B T"]


# ---- advantages -------------------------------------------------------------------------------------------------


def group_advantages(
    rewards: Float[Tensor, "N R"],
    num_generations: int,
    *,
    weights: Float[Tensor, " R"],
    scale: RewardScale = "group",
    aggregation: Aggregation = "sum_then_normalize",
) -> Float[Tensor, " N"]:
    """Compare the reward of each answer with the rewards of the other answers to the same question.

    Args:
        rewards: Rewards of N answers by R reward functions, with answers to the same question in adjacent rows. NaN
            where a function does not apply. An answer without any reward has advantage 0 and does not count in means.
            Equal rewards have advantage 0.
        num_generations: Answers per question.
        weights: Weights of the reward functions.
        scale: Divide by the standard deviation of the `group` or of the whole `batch`. `none` does not divide, as in
            Dr. GRPO.
        aggregation: `sum_then_normalize`: sum the weighted functions, then normalize. `normalize_then_sum`: normalize
            each function in its group, sum, then normalize over the batch (GDPO, arXiv 2601.05242). `scale` is then
            ignored.
    """
    check_choice("scale", scale, RewardScale)
    check_choice("aggregation", aggregation, Aggregation)
    is_scorable = ~rewards.isnan().all(1)
    if aggregation == "normalize_then_sum":
        groups = rewards.unflatten(0, (-1, num_generations))
        each = (_centered(groups, 1) / (deviation(groups, 1) + MIN_DEVIATION)).flatten(0, 1)
        summed = torch.where(is_scorable, (each * weights).nansum(1), torch.nan)
        advantages = _centered(summed, 0) / (deviation(summed, 0) + MIN_DEVIATION)
    else:
        summed = torch.where(is_scorable, (rewards * weights).nansum(1), torch.nan)
        groups = summed.unflatten(0, (-1, num_generations))
        centered = _centered(groups, 1)
        if scale != "none":
            spread = deviation(groups, 1) if scale == "group" else deviation(summed, 0)
            centered = centered / (spread + MIN_DEVIATION)
        advantages = centered.flatten()
    return advantages.nan_to_num(0.0)


def deviation(values: Tensor, axis: int) -> Tensor:
    """Return the standard deviation (n - 1 in the denominator) of values that are not NaN. 0 if they are equal."""
    count = (~values.isnan()).sum(axis, keepdim=True)
    squares = _centered(values, axis).square().nansum(axis, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def _centered(values: Tensor, axis: int) -> Tensor:
    """Subtract the mean of the values that are not NaN.

    Equal values become exactly 0, because dividing rounding errors by `MIN_DEVIATION` would amplify them.
    """
    missing = values.isnan()
    least = values.masked_fill(missing, torch.inf).amin(axis, keepdim=True)
    greatest = values.masked_fill(missing, -torch.inf).amax(axis, keepdim=True)
    return (values - values.nanmean(axis, keepdim=True)).masked_fill(least >= greatest, 0.0)


# ---- log-probabilities ------------------------------------------------------------------------------------------


def token_log_probs(
    logits: Float[Tensor, "*batch V"], ids: Int[Tensor, "*batch"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Compute the log-probability of each token, in float32 or better."""
    scaled = to_float32(logits) / temperature
    return scaled.gather(-1, ids[..., None])[..., 0] - scaled.logsumexp(-1)


# ---- loss -------------------------------------------------------------------------------------------------------


def policy_terms(
    logps: Float[Tensor, "B T"],
    old_logps: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B ..."],
    mask: Shaped[Tensor, "B T"],
    *,
    ref_logps: Float[Tensor, "B T"] | None = None,
    beta: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    level: Level = "token",
    correct_kl: bool = True,
    delta: float | None = None,
) -> PolicyTerms:
    """Compute the clipped loss of each token. `grpo_loss` describes the arguments."""
    check_choice("level", level, Level)
    # masked tokens are replaced, because an infinite value times zero would be NaN
    known = mask.bool()
    logps = torch.where(known, logps, 0.0)
    old = logps.detach() if old_logps is None else torch.where(known, old_logps, 0.0)
    per_token = advantages if advantages.ndim == 2 else advantages[:, None]
    log_ratio = logps - old
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    ratio = log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    losses = -torch.minimum(bounded * per_token, clipped * per_token).expand_as(logps)
    kl = None
    if beta and ref_logps is not None:
        difference = torch.where(known, ref_logps, 0.0) - logps
        kl = difference.exp() - difference - 1
        losses = losses + beta * (kl * ratio if correct_kl else kl)
        kl = torch.where(known, kl.detach(), 0.0)
    return PolicyTerms(
        torch.where(known, losses, 0.0),
        kl,
        known & (bounded < 1 - epsilon_low) & (per_token < 0),
        known & (bounded > 1 + epsilon_high) & (per_token > 0),
    )


def mean_over_tokens(
    losses: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    loss_type: LossType,
    max_length: int | None = None,
    num_tokens: float | None = None,
    accumulation: int = 1,
) -> Float[Tensor, ""]:
    """Average the losses of tokens. `grpo_loss` describes the arguments."""
    check_choice("loss_type", loss_type, LossType)
    lengths = mask.sum(1)
    if loss_type == "dapo":
        return losses.sum() / (lengths.sum().clamp(min=1) * accumulation if num_tokens is None else num_tokens)
    if loss_type == "grpo":
        total = (losses.sum(1) / lengths.clamp(min=1)).mean()
    elif loss_type == "bnpo":
        total = losses.sum() / lengths.sum().clamp(min=1)
    elif loss_type == "dr_grpo":
        assert max_length is not None, "dr_grpo divides by max_length"
        total = losses.sum() / (len(losses) * max_length)
    else:
        total = losses.sum(1).mean()
    return total / accumulation


def grpo_loss(
    logps: Float[Tensor, "B T"],
    old_logps: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B ..."],
    mask: Shaped[Tensor, "B T"],
    *,
    ref_logps: Float[Tensor, "B T"] | None = None,
    loss_type: LossType,
    beta: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    level: Level = "token",
    correct_kl: bool = True,
    max_length: int | None = None,
    num_tokens: float | None = None,
    accumulation: int = 1,
    delta: float | None = None,
) -> Float[Tensor, ""]:
    """Compute the loss of B answers of up to T tokens.

    Args:
        logps: Log-probabilities of the tokens.
        old_logps: Log-probabilities by the policy that sampled the tokens. None uses `logps`, so that the ratio is 1
            and has a gradient.
        advantages: One advantage per answer or per token.
        mask: The tokens of the answers. Other tokens have no gradient, and their log-probabilities may hold any values.
        ref_logps: Log-probabilities by the reference policy, for `beta`.
        loss_type: `grpo`: mean over answers of the means over their tokens. `bnpo`: mean over all tokens. `dr_grpo`:
            sum divided by `max_length` for each answer. `dapo`: sum divided by `num_tokens`. `luspo`: mean over answers
            of sums.
        beta: Weight of the divergence from the reference (the estimator k3).
        epsilon_low: Ratios below 1 - epsilon_low are clipped.
        epsilon_high: Ratios above 1 + epsilon_high are clipped.
        level: One ratio per `token`, or one geometric mean per `sequence` (GSPO).
        correct_kl: Multiply the divergence by the ratio, because its samples come from the old policy.
        max_length: Maximum length of sampled answers, for `dr_grpo`.
        num_tokens: Divisor for `dapo`: the tokens of all answers of the optimizer step, per process, times
            `accumulation`. None counts the tokens of `mask`.
        accumulation: Batches per optimizer step. The loss of each is divided by it, except for `dapo` with
            `num_tokens`.
        delta: Upper bound of the ratio before clipping (two-sided clipping, arXiv 2505.07291).

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0], [-0.5, -9.0]], requires_grad=True)
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> grpo_loss(logps, None, torch.tensor([1.0, -1.0]), mask, loss_type="grpo").backward()
        >>> logps.grad.tolist()
        [[-0.25, -0.25], [0.5, 0.0]]
    """
    terms = policy_terms(
        logps,
        old_logps,
        advantages,
        mask,
        ref_logps=ref_logps,
        beta=beta,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        level=level,
        correct_kl=correct_kl,
        delta=delta,
    )
    return mean_over_tokens(
        terms.losses,
        mask,
        loss_type=loss_type,
        max_length=max_length,
        num_tokens=num_tokens,
        accumulation=accumulation,
    )
