"""Files of scenes by the scene's name, whatever folders a dataset's questions put before it.

VSI-590K names scannet/scene0085_00.mp4, VLM-3R scannet/videos/scene0085_00.mp4, others ScanNet/videos/train/...: the
scene is scene0085_00 in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import InputError

CAMERAS = ".cameras.json"


class SceneIndex:
    """Finds a file by the name of its scene.

    Args:
        files: Files named after scenes, in folders named after their datasets.
        suffix: End of their names after the scene's; empty is the file's suffix.
    """

    def __init__(self, files: Iterable[Path], suffix: str = "") -> None:
        self._by_scene: dict[str, list[Path]] = {}
        for file in sorted(files):
            self._by_scene.setdefault(file.name.removesuffix(suffix) if suffix else file.stem, []).append(file)

    def find(self, name: str) -> Path | None:
        """The file of a scene.

        Args:
            name: The scene's name after folders; where datasets share it, one of the folders names the dataset.

        Raises:
            InputError: Several files fit.
        """
        *folders, scene = Path(name).parts
        files = self._by_scene.get(scene, [])
        if len(files) > 1:
            datasets = {_plain(folder) for folder in folders}
            files = [file for file in files if datasets & {_plain(part) for part in file.parent.parts}] or files
        if len(files) > 1:
            raise InputError(f"{name}: {files[0]} and {files[1]} are both of a scene {scene}: remove one of them")
        return files[0] if files else None


@dataclass(frozen=True)
class SceneFiles:
    """What `import-cameras --dataset` has written of a scene.

    Attributes:
        cameras: The cameras file.
        frames: The folder of frames that the cameras are for; None if they are for a video.
        depth: The depth of these frames.
    """

    cameras: Path
    frames: Path | None
    depth: Path | None


class ImportedScenes:
    """The scenes that `import-cameras --dataset` has written to a folder.

    Args:
        root: The folder, with `<dataset>/<scene>.cameras.json`, and beside it the frames `<scene>/` unless the cameras
            are for a video, and `<scene>.depth/`.

    Raises:
        InputError: No cameras are there.
    """

    def __init__(self, root: Path) -> None:
        files = [*root.glob(f"*{CAMERAS}"), *root.glob(f"*/*{CAMERAS}")]
        if not files:
            raise InputError(f"{root}: no <dataset>/<scene>{CAMERAS} there: import-cameras --dataset writes them")
        self._index = SceneIndex(files, CAMERAS)

    def find(self, name: str) -> SceneFiles | None:
        """The files of a scene, see `SceneIndex.find`."""
        cameras = self._index.find(name)
        if cameras is None:
            return None
        scene = cameras.name.removesuffix(CAMERAS)
        frames, depth = cameras.with_name(scene), cameras.with_name(f"{scene}.depth")
        return SceneFiles(cameras, frames if frames.is_dir() else None, depth if depth.is_dir() else None)


def _plain(folder: str) -> str:
    """A dataset's name in one spelling: ScanNet++ is scannetpp."""
    return "".join(filter(str.isalnum, folder.lower().replace("+", "p")))
