"""Attention kernels that are known to compute wrong gradients, or none, on some cards, and how the zoo avoids them."""

from __future__ import annotations

import torch

CUDNN = 92600  # the first version whose attention has the right gradients, as torch numbers it


def avoid_faulty_cudnn() -> None:
    """Keep SDPA from cuDNN's kernels below 9.26.

    On H100 and H200 their gradients are NaN if there is a mask, the length is 64 modulo 128, and all scores of a query
    are low (pytorch #196678, #196861). SDPA then takes FlashAttention, or the memory-efficient kernel if there is a
    mask.
    """
    version = torch.backends.cudnn.version()
    if version is not None and version < CUDNN:
        torch.backends.cuda.enable_cudnn_sdp(False)
