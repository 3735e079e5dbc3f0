"""VGGT (Wang et al., CVPR 2025, arXiv 2503.11651): 3D tokens, cameras, depth and points of frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from zoo.cameras.poses import quaternion_to_rotation, rigid_matrix, rotation_to_quaternion
from zoo.errors import InputError
from zoo.geometry.layers import (
    DPT,
    MLP,
    Block,
    PatchConvolution,
    ResidualUnit,
    Scratch,
    check_images,
    check_range,
    convert_matrices,
    in_chunks,
    layer_index,
    normalize,
    patch_rotations,
    products_in,
    select_frames,
    upsample,
)
from zoo.precision import full_precision, to_float32
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


# ---- The pose encoding: translation (3), quaternion (4), vertical and horizontal field of view in radians ------------
# Translation and rotation are world-to-camera, x_camera = R x_world + t, in the scene's own scale, with the first frame
# as the world. The quaternion is (x, y, z, w) of any length but 0. The principal point is the center of the image.
# Source: arXiv 2503.11651, section 3


def pose_encoding_to_cameras(
    pose_enc: Float[Tensor, "*batch 9"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 3 3"]]:
    """Convert pose encodings to world-to-camera poses and intrinsics in pixels, float32 or better.

    The camera head can predict a field of view of exactly 0, which is an infinite focal length. `zoo.Cameras` rejects
    it.
    """
    pose_enc = to_float32(pose_enc)
    height, width = image_size_hw
    world_to_camera = rigid_matrix(quaternion_to_rotation(pose_enc[..., 3:7]), pose_enc[..., :3])
    K_px = pose_enc.new_zeros(*pose_enc.shape[:-1], 3, 3)
    K_px[..., 0, 0] = (width / 2) / torch.tan(pose_enc[..., 8] / 2)
    K_px[..., 1, 1] = (height / 2) / torch.tan(pose_enc[..., 7] / 2)
    K_px[..., 0, 2] = width / 2
    K_px[..., 1, 2] = height / 2
    K_px[..., 2, 2] = 1.0
    return world_to_camera, K_px


def cameras_to_pose_encoding(
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
    image_size_hw: tuple[int, int],
) -> Float[Tensor, "*batch 9"]:
    """Invert `pose_encoding_to_cameras`, with unit quaternions and w >= 0. The principal point is dropped."""
    world_to_camera, K_px = to_float32(world_to_camera), to_float32(K_px)
    height, width = image_size_hw
    fov_h = 2 * torch.atan((height / 2) / K_px[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / K_px[..., 0, 0])
    quaternion = rotation_to_quaternion(world_to_camera[..., :3, :3])
    return torch.cat((world_to_camera[..., :3, 3], quaternion, fov_h[..., None], fov_w[..., None]), dim=-1)


# ---- The trunk: patch embedding, then alternating attention within each frame and over all frames --------------------
# DINOv2 is transformers' implementation. It interpolates position embeddings as VGGT does: bicubic, antialiased,
# without offset, in float32, and not at all for a square image of the embeddings' own size. Its LayerNorms have eps
# 1e-6.

DINOV2 = {  # name: width, layers, heads
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}


class Aggregator(nn.Module):
    """Alternating-attention transformer over the frames of a scene (section 3.2 of arXiv 2503.11651).

    Each frame has a camera token, registers, and its patches. The first frame has its own camera token and registers,
    which mark it as the world.

    Args:
        img_size: Side in pixels of the square image that DINOv2's position embeddings were made for.
        patch_size: Patch size in pixels. The sides of an image must be multiples of it.
        embed_dim: Width C of the tokens. A layer's output has width 2C.
        depth: Number of layers. Each is a frame block and a global block.
        num_heads: Number of attention heads. The channels of a head must be a multiple of 4.
        mlp_ratio: Hidden width of the MLPs over C.
        num_register_tokens: Registers per frame. DINOv2 has the same number of its own.
        patch_embed: `conv` or the name of a DINOv2 model, see `build_patch_embed`.
        rope_freq: Base of RoPE's frequencies.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        patch_embed: str = "dinov2_vitl14_reg",
        rope_freq: float = 100.0,
    ) -> None:
        super().__init__()
        if embed_dim % (4 * num_heads):
            raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4 * num_heads={4 * num_heads} for RoPE")
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.head_dim, self.rope_freq = embed_dim // num_heads, rope_freq
        self.patch_start = 1 + num_register_tokens
        self.patch_embed = build_patch_embed(patch_embed, img_size, patch_size, embed_dim, num_register_tokens)
        # index 0 is for the first frame, 1 for all others
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, embed_dim))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, num_register_tokens, embed_dim))
        blocks = [Block(embed_dim, num_heads, mlp_ratio, qk_norm=True) for _ in range(2 * depth)]
        self.frame_blocks = nn.ModuleList(blocks[:depth])
        self.global_blocks = nn.ModuleList(blocks[depth:])

    def forward(
        self, images: Float[Tensor, "B S 3 H W"], layers: Collection[int]
    ) -> dict[int, Float[Tensor, "B S P D"]]:
        """Compute layer outputs: the outputs of the frame and the global block, concatenated (D = 2C).

        No layer after the last of `layers` is computed, and no other output is kept.

        Args:
            images: RGB in 0..1. They are normalized here.
            layers: Indices from 0 to depth - 1.

        Returns:
            For each of `layers`, tokens in the order camera, registers, patches (row by row).
        """
        batch, frames, _, height, width = images.shape
        patches = self.patch_embed(normalize(images).flatten(0, 1))
        special = torch.cat((self.camera_token, self.register_token), 2)
        which = (torch.arange(frames, device=images.device) > 0).long()
        special = special[:, which].expand(batch, -1, -1, -1).flatten(0, 1)
        tokens = torch.cat((special.to(patches.dtype), patches), 1)
        grid = height // self.patch_size, width // self.patch_size
        rotations = patch_rotations(grid, self.patch_start, self.head_dim, self.rope_freq, images.device)
        rotations_all = rotations.repeat(1, frames, 1, 1)

        outputs: dict[int, Tensor] = {}
        for layer in range(max(layers, default=-1) + 1):
            within = self.frame_blocks[layer](tokens, rotations)
            across = self.global_blocks[layer](within.unflatten(0, (batch, frames)).flatten(1, 2), rotations_all)
            tokens = across.unflatten(1, (frames, -1)).flatten(0, 1)
            if layer in layers:
                outputs[layer] = torch.cat((within, tokens), -1).unflatten(0, (batch, frames))
        return outputs


