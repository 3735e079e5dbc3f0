"""Tensors of the CPU that claim to lie on cuda:0, and a log of what a real card would refuse or wait for.

A claim belongs to a storage, so views share it. `Tensor.device` and `is_cuda` are replaced by properties; a function
mode turns every device argument "cuda" into "cpu" plus a claim; a dispatch mode checks each operator's inputs, passes
the claim on to its outputs. Autocast of "cuda" becomes that of the CPU; a request for the CPU's is logged, since it
would have no effect on a card.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
ORIGINAL = torch._C.TensorBase.device
aten = torch.ops.aten


def claims(tensor: Tensor) -> bool:
    try:
        return getattr(tensor.untyped_storage(), "_claims_cuda", False)
    except (RuntimeError, NotImplementedError):
        return False


def claim(tensor: Tensor, is_cuda: bool = True) -> Tensor:
    tensor.untyped_storage()._claims_cuda = is_cuda  # type: ignore[attr-defined]
    return tensor


torch.Tensor.device = property(lambda t: CUDA if claims(t) else ORIGINAL.__get__(t))  # type: ignore[assignment]
torch.Tensor.is_cuda = property(lambda t: claims(t))  # type: ignore[assignment]


class Log:
    """What happened, by place."""

    def __init__(self) -> None:
        self.faults: Counter[tuple[str, str]] = Counter()
        self.syncs: Counter[tuple[str, str]] = Counter()
        self.attention: Counter[str] = Counter()
        self.convolutions: Counter[str] = Counter()

    def fault(self, what: str) -> None:
        self.faults[what, place()] += 1

    def sync(self, what: str) -> None:
        self.syncs[what, place()] += 1


LOG = Log()
SKIP = (
    "/pretended_gpu",
    "torch/_compile.py",
    "torch/_dynamo/eval_frame",
    "torch/utils/_contextlib",
    "torch/overrides",
    "torch/utils/_python_dispatch",
    "/jaxtyping/",
    "torch/_tensor.py",
)


def place() -> str:
    """The innermost frame of the project, and what it called if that is another library."""
    inner = own = None
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in SKIP):
            short = name.split("site-packages/")[-1].replace(str(Path.cwd()) + "/", "")
            where = f"{short}:{frame.f_lineno}"
            inner = inner or where
            if "site-packages" not in name and "/lib/python" not in name and "<" not in name:
                own = where
                break
        frame = frame.f_back
    return f"{own}" if own == inner or own is None else f"{own} > {inner}"


# autocast on CUDA computes these in float32, on the CPU it does not (aten/native: autocast_mode.h)
IN_FLOAT32 = {
    *("layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "softmin", "cumsum", "cumprod"),
    *("sum", "prod", "norm", "pow", "__pow__", "__rpow__", "rpow", "rsqrt", "reciprocal", "exp", "expm1"),
    *("log", "log1p", "log2", "log10", "cosh", "sinh", "tan", "acos", "asin", "softplus", "logsumexp"),
    *(
        "cosine_similarity",
        "dist",
        "cdist",
        "renorm",
        "nll_loss",
        "cross_entropy",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
    ),
}
MOVES = {"to", "cuda", "cpu"}
READS = {"tolist", "numpy", "__contains__"}


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu", "meta")
    )


class Functions(TorchFunctionMode):
    """Device arguments, moves between devices and reads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and name in MOVES and getattr(torch.Tensor, name, None) is func:
            return self.move(func, name, first, args[1:], kwargs)
        if name == "pin_memory":
            return first
        if first is not None and name in READS and claims(first):
            LOG.sync(name)
        if func is torch.nn.functional.scaled_dot_product_attention:
            attention(*args, **kwargs)
        if name in IN_FLOAT32 and first is not None and claims(first) and _enabled("cpu") and "dtype" not in kwargs:
            args, kwargs = tuple(map(_raised, args)), {k: _raised(v) for k, v in kwargs.items()}
        target = kwargs.get("device")
        if target is None and name == "new_tensor" and first is not None and claims(first):
            target = CUDA
        if target is None:
            # what a function of torch makes by itself has the device of its inputs, but for indices in brackets
            ambient = DISPATCH.ambient
            DISPATCH.ambient = name not in ("__getitem__", "__setitem__") and any(
                isinstance(leaf, Tensor) and claims(leaf) for leaf in tree_leaves((args, kwargs))
            )
            try:
                return func(*args, **kwargs)
            finally:
                DISPATCH.ambient = ambient
        target = torch.device(target)
        if target.type == "meta":
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        before = {a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        pause = DISPATCH.paused
        DISPATCH.paused = True
        try:
            out = func(*args, **kwargs)
        finally:
            DISPATCH.paused = pause
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                if leaf.untyped_storage()._cdata in before and claims(leaf) != (target.type == "cuda"):
                    raise AssertionError(f"{name}: moves and shares")
                if name in ("tensor", "as_tensor", "asarray", "new_tensor") and target.type == "cuda" and leaf.numel():
                    LOG.sync(f"torch.{name}(..., device=cuda)")
                claim(leaf, target.type == "cuda")
        return out

    def move(self, func: Any, name: str, tensor: Tensor, rest: Any, kwargs: dict) -> Any:
        was = claims(tensor)
        wanted = was
        rest = list(rest)
        if name == "cuda":
            wanted, rest = True, []
        elif name == "cpu":
            wanted, rest = False, []
        for i, value in enumerate(rest):
            if is_device(value):
                if torch.device(value).type == "meta":
                    return func(tensor, *rest, **kwargs)
                wanted, rest[i] = torch.device(value).type == "cuda", CPU
            elif isinstance(value, Tensor):
                wanted = claims(value)
        if kwargs.get("device") is not None:
            wanted = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = CPU
        if isinstance(kwargs.get("other"), Tensor):
            wanted = claims(kwargs["other"])
        waits = not (kwargs.get("non_blocking") or (len(rest) > 2 and rest[2] is True))
        if name != "to":
            out = tensor
        else:
            pause, DISPATCH.paused = DISPATCH.paused, was != wanted
            try:
                out = func(tensor, *rest, **kwargs)
            finally:
                DISPATCH.paused = pause
        if was == wanted:
            return out if name == "to" else tensor
        if waits and tensor.numel():
            LOG.sync("device to host" if was else "host to device")
        pause, DISPATCH.paused = DISPATCH.paused, True
        try:
            if out.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                out = out.clone()
        finally:
            DISPATCH.paused = pause
        return claim(out, wanted)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> None:
    """Which kernel a card of capability 8 or more would take (aten/native/transformers/cuda/sdp_utils.cpp)."""
    if not claims(q):
        return
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cuda") else q.dtype
    half, width = dtype in (torch.bfloat16, torch.float16), q.shape[-1]
    same = q.shape[-1] == v.shape[-1]
    if half and attn_mask is None and same and width <= 256 and all(x.stride(-1) == 1 for x in (q, k, v)):
        kind = "flash"
    elif (
        not enable_gqa
        and width % (8 if half else 4) == 0
        and not (attn_mask is not None and attn_mask.requires_grad)
        and dtype != torch.float64
        and q.shape[1] == k.shape[1]
    ):
        kind = "efficient"
    else:
        kind = "MATH"
    mask = "" if attn_mask is None else f", mask {str(attn_mask.dtype)[6:]} {attn_mask.dim()}-D"
    LOG.attention[f"{kind}: {str(dtype)[6:]}, width {width}{mask}{', gqa' if enable_gqa else ''}: {place()}"] += 1


WAITS = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten.unique_dim: "unique",
    aten._unique2: "unique",
    aten._unique: "unique",
    aten.unique_consecutive: "unique_consecutive",
    aten.bincount: "bincount",
    aten.equal: "equal",
    aten.linalg_svd: "svd",
    aten._linalg_svd: "svd",
    aten._linalg_det: "det",
    aten.item: "item",  # as it arrives in inference mode
    aten.is_nonzero: "bool",
}
MIXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten.copy_, aten._to_copy}
# the last ones are not taken apart in inference mode
CONVOLUTIONS = {aten.convolution, aten.convolution_backward, aten.conv2d, aten.conv3d, aten.conv_transpose2d}
NO_SCALARS = {aten.cat, aten.stack, aten.index_select, aten.gather, aten.mm, aten.bmm, aten.embedding}


