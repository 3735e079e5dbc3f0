"""Test whether a tiny VGGT learns cameras in minutes on a CPU, for different kinds of training frames.

    python -m timings.tiny_vggt [--steps 900] [--settings "12 frames, cameras alone"]

Each setting trains the TinyVGGT of geometry_tiny.yaml with only the camera head, for the same number of steps of 72
frames. It is validated on the same kind of frames, and at the end on 12 frames of the whole path. A camera that never
moves is the baseline. The command writes timings/tiny_vggt.json, and draws all settings in it to
timings/tiny_vggt.png.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from matplotlib.figure import Figure

from callbacks.progress import PlainProgress
from datamodules import FrameSampler, PixelBounds, RandomSampler, Rooms, UniformSampler, VideoQADataModule
from datamodules.samplers import SceneView
from zoo.geometry import TinyVGGT
from zoo.tasks import GeometryPretraining

FRAMES_PER_STEP, PATH_FRAMES, VALIDATED = 72, 12, 60  # frames per step, frames of a path, validation rooms
RESULTS = Path(__file__).with_suffix(".json")


class Neighbors(FrameSampler):
    """Choose n consecutive frames from a random start, drawn anew in every epoch."""

    def choose(self, scene: SceneView, n: int) -> list[int]:
        start = random.Random(f"{scene.epoch}/{scene.video.path.name}").randrange(len(scene.pool) - n + 1)
        return list(range(start, start + n))


SETTINGS: dict[str, dict[str, Any]] = {
    "12 frames, cameras alone": {"frames": PATH_FRAMES, "sampler": RandomSampler},
    "2 neighbors, cameras alone": {"frames": 2, "sampler": Neighbors},
}


class Curve(Callback):
    """Record the rotation errors of each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.errors_deg: list[float] = []
        self.constant_deg = float("nan")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        logged = trainer.callback_metrics
        self.steps.append(trainer.global_step)
        self.errors_deg.append(round(float(logged["val/rotation_deg"]), 2))
        self.constant_deg = round(float(logged["val/unlearned/rotation_deg"]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    for name in arguments.settings:
        measured = train(**SETTINGS[name], steps=arguments.steps)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(found | {name: measured}, indent=1) + "\n")
        print(f"{name}: {measured}", flush=True)
    draw(json.loads(RESULTS.read_text())).savefig(RESULTS.with_suffix(".png"))


def data_of(frames: int, sampler: type[FrameSampler], evaluated: type[FrameSampler]) -> VideoQADataModule:
    return VideoQADataModule(
        Rooms(),
        num_frames=frames,
        sampler=evaluated(),
        train_sampler=sampler(),
        pixels=PixelBounds(784, 65536, legacy_folder_resize=False),
        question_types=["room_size_estimation"],
        batch_size=FRAMES_PER_STEP // frames,
        num_workers=0,
        keep_in_memory=True,
    )


def train(frames: int, sampler: type[FrameSampler], steps: int) -> dict[str, Any]:
    """Return the curve of the setting's own validation, and the errors on whole paths at the end."""
    seed_everything(0, verbose=False)
    task, curve = GeometryPretraining(TinyVGGT(heads=("camera",))), Curve()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        check_val_every_n_epoch=None,
        val_check_interval=max(1, steps // 6),
        limit_val_batches=VALIDATED,
        limit_test_batches=VALIDATED,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[curve, PlainProgress()],
        default_root_dir="runs/tiny_vggt",
    )
    Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
    trainer.fit(task, data_of(frames, sampler, UniformSampler if frames == PATH_FRAMES else sampler))
    logged = trainer.test(task, data_of(PATH_FRAMES, sampler, UniformSampler), verbose=False)[0]
    paths = {"rotation_deg": logged["test/rotation_deg"], "constant_deg": logged["test/unlearned/rotation_deg"]}
    return {
        "steps": curve.steps,
        "rotation_deg": curve.errors_deg,
        "constant_deg": curve.constant_deg,
        "whole_paths": {name: round(value, 2) for name, value in paths.items()},
    }


def draw(measured: dict[str, Any]) -> Figure:
    """Draw one panel per setting: the error over the steps, and the error of a camera that never moves."""
    figure = Figure(figsize=(3.2 * len(measured), 3.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (name, curve) in zip(panels, measured.items(), strict=True):
        axes.plot(curve["steps"], curve["rotation_deg"], marker="o", label="tiny VGGT")
        axes.axhline(curve["constant_deg"], linestyle="--", color="gray", label="a camera that never moves")
        axes.set(title=name, xlabel="steps of 72 frames", ylim=(0, 1.25 * curve["constant_deg"]))
    panels[0].set_ylabel("rotation error (degrees)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
