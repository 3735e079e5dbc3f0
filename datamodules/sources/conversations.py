"""Files of scenes by the scene's name, whatever folders a dataset's questions put before it.

VSI-590K names scannet/scene0085_00.mp4, VLM-3R scannet/videos/scene0085_00.mp4, others ScanNet/videos/train/...: the
scene is scene0085_00 in all of them.
"""

from __future__ import annotations

import json
import os.path
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from datamodules.cameras_file import read_rows
from datamodules.depth import find_depth
from datamodules.scenes import MEDIUM_MARK, MediaFiles, Question, RawQuestion, Scene
from datamodules.sources.annotations import find_cameras, find_video
from datamodules.sources.base import Missing, SceneSource, Split, build_once, by_type, require_file
from datamodules.video import VIDEO_SUFFIXES
from zoo.benchmarks import Benchmark
from zoo.errors import InputError
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.progress import progress

CAMERAS = ".cameras.json"


class SceneIndex:
    """Finds a file by the name of its scene.

    Args:
        files: Files named after scenes, in folders named after their datasets.
        suffix: End of their names after the scene's; empty is the file's suffix.
    """

    def __init__(self, files: Iterable[Path], suffix: str = "") -> None:
        self._by_scene: dict[str, list[Path]] = {}
        for file in sorted(files):
            self._by_scene.setdefault(file.name.removesuffix(suffix) if suffix else file.stem, []).append(file)

    def find(self, name: str) -> Path | None:
        """The file of a scene.

        Args:
            name: The scene's name after folders; where datasets share it, one of the folders names the dataset.

        Raises:
            InputError: Several files fit.
        """
        *folders, scene = Path(name).parts
        files = self._by_scene.get(scene, [])
        if len(files) > 1:
            datasets = {_plain(folder) for folder in folders}
            files = [file for file in files if datasets & {_plain(part) for part in file.parent.parts}] or files
        if len(files) > 1:
            raise InputError(f"{name}: {files[0]} and {files[1]} are both of a scene {scene}: remove one of them")
        return files[0] if files else None


@dataclass(frozen=True)
class SceneFiles:
    """What `import-cameras --dataset` has written of a scene.

    Attributes:
        cameras: The cameras file.
        frames: The folder of frames that the cameras are for; None if they are for a video.
        depth: The depth of these frames.
    """

    cameras: Path
    frames: Path | None
    depth: Path | None


class ImportedScenes:
    """The scenes that `import-cameras --dataset` has written to a folder.

    Args:
        root: The folder, with `<dataset>/<scene>.cameras.json`, and beside it the frames `<scene>/` unless the cameras
            are for a video, and `<scene>.depth/`.

    Raises:
        InputError: No cameras are there.
    """

    def __init__(self, root: Path) -> None:
        files = [*root.glob(f"*{CAMERAS}"), *root.glob(f"*/*{CAMERAS}")]
        if not files:
            raise InputError(f"{root}: no <dataset>/<scene>{CAMERAS} there: import-cameras --dataset writes them")
        self._index = SceneIndex(files, CAMERAS)

    def find(self, name: str) -> SceneFiles | None:
        """The files of a scene, see `SceneIndex.find`."""
        cameras = self._index.find(name)
        if cameras is None:
            return None
        scene = cameras.name.removesuffix(CAMERAS)
        frames, depth = cameras.with_name(scene), cameras.with_name(f"{scene}.depth")
        return SceneFiles(cameras, frames if frames.is_dir() else None, depth if depth.is_dir() else None)


def _plain(folder: str) -> str:
    """A dataset's name in one spelling: ScanNet++ is scannetpp."""
    return "".join(filter(str.isalnum, folder.lower().replace("+", "p")))


# ---- A memory-mapped Arrow index of a file of conversations: a run starts without parsing all of its rows
# The index is built once per content of the file, in `cache/conversations/`

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


# ---- Conversations about videos or images: the training format of Spatial-MLLM, VSI-590K and most other models ------

NO_MEDIUM = "rows without a video or image"  # the name under which rows of plain text count as missing


