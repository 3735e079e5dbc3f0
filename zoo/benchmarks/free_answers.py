"""Benchmarks of free answers: ScanQA and SQA3D, scored by exact match and by caption metrics.

`exact_match`, `refined_exact_match` (LEO, embodied-generalist: data/data_utils.py, evaluator/scanqa_eval.py). Answer
and ground truths are cleaned alike, see `clean_answer`. Exact: the answer equals one of the ground truths. Refined:
without white space, the answer contains one of them or is contained in one. An exact match counts whatever the order
of the ground truths, as in Video-3D-LLM; LEO's code stops at the first that matches at all. An empty answer scores 0;
LEO's code finds it in every ground truth.

`raw_exact_match` (ScanQA's scripts/score.py; Video-3D-LLM's eval_scanqa.py)
    The answer, as it is, is one of the ground truths.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from zoo.benchmarks.base import Benchmark
from zoo.benchmarks.scorers import clean_answer


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


# ---- ScanQA (arXiv 2112.10482): questions about scans of ScanNet, with several accepted answers ----------------------

STARTS = {  # of scripts/score.py, in its order
    "place": ("Where",),
    "number": ("How many",),
    "color": ("What color", "What is the color"),
    "object_nature": ("What shape", "What type", "What kind"),
    "object": ("What is",),
}


class ScanQA(FreeAnswers):
    """ScanQA with the wording of Video-3D-LLM's scanqa_val_llava_style.json, which Spatial-MLLM evaluates as well."""

    text_types = (*STARTS, "other")
    scorers = ("raw_exact_match", *FreeAnswers.scorers)
    columns = {"Place": ("place",), "Number": ("number",), "Color": ("color",), "Object nature": ("object_nature",),
               "Object": ("object",), "Other": ("other",)}  # fmt: skip
    instruction = "Answer the question simply."

    def find_type(self, question: str) -> str:
        """Return the question type, by the official words anywhere in the question."""
        return next((kind for kind, words in STARTS.items() if any(word in question for word in words)), "other")


# ---- SQA3D (arXiv 2210.07474): questions about a situation in a scan of ScanNet --------------------------------------


class SQA3D(FreeAnswers):
    """SQA3D with the wording of Video-3D-LLM's sqa3d_test_llava_style.json, which Spatial-MLLM evaluates as well."""

    text_types = ("what", "is", "how", "can", "which", "others")
    columns = {"What": ("what",), "Is": ("is",), "How": ("how",), "Can": ("can",), "Which": ("which",),
               "Others": ("others",)}  # fmt: skip
    instruction = "Answer the question using a single word or phrase."

    def find_type(self, question: str) -> str:
        """Return the question type, by the first letters of the question without its situation (LEO)."""
        begin = question.lstrip().lower()
        return next((kind for kind in self.text_types[:-1] if begin.startswith(kind)), "others")


# ---- Caption metrics by pycocoevalcap (the optional extra `captions`): BLEU-4, ROUGE-L, CIDEr, METEOR ----------------

# METEOR and the PTB tokenizer, with which ScanQA's scripts/score.py tokenizes answers and ground truths, are Java
# programs. Without Java the answers are lower-cased and split at white space, as Video-3D-LLM and LEO do, and METEOR is
# skipped. The result says so, since the tokenizer moves every number.

INSTALL = "pip install 'spatial-vlm-zoo[captions]'"
TITLES = {"bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR"}


def caption_scores(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the caption metrics of a whole test; papers print all of them times 100.

    Args:
        answers: One per question.
        truths: The accepted answers of each question.

    Returns:
        `{"bleu_4", "rouge_l", "cider", "meteor": float, "tokenizer": name, "skipped": {metric: remedy}}`; a metric
        that can't be computed is in `skipped` alone.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError:
        return {"skipped": dict.fromkeys(TITLES, INSTALL)}
    has_java = shutil.which("java") is not None
    tokenize = (PTBTokenizer() if has_java else WhiteSpaceTokenizer()).tokenize
    given = tokenize({str(i): [_caption(answer)] for i, answer in enumerate(answers)})
    wanted = tokenize({str(i): [_caption(each) for each in own] for i, own in enumerate(truths)})
    scores = {
        "bleu_4": Bleu(4).compute_score(wanted, given, verbose=0)[0][3],
        "rouge_l": Rouge().compute_score(wanted, given)[0],
        "cider": Cider().compute_score(wanted, given)[0],
        **({"meteor": Meteor().compute_score(wanted, given)[0]} if has_java else {}),
    }
    return {
        **{name: float(score) for name, score in scores.items()},
        "tokenizer": "PTB" if has_java else "white space (the PTB tokenizer needs Java)",
        "skipped": {} if has_java else {"meteor": "install Java"},
    }


def _caption(text: str) -> dict[str, str]:
    return {"caption": " ".join(text.split())}  # Java reads a line per caption, and ends lines at other characters too


class WhiteSpaceTokenizer:
    """Take the place of the PTB tokenizer where there is no Java."""

    def tokenize(self, captions: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
        """Lower the case, remove trailing full stops and collapse white space."""
        return {
            key: [" ".join(each["caption"].lower().rstrip(". ").split()) for each in own]
            for key, own in captions.items()
        }
