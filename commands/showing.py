"""A scene as a recording for the viewer rerun: see `commands.show`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import rerun as rr
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from commands.runs import LoadedRun
from datamodules.collate import QuestionCollate
from datamodules.samplers import DatasetDepth, FrameSampler, PointSource, SceneView
from datamodules.samplers.space_aware import is_portrait
from run_folder.record import PREDICTIONS
from run_folder.results import finished_tests
from zoo.cameras.poses import invert_se3
from zoo.errors import SCENE_FAULTS, InputError, describe, did_you_mean
from zoo.files.atomic_io import read_records
from zoo.tasks.video_qa import predicted_cameras

COLORS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0))  # told apart by all eyes
GUESSED = (130, 130, 130)
POINTS = 200_000  # at most
LONGEST_PX = 320  # longer side of an image
FRUSTUM = 0.06  # length of a frustum, as a share of the extent of the cameras
Poses = Float64[np.ndarray, "n 4 4"]  # camera-to-world, NaN where unknown


def place_of(run: LoadedRun, name: str | None) -> int:
    """Return the place of a scene in the run's data. None is the first one.

    Raises:
        InputError: There is no such scene.
    """
    known = [scene.name for scene in run.dataset.scenes]
    if name is None and known:
        return 0
    if name not in known:
        first = f"; the first is {known[0]}" if known else ""
        raise InputError(f"--scene {name}: none of the {len(known)} scenes{did_you_mean(str(name), known) or first}")
    return known.index(name)


def recording_of(
    run: LoadedRun, name: str | None = None, samplers: Sequence[FrameSampler] = (), points: PointSource | None = None
) -> tuple[rr.RecordingStream, list[str]]:
    """Make the recording of a scene.

    Args:
        run: The run, from `commands.explaining.load_explained`.
        name: The scene's name. None is the first scene.
        samplers: Samplers beside the run's.
        points: The source of the points. None is the dataset's depth.

    Returns:
        The recording, and notes about what is left out.

    Raises:
        InputError: There is no such scene, or it can't be read.
    """
    place = place_of(run, name)
    recording = rr.RecordingStream("spatial-vlm-zoo", recording_id=run.dataset.scenes[place].name)
    try:
        view = run.dataset.open(place)
        chosen = {"run": run.dataset.select(view)} | _chosen_by(run, view, samplers)
        poses = _poses(view)
        _log_frames(recording, view, chosen, poses)
        notes = ["path and frusta are left out: the scene has no cameras"] if poses is None else []
        if poses is not None:
            centers = poses[_known(poses), :3, 3]
            recording.log("world/path", rr.LineStrips3D([centers], colors=[GUESSED]), static=True)
        shown = sorted({frame for frames in chosen.values() for frame in frames})
        notes.append(_log_points(recording, view, shown, poses, points))
        notes.append(_log_predicted(recording, run, place, chosen["run"], poses))
    except SCENE_FAULTS as error:
        raise InputError(f"{run.dataset.scenes[place].name}: {describe(error)}") from error
    recording.log("questions", rr.TextDocument(_questions(run, place), media_type="text/markdown"), static=True)
    return recording, [note for note in notes if note]


def _chosen_by(run: LoadedRun, view: SceneView, samplers: Sequence[FrameSampler]) -> dict[str, list[int]]:
    """Return the frames of other samplers, which are paired as the run's."""
    found: dict[str, list[int]] = {}
    for sampler in samplers:
        other = copy(run.dataset)
        other.sampler = sampler
        name = type(sampler).__name__
        found[name if name not in found else f"{name}_{len(found)}"] = other.select(view)
    return found


def _poses(view: SceneView) -> Poses | None:
    """Return the poses of all frames. None if no frame has one."""
    if view.world_to_camera is None or not view.world_to_camera.isfinite().all((1, 2)).any():
        return None
    poses: Poses = invert_se3(view.world_to_camera.double()).numpy()
    return poses


def _known(poses: Poses) -> Bool[np.ndarray, " n"]:
    known: Bool[np.ndarray, " n"] = np.isfinite(poses).all((1, 2))
    return known


