"""Kernels that are known to compute wrong gradients, or none, on some cards, and how the zoo avoids or refuses them."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from packaging.version import Version

from zoo.errors import InputError

CUDNN = 92600  # the first version whose attention has the right gradients, as torch numbers it
TRITON = (Version("3.4"), Version("3.7.1"))  # from the first to below the second, Gated DeltaNet's gradients are wrong
HOPPER, BLACKWELL_12 = 9, 12  # major compute capability of H100, H200 and H20; of RTX 50, RTX PRO 6000 and GB10
FLEX_CHANNELS = 128  # maximum head width of FlexAttention's gradients on a Blackwell of capability 12


def compute_capability() -> int | None:
    """Return the major compute capability of the current GPU. None without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


def avoid_faulty_cudnn() -> None:
    """Keep SDPA from cuDNN's kernels below 9.26.

    On H100 and H200 their gradients are NaN if there is a mask, the length is 64 modulo 128, and all scores of a query
    are low (pytorch #196678, #196861). SDPA then takes FlashAttention, or the memory-efficient kernel if there is a
    mask.
    """
    version = torch.backends.cudnn.version()
    if version is not None and version < CUDNN:
        torch.backends.cuda.enable_cudnn_sdp(False)


def check_delta_rule() -> None:
    """Raise InputError where flash-linear-attention has wrong gradients of Gated DeltaNet.

    Its backward pass is wrong on Hopper with Triton 3.4 to below 3.7.1, its forward pass is right
    (flash-linear-attention #640, #983). Its versions below 0.5 do not refuse it themselves.
    """
    if compute_capability() != HOPPER or find_spec("fla") is None:
        return
    import triton

    if TRITON[0] <= Version(triton.__version__) < TRITON[1]:
        raise InputError(
            f"Triton {triton.__version__} computes wrong gradients of Gated DeltaNet on this GPU: pip install "
            "'spatial-vlm-zoo[deltanet]' for 3.7.1 or newer, or pip uninstall flash-linear-attention to train slowly"
        )


def check_flex_channels(channels: int) -> None:
    """Raise InputError where FlexAttention has no gradients for heads of this width.

    It pads heads to a power of two. On a Blackwell of capability 12 the backward pass for 256 channels needs more
    shared memory than there is (pytorch #198224, open).
    """
    if channels > FLEX_CHANNELS and compute_capability() == BLACKWELL_12:
        raise InputError(
            f"flex_attention has no gradients for heads of {channels} channels on this GPU, {FLEX_CHANNELS} at most: "
            "set --model.backbone.attn_implementation sdpa"
        )
