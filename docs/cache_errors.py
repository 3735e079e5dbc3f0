"""The table of docs/reference/files.md: errors of the two precisions of the geometry cache.

    python -m docs.cache_errors     # updates the document

On rooms, it compares a fused model that reads 3D tokens from a cache with the same model that computes them: the
tokens, the cameras, and the logits of the questions' tokens. The connector is random with outputs as large as the 2D
tokens, because an untrained one adds nothing. The cache keeps cameras exactly. The table also shows the cameras that
would be computed from the cached camera tokens. The control uses the tokens of another room. A tiny VGGT first learns
these rooms by heart in two minutes, because cameras from random weights are meaningless.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules import Rooms, VideoQADataModule
from datamodules.collate import QuestionCollate, SceneCollate
from datamodules.dataset import SceneDataset
from datamodules.resize import PixelBounds
from timings.tables import filled, markdown
from zoo import AddFusion, GeometryCache, GeometryPretraining, SpatialVLM, TinyVGGT
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.geometry import CachedGeometry, GeometryEncoder, SceneGeometry, VGGTEncoder, pose_encoding_to_cameras
from zoo.model_spec import ModelSpec
from zoo.scene_encoding import encode_vision
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene

DTYPES = ("bfloat16", "float8")
DOCUMENT, SECTION = Path(__file__).parent / "reference/files.md", "table: cache errors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vggt", help="a run of geometry_tiny.yaml, in place of one that learns the rooms by heart")
    parser.add_argument("--steps", type=int, default=160, help="training steps")
    parser.add_argument("--rooms", default="cache/rooms", help="folder of the rooms, which are rendered if missing")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = rooms(arguments)
        vggt = arguments.vggt or learn(scenes, arguments.steps, f"{folder}/vggt")
        with torch.no_grad():
            show_errors(scenes, vggt, folder)


def show_errors(scenes: list[LoadedScene], vggt: str, folder: str) -> None:
    torch.manual_seed(0)
    model = SpatialVLM(geometry=lambda: TinyVGGT(vggt), fusion=AddFusion).eval()
    plain = model.geometry
    assert isinstance(plain, VGGTEncoder) and model.fusion is not None
    behind = {dtype: CachedGeometry(lambda: plain, GeometryCache(f"{folder}/{dtype}", dtype=dtype)) for dtype in DTYPES}
    collate = QuestionCollate(model.model_spec())
    batches = [collate([replace(scene, questions=scene.questions[:1])]) for scene in scenes]
    equal_branches(model, batches[0])
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in (*DTYPES, "another room")}
    for batch, other in zip(batches, batches[1:] + batches[:1], strict=True):
        (exact,), frames = geometry_of(plain, batch), batch.scenes[0].frames
        expected = logits_of(model, batch)
        for name in found:
            if name == "another room":
                (kept,) = geometry_of(plain, other)
                model.geometry = Says(kept)
            else:
                model.geometry = behind[name]
                (kept,) = geometry_of(behind[name], batch)
            compare(found[name], plain, kept, exact, (frames[0].shape[-2], frames[0].shape[-1]))
            compare_logits(found[name], logits_of(model, batch), expected)
            model.geometry = plain
    rows = [
        {"": row} | {way: f"{summary(row, errors[row]):.2g}" for way, errors in found.items()}
        for row in found["float8"]
    ]
    DOCUMENT.write_text(filled(DOCUMENT, {SECTION: markdown(rows)}), encoding="utf-8")


class Says(GeometryEncoder):
    """A geometry encoder that returns the same output for every scene."""

    requires_frames = True

    def __init__(self, scene: SceneGeometry) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, frames: Any, given: Any, **_: Any) -> list[SceneGeometry]:
        return [self.scene] * len(frames)


def rooms(arguments: argparse.Namespace) -> list[LoadedScene]:
    source = Rooms(scenes=(2, 2, max(2, arguments.scenes)), root=arguments.rooms)
    data = VideoQADataModule(source=source, num_frames=arguments.frames)
    data.prepare_splits(("test",))
    bounds = PixelBounds(min_pixels=784, max_pixels=65536, legacy_folder_resize=False)
    scenes = data.scenes("test")[: arguments.scenes]
    loaded = SceneDataset(
        scenes, data.sampler, data.num_frames, bounds, spec=ModelSpec(requires_cameras=True, requires_depth=True)
    )
    return [loaded[i] for i in range(len(scenes))]


def learn(scenes: list[LoadedScene], steps: int, folder: str) -> str:
    """Train a tiny VGGT until it knows some scenes by heart, and return its run."""
    torch.manual_seed(0)
    model = GeometryPretraining(TinyVGGT(heads=("camera", "depth", "point")), dense_frames=1)
    seen = SceneCollate()(scenes)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
    )
    trainer.fit(model, DataLoader([seen] * steps, batch_size=None), DataLoader([seen], batch_size=None))
    return folder


def equal_branches(model: SpatialVLM, batch: Batch) -> None:
    """Randomize the last layer of the connector, so that 3D tokens are as large as 2D tokens."""
    assert isinstance(model.fusion, AddFusion)
    (shown,) = batch.scenes
    last, grid = model.fusion.connector.mlp[2], shown.grid_thw
    nn.init.normal_(last.weight, std=last.weight.shape[1] ** -0.5, generator=torch.Generator().manual_seed(0))
    ((visual, _),) = encode_vision(model.backbone, batch)
    (scene,) = geometry_of(model.geometry, batch)
    assert scene is not None
    last.weight.mul_(visual.std() / model.fusion.embed_3d(model.fusion.merged_3d(scene, grid, visual.dtype)).std())


def geometry_of(encoder: nn.Module, batch: Batch) -> list[SceneGeometry]:
    return encoder([scene.frames.float() / 255 for scene in batch.scenes if scene.frames is not None], [None])


def logits_of(model: SpatialVLM, batch: Batch) -> Tensor:
    """Return the logits of the tokens after the video: the question's, and the answer's first."""
    (prompt,) = batch.prompts
    ((question,),) = prompt.passes
    ids = torch.cat((prompt.prefix.input_ids, torch.tensor([question])), 1)
    sequences = model.sequence_builder.build(ids, torch.ones_like(ids).bool(), batch.scenes, [[0]])
    inputs = model.decoder_inputs(model.encode_scenes(batch), sequences)
    last = int((ids[0] == model.backbone.placeholders.video).nonzero()[-1])
    return model.backbone.lm_head(model.backbone.decode(inputs).last_hidden_state)[0, last + 1 :]


def compare(
    found: dict[str, list[float]],
    vggt: VGGTEncoder,
    kept: SceneGeometry,
    exact: SceneGeometry,
    size_hw: tuple[int, int],
) -> None:
    assert kept.patches is not None and exact.patches is not None
    found["3D tokens: RMS error over RMS"].append(rms(kept.patches.float() - exact.patches) / rms(exact.patches))
    for name, pair in {
        "cameras as kept": (kept.world_to_camera, exact.world_to_camera),
        "cameras from kept tokens": (cameras_of(vggt, kept, size_hw), cameras_of(vggt, exact, size_hw)),
    }.items():
        angle, distance = pose_distance(*(poses.double() for poses in pair if poses is not None))
        assert exact.world_to_camera is not None
        spread = invert_se3(exact.world_to_camera.double())[:, :3, 3].std(0).norm()
        found[f"{name}: rotation, degrees, median"] += (angle * 180 / math.pi).tolist()
        found[f"{name}: rotation, degrees, largest"] += (angle * 180 / math.pi).tolist()
        found[f"{name}: center over the centers' spread, median"] += (distance / spread).tolist()


def cameras_of(vggt: VGGTEncoder, scene: SceneGeometry, size_hw: tuple[int, int]) -> Tensor:
    """Return the poses that the camera head computes from the scene's camera tokens."""
    assert scene.camera_tokens is not None and vggt.vggt.camera_head is not None
    return pose_encoding_to_cameras(vggt.vggt.camera_head(scene.camera_tokens.float()[None])[-1], size_hw)[0][0]


def compare_logits(found: dict[str, list[float]], kept: Tensor, exact: Tensor) -> None:
    found["logits: RMS error over standard deviation"].append(rms(kept - exact) / float(exact.std()))
    found["logits: KL divergence, nats, mean"] += (
        F.kl_div(kept.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none").sum(-1).tolist()
    )
    found["logits: most likely token another, share"] += (kept.argmax(-1) != exact.argmax(-1)).float().tolist()


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def summary(row: str, values: list[float]) -> float:
    if "largest" in row:
        return max(values)
    return statistics.median(values) if "median" in row else statistics.fmean(values)


if __name__ == "__main__":
    main()
