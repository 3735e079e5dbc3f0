"""Your own scenes, in the layout that the rooms and VSI-Bench have too."""

from __future__ import annotations

from pathlib import Path

from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SceneSource, Split


class SceneFolder(SceneSource):
    """Videos with questions and, where there are some, cameras: `<root>/{train,val,test}.jsonl` and the videos.

    Args:
        root: the folder; `datamodules.sources.annotations` has its layout, `datamodules.cameras_file` that of cameras.

    Raises FileNotFoundError where the split's questions are absent, ValueError where they can't be understood.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = Path(root).expanduser()

    def scenes(self, split: Split) -> list[Scene]:
        if not (self.root / f"{split}.jsonl").is_file():
            raise FileNotFoundError(
                f"{self.root / split}.jsonl is absent: it holds a question a line; --data.source.root names its folder"
            )
        scenes, self.missing = read_layout(self.root, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes
