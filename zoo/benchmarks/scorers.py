"""The published scorers of VSI-Bench.

A multiple-choice answer scores 1 if it equals the ground truth. A numeric answer scores its mean relative accuracy
(MRA): the share of the ten thresholds θ = 0.50, 0.55 ... 0.95 with |ŷ - y| / y < 1 - θ ("Thinking in Space", arXiv
2412.14171, section 3). The implementations differ in how they parse answers and how they round:

`spatial_mllm` (Spatial-MLLM v1.1, src/evaluation/vsibench) Cleans answer and ground truth in the same way: the content
    of the last `<answer>...</answer>` if there is one, white space collapsed, stripped, trailing full stops removed,
    lower case. A number is the whole cleaned string without commas, parsed by `float()`. The error |ŷ - y| / (|y| +
    1e-8) is compared by a strict `<` in float32. The score is a float32 mean.

`thinking_in_space` (thinking-in-space, lmms_eval/tasks/vsibench/utils.py) Takes the answer up to the first space
    character, removes trailing full stops, then strips. The ground truth is only lower-cased. A number is parsed by
    `float()`. The error |ŷ - y| / y, negative for a negative y, is compared by `<=` in float64. Raises for y = 0, which
    scores 0 here.

`lmms_eval_0.7.3` (lmms-eval 0.7.3, lmms_eval/tasks/vsibench/utils.py; 0.7.2 is `thinking_in_space`) As
    `thinking_in_space`, but a number is the first one anywhere in the answer, in digits or in English words.

`spatial_stack` (SpatialStack, arXiv 2603.27437, its Qwen3.5 adapter of lmms-eval) `thinking_in_space` on the answer
without blocks of thoughts, `<think>...</think>`. A block that was cut off by the maximum length is kept.

`geovr` (GeoVR, arXiv 2606.05833) A choice is the answer's first character, in its own case. A number is the whole
    answer, parsed by `float()`. The error |ŷ - y| / y is compared by a strict `<` in float64. A ground truth of 0 must
    be matched exactly. Its means pool the questions of a group of question types (`Benchmark.pooling_scorers`).

With all of them, an answer that is not a number scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(ONES.split())}
NUMBER_WORDS |= {word: 10 * ten for ten, word in enumerate(TENS.split(), 2)}
NUMBER_WORDS |= {"hundred": 100, "thousand": 1000}


class Scorer(NamedTuple):
    """A published scorer: parsing of answers and ground truths, and the relative accuracy of a number."""

    read_choice: Callable[[str], str]
    read_true_choice: Callable[[str], str]
    read_number: Callable[[str], float | None]
    read_true_number: Callable[[str], float | None]
    relative_accuracy: Callable[[float, float], float]

    def score_choice(self, prediction: str, ground_truth: str) -> float:
        """Return 1.0 if the answer is the right option, else 0.0."""
        return float(self.read_choice(prediction) == self.read_true_choice(ground_truth))

    def score_number(self, prediction: str, ground_truth: str) -> float:
        """Return the mean relative accuracy. 0.0 unless both are numbers."""
        answer, truth = self.read_number(prediction), self.read_true_number(ground_truth)
        return 0.0 if answer is None or truth is None else self.relative_accuracy(answer, truth)


def to_float(text: str) -> float | None:
    """Return the number that `float()` parses, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def last_tagged(text: str) -> str:
    """Return the content of the last answer tag, or the text."""
    closed = text[: text.rfind("</answer>") + len("</answer>")]  # tags without an end would each search to the end
    tagged: list[str] = re.findall("<answer>(.*?)</answer>", closed, re.DOTALL)
    return tagged[-1] if tagged else text


def read_tagged(text: str) -> str:
    """Return the cleaned content of the last answer tag, or the cleaned text."""
    return " ".join(last_tagged(text).split()).rstrip(".").lower().strip()


def read_first_word(text: str) -> str:
    """Return the text before the first space in lower case, without trailing full stops."""
    return text.split(" ")[0].rstrip(".").strip().lower()


