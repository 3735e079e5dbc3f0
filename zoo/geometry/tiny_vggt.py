"""A small VGGT: --model.geometry TinyVGGT --model.geometry.path runs/vggt_tiny."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.errors import InputError
from zoo.geometry.base import Head
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt.official import find_weights
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.weights import WEIGHTS, SafetensorsFile


class TinyVGGT(VGGTEncoder):
    """A VGGT of a few million parameters, for small frames: random, or pretrained with geometry_tiny.yaml.

    Args:
        path: a run of `fit --config geometry_tiny.yaml`, or its model.safetensors; null is random weights, whose
            outputs carry no geometry.
        layer: of the aggregator whose outputs are the 3D tokens, counted from the end where negative.
        embed_dim: width of the aggregator; its tokens have twice as many channels.
        depth: layers of the aggregator.
        num_heads: of its attention.
        features: width of the dense heads.
        heads: those to build; pretraining needs all three.
        seed: of the random weights.

    Raises:
        InputError: A path without weights, or with weights of another size.
    """

    def __init__(
        self,
        path: str | None = None,
        layer: int = -1,
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        features: int = 16,
        heads: Sequence[Head] = ("camera",),
        seed: int = 0,
    ) -> None:
        dense = {"dim_in": 2 * embed_dim, "features": features, "out_channels": [features] * 4}
        dense["intermediate_layer_idx"] = [depth * (i + 1) // 4 - 1 for i in range(4)]
        every: dict[str, dict[str, Any]] = {
            "camera_head": {"dim_in": 2 * embed_dim, "trunk_depth": 2, "num_heads": num_heads},
            "depth_head": dense | {"output_dim": 2, "activation": "exp"},
            "point_head": dense | {"output_dim": 4, "activation": "inv_log"},
        }
        config = {"aggregator": dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_embed="conv")}
        config |= {f"{head}_head": every[f"{head}_head"] for head in heads}
        if path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                vggt = VGGT(**config)
            if vggt.camera_head is not None:
                init_identity_pose(vggt.camera_head)
        else:
            local = Path(path).expanduser()
            if not local.is_file() and not (local / WEIGHTS).is_file():
                raise InputError(
                    f"{path} holds no {WEIGHTS}: make one with `python main.py fit --config geometry_tiny.yaml`, or "
                    "set --model.geometry.path to the run that did"
                )
            vggt = VGGT.from_official(config, SafetensorsFile(find_weights(path)))
        super().__init__(vggt, layer)


def init_identity_pose(head: CameraHead, steps: int = 4) -> None:
    """Initializes a camera head to predict identity rotations and a field of view of one radian.

    With random weights the field of view is often below 0, where the ReLU passes no gradient.

    Args:
        head: an untrained head.
        steps: its refinement steps, whose updates add up.
    """
    last = head.pose_branch.fc2
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.copy_(last.bias.new_tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]) / steps)