class Dispatch(TorchDispatchMode):
    """Checks the devices of each operator, and passes claims on."""

    paused = ambient = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        packet = func.overloadpacket
        here = [claims(t) for t in tensors]
        on_gpu = any(here)
        if on_gpu and not all(here) and packet not in MIXES:
            least = -1 if packet in NO_SCALARS else 0
            wrong = [t for t, there in zip(tensors, here, strict=True) if not there and t.dim() > least and t.numel()]
            if wrong:
                devices = ["cuda" if there else "cpu" for there in here]
                LOG.fault(f"{packet}: {[*zip(devices, (tuple(t.shape) for t in tensors), strict=True)]}")
        if on_gpu:
            if packet in CONVOLUTIONS and tensors[0].dim() > 3:  # in one dimension a kernel replaces them
                LOG.convolutions[place()] += 1
            if packet is aten.copy_ and here[0] != here[1]:
                LOG.sync("copy_ between devices")
            if packet in WAITS and (here[0]):
                LOG.sync(WAITS[packet])
            by_number = func is aten.repeat_interleave.self_int  # whose size the host knows
            if packet is aten.repeat_interleave and not by_number and kwargs.get("output_size") is None and here[0]:
                LOG.sync("repeat_interleave")
            if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and here[0]:
                for each in args[1]:
                    if each is not None and each.dtype == torch.bool:
                        LOG.sync(f"{packet.__name__} by a mask")
                    elif each is not None and not claims(each):
                        LOG.sync(f"{packet.__name__} by indices of the CPU")
            elif packet in (aten.index,) and not here[0]:
                LOG.fault("index of a CPU tensor by indices on cuda")
        out = func(*args, **kwargs)
        if on_gpu and packet is not aten._local_scalar_dense:
            given = {t.untyped_storage()._cdata for t in tensors}
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and not claims(leaf) and leaf.untyped_storage()._cdata not in given:
                    claim(leaf)
        elif not tensors and self.ambient:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    claim(leaf)
        return out


