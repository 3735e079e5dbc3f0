"""Hash weights of the Cambrian cases: those of ../weights.py, with larger text embeddings, so that answers vary.

Camera tokens are larger as well, and the fields of view stay above 0.
"""

import torch

from tests.golden.weights import init_


@torch.no_grad()
def init_cambrian_(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """By `init_`; text embeddings times ten, camera tokens times five, 0.8 added to the start's fields of view."""
    init_(name, tensor)
    if name.endswith("embed_tokens.weight"):
        tensor.mul_(10)
    elif name.endswith("camera_tokens"):
        tensor.mul_(5)
    elif name.endswith("empty_pose_tokens"):
        tensor[..., -2:].add_(0.8)
    return tensor
