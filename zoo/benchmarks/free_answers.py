"""Benchmarks with free answers: ScanQA and SQA3D, scored by exact match and by caption metrics.

`exact_match`, `refined_exact_match` (LEO, embodied-generalist: data/data_utils.py, evaluator/scanqa_eval.py). The
answer and the ground truths are cleaned by `clean_answer`. Exact: the answer equals one of the ground truths. Refined:
without white space, the answer contains one of them or is contained in one. An exact match counts for any order of the
ground truths, as in Video-3D-LLM. LEO's code stops at the first ground truth that matches in either way. An empty
answer scores 0. LEO's code would find it in every ground truth.

`raw_exact_match` (ScanQA's scripts/score.py; Video-3D-LLM's eval_scanqa.py)
    The unmodified answer is one of the ground truths.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from zoo.benchmarks.base import Benchmark
from zoo.benchmarks.scorers import clean_answer


class FreeAnswers(Benchmark):
    """A benchmark with free answers. A subclass sets `text_types`, `scorers`, `columns` and `instruction`.

    Attributes:
        instruction: Text after the question.
    """

    scorers: ClassVar[tuple[str, ...]] = ("exact_match", "refined_exact_match")
    instruction: ClassVar[str]

    @abstractmethod
    def find_type(self, question: str) -> str:
        """Return the type of a question."""

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
        """Return whether the answer is non-empty."""
        self.check_question_type(question_type)
        return bool(prediction.strip())

    def corpus_scores(self, predictions: Sequence[str], ground_truths: Sequence[str]) -> dict[str, Any]:
        """Return the caption metrics."""
        return caption_scores(predictions, [truth.split("\n") for truth in ground_truths])


# ---- ScanQA (arXiv 2112.10482): questions about scans of ScanNet, with several accepted answers ----------------------

STARTS = {  # from scripts/score.py, in the same order
    "place": ("Where",),
    "number": ("How many",),
    "color": ("What color", "What is the color"),
    "object_nature": ("What shape", "What type", "What kind"),
    "object": ("What is",),
}


class ScanQA(FreeAnswers):
    """ScanQA with the wording of Video-3D-LLM's scanqa_val_llava_style.json, which Spatial-MLLM also uses."""

    text_types = (*STARTS, "other")
    scorers = ("raw_exact_match", *FreeAnswers.scorers)
    columns = {"Place": ("place",), "Number": ("number",), "Color": ("color",), "Object nature": ("object_nature",),
               "Object": ("object",), "Other": ("other",)}  # fmt: skip
    instruction = "Answer the question simply."

    def find_type(self, question: str) -> str:
        """Return the question type by the official words, which may be anywhere in the question."""
        return next((kind for kind, words in STARTS.items() if any(word in question for word in words)), "other")


# ---- SQA3D (arXiv 2210.07474): questions about a situation in a scan of ScanNet --------------------------------------


class SQA3D(FreeAnswers):
    """SQA3D with the wording of Video-3D-LLM's sqa3d_test_llava_style.json, which Spatial-MLLM also uses."""

    text_types = ("what", "is", "how", "can", "which", "others")
    columns = {"What": ("what",), "Is": ("is",), "How": ("how",), "Can": ("can",), "Which": ("which",),
               "Others": ("others",)}  # fmt: skip
    instruction = "Answer the question using a single word or phrase."

    def find_type(self, question: str) -> str:
        """Return the question type by the start of the question, without its situation (as LEO does)."""
        begin = question.lstrip().lower()
        return next((kind for kind in self.text_types[:-1] if begin.startswith(kind)), "others")


# ---- Caption metrics by pycocoevalcap (the optional extra `captions`): BLEU-4, ROUGE-L, CIDEr, METEOR ----------------

# METEOR and the PTB tokenizer, which ScanQA's scripts/score.py applies to answers and ground truths, are Java programs.
# Without Java the answers are lower-cased and split at white space, as in Video-3D-LLM and LEO, and METEOR is skipped.
# The result states this, because the tokenizer affects every metric.

INSTALL = "pip install 'spatial-vlm-zoo[captions]'"
TITLES = {"bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR"}


def caption_scores(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the caption metrics of a whole test. Papers print all of them times 100.

    Returns:
        `{"bleu_4", "rouge_l", "cider", "meteor": float, "tokenizer": name, "skipped": {metric: remedy}}`. A metric that
        can't be computed is only in `skipped`.
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
    # Java reads one caption per line, and also ends lines at other characters
    return {"caption": " ".join(text.split())}


class WhiteSpaceTokenizer:
    """Replaces the PTB tokenizer if there is no Java."""

    def tokenize(self, captions: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
        """Lower-case, remove trailing full stops and collapse white space."""
        return {
            key: [" ".join(each["caption"].lower().rstrip(". ").split()) for each in own]
            for key, own in captions.items()
        }
