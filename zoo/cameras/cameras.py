"""Cameras, and the pose and intrinsics conventions of the whole project.

Poses are world-to-camera, x_camera = V x_world, with OpenCV axes (x right, y down, z forward), in meters where the
source is metric. Intrinsics are normalized by the image size, without skew: fx/W, fy/H, cx/W - 1/2, cy/H - 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras.poses import intrinsics_power, invert_se3, pose_distance, rigid_matrix, rotation_power
from zoo.errors import check_choice
from zoo.precision import full_precision, to_float32
from zoo.values import Movable

ADDED_BY = {
    "index": "pass an index (B, L) to Cameras",
    "reference": "saddle_balanced is computed from 2D tokens: pass balanced_views to with_reference",
    "median_depth": "call with_median_depth",
    "patch_centers": "pass Sequences.patch_centers to with_tokens",
    "patch_sizes": "pass Sequences.patch_sizes to with_tokens",
    "points": "pass points to with_tokens",
    "time": "pass time to with_tokens",
}


class Cameras(Movable):
    """The cameras of a batch, and the camera of each token.

    Tensors are kept in float32 or float64. The constructor's checks read values, which makes the host wait for a GPU.
    `trusted` skips them.

    Args:
        world_to_camera: Rigid poses, see the module docstring. Poses of a row share one world, so the poses of two
            scenes in one sequence are related to each other. Packed scenes (`pack_scenes`) do not see each other.
        K_normalized: Intrinsics normalized by the image size, see `normalize_intrinsics`.
        index: The camera of each token. -1 for tokens without a camera (text, padding, views without a camera).

    Raises:
        ValueError: Shapes are inconsistent, values are not finite, or an index is out of range.

    Example:
        >>> import torch
        >>> from zoo.cameras import normalize_intrinsics
        >>> poses = torch.eye(4).repeat(1, 2, 1, 1)
        >>> poses[:, :, 0, 3] = torch.tensor([0.0, -0.5])  # the second camera is 0.5 m to the right of the first
        >>> K = normalize_intrinsics(torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]), 640, 480)
        >>> cameras = Cameras(poses, K.expand(1, 2, 3, 3), torch.tensor([[-1, 0, 0, 1, 1, -1]]))
        >>> cameras.canonical("middle").world_to_camera[0, :, 0, 3].tolist()
        [0.5, 0.0]
    """

    def __init__(
        self,
        world_to_camera: Float[Tensor, "B C 4 4"],
        K_normalized: Float[Tensor, "B C 3 3"],
        index: Int[Tensor, "B L"] | None = None,
    ) -> None:
        shape, K_shape = tuple(world_to_camera.shape), tuple(K_normalized.shape)
        if len(shape) != 4 or shape[2:] != (4, 4) or K_shape != (*shape[:2], 3, 3):
            raise ValueError(f"cameras need shapes (B, C, 4, 4) and (B, C, 3, 3), got {shape} and {K_shape}")
        if not (world_to_camera.isfinite().all() and K_normalized.isfinite().all()):
            raise ValueError("cameras contain NaN or infinite values: leave out the views without a pose")
        self._set(world_to_camera, K_normalized, None if index is None else self._checked(index, *shape[:2]))

    @classmethod
    def trusted(
        cls,
        world_to_camera: Float[Tensor, "B C 4 4"],
        K_normalized: Float[Tensor, "B C 3 3"],
        index: Int[Tensor, "B L"] | None = None,
        token_runs: CameraRuns | None = None,
    ) -> Cameras:
        """Create cameras without checks, from values that were checked on the host.

        Args:
            world_to_camera: See the class.
            K_normalized: See the class.
            index: See the class.
            token_runs: `camera_runs` of the same index, or of one with more cameras. Cameras that are left out here
                must be identities.
        """
        cameras = cls.__new__(cls)
        cameras._set(world_to_camera, K_normalized, index, token_runs)
        return cameras

    def _set(
        self, world_to_camera: Tensor, K_normalized: Tensor, index: Tensor | None, token_runs: CameraRuns | None = None
    ) -> None:
        dtype = torch.promote_types(world_to_camera.dtype, K_normalized.dtype)
        self.world_to_camera = to_float32(world_to_camera.to(dtype))
        self.K_normalized = to_float32(K_normalized.to(dtype))
        self.reference: Int[Tensor, " B"] | None = None
        self.median_depth: Float[Tensor, " B"] | None = None
        self.index: Int[Tensor, "B L"] | None = None if index is None else index.to(world_to_camera.device)
        self.token_runs = token_runs
        self.patch_centers: Float[Tensor, "B L 2"] | None = None
        self.patch_sizes: Float[Tensor, "B L 2"] | None = None
        self.points: Float[Tensor, "B L 3"] | None = None
        self.time: Float[Tensor, "B L"] | None = None

    def __len__(self) -> int:
        """Return B, the batch size."""
        return len(self.world_to_camera)

    def __getitem__(self, samples: Any) -> Cameras:
        """Select samples by a slice, a mask, or a tensor or list of integers."""
        return self._replaced(token_runs=None).map(lambda tensor: tensor[samples])

    def span(self, first: Int[Tensor, " B"] | int, count: int) -> Cameras:
        """Select `count` consecutive cameras of each sample, and drop the tensors per token.

        A sample with fewer cameras repeats its last one.
        """
        sample, view = self.spanned(first, count)
        return self._replaced(
            world_to_camera=self.world_to_camera[sample, view],
            K_normalized=self.K_normalized[sample, view],
            reference=None if self.reference is None else (self.reference - view[:, 0]).clamp(0, count - 1),
            **dict.fromkeys(("index", "token_runs", "patch_centers", "patch_sizes", "points", "time")),
        )

    def spanned(self, first: Int[Tensor, " B"] | int, count: int) -> tuple[Int[Tensor, "B 1"], Int[Tensor, "B count"]]:
        """Return the indices (sample, view) of the cameras that `span` selects."""
        batch, num_cameras = self.world_to_camera.shape[:2]
        device = self.world_to_camera.device
        start = torch.as_tensor(first, device=device).expand(batch)
        view = start[:, None] + torch.arange(count, device=device)
        return torch.arange(batch, device=device)[:, None], view.clamp(max=num_cameras - 1)

    def to(  # type: ignore[override]
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> Cameras:
        """Move or cast the tensors. Half precision is replaced by float32."""
        dtype = None if dtype is None else torch.promote_types(dtype, torch.float32)
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else None, non_blocking=non_blocking))

    def with_index(self, index: Int[Tensor, "B L"]) -> Cameras:
        """Return the same cameras with the camera of each token, see the class."""
        checked = self._checked(index, *self.world_to_camera.shape[:2])
        return self._replaced(index=checked.to(self.world_to_camera.device), token_runs=None)

    @staticmethod
    def _checked(index: Tensor, batch: int, num_cameras: int) -> Tensor:
        if index.ndim != 2 or len(index) != batch:
            raise ValueError(f"the camera index needs shape (B={batch}, L), got {tuple(index.shape)}")
        if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < num_cameras:
            raise ValueError(
                f"the camera index ranges from {int(index.min())} to {int(index.max())}, "
                f"but there are {num_cameras} cameras per sample (-1 means none)"
            )
        return index

    def with_token_runs(self, index: Int[Tensor, "B L"], token_runs: CameraRuns | None) -> Cameras:
        """Return the same cameras with the camera of each token, without checks, see `trusted`."""
        return self._replaced(index=index, token_runs=token_runs)

    def required(self, name: str) -> Tensor:
        """Return a tensor that another method adds.

        Raises:
            ValueError: The tensor was not added.
        """
        if (value := getattr(self, name)) is None:
            raise ValueError(f"these cameras have no {name.replace('_', ' ')}: {ADDED_BY[name]}")
        return value

    def with_tokens(
        self,
        patch_centers: Float[Tensor, "B L 2"] | None = None,
        points: Float[Tensor, "B L 3"] | None = None,
        time: Shaped[Tensor, "B L"] | None = None,
        patch_sizes: Float[Tensor, "B L 2"] | None = None,
    ) -> Cameras:
        """Return the same cameras with tensors per token, for encodings that read them.

        Args:
            patch_centers: Center of each token in its view, see `zoo.sequences.batch.Sequences.patch_centers`.
            points: 3D point of each token, in the world frame and unit of the poses. NaN where unknown.
            time: Position of each token on mRoPE's T axis.
            patch_sizes: Width and height of each token in its view, see `Sequences.patch_sizes`.
        """
        given = {"patch_centers": patch_centers, "patch_sizes": patch_sizes, "points": points, "time": time}
        return self._replaced(**{name: x.to(self.world_to_camera) for name, x in given.items() if x is not None})

    def with_poses(self, world_to_camera: Float[Tensor, "B C 4 4"]) -> Cameras:
        """Return the same cameras with other poses, without checks."""
        return self._replaced(world_to_camera=world_to_camera)

    def with_reference(self, reference: Int[Tensor, " B"]) -> Cameras:
        """Return the same cameras with the `saddle_balanced` view of each sample, see `balanced_views`."""
        return self._replaced(reference=reference.to(self.world_to_camera.device))

    def with_median_depth(self, median_depth: Float[Tensor, " B"]) -> Cameras:
        """Return the same cameras with the median depth of each sample, in the unit of the poses."""
        return self._replaced(median_depth=median_depth.to(self.world_to_camera))

    def used_mask(self) -> Bool[Tensor, "B C"]:
        """Return a mask of the cameras that some token has. Without an index all cameras are used."""
        batch, num_cameras = self.world_to_camera.shape[:2]
        if self.index is None:
            return torch.ones(batch, num_cameras, dtype=torch.bool, device=self.world_to_camera.device)
        used = torch.zeros(batch, num_cameras + 1, dtype=torch.bool, device=self.index.device)
        return used.scatter(1, self.index + 1, True)[:, 1:]

    def reference_view(self, reference: ReferenceView | Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the reference view of each sample, one of its used cameras.

        Args:
            reference: `first` or `middle` used camera; `medoid`, with the smallest sum of distances to the others,
                measured as angle (radians) plus center distance (in units of the mean distance); `saddle_balanced`, the
                `reference` of these cameras; or indices.

        Raises:
            ValueError: The name is unknown, or `saddle_balanced` is requested for cameras without a `reference`.
        """
        if isinstance(reference, Tensor):
            return reference
        check_choice("reference", reference, ReferenceView)
        if reference == "saddle_balanced":
            return self.required("reference")
        return choose_view(self.world_to_camera, self.used_mask(), reference)

    def canonical(self, reference: ReferenceView | Int[Tensor, " B"] | None = "first") -> Cameras:
        """Express the cameras in the frame of a reference view: V V_ref^-1, composed in float64 and cast back.

        The pose of the reference view becomes exactly the identity. Canonical cameras are invariant to a change of
        world V -> V G. So is text, which has no camera and therefore sees the world frame.

        Args:
            reference: See `reference_view`. None keeps the world frame.
        """
        if reference is None:
            return self
        view = self.reference_view(reference).to(self.world_to_camera.device)
        sample = torch.arange(len(view), device=view.device)
        poses = self.world_to_camera.double()
        relative = poses @ invert_se3(poses[sample, view])[:, None]
        relative[sample, view] = torch.eye(4, dtype=relative.dtype, device=relative.device)
        rotation, translation = poses[sample, view, :3, :3].mT, poses[sample, view, None, :3, 3]
        return self._moved(relative, lambda points: points @ rotation + translation)

    def scaled(self, scale: Scale) -> Cameras:
        """Divide translations and points by a length per sample, at least `SCALE_FLOOR`.

        Args:
            scale: The `mean`, `max` or `rms` distance of the used camera centers from their mean, or the `median_depth`
                of these cameras. `none` keeps the unit, such as meters.

        Raises:
            ValueError: The name is unknown, or `median_depth` is requested for cameras without it.
        """
        check_choice("scale", scale, Scale)
        if scale == "none":
            return self
        if scale == "median_depth":
            unit = self.required("median_depth").double()
        else:
            unit = spread_of_centers(self.world_to_camera, self.used_mask(), scale)
        unit = unit.clamp(min=SCALE_FLOOR)[:, None, None]
        poses = self.world_to_camera.to(torch.float64, copy=True)
        poses[..., :3, 3] /= unit
        return self._moved(poses, lambda points: points / unit)

    def powers(
        self,
        rotations: Float[Tensor, "*#cameras"],
        translations: Float[Tensor, "*#cameras"],
        intrinsics: Float[Tensor, "*#cameras"],
    ) -> Cameras:
        """Return cameras between identities, at exponents 0, and these, at 1: R^a, a t and K^a, computed in float64.

        They depend on the world frame, so make the cameras `canonical` first. Cameras that no token has become
        identities, because their invalid values would give NaN gradients. Tensors per token are unchanged.

        Args:
            rotations: Exponent a of the rotations, see `rotation_power`. It is broadcast to the cameras (B, C).
            translations: Factor of the translations.
            intrinsics: Exponent of the intrinsics, see `intrinsics_power`.
        """
        used = self.used_mask()[..., None, None]
        poses, K = (
            x.double().where(used, torch.eye(x.shape[-1], dtype=torch.float64, device=x.device))
            for x in (self.world_to_camera, self.K_normalized)
        )
        R, t = rotation_power(poses[..., :3, :3], rotations), translations.double()[..., None] * poses[..., :3, 3]
        return self._replaced(
            world_to_camera=rigid_matrix(R, t).to(self.world_to_camera.dtype),
            K_normalized=intrinsics_power(K, intrinsics).to(self.K_normalized.dtype),
        )

    def _moved(self, world_to_camera: Tensor, move: Callable[[Tensor], Tensor]) -> Cameras:
        """Replace the poses and move known points, keeping their dtypes."""
        changed = {"world_to_camera": world_to_camera.to(self.world_to_camera.dtype)}
        if self.points is not None:
            known = self.points.isfinite().all(-1, keepdim=True)
            # replaces NaN, because 0 times NaN gives NaN gradients
            moved = move(self.points.double().where(known, 0.0))
            changed["points"] = moved.where(known, torch.nan).to(self.points.dtype)
        return self._replaced(**changed)

    def _replaced(self, **tensors: Tensor | CameraRuns | None) -> Cameras:
        other = copy(self)
        vars(other).update(tensors)
        return other


