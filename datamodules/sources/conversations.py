"""Conversations about videos: the training format of Spatial-MLLM, VSI-590K and most other models."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.depth import find_depth
from datamodules.scenes import Question, RawQuestion, Scene
from datamodules.sources.annotations import find_cameras, find_video, read_jsonl
from datamodules.sources.base import Missing, SceneSource, Split, by_type
from datamodules.video import VIDEO_SUFFIXES
from zoo.errors import InputError

NO_VIDEO = "rows without a video"  # the name under which rows of images and plain text count as missing
MEDIUM = re.compile("<(video|image)>")  # VSI-590K marks videos by <image> as well
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


class Conversations(SceneSource):
    r"""Questions and free answers about videos, for training; all questions about one video form one scene.

        {"video": "scannet/scene0000_00.mp4", "conversations": [{"from": "human", "value": "<video>\nHow many ...?"},
                                                                 {"from": "gpt", "value": "4"}]}

    One object per line (.jsonl), or a list of objects (.json). The text after the video's mark is used unchanged. Each
    turn is an independent question, also in a conversation of several. Rows of images or plain text and rows whose
    video is absent count as missing.

    Args:
        path: the file; `data.jsonl%25` selects a fixed 25 % of its rows.
        videos: folder of the videos; null is the file's folder. A folder of frames may replace a video file, and
            `<name>.cameras.json` beside either is used.
        seed: seed of the selection of rows.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: the file is invalid; names the line.
    """

    def __init__(self, path: str, videos: str | None = None, seed: int = 0) -> None:
        super().__init__()
        file, percent, share = path.rpartition("%")
        if percent and not (share.replace(".", "", 1).isdecimal() and 0 < float(share) <= 100):
            raise InputError(f"{path}: after % give the percentage of rows to use, above 0 and up to 100")
        self.path = Path(file if percent else path).expanduser()
        self.share = float(share) / 100 if percent else 1.0
        self.videos = Path(videos).expanduser() if videos else self.path.parent
        self.seed = seed

    def prepare(self) -> None:
        """Check that the file exists."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is absent: it should hold conversations, one JSON object per line")

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the training split."""
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        self.missing = {}
        for number, row in self._rows():
            where = f"{self.path}:{number}"
            kind = row.get("question_type")
            kind = kind if kind in self.benchmark.question_types else ""  # other data sets' types have no score
            asked = _questions(row, where, f"{self.path.stem}-{number}", kind)
            video = row.get("video")
            if isinstance(video, str):
                questions.setdefault(video, []).extend(asked)
            else:
                self.missing.setdefault(NO_VIDEO, Counter()).update(by_type(asked))
        if not questions:
            raise ValueError(f"{self.path}: no row has a video")
        return list_scenes(self.videos, questions, self.missing)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Return (line or position, row) of the selected rows, in the order of the file."""
        rows = list(read_jsonl(self.path) if self.path.suffix == ".jsonl" else read_list(self.path))
        if self.share == 1:
            return iter(rows)
        count = max(1, round(self.share * len(rows)))
        return iter(rows[i] for i in sorted(random.Random(self.seed).sample(range(len(rows)), count)))


def only_for_training(source: SceneSource, split: Split) -> None:
    """Raise ValueError for another split: free answers have no score."""
    if split != "train":
        raise ValueError(
            f"{type(source).__name__} is for training, its free answers have no score: validate on another source by "
            "`Mixture` with `evaluation`, or not at all by --trainer.limit_val_batches 0"
        )


def list_scenes(root: Path, questions: dict[str, list[Question]], missing: Missing) -> list[Scene]:
    """Build scenes from questions by video name; adds scenes without a video to `missing`.

    A scene's name is its video's path without the suffix, or the last two parts of an absolute path.
    """
    scenes: list[Scene] = []
    paths: dict[str, Path] = {}
    for named, asked in questions.items():
        path = Path(named)
        bare = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        name = "/".join(bare.parts[-2:]) if path.is_absolute() else bare.as_posix()
        found = root / path if (root / path).is_file() else find_video(root, str(bare))
        if found is None:
            missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        if paths.setdefault(name, found) != found:
            raise ValueError(f"{paths[name]} and {found} share the scene name {name}: use paths relative to `videos`")
        scenes.append(Scene(name, found, tuple(asked), find_cameras(found), find_depth(found)))
    return scenes


def read_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (position from 1, object) of a JSON list; ValueError names the file and the position."""
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of conversations, got a {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got a {type(row).__name__}")
        yield number, row


def _questions(row: dict[str, Any], where: str, name: str, kind: str) -> list[Question]:
    turns = row.get("conversations")
    try:
        said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]  # type: ignore[union-attr]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: conversations must list {{"from": "human" or "gpt", "value": text}}') from error
    if not said or [role for role, _ in said] != ["question", "answer"] * (len(said) // 2):
        raise ValueError(f"{where}: human and gpt must alternate, human first and gpt last")
    if not all(isinstance(text, str) for _, text in said):
        raise ValueError(f"{where}: a turn's value must be a text")
    pairs = list(zip(said[::2], said[1::2], strict=True))
    return [
        RawQuestion(name if len(pairs) == 1 else f"{name}.{turn}", kind, MEDIUM.sub("", question, count=1), answer)
        for turn, ((_, question), (_, answer)) in enumerate(pairs, start=1)
    ]
