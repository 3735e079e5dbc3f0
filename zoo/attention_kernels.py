"""Which attention kernels PyTorch took, because a package may be installed and yet never be used.

The operators that run are counted. `sdpa` alone says nothing: it takes FlashAttention without a mask, another kernel
with one, and for dtypes and widths that neither supports the math kernel, which keeps all scores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MATH = "SDPA math"
KERNELS = {  # by a regular expression for the whole name of the operator
    "SDPA flash": r"aten::_scaled_dot_product_flash_attention(_for_cpu)?",
    "SDPA memory-efficient": r"aten::_scaled_dot_product_efficient_attention",
    "SDPA cuDNN": r"aten::_scaled_dot_product_cudnn_attention",
    "SDPA of the device": r"aten::_scaled_dot_product_fused_attention_overrideable",
    "flash-attn": r"_?flash_attn\w*::_?(flash_attn_)?(varlen_)?(forward|fwd)",
    "flex_attention": r"flex_attention",
}


class _Calls(TorchFunctionMode):
    """Counts calls of SDPA. Its math kernel is no operator, but consists of several."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Counts the operators in `KERNELS`."""

    supports_higher_order_operators = True  # flex_attention is one

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else func.name()
        if func is torch.ops.aten.scaled_dot_product_attention.default:  # not taken apart in inference mode
            with self:
                return func.decompose(*args, **(kwargs or {}))
        self.found.update(kernel for kernel, pattern in KERNELS.items() if re.fullmatch(pattern, name))
        return func(*args, **(kwargs or {}))


@contextmanager
def count_kernels() -> Iterator[Counter[str]]:
    """Count the calls of each attention kernel in the block. Compiled code would be compiled again for it.

    The counter is filled while the block runs, and is complete after it. It stays empty for attention without a fused
    kernel (`eager`).

    Example:
        >>> q = torch.zeros(1, 2, 4, 8)
        >>> with count_kernels() as found:
        ...     _ = F.scaled_dot_product_attention(q, q, q)
        >>> found
        Counter({'SDPA flash': 1})
    """
    calls, operators = _Calls(), _Operators()
    with calls, operators:
        yield operators.found
    fused = sum(count for name, count in operators.found.items() if name.startswith("SDPA"))
    if calls.count > fused:
        operators.found[MATH] = calls.count - fused


def describe_kernels(counts: Counter[str]) -> str:
    """Return the kernels as text, the most used one first.

    Example:
        >>> describe_kernels(Counter({"SDPA math": 4, "SDPA flash": 32}))
        'SDPA flash 32 times, SDPA math 4 times'
    """
    return ", ".join(f"{name} {count} times" for name, count in counts.most_common()) or "no fused kernel"
