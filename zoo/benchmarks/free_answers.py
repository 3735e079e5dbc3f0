"""Benchmarks of free answers, scored by exact match, refined exact match and caption metrics.

`exact_match`, `refined_exact_match` (LEO, embodied-generalist: data/data_utils.py, evaluator/scanqa_eval.py)
    Answer and ground truths are cleaned alike, see `clean_answer`. Exact: the answer equals one of the ground truths.
    Refined: without white space, the answer contains one of them or is contained in one. An exact match counts whatever
    the order of the ground truths, as in Video-3D-LLM; LEO's code stops at the first that matches at all. An empty
    answer scores 0; LEO's code finds it in every ground truth.

`raw_exact_match` (ScanQA's scripts/score.py; Video-3D-LLM's eval_scanqa.py)
    The answer, as it is, is one of the ground truths.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from zoo.benchmarks.base import Benchmark
from zoo.benchmarks.captions import caption_scores
from zoo.benchmarks.scorers import ONES

WORDS = dict(zip(map(str, range(20)), ONES.split(), strict=True)) | {"20": "twenty", "23": "twenty-three"}
WORDS |= {"none": "zero", "tv": "TV", "oclock": "o'clock", "chai": "chair", "wasing": "washing", "waslked": "walked"}
WORDS |= {"letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right", "behine": "behind"}


def clean_answer(text: str) -> str:
    """Return LEO's cleaned answer: lower case, no punctuation but ,'-: and no articles, frequent typos and numbers."""
    text = re.sub(" {2,}", " ", re.sub("^ +| +$", "", text.lower()))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    text = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda word: WORDS[word[0]], text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    text = re.sub(r"\b([a-zA-Z]+)[0-9]\b", r"\1", text)  # chair2
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)


class FreeAnswers(Benchmark):
    """A benchmark of free answers; a subclass sets `text_types`, `scorers`, `columns` and `instruction`.

    Attributes:
        instruction: Follows the question.
    """

    scorers: ClassVar[tuple[str, ...]] = ("exact_match", "refined_exact_match")
    instruction: ClassVar[str]

    @abstractmethod
    def find_type(self, question: str) -> str:
        """Return the question type of a question."""

    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        """Return prefix, question and instruction."""
        return "\n".join([*([prefix] if prefix else []), f"{question} {self.instruction}"])

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Return 1.0 if the answer matches one of the ground truths, else 0.0."""
        self.check_question_type(question_type)
        rule, truths = self.find_scorer(scorer), ground_truth.split("\n")
        if rule == "raw_exact_match":
            return float(prediction.strip() in truths)
        answer, truths = clean_answer(prediction), [clean_answer(truth) for truth in truths]
        if rule == "exact_match" or not answer.strip():
            return float(answer in truths and answer.strip() != "")
        bare, others = "".join(answer.split()), ["".join(truth.split()) for truth in truths]
        return float(any(bare in other or other in bare for other in others))

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        """Return whether there is an answer."""
        self.check_question_type(question_type)
        return bool(prediction.strip())

    def corpus_scores(self, predictions: Sequence[str], ground_truths: Sequence[str]) -> dict[str, Any]:
        """Return the caption metrics."""
        return caption_scores(predictions, [truth.split("\n") for truth in ground_truths])
