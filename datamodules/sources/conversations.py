"""Training sets with free answers: conversations (Spatial-MLLM, VSI-590K and most other models), ScanQA, SQA3D."""

from __future__ import annotations

import os.path
import random
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.depth import find_depth
from datamodules.json_files import read_json, read_rows
from datamodules.scenes import Question, RawQuestion, Scene
from datamodules.sources.annotations import find_cameras, find_video
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
        path: The file; `data.jsonl%25` selects a fixed 25 % of its rows.
        videos: Folder of the videos; null is the file's folder. A folder of frames may replace a video file, and
            `<name>.cameras.json` beside either is used.
        seed: Seed of the selection of rows.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is invalid; names the line.
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
        """Checks that the file exists."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is absent: it should hold conversations, one JSON object per line")

    def scenes(self, split: Split) -> list[Scene]:
        """Lists the scenes of the training split."""
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        self.missing = {}
        for number, row in self._rows():
            where = f"{self.path}:{number}"
            kind = row.get("question_type")
            kind = kind if kind in self.benchmark.question_types else ""  # other datasets' types have no score
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
        """Returns (line or position, row) of the selected rows, in the order of the file."""
        rows = list(read_rows(self.path))
        if self.share == 1:
            return iter(rows)
        count = max(1, round(self.share * len(rows)))
        return iter(rows[i] for i in sorted(random.Random(self.seed).sample(range(len(rows)), count)))


class _ScanNetQA(SceneSource):
    """A training set about ScanNet's scenes."""

    def __init__(self, files: list[str], videos: str, url: str) -> None:
        super().__init__()
        self.files, self.videos, self.url = [Path(file).expanduser() for file in files], Path(videos).expanduser(), url

    def prepare(self) -> None:
        """Checks that the annotation files exist."""
        for file in self.files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is absent: download it from {self.url}")

    def scenes(self, split: Split) -> list[Scene]:
        """Lists the scenes of the training split."""
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        try:
            for scene, number, text, answer in self._read():
                question = Question(str(number), "", text, str(answer))
                questions.setdefault(f"scannet/{scene}", []).append(question)
        except (LookupError, TypeError, AttributeError) as error:
            names, place = ", ".join(map(str, self.files)), sum(map(len, questions.values())) + 1
            raise ValueError(f"{names}: question {place} is not as published ({error!r}): download it again") from error
        self.missing = {}
        return list_scenes(self.videos, questions, self.missing)

    @abstractmethod
    def _read(self) -> Iterator[tuple[str, int | str, str, str]]:
        """Yields scene, id, text and answer of each question; any error of a lookup means that a field is missing."""


class ScanQA(_ScanNetQA):
    """ScanQA's training questions (arXiv 2112.10482) with the first of their annotated answers.

    Args:
        path: ScanQA_v1.0_train.json.
        videos: Folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is invalid.
    """

    def __init__(self, path: str, videos: str) -> None:
        super().__init__([path], videos, "https://github.com/ATR-DBI/ScanQA")

    def _read(self) -> Iterator[tuple[str, int | str, str, str]]:
        for row in read_json(self.files[0]):
            yield row["scene_id"], row["question_id"], row["question"].strip(), row["answers"][0]


class SQA3D(_ScanNetQA):
    """SQA3D's training questions (arXiv 2210.07474), each preceded by its situation.

    Args:
        questions: v1_balanced_questions_train_scannetv2.json.
        answers: v1_balanced_sqa_annotations_train_scannetv2.json.
        videos: Folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is invalid, or a question has no answer.
    """

    def __init__(self, questions: str, answers: str, videos: str) -> None:
        super().__init__([questions, answers], videos, "https://zenodo.org/records/7792397")

    def _read(self) -> Iterator[tuple[str, int | str, str, str]]:
        questions, answers = map(read_json, self.files)
        answer_of = {row["question_id"]: row["answers"][0]["answer"] for row in answers["annotations"]}
        for row in questions["questions"]:
            text = f"{row['situation'].strip()} {row['question'].strip()}"
            yield row["scene_id"], row["question_id"], text, answer_of[row["question_id"]]


def only_for_training(source: SceneSource, split: Split) -> None:
    """Raises ValueError for another split: free answers have no score."""
    if split != "train":
        remedy = "set the `evaluation` of a `Mixture`, or --trainer.limit_val_batches 0"
        raise ValueError(f"{type(source).__name__} is for training, its free answers have no score: {remedy}")


def list_scenes(root: Path, questions: dict[str, list[Question]], missing: Missing) -> list[Scene]:
    """Builds scenes from questions by video name; adds scenes without a video to `missing`.

    A scene's name is its video's path without the suffix, or the last two parts of an absolute path.
    """
    scenes: list[Scene] = []
    paths: dict[str, Path] = {}
    for named, asked in questions.items():
        path = Path(named)
        bare = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        name = "/".join(bare.parts[-2:]) if path.is_absolute() else bare.as_posix()
        found = root / path if os.path.isfile(root / path) else find_video(root, str(bare))
        if found is None:
            missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        if paths.setdefault(name, found) != found:
            raise ValueError(f"{paths[name]} and {found} share the scene name {name}: use paths relative to `videos`")
        scenes.append(Scene(name, found, tuple(asked), find_cameras(found), find_depth(found)))
    return scenes


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
