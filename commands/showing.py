"""A scene as a recording for the viewer rerun: see `commands.show`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import rerun as rr
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from commands.runs import LoadedRun
from datamodules.collate import QuestionCollate
from datamodules.samplers import DatasetDepth, FrameSampler, SceneView
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
    run: LoadedRun, name: str | None = None, samplers: Sequence[FrameSampler] = ()
) -> tuple[rr.RecordingStream, list[str]]:
    """Make the recording of a scene.

    Args:
        run: The run, from `commands.explaining.load_explained`.
        name: The scene's name. None is the first scene.
        samplers: Samplers beside the run's.

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
        if poses is None:
            notes = ["path, frusta and points are left out: the scene has no cameras"]
        else:
            centers = poses[np.isfinite(poses).all((1, 2)), :3, 3]
            recording.log("world/path", rr.LineStrips3D([centers], colors=[GUESSED]), static=True)
            shown = sorted({frame for frames in chosen.values() for frame in frames if np.isfinite(poses[frame]).all()})
            notes = [_log_points(recording, view, shown), _log_predicted(recording, run, place, poses)]
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
    centers = poses[np.isfinite(poses).all((1, 2)), :3, 3]
    return float(np.linalg.norm(np.ptp(centers, axis=0))) or 1.0


def _log_points(recording: rr.RecordingStream, view: SceneView, frames: Sequence[int]) -> str:
    """Log the points of frames in the colors of their pixels. Return why there are none."""
    if view.depth is None:
        return "points are left out: the scene has no depth"
    if not frames:
        return "points are left out: no chosen frame has a camera"
    maps = DatasetDepth().points(replace(view, frames=frames))
    images = interpolate(view.video.read(frames).float(), maps.points.shape[1:3], mode="area")
    seen = (maps.confidence > 0).numpy()
    points, colors = maps.points.numpy()[seen], images.permute(0, 2, 3, 1).byte().numpy()[seen]
    kept = np.random.default_rng(0).permutation(len(points))[:POINTS]
    recording.log("world/points", rr.Points3D(points[kept], colors=colors[kept]), static=True)
    return ""


def _log_predicted(recording: rr.RecordingStream, run: LoadedRun, place: int, poses: Poses) -> str:
    """Log the cameras that the model predicts for each view, in the dataset's world. Return why there are none."""
    loaded = run.dataset[place]
    collate = QuestionCollate(run.dataset.spec, run.data.source.benchmark, poses_in_prompt=run.data.poses_in_prompt)
    batch = collate([replace(loaded, questions=loaded.questions[:1])]).to(run.model.backbone.device)
    with torch.no_grad():
        found = predicted_cameras(run.model, batch)
    for cameras, predicted in found.values():
        for number, pose in enumerate(invert_se3(predicted.double().cpu()).numpy()):
            if cameras.has_camera[number]:
                K, size = cameras.K_normalized[number], (480, 640)  # of no picture: the frustum is empty
                _log_camera(recording, f"world/predicted/{number}", pose, K, size, GUESSED, _extent(poses))
    return "" if found else "predicted cameras are left out: the model has no CameraPrediction"


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