# ---- The reference view, whose frame is the world of a clip, and the unit of translations ----------------------------

SCALE_FLOOR = 1e-2  # smallest length to divide by, in the unit of the poses, for a static camera
FEWEST_VIEWS = 3  # minimum number of views for choosing a balanced view, otherwise the first
SMALLEST_RANGE = 1e-8  # added to the range of a measure over the views

ReferenceView = Literal["first", "middle", "medoid", "saddle_balanced"]
Scale = Literal["none", "mean", "max", "rms", "median_depth"]


def choose_view(
    world_to_camera: Float[Tensor, "B C 4 4"],
    used: Bool[Tensor, "B C"],
    reference: Literal["first", "middle", "medoid"],
) -> Int[Tensor, " B"]:
    """Choose one of the used cameras of each sample by their poses, see `Cameras.reference_view`."""
    if reference == "first":
        return used.int().argmax(1)
    if reference == "middle":
        return (used.cumsum(1) > used.sum(1, keepdim=True) // 2).int().argmax(1)
    poses = world_to_camera.double()
    angle, distance = pose_distance(poses[:, :, None], poses[:, None])
    pairs = used[:, :, None] & used[:, None]
    mean = (distance * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    cost = ((angle + distance / mean.clamp(min=SCALE_FLOOR)[:, None, None]) * pairs).sum(2)
    cost = cost.masked_fill(~used, torch.inf)
    # the tolerance keeps rounding from deciding between equally good views, such as the only two
    return (cost <= cost.amin(1, keepdim=True) * (1 + 1e-6) + 1e-9).int().argmax(1)


@torch.no_grad()
def saddle_balanced(
    tokens: Float[Tensor, "*batch S C"], present: Bool[Tensor, "*batch S"] | None = None
) -> Int[Tensor, "*batch"]:
    """Choose the most average view by one token per view, as Depth Anything 3 (arXiv 2511.10647) does.

    Three measures per view are scaled to 0 ... 1 over the views: its mean cosine similarity to the others, the norm of
    its token, and the variance of the normalized token over channels. The view with the smallest sum of distances to
    1/2 is chosen. Depth Anything 3 uses DINOv2's class tokens before views attend to each other. Vision encoders
    without a class token are represented by a view's mean 2D token.

    Args:
        tokens: One per view.
        present: The views to choose from. None is all. With fewer than three, the first is chosen.
    """
    known = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device) if present is None else present
    count = known.sum(-1)
    with full_precision(tokens.device):  # the reference view determines the world frame
        tokens = to_float32(tokens)
        unit = F.normalize(tokens, dim=-1)
        similarity = unit @ unit.mT - torch.eye(tokens.shape[-2], dtype=tokens.dtype, device=tokens.device)
        mean_similarity = (similarity * known[..., None, :]).sum(-1) / (count[..., None] - 1)
        measures = torch.stack((mean_similarity, tokens.norm(dim=-1), unit.var(-1)))
        low = measures.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        high = measures.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
        extremeness = ((measures - low) / (high - low + SMALLEST_RANGE) - 0.5).abs().sum(0)
    chosen = extremeness.masked_fill(~known, torch.inf).argmin(-1)
    return torch.where(count < FEWEST_VIEWS, known.int().argmax(-1), chosen)


def balanced_views(
    rows: Sequence[Sequence[Float[Tensor, "_t D"]]], has_camera: Bool[Tensor, "B C"]
) -> Int[Tensor, " B"]:
    """Compute the `saddle_balanced` view of each sample from the mean 2D token of each view.

    A row has the mean tokens of the views of a sample's scenes, ordered by scene.

    Returns:
        One view per sample, for `Cameras.with_reference`. 0 for samples without views.
    """
    none = torch.zeros((), dtype=torch.long, device=has_camera.device)
    views = [torch.cat(list(row)) if row else None for row in rows]
    return torch.stack(
        [
            none if own is None else saddle_balanced(own, present[: len(own)])
            for own, present in zip(views, has_camera, strict=True)
        ]
    )


def spread_of_centers(
    world_to_camera: Float[Tensor, "B C 4 4"],
    used: Bool[Tensor, "B C"],
    scale: Literal["mean", "max", "rms"],
) -> Float[Tensor, " B"]:
    """Compute the `mean`, `max` or `rms` distance of the used camera centers from their mean, in float64."""
    used = used[..., None]
    count = used.sum(1).clamp(min=1)
    centers = invert_se3(world_to_camera.double())[..., :3, 3] * used
    distance = ((centers - (centers.sum(1) / count)[:, None]) * used).norm(dim=-1)
    if scale == "max":
        return distance.amax(1)
    if scale == "rms":
        square = distance.square().sum(1) / count[:, 0]
        return square.clamp(min=SCALE_FLOOR**2).sqrt()  # clamped before the root, whose gradient at 0 is infinite
    return distance.sum(1) / count[:, 0]


# ---- Runs of adjacent tokens with a camera, known to the host --------------------------------------------------------

SHORT = 128  # tokens; a CPU gathers shorter runs, which costs a copy but saves a call per run


class CameraRuns(Movable):
    """The places of tokens with a camera in a flattened batch, in parts of equal length with one camera each.

    Attributes:
        runs: Runs of adjacent tokens.
        numbers: The indices of all tokens with a camera. None if they are one run, or there are none.
        step: Length of the parts. It divides each run.
        firsts: Index of the first token of each part, over all runs.
        is_static: Whether the host knows that no sample has tokens with different poses.
        views: Runs of adjacent tokens with one camera.
    """

    def __init__(
        self,
        runs: list[slice],
        numbers: Int[Tensor, " N"] | None,
        step: int,
        firsts: Int[Tensor, " parts"],
        is_static: bool,
        views: list[slice],
    ) -> None:
        self.runs, self.numbers, self.step, self.firsts, self.is_static = runs, numbers, step, firsts, is_static
        self.views = views

    def with_one_camera_per_token(self) -> CameraRuns:
        """Return the same runs, with a separate camera for each token."""
        each = [torch.arange(run.start, run.stop, device=self.firsts.device) for run in self.runs]
        return CameraRuns(self.runs, self.numbers, 1, torch.cat([self.firsts[:0], *each]), self.is_static, self.views)

    @property
    def places(self) -> list[slice | Tensor]:
        """The runs as slices. Short runs, or several runs on a GPU, are given as one tensor of indices.

        One call for all runs keeps a GPU busy for any number of runs. Many calls do not.
        """
        return list(self.runs) if self._gathered is None else [self._gathered]

    @property
    def parts_per_run(self) -> list[int]:
        """Number of parts of each of the `places`."""
        if self._gathered is not None:
            return [len(self.firsts)]
        return [(run.stop - run.start) // self.step for run in self.runs]

    @property
    def _gathered(self) -> Int[Tensor, " N"] | None:
        if self.numbers is None or self.numbers.device.type != "cpu":
            return self.numbers
        return self.numbers if len(self.numbers) < SHORT * len(self.runs) else None


def camera_runs(index: Int[Tensor, "B L"], world_to_camera: Float[Tensor, "B C 4 4"] | None = None) -> CameraRuns:
    """Find the runs of adjacent tokens with a camera. It reads values, so call it on the host.

    Without `world_to_camera` the host does not know the poses.
    """
    on_host = index.cpu()
    sample = torch.arange(len(index))[:, None]
    # a distinct number for each camera of the batch
    camera = torch.where(on_host >= 0, (sample << 32) + on_host, -1).flatten()
    # 1. Runs and their parts.
    cameras, counts = camera.unique_consecutive(return_counts=True)
    step = math.gcd(*counts[cameras >= 0].tolist())
    tokens = (camera >= 0).nonzero()[:, 0]
    runs = [run for run in tokens.tensor_split((tokens.diff() > 1).nonzero()[:, 0] + 1) if len(run)]
    firsts = torch.cat([tokens[:0], *(run[::step] for run in runs)])
    slices = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
    ends = counts.cumsum(0)
    shown = torch.stack((ends - counts, ends), 1)[cameras >= 0].tolist()
    # 2. Whether a camera has another pose than the one before it in the same sample.
    sample, number = camera[firsts] >> 32, on_host.flatten()[firsts]
    pose = number[:, None] if world_to_camera is None else world_to_camera.cpu()[sample, number].flatten(1)
    differs = (pose[1:] != pose[:-1]).any(1) & (sample[1:] == sample[:-1])
    views = [slice(start, stop) for start, stop in shown]
    made = CameraRuns(slices, tokens if len(runs) > 1 else None, step, firsts, not differs.any(), views)
    return made if index.device == on_host.device else made.to(index.device)
