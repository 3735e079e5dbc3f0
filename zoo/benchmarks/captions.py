"""Caption metrics of free answers by pycocoevalcap (the optional extra `captions`): BLEU-4, ROUGE-L, CIDEr, METEOR.

METEOR and the PTB tokenizer, with which ScanQA's scripts/score.py tokenizes answers and ground truths, are Java
programs. Without Java the answers are lower-cased and split at white space, as Video-3D-LLM and LEO do, and METEOR is
skipped; the result says so, since the tokenizer moves every number.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

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
