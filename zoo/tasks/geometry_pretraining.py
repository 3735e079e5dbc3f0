"""Pretraining of VGGT and Pi3X: targets, losses and errors (section 3.4 of arXiv 2503.11651, without tracks).

Targets are in the frame of the first camera, in units of the mean distance of the scene's points from it. VGGT
therefore learns the shape of a scene but not its metric size. Pi3X predicts meters, which are divided by the true unit
before they are compared, so it learns the size as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.cameras.rays import pixel_center_intrinsics, unproject_depth
from zoo.errors import InputError
from zoo.files.atomic_io import write_whole
from zoo.geometry.base import PretrainableEncoder, SceneGeometry, same_shape
from zoo.geometry.layers import select_frames
from zoo.geometry.vggt import VGGTOutput, cameras_to_pose_encoding, pose_encoding_to_cameras
from zoo.geometry.vggt_encoder import TinyVGGT
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch
from zoo.tasks.base import LearningRates, Task, WarmupCosine, fused_adamw
from zoo.weights.load import WEIGHTS

ALPHA = 0.2  # weight of the log confidence, as in DUSt3R (arXiv 2312.14132)
HUBER = 0.1  # radians, or units of the scene
REFINEMENT_DECAY = 0.6  # weight of a refinement step of the camera head relative to the next


@dataclass(eq=False)
class Targets:
    """Normalized ground truth of B scenes of S frames, see the module. `unit` is the unit of each in meters."""

    pose_enc: Float[Tensor, "B S 9"]
    depth: Float[Tensor, "B dense H W"]
    points: Float[Tensor, "B dense H W 3"]
    known: Bool[Tensor, "B dense H W"]
    unit: Float[Tensor, " B"]

    def dense_of(self, frames: Int[Tensor, "B chosen"]) -> Targets:
        """Select the frames of each scene's dense maps."""
        depth, points, known = (select_frames(each, frames) for each in (self.depth, self.points, self.known))
        return Targets(self.pose_enc, depth, points, known, self.unit)


def targets(scenes: Sequence[SceneGeometry]) -> Targets:
    """Normalize the dataset's geometry of scenes with the same shape. Returns float32.

    Raises:
        ValueError: A scene has no pixel with known depth.
    """
    for scene in scenes:
        assert scene.world_to_camera is not None and scene.depth is not None  # ensured by `ModelSpec`
    depth = torch.stack([scene.depth for scene in scenes if scene.depth is not None]).float()
    poses = torch.stack([scene.world_to_camera for scene in scenes if scene.world_to_camera is not None]).double()
    K = torch.stack([scene.K_normalized for scene in scenes if scene.K_normalized is not None]).double()
    height, width = depth.shape[-2:]
    poses = poses @ invert_se3(poses[:, :1])
    K_px = intrinsics_in_pixels(K, width, height)
    points = unproject_depth(depth[..., None], poses.float(), pixel_center_intrinsics(K_px).float())

    known = depth > 0
    count = known.flatten(1).sum(1)
    if not count.all():
        raise ValueError("pretraining learns from depth: this scene has no pixel of it")
    unit = (points.norm(dim=-1) * known).flatten(1).sum(1) / count
    poses[..., :3, 3] /= unit[:, None, None]
    return Targets(
        cameras_to_pose_encoding(poses, K_px, (height, width)).float(),
        depth / unit[:, None, None, None],
        points / unit[:, None, None, None, None],
        known,
        unit,
    )


def losses(output: VGGTOutput, truth: Targets) -> dict[str, Float[Tensor, " B"]]:
    """Return the loss of each head that has an output, for each scene. Their sum is the loss."""
    found: dict[str, Tensor] = {}
    if output.pose_enc_list is not None:
        found["camera"] = camera_loss(output.pose_enc_list, truth.pose_enc)
    if output.depth is not None and output.depth_conf is not None:
        found["depth"] = dense_loss(output.depth, output.depth_conf, truth.depth[..., None], truth.known)
    if output.points is not None and output.points_conf is not None:
        found["points"] = dense_loss(output.points, output.points_conf, truth.points, truth.known)
    return found


