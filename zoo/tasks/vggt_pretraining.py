"""Pretrains a VGGT on scenes with cameras and depth: `python main.py fit --config geometry_tiny.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.errors import InputError
from zoo.files.atomic_io import write_whole
from zoo.geometry import TinyVGGT, VGGTEncoder
from zoo.geometry.base import same_shape
from zoo.geometry.vggt.losses import Targets, constant_baseline, errors, losses, targets
from zoo.geometry.vggt.model import HEADS, VGGTOutput
from zoo.requirements import DataRequirements
from zoo.sequences.batch import Batch
from zoo.tasks.base import Task
from zoo.tasks.optim import LearningRates, WarmupCosine, fused_adamw
from zoo.weights.lazy_tensors import WEIGHTS

RATES = LearningRates(geometry=1e-3)
ERRORS = {
    "rotation_deg": "rotation off by {:.1f} degrees",
    "center": "camera centers by {:.3f} of the points' mean distance",
    "depth_relative": "depth by {:.1%}",
}
MEASURED = [f"{who}{name}" for who in ("", "unlearned/") for name in ERRORS]


def adamw(parameters: Any) -> Optimizer:
    """AdamW with the weight decay of a small model on little data."""
    return fused_adamw(parameters, weight_decay=0.05)


class VGGTPretraining(Task):
    """Train a VGGT with its own losses (`zoo.geometry.vggt.losses`) on the dataset's cameras and depth.

    At the end of `fit` it writes model.safetensors with the official names to the run's folder, for
    `TinyVGGT(path=<run>)`. The targets are normalized, so that VGGT learns the shape of a scene and not its size; a
    model that needs the size uses the dataset's cameras (`DatasetGeometry`, or a camera encoding).

    Logs `val/rotation_deg`, `val/center` and `val/depth_relative`, see `zoo.geometry.vggt.losses.errors`, and the same
    of `constant_baseline` as `val/unlearned/...`.

    Args:
        geometry: The encoder to train, with all of its heads; a `TinyVGGT` with all three if not given.
        dense_frames: Number of frames per scene with dense losses (depth and points), drawn anew in each epoch; the
            camera loss has all frames. The dense heads cost as much as the rest of the model.
        learning_rates: Only that of the geometry is used.
        optimizer: Called with the parameter groups.
        scheduler: Called with the optimizer and the number of optimizer steps; stepped once per optimizer step.
    """

    requirements = DataRequirements(cameras=True, depth=True, frames=True)
    answers_questions = False

    def __init__(
        self,
        geometry: VGGTEncoder | None = None,
        dense_frames: int = 4,
        learning_rates: LearningRates = RATES,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
    ):
        super().__init__(learning_rates, optimizer, scheduler)
        if "geometry" in learning_rates.frozen():
            raise InputError("--model.learning_rates.geometry: without a rate nothing is trained")
        if dense_frames < 1:
            raise InputError(f"--model.dense_frames {dense_frames}: must be at least 1")
        self.geometry = geometry or TinyVGGT(heads=("camera", "depth", "point"))
        vggt = self.geometry.vggt
        self.heads = tuple(head for head in HEADS if getattr(vggt, f"{head}_head") is not None)
        if not self.heads:
            raise InputError("--model.geometry.heads: a VGGT without heads can't be trained")
        self.dense_frames = dense_frames

    def part_of(self, name: str) -> str:
        return "geometry"

    def _outputs(self, batch: Batch, dense_frames: int | None = None) -> list[tuple[VGGTOutput, Targets, list[int]]]:
        """VGGT's outputs and targets for scenes of one shape, with dense maps of some frames, and their numbers."""
        self.check(batch)
        frames = [scene.frames for scene in batch.scenes if scene.frames is not None]
        pairs = []
        for members in same_shape(frames):
            images = torch.stack([frames[i] for i in members])
            given = [geometry for i in members if (geometry := batch.scenes[i].geometry) is not None]
            truth, chosen = targets(given), None
            if dense_frames is not None:
                chosen = torch.stack([_drawn(batch.scenes[i].draw, images.shape[1])[:dense_frames] for i in members])
                chosen = chosen.to(images.device, non_blocking=True)
                truth = truth.dense_of(chosen)
            output = self.geometry.vggt(images.float() / 255, layers=(), heads=self.heads, dense_frames=chosen)
            pairs.append((output, truth, members))
        return pairs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learn from each scene by the number of its questions, as all objectives do (`QuestionAverage`)."""
        count = sum(batch.num_answers)
        total: dict[str, Tensor] = {}
        for output, truth, members in self._outputs(batch, self.dense_frames):
            for name, each in losses(output, truth).items():
                for number, loss in zip(members, each, strict=True):
                    total[name] = total.get(name, 0.0) + loss * batch.num_answers[number] / max(count, 1)
        loss = torch.stack(list(total.values())).sum()
        if not count:  # a copy, which keeps this process in step
            return loss
        self.log("train/loss", loss, batch_size=count)
        self.log_dict({f"train/{name}": value for name, value in total.items()}, batch_size=count)
        return batch.weight * loss

    def on_validation_epoch_start(self) -> None:
        """Start without errors."""
        self._sums = torch.zeros(len(MEASURED), 2, device=self.device)  # of each error its sum and number of scenes

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Add errors, and those of `constant_baseline`; return no prediction records."""
        for output, truth, _ in self._outputs(batch):
            found, unlearned = errors(output, truth), errors(constant_baseline(truth), truth)
            for name, each in (found | {f"unlearned/{name}": unlearned[name] for name in found}).items():
                total = self._sums[MEASURED.index(name)]
                total[0] += each.sum()
                total[1] += len(each)
        return []

    def on_validation_epoch_end(self) -> None:
        """Log the means over the scenes of all processes, of which some may have none."""
        stage = "test" if self.trainer.testing else "val"
        sums: Any = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = zip(MEASURED, sums.tolist(), strict=True)
        self.log_dict({f"{stage}/{name}": total / count for name, (total, count) in means if count})

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self) -> None:
        """Print the errors beside those of the baseline."""
        logged = self.trainer.callback_metrics
        stage = "test" if self.trainer.testing else "val"
        for who, title in (("", stage), ("unlearned/", "a camera that stays where it is, one depth everywhere")):
            names = {f"{stage}/{who}{name}": text for name, text in ERRORS.items()}
            errors_of = [text.format(float(logged[name])) for name, text in names.items() if name in logged]
            self.print(f"{title}: {', '.join(errors_of)}")

    on_test_end = on_validation_end

    @rank_zero_only
    def on_train_end(self) -> None:
        """Write the weights by official names."""
        weights = Path(self.trainer.default_root_dir) / WEIGHTS
        write_whole(weights, save({k: v.cpu() for k, v in self.geometry.vggt.official_state_dict().items()}))
        self.print(f"wrote {weights}")


def _drawn(seed: int, count: int) -> Int[Tensor, " count"]:
    """A random order of the frames of a scene."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
