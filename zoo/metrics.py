"""VSI-Bench scores: accuracy for multiple choice, mean relative accuracy (MRA) for numbers.

MRA is the share of the ten thresholds θ = 0.50, 0.55 … 0.95 with |ŷ - y| / y < 1 - θ ("Thinking in Space",
arXiv 2412.14171, section 3). The two official scorers read an answer, and round, differently; both are
profiles:

`spatial_mllm` (Spatial-MLLM v1.1, src/evaluation/vsibench)
    Answer and truth are cleaned alike: the inside of the last `<answer>…</answer>` if there is one, each
    run of white space to one space, stripped, trailing full stops removed, lower case. A choice is right if
    the cleaned strings, stripped again, are equal. A number is the whole cleaned string without commas, as
    `float()` reads it. The error |ŷ - y| / (|y| + 1e-8) is compared with a strict `<` in float32; the score
    is a float32 mean.

`thinking_in_space` (thinking-in-space, lmms_eval/tasks/vsibench/utils.py)
    The answer is all before the first space (no other white space ends it), trailing full stops removed, then
    stripped; the truth is left as it is. A choice is right if both are equal in lower case. A number is what
    `float()` reads. The error |ŷ - y| / y, negative for a negative y, is compared with `<=` in float64. Where
    this scorer raises (y = 0), the score is 0.

An answer that is no number scores 0 in both.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Profile = Literal["spatial_mllm", "thinking_in_space"]

NUMERIC_TYPES = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
DIRECTION_TYPES = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
MULTIPLE_CHOICE_TYPES = (*DIRECTION_TYPES, "object_rel_distance", "route_planning", "obj_appearance_order")
QUESTION_TYPES = NUMERIC_TYPES + MULTIPLE_CHOICE_TYPES

_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def score_answer(prediction: str, ground_truth: str, question_type: str, profile: Profile = "spatial_mllm") -> float:
    """The score of one answer in 0..1, as the official scorer gives it (rules: the module's docstring).

    0.0 where the answer can't be parsed or the official scorer raises.

    Raises:
        ValueError: unknown question type or profile.
    """
    _check_names(question_type, profile)
    if question_type in MULTIPLE_CHOICE_TYPES:
        if profile == "spatial_mllm":
            return float(_clean(prediction, profile).strip() == _clean(ground_truth, profile).strip())
        return float(_clean(prediction, profile).lower() == ground_truth.lower())
    truth_text = _clean(ground_truth, profile) if profile == "spatial_mllm" else ground_truth
    answer, truth = _to_float(_clean(prediction, profile), profile), _to_float(truth_text, profile)
    if answer is None or truth is None:
        return 0.0
    if profile == "spatial_mllm":
        return _mra_strict_float32(answer, truth)
    return 0.0 if truth == 0 else float(np.mean(abs(answer - truth) / truth <= 1 - _THRESHOLDS))


def is_parsable(prediction: str, question_type: str, profile: Profile = "spatial_mllm") -> bool:
    """Whether the profile's reading of an answer is a finite number, or for multiple choice a single letter.

    Raises:
        ValueError: unknown question type or profile.
    """
    _check_names(question_type, profile)
    answer = _clean(prediction, profile)
    if question_type in MULTIPLE_CHOICE_TYPES:
        return re.fullmatch("[a-z]", answer.strip(), re.IGNORECASE | re.ASCII) is not None
    number = _to_float(answer, profile)
    return number is not None and math.isfinite(number)


def _check_names(question_type: str, profile: str) -> None:
    if question_type not in QUESTION_TYPES:
        raise ValueError(f"unknown question type {question_type!r}, not one of {', '.join(QUESTION_TYPES)}")
    if profile not in get_args(Profile):
        raise ValueError(f"unknown scoring profile {profile!r}; choose from {', '.join(get_args(Profile))}")


def _clean(text: str, profile: Profile) -> str:
    if profile == "thinking_in_space":
        return text.split(" ")[0].rstrip(".").strip()
    tagged = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    return " ".join((tagged[-1] if tagged else text).split()).rstrip(".").lower()


def _to_float(text: str, profile: Profile) -> float | None:
    try:
        return float(text.replace(",", "") if profile == "spatial_mllm" else text)
    except ValueError:
        return None


def _mra_strict_float32(answer: float, truth: float) -> float:
    """Every step is rounded to float32, as the official tensors are: at a threshold the last bit decides."""
    with np.errstate(all="ignore"):  # nan and inf compare as they should
        y_hat, y = np.float32(answer), np.float32(truth)
        error = abs(y_hat - y) / (abs(y) + np.float32(1e-8))
        passed = error < np.float32(1) - _THRESHOLDS.astype(np.float32)
    return float(passed.mean(dtype=np.float32))


class VSIBenchScore(Metric):
    """Scores of VSI-Bench by question type, and their micro and macro means.

    A sample id counts once, with the first row that comes: DistributedSampler repeats samples to fill its
    last round. Rows without an id all count. The state is one int64 tensor (rows, 4), which gathers over
    any backend and which no change of precision touches: two halves of a 128-bit hash of the id, the index
    of the question type, the bits of the float64 score.

    Args:
        profile: whose scoring, of two that differ in how they read an answer, see `score_answer`.

    Raises:
        ValueError: unknown profile or question type, or lists of unequal length.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, profile: Profile = "spatial_mllm", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_names(QUESTION_TYPES[0], profile)
        self.profile = profile
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[str],
        ground_truths: Sequence[str],
        question_types: Sequence[str],
        sample_ids: Sequence[str] | None = None,
    ) -> None:
        """Adds one row an answer; the four lists run in parallel."""
        lengths = {len(predictions), len(ground_truths), len(question_types)}
        if len(lengths | ({len(sample_ids)} if sample_ids is not None else set())) != 1:
            raise ValueError("predictions, ground_truths, question_types and sample_ids differ in length")
        scores = [
            score_answer(answer, truth, kind, self.profile)
            for answer, truth, kind in zip(predictions, ground_truths, question_types, strict=True)
        ]
        ids = [None] * len(scores) if sample_ids is None else sample_ids
        rows = torch.empty(len(scores), 4, dtype=torch.int64)
        rows[:, :2] = torch.tensor([_hash(i) for i in ids], dtype=torch.int64).reshape(-1, 2)
        rows[:, 2] = torch.tensor([QUESTION_TYPES.index(kind) for kind in question_types], dtype=torch.int64)
        rows[:, 3] = torch.tensor(scores, dtype=torch.float64).view(torch.int64)
        self.rows.append(rows.to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics gathers an empty list as a 1-D float tensor, which no other rank's rows would match
        if not len(self.rows):
            self.rows.append(torch.empty(0, 4, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, dict[str, Any]]:
        """{"per_question_type": {type: {"score", "count"}}, "acc": {"micro", "macro"}, "mra": …, "all": …}.

        Micro is the mean over questions. Macro is the mean over question types, the three direction types
        averaged into one first; the "overall" of thinking-in-space's table is `all` macro. Scores are
        floats in 0..1, None where a group has no question. Sums over questions are exact: no order or split
        of them shows.
        """
        rows = dim_zero_cat(self.rows).cpu() if len(self.rows) else torch.empty(0, 4, dtype=torch.int64)
        scores = rows[:, 3].contiguous().view(torch.float64).tolist()
        unique: dict[tuple[int, int], tuple[int, float]] = {}
        for (high, low, kind, _), score in zip(rows.tolist(), scores, strict=True):
            unique.setdefault((high, low), (kind, score))
        by_type: dict[str, list[float]] = {}
        for kind, score in unique.values():
            by_type.setdefault(QUESTION_TYPES[kind], []).append(score)
        return {
            "per_question_type": {
                kind: {"score": _mean(by_type[kind]), "count": len(by_type[kind])}
                for kind in QUESTION_TYPES
                if kind in by_type
            },
            "acc": _micro_macro({k: v for k, v in by_type.items() if k in MULTIPLE_CHOICE_TYPES}),
            "mra": _micro_macro({k: v for k, v in by_type.items() if k in NUMERIC_TYPES}),
            "all": _micro_macro(by_type),
        }


def _hash(sample_id: str | None) -> tuple[int, int]:
    """128 bits of the id as two int64; without an id, 128 random bits, which no other row will have."""
    if sample_id is None:
        digest = secrets.token_bytes(16)
    else:
        digest = hashlib.blake2b(str(sample_id).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], signed=True), int.from_bytes(digest[8:], signed=True)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _micro_macro(by_type: dict[str, list[float]]) -> dict[str, float | None]:
    means = {kind: math.fsum(scores) / len(scores) for kind, scores in sorted(by_type.items())}
    directions = [means.pop(kind) for kind in sorted(DIRECTION_TYPES) if kind in means]
    if directions:
        means["object_rel_direction"] = float(np.mean(directions))
    # numpy's mean of the types in alphabetical order: to the last bit what Spatial-MLLM prints
    macro = float(np.mean([means[kind] for kind in sorted(means)])) if means else None
    return {"micro": _mean([score for scores in by_type.values() for score in scores]), "macro": macro}