class DINOv2(Dinov2WithRegistersModel):
    """DINOv2 with registers (arXiv 2309.16588) that returns only the normalized patch tokens."""

    def __init__(self, config: Dinov2WithRegistersConfig) -> None:
        super().__init__(config)
        self.embeddings.patch_embeddings.projection.__class__ = PatchConvolution

    @classmethod
    def build(
        cls, width: int, layers: int, heads: int, img_size: int, patch_size: int, registers: int = 4, channels: int = 3
    ) -> DINOv2:
        """Build a DINOv2 of some size. Its position embeddings are made for a square image of `img_size` pixels."""
        config = Dinov2WithRegistersConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=img_size,
            patch_size=patch_size,
            num_channels=channels,
            num_register_tokens=registers,
            layer_norm_eps=1e-6,
        )
        return cls(config)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "N channels H W"]
    ) -> Float[Tensor, "N patches C"]:
        """Embed normalized images."""
        return super().forward(pixel_values=images).last_hidden_state[:, 1 + self.config.num_register_tokens :]


class ConvPatchEmbed(nn.Module):
    """Convolution with the patch as kernel and stride. The aggregator's RoPE adds the positions."""

    def __init__(self, patch_size: int, embed_dim: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = PatchConvolution(patch_size, embed_dim, channels)

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N patches C"]:
        """Embed normalized images."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).mT


def build_patch_embed(name: str, img_size: int, patch_size: int, embed_dim: int, num_registers: int) -> nn.Module:
    """Build a patch embedding with random weights.

    Args:
        name: `conv`, or a DINOv2: `dinov2_vits14_reg`, `dinov2_vitb14_reg`, `dinov2_vitl14_reg`.
        img_size: Side in pixels of the square image that DINOv2's position embeddings were made for.
        patch_size: Patch size in pixels.
        embed_dim: Width of the tokens.
        num_registers: Number of DINOv2's registers, which its output leaves out.

    Raises:
        ValueError: The name is unknown, or the width does not match the model.
    """
    if name == "conv":
        return ConvPatchEmbed(patch_size, embed_dim)
    if name not in DINOV2:
        raise ValueError(f"unknown patch_embed {name!r}: choose conv, {', '.join(DINOV2)}")
    width, layers, heads = DINOV2[name]
    if embed_dim != width:
        raise ValueError(f"{name} has tokens of width {width}, not {embed_dim}: set embed_dim to {width}")
    return DINOv2.build(width, layers, heads, img_size, patch_size, num_registers)


# ---- The camera head: camera tokens to pose encodings, by iterative refinement ---------------------------------------

ENCODING = 9  # see `pose_encoding_to_cameras`


class CameraHead(nn.Module):
    """Iterative pose refinement (section 3.3 of arXiv 2503.11651).

    Each step is conditioned on the current encoding by adaptive LayerNorm and predicts an update.

    Args:
        dim_in: Width of the aggregator's outputs.
        trunk_depth: Number of self-attention blocks over the camera tokens of a scene.
        num_heads: Number of heads of these blocks.
        mlp_ratio: Hidden width of their MLPs over dim_in.
        causal: Mask later frames.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        trunk_depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim_in)
        self.trunk = nn.Sequential(*[Block(dim_in, num_heads, mlp_ratio, causal=causal) for _ in range(trunk_depth)])
        self.trunk_norm = nn.LayerNorm(dim_in)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, ENCODING))
        self.embed_pose = nn.Linear(ENCODING, dim_in)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim_in, 3 * dim_in))
        self.adaln_norm = nn.LayerNorm(dim_in, eps=1e-6, elementwise_affine=False)
        self.pose_branch = MLP(dim_in, dim_in // 2, ENCODING)

    def forward(self, tokens: Float[Tensor, "B S D"], steps: int = 4) -> Float[Tensor, "steps B S 9"]:
        """Return the pose encoding after each step, float32 or better. The last is the prediction.

        No gradient flows from a step to the one before it. The field of view is clamped at 0 in the output, and
        unclamped in the input of the next step, as in the official code.
        """
        camera = self.token_norm(tokens)
        encoding = None
        encodings = []
        for _ in range(steps):
            previous = self.empty_pose_tokens if encoding is None else encoding.detach().to(camera.dtype)
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(previous)).chunk(3, -1)
            modulated = gate * (self.adaln_norm(camera) * (1 + scale) + shift)
            update = to_float32(self.pose_branch(self.trunk_norm(self.trunk(modulated + camera))))
            encoding = update if encoding is None else encoding.detach() + update
            encodings.append(torch.cat((encoding[..., :7], F.relu(encoding[..., 7:])), -1))
        return torch.stack(encodings)

    @torch.no_grad()
    def init_identity_pose(self, steps: int = 4) -> None:
        """Make an untrained head predict roughly the identity and a field of view of one radian.

        With random weights the field of view is often below 0, where the ReLU passes no gradient.
        """
        last = self.pose_branch.fc2
        last.weight.mul_(0.1)
        last.bias.copy_(last.bias.new_tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]) / steps)


