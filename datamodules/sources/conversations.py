"""Conversations about videos, the training data of Spatial-MLLM, VSI-590K and most others."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.depth import find_depth
from datamodules.raw_question import RawQuestion
from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import find_cameras, find_video, read_jsonl
from datamodules.sources.base import Missing, SceneSource, Split, by_type
from datamodules.video import VIDEO_SUFFIXES
from zoo.errors import InputError
from zoo.metrics import QUESTION_TYPES

NO_VIDEO = "rows without a video"  # pictures and plain text: counted under this name
MEDIUM = re.compile("<(video|image)>")  # VSI-590K says <image> of videos too
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


class Conversations(SceneSource):
    """Questions and free answers about videos, for training; all questions about one video are one scene's.

        {"video": "scannet/scene0000_00.mp4", "conversations": [{"from": "human", "value": "<video>\\nHow many ...?"},
                                                                 {"from": "gpt", "value": "4"}]}

    A line each (.jsonl) or a list of them (.json). The text is taken word for word, what follows the mark of the
    video; the video comes first. Each question with its answer stands for itself, also where a conversation has
    several. Rows of pictures or plain text, and of videos that aren't there, are counted as missing.

    Args:
        path: the file; `data.jsonl%25` takes a fixed quarter of its rows.
        videos: the folder that the rows' videos are named in; null is that of the file. A folder of frames in
            place of a video file is found as well, and `<name>.cameras.json` beside either.
        seed: another one draws other rows.

    Raises FileNotFoundError where the file is absent, ValueError with file and line where it can't be understood.
    """

    def __init__(self, path: str, videos: str | None = None, seed: int = 0) -> None:
        super().__init__()
        file, percent, share = path.rpartition("%")
        if percent and not (share.replace(".", "", 1).isdecimal() and 0 < float(share) <= 100):
            raise InputError(f"{path}: after % comes what part of the rows to take, above 0 and up to 100")
        self.path = Path(file if percent else path).expanduser()
        self.share = float(share) / 100 if percent else 1.0
        self.videos = Path(videos).expanduser() if videos else self.path.parent
        self.seed = seed

    def prepare(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is absent: it holds the conversations, a JSON object a line")

    def scenes(self, split: Split) -> list[Scene]:
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        self.missing = {}
        for number, row in self._rows():
            where = f"{self.path}:{number}"
            asked = _questions(row, where, f"{self.path.stem}-{number}")
            video = row.get("video")
            if isinstance(video, str):
                questions.setdefault(video, []).extend(asked)
            else:
                self.missing.setdefault(NO_VIDEO, Counter()).update(by_type(asked))
        if not questions:
            raise ValueError(f"{self.path}: no row has a video")
        return list_scenes(self.videos, questions, self.missing)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line or place in the list, row) of those that are taken, in the order of the file."""
        rows = list(read_jsonl(self.path) if self.path.suffix == ".jsonl" else read_list(self.path))
        if self.share == 1:
            return iter(rows)
        count = max(1, round(self.share * len(rows)))
        return iter(rows[i] for i in sorted(random.Random(self.seed).sample(range(len(rows)), count)))


def only_for_training(source: SceneSource, split: Split) -> None:
    """Raises ValueError for another split: free answers have no score."""
    if split != "train":
        raise ValueError(
            f"{type(source).__name__} is for training, its free answers have no score: validate on another source by "
            "`Mixture` with `evaluation`, or not at all by --trainer.limit_val_batches 0"
        )


def list_scenes(root: Path, questions: dict[str, list[Question]], missing: Missing) -> list[Scene]:
    """The scenes of videos by their names in a folder; those that aren't there are added to `missing`.

    A scene's name is its video's without the suffix, and of an absolute path the last two parts.
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
            raise ValueError(f"{paths[name]} and {found} would both be the scene {name}: name them relative to videos")
        scenes.append(Scene(name, found, tuple(asked), find_cameras(found), find_depth(found)))
    return scenes


def read_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place from 1, object) of the objects in a JSON list. Raises ValueError, naming the file and the place."""
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of conversations belongs here, this is a {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a conversation is a JSON object, this is a {type(row).__name__}")
        yield number, row


def _questions(row: dict[str, Any], where: str, name: str) -> list[Question]:
    turns = row.get("conversations")
    try:
        said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]  # type: ignore[union-attr]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: conversations must list {{"from": "human" or "gpt", "value": text}}') from error
    if not said or [role for role, _ in said] != ["question", "answer"] * (len(said) // 2):
        raise ValueError(f"{where}: human and gpt must take turns, human first and gpt last")
    if not all(isinstance(text, str) for _, text in said):
        raise ValueError(f"{where}: a turn's value is a text")
    kind = row.get("question_type")
    kind = kind if kind in QUESTION_TYPES else ""
    pairs = list(zip(said[::2], said[1::2], strict=True))
    return [
        RawQuestion(name if len(pairs) == 1 else f"{name}.{turn}", kind, MEDIUM.sub("", question, count=1), answer)
        for turn, ((_, question), (_, answer)) in enumerate(pairs, start=1)
    ]
