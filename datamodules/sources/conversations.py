"""Conversations about videos or images: the training format of Spatial-MLLM, VSI-590K and most other models."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int, UInt8

from datamodules.scenes import MEDIUM_MARK, MediaFiles, Question, RawQuestion, Scene
from datamodules.sources.annotations import list_scenes, read_rows
from datamodules.sources.base import SceneSource, Split, by_type, check_split, require_file
from zoo.benchmarks import Benchmark
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint

NO_MEDIUM = "rows that name no video or image"  # rows that need one count as missing under this name
TEXT, UNNAMED = -1, -2  # in place of a medium: plain text, and a row with a mark that names no medium
MOST_LISTED = 20  # datasets or question types in an error
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


class Conversations(SceneSource):
    r"""Questions and free answers about videos or images, for training.

    All questions about one video, or about the same images, form one scene. A row that names neither is plain text and
    a scene of its own, `text/<id>`, which trains as text. To train on text at a share of the questions, give its file
    and the others a `weight` in a `Mixture`.

        {"video": "scannet/scene0000_00.mp4", "conversations": [{"from": "human", "value": "<video>\nHow many ...?"},
                                                                 {"from": "gpt", "value": "4"}]}

    The file holds one object per line (.jsonl) or a list of objects (.json). The key "conversation" is accepted too,
    and "image" is a file or a list of files. Chat messages, as ms-swift and TRL have them, are read as well:

        {"messages": [{"role": "user", "content": "<image>How many ...?"}, {"role": "assistant", "content": "4"}],
         "images": ["scannet/0.jpg"]}

    "content" may be a list of parts, such as {"type": "video", "video": "a.mp4"} and {"type": "text", "text": "?"}.

    Texts are used unchanged. The media replace the marks <video> or <image> (VSI-590K marks videos by <image> as well),
    or come first if there are no marks. Rows with missing files count as missing. So do rows with a mark that name no
    file and, in an evaluation, rows of plain text.

    Args:
        path: The file. `data.jsonl%25` selects a fixed 25 % of its rows, or of those that `datasets` and
            `question_types` leave.
        videos: Folder of the videos. null uses the file's folder. A folder of frames may replace a video file.
            `<name>.cameras.json` beside either is used.
        cameras: Folder of cameras and depth by scene, as written by `import-cameras --dataset`. Frames that were
            imported with their cameras replace the video. null uses the files beside the videos.
        separate_turns: Make each turn of a conversation a question of its own. Otherwise a conversation is one sequence
            in which every answer is supervised, as in the published training.
        seed: Seed of the selection of rows.
        evaluation: Score the answers, as the test split, instead of training on them. Each turn is its own question.
            Rows whose `question_type` is not in the benchmark are left out.
        benchmark: Question types and scorers, see `SceneFolder`. null uses VSI-Bench.
        datasets: Use only the rows of these datasets: the first folder in the path of their video or image, such as
            `scannet`.
        question_types: Use only the rows whose `question_type` is one of these. They may be names of the file's own.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is invalid. The message names the line.
    """

    def __init__(
        self,
        path: str,
        videos: str | None = None,
        cameras: str | None = None,
        separate_turns: bool = False,
        seed: int = 0,
        evaluation: bool = False,
        benchmark: Benchmark | None = None,
        datasets: list[str] | None = None,
        question_types: list[str] | None = None,
    ) -> None:
        super().__init__(benchmark)
        self.datasets, self.question_types = datasets, question_types
        file, percent, share = path.rpartition("%")
        if percent and not (share.replace(".", "", 1).isdecimal() and 0 < float(share) <= 100):
            raise InputError(f"{path}: after % give the percentage of rows to use, above 0 and up to 100")
        self.path = Path(file if percent else path).expanduser()
        self.share = float(share) / 100 if percent else 1.0
        self.videos = Path(videos).expanduser() if videos else self.path.parent
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.separate_turns, self.seed, self.evaluation = separate_turns or evaluation, seed, evaluation

    def prepare(self) -> None:
        """Check that the file exists."""
        require_file(self.path, "it should hold conversations, one JSON object per line")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of the training split, or of the test split, which also serves as validation split."""
        check_split(self, split, self.evaluation)
        self.prepare()
        rows, media = read_conversations(self.path, self.benchmark.question_types, self.datasets, self.question_types)
        # 1. The selected rows, and the turns that are questions of their own.
        chosen = np.arange(len(rows))
        if self.share < 1 and len(rows):
            count = max(1, round(self.share * len(rows)))
            chosen = np.array(sorted(random.Random(self.seed).sample(range(len(rows)), count)))
        if self.evaluation:
            chosen = chosen[rows.has_type[chosen]]
        turns = np.full(len(chosen), -1)
        if self.separate_turns:
            turns = np.concatenate([np.empty(0, int), *(np.arange(n) for n in rows.num_turns[chosen])])
            chosen = np.repeat(chosen, rows.num_turns[chosen])
        # 2. The questions of each video.
        shown = rows.medium[chosen]
        shown = np.where((shown == TEXT) & (not self.evaluation), len(media) + chosen, shown)  # each row by itself
        order = np.argsort(shown, kind="stable")
        found, starts = np.unique(shown[order], return_index=True)
        questions: dict[MediaFiles, Sequence[Question]] = {}
        texts: list[Scene] = []
        self.missing = {}
        for medium, own in zip(found.tolist(), np.split(order, starts[1:]), strict=False):
            asked = PackedQuestions(rows, self.path.stem, chosen[own], turns[own])
            if self.evaluation:
                self._check(asked)
            if medium < 0:
                self.missing.setdefault(NO_MEDIUM, Counter()).update(by_type(asked))
            elif medium >= len(media):
                name = f"text/{self.path.stem}-{rows.number(int(asked.rows[0]))}"
                texts.append(Scene(name, self.path, asked, is_text=True))
            else:
                questions[media[medium]] = asked
        if not questions and not texts:
            of_type = f" and a question_type of {self.benchmark.name}" if self.evaluation else ""
            raise ValueError(f"{self.path}: no row has a video or image{of_type}")
        return list_scenes(self.videos, questions, self.missing, self.cameras) + texts

    def _check(self, questions: PackedQuestions) -> None:
        """Check the right answers of a test: one that no answer can match would score 0 without a word."""
        for row, question in zip(questions.rows.tolist(), questions, strict=True):
            try:
                if not question.ground_truth.strip():
                    raise InputError("the right answer is empty")
                self.benchmark.check_ground_truth(question.ground_truth, question.question_type)
            except InputError as error:
                raise InputError(f"{self.path}:{questions.packed.number(row)}: {error}") from error


