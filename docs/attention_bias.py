"""Draw docs/attention_bias.png: the attention bias that each encoding causes between views of a real trajectory.

For queries and keys that are equal in all views, q_i = k_j = e, the original logit is the same between all views. A
camera encoding adds its bias. Each panel shows the bias from the view in a row to the view in a column: the mean or the
spread over many random e, in units of the panel's largest value. Blue is less attention, red is more attention or more
spread. The tokens are in the middle of their views. The last panel is the distance of the poses.
    ZOO_REALDATA=<folder> python -m docs.attention_bias      # 7-Scenes RedKitchen, 40 views of 1,000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from docs.symmetries import COMBINATIONS
from zoo.cameras import Cameras, normalize_intrinsics
from zoo.cameras.poses import invert_se3, nearest_rotation, pose_distance
from zoo.encodings import EncodedCameras
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.sequences.time_index import TemporalPatches

OUTPUT = Path(__file__).parents[1] / "docs" / "attention_bias.png"
MEANS = (
    "PRoPE, ChannelRange",
    "PRoPE, TemporalSection",
    "GTA, TemporalSection",
    "CaPE, TemporalSection",
    "RayEncoding, TemporalSection",
    "PointRoPE",
    "PoseALiBi",
    "PoseALiBi, rotation",
    "PoseIndex, PoseDistanceIndex",
    "PoseIndex, PathLengthIndex",
)
SPREADS = ("PRoPE, TemporalSection", "GTA, TemporalSection")
VIEWS, HEADS, HEAD_DIM, SECTION, SAMPLES = 40, 2, 128, [16, 24, 24], 512
COLUMNS = 4
NO_DEPTH = 65535  # 7-Scenes' mark of missing depth


def main() -> None:
    root = os.environ.get("ZOO_REALDATA")
    if not root:
        sys.exit("ZOO_REALDATA must name the folder of real scenes")
    cameras = red_kitchen(Path(root) / "scenes" / "7scenes_redkitchen")
    panels = {name: bias(name, cameras).mean(-1) for name in MEANS}
    panels |= {f"{name}: spread": bias(name, cameras).std(-1) for name in SPREADS}
    poses = cameras.world_to_camera[0]
    angle, distance = pose_distance(poses[:, None], poses[None])
    panels["- angle (rad) - distance (m)"] = -(angle + distance)
    draw(panels).savefig(OUTPUT)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size // 1024} KiB")


def red_kitchen(folder: Path) -> Cameras:
    """Return one token for each of some views, evenly spaced in time. Every tenth frame has depth."""
    camera_to_world = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt")[:, 1:]).reshape(-1, 4, 4)
    frames = 10 * torch.linspace(0, len(camera_to_world) // 10 - 1, VIEWS).long()
    camera_to_world = camera_to_world[frames]
    camera_to_world[:, :3, :3] = nearest_rotation(camera_to_world[:, :3, :3])
    K_px = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]], dtype=torch.float64)
    K = normalize_intrinsics(K_px, 640, 480).expand(1, VIEWS, 3, 3)
    middle = [Image.open(folder / "depth" / f"{frame:06}.png").crop((304, 224, 336, 256)) for frame in frames.tolist()]
    depth_mm = torch.from_numpy(np.stack([np.asarray(each).astype(np.float64) for each in middle])).flatten(1)
    depth_m = depth_mm.where(depth_mm < NO_DEPTH, torch.nan).nanmedian(1).values / 1000
    ahead = camera_to_world[:, :3, 3] + depth_m[:, None] * camera_to_world[:, :3, 2]
    cameras = Cameras(invert_se3(camera_to_world)[None], K, torch.arange(VIEWS)[None])
    return cameras.with_tokens(torch.zeros(1, VIEWS, 2), ahead[None])


@torch.no_grad()
def bias(name: str, cameras: Cameras) -> Tensor:
    """Return (views, views, samples): the addition to the logit of tokens of the same content and position."""
    encoding, head = COMBINATIONS[name](), HeadLayout.in_row(HEAD_DIM, SECTION)
    frequencies = 1e6 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD_DIM, 1, HEADS, HEADS, head, (frequencies,)), layers=range(1))
    views = cameras.world_to_camera.shape[1]
    encoded = encoding.encode(cameras, head, dtype=torch.float64)
    angle = torch.zeros(1, views, HEAD_DIM // 2, dtype=torch.float64)
    if encoding.time_index is not None:
        steps = torch.arange(views)
        posed = {"world_to_camera": cameras.world_to_camera[0], "has_camera": steps >= 0}
        time = encoding.time_index(TemporalPatches(0 * steps, steps, torch.ones(views), 2, **posed))
        angle[0, :, : SECTION[0]] = time[:, None] * frequencies[: SECTION[0]]
    rope = torch.cat((angle.cos(),) * 2, -1), torch.cat((angle.sin(),) * 2, -1)
    content = torch.randn(SAMPLES, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    acting = encoded.at_layer(0, torch.zeros(1, views, 1), rope) or EncodedCameras()
    logits = []
    for samples in content.split(HEADS):  # each sample is one head
        same = samples.expand(1, views, -1, -1)
        q, k = apply_rotary_pos_emb(*(x.transpose(1, 2) for x in acting.before_rope(same, same)), *rope)
        q, k = acting.after_rope(q.transpose(1, 2), k.transpose(1, 2))
        logits.append(torch.einsum("ihd,jhd->ijh", q[0], k[0]) - samples.square().sum(-1))
    return torch.cat(logits, -1) * HEAD_DIM**-0.5


def draw(panels: dict[str, Tensor]) -> Figure:
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(11, 3.1 * rows), dpi=90, layout="constrained")
    places = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).flat
    for axes, (name, values) in zip(places, panels.items(), strict=False):
        largest = values.abs().max().clamp(min=1e-9)
        image = axes.imshow(values / largest, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{name}\nlargest {largest:.2g}", fontsize=9)
        axes.tick_params(labelbottom=True, labelleft=True)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("view of the key, in the order of the video")
    figure.supylabel("view of the query")
    bar = figure.colorbar(image, ax=list(places), shrink=0.5, aspect=40)
    bar.set_label("bias of the logit, as a share of the panel's largest")
    return figure


if __name__ == "__main__":
    main()
