"""How well constants predict the turns of cameras in studies/pose_supervision.md, beside a camera that never moves.

    python -m docs.constant_poses

Prints mean errors in degrees on the study's test rooms: of a still camera, of one turn about the vertical for all
views, and of one per view number. The turns are fitted on training rooms, in steps of 5 degrees.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.sources.base import Split
from datamodules.sources.rooms.panel_source import PanelRooms
from datamodules.sources.rooms.panel_tasks import PanelTurn
from zoo.cameras.poses import invert_se3, pose_distance, rigid_matrix, so3_exp

TRAINING, TEST = PanelRooms(PanelTurn()), PanelRooms(PanelTurn(), seed=5)  # as in studies/pose_supervision.yaml
FITTED_ROOMS, TEST_ROOMS = 600, 500


def later_views(rooms: PanelRooms, split: Split, count: int) -> Float[Tensor, "rooms t 4 4"]:
    """Return the poses of all views but the first, relative to the first."""
    drawn = [rooms.draw(split, index, rooms.generator(split, index)).world_to_camera for index in range(count)]
    poses = torch.stack([torch.from_numpy(each) for each in drawn])
    return (poses @ invert_se3(poses[:, :1]))[:, 1:]


def errors(constants: Tensor, poses: Tensor) -> Tensor:
    """Return the angles between constant rotations and poses, in degrees."""
    return pose_distance(rigid_matrix(constants, constants.new_zeros(*constants.shape[:-2], 3)), poses)[0].rad2deg()


def main() -> None:
    """Print the errors."""
    angles = torch.arange(0, 360, 5, dtype=torch.float64).deg2rad()
    turns = so3_exp(angles[:, None] * angles.new_tensor((0, 1, 0)))
    fitted = errors(turns[:, None, None], later_views(TRAINING, "train", FITTED_ROOMS)).mean(1)
    best = {"still": turns[0], "one turn": turns[fitted.mean(1).argmin()], "one per view": turns[fitted.argmin(0)]}
    test = later_views(TEST, "test", TEST_ROOMS)
    for name, constants in best.items():
        print(f"{name}: {errors(constants, test).mean():.1f}")


if __name__ == "__main__":
    main()