# ---- The dense head: tokens to depth or points, with a confidence ----------------------------------------------------


class ReluResidualUnit(ResidualUnit):
    """A residual unit that adds relu(x) instead of x.

    The official unit applies its ReLU in place, which overwrites x before it is added. The released weights were
    trained with that.
    """

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Refine a map."""
        return super().forward(F.relu(x))


class DPTHead(DPT):
    """VGGT's DPT head (Ranftl et al. 2021, arXiv 2103.13413), with the official parameter names.

    Args:
        dim_in: Width of the tokens.
        output_dim: Channels of the result, plus one for the confidence.
        activation: `exp` (depth), or `inv_log`: sign(x) (e^|x| - 1) (points).
        conf_activation: `expp1`: 1 + e^x.
        patch_size: Patch size in pixels.
        features: Width of the merged maps.
        out_channels: Widths of the four maps.
        intermediate_layer_idx: Aggregator layers that are read. Negative numbers count from the end.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        output_dim: int = 4,
        activation: str = "inv_log",
        conf_activation: str = "expp1",
        patch_size: int = 14,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
    ) -> None:
        super().__init__(dim_in, out_channels, patch_size)
        if activation not in ("exp", "inv_log") or conf_activation != "expp1":
            raise ValueError(f"unknown activations {activation!r}, {conf_activation!r}: use exp or inv_log, then expp1")
        self.activation = activation
        self.layers = tuple(intermediate_layer_idx)
        self.scratch = Scratch(features, output_dim, out_channels, ReluResidualUnit)

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> tuple[Float[Tensor, "N H W C"], Float[Tensor, "N H W"]]:
        """Predict maps for N frames in float32 or better.

        Args:
            tokens: Patch tokens of the four `layers`.
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Returns:
            Values in the size of the images, and their confidence, above 1.
        """
        out = in_chunks(lambda chunk: {"maps": self._maps(chunk, height, width)}, tokens)["maps"]
        values, confidence = out.movedim(1, -1).split([out.shape[1] - 1, 1], -1)
        values = values.exp() if self.activation == "exp" else values.sign() * values.abs().expm1()
        return values, 1 + confidence.squeeze(-1).exp()

    def _maps(self, tokens: Sequence[Tensor], height: int, width: int) -> Tensor:
        levels = self.scratch.levels(self.reassemble(tokens, height, width))
        merged = upsample(self.scratch.output_conv1(self.scratch.merge(levels)), (height, width))
        return to_float32(self.scratch.output_conv2(self.embed_positions(merged, width / height)))


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
        load_weights(model, ReleasedWeights(state_dict, "VGGT", NAMES, lambda name: name.startswith(unused)))
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
    ) -> VGGTOutput:
        """Compute `forward` for images that are known to be in 0..1."""
        self._check(images, heads)
        depth = self.aggregator.depth
        indices = {layer: layer_index(layer, depth) for layer in layers}
        needed = set(indices.values())
        if "camera" in heads:
            needed.add(depth - 1)
        for head in {"depth", "point"} & set(heads):
            needed.update(getattr(self, f"{head}_head").layers)
        with products_in(self.matrix_dtype, self.aggregator.camera_token.dtype, images.device):
            outputs = self.aggregator(images, needed)

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
