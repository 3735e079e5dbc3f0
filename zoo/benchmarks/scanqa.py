"""ScanQA (arXiv 2112.10482): questions about scans of ScanNet, with several accepted answers."""

from __future__ import annotations

from zoo.benchmarks.base import FreeAnswers

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


# ---- SQA3D (arXiv 2210.07474): questions about a situation in a scan of ScanNet -------------------------------------


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