# ---- The rows in memory ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of a file in a few arrays. Forked data workers share arrays, but would copy Python objects.

    Attributes:
        texts: JSON of each row: its line or position in the file, its question type, and question, answer, question...
        ends: End of each row's text.
        medium: Index of each row's video or images, `TEXT` or `UNNAMED`.
        num_turns: Number of question-answer pairs in each row.
        has_type: Whether a row's question type can be scored.
    """

    texts: UInt8[np.ndarray, " bytes"]
    ends: Int[np.ndarray, " rows"]
    medium: Int[np.ndarray, " rows"]
    num_turns: Int[np.ndarray, " rows"]
    has_type: Bool[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, row: int) -> bytes:
        """Return the JSON of a row."""
        return self.texts[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    def number(self, row: int) -> int:
        """Return a row's line or position in the file."""
        return int(json.loads(self.text(row))[0])


@dataclass(frozen=True, eq=False)
class PackedQuestions(Sequence[Question]):
    """Questions of packed rows, built on access.

    Attributes:
        packed: The rows of the file.
        name: First part of the questions' ids.
        rows: Row of each question.
        turns: Turn of each question; -1 is the whole conversation.
    """

    packed: PackedRows
    name: str
    rows: Int[np.ndarray, " Q"]
    turns: Int[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Question: ...
    @overload
    def __getitem__(self, i: slice) -> PackedQuestions: ...
    def __getitem__(self, i: int | slice) -> Question | PackedQuestions:
        if isinstance(i, slice):
            return self.select(range(len(self))[i])
        number, kind, *texts = json.loads(self.packed.text(int(self.rows[i])))
        turn, said = int(self.turns[i]), list(zip(texts[::2], texts[1::2], strict=True))
        name = f"{self.name}-{number}"
        if turn >= 0 and len(said) > 1:
            name, said = f"{name}.{turn + 1}", [said[turn]]
        (question, answer), *later = said
        return RawQuestion(name, kind, question, answer, later_turns=tuple(later))

    @property
    def num_answers(self) -> Int[np.ndarray, " Q"]:
        """Number of answers of each question, see `datamodules.scenes.num_answers`."""
        return np.where(self.turns < 0, self.packed.num_turns[self.rows], 1)

    @property
    def content_fingerprint(self) -> str:
        """Fingerprint of the questions and answers, without building them."""
        texts = b"".join(map(self.packed.text, self.rows.tolist()))
        return fingerprint([self.name, self.turns.tolist(), fingerprint(texts)])

    def select(self, indices: Sequence[int]) -> PackedQuestions:
        """Return some of the questions."""
        chosen = np.asarray(indices, dtype=np.int64)
        return PackedQuestions(self.packed, self.name, self.rows[chosen], self.turns[chosen])


def read_conversations(
    path: Path,
    question_types: Collection[str],
    only_datasets: Collection[str] | None = None,
    only_types: Collection[str] | None = None,
) -> tuple[PackedRows, list[MediaFiles]]:
    """Read a file of conversations.

    Args:
        path: The file.
        question_types: Types that can be scored. Other types become free text.
        only_datasets: Read only the rows of these datasets. None reads all.
        only_types: Read only the rows of these types. None reads all.

    Returns:
        The rows, and the video or images by index.

    Raises:
        ValueError: A row is not a conversation, or none is of a dataset or type. The message names the file.
    """
    found: dict[str, set[str]] = {"datasets": set(), "question_types": set()}
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False)
    texts, ends, num_turns, has_type = bytearray(), [], [], []
    medium_of: list[int] = []
    media: dict[MediaFiles, int] = {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        row = from_messages(row, where) if "messages" in row else row
        medium = _medium(row, where)
        turns = _turns(row, where, medium)
        kind = row.get("question_type")
        dataset = _dataset(medium)
        found["datasets"].add(dataset)
        found["question_types"].add(str(kind))
        if (only_datasets and dataset not in only_datasets) or (only_types and kind not in only_types):
            continue
        has_type.append(isinstance(kind, str) and kind in question_types)
        try:
            texts += encoder.encode([number, kind if has_type[-1] else "", *turns]).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: a text has half of a surrogate pair, which is no character") from error
        ends.append(len(texts))
        num_turns.append(len(turns) // 2)
        without = UNNAMED if any(map(MEDIUM_MARK.search, turns[::2])) else TEXT
        medium_of.append(without if medium is None else media.setdefault(medium, len(media)))
    for name, asked in (("datasets", only_datasets), ("question_types", only_types)):
        if absent := [each for each in asked or () if each not in found[name]]:
            known = sorted(found[name])
            more = f" and {len(known) - MOST_LISTED} others" if len(known) > MOST_LISTED else ""
            raise ValueError(
                f"{path}: no row of {name} {', '.join(absent)}, only of {', '.join(known[:MOST_LISTED])}{more}"
            )
    ended, medium_by_row, turns_by_row = (np.array(column, int) for column in (ends, medium_of, num_turns))
    packed = np.frombuffer(texts, np.uint8)
    return PackedRows(packed, ended, medium_by_row, turns_by_row, np.array(has_type, bool)), list(media)


def from_messages(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a row of chat messages, as ms-swift and TRL have them, as a row of conversations.

    Args:
        row: `messages` with `role` and `content`, a text or a list of parts; `images` and `videos`.
        where: File and line, for errors.

    Raises:
        ValueError: A message is invalid, is not a question or an answer, or names no file.
    """
    files: dict[str, list[Any]] = {}
    for kind in ("image", "video"):
        named = row.get(f"{kind}s", row.get(kind)) or []
        files[kind] = [*named] if isinstance(named, list) else [named]
    turns = []
    try:
        for message in row["messages"]:
            role, content = message["role"], message["content"]
            if role == "system":
                raise ValueError(f"{where}: a system message: leave it out, and give its text to --data.system_prompt")
            texts = []
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if (kind := part["type"]) == "text":
                    texts.append(part["text"])
                else:  # a mark in its place; the file may be in the row's own list
                    texts.append(f"<{kind}>")
                    files[kind] += [part[kind]] if part.get(kind) else []
            turns.append({"from": role, "value": "".join(texts)})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: messages must list {{"role": "user" or "assistant", "content": text, or a list of parts of the '
            'types "text", "image" and "video"}'
        ) from error
    images, videos = ([each.get("path") if isinstance(each, dict) else each for each in files[kind]] for kind in files)
    if len(videos) > 1:
        raise ValueError(f"{where}: {len(videos)} videos: expected one in a row")
    return {**row, "conversations": turns, "image": images, "video": videos[0] if videos else None}


def _medium(row: dict[str, Any], where: str) -> MediaFiles | None:
    """Return the video or the images of a row, or None for plain text."""
    video, images = row.get("video"), row.get("image", row.get("images"))
    images = [images] if isinstance(images, str) else images or []
    if not isinstance(video, str | None) or not (isinstance(images, list) and all(isinstance(i, str) for i in images)):
        raise ValueError(f"{where}: video must be a file name, image a file name or a list of file names")
    if video and images:
        raise ValueError(f"{where}: a video and images: expected one of them")
    return video or tuple(images) or None


def _dataset(medium: MediaFiles | None) -> str:
    """Return the first folder in the path of a video or of the first image. Empty for plain text."""
    first = medium if isinstance(medium, str) else "".join((medium or ())[:1])
    return first.partition("/")[0]


def _turns(row: dict[str, Any], where: str, medium: MediaFiles | None) -> list[str]:
    """Return the texts of a conversation: question, answer, question, ..."""
    try:
        turns = row["conversations"] if "conversations" in row else row["conversation"]
        said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: conversations must list {{"from": "human" or "gpt", "value": text}}, or messages '
            '{"role": "user" or "assistant", "content": text}'
        ) from error
    if not said or [role for role, _ in said] != ["question", "answer"] * (len(said) // 2):
        raise ValueError(f"{where}: human and gpt must alternate, human first and gpt last")
    if not all(isinstance(text, str) for _, text in said):
        raise ValueError(f"{where}: a turn's value must be a text")
    texts = [text for _, text in said]
    marks, num_media = len(MEDIUM_MARK.findall(texts[0])), len(medium) if isinstance(medium, tuple) else 1
    if medium and (marks not in (0, num_media) or any(MEDIUM_MARK.search(question) for question in texts[2::2])):
        raise ValueError(f"{where}: {marks} marks <image> or <video> in the first turn for {num_media} in the row")
    return texts
