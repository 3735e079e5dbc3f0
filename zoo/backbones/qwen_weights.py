"""Stock Qwen-VL models without weights, and filled with official tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import BackboneLoader
from zoo.backbones.official_names import (
    LM_HEAD,
    NOT_LOADED,
    QWEN3,
    QWEN25,
    QWEN35,
    Layout,
    current_name,
    released_name,
)
from zoo.backbones.qwen3_5.backbone import Qwen35Backbone
from zoo.backbones.qwen3_vl.backbone import Qwen3VLBackbone
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.errors import InputError
from zoo.weights.deferred import builds_shapes_only
from zoo.weights.filling import TensorsOf, load_into
from zoo.weights.lazy_tensors import Tensors

V1_CONNECTOR = "vggt_embedding_merger."  # of Spatial-MLLM v1.0


class Family(NamedTuple):
    """A family of released models: its title, transformers' classes, and the backbone around them."""

    title: str
    stock: Any
    processor: Any
    backbone: type[QwenVLBackbone]


FAMILIES = {
    QWEN25: Family("Qwen2.5-VL", Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen25VLBackbone),
    QWEN3: Family("Qwen3-VL", Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLBackbone),
    QWEN35: Family("Qwen3.5", Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen35Backbone),
}


class EmptyQwenVL(BackboneLoader):
    """A Qwen-VL without weights and processor; the weights are filled in afterwards.

    Args:
        config: Transformers' config of the model.
        dtype: Of the weights.
        layout: See `BackboneLoader`.
    """

    is_pretrained = True

    def __init__(self, config: Any, dtype: torch.dtype, layout: Layout | None = None) -> None:
        super().__init__()
        self.config, self.dtype, self.layout = config, dtype, layout or {}

    def load(self) -> QwenVLBackbone:
        return FAMILIES[self.config.model_type].backbone(empty_qwen(self.config, self.dtype), None)


def empty_qwen(config: Any, dtype: torch.dtype) -> Any:
    """Return the stock model of a config in training mode, with parameters on the meta device."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype  # transformers prefers the dtype in a released config to the default
    # not .to(dtype) afterwards: that would round RoPE's frequencies as well
    with local_torch_dtype(dtype), torch.device("meta"):
        model = FAMILIES[config.model_type].stock(config)
    model.tie_weights()
    if not builds_shapes_only():
        compute_buffers(model, torch.get_default_device())
    return model.train()


def compute_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no file restores, which are RoPE's frequencies."""
    for part in model.modules():
        for name in part._non_persistent_buffers_set:
            part._buffers[name] = torch.empty_like(part._buffers[name], device=device)
        if part._non_persistent_buffers_set:
            model._init_weights(part)  # as transformers' `from_pretrained` does


def qwen_filler(qwen: Any, tensors: Tensors, skip: tuple[str, ...] = ()) -> Callable[[], None]:
    """Return the function that copies official tensors into a stock Qwen-VL, which may get adapters before.

    It raises InputError for tensors that are missing, unexpected, misshapen, or of Spatial-MLLM v1.0.

    Args:
        qwen: The model. If its lm_head is tied, that of the tensors is not read, as in the official code; a warning
            says if it differs from the embeddings.
        tensors: By official names.
        skip: Prefixes of names to ignore.
    """
    is_tied, family = qwen.config.tie_word_embeddings, qwen.config.model_type
    ignored = (LM_HEAD,) if is_tied else ()
    state = TensorsOf(qwen, without=ignored)

    def fill() -> None:
        refuse_v1(tensors)
        load_into(
            state,
            tensors,
            what=FAMILIES[family].title,
            current_names=lambda name: (current_name(name, family),),
            official_name=lambda name: released_name(name, family),
            skip=(*skip, *ignored, *NOT_LOADED),
        )
        if is_tied and LM_HEAD in tensors:
            _check_tied(tensors[LM_HEAD], qwen.get_input_embeddings().weight)

    return fill


def _check_tied(head: Tensor, embeddings: Tensor) -> None:
    """Raise InputError for an lm_head that can't be tied, and warn of one that differs from the embeddings."""
    if head.shape != embeddings.shape:
        raise InputError(
            f"{LM_HEAD} {list(head.shape)} is tied to embeddings of {list(embeddings.shape)}: set tie_word_embeddings "
            "to false in the config, or mend the file"
        )
    if not (embeddings.is_meta or isinstance(embeddings, DTensor)) and not torch.equal(head.to(embeddings), embeddings):
        warnings.warn(
            f"{LM_HEAD} is tied to the embeddings by the config, and differs from them: it is not read", stacklevel=2
        )


def refuse_v1(tensors: Tensors) -> None:
    """Raise InputError for Spatial-MLLM v1.0.

    By its published code, v1.0 has VGGT under `vggt.`, and after a connector as v1.1's (with the patches of the second
    frame behind those of the first) another RMSNorm and MLP. None of its outputs are at hand to check a port against.
    """
    if any(name.startswith(V1_CONNECTOR) for name in tensors):
        raise InputError(
            f"these are weights of Spatial-MLLM v1.0 ({V1_CONNECTOR}*): its connector is another one, of two MLPs, for "
            "which there are no published numbers to check a port against; take Diankun/Spatial-MLLM-v1.1-Instruct-135K"
        )