def camera_loss(steps: Float[Tensor, "steps B S 9"], truth: Float[Tensor, "B S 9"]) -> Float[Tensor, " B"]:
    """Huber loss of the pose encodings, with larger weights for later refinement steps."""
    weights = REFINEMENT_DECAY ** torch.arange(len(steps) - 1, -1, -1, device=steps.device)
    off = F.huber_loss(steps, truth.expand_as(steps), reduction="none", delta=HUBER) / HUBER  # slope 1 for large errors
    each = off.sum(-1).mean(2)
    return (weights[:, None] * each).sum(0) / weights.sum()


def dense_loss(
    values: Float[Tensor, "B S H W C"],
    confidence: Float[Tensor, "B S H W"],
    truth: Float[Tensor, "B S H W C"],
    known: Bool[Tensor, "B S H W"],
) -> Float[Tensor, " B"]:
    """Confidence-weighted distance of values and of their spatial gradients, minus alpha log confidence.

    Each term is a mean over the pixels of a scene with a known value. For gradients both neighbors must be known.
    Confidence models aleatoric uncertainty (Kendall & Gal 2017, arXiv 1703.04977).
    """
    loss = _mean(confidence * (values - truth).norm(dim=-1) - ALPHA * confidence.log(), known)
    for axis in (2, 3):
        size = values.shape[axis] - 1
        off = (values.diff(dim=axis) - truth.diff(dim=axis)).norm(dim=-1)
        both = known.narrow(axis, 0, size) & known.narrow(axis, 1, size)
        loss = loss + _mean(confidence.narrow(axis, 0, size) * off, both)
    return loss


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)


def errors(output: VGGTOutput, truth: Targets) -> dict[str, Float[Tensor, " B"]]:
    """Return the errors of each scene, for the heads that have an output.

    Returns:
        rotation_deg: angle between predicted and true rotation relative to the first frame, mean over the others.
        center: distance of predicted and true camera center, mean over the same frames, in units of the points' mean
        distance.
        depth_relative: |predicted - true| / true, mean over the known pixels.
    """
    found: dict[str, Tensor] = {}
    height, width = truth.depth.shape[-2:]
    if output.pose_enc is not None and truth.pose_enc.shape[1] > 1:
        true, _ = pose_encoding_to_cameras(truth.pose_enc, (height, width))
        poses, _ = pose_encoding_to_cameras(output.pose_enc, (height, width))
        poses = poses.double()  # autocast would compute a product of float32 in half precision
        relative = poses @ invert_se3(poses[:, :1])
        angle, distance = (each.float() for each in pose_distance(relative, true.double()))
        found["rotation_deg"], found["center"] = angle[:, 1:].mean(1).rad2deg(), distance[:, 1:].mean(1)
    if output.depth is not None:
        relative = (output.depth[..., 0] - truth.depth).abs() / torch.where(truth.known, truth.depth, 1)
        known = truth.known.flatten(1)
        found["depth_relative"] = (relative.flatten(1) * known).sum(1) / known.sum(1)
    return found


def constant_baseline(truth: Targets) -> VGGTOutput:
    """A baseline for `errors` that ignores the frames: a static camera, and the median true depth everywhere."""
    still = torch.zeros_like(truth.pose_enc)
    still[..., 6] = 1  # w of the quaternion
    still[..., 7:] = truth.pose_enc[..., 7:]
    median = truth.depth[truth.known].median()
    return VGGTOutput({}, 0, pose_enc=still, depth=torch.full_like(truth.depth, float(median))[..., None])


# ---- What pretrainings of a geometry encoder have in common ----------------------------------------------------------


