"""The loader seam: where a backbone's weights come from, and what was released with them."""

from __future__ import annotations

import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zoo.backbones.base import Backbone
from zoo.backbones.official_names import Layout
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder

AttentionImplementation = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
DType = Literal["float32", "bfloat16"]


class BackboneLoader(Configurable, ABC):
    """A recipe for a `Backbone` and the source of its weights; `load` reads them.

    Args:
        attn_implementation: The attention backend of transformers. `flex_attention` is for the decoder only and needs
            a GPU to train; it skips blocks that are masked for all questions of a shared sequence.
        dtype: Dtype of the weights. A task keeps those of parts with a learning rate in float32.

    Attributes:
        is_pretrained: Whether the weights answer questions without training here.
        released_path: Folder or hub id of the released weights; None for random ones.
        layout: Where the released files keep a geometry encoder and a fusion; empty without.
        released_fusions: Classes of the fusions that may have been released with the weights, the usual one first.
    """

    is_pretrained: bool = False
    released_path: str | None = None
    layout: Layout = {}
    released_fusions: tuple[str, ...] = ()

    def __init__(self, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "float32") -> None:
        if attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                "attn_implementation=flash_attention_2 needs flash-attn, which is not installed: "
                "pip install flash-attn --no-build-isolation on a CUDA machine, or choose sdpa (RayRoPE and URoPE need "
                "masks, which flash_attention_2 lacks)"
            )
        self.attn_implementation: AttentionImplementation = attn_implementation
        self.dtype = getattr(torch, dtype)

    @property
    def model_attention(self) -> str:
        """The attention backend of the whole model; FlexAttention is for the decoder only."""
        return "sdpa" if self.attn_implementation == "flex_attention" else self.attn_implementation

    @abstractmethod
    def load(self) -> Backbone:
        """Return the model in training mode on the current device; on the meta device no weights are read."""

    def load_unread(self) -> Backbone:
        """Return the model with released weights on the meta device, for `zoo.weights.deferred.load_deferred`."""
        return self.load()

    def load_geometry(self) -> GeometryEncoder | None:
        """Return the geometry encoder released with these weights, if any."""
        return None

    def fit_fusion(self, fusion: nn.Module) -> None:
        """Set the options that a fusion leaves to the release, before it is bound, see `Fusion.bind`.

        Raises:
            InputError: The released weights are of other decoder layers.
        """

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Load the fusion's weights if they were released with these; return whether they were."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the released weights."""
        return ()

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Return whether this class loads a released folder with this config.json."""
        return False

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        """Return the arguments of `SpatialVLM` for the released model in a folder or hub repository."""
        return {"backbone": cls(path)}  # type: ignore[arg-type]


def released_parts(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `SpatialVLM` for a released model.

    Args:
        path: Its folder or hub id.
        config: Its config.json.

    Raises:
        InputError: No class loads it.
    """
    known = list(_loaders(BackboneLoader))
    for loader in known:
        if loader.reads(config):
            return loader.released_parts(path)
    raise InputError(
        f"{path} is no model of the zoo, and its config.json (model_type {config.get('model_type')!r}) is of no "
        f"backbone of the zoo: known are {', '.join(loader.__name__ for loader in known)}"
    )


def _loaders(base: Any) -> Iterator[type[BackboneLoader]]:
    for loader in base.__subclasses__():
        if not inspect.isabstract(loader):
            yield loader
        yield from _loaders(loader)
