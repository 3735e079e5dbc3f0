"""A memory-mapped Arrow index of a file of conversations: a run starts without parsing hundreds of thousands of rows.

The index is built once per content of the file, in `cache/conversations/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from datamodules.json_files import read_rows
from datamodules.scenes import MEDIUM_MARK, MediaFiles, Question, RawQuestion
from datamodules.sources.base import build_once
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.progress import progress

FOLDER = Path("cache/conversations")
VERSION = 2  # of the index
TEXTS, NUMBERS, MEDIA, CONTENT = "texts.arrow", "numbers.arrow", "media.json", "content.txt"
BATCH = 8192  # rows written at once
SCHEMAS = {
    TEXTS: pa.schema({"question_type": pa.string(), "turns": pa.list_(pa.string())}),  # question, answer, question, ...
    # apart from the texts: to read them touches few pages. The medium is an index in MEDIA, or -1 for plain text
    NUMBERS: pa.schema({"number": pa.int64(), "medium": pa.int32(), "num_turns": pa.int32()}),
}
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


class ConversationIndex:
    """The rows of a file of conversations, read when they are asked for.

    Args:
        folder: The index, from `open_index`.

    Attributes:
        texts: Question type and turns of each row, in the order of the file.
        numbers: Line or position of each row in the file.
        media: Video or images by number.
        medium_of: Number of the medium of each row; -1 for plain text.
        num_turns: Questions with an answer of each row.
        content: Fingerprint of all rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts, numbers = (pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in SCHEMAS)
        media = json.loads((folder / MEDIA).read_text(encoding="utf-8"))
        self.media: list[MediaFiles] = [medium if isinstance(medium, str) else tuple(medium) for medium in media]
        self.numbers, self.medium_of, self.num_turns = (column.to_numpy() for column in numbers.itercolumns())
        self.content = (folder / CONTENT).read_text(encoding="utf-8")

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConversationIndex, (self.folder,)  # a data worker maps the file itself


@dataclass(frozen=True, eq=False)
class IndexedQuestions(Sequence[Question]):
    """Questions of an index, built when they are asked for.

    Attributes:
        conversations: The index.
        name: First part of the questions' ids.
        types: Question types that have a score; others become free text.
        rows: Row of each question.
        turns: Turn of each question; -1 is the whole conversation.
    """

    conversations: ConversationIndex
    name: str
    types: frozenset[str]
    rows: np.ndarray
    turns: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Question: ...
    @overload
    def __getitem__(self, i: slice) -> IndexedQuestions: ...
    def __getitem__(self, i: int | slice) -> Question | IndexedQuestions:
        if isinstance(i, slice):
            return self.select(range(len(self))[i])
        return next(iter(self.select([range(len(self))[i]])))

    def __iter__(self) -> Iterator[Question]:
        types, turns = self.conversations.texts.itercolumns()
        for row, turn in zip(self.rows.tolist(), self.turns.tolist(), strict=True):
            texts = turns[row].as_py()  # `take` would read all texts: it joins the batches of a list column first
            said = list(zip(texts[::2], texts[1::2], strict=True))
            name = f"{self.name}-{self.conversations.numbers[row]}"
            if turn >= 0 and len(said) > 1:
                name, said = f"{name}.{turn + 1}", [said[turn]]
            kind = types[row].as_py()
            kind = kind if kind in self.types else ""
            (question, answer), *later = said
            yield RawQuestion(name, kind, question, answer, later_turns=tuple(later))

    @property
    def num_answers(self) -> Int[np.ndarray, " Q"]:
        """Answers of each question, see `datamodules.scenes.num_answers`."""
        return np.where(self.turns < 0, self.conversations.num_turns[self.rows], 1)

    @property
    def content_fingerprint(self) -> str:
        """The fingerprint of the questions and answers, without a look at them."""
        chosen = (each.astype(np.int64).tobytes().hex() for each in (self.rows, self.turns))
        return fingerprint([self.conversations.content, self.name, sorted(self.types), *chosen])

    def select(self, indices: Sequence[int]) -> IndexedQuestions:
        """Return some of the questions."""
        chosen = np.asarray(indices, dtype=np.int64)
        return IndexedQuestions(self.conversations, self.name, self.types, self.rows[chosen], self.turns[chosen])


