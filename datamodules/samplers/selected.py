"""Frames from selection files, written by `python main.py select-frames` or by Spatial-MLLM's scripts."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.selection_files import FILE, read_selection, selections_in, shared_settings
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE


class SelectedFrames(FrameSampler):
    """Read the frames from one selection file per scene: `<folder>/<dataset>/<scene_name>/selected_frames.json`.

    The folder of the dataset is optional, as in the official files.

    Args:
        folder: Folder of the selection files.

    Raises:
        ValueError: Raised in `choose`: a scene's file is missing, has frames beyond the end of the video, or was made
            for another video, another number of frames or with other settings than the first file of the folder.
    """

    stops_early = True  # official files may hold fewer frames

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._first: Path | None = None  # the folder's first selection, whose settings the others must share

    def among(self, scene: SceneView) -> SceneView:
        """Return the scene with the candidates of the original sampler, because a pairing may step among them."""
        candidates = self._made_by(scene).get("sampler", {}).get("candidates")
        return scene.among(candidates) if candidates else scene

    def _select(self, scene: SceneView, n: int) -> list[int]:
        return sorted(self.choose(scene, n))  # raw frames, not indices of candidates

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        """Return digest and settings of a selection, with the selected frames."""
        _, made_by = super().key(scene, n)
        made_by["selected_frames"] = self._read(scene)["selected_frames"]
        return fingerprint(made_by), made_by

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Return the selected raw frames."""
        content, (file,) = self._read(scene), self.reads(scene.scene_name)
        frames, made_by = content["selected_frames"], content.get("made_by") or {}
        if max(frames) >= len(scene.pool):
            raise ValueError(f"{file}: frame {max(frames)} of a video of {len(scene.pool)} frames: select them again")
        video = scene.video.path
        if "video" in made_by and made_by["video"] != file_fingerprint(video):
            raise ValueError(f"{file}: selected from another version of {video}: select the frames again")
        selected, candidates = made_by.get("views") or n, len(self.among(scene).pool)
        if len(frames) > n or (n - selected >= TEMPORAL_PATCH_SIZE and selected < candidates):
            count = max(selected, len(frames))
            raise ValueError(f"{file}: {count} frames were selected, {n} are asked for: select the frames again")
        return frames

    def pad(self, chosen: list[int], n: int, scene: SceneView) -> list[int]:
        """Pad as the original sampler did. Official files may hold fewer frames on purpose."""
        made_by = self._made_by(scene)
        if made_by.get("stops_early", True):
            return chosen
        return chosen + chosen[-1:] * (min(n, made_by.get("sampler", {}).get("candidates") or n) - len(chosen))

    def reads(self, scene_name: str) -> list[Path]:
        """Return the selection file of a scene."""
        folder, name = Path(self.folder).expanduser(), Path(scene_name)
        file, official = folder / name / FILE, folder / name.name / FILE
        return [official if os.path.exists(official) and not os.path.exists(file) else file]

    def _made_by(self, scene: SceneView) -> dict[str, Any]:
        """Return the settings of the original sampler, empty for official files."""
        return self._read(scene).get("made_by") or {}

    def _read(self, scene: SceneView) -> dict[str, Any]:
        (file,) = self.reads(scene.scene_name)
        content = read_selection(file)
        if self._first is None:
            self._first, _ = next(selections_in(Path(self.folder).expanduser()), (file, content))
        expected = shared_settings(read_selection(self._first).get("made_by"))
        if shared_settings(content.get("made_by")) != expected:
            raise ValueError(f"{file}: made with other settings than {self._first}: give each a folder of its own")
        return content