class Similarity(NamedTuple):
    """A map from a predicted world onto the dataset's: x becomes `scale * rotation @ x + shift`."""

    scale: float
    rotation: Float64[np.ndarray, "3 3"]
    shift: Float64[np.ndarray, " 3"]

    @classmethod
    def between(cls, predicted: Poses, told: Poses) -> Similarity:
        """Return the map of predicted onto told poses, which makes their mean rotation, center and spread equal."""
        both = _known(predicted) & _known(told)
        if not both.any():
            return cls(1.0, np.eye(3), np.zeros(3))
        (turns, centers), (told_turns, told_centers) = (
            (poses[both, :3, :3], poses[both, :3, 3]) for poses in (predicted, told)
        )
        U, _, Vh = np.linalg.svd((told_turns @ turns.mT).sum(0))
        rotation = U @ np.diag([1, 1, np.linalg.det(U @ Vh)]) @ Vh
        middle, told_middle = centers.mean(0) @ rotation.T, told_centers.mean(0)
        moves, told_moves = centers @ rotation.T - middle, told_centers - told_middle
        spread, told_spread = float(np.linalg.norm(moves)), float(np.linalg.norm(told_moves))
        scale = told_spread / spread if spread and told_spread else 1.0  # of least squares, it would shrink with errors
        return cls(scale, rotation, told_middle - scale * middle)

    def points(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Return the mapped points."""
        return self.scale * points @ self.rotation.T + self.shift

    def poses(self, poses: Poses) -> Poses:
        """Return the mapped poses."""
        mapped = poses.copy()
        mapped[:, :3, :3], mapped[:, :3, 3] = self.rotation @ poses[:, :3, :3], self.points(poses[:, :3, 3])
        return mapped


def _log_frames(
    recording: rr.RecordingStream, view: SceneView, chosen: dict[str, list[int]], poses: Poses | None
) -> None:
    """Log the images that each sampler chooses, as frusta where their cameras are known."""
    for number, (name, frames) in enumerate(chosen.items()):
        places = sorted({*frames})
        for frame, image in zip(places, view.video.read(places), strict=True):
            path, pixels = f"world/{name}/{frame}", _small(image)
            if poses is not None and view.K_normalized is not None and np.isfinite(poses[frame]).all():
                size, color = pixels.shape[:2], COLORS[number % len(COLORS)]
                _log_camera(recording, path, poses[frame], view.K_normalized[frame], size, color, _extent(poses))
            recording.log(path, rr.Image(pixels).compress(jpeg_quality=75), static=True)


def _log_camera(
    recording: rr.RecordingStream,
    path: str,
    camera_to_world: Float64[np.ndarray, "4 4"],
    K_normalized: Float[Tensor, "3 3"],
    size: tuple[int, ...],
    color: tuple[int, int, int],
    extent: float,
) -> None:
    """Log a frustum. `size` is the height and width of its image in pixels."""
    height, width = size
    K = K_normalized.double().cpu().numpy()
    pose = rr.Transform3D(translation=camera_to_world[:3, 3], mat3x3=camera_to_world[:3, :3])
    recording.log(path, pose, static=True)
    pinhole = rr.Pinhole(
        focal_length=[K[0, 0] * width, K[1, 1] * height],
        principal_point=[(K[0, 2] + 0.5) * width, (K[1, 2] + 0.5) * height],
        resolution=[width, height],
        camera_xyz=rr.ViewCoordinates.RDF,
        image_plane_distance=FRUSTUM * extent,
        color=color,
    )
    recording.log(path, pinhole, static=True)


def _extent(poses: Poses) -> float:
    """Return the diagonal of the box around all cameras, in their unit. 1 if they do not move."""
    centers = poses[_known(poses), :3, 3]
    return float(np.linalg.norm(np.ptp(centers, axis=0))) or 1.0


def _log_points(
    recording: rr.RecordingStream,
    view: SceneView,
    frames: Sequence[int],
    poses: Poses | None,
    source: PointSource | None,
) -> str:
    """Log the points of frames in the colors of their pixels, and the cameras that a geometry encoder predicts.

    Returns:
        Why there are none.
    """
    predicts = not isinstance(source or DatasetDepth(), DatasetDepth)
    if not predicts:
        if poses is None:
            return "points are left out: the scene has no cameras"
        if view.depth is None:
            return "points are left out: the scene has no depth; --points PredictedPoints predicts them"
        frames = [frame for frame, known in zip(frames, _known(poses[frames]), strict=True) if known]
        if not frames:
            return "points are left out: no chosen frame has a camera"
    maps = (source or DatasetDepth()).points(replace(view, frames=frames))
    pixels = [
        frame.rot90(-1, (1, 2)) if predicts and is_portrait(frame) else frame for frame in view.video.read(frames)
    ]
    images = interpolate(torch.stack(pixels).float(), maps.points.shape[1:3], mode="area")
    seen = (maps.confidence > 0).numpy()
    points, colors = maps.points.double().numpy()[seen], images.permute(0, 2, 3, 1).byte().numpy()[seen]
    kept = np.random.default_rng(0).permutation(len(points))[:POINTS]
    points = points[kept]
    if predicts and maps.world_to_camera is not None and maps.K_normalized is not None:
        predicted = invert_se3(maps.world_to_camera.double()).numpy()
        told = np.full_like(predicted, np.nan) if poses is None else poses[frames]
        mapped = Similarity.between(predicted, told)
        points = mapped.points(points)
        _log_beside(recording, "encoder", mapped.poses(predicted), told, maps.K_normalized)
    recording.log("world/points", rr.Points3D(points, colors=colors[kept]), static=True)
    return ""


def _log_beside(
    recording: rr.RecordingStream, name: str, predicted: Poses, told: Poses, K_normalized: Float[Tensor, "n 3 3"]
) -> None:
    """Log predicted cameras of views, and a line from each to the dataset's of the same view."""
    places = np.flatnonzero(_known(predicted))
    extent = _extent(told if _known(told).any() else predicted)
    for place in places:
        size = (480, 640)  # of no picture: the frustum is empty
        _log_camera(recording, f"world/{name}/{place}", predicted[place], K_normalized[place], size, GUESSED, extent)
    lines = [(predicted[place, :3, 3], told[place, :3, 3]) for place in places if np.isfinite(told[place]).all()]
    recording.log(f"world/{name}/off", rr.LineStrips3D(lines, colors=[GUESSED] * len(lines)), static=True)


def _log_predicted(
    recording: rr.RecordingStream, run: LoadedRun, place: int, frames: Sequence[int], poses: Poses | None
) -> str:
    """Log the cameras that the model predicts for each view. Return why there are none."""
    loaded = run.dataset[place]
    collate = QuestionCollate(run.dataset.spec, run.data.source.benchmark, poses_in_prompt=run.data.poses_in_prompt)
    batch = collate([replace(loaded, questions=loaded.questions[:1])]).to(run.model.backbone.device)
    with torch.no_grad():
        found = predicted_cameras(run.model, batch)
    if not found or poses is None:
        return "predicted cameras are left out: the model has no CameraPrediction" if poses is not None else ""
    ((cameras, world_to_camera),) = found.values()
    true, predicted = (invert_se3(each.double().cpu()).numpy() for each in (cameras.world_to_camera, world_to_camera))
    unknown = ~cameras.has_camera.cpu().numpy()
    true[unknown], predicted[unknown] = np.nan, np.nan
    told = poses[list(frames)[:: len(frames) // len(true)]]  # of the first frame of each view
    onto = Similarity.between(true, told)  # both are exact: out of the reference view's frame and its unit
    _log_beside(recording, "predicted", onto.poses(predicted), told, cameras.K_normalized)
    return ""


def _questions(run: LoadedRun, place: int) -> str:
    """Return the questions of a scene as Markdown, with the run's answers to them."""
    tests = {folder: read_records([folder / PREDICTIONS]) for folder in finished_tests(run.folder)}
    parts = []
    for question in run.dataset.scenes[place].questions:
        options = "".join(f"\n- {option}" for option in question.options)
        said = {
            folder: record.get("prediction")
            for folder, records in tests.items()
            for record in records
            if record["id"] == question.id
        }
        names = {folder: "" if folder == run.folder else f" in the test {folder.name}" for folder in said}
        answer = "".join(f"\n\nanswer{names[folder]}: {text}" for folder, text in said.items())
        parts.append(f"**{question.question}**{options}\n\ntrue answer: {question.ground_truth}{answer}")
    return "\n\n---\n\n".join(parts)


def _small(image: UInt8[Tensor, "3 H W"]) -> UInt8[np.ndarray, "h w 3"]:
    step = max(1, max(image.shape[-2:]) // LONGEST_PX)
    return image[:, ::step, ::step].permute(1, 2, 0).contiguous().cpu().numpy()
