"""ScanQA and SQA3D: training questions with free answers about ScanNet's scenes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from datamodules.json_files import read_json
from datamodules.scenes import Medium, Question, Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.conversations import list_scenes, only_for_training


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
        questions: dict[Medium, list[Question]] = {}
        try:
            for scene, number, text, answer in self._read():
                question = Question(str(number), "", text, str(answer))
                questions.setdefault(f"scannet/{scene}", []).append(question)
        except (LookupError, TypeError, AttributeError) as error:
            names, place = ", ".join(map(str, self.files)), sum(map(len, questions.values())) + 1
            raise ValueError(f"{names}: question {place} is not as published ({error!r}): download it again") from error
        self.missing = {}
        return list_scenes(self.videos, dict(questions), self.missing)

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
