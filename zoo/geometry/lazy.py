"""A geometry encoder that is described without its weights, and loaded at its first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder
from zoo.weights import fingerprint

Recipe = Callable[[], GeometryEncoder | None]


class LazyGeometry:
    """Builds a geometry encoder on the meta device, and again with its weights when it is first needed.

    Args:
        build: makes the encoder. On the meta device only shapes are made and no weights are read.

    Attributes:
        outline: the encoder on the meta device.

    Raises:
        InputError: Nothing is built.
    """

    def __init__(self, build: Recipe) -> None:
        self._build = build
        self._heads: list[str] = []
        self._loaded: GeometryEncoder | None = None
        with torch.device("meta"):
            self.outline = self._built()
        self._from_files = bool(self.outline.files) and all(tensor.is_meta for tensor in self.outline.parameters())

    def _built(self) -> GeometryEncoder:
        encoder = self._build()
        if encoder is None:
            raise InputError("no geometry encoder: set --model.geometry, or leave --model.geometry_cache out")
        return encoder

    def enable(self, head: str) -> None:
        """Enables a head, "camera", "depth" or "point": of the outline now, of the encoder when it is loaded.

        Raises:
            InputError: There is no such head.
        """
        self._heads.append(head)
        if self._loaded is not None:
            getattr(self._loaded, f"enable_{head}_head")()
        with torch.device("meta"):
            getattr(self.outline, f"enable_{head}_head")()

    def load(self) -> GeometryEncoder:
        """The encoder itself, frozen; its weights are read at the first call."""
        if self._loaded is None:
            with torch.inference_mode(False):  # it is kept, and may be needed for training later
                encoder = self._built()
                for head in self._heads:
                    getattr(encoder, f"enable_{head}_head")()
            self._loaded = encoder.requires_grad_(False).eval()
        return self._loaded

    def identity(self) -> dict[str, Any]:
        """The class and the settings of the encoder, as JSON."""
        return {"class": type(self.outline).__qualname__, **self.outline.identity()}

    def weights(self, file_fingerprint: Callable[[Path], str]) -> list[str]:
        """Fingerprints of the weights: of their files, or of the tensors of an encoder that no file describes."""
        if self._from_files:
            return [file_fingerprint(file) for file in self.outline.files]
        return [fingerprint(self.load().state_dict())]


def build_first_available(*recipes: Recipe | None) -> GeometryEncoder | None:
    """Builds the encoder of the first recipe that yields one."""
    return next((encoder for recipe in recipes if recipe is not None and (encoder := recipe()) is not None), None)
