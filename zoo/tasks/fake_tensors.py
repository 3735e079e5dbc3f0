"""Models whose tensors have a shape and a dtype but no memory, and what a computation with them would take.

A model is built under `torch.device("meta")`, and its tensors become fake tensors of the CPU: autograd, autocast and
checkpointing work as with real ones. Token ids, grids and cameras stay real numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
FLASH, FLASH_BACKWARD = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


@cache
def fake_mode() -> FakeTensorMode:
    """The mode of all fake tensors, which can't be mixed with those of another."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of the CPU without memory."""
    return FakeTensor(fake_mode(), torch.empty(shape, dtype=dtype, device="meta"), torch.device("cpu"))


def make_fake(module: nn.Module) -> None:
    """Turn the tensors of a module on the meta device into fake ones, in place; tied weights stay tied."""
    made: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if tensor not in made:
                    fake = fake_tensor(*tensor.shape, dtype=tensor.dtype)
                    made[tensor] = nn.Parameter(fake, tensor.requires_grad) if tensors is part._parameters else fake
                tensors[name] = made[tensor]  # type: ignore[assignment]


class ShapesOnlyPreprocessor:
    """In place of the preprocessor of a model that is built by its shapes, without the folder that has it."""

    @staticmethod
    def normalize(patches: Tensor) -> Tensor:
        """Return pixels in the size of normalized ones."""
        return patches.float()


class Footprint(TorchDispatchMode):
    """Count the bytes of the tensors that a computation allocates, and its floating-point operations.

    Attention counts as a fused kernel, which keeps its inputs, its output and a number per query and head.

    Args:
        existing: Tensors that are there before, such as weights; they do not count.

    Attributes:
        live: Bytes of the tensors that are still alive.
        peak: Most bytes that were alive at once.
        flops: Floating-point operations of matrix products, convolutions and attention; a product and a sum are two.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref[Any] | None] = {each.untyped_storage()._cdata: None for each in existing}
        self.live = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most calls
            return args[0].fake_device
        if func is aten._fused_sdp_choice.default:
            return SDPBackend.FLASH_ATTENTION.value
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True  # the only ones that are asked for: whether cameras are valid
        if isinstance(args[0] if args else None, FakeTensor) and func.overloadpacket in (aten.index, aten.index_put_):
            args = (args[0], _as_counts(args[1]), *args[2:])
        # what `func` would come to, by way of the dispatcher and of FakeTensor
        output = fake_mode().dispatch(func, types, args, kwargs) if FakeTensor in types else func(*args, **kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        self.flops += _flops(func.overloadpacket, args, kwargs, output)
        return output

    def add(self, bytes_at_once: int, flops: int) -> None:
        """Count a computation by what it takes: its most bytes at once, of which none stay, and its operations."""
        self.peak = max(self.peak, self.live + bytes_at_once)
        self.flops += flops

    def release(self, tensor: Tensor) -> None:
        """Count the memory of a tensor as free, although the tensor is still there."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = weakref.ref(storage, partial(self._free, storage._cdata, 0))
        self.live -= storage.nbytes()

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        self._storages[key] = weakref.ref(storage, partial(self._free, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int, _: Any) -> None:
        del self._storages[key]
        self.live -= size


def _as_counts(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks with numbers as indices of the same length; fake masks have no number of true values."""
    found: list[Tensor | None] = []
    for each in indices:
        if each is None or each.dtype != torch.bool or isinstance(each, FakeTensor):
            found.append(each)
        else:
            found += [torch.zeros(1, dtype=torch.long).expand(int(each.count_nonzero()))] * each.ndim
    return found


def _flops(operation: Any, args: Any, kwargs: Any, output: Any) -> int:
    if operation is FLASH:
        return sdpa_flop_count(*(each.shape for each in args[:3]))
    if operation is FLASH_BACKWARD:
        return sdpa_backward_flop_count(*(each.shape for each in args[:4]))
    formula = flop_registry.get(operation)
    return 0 if formula is None else formula(*args, **kwargs, out_val=output)
