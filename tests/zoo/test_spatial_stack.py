"""SpatialStack against numbers from the published code."""

from __future__ import annotations

import pytest

from tests.zoo.fused_golden import check_case
from tests.zoo.released import GOLDEN

OTHERS = ("vision_add", "language_cross_attention")  # ways of fusing that no released model has
QWEN25 = sorted(
    f"spatial_stack/qwen2_5_vl/{path.stem}"
    for path in (GOLDEN / "spatial_stack/qwen2_5_vl").glob("*.safetensors")
    if path.stem not in OTHERS
)
LANGUAGE_ADD = "spatial_stack/qwen2_5_vl/language_add_images3"


@pytest.mark.parametrize("case", QWEN25)
def test_logits_loss_gradients_and_answers(case: str) -> None:
    check_case(case, atol=3e-5)
