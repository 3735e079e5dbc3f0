"""Parts whose weights take no memory until they are filled in, and official weights into them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights

from zoo.checkpoints.names import (
    CONNECTOR,
    LM_HEAD,
    OFFICIAL_VGGT,
    QWEN,
    V1_CONNECTOR,
    VGGT_MODEL,
    model_names,
    official_name,
)
from zoo.errors import InputError
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.model import HEADS, NOT_BUILT
from zoo.weights import load_into


def empty_qwen(config: Qwen2_5_VLConfig, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL in training mode, to be filled."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype  # a released config names its own, which transformers would take
    default = torch.get_default_dtype()
    try:
        # not .to(dtype) afterwards: that would round RoPE's frequencies as well
        torch.set_default_dtype(dtype)
        with no_init_weights():  # memory that nobody has written to isn't taken yet
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.tie_weights()
    return model.train()


def empty_vggt(aggregator: dict[str, Any], dtype: torch.dtype) -> VGGT:
    """A VGGT without heads, to be filled."""
    device = torch.get_default_device()
    with torch.device("meta"):
        vggt = VGGT(aggregator)
    return vggt.to(dtype).to_empty(device=device)


def fill_parts(
    tensors: Mapping[str, Tensor],
    *,
    qwen: Qwen2_5_VLForConditionalGeneration | None = None,
    vggt: VGGT | None = None,
    connector: nn.Module | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Fills those parts of a Spatial-MLLM that are given.

    Args:
        tensors: by official names; VGGT's tracker, and heads that `vggt` lacks, are left alone. So is a tied lm_head,
            but it is warned of where it differs from the embeddings, which the official code takes for both.
        qwen: a Qwen2.5-VL.
        vggt: a `VGGT`.
        connector: of `AddFusion`.
        skip: starts of other official names to leave alone.

    Raises:
        InputError: listing what is missing, unexpected or misshapen; or the tensors are those of v1.0.
    """
    _refuse_v1(tensors)
    parts = {QWEN: qwen, VGGT_MODEL: vggt, CONNECTOR: connector}
    state = {
        prefix + name: tensor
        for prefix, part in parts.items()
        if part is not None
        for name, tensor in part.state_dict().items()
    }
    if qwen is not None and qwen.config.tie_word_embeddings:
        del state[QWEN + LM_HEAD]
        skip += (LM_HEAD,)
    if vggt is not None:
        lacking = [f"{head}_head." for head in HEADS if getattr(vggt, f"{head}_head") is None]
        skip += tuple(OFFICIAL_VGGT + head for head in (NOT_BUILT, *lacking))
    what = "Qwen2.5-VL" if vggt is None and connector is None else "Spatial-MLLM"
    load_into(state, tensors, current_names=model_names, official_name=official_name, skip=skip, what=what)
    if qwen is not None and qwen.config.tie_word_embeddings and LM_HEAD in tensors:
        _compare_tied_head(tensors[LM_HEAD], qwen.get_input_embeddings().weight)


def _compare_tied_head(head: Tensor, embeddings: Tensor) -> None:
    if head.shape != embeddings.shape:
        raise InputError(
            f"{LM_HEAD} {list(head.shape)} is tied to embeddings of {list(embeddings.shape)}: set tie_word_embeddings "
            "to false in the config, or mend the file"
        )
    if not embeddings.is_meta and not torch.equal(head.to(embeddings), embeddings):
        warnings.warn(
            f"{LM_HEAD} is tied to the embeddings by the config, and differs from them: it is not read", stacklevel=2
        )


def _refuse_v1(tensors: Mapping[str, Tensor]) -> None:
    """InputError for Spatial-MLLM v1.0.

    By its published code v1.0 has VGGT under `vggt.`, and under `vggt_embedding_merger.` a connector as v1.1's, the
    patches of the second frame after those of the first, followed by another RMSNorm and MLP. Nothing that it computed
    is at hand, so a port could not be told from a wrong one.
    """
    if any(name.startswith(V1_CONNECTOR) for name in tensors):
        raise InputError(
            f"these are weights of Spatial-MLLM v1.0 ({V1_CONNECTOR}*): its connector is another one, of two MLPs, for "
            "which there are no published numbers to check a port against; take Diankun/Spatial-MLLM-v1.1-Instruct-135K"
        )
