"""Checks that come first on a new card: fast kernels compute what plain ones do. A part fails if one does not."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from timings.gpu.models import COMMANDS, TITLES, Bench, Row, Tables, release
from zoo.backbones import qwen3_5
from zoo.backbones.base import load_attention
from zoo.backbones.decoder import GROUPED_SDPA
from zoo.errors import InputError
from zoo.faulty_kernels import check_delta_rule
from zoo.generation import answer_batch
from zoo.precision import answer_precision
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask

BACKENDS = ("sdpa", "flex_attention", "flash_attention_2")
QUESTIONS, NEW_TOKENS = 4, 8
# bfloat16 alone gives a few percent; a wrong mask or wrong positions give more than 1
MAX_ERROR = 0.2
# rounding may turn a near tie of random weights, after which answers differ; garbage agrees in no token
MIN_SHARE = 0.25
GRADIENTS = ("q", "k", "v", "decay", "beta")
MAX_GRADIENT_ERROR = 0.05


# ---- Attention backends: logits and greedy answers -------------------------------------------------------------------


def answers(bench: Bench, family: str) -> Tables:
    """Logits of a prompt and greedy answers to questions about a scene by attention backend, compared with sdpa.

    "same tokens" is the share of an answer before its first difference. The decoder and the vision encoder use the
    backend, except for flex_attention, which is for decoders.
    """
    command = bench.fit(family, is_adapted=False)
    task = command.task().eval()
    rows: list[Row] = []
    expected: tuple[Tensor, list[list[int]]] | None = None
    for name in BACKENDS:
        if missing := missing_attention(name):
            rows.append({"backend": missing})
            continue
        use_backend(task, name)
        torch.manual_seed(0)  # the same frames for each backend
        of_prompt = logits(task, command.inputs(task, command.sizes(1)))
        (asked,) = command.questions(task, command.sizes(QUESTIONS))
        replies = answer_batch(task.model, asked, NEW_TOKENS)
        assert not any(reply.error for reply in replies), replies
        found = of_prompt, [reply.ids for reply in replies]
        expected = expected or found
        rows.append(compare_answers(name, found, expected))
    del task
    release()
    return {TITLES[family]: rows, COMMANDS: [{"": "all", "command": str(command)}]}


def missing_attention(name: str) -> str:
    """Return why an attention backend can't be used here. Empty if it can."""
    try:
        load_attention(name)
    except InputError as error:
        return str(error)
    return ""


def use_backend(task: VideoQATask, name: str) -> None:
    """Let a model attend by a backend."""
    backbone = task.model.backbone
    backbone.decoder.config._attn_implementation = GROUPED_SDPA if name == "sdpa" else name
    backbone.vlm.model.visual.config._attn_implementation = "sdpa" if name == "flex_attention" else name


@torch.no_grad()
def logits(task: VideoQATask, batch: Batch) -> Tensor:
    """Return the logits of the last 32 tokens of the prompt."""
    assert batch.sequences is not None
    backbone = task.model.backbone
    with answer_precision(backbone.device, None):
        built = task.model.decoder_inputs(task.model.encode_scenes(batch), batch.sequences)
        return backbone.lm_head(backbone.decode(built).last_hidden_state[0, -32:]).float()


def compare_answers(name: str, found: tuple[Tensor, list[list[int]]], expected: tuple[Tensor, list[list[int]]]) -> Row:
    """Return a row of the table, or exit if a backend computes something else."""
    error = float((found[0] - expected[0]).square().mean().sqrt() / expected[0].std())
    share = sum(map(same_share, found[1], expected[1])) / len(expected[1])
    if not error <= MAX_ERROR or share < MIN_SHARE:
        sys.exit(
            f"{name} differs from sdpa: error of logits {error:.3f}, {share:.0%} of the answers' tokens are the same"
        )
    return {"backend": name, "RMS error / standard deviation": f"{error:.4f}", "same tokens": f"{share:.0%}"}


def same_share(found: Sequence[int], expected: Sequence[int]) -> float:
    """Return the share of an answer before the first difference."""
    same = [one == other for one, other in zip(found, expected, strict=False)]
    return [*same, False].index(False) / max(len(found), len(expected), 1)


# ---- Gated DeltaNet: gradients ---------------------------------------------------------------------------------------


def deltanet(bench: Bench) -> Tables:
    """Gradients of Gated DeltaNet in bfloat16, by flash-linear-attention if it is installed and by PyTorch.

    Both are compared with PyTorch's in float32.
    """
    check_delta_rule()
    fast = qwen3_5.torch_chunk_gated_delta_rule
    plain = inspect.unwrap(fast)
    length, key_heads, value_heads, width = (96, 1, 2, 16) if bench.is_tiny else (2048, 16, 32, 128)
    generator = torch.Generator(bench.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, length, *shape, generator=generator, device=bench.device)

    inputs = [draw(key_heads, width), draw(key_heads, width), draw(value_heads, width)]
    inputs += [-0.1 * draw(value_heads).abs(), draw(value_heads).sigmoid()]  # decay and step size
    weight = draw(value_heads, width)
    exact = gradients(plain, inputs, weight)
    rounded = [each.bfloat16() if number != 3 else each for number, each in enumerate(inputs)]  # the decay is float32
    rows = [gradient_errors("PyTorch", gradients(plain, rounded, weight), exact)]
    if bench.device.type == "cuda" and find_spec("fla") is not None:
        rows.append(gradient_errors("flash-linear-attention", gradients(fast, rounded, weight), exact))
    else:
        rows.append({"way": "flash-linear-attention: needs a GPU and pip install 'spatial-vlm-zoo[deltanet]'"})
    return {"relative error of gradients": rows}


def gradients(rule: Callable[..., Any], inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Return the gradients of a weighted sum of the outputs."""
    q, k, v, decay, beta = leaves = [each.detach().clone().requires_grad_() for each in inputs]
    output, _ = rule(q, k, v, g=decay, beta=beta, output_final_state=False, use_qk_l2norm_in_kernel=True)
    return list(torch.autograd.grad((output.float() * weight).sum(), leaves))


def gradient_errors(way: str, found: Sequence[Tensor], exact: Sequence[Tensor]) -> Row:
    """Return a row of the table, or exit if a gradient is wrong."""
    errors = {
        name: float((one.float() - other).norm() / other.norm())
        for name, one, other in zip(GRADIENTS, found, exact, strict=True)
    }
    if wrong := [f"{name} {error:.3f}" for name, error in errors.items() if not error <= MAX_GRADIENT_ERROR]:
        sys.exit(
            f"{way} has wrong gradients of Gated DeltaNet: {', '.join(wrong)}; pip install 'spatial-vlm-zoo[deltanet]'"
        )
    return {"way": way, **{name: f"{error:.4f}" for name, error in errors.items()}}
