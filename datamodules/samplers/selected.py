"""Frames that were chosen before, by `python main.py sample` or by Spatial-MLLM's scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.selections import FILE, digest, read_selection


class SelectedFrames(FrameSampler):
    """What a `selected_frames.json` says, a file a scene: `<folder>/<dataset>/<scene_name>/selected_frames.json`.

    The folder of the dataset may be left out, as in the official ones.

    Args:
        folder: where they lie.

    A scene without such a file, or whose file names frames that the video hasn't got or more than are asked for, is a
    ValueError that names it.
    """

    stops_early = True  # the official ones may hold fewer

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def among(self, scene: SceneView) -> SceneView:
        """With the candidates of the sampler that chose: a pairing may count by them."""
        (file,) = self.reads(scene.scene_name)
        made_by = read_selection(file).get("made_by") or {}
        candidates = (made_by.get("sampler") or {}).get("candidates")
        return scene.among(candidates) if candidates else scene

    def _select(self, scene: SceneView, n: int) -> list[int]:
        return sorted(self.choose(scene, n))  # frames of the video, not places among the candidates

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        _, made_by = super().key(scene, n)
        made_by["selected_frames"] = self._read(scene)[1]
        return digest(made_by), made_by

    def choose(self, scene: SceneView, n: int) -> list[int]:
        file, frames = self._read(scene)
        if max(frames) >= len(scene.pool):
            total = len(scene.pool)
            raise ValueError(f"{file}: frame {max(frames)} of a video of {total} frames: it is of another video")
        if len(frames) > n:
            raise ValueError(f"{file}: {len(frames)} frames were chosen, {n} are asked for: choose anew")
        return frames

    def reads(self, scene_name: str) -> list[Path]:
        folder, name = Path(self.folder).expanduser(), Path(scene_name)
        file, short = folder / name / FILE, folder / name.name / FILE
        return [short if short.exists() and not file.exists() else file]

    def _read(self, scene: SceneView) -> tuple[Path, list[int]]:
        (file,) = self.reads(scene.scene_name)
        return file, read_selection(file)["selected_frames"]
