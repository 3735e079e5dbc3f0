"""VGGT's pose encoding and heads: cameras by iterative refinement, and depth or points with a confidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras.poses import quaternion_to_rotation, rigid_matrix, rotation_to_quaternion
from zoo.geometry.layers import DPT, MLP, Block, ResidualUnit, Scratch, in_chunks, upsample
from zoo.precision import to_float32

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
