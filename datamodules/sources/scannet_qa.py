"""ScanQA and SQA3D: questions about ScanNet's scenes with free answers, from their own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.scenes import Question, Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.conversations import list_scenes, only_for_training


class ScanQA(SceneSource):
    """ScanQA's training questions (arXiv 2112.10482): the first of the answers that people gave.

    Args:
        path: ScanQA_v1.0_train.json.
        videos: the folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises FileNotFoundError where the file is absent, ValueError where it can't be understood.
    """

    def __init__(self, path: str, videos: str) -> None:
        super().__init__()
        self.path, self.videos = Path(path).expanduser(), Path(videos).expanduser()

    def prepare(self) -> None:
        _require(self.path, "https://github.com/ATR-DBI/ScanQA")

    def scenes(self, split: Split) -> list[Scene]:
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        for number, row in enumerate(_load(self.path), start=1):
            try:
                text = row["question"].strip()
                question = Question(str(row["question_id"]), "", text, str(row["answers"][0]))
                questions.setdefault(f"scannet/{row['scene_id']}", []).append(question)
            except (LookupError, TypeError, AttributeError) as error:
                fields = "scene_id, question_id, question and answers"
                raise ValueError(f"{self.path}: question {number} lacks one of {fields} ({error})") from error
        self.missing = {}
        return list_scenes(self.videos, questions, self.missing)


class SQA3D(SceneSource):
    """SQA3D's training questions (arXiv 2210.07474), each after the situation that it is asked in.

    Args:
        questions: v1_balanced_questions_train_scannetv2.json.
        answers: v1_balanced_sqa_annotations_train_scannetv2.json.
        videos: the folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises FileNotFoundError where a file is absent, ValueError where it can't be understood or a question has no
    answer.
    """

    def __init__(self, questions: str, answers: str, videos: str) -> None:
        super().__init__()
        self.questions, self.answers = Path(questions).expanduser(), Path(answers).expanduser()
        self.videos = Path(videos).expanduser()

    def prepare(self) -> None:
        for file in (self.questions, self.answers):
            _require(file, "https://zenodo.org/records/7792397")

    def scenes(self, split: Split) -> list[Scene]:
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        try:
            answer_of = {row["question_id"]: row["answers"][0]["answer"] for row in _load(self.answers, "annotations")}
            for row in _load(self.questions, "questions"):
                text = f"{row['situation'].strip()} {row['question'].strip()}"
                question = Question(str(row["question_id"]), "", text, str(answer_of[row["question_id"]]))
                questions.setdefault(f"scannet/{row['scene_id']}", []).append(question)
        except (LookupError, TypeError, AttributeError) as error:
            fields = "scene_id, question_id, situation, question, or an answer"
            raise ValueError(f"{self.questions}, {self.answers}: a question lacks {fields} ({error})") from error
        self.missing = {}
        return list_scenes(self.videos, questions, self.missing)


def _require(file: Path, where: str) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is absent: download it from {where}")


def _load(file: Path, key: str | None = None) -> list[dict[str, Any]]:
    """A JSON list of objects, or that under a key. Raises ValueError that names the file."""
    try:
        content = json.loads(file.read_bytes())
        rows = content if key is None else content[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not JSON as it is published ({error!r}): download it again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of questions belongs here")
    return rows