def open_index(path: Path) -> ConversationIndex:
    """Open the index of a file, and build it first where the file is new or has changed.

    Raises:
        ValueError: A row is not a conversation; names file and row.
    """
    folder = FOLDER / fingerprint([VERSION, path.name, file_fingerprint(path), path.stat().st_mtime_ns])
    build_once(folder, f"waiting for another process to index {path}", partial(_write, path))
    return ConversationIndex(folder)


def _write(path: Path, folder: Path) -> None:
    media: dict[MediaFiles, int] = {}
    rows = _parsed(path, media)
    content = ""
    with ExitStack() as files:
        writers = {n: files.enter_context(pa.ipc.new_file(str(folder / n), s)) for n, s in SCHEMAS.items()}
        while batch := list(islice(rows, BATCH)):
            content = fingerprint([content, batch])
            for name, schema in SCHEMAS.items():
                writers[name].write_batch(pa.RecordBatch.from_pylist(batch, schema))
    (folder / MEDIA).write_text(json.dumps(list(media)), encoding="utf-8")
    (folder / CONTENT).write_text(fingerprint([content, list(media)]), encoding="utf-8")


def _parsed(path: Path, media: dict[MediaFiles, int]) -> Iterator[dict[str, Any]]:
    for number, row in progress(read_rows(path), f"index {path.name}", "rows", _num_lines(path)):
        where = f"{path}:{number}"
        medium, kind = _medium(row, where), row.get("question_type")
        turns = _turns(row, where, medium)
        try:
            "".join([str(kind), *turns]).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: a text has half of a surrogate pair, which is no character") from error
        yield {
            "number": number,
            "medium": -1 if medium is None else media.setdefault(medium, len(media)),
            "question_type": kind if isinstance(kind, str) else "",
            "turns": turns,
            "num_turns": len(turns) // 2,
        }


def _num_lines(path: Path) -> int | None:
    """Lines of a .jsonl file, for the progress bar."""
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _medium(row: dict[str, Any], where: str) -> MediaFiles | None:
    """The video or the images of a row; None for plain text."""
    video, images = row.get("video"), row.get("image", row.get("images"))
    images = [images] if isinstance(images, str) else images or []
    if not isinstance(video, str | None) or not (isinstance(images, list) and all(isinstance(i, str) for i in images)):
        raise ValueError(f"{where}: video must be a file name, image a file name or a list of file names")
    if video and images:
        raise ValueError(f"{where}: a video and images: expected one of them")
    return video or tuple(images) or None


def _turns(row: dict[str, Any], where: str, medium: MediaFiles | None) -> list[str]:
    """The texts of a conversation: question, answer, question, ..."""
    try:
        turns = row["conversations"] if "conversations" in row else row["conversation"]
        said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: conversations must list {{"from": "human" or "gpt", "value": text}}') from error
    if not said or [role for role, _ in said] != ["question", "answer"] * (len(said) // 2):
        raise ValueError(f"{where}: human and gpt must alternate, human first and gpt last")
    if not all(isinstance(text, str) for _, text in said):
        raise ValueError(f"{where}: a turn's value must be a text")
    texts = [text for _, text in said]
    marks, num_media = len(MEDIUM_MARK.findall(texts[0])), len(medium) if isinstance(medium, tuple) else 1
    if medium and (marks not in (0, num_media) or any(MEDIUM_MARK.search(question) for question in texts[2::2])):
        raise ValueError(f"{where}: {marks} marks <image> or <video> in the first turn for {num_media} in the row")
    return texts
