"""ScanQA and SQA3D: questions with free answers about ScanNet's scenes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from datamodules.scenes import MediaFiles, Question, Scene
from datamodules.sources.annotations import list_scenes
from datamodules.sources.base import SceneSource, Split, check_split, require_file
from zoo import benchmarks
from zoo.benchmarks.free_answers import FreeAnswers
from zoo.files.atomic_io import read_json


class _ScanNetQA(SceneSource):
    """Questions about ScanNet's scenes, for training or as a test split.

    Attributes:
        scored_by: The dataset's benchmark, which words and scores the questions of a test.
    """

    has_cameras = False
    scored_by: FreeAnswers

    def __init__(self, files: list[str], videos: str, url: str, evaluation: bool, cameras: str | None) -> None:
        super().__init__()
        self.evaluation = evaluation
        if evaluation:
            self.benchmark = self.scored_by
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.files, self.videos, self.url = [Path(file).expanduser() for file in files], Path(videos).expanduser(), url

    def prepare(self) -> None:
        """Check that the annotation files exist."""
        for file in self.files:
            require_file(file, f"download it from {self.url}")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of the training split, or of the test split, which also serves as validation split."""
        check_split(self, split, self.evaluation)
        self.prepare()
        questions: dict[MediaFiles, list[Question]] = {}
        try:
            for scene, number, situation, asked, answers in self._read():
                kind, truth = "", str(answers[0])
                if self.evaluation:
                    kind = self.scored_by.find_type(asked)
                    truth = "\n".join(str(answer).replace("\n", " ") for answer in answers)
                question = Question(str(number), kind, f"{situation} {asked}".strip(), truth)
                questions.setdefault(f"scannet/{scene}", []).append(question)
        except (LookupError, TypeError, AttributeError) as error:
            names, place = ", ".join(map(str, self.files)), sum(map(len, questions.values())) + 1
            raise ValueError(f"{names}: question {place} is not as published ({error!r}): download it again") from error
        self.missing = {}
        return list_scenes(self.videos, dict(questions), self.missing, self.cameras)

    @abstractmethod
    def _read(self) -> Iterator[tuple[str, int | str, str, str, list[str]]]:
        """Yield scene, id, situation, question and accepted answers. A missing field raises a LookupError."""


class ScanQA(_ScanNetQA):
    """ScanQA's questions (arXiv 2112.10482). Training uses the first annotated answer.

    Args:
        path: ScanQA_v1.0_train.json, or ScanQA_v1.0_val.json for a test, because the test splits have no answers.
        videos: Folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.
        evaluation: Score the questions instead of training on them.
        cameras: Folder of cameras and depth by scene, as written by `import-cameras --dataset`. null uses the files
            beside the videos.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is invalid.
    """

    scored_by = benchmarks.ScanQA()

    def __init__(self, path: str, videos: str, evaluation: bool = False, cameras: str | None = None) -> None:
        super().__init__([path], videos, "https://github.com/ATR-DBI/ScanQA", evaluation, cameras)

    def _read(self) -> Iterator[tuple[str, int | str, str, str, list[str]]]:
        for row in read_json(self.files[0]):
            yield row["scene_id"], row["question_id"], "", row["question"].strip(), row["answers"]


class SQA3D(_ScanNetQA):
    """SQA3D's questions (arXiv 2210.07474), each preceded by its situation.

    Args:
        questions: V1_balanced_questions_train_scannetv2.json, or the file of the test split.
        answers: V1_balanced_sqa_annotations_train_scannetv2.json, or the file of the test split.
        videos: Folder with `scannet/<scene_id>.mp4`, or folders of frames of that name.
        evaluation: Score the questions instead of training on them.
        cameras: Folder of cameras and depth by scene, as written by `import-cameras --dataset`. null uses the files
            beside the videos.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is invalid, or a question has no answer.
    """

    scored_by = benchmarks.SQA3D()

    def __init__(
        self, questions: str, answers: str, videos: str, evaluation: bool = False, cameras: str | None = None
    ) -> None:
        super().__init__([questions, answers], videos, "https://zenodo.org/records/7792397", evaluation, cameras)

    def _read(self) -> Iterator[tuple[str, int | str, str, str, list[str]]]:
        questions, answers = map(read_json, self.files)
        answers_of = {row["question_id"]: [a["answer"] for a in row["answers"]] for row in answers["annotations"]}
        for row in questions["questions"]:
            number = row["question_id"]
            yield row["scene_id"], number, row["situation"].strip(), row["question"].strip(), answers_of[number]
