"""VGGT (Wang et al., CVPR 2025, arXiv 2503.11651): the whole model, official names and the file of its weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.geometry.layers import check_images, check_range, convert_matrices, layer_index, products_in, select_frames
from zoo.geometry.vggt.heads import CameraHead, DPTHead
from zoo.geometry.vggt.trunk import Aggregator
from zoo.precision import full_precision
from zoo.weights.load import (
    WEIGHTS,
    NameTable,
    ReleasedWeights,
    StoredTensors,
    Tensors,
    TensorsUnder,
    download,
    files_of,
    first_tensor,
    full_name,
    load_weights,
    source_path,
)

# ---- Official names of VGGT's tensors, and the file of its weights ---------------------------------------------------

# The modules here have the official names, except for DINOv2, which is transformers' implementation. Its names differ,
# and it splits the official joint projection of queries, keys and values into three.

DINOV2_PREFIX = "aggregator.patch_embed."
QKV = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
RENAMED = (  # prefixes: official, transformers'
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("norm.", "layernorm."),
    ("blocks.", "encoder.layer."),
)
RENAMED_IN_BLOCK = (
    (".attn.proj.", ".attention.o_proj."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
)


def current_names(official: str, dinov2: Sequence[str] = (DINOV2_PREFIX,)) -> tuple[str, ...]:
    """Return the names here of an official tensor. If there are three, each gets a third of its rows.

    `dinov2` are the prefixes of the model's DINOv2s.
    """
    prefix = next((each for each in dinov2 if official.startswith(each)), None)
    if prefix is None:
        return (official,)
    name = _translate(official.removeprefix(prefix), 0, 1)
    names = [name.replace(".attn.qkv.", part) for part in QKV] if ".attn.qkv." in name else [name]
    return tuple(prefix + each for each in names)


def official_name(current: str, dinov2: Sequence[str] = (DINOV2_PREFIX,)) -> str:
    """Return the official name of a tensor here, or of the official tensor that it is a part of."""
    prefix = next((each for each in dinov2 if current.startswith(each)), None)
    if prefix is None:
        return current
    name = current.removeprefix(prefix)
    for part in QKV:
        name = name.replace(part, ".attn.qkv.")
    return prefix + _translate(name, 1, 0)


def official_tensors_of(model: nn.Module, names: NameTable) -> dict[str, Tensor]:
    """Return the tensors of a model by official names, those that were split joined again."""
    state = model.state_dict()
    parts: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(names.official(name) for name in state):
        parts[name] = [state[part] for part in names.current(name)]
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def _translate(name: str, source: int, target: int) -> str:
    for pair in RENAMED_IN_BLOCK:
        name = name.replace(pair[source], pair[target])
    for pair in RENAMED:
        if name.startswith(pair[source]):
            return pair[target] + name.removeprefix(pair[source])
    return name


NAMES = NameTable(current_names, official_name)


def official_tensors(path: str) -> StoredTensors:
    """Return the tensors of a file, a folder or a hub id, see `find_weights`. They are opened when needed."""
    return StoredTensors(lambda: find_weights(path))


def find_weights(path: str) -> Path:
    """Return the safetensors file of a file name, a folder or a hub id, and download it if needed.

    Raises:
        InputError: There is no such file. Pickled weights (.pt, .bin) are never read.
    """
    local, cause = Path(path).expanduser(), None
    file = local if local.suffix == ".safetensors" else local / WEIGHTS
    try:
        if not local.exists():
            file = download(path, [WEIGHTS]) / WEIGHTS
        if file.is_file():
            return file
    except FileNotFoundError as error:
        cause = error
    raise InputError(
        f"{path} is no .safetensors file, no folder with {WEIGHTS} in it, and can't be loaded from the hub: run "
        f"`hf download facebook/VGGT-1B {WEIGHTS} --local-dir weights/vggt-1b` where there is a network, then give "
        "weights/vggt-1b"
    ) from cause


# ---- The whole model -------------------------------------------------------------------------------------------------

HEADS = ("camera", "depth", "point")
NOT_BUILT = "track_head."  # the point tracker is not part of this project
VGGT_1B: dict[str, dict[str, Any]] = {  # facebook/VGGT-1B; all other arguments are defaults
    "aggregator": {"img_size": 518, "patch_size": 14, "embed_dim": 1024},
    "camera_head": {"dim_in": 2048},
    "depth_head": {"dim_in": 2048, "output_dim": 2, "activation": "exp"},
    "point_head": {"dim_in": 2048, "output_dim": 4, "activation": "inv_log"},
}


@dataclass(eq=False)
class VGGTOutput:
    """The outputs of VGGT for B scenes of S frames. None for heads that were not requested.

    Attributes:
        tokens: Layer outputs by requested index: camera token, registers, patches.
        patch_start: Number of tokens before the patches.
        pose_enc: Cameras, see `pose_encoding_to_cameras`.
        pose_enc_list: The same after each refinement step. The last is `pose_enc`.
        depth: Depth along the camera's z axis, in the scene's own scale, above 0.
        depth_conf: Confidence, above 1.
        points: Points in the frame of the first camera, in the same scale.
        points_conf: Confidence, above 1.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int
    pose_enc: Float[Tensor, "B S 9"] | None = None
    pose_enc_list: Float[Tensor, "steps B S 9"] | None = None
    depth: Float[Tensor, "B dense H W 1"] | None = None
    depth_conf: Float[Tensor, "B dense H W"] | None = None
    points: Float[Tensor, "B dense H W 3"] | None = None
    points_conf: Float[Tensor, "B dense H W"] | None = None

    def in_units(self, unit: Float[Tensor, " B"]) -> VGGTOutput:
        """Return the outputs with lengths divided by the unit of each scene."""
        divided: dict[str, Tensor] = {}
        for name in ("pose_enc", "pose_enc_list"):
            if (value := getattr(self, name)) is not None:
                center, rest = value.split([3, 6], -1)
                divided[name] = torch.cat((center / unit[:, None, None], rest), -1)
        for name in ("depth", "points"):
            if (value := getattr(self, name)) is not None:
                divided[name] = value / unit[:, None, None, None, None]
        return replace(self, **divided)  # type: ignore[arg-type]

    def reversed(self) -> VGGTOutput:
        """Return the outputs in the reverse order of frames."""
        fields = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        turned: dict[str, Any] = {
            name: value.flip(2 if name == "pose_enc_list" else 1) for name, value in fields.items()
        }
        return replace(self, tokens={layer: each.flip(1) for layer, each in self.tokens.items()}, **turned)


class VGGT(nn.Module):
    """Visual Geometry Grounded Transformer (Wang et al., CVPR 2025, arXiv 2503.11651).

    Args:
        aggregator: Arguments of `Aggregator`.
        camera_head: Arguments of `CameraHead`. None builds no camera head.
        depth_head: Arguments of `DPTHead`. None builds no depth head.
        point_head: Arguments of `DPTHead`. None builds no point head.

    Attributes:
        config: The arguments.
        source: The official tensors that the weights are read from.

    Raises:
        ValueError: A dense head uses a layer that the aggregator does not have.

    Example:
        >>> import torch
        >>> config = {
        ...     "aggregator": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_embed": "conv"},
        ...     "camera_head": {"dim_in": 64, "num_heads": 2},
        ... }
        >>> official = VGGT(**config).official_state_dict()
        >>> vggt = VGGT.from_official(config, official)
        >>> output = vggt(torch.rand(1, 3, 3, 28, 42), layers=(-1,), heads=("camera",))
        >>> output.tokens[-1].shape, output.pose_enc.shape  # 5 special tokens and 2 x 3 patches per frame
        (torch.Size([1, 3, 11, 64]), torch.Size([1, 3, 9]))
    """

    @staticmethod
    def drops(name: str) -> bool:
        """Return whether a variant of the network has no place for a tensor of the official file."""
        return False

    def __init__(
        self,
        aggregator: dict[str, Any],
        camera_head: dict[str, Any] | None = None,
        depth_head: dict[str, Any] | None = None,
        point_head: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        heads = {"camera_head": camera_head, "depth_head": depth_head, "point_head": point_head}
        self.config = {"aggregator": aggregator, **heads}
        self.source: Tensors = {}
        self.aggregator = Aggregator(**aggregator)
        self.camera_head = None if camera_head is None else CameraHead(**camera_head)
        self.depth_head = self._build_dense_head(depth_head)
        self.point_head = self._build_dense_head(point_head)

    def _build_dense_head(self, arguments: dict[str, Any] | None) -> DPTHead | None:
        if arguments is None:
            return None
        head = DPTHead(**arguments)
        head.layers = tuple(layer_index(layer, self.aggregator.depth) for layer in head.layers)
        return head

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, if any."""
        return files_of(self.source)

    @classmethod
    def from_official(
        cls,
        config: dict[str, Any],
        state_dict: Tensors,
        dtype: torch.dtype | None = None,
        matrix_dtype: torch.dtype | None = None,
    ) -> VGGT:
        """Build the model with official weights, on their device.

        Under `torch.device("meta")` only names and shapes are checked, and tensors in files are not read.

        Args:
            config: Arguments of the official modules: {"aggregator": {...}, "camera_head": {...}, ...}.
            state_dict: Tensors by official names. Tensors of the tracker, and of heads that the config leaves out, are
                ignored.
            dtype: Dtype of the result. None is the weights' dtype.
            matrix_dtype: Dtype of the aggregator's matrices, in which it then computes products. With bfloat16 and
                otherwise float32, tokens equal those of float32 weights under autocast, as the group runs VGGT. None is
                `dtype`.

        Raises:
            InputError: Tensors are missing, unexpected or of another shape.
        """
        with torch.device("meta"):  # loading then takes no more memory than the model
            model = cls(**config).to(dtype or first_tensor(state_dict).dtype)
            convert_matrices(model.aggregator, matrix_dtype)
        model.source = state_dict
        unused = (NOT_BUILT, *(f"{head}_head." for head in HEADS if config.get(f"{head}_head") is None))
        load_weights(
            model, ReleasedWeights(state_dict, "VGGT", NAMES, lambda name: name.startswith(unused) or cls.drops(name))
        )
        return model

    def load_head(self, name: str, tensors: Tensors) -> None:
        """Add one of VGGT-1B's heads, in float32.

        Args:
            name: "camera", "depth" or "point".
            tensors: Tensors by official names. All others are ignored.

        Raises:
            InputError: The weights have no such head, or it does not fit.
        """
        weights = TensorsUnder(tensors, f"{name}_head.")
        config = VGGT_1B[f"{name}_head"] | {"dim_in": 2 * self.aggregator.embed_dim}
        with torch.device("meta"):
            head = CameraHead(**config) if name == "camera" else self._build_dense_head(config)
        assert head is not None

        def check() -> None:
            if not weights:
                raise InputError(
                    f"{source_path(weights)}: no {name} head ({full_name(weights, '')}*): use the dataset's geometry, "
                    "--model.camera_source dataset"
                )

        what = f"{name} head of VGGT ({name}_head.*)"
        load_weights(head, ReleasedWeights(weights, what, check=check), self.aggregator.camera_token.device)
        setattr(self, f"{name}_head", head)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Invert `from_official`: return the tensors by official names."""
        return official_tensors_of(self, NAMES)

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int] = (-1,),
        heads: Collection[str] = ("camera",),
        dense_frames: Int[Tensor, "B dense"] | None = None,
    ) -> VGGTOutput:
        """Compute the requested outputs only.

        Args:
            images: RGB in 0..1, not normalized. Sides are multiples of the patch size. The camera of frame 0 is the
                world.
            layers: Aggregator layers. Negative numbers count from the end.
            heads: Any of "camera", "depth", "point".
            dense_frames: Frames of each scene's depth and point maps, in this order. None is all.

        Raises:
            ValueError: Image sides are not multiples of the patch size, images are integers, or a layer or a head does
                not exist.
        """
        check_range(images, "VGGT")
        return self.compute(images, layers, heads, dense_frames)

    def compute(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        dense_frames: Int[Tensor, "B dense"] | None = None,
        attends: Bool[Tensor, "B S S"] | None = None,
    ) -> VGGTOutput:
        """Compute `forward` for images that are known to be in 0..1. See `Aggregator.forward` for `attends`."""
        self._check(images, heads)
        depth = self.aggregator.depth
        indices = {layer: layer_index(layer, depth) for layer in layers}
        needed = set(indices.values())
        if "camera" in heads:
            needed.add(depth - 1)
        for head in {"depth", "point"} & set(heads):
            needed.update(getattr(self, f"{head}_head").layers)
        with products_in(self.matrix_dtype, self.aggregator.camera_token.dtype, images.device):
            outputs = self.aggregator(images, needed, attends)

        result = VGGTOutput({layer: outputs[i] for layer, i in indices.items()}, self.aggregator.patch_start)
        with full_precision(images.device):
            if "camera" in heads and self.camera_head is not None:
                camera = outputs[depth - 1][:, :, 0].to(self.camera_head.token_norm.weight.dtype)
                result.pose_enc_list = self.camera_head(camera)
                result.pose_enc = result.pose_enc_list[-1]
            if "depth" in heads and self.depth_head is not None:
                result.depth, result.depth_conf = self._dense(self.depth_head, outputs, images, dense_frames)
            if "point" in heads and self.point_head is not None:
                result.points, result.points_conf = self._dense(self.point_head, outputs, images, dense_frames)
        return result

    @property
    def matrix_dtype(self) -> torch.dtype:
        """Dtype of the aggregator's matrices."""
        weight: Tensor = self.aggregator.get_submodule("frame_blocks.0.attn.qkv").weight  # type: ignore[assignment]
        return weight.dtype

    def _dense(
        self, head: DPTHead, outputs: dict[int, Tensor], images: Tensor, dense_frames: Int[Tensor, "B dense"] | None
    ) -> tuple[Tensor, Tensor]:
        batch, _, _, height, width = images.shape
        layers = [outputs[layer][:, :, self.aggregator.patch_start :] for layer in head.layers]
        if dense_frames is not None:
            layers = [select_frames(layer, dense_frames) for layer in layers]
        tokens = [layer.flatten(0, 1).to(head.dtype) for layer in layers]
        values, confidence = head(tokens, height, width)
        return values.unflatten(0, (batch, -1)), confidence.unflatten(0, (batch, -1))

    def _check(self, images: Tensor, heads: Collection[str]) -> None:
        check_images(images, self.aggregator.patch_size, "VGGT")
        for head in heads:
            if head not in HEADS or getattr(self, f"{head}_head") is None:
                raise ValueError(f"this VGGT has no {head} head: add {head}_head to its config ({', '.join(HEADS)})")
