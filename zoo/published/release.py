"""What released models with a VGGT and a fusion beside their backbone have in common.

A released model is a subclass of `Release` and of its backbone's `Pretrained` class. It states how its folders are
recognized, the official names of its tensors, and what its config.json says of encoder and fusion, both ways. Loading,
export and the refusal of wrong loaders follow from these statements.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from zoo.backbones.pretrained import FUSION, VGGT_MODEL, PretrainedBackbone, config_errors
from zoo.errors import InputError
from zoo.fusions.base import Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.layers import layer_index
from zoo.geometry.vggt import NAMES, VGGT, Aggregator
from zoo.geometry.vggt_encoder import ReferenceFrame, VGGTEncoder
from zoo.model import SpatialVLM
from zoo.weights.load import (
    Layout,
    NameTable,
    ReleasedWeights,
    Tensors,
    TensorsUnder,
    load_weights,
)

AGGREGATOR = {name: each.default for name, each in inspect.signature(Aggregator).parameters.items()}
VGGT_SIZES = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
ARGUMENTS = "vggt_aggregator"  # key of config.json for unusual arguments of the aggregator, the zoo's own
VGGT_DEPTH = 24  # layers of the released aggregator


@dataclass(frozen=True)
class ReleasedGeometry:
    """The parts of a released model besides its backbone.

    Attributes:
        layout: Prefixes of official names, with the prefixes of the same tensors in a `SpatialVLM`.
        aggregator: Arguments of VGGT's `Aggregator`.
        layers: Aggregator layers whose outputs are the 3D tokens.
        fusion: Builds the fusion without weights from the widths of the decoder and of the geometry encoder.
        reference: The frame that is VGGT's world.
        unread: Starts of the names of tensors of the fusion that the published code never reads.
    """

    layout: Layout
    aggregator: Mapping[str, Any]
    layers: tuple[int, ...]
    fusion: partial[Any]
    reference: ReferenceFrame = "first"
    unread: tuple[str, ...] = ()

    def load_encoder(self, tensors: Tensors, dtype: torch.dtype, *, is_restorable: bool = True) -> GeometryEncoder:
        """Return the geometry encoder that the fusion was trained with, a VGGT without heads.

        `is_restorable` says whether a loader can read the weights again.
        """
        prefix = next(theirs for theirs, ours in self.layout.items() if ours == VGGT_MODEL)
        weights = TensorsUnder(tensors, prefix)
        vggt = VGGT.from_official({"aggregator": dict(self.aggregator)}, weights, dtype)
        if not is_restorable:
            vggt.source = {}
        return VGGTEncoder(vggt, self.layers, weights, reference=self.reference)

    def check_layers(self) -> None:
        """Raise an error for layers that the encoder does not have, which the encoder itself would call an option."""
        for layer in self.layers:
            layer_index(layer, int(self.aggregator.get("depth", VGGT_DEPTH)))

    def load_fusion(self, fusion: nn.Module | None, tensors: Tensors) -> bool:
        """Copy the weights into a fusion of the released class. Return False for another class."""
        if fusion is None or type(fusion) is not self.fusion.func:
            return False
        own = {theirs: ours.removeprefix(FUSION) for theirs, ours in self.layout.items() if ours.startswith(FUSION)}
        unread = tuple(f"{theirs}{name}" for theirs in own for name in self.unread)

        def is_skipped(name: str) -> bool:
            return not name.startswith(tuple(own)) or name.startswith(unread)

        load_weights(fusion, ReleasedWeights(tensors, "fusion", NameTable.by_prefix(own), is_skipped))
        return True


class Release(PretrainedBackbone):
    """A released backbone with its VGGT and its fusion, for a model that combines them.

    Attributes:
        prefixes: Prefixes of official tensor names by which a folder is recognized if its config.json does not tell.
        encoder_class: Class of the geometry encoder.
        layer: Layer of VGGT that the fusion reads, where config.json does not name it.
        stacked: Fusions that read several layers of VGGT.
        stated: Arguments of the aggregator that the published config.json states by itself.
    """

    config_keys: ClassVar[tuple[str, ...]] = (ARGUMENTS,)
    prefixes: ClassVar[tuple[str, ...]]
    encoder_class: ClassVar[type[GeometryEncoder]] = VGGTEncoder
    encoder_prefix, encoder_names = VGGT_MODEL, NAMES
    layer: ClassVar[int | None] = None
    stacked: ClassVar[tuple[type[Fusion], ...]] = ()
    stated: ClassVar[tuple[str, ...]] = ()

    # ---- Reading a folder -------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json is of this model."""

    @property
    @abstractmethod
    def released_geometry(self) -> ReleasedGeometry | None:
        """The parts besides the backbone. None for a model that was saved without them."""

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        is_family = config.get("model_type") == cls.family
        return cls.describes(config) or (is_family and any(name.startswith(cls.prefixes) for name in names))

    @property
    def tensor_names(self) -> Collection[str]:
        return () if self.lacks_folder else self.tensors

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return {} if self.released_geometry is None else self.released_geometry.layout

    @property
    def skip(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.layout)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        loader = cls(path)  # type: ignore[call-arg]
        parts = loader.released_geometry
        return {"backbone": loader, **({} if parts is None else {"fusion": parts.fusion})}

    def load_geometry(self) -> GeometryEncoder | None:
        """Return the VGGT that the fusion was trained with, with the layers that the fusion reads."""
        if (parts := self.released_geometry) is None:
            return None
        with config_errors(self.folder):
            parts.check_layers()
            return parts.load_encoder(self.tensors, self.dtype)

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Copy the released weights into a fusion of the released class. Another fusion keeps its own weights."""
        parts = self.released_geometry
        return parts is not None and parts.load_fusion(fusion, self.tensors)

    # ---- Export -----------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        """Return the names of VGGT and of a fusion in `released_fusions`, see `ReleasedGeometry.layout`."""

    @classmethod
    @abstractmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of config.json that follow from a model's VGGT and fusion.

        Args:
            model: A model with VGGT and a fusion in `released_fusions`.
            source: The config.json of its weights' source folder, or empty.
        """

    @classmethod
    def fixed_options(cls, model: SpatialVLM) -> dict[str, Any]:
        """Return the options of the fusion that all released models share, because config.json does not state them."""
        return {}

    @classmethod
    def layout_of(cls, model: SpatialVLM) -> Layout | None:
        is_own = isinstance(model.backbone, cls.backbone_class) and type(model.fusion) in cls.released_fusions
        return cls.fusion_layout(model) if is_own else None

    @classmethod
    def reads_encoder(cls, model: SpatialVLM) -> bool:
        """Return whether the released model has this geometry encoder, with this number of layers."""
        encoder: Any = model.geometry and model.geometry.meta_encoder
        is_own = isinstance(encoder, cls.encoder_class)
        return is_own and (encoder.num_layers == 1 or type(model.fusion) in cls.stacked)

    @classmethod
    def departures(cls, model: SpatialVLM) -> list[str]:
        fusion: Any = model.fusion
        encoder: Any = model.geometry and model.geometry.meta_encoder
        has_encoder = isinstance(encoder, cls.encoder_class)
        if not has_encoder:
            return [type(encoder).__name__]
        found = []
        if not cls.reads_encoder(model):
            found.append(f"geometry of {encoder.num_layers} layers")
        elif cls.layer is not None and encoder.layer_numbers != [encoder.vggt.aggregator.depth + cls.layer]:
            found.append(f"geometry of layer {encoder.layers[0]}, not of the one before the last")
        fixed = {"active_branches": "both", **cls.fixed_options(model)}
        values = {name: getattr(fusion, name) for name in fixed}
        return found + [f"{name}: {value}" for name, value in values.items() if value != fixed[name]]

    @classmethod
    def whole_config(cls, model: SpatialVLM, stock: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: source[name] for name in cls.config_keys if name in source and name != ARGUMENTS}
        # the published code has no setting for arguments that differ from VGGT-1B's
        arguments = aggregator_of(model.geometry) if isinstance(model.geometry, VGGTEncoder) else {}
        unusual = {
            name: value for name, value in arguments.items() if value != AGGREGATOR[name] and name not in cls.stated
        }
        return stock | kept | cls.fusion_settings(model, source) | ({ARGUMENTS: unusual} if unusual else {})


