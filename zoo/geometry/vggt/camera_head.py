"""Camera tokens to pose encodings, by iterative refinement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.geometry.transformer_blocks import MLP, Block
from zoo.precision import to_float32

ENCODING = 9  # see pose_encoding.py


class CameraHead(nn.Module):
    """Iterative pose refinement (section 3.3 of arXiv 2503.11651).

    Each step is conditioned on the current encoding by adaptive LayerNorm and predicts an update.

    Args:
        dim_in: Width of the aggregator's outputs.
        trunk_depth: Number of self-attention blocks over the camera tokens of a scene.
        num_heads: Of these blocks.
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
        """The pose encoding after each step, float32 or better; the last is the prediction.

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
        """Make an untrained head predict about the identity and a field of view of one radian.

        With random weights the field of view is often below 0, where the ReLU passes no gradient.

        Args:
            steps: Of the refinement, whose updates add up.
        """
        last = self.pose_branch.fc2
        last.weight.mul_(0.1)
        last.bias.copy_(last.bias.new_tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]) / steps)
