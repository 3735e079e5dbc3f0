"""Full-size models on the meta device, where weights and activations take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel


class ToMeta(TorchDispatchMode):
    """An operation of which one tensor is on the meta device takes place there: ids and grids stay real numbers.

    The one number that is asked for is whether the mask lets all tokens through, which it does.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        everything = (args, kwargs or {})
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(everything)):
            if func is torch.ops.aten._local_scalar_dense.default:
                return True
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), everything)
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """`ToMeta`, without DeepStack's additions: where a mask is true can't be read on the meta device."""
    with patch.object(Qwen3VLTextModel, "_deepstack_process", lambda self, hidden, mask, features: hidden), ToMeta():
        yield