class Pretraining(Task):
    """Train a geometry encoder on scenes without questions.

    At the end of `fit` it writes model.safetensors with the official names to the run's folder. Validation logs means
    over scenes: errors of the model, and of baselines that it must beat.

    Args:
        geometry: The encoder.
        learning_rates: Only the rate of the geometry is used.
        optimizer: Builds the optimizer from the parameter groups.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps. It is stepped once per
            optimizer step.

    Attributes:
        baselines: Prefixes of the errors' names, and what they are errors of. The model's own prefix is empty.
        errors: Names of the errors, and how each is printed.
    """

    answers_questions = False
    baselines: ClassVar[Mapping[str, str]]
    errors: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        geometry: PretrainableEncoder,
        learning_rates: LearningRates,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
    ) -> None:
        super().__init__(learning_rates, optimizer, scheduler)
        if "geometry" in learning_rates.frozen():
            raise InputError("--model.learning_rates.geometry: without a rate nothing is trained")
        self.geometry = geometry

    def part_of(self, name: str) -> str:
        return "geometry"

    def check_scenes(self, batch: Batch) -> None:
        """Raise InputError if a scene can't be used, or a frame has no camera."""
        self.check(batch)
        for scene in batch.scenes:
            has_camera = None if scene.target_geometry is None else scene.target_geometry.has_camera
            if has_camera is not None and not has_camera.all():
                raise InputError(f"{scene.name}: a frame has no camera, and pretraining learns from that of each frame")

    def mean_loss(self, batch: Batch, groups: Iterable[tuple[Mapping[str, Float[Tensor, " B"]], list[int]]]) -> Tensor:
        """Log and return the loss, in which each scene counts by its number of questions (`QuestionAverage`).

        Args:
            batch: The batch.
            groups: The losses of some scenes by name, with the numbers of these scenes. Their sum is the loss.
        """
        count = sum(batch.num_answers)
        total: dict[str, Tensor] = {}
        for found, members in groups:
            for name, each in found.items():
                for number, loss in zip(members, each, strict=True):
                    total[name] = total.get(name, 0.0) + loss * batch.num_answers[number] / max(count, 1)
        loss = torch.stack(list(total.values())).sum()
        if not count:  # a repeated batch that only keeps this process in step
            return loss
        self.log("train/loss", loss, batch_size=count)
        self.log_dict({f"train/{name}": value for name, value in total.items()}, batch_size=count)
        return batch.weight * loss

    @property
    def measured(self) -> list[str]:
        """Names of all errors."""
        return [f"{who}{name}" for who in self.baselines for name in self.errors]

    def on_validation_epoch_start(self) -> None:
        """Reset the errors."""
        self._sums = torch.zeros(len(self.measured), 2, device=self.device)  # sum and number of scenes for each error

    def count_errors(self, found: Mapping[str, Float[Tensor, " B"]]) -> None:
        """Add the errors of some scenes by name."""
        for name, each in found.items():
            total = self._sums[self.measured.index(name)]
            total[0] += each.sum()
            total[1] += len(each)

    def on_validation_epoch_end(self) -> None:
        """Log the means over the scenes of all processes. Some processes may have no scene."""
        stage = "test" if self.trainer.testing else "val"
        sums: Any = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = zip(self.measured, sums.tolist(), strict=True)
        self.log_dict({f"{stage}/{name}": total / count for name, (total, count) in means if count})

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Accumulate errors. Return no prediction records."""
        raise NotImplementedError

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """See `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def on_validation_end(self) -> None:
        """Print the errors beside those of the baselines."""
        logged = self.trainer.callback_metrics
        stage = "test" if self.trainer.testing else "val"
        for who, title in self.baselines.items():
            names = {f"{stage}/{who}{name}": text for name, text in self.errors.items()}
            errors_of = [text.format(float(logged[name])) for name, text in names.items() if name in logged]
            self.print(f"{title or stage}: {', '.join(errors_of)}")

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end
    on_test_end = on_validation_end

    @rank_zero_only
    def on_train_end(self) -> None:
        """Write the weights with official names."""
        weights = Path(self.trainer.default_root_dir) / WEIGHTS
        write_whole(weights, save({k: v.cpu() for k, v in self.geometry.official_state_dict().items()}))
        self.print(f"wrote {weights}")


def drawn_order(seed: int, count: int) -> Int[Tensor, " count"]:
    """Return a random order of a scene's frames."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


# ---- Pretrains on scenes with cameras and depth: `python main.py fit --config geometry_tiny.yaml` --------------------

RATES = LearningRates(geometry=1e-3)


def adamw(parameters: Any) -> Optimizer:
    """Return AdamW with the weight decay for a small model on little data."""
    return fused_adamw(parameters, weight_decay=0.05)


class GeometryPretraining(Pretraining):
    """Train a VGGT or a Pi3X with VGGT's losses (`zoo.tasks.geometry_pretraining`) on the dataset's cameras and depth.

    At the end of `fit` it writes model.safetensors with the official names to the run's folder, for
    `TinyVGGT(path=<run>)` or `TinyPi3X(path=<run>)`. VGGT learns the shape of a scene but not its metric size. A model
    that needs the size uses the dataset's cameras (`DatasetGeometry`, or a camera encoding). Each condition of a Pi3X
    is left out of half of the scenes in training, and of none in validation.

    It logs `val/rotation_deg`, `val/center` and `val/depth_relative`, see `errors`. The errors of `constant_baseline`
    are logged as `val/unlearned/...`.

    Args:
        geometry: The encoder to train, with all of its heads. The default is a `TinyVGGT` with all three heads.
        dense_frames: Number of frames per scene with dense losses (depth and points), drawn anew in each epoch. The
            camera loss uses all frames. The dense heads cost as much as the rest of the model.
        learning_rates: Only the rate of the geometry is used.
        optimizer: Builds the optimizer from the parameter groups.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps. It is stepped once per
            optimizer step.
    """

    baselines: ClassVar[Mapping[str, str]] = {
        "": "",
        "unlearned/": "a camera that stays where it is, one depth everywhere",
    }
    errors: ClassVar[Mapping[str, str]] = {
        "rotation_deg": "rotation off by {:.1f} degrees",
        "center": "camera centers by {:.3f} of the points' mean distance",
        "depth_relative": "depth by {:.1%}",
    }

    def __init__(
        self,
        geometry: PretrainableEncoder | None = None,
        dense_frames: int = 4,
        learning_rates: LearningRates = RATES,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
    ):
        if dense_frames < 1:
            raise InputError(f"--model.dense_frames {dense_frames}: must be at least 1")
        encoder = geometry or TinyVGGT(heads=("camera", "depth", "point"))
        super().__init__(encoder, learning_rates, optimizer, scheduler)
        if not self.geometry.trained_heads:
            raise InputError(
                f"--model.geometry {type(self.geometry).__name__}: it lacks heads that pretraining needs: use TinyVGGT "
                '(--model.geometry.heads "[camera, depth, point]") or TinyPi3X'
            )
        self.dense_frames = dense_frames

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        return ModelSpec(requires_cameras=True, requires_depth=True, requires_frames=True)

    def _outputs(self, batch: Batch, dense_frames: int | None = None) -> list[tuple[VGGTOutput, Targets, list[int]]]:
        """Return the encoder's outputs, the targets and the scene numbers, one group per frame shape.

        With `dense_frames`, as in training, dense maps cover only that many frames per scene.

        Raises:
            InputError: A frame has no camera.
        """
        self.check_scenes(batch)
        frames = [scene.frames for scene in batch.scenes if scene.frames is not None]
        pairs = []
        for members in same_shape(frames):
            images = torch.stack([frames[i] for i in members])
            scenes = [batch.scenes[i] for i in members]
            given = [scene.geometry for scene in scenes]
            true = [geometry for scene in scenes if (geometry := scene.target_geometry) is not None]
            truth, chosen, draws = targets(true), None, None
            if dense_frames is not None:
                draws = [scene.draw for scene in scenes]
                chosen = torch.stack([drawn_order(draw, images.shape[1])[:dense_frames] for draw in draws])
                chosen = chosen.to(images.device, non_blocking=True)
                truth = truth.dense_of(chosen)
            output = self.geometry.training_output(images.float() / 255, given, chosen, draws)
            if self.geometry.is_metric:
                output = output.in_units(truth.unit)
            pairs.append((output, truth, members))
        return pairs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, see `mean_loss`."""
        outputs = self._outputs(batch, self.dense_frames)
        return self.mean_loss(batch, [(losses(output, truth), members) for output, truth, members in outputs])

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Accumulate errors of the model and of `constant_baseline`. Return no prediction records."""
        for output, truth, _ in self._outputs(batch):
            found, unlearned = errors(output, truth), errors(constant_baseline(truth), truth)
            self.count_errors(found | {f"unlearned/{name}": unlearned[name] for name in found})
        return []
