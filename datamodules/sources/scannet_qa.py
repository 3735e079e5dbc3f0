"""ScanQA and SQA3D: questions with free answers about ScanNet's scenes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from datamodules.scenes import Question, Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.conversations import list_scenes, only_for_training


class _ScanNetQA(SceneSource):
    """A training set about ScanNet's scenes.

    Attributes:
        fields: what `_read` requires of a question, for an error message.
    """

    fields: ClassVar[str]

    def __init__(self, files: list[str], videos: str, url: str) -> None:
        super().__init__()
        self.files, self.videos, self.url = [Path(file).expanduser() for file in files], Path(videos).expanduser(), url

    def prepare(self) -> None:
        """Check that the annotation files exist."""
        for file in self.files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is absent: download it from {self.url}")

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the training split."""
        only_for_training(self, split)
        self.prepare()
        questions: dict[str, list[Question]] = {}
        try:
            for scene, question in self._read():
                questions.setdefault(f"scannet/{scene}", []).append(question)
        except (LookupError, TypeError, AttributeError) as error:
            names, number = ", ".join(map(str, self.files)), sum(map(len, questions.values())) + 1
            raise ValueError(f"{names}: question {number} lacks one of {self.fields} ({error})") from error
        self.missing = {}
        return list_scenes(self.videos, questions, self.missing)

    @abstractmethod
    def _read(self) -> Iterator[tuple[str, Question]]: ...


class ScanQA(_ScanNetQA):
    """ScanQA's training questions (arXiv 2112.10482) with the first of their annotated answers.

    Args:
        path: ScanQA_v1.0_train.json.
        videos: folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: the file is invalid.
    """

    fields = "scene_id, question_id, question and answers"

    def __init__(self, path: str, videos: str) -> None:
        super().__init__([path], videos, "https://github.com/ATR-DBI/ScanQA")

    def _read(self) -> Iterator[tuple[str, Question]]:
        for row in _load(self.files[0]):
            text, answer = row["question"].strip(), str(row["answers"][0])
            yield row["scene_id"], Question(str(row["question_id"]), "", text, answer)


class SQA3D(_ScanNetQA):
    """SQA3D's training questions (arXiv 2210.07474), each preceded by its situation.

    Args:
        questions: v1_balanced_questions_train_scannetv2.json.
        answers: v1_balanced_sqa_annotations_train_scannetv2.json.
        videos: folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: a file is invalid, or a question has no answer.
    """

    fields = "scene_id, question_id, situation, question, or an answer"

    def __init__(self, questions: str, answers: str, videos: str) -> None:
        super().__init__([questions, answers], videos, "https://zenodo.org/records/7792397")

    def _read(self) -> Iterator[tuple[str, Question]]:
        questions, answers = self.files
        answer_of = {row["question_id"]: row["answers"][0]["answer"] for row in _load(answers, "annotations")}
        for row in _load(questions, "questions"):
            text, answer = f"{row['situation'].strip()} {row['question'].strip()}", answer_of[row["question_id"]]
            yield row["scene_id"], Question(str(row["question_id"]), "", text, str(answer))


def _load(file: Path, key: str | None = None) -> list[dict[str, Any]]:
    """Read a JSON list of objects, or the one under a key; ValueError names the file."""
    try:
        content = json.loads(file.read_bytes())
        rows = content if key is None else content[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not the published JSON ({error!r}): download it again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: expected a list of questions: download it again")
    return rows