def without_thoughts(text: str) -> str:
    """Return an answer without completed blocks of thoughts."""
    rest = text[text.rfind("</think>") + len("</think>") :].lstrip()  # tags there would each search to the end
    blocks = text[: len(text) - len(rest)]
    return (re.sub(r"<think>.*?</think>\s*", "", blocks, flags=re.DOTALL) + rest).strip()


def read_any_number(text: str) -> float | None:
    """Return the first number in a text, in digits or in English words, or None."""
    text = text.lower()
    digits = re.search(r"-?\d+(?:\.\d+)?", text)
    start, total, current = None, 0, 0
    for word in re.finditer("[a-z]+", text):
        value = NUMBER_WORDS.get(word[0])
        if value is None:
            if start is None or word[0] == "and":
                continue
            break
        start = word.start() if start is None else start
        if value == 100:
            current = max(current, 1) * 100
        elif value == 1000:
            total, current = total + max(current, 1) * 1000, 0
        else:
            current += value
    if digits and (start is None or digits.start() < start):
        return float(digits[0])
    try:
        return None if start is None else float(total + current)
    except OverflowError:  # the official scorer raises
        return None


def strict_float32_mra(answer: float, truth: float) -> float:
    """Return Spatial-MLLM's MRA. Every step is rounded to float32, because the last bit decides at a threshold."""
    with np.errstate(all="ignore"):  # nan and inf compare as in the official tensors
        y_hat, y = np.float32(answer), np.float32(truth)
        error = abs(y_hat - y) / (abs(y) + np.float32(1e-8))
        passed = error < np.float32(1) - THRESHOLDS.astype(np.float32)
    return float(passed.mean(dtype=np.float32))


def float64_mra(answer: float, truth: float) -> float:
    """Return thinking-in-space's MRA. 0.0 for a ground truth of 0, for which the official code raises."""
    return 0.0 if truth == 0 else float(np.mean(abs(answer - truth) / truth <= 1 - THRESHOLDS))


def strict_float64_mra(answer: float, truth: float) -> float:
    """Return GeoVR's MRA."""
    if truth == 0:
        return float(answer == 0)
    return float(np.mean(abs(answer - truth) / truth < 1 - THRESHOLDS.round(2)))  # 0.9, not linspace's 0.8999...


def _read_tagged_number(text: str) -> float | None:
    return to_float(read_tagged(text).replace(",", ""))


def _read_first_number(text: str) -> float | None:
    return to_float(read_first_word(text))


def _read_choice_after_thoughts(text: str) -> str:
    return read_first_word(without_thoughts(text))


def _read_number_after_thoughts(text: str) -> float | None:
    return _read_first_number(without_thoughts(text))


SCORERS = {
    "spatial_mllm": Scorer(read_tagged, read_tagged, _read_tagged_number, _read_tagged_number, strict_float32_mra),
    "thinking_in_space": Scorer(read_first_word, str.lower, _read_first_number, to_float, float64_mra),
    "lmms_eval_0.7.3": Scorer(read_first_word, str.lower, read_any_number, to_float, float64_mra),
    "spatial_stack": Scorer(_read_choice_after_thoughts, str.lower, _read_number_after_thoughts, to_float, float64_mra),
    "geovr": Scorer(lambda text: text[:1], str, to_float, to_float, strict_float64_mra),
}


# ---- Free answers, cleaned as LEO does (embodied-generalist: data/data_utils.py) -------------------------------------

WORDS = dict(zip(map(str, range(20)), ONES.split(), strict=True)) | {"20": "twenty", "23": "twenty-three"}
WORDS |= {"none": "zero", "tv": "TV", "oclock": "o'clock", "chai": "chair", "wasing": "washing", "waslked": "walked"}
WORDS |= {"letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right", "behine": "behind"}


def clean_answer(text: str) -> str:
    """Return LEO's cleaned answer: lower case, only ,'-: as punctuation, no articles, typos and digits replaced."""
    text = re.sub(" {2,}", " ", re.sub("^ +| +$", "", text.lower()))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    text = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda word: WORDS[word[0]], text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    text = re.sub(r"\b([a-zA-Z]+)[0-9]\b", r"\1", text)  # chair2
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)