DISPATCH = Dispatch()
FUNCTIONS = Functions()

# ---- autocast ----------------------------------------------------------------------------------------------------

_enabled, _dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
_init = torch.amp.autocast_mode.autocast.__init__
_ACTIVE = [False]


def _as_cpu(kind: Any) -> Any:
    caller = sys._getframe(2).f_code.co_filename
    if kind == "cpu" and _ACTIVE[0] and "torch/amp/" not in caller and "torch/utils/checkpoint" not in caller:
        LOG.fault("autocast of device type cpu")
    return "cpu" if kind == "cuda" else kind


torch.is_autocast_enabled = lambda *a: _enabled(*map(_as_cpu, a))  # type: ignore[assignment]
torch.get_autocast_dtype = lambda kind: _dtype(_as_cpu(kind))  # type: ignore[assignment]


def _autocast(self, device_type, *args, **kwargs):
    kind, active = _as_cpu(device_type), _ACTIVE[0]
    _ACTIVE[0] = False
    try:
        _init(self, kind, *args, **kwargs)
    finally:
        _ACTIVE[0] = active


torch.amp.autocast_mode.autocast.__init__ = _autocast  # type: ignore[method-assign]


def backward(self: Tensor) -> None:
    """Of a loss, without a function mode around it, so that checkpoints are recomputed under this one."""
    torch.autograd.Variable._execution_engine.run_backward(
        (self,), (torch.ones_like(self),), False, False, (), True, True
    )


@contextmanager
def on_pretended_cuda():
    """Within, "cuda" is a device."""
    with FUNCTIONS, DISPATCH:
        _ACTIVE[0] = True
        try:
            yield
        finally:
            _ACTIVE[0] = False


def fresh() -> Log:
    global LOG
    LOG = Log()
    return LOG
