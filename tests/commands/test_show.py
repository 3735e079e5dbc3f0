"""`show`: what is drawn of a scene lies where its cameras and depth say; files of others stay."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli import Run, Trained, the_run
from zoo import CameraPrediction
from zoo.geometry import TinyVGGT

rr = pytest.importorskip("rerun", reason="rerun is not installed: pip install rerun-sdk")

from commands.explaining import load_explained  # noqa: E402 - of an extra
from commands.showing import recording_of  # noqa: E402
from datamodules.samplers import (  # noqa: E402
    DatasetDepth,
    PointMaps,
    PointSource,
    PredictedPoints,
    RandomSampler,
    SceneView,
)


class Recorded(rr.RecordingStream):
    """Keeps what is logged, in place of a recording."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.logged: dict[str, dict[str, Any]] = {}

    def __del__(self) -> None:
        pass

    def log(self, path: str, entity: Any, *_: Any, static: bool = False, **__: Any) -> None:
        assert static
        self.logged.setdefault(path, {})[type(entity).__name__] = entity


def numbers(component: Any) -> np.ndarray:
    return np.array(component.as_arrow_array().to_pylist(), dtype=np.float64)


@pytest.mark.slow
def test_a_scene_is_drawn_where_its_cameras_are(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fit", "--config", "prope.yaml")
    run("test")
    (folder,) = (tmp_path / "runs").iterdir()
    loaded = load_explained(folder)
    with monkeypatch.context() as patch:
        patch.setattr(rr, "RecordingStream", Recorded)
        recording, notes = recording_of(loaded, samplers=[RandomSampler(seed=1)])
    logged, view = recording.logged, loaded.dataset.open(0)
    names = {path.split("/")[1] for path in logged if path.startswith("world/")}
    assert names == {"run", "RandomSampler", "path", "points"} and "CameraPrediction" in " ".join(notes)
    # 1. The points of a frame's depth fall on their own pixels of its frustum.
    frames = sorted({*loaded.dataset.select(view)})
    assert view.world_to_camera is not None and view.K_normalized is not None
    for frame, points in zip(frames, DatasetDepth().points(view.among(10**6)).points[frames], strict=True):
        entity = logged[f"world/run/{frame}"]
        center, turn = (numbers(getattr(entity["Transform3D"], name))[0] for name in ("translation", "mat3x3"))
        K = numbers(entity["Pinhole"].image_from_camera)[0].reshape(3, 3).T
        width, height = numbers(entity["Pinhole"].resolution)[0]
        to_world = turn.reshape(3, 3).T  # stored by columns, as K is
        in_camera = (points.double().numpy() - center) @ to_world
        pixels = in_camera @ K.T
        x, y = pixels[..., 0] / pixels[..., 2] / width, pixels[..., 1] / pixels[..., 2] / height
        rows, columns = points.shape[:2]
        known = np.isfinite(x) & (pixels[..., 2] > 0)
        expected = np.broadcast_to((np.arange(columns) + 0.5) / columns, (rows, columns))
        assert known.mean() > 0.9 and np.abs(x - expected)[known].max() < 1e-3
        assert np.abs(y - ((np.arange(rows) + 0.5) / rows)[:, None])[known].max() < 1e-3
        wrong = torch.as_tensor(points).roll(1, 1).double().numpy()  # the control: another pixel's points
        moved = (wrong - center) @ to_world @ K.T
        assert np.abs(moved[..., 0] / moved[..., 2] / width - expected)[known].max() > 1e-2
    # 2. Questions stand beside the run's answers.
    text = logged["questions"]["TextDocument"].text.as_arrow_array().to_pylist()[0]
    assert "true answer: " in text and "\n\nanswer: " in text
    # 3. The command writes one new file, and replaces none.
    assert ".rrd" in run("show", str(folder), "--samplers", "[RandomSampler]", sized=False)
    (file,) = (folder / "scenes").iterdir()
    assert file.read_bytes().startswith(b"RRF")
    mine = tmp_path / "mine.rrd"
    mine.write_text("mine")
    for words, error in (
        (["--output", str(mine)], "is there already"),
        (["--samplers", "[RandomSampler]"], "is there already"),
        (["--scene", "no such"], "--scene no such: none of the"),
    ):
        with pytest.raises(SystemExit, match=error) as end:
            run("show", str(folder), *words, sized=False)
        assert "\n" not in str(end.value.code)
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_without_cameras_the_images_and_a_note_remain(run: Run, tmp_path: Path, monkeypatch) -> None:
    run("fit", "--config", "qwen25_vl.yaml")
    (folder,) = (tmp_path / "runs").iterdir()
    loaded = load_explained(folder)
    view = loaded.dataset.open(0)
    loaded.dataset.open = lambda place: type(view)(view.video, name=view.name)  # type: ignore[method-assign]
    monkeypatch.setattr(rr, "RecordingStream", Recorded)
    recording, notes = recording_of(loaded)
    assert notes == [f"{what} left out: the scene has no cameras" for what in ("path and frusta are", "points are")]
    assert all({*entity} == {"EncodedImage"} for path, entity in recording.logged.items() if path != "questions")
    # a geometry encoder gives points and cameras in a world of its own
    tiny = partial(TinyVGGT, path=None, embed_dim=16, depth=4, num_heads=2, heads=("camera", "point"))
    recording, notes = recording_of(loaded, points=PredictedPoints(tiny, width=56))
    assert len(notes) == 1 and "Points3D" in recording.logged["world/points"]
    frames = len({*loaded.dataset.select(view)})
    assert sum("Pinhole" in entity for path, entity in recording.logged.items() if "/encoder/" in path) == frames


class Encoder(PointSource):
    """Sees points and poses as the dataset has them, in another world and unit; `wrong` moves one camera."""

    def __init__(self, wrong: bool) -> None:
        self.wrong = wrong

    def points(self, scene: SceneView) -> PointMaps:
        maps, scale = DatasetDepth().points(scene), 3.0
        assert maps.world_to_camera is not None
        turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        world = torch.eye(4, dtype=torch.float64)
        world[:3, :3], world[:3, 3] = turn * turn.det(), torch.tensor([1.0, 2.0, 3.0])
        poses = maps.world_to_camera.double() @ torch.linalg.inv(world)
        poses[:, :3, 3] *= scale
        points = (maps.points.double() @ world[:3, :3].mT + world[:3, 3]) * scale
        if self.wrong:
            poses[0, :3, 3] += 1.0
        return PointMaps(points.float(), maps.confidence, poses, maps.K_normalized)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_predicted_cameras_and_points_lie_on_the_told_world(
    run: Run, trained: Trained, monkeypatch, wrong: bool
) -> None:
    loaded = load_explained(trained())
    monkeypatch.setattr(rr, "RecordingStream", Recorded)
    told = recording_of(loaded)[0].logged
    found = recording_of(loaded, points=Encoder(wrong))[0].logged
    points = [numbers(each["world/points"]["Points3D"].positions) for each in (told, found)]
    assert (np.abs(points[0] - points[1]).max() < 1e-4) is not wrong
    off = np.array(found["world/encoder/off"]["LineStrips3D"].strips.as_arrow_array().to_pylist())
    lengths = np.linalg.norm(off[:, 1] - off[:, 0], axis=-1)
    assert (lengths.max() < 1e-5) is not wrong and len(lengths) == len({*loaded.dataset.select(loaded.dataset.open(0))})


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_cameras_of_the_objective_lie_on_the_told_world(run: Run, tmp_path: Path, monkeypatch, wrong: bool) -> None:
    run("fit", "--config", "qwen25_vl.yaml", "--model.objectives", "[CameraPrediction]")
    loaded = load_explained(the_run(tmp_path))
    objective = next(each for each in loaded.model.objectives.values() if isinstance(each, CameraPrediction))
    predict = objective.predicted_cameras

    def exact(decoded: Any) -> Any:
        cameras, predicted = predict(decoded)
        return cameras, predicted if wrong else cameras.world_to_camera

    monkeypatch.setattr(objective, "predicted_cameras", exact)
    monkeypatch.setattr(rr, "RecordingStream", Recorded)
    recording, notes = recording_of(loaded)
    off = np.array(recording.logged["world/predicted/off"]["LineStrips3D"].strips.as_arrow_array().to_pylist())
    assert not notes and (np.linalg.norm(off[:, 1] - off[:, 0], axis=-1).max() < 1e-4) is not wrong
