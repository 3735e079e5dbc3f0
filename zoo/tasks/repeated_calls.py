"""Functions that a step calls in each layer with tensors of the same shapes: one call is counted, and stands for all.

The chunked rule of Gated DeltaNet in PyTorch loops over chunks, with some 60 operations for each 64 tokens. In the step
of a whole model these are most of all operations. The functions in PyTorch are counted also where optional kernels are
installed in their place, which take no fake tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import unwrap
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

from zoo.tasks.fake_tensors import Footprint, fake_mode

FUNCTION, CONVOLUTION = "torch_chunk_gated_delta_rule", "causal_conv1d_fn"
CALLERS = ("transformers.models.qwen3_5.modeling_qwen3_5", "zoo.backbones.qwen3_5")
DEVICE = "cpu"  # of fake tensors
Outputs = Sequence[Tensor | None]


@contextmanager
def count_repeated_calls_once(step: Footprint) -> Iterator[None]:
    """Count one call of each shape of the functions of `CALLERS`, and add as much for each later one.

    Args:
        step: Where calls are counted.
    """
    with ExitStack() as patches:
        for module in (sys.modules[name] for name in CALLERS if name in sys.modules):
            # transformers' wrappers call a kernel or the function in PyTorch
            rule, convolution = (unwrap(getattr(module, name)) for name in (FUNCTION, CONVOLUTION))
            patches.enter_context(patch.object(module, FUNCTION, RepeatedFunction(rule, step)))
            patches.enter_context(patch.object(module, CONVOLUTION, convolution))
        yield


class Layout(NamedTuple):
    """Of a tensor in memory, and whether it has a gradient."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """The layout of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)

    def fake(self) -> Tensor:
        """A fake tensor of this layout, without a history."""
        meta = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return FakeTensor(fake_mode(), meta, torch.device(DEVICE)).requires_grad_(self.requires_grad)


class Cost(NamedTuple):
    """What the forward or the backward pass of a call takes.

    Attributes:
        peak: Most bytes at once, beside those before.
        flops: Floating-point operations.
        kept: Bytes for the backward pass beside inputs and outputs.
        kept_inputs: The numbers of the inputs that are kept for it.
        outputs: Their layouts.
    """

    peak: int
    flops: int
    kept: int = 0
    kept_inputs: tuple[int, ...] = ()
    outputs: tuple[Layout | None, ...] = ()


class Call(NamedTuple):
    """A call of a function; calls of the same `key` take the same.

    Attributes:
        function: Takes keyword arguments, and returns new tensors.
        tensors: Layouts of those arguments that are tensors.
        others: The other arguments.
        autocast: Its dtype; None without.
        records: Whether a backward pass may follow.
    """

    function: Callable[..., Outputs]
    tensors: Mapping[str, Layout]
    others: Mapping[str, Any]
    autocast: torch.dtype | None
    records: bool

    @property
    def key(self) -> Hashable:
        """All that the cost depends on."""
        return self.function, tuple(self.tensors.items()), tuple(self.others.items()), self.autocast, self.records

    @contextmanager
    def counted(self) -> Iterator[tuple[Footprint, list[Tensor], Outputs, set[int]]]:
        """Run the call apart from the step; yield its footprint, inputs, outputs, and the memory that it keeps."""
        kept = set[int]()

        def keep(tensor: Tensor) -> Tensor:
            kept.add(tensor.untyped_storage()._cdata)
            return tensor

        own = saved_tensors_hooks(keep, lambda tensor: tensor)  # those of the step's checkpoints drop tensors
        with _disable_current_modes(), own, torch.set_grad_enabled(self.records):
            inputs = {name: layout.fake() for name, layout in self.tensors.items()}
            with Footprint(inputs.values()) as footprint:
                with torch.autocast(DEVICE, self.autocast, enabled=self.autocast is not None, cache_enabled=False):
                    outputs = self.function(**inputs, **self.others)
                yield footprint, list(inputs.values()), outputs, kept

    def forward_cost(self) -> Cost:
        """Count the forward pass."""
        with self.counted() as (footprint, inputs, outputs, saved):
            kept = footprint.live - sum(each.untyped_storage().nbytes() for each in outputs if each is not None)
            kept_inputs = tuple(i for i, each in enumerate(inputs) if each.untyped_storage()._cdata in saved)
            layouts = tuple(None if each is None else Layout.of(each) for each in outputs)
            return Cost(footprint.peak, footprint.flops, kept if self.records else 0, kept_inputs, layouts)

    def backward_cost(self, has_gradient: Sequence[bool]) -> Cost:
        """Count the backward pass.

        Args:
            has_gradient: Which outputs have a gradient.
        """
        with self.counted() as (footprint, inputs, outputs, _):
            reached = [each for each, has in zip(outputs, has_gradient, strict=True) if has and each is not None]
            with _disable_current_modes():
                gradients = [Layout.of(each.detach()).fake() for each in reached]
            footprint.peak, before, flops = footprint.live, footprint.live, footprint.flops
            trained = [each for each in inputs if each.requires_grad]
            torch.autograd.grad(reached, trained, gradients, allow_unused=True)
            return Cost(footprint.peak - before, footprint.flops - flops)


class RepeatedFunction:
    """Stand for a function of tensors that share no memory with what it returns.

    Args:
        function: Takes at most three arguments without a name: queries, keys and values.
        step: Where calls are counted.
    """

    def __init__(self, function: Callable[..., Outputs], step: Footprint) -> None:
        self._function, self._step = function, step
        self._costs: dict[Hashable, Cost] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor | None, ...]:
        """Return fake outputs."""
        arguments = {"query": query, "key": key, "value": value, **options}
        tensors = {name: each for name, each in arguments.items() if isinstance(each, Tensor)}
        call = Call(
            self._function,
            {name: Layout.of(tensor) for name, tensor in tensors.items()},
            {name: each for name, each in arguments.items() if name not in tensors},
            torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else None,
            torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values()),
        )
        outputs: tuple[Tensor | None, ...] = _CountedCall.apply(self, call, *tensors.values())
        return outputs

    def add(self, key: Hashable, count: Callable[[], Cost]) -> Cost:
        """Add a pass to the step; it is counted if no other of this key has been."""
        if key not in self._costs:
            self._costs[key] = count()
        cost = self._costs[key]
        self._step.add(cost.peak, cost.flops)
        return cost

    def release(self, kept: Tensor) -> None:
        """Count the bytes as free that were kept for a backward pass."""
        self._step.release(kept)


class _CountedCall(torch.autograd.Function):
    """Allocate what a call does, and add its peak and operations."""

    @staticmethod
    def forward(ctx: Any, repeated: RepeatedFunction, call: Call, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        cost = repeated.add(call.key, call.forward_cost)
        ctx.repeated, ctx.call = repeated, call
        ctx.set_materialize_grads(False)
        kept = tensors[0].new_empty(cost.kept, dtype=torch.uint8)
        ctx.save_for_backward(kept, *(tensors[i] for i in cost.kept_inputs))
        return tuple(
            None if each is None else tensors[0].new_empty(each.shape, dtype=each.dtype) for each in cost.outputs
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        has_gradient = tuple(each is not None for each in gradients)
        ctx.repeated.add((call.key, has_gradient), lambda: call.backward_cost(has_gradient))
        ctx.repeated.release(ctx.saved_tensors[0])
        given = next(each for each in gradients if each is not None)
        found = (
            given.new_empty(each.shape, dtype=each.dtype) if each.requires_grad else None
            for each in call.tensors.values()
        )
        return None, None, *found
