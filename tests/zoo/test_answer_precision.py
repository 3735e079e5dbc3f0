"""Answers are computed in the precision of the model's run, whoever asks; grouped keys and values in any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from datamodules.inference import answer_chats
from tests.zoo.asking import QUESTIONS, batch, build, scene
from zoo import SpatialVLM
from zoo.backbones import decoder as grouped_attention
from zoo.backbones.decoder import grouped_sdpa
from zoo.precision import answer_precision
from zoo.tasks import VideoQATask

FRAMES = scene("a").frames
CPU = torch.device("cpu")
QUIET: dict[str, Any] = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def types_of(model: SpatialVLM, ask: Callable[[], object]) -> set[torch.dtype]:
    """The dtypes of the decoder's and the vision tower's attention."""
    found: set[torch.dtype] = set()
    parts = model.backbone.decoder.layers[0].self_attn.q_proj, model.backbone.vlm.model.visual.blocks[0].attn.qkv
    hooks = [part.register_forward_hook(lambda *call: found.add(call[2].dtype)) for part in parts]
    ask()
    for hook in hooks:
        hook.remove()
    return found


def ways(task: VideoQATask) -> dict[str, Callable[[], object]]:
    asked = batch(task, scene("a", QUESTIONS[:2]))
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    return {
        "answer": lambda: task.model.answer(FRAMES, "Which?", max_new_tokens=2),
        "chats": lambda: answer_chats(task.model, [], [chat], max_new_tokens=2),
        "predict_batch": lambda: task.predict_batch(asked),
    }


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)], ids=["bf16", "float32"]
)
def test_all_ways_answer_in_the_precision_of_the_run(precision: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    task = build("plain")
    asked, predicted = batch(task, scene("a", QUESTIONS[:2])), []

    def predict() -> None:
        predicted.extend(Trainer(precision=precision, **QUIET).predict(task, DataLoader([asked], None))[0])  # type: ignore[index]

    assert types_of(task.model, predict) == {dtype}
    for name, ask in ways(task).items():
        assert types_of(task.model, ask) == {dtype}, name
    assert [each["prediction"] for each in predicted] == [each["prediction"] for each in task.predict_batch(asked)]
    task.model.save_pretrained(tmp_path / "saved")
    saved = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert types_of(saved, lambda: saved.answer(FRAMES, "Which?", max_new_tokens=2)) == {dtype}


def test_without_a_run_the_device_decides() -> None:
    """On a GPU bfloat16, see tests/zoo/test_rehearsal.py."""
    task = build("plain")
    for name, ask in ways(task).items():
        assert types_of(task.model, ask) == {torch.float32}, name
        with torch.autocast("cpu", torch.bfloat16):  # the caller's own stays
            assert types_of(task.model, ask) == {torch.bfloat16}, name
    task.model.precision = "32-true"
    with torch.autocast("cpu", torch.bfloat16), answer_precision(CPU, "32-true"):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("grouped", [1, 2, 4], ids=lambda heads: f"{heads} of 4 heads")
@pytest.mark.parametrize("length", [1, 5, 90], ids=lambda length: f"{length} queries")
@pytest.mark.parametrize("with_mask", [False, True], ids=["causal", "masked"])
@pytest.mark.parametrize("is_gpu", [False, True], ids=["on a CPU", "as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_attention_is_transformers_sdpa(
    dtype: torch.dtype, is_gpu: bool, with_mask: bool, length: int, grouped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_mask and length == 5:
        pytest.skip("causal attention has as many queries as keys, or one")
    generator, calls = torch.Generator().manual_seed(0), []
    keys = 90 if not with_mask and length > 1 else 120
    query = torch.randn(1, length, 4, 16, generator=generator).transpose(1, 2).to(dtype)
    key, value = (torch.randn(1, grouped, keys, 16, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(1, 1, length, keys, generator=generator) < 0.7 if with_mask else None
    module: Any = SimpleNamespace(num_key_value_groups=4 // grouped, is_causal=True)
    with torch.set_grad_enabled(is_gpu):  # with gradients a CPU does as a GPU
        expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
        sdpa = nn.functional.scaled_dot_product_attention

        def spy(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append((q.shape[1], args[0].shape[1], kwargs["enable_gqa"]))
            return sdpa(q, *args, **kwargs)

        monkeypatch.setattr(grouped_attention.F, "scaled_dot_product_attention", spy)
        found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3)
    ((heads, key_heads, is_grouped),) = calls
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    if length == 90:
        assert torch.equal(found, expected)
    if (dtype == torch.float32 or with_mask) if is_gpu else length == 1:
        assert not is_grouped and heads == key_heads  # no math kernel
        assert key_heads == (4 if length == 90 else grouped)  # and no copies of a long prefix for each token
    elif grouped < 4:
        assert is_grouped and key_heads == grouped