# ---- What several methods share --------------------------------------------------------------------------------------


def aggregator_of(geometry: VGGTEncoder) -> dict[str, Any]:
    """Return all arguments of the aggregator."""
    given: Any = geometry.vggt.config["aggregator"]
    return AGGREGATOR | given


def aggregator_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the aggregator that a config.json states."""
    return VGGT_SIZES | (config.get(ARGUMENTS) or {})


def refuse_others(config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise InputError for a setting of the published code that no released model has.

    Args:
        config: A config.json.
        supported: The values of each setting. The first one is the default.
    """
    for name, known in supported.items():
        if (value := config.get(name, known[0])) not in known:
            raise InputError(
                f"{name} {value!r} in the config: only {' or '.join(map(repr, known))} is supported, as released"
            )


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of {"qwen": a config.json, ...}, or of a config.json itself."""
    return {**config, **config.get("qwen", {})}


def warn_of_layers(geometry: GeometryEncoder | None, published: tuple[int, ...], what: str) -> None:
    """Warn if an encoder's layers are left at the default, the last one, and name the published layers."""
    encoder: Any = None if geometry is None else geometry.meta_encoder
    if getattr(encoder, "layers", published) == (-1,):
        is_there = max(published) <= encoder.layer_numbers[0]
        remedy = f': set --model.geometry.layers "{list(published)}"' if is_there else ""
        rank_zero_warn(f"{what}, this model the last{remedy}")