class Conversations(SceneSource):
    r"""Questions and free answers about videos or images, for training.

    All questions about one video, or about the same images, form one scene.

        {"video": "scannet/scene0000_00.mp4", "conversations": [{"from": "human", "value": "<video>\nHow many ...?"},
                                                                 {"from": "gpt", "value": "4"}]}

    One object per line (.jsonl), or a list of objects (.json); the key may also be "conversation", and "image" is a
    file or a list of files. The texts are used unchanged, with the media where their marks <video> or <image> are
    (VSI-590K marks videos by <image> as well), or first. Rows of plain text, and rows whose video or images are absent,
    count as missing.

    Args:
        path: The file; `data.jsonl%25` selects a fixed 25 % of its rows.
        videos: Folder of the videos; null is the file's folder. A folder of frames may replace a video file, and
            `<name>.cameras.json` beside either is used.
        cameras: Folder of cameras and depth by scene, as `import-cameras --dataset` writes it. Frames that were
            imported with their cameras replace the video. Null takes what is beside the videos.
        separate_turns: Make each turn of a conversation a question of its own; else a conversation is one sequence in
            which every answer is learned from, as in the published training.
        seed: Seed of the selection of rows.
        evaluation: Score the answers instead of training on them, as the test split; each turn is its own question.
            Rows whose `question_type` is none of the benchmark's are left out.
        benchmark: Question types and scorers, see `SceneFolder`; null is VSI-Bench.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is invalid; names the line.
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
    ) -> None:
        super().__init__(benchmark)
        file, percent, share = path.rpartition("%")
        if percent and not (share.replace(".", "", 1).isdecimal() and 0 < float(share) <= 100):
            raise InputError(f"{path}: after % give the percentage of rows to use, above 0 and up to 100")
        self.path = Path(file if percent else path).expanduser()
        self.share = float(share) / 100 if percent else 1.0
        self.videos = Path(videos).expanduser() if videos else self.path.parent
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.separate_turns, self.seed, self.evaluation = separate_turns or evaluation, seed, evaluation

    def prepare(self) -> None:
        """Checks that the file exists."""
        require_file(self.path, "it should hold conversations, one JSON object per line")

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the training split, or of the test split, which also serves validation."""
        check_split(self, split, self.evaluation)
        self.prepare()
        index = open_index(self.path)
        if not len(index):
            raise ValueError(f"{self.path}: no row has a video or image")
        # 1. The selected rows, and the turns that are questions of their own.
        rows = np.arange(len(index))
        if self.share < 1:
            count = max(1, round(self.share * len(index)))
            rows = np.array(sorted(random.Random(self.seed).sample(range(len(index)), count)))
        if self.evaluation:
            kinds = index.texts.column("question_type").to_numpy()[rows]
            rows = rows[np.isin(kinds, self.benchmark.question_types)]
        turns = np.full(len(rows), -1)
        if self.separate_turns:
            turns = np.concatenate([np.arange(n) for n in index.num_turns[rows]])
            rows = np.repeat(rows, index.num_turns[rows])
        # 2. The questions of each video.
        media = index.medium_of[rows]
        order = np.argsort(media, kind="stable")
        shown, starts = np.unique(media[order], return_index=True)
        types = frozenset(self.benchmark.question_types)
        questions: dict[MediaFiles, Sequence[Question]] = {}
        self.missing = {}
        for medium, own in zip(shown.tolist(), np.split(order, starts[1:]), strict=True):
            asked = IndexedQuestions(index, self.path.stem, types, rows[own], turns[own])
            if medium < 0:
                self.missing[NO_MEDIUM] = by_type(asked)
            else:
                questions[index.media[medium]] = asked
        if not questions:
            of_type = f" and a question_type of {self.benchmark.name}" if self.evaluation else ""
            raise ValueError(f"{self.path}: no row has a video or image{of_type}")
        return list_scenes(self.videos, questions, self.missing, self.cameras)


def check_split(source: SceneSource, split: Split, evaluation: bool) -> None:
    """Raise ValueError for the test split of a source to train on, and for the training split of one to test on."""
    name = type(source).__name__
    if evaluation and split == "train":
        raise ValueError(f"{name}: --data.source.evaluation is for a test: train on another source")
    if not evaluation and split != "train":
        remedy = (
            "score them with `evaluation: true`, set the `evaluation` of a `Mixture`, or --trainer.limit_val_batches 0"
        )
        raise ValueError(f"{name} is for training, its free answers have no score: {remedy}")


def list_scenes(
    root: Path, questions: dict[MediaFiles, Sequence[Question]], missing: Missing, cameras: Path | None = None
) -> list[Scene]:
    """Build scenes from questions by video or images; add scenes with absent files to `missing`.

    A scene's name is its video's path without the suffix, or the last two parts of an absolute path. Images have the
    name of the first, and a fingerprint of all names where there are several.

    Args:
        root: Folder of the videos and images.
        questions: Questions by video or images.
        missing: Scenes with absent files.
        cameras: Folder of cameras and depth by scene; None takes what is beside the videos.

    Raises:
        InputError: No scene has cameras in their folder.
        ValueError: Two scenes share a name.
    """
    imported = ImportedScenes(cameras) if cameras else None
    scenes: list[Scene] = []
    paths: dict[str, Path] = {}
    for named, asked in questions.items():
        if isinstance(named, tuple):
            files = tuple(root / name for name in named)
            name = named[0] if len(named) == 1 else f"{named[0]}+{fingerprint(named)[:8]}"
            if all(map(os.path.isfile, files)):
                scenes.append(Scene(name, files[0], asked, images=files))
            else:
                missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        path = Path(named)
        bare = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        parts = [part for part in bare.parts if part != ".."]  # selections are written at the name, below their folder
        name = "/".join(parts[-2:] if path.is_absolute() else parts)
        known = imported.find(str(bare)) if imported else None
        found = known.frames if known else None
        found = found or (root / path if os.path.isfile(root / path) else find_video(root, str(bare)))
        if found is None:
            missing.setdefault(name, Counter()).update(by_type(asked))
            continue
        if paths.setdefault(name, found) != found:
            raise ValueError(f"{paths[name]} and {found} share the scene name {name}: use paths relative to `videos`")
        beside = find_cameras(found), find_depth(found)
        scenes.append(Scene(name, found, asked, *((known.cameras, known.depth) if known else beside)))
    if cameras and scenes and all(scene.cameras is None for scene in scenes):
        raise InputError(f"{cameras}: no cameras of any scene, such as {scenes[0].name}: import those of its dataset")
    return scenes
