"""A folder of scenes, in the layout of the rooms and of VSI-Bench."""

from __future__ import annotations

from pathlib import Path

from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SceneSource, Split


class SceneFolder(SceneSource):
    """Videos with questions and optional cameras: `<root>/{train,val,test}.jsonl` and the videos.

    Args:
        root: The folder, see `datamodules.sources.annotations`; cameras: see `datamodules.cameras_file`.

    Raises:
        FileNotFoundError: In `scenes`: no questions for the split.
        ValueError: In `scenes`: malformed questions.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = Path(root).expanduser()

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes whose videos exist; the others are in `missing`."""
        if not (self.root / f"{split}.jsonl").is_file():
            raise FileNotFoundError(
                f"{self.root / split}.jsonl is absent: it holds one question per line; --data.source.root is its folder"
            )
        scenes, self.missing = read_layout(self.root, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes
