"""Poses matched by time, of turned and resized images, rotations, and damaged files of each format."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.trajectories import TUM, ARKitScenes, Nerfstudio, ScanNet, ScanNetPlusPlus, SevenScenes, Trajectory
from datamodules.trajectories.base import from_axis_angle, slerp, upright_turns
from datamodules.trajectories.formats import intrinsics
from zoo.cameras.poses import invert_se3, rigid_matrix


def test_slerp_turns_at_an_even_rate_about_one_axis_the_shorter_way() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=1)
    start = from_axis_angle(2 * axes.flip(0))
    for angle in (0.0, 1e-9, 1e-4, 0.3, 1.5, 3.0):
        end = start @ from_axis_angle(axes * angle)
        for share in (0.0, 0.25, 0.9, 1.0):
            between = slerp(start, end, torch.full((40,), share, dtype=torch.float64))
            assert torch.allclose(between, start @ from_axis_angle(share * angle * axes), atol=1e-9)
            if 0 < share < 1 and angle > 1:  # negative control: blended matrices are something else
                assert not torch.allclose(between, torch.lerp(start, end, share), atol=1e-2)
    quarters = torch.tensor([[0.0, 0.0, turn * math.pi / 4] for turn in (6, -1, 2)], dtype=torch.float64)
    end, expected, quarter = from_axis_angle(quarters)
    middle = slerp(torch.eye(3, dtype=torch.float64)[None], end[None], torch.tensor([0.5], dtype=torch.float64))
    assert torch.allclose(middle[0], expected, atol=1e-12)
    x, y = torch.eye(3, dtype=torch.float64)[:2]
    assert torch.allclose(quarter @ x, y, atol=1e-15) and not torch.allclose(quarter.mT @ x, y)  # the right-hand rule


WIDTH, HEIGHT = 64, 48


def circling(times_s: torch.Tensor) -> torch.Tensor:
    """World-to-camera poses of a camera that turns evenly while its center moves on a line."""
    vectors = times_s[:, None] * torch.tensor([0.1, 0.5, -0.2], dtype=torch.float64)
    centers = times_s[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return invert_se3(rigid_matrix(from_axis_angle(vectors), centers))


def trajectory(times: list[float]) -> Trajectory:
    times_s = torch.tensor(times, dtype=torch.float64)
    K_px = intrinsics(60.0, 58.0, 30.0, 25.0).repeat(len(times), 1, 1)
    K_px[:, 0, 0] += torch.arange(len(times))
    return Trajectory(circling(times_s), K_px, WIDTH, HEIGHT, times_s)


def test_slerp_between_neighbors_is_exact_for_an_even_motion():
    asked = [0.5, 1.0, 1.75, 2.9]
    placed = trajectory([0, 1, 2, 3]).at(asked, tolerance_s=1.0)
    assert torch.allclose(placed.world_to_camera, circling(torch.tensor(asked, dtype=torch.float64)), atol=1e-12)
    assert placed.times_s.tolist() == asked
    nearest = trajectory([0, 1, 2, 3]).at(asked, tolerance_s=1.0, match="nearest")
    expected = circling(torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(nearest.world_to_camera, expected, atol=1e-12)  # a tie goes to the later one
    assert not torch.allclose(nearest.world_to_camera, placed.world_to_camera, atol=0.1)  # negative control
    assert nearest.K_px[:, 0, 0].tolist() == placed.K_px[:, 0, 0].tolist() == [61, 61, 62, 63]


def test_gaps_have_no_pose_and_their_edges_the_nearest():
    placed = trajectory([0, 1, 5, 6]).at([-0.4, -0.6, 0.5, 1.3, 3.0, 4.6, 6.4, 6.6], tolerance_s=0.5)
    assert placed.known.tolist() == [True, False, True, True, False, True, True, False]
    held = circling(torch.tensor([0.0, 1.0, 5.0, 6.0], dtype=torch.float64))
    assert torch.equal(placed.world_to_camera[[0, 3, 5, 6]], held)
    everywhere = trajectory([0, 1, 5, 6]).at([3.0], tolerance_s=10.0)
    assert torch.allclose(everywhere.world_to_camera, circling(torch.tensor([3.0], dtype=torch.float64)), atol=1e-12)


def test_poses_that_are_not_known_are_not_neighbors():
    holed = trajectory([0, 1, 2])
    poses = holed.world_to_camera.clone()
    poses[1] = math.nan
    placed = replace(holed, world_to_camera=poses).at([1.0], tolerance_s=1.0)
    assert torch.allclose(placed.world_to_camera, circling(torch.tensor([1.0], dtype=torch.float64)), atol=1e-12)
    with pytest.raises(ValueError, match="needs times and poses"):
        replace(holed, world_to_camera=poses * math.nan).at([1.0], tolerance_s=1.0)


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_picture_shows_the_same_points(turns):
    """A point's pixel in the turned picture is the turned pixel; numpy says what turning a picture is."""
    upright = replace(trajectory([0.3]), quarter_turns=turns).turned()
    size = (HEIGHT, WIDTH) if turns % 2 == 0 else (WIDTH, HEIGHT)
    assert (upright.height, upright.width, upright.quarter_turns) == (*size, 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        row, column = (int(torch.randint(n, (1,), generator=generator)) for n in (HEIGHT, WIDTH))
        picture = np.zeros((HEIGHT, WIDTH))
        picture[row, column] = 1
        point = unproject(trajectory([0.3]), row + 0.5, column + 0.5, depth=2.0)
        turned_row, turned_column = np.argwhere(np.rot90(picture, turns))[0]
        pixel = project(upright, point)
        assert torch.allclose(pixel, torch.tensor([turned_column + 0.5, turned_row + 0.5], dtype=torch.float64))
        if turns:  # negative control: turned the other way
            other = replace(trajectory([0.3]), quarter_turns=turns + 1).turned()
            assert not torch.allclose(project(other, point), pixel)


def unproject(cameras: Trajectory, y: float, x: float, depth: float) -> torch.Tensor:
    ray = torch.linalg.inv(cameras.K_px[0]) @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    point = torch.cat((ray * depth, torch.ones(1, dtype=torch.float64)))
    return torch.linalg.inv(cameras.world_to_camera[0]) @ point


def project(cameras: Trajectory, point: torch.Tensor) -> torch.Tensor:
    x, y, z = cameras.K_px[0] @ (cameras.world_to_camera[0] @ point)[:3]
    return torch.stack((x / z, y / z))


def test_resized_cameras_see_the_same_and_upright_is_where_z_points_up():
    small = trajectory([0.3]).resized(WIDTH // 2, HEIGHT // 2)
    point = unproject(trajectory([0.3]), 11.0, 40.0, depth=2.0)
    assert torch.allclose(project(small, point), torch.tensor([20.0, 5.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="48 x 64 pixels, the cameras are for 64 x 48"):
        trajectory([0.3]).resized(HEIGHT, WIDTH)
    # a camera that looks along +x in a world whose z points up, its pictures turned away from upright
    level = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    poses = rigid_matrix(level[None], torch.zeros(1, 3, dtype=torch.float64))
    for turns in range(4):
        turned = replace(trajectory([0.3]), world_to_camera=poses, quarter_turns=turns).turned()
        assert upright_turns(turned.world_to_camera) == (4 - turns) % 4


# ---- files
def write_rows(file: Path, rows: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# a comment\n" + "\n".join(" ".join(str(x) for x in row) for row in rows) + "\n")


def write_picture(file: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(file)


def write_transforms(folder: Path, **changes) -> Path:
    write_picture(folder / "a_2.png")
    write_picture(folder / "a_10.png")
    frames = [{"file_path": f"a_{i}.png", "transform_matrix": np.eye(4).tolist()} for i in (10, 2)]
    content = {"fl_x": 50, "fl_y": 51, "cx": 32, "cy": 24, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content | changes))
    return folder


def test_nerfstudio_and_scannetpp(tmp_path):
    read = Nerfstudio().read(write_transforms(tmp_path))
    assert [frame.name for frame in read.frames] == ["a_2.png", "a_10.png"]
    # the OpenGL camera at the identity looks along -z with y up
    forward = torch.linalg.inv(read.world_to_camera[0])[:3, 2]
    assert forward.tolist() == [0, 0, -1]
    frames = [{"file_path": "a_2.png", "transform_matrix": np.eye(4).tolist(), "is_bad": True, "fl_x": 40}]
    read = Nerfstudio().read(write_transforms(tmp_path, frames=frames))
    assert not read.known.any() and read.K_px[0, 0, 0] == 40
    dslr = tmp_path / "scannetpp/dslr"
    (dslr / "nerfstudio").mkdir(parents=True)
    write_transforms(dslr / "resized_undistorted_images")
    (dslr / "resized_undistorted_images/transforms.json").rename(dslr / "nerfstudio/transforms_undistorted.json")
    read = ScanNetPlusPlus().read(tmp_path / "scannetpp")
    assert [frame.name for frame in read.frames] == ["a_2.png", "a_10.png"] and read.K_px[0, 1, 1] == 51


ARKIT = "41069025"


def write_arkit(folder: Path) -> Path:
    write_rows(folder / "lowres_wide.traj", [[t, 0, 0, 0.1 * t, t, 0, 0] for t in (100.0, 100.1, 100.2)])
    for time in ("100.000", "100.199"):
        write_rows(folder / f"lowres_wide_intrinsics/{ARKIT}_{time}.pincam", [[WIDTH, HEIGHT, 50, 51, 32, 24]])
    return folder


def test_arkitscenes_is_world_to_camera(tmp_path):
    read = ARKitScenes().read_track(write_arkit(tmp_path))
    assert len(read) == 3 and read.frames == () and read.times_s.tolist() == [100.0, 100.1, 100.2]
    assert read.world_to_camera[0, 0, 3] == 100
    expected = from_axis_angle(torch.tensor([[0, 0, 10.0]], dtype=torch.float64))[0]
    assert torch.allclose(read.world_to_camera[0, :3, :3], expected)
    with pytest.raises(FileNotFoundError, match="lowres_wide: no frames there"):
        ARKitScenes().read(tmp_path)
    for time in ("100.050", "100.150", "103.000"):
        write_picture(tmp_path / f"lowres_wide/{ARKIT}_{time}.png")
    read = ARKitScenes(upright=False).read(tmp_path)
    assert read.known.tolist() == [True, True, False] and read.quarter_turns == 0
    assert torch.allclose(read.world_to_camera[0, 0, 3], torch.tensor(100.05, dtype=torch.float64), atol=0.01)


def test_tum(tmp_path):
    write_rows(tmp_path / "groundtruth.txt", [[10.0, 1, 2, 3, 0, 0, 0, 1], [10.04, 2, 2, 3, 0, 0, 0, 1]])
    write_rows(tmp_path / "rgb.txt", [[10.03, "rgb/b.png"], [9.99, "rgb/a.png"], [11, "rgb/c.png"]])
    for name in "abc":
        write_picture(tmp_path / f"rgb/{name}.png")
    read = TUM().read(tmp_path)
    assert [frame.name for frame in read.frames] == ["a.png", "b.png", "c.png"]
    assert read.known.tolist() == [True, True, False]
    centers = invert_se3(read.world_to_camera)[:2, :3, 3]
    assert torch.allclose(centers, torch.tensor([[1.0, 2, 3], [1.75, 2, 3]], dtype=torch.float64))


def spoil_traj(content: str):
    return lambda folder: (folder / "lowres_wide.traj").write_text(content)


def spoil_transforms(**changes):
    return lambda folder: write_transforms(folder, **changes)


STRETCHED = [{"file_path": "a_2.png", "transform_matrix": np.diag([2.0, 1, 1, 1]).tolist()}]
ROW_OF_3 = [{"file_path": "a_2.png", "transform_matrix": np.eye(3).tolist()}]
NO_FILE, DAMAGED = FileNotFoundError, ValueError
BAD = {
    "no traj": (ARKitScenes(), lambda f: (f / "lowres_wide.traj").unlink(), NO_FILE, "lowres_wide.traj"),
    "text in traj": (ARKitScenes(), spoil_traj("1 2 3 x 5 6 7\n"), DAMAGED, "wide.traj: not a table of numbers"),
    "ragged traj": (ARKitScenes(), spoil_traj("1 2 3\n1 2\n"), DAMAGED, "wide.traj: not a table of numbers"),
    "short row": (ARKitScenes(), spoil_traj("1 2 3\n"), DAMAGED, "1 rows of 3 numbers, expected any number of 7"),
    "empty traj": (ARKitScenes(), spoil_traj(""), DAMAGED, "lowres_wide.traj: 0 rows"),
    "no pincam": (ARKitScenes(frames="wide"), lambda f: None, NO_FILE, "wide_intrinsics: no .pincam"),
    "no frames": (ScanNet(), lambda f: None, NO_FILE, "color: no frames N.jpg"),
    "no sequence": (SevenScenes(), lambda f: None, NO_FILE, r"no frame-\*.color.png"),
    "no images": (TUM(), lambda f: (f / "rgb.txt").write_text("# none\n"), DAMAGED, "rgb.txt: each line must be"),
    "no image": (TUM(), lambda f: (f / "rgb.txt").write_text("1.0 a.png\n"), NO_FILE, "a.png is absent, but listed"),
    "json": (Nerfstudio(), lambda f: (f / "transforms.json").write_text("{"), DAMAGED, "not valid JSON"),
    "no list": (Nerfstudio(), lambda f: (f / "transforms.json").write_text("{}"), DAMAGED, "no frames in it"),
    "fisheye": (Nerfstudio(), spoil_transforms(camera_model="OPENCV_FISHEYE"), DAMAGED, "undistort the frames first"),
    "no focal length": (Nerfstudio(), spoil_transforms(fl_x=None), DAMAGED, "needs file_path"),
    "no 4x4 matrix": (Nerfstudio(), spoil_transforms(frames=ROW_OF_3), DAMAGED, "needs file_path"),
    "no picture": (Nerfstudio(), lambda f: (write_transforms(f) / "a_2.png").unlink(), NO_FILE, "a_2.png is absent"),
    "no rotation": (Nerfstudio(), spoil_transforms(frames=STRETCHED), DAMAGED, "the rotation is off orthonormal"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_in_one_line(tmp_path, name):
    poses, spoil, kind, reason = BAD[name]
    spoil(write_arkit(tmp_path))
    with pytest.raises(kind, match=reason) as error:
        poses.read_track(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
