"""Slow, obvious ways to know what the fast code knows, and the real questions to compare with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources.rooms.scene import RoomScene, Thing


def real_questions(realdata: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (realdata / "vsibench/test.jsonl").open()]


def real_boxes(realdata: Path) -> dict[str, dict[str, Any]]:
    """Scene name -> category -> its boxes."""
    scenes: dict[str, dict[str, Any]] = {}
    for file in sorted((realdata / "meta_info").glob("*.json")):
        scenes |= {name: scene["object_bbox"] for name, scene in json.loads(file.read_text()).items()}
    return scenes


def turned(yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def all_boxes(scene: RoomScene, frame: int) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(thing, center, axes as columns, size) of every part, in the world."""
    to_world = turned(scene.yaw)
    boxes = []
    for number, thing in enumerate(scene.things):
        center, yaw = np.array(thing.center), thing.yaw
        if thing.track:
            x, y, yaw = thing.track[frame]
            center = np.array([x, y, thing.center[2]])
        axes = turned(yaw)
        for part in thing.parts:
            where = to_world @ (center + axes @ np.array(part.center)) + np.array(scene.origin)
            boxes.append((number, where, to_world @ axes, np.array(part.size)))
    return boxes


def look(
    scene: RoomScene, frame: int, world_to_camera: np.ndarray, K_px: np.ndarray, column: int, row: int
) -> tuple[float, int]:
    """(depth, thing or -1) through the center of a pixel, by testing all faces of all boxes."""
    ray = np.linalg.inv(K_px) @ [column + 0.5, row + 0.5, 1]
    rotation, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    start, along = -rotation.T @ shift, rotation.T @ ray
    room_axes = turned(scene.yaw)
    middle = np.array(scene.origin) + [0, 0, scene.size[2] / 2]
    best, seen = min(faces(start, along, middle, room_axes, np.array(scene.size))), -1
    for number, center, axes, size in all_boxes(scene, frame):
        hits = faces(start, along, center, axes, size)
        if hits and min(hits) < best:
            best, seen = min(hits), number
    return best, seen


def faces(start: np.ndarray, along: np.ndarray, center: np.ndarray, axes: np.ndarray, size: np.ndarray) -> list[float]:
    """Where a ray goes through the six faces of a box, ahead of its start."""
    hits = []
    for axis in range(3):
        for sign in (-1, 1):
            normal = axes[:, axis]
            on_face = center + sign * size[axis] / 2 * normal
            length = (on_face - start) @ normal / (along @ normal)
            point = axes.T @ (start + length * along - center)
            others = [other for other in range(3) if other != axis]
            if length > 1e-3 and all(abs(point[other]) <= size[other] / 2 for other in others):
                hits.append(length)
    return hits


def closest(a: Thing, b: Thing, rounds: int = 3000) -> float:
    """Distance of two bounding boxes by projecting to and fro between them: converges for convex sets."""
    point = np.array(a.center)
    for _ in range(rounds):
        other = into(b, point)
        again = into(a, other)
        if np.abs(again - point).max() < 1e-12:
            break
        point = again
    return float(np.linalg.norm(into(b, point) - point))


def into(thing: Thing, point: np.ndarray) -> np.ndarray:
    """The point of a thing's bounding box nearest to a point."""
    axes, half = turned(thing.yaw), np.array(thing.size) / 2
    return np.array(thing.center) + axes @ np.clip(axes.T @ (point - np.array(thing.center)), -half, half)


@cache
def quadrant(angle_deg: int) -> str:
    """Of an angle counter-clockwise from straight ahead, in whole degrees."""
    return ("front-left", "back-left", "back-right", "front-right")[angle_deg % 360 // 90]
