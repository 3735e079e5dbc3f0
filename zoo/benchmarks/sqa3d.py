"""SQA3D (arXiv 2210.07474): questions about a situation in a scan of ScanNet."""

from __future__ import annotations

from zoo.benchmarks.free_answers import FreeAnswers


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
