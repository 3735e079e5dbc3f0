"""Depth Anything 3 as one module, whichever of its models, with official weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.geometry.da3.any_view import AnyView
from zoo.geometry.da3.metric import Metric
from zoo.geometry.da3.nested import Nested
from zoo.geometry.da3.output import DA3Output
from zoo.geometry.da3.reference import Strategy
from zoo.geometry.da3.trunk import PATCH_SIZE
from zoo.geometry.images import check_images, check_range
from zoo.weights.deferred import load_or_defer
from zoo.weights.filling import TensorsOf, load_into
from zoo.weights.lazy_tensors import PrefixView, Tensors, device_of, files_of, first_tensor, source_path

HEADS = ("camera", "depth", "ray")
PARTS = ("head", "cam_enc", "cam_dec")  # of a config, beside its net
PREFIX = "model."
NOT_BUILT = ("gs_head.", "gs_adapter.")  # Gaussians are not part of this project
COPY = re.compile(r"scratch\.output_conv2_aux\.[123]\.2\.")  # of the LayerNorm of level 0; newer files have none


class DA3(nn.Module):
    """Depth Anything 3 (Lin et al. 2025, arXiv 2511.10647): any-view, metric or nested.

    Args:
        config: The official one: {"net", "head", "cam_enc", "cam_dec"}, or {"anyview", "metric"} for a nested model.
            Heads are optional.

    Attributes:
        config: The same.
        source: The official tensors that the weights are read from.

    Example:
        >>> import torch
        >>> net = {"name": "vits", "out_layers": [0, 1, 2, 3], "alt_start": 2, "embed_dim": 32, "depth": 4}
        >>> da3 = DA3({"net": {**net, "num_heads": 2}, "cam_dec": {"dim_in": 64}})
        >>> output = da3(torch.rand(1, 3, 3, 28, 42), layers=(-1,), heads=("camera",))
        >>> output.tokens[-1].shape, output.pose_enc.shape  # a camera token and 2 x 3 patches per view
        (torch.Size([1, 3, 7, 64]), torch.Size([1, 3, 9]))
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.source: Tensors = {}
        self.model = build(config)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, if any."""
        return files_of(self.source)

    @classmethod
    def from_official(cls, config: dict[str, Any], state_dict: Tensors, dtype: torch.dtype | None = None) -> DA3:
        """Build the model with official weights, on their device.

        Under `torch.device("meta")` only names and shapes are checked, and tensors in files are not looked at.

        Args:
            config: See `DA3`.
            state_dict: Tensors by the names of released files. Those of Gaussians, and of parts that the config leaves
                out, are ignored.
            dtype: Of the result; None is that of the weights.

        Raises:
            InputError: Tensors that are missing, unexpected or misshapen, by name.
        """
        with torch.device("meta"):  # so that loading takes no more memory than the model
            model = cls(config).to(dtype or first_tensor(state_dict).dtype)
        model.source = state_dict
        load_or_defer(model, state_dict, _filler(model, state_dict, _left_out(config)), device_of(state_dict))
        return model

    def load_parts(self, names: Iterable[str], config: Mapping[str, Any], tensors: Tensors) -> None:
        """Add parts that the model was built without: heads in float32, trunks in the dtype of its own.

        Args:
            names: Of modules, such as "cam_dec", or "da3_metric" of a nested model.
            config: The whole config.
            tensors: By official names; all others are ignored.

        Raises:
            InputError: The weights lack a part, or it does not fit.
        """
        with torch.device("meta"):
            whole = build(config)
        for name in names:
            part, weights = whole.get_submodule(name), PrefixView(tensors, f"{PREFIX}{name}.")
            if isinstance(part, Metric):
                part.trunk.to(self.model.trunk.dtype)
            with next(self.model.trunk.parameters()).device:  # deferred with the trunk
                load_or_defer(part, weights, _filler(part, weights))
            parent, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(parent), attribute, part)

    def has_part(self, name: str) -> bool:
        """Whether the model was built with a part, such as "cam_dec" or "da3.head"."""
        return attrgetter(name)(self.model) is not None

    def official_state_dict(self) -> dict[str, Tensor]:
        """The inverse of `from_official`: the tensors by the names of released files."""
        return self.state_dict()

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        *,
        reference: Strategy = "saddle_balanced",
        world_to_camera: Float[Tensor, "B _S 4 4"] | None = None,
        K_px: Float[Tensor, "B _S 3 3"] | None = None,
    ) -> DA3Output:
        """Compute only what is asked for.

        Args:
            images: RGB in 0..1, not normalized; sides in multiples of 14.
            layers: Of the trunk, counted from the end where negative.
            heads: Any of "camera", "depth", "ray". A model without cameras gives none.
            reference: How the view whose camera is the world is chosen, see `choose_reference`.
            world_to_camera: One pose per view, used as it is: see `normalize_poses`.
            K_px: Intrinsics per view, in pixels; with `world_to_camera` or not at all.

        Raises:
            InputError: Image sides that are not multiples of 14, a depth or ray head that the model does not have, or
                cameras that don't fit the images or the model.
        """
        check_range(images, "Depth Anything 3")
        return self.compute(images, layers, heads, reference=reference, world_to_camera=world_to_camera, K_px=K_px)

    def compute(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        *,
        reference: Strategy,
        world_to_camera: Float[Tensor, "B _S 4 4"] | None = None,
        K_px: Float[Tensor, "B _S 3 3"] | None = None,
    ) -> DA3Output:
        """Compute `forward` of images that are known to be in 0..1."""
        check_images(images, PATCH_SIZE, "Depth Anything 3")
        if unknown := set(heads) - set(HEADS):
            raise InputError(f"heads {', '.join(sorted(unknown))}: choose from {', '.join(HEADS)}")
        if lacking := set(heads) - self.model.heads - {"camera"}:
            known = ", ".join(sorted(self.model.heads)) or "no heads"
            raise InputError(f"this Depth Anything 3 has no {' and no '.join(sorted(lacking))} head: it has {known}")
        cameras = None
        if world_to_camera is not None or K_px is not None:
            self._check_cameras(images, world_to_camera, K_px)
            cameras = (world_to_camera, K_px)
        return self.model(images, layers, heads, reference, cameras)

    def _check_cameras(self, images: Tensor, world_to_camera: Tensor | None, K_px: Tensor | None) -> None:
        if world_to_camera is None or K_px is None:
            given = "K_px" if world_to_camera is None else "world_to_camera"
            raise InputError(f"{given} alone: give world_to_camera and K_px, or neither")
        for name, tensor in (("world_to_camera", world_to_camera), ("K_px", K_px)):
            if tensor.shape[:2] != images.shape[:2]:
                raise InputError(
                    f"{name} of {list(tensor.shape[:2])} scenes and views for images of {list(images.shape[:2])}: give "
                    "one camera per view, or none"
                )
        if not self.model.takes_cameras:
            raise InputError("this Depth Anything 3 has no camera encoder (cam_enc): leave the cameras out")


def build(config: Mapping[str, Any]) -> AnyView | Metric | Nested:
    """Build the network of a config, with random weights."""
    if "anyview" in config:
        metric = config.get("metric")
        return Nested(_arguments(config["anyview"]), None if metric is None else _arguments(metric))
    head = config.get("head") or {}
    kind = Metric if head.get("__object__", {}).get("name") == "DPT" else AnyView
    return kind(**_arguments(config))


def _arguments(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts = {name: config[name] for name in ("net", *PARTS) if config.get(name) is not None}
    return {part: {name: value for name, value in each.items() if name != "__object__"} for part, each in parts.items()}


def _left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of the tensors that a config leaves out."""
    models: dict[str, Any] = {PREFIX: config}
    if "anyview" in config:
        models = {f"{PREFIX}da3.": config["anyview"], f"{PREFIX}da3_metric.": config.get("metric")}
    skip = [prefix for prefix, each in models.items() if each is None]
    for prefix, each in models.items():
        absent = [f"{part}." for part in PARTS if each is not None and each.get(part) is None]
        skip += [prefix + part for part in (*NOT_BUILT, *absent)]
    return tuple(skip)


def _filler(module: nn.Module, tensors: Tensors, skip: tuple[str, ...] = ()) -> Callable[[], None]:
    """Return the function that copies official tensors into a module."""
    state = TensorsOf(module)

    def fill() -> None:
        if isinstance(tensors, PrefixView) and not tensors:
            raise InputError(f"{source_path(tensors)}: no tensors {tensors.prefix}*: download it again")
        copies = tuple(name for name in tensors if COPY.search(name))
        load_into(state, tensors, what="Depth Anything 3", skip=skip + copies)

    return fill
