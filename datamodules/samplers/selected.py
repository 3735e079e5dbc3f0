"""Frames that were chosen before, by `python main.py select-frames` or by Spatial-MLLM's scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.selections import FILE, digest, fingerprint, read_selection
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


class SelectedFrames(FrameSampler):
    """What a `selected_frames.json` says, a file a scene: `<folder>/<dataset>/<scene_name>/selected_frames.json`.

    The folder of the dataset may be left out, as in the official ones.

    Args:
        folder: where they lie.

    A scene without such a file is a ValueError that names it, as is one whose file names frames that the video hasn't
    got, was chosen of another video, or for another number of frames.
    """

    stops_early = True  # the official ones may hold fewer

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._fingerprints: dict[Path, str] = {}  # of each video once, not in each epoch

    def among(self, scene: SceneView) -> SceneView:
        """With the candidates of the sampler that chose: a pairing may count by them."""
        candidates = self._made_by(scene).get("sampler", {}).get("candidates")
        return scene.among(candidates) if candidates else scene

    def _select(self, scene: SceneView, n: int) -> list[int]:
        return sorted(self.choose(scene, n))  # frames of the video, not places among the candidates

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        _, made_by = super().key(scene, n)
        made_by["selected_frames"] = self._read(scene)[1]["selected_frames"]
        return digest(made_by), made_by

    def choose(self, scene: SceneView, n: int) -> list[int]:
        file, content = self._read(scene)
        frames, made_by = content["selected_frames"], content.get("made_by") or {}
        if max(frames) >= len(scene.pool):
            total = len(scene.pool)
            raise ValueError(f"{file}: frame {max(frames)} of a video of {total} frames: it is of another video")
        if "video" in made_by and made_by["video"] != self._fingerprint(scene.video.path):
            raise ValueError(f"{file}: chosen of another video than {scene.video.path} as it is now: choose anew")
        asked, among = made_by.get("views", n), len(self.among(scene).pool)
        if len(frames) > n or (n - asked >= TEMPORAL_PATCH_SIZE and asked < among):
            raise ValueError(f"{file}: {max(asked, len(frames))} frames were chosen, {n} are asked for: choose anew")
        return frames

    def filled(self, chosen: list[int], n: int, scene: SceneView) -> list[int]:
        """As the sampler that chose would have done; the official files may hold fewer on purpose."""
        made_by = self._made_by(scene)
        if made_by.get("stops_early", True):
            return chosen
        return chosen + chosen[-1:] * (min(n, made_by["sampler"].get("candidates") or n) - len(chosen))

    def reads(self, scene_name: str) -> list[Path]:
        folder, name = Path(self.folder).expanduser(), Path(scene_name)
        file, short = folder / name / FILE, folder / name.name / FILE
        return [short if short.exists() and not file.exists() else file]

    def _fingerprint(self, video: Path) -> str:
        if video not in self._fingerprints:
            self._fingerprints[video] = fingerprint(video)
        return self._fingerprints[video]

    def _made_by(self, scene: SceneView) -> dict[str, Any]:
        """What `FrameSampler.key` says of the sampler that chose; nothing of official files."""
        return self._read(scene)[1].get("made_by") or {}

    def _read(self, scene: SceneView) -> tuple[Path, dict[str, Any]]:
        (file,) = self.reads(scene.scene_name)
        return file, read_selection(file)
