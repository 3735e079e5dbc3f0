"""The baseline against numbers from transformers 4.51, with which the released checkpoints were made."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.released import CASES, build, check_case, load_case, media


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("qwen")])
def test_logits_loss_gradients_and_answers(case: str) -> None:
    check_case(case)


def test_another_time_is_another_answer() -> None:
    meta, t = load_case("qwen_one_video")
    model, _ = build(meta)
    wrong = media(t, meta) | {"seconds_per_grid": [0.5]}
    with torch.no_grad():
        logits = model.logits(t["input_ids"], t["attention_mask"], **wrong)
    assert not torch.allclose(logits, t["out_logits"], atol=1e-2)
